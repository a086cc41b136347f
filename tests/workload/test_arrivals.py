"""Renewal arrivals, clients who differ, correlated lengths, replayed requests."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsd_env import load_scenario
from dsd_env.calibration.workload.statistics import (
    arrival_statistics,
    client_arrivals,
    copula_correlation,
    gap_cv,
    index_of_dispersion,
    length_statistics,
    lengths,
    rank_correlation,
    renewal_arrivals,
    share_of_top_clients,
)
from dsd_env.scenario import Scenario, ScenarioError
from dsd_env.scenario.schema import Quantiles, Renewal
from dsd_env.scenario.variates import quantile_table
from dsd_env.sim import ReferenceSimulation
from dsd_env.sim.events import EventKind
from dsd_env.workload import RequestTraceError, WorkloadGenerator, load_trace, replay_schedule
from dsd_env.workload.renewal import client_shares, process_cv, weibull_gap, weibull_shape
from tests.engines import assert_engines_agree
from tests.lab import lab

MODULATION = {"sigma": 0.4, "correlation_s": 40.0, "period_s": 2.0}
LAW: dict[str, Any] = {"distribution": "quantiles", "levels": [0.1, 0.5, 0.9], "values": [10, 40, 400]}


def renewal(**options: Any) -> Renewal:
    return Renewal(kind="renewal", **{"rate_per_s": 10.0, **options})


def arrivals_of(scenario: Scenario, seed: int, count: int) -> np.ndarray:
    """Return the first arrivals of an open process, as simulations ask for them."""
    generator = WorkloadGenerator(scenario, seed)
    times = [0.0]
    for ordinal in range(count):
        times.append(generator.open_arrival_s(ordinal, times[-1]))
    return np.array(times[1:])


# ---------------------------------------------------------------- renewal processes


@given(cv=st.floats(0.1, 20.0))
def test_the_shape_of_a_weibull_law_gives_its_cv(cv: float) -> None:
    shape = weibull_shape(cv)
    first, second = math.lgamma(1 + 1 / shape), math.lgamma(1 + 2 / shape)
    assert math.sqrt(math.expm1(second - 2 * first)) == pytest.approx(cv, rel=1e-6)
    power, scale = weibull_gap(cv)
    assert power == 1 / shape and scale * math.exp(first) == pytest.approx(1.0)


@pytest.mark.parametrize("cv", [0.3, 1.0, 2.5])
def test_gaps_have_their_rate_and_cv(cv: float) -> None:
    times = arrivals_of(lab(arrivals=renewal(cv=cv).model_dump()), 1, 40_000)
    assert 40_000 / times[-1] == pytest.approx(10.0, rel=0.04)
    assert gap_cv(times) == pytest.approx(cv, rel=0.06)


def test_with_a_cv_of_one_it_is_a_poisson_process() -> None:
    power, scale = weibull_gap(1.0)
    assert power == pytest.approx(1.0, abs=1e-9) and scale == pytest.approx(1.0, abs=1e-9)
    times = renewal_arrivals(renewal(), 10.0, 1, 0, 20_000.0)
    for window_s in (1.0, 10.0):
        assert index_of_dispersion(times, window_s, 20_000.0) == pytest.approx(1.0, abs=0.1)


def test_a_bursty_process_is_under_way_when_the_episode_starts() -> None:
    """As many arrivals in the first seconds as later, on average over episodes."""
    config = renewal(cv=3.0, rate_per_s=1.0)
    early = [len(renewal_arrivals(config, 1.0, seed, 0, 5.0)) for seed in range(4000)]
    # A process that begins with a gap has 7.7 of them there.
    assert np.mean(early) == pytest.approx(5.0, rel=0.12)


def test_a_random_rate_disperses_counts_and_keeps_the_mean() -> None:
    calm, moved = renewal(rate_per_s=20.0), renewal(rate_per_s=20.0, modulation=MODULATION)
    rates, dispersion = [], []
    for seed in range(30):
        times = renewal_arrivals(moved, 20.0, seed, 0, 2000.0)
        rates.append(len(times) / 2000.0)
        dispersion.append(index_of_dispersion(times, 10.0, 2000.0))
    assert np.mean(rates) == pytest.approx(20.0, rel=0.05)
    # 1 + rate * window * variance of the factor, averaged over a window by its correlation.
    variance, ratio = math.expm1(0.16), 40.0 / 10.0
    averaged = 2 * ratio - 2 * ratio**2 * (1 - math.exp(-1 / ratio))
    assert np.mean(dispersion) == pytest.approx(1 + 200 * variance * averaged, rel=0.15)
    still = renewal_arrivals(calm, 20.0, 1, 0, 2000.0)
    assert index_of_dispersion(still, 10.0, 2000.0) == pytest.approx(1.0, abs=0.25)


@pytest.mark.parametrize("modulation", [None, MODULATION])
def test_generated_arrivals_are_those_of_simulations(modulation: dict[str, Any] | None) -> None:
    config = renewal(cv=1.7, modulation=modulation)
    expected = arrivals_of(lab(arrivals=config.model_dump()), 5, 3000)
    found = renewal_arrivals(config, 10.0, 5, 0, expected[-1] * 1.001)
    np.testing.assert_allclose(found[:3000], expected, rtol=1e-9)


def test_generated_clients_are_those_of_simulations() -> None:
    config = renewal(
        cv=0.8,
        per_client=True,
        client_rate_cv=2.0,
        bursty={"fraction": 0.5, "cv": 4.0},
        modulation=MODULATION,
    )
    generator = WorkloadGenerator(lab(clients=6, arrivals=config.model_dump()), 3)
    times_s, owners = client_arrivals(config, 3, 6, 200.0)
    assert set(owners) == set(range(6))
    for device in range(6):
        expected, now_s = [], 0.0
        while (now_s := generator.client_arrival_s(device, now_s)) < 200.0:
            expected.append(now_s)
        np.testing.assert_allclose(times_s[owners == device], expected, rtol=1e-9)


def test_rates_follow_the_load_profile() -> None:
    scenario = lab(
        arrivals=renewal(cv=0.5, rate_per_s=20.0).model_dump(),
        workload__load={"period_s": 10.0, "points": [[0.0, 0.5], [0.5, 2.0]], "random_phase": False},
    )
    phases = np.mod(arrivals_of(scenario, 1, 20_000), 10.0)
    near_peak = ((phases > 4.5) & (phases < 5.5)).mean()
    in_valley = ((phases > 9.5) | (phases < 0.5)).mean()
    assert near_peak / in_valley == pytest.approx((2.0 - 0.075) / (0.5 + 0.075), rel=0.15)


def test_shares_of_clients_have_their_spread() -> None:
    shares = np.array([client_shares(renewal(client_rate_cv=1.0), seed, 500) for seed in range(20)])
    np.testing.assert_allclose(shares.sum(axis=1), 1.0)
    assert (500 * shares).std() == pytest.approx(1.0, rel=0.15)
    np.testing.assert_allclose(client_shares(renewal(), 1, 4), 0.25)


@pytest.mark.parametrize("per_client", [False, True])
def test_devices_ask_by_their_shares(per_client: bool) -> None:
    config = renewal(per_client=per_client, client_rate_cv=1.5, rate_per_s=50.0)
    scenario = lab(clients=5, arrivals=config.model_dump(), output={"distribution": "constant", "value": 1})
    expected = client_shares(config, 7, 5)
    if per_client:
        _, owners = client_arrivals(config, 7, 5, 400.0)
        asked = owners.tolist()
    else:
        generator = WorkloadGenerator(scenario, 7)
        asked = [generator.open_device(ordinal) for ordinal in range(20_000)]
    found = np.bincount(asked, minlength=5) / len(asked)
    np.testing.assert_allclose(found, expected, atol=0.02)


def test_some_clients_are_bursty() -> None:
    config = renewal(per_client=True, bursty={"fraction": 0.3, "cv": 6.0})
    cvs = [process_cv(config, seed, device) for seed in range(40) for device in range(1, 51)]
    assert set(cvs) == {1.0, 6.0}
    assert cvs.count(6.0) / len(cvs) == pytest.approx(0.3, abs=0.04)
    assert process_cv(config, 1, 0) == 1.0


def test_clients_who_hardly_ask_do_not_hang_the_episode() -> None:
    config = renewal(rate_per_s=1e-6, per_client=True, modulation={**MODULATION, "period_s": 0.1})
    scenario = lab(clients=3, arrivals=config.model_dump(), episode__horizon_s=100.0)
    simulation = ReferenceSimulation(scenario, 1)
    assert simulation.next_decision() is None
    assert simulation.truncated and simulation.now_s == 100.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cv": 0.0}, "cv"),
        ({"cv": 50.0}, "cv"),
        ({"cv": float("nan")}, "cv"),
        ({"rate_per_s": -1.0}, "rate_per_s"),
        ({"client_rate_cv": float("inf")}, "client_rate_cv"),
        ({"bursty": {"fraction": 0.2, "cv": 3.0}}, "bursty needs per_client"),
        ({"modulation": {**MODULATION, "period_s": 0.001}}, "period_s"),
        ({"modulation": {**MODULATION, "sigma": 9}}, "sigma"),
        ({"burstiness": 2}, "unknown key"),
    ],
)
def test_impossible_renewals_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ScenarioError, match=message):
        lab(arrivals={"kind": "renewal", "rate_per_s": 1.0, **options})


# ---------------------------------------------------------------- lengths


def test_a_table_of_quantiles_has_them() -> None:
    scenario = lab(prompt=LAW, output=LAW)
    generator = WorkloadGenerator(scenario, 1)
    tokens = np.array([generator.request(0, ordinal).prompt_tokens for ordinal in range(20_000)])
    for level, value in zip(LAW["levels"], LAW["values"], strict=True):
        assert np.quantile(tokens, level) == pytest.approx(value, rel=0.06)
    assert tokens.min() == 10 and tokens.max() == 400


def test_between_quantiles_the_logarithm_is_linear_in_the_normal_score() -> None:
    table = quantile_table(Quantiles(**LAW))
    middle = 0.5 * (table.scores[0] + table.scores[1])
    assert table.at(middle) == pytest.approx(math.sqrt(10 * 40))
    assert table.at(-9.0) == pytest.approx(10) and table.at(9.0) == pytest.approx(400)
    assert table.at(0.0) == pytest.approx(40)


@pytest.mark.parametrize("correlation", [-0.6, 0.0, 0.5, 1.0])
def test_lengths_are_correlated_as_asked(correlation: float) -> None:
    scenario = lab(
        prompt={"distribution": "lognormal", "median": 300, "sigma": 1.0},
        output={"distribution": "lognormal", "median": 200, "sigma": 0.7},
        workload__kinds__question__length_correlation=correlation,
    )
    generator = WorkloadGenerator(scenario, 2)
    specs = [generator.request(0, ordinal) for ordinal in range(8000)]
    prompts = np.array([spec.prompt_tokens for spec in specs])
    outputs = np.array([spec.output_tokens for spec in specs])
    rank = rank_correlation(prompts, outputs)
    # Ranks of a Gaussian pair: rho_s = 6/pi asin(rho/2).
    assert rank == pytest.approx(6 / math.pi * math.asin(correlation / 2), abs=0.03)
    assert copula_correlation(rank) == pytest.approx(correlation, abs=0.03)
    assert np.median(outputs) == pytest.approx(200, rel=0.05)


def test_without_correlation_lengths_are_what_they_were() -> None:
    law = {"distribution": "lognormal", "median": 300, "sigma": 1.0}
    plain = WorkloadGenerator(lab(prompt=law, output=law), 4)
    tied = WorkloadGenerator(
        lab(prompt=law, output=law, workload__kinds__question__length_correlation=0.5), 4
    )
    for ordinal in range(20):
        one, other = plain.request(0, ordinal), tied.request(0, ordinal)
        assert one.prompt_tokens == other.prompt_tokens
    assert any(
        plain.request(0, ordinal).output_tokens != tied.request(0, ordinal).output_tokens
        for ordinal in range(20)
    )


def test_statistics_of_a_mix_are_those_of_simulated_requests() -> None:
    scenario = lab(prompt=LAW, output=LAW, workload__kinds__question__length_correlation=0.7)
    prompts, outputs, _ = lengths(scenario.workload.kinds, 1, 20_000)
    generator = WorkloadGenerator(scenario, 1)
    specs = [generator.request(0, ordinal) for ordinal in range(20_000)]
    expected = length_statistics("p", np.array([spec.prompt_tokens for spec in specs]))
    for name, value in length_statistics("p", prompts).items():
        assert value == pytest.approx(expected[name], rel=0.05)
    expected_rank = rank_correlation(
        np.array([spec.prompt_tokens for spec in specs]), np.array([spec.output_tokens for spec in specs])
    )
    assert rank_correlation(prompts, outputs) == pytest.approx(expected_rank, abs=0.03)


@pytest.mark.parametrize(
    ("law", "message"),
    [
        ({**LAW, "levels": [0.1, 0.5]}, "2 levels and 3 values"),
        ({**LAW, "levels": [0.1, 0.9, 0.5]}, "must increase strictly"),
        ({**LAW, "levels": [0.1, 0.5, 1.0]}, "levels"),
        ({**LAW, "values": [10, 400, 40]}, "must not fall"),
        ({**LAW, "values": [0, 40, 400]}, "values"),
        ({**LAW, "values": [10, 40, float("inf")]}, "values"),
    ],
)
def test_impossible_quantiles_are_refused(law: dict[str, Any], message: str) -> None:
    with pytest.raises(ScenarioError, match=message):
        lab(prompt=law)


def test_correlation_needs_laws_of_a_normal_variate() -> None:
    with pytest.raises(
        ScenarioError, match="needs output_tokens to be lognormal or quantiles, not geometric"
    ):
        lab(
            prompt=LAW,
            output={"distribution": "geometric", "mean": 9},
            workload__kinds__question__length_correlation=0.3,
        )


def test_top_clients_and_arrival_statistics() -> None:
    assert share_of_top_clients(np.array([1, 5, 1, 1, 1, 1])) == pytest.approx(0.5)
    assert share_of_top_clients(np.arange(1, 21)) == pytest.approx((20 + 19) / 210)
    found = arrival_statistics(np.arange(600) + 0.5, 600.0)
    assert found["rate (1/s)"] == 1.0 and found["CV of gaps"] == 0.0
    assert all(found[f"dispersion {window} s"] == 0.0 for window in (1, 10, 60))
    assert rank_correlation(np.array([1, 2, 2, 3]), np.array([4, 5, 5, 9])) == pytest.approx(1.0)


# ---------------------------------------------------------------- replay

TRACE = """arrival_s,prompt_tokens,output_tokens,client,kind
0.0,100,3,anna,question
0.5,200,4,ben,question
0.5,5000,5,anna,question
1.5,300,3000,carl,question
3.0,50,6,ben,question
"""


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "requests.csv"
    path.write_text(TRACE, encoding="utf-8")
    return path


def replaying(path: Path, clients: int = 2, **options: Any) -> Scenario:
    arrivals = {"kind": "replay", "trace": str(path), **options}
    return lab(clients=clients, arrivals=arrivals, requests=1000)


def play(scenario: Scenario, seed: int = 1, horizon: int = 10**6) -> ReferenceSimulation:
    """Decode plainly to the end."""
    simulation = ReferenceSimulation(scenario, seed, record_events=True)
    from dsd_env import make_scheduler

    policy = make_scheduler("cloud_ar")
    policy.reset(scenario, seed)
    for _ in range(horizon):
        view = simulation.next_decision()
        if view is None:
            break
        simulation.decide(policy.decide(view))
    return simulation


def test_requests_after_the_end_of_the_episode_are_announced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "slow.csv"
    rows = "".join(f"{30.0 * i},50,20\n" for i in range(4))
    path.write_text("arrival_s,prompt_tokens,output_tokens\n" + rows)
    scenario = replaying(path)
    short = load_scenario({**scenario.model_dump(mode="json"), "episode": {"requests": 4, "horizon_s": 45.0}})
    replay_schedule(short)
    assert "of 4 requests, 2 come after the end of the episode (episode.horizon_s = 45)" in caplog.text


def test_requests_that_an_episode_does_not_play_are_announced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "four.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens\n" + "".join(f"{i},50,20\n" for i in range(4)))
    scenario = replaying(path)
    for requests, told in ((2, True), (3, False)):
        caplog.clear()
        episode = {"requests": requests, "warmup_requests": 1}
        replay_schedule(load_scenario({**scenario.model_dump(mode="json"), "episode": episode}))
        assert ("of 4 requests, an episode measures 2 after 1" in caplog.text) == told


def test_a_replay_has_the_times_lengths_and_clients_of_the_trace(
    trace: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scenario = replaying(trace)
    simulation = play(scenario)
    assert "of 5 requests, 1 prompts are cut to 4096 tokens and 1 answers to 2048" in caplog.text
    assert simulation.terminated and not simulation.truncated
    table = simulation.requests_table()
    order = np.argsort(table["request"])
    assert table["arrival_s"][order].tolist() == [0.0, 0.5, 0.5, 1.5, 3.0]
    assert table["prompt_tokens"][order].tolist() == [100, 200, 4096, 300, 50]
    assert table["output_tokens"][order].tolist() == [3, 4, 5, 2048, 6]
    devices = [event.entity for event in simulation.events if event.kind == EventKind.ARRIVAL]
    # anna, ben and carl are clients 0, 1, 2 on two devices.
    assert devices == [0, 1, 0, 0, 1]
    schedule = replay_schedule(scenario)
    assert (schedule.capped_prompts, schedule.capped_outputs) == (1, 1)


def test_without_clients_the_seed_draws_devices(trace: Path) -> None:
    trace.write_text("\n".join(",".join(line.split(",")[:3]) for line in TRACE.splitlines()))
    scenario = replaying(trace, clients=4)
    generators = [WorkloadGenerator(scenario, seed) for seed in range(20)]
    drawn = {tuple(generator.open_device(ordinal) for ordinal in range(5)) for generator in generators}
    assert len(drawn) > 10
    times = {tuple(_times(generator, 5)) for generator in generators}
    assert times == {(0.0, 0.5, 0.5, 1.5, 3.0)}


def _times(generator: WorkloadGenerator, count: int) -> list[float]:
    times = [0.0]
    for ordinal in range(count):
        times.append(generator.open_arrival_s(ordinal, times[-1]))
    return times[1:]


def test_a_part_at_another_speed(trace: Path) -> None:
    scenario = replaying(trace, start_s=0.25, duration_s=2.0, rate_scale=2.0)
    generator = WorkloadGenerator(scenario, 1)
    assert generator.total_requests == 3
    assert _times(generator, 3) == [0.125, 0.125, 0.625]
    assert [generator.request(0, 0, place).output_tokens for place in range(3)] == [4, 5, 2048]


def test_a_loop_begins_again(trace: Path) -> None:
    generator = WorkloadGenerator(replaying(trace, loop=True, duration_s=4.0), 1)
    assert generator.total_requests is None
    assert _times(generator, 11) == [0.0, 0.5, 0.5, 1.5, 3.0, 4.0, 4.5, 4.5, 5.5, 7.0, 8.0]
    assert generator.request(0, 9, 6).prompt_tokens == 200
    # Without a duration the period ends a mean gap after the last request.
    assert replay_schedule(replaying(trace, loop=True)).period_s == pytest.approx(3.75)


@pytest.mark.parametrize("loop", [False, True])
def test_a_random_start_goes_round(trace: Path, loop: bool) -> None:
    scenario = replaying(trace, random_start=True, loop=loop, duration_s=4.0)
    firsts = set()
    for seed in range(40):
        generator = WorkloadGenerator(scenario, seed)
        times = _times(generator, 5)
        rounds = [generator.request(0, 0, place).output_tokens for place in range(5)]
        assert sorted(rounds) == [3, 4, 5, 6, 2048]
        assert times == sorted(times) and 0.0 <= times[0] <= 1.5 and times[-1] <= 4.0
        firsts.add(rounds[0])
    assert firsts >= {3, 4, 6, 2048}
    assert WorkloadGenerator(scenario, 1).total_requests == (None if loop else 5)


def test_the_scenario_may_stop_earlier(trace: Path) -> None:
    scenario = load_scenario(replaying(trace), episode__total_requests=2)
    assert WorkloadGenerator(scenario, 1).total_requests == 2
    simulation = play(scenario)
    assert simulation.terminated and simulation.metrics()["requests_arrived"] == 2.0


def test_kinds_of_the_trace(trace: Path) -> None:
    kinds = {"question": {}, "other": {}}
    base = replaying(trace, trace_kinds=True)
    plain = base.workload.kinds["question"].model_dump()
    kinds = {"other": {**plain, "weight": 50.0}, "question": plain}
    generator = WorkloadGenerator(load_scenario(base, workload__kinds=kinds), 1)
    number = list(load_scenario(base, workload__kinds=kinds).workload.kinds).index("question")
    assert {generator.request(0, place, place).kind for place in range(5)} == {number}
    trace.write_text(TRACE.replace("carl,question", "carl,riddle"))
    with pytest.raises(ScenarioError, match=r"trace_kinds: .*requests.csv has the kinds.*riddle"):
        WorkloadGenerator(base, 1)


def test_a_bad_trace_is_an_error_of_the_scenario_that_names_it(trace: Path) -> None:
    trace.write_text(TRACE.replace("300,3000", "300,-3"))
    with pytest.raises(RequestTraceError, match=r"requests.csv: line 5: output_tokens = '-3'"):
        ReferenceSimulation(replaying(trace), 1)
    with pytest.raises(RequestTraceError, match="no such file"):
        ReferenceSimulation(replaying(trace.with_name("none.csv")), 1)
    with pytest.raises(ScenarioError, match=r"load\.points .* would not change a replayed trace"):
        load_scenario(replaying(trace), workload__load={"points": [[0.0, 2.0]]})


def test_requests_are_conserved(trace: Path) -> None:
    rng = np.random.default_rng(3)
    times = np.cumsum(rng.exponential(0.4, 200))
    rows = [f"{time!r},{rng.integers(1, 900)},{rng.integers(1, 90)}" for time in times.tolist()]
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n" + "\n".join(rows) + "\n")
    recorded = load_trace(trace)
    simulation = play(replaying(trace, clients=6))
    assert simulation.terminated
    table = simulation.requests_table()
    assert sorted(table["output_tokens"]) == sorted(recorded.output_tokens)
    assert sorted(table["prompt_tokens"]) == sorted(recorded.prompt_tokens)
    assert table["delivered_tokens"].sum() == recorded.output_tokens.sum()


def test_both_engines_draw_who_has_no_client_and_no_kind(trace: Path) -> None:
    lines = "".join(
        f"{n / 8},{20 + n},{3 + n % 5},{f'c{n % 5}' if n % 3 else ''},{('chat', 'code', '')[n % 3]}\n"
        for n in range(30)
    )
    trace.write_text("arrival_s,prompt_tokens,output_tokens,client,kind\n" + lines)
    scenario = replaying(trace, clients=4, trace_kinds=True)
    kind = scenario.workload.kinds["question"].model_dump()
    scenario = load_scenario(scenario, workload__kinds={"chat": kind, "code": {**kind, "weight": 3.0}})
    schedule = replay_schedule(scenario)
    assert schedule.devices is not None and schedule.kinds is not None
    assert schedule.devices.count(-1) == 10 and schedule.kinds.count(-1) == 10
    assert assert_engines_agree(scenario, "jsq_goodput", seed=3) > 30
