"""Every shared law against a closed form, or a case worked out by hand.

The engines are compared with each other event for event, but a law that both of them call could be wrong in
both.
"""

from __future__ import annotations

import math
from types import SimpleNamespace as Case

import numpy as np
import pytest

from dsd_env import rng
from dsd_env.laws import (
    arrivals,
    drafting,
    faults,
    links,
    reports,
    resolve,
    slo,
    step_times,
    stopping,
    variates,
    view,
)
from dsd_env.laws.constants import NO_BOUND_S, POOL_AT_FIRST, POOL_WEIGHT
from dsd_env.rng import Stream

TIMER = Case(
    compute_s=[0.0, 0.010, 0.011, 0.012, 0.013, 0.014],
    length=6,
    k_bw_s=1e-6,
    k_multi_s=2e-6,
    k_lat_s=3e-6,
    per_round=False,
    per_generation_s=0.0,
    draft_noise_sigma=0.0,
    per_iteration_s=2e-3,
    per_sequence_s=3e-5,
    per_token_s=1e-5,
    per_verifying_iteration_s=5e-4,
    token_limit=4,
)


def law(code: int, **values: object) -> Case:
    """Return a law of variates."""
    return Case(**{"code": code, "pieces": 0, "a": 0.0, "b": 0.0, "low": 0.0, "high": 0.0, **values})


def sample(one: Case, n: int = 20_000) -> np.ndarray:
    """Return variates of a law, one per entity."""
    return np.array([variates.draw(one, 1, int(Stream.LENGTH), entity, 0) for entity in range(n)])


# ---------------------------------------------------------------------- variates


def test_the_moments_of_the_laws_are_those_they_name() -> None:
    assert set(sample(law(variates.CONSTANT, a=3.5), 10)) == {3.5}
    exponential = sample(law(variates.EXPONENTIAL, a=2.0))
    assert exponential.mean() == pytest.approx(2.0, rel=0.03)
    assert exponential.var() == pytest.approx(4.0, rel=0.08)
    geometric = sample(law(variates.GEOMETRIC, a=4.0, b=math.log(0.75)))
    assert geometric.min() == 1.0 and geometric.mean() == pytest.approx(4.0, rel=0.03)
    assert (geometric == 1.0).mean() == pytest.approx(0.25, abs=0.01)
    log_normal = sample(law(variates.LOG_NORMAL, a=100.0, b=0.5, low=1.0, high=1e9))
    assert np.median(log_normal) == pytest.approx(100.0, rel=0.02)
    assert np.log(log_normal).std() == pytest.approx(0.5, rel=0.02)


def test_a_geometric_law_of_mean_one_is_one() -> None:
    assert variates.draw(law(variates.GEOMETRIC, a=1.0, b=0.0), 1, 3, 7, 0) == 1.0


def test_a_log_normal_law_is_clipped() -> None:
    one = law(variates.LOG_NORMAL, a=100.0, b=1.0, low=80.0, high=120.0)
    assert [variates.value_at(one, z) for z in (-9.0, 0.0, 9.0)] == [80.0, 100.0, 120.0]


def test_a_law_by_quantiles_goes_through_them_and_stays_within() -> None:
    scores, values = [-1.0, 0.0, 1.0], [10.0, 20.0, 80.0]
    logs = [math.log(value) for value in values]
    slopes = [logs[1] - logs[0], logs[2] - logs[1]]
    one = law(variates.QUANTILES, pieces=2, scores=scores, logs=logs, slopes=slopes)
    for z, value in zip(scores, values, strict=True):
        assert variates.value_at(one, z) == pytest.approx(value)
    assert variates.value_at(one, 0.5) == pytest.approx(math.sqrt(20.0 * 80.0))
    assert variates.value_at(one, -7.0) == pytest.approx(10.0) and variates.value_at(
        one, 7.0
    ) == pytest.approx(80.0)


@pytest.mark.parametrize(
    ("value", "tokens"), [(0.2, 1), (2.5, 2), (3.5, 4), (2.49, 2), (2.51, 3), (99.0, 10), (-4.0, 1)]
)
def test_lengths_are_rounded_half_to_even_within_bounds(value: float, tokens: int) -> None:
    assert variates.whole_tokens(value, 10) == tokens


# ---------------------------------------------------------------------- step times


