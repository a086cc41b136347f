"""Bandwidth, delay and outages as they change: their statistics, and when a message has left."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsd_env import rng
from dsd_env.network import LinkSeries, duplex
from dsd_env.network.faults import FaultMember, FaultWindows
from dsd_env.network.processes import (
    LogProcess,
    OutageWindows,
    QuantileMarginal,
    RateProcess,
    SeriesCursor,
    bandwidth_process,
)
from dsd_env.rng import Stream
from dsd_env.scenario.schema import (
    Ar1,
    BandwidthProcess,
    Constant,
    DelayProcess,
    Fault,
    Jitter,
    Link,
    Outages,
)

FAST, SLOW = Ar1(sigma=0.4, correlation_s=2.0), Ar1(sigma=0.3, correlation_s=30.0)
SKEWED = (0.02, 0.1, 0.5, 1.1, 1.4, 1.8, 2.2)


def values(process: LogProcess, n: int, period_s: float = 1.0) -> np.ndarray:
    """Return a process' values in its first n periods."""
    found = []
    for index in range(n):
        process.advance((index + 0.5) * period_s)
        found.append(process.value)
    return np.array(found)


# ---------------------------------------------------------------- the log process


@pytest.mark.parametrize("slow", [None, SLOW])
def test_the_bandwidth_factor_has_mean_one_and_its_coefficient_of_variation(slow: Ar1 | None) -> None:
    config = BandwidthProcess(fast=FAST, slow=slow)
    first = np.array([bandwidth_process(config, seed, 0).value for seed in range(20_000)])
    variance = FAST.sigma**2 + (slow.sigma**2 if slow else 0.0)
    cv = math.sqrt(math.exp(variance) - 1.0)
    # Independent seeds: the mean's standard error is cv / sqrt(n), so 4 of them are 0.013 and 0.015.
    assert first.mean() == pytest.approx(1.0, abs=4.0 * cv / math.sqrt(len(first)))
    assert first.std() / first.mean() == pytest.approx(cv, rel=0.05)
    assert np.log(first).std() == pytest.approx(math.sqrt(variance), rel=0.02)


def test_the_first_period_is_distributed_like_a_late_one() -> None:
    config = BandwidthProcess(fast=FAST, slow=SLOW)
    early, late = [], []
    for seed in range(3000):
        process = bandwidth_process(config, seed, 3)
        early.append(math.log(process.value))
        process.advance(60.5)
        late.append(math.log(process.value))
    assert np.std(late) == pytest.approx(np.std(early), rel=0.06)
    assert np.mean(late) == pytest.approx(np.mean(early), abs=0.04)


@pytest.mark.parametrize("slow", [None, SLOW])
def test_the_logarithm_has_the_autocorrelation_of_its_parts(slow: Ar1 | None) -> None:
    series = np.log(values(bandwidth_process(BandwidthProcess(fast=FAST, slow=slow), 7, 0), 60_000))
    series -= series.mean()
    parts = [FAST, slow] if slow else [FAST]
    variance = sum(part.sigma**2 for part in parts)
    for lag in (1, 5, 20):
        theory = sum(part.sigma**2 * math.exp(-lag / part.correlation_s) for part in parts) / variance
        measured = (series[lag:] * series[:-lag]).mean() / series.var()
        assert measured == pytest.approx(theory, abs=0.04), lag


def test_directions_and_links_draw_on_their_own() -> None:
    config = BandwidthProcess(fast=FAST)
    series = [np.log(values(bandwidth_process(config, 1, entity), 5000)) for entity in range(3)]
    assert abs(np.corrcoef(series)[np.triu_indices(3, 1)]).max() < 0.08


