"""What a mistyped name is told: metrics, and keys of scenarios where they stand."""

from __future__ import annotations

import pytest

from dsd_env import load_scenario
from dsd_env.scenario import ScenarioError
from dsd_env.sim.metrics import METRICS
from dsd_env.similar import hint, metrics_like


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("e2e_mean", ["e2e_s_mean"]),
        ("ttft_p95", ["ttft_s_p95", "ttft_s_p99"]),
        ("e2e", ["e2e_s_mean", "e2e_s_p50"]),  # how they begin
        ("e2e_mean_se", ["e2e_s_mean_se"]),  # an error is meant by a name of one alone
        ("speed", []),
    ],
)
def test_metrics_that_may_have_been_meant(name: str, meant: list[str]) -> None:
    known = [*METRICS, *(f"{each}_se" for each in METRICS)]
    assert metrics_like([name], known) == meant


def test_a_hint_is_a_clause_or_the_end_of_the_sentence() -> None:
    assert hint(["a", "b"]) == "; did you mean 'a' or 'b'?" and hint([]) == "."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"devices__phone__cout": 3}, "unknown key 'devices.phone.cout'; did you mean 'count'?"),
        ({"devices__phone__drafter__modl": "x"}, "'devices.phone.drafter.modl'; did you mean 'model'?"),
        # Keys of the chosen alternative alone: a rate belongs to other arrivals than a closed loop.
        ({"workload__arrivals__think": 3}, "'workload.arrivals.closed_loop.think'; did you mean 'think_s'?"),
        ({"workload__arrivals__rate_per": 3}, "'workload.arrivals.closed_loop.rate_per'\n"),
        ({"nothing": 1}, "unknown key 'nothing'\n"),
    ],
)
def test_keys_of_scenarios_are_suggested_where_they_stand(change, message: str) -> None:
    with pytest.raises(ScenarioError) as raised:
        load_scenario("metro", **change)
    assert message in f"{raised.value}\n"
