"""A table of decisions over a few numbers of the view: what is left of a policy where nothing can be asked.

Engines take tables by batch size; a table also answers in constant time, and can be read. Its file is JSON.
:class:`TableBuilder` makes one from the decisions of any scheduler, ``scripts/compile_policy.py`` from a
bundle or rule, with what that costs in the simulator.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dsd_env.control import Decision, DecisionView, Site
from dsd_env.control.fleet import FleetSpace
from dsd_env.files import write_json
from dsd_env.scenario import Scenario
from dsd_env.schedulers.base import SchedulerError
from dsd_env.schedulers.rules import SITES
from dsd_env.schedulers.static import EDGE_FIRST, StaticChoice, apply_static
from dsd_env.strict_json import loads
from dsd_env.strict_model import StrictNumbers

MAX_CELLS = 100_000
"""Most cells of a table."""
PLAIN = "plain"
"""Place of a cell that decodes plainly."""
AXES = ("batch", "context_tokens", "acceptance", "rtt_s")
"""The axes, in the order of the cells: the last runs fastest."""


class Cell(NamedTuple):
    """One decision.

    Attributes:
        gamma: Speculation length.
        batch_size: Batch size that a verification waits for.
        place: ``colocated``, ``own``, ``edge`` or ``plain``.
    """

    gamma: int
    batch_size: int
    place: str


class TableError(SchedulerError):
    """A table cannot be read; the message says what is wrong with it."""


class _Model(StrictNumbers, BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Axes(_Model):
    """Where the cells end; a value at an edge belongs to the cell above it. Without edges there is one cell.

    Attributes:
        batch: Requests resident at the target, this one included.
        context_tokens: Prompt and output so far.
        acceptance: Running acceptance rate of the request.
        rtt_s: Running round-trip time of its device's link.
    """

    batch: tuple[Annotated[int, Field(gt=0)], ...] = (2, 3, 5, 9, 17, 33, 65, 129)
    context_tokens: tuple[Annotated[int, Field(gt=0)], ...] = (512, 2048)
    acceptance: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.3, 0.5, 0.7, 0.85)
    rtt_s: tuple[Annotated[float, Field(gt=0)], ...] = (0.01, 0.03, 0.1)

    @model_validator(mode="after")
    def _rising(self) -> Axes:
        for name in AXES:
            edges = getattr(self, name)
            if any(low >= high for low, high in pairwise(edges)):
                raise ValueError(f"{name}: edges {list(edges)} must rise")
        if self.cells > MAX_CELLS:
            raise ValueError(f"{self.cells} cells are more than {MAX_CELLS}")
        return self

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of cells along each axis."""
        return tuple(len(getattr(self, name)) + 1 for name in AXES)

    @property
    def cells(self) -> int:
        """Number of cells."""
        return math.prod(self.shape)

    def index(self, batch: float, context_tokens: float, acceptance: float, rtt_s: float) -> int:
        """Return the number of the cell of four values."""
        index = bisect_right(self.batch, batch)
        index = index * (len(self.context_tokens) + 1) + bisect_right(self.context_tokens, context_tokens)
        index = index * (len(self.acceptance) + 1) + bisect_right(self.acceptance, acceptance)
        return index * (len(self.rtt_s) + 1) + bisect_right(self.rtt_s, rtt_s)

    def index_of(self, view: DecisionView) -> int:
        """Return the number of the cell of a view."""
        request = view.request
        return self.index(
            max(1, view.target.resident),
            request.prompt_tokens + request.committed_tokens,
            request.acceptance_rate,
            view.link.rtt_s,
        )


