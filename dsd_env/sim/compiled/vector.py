"""Many worlds stepped together; all results lie in arrays that are written in place."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import config, set_num_threads
from numpy.typing import NDArray

from dsd_env.control import ActionSpace, ObservationEncoder
from dsd_env.control.actions import refused_action
from dsd_env.control.due import DUE_FIELDS
from dsd_env.sim.compiled import batch, status
from dsd_env.sim.compiled.records import COMPLETED, DELIVERED, LOGGED, SCHEDULED
from dsd_env.sim.compiled.tables import Bytes, Layout
from dsd_env.sim.compiled.world import CompiledSimulation, WorldReader
from dsd_env.sim.engines import announced

WorldNumbers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SavedWorld:
    """A world as it was; see :meth:`WorldVector.save`.

    Attributes:
        pieces: Its bytes, in pieces, each with its place.
        outputs: Its rows of the output arrays, by name.
    """

    pieces: tuple[tuple[int, Bytes], ...]
    outputs: dict[str, NDArray[Any]]


class WorldVector:
    """Worlds that stand at their due decisions.

    What a world does is independent of how many there are and of the others: a world with a seed is the
    :class:`~dsd_env.sim.compiled.CompiledSimulation` of that seed.

    With several scenarios each episode of a world runs one of them. Where a scenario has fewer candidates
    than others, observations and masks are padded: the features of a candidate that does not exist are 0, its
    placement is masked, and an action that takes it becomes plain decoding at the current target.

    Attributes:
        layouts: The compiled scenarios.
        observations: float32 ``[n, n_features]``; a world that has ended keeps its last.
        masks: bool ``[n, sum(nvec)]``.
        rewards: float64 ``[n]``, of the last step.
        terms: float64 ``[n, n_terms]``, unweighted reward terms of the last step.
        totals: float64 ``[n, n_terms]``, the running totals behind them.
        clocks: float64 ``[n, 2]``, simulated time and time since the decision before.
        statuses: int64 ``[n]``: ``DUE``, ``TERMINATED``, ``TRUNCATED`` or ``FAILED`` (see ``status``).
        facts: int64 ``[n, facts]``, the due decision and what became of the last (see ``batch``).
        delays: float64 ``[n, 1]``, delay that the due request has caused to others, with `price_delays`.
        scenario_numbers: int64 ``[n]``, number of each world's scenario.
    """

    OUTPUTS = (
        "observations",
        "masks",
        "rewards",
        "terms",
        "totals",
        "clocks",
        "statuses",
        "facts",
        "delays",
    )

    def __init__(
        self,
        layouts: Sequence[Layout],
        n_worlds: int,
        factors: Sequence[Sequence[float]],
        weights: Sequence[Sequence[float]],
        *,
        n_placements: int | None = None,
        price_delays: bool = False,
        threads: int = 1,
    ) -> None:
        """Allocate the worlds; :meth:`begin` sets them up.

        Args:
            layouts: The compiled scenarios, with equal lists of speculation lengths and batch sizes; all with
                a menu of drafters, or none.
            n_worlds: How many worlds.
            factors: By scenario, from running total to reward term, in the order of the environment's terms.
            weights: By scenario, weights of the terms.
            n_placements: Length of the list of candidates. Default: the longest of the scenarios.
            price_delays: Account to each request how long it makes others wait.
            threads: Threads of Numba to step with. (With more than one, do not fork the process later.)

        Raises:
            ValueError: A number is too small.
        """
        if n_worlds < 1:
            raise ValueError(f"the number of worlds, {n_worlds}, must be at least 1")
        if threads < 1:
            raise ValueError(f"threads = {threads} must be at least 1")
        spaces = [ActionSpace.of(layout.scenario) for layout in layouts]
        longest = max(space.n_placements for space in spaces)
        places = longest if n_placements is None else n_placements
        if places < longest:
            raise ValueError(f"n_placements = {places} is less than the scenario's {longest} candidates")
        n_gammas, n_batches, _ = spaces[0].nvec
        n_terms = len(factors[0])
        self.layouts = tuple(layouts)
        encoder = ObservationEncoder.of(layouts[0].scenario, places)
        self.observations = np.zeros((n_worlds, len(encoder.features)), dtype=np.float32)
        self.masks = np.zeros((n_worlds, n_gammas + n_batches + places), dtype=np.bool_)
        self.rewards = np.zeros(n_worlds)
        self.terms = np.zeros((n_worlds, n_terms))
        self.totals = np.zeros((n_worlds, n_terms))
        self.clocks = np.zeros((n_worlds, 2))
        self.statuses = np.full(n_worlds, status.TERMINATED, dtype=np.int64)
        self.facts = np.zeros((n_worlds, batch.FACT_DUE + len(DUE_FIELDS)), dtype=np.int64)
        self.delays = np.zeros((n_worlds, 1))
        self.scenario_numbers = np.zeros(n_worlds, dtype=np.int64)
        self._rows = np.full(n_worlds, -1, dtype=np.int64)
        self._pools = [
            _Pool(layout, n_worlds, f, w, places - space.n_placements)
            for layout, f, w, space in zip(layouts, factors, weights, spaces, strict=True)
        ]
        self._sizes = np.array((n_gammas, n_batches, places))
        self._price = int(price_delays)
        self._threads = threads
        # The first call compiles the engine, if nothing did before on this machine.
        self._begun = self._stepped = False
        self._plan: list[tuple[_Pool, WorldNumbers, WorldNumbers]] | None = None
        self._readers: list[WorldReader | None] = [None] * n_worlds

    def __len__(self) -> int:
        return len(self.rewards)

    # Readers look at rows of the pools. A copy of such a view is an array of its own, which would go stale:
    # a copied vector makes new ones. Of the rows only what is in use is copied.

    def __getstate__(self) -> dict[str, Any]:
        begun = [world for world in range(len(self)) if self._rows[world] >= 0]
        return self.__dict__ | {
            "_plan": None,
            "_readers": [None] * len(self),
            "_begun": False,
            "_stepped": False,
            "_saved": [(world, self.save(world)) for world in begun],
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        saved = state.pop("_saved")
        self.__dict__.update(state)
        for world, each in saved:
            self.restore(world, each, int(self.scenario_numbers[world]))

    def reader(self, world: int) -> WorldReader:
        """Return a look at one world, good until its next episode.

        Raises:
            RuntimeError: The world was never begun.
        """
        reader = self._readers[world]
        if reader is None:
            row = int(self._rows[world])
            if row < 0:
                raise RuntimeError(f"world {world} has no episode yet: begin one")
            pool = self._pools[self.scenario_numbers[world]]
            reader = self._readers[world] = WorldReader(pool.layout, pool.worlds[row])
        return reader

    def simulation(self, world: int) -> WorldSimulation:
        """Return one world with the interface of a simulation, to look at; good until its next episode."""
        reader = self.reader(world)
        return WorldSimulation(reader.layout, reader.world)

    def write_into(
        self, observations: NDArray[np.float32] | None = None, masks: NDArray[np.bool_] | None = None
    ) -> None:
        """From now on write observations and masks into arrays of the caller's; they get the present content.

        Args:
            observations: float32, shape and order as :attr:`observations`, contiguous.
            masks: bool, as :attr:`masks`, contiguous.

        Raises:
            ValueError: An array does not fit.
        """
        for name, array in (("observations", observations), ("masks", masks)):
            if array is None:
                continue
            own: NDArray[Any] = getattr(self, name)
            if array.shape != own.shape or array.dtype != own.dtype:
                raise ValueError(
                    f"{name}: expected {own.dtype} of shape {own.shape}, got {array.dtype} of {array.shape}"
                )
            if not (array.flags.c_contiguous and array.flags.writeable):
                raise ValueError(f"{name}: the array must be writeable and contiguous in C order")
            array[...] = own
            setattr(self, name, array)

    def begin(
        self,
        worlds: WorldNumbers,
        seeds: NDArray[np.int64],
        scenario_numbers: NDArray[np.int64] | None = None,
    ) -> None:
        """Start new episodes in some worlds and run each to its first decision.

        Args:
            worlds: Numbers of the worlds, each once.
            seeds: Their episodes' seeds.
            scenario_numbers: Numbers of their episodes' scenarios; the first by default.

        Raises:
            RuntimeError: An episode ends before its first decision.
            EngineError: A bounded resource ran out.
        """
        if scenario_numbers is None:
            scenario_numbers = np.zeros(len(worlds), dtype=np.int64)
        for world, scenario_number in zip(worlds.tolist(), scenario_numbers.tolist(), strict=True):
            self._place(world, scenario_number)
        with nullcontext() if self._begun else announced(lambda: batch._begin_worlds.signatures):
            for part in self._parts(worlds, seeds, scenario_numbers):
                self._begin_part(*part)
        self._begun = True
        failed = worlds[self.statuses[worlds] != status.DUE]
        if len(failed):
            reader = self.reader(int(failed[0]))
            reader.check()
            raise RuntimeError(
                f"scenario {reader.scenario.name!r} ends before its first decision; "
                f"is episode.horizon_s = {reader.scenario.episode.horizon_s:g} too short?"
            )

    def step(self, actions: NDArray[np.integer[Any]], worlds: WorldNumbers | None = None) -> None:
        """Answer the due decision of every world, or of some, and run each to its next.

        They must stand at a decision: begin new episodes in those that have ended.

        Args:
            actions: Integers ``[n, 3]``: indices of speculation length, batch size and placement.
            worlds: Numbers of the worlds to step, each once; of the others nothing is looked at.

        Raises:
            ValueError: An action is outside the action space; nothing has happened then.
            RuntimeError: A world does not stand at a decision.
            EngineError: A bounded resource ran out in some world.
        """
        chosen = np.ascontiguousarray(actions, dtype=np.int64)
        if chosen.shape != (len(self), 3):
            raise ValueError(f"actions have shape {chosen.shape}; expected {(len(self), 3)}")
        if worlds is None:
            refused = batch.first_refused(chosen, self._sizes, self.statuses)
        else:
            refused = batch.first_refused(chosen[worlds], self._sizes, self.statuses[worlds])
            refused = refused if refused < 0 else int(worlds[refused])
        if refused >= 0:
            if self.statuses[refused] != status.DUE:
                raise RuntimeError(f"world {refused} is not at a decision: begin an episode")
            raise refused_action(actions[refused], (3,), self._sizes.tolist(), refused)
        with nullcontext() if self._stepped else announced(lambda: batch._step_worlds.signatures):
            failed = sum([self._step_part(*part, chosen) for part in self._plan_of(worlds)])
        self._stepped = True
        if failed:
            self.reader(int(np.flatnonzero(self.statuses == status.FAILED)[0])).check()

    def flat_masks(self, world: int | None = None) -> NDArray[np.bool_]:
        """Return which flat actions are carried out as they are, in all worlds or in one.

        Args:
            world: Number of the one world.

        Returns:
            bool ``[n, n_flat]``, or ``[n_flat]``, a new array; see ``ActionSpace.flat_mask``.

        Raises:
            RuntimeError: A world was never begun.
        """
        worlds = np.arange(len(self)) if world is None else np.array([world])
        for number in worlds.tolist():
            if self._rows[number] < 0:
                raise RuntimeError(f"world {number} has no episode yet: begin one")
        masks = np.empty((len(worlds), int(np.prod(self._sizes))), dtype=np.bool_)
        for scenario_number in np.unique(self.scenario_numbers[worlds]):
            pool, places = (
                self._pools[scenario_number],
                np.flatnonzero(self.scenario_numbers[worlds] == scenario_number),
            )
            rows = self._rows[worlds[places]]
            batch.flat_masks(pool.layout.constants, pool.worlds, rows, places, pool.padding, masks)
        return masks if world is None else masks[0]

    def save(self, world: int) -> SavedWorld:
        """Return a copy of a world, for :meth:`restore`, without the parts of its tables not in use."""
        reader = self.reader(world)
        return SavedWorld(
            tuple((at, reader.world[at:end].copy()) for at, end in _in_use(reader)),
            {name: np.array(getattr(self, name)[world]) for name in self.OUTPUTS},
        )

    def restore(self, world: int, saved: SavedWorld, scenario_number: int = 0) -> None:
        """Make a world what a saved one was, of this vector or of another.

        Args:
            world: Number of the world.
            saved: The saved one.
            scenario_number: Number of its scenario here.
        """
        self._place(world, scenario_number)
        reader = self.reader(world)
        for at, piece in saved.pieces:
            reader.world[at : at + len(piece)] = piece
        for name, row in saved.outputs.items():
            getattr(self, name)[world] = row

    # ------------------------------------------------------------------ rows and threads

    def _place(self, world: int, scenario_number: int) -> None:
        """Give a world a row of a scenario's pool; what it had before goes back."""
        before = int(self._rows[world])
        if before >= 0:
            if self.scenario_numbers[world] == scenario_number:
                return
            self._pools[self.scenario_numbers[world]].free.append(before)
        self._rows[world] = self._pools[scenario_number].free.pop()
        self.scenario_numbers[world] = scenario_number
        self._readers[world] = None
        self._plan = None

    def _plan_of(self, worlds: WorldNumbers | None) -> list[tuple[_Pool, WorldNumbers, WorldNumbers]]:
        """Return some worlds by scenario; the list of all is kept."""
        if worlds is None:
            if self._plan is None:
                self._plan = self._plan_of(np.arange(len(self)))
            return self._plan
        plan = []
        for scenario_number, pool in enumerate(self._pools):
            numbers = worlds[self.scenario_numbers[worlds] == scenario_number]
            if len(numbers):
                plan.append((pool, self._rows[numbers], numbers))
        return plan

    def _parts(
        self, worlds: WorldNumbers, seeds: NDArray[np.int64], scenario_numbers: NDArray[np.int64]
    ) -> list[tuple[_Pool, WorldNumbers, WorldNumbers, NDArray[np.int64]]]:
        """Return some worlds by scenario, with their seeds."""
        parts = []
        for scenario_number in np.unique(scenario_numbers):
            chosen = np.flatnonzero(scenario_numbers == scenario_number)
            numbers = worlds[chosen]
            parts.append((self._pools[scenario_number], self._rows[numbers], numbers, seeds[chosen]))
        return parts

    def _begin_part(
        self, pool: _Pool, rows: WorldNumbers, worlds: WorldNumbers, seeds: NDArray[np.int64]
    ) -> None:
        batch.begin_worlds(
            pool.layout.constants,
            pool.worlds,
            rows,
            worlds,
            seeds,
            self._price,
            pool.padding,
            self.observations,
            self.masks,
            self.totals,
            self.clocks,
            self.statuses,
            self.facts,
            self.delays,
        )

    def _step_part(
        self, pool: _Pool, rows: WorldNumbers, worlds: WorldNumbers, actions: NDArray[np.int64]
    ) -> int:
        """Step some worlds; return how many failed."""
        step = batch.step_worlds
        if self._threads > 1:
            # Numba's own threads: to hand a tenth of a millisecond's work to Python's takes longer than it.
            set_num_threads(min(self._threads, config.NUMBA_NUM_THREADS))
            step = batch.step_worlds_parallel
        failed: int = step(
            pool.layout.constants,
            pool.worlds,
            rows,
            worlds,
            actions,
            pool.factors,
            pool.weights,
            pool.padding,
            self.observations,
            self.masks,
            self.rewards,
            self.totals,
            self.terms,
            self.clocks,
            self.statuses,
            self.facts,
            self.delays,
        )
        return failed


