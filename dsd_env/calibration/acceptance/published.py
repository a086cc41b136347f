"""Models of large pairs: the shape of what was recorded, at the level that was published.

For pairs that cannot be recorded here, the spread between requests, the memory along the output and, where
nothing better is known, the dependence on the kind of request come from a fitted model of another pair. Its
acceptance is shifted, all probabilities by one number in logits, until tokens per round meet what was
published for the pair. Figures, sources and rules stand in ``configs/acceptance/published.yaml``; the results
are :class:`~dsd_env.acceptance.runmodel.RunModel` s with the label ``published``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dsd_env import strict_yaml
from dsd_env.acceptance.runmodel import (
    FORMAT_VERSION,
    MOVE_ROWS,
    POOL_ENTRIES,
    POOL_POSITIONS,
    ModelCard,
    RunModel,
    RunProcess,
    RunState,
    draw_requests,
    load_run_model,
    seed_of,
)
from dsd_env.acceptance.source import MAX_RUN_LENGTH
from dsd_env.acceptance.stats import expected_tokens_iid, tokens_per_round
from dsd_env.acceptance.traceset import TraceError
from dsd_env.strict_model import StrictNumbers, explain_type

LONGEST_RUN = 20
"""Longest run of the models made here."""
GAMMAS = (1, 2, 4, 8, 16)
"""Speculation lengths of which the cards state tokens per round."""
_EDGE = 1e-4
"""Probabilities are taken to be at least this far from 0 and 1, as fitted models are rounded to it."""
_BRACKET = (-4.0, 6.0)
"""Shifts, in logits, between which a level is looked for."""

Name = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class _Facts(StrictNumbers, BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Source(_Facts):
    """Where a figure was published."""

    title: str = Field(min_length=1)
    url: str = Field(min_length=1)
    date: str = Field(pattern=r"^\d{4}(-\d{2}(-\d{2})?)?$")


class Figure(_Facts):
    """One published figure.

    Attributes:
        target: Target model.
        drafter: Drafter.
        kinds: Kinds of request that its task stands for.
        gamma: Drafts per round.
        tokens_per_round: Tokens per round, the target's own included; this or ``acceptance``.
        acceptance: Accepted over drafted tokens.
        by_place: Share of rounds that accepted at least so many drafts, to compare with.
        tree: Drafts were verified as a tree, so the figure is not one of ``gamma`` drafts in a row; it only
            serves in ratios.
        temperature: Sampling temperature, if stated.
        task: Data set.
        source: Name of the source.
        confidence: How far it can be trusted here.
        note: What to know of it.
    """

    target: Name
    drafter: Name
    kinds: tuple[Name, ...] = Field(min_length=1)
    gamma: int = Field(ge=1, le=MAX_RUN_LENGTH)
    tokens_per_round: float | None = Field(default=None, ge=1.0)
    acceptance: float | None = Field(default=None, ge=0.0, le=1.0)
    by_place: tuple[Annotated[float, Field(ge=0.0, le=1.0)], ...] = ()
    tree: bool = False
    temperature: float | None = Field(default=None, ge=0.0)
    task: str = Field(min_length=1)
    source: Name
    confidence: Literal["high", "medium", "low"]
    note: str = ""

    @model_validator(mode="after")
    def _one(self) -> Figure:
        if (self.tokens_per_round is None) == (self.acceptance is None):
            raise ValueError("give either tokens_per_round or acceptance")
        if not self.tree and self.tokens > self.gamma + 1:
            raise ValueError(f"{self.tokens:g} tokens per round are more than gamma + 1 = {self.gamma + 1}")
        return self

    @property
    def tokens(self) -> float:
        """Tokens per round."""
        if self.tokens_per_round is not None:
            return self.tokens_per_round
        assert self.acceptance is not None  # one of the two is given
        return 1.0 + self.gamma * self.acceptance


class Shape(_Facts):
    """Where the shape comes from: a fitted model, its drafter, and kinds that stand in for others."""

    model: Name
    drafter: Name
    shape_of: dict[Name, Name] = {}


class Cell(_Facts):
    """A pair and kind; what is left out is that of the rule's own."""

    target: Name | None = None
    drafter: Name | None = None
    kind: Name