def test_a_step_reads_more_when_a_sequence_has_several_tokens() -> None:
    assert step_times.step_s(TIMER, 1.0, 2, 1000, 0) == pytest.approx(0.011 + 0.001)
    assert step_times.step_s(TIMER, 1.0, 2, 1000, 600) == pytest.approx(0.011 + 0.002 + 0.0018)
    assert step_times.step_s(TIMER, 2.0, 2, 1000, 600) == pytest.approx(2 * (0.011 + 0.002 + 0.0018))


def test_a_step_beyond_the_table_goes_on_as_straight_as_it_ends() -> None:
    assert step_times.step_s(TIMER, 1.0, 5, 0, 0) == 0.014
    assert step_times.step_s(TIMER, 2.0, 1005, 0, 0) == pytest.approx(2 * (0.014 + 1000 * 0.001))


def test_a_draft_is_one_step_over_the_lag_and_one_per_further_token() -> None:
    # Lag 1, alone, context 100: three steps of one token each, with 100, 101 and 102 tokens of KV.
    expected = 3 * 0.010 + (100 + 101 + 102) * 1e-6
    assert step_times.draft_s(TIMER, 1.0, 1, 100, 3, 1, 100) == pytest.approx(expected)
    # Lag 3: the first step has three tokens, of a sequence with 100 tokens.
    first = 0.012 + 100 * 2e-6 + 100 * 3e-6
    assert step_times.draft_s(TIMER, 1.0, 3, 100, 0, 1, 100) == pytest.approx(first)
    assert step_times.draft_s(TIMER, 1.0, 3, 100, 1, 1, 100) == pytest.approx(first)


def test_iteration_noise_has_mean_one_and_stragglers_their_share() -> None:
    noise = Case(iteration_noise_sigma=0.2, straggler_share=0.0, straggler_factor=3.0)
    factors = np.array([step_times.iteration_noise(noise, 1, 0, i) for i in range(20_000)])
    assert factors.mean() == pytest.approx(1.0, rel=0.01)
    assert np.log(factors).std() == pytest.approx(0.2, rel=0.03)
    straggling = Case(iteration_noise_sigma=0.0, straggler_share=0.1, straggler_factor=3.0)
    factors = np.array([step_times.iteration_noise(straggling, 1, 0, i) for i in range(20_000)])
    assert set(factors) == {1.0, 3.0} and (factors == 3.0).mean() == pytest.approx(0.1, abs=0.01)


def test_the_marginal_time_of_a_token_is_the_slope_of_the_table_and_what_the_engine_takes_for_it() -> None:
    assert step_times.marginal_token_s(TIMER, 6, 1.7, 2) == pytest.approx(0.001 + 1e-5)
    # From 3 to 5 tokens, of which the engine counts the fourth.
    assert step_times.marginal_token_s(TIMER, 6, 500.0, 2) == pytest.approx(0.001 + 0.5e-5)


def test_the_engine_adds_for_the_iteration_its_sequences_its_tokens_and_for_drafts() -> None:
    assert step_times.overhead_s(TIMER, 3, 3, 0) == pytest.approx(2e-3 + 9e-5 + 3e-5)
    assert step_times.overhead_s(TIMER, 2, 4, 1) == pytest.approx(2e-3 + 6e-5 + 4e-5 + 5e-4)
    # Two sequences that verify count once, and tokens beyond the fourth not at all.
    assert step_times.overhead_s(TIMER, 2, 10, 2) == pytest.approx(2e-3 + 6e-5 + 4e-5 + 5e-4)


def test_a_prompts_token_costs_its_share_of_an_iteration_of_its_chunk() -> None:
    assert step_times.prefill_token_s(TIMER, 5) == pytest.approx((0.014 + 2e-3 + 3e-5 + 4e-5) / 5)


# ---------------------------------------------------------------------- links


def channel(**values: object) -> Case:
    """Return an idle channel of 1 kB/s and 10 ms."""
    plain = {
        "free_s": 0.0, "last_arrival_s": 0.0, "messages": 0, "last_lost": 0, "one_way_s": 0.010, "changes":
        False, "has_rate_row": False, "seconds_per_byte": 1e-3, "jitter_median_s": 0.0, "jitter_sigma": 0.0,
        "loss_probability": 0.0, "log_loss_probability": 0.0, "rto_s": 0.2, "jitter_key": 5, "loss_key": 7,
        "rate": None,
    }  # fmt: skip
    return Case(**{**plain, **values})


