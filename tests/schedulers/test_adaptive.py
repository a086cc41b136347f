"""Rules for the length, with places and routes: each against its formula, bandits against the best length."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsd_env.control import ActionSpace, DecisionView, Site, TargetView
from dsd_env.scenario import Scenario
from dsd_env.schedulers import SchedulerError, make_scheduler
from dsd_env.schedulers.lengths import (
    REMEMBERED,
    BanditSpec,
    BatchTable,
    ContextualBandit,
    EmaTiers,
    GlobalTopB,
    Outcome,
    TimeOut,
    UcbSpecStop,
    length_rule,
)
from dsd_env.schedulers.routing import make_route
from dsd_env.simulate import simulate
from tests.lab import lab
from tests.views import make_candidate, make_request, make_target, make_view, views

SPECS = (
    "adaptive:4:edge",
    "adaptive:hf:own",
    "adaptive:top_b",
    "adaptive:time_out+limit_s=0.05+start=2:edge:random:4",
    "adaptive:ema_tiers:colocated:round_robin",
    "adaptive:ucb_specstop+beta=0.3+contexts=4:edge",
    "adaptive:bandit_spec:own:least_time",
    "adaptive:contextual+explore=0.5",
    "adaptive:table+1=5+8=3+32=0",
)


@given(view=views())
def test_decisions_are_on_the_lists_and_possible(view: DecisionView) -> None:
    space = ActionSpace(view.gammas, view.batch_sizes, len(view.candidates))
    for spec in SPECS:
        scheduler = make_scheduler(spec)
        decision = scheduler.decide(view)
        space.encode(decision)
        assert decision.gamma == 0 or view.candidates[decision.placement].valid
        assert make_scheduler(scheduler.name).name == scheduler.name


@pytest.mark.parametrize("spec", SPECS)
def test_an_episode_repeats_itself_after_a_reset(spec: str) -> None:
    """What a rule learned in one episode is gone in the next."""
    scheduler = make_scheduler(spec)
    scenario = small_lab()
    first = simulate(scenario, scheduler, 3).metrics
    simulate(scenario, scheduler, 4)
    assert simulate(scenario, scheduler, 3).metrics == first


def test_the_rule_of_hugging_face_is_the_scheduler_of_that_name() -> None:
    for site in ("colocated", "own"):
        one = simulate(small_lab(), f"adaptive:hf:{site}", 2).metrics
        assert one == simulate(small_lab(), f"hf_heuristic:{site}", 2).metrics


def small_lab(**changes: Any) -> Scenario:
    return lab(**{"requests": 20, "episode__total_requests": 20, "clients": 2, **changes})


# ---------------------------------------------------------------------- rules


def at_target(residents: int, **changes: Any) -> DecisionView:
    target = make_target(resident=residents, **changes)
    return make_view(candidates=tuple(make_candidate(site, target) for site in Site), target=target)


@pytest.mark.parametrize(("residents", "gamma"), [(0, 5), (1, 5), (7, 5), (8, 3), (31, 3), (32, 0), (500, 0)])
def test_a_table_goes_by_requests_at_the_target(residents: int, gamma: int) -> None:
    assert BatchTable(((1, 5), (8, 3), (32, 0))).length(at_target(residents)) == gamma


@given(residents=st.integers(1, 200), acceptance=st.floats(0.05, 0.95), token_s=st.floats(1e-7, 1e-3))
def test_top_b_verifies_what_survives_more_often_than_it_costs(
    residents: int, acceptance: float, token_s: float
) -> None:
    view = at_target(residents, token_s=token_s)
    view.request.acceptance_rate, view.request.tokens_per_round = acceptance, 2.0
    gamma = GlobalTopB().length(view)
    price = residents * 2.0 * token_s / view.target.iteration_s
    worth = [j for j in view.gammas if j > 0 and acceptance**j > price * (1 + 1e-6)]
    assert gamma in (len(worth), sum(acceptance**j >= price * (1 - 1e-6) for j in view.gammas if j > 0))


def test_a_time_out_moves_the_length_of_its_own_request() -> None:
    rule, view = TimeOut(limit_s=0.1, start=4), make_view()
    view.request_id = 1
    assert rule.length(view) == 4
    for seconds, gamma in ((0.05, 5), (0.05, 6), (0.2, 5), (0.2, 4)):
        rule.learn(view, Outcome(rule.length(view), seconds, 2))
        assert rule.length(view) == gamma
    for _ in range(9):
        rule.learn(view, Outcome(rule.length(view), 0.2, 1))
    assert rule.length(view) == 1
    view.request_id = 2
    assert rule.length(view) == 4


def test_a_running_mean_climbs_and_descends_the_tier_of_its_batch_size() -> None:
    rule, alone, crowd = EmaTiers(), at_target(1), at_target(16)
    rule.reset(0)
    for _ in range(40):
        rule.learn(alone, Outcome(rule.length(alone), 0.03, 8))
    assert rule.length(alone) == 7
    assert rule.length(crowd) == 3
    assert rule.length(at_target(64)) == 0
    for _ in range(40):
        rule.learn(alone, Outcome(rule.length(alone), 0.03, 1))
    assert rule.length(alone) == 1
    # With the hysteresis of the source the mean never asks for plain decoding where there is another length.
    assert rule.length(crowd) == 1
    rule.up = rule.down = 0.75
    for _ in range(5):
        rule.learn(crowd, Outcome(rule.length(crowd), 0.03, 1))
    assert rule.length(crowd) == 0
    # Plain decoding teaches nothing, so one draft is tried again.
    tried = set()
    for _ in range(30):
        rule.learn(crowd, Outcome(rule.length(crowd), 0.03, 3))
        tried.add(rule.length(crowd))
    assert tried >= {1, 3}


def pulls(
    rule: UcbSpecStop | BanditSpec | ContextualBandit, given: dict[int, tuple[float, float]], n: int
) -> dict[int, int]:
    """Let a rule choose, its rounds having known seconds and tokens; return how often it took each length."""
    view, taken = at_target(4), dict.fromkeys(given, 0)
    view.gammas = tuple(given)
    rule.reset(5)
    for counter in range(n):
        view.counter = counter
        gamma = rule.length(view)
        taken[gamma] += 1
        seconds, tokens = given[gamma]
        rule.learn(view, Outcome(gamma, seconds, tokens))  # type: ignore[arg-type]
    return taken


ROUNDS = {0: (0.03, 1.0), 1: (0.04, 1.6), 2: (0.05, 2.3), 4: (0.07, 2.8), 8: (0.11, 3.0)}
"""Seconds and tokens of a round by length: two drafts are best, at 46 tokens a second."""


@pytest.mark.parametrize("rule", [UcbSpecStop(), BanditSpec(), ContextualBandit()])
def test_a_bandit_takes_the_best_length_more_and_more(rule: Any) -> None:
    few, many = pulls(rule, ROUNDS, 300), pulls(rule, ROUNDS, 6000)
    assert max(many, key=many.__getitem__) == 2
    assert many[2] / 6000 > 0.75
    assert many[2] / 6000 > few[2] / 300
    explored = {gamma for gamma, count in few.items() if count > 0}
    assert explored == (set(ROUNDS) if isinstance(rule, ContextualBandit) else set(ROUNDS) - {0})


def test_the_bonus_is_that_of_the_length_itself() -> None:
    """Of two lengths with the same mean the one tried less is next, whatever the others' counts."""
    view = at_target(1)
    view.gammas = (0, 1, 2)
    for rule in (UcbSpecStop(), BanditSpec()):
        rule.reset(0)
        for _ in range(50):
            rule.learn(view, Outcome(1, 0.05, 2))
        for _ in range(5):
            rule.learn(view, Outcome(2, 0.05, 2))
        assert rule.length(view) == 2


