"""A request in an engine that is told lengths."""

from __future__ import annotations

import pytest

from dsd_env.scenario import load_scenario
from dsd_env.serving import Controller, Deployment
from dsd_env.serving.engines.session import EngineError, EngineSession


def test_an_engine_that_is_told_lengths_does_not_take_thresholds() -> None:
    scenario = load_scenario("single_lan", actions__stop_thresholds=[0.8])
    with pytest.raises(EngineError, match=r"stop_thresholds = \[0.8\].*told a length only"):
        EngineSession(Controller("colocated_sd:4", Deployment.of(scenario)), "a", prompt_tokens=10)
    session = EngineSession(Controller("colocated_sd:4", Deployment.of("single_lan")), "a", prompt_tokens=10)
    session.begin()
    assert session.ask() == 4