def send(c: Case, now_s: float, size_bytes: float) -> float:
    """Send on a channel that is its own constants."""
    return links.send(c, c, 1, 0.2, now_s, size_bytes)


def test_messages_leave_one_after_the_other() -> None:
    c = channel()
    assert send(c, 1.0, 100.0) == pytest.approx(1.0 + 0.1 + 0.010)
    assert send(c, 1.0, 50.0) == pytest.approx(1.15 + 0.010)
    assert send(c, 2.0, 50.0) == pytest.approx(2.05 + 0.010)


def test_a_lost_message_costs_a_time_out_for_each_loss_and_holds_up_the_next() -> None:
    c = channel(loss_probability=0.5, log_loss_probability=math.log(0.5), seconds_per_byte=0.0)
    arrivals_s, losses = [], []
    for i in range(4000):
        arrivals_s.append(send(c, float(i), 1.0))
        losses.append(c.last_lost)
    assert np.mean(losses) == pytest.approx(1.0, rel=0.06)  # geometric: p / (1 − p)
    assert arrivals_s == sorted(arrivals_s)
    for i, (at, lost) in enumerate(zip(arrivals_s, losses, strict=True)):
        assert at >= i + 0.010 + 0.2 * lost - 1e-9


def test_jitter_is_log_normal_about_its_median() -> None:
    c = channel(jitter_median_s=0.005, jitter_sigma=0.8, seconds_per_byte=0.0)
    jitter = np.array([send(c, 1e3 * i, 0.0) - 1e3 * i - 0.010 for i in range(1, 5000)])
    assert np.median(jitter) == pytest.approx(0.005, rel=0.05)
    assert np.log(jitter).std() == pytest.approx(0.8, rel=0.04)


def rate(**values: object) -> Case:
    """Return what a channel of 8,000 bit/s does over time: nothing, if not said."""
    plain = {
        "nominal_bits_per_s": 8000.0, "measured_bits_per_s": 8000.0, "sample_bits_per_s": 0.0,
        "sample_left_s": 0.0, "busy_from_s": 0.0, "pieces": 0, "has_bandwidth": False, "has_outages": False,
        "has_delay": False, "has_series_delay": False, "n_breaks": 0, "breaks": [],
    }  # fmt: skip
    return Case(**{**plain, **values})


def test_an_outage_holds_a_message_up_for_what_is_left_of_it() -> None:
    fault = Case(bandwidth_factor=0.0, is_random=False, n_times=1, at_s=(1.0,))
    one = rate(n_breaks=1, breaks=[Case(start_s=1.0, end_s=3.0, index=0, fault=fault)])
    # 1,000 bytes take 1 s; from 0.5 s on half of them leave before the outage.
    assert links.departure_s(one, one, 1, 0.5, 1000.0) == pytest.approx(3.5)


def test_a_collapse_leaves_a_share_of_the_bandwidth() -> None:
    window = Case(start_s=0.0, end_s=100.0, index=0, fault=Case(bandwidth_factor=0.25))
    one = rate(n_breaks=1, breaks=[window])
    assert links.departure_s(one, one, 1, 0.0, 1000.0) == pytest.approx(4.0)


def test_a_series_is_repeated() -> None:
    cursor = Case(index=0, begun_s=0.0, until_s=1.0)
    one = rate(pieces=2, times_s=[0.0, 1.0, 2.0], bits_per_s=[8000.0, 0.0], cursor=cursor)
    assert [links.rate_at(one, one, 1, t)[0] for t in (0.5, 1.5, 2.5, 3.5, 8.5)] == [
        8000.0,
        0.0,
        8000.0,
        0.0,
        8000.0,
    ]


def test_a_process_has_the_moments_and_the_memory_that_it_is_given() -> None:
    sigma, rho = 0.5, 0.8
    spec = Case(
        parts=1, period_s=1.0, centre=2.0, by_quantiles=False, sigma=[sigma], rho=[rho],
        step=[sigma * math.sqrt(1.0 - rho * rho)],
    )  # fmt: skip
    process = Case(index=0, key=0, x=[0.0], value=0.0, until_s=0.0)
    links.begin_process(process, spec, rng.key(1, Stream.BANDWIDTH, 0))
    series = []
    for period in range(20_000):
        links.advance_process(process, spec, period + 0.5)
        assert process.until_s == period + 1.0
        series.append(math.log(process.value / 2.0))
    assert np.std(series) == pytest.approx(sigma, rel=0.05)
    assert np.corrcoef(series[:-1], series[1:])[0, 1] == pytest.approx(rho, abs=0.02)