def test_ucb_specstop_is_its_formula() -> None:
    view, rule = at_target(1), UcbSpecStop(beta=0.7)
    view.gammas = tuple(ROUNDS)
    rule.reset(0)
    counts = {1: 30, 2: 20, 4: 9, 8: 2}
    for gamma, count in counts.items():
        for _ in range(count):
            rule.learn(view, Outcome(gamma, ROUNDS[gamma][0], ROUNDS[gamma][1]))  # type: ignore[arg-type]
    t = sum(counts.values())
    mean_s = sum(ROUNDS[gamma][0] * count for gamma, count in counts.items()) / t

    def bound(gamma: int) -> float:
        seconds, tokens = ROUNDS[gamma][0] * counts[gamma], ROUNDS[gamma][1] * counts[gamma]
        return seconds / tokens - 0.7 * mean_s * math.sqrt(counts[gamma] * math.log(t + 1)) / tokens

    assert rule.length(view) == min(counts, key=bound)


def test_contexts_are_learned_apart() -> None:
    near, far = at_target(1), at_target(1)
    near.link.rtt_s, far.link.rtt_s = 0.001, 0.1
    near.gammas = far.gammas = (0, 1, 8)
    rule = UcbSpecStop(beta=0.01, contexts=8)
    rule.reset(0)
    for _ in range(20):
        for view, seconds in ((near, {1: 0.02, 8: 0.09}), (far, {1: 0.12, 8: 0.19})):
            gamma = rule.length(view)
            rule.learn(view, Outcome(gamma, seconds[gamma], 2 if gamma == 1 else 5))
    assert (rule.length(near), rule.length(far)) == (1, 8)


