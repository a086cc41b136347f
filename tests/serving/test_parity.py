"""Training and serving see the same: the telemetry of a simulation gives the controller its very views."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from dsd_env.control import DecisionView, ObservationEncoder
from dsd_env.scenario import Scenario, load_scenario
from dsd_env.schedulers import make_scheduler
from dsd_env.serving import Controller, Deployment
from dsd_env.sim.events import EventKind
from dsd_env.sim.fuzz.scenarios import draw_case
from tests.scenarios import TINY, tiny
from tests.serving.recorder import Recorder
from tests.serving.samples import make_bundle


def differences(mine: DecisionView, theirs: DecisionView) -> list[str]:
    """Return the paths at which two views differ."""
    found: list[str] = []

    def walk(a, b, path: str) -> None:
        if isinstance(a, dict):
            for key in a:
                walk(a[key], b[key], f"{path}.{key}")
        elif isinstance(a, (list, tuple)) and len(a) == len(b):
            for i, (x, y) in enumerate(zip(a, b, strict=True)):
                walk(x, y, f"{path}[{i}]")
        elif a != b:
            found.append(f"{path}: {a!r} is not {b!r}")

    walk(asdict(mine), asdict(theirs), "")
    return found


# ---------------------------------------------------------------------- what happens

CHANGING = {
    "fibre": {
        **TINY["links"]["fibre"],
        "bandwidth": {"period_s": 0.2, "fast": {"sigma": 0.8, "correlation_s": 0.5}},
    },
    "mobile": {
        **TINY["links"]["mobile"],
        "bandwidth": {"period_s": 0.1, "fast": {"sigma": 1.5, "correlation_s": 0.3}},
        "delay": {"median_s": 0.01, "sigma": 1.0, "correlation_s": 0.5},
        "outages": {"mean_up_s": 1.5, "mean_down_s": 0.4},
    },
    "lan": TINY["links"]["lan"],
}
"""Links whose bandwidth and delay change, and that are without service now and then."""

RECORDED = {"source": "trace", "trace": "qwen2.5-coder-1.5b_smollm2-135m_greedy", "drafter": "smollm2-135m"}
CRASHES = {
    kind: {
        "kind": kind,
        "of": of,
        "mean_interval_s": 0.7,
        "duration_s": {"distribution": "exponential", "mean": 0.2},
    }
    for kind, of in (
        ("target_crash", "big"),
        ("edge_crash", "box"),
        ("device_crash", "workstation"),
        ("link_outage", "phone"),
        ("bandwidth_collapse", "laptop"),
    )
}
"""Everything fails now and then."""

IMPATIENT = {"patience_s": 0.15, "client_timeout_s": 0.2}


def restless(kind: str, *parts: str, **protocol: Any) -> Scenario:
    """Return the small scenario with another protocol, and more that happens in it.

    Args:
        kind: Kind of protocol.
        *parts: ``links`` that change, ``crashes`` of everything, ``preemption`` at a small KV pool,
            ``doubts`` of the drafter that end drafts, a ``far`` target.
        **protocol: More keys of the protocol.
    """
    power = {"idle_w": 10.0, "busy_w": 100.0}
    beside = {"model": "draft", "mode": "dedicated", "profile": {"t0_s": 0.002}, "gpus": 1, "power": power}
    big, small = TINY["targets"]["big"], TINY["targets"]["small"]
    content: dict[str, Any] = {
        **TINY,
        "name": "restless",
        "protocol": {"kind": kind, **protocol},
        "acceptance": {"draft": {**TINY["acceptance"]["draft"], "hits": [0.5, 0.7]}},
        "episode": {"requests": 200},
    }
    if "branches" in protocol:
        content["actions"] = {**TINY["actions"], "offer_branches": True}
    if "doubts" in parts:
        content["acceptance"] = {"draft": RECORDED}
        content["actions"] = {**TINY["actions"], "stop_thresholds": [n / 10 for n in range(1, 10)]}
    if "links" in parts:
        content["links"] = CHANGING
    if "crashes" in parts:
        content["faults"] = CRASHES
        content["protocol"] |= IMPATIENT
    if "preemption" in parts:
        big, small = (
            {**target, "kv_policy": "preempt", "kv_capacity_tokens": 1300} for target in (big, small)
        )
        prompts = {"distribution": "constant", "value": 400}
        question = {**TINY["workload"]["kinds"]["question"], "prompt_tokens": prompts}
        content["workload"] = {**TINY["workload"], "kinds": {"question": question}}
    if "far" in parts:
        small = {**small, "extra_one_way_s": 0.05}
    small = {**small, "colocated_drafter": {**beside, "concurrency": 2}}
    content["targets"] = {"big": big, "small": small}
    return load_scenario(content)


STREAMS = {
    EventKind.STREAM_OPEN,
    EventKind.STREAM_ROLLBACK,
    EventKind.STREAM_CLOSE,
    EventKind.LATE_DRAFTS,
}
BRANCHES = {*STREAMS, EventKind.BRANCH_TAKEN, EventKind.BRANCH_ADOPTED}
FAILURES = {EventKind.FAULT, EventKind.RETURN, EventKind.TAKEOVER, EventKind.LATE}


class Case:
    """What is simulated.

    Attributes:
        scenario: Makes the scenario.
        rule: What decides.
        seed: Of the simulation.
        decisions: How many are compared.
        happens: What must happen on the way.
    """

    def __init__(
        self,
        scenario: Callable[[], Scenario],
        rule: str,
        seed: int,
        decisions: int,
        happens: Iterable[EventKind] = (),
    ) -> None:
        """Take the attributes."""
        self.scenario, self.rule, self.seed = scenario, rule, seed
        self.decisions, self.happens = decisions, frozenset(happens)


def shipped(name: str) -> Callable[[], Scenario]:
    """Return what loads a shipped scenario."""
    return lambda: load_scenario(name)


# `tiny` has every kind of place, several targets, losses, and devices that differ.
CASES = {
    "lan": Case(shipped("single_lan"), "hf_heuristic:own", 1, 200),
    "lan, random": Case(shipped("single_lan"), "random", 2, 200),
    "tiny, random": Case(tiny, "random", 3, 250),
    "tiny, jsq": Case(tiny, "jsq_goodput", 5, 250),
    "tiny, policy": Case(tiny, "policy", 6, 250),
    "ahead": Case(lambda: restless("pipelined"), "random", 1, 250, [EventKind.ROLLBACK]),
    "streams": Case(lambda: restless("streaming"), "random", 1, 400, STREAMS),
    "streams, policy": Case(
        lambda: restless("streaming"), "policy", 2, 400, STREAMS - {EventKind.LATE_DRAFTS}
    ),
    "doubts": Case(
        lambda: restless("streaming", "doubts"), "random", 4, 400, STREAMS - {EventKind.LATE_DRAFTS}
    ),
    "doubts, policy": Case(lambda: restless("streaming", "doubts"), "policy", 4, 400),
    "doubts in rounds, policy": Case(lambda: restless("synchronous", "doubts"), "policy", 5, 300),
    "branches": Case(
        lambda: restless("streaming", branches={"fanout": 2, "depth": 4}), "random", 3, 400, BRANCHES
    ),
    "waiting streams": Case(
        lambda: restless("streaming", stream_idle="wait", patience_s=0.05),
        "policy",
        4,
        400,
        {*STREAMS, EventKind.TAKEOVER},
    ),
    "links": Case(lambda: restless("synchronous", "links"), "random", 1, 300),
    "crashes": Case(lambda: restless("pipelined", "crashes"), "random", 1, 400, FAILURES),
    "preemption": Case(lambda: restless("synchronous", "preemption"), "random", 1, 300, [EventKind.PREEMPT]),
    "far": Case(lambda: restless("streaming", "far"), "random", 2, 400, STREAMS - {EventKind.LATE_DRAFTS}),
    "far, policy": Case(lambda: restless("pipelined", "far", "crashes"), "policy", 3, 400, [EventKind.FAULT]),
    "all at once": Case(
        lambda: restless("streaming", "links", "crashes", "preemption"),
        "random",
        1,
        600,
        {*STREAMS, *FAILURES, EventKind.PREEMPT} - {EventKind.TAKEOVER},
    ),
}
SLOW_CASES = {
    "metro_sync": Case(shipped("metro_sync"), "random", 3, 500),
    "dsd_paper": Case(shipped("dsd_paper"), "jsq_goodput", 4, 400),
    "metro": Case(shipped("metro"), "random", 1, 800, STREAMS - {EventKind.LATE_DRAFTS}),
    "metro_branches": Case(shipped("metro_branches"), "random", 2, 800, BRANCHES),
    "flaky": Case(shipped("flaky"), "random", 1, 800, FAILURES - {EventKind.LATE}),
    "flaky_stream": Case(shipped("flaky_stream"), "random", 2, 800, {*STREAMS, EventKind.FAULT}),
    "mobile": Case(shipped("mobile"), "random", 1, 500),
    "mobile_stream": Case(shipped("mobile_stream"), "random", 2, 800, STREAMS),
    "overload": Case(shipped("overload"), "random", 1, 500),
}


def follow(
    scenario: Scenario, rule: str, seed: int, decisions: int, monkeypatch: pytest.MonkeyPatch
) -> set[EventKind]:
    """Let a controller follow a simulation and compare all that it sees; return what has happened."""
    recorder = Recorder(scenario, seed, monkeypatch)
    controller = Controller(
        rule,
        Deployment.of(scenario),
        clock=lambda: recorder.now_s,
        origin_s=0.0,
        reports="by_nominal_delay",
        seed=seed,
    )
    scheduler = make_scheduler(rule)
    scheduler.reset(scenario, seed)
    encoder = ObservationEncoder.of(scenario)
    moved = taken = doubted = 0
    while taken < decisions and (theirs := recorder.simulation.next_decision()) is not None:
        request, now_s = recorder.simulation.due_request, recorder.now_s
        assert request is not None
        recorder.before_decision()
        controller.observe_many(recorder.taken())
        name = str(request.number)
        served = controller.requests[name]
        if served.control != request.control:
            recorder.move_control(request)
            moved += 1
        for _ in range(served.rounds - request.rounds):
            # Decisions take time, and the request was interrupted meanwhile.
            recorder.drop_decision(request)
        controller.observe_many(recorder.taken())
        mine = controller.view(name, now_s)
        assert not differences(mine, theirs), f"decision {taken} at {now_s}"
        expected = encoder.encode(theirs)
        np.testing.assert_array_equal(controller.observation(name, now_s), expected)
        decision = scheduler.decide(theirs)
        resolution = recorder.simulation.decide(decision)
        answer = controller.decide(name, now_s)
        if controller._mirror is not None:
            np.testing.assert_array_equal(controller._mirror.observations[0], expected)
        assert (answer.gamma, answer.batch_size) == (resolution.gamma, resolution.batch_size)
        stop = None if resolution.stop is None else resolution.stop.threshold
        assert answer.stop_threshold == stop
        doubted += stop is not None
        assert answer.placement == decision.placement or resolution.reason
        assert answer.source == ("policy" if rule.startswith("policy:") else "rule")
        taken += 1
    assert taken == decisions or recorder.simulation.terminated or recorder.simulation.truncated
    assert doubted > 0 or not scenario.actions.stop_thresholds
    # Where the next decision is taken follows from the last one, but for what happens on the way.
    assert moved <= 1 + taken // 4, (moved, taken)
    assert controller.counts["unknown_request"] == controller.counts["out_of_order"] == 0
    assert controller.counts["moved"] == controller.counts["ahead"] == 0
    return {event.kind for event in recorder.simulation.events}


@pytest.mark.parametrize(
    "case",
    [
        *(pytest.param(case, id=name) for name, case in CASES.items()),
        *(pytest.param(case, id=name, marks=pytest.mark.slow) for name, case in SLOW_CASES.items()),
    ],
)
def test_views_observations_and_decisions_are_those_of_the_simulation(
    case: Case, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    scenario, rule = case.scenario(), case.rule
    if rule == "policy":
        rule = f"policy:{make_bundle(tmp_path / 'policy', scenario)}"
    happened = follow(scenario, rule, case.seed, case.decisions, monkeypatch)
    assert case.happens <= happened, case.happens - happened


@pytest.mark.parametrize(
    "seeds", [range(100, 108), pytest.param(range(1000, 1300), marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_they_are_in_random_scenarios(seeds: range, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As the fuzzer of the engines draws them: crashes, outages, streams, branches, menus, small pools, and
    # many things at one instant.
    for seed in seeds:
        with draw_case(Random(seed)).built() as (scenario, _), monkeypatch.context() as patch:
            rule = "random"
            if seed % 2:
                rule = f"policy:{make_bundle(tmp_path / str(seed), scenario)}"
            follow(scenario, rule, seed, 100, patch)