def test_a_channel_seems_down_when_its_queue_has_waited_for_longer_than_a_time_out() -> None:
    c = channel(changes=True, rate=rate(busy_from_s=1.0), free_s=5.0)
    assert links.seems_up(c, c, 1.1) and not links.seems_up(c, c, 1.3) and links.seems_up(c, c, 5.0)


# ---------------------------------------------------------------------- faults


def test_given_windows_come_in_order_and_do_not_overlap() -> None:
    two = law(variates.CONSTANT, a=2.0)
    fault = Case(number=0, is_random=False, mean_interval_s=0.0, n_times=2, at_s=(1.0, 2.0), duration_s=two)
    window = Case(index=-1, start_s=0.0, end_s=0.0)
    seen = []
    for _ in range(3):
        faults.next_window(window, fault, 1)
        seen.append((window.start_s, window.end_s))
    assert seen == [(1.0, 3.0), (3.0, 5.0), (math.inf, math.inf)]


def test_random_windows_are_a_mean_interval_apart() -> None:
    two = law(variates.CONSTANT, a=2.0)
    fault = Case(number=0, is_random=True, mean_interval_s=5.0, n_times=0, at_s=(), duration_s=two)
    window = Case(index=-1, start_s=0.0, end_s=0.0)
    for _ in range(5000):
        faults.next_window(window, fault, 1)
    assert window.end_s / 5000 == pytest.approx(7.0, rel=0.03)


# ---------------------------------------------------------------------- arrivals


def test_the_load_clock_runs_at_the_speed_of_the_load() -> None:
    load = Case(period_s=10.0, segments=2, times_s=[0.0, 5.0, 10.0], values=[1.0, 3.0, 1.0])
    assert arrivals.load_advance(load, 0.0, 0.0, 20.0) == pytest.approx(10.0)  # the mean load is 2
    # From 1 rising by 0.4 a second: t + 0.2 t² = 3.2 at t = 2.216…
    t = arrivals.load_advance(load, 0.0, 0.0, 3.2)
    assert t + 0.2 * t * t == pytest.approx(3.2)
    assert arrivals.load_advance(load, 0.0, 20.0, 3.2) == pytest.approx(20.0 + t)
    assert arrivals.load_advance(load, 5.0, 0.0, 40.0) == pytest.approx(20.0)


def test_renewal_gaps_have_the_rate_of_the_process() -> None:
    spec = Case(power=1.0, scale=1.0, limit_s=math.inf, bursty_fraction=0.0, modulated=False)
    process = Case()
    arrivals.begin_renewal(process, spec, 3, 4.0, 0)
    gaps = np.array([arrivals.next_gap_s(process, spec) for _ in range(20_000)])[1:]
    assert gaps.mean() == pytest.approx(0.25, rel=0.03)
    assert gaps.std() == pytest.approx(0.25, rel=0.05)  # power 1 is the exponential law


def test_a_modulated_process_keeps_its_mean_rate() -> None:
    spec = Case(
        power=1.0, scale=1.0, limit_s=math.inf, bursty_fraction=0.0, modulated=True, sigma=0.7, rho=0.5,
        step=math.sqrt(0.75), period_s=1.0,
    )  # fmt: skip
    process = Case(x=0.0, factor=1.0, left_s=0.0)
    arrivals.begin_renewal(process, spec, 3, 10.0, 0)
    total_s = sum(arrivals.next_gap_s(process, spec) for _ in range(60_000))
    assert 60_000 / total_s == pytest.approx(10.0, rel=0.05)


def test_poisson_gaps_and_devices_are_evenly_drawn() -> None:
    gaps = [arrivals.poisson_gap_s(1, i, 2.0) for i in range(20_000)]
    assert np.mean(gaps) == pytest.approx(0.5, rel=0.03)
    devices = [arrivals.open_device(1, i, 4, False, ()) for i in range(4000)]
    assert np.bincount(devices, minlength=4).min() > 900
    skewed = [arrivals.open_device(1, i, 2, True, (0.9, 0.1)) for i in range(4000)]
    assert np.mean(np.array(skewed) == 0) == pytest.approx(0.9, abs=0.02)


