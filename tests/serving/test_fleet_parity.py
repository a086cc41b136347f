"""A controller with a policy of the fleet view, fed with a simulation's telemetry, plans and decides as that.

What is told of the fleet is compared at every decision, observations and plans whenever a plan is due, and
those once more with the environment on the compiled engine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from dsd_env.control.fleet import FleetSpace
from dsd_env.control.fleet_view import FleetTelemetry
from dsd_env.envs import EdgeCloudFleetEnv
from dsd_env.scenario import Scenario
from dsd_env.schedulers import make_scheduler
from dsd_env.schedulers.fleet import FleetPolicyScheduler
from dsd_env.serving import Controller, Deployment
from dsd_env.sim.events import EventKind
from dsd_env.sim.fuzz.scenarios import draw_case
from tests.scenarios import TINY, tiny
from tests.serving.recorder import Recorder
from tests.serving.samples import make_fleet_bundle
from tests.serving.test_parity import BRANCHES, FAILURES, STREAMS, restless, shipped

CLASSES: dict[str, Any] = {
    "slo": {"chat": {"ttft_s": 0.5, "tpot_s": 0.04}, "batch": {"ttft_s": 5.0, "tpot_s": 0.1}},
    "workload__kinds": {
        "question": TINY["workload"]["kinds"]["question"],
        "essay": {**TINY["workload"]["kinds"]["question"], "slo": "batch", "weight": 0.6},
    },
}


def assert_alike(mine: FleetTelemetry, theirs: FleetTelemetry, where: str) -> None:
    one, other = asdict(mine), asdict(theirs)
    for part in (one, other):
        part.update(part.pop("requests"))
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=f"{name}, {where}")


def follow(
    space: FleetSpace, bundle: Path, seed: int, decisions: int, monkeypatch: pytest.MonkeyPatch
) -> tuple[set[EventKind], int]:
    """Let a controller follow a simulation; return what has happened, and how many plans there were."""
    scenario = space.scenario
    recorder = Recorder(scenario, seed, monkeypatch)
    controller = Controller(
        bundle,
        Deployment.of(scenario),
        clock=lambda: recorder.now_s,
        origin_s=0.0,
        reports="by_nominal_delay",
        seed=seed,
    )
    scheduler = make_scheduler(f"policy:{bundle}")
    assert isinstance(scheduler, FleetPolicyScheduler)
    scheduler.reset(scenario, seed)
    scheduler.watch(recorder.simulation.fleet_telemetry)
    env = EdgeCloudFleetEnv(scenario, space.control_period_s, space.grouping, space.name_targets)
    expected, over, taken, plans = None, False, 0, 0
    while taken < decisions and (view := recorder.simulation.next_decision()) is not None:
        request, now_s = recorder.simulation.due_request, recorder.now_s
        assert request is not None
        recorder.before_decision()
        controller.observe_many(recorder.taken())
        name = str(request.number)
        if controller.requests[name].control != request.control:
            recorder.move_control(request)
        for _ in range(controller.requests[name].rounds - request.rounds):
            recorder.drop_decision(request)
        controller.observe_many(recorder.taken())
        mine, _ = controller._look_at_fleet(now_s)
        assert_alike(mine, recorder.simulation.fleet_telemetry(), f"decision {taken} at {now_s}")
        decision = scheduler.decide(view)
        resolution = recorder.simulation.decide(decision)
        answer = controller.decide(name, now_s)
        assert (answer.gamma, answer.batch_size) == (resolution.gamma, resolution.batch_size)
        assert answer.placement == decision.placement or resolution.reason
        assert answer.source == "policy"
        planner = controller._planner
        assert planner is not None
        if planner.number > plans:
            plans += 1
            if expected is None:
                expected, _ = env.reset(options={"episode_seed": seed})
            assert not over and planner.number == plans
            np.testing.assert_array_equal(planner.observation, expected)
            expected, _, terminated, truncated, info = env.step(planner.plan.ravel())
            assert info["plan"] == controller.plan(now_s).words
            over = terminated or truncated
        taken += 1
    assert controller.counts["unknown_request"] == controller.counts["out_of_order"] == 0
    assert controller.counts["moved"] == controller.counts["safe_plans"] == 0
    assert controller.guard.trusted and controller.counts["plans"] == plans
    return {event.kind for event in recorder.simulation.events}, plans


CASES: dict[str, tuple[Callable[[], Scenario], dict[str, Any], int, set[EventKind]]] = {
    "lan": (shipped("single_lan"), {}, 200, set()),
    "tiny": (lambda: tiny(**CLASSES), {"control_period_s": 0.2}, 250, set()),
    "far": (
        lambda: tiny(**CLASSES, targets__small__extra_one_way_s=0.3),
        {"control_period_s": 0.2},
        250,
        set(),
    ),
    "targets by number": (
        lambda: tiny(**CLASSES, actions__targets_offered=2),
        {"grouping": "slo", "name_targets": True},
        250,
        set(),
    ),
    "streams": (
        lambda: restless("streaming"),
        {"control_period_s": 0.1},
        400,
        STREAMS - {EventKind.LATE_DRAFTS},
    ),
    "branches": (
        lambda: restless("streaming", branches={"fanout": 2, "depth": 4}),
        {"control_period_s": 0.1, "grouping": "device"},
        400,
        BRANCHES - {EventKind.LATE_DRAFTS},
    ),
    "links": (lambda: restless("synchronous", "links"), {"control_period_s": 0.1}, 300, set()),
    "crashes": (lambda: restless("pipelined", "crashes"), {"control_period_s": 0.1}, 400, FAILURES),
    "all at once": (
        lambda: restless("streaming", "links", "crashes", "preemption"),
        {"control_period_s": 0.1},
        500,
        FAILURES - {EventKind.TAKEOVER, EventKind.LATE},
    ),
    "preemption": (
        lambda: restless("synchronous", "preemption"),
        {"control_period_s": 0.1},
        500,
        {EventKind.PREEMPT},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_telemetry_observations_plans_and_decisions_are_those_of_the_environment(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make, settings, decisions, happens = CASES[name]
    space = FleetSpace(make(), **settings)
    bundle = make_fleet_bundle(tmp_path / "bundle", space, seed=3)
    happened, plans = follow(space, bundle, 1, decisions, monkeypatch)
    assert happens <= happened, happens - happened
    assert plans > 5


@pytest.mark.parametrize(
    "seeds", [range(200, 206), pytest.param(range(2000, 2200), marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_they_are_in_random_scenarios(seeds: range, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in seeds:
        with draw_case(Random(seed)).built() as (scenario, _), monkeypatch.context() as patch:
            space = FleetSpace(scenario, 0.1)
            bundle = make_fleet_bundle(tmp_path / str(seed), space, seed)
            follow(space, bundle, seed, 100, patch)