def test_given_quantiles_are_met_whatever_their_shape() -> None:
    config = BandwidthProcess(fast=FAST, slow=SLOW, quantiles=SKEWED)
    first = np.array([bandwidth_process(config, seed, 0).value for seed in range(20_000)])
    for level, wanted in zip((1, 5, 25, 50, 75, 95, 99), SKEWED, strict=True):
        # In ranks, where the sampling error is known: 4 standard errors of a binomial share.
        share = (first <= wanted).mean()
        assert share == pytest.approx(
            level / 100, abs=4.0 * math.sqrt(level * (100 - level)) / 100 / math.sqrt(20_000)
        )


def test_a_marginal_goes_through_its_knots_and_ends_at_four_deviations() -> None:
    marginal = QuantileMarginal(
        SKEWED, (Ar1(sigma=0.6, correlation_s=1.0), Ar1(sigma=0.8, correlation_s=9.0))
    )
    assert marginal.spread == pytest.approx(1.0)
    for z, wanted in zip(
        (-2.326348, -1.644854, -0.67449, 0.0, 0.67449, 1.644854, 2.326348), SKEWED, strict=True
    ):
        assert marginal.at(z) == pytest.approx(wanted, rel=1e-9)
    assert marginal.at(4.0) == marginal.at(40.0) and marginal.at(-4.0) == marginal.at(-40.0)
    grid = [marginal.at(z) for z in np.linspace(-5, 5, 400)]
    assert all(low <= high for low, high in pairwise(grid))


@given(
    seed=st.integers(0, 2**32),
    period_s=st.floats(0.01, 3.0),
    times=st.lists(st.floats(0.0, 60.0), min_size=1, max_size=12),
)
def test_a_value_does_not_depend_on_when_one_looked_before(
    seed: int, period_s: float, times: list[float]
) -> None:
    def fresh() -> LogProcess:
        return LogProcess(1.0, (FAST, SLOW), period_s, rng.key(seed, Stream.BANDWIDTH, 0))

    walked = fresh()
    for time_s in sorted(times):
        walked.advance(time_s)
        jumped = fresh()
        jumped.advance(time_s)
        assert walked.value == jumped.value
        assert walked.until_s > time_s


# ---------------------------------------------------------------- outages


def test_outages_have_their_mean_durations_and_share() -> None:
    windows = OutageWindows(Outages(mean_up_s=20.0, mean_down_s=3.0), rng.key(1, Stream.OUTAGE, 0))
    ups, downs, last = [], [], 0.0
    for _ in range(20_000):
        ups.append(windows.start_s - last)
        downs.append(windows.end_s - windows.start_s)
        last = windows.end_s
        windows.advance()
    assert np.mean(ups) == pytest.approx(20.0, rel=0.03)
    assert np.mean(downs) == pytest.approx(3.0, rel=0.03)
    assert sum(downs) / last == pytest.approx(3.0 / 23.0, rel=0.03)
    # Exponential: the standard deviation is the mean, and 1/e of them are longer than it.
    assert np.std(downs) == pytest.approx(3.0, rel=0.05)
    assert (np.array(ups) > 20.0).mean() == pytest.approx(math.exp(-1), abs=0.015)


def test_an_outage_hits_both_directions_at_once_and_each_link_on_its_own() -> None:
    link = Link(
        one_way_s=0.0,
        uplink_bits_per_s=8e6,
        downlink_bits_per_s=8e6,
        outages=Outages(mean_up_s=2.0, mean_down_s=1.0),
    )
    arrivals = []
    for number in range(2):
        for channel in duplex(link, 5, number):
            arrivals.append([channel.send(0.01 * i, 1.0) for i in range(3000)])
    assert arrivals[0] == arrivals[1] and arrivals[2] == arrivals[3]
    assert arrivals[0] != arrivals[2]


# ---------------------------------------------------------------- when a message has left


def brute_force_departure(pieces: list[tuple[float, float, float]], start_s: float, bits: float) -> float:
    """Return when so many bits have left, from (begin, end, rate) of every piece."""
    for begin_s, end_s, rate in pieces:
        begin_s = max(begin_s, start_s)
        if begin_s >= end_s:
            continue
        if bits <= rate * (end_s - begin_s):
            return begin_s + (bits / rate if rate > 0.0 else 0.0)
        bits -= rate * (end_s - begin_s)
    raise AssertionError("more pieces are needed")


