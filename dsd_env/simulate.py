"""Simulation without Gymnasium: a scenario, a scheduler, a seed, and the result."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsd_env.control import Decision, DecisionView
from dsd_env.rng import checked_seed
from dsd_env.scenario import Scenario, load_scenario
from dsd_env.scenario.measuring import measuring, steady
from dsd_env.schedulers import Scheduler, make_scheduler
from dsd_env.schedulers.base import FleetWatcher
from dsd_env.sim import Event, ReferenceSimulation
from dsd_env.sim.engines import compiled_layout
from dsd_env.sim.timeline import Timeline
from dsd_env.sim.world import WorldBuilder

_LOG_EVENTS = 1 << 18
"""Capacity of the event log between two decisions, in events."""


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome of one simulation.

    Attributes:
        scenario: The scenario that was simulated.
        scheduler: Name of the scheduler.
        seed: Episode seed.
        metrics: Every metric by name; NaN where nothing was observed. See :mod:`dsd_env.sim.metrics`.
        requests: Table of the completed requests in order of arrival, one column per property.
        decisions: Number of decisions taken.
        resolved: Number of decisions that were not executed as given, by reason.
        events: Event log, if `record_events` or `timeline` asked for it.
        engine: Engine that simulated: `compiled` or `reference`.
        timeline: What happened in the episode, track by track, if `timeline` asked for it; see
            :class:`dsd_env.sim.timeline.Timeline`.
    """

    scenario: Scenario
    scheduler: str
    seed: int
    metrics: dict[str, float]
    requests: dict[str, NDArray[np.generic]]
    decisions: int
    resolved: dict[str, int]
    events: list[Event]
    engine: str
    timeline: Timeline | None = None


def simulate(
    scenario: str | Path | Scenario | Mapping[str, Any],
    scheduler: str | Scheduler,
    seed: int = 0,
    *,
    requests: int | None = None,
    cycles: int | None = None,
    record_events: bool = False,
    timeline: bool = False,
    until_s: float = math.inf,
    builder: WorldBuilder | None = None,
    engine: str = "auto",
) -> Result:
    """Simulate one episode to its end, or until ``until_s``.

    The compiled engine follows static choices, the goodput rule and the field's rules by itself, and shows
    policies its own observations, where they are given by name and no events are recorded; the result is the
    same. Any other scheduler is asked for every decision.

    Args:
        scenario: Name of a shipped scenario, path of a YAML file, mapping, or scenario.
        scheduler: Name of a scheduler, e.g. ``"colocated_sd:4"`` or ``"policy:DIR"``, or a scheduler object.
        seed: Episode seed, a whole number of at least 0. The same seed gives every scheduler the same world.
        requests: Number of requests to measure, instead of the number or the window that the scenario sets.
        cycles: Measure the steady state instead: this many cycles of the load, after a warm-up, in simulated
            time; see :func:`dsd_env.scenario.measuring.steady`.
        record_events: Keep the event log in the result.
        timeline: Keep a timeline in the result, with the event log that it is drawn from.
        until_s: Stop at the first decision after this time. The metrics then cover only what happened until
            the stop, not the whole episode.
        builder: Builder of this scenario's worlds; several calls that share it load profiles and traces once.
        engine: ``"compiled"`` or ``"reference"``, which give the same result. ``"auto"`` takes the compiled
            engine, unless only the reference can simulate the episode.

    Returns:
        The metrics, the table of requests, and the log and timeline if they were asked for.

    Raises:
        ScenarioError: The scenario is not valid.
        ValueError: The scheduler is unknown or returns a decision that is not on the scenario's lists, or the
            engine is unknown, or the seed is not a whole number from 0 to 2^63 − 1, or both requests and
            cycles are given, or cycles are below 1.
        EngineError: With ``"compiled"``, a bounded table of the engine is full.

    Example:
        >>> simulate("single_lan", "colocated_sd:4", seed=1, cycles=1).metrics["e2e_s_mean"]
    """
    seed = checked_seed(seed)
    scenario = load_scenario(scenario)
    if requests is not None and cycles is not None:
        raise ValueError(f"requests = {requests}, cycles = {cycles}: measure a number of requests or cycles")
    if requests is not None:
        scenario = measuring(scenario, requests)
    if cycles is not None:
        if cycles < 1:
            raise ValueError(f"cycles = {cycles} must be at least 1")
        scenario = steady(scenario, cycles)
    policy = make_scheduler(scheduler)
    record_events = record_events or timeline
    options = {"log_events": _LOG_EVENTS} if record_events else {}
    layout = compiled_layout(engine, scenario, builder, options=options)
    if layout is not None:
        from dsd_env.sim.compiled import CompiledSimulation, EngineError

        try:
            compiled = CompiledSimulation(scenario, seed, record_events=record_events, layout=layout)
            # An object may be of a class that decides otherwise than the rule of that name.
            if isinstance(scheduler, str) and not record_events and until_s == math.inf:
                from dsd_env.whole_runs.runs import player_of

                play = player_of(policy, scenario)
                if play is not None:
                    play(compiled, layout, seed)
                    return _result(compiled, policy, seed, "compiled", compiled.decisions)
            return _run(compiled, policy, seed, "compiled", until_s, timeline)
        except EngineError:
            # A bounded table is full. The reference engine has no bounds.
            if engine == "compiled":
                raise
    reference = ReferenceSimulation(scenario, seed, record_events=record_events, builder=builder)
    return _run(reference, policy, seed, "reference", until_s, timeline)


def _run(
    simulation: Any, policy: Scheduler, seed: int, engine: str, until_s: float, timeline: bool
) -> Result:
    """Answer the decisions of a new simulation with a scheduler, and return the result."""
    view: DecisionView | None = simulation.next_decision()
    policy.reset(simulation.scenario, seed)
    if isinstance(policy, FleetWatcher):
        policy.watch(simulation.fleet_telemetry)
    decisions = 0
    while view is not None and view.now_s <= until_s:
        simulation.decide(_checked(policy.decide(view), view, policy.name))
        decisions += 1
        view = simulation.next_decision()
    return _result(simulation, policy, seed, engine, decisions, timeline)


def _checked(decision: Decision, view: DecisionView, name: str) -> Decision:
    """Return a scheduler's decision, if it is one and on the lists of the scenario.

    Raises:
        ValueError: It is not.
    """
    if not isinstance(decision, Decision):
        raise ValueError(f"{name}: decide() returned {decision!r:.80}, not a dsd_env.Decision")
    for key, listed in (("gamma", view.gammas), ("batch_size", view.batch_sizes)):
        value = getattr(decision, key)
        if value not in listed:
            raise ValueError(
                f"{name}: {key} = {value!r} is not on the list {list(listed)}; take one of those, or list it "
                f"in the scenario (actions.{'gammas' if key == 'gamma' else 'batch_sizes'})"
            )
    return decision


def _result(
    simulation: Any, policy: Scheduler, seed: int, engine: str, decisions: int, timeline: bool = False
) -> Result:
    return Result(
        scenario=simulation.scenario,
        scheduler=policy.name,
        seed=seed,
        metrics=simulation.metrics(),
        requests=simulation.requests_table(),
        decisions=decisions,
        resolved=dict(simulation.resolved),
        events=simulation.events,
        engine=engine,
        timeline=Timeline(simulation.scenario, simulation.events, policy.name, seed) if timeline else None,
    )