@pytest.mark.parametrize("rule", ["ucb_specstop", "bandit_spec", "contextual"])
def test_bandits_come_near_the_best_length_of_a_simulated_client(rule: str) -> None:
    scenario = lab(
        alpha=0.8,
        draft_s=0.004,
        one_way_s=0.01,
        requests=60,
        episode__total_requests=60,
        actions__gammas=[0, 1, 2, 4, 8, 16],
        output={"distribution": "constant", "value": 100},
    )
    # What rounds of known times and acceptance give, with 4 or 8 drafts: (1 - a^(k + 1)) / (1 - a) tokens.
    best_s = min(99 * (0.05 + 0.004 * k) * 0.2 / (1 - 0.8 ** (k + 1)) for k in (1, 2, 4, 8, 16))
    assert simulate(scenario, f"adaptive:{rule}:own", 1).metrics["e2e_s_mean"] < 1.12 * best_s


def test_old_requests_are_forgotten() -> None:
    rule, view = TimeOut(), make_view()
    for view.request_id in range(REMEMBERED + 10):
        rule.learn(view, Outcome(4, 0.01, 2))
    assert len(rule._lengths) == REMEMBERED
    scheduler: Any = make_scheduler("adaptive:hf")
    for view.request_id in range(REMEMBERED + 10):
        scheduler.decide(view)
    assert len(scheduler._last) == REMEMBERED


# ---------------------------------------------------------------------- routes


def routed(route: str, *targets: Any, **view: Any) -> int:
    candidates = tuple(make_candidate(Site.COLOCATED, target) for target in targets)
    request = make_request(is_admission=True)
    shown = make_view(candidates=candidates, target=targets[0], request=request, **view)
    return make_route(route)(shown, 3)


def test_least_time_counts_the_way_there_and_back() -> None:
    near, fast = make_target(0, iteration_s=0.05), make_target(1, iteration_s=0.02)
    for farther_s, target in ((0.0, 1), (0.014, 1), (0.016, 0)):
        candidates = tuple(
            make_candidate(Site.COLOCATED, each, handover_s=0.01 + way_s)
            for each, way_s in ((near, 0.0), (fast, farther_s))
        )
        view = make_view(candidates=candidates, request=make_request(is_admission=True))
        assert make_route("least_time")(view, 3) == target


def test_routes() -> None:
    busy, idle = make_target(0, resident=9, iteration_s=0.02), make_target(1, resident=2, iteration_s=0.05)
    down = make_target(2, up=False)
    assert routed("jsq", busy, idle, down) == 1
    assert routed("least_time", busy, idle, down) == 0
    assert routed("least_time", make_target(0, prefill_tokens=9000), idle) == 1
    assert [routed("round_robin", busy, idle, down, request_id=n) for n in range(4)] == [0, 1, 0, 1]
    drawn = [routed("random", busy, idle, down, request_id=n) for n in range(400)]
    assert set(drawn) == {0, 1}
    assert 150 < sum(drawn) < 250
    assert routed("random", down) == 2