@st.composite
def rate_case(draw: st.DrawFn) -> tuple[list[float], list[float], float, list[float], float, float]:
    lengths = draw(st.lists(st.floats(0.05, 2.0), min_size=1, max_size=6))
    rates = draw(
        st.lists(st.sampled_from([0.0, 1e4, 3e5, 2e6]), min_size=len(lengths), max_size=len(lengths))
    )
    rates[0] = max(rates[0], 1e4)
    offset_s = draw(st.floats(0.0, 0.999)) * sum(lengths)
    faults = sorted(draw(st.sets(st.integers(0, 30), max_size=4)))
    return (
        lengths,
        rates,
        offset_s,
        [0.25 * i for i in faults],
        draw(st.floats(0.05, 1.5)),
        draw(st.sampled_from([0.0, 0.3])),
    )


@given(case=rate_case(), start_s=st.floats(0.0, 5.0), size=st.integers(1, 40_000))
def test_departure_is_the_integral_of_a_repeated_series_with_faults(
    case: tuple[list[float], list[float], float, list[float], float, float], start_s: float, size: int
) -> None:
    lengths, rates, offset_s, at_s, duration_s, factor = case
    edges = (0.0, *np.cumsum(lengths).tolist())
    series = LinkSeries(edges, tuple(rates), tuple(rates), (0.0,) * len(rates))
    windows = []
    if at_s:
        kind = "bandwidth_collapse" if factor else "link_outage"
        fault = Fault(
            kind=kind,
            of="any",
            at_s=tuple(at_s),
            duration_s=Constant(distribution="constant", value=duration_s),
            bandwidth_factor=factor or 0.5,
        )
        windows = [(FaultWindows(FaultMember(0, fault, "device", 0), 1), factor)]
    process = RateProcess(1e6, None, None, tuple(rates), SeriesCursor(series, offset_s), windows)

    spans, free_s = [], 0.0
    for begin_s in at_s:
        begin_s = max(begin_s, free_s)
        free_s = begin_s + duration_s
        spans.append((begin_s, free_s))
    # Long enough for the slowest message: 320 kbit at no less than 500 bit a repetition.
    cuts = {edge for span in spans for edge in span}
    bits, begun_s = 8.0 * size, -offset_s
    left, pieces = bits, []
    while left > 0.0:
        for (low, high), rate in zip(pairwise(edges), rates, strict=True):
            inner = sorted(c for c in cuts if begun_s + low < c < begun_s + high)
            for a, b in pairwise([begun_s + low, *inner, begun_s + high]):
                down = any(s <= 0.5 * (a + b) < e for s, e in spans)
                pieces.append((a, b, rate * (factor if down else 1.0)))
                if b > start_s:
                    left -= pieces[-1][2] * (b - max(a, start_s))
        begun_s += edges[-1]
    found = process.departure_s(start_s, size)
    wanted = brute_force_departure(pieces, start_s, bits)
    if found != pytest.approx(wanted, abs=1e-6):
        # The last bit may fall on the end of a piece, to rounding, with nothing after it for a while: then
        # either side of the gap is right. No bit may leave in between.
        low, high = sorted((found, wanted))
        sent = sum(r * max(0.0, min(b, high) - max(a, low)) for a, b, r in pieces)
        assert sent == pytest.approx(0.0, abs=1e-6 * bits)