class _Pool:
    """The worlds of one scenario."""

    def __init__(
        self, layout: Layout, n_worlds: int, factors: Sequence[float], weights: Sequence[float], padding: int
    ) -> None:
        self.layout = layout
        self.free = list(range(n_worlds - 1, -1, -1))
        self.factors = np.array(factors, dtype=np.float64)
        self.weights = np.array(weights, dtype=np.float64)
        self.padding = padding
        self._allocate(n_worlds)

    def _allocate(self, n_worlds: int) -> None:
        # Pages are not touched before they are used: neither those of rows that no world needs nor those of
        # the tables at the end of each row.
        self.worlds = self.layout.new_worlds(n_worlds)

    def __getstate__(self) -> dict[str, Any]:
        """Return everything but the worlds, which the vector copies."""
        kept = {name: value for name, value in self.__dict__.items() if name != "worlds"}
        return kept | {"rows": len(self.worlds)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        n_worlds = state.pop("rows")
        self.__dict__.update(state)
        self._allocate(n_worlds)


class WorldSimulation(CompiledSimulation):
    """A world of a vector as a simulation to look at; it is the vector that steps it.

    `terminated` and `truncated` are those of the moment when it was made.
    """

    def __init__(self, layout: Layout, world: Bytes) -> None:
        """Look at one world."""
        self.scenario = layout.scenario
        self._reader = WorldReader(layout, world)
        self.seed = int(self._header["seed"])
        self.terminated = bool(self._header["status"] == status.TERMINATED)
        self.truncated = bool(self._header["status"] == status.TRUNCATED)
        self.events = []
        self.spans = []
        self._layout = layout
        self.world = world
        self._record_events = False
        self._view = None

    def advance(self) -> bool:
        """Refuse: the environment would not know.

        Raises:
            RuntimeError: Always.
        """
        raise RuntimeError("this simulation belongs to an environment: step that")

    def decide(self, decision: object) -> Any:
        """Refuse, as :meth:`advance`.

        Raises:
            RuntimeError: Always.
        """
        return self.advance()

    def follow(self, *arguments: object) -> bool:
        """Refuse, as :meth:`advance`.

        Raises:
            RuntimeError: Always.
        """
        return self.advance()

    def restore(self, state: object) -> None:
        """Refuse, as :meth:`advance`.

        Raises:
            RuntimeError: Always.
        """
        self.advance()


def _in_use(reader: WorldReader) -> list[tuple[int, int]]:
    """Return the parts (from, to) of a world that mean something."""
    header = reader.header
    parts = [(0, reader.layout.state_bytes)]
    for block, record, count in (
        ("heap", SCHEDULED, "heap_n"),
        ("table", COMPLETED, "table_n"),
        ("deliveries", DELIVERED, "deliveries_n"),
        ("log", LOGGED, "events_n"),
    ):
        at = int(header[block])
        parts.append((at, at + int(header[count]) * record.itemsize))
    return [(at, end) for at, end in parts if at < end]