def test_the_fastest_target_is_filled_first() -> None:
    slow, full = (
        make_target(0, prefill_token_s=3e-5),
        make_target(1, resident=5, waiting=3, prefill_token_s=1e-5),
    )
    full_but_one = make_target(1, resident=5, waiting=2, prefill_token_s=1e-5)
    assert routed("fastest_first+most=8", slow, full_but_one) == 1
    assert routed("fastest_first+most=8", slow, full) == 0
    # Where nobody has room left, the first token decides; a target believed down is never filled.
    busy = make_target(0, resident=9, prefill_token_s=3e-5, iteration_s=0.02)
    assert routed("fastest_first+most=8", busy, make_target(1, resident=9, iteration_s=0.05)) == 0
    assert routed("fastest_first+most=8", slow, make_target(1, up=False, prefill_token_s=1e-5)) == 0
    # Of two that are as fast the nearer one is first.
    candidates = tuple(
        make_candidate(Site.COLOCATED, make_target(number), handover_s=way_s)
        for number, way_s in ((0, 0.03), (1, 0.01))
    )
    view = make_view(candidates=candidates, request=make_request(is_admission=True))
    assert make_route("fastest_first+most=8")(view, 3) == 1


def test_short_and_long_prompts_are_kept_apart() -> None:
    idle, busy, far = make_target(0), make_target(1, resident=9), make_target(2, resident=20)

    def target(prompt_tokens: int, *targets: TargetView) -> int:
        candidates = tuple(make_candidate(Site.COLOCATED, each) for each in targets)
        request = make_request(is_admission=True, prompt_tokens=prompt_tokens)
        return make_route("by_length+tokens=500")(make_view(candidates=candidates, request=request), 3)

    assert [target(tokens, idle, busy) for tokens in (1, 500, 501)] == [0, 0, 1]
    # The middle one of three is for short prompts; among those the one with the fewest requests.
    assert [target(tokens, idle, busy, far) for tokens in (500, 501)] == [0, 2]
    assert target(500, make_target(0, resident=10), busy, far) == 1
    # Who is alone, or believed to be, takes all.
    assert target(501, idle) == 0
    assert target(501, idle, make_target(1, up=False)) == 0


@pytest.mark.parametrize(
    "route",
    [
        "fastest_first",
        "fastest_first+most=0",
        "fastest_first+most=x",
        "nearest",
        "jsq+most=3",
        "by_length",
        "by_length+most=3",
        "by_length+tokens=0",
    ],
)
def test_routes_that_are_none_are_refused(route: str) -> None:
    with pytest.raises(SchedulerError, match=r"adaptive: route '.*(most=N|tokens=N|is not one of jsq)"):
        make_scheduler(f"adaptive:4:own:{route}")
    assert (
        make_scheduler("adaptive:4:own:fastest_first+most=22").name == "adaptive:4:own:fastest_first+most=22"
    )


# ---------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("adaptive", ["needs a rule", "ucb_specstop"]),
        ("adaptive:ucb", ["unknown length rule", "ucb_specstop"]),
        ("adaptive:99", ["at most 64"]),
        ("adaptive:hf+k=3", ["not a parameter", "none"]),
        ("adaptive:ucb_specstop+beta=x", ["not a number"]),
        ("adaptive:ucb_specstop+beta=-1", ["0..100"]),
        ("adaptive:ucb_specstop+beta=1+beta=1", ["once"]),
        ("adaptive:ema_tiers+interval=2.5", ["not a number"]),
        ("adaptive:table+8=3", ["increase from 1"]),
        ("adaptive:table+1=5+1=3", ["increase from 1"]),
        ("adaptive:table+1=5+x=3", ["table+N=G"]),
        ("adaptive:hf:moon", ["moon", "colocated"]),
        ("adaptive:hf:edge:shortest", ["shortest", "jsq"]),
        ("adaptive:hf:edge:jsq:0", ["batch size B"]),
        ("adaptive:hf:edge:jsq:1:2", ["too many"]),
    ],
)
def test_errors_say_what_is_known(spec: str, words: list[str]) -> None:
    with pytest.raises(SchedulerError) as caught:
        make_scheduler(spec)
    for word in ("adaptive", *words):
        assert word in str(caught.value)


def test_a_table_is_read_from_its_name() -> None:
    assert length_rule("table+1=5+8=0", 64) == BatchTable(((1, 5), (8, 0)))