@given(
    seed=st.integers(0, 10_000),
    down_s=st.floats(0.05, 2.0),
    period_s=st.sampled_from([0.05, 0.3, 1.0]),
    sizes=st.lists(st.integers(1, 200_000), min_size=1, max_size=15),
)
def test_departures_integrate_a_random_bandwidth_with_outages(
    seed: int, down_s: float, period_s: float, sizes: list[int]
) -> None:
    config = BandwidthProcess(period_s=period_s, fast=FAST, slow=SLOW)
    outages = Outages(mean_up_s=1.0, mean_down_s=down_s)

    def fresh() -> RateProcess:
        return RateProcess(
            1e6,
            bandwidth_process(config, seed, 0),
            OutageWindows(outages, rng.key(seed, Stream.OUTAGE, 0)),
            (),
            None,
            [],
        )

    # Back to back, messages must leave as one of their total size does, by a grid fine beside everything.
    process, free_s = fresh(), 0.0
    departures = [free_s := process.departure_s(free_s, size) for size in sizes]
    step_s = 1e-3
    grid = np.arange(0.0, departures[-1] + step_s, step_s)
    watched = fresh()
    sent = np.cumsum([watched.at(time_s + 0.5 * step_s)[0] * step_s for time_s in grid.tolist()])
    # A piece may end within a step: the sum is off by less than a step at twice the largest rate each time.
    tolerance = 8e6 * step_s * (2 + departures[-1] / period_s)
    for departure_s, bits in zip(departures, 8.0 * np.cumsum(sizes), strict=True):
        assert np.interp(departure_s, grid + step_s, sent) == pytest.approx(bits, abs=tolerance, rel=5e-3)


def test_a_message_that_meets_an_outage_goes_on_after_it() -> None:
    fault = Fault(
        kind="link_outage", of="any", at_s=(1.0, 5.0), duration_s=Constant(distribution="constant", value=2.0)
    )
    member = FaultMember(0, fault, "device", 0)
    link = Link(one_way_s=0.5, uplink_bits_per_s=8000.0, downlink_bits_per_s=8000.0)
    up, _ = duplex(link, 1, 0, faults=[member])
    # 1,000 bytes take a second: half before the outage, half after it.
    assert up.send(0.5, 1000.0) == pytest.approx(3.5 + 0.5)
    # Sent within an outage, it waits for its end; sent behind another, for that one too.
    up, _ = duplex(link, 1, 0, faults=[member])
    assert [up.send(2.0, 500.0), up.send(2.1, 500.0)] == pytest.approx([3.5 + 0.5, 4.0 + 0.5])
    # What has left before an outage arrives during it.
    assert up.send(4.5, 500.0) == pytest.approx(5.0 + 0.5)
    # An empty message takes no time, but does not get through an outage either.
    assert up.send(6.0, 0.0) == pytest.approx(7.0 + 0.5)


def test_a_collapse_leaves_its_share_of_the_bandwidth() -> None:
    fault = Fault(
        kind="bandwidth_collapse",
        of="any",
        at_s=(1.0,),
        duration_s=Constant(distribution="constant", value=10.0),
        bandwidth_factor=0.25,
    )
    link = Link(one_way_s=0.0, uplink_bits_per_s=8000.0, downlink_bits_per_s=16000.0)
    up, down = duplex(link, 1, 0, faults=[FaultMember(0, fault, "device", 0)])
    assert up.send(2.0, 1000.0) == pytest.approx(6.0)
    assert down.send(2.0, 1000.0) == pytest.approx(4.0)
    assert up.send(10.5, 1000.0) == pytest.approx(11.0 + (1000.0 - 125.0) / 1000.0)


# ---------------------------------------------------------------- whole channels


DELAYS = (
    None,
    DelayProcess(median_s=0.02, sigma=1.2, correlation_s=1.0),
    DelayProcess(
        quantiles_s=(0.001, 0.002, 0.004, 0.008, 0.015, 0.05, 0.08),
        sigma=0.6,
        correlation_s=0.05,
        slow=SLOW,
        both_ways=True,
    ),
)