# ---------------------------------------------------------------------- stopping


@pytest.mark.parametrize(
    ("kind", "threshold", "last", "first_doubted"),
    [
        # llama.cpp: the top-1 probability is below the threshold.
        (stopping.TOP1, 0.75, {"top1_prob": 0.75}, {"top1_prob": 0.7499}),
        # SpecDec++: of four tokens with chances .9, .8, .7, .6 some is rejected with probability .6976.
        (stopping.SURVIVAL, 0.7, {"survival": 0.9 * 0.8 * 0.7 * 0.6}, {"survival": 0.9 * 0.8 * 0.7 * 0.59}),
        # SVIP: .3 is the root of .15 times .6 nats.
        (stopping.ENTROPY, 0.3, {"entropy_nats": 0.5999}, {"entropy_nats": 0.6001}),
        # AdaEDL: half of the acceptance is certain up to .25 / .2 nats.
        (stopping.BOUND, 0.5, {"entropy_nats": 1.2499}, {"entropy_nats": 1.2501}),
    ],
)
def test_a_rule_doubts_a_token_beyond_its_threshold_and_by_nothing_else(
    kind: int, threshold: float, last: dict[str, float], first_doubted: dict[str, float]
) -> None:
    sure = {"top1_prob": 1.0, "survival": 1.0, "entropy_nats": 0.0}
    unsure = {"top1_prob": 0.0, "survival": 0.0, "entropy_nats": 99.0}
    assert not stopping.doubts(kind, threshold, **{**unsure, **last})
    assert stopping.doubts(kind, threshold, **{**sure, **first_doubted})
    assert not stopping.doubts(kind, threshold, **sure)
    assert not stopping.doubts(stopping.NEVER, threshold, **unsure)


def test_a_rule_keeps_the_token_that_it_doubts_or_drops_it() -> None:
    assert [stopping.left(Case(keeps=True), made) for made in (1, 2, 5)] == [1, 2, 5]
    assert [stopping.left(Case(keeps=False), made) for made in (1, 2, 5)] == [0, 1, 4]


# ---------------------------------------------------------------------- drafting


def job(**values: object) -> Case:
    """Return a draft job of 4 tokens that began at 1 s and takes 4 s, 1 s for the first token."""
    plain = {
        "gamma": 4, "state": drafting.ACTIVE, "start_s": 1.0, "duration_s": 4.0, "first_s": 1.0,
        "head_context_tokens": 0, "head_drafts": 0, "head_done_s": 0.0, "lag_tokens": 1, "opens": False,
        "context_tokens": 100,
    }  # fmt: skip
    return Case(**{**plain, **values})


@pytest.mark.parametrize(
    ("spent_s", "tokens"), [(0.5, 0), (1.0, 1), (1.9, 1), (2.1, 2), (3.9, 3), (4.0, 4), (9.0, 4)]
)
def test_tokens_are_done_one_by_one(spent_s: float, tokens: int) -> None:
    assert drafting.tokens_after(job(), spent_s) == tokens


def test_a_job_that_waits_has_nothing_done_and_one_that_ended_all() -> None:
    waiting, ended = job(state=drafting.QUEUED), job(state=drafting.ENDED)
    assert drafting.done_s(waiting, 3.0) == 0.0 and drafting.tokens_after(waiting, 3.0) == 0
    assert drafting.done_s(ended, 3.0) == 4.0 and drafting.tokens_after(ended, 0.0) == 4
    assert drafting.done_s(job(), 3.0) == 2.0


def test_a_head_start_shortens_a_draft_but_never_lengthens_it() -> None:
    plain = job()
    drafting.start_job(plain, TIMER, 1.0, 1, 100, 0, 2.0, 7, 3)
    assert plain.start_s == 2.0 and plain.duration_s == pytest.approx(
        step_times.draft_s(TIMER, 1.0, 1, 100, 4, 1, 100)
    )
    ahead = job(head_context_tokens=99, head_drafts=2, head_done_s=0.03)
    drafting.start_job(ahead, TIMER, 1.0, 1, 100, 0, 2.0, 7, 3)
    whole_s = step_times.draft_s(TIMER, 1.0, 1, 99, 5, 1, 100)
    assert ahead.duration_s == pytest.approx(whole_s - 0.03) and ahead.duration_s < plain.duration_s
    late = job(head_context_tokens=99, head_done_s=0.0)
    drafting.start_job(late, TIMER, 1.0, 1, 100, 0, 2.0, 7, 3)
    assert late.duration_s == plain.duration_s


