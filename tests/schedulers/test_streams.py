"""Rules where drafts are streamed: what jsq_goodput chooses, and how near that comes to the best choice."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings

from dsd_env.control import ActionSpace, Decision, DecisionView, Site
from dsd_env.scenario import load_scenario
from dsd_env.schedulers import Scheduler, make_scheduler
from dsd_env.schedulers.goodput_parameters import EXPLORED_TOKENS
from dsd_env.schedulers.node_times import NodeTimes
from dsd_env.simulate import simulate
from tests.scenarios import tiny
from tests.schedulers.test_stream_model import node, run_static
from tests.views import make_candidate, make_request, make_target, make_view, views

SPECS = (
    "random",
    "cloud_ar",
    "colocated_sd:4",
    "edge_sd:4",
    "edge_sd:8:4",
    "hf_heuristic",
    "hf_heuristic:own",
    "jsq_goodput",
    "jsq_goodput:0",
    "static:4:1:own",
    "static:0:1:plain",
)


def rule(spec: str = "jsq_goodput") -> Scheduler:
    scheduler = make_scheduler(spec)
    scheduler.reset(node(8, 0.005), 0)
    return scheduler


def node_view(
    rtt_s: float,
    *,
    step_s: float = 0.003,
    resident: int = 8,
    remote: int = 0,
    colocated: int = 0,
    acceptance: float = 0.75,
    **request: object,
) -> DecisionView:
    """A request that streams from its device, at a node with a drafter on its own GPUs."""
    kv_fraction = 300.0 * resident / 400_000
    target = make_target(
        resident=resident, kv_fraction=kv_fraction, iteration_s=0.02, remote=remote, colocated=colocated
    )
    candidates = (
        make_candidate(Site.COLOCATED, target, pooled_acceptance=acceptance),
        make_candidate(
            Site.OWN_DEVICE,
            target,
            draft_step_s=step_s,
            catch_up_s=step_s,
            rtt_s=rtt_s,
            streams=True,
            coalesces=False,
            is_current=True,
            pooled_acceptance=acceptance,
        ),
    )
    changes = {"recent_gammas": (0,) * 4, "recent_accepted": (0,) * 4, **request}
    return make_view(candidates, request=make_request(control_site=Site.OWN_DEVICE, **changes))


def test_near_devices_stream_and_far_ones_draft_at_the_node() -> None:
    assert rule().decide(node_view(0.002)).placement == 1
    assert rule().decide(node_view(0.04)).placement == 0


def test_the_window_falls_with_the_load() -> None:
    windows = [rule().decide(node_view(0.002, resident=n)).gamma for n in (8, 64, 128)]
    assert windows[0] >= windows[1] > windows[2] > 0


def test_nobody_streams_from_a_device_that_the_target_outruns() -> None:
    assert rule().decide(node_view(0.002, step_s=0.05)).placement == 0


def test_drafts_that_are_always_wrong_are_not_made() -> None:
    assert rule().decide(node_view(0.002, acceptance=0.01)).gamma == 0


def test_a_request_of_good_drafts_takes_a_longer_window_at_the_same_place() -> None:
    good = node_view(0.002, resident=64, recent_gammas=(8,) * 4, recent_accepted=(8,) * 4)
    bad = node_view(0.002, resident=64, recent_gammas=(8,) * 4, recent_accepted=(0,) * 4)
    assert rule().decide(good).placement == rule().decide(bad).placement == 1
    assert rule().decide(good).gamma > rule().decide(bad).gamma


def test_a_streams_own_draft_is_no_reason_to_wait() -> None:
    view = node_view(0.002, window_tokens=8)
    waits = replace(view.candidates[1], draft_wait_s=0.003)
    assert rule().decide(replace(view, candidates=(view.candidates[0], waits))) == rule().decide(view)
    # Without a stream of its own, what is under way there belongs to others.
    others = replace(view, request=replace(view.request, window_tokens=0))
    slower = rule().decide(
        replace(others, candidates=(view.candidates[0], replace(waits, draft_wait_s=0.05)))
    )
    assert slower.placement == 0


def test_a_stream_stays_at_its_edge_server_as_long_as_that_can_draft() -> None:
    view = node_view(0.002, window_tokens=8)
    here = replace(view.candidates[1], site=Site.EDGE_SERVER, edge_server=0, draft_step_s=0.0035)
    other = replace(here, edge_server=1, is_current=False, draft_step_s=0.003)
    view = replace(view, candidates=(view.candidates[0], here, other))
    assert rule().decide(view).placement == 1
    broken = replace(view, candidates=(view.candidates[0], replace(here, valid=False), other))
    assert rule().decide(broken).placement == 2
    opening = replace(view, request=replace(view.request, window_tokens=0))
    assert rule().decide(opening).placement == 2


def test_nobody_drafts_alone_on_the_gpus_of_a_target_whose_requests_stream() -> None:
    """One request that waits is no reason to hold up all others, unless most of them draft there already."""
    view = node_view(0.002, resident=32, remote=31, colocated=0)
    crowded = replace(view.candidates[1], draft_wait_s=0.05)
    alone = replace(view, candidates=(view.candidates[0], crowded))
    assert rule().decide(alone).placement == 1 or rule().decide(alone).gamma == 0
    together = node_view(0.002, resident=32, step_s=0.012, remote=0, colocated=31)
    assert rule().decide(together).placement == 0
    assert rule().decide(together).gamma > 0


def test_one_request_in_some_tries_each_draft_model_in_turn() -> None:
    scenario = load_scenario("reasoning")
    models = list(scenario.acceptance)
    assert len(models) > 1
    scheduler = make_scheduler("jsq_goodput:explore=8")
    scheduler.reset(scenario, 1)
    # The node's model is known to be good, and that of the device to be bad.
    view = node_view(0.002, acceptance=0.9)
    node_, own = view.candidates
    candidates = (replace(node_, model=models[0]), replace(own, model=models[1], pooled_acceptance=0.3))
    chosen = [
        scheduler.decide(replace(view, request_id=number, candidates=candidates)).placement
        for number in range(16 * len(models))
    ]
    assert [number for number, placement in enumerate(chosen) if placement == 1] == [8, 8 + 8 * len(models)]
    # For its first tokens only, where that model can draft, and not if it is turned off.
    later = replace(view.request, committed_tokens=EXPLORED_TOKENS)
    late = replace(view, request_id=8, request=later, candidates=candidates)
    assert scheduler.decide(late).placement == 0
    broken = (candidates[0], replace(candidates[1], valid=False))
    assert scheduler.decide(replace(view, request_id=8, candidates=broken)).placement == 0
    off = make_scheduler("jsq_goodput:explore=0")
    off.reset(scenario, 1)
    assert off.decide(replace(view, request_id=8, candidates=candidates)).placement == 0


@settings(max_examples=15)
@given(view=views())
def test_decisions_are_on_the_lists_and_possible(view: DecisionView) -> None:
    scenario = tiny(protocol__kind="streaming")
    space = ActionSpace(view.gammas, view.batch_sizes, len(view.candidates))
    for spec in ("jsq_goodput", "jsq_goodput:0", "edge_sd:4"):
        scheduler = make_scheduler(spec)
        scheduler.reset(scenario, 5)
        decision = scheduler.decide(view)
        assert isinstance(decision, Decision)
        space.encode(decision)
        if decision.gamma > 0:
            assert view.candidates[decision.placement].valid


@pytest.mark.parametrize("spec", SPECS)
def test_every_rule_runs_where_drafts_stream(spec: str) -> None:
    result = simulate(tiny(protocol__kind="streaming"), spec, 2, requests=12)
    assert all(len(column) >= 12 for column in result.requests.values())
    streams = {"random", "edge_sd:4", "edge_sd:8:4", "hf_heuristic:own", "static:4:1:own"}
    if spec in streams:
        assert result.metrics["stream_share"] > 0.0
    if spec in ("cloud_ar", "colocated_sd:4", "hf_heuristic", "static:0:1:plain"):
        assert result.metrics["stream_share"] == 0.0


def test_node_times_are_those_of_the_profile() -> None:
    scenario = tiny(protocol__kind="streaming")
    times = NodeTimes(scenario.targets["big"])
    # t0 = 20 ms, 0.2 ms a new token, 0.1 us a KV token: 3 sequences, 2 drafts each, 900 KV tokens.
    assert times.iteration_s(3, 0.0, 900.0, 300.0) == pytest.approx(0.02 + 3 * 2e-4 + 900 * 1e-7)
    assert times.iteration_s(3, 2.0, 900.0, 300.0) == pytest.approx(0.02 + 9 * 2e-4 + 900 * 1e-7)
    # Half a draft each: between the times of 4 and 5 tokens.
    assert times.iteration_s(3, 0.5, 0.0, 0.0) == pytest.approx(0.02 + 4.5 * 2e-4)
    assert times.draft_step_s(0, 3, 900.0) == pytest.approx(0.003)
    assert times.draft_step_s(1, 3, 900.0) is None


@pytest.mark.slow
@pytest.mark.parametrize("rtt_s", [0.005, 0.015, 0.04])
@pytest.mark.parametrize("clients", [1, 8, 32, 64, 128])
def test_goodput_is_as_good_as_the_best_static_choice(clients: int, rtt_s: float) -> None:
    # The best of all windows and places in hindsight, on the same seed. The rule learns the acceptance first.
    scenario = node(clients, rtt_s, requests=max(40, clients))
    found_s = simulate(scenario, "jsq_goodput", 1, engine="compiled").metrics["tpot_s_mean"]
    choices = (
        [(0, 0)] + [(gamma, 0) for gamma in (1, 2, 3, 4, 6)] + [(gamma, 1) for gamma in (3, 4, 6, 8, 12, 16)]
    )
    best_s = min(run_static(scenario, *choice)["tpot_s_mean"] for choice in choices)
    assert found_s < 1.02 * best_s