@st.composite
def links(draw: st.DrawFn) -> tuple[Link, list[FaultMember]]:
    maybe = st.booleans()
    process = BandwidthProcess(
        period_s=draw(st.floats(0.1, 2.0)), fast=FAST, slow=SLOW, quantiles=SKEWED if draw(maybe) else None
    )
    link = Link(
        one_way_s=draw(st.floats(0.0, 0.1)),
        uplink_bits_per_s=draw(st.floats(1e5, 1e8)),
        downlink_bits_per_s=1e7,
        jitter=Jitter(median_s=0.005, sigma=1.5) if draw(maybe) else Jitter(),
        loss_probability=draw(st.sampled_from([0.0, 0.2])),
        bandwidth=process if draw(maybe) else None,
        delay=draw(st.sampled_from(DELAYS)),
        outages=Outages(mean_up_s=2.0, mean_down_s=0.7) if draw(maybe) else None,
    )
    faults = []
    if draw(maybe):
        fault = Fault(
            kind="link_outage",
            of="any",
            mean_interval_s=2.0,
            duration_s={"distribution": "lognormal", "median": 0.3, "sigma": 1.0},
        )
        faults = [FaultMember(0, fault, "device", 0)]
    return link, faults


@given(
    case=links(),
    seed=st.integers(0, 1000),
    sends=st.lists(st.tuples(st.floats(0, 0.5), st.integers(0, 20_000)), min_size=1, max_size=40),
)
def test_every_message_arrives_once_in_order_and_no_earlier_than_it_can(
    case: tuple[Link, list[FaultMember]], seed: int, sends: list[tuple[float, int]]
) -> None:
    link, faults = case
    up, _ = duplex(link, seed, 3, faults=faults)
    again, _ = duplex(link, seed, 3, faults=faults)
    now = last_arrival = last_free = 0.0
    for gap, size in sends:
        now += gap
        arrival = up.send(now, size)
        assert math.isfinite(arrival)
        assert up.free_s >= max(now, last_free)
        assert arrival >= max(up.free_s + link.one_way_s, last_arrival)
        assert arrival == again.send(now, size)
        last_arrival, last_free = arrival, up.free_s
    assert up.messages == len(sends)
    assert up.bytes_sent == sum(size for _, size in sends)


def test_a_constant_channel_and_one_that_could_fail_but_does_not_agree() -> None:
    link = Link(one_way_s=0.01, uplink_bits_per_s=3e5, downlink_bits_per_s=1e6)
    fault = Fault(
        kind="link_outage", of="any", at_s=(1e9,), duration_s=Constant(distribution="constant", value=1.0)
    )
    plain, _ = duplex(link, 1, 0)
    other, _ = duplex(link, 1, 0, faults=[FaultMember(0, fault, "device", 0)])
    assert not plain.changes and other.changes
    for index in range(50):
        sent = 0.013 * index
        assert plain.send(sent, 300.0) == pytest.approx(other.send(sent, 300.0), rel=1e-12)


def test_a_slow_delay_has_its_median_and_stays_for_its_period() -> None:
    link = Link(
        one_way_s=0.0,
        uplink_bits_per_s=1e15,
        downlink_bits_per_s=1e15,
        delay=DelayProcess(median_s=0.02, sigma=0.8, correlation_s=2.0, period_s=0.5),
    )
    up, down = duplex(link, 3, 0)
    delays = np.array([up.send(10.0 * i, 0.0) - 10.0 * i for i in range(8000)])
    assert np.median(delays) == pytest.approx(0.02, rel=0.05)
    assert np.log(delays).std() == pytest.approx(0.8, rel=0.04)
    back = np.array([down.send(10.0 * i, 0.0) - 10.0 * i for i in range(8000)])
    assert abs(np.corrcoef(delays, back)[0, 1]) < 0.05
    up, _ = duplex(link, 4, 0)
    within = [up.send(time_s, 0.0) - time_s for time_s in (0.0, 0.1, 0.4, 0.49)]
    assert within == pytest.approx([within[0]] * 4, abs=1e-12)