def test_a_round_takes_time_beside_its_steps_once_and_by_the_devices_speed() -> None:
    timer = Case(**{**vars(TIMER), "per_generation_s": 0.2})
    usual, opening = job(), job(opens=True)
    drafting.start_job(usual, timer, 0.5, 1, 100, 0, 2.0, 7, 3)
    drafting.start_job(opening, timer, 0.5, 1, 100, 0, 2.0, 7, 3)
    assert usual.duration_s == pytest.approx(step_times.draft_s(TIMER, 0.5, 1, 100, 4, 1, 100))
    assert opening.duration_s - usual.duration_s == pytest.approx(0.1)
    assert opening.first_s - usual.first_s == pytest.approx(0.1)
    # What is drafted ahead already needs no beginning.
    whole_s = step_times.draft_s(TIMER, 0.5, 1, 99, 5, 1, 100)
    ahead = job(opens=True, head_context_tokens=99, head_drafts=2, head_done_s=0.0)
    drafting.start_job(ahead, timer, 0.5, 1, 100, 0, 2.0, 7, 3)
    assert ahead.duration_s == pytest.approx(whole_s) and ahead.duration_s < opening.duration_s


def test_the_times_of_drafts_scatter_each_for_itself_and_by_their_place_alone() -> None:
    sigma = 0.5
    timer = Case(**{**vars(TIMER), "draft_noise_sigma": sigma})
    for gamma in (1, 4):
        factors = [step_times.draft_noise(timer, 7, request, 100, gamma) for request in range(20_000)]
        assert np.mean(factors) == pytest.approx(1.0, abs=0.02)
        assert np.std(np.log(factors)) == pytest.approx(sigma / gamma**0.5, rel=0.02)
    assert step_times.draft_noise(timer, 7, 3, 100, 0) == 1.0
    others = [step_times.draft_noise(timer, 7, 3, context, 4) for context in range(100)]
    assert len(set(others)) == 100 and others[50] == step_times.draft_noise(timer, 7, 3, 50, 4)


def test_a_random_factor_is_on_all_that_a_window_takes() -> None:
    timer = Case(**{**vars(TIMER), "draft_noise_sigma": 0.5, "per_generation_s": 0.2})
    still = Case(**{**vars(TIMER), "per_generation_s": 0.2})
    scattered, usual = job(opens=True), job(opens=True)
    drafting.start_job(scattered, timer, 1.0, 1, 100, 0, 2.0, 7, 3)
    drafting.start_job(usual, still, 1.0, 1, 100, 0, 2.0, 7, 3)
    factor = step_times.draft_noise(timer, 7, 3, scattered.context_tokens, 4)
    assert factor != 1.0
    assert scattered.duration_s == pytest.approx(factor * usual.duration_s)
    assert scattered.first_s == pytest.approx(factor * usual.first_s)


@pytest.mark.parametrize(
    ("drafted", "run", "left", "accepted"), [(4, 2, 9, 2), (4, 7, 9, 4), (4, 7, 3, 3), (4, 0, 9, 0)]
)
def test_a_verification_accepts_the_run_within_the_window_and_the_answer(
    drafted: int, run: int, left: int, accepted: int
) -> None:
    assert drafting.accepted_tokens(drafted, run, left) == accepted


def test_a_round_moves_the_running_means_by_their_weight() -> None:
    learner = Case(acceptance_rate=0.6, tokens_per_round=2.0)
    drafting.learn_round(learner, 4, 4, 5, 0.1)
    assert learner.acceptance_rate == pytest.approx(0.64) and learner.tokens_per_round == pytest.approx(2.3)


# ---------------------------------------------------------------------- reports, views, decisions