class Table(_Model):
    """A table of decisions.

    Attributes:
        format: What the file is.
        version: Version of the format.
        source: What was compiled.
        scenario: Name of the scenario whose views it was compiled on.
        axes: Its axes.
        gamma: Speculation length of every cell, the last axis running fastest.
        batch_size: Batch size of every cell.
        place: Draft site of every cell: ``colocated``, ``own``, ``edge`` or ``plain``.
        visits: Decisions that were seen in every cell; a cell with none has those of the nearest one that
            has.
    """

    format: Literal["dsd-env decision table"] = "dsd-env decision table"
    version: Literal[1] = 1
    source: str
    scenario: str
    axes: Axes
    gamma: tuple[Annotated[int, Field(ge=0, le=64)], ...]
    batch_size: tuple[Annotated[int, Field(ge=1, le=4096)], ...]
    place: tuple[Literal["colocated", "own", "edge", "plain"], ...]
    visits: tuple[Annotated[int, Field(ge=0)], ...]

    @model_validator(mode="after")
    def _complete(self) -> Table:
        for name in ("gamma", "batch_size", "place", "visits"):
            if len(getattr(self, name)) != self.axes.cells:
                raise ValueError(f"{name}: has {len(getattr(self, name))} values for {self.axes.cells} cells")
        for number, (gamma, place) in enumerate(zip(self.gamma, self.place, strict=True)):
            if (gamma == 0) != (place == PLAIN):
                raise ValueError(f"cell {number}: gamma {gamma} does not go with place {place!r}")
        return self

    def cell(self, index: int) -> Cell:
        """Return a cell by its number."""
        return Cell(self.gamma[index], self.batch_size[index], self.place[index])

    def length(self, batch: int, context_tokens: int, acceptance: float, rtt_s: float) -> int:
        """Return the speculation length for four values."""
        return self.gamma[self.axes.index(batch, context_tokens, acceptance, rtt_s)]

    def lengths_by_batch(self) -> list[tuple[int, int]]:
        """Return (smallest batch, speculation length) per cell of the axis of batch sizes.

        The other axes are summed up: the most frequent length among the decisions seen there.
        """
        inner = self.axes.cells // self.axes.shape[0]
        rows: list[tuple[int, int]] = []
        for row, low in enumerate((1, *self.axes.batch)):
            cells = range(row * inner, (row + 1) * inner)
            rows.append((low, _commonest({i: self.visits[i] for i in cells}, self.gamma)))
        return rows

    def by_batch(self) -> Table:
        """Return the table that an engine with a table by batch size gets, to be tried as a scheduler."""
        inner = self.axes.cells // self.axes.shape[0]
        cells: list[Cell] = []
        visits: list[int] = []
        for row, (_, gamma) in enumerate(self.lengths_by_batch()):
            own = [i for i in range(row * inner, (row + 1) * inner) if self.gamma[i] == gamma]
            weights = Counter[Cell]()
            for i in own:
                weights[self.cell(i)] += self.visits[i]
            cells.append(weights.most_common(1)[0][0])
            visits.append(sum(self.visits[row * inner : (row + 1) * inner]))
        axes = Axes(batch=self.axes.batch, context_tokens=(), acceptance=(), rtt_s=())
        return _table(f"{self.source}, by batch size alone", self.scenario, axes, cells, visits)

    def save(self, path: Path) -> None:
        """Write the table as JSON."""
        write_json(path, self.model_dump(mode="json"))


def load_table(path: str | Path) -> Table:
    """Return the table in a file.

    Raises:
        TableError: There is none, or it is not one.
    """
    try:
        content = loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise TableError(f"table: {path} cannot be read: {error}") from error
    try:
        return Table.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise TableError(f"table: {path}: {where or 'file'}: {first['msg']}") from error


class TableScheduler:
    """Decides by a table.

    A request is routed as by every rule: at admission to the offered target with the fewest requests. Where
    nobody can draft at the place of a cell, `colocated` decodes plainly, and `own` and `edge` try the other
    places as `edge_sd` does.

    Attributes:
        name: ``table:FILE``.
        table: The table.
    """

    def __init__(self, name: str, table: Table) -> None:
        """Build the scheduler from a table."""
        self.name = name
        self.table = table
        self._choices = [_choice(table.cell(i)) for i in range(table.axes.cells)]

    def reset(self, scenario: Scenario, seed: int) -> None:
        """Do nothing; the table fits every scenario."""

    def decide(self, view: DecisionView) -> Decision:
        """Return the decision of the view's cell."""
        return apply_static(view, self._choices[self.table.axes.index_of(view)])