@pytest.mark.slow
def test_a_delay_by_quantiles_has_them_and_both_ways_share_it() -> None:
    quantiles = (0.001, 0.002, 0.004, 0.008, 0.015, 0.05, 0.08)
    link = Link(
        one_way_s=0.01,
        uplink_bits_per_s=1e15,
        downlink_bits_per_s=1e15,
        delay=DelayProcess(
            quantiles_s=quantiles, sigma=0.6, correlation_s=0.05, slow=SLOW, both_ways=True, period_s=0.5
        ),
    )
    up, down = duplex(link, 3, 0)
    spacing_s = 100.0 * SLOW.correlation_s
    there = np.array([up.send(spacing_s * i, 0.0) - spacing_s * i for i in range(2000)])
    back = np.array([down.send(spacing_s * i, 0.0) - spacing_s * i for i in range(2000)])
    assert there == pytest.approx(back, abs=1e-9)
    found = np.quantile(there - 0.01, (0.05, 0.25, 0.5, 0.75, 0.95))
    assert found == pytest.approx(quantiles[1:-1], rel=0.12)
    # Each way on its own: the same law, other values.
    up, down = duplex(
        link.model_copy(update={"delay": link.delay.model_copy(update={"both_ways": False})}), 3, 0
    )
    there = np.array([up.send(spacing_s * i, 0.0) - spacing_s * i for i in range(500)])
    back = np.array([down.send(spacing_s * i, 0.0) - spacing_s * i for i in range(500)])
    assert abs(np.corrcoef(there, back)[0, 1]) < 0.15


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"sigma": 1.0, "correlation_s": 1.0}, "either median_s"),
        ({"median_s": 0.1, "quantiles_s": [0.1] * 7, "sigma": 1.0, "correlation_s": 1.0}, "either median_s"),
        ({"quantiles_s": [0.2, *[0.1] * 6], "sigma": 1.0, "correlation_s": 1.0}, "must not decrease"),
        ({"quantiles_s": [0.1] * 7, "sigma": 0.0, "correlation_s": 1.0}, "sigma > 0"),
    ],
)
def test_a_delay_that_cannot_be_is_refused(fields: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DelayProcess.model_validate(fields)


def test_a_site_believes_a_link_down_once_its_queue_has_waited_longer_than_a_time_out() -> None:
    fault = Fault(
        kind="link_outage", of="any", at_s=(1.0,), duration_s=Constant(distribution="constant", value=5.0)
    )
    link = Link(one_way_s=0.01, uplink_bits_per_s=8e6, downlink_bits_per_s=8e6, rto_s=0.2)
    up, _ = duplex(link, 1, 0, faults=[FaultMember(0, fault, "device", 0)])
    up.send(0.5, 100.0)
    # Nothing to send: nobody can tell.
    assert up.seems_up(2.0)
    up.send(2.0, 100.0)
    up.send(2.1, 100.0)
    assert up.seems_up(2.15)
    # What came later does not make the wait begin anew.
    assert not up.seems_up(2.25) and not up.seems_up(5.9)
    assert up.seems_up(6.1)


def test_bandwidth_is_learnt_from_messages_that_have_left() -> None:
    series = LinkSeries((0.0, 10.0, 20.0), (1e6, 1e6), (4e6, 4e6), (0.0, 0.0))
    link = Link(
        one_way_s=0.0,
        uplink_bits_per_s=8e6,
        downlink_bits_per_s=8e6,
        replay={"file": "any", "random_start": False},
    )
    up, down = duplex(link, 1, 0, series=series, weight=0.5)
    for index in range(20):
        up.send(0.2 * index, 1000.0)
        down.send(0.2 * index, 1000.0)
    assert up.bits_per_s == pytest.approx(1e6, rel=0.01)
    assert down.bits_per_s == pytest.approx(4e6, rel=0.01)