def test_pooled_acceptance_is_the_share_of_judged_drafts_that_were_right() -> None:
    pool = Case(**POOL_AT_FIRST)
    assert reports.pooled_acceptance(pool) == pytest.approx(0.6)
    # Three right, one wrong, four behind it that nobody judges; then four of four.
    reports.note_verified(pool, 8, 3)
    assert pool.right == pytest.approx(9.6 * (1 - POOL_WEIGHT) + 3)
    assert pool.judged == pytest.approx(16 * (1 - POOL_WEIGHT) + 4)
    before = pool.right, pool.judged
    reports.note_verified(pool, 4, 4)
    assert pool.right == pytest.approx(before[0] * (1 - POOL_WEIGHT) + 4)
    assert pool.judged == pytest.approx(before[1] * (1 - POOL_WEIGHT) + 4)
    # The first assumption is forgotten: in the long run it is the chance itself, whatever the window.
    generator = np.random.default_rng(0)
    for gamma in (2, 8):
        seen = []
        for _ in range(20_000):
            run = int(generator.geometric(0.2)) - 1  # right with probability 0.8
            reports.note_verified(pool, gamma, min(run, gamma))
            seen.append(reports.pooled_acceptance(pool))
        assert np.mean(seen[5_000:]) == pytest.approx(0.8, abs=0.01)


def test_reports_say_what_is_left_and_how_long_one_waits() -> None:
    assert reports.remaining_s(True, 5.0, 4.0) == 0.0
    assert reports.remaining_s(False, 5.0, 4.0) == 1.0 and reports.remaining_s(False, 5.0, 6.0) == 0.0
    assert reports.drafter_wait_s(1, 0, 2, 3.0) == 0.0
    assert reports.drafter_wait_s(2, 3, 2, 3.0) == pytest.approx(6.0)
    assert reports.busy_drafter_wait_s(1, 2, 3.0) == 0.0 and reports.busy_drafter_wait_s(3, 2, 3.0) == 6.0
    assert reports.moved(1.0, 3.0, 0.25) == 1.5
    assert reports.sample_age_s(5.0, 3.0) == 2.0 and reports.sample_age_s(5.0, -1.0) == 5.0


def test_a_round_trip_moves_mean_and_deviation() -> None:
    device = Case(rtt_s=0.1, rtt_deviation_s=0.0, rtt_sample_s=-1.0)
    reports.measure_round_trip(device, 7.0, 0.2, 0.5)
    assert (device.rtt_s, device.rtt_deviation_s, device.rtt_sample_s) == (
        pytest.approx(0.15),
        pytest.approx(0.05),
        7.0,
    )


C, D, E = view.COLOCATED, view.OWN_DEVICE, view.EDGE_SERVER


@pytest.mark.parametrize(
    ("at", "to", "delay_s"),
    [
        ((D, 3), (D, 3), 0.0),
        ((D, 3), (C, 0), 5.0),
        ((D, 3), (E, 1), 1.0),
        ((C, 0), (D, 3), 5.0),
        ((C, 0), (C, 1), 10.0),  # by way of the device
        ((C, 0), (E, 1), 7.0),
        ((E, 1), (C, 0), 7.0),
        ((E, 1), (D, 3), 2.0),
        ((E, 1), (E, 0), 3.0),
    ],
)
def test_control_moves_by_the_links_that_there_are(
    at: tuple[int, int], to: tuple[int, int], delay_s: float
) -> None:
    assert view.handover_s(*at, *to, 5.0, 1.0, 2.0, 7.0, 0.0, 0.0) == delay_s


def test_control_moves_beyond_the_links_too() -> None:
    links = (5.0, 1.0, 2.0, 7.0)
    assert view.handover_s(D, 3, C, 0, *links, 0.0, 20.0) == 5.0 + 20.0
    assert view.handover_s(C, 0, D, 3, *links, 40.0, 0.0) == 40.0 + 5.0
    assert view.handover_s(C, 0, C, 1, *links, 40.0, 20.0) == 40.0 + 10.0 + 20.0
    assert view.handover_s(C, 0, C, 0, *links, 40.0, 40.0) == 0.0
    assert view.handover_s(C, 0, E, 1, *links, 40.0, 0.0) == 47.0
    assert view.handover_s(E, 1, C, 0, *links, 0.0, 20.0) == 27.0


def test_a_device_measures_its_own_link() -> None:
    assert reports.access_round_trip_s(0.3, 0.125) == pytest.approx(0.05)
    assert reports.access_round_trip_s(0.3, 0.0) == 0.3
    assert reports.access_round_trip_s(0.2, 0.125) == 0.0  # nothing is faster than light


