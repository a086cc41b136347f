"""Targets farther away than the links reach: closed forms, both engines alike, what is seen."""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

import dsd_env
from dsd_env import Result
from dsd_env.control import Site
from dsd_env.control.fleet_view import TARGET_FIELDS
from dsd_env.scenario import Scenario, ScenarioError, load_scenario
from dsd_env.sim import EventKind, ReferenceSimulation
from dsd_env.sim.compiled import CompiledSimulation
from tests.engines import assert_engines_agree
from tests.lab import lab
from tests.scenarios import TINY, tiny
from tests.sim.stream_lab import with_edge

Simulate = Callable[..., Result]
EXTRA_S = 0.03


@pytest.fixture(params=["reference", "compiled"])
def simulate(request: pytest.FixtureRequest) -> Simulate:
    """Simulation on one engine; every closed form is asked of both."""
    return functools.partial(dsd_env.simulate, engine=request.param)


def far_lab(**changes: Any) -> Scenario:
    """Return a laboratory with a link of 20 ms and a target 30 ms farther away."""
    given = {"alpha": 0.8, "one_way_s": 0.02, "requests": 4, "targets__target__extra_one_way_s": EXTRA_S}
    return lab(**{**given, **changes})


def far_tiny(**changes: Any) -> Scenario:
    """Return the small scenario, whose second target is far away."""
    targets = {"big": TINY["targets"]["big"], "small": {**TINY["targets"]["small"], "extra_one_way_s": 0.25}}
    return tiny(targets=targets, **changes)


# ---------------------------------------------------------------------- closed forms


@pytest.mark.parametrize("gamma", [1, 4])
def test_each_round_takes_the_way_there_and_back_longer(simulate: Simulate, gamma: int) -> None:
    scenario = far_lab(draft_s=0.007, verify={"t0_s": 0.03, "c_s_per_token": 1e-3})
    requests = simulate(scenario, f"static:{gamma}:1:own", seed=2).requests
    round_s = gamma * 0.007 + (0.03 + 1e-3 * (gamma + 1)) + 2 * (0.02 + EXTRA_S)
    assert requests["ttft_s"] == pytest.approx(0.03 + 0.1 + 2 * (0.02 + EXTRA_S), rel=1e-9)
    assert requests["e2e_s"] - requests["ttft_s"] == pytest.approx(requests["verifies"] * round_s, rel=1e-9)


@pytest.mark.parametrize("scheduler", ["static:4:1:colocated", "cloud_ar:1"])
def test_what_is_made_at_the_target_comes_later_once(simulate: Simulate, scheduler: str) -> None:
    far = simulate(far_lab(), scheduler, seed=2).requests
    near = simulate(far_lab(targets__target__extra_one_way_s=0.0), scheduler, seed=2).requests
    assert far["ttft_s"] == pytest.approx(near["ttft_s"] + 2 * EXTRA_S, rel=1e-9)
    assert far["e2e_s"] == pytest.approx(near["e2e_s"] + 2 * EXTRA_S, rel=1e-9)


@pytest.mark.parametrize("protocol", ["synchronous", "pipelined", "streaming"])
@pytest.mark.parametrize(
    "scheduler", ["static:4:1:own", "static:4:1:edge", "static:4:1:colocated", "cloud_ar"]
)
def test_a_far_target_is_one_at_the_end_of_longer_links(
    simulate: Simulate, protocol: str, scheduler: str
) -> None:
    """Where there is one target, only the sum of both delays shows."""

    def scenario(link_s: float, extra_s: float) -> Scenario:
        edge = with_edge(0.01 + EXTRA_S - extra_s)
        lan = {"one_way_s": 0.002, "uplink_bits_per_s": 1e15, "downlink_bits_per_s": 1e15}
        edge |= {"links__lan": lan, "devices__client__edge_link": "lan", "protocol__kind": protocol}
        return far_lab(clients=2, one_way_s=link_s, targets__target__extra_one_way_s=extra_s, **edge)

    far = simulate(scenario(0.02, EXTRA_S), scheduler, seed=3)
    links = simulate(scenario(0.02 + EXTRA_S, 0.0), scheduler, seed=3)
    for column in ("ttft_s", "e2e_s", "verifies", "drafted_tokens"):
        assert far.requests[column] == pytest.approx(links.requests[column], rel=1e-9), column


