"""The simulated world behind the scalar environment, with the same interface for both engines."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dsd_env.control import ActionSpace, Decision, DecisionView, ObservationEncoder
from dsd_env.control.due import due_of_row, due_of_view
from dsd_env.control.rewards import reward_factors, reward_weights, running_totals
from dsd_env.laws.resolve import NO_DRAFTER, REASONS, TARGET_DOWN
from dsd_env.rng import as_int64
from dsd_env.scenario import Scenario
from dsd_env.sim import Event, ReferenceSimulation
from dsd_env.sim.engines import compiled_layout
from dsd_env.sim.world import WorldBuilder

if TYPE_CHECKING:
    from dsd_env.sim.compiled import CompiledSimulation, Layout
    from dsd_env.sim.compiled.vector import SavedWorld

_LOG_EVENTS = 1 << 18
"""Capacity of the event log between two decisions, in events."""

Completed = tuple[int, float, float, int]
"""A completed request: its number, completion time in s, delay caused to others in s, output tokens."""


@dataclass(frozen=True, slots=True)
class EnvState:
    """A saved state of an environment, made by ``clone_state`` and restored by ``restore_state``.

    Attributes:
        engine: Engine that the state was made on.
        scenario: Scenario of the episode.
        episode_seed: Seed of the episode.
        generator: State of the generator from which the seeds of later episodes are drawn.
        world: The world (compiled engine).
        actions: The episode's actions so far: the reference engine repeats them, and so does the compiled
            engine to draw pictures.
        steps: Steps taken in the episode.
        named: Episodes begun so far, if the user derives each seed from the episode's number; otherwise 0.
    """

    engine: str
    scenario: Scenario
    episode_seed: int
    generator: Mapping[str, Any]
    world: SavedWorld | None = None
    actions: tuple[tuple[int, ...], ...] = ()
    steps: int = 0
    named: int = 0


class Episodes(Protocol):
    """Episodes of one scenario, played one after the other.

    Attributes:
        engine: Name of the engine.
        observation: Observation of the decision now due, or at the end of an episode of the last decision;
            float32, a copy.
        over: Whether the episode has ended.
        terminated: Whether the episode has ended because the workload is finished.
        now_s: Simulated time.
        dt_s: Simulated time since the previous decision.
        reward: Reward of the last step.
        terms: Reward terms of the last step, unweighted.
        reason: Why the last action was changed by rule; None if it was not.
        invalid_actions: Number of actions changed by rule so far.
    """

    engine: str
    observation: NDArray[np.float32]
    over: bool
    terminated: bool
    now_s: float
    dt_s: float
    reward: float
    terms: list[float]
    reason: str | None
    invalid_actions: int

    def begin(self, seed: int) -> None:
        """Start the episode with a seed and simulate until its first decision is due."""

    def step(self, action: NDArray[np.int64]) -> bool:
        """Take the decision now due and simulate until the next; return whether the episode has ended."""

    def view(self) -> DecisionView:
        """Return the typed view of the decision now due."""

    def decision(self) -> dict[str, Any]:
        """Return the description of the decision now due, as `info` holds it."""

    def mask(self) -> NDArray[np.bool_]:
        """Return the mask of the decision now due."""

    def flat_mask(self) -> NDArray[np.bool_]:
        """Return which flat actions would be carried out unchanged at the decision now due."""

    def completed(self) -> list[Completed]:
        """Return the requests that completed during the last step."""

    def simulation(self) -> Any:
        """Return the simulation of this episode."""

    def events(self) -> Sequence[Event]:
        """Return the event log of the episode so far, if one is recorded."""

    def save(self) -> dict[str, Any]:
        """Return the fields of an :class:`EnvState` that describe the world."""

    def restore(self, state: EnvState) -> None:
        """Restore a saved state."""


def make_episodes(
    engine: str,
    scenario: Scenario,
    encoder: ObservationEncoder,
    actions: ActionSpace,
    *,
    record: bool,
    price_delays: bool,
    options: Mapping[str, int] | None,
) -> Episodes:
    """Make the episodes of a scenario on the given engine; see :func:`compiled_layout` for errors.

    Args:
        engine: Name of the engine.
        scenario: The scenario.
        encoder: Encoder of the observations.
        actions: Action space, which decodes the actions.
        record: Whether to record event logs.
        price_delays: Add up, for each request, how long it makes others wait.
        options: Bounds of the compiled engine.
    """
    builder = WorldBuilder(scenario)
    layout = compiled_layout(engine, scenario, builder, options=options)
    if layout is not None:
        return CompiledEpisodes(layout, actions, record=record, price_delays=price_delays)
    return ReferenceEpisodes(scenario, builder, encoder, actions, record=record, price_delays=price_delays)


def ended_before_it_began(scenario: Scenario) -> RuntimeError:
    """Return the error for an episode that ends before its first decision."""
    return RuntimeError(
        f"scenario {scenario.name!r} ends before its first decision; "
        f"is episode.horizon_s = {scenario.episode.horizon_s:g} too short?"
    )


def _decoded(
    actions: ActionSpace, scenario: Scenario, action: Sequence[int] | NDArray[np.int64]
) -> tuple[Decision, bool]:
    """Return the decision that an action stands for, and whether its placement only pads the candidate list.

    A placement that only pads the list means plain decoding at the current target.
    """
    decision = actions.decode(action)
    absent = decision.placement >= scenario.n_placements
    return (Decision(0, decision.batch_size, 0) if absent else decision), absent


class ReferenceEpisodes:
    """Episodes on the reference engine; see :class:`Episodes`."""

    engine = "reference"

    def __init__(
        self,
        scenario: Scenario,
        builder: WorldBuilder,
        encoder: ObservationEncoder,
        actions: ActionSpace,
        *,
        record: bool,
        price_delays: bool,
    ) -> None:
        """Prepare the episodes; the builder holds what does not depend on their seeds."""
        self._scenario, self._encoder, self._actions = scenario, encoder, actions
        self._price_delays = price_delays
        self._new_simulation = functools.partial(
            ReferenceSimulation, scenario, builder=builder, record_events=record, price_delays=price_delays
        )
        self._factors, weights = reward_factors(scenario), reward_weights(scenario)
        self._weighted = [(index, weight) for index, weight in enumerate(weights) if weight]
        self._simulation: ReferenceSimulation
        self._view: DecisionView
        self._seed = 0
        self._answers: list[tuple[int, ...]] = []
        self.observation = np.zeros(len(encoder.features), dtype=np.float32)
        self.over, self.terminated = True, False
        self.now_s = self.dt_s = self.reward = 0.0
        self.terms: list[float] = []
        self.reason: str | None = None
        self.invalid_actions = 0

    def begin(self, seed: int) -> None:
        """Start the episode with a seed and simulate until its first decision is due.

        Raises:
            RuntimeError: The episode ends before its first decision.
        """
        simulation = self._new_simulation(seed)
        view = simulation.next_decision()
        if view is None:
            raise ended_before_it_began(self._scenario)
        self._simulation, self._view, self._seed, self._answers = simulation, view, seed, []
        self._totals: tuple[float, ...] = (0.0,) * len(self._factors)
        self.over, self.terminated = False, False
        self.now_s = self.dt_s = simulation.now_s
        self.reason, self.invalid_actions = None, 0
        self.observation = self._encoder.encode(view)

    def step(self, action: NDArray[np.int64]) -> bool:
        """Take the decision now due and simulate until the next; return whether the episode has ended.

        Raises:
            ValueError: The action is not in the action space.
        """
        simulation = self._simulation
        decision, absent = _decoded(self._actions, self._scenario, action)
        reason = simulation.decide(decision).reason
        self.reason = REASONS[NO_DRAFTER] if absent and reason != REASONS[TARGET_DOWN] else reason
        if self.reason is not None:
            self.invalid_actions += 1
        self._answers.append(tuple(int(index) for index in action))
        view = simulation.next_decision()
        totals = running_totals(simulation.totals)
        self.terms = [
            factor * (after - before)
            for factor, after, before in zip(self._factors, totals, self._totals, strict=True)
        ]
        self._totals = totals
        self.reward = 0.0
        for index, weight in self._weighted:
            self.reward += weight * self.terms[index]
        self.dt_s, self.now_s = simulation.now_s - self.now_s, simulation.now_s
        if view is not None:
            self._view = view
            self.observation = self._encoder.encode(view)
        else:
            self.over, self.terminated = True, simulation.terminated
            self.observation = self.observation.copy()
        return self.over

    def view(self) -> DecisionView:
        """Return the typed view of the decision now due; at the end of the episode, of the last decision."""
        return self._view

    def decision(self) -> dict[str, Any]:
        """Return the description of the decision now due, as `info` holds it."""
        described = due_of_view(self._view)
        request = self._simulation.due_request
        if self._price_delays and request is not None:
            described["delay_caused_s"] = request.delay_caused_s
        return described

    def mask(self) -> NDArray[np.bool_]:
        """Return the mask of the decision now due."""
        return self._actions.mask(self._view)

    def flat_mask(self) -> NDArray[np.bool_]:
        """Return which flat actions would be carried out unchanged at the decision now due."""
        return self._actions.flat_mask(self._view, self._scenario.max_num_seqs)

    def completed(self) -> list[Completed]:
        """Return the requests that completed during the last step."""
        return [
            (request.number, request.completed_s, request.delay_caused_s, request.committed)
            for request in self._simulation.newly_completed
        ]

    def simulation(self) -> ReferenceSimulation:
        """Return the simulation of this episode."""
        return self._simulation

    def events(self) -> Sequence[Event]:
        """Return the event log of the episode so far, if one is recorded."""
        return self._simulation.events

    def save(self) -> dict[str, Any]:
        """Return the episode's seed and the actions so far."""
        return {"episode_seed": self._seed, "actions": tuple(self._answers)}

    def restore(self, state: EnvState) -> None:
        """Restore a saved state by repeating its episode, because SimPy's processes cannot be copied."""
        self.begin(state.episode_seed)
        for action in state.actions:
            self.step(np.array(action, dtype=np.int64))


