"""Episodes that the compiled engine plays by itself are those in which the scheduler is asked."""

from __future__ import annotations

import numpy as np
import pytest

import dsd_env
from dsd_env.control import Decision, DecisionView
from dsd_env.scenario import Scenario
from dsd_env.schedulers import Scheduler
from dsd_env.whole_runs import runs
from tests.scenarios import tiny

RULES = [
    "cloud_ar",
    "colocated_sd:4",
    "static:8:1:edge-own-colocated",
    "pack:2:4:1:colocated",
    "jsq_goodput",
    "hf_heuristic:own",
    "adaptive:ucb_specstop:edge:jsq",
]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", ["synchronous", "streaming"])
def test_a_rule_by_name_gives_what_the_same_rule_gives_when_it_is_asked(rule: str, kind: str) -> None:
    scenario = tiny(protocol__kind=kind)
    alone = dsd_env.simulate(scenario, rule, 3)
    asked = dsd_env.simulate(scenario, dsd_env.make_scheduler(rule), 3)
    logged = dsd_env.simulate(scenario, rule, 3, record_events=True)
    for other in (asked, logged):
        np.testing.assert_equal(alone.metrics, other.metrics)
        np.testing.assert_equal(alone.requests, other.requests)
        assert (alone.decisions, alone.resolved) == (other.decisions, other.resolved)
        assert (alone.scheduler, alone.engine) == (other.scheduler, other.engine) == (rule, "compiled")
    assert logged.events and not alone.events


def test_only_rules_by_name_are_played_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    played: list[str] = []
    player_of = runs.player_of

    def noted(scheduler: Scheduler, scenario: Scenario) -> runs.Play | None:
        play = player_of(scheduler, scenario)
        played.append(f"{scheduler.name} {play is not None}")
        return play

    monkeypatch.setattr(runs, "player_of", noted)
    dsd_env.simulate(tiny(), "cloud_ar", 1)
    dsd_env.simulate(tiny(), "random", 1)
    dsd_env.simulate(tiny(), dsd_env.make_scheduler("cloud_ar"), 1)
    dsd_env.simulate(tiny(), "cloud_ar", 1, until_s=0.5)
    dsd_env.simulate(tiny(), "cloud_ar", 1, engine="reference")
    assert played == ["cloud_ar True", "random False"]


class Says(dsd_env.Scheduler):
    """Decides the same always."""

    name = "mine"

    def __init__(self, decision: object) -> None:
        self.decision = decision

    def reset(self, scenario: Scenario, seed: int) -> None:
        pass

    def decide(self, view: DecisionView) -> Decision:
        return self.decision  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("decision", "words"),
    [
        (Decision(3, 1, 0), r"mine: gamma = 3 is not on the list \[0, 1, 2, 4\]"),
        (Decision(4, 3, 0), r"batch_size = 3 is not on the list .*actions\.batch_sizes"),
        (4, r"mine: decide\(\) returned 4, not a dsd_env\.Decision"),
        (None, "returned None"),
    ],
)
def test_what_is_no_decision_of_the_scenario_is_refused(decision: object, words: str) -> None:
    scenario = tiny(actions__gammas=[0, 1, 2, 4], actions__batch_sizes=[1, 2, 4])
    with pytest.raises(ValueError, match=words):
        dsd_env.simulate(scenario, Says(decision), 1)