def test_drafts_sent_again_and_notices_of_crashes_take_the_way_too() -> None:
    faults = {
        "crash": {
            "kind": "target_crash",
            "of": "small",
            "mean_interval_s": 0.5,
            "duration_s": {"distribution": "constant", "value": 0.1},
        }
    }
    protocol = {"kind": "synchronous", "patience_s": 0.2, "client_timeout_s": 0.1}
    scenario = far_tiny(faults=faults, protocol=protocol)
    metrics = dsd_env.simulate(
        scenario, "static_map:phone=4/1/edge@1+laptop=4/1/own@1+workstation=4/1/own@1", 1
    )
    assert metrics.metrics["interruptions"] > 0 and metrics.metrics["duplicate_messages"] > 0
    assert_engines_agree(scenario, "random", 1)


# ---------------------------------------------------------------------- both engines, order


@pytest.mark.parametrize("protocol", ["synchronous", "pipelined", "streaming"])
@pytest.mark.parametrize("seed", [1, 2])
def test_both_engines_agree(protocol: str, seed: int) -> None:
    assert assert_engines_agree(far_tiny(protocol={"kind": protocol}), "random", seed) > 500


def test_messages_of_a_link_keep_their_order_but_for_targets_at_other_distances() -> None:
    simulation = ReferenceSimulation(far_tiny(), 1)
    simulation.next_decision()
    request, links = simulation.due_request, simulation._links
    assert request is not None
    near, far = 0, 1
    arrives_s = [links.send_up(request.device, 1e4, request, target) for target in (far, near, far, near)]
    assert arrives_s[1] < arrives_s[0] < arrives_s[2] and arrives_s[1] < arrives_s[3] < arrives_s[0]
    assert [arrives_s[n] - simulation.now_s > 0.25 for n in range(4)] == [True, False, True, False]


@pytest.mark.parametrize("engine", [ReferenceSimulation, CompiledSimulation])
def test_a_clients_text_comes_in_order_though_its_target_changes(engine: Any) -> None:
    """Through an edge server a request moves on faster than its lost tokens come again from a far target."""
    losing = {**TINY["links"]["mobile"], "loss_probability": 0.2, "rto_s": 2.0}
    scenario = far_tiny(links={**TINY["links"], "mobile": losing})
    simulation = engine(scenario, 3, record_events=True)
    edge = next(at for at, place in enumerate(scenario.places) if place[0] == Site.EDGE_SERVER)
    while (view := simulation.next_decision()) is not None:
        to = (view.counter + 1) % 2
        first = next(at for at, each in enumerate(view.candidates) if each.target.index == to)
        simulation.decide(dsd_env.Decision(2, 1, first + edge))
    arrived_s: dict[int, list[float]] = defaultdict(list)
    for before, event in pairwise(simulation.events):
        if before.kind == EventKind.COMMIT:
            arrived_s[event.request].append(event.value)
    assert any(later < earlier for each in arrived_s.values() for earlier, later in pairwise(each))
    completed = [event for event in simulation.events if event.kind == EventKind.COMPLETE]
    assert len(completed) >= 12
    for event in completed:
        assert event.time_s == max(arrived_s[event.request])


# ---------------------------------------------------------------------- what is seen