class CompiledEpisodes:
    """Episodes on the compiled engine; see :class:`Episodes`."""

    engine = "compiled"

    def __init__(self, layout: Layout, actions: ActionSpace, *, record: bool, price_delays: bool) -> None:
        """Allocate the single world in which the episodes run."""
        from dsd_env.sim.compiled.status import DUE, TERMINATED
        from dsd_env.sim.compiled.vector import WorldVector

        scenario = layout.scenario
        self._due, self._terminated = DUE, TERMINATED
        self._price_delays = price_delays
        self._actions = actions
        self._log = _ReplayedLog(scenario, actions) if record else None
        self._worlds = WorldVector(
            [layout],
            1,
            [reward_factors(scenario)],
            [reward_weights(scenario)],
            n_placements=actions.n_placements,
            price_delays=price_delays,
        )
        self._world = np.zeros(1, dtype=np.int64)
        self._action = np.zeros((1, 3), dtype=np.int64)
        self._view: DecisionView | None = None
        self._due_row: list[int] = []
        self._n_completed = 0
        self._seed = 0
        self.observation = self._worlds.observations[0].copy()
        self.over, self.terminated = True, False
        self.now_s = self.dt_s = self.reward = 0.0
        self.terms: list[float] = []
        self.reason: str | None = None
        self.invalid_actions = 0

    def begin(self, seed: int) -> None:
        """Start the episode with a seed and simulate until its first decision is due.

        Raises:
            RuntimeError: The episode ends before its first decision.
            EngineError: A bounded table of the engine is full.
        """
        self.over = True
        self._worlds.begin(self._world, np.array([as_int64(seed)], dtype=np.int64))
        self._seed = seed
        if self._log is not None:
            self._log.begin(seed)
        self._look()

    def step(self, action: NDArray[np.int64]) -> bool:
        """Take the decision now due and simulate until the next; return whether the episode has ended.

        Raises:
            ValueError: The action is not in the action space.
            EngineError: A bounded table of the engine is full.
        """
        self._action[0] = action
        self._worlds.step(self._action)
        if self._log is not None:
            self._log.answers.append(tuple(int(index) for index in action))
        self._look()
        return self.over

    def _look(self) -> None:
        worlds = self._worlds
        self._view = None
        self.now_s, self.dt_s = worlds.clocks[0].tolist()
        self.reward, self.terms = float(worlds.rewards[0]), worlds.terms[0].tolist()
        reason, self.invalid_actions, self._n_completed, *self._due_row = worlds.facts[0].tolist()
        self.reason = REASONS[reason]
        self.observation = worlds.observations[0].copy()
        status = int(worlds.statuses[0])
        self.over, self.terminated = status != self._due, status == self._terminated

    def view(self) -> DecisionView:
        """Return the typed view of the decision now due; at the end of the episode, of the last decision."""
        if self._view is None:
            self._view = self._worlds.reader(0).view()
        return self._view

    def decision(self) -> dict[str, Any]:
        """Return the description of the decision now due, as `info` holds it."""
        described = due_of_row(self._due_row)
        if self._price_delays:
            described["delay_caused_s"] = float(self._worlds.delays[0, 0])
        return described

    def mask(self) -> NDArray[np.bool_]:
        """Return the mask of the decision now due."""
        mask: NDArray[np.bool_] = self._worlds.masks[0].copy()
        return mask

    def flat_mask(self) -> NDArray[np.bool_]:
        """Return which flat actions would be carried out unchanged at the decision now due."""
        return self._worlds.flat_masks(0)

    def completed(self) -> list[Completed]:
        """Return the requests that completed during the last step."""
        if self._n_completed == 0:
            return []
        return [
            (request.number, request.completed_s, request.delay_caused_s, request.committed)
            for request in self._worlds.reader(0).newly_completed()
        ]

    def simulation(self) -> Any:
        """Return the simulation, for inspection; after a reset it shows the new episode."""
        return self._worlds.simulation(0)

    def events(self) -> Sequence[Event]:
        """Return the event log of the episode so far, if one is recorded."""
        return [] if self._log is None else self._log.events()

    def save(self) -> dict[str, Any]:
        """Return the episode's seed and a copy of the world, and if a log is recorded the actions so far."""
        answers = {} if self._log is None else {"actions": tuple(self._log.answers)}
        return {"episode_seed": self._seed, "world": self._worlds.save(0), **answers}

    def restore(self, state: EnvState) -> None:
        """Restore a saved state."""
        if state.world is None:
            raise ValueError("the state holds no world")
        self._worlds.restore(0, state.world)
        self._seed = state.episode_seed
        if self._log is not None:
            self._log.begin(state.episode_seed, state.actions)
        self._look()


