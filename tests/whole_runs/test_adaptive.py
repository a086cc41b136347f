"""Rules for the length in compiled code decide as the rules that define them do, to the last bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import dsd_env
from dsd_env.scenario import Scenario, load_scenario
from dsd_env.schedulers import Scheduler, make_scheduler
from dsd_env.schedulers.adaptive import AdaptiveScheduler
from dsd_env.schedulers.lengths import LENGTHS, FixedLength
from dsd_env.schedulers.stops import STOPS
from dsd_env.whole_runs.adaptive import can_follow
from dsd_env.whole_runs.runs import fast_runs
from tests.scenarios import tiny
from tests.whole_runs.asked import Asked, check_whole_runs

RULES = [
    "hf_heuristic:own",
    "adaptive:4:own:round_robin",
    "adaptive:hf:edge",
    "adaptive:table+1=8+4=4+8=2:own",
    "adaptive:top_b+weight=0.7:colocated",
    "adaptive:time_out+limit_s=0.12+start=2:edge",
    "adaptive:ema_tiers:own",
    "adaptive:ema_tiers+weight=0.4+interval=3+up=-1+down=0.3:colocated",
    "adaptive:ucb_specstop:own:least_time",
    "adaptive:ucb_specstop+beta=1.5+contexts=8:edge",
    "adaptive:bandit_spec+scale=0.7:own:jsq:4",
    "adaptive:contextual+explore=0.4:edge:random",
    "adaptive:specdec_pp+threshold=0.5+most=12:own",
    "adaptive:svip+threshold=0.4:edge",
    "adaptive:adaedl+threshold=0.6+step=0.3:own",
    "adaptive:confident_top_b+weight=0.8:colocated",
    "adaptive:pmin+threshold=0.6:own:least_time",
]
SCENARIOS = [
    "single_lan",
    "flaky_stream",
    "metro",
    "dsd_paper",
    "regions",
    "drafter_menu",
    "stream_node_branches",
    "sure_drafters",
]


def test_every_rule_is_here() -> None:
    named = {rule.split(":")[1].split("+")[0] for rule in RULES[1:]}
    assert named == {*LENGTHS, *STOPS, "4", "table"}


# Every rule in two scenarios or three, and in the others where minutes do not count.
@pytest.mark.parametrize(
    ("name", "rule"),
    [
        pytest.param(name, rule, marks=() if (at + number) % 3 == 0 else pytest.mark.slow)
        for at, name in enumerate(SCENARIOS)
        for number, rule in enumerate(RULES)
    ],
)
def test_episodes_are_those_in_which_the_rule_is_asked(name: str, rule: str) -> None:
    """Rules learn from their rounds, so that one different decision would change all after it."""
    scenario = load_scenario(name, episode__requests=15, episode__warmup_requests=3)
    check_whole_runs(scenario, rule, [1])


@pytest.mark.parametrize("rule", RULES)
def test_a_request_that_is_admitted_again_goes_on_where_it_was(rule: str) -> None:
    """Targets crash, so that requests are placed anew after rounds that the rule has yet to hear of."""
    often = {"mean_interval_s": 1.0, "duration_s": {"distribution": "exponential", "mean": 0.3}}
    faults = {
        "a": {"kind": "target_crash", "of": "big", **often},
        "b": {"kind": "device_crash", "of": "laptop", **often},
    }
    scenario = tiny(faults=faults, episode__requests=60)
    played = dsd_env.simulate(scenario, rule, 4)
    views: list[dsd_env.DecisionView] = []
    asked = dsd_env.simulate(scenario, Watched(make_scheduler(rule), views), 4)
    admitted = [view.request_id for view in views if view.request.is_admission]
    assert len(set(admitted)) < len(admitted)
    np.testing.assert_equal(dict(played.metrics), dict(asked.metrics))
    np.testing.assert_equal(played.requests, asked.requests)


class Watched(dsd_env.Scheduler):
    """Another scheduler, whose views are noted."""

    def __init__(self, scheduler: Scheduler, views: list[dsd_env.DecisionView]) -> None:
        self.scheduler, self.views, self.name = scheduler, views, scheduler.name

    def reset(self, scenario: Scenario, seed: int) -> None:
        self.scheduler.reset(scenario, seed)

    def decide(self, view: dsd_env.DecisionView) -> dsd_env.Decision:
        self.views.append(view)
        return self.scheduler.decide(view)


class Shorter(FixedLength):
    """A rule of one's own."""

    def length(self, view: dsd_env.DecisionView) -> int:
        return view.gammas[1]


class Elsewhere(AdaptiveScheduler):
    """A scheduler of one's own."""


@pytest.mark.parametrize(
    "scheduler",
    [
        AdaptiveScheduler("mine", Shorter(4), ()),
        Elsewhere("mine", FixedLength(4), ()),
        make_scheduler("jsq_goodput"),
        make_scheduler("random"),
    ],
)
def test_what_decides_otherwise_is_asked(scheduler: Scheduler) -> None:
    assert not can_follow(scheduler)


def test_the_compiled_loop_asks_at_admissions_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    with_length = AdaptiveScheduler.with_length

    def noted(self: AdaptiveScheduler, view: dsd_env.DecisionView, *said: Any) -> dsd_env.Decision:
        asked.append(view.request.is_admission)
        return with_length(self, view, *said)

    monkeypatch.setattr(AdaptiveScheduler, "with_length", noted)
    runs = fast_runs([Asked(tiny(), "adaptive:top_b:own", 1)])
    assert runs is not None
    list(runs)
    assert asked and all(asked)