@pytest.mark.parametrize("engine", [ReferenceSimulation, CompiledSimulation])
def test_round_trips_are_the_links_and_what_each_target_is_beyond(engine: Any) -> None:
    simulation = engine(far_tiny(links__mobile__one_way_spread=[1.0, 1.0]), 4)
    seen = set()
    for _ in range(300):
        view = simulation.next_decision()
        assert view is not None
        beyond = {0: 0.0, 1: 0.25}
        rtts = {(c.site, c.target.index): c.rtt_s for c in view.candidates}
        handovers = {(c.site, c.target.index): c.handover_s for c in view.candidates}
        own_s = rtts[Site.OWN_DEVICE, 0]
        assert own_s < 0.35  # never the 0.5 s of the far target
        assert rtts[Site.OWN_DEVICE, 1] == own_s + 0.5
        assert rtts[Site.EDGE_SERVER, 0] == 0.008 and rtts[Site.EDGE_SERVER, 1] == 0.508
        assert rtts[Site.COLOCATED, 0] == rtts[Site.COLOCATED, 1] == 0.0
        assert view.link.rtt_s == own_s + 2 * beyond[view.target.index]
        if view.request.control_site == Site.OWN_DEVICE:
            for target in (0, 1):
                assert handovers[Site.COLOCATED, target] == 0.5 * own_s + beyond[target]
        elif view.request.control_site == Site.COLOCATED:
            other = 1 - view.target.index
            assert handovers[Site.COLOCATED, view.target.index] == 0.0
            assert handovers[Site.COLOCATED, other] == pytest.approx(own_s + 0.25)
            assert handovers[Site.OWN_DEVICE, 0] == 0.5 * own_s + beyond[view.target.index]
        seen.add((view.request.control_site, view.target.index))
        simulation.decide(dsd_env.Decision(2, 1, view.counter * 5 % len(view.candidates)))
    assert len(seen) >= 4


@pytest.mark.parametrize("engine", [ReferenceSimulation, CompiledSimulation])
def test_reports_of_a_far_target_are_older(engine: Any) -> None:
    scenario = far_tiny()
    simulation, period_s = engine(scenario, 4), scenario.protocol.telemetry_period_s
    older = 0
    while (view := simulation.next_decision()) is not None:
        ages = {c.target.index: c.target.age_s for c in view.candidates}
        if view.request.is_admission and view.now_s > 1.0:
            assert ages[1] >= 0.25 and ages[0] < 0.03 + 0.05 + period_s
            older += 1
        simulation.decide(dsd_env.Decision(0, 1, 0))
    assert older > 3


def test_the_fleets_controller_sees_a_far_target_later_on_both_engines() -> None:
    scenario = far_tiny(workload__arrivals={"kind": "poisson", "rate_per_s": 40.0})
    both = [ReferenceSimulation(scenario, 5), CompiledSimulation(scenario, 5)]
    period_s = scenario.protocol.telemetry_period_s
    known: dict[float, tuple[float, ...]] = {}
    for n in range(150):
        views = [simulation.next_decision() for simulation in both]
        if views[0] is None:
            break
        told = [simulation.fleet_telemetry() for simulation in both]
        assert told[0].targets == told[1].targets
        assert told[0].rtt_s.tolist() == told[1].rtt_s.tolist()
        reports = both[0]._episode.world.targets[1].reports
        seen_s = views[0].now_s - 0.25
        expected = next((each for each in reversed(reports) if each.time_s <= seen_s), reports[0])
        known[views[0].now_s] = told[0].targets[1]
        assert told[0].targets[1] == tuple(float(getattr(expected, name)) for name in TARGET_FIELDS)
        for simulation, view in zip(both, views, strict=True):
            simulation.decide(dsd_env.Decision(0, 1, len(view.candidates) // 2 * (n % 2)))  # type: ignore[union-attr]
    assert len(set(known.values())) > 3 and period_s < 0.25


# ---------------------------------------------------------------------- the scenario


def test_a_distance_of_none_is_left_out_of_a_scenarios_content() -> None:
    assert "extra_one_way_s" not in tiny().model_dump()["targets"]["small"]
    far = far_tiny()
    dumped = far.model_dump()["targets"]
    assert dumped["small"]["extra_one_way_s"] == 0.25 and "extra_one_way_s" not in dumped["big"]
    assert load_scenario(far.model_dump(mode="json")) == far


@pytest.mark.parametrize("value", [-0.001, math.inf, math.nan, "far"])
def test_a_distance_is_a_delay(value: object) -> None:
    with pytest.raises(ScenarioError, match="extra_one_way_s"):
        tiny(targets__small__extra_one_way_s=value)
