"""A request in an engine that is told lengths."""

from __future__ import annotations

import pytest

from dsd_env.scenario import load_scenario
from dsd_env.schedulers import SchedulerError
from dsd_env.serving import Controller, Deployment, RequestArrived, TokensCommitted
from dsd_env.serving.engines.session import EngineError, EngineSession


def test_an_engine_that_is_told_lengths_does_not_take_thresholds() -> None:
    scenario = load_scenario("single_lan", actions__stop_thresholds=[0.8])
    with pytest.raises(EngineError, match=r"stop_thresholds = \[0.8\].*told a length only"):
        EngineSession(Controller("colocated_sd:4", Deployment.of(scenario)), "a", prompt_tokens=10)
    session = EngineSession(Controller("colocated_sd:4", Deployment.of("single_lan")), "a", prompt_tokens=10)
    session.begin()
    assert session.ask() == 4


@pytest.mark.parametrize("rule", ["specdec_pp:0.83:own", "adaptive:confident_top_b+weight=0.5:own"])
def test_rules_of_thresholds_are_told_with_the_nearest_one_listed(rule: str) -> None:
    scenario = load_scenario("single_lan", actions__stop_thresholds=[0.5, 0.8])
    controller = Controller(rule, Deployment.of(scenario))
    controller.observe(RequestArrived("a", prompt_tokens=10))
    controller.decide("a")
    controller.observe(TokensCommitted("a"))
    answer = controller.decide("a")
    assert answer.source == "rule"
    assert answer.stop_threshold in (0.5, 0.8)
    if rule.startswith("specdec"):
        assert (answer.gamma, answer.stop_threshold) == (scenario.actions.gammas[-1], 0.8)


@pytest.mark.parametrize(
    ("rule", "thresholds", "told"),
    [("svip:0.3:own", [0.5], "a threshold like that of specdec_pp"), ("specdec_pp:0.8", [], "lengths only")],
)
def test_rules_that_cannot_be_told_are_refused(rule: str, thresholds: list[float], told: str) -> None:
    scenario = load_scenario("single_lan", actions__stop_thresholds=thresholds)
    with pytest.raises(SchedulerError, match=told):
        Controller(rule, Deployment.of(scenario))
    kept = Controller("colocated_sd:4", Deployment.of(scenario))
    with pytest.raises(SchedulerError, match=told):
        kept.swap(rule)
    assert kept.scheduler == "colocated_sd:4"