class Ratio(_Facts):
    """Tokens beyond the target's own are those of a cell, times the ones of a figure over another's."""

    to: Cell
    figure: Name
    over: Name


class Between(_Facts):
    """A shift between those of two drafters of the target, by the logarithm of the models' sizes."""

    drafters: tuple[Name, Name]
    sizes: tuple[Annotated[float, Field(gt=0.0)], Annotated[float, Field(gt=0.0)]]
    size: float = Field(gt=0.0)

    @property
    def weight(self) -> float:
        """Share of the second."""
        low, high = map(math.log, self.sizes)
        return (math.log(self.size) - low) / (high - low)


class AsDrafter(_Facts):
    """The shift of another drafter of the target, plus the difference of the two for the kind ``by``."""

    drafter: Name
    by: Name


class Level(_Facts):
    """Where the level of a kind comes from: exactly one rule; see the head of the facts' ``models``."""

    figure: Name | None = None
    mixture: Name | None = None
    unshifted: Name | None = None
    ratio: Ratio | None = None
    between: Between | None = None
    as_drafter: AsDrafter | None = None
    as_target: Name | None = None
    same: Name | None = None

    @model_validator(mode="after")
    def _one(self) -> Level:
        if len(self.model_fields_set) != 1:
            raise ValueError(f"give exactly one rule, not {sorted(self.model_fields_set)}")
        return self

    @property
    def rule(self) -> str:
        """Name of the rule."""
        return next(iter(self.model_fields_set))


class Pair(_Facts):
    """One drafter of a model."""

    about: str = Field(min_length=1)
    shape: Shape
    levels: dict[Name, Level | Literal["mean"]] = Field(min_length=1)


class Plan(_Facts):
    """A model to make."""

    target: Name
    about: str = Field(min_length=1)
    pairs: dict[Name, Pair] = Field(min_length=1)


class Facts(_Facts):
    """The file of published figures."""

    date: str = Field(pattern=r"^\d{4}-\d{2}-\d{2}$")
    sources: dict[Name, Source]
    figures: dict[Name, Figure]
    models: dict[Name, Plan]

    @model_validator(mode="after")
    def _known(self) -> Facts:
        for key, figure in self.figures.items():
            if figure.source not in self.sources:
                raise ValueError(f"figures.{key}.source: unknown source {figure.source!r}")
        for name, plan in self.models.items():
            for drafter, pair in plan.pairs.items():
                for kind, level in pair.levels.items():
                    for used in _figures_of(level):
                        if used not in self.figures:
                            where = f"models.{name}.pairs.{drafter}.levels.{kind}"
                            raise ValueError(f"{where}: unknown figure {used!r}")
        return self


def _figures_of(level: Level | Literal["mean"]) -> list[str]:
    if level == "mean":
        return []
    named = [f for f in (level.figure, level.mixture, level.unshifted) if f is not None]
    return named + ([level.ratio.figure, level.ratio.over] if level.ratio is not None else [])


def load_facts(path: Path) -> Facts:
    """Read a file of published figures.

    Raises:
        TraceError: Not a readable file, or impossible; the message names file, key and value.
    """
    try:
        return Facts.model_validate(strict_yaml.load(path))
    except ValidationError as error:
        lines = []
        for problem in error.errors(include_url=False)[:8]:
            key = ".".join(str(part) for part in problem["loc"]) or "the file"
            text = explain_type(problem) or problem["msg"].removeprefix("Value error, ")
            lines.append(f"{path}: {key}: {text}")
        raise TraceError("\n".join(lines)) from error
    except (OSError, ValueError) as error:
        raise TraceError(f"{path}: {error}") from error


# ---------------------------------------------------------------------- shifting


