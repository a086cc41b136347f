"""Policies asked by the engine's own observations decide as policies asked by views do, to the last bit."""

from __future__ import annotations

from pathlib import Path

import pytest

import dsd_env
from dsd_env.policy import PolicyError
from dsd_env.scenario import Scenario, load_scenario
from dsd_env.schedulers.policy import PolicyScheduler
from dsd_env.whole_runs.runs import fast_runs
from tests.whole_runs.asked import Asked, check_whole_runs

BUNDLES = Path(__file__).parents[2] / "configs" / "policies"


def short(name: str) -> Scenario:
    return load_scenario(name, episode__requests=12, episode__warmup_requests=3)


@pytest.mark.parametrize(
    ("bundle", "name"),
    [
        # The scenario's own lists; others, and shorter lists of candidates; fewer of all.
        ("regions_ppo", "regions"),
        ("generalist", "metro"),
        ("generalist", "flaky_stream"),
        ("generalist", "single_lan"),
        ("slow_cloud_ppo", "slow_cloud"),
        # Thresholds that end drafts, and several drafters.
        ("sure_drafters_ppo", "sure_drafters"),
        ("drafter_menu_map", "drafter_menu"),
    ],
)
def test_episodes_are_those_in_which_the_policy_is_asked(bundle: str, name: str) -> None:
    check_whole_runs(short(name), f"policy:{BUNDLES / bundle / 'policy'}", [1, 2])


def test_no_view_is_assembled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PolicyScheduler, "decide", lambda *_: pytest.fail("asked by a view"))
    spec = f"policy:{BUNDLES / 'regions_ppo' / 'policy'}"
    assert dsd_env.simulate(short("regions"), spec, 3).decisions > 100


def test_a_policy_of_another_scenario_is_refused() -> None:
    runs = fast_runs([Asked(short("drafter_menu"), f"policy:{BUNDLES / 'generalist' / 'policy'}", 1)])
    assert runs is not None
    with pytest.raises(PolicyError, match="does not fit scenario 'drafter_menu'"):
        list(runs)
