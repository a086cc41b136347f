"""Schedulers: what each rule does in views built by hand, and how they are named."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsd_env.control import ActionSpace, Decision, DecisionView, ObservationEncoder, Site
from dsd_env.policy import Manifest, PolicyError, load, write_bundle
from dsd_env.policy.manifest import Actions, Network, ScenarioRef, Training, feature_specs
from dsd_env.schedulers import Scheduler, SchedulerError, make_scheduler, scheduler_help, scheduler_names
from dsd_env.schedulers.rounds import estimate_acceptance, expected_tokens
from dsd_env.schedulers.rules import least_loaded_target, plain_placement
from dsd_env.sim import ReferenceSimulation
from dsd_env.simulate import simulate
from tests.scenarios import TINY, tiny
from tests.views import make_candidate, make_request, make_target, make_view, views

SPECS = (
    "random",
    "cloud_ar",
    "cloud_ar:16",
    "colocated_sd:4",
    "colocated_sd:6:32",
    "edge_sd:4",
    "edge_sd:8:4",
    "hf_heuristic",
    "hf_heuristic:own",
    "hf_heuristic:edge:16",
    "jsq_goodput",
    "jsq_goodput:0.5",
    "jsq_goodput:load_weight=1+horizon_tokens=32+batch_size=64",
    "static:4:32:own",
    "static:0:1:plain",
)


def ready(spec: str) -> Scheduler:
    scheduler = make_scheduler(spec)
    scheduler.reset(tiny(), 5)
    return scheduler


def two_targets(**first: object) -> tuple[object, ...]:
    """Candidates of two targets, each with the three sites."""
    targets = (make_target(0, **first), make_target(1))
    return tuple(
        make_candidate(site, target, same_target=target.index == 0, move_s=0.2 * target.index)
        for target in targets
        for site in Site
    )


# --- every scheduler, any view -------------------------------------------------------------------


@given(view=views())
def test_decisions_are_on_the_lists_and_possible(view: DecisionView) -> None:
    space = ActionSpace(view.gammas, view.batch_sizes, len(view.candidates))
    for spec in SPECS:
        decision = ready(spec).decide(view)
        assert isinstance(decision, Decision)
        space.encode(decision)
        # `random` draws its dimensions independently, and candidate 0 is always selectable.
        if decision.gamma > 0 and spec != "random":
            assert view.candidates[decision.placement].valid


@given(first=views(), second=views())
def test_decisions_depend_on_the_view_alone(first: DecisionView, second: DecisionView) -> None:
    for spec in SPECS:
        scheduler = ready(spec)
        before = scheduler.decide(first)
        scheduler.decide(second)
        assert scheduler.decide(first) == before
        assert ready(spec).decide(first) == before


@pytest.mark.parametrize("spec", SPECS)
def test_the_name_of_a_scheduler_builds_it_again(spec: str) -> None:
    scheduler = ready(spec)
    again = ready(scheduler.name)
    assert again.name == scheduler.name
    assert vars(again).keys() == vars(scheduler).keys()
    assert again.decide(make_view()) == scheduler.decide(make_view())
    assert isinstance(scheduler, Scheduler)
    assert make_scheduler(scheduler) is scheduler


# --- names and errors ----------------------------------------------------------------------------


def test_every_name_is_explained() -> None:
    text = scheduler_help()
    for name in scheduler_names():
        assert any(line.startswith(name) for line in text.splitlines())
    assert {"random", "cloud_ar", "colocated_sd", "edge_sd", "hf_heuristic", "jsq_goodput", "policy"} <= set(
        scheduler_names()
    )


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("colocated", ["unknown scheduler 'colocated'", "did you mean 'colocated_sd'", "colocated_sd:G[:B]"]),
        ("", ["unknown scheduler ''", "jsq_goodput"]),
        ("colocated_sd:x", ["colocated_sd", "G = 'x'", "1..64"]),
        ("colocated_sd:0", ["G = '0'", "1..64"]),
        ("colocated_sd:4:0", ["B = '0'", "1..4096"]),
        ("colocated_sd:4:8:9", ["too many arguments", "colocated_sd:G[:B]"]),
        ("random:3", ["too many arguments"]),
        ("hf_heuristic:moon", ["'moon'", "colocated, own, edge"]),
        ("jsq_goodput:speed=3", ["unknown parameter 'speed'", "horizon_tokens"]),
        ("jsq_goodput:load_weight=-1", ["load_weight = -1", "[0, 1000]"]),
        ("jsq_goodput:load_weight=nan", ["load_weight = nan"]),
        ("jsq_goodput:lots", ["load_weight = 'lots' is not a number"]),
        ("jsq_goodput:1+load_weight=2", ["given twice"]),
        ("jsq_goodput:batch_size=2.5", ["batch_size = 2.5", "whole number"]),
        ("static:4:8", ["incomplete", "static:G:B:PLACE"]),
        ("static:4:8:here", ["'here' is not one of", "plain", "edge-own-colocated"]),
        ("static:4:8:own-colocatd", ["'own-colocatd'", "'colocatd' is not", "did you mean 'colocated'"]),
        ("static:4:8:edge-plain", ["'edge-plain'", "plain decoding stands alone"]),
        ("static:4:8:edge-edge", ["'edge' twice"]),
        ("static:4:8:edge-own:look", ["'edge-own:look'", "name one site"]),
        ("pack:4:1:colocated", ["incomplete", "pack:N[-M]:G:B:PLACE"]),
        ("pack:0:4:1:colocated", ["N = '0'", "at least 1"]),
        ("pack:8:4:1:moon", ["placement 'moon'"]),
        ("pack:8-8:4:1:own", ["M = '8'", "less than N = 8"]),
        ("pack:8-:4:1:own", ["M = ''"]),
        ("static_map:phone=4/1/own@pack", ["N = ''"]),
        ("static_map:phone=4/1/own@pack8-x", ["M = 'x'"]),
        ("static_map:phone=4/1/own@full", ["target 'full'", "packN[-M]"]),
        ("static_map:", ["names no class"]),
        ("static_map:phone=4/8", ["CLASS=G/B/PLACE"]),
        ("static_map:phone=4/8/own+phone=4/8/own", ["given twice"]),
        ("static_map:phone=4/8/own@near", ["target 'near'", "whole number"]),
        ("by_load:above=4+quiet=4/1/own", ["busy missing", "above=N+quiet=G/B/PLACE+busy=G/B/PLACE"]),
        ("by_load:above=4+quiet=4/1/own+busy=4/1/own+busy=8/1/own", ["busy is given twice"]),
        ("by_load:above=4+quiet=4/1+busy=4/1/own", ["quiet = '4/1' is not G/B/PLACE"]),
        ("by_load:abov=4+quiet=4/1/own+busy=4/1/own", ["'abov=4' is none of above=N"]),
        ("by_load:above=-1+quiet=4/1/own+busy=4/1/edge", ["above = '-1'", "0..1000000"]),
        ("by_load:above=4+quiet=4/1/own+busy=4/1/moon", ["by_load: busy", "'moon'"]),
        ("policy", ["policy:PATH"]),
    ],
)
def test_errors_say_what_is_wrong_and_what_is_known(spec: str, words: list[str]) -> None:
    with pytest.raises(SchedulerError) as error:
        make_scheduler(spec)
    for word in words:
        assert word in str(error.value)


def test_something_else_than_a_scheduler_is_refused() -> None:
    with pytest.raises(SchedulerError, match="got int"):
        make_scheduler(4)  # type: ignore[arg-type]


# --- shared rules --------------------------------------------------------------------------------


def test_routing_joins_the_target_with_fewest_requests() -> None:
    view = make_view(two_targets(resident=5))
    assert least_loaded_target(view) == 1
    view = make_view(
        (make_candidate(target=make_target(0, resident=9)), make_candidate(target=make_target(1, up=False)))
    )
    assert least_loaded_target(view) == 0


def test_simple_rules_route_at_admission_and_stay_afterwards() -> None:
    candidates = two_targets(resident=5)
    for spec in ("cloud_ar", "colocated_sd:4", "edge_sd:4", "hf_heuristic"):
        scheduler = make_scheduler(spec)
        admission = make_view(candidates, request=make_request(is_admission=True))
        assert candidates[scheduler.decide(admission).placement].target.index == 1
        assert candidates[scheduler.decide(make_view(candidates)).placement].target.index == 0


def test_plain_decoding_goes_to_the_colocated_candidate_of_the_target() -> None:
    candidates = two_targets()
    assert plain_placement(make_view(candidates), 1) == 3
    only_edge = (candidates[0], candidates[4], candidates[5])
    assert plain_placement(make_view(only_edge), 1) == 1


# --- static rules --------------------------------------------------------------------------------


def test_cloud_ar_never_drafts() -> None:
    assert make_scheduler("cloud_ar:16").decide(make_view()) == Decision(0, 16, 0)


def test_colocated_sd_drafts_at_the_target_or_not_at_all() -> None:
    view = make_view()
    assert make_scheduler("colocated_sd:4:32").decide(view) == Decision(4, 32, 0)
    invalid = tuple(
        replace(candidate, valid=candidate.site != Site.COLOCATED) for candidate in view.candidates
    )
    assert make_scheduler("colocated_sd:4:32").decide(make_view(invalid)) == Decision(0, 32, 0)


@pytest.mark.parametrize(
    ("impossible", "expected"),
    [
        ((), Decision(4, 32, 1)),
        ((Site.OWN_DEVICE,), Decision(4, 32, 2)),
        ((Site.OWN_DEVICE, Site.EDGE_SERVER), Decision(4, 32, 0)),
        ((Site.OWN_DEVICE, Site.EDGE_SERVER, Site.COLOCATED), Decision(0, 32, 0)),
    ],
)
def test_edge_sd_prefers_own_device_then_edge_server(
    impossible: tuple[Site, ...], expected: Decision
) -> None:
    candidates = tuple(
        replace(candidate, valid=candidate.site not in impossible) for candidate in make_view().candidates
    )
    assert make_scheduler("edge_sd:4:32").decide(make_view(candidates)) == expected


def test_edge_sd_takes_the_edge_server_with_the_shorter_wait() -> None:
    target = make_target()
    candidates = (
        make_candidate(Site.COLOCATED, target),
        make_candidate(Site.EDGE_SERVER, target, draft_wait_s=0.05),
        make_candidate(Site.EDGE_SERVER, target, edge_server=1, draft_wait_s=0.01),
    )
    assert make_scheduler("edge_sd:4:32").decide(make_view(candidates)).placement == 2


def test_lengths_and_batches_off_the_lists_are_snapped() -> None:
    view = make_view(gammas=(0, 2, 5), batch_sizes=(4, 16))
    assert make_scheduler("colocated_sd:4:8").decide(view) == Decision(2, 16, 0)
    assert make_scheduler("colocated_sd:64:64").decide(view) == Decision(5, 16, 0)
    # A draft length below the shortest listed one is plain decoding.
    assert make_scheduler("colocated_sd:1:8").decide(view).gamma == 0


def test_static_names_one_site_only() -> None:
    view = make_view()
    assert make_scheduler("static:3:8:edge").decide(view) == Decision(3, 8, 2)
    assert make_scheduler("static:3:8:plain").decide(view) == Decision(0, 8, 0)
    invalid = tuple(
        replace(candidate, valid=candidate.site != Site.EDGE_SERVER) for candidate in view.candidates
    )
    assert make_scheduler("static:3:8:edge").decide(make_view(invalid)) == Decision(0, 8, 0)


@pytest.mark.parametrize(
    ("impossible", "placement", "gamma"),
    [
        ((), 2, 3),
        ((Site.EDGE_SERVER,), 1, 3),
        ((Site.EDGE_SERVER, Site.OWN_DEVICE), 0, 3),
        ((Site.EDGE_SERVER, Site.OWN_DEVICE, Site.COLOCATED), 0, 0),
    ],
)
def test_static_with_several_sites_takes_the_first_that_can_draft(
    impossible: tuple[Site, ...], placement: int, gamma: int
) -> None:
    view = make_view()
    there = tuple(replace(each, valid=each.site not in impossible) for each in view.candidates)
    decision = make_scheduler("static:3:8:edge-own-colocated").decide(make_view(there))
    assert decision == Decision(gamma, 8, placement)


def test_by_load_keeps_what_held_at_admission() -> None:
    rule = make_scheduler("by_load:above=10+quiet=4/1/colocated+busy=0/1/plain")
    rule.reset(tiny(), 0)

    def gamma(resident: int, waiting: int, admission: bool) -> int:
        target = make_target(resident=resident, waiting=waiting)
        request = make_request(is_admission=admission)
        return rule.decide(make_view((make_candidate(target=target),), request=request)).gamma

    assert [gamma(8, 2, True), gamma(90, 0, False)] == [4, 4]
    assert [gamma(8, 3, True), gamma(0, 0, False)] == [0, 0]


# --- Hugging Face's heuristic --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gammas", "accepted", "expected"),
    [
        ((0, 0, 0, 0), (0, 0, 0, 0), 5),
        ((5, 0, 0, 0), (5, 0, 0, 0), 7),
        ((5, 0, 0, 0), (4, 0, 0, 0), 4),
        ((1, 2, 0, 0), (0, 0, 0, 0), 1),
        ((16, 0, 0, 0), (16, 0, 0, 0), 16),
        ((0, 3, 0, 0), (0, 3, 0, 0), 5),
    ],
)
def test_hf_heuristic(gammas: tuple[int, ...], accepted: tuple[int, ...], expected: int) -> None:
    view = make_view(request=make_request(recent_gammas=gammas, recent_accepted=accepted))
    assert make_scheduler("hf_heuristic").decide(view).gamma == expected


def test_hf_heuristic_never_sticks_on_a_list_with_gaps() -> None:
    listed = (0, 2, 5, 9, 14)
    gamma = 2
    seen = [gamma]
    for _ in range(5):
        request = make_request(recent_gammas=(gamma, 0, 0, 0), recent_accepted=(gamma, 0, 0, 0))
        gamma = make_scheduler("hf_heuristic").decide(make_view(request=request, gammas=listed)).gamma
        seen.append(gamma)
    assert seen == [2, 5, 9, 14, 14, 14]
    for _ in range(4):
        request = make_request(recent_gammas=(gamma, 0, 0, 0), recent_accepted=(0, 0, 0, 0))
        gamma = make_scheduler("hf_heuristic").decide(make_view(request=request, gammas=listed)).gamma
    assert gamma == 2


# --- random --------------------------------------------------------------------------------------


def test_random_draws_uniformly_and_repeats_by_address() -> None:
    scheduler = make_scheduler("random")
    view = make_view()
    decisions = [scheduler.decide(replace(view, counter=counter)) for counter in range(3000)]
    assert decisions == [scheduler.decide(replace(view, counter=counter)) for counter in range(3000)]
    for field, size in (("gamma", 17), ("batch_size", 8), ("placement", 3)):
        counts = {value: 0 for value in {getattr(decision, field) for decision in decisions}}
        for decision in decisions:
            counts[getattr(decision, field)] += 1
        assert len(counts) == size
        expected = 3000 / size
        chi_squared = sum((count - expected) ** 2 / expected for count in counts.values())
        assert chi_squared < size + 6 * math.sqrt(2 * size)


# --- jsq_goodput ---------------------------------------------------------------------------------

T0_S, TOKEN_S = 0.02, 2e-4
"""Iteration time of the first target of `tiny`: T0_S + TOKEN_S per new token."""


def goodput(spec: str = "jsq_goodput") -> Scheduler:
    scheduler = make_scheduler(spec)
    scheduler.reset(tiny(), 0)
    return scheduler


def test_acceptance_estimate_is_the_likelihood_maximum_shrunk_to_the_prior() -> None:
    request = make_request(recent_gammas=(4, 4, 4, 0), recent_accepted=(4, 1, 0, 0))
    # Successes 4 + 1 + 0, failures 0 + 1 + 1.
    assert estimate_acceptance(request, 0.5, 0.0) == pytest.approx(5 / 7)
    assert estimate_acceptance(request, 0.5, 10.0) == pytest.approx((5 + 5) / (7 + 10))
    new = make_request(recent_gammas=(0, 0, 0, 0), recent_accepted=(0, 0, 0, 0))
    assert estimate_acceptance(new, 0.5, 10.0) == pytest.approx(0.5)
    assert estimate_acceptance(new, 0.7, 0.0) == 0.7


@given(acceptance=st.floats(0.01, 0.99))
def test_expected_tokens_sum_the_geometric_series(acceptance: float) -> None:
    gammas = (0, 1, 4, 16)
    expected = [sum(acceptance**power for power in range(gamma + 1)) for gamma in gammas]
    assert expected_tokens(acceptance, gammas) == pytest.approx(expected)


def edge_view(trials: tuple[int, int], step_s: float, rtt_s: float) -> DecisionView:
    """An idle target and one remote drafter: the closed form of one client."""
    target = make_target(iteration_s=0.03)
    candidates = (
        make_candidate(Site.COLOCATED, target, valid=False),
        make_candidate(Site.OWN_DEVICE, target, draft_step_s=step_s, catch_up_s=step_s, rtt_s=rtt_s),
    )
    accepted, drafted = trials
    request = make_request(recent_gammas=(drafted, 0, 0, 0), recent_accepted=(accepted, 0, 0, 0))
    return make_view(candidates, request=request)


def tokens_of(view: DecisionView, gamma: int, prior_trials: float = 16.0) -> float:
    alpha = estimate_acceptance(view.request, 0.65, prior_trials)
    return sum(alpha**power for power in range(gamma + 1))


@pytest.mark.parametrize("trials", [(1, 8), (4, 16), (9, 16), (16, 16)])
@pytest.mark.parametrize("step_s", [0.001, 0.01, 0.05])
@pytest.mark.parametrize("rtt_s", [0.0, 0.02, 0.2])
def test_goodput_argmax_is_the_closed_form_of_one_client(
    trials: tuple[int, int], step_s: float, rtt_s: float
) -> None:
    # Time per token = (k t_d + t_v + RTT) / B(k); plain decoding takes an iteration per token.
    view = edge_view(trials, step_s, rtt_s)
    assert goodput().name == "jsq_goodput"
    cost_s = {0: 0.03 + TOKEN_S}
    for k in range(1, 17):
        cost_s[k] = (k * step_s + rtt_s + 0.03 + (k + 1) * TOKEN_S) / tokens_of(view, k)
    best = min(cost_s, key=lambda k: cost_s[k])
    decision = goodput().decide(view)
    assert decision.gamma == best
    assert decision.placement == (1 if best else 0)


@pytest.mark.parametrize("residents", [1, 4, 12])
@pytest.mark.parametrize("step_s", [0.0005, 0.003, 0.02])
def test_goodput_drafts_with_the_batch_as_smartspec_does(residents: int, step_s: float) -> None:
    # T(n, k) = t(n (k + 1)) + k t_d, tokens per round of an average request; k = 0 allowed.
    target = make_target(iteration_s=T0_S, resident=residents)
    candidate = make_candidate(Site.COLOCATED, target, draft_step_s=step_s, catch_up_s=step_s)
    # So easy a request that it would always draft as far as it may.
    request = make_request(recent_gammas=(8, 8, 8, 8), recent_accepted=(8, 8, 8, 8))
    view = make_view((candidate,), request=request, gammas=(0, 1, 2, 4, 6, 8))
    cost_s = {
        k: (T0_S + residents * (k + 1) * TOKEN_S + k * step_s) / tokens_of(view, k, 400.0)
        for k in view.gammas
    }
    assert goodput().decide(view).gamma == min(cost_s, key=lambda k: cost_s[k])


def test_goodput_drafts_longer_when_more_is_accepted() -> None:
    gammas = [goodput().decide(edge_view((accepted, 8), 0.004, 0.03)).gamma for accepted in range(9)]
    assert gammas == sorted(gammas)
    assert gammas[0] < gammas[-1]


def test_goodput_shortens_hard_requests_within_a_batch() -> None:
    target = make_target(iteration_s=0.03, resident=12)
    candidate = make_candidate(Site.COLOCATED, target, draft_step_s=0.001, catch_up_s=0.001, is_current=True)

    def gamma(accepted: int, weight: float) -> int:
        request = make_request(recent_gammas=(8,) * 4, recent_accepted=(accepted,) * 4)
        return (
            goodput(f"jsq_goodput:{weight}+prior_trials=1")
            .decide(make_view((candidate,), request=request))
            .gamma
        )

    assert gamma(0, 1.0) < gamma(8, 1.0)
    assert gamma(8, 1.0) == gamma(8, 0.0)


@given(view=views())
def test_goodput_takes_the_best_of_all_options(view: DecisionView) -> None:
    from dsd_env.schedulers import rounds as rule
    from dsd_env.schedulers.goodput_parameters import GoodputParameters

    scheduler = goodput("jsq_goodput:0.3")
    parameters = GoodputParameters(load_weight=0.3)
    decision = scheduler.decide(view)
    number = view.candidates[decision.placement].target.index
    assert number == (least_loaded_target(view) if view.request.is_admission else view.target.index)
    table = scheduler.nodes[number].times.compute_s  # type: ignore[attr-defined]
    pooled = rule.estimate_acceptance(view.request, parameters.prior_acceptance, parameters.shared_trials)

    def cost_s(gamma: int, placement: int) -> float:
        candidate = view.candidates[placement]
        if gamma == 0:
            return rule.plain_token_s(candidate, view, table, 8, parameters, parameters.load_weight)
        base_s, slope_s, longest = rule.round_line_s(
            candidate, view, table, parameters, parameters.load_weight, pooled
        )
        if gamma > longest:
            return math.inf
        one_off_s = rule.one_off_token_s(candidate, view.request, parameters)
        return one_off_s + (base_s + slope_s * gamma) / tokens_of(view, gamma)

    options = [
        cost_s(gamma, placement)
        for placement, candidate in enumerate(view.candidates)
        for gamma in view.gammas
        if candidate.target.index == number
        and (candidate.valid if gamma else candidate.site == Site.COLOCATED and not view.request.is_admission)
    ]
    if min(options, default=math.inf) == math.inf:
        assert decision.gamma == 0
    else:
        assert cost_s(decision.gamma, decision.placement) == pytest.approx(min(options), rel=1e-9)


def test_goodput_leaves_drafts_to_those_who_need_them() -> None:
    """A request that plain decoding serves well enough decodes plainly, unless it drafts already."""
    scheduler = goodput("jsq_goodput:slo_margin=0.8")
    plain_s = make_target().iteration_s

    def gamma(**changes: object) -> int:
        fresh = {"recent_gammas": (0, 0, 0, 0), "recent_accepted": (0, 0, 0, 0), "tpot_s": 0.01, **changes}
        return scheduler.decide(make_view(request=make_request(**fresh))).gamma

    loose_s, tight_s = plain_s / 0.8 * 1.01, plain_s / 0.8 * 0.99
    assert gamma(slo_tpot_s=loose_s) == 0
    assert gamma(slo_tpot_s=tight_s) > 0
    assert gamma(slo_tpot_s=loose_s, tpot_s=0.81 * loose_s) > 0
    assert gamma(slo_tpot_s=loose_s, recent_gammas=(4, 0, 0, 0), recent_accepted=(4, 0, 0, 0)) > 0
    # At admission that spares the drafter the prompt.
    assert gamma(slo_tpot_s=loose_s, is_admission=True) == 0
    always = goodput("jsq_goodput")
    assert always.decide(make_view(request=make_request(slo_tpot_s=loose_s))).gamma > 0


@pytest.mark.parametrize(
    ("parameters", "changes", "drafts"),
    [
        ("hopeless=1.5", {"slo_tpot_s": 0.1, "tpot_s": 0.149}, True),
        ("hopeless=1.5", {"slo_tpot_s": 0.1, "tpot_s": 0.151}, False),
        ("hopeless=1.5", {"slo_tpot_s": 0.1, "tpot_s": 0.151, "committed_tokens": 7}, True),
        ("hopeless=1.5", {"slo_ttft_s": 0.2, "ttft_s": 0.21}, False),
        ("hopeless=1.5", {"slo_ttft_s": 0.2, "age_s": 0.21, "ttft_s": 0.0, "committed_tokens": 0}, False),
        ("relief=0.5", {"slo_tpot_s": 0.1, "tpot_s": 0.049}, False),
        ("relief=0.5", {"slo_tpot_s": 0.1, "tpot_s": 0.051}, True),
        ("relief=0.5", {"slo_tpot_s": 0.1, "tpot_s": 0.0}, True),
        ("load_weight=1", {"slo_tpot_s": 0.1, "tpot_s": 0.2, "slo_ttft_s": 0.2, "ttft_s": 0.3}, True),
    ],
)
def test_goodput_gives_no_drafts_to_those_whose_objectives_they_do_not_help(
    parameters: str, changes: dict[str, float], drafts: bool
) -> None:
    request = make_request(
        **{"committed_tokens": 8, "age_s": 0.1, "ttft_s": 0.1, "slo_ttft_s": 9.0, **changes}
    )
    assert (goodput(f"jsq_goodput:{parameters}").decide(make_view(request=request)).gamma > 0) == drafts


def test_goodput_prices_move_the_choice_of_a_place() -> None:
    target = make_target(running=2, iteration_s=0.03)
    candidates = (
        make_candidate(Site.COLOCATED, target),
        make_candidate(Site.OWN_DEVICE, target, draft_step_s=0.004, catch_up_s=0.004),
    )
    view = make_view(candidates)

    def site(parameters: str) -> Site:
        return view.candidates[goodput(f"jsq_goodput:{parameters}").decide(view).placement].site

    assert site("price_colocated=3") == Site.OWN_DEVICE
    assert site("price_own=3") == Site.COLOCATED


def test_goodput_packs_targets_one_after_the_other() -> None:
    targets = (make_target(0, resident=19), make_target(1, resident=0))
    candidates = tuple(make_candidate(Site.COLOCATED, target) for target in targets)
    admission = make_view(candidates, request=make_request(is_admission=True))
    assert goodput("jsq_goodput").decide(admission).placement == 1
    assert goodput("jsq_goodput:pack=20").decide(admission).placement == 0
    assert goodput("jsq_goodput:pack=19").decide(admission).placement == 1


def test_goodput_keeps_a_running_request_where_it_is() -> None:
    targets = (make_target(0, iteration_s=0.3, queued=50, resident=60), make_target(1, iteration_s=0.02))
    candidates = tuple(make_candidate(Site.COLOCATED, target) for target in targets)
    assert goodput().decide(make_view(candidates)).placement == 0
    admission = make_view(candidates, request=make_request(is_admission=True))
    assert goodput().decide(admission).placement == 1


def test_goodput_load_weight_shortens_drafts_that_delay_others() -> None:
    target = make_target(running=14, iteration_s=0.03, age_s=0.01)
    candidates = (
        make_candidate(Site.COLOCATED, target, valid=False),
        make_candidate(Site.OWN_DEVICE, target, draft_step_s=0.004, catch_up_s=0.004),
    )
    selfish = goodput("jsq_goodput:0").decide(make_view(candidates)).gamma
    social = goodput("jsq_goodput:1").decide(make_view(candidates)).gamma
    assert 0 < social < selfish


def test_goodput_weighs_kv_lag() -> None:
    target = make_target()
    edge = make_candidate(Site.OWN_DEVICE, target, draft_step_s=0.002, catch_up_s=0.002, rtt_s=0.001)
    candidates = (make_candidate(Site.COLOCATED, target, draft_step_s=0.02, catch_up_s=0.02), edge)
    assert goodput().decide(make_view(candidates)).placement == 1
    stale = (candidates[0], replace(edge, catch_up_s=3.0, kv_lag_tokens=500))
    assert goodput().decide(make_view(stale)).placement == 0


# --- per device class, and policies --------------------------------------------------------------


def test_static_map_gives_every_device_class_its_choice() -> None:
    scheduler = make_scheduler("static_map:phone=0/4/plain+laptop=2/8/own+workstation=6/8/edge")
    scheduler.reset(tiny(), 0)
    # The scenario has 2 phones, 3 laptops and 3 workstations, numbered in this order.
    decisions = [scheduler.decide(make_view(device=device)) for device in range(8)]
    assert decisions[:2] == [Decision(0, 4, 0)] * 2
    assert decisions[2:5] == [Decision(2, 8, 1)] * 3
    assert decisions[5:] == [Decision(6, 8, 2)] * 3


@pytest.mark.parametrize("classes", ["phone=0/4/plain", "phone=1/4/own+laptop=1/4/own+tablet=1/4/own"])
def test_static_map_must_name_the_classes_of_the_scenario(classes: str) -> None:
    with pytest.raises(
        SchedulerError, match=r"scenario 'tiny' has devices \['laptop', 'phone', 'workstation'\]"
    ):
        make_scheduler(f"static_map:{classes}").reset(tiny(), 0)


def test_static_map_gives_every_class_of_objectives_its_choice() -> None:
    slo = {"chat": None, "tight": {"ttft_s": 1.0, "tpot_s": 0.02}, "loose": {"tpot_s": 0.08}}
    kinds = {"question": {**TINY["workload"]["kinds"]["question"], "slo": "loose"}}
    scenario = tiny(slo=slo, workload__kinds=kinds)
    scheduler = make_scheduler("static_map:tight=4/1/own+loose=0/1/plain")
    scheduler.reset(scenario, 0)
    for name, decision in (("tight", Decision(4, 1, 1)), ("loose", Decision(0, 1, 0))):
        bounds = scenario.slo[name].bounds()
        del bounds["slo_token_share"]
        assert scheduler.decide(make_view(request=make_request(**bounds))) == decision
    alike = tiny(slo={**slo, "loose": slo["tight"]}, workload__kinds=kinds)
    with pytest.raises(SchedulerError, match="cannot tell them apart"):
        scheduler.reset(alike, 0)


def test_static_map_gives_every_pair_of_both_its_choice() -> None:
    slo = {"chat": None, "tight": {"ttft_s": 1.0, "tpot_s": 0.02}, "loose": {"tpot_s": 0.08}}
    kinds = {"question": {**TINY["workload"]["kinds"]["question"], "slo": "loose"}}
    scenario = tiny(slo=slo, workload__kinds=kinds)
    gammas = {"phone/tight": 1, "phone/loose": 2, "laptop/tight": 3, "laptop/loose": 4}
    gammas |= {"workstation/tight": 6, "workstation/loose": 8}
    scheduler = make_scheduler("static_map:" + "+".join(f"{pair}={g}/1/own" for pair, g in gammas.items()))
    scheduler.reset(scenario, 0)
    for pair, gamma in gammas.items():
        device, _, name = pair.partition("/")
        bounds = scenario.slo[name].bounds()
        del bounds["slo_token_share"]
        view = make_view(
            device={"phone": 0, "laptop": 2, "workstation": 7}[device], request=make_request(**bounds)
        )
        assert scheduler.decide(view).gamma == gamma
    with pytest.raises(SchedulerError, match="each pair of both, such as 'laptop/loose'"):
        make_scheduler("static_map:phone/tight=1/1/own").reset(scenario, 0)


def test_static_map_sends_a_class_to_its_target() -> None:
    choices = "static_map:phone=0/1/plain+laptop=2/1/own@0+workstation=2/1/own@{}"
    with pytest.raises(SchedulerError, match=r"has no target 2; it has 0 to 1"):
        make_scheduler(choices.format(2)).reset(tiny(), 0)
    scheduler = make_scheduler(choices.format(1))
    scheduler.reset(tiny(), 0)
    near, far = make_target(0, resident=9), make_target(1, resident=1)
    candidates = tuple(make_candidate(Site.OWN_DEVICE, target) for target in (near, far))
    view = make_view(candidates, device=3, request=make_request(is_admission=True))
    assert scheduler.decide(view).placement == 0
    assert scheduler.decide(replace(view, device=7)).placement == 1
    assert scheduler.decide(replace(view, device=0)).placement == 1


@pytest.mark.parametrize(
    ("residents", "target"),
    [((0, 0), 0), ((3, 0), 0), ((4, 0), 1), ((4, 3), 1), ((4, 4), 0), ((9, 4), 1)],
)
def test_pack_fills_one_target_after_the_other(residents: tuple[int, int], target: int) -> None:
    scheduler = make_scheduler("pack:4:2:1:own")
    scheduler.reset(tiny(), 0)
    targets = [make_target(number, resident=count) for number, count in enumerate(residents)]
    candidates = tuple(make_candidate(Site.OWN_DEVICE, each) for each in targets)
    asked = make_view(candidates, request=make_request(is_admission=True))
    assert scheduler.decide(asked).placement == target


def test_pack_counts_who_waits_and_passes_by_a_target_that_is_down() -> None:
    scheduler = make_scheduler("pack:4:2:1:own")
    scheduler.reset(tiny(), 0)
    for first in (make_target(0, resident=2, waiting=2), make_target(0, up=False)):
        candidates = tuple(make_candidate(Site.OWN_DEVICE, each) for each in (first, make_target(1)))
        asked = make_view(candidates, request=make_request(is_admission=True))
        assert scheduler.decide(asked).placement == 1


def _admission(residents: Sequence[int], **request: float) -> DecisionView:
    targets = [make_target(number, resident=count) for number, count in enumerate(residents)]
    candidates = tuple(make_candidate(Site.OWN_DEVICE, each) for each in targets)
    return make_view(candidates, request=make_request(is_admission=True, **request))


def test_pack_in_bursts_lets_a_full_target_work_off_its_queue() -> None:
    scheduler = make_scheduler("pack:6-3:2:1:own")
    scheduler.reset(tiny(), 0)
    seen = [scheduler.decide(_admission((first, 0))).placement for first in (5, 6, 5, 4, 3, 5, 6)]
    assert seen == [0, 1, 1, 1, 0, 0, 1]
    scheduler.reset(tiny(), 0)
    assert scheduler.decide(_admission((4, 0))).placement == 0, "a new episode begins with nobody full"


def test_packing_down_to_one_less_is_packing() -> None:
    plain, bursts = make_scheduler("pack:6:2:1:own"), make_scheduler("pack:6-5:2:1:own")
    for scheduler in (plain, bursts):
        scheduler.reset(tiny(), 0)
    rng = np.random.default_rng(0)
    for residents in rng.integers(0, 9, (200, 3)).tolist():
        assert plain.decide(_admission(residents)) == bursts.decide(_admission(residents))


def test_a_map_packs_the_class_that_says_so() -> None:
    slo = {"chat": {"tpot_s": 0.02}, "batch": {"tpot_s": 0.08}}
    kinds = {"question": {**TINY["workload"]["kinds"]["question"], "slo": "chat"}}
    scenario = tiny(slo=slo, workload__kinds=kinds)
    scheduler = make_scheduler("static_map:chat=2/1/own@pack6-3+batch=2/1/own@0")
    scheduler.reset(scenario, 0)
    bounds = {name: its.bounds() for name, its in scenario.slo.items()}
    for each in bounds.values():
        del each["slo_token_share"]
    for first, chat in ((5, 0), (6, 1), (4, 1), (3, 0)):
        assert scheduler.decide(_admission((first, 0), **bounds["chat"])).placement == chat
        assert scheduler.decide(_admission((first, 0), **bounds["batch"])).placement == 0


def test_a_stream_keeps_its_edge_server_and_others_take_the_fastest() -> None:
    target = make_target()
    slow = make_candidate(Site.EDGE_SERVER, target, draft_step_s=0.005, is_current=True, streams=True)
    fast = make_candidate(Site.EDGE_SERVER, target, draft_step_s=0.004, edge_server=1, streams=True)
    rule = make_scheduler("static:4:1:edge")
    rule.reset(tiny(), 0)
    assert rule.decide(make_view((slow, fast))).placement == 1
    assert rule.decide(make_view((slow, fast), request=make_request(window_tokens=4))).placement == 0


def write_policy(folder: Path) -> None:
    """Write a bundle of random weights for the scenario `tiny`."""
    scenario = tiny()
    encoder, space = ObservationEncoder.of(scenario), ActionSpace.of(scenario)
    manifest = Manifest(
        created="2026-01-01T00:00:00+00:00",
        observation=feature_specs(encoder.features),
        action=Actions(gammas=space.gammas, batch_sizes=space.batch_sizes, n_placements=space.n_placements),
        network=Network(
            layers=(len(encoder.features), 8, sum(space.nvec)), activation="tanh", normalisations=1
        ),
        scenario=ScenarioRef(name="tiny", version=1, sha256="0" * 64),
        training=Training(algorithm="PPO", seed=0, steps=1),
    )
    rng = np.random.default_rng(0)
    arrays = {
        name: rng.normal(size=shape).astype(np.float32) for name, shape in manifest.array_shapes().items()
    }
    write_bundle(folder, manifest, arrays, b"not read by the numpy backend")


def test_a_policy_is_a_scheduler_that_obeys_the_mask(tmp_path: Path) -> None:
    write_policy(tmp_path / "bundle")
    scenario = tiny(episode__requests=6)
    scheduler = make_scheduler(f"policy:{tmp_path / 'bundle'}")
    with pytest.raises(RuntimeError, match="reset"):
        scheduler.decide(make_view())
    scheduler.reset(scenario, 1)
    encoder, space = ObservationEncoder.of(scenario), ActionSpace.of(scenario)
    reference = load(tmp_path / "bundle")
    simulation = ReferenceSimulation(scenario, 1)
    while (view := simulation.next_decision()) is not None:
        decision = scheduler.decide(view)
        assert decision == reference.decide(encoder.encode(view), space.mask(view))
        assert decision.placement == 0 or view.candidates[decision.placement].valid
        simulation.decide(decision)
    again = simulate(scenario, f"policy:{tmp_path / 'bundle'}", 1)
    assert again.scheduler == scheduler.name
    assert again.metrics["e2e_s_mean"] == simulation.metrics()["e2e_s_mean"]


def test_a_policy_refuses_a_scenario_with_other_lists(tmp_path: Path) -> None:
    write_policy(tmp_path / "bundle")
    with pytest.raises(PolicyError, match="does not fit scenario 'tiny'"):
        make_scheduler(f"policy:{tmp_path / 'bundle'}").reset(tiny(actions__gammas=(0, 3)), 0)


# --- whole episodes ------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", SPECS)
def test_rules_run_whole_episodes_and_repeat_them(spec: str) -> None:
    scenario = tiny(episode__requests=8)
    first, second = simulate(scenario, spec, 3), simulate(scenario, spec, 3)
    assert first.metrics["requests_completed"] >= 8
    assert repr(first.metrics) == repr(second.metrics)
    # Nothing but the random rule asks for what cannot be done.
    assert spec == "random" or "no_drafter" not in first.resolved


def test_goodput_beats_its_parts_where_they_differ() -> None:
    """On the small mixed scenario it must not lose to the rules that it chooses between."""
    scenario = tiny(episode__requests=60)

    def e2e_s(spec: str) -> float:
        return sum(simulate(scenario, spec, seed).metrics["e2e_s_mean"] for seed in range(4)) / 4

    mine = e2e_s("jsq_goodput")
    assert mine < 1.05 * min(e2e_s("cloud_ar"), e2e_s("colocated_sd:2"), e2e_s("edge_sd:2"))
    assert mine < 0.95 * e2e_s("cloud_ar")