def shift_process(process: RunProcess, shift: float, longest_run: int) -> RunProcess:
    """Return a process whose drafts are accepted more or less often, all else being as it was.

    ``shift`` is added to the logit of every acceptance by place, of every class and state: what tells
    requests, stretches and places apart stays apart as far, in logits. Whether a drafter stumbles over
    the same token again, and comes back to the hard one, stays as it was.

    Args:
        process: The process.
        shift: Added to the logits.
        longest_run: Longest run of the result, not below that of the process; places beyond it take the
            acceptance of the last.
    """

    def moved(values: Sequence[float]) -> tuple[float, ...]:
        p = np.clip(values, _EDGE, 1.0 - _EDGE)
        found = 1.0 / (1.0 + np.exp(-(np.log(p / (1.0 - p)) + shift)))
        return longer([round(float(v), 4) for v in found])

    def longer(values: Sequence[float]) -> tuple[float, ...]:
        return (*values, *(values[-1],) * (longest_run - len(values)))

    known = len(process.classes[0].states[0].accept_fresh)
    if not MOVE_ROWS < known <= longest_run:
        raise ValueError(f"runs of {known} cannot become runs of {longest_run}")
    if shift == 0.0 and known == longest_run:
        return process
    if process.proposed is not None and known != longest_run:
        raise ValueError("a process with proposals keeps its longest run")
    classes = []
    for group in process.classes:
        states = [
            RunState(
                accept_fresh=moved(state.accept_fresh),
                accept_beyond=moved(state.accept_beyond),
                end_before=longer(state.end_before),
                same_token=state.same_token,
                later_token=state.later_token,
            )
            for state in group.states
        ]
        classes.append(group.model_copy(update={"states": tuple(states)}))
    return process.model_copy(update={"classes": tuple(classes)})