def test_slack_is_what_is_left_of_the_bound() -> None:
    assert view.ttft_slack(0.0, 0.5, 2.0) == 0.75 and view.ttft_slack(1.0, 9.0, 2.0) == 0.5
    assert view.tpot_slack(0.03, 0.02) == pytest.approx(-0.5)
    assert view.time_per_token_s(1.0, 3.0, 5) == 0.5 and view.time_per_token_s(1.0, 1.0, 1) == 0.0
    assert view.fits(100, 16, 116) and not view.fits(101, 16, 116)


@pytest.mark.parametrize(
    ("moved", "can_draft", "batch", "expected"),
    [
        (False, True, 4, (3, 4, resolve.AS_GIVEN)),
        (False, False, 4, (0, 4, resolve.NO_DRAFTER)),
        (False, True, 64, (3, 8, resolve.BATCH_CLIPPED)),
        (False, False, 64, (0, 8, resolve.NO_DRAFTER)),
        (True, True, 64, (3, 8, resolve.TARGET_DOWN)),
    ],
)
def test_the_first_reason_counts(
    moved: bool, can_draft: bool, batch: int, expected: tuple[int, int, int]
) -> None:
    assert resolve.resolved(3, batch, moved, can_draft, 8) == expected


# ---------------------------------------------------------------------- service-level objectives


def bounds(**values: float) -> Case:
    """Return bounds that nothing exceeds, but for those given."""
    none = NO_BOUND_S
    plain = {
        "slo_ttft_s": none, "slo_tpot_s": none, "slo_itl_p99_s": none, "slo_first_s": none,
        "slo_per_token_s": none, "slo_token_share": 0.0,
    }  # fmt: skip
    return Case(**{**plain, **values})


@pytest.mark.parametrize(
    ("elapsed_s", "before", "tokens", "late"),
    # Token k is due at 1.0 + 0.1 k.
    [(1.0, 0, 1, 0), (1.01, 0, 1, 1), (1.25, 0, 5, 3), (1.25, 3, 5, 0), (1.3, 3, 5, 0), (9.0, 2, 3, 3)],
)
def test_tokens_are_late_that_come_after_their_deadline(
    elapsed_s: float, before: int, tokens: int, late: int
) -> None:
    assert slo.late_tokens(elapsed_s, 1.0, 0.1, before, tokens) == late


def test_deliveries_are_counted_by_gap_and_by_deadline() -> None:
    request = Case(arrival_s=10.0, longest_gap_s=0.0, late_gaps=0, late_tokens=0)
    limits = bounds(slo_itl_p99_s=0.3, slo_first_s=1.0, slo_per_token_s=0.25)
    arrivals_s = [(10.5, 1), (10.75, 3), (12.25, 2), (12.5, 1)]
    before, previous_s = 0, 0.0
    for arrives_s, tokens in arrivals_s:
        slo.note_delivery(request, limits, before, tokens, previous_s, arrives_s)
        before, previous_s = before + tokens, arrives_s
    # One gap of 1.5 s; the tokens after it, 4 and 5, were due at 12.0 and 12.25, token 6 at 12.5.
    assert (request.longest_gap_s, request.late_gaps, request.late_tokens) == (1.5, 1, 1)


def test_an_objective_is_met_when_every_bound_is() -> None:
    met = {"ttft_s": 0.5, "tpot_s": 0.02, "tokens": 201, "late_gaps": 2, "late_tokens": 20}
    limits = bounds(slo_ttft_s=0.5, slo_tpot_s=0.02, slo_itl_p99_s=0.1, slo_token_share=0.9)
    assert slo.is_met(limits, **met)
    # One gap in a hundred, one token in ten.
    for name, value in {"ttft_s": 0.51, "tpot_s": 0.021, "late_gaps": 3, "late_tokens": 21}.items():
        assert not slo.is_met(limits, **{**met, name: value})
    assert slo.is_met(bounds(), 1e6, 1e6, 201, 0, 201)


def test_the_slack_of_a_deadline_is_the_time_to_the_next_token() -> None:
    assert slo.deadline_slack_s(2.0, 5, 1.0, 0.25) == pytest.approx(0.25)


def test_reports_divide_by_nothing_only_where_there_is_something() -> None:
    assert reports.attainment(0.0, 0.0) == 1.0 and reports.attainment(1.0, 4.0) == 0.25
    assert reports.mean_gamma(0, 0) == 0.0 and reports.mean_gamma(7, 2) == 3.5