class _ReplayedLog:
    """The event log of an episode on the compiled engine, made on request by simulating the episode again.

    A vector of worlds keeps no logs, because only pictures need them: an environment that draws none pays
    nothing.

    Attributes:
        answers: The actions of the episode so far.
    """

    def __init__(self, scenario: Scenario, actions: ActionSpace) -> None:
        """Keep the scenario and the action space, which all episodes share."""
        self._scenario, self._actions = scenario, actions
        self._layout: Layout | None = None
        self.begin(0)

    def begin(self, seed: int, answers: Sequence[tuple[int, ...]] = ()) -> None:
        """Switch to the episode with a seed, with the actions taken in it so far."""
        self._seed, self.answers = seed, list(answers)
        self._simulation: CompiledSimulation | None = None
        self._answered = 0

    def events(self) -> Sequence[Event]:
        """Return the log up to the decision now due; within an episode, the same list grows."""
        from dsd_env.sim.compiled import CompiledSimulation, compile_scenario

        if self._simulation is None:
            self._layout = self._layout or compile_scenario(self._scenario, log_events=_LOG_EVENTS)
            self._simulation = CompiledSimulation(
                self._scenario, self._seed, record_events=True, layout=self._layout
            )
            self._simulation.advance()
            self._answered = 0
        for answer in self.answers[self._answered :]:
            self._simulation.decide(_decoded(self._actions, self._scenario, answer)[0])
            self._simulation.advance()
        self._answered = len(self.answers)
        return self._simulation.events

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_simulation": None, "_layout": None}