def equivalent_acceptance(figure: Figure) -> float:
    """Return the acceptance that, independent between drafts, would give a figure's tokens per round."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        below = expected_tokens_iid(middle, figure.gamma) < figure.tokens
        low, high = (middle, high) if below else (low, middle)
    return 0.5 * (low + high)


# ---------------------------------------------------------------------- levels


class Publisher:
    """Finds the shifts that the rules of a file of facts ask for.

    Args:
        facts: The figures and rules.
        shapes: Gives a fitted model by its name.
        entries: Requests of each kind that levels are met with; those of a pool by default.
        positions: Output positions of each.
    """

    def __init__(
        self,
        facts: Facts,
        shapes: Callable[[str], RunModel] = load_run_model,
        entries: int = POOL_ENTRIES,
        positions: int = POOL_POSITIONS,
    ) -> None:
        self._facts = facts
        self._shapes = shapes
        self._size = entries, positions
        self._by_target = {plan.target: name for name, plan in facts.models.items()}
        self._shifts: dict[tuple[str, str, str], float] = {}
        self._open: list[tuple[str, str, str]] = []

    def _pair(self, target: str, drafter: str) -> Pair:
        name = self._by_target.get(target)
        if name is None or drafter not in self._facts.models[name].pairs:
            raise TraceError(f"no model has the drafter {drafter!r} of the target {target!r}")
        return self._facts.models[name].pairs[drafter]

    def _level(self, target: str, drafter: str, kind: str) -> Level | Literal["mean"]:
        levels = self._pair(target, drafter).levels
        if kind not in levels:
            raise TraceError(
                f"{target} with {drafter} has no level for {kind!r}; it has: {', '.join(levels)}"
            )
        return levels[kind]

    def shape(self, target: str, drafter: str, kind: str) -> RunProcess:
        """Return the process that a cell takes its shape from."""
        shape = self._pair(target, drafter).shape
        return self._shapes(shape.model).process(shape.shape_of.get(kind, kind), shape.drafter)

    def process(self, target: str, drafter: str, kind: str, shift: float | None = None) -> RunProcess:
        """Return the process of a cell, at its own shift by default."""
        used = self.shift(target, drafter, kind) if shift is None else shift
        return shift_process(self.shape(target, drafter, kind), used, LONGEST_RUN)

    def tokens(
        self, target: str, drafter: str, kind: str, gammas: Iterable[int], shift: float | None = None
    ) -> list[float]:
        """Return the tokens per round that the pool of a cell has at some speculation lengths."""
        entries, positions = self._size
        process = self.process(target, drafter, kind, shift)
        number = seed_of(self._by_target[target], kind, drafter, "0")
        runs = draw_requests(process, LONGEST_RUN, entries, positions, number)
        bounds = np.arange(entries + 1) * positions
        return [tokens_per_round(runs, gamma, bounds) for gamma in gammas]

    def together(
        self, target: str, drafter: str, kinds: Iterable[str], gamma: int, shift: float | None = None
    ) -> float:
        """Return the tokens per round over kinds with equally many tokens each."""
        found = [self.tokens(target, drafter, kind, (gamma,), shift)[0] for kind in kinds]
        return len(found) / sum(1.0 / tokens for tokens in found)

    def level(self, target: str, drafter: str, kind: str) -> tuple[float, int] | None:
        """Return the tokens per round that a rule asks for and at how many drafts, if it names a level."""
        level = self._level(target, drafter, kind)
        if level == "mean":
            return None
        name = level.figure or level.unshifted
        if name is not None:
            figure = self._facts.figures[name]
            return figure.tokens, figure.gamma
        if level.ratio is None:
            return None
        cell = level.ratio.to
        base = self.level(cell.target or target, cell.drafter or drafter, cell.kind)
        if base is None:
            raise TraceError(f"{target} with {drafter}, {kind}: a ratio to {cell.kind!r}, which has no level")
        above, below = (self._facts.figures[f].tokens for f in (level.ratio.figure, level.ratio.over))
        return 1.0 + (base[0] - 1.0) * (above - 1.0) / (below - 1.0), base[1]

    def _solve(self, found: Callable[[float], float], wanted: float, where: str) -> float:
        from scipy.optimize import brentq

        low, high = (found(shift) for shift in _BRACKET)
        if not low < wanted < high:
            raise TraceError(f"{where}: {wanted:.3f} tokens per round are not within {low:.3f} to {high:.3f}")
        root = brentq(lambda shift: found(shift) - wanted, *_BRACKET, xtol=2e-4)
        return round(float(root), 3) + 0.0  # no -0.0

    def shift(self, target: str, drafter: str, kind: str) -> float:
        """Return the shift of a cell, logits.

        Raises:
            TraceError: Rules that go round in a circle, or ask for what there is not.
        """
        cell = target, drafter, kind
        if cell not in self._shifts:
            if cell in self._open:
                raise TraceError(f"the level of {', '.join(cell)} rests on itself")
            self._open.append(cell)
            self._shifts[cell] = self._found(*cell)
            self._open.pop()
        return self._shifts[cell]

    def _found(self, target: str, drafter: str, kind: str) -> float:
        level = self._level(target, drafter, kind)
        where = f"{target} with {drafter}, {kind}"
        if level == "mean":
            levels = self._pair(target, drafter).levels
            own = [k for k, rule in levels.items() if rule != "mean" and rule.rule == "figure"]
            if not own:
                raise TraceError(f"{where}: a mean of kinds that have figures, and there are none")
            return round(sum(self.shift(target, drafter, k) for k in own) / len(own), 3)
        if level.unshifted is not None:
            return 0.0
        if level.mixture is not None:
            return self._mixture(target, drafter, level.mixture, where)
        if level.same is not None:
            return self.shift(target, drafter, level.same)
        if level.as_target is not None:
            return self.shift(level.as_target, drafter, kind)
        if level.between is not None:
            low, high = (self.shift(target, d, kind) for d in level.between.drafters)
            return round(low + level.between.weight * (high - low), 3)
        if level.as_drafter is not None:
            other, by = level.as_drafter.drafter, level.as_drafter.by
            apart = self.shift(target, drafter, by) - self.shift(target, other, by)
            return round(self.shift(target, other, kind) + apart, 3)
        wanted = self.level(target, drafter, kind)
        assert wanted is not None  # a figure or a ratio
        tokens, gamma = wanted
        return self._solve(
            lambda shift: self.tokens(target, drafter, kind, (gamma,), shift)[0], tokens, where
        )

    def _mixture(self, target: str, drafter: str, name: str, where: str) -> float:
        levels = self._pair(target, drafter).levels
        for kind, rule in levels.items():  # the same for all that name it
            known = self._shifts.get((target, drafter, kind))
            if known is not None and rule != "mean" and rule.mixture == name:
                return known
        figure = self._facts.figures[name]
        return self._solve(
            lambda shift: self.together(target, drafter, figure.kinds, figure.gamma, shift),
            figure.tokens,
            where,
        )

    # ------------------------------------------------------------------ models

    def spread(self, target: str, drafter: str) -> list[Figure]:
        """Return the figures published for a pair, those of trees left out."""
        return [
            figure
            for figure in self._facts.figures.values()
            if (figure.target, figure.drafter) == (target, drafter) and not figure.tree
        ]

    def _account(self, target: str, drafter: str, kind: str) -> dict[str, Any]:
        level = self._level(target, drafter, kind)
        wanted = self.level(target, drafter, kind)
        pool = self.tokens(target, drafter, kind, GAMMAS)
        shape = self._pair(target, drafter).shape
        figures = _figures_of(level)
        account: dict[str, Any] = {
            "rule": "mean" if level == "mean" else level.rule,
            **({"figures": figures} if figures else {}),
            "shift": self.shift(target, drafter, kind),
            "shape": f"{shape.model}, {shape.drafter}, {shape.shape_of.get(kind, kind)}",
        }
        if wanted is not None:
            account["gamma"] = wanted[1]
            account["tokens_per_round"] = round(wanted[0], 3)
            account["tokens_per_round_of_the_pool"] = round(
                self.tokens(target, drafter, kind, (wanted[1],))[0], 3
            )
        account["pool"] = {str(g): round(t, 3) for g, t in zip(GAMMAS, pool, strict=True)}
        return account

    def model(self, name: str, command: str) -> RunModel:
        """Return a model.

        Args:
            name: Its name in the facts.
            command: What makes it, for the card.

        Raises:
            TraceError: Unknown name, or rules that cannot be followed.
        """
        if name not in self._facts.models:
            raise TraceError(f"unknown model {name!r}; there are: {', '.join(self._facts.models)}")
        plan = self._facts.models[name]
        kinds = list(next(iter(plan.pairs.values())).levels)
        processes: dict[str, dict[str, RunProcess]] = {kind: {} for kind in kinds}
        fits: dict[str, dict[str, dict[str, Any]]] = {kind: {} for kind in kinds}
        for drafter, pair in plan.pairs.items():
            if sorted(pair.levels) != sorted(kinds):
                raise TraceError(
                    f"{name}: {drafter} has levels for {sorted(pair.levels)}, not {sorted(kinds)}"
                )
            for kind in kinds:
                processes[kind][drafter] = self.process(plan.target, drafter, kind)
                fits[kind][drafter] = self._account(plan.target, drafter, kind)
        return RunModel(
            format_version=FORMAT_VERSION,
            name=name,
            label="published",
            longest_run=LONGEST_RUN,
            card=self._card(plan, command, fits),
            processes=processes,
        )

    def _card(self, plan: Plan, command: str, fits: Mapping[str, Any]) -> ModelCard:
        used = {f for group in fits.values() for one in group.values() for f in one.get("figures", [])}
        used |= {
            key
            for key, figure in self._facts.figures.items()
            if figure.target == plan.target and figure.drafter in plan.pairs
        }
        figures = {key: figure for key, figure in self._facts.figures.items() if key in used}
        cited = {figure.source for figure in figures.values()}
        sources = [s for key, s in self._facts.sources.items() if key in cited]
        notes = [
            "Where a kind has no figure of its own, a rule stands in for it: see its `rule` in `fits`, and "
            "configs/acceptance/published.yaml.",
            "Sources differ in prompts, temperatures and numerics; their spread is larger than many "
            "differences between drafters.",
            "Drafters are drawn independently, though requests easy for one are easier for the other.",
            "No confidence: its columns are constants.",
        ]
        for drafter in plan.pairs:
            found = [(equivalent_acceptance(f), f) for f in self.spread(plan.target, drafter)]
            if found:
                low, high = (pick(found, key=lambda pair: pair[0])[0] for pick in (min, max))
                notes.append(
                    f"{drafter}: {len(found)} figures published for the pair, of independent acceptance "
                    f"{low:.3f} to {high:.3f}."
                )
            else:
                notes.append(f"{drafter}: no figure was found for drafts in a row of this pair.")
        return ModelCard(
            target=plan.about,
            drafters={drafter: pair.about for drafter, pair in plan.pairs.items()},
            data="; ".join(f"{s.title}, {s.url}, {s.date}" for s in sources),
            licence="Published figures, cited; the parameters are Apache-2.0 like the package.",
            method="The shape of fitted models, their acceptance shifted in logits to the published level.",
            command=command,
            date=self._facts.date,
            fits={kind: dict(group) for kind, group in fits.items()},
            notes=tuple(notes),
        )