class GroupTableScheduler:
    """Decides by a table for each group of the fleet view: what is left of its plans without a controller.

    Attributes:
        name: What it is called.
        tables: The tables, in the order of the groups.
    """

    def __init__(self, name: str, tables: Sequence[Table], settings: Mapping[str, Any]) -> None:
        """Build the scheduler.

        Args:
            name: What it is called.
            tables: One table for each group.
            settings: Arguments of :class:`dsd_env.control.fleet.FleetSpace`, which say what the groups are.
        """
        self.name, self.tables = name, tuple(tables)
        self._settings = dict(settings)
        self._of_group = [TableScheduler(name, table) for table in self.tables]

    def reset(self, scenario: Scenario, seed: int) -> None:
        """Find the scenario's groups.

        Raises:
            SchedulerError: There is another number of them.
        """
        self._space = FleetSpace(scenario, **self._settings)
        if len(self._space.groups) != len(self.tables):
            raise SchedulerError(
                f"{self.name}: {len(self.tables)} tables for the groups {list(self._space.group_names)}"
            )

    def decide(self, view: DecisionView) -> Decision:
        """Return the decision of the view's cell in the table of its group."""
        return self._of_group[self._space.group_of_view(view)].decide(view)


class TableBuilder:
    """Counts the decisions seen in every cell.

    Attributes:
        axes: The axes.
    """

    def __init__(self, axes: Axes) -> None:
        """Begin with nothing seen."""
        self.axes = axes
        self._seen: dict[int, Counter[Cell]] = {}

    @property
    def seen(self) -> bool:
        """Whether any decision has been seen."""
        return bool(self._seen)

    def see(self, view: DecisionView, decision: Decision) -> None:
        """Count a decision; those at admissions, which draft nothing, are left out.

        Raises:
            ValueError: The decision has a stop rule, which no table can hold.
        """
        if decision.stop is not None:
            raise ValueError("a rule that stops within a draft cannot be compiled to a table of lengths")
        if view.request.is_admission:
            return
        place = PLAIN
        if decision.gamma > 0:
            site = view.candidates[decision.placement].site
            place = next(word for word, each in SITES.items() if each == site)
        cell = Cell(decision.gamma, decision.batch_size, place)
        self._seen.setdefault(self.axes.index_of(view), Counter())[cell] += 1

    def build(self, source: str, scenario: str) -> Table:
        """Return the table: in every cell the commonest place, and there the commonest length and batch size.

        Raises:
            ValueError: No decision has been seen.
        """
        if not self._seen:
            raise ValueError("no decision has been seen")
        known = {index: _vote(counts) for index, counts in self._seen.items()}
        cells, visits = [], []
        places = list(product(*(range(n) for n in self.axes.shape)))
        for index, place in enumerate(places):
            near = index
            if index not in known:
                near = min(known, key=lambda i: (_distance(place, places[i]), i))
            cells.append(known[near])
            visits.append(sum(self._seen[index].values()) if index in self._seen else 0)
        return _table(source, scenario, self.axes, cells, visits)


def _vote(counts: Counter[Cell]) -> Cell:
    places = Counter[str]()
    for cell, n in counts.items():
        places[cell.place] += n
    place = places.most_common(1)[0][0]
    return max((n, cell) for cell, n in counts.items() if cell.place == place)[1]


def _distance(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    return sum(abs(x - y) for x, y in zip(a, b, strict=True))


def _commonest(visits: dict[int, int], gammas: tuple[int, ...]) -> int:
    """Return the length with the most visits; where nothing was seen, that of the most cells."""
    weights = Counter[int]()
    seen = any(visits.values())
    for index, n in visits.items():
        weights[gammas[index]] += n if seen else 1
    return max((n, gamma) for gamma, n in weights.items())[1]


def _table(source: str, scenario: str, axes: Axes, cells: list[Cell], visits: list[int]) -> Table:
    columns: dict[str, Any] = {
        "gamma": tuple(cell.gamma for cell in cells),
        "batch_size": tuple(cell.batch_size for cell in cells),
        "place": tuple(cell.place for cell in cells),
    }
    return Table(source=source, scenario=scenario, axes=axes, visits=tuple(visits), **columns)


def _choice(cell: Cell) -> StaticChoice:
    if cell.gamma == 0:
        return StaticChoice(0, cell.batch_size, ())
    first = SITES[cell.place]
    if first == Site.COLOCATED:
        return StaticChoice(cell.gamma, cell.batch_size, (first,))
    return StaticChoice(cell.gamma, cell.batch_size, (first, *(s for s in EDGE_FIRST if s != first)))
