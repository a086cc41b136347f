"""Link processes from published statistics of measured networks.

The statistics are percentiles, mean, coefficient of variation and autocorrelations; the series themselves
are not at hand. A process is fitted by simulating it with the same random numbers for every candidate and
comparing the same statistics of what comes out. What is fitted here is generated again by the code that
simulations use (:func:`generate_bandwidth`, :func:`generate_round_trips`), and that is what docs/network.md
reports.

Needs SciPy (extra ``calibrate``); nothing in the simulator imports this module.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dsd_env import rng
from dsd_env.extras import needs
from dsd_env.network.channel import duplex
from dsd_env.network.processes import (
    MAX_Z,
    QUANTILE_Z,
    OutageWindows,
    QuantileMarginal,
    RateProcess,
    bandwidth_process,
)
from dsd_env.rng import Stream
from dsd_env.scenario.schema import Ar1, BandwidthProcess, DelayProcess, Jitter, Link, Outages
from dsd_env.text import TextError, read_text

with needs("calibrate", "fitting network models"):
    from scipy.optimize import Bounds, differential_evolution, minimize
    from scipy.signal import lfilter
    from scipy.stats import norm

__all__ = [
    "LAGS",
    "PERCENTILES",
    "FitError",
    "NetworkRow",
    "Statistics",
    "deviations",
    "fit_bandwidth",
    "fit_delay",
    "fit_spread",
    "generate_bandwidth",
    "generate_first_round_trips",
    "generate_round_trips",
    "marginal_mean",
    "quantiles_in_service",
    "read_rows",
    "statistics_of",
]

FloatArray = NDArray[np.float64]

PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
LAGS = (1, 5, 20)
"""Lags of the autocorrelations, in samples."""

_SECONDS = {"Mbps/1s": 1.0, "ms RTT": math.nan, "Mbps": math.nan}
"""Sample interval by unit; that of pings is not in the file, but in what is known of each series."""

_TOLERANCE = 0.1
_FIT_SAMPLES = 16384
_FLOOR_OF_MEAN = 0.05
"""A percentile below this share of the mean is compared with that share: what is next to nothing stays so."""


_LOST_OF_LEVEL = (1.4, 2.0, 3.0)
"""Time without service over the level of the highest percentile that is 0: it lies somewhere above."""


class FitError(ValueError):
    """The statistics cannot be read or fitted; the message names file, line and field."""


@dataclass(frozen=True)
class Statistics:
    """Statistics of a series, in the series' own unit.

    Attributes:
        percentiles: At :data:`PERCENTILES`.
        mean: Mean.
        cv: Standard deviation over mean.
        autocorrelations: Of the logarithm, at :data:`LAGS` samples; None if there is no order in time.
    """

    percentiles: tuple[float, ...]
    mean: float
    cv: float
    autocorrelations: tuple[float, ...] | None

    def named(self) -> dict[str, float]:
        """Return the values by name."""
        values = {
            f"p{percentile}": value for percentile, value in zip(PERCENTILES, self.percentiles, strict=True)
        }
        values |= {"mean": self.mean, "cv": self.cv}
        if self.autocorrelations is not None:
            values |= {f"ac{lag}": value for lag, value in zip(LAGS, self.autocorrelations, strict=True)}
        return values


@dataclass(frozen=True)
class NetworkRow:
    """One measured series, as its statistics.

    Attributes:
        name: Name of the trace.
        unit: As in the file.
        samples: Length of the series.
        interval_s: Time between samples; NaN if they are not a series in time, or it is not known.
        given: The statistics.
        sent: Pings that were sent, answered or not; 0 if the samples are no pings, or it is not known.
    """

    name: str
    unit: str
    samples: int
    interval_s: float
    given: Statistics
    sent: int = 0

    @property
    def answered_share(self) -> float:
        """Share of the pings that were answered; 1 where nothing is known of others."""
        return self.samples / self.sent if self.sent else 1.0

    @property
    def resolution(self) -> float:
        """Half the last printed digit: what a value printed as 0 may have been; series are floored there."""
        return 0.005 if self.name.startswith("mahimahi") else 0.25


def read_rows(path: Path) -> dict[str, NetworkRow]:
    """Read a table of network statistics.

    Args:
        path: CSV with the columns ``trace, unit, n, p1 … p99, mean, cv, ac1_log, ac5_log, ac20_log``; the
            last three may be empty.

    Returns:
        The rows by name of their trace.

    Raises:
        FitError: Not readable, a column is missing, a value is no finite number, or a name comes twice.
    """
    needed = [
        "trace",
        "unit",
        "n",
        *(f"p{p}" for p in PERCENTILES),
        "mean",
        "cv",
        *(f"ac{k}_log" for k in LAGS),
    ]
    rows: dict[str, NetworkRow] = {}
    try:
        text = read_text(path)
    except TextError as error:
        raise FitError(str(error)) from None
    reader = csv.DictReader(text.split("\n"), strict=True)
    try:
        header, records = list(reader.fieldnames or ()), [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise FitError(f"{path}: line {reader.line_num}: {error}") from error
    missing = [name for name in needed if name not in header]
    if missing or len(set(header)) != len(header):
        fault = f"columns {missing} are missing" if missing else "a column comes twice"
        raise FitError(f"{path}: line 1: {fault}")
    for line, record in records:
        where = f"{path}: line {line}"
        if None in record or None in record.values():
            raise FitError(f"{where}: not as many fields as the header has")

        def number(name: str, record: Mapping[str, str] = record, where: str = where) -> float:
            try:
                value = float(record[name])
            except ValueError:
                value = math.nan
            if not math.isfinite(value):
                raise FitError(f"{where}: {name} = {record[name]!r} is not a finite number")
            return value

        name, unit = record["trace"], record["unit"]
        if name in rows:
            raise FitError(f"{where}: trace = {name[:80]!r} comes twice")
        if unit not in _SECONDS:
            raise FitError(f"{where}: unit = {unit!r} is not one of {sorted(_SECONDS)}")
        ordered = tuple(number(f"p{p}") for p in PERCENTILES)
        if list(ordered) != sorted(ordered) or ordered[0] < 0.0:
            raise FitError(f"{where}: percentiles {ordered} must not fall, nor be negative")
        correlated = any(record[f"ac{k}_log"].strip() for k in LAGS)
        given = Statistics(
            ordered,
            number("mean"),
            number("cv"),
            tuple(number(f"ac{k}_log") for k in LAGS) if correlated else None,
        )
        if given.mean <= 0.0:
            raise FitError(f"{where}: mean = {given.mean} must be > 0")
        interval_s = _SECONDS[unit] if correlated else math.nan
        rows[name] = NetworkRow(name, unit, int(number("n")), interval_s, given)
    return rows


def statistics_of(series: FloatArray, floor: float, *, correlated: bool = True) -> Statistics:
    """Return the statistics of a series.

    Args:
        series: Values at equal distances in time, shape (n,).
        floor: Smallest value whose logarithm is taken; what is below counts as this.
        correlated: Whether the order means anything.
    """
    percentiles = tuple(float(value) for value in np.quantile(series, np.array(PERCENTILES) / 100.0))
    mean = float(series.mean())
    return Statistics(
        percentiles,
        mean,
        float(series.std() / mean) if mean > 0.0 else math.nan,
        _autocorrelations(np.log(np.maximum(series, floor))) if correlated else None,
    )


def _autocorrelations(values: FloatArray) -> tuple[float, ...]:
    centred = values - values.mean()
    variance = float(centred @ centred)
    if variance <= 0.0:
        return (0.0,) * len(LAGS)
    return tuple(float(centred[lag:] @ centred[:-lag]) / variance for lag in LAGS)


def deviations(given: Statistics, generated: Statistics) -> dict[str, float]:
    """Return by name how far generated statistics are from given ones.

    Percentiles, mean and CV as a share of the given value (a percentile below 5 % of the mean: of that 5 %,
    so that the last digit of nearly nothing does not count), autocorrelations as a plain difference.
    """
    floor = _FLOOR_OF_MEAN * given.mean
    found = generated.named()
    result: dict[str, float] = {}
    for name, value in given.named().items():
        scale = 1.0 if name.startswith("ac") else max(value, floor if name.startswith("p") else 1e-9)
        result[name] = (found[name] - value) / scale
    return result


def _loss(given: Statistics, generated: Statistics) -> float:
    """Return the sum of soft absolute deviations: what cannot be met at all does not bend the rest."""
    return sum(
        math.sqrt(1.0 + (deviation / _TOLERANCE) ** 2) - 1.0
        for deviation in deviations(given, generated).values()
    )


def _search(
    loss: Callable[[FloatArray], float],
    bounds: Sequence[tuple[float, float]],
    generations: int,
    starts: int = 1,
) -> FloatArray:
    """Return the best parameters: a global search, then a local one. The same every time.

    Args:
        loss: What to minimise.
        bounds: Lowest and highest value of each parameter.
        generations: Length of the global search.
        starts: How often to begin anew; the best is kept.
    """
    low, high = np.array(bounds).T

    def inside(x: FloatArray) -> float:
        return loss(np.clip(x, low, high))

    best: FloatArray = low
    for seed in range(1, starts + 1):
        found = differential_evolution(
            loss, Bounds(low, high), maxiter=generations, popsize=12, seed=seed, polish=False, tol=1e-6
        )
        polished = minimize(
            inside, found.x, method="Nelder-Mead", options={"maxiter": 40 * generations, "fatol": 1e-3}
        )
        if seed == 1 or polished.fun < inside(best):
            best = np.asarray(np.clip(polished.x, low, high), dtype=np.float64)
    return best


def _ar1(normals: FloatArray, correlation: float) -> FloatArray:
    """Return a stationary first-order process of unit variance, driven by normals of shape (n,)."""
    driven = math.sqrt(1.0 - correlation * correlation) * normals
    driven[0] = normals[0]
    return np.asarray(lfilter([1.0], [1.0, -correlation], driven), dtype=np.float64)


def _service(ups: FloatArray, downs: FloatArray, mean_up_s: float, mean_down_s: float, n: int) -> FloatArray:
    """Return the share of each second that is in service, shape (n,), for unit exponentials of shape (m,)."""
    steps = np.empty(2 * len(ups))
    steps[0::2], steps[1::2] = mean_up_s * ups, mean_down_s * downs
    edges = np.concatenate([[0.0], np.cumsum(steps)])
    lost = np.zeros(len(edges))
    lost[2::2] = np.cumsum(steps[1::2])
    lost[3::2] = lost[2:-1:2]
    seconds = np.arange(n + 1, dtype=np.float64)
    # Beyond the last edge the link stays up; the caller draws enough windows.
    return np.asarray(1.0 - np.diff(np.interp(seconds, edges, lost)))


@dataclass(frozen=True)
class BandwidthFit:
    """Bandwidth of one direction.

    Attributes:
        bits_per_s: Nominal bandwidth, the mean while in service.
        bandwidth: How it changes.
        outages: When it is gone; None if it never is.
    """

    bits_per_s: float
    bandwidth: BandwidthProcess
    outages: Outages | None

    def link(self) -> Link:
        """Return a link with this bandwidth in both directions and no delay."""
        return Link(
            one_way_s=0.0,
            uplink_bits_per_s=self.bits_per_s,
            downlink_bits_per_s=self.bits_per_s,
            bandwidth=self.bandwidth,
            outages=self.outages,
        )


def quantiles_in_service(given: Statistics, floor: float, out_of_service: float) -> tuple[float, ...]:
    """Return the seven quantiles of the values that remain when the lowest ones are taken out.

    Args:
        given: Statistics of all values.
        floor: Smallest value of a quantile.
        out_of_service: Share of the values, the lowest, that are taken out: time without service.
    """
    zeros = sum(value < floor for value in given.percentiles)
    logs = np.log(np.maximum(given.percentiles, floor))
    if out_of_service > 0.0:
        # What is 0 says nothing about the rest: its distribution goes on as it does above.
        logs[:zeros] = [_extrapolate(logs[zeros : zeros + 2], z, zeros) for z in QUANTILE_Z[:zeros]]
    marginal = np.concatenate(
        [[_extrapolate(logs[:2], -MAX_Z, 0)], logs, [_extrapolate(logs[-2:], MAX_Z, -2)]]
    )
    levels = out_of_service + (1.0 - out_of_service) * np.array(PERCENTILES) / 100.0
    z = np.interp(norm.ppf(levels), [-MAX_Z, *QUANTILE_Z, MAX_Z], marginal)
    return tuple(np.exp(z).tolist())


def _extrapolate(logs: FloatArray, z: float, piece: int) -> float:
    low, high = QUANTILE_Z[piece], QUANTILE_Z[piece + 1]
    return float(logs[0] + (logs[1] - logs[0]) / (high - low) * (z - low))


def marginal_mean(quantiles: Sequence[float]) -> float:
    """Return the mean of the distribution that seven quantiles stand for in a :class:`BandwidthProcess`."""
    z = np.linspace(-8.0, 8.0, 32001)
    marginal = QuantileMarginal(quantiles, (Ar1(sigma=1.0, correlation_s=1.0),))
    values = np.array([marginal.at(x) for x in z.tolist()])
    return float((values * norm.pdf(z)).sum() * (z[1] - z[0]))


def fit_bandwidth(row: NetworkRow, *, generations: int = 60) -> BandwidthFit:
    """Fit a bandwidth with the given quantiles, a fast and a slow part, to a series of seconds.

    Where the lowest percentiles are 0, those seconds become outages, and the quantiles are those of the rest.
    How many more there are is tried out, since it lies between two percentiles.

    Args:
        row: The series, in Mbit/s by the second.
        generations: Length of the search.

    Raises:
        FitError: The row is not a series of bandwidths by the second.
    """
    if row.unit != "Mbps/1s" or row.given.autocorrelations is None:
        raise FitError(f"{row.name}: a series in Mbps/1s is needed, this is in {row.unit}")
    given = row.given
    draws = np.random.default_rng(2)
    n = _FIT_SAMPLES
    fast, slow = draws.standard_normal((2, n))
    ups, downs = draws.exponential(size=(2, n))
    zeros = sum(value < row.resolution for value in given.percentiles)
    if zeros == len(PERCENTILES):
        raise FitError(f"{row.name}: the percentiles are 0 throughout")
    bounds = [(0.0, 1.0), (math.log(0.1), math.log(10.0)), (math.log(3.0), math.log(600.0))]
    shares = [0.0]
    if zeros:
        level, above = 0.01 * PERCENTILES[zeros - 1], 0.01 * PERCENTILES[zeros]
        shares = [factor * level for factor in _LOST_OF_LEVEL if factor * level < above]
        shares = shares or [0.5 * (level + above)]
        bounds.append((math.log(0.2), math.log(60.0)))

    def series(x: FloatArray, logs: FloatArray, lost: float) -> FloatArray:
        share, fast_s, slow_s = x[0], math.exp(x[1]), math.exp(x[2])
        z = math.sqrt(share) * _ar1(fast, math.exp(-1.0 / fast_s))
        z += math.sqrt(1.0 - share) * _ar1(slow, math.exp(-1.0 / slow_s))
        knots = [_extrapolate(logs[:2], -MAX_Z, 0), *logs, _extrapolate(logs[-2:], MAX_Z, -2)]
        rates: FloatArray = np.exp(np.interp(z, [-MAX_Z, *QUANTILE_Z, MAX_Z], knots))
        if zeros:
            down_s = math.exp(x[3])
            rates *= _service(ups, downs, down_s * (1.0 / lost - 1.0), down_s, n)
        return rates

    found: list[tuple[float, FloatArray, float]] = []
    for lost in shares:
        logs = np.log(quantiles_in_service(given, row.resolution, lost))

        def loss(x: FloatArray, logs: FloatArray = logs, lost: float = lost) -> float:
            return _loss(given, statistics_of(series(x, logs, lost), row.resolution))

        best = _search(loss, bounds, generations)
        found.append((loss(best), best, lost))
    _, x, lost = min(found, key=lambda item: item[0])
    quantiles = quantiles_in_service(given, row.resolution, lost)
    mean = marginal_mean(quantiles)
    process = BandwidthProcess(
        period_s=1.0,
        fast=Ar1(sigma=_round(math.sqrt(x[0])), correlation_s=_round(math.exp(x[1]))),
        slow=Ar1(sigma=_round(math.sqrt(1.0 - x[0])), correlation_s=_round(math.exp(x[2]))),
        quantiles=tuple(_round(quantile / mean) for quantile in quantiles),
    )
    gone = None
    if zeros:
        down_s = math.exp(x[3])
        gone = Outages(mean_up_s=_round(down_s * (1.0 / lost - 1.0)), mean_down_s=_round(down_s))
    return BandwidthFit(_round(mean * 1e6), process, gone)


def generate_bandwidth(link: Link, samples: int, seed: int) -> FloatArray:
    """Return the mean uplink bandwidth of each second in bit/s, shape (samples,), as simulations have it."""
    process = RateProcess(
        link.uplink_bits_per_s,
        None if link.bandwidth is None else bandwidth_process(link.bandwidth, seed, 0),
        None if link.outages is None else OutageWindows(link.outages, rng.key(seed, Stream.OUTAGE, 0)),
        (),
        None,
        [],
    )
    bits = np.zeros(samples)
    for second in range(samples):
        time_s = float(second)
        while time_s < second + 1.0:
            rate, until_s = process.at(time_s)
            end_s = min(until_s, second + 1.0)
            bits[second] += rate * (end_s - time_s)
            time_s = end_s
    return bits


def fit_delay(row: NetworkRow, *, generations: int = 60, period_s: float = 0.1) -> Link:
    """Fit a delay with the given quantiles, a fast and a slow part, to a series of round trips.

    The quantiles of a round trip follow from the percentiles; half of each is what a direction takes, since
    pings do not tell which took it. In which order values follow one another is searched such that the
    autocorrelations agree. Pings without an answer become losses, the same in both directions, each by
    chance of its own.

    Args:
        row: The series, in ms, with the time between pings.
        generations: Length of the search.
        period_s: For how long the delay is constant.

    Returns:
        A link with this delay and loss, and no limit on its bandwidth.

    Raises:
        FitError: The row is not a series of round trips, or it is not known how far they are apart.
    """
    if row.unit != "ms RTT" or row.given.autocorrelations is None:
        raise FitError(f"{row.name}: a series in ms RTT with autocorrelations is needed")
    if not row.interval_s > 0.0:
        raise FitError(f"{row.name}: how far apart are the pings? The statistics do not say")
    given = row.given
    draws = np.random.default_rng(3)
    n = _FIT_SAMPLES
    answered = draws.random(n) < row.answered_share
    periods = np.floor(np.arange(n) * row.interval_s / period_s).astype(np.int64)
    fast, slow = draws.standard_normal((2, int(periods[-1]) + 1))
    # The shortest round trip is not known; a little less than the first percentile.
    one_way_ms = 0.45 * given.percentiles[0]
    extra_ms = [0.5 * value - one_way_ms for value in given.percentiles]
    logs = np.log(extra_ms)
    knots = [_extrapolate(logs[:2], -MAX_Z, 0), *logs, _extrapolate(logs[-2:], MAX_Z, -2)]

    def series(x: FloatArray) -> FloatArray:
        share, fast_s, slow_s = x[0], math.exp(x[1]), math.exp(x[2])
        z = math.sqrt(share) * _ar1(fast.copy(), math.exp(-period_s / fast_s))
        z += math.sqrt(1.0 - share) * _ar1(slow.copy(), math.exp(-period_s / slow_s))
        extra = np.exp(np.interp(z, [-MAX_Z, *QUANTILE_Z, MAX_Z], knots))
        return np.asarray(2.0 * (one_way_ms + extra)[periods][answered])

    def loss(x: FloatArray) -> float:
        return _loss(given, statistics_of(series(x), row.resolution))

    bounds = [
        (0.0, 1.0),
        (math.log(0.2 * period_s), math.log(10.0 * period_s)),
        (math.log(10.0 * period_s), math.log(600.0 * period_s)),
    ]
    x = _search(loss, bounds, generations)
    return _delay_link(
        one_way_s=1e-3 * one_way_ms,
        jitter=Jitter(),
        delay=DelayProcess(
            sigma=_round(math.sqrt(x[0])),
            correlation_s=_round(math.exp(x[1])),
            slow=Ar1(sigma=_round(math.sqrt(1.0 - x[0])), correlation_s=_round(math.exp(x[2]))),
            period_s=period_s,
            quantiles_s=tuple(_round(1e-3 * value) for value in extra_ms),
            both_ways=True,
        ),
        loss_probability=_round(1.0 - math.sqrt(row.answered_share)),
    )


def fit_spread(row: NetworkRow, *, generations: int = 60) -> Link:
    """Fit the spread between devices, and jitter, to round trips of many places at no time in particular.

    What differs is taken to be the places, as far as a uniform spread can be; jitter explains the tail.

    Args:
        row: The values, in ms, one a place.
        generations: Length of the search.

    Returns:
        A link with these delays and no limit on its bandwidth.

    Raises:
        FitError: The row is not about round trips.
    """
    if row.unit != "ms RTT":
        raise FitError(f"{row.name}: round trips in ms are needed, this is in {row.unit}")
    draws = np.random.default_rng(4)
    n = _FIT_SAMPLES // 4
    places = draws.permutation(n) / n
    white = draws.standard_normal((2, n))
    low, high = row.given.percentiles[0], row.given.percentiles[-1]

    def series(x: FloatArray) -> FloatArray:
        nearest, farthest = low * x[0], high * x[1]
        jitter = np.exp(x[2] + np.exp(x[3]) * white).sum(axis=0)
        return np.asarray(nearest + max(0.0, farthest - nearest) * places + jitter)

    def loss(x: FloatArray) -> float:
        return _loss(row.given, statistics_of(series(x), row.resolution, correlated=False))

    bounds = [
        (0.3, 1.0),
        (0.3, 1.0),
        (math.log(0.001 * low), math.log(0.06 * low)),
        (math.log(0.1), math.log(1.2)),
    ]
    x = _search(loss, bounds, generations, starts=4)
    nearest, farthest = low * float(x[0]), max(low * float(x[0]), high * float(x[1]))
    centre = 0.5 * (nearest + farthest)
    return _delay_link(
        one_way_s=0.5e-3 * centre,
        spread=(_round(nearest / centre), _round(farthest / centre)),
        jitter=Jitter(median_s=_round(1e-3 * math.exp(x[2])), sigma=_round(math.exp(x[3]))),
    )


def _delay_link(
    *,
    one_way_s: float,
    jitter: Jitter,
    spread: tuple[float, float] = (1.0, 1.0),
    delay: DelayProcess | None = None,
    loss_probability: float = 0.0,
) -> Link:
    return Link(
        one_way_s=_round(one_way_s),
        one_way_spread=spread,
        loss_probability=loss_probability,
        uplink_bits_per_s=1e15,
        downlink_bits_per_s=1e15,
        jitter=jitter,
        delay=delay,
    )


def generate_round_trips(link: Link, samples: int, interval_s: float, seed: int) -> FloatArray:
    """Return the round-trip times in s of pings sent every `interval_s`, shape (samples,); NaN: no answer.

    Both ways of a ping take what the link has when it is sent, as in a series that was recorded and is
    replayed. Pings may overtake one another, as datagrams do; messages on a link never do. A ping that is
    lost on its way up or down stays without an answer, where a message would be sent again.
    """
    channels = duplex(link, seed, number=0)
    trips = np.zeros(samples)
    for index in range(samples):
        sent_s = index * interval_s
        for channel in channels:
            channel.free_s = channel.last_arrival_s = 0.0
            trips[index] += channel.send(sent_s, 0.0) - sent_s
            if channel.last_lost:
                trips[index] = math.nan
    return trips


def generate_first_round_trips(link: Link, devices: int, seed: int) -> FloatArray:
    """Return the first round-trip time in s of each of many devices, shape (devices,)."""
    trips = []
    for number in range(devices):
        up, down = duplex(link, seed, number)
        trips.append(down.send(up.send(0.0, 0.0), 0.0))
    return np.array(trips)


def _round(value: float) -> float:
    """Return three significant digits: what the statistics can bear, and a reader too."""
    return float(f"{value:.3g}")
