"""The measured window, its errors, occupied GPUs, SLO classes and load, against cases known by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import dsd_env
from dsd_env import Decision, ReferenceSimulation, Result
from dsd_env.scenario import Scenario, ScenarioError, load_scenario
from dsd_env.scenario.measuring import measuring, steady
from dsd_env.sim.capacity import MeanRequest
from dsd_env.sim.metrics import BATCHED_METRICS, batch_error, boundaries_s
from dsd_env.sim.world import WorldBuilder
from tests.engines import assert_engines_agree
from tests.lab import lab


def windowed(warmup_s: float = 20.0, window_s: float = 60.0, **changes: Any) -> Scenario:
    """Return a laboratory scenario that measures a window."""
    return lab(
        **{
            "clients": 8,
            "episode__requests": None,
            "episode__warmup_s": warmup_s,
            "episode__window_s": window_s,
            **changes,
        }
    )


def poisson(rate_per_s: float) -> dict[str, Any]:
    """Return open arrivals."""
    return {"kind": "poisson", "rate_per_s": rate_per_s}


# ---------------------------------------------------------------------- the window


@pytest.mark.parametrize("engine", ["reference", "compiled"])
def test_those_that_arrive_in_the_window_are_measured_and_it_is_the_same_for_everybody(engine: str) -> None:
    scenario = windowed(arrivals=poisson(2.0), verify={"t0_s": 0.002})
    counts = set()
    for scheduler in ("cloud_ar", "colocated_sd:4"):
        result = dsd_env.simulate(scenario, scheduler, 3, engine=engine)
        arrivals_s = result.requests["arrival_s"]
        inside = (arrivals_s >= 20.0) & (arrivals_s < 80.0)
        assert result.metrics["requests_measured"] == inside.sum() > 60
        assert result.metrics["window_s"] == 60.0
        assert result.metrics["e2e_s_mean"] == pytest.approx(result.requests["e2e_s"][inside].mean())
        # The episode ends with the last of them, or with the window if they are done by then.
        last_s = result.requests["completed_s"][inside].max()
        assert result.metrics["duration_s"] == max(last_s, 80.0)
        counts.add(result.metrics["requests_measured"])
    assert len(counts) == 1


def test_totals_are_of_the_window_alone() -> None:
    scenario = windowed(arrivals=poisson(2.0), verify={"t0_s": 0.002})
    result = dsd_env.simulate(scenario, "cloud_ar", 3, record_events=True, engine="reference")
    tokens = sum(
        event.value
        for event in result.events
        if event.kind == dsd_env.sim.EventKind.COMMIT and 20.0 <= event.time_s < 80.0
    )
    assert result.metrics["throughput_tokens_per_s"] == tokens / 60.0


def test_the_unfinished_count_as_missed() -> None:
    # Ten seconds of service per second: nearly nobody is done when the horizon ends the episode.
    scenario = windowed(
        arrivals=poisson(10.0),
        verify={"t0_s": 1.0},
        output={"distribution": "constant", "value": 1},
        targets__target__max_num_seqs=1,
        episode__horizon_s=100.0,
        slo__any__ttft_s=1e6,
    )
    for engine in ("reference", "compiled"):
        metrics = dsd_env.simulate(scenario, "cloud_ar:1", 1, engine=engine).metrics
        done, left = metrics["requests_measured"], metrics["requests_unfinished"]
        assert left > 400
        assert metrics["slo_attainment"] == pytest.approx(done / (done + left))
        assert metrics["slo_attainment"] < 0.2
        assert metrics["slo_attainment.any"] == metrics["slo_attainment"]


@pytest.mark.parametrize("scheduler", ["random", "colocated_sd:2"])
def test_engines_agree_on_windows(scheduler: str) -> None:
    load = {"period_s": 4.0, "points": [[0.0, 0.5], [0.5, 3.0]], "random_phase": True}
    scenario = windowed(
        warmup_s=1.0,
        window_s=8.0,
        arrivals=poisson(3.0),
        workload__load=load,
        slo={"any": {"itl_p99_s": 0.05}, "late": {"deadlines": {"first_s": 0.5, "per_token_s": 0.02}}},
    )
    assert_engines_agree(scenario, scheduler, 5, price_delays=True)


@pytest.mark.parametrize(
    ("episode", "load", "words"),
    [
        ({"warmup_s": 5.0}, {}, ["warmup_s = 5.0", "window_s"]),
        ({"window_s": 60.0, "requests": 40}, {}, ["requests = 40", "window_s = 60.0"]),
        ({"window_s": 60.0, "warmup_requests": 4}, {}, ["warmup_requests = 4"]),
        ({"window_s": 60.0, "horizon_s": 30.0}, {}, ["60.0", "horizon_s = 30.0"]),
        (
            {"window_s": 70.0},
            {"period_s": 40.0, "points": [[0.0, 1.0], [0.5, 2.0]]},
            ["window_s = 70.0", "period_s = 40.0", "40 or 80"],
        ),
        ({"window_s": 10.0}, {"period_s": 40.0, "points": [[0.0, 1.0], [0.5, 2.0]]}, ["40 or 80"]),
    ],
)
def test_impossible_windows_are_refused(
    episode: dict[str, float], load: dict[str, Any], words: list[str]
) -> None:
    data = lab().model_dump(mode="json")
    data["episode"] = episode
    data["workload"]["load"] = {**data["workload"]["load"], **load}
    with pytest.raises(ScenarioError) as error:
        load_scenario(data)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_an_objective_without_any_bound_is_refused() -> None:
    data = lab().model_dump(mode="json")
    data["slo"]["any"] = {}
    with pytest.raises(ScenarioError, match=r"slo\.any.*at least one bound"):
        load_scenario(data)


def test_steady_windows_are_whole_cycles_after_a_warm_up() -> None:
    metro = steady(load_scenario("metro"))
    assert (metro.episode.warmup_s, metro.episode.window_s, metro.load_cycles) == (40.0, 80.0, 2)
    assert len(boundaries_s(metro)) == 11
    assert measuring(metro, 30).episode.requests == 30


# ---------------------------------------------------------------------- its errors


def test_the_error_of_a_constant_load_is_that_of_batch_means() -> None:
    values = [1.0, 3.0, 2.0, 4.0, 1.0, 3.0]
    error, drift = batch_error(values, 0)
    assert error == pytest.approx(np.std(values, ddof=1) / math.sqrt(6))
    # Halves of mean 2 and 8/3; squares of 2 and 42/9 about them, with four degrees of freedom.
    spread = math.sqrt((2 + 42 / 9) / 4 * (1 / 3 + 1 / 3))
    assert drift == pytest.approx((8 / 3 - 2.0) / spread)


def test_what_the_load_does_is_no_error() -> None:
    cycle = np.array([1.0, 9.0, 4.0])
    error, drift = batch_error([*(cycle + 0.1), *(cycle - 0.1), *(cycle - 0.1), *(cycle + 0.1)], 4)
    # Residuals of 0.1 in twelve parts, of which three means are taken.
    assert error == pytest.approx(0.1 * math.sqrt(12 / 9) / math.sqrt(12))
    assert drift == pytest.approx(0.0, abs=1e-9)
    # One cycle has nothing to be compared with.
    alone, none = batch_error([1.0, 9.0, 4.0, 1.0], 1)
    assert alone > 1.0 and math.isnan(none)


def test_a_system_that_fills_up_is_said_to_drift() -> None:
    scenario = windowed(
        arrivals=poisson(12.0),
        verify={"t0_s": 0.1},
        output={"distribution": "constant", "value": 1},
        targets__target__max_num_seqs=1,
        warmup_s=0.0,
    )
    metrics = dsd_env.simulate(scenario, "cloud_ar:1", 1).metrics
    assert metrics["e2e_s_mean_drift"] > 4.0
    steady_metrics = dsd_env.simulate(
        load_scenario(scenario, workload__arrivals__rate_per_s=3.0), "cloud_ar:1", 1
    ).metrics
    assert abs(steady_metrics["e2e_s_mean_drift"]) < 4.0


def test_batch_means_cover_the_truth_as_often_as_they_claim() -> None:
    """M/D/1 at load 0.5 waits 50 ms in the mean; two standard errors must hold it nearly always."""
    scenario = windowed(
        arrivals=poisson(5.0),
        verify={"t0_s": 0.1},
        output={"distribution": "constant", "value": 1},
        targets__target__max_num_seqs=1,
        window_s=400.0,
    )
    hits = 0
    for seed in range(20):
        metrics = dsd_env.simulate(scenario, "cloud_ar:1", seed).metrics
        hits += abs(metrics["e2e_s_mean"] - 0.15) < 2.5 * metrics["e2e_s_mean_se"]
    assert hits >= 17
    assert all(f"{name}_se" in metrics for name in BATCHED_METRICS)


# ---------------------------------------------------------------------- occupied GPUs, users' energy


def test_a_target_is_occupied_while_it_holds_a_request() -> None:
    """A request drafts on its device for 1 s a round; its target is busy for 30 ms of it, and occupied."""
    scenario = lab(
        draft_s=1.0,
        alpha=0.0,
        output={"distribution": "constant", "value": 4},
        requests=1,
        client_usd_per_kwh=0.3,
        episode__total_requests=1,
    )
    result = dsd_env.simulate(scenario, "static:1:1:own", 1)
    # A prefill, then three rounds of 1 s and 30 ms.
    busy_s, occupied_s = 4 * 0.030, 0.030 + 3 * 1.030
    tokens = 4.0
    metrics = result.metrics
    assert metrics["gpu_s_per_1k_tokens"] * tokens / 1e3 == pytest.approx(busy_s)
    # The drafter prefills the prompt first, in one step of 1 s.
    assert metrics["gpu_occupied_s_per_1k_tokens"] * tokens / 1e3 == pytest.approx(occupied_s, abs=1.0)
    assert metrics["gpu_occupied_s_per_1k_tokens"] > 20 * metrics["gpu_s_per_1k_tokens"]
    # 3.6 dollars an hour are a thousandth a second.
    assert metrics["cloud_usd_per_1m_tokens"] == pytest.approx(metrics["gpu_occupied_s_per_1k_tokens"])
    # The device draws 9 W more while it drafts.
    joules = metrics["client_energy_j_per_1k_tokens"] * tokens / 1e3
    assert 9.0 * 3.0 <= joules <= 9.0 * 4.0
    assert metrics["client_usd_per_1m_tokens"] * tokens / 1e6 == pytest.approx(joules / 3.6e6 * 0.3)
    assert metrics["energy_j_per_1k_tokens"] == pytest.approx(
        metrics["client_energy_j_per_1k_tokens"] + metrics["cloud_energy_j_per_1k_tokens"]
    )


@pytest.mark.parametrize("engine", ["reference", "compiled"])
def test_a_target_is_paid_for_until_nobody_has_been_there_for_its_keep_alive(engine: str) -> None:
    """One client, who thinks for a while after each answer: of each pause at most the keep-alive is paid."""

    def episode(keep_alive_s: float) -> tuple[float, Result]:
        scenario = lab(
            clients=1,
            requests=40,
            workload__arrivals__think_s={"distribution": "lognormal", "median": 2.0, "sigma": 1.0},
            episode__total_requests=40,
            targets__target__keep_alive_s=keep_alive_s,
        )
        result = dsd_env.simulate(scenario, "cloud_ar", 1, engine=engine)
        tokens = result.requests["output_tokens"].sum()
        return result.metrics["gpu_occupied_s_per_1k_tokens"] * tokens / 1e3, result

    at_once_s, result = episode(0.0)
    pauses_s = result.requests["arrival_s"][1:] - result.requests["completed_s"][:-1]
    assert pauses_s.min() < 1.0 and pauses_s.max() > 3.0
    for keep_alive_s in (1.0, 3.0, 1e6):
        kept_s = episode(keep_alive_s)[0] - at_once_s
        assert kept_s == pytest.approx(np.minimum(pauses_s, keep_alive_s).sum(), rel=1e-6)


# ---------------------------------------------------------------------- classes of SLO


def test_metrics_by_class_tell_the_classes_apart() -> None:
    kinds = {
        name: {
            "weight": 1.0,
            "slo": slo,
            "prompt_tokens": {"distribution": "constant", "value": 10},
            "output_tokens": {"distribution": "constant", "value": 50},
        }
        for name, slo in (("question", "tight"), ("other", "loose"))
    }
    scenario = lab(
        clients=4,
        requests=60,
        slo={
            "any": None,
            "tight": {"tpot_s": 0.001},
            "loose": {"deadlines": {"first_s": 9.0, "per_token_s": 9.0}},
        },
        workload__kinds=kinds,
    )
    for engine in ("reference", "compiled"):
        metrics = dsd_env.simulate(scenario, "cloud_ar", 1, engine=engine).metrics
        assert (metrics["slo_attainment.tight"], metrics["slo_attainment.loose"]) == (0.0, 1.0)
        tight, loose = metrics["requests_measured.tight"], metrics["requests_measured.loose"]
        assert tight + loose == 60
        assert metrics["slo_attainment"] == pytest.approx(loose / 60)
        assert metrics["goodput_requests_per_s.tight"] == 0.0 < metrics["goodput_requests_per_s.loose"]


def test_the_longest_stall_is_the_longest_gap() -> None:
    result = dsd_env.simulate(lab(clients=2, requests=10), "static:8:1:own", 2)
    assert result.metrics["itl_s_max"] == result.requests["stall_s"].max()
    assert result.metrics["stall_s_mean"] == pytest.approx(result.requests["stall_s"].mean())


# ---------------------------------------------------------------------- what targets report


def test_a_target_reports_who_drafts_where() -> None:
    scenario = lab(
        clients=3,
        requests=3,
        draft_s=0.001,
        arrivals={"kind": "closed_loop", "think_s": {"distribution": "constant", "value": 1e-9}},
    )
    simulation = ReferenceSimulation(scenario, 1)
    choices = [Decision(0, 1, 0), Decision(5, 1, 0), Decision(3, 1, 1)]
    seen = None
    while (view := simulation.next_decision()) is not None and view.request.rounds < 3:
        simulation.decide(choices[view.request_id % 3])
        seen = view.target
    assert seen is not None
    assert (seen.plain, seen.colocated, seen.remote, seen.gamma_mean) == (1, 1, 1, 4.0)


# ---------------------------------------------------------------------- load


def test_the_usual_request_of_a_workload_is_the_mean_of_its_laws() -> None:
    kinds = {
        "question": {
            "weight": 3.0,
            "slo": "any",
            "prompt_tokens": {"distribution": "constant", "value": 100},
            "output_tokens": {"distribution": "constant", "value": 20},
        },
        "b": {
            "weight": 1.0,
            "slo": "any",
            "prompt_tokens": {"distribution": "geometric", "mean": 300},
            "output_tokens": {"distribution": "lognormal", "median": 40, "sigma": 0.5},
        },
    }
    mean = MeanRequest.of(lab(workload__kinds=kinds), 64)
    assert mean.prompt_tokens == pytest.approx(0.75 * 100 + 0.25 * 300, rel=0.01)
    answer = 40 * math.exp(0.125)
    assert mean.output_tokens == pytest.approx(0.75 * 20 + 0.25 * answer, rel=0.01)
    # Of the constant kind alone: tokens 1 to 20 after a prompt of 100 tokens, in two chunks.
    alone = MeanRequest.of(lab(workload__kinds={"question": kinds["question"]}), 64)
    assert (alone.context_tokens, alone.chunks) == (100 + 10.5, 2.0)


@pytest.mark.parametrize(
    ("verify", "prompt", "output", "seats"),
    [
        ({"t0_s": 0.02, "c_s_per_token": 1e-4}, 100, 101, 16),
        ({"t0_s": 0.01, "c_s_per_token": 2e-4, "k_bw_s_per_token": 1e-7}, 900, 60, 32),
        ({"t0_s": 0.01, "c_s_per_token": 5e-5, "k_lat_s_per_token": 1e-6}, 300, 200, 8),
    ],
)
def test_a_saturated_target_does_what_is_said(
    verify: dict[str, float], prompt: int, output: int, seats: int
) -> None:
    scenario = windowed(
        clients=seats,
        verify=verify,
        prompt={"distribution": "constant", "value": prompt},
        output={"distribution": "constant", "value": output},
        # Nobody thinks: every seat is taken again at once.
        arrivals={"kind": "closed_loop", "think_s": {"distribution": "constant", "value": 0.0}},
        targets__target__max_num_seqs=seats,
        targets__target__max_num_batched_tokens=512,
    )
    capacity = WorldBuilder(scenario).capacity_tokens_per_s
    metrics = dsd_env.simulate(scenario, "cloud_ar:1", 1).metrics
    assert metrics["throughput_tokens_per_s"] == pytest.approx(capacity, rel=0.05)
    assert metrics["load"] == pytest.approx(1.0, rel=0.05)


def test_simulate_measures_cycles_as_the_scenario_of_that_window_does() -> None:
    short = load_scenario("single_lan", workload__load__period_s=12.0)
    whole = dsd_env.simulate(short, "cloud_ar", 1, cycles=1, engine="reference")
    assert whole.metrics == dsd_env.simulate(steady(short, 1), "cloud_ar", 1, engine="reference").metrics
    assert whole.metrics["window_s"] == 12.0
    with pytest.raises(ValueError, match="cycles"):
        dsd_env.simulate(short, "cloud_ar", 1, cycles=0)
    with pytest.raises(ValueError, match="requests = 3, cycles = 1"):
        dsd_env.simulate(short, "cloud_ar", 1, cycles=1, requests=3)
