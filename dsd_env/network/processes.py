"""What changes on a link while time passes: piecewise constant processes, advanced by cursors.

A channel asks at times that never fall, so each process stands at one piece and goes on from there. What it
draws is addressed by the piece's number, not by who asked when.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from dsd_env import rng
from dsd_env.network.faults import FaultWindows
from dsd_env.network.series import LinkSeries
from dsd_env.rng import Stream
from dsd_env.scenario.schema import Ar1, BandwidthProcess, Outages
from dsd_env.scenario.variates import LogQuantiles

QUANTILE_Z = (-2.326348, -1.644854, -0.674490, 0.0, 0.674490, 1.644854, 2.326348)
"""Standard normal quantiles at 1, 5, 25, 50, 75, 95 and 99 %."""
MAX_Z = 4.0
"""Where a distribution given by quantiles ends; one period in 16,000 would lie beyond."""


class QuantileMarginal(LogQuantiles):
    """A positive distribution given by seven quantiles, as a function of a normal variate.

    Attributes:
        spread: Standard deviation of the variate.
    """

    __slots__ = ("spread",)

    def __init__(self, quantiles: Sequence[float], parts: Sequence[Ar1]) -> None:
        """Take the quantiles for a variate that is the sum of processes."""
        super().__init__(QUANTILE_Z, quantiles)
        self.spread = math.sqrt(_variance(parts))

    def at(self, x: float) -> float:
        """Return the value at a variate."""
        return super().at(min(max(x / self.spread, -MAX_Z), MAX_Z))


class LogProcess:
    """Exponential of the sum of two first-order Gaussian processes, constant for a period.

    Attributes:
        value: Its value in the current period.
        until_s: End of the current period.
    """

    __slots__ = ("_centre", "_index", "_key", "_marginal", "_parts", "_period_s", "_x", "until_s", "value")

    def __init__(
        self,
        centre: float,
        parts: tuple[Ar1, ...],
        period_s: float,
        stream_key: int,
        marginal: QuantileMarginal | None = None,
    ) -> None:
        """Stand at the first period.

        Args:
            centre: Median.
            parts: One or two processes to be added in the logarithm.
            period_s: Length of a period.
            stream_key: Key of its draws.
            marginal: Distribution of the value, instead of the log-normal one about the median.
        """
        self._centre, self._period_s, self._key = centre, period_s, stream_key
        self._marginal = marginal
        self._parts = [
            (part.sigma, rho, math.sqrt(1.0 - rho * rho))
            for part in parts
            for rho in (math.exp(-period_s / part.correlation_s),)
        ]
        self._index = 0
        self._x = [sigma * self._normal(number) for number, (sigma, _, _) in enumerate(self._parts)]
        self._set()

    def _normal(self, number: int) -> float:
        counter = 4 * self._index + 2 * number
        return rng.normal(
            rng.uniform_from_key(self._key, counter), rng.uniform_from_key(self._key, counter + 1)
        )

    def _set(self) -> None:
        total = 0.0
        for x in self._x:
            total += x
        self.value = self._centre * math.exp(total) if self._marginal is None else self._marginal.at(total)
        self.until_s = (self._index + 1) * self._period_s

    def advance(self, time_s: float) -> None:
        """Go on to the period that holds a time."""
        if time_s < self.until_s:
            return
        while time_s >= self.until_s:
            self._index += 1
            self.until_s = (self._index + 1) * self._period_s
            for number, (sigma, rho, rest) in enumerate(self._parts):
                self._x[number] = rho * self._x[number] + sigma * rest * self._normal(number)
        self._set()


class OutageWindows:
    """Times without service, one after the other.

    Attributes:
        start_s: Beginning of the current window.
        end_s: Its end.
    """

    __slots__ = ("_index", "_key", "_outages", "end_s", "start_s")

    def __init__(self, outages: Outages, stream_key: int) -> None:
        """Stand at the first window."""
        self._outages, self._key = outages, stream_key
        self._index = -1
        self.start_s = self.end_s = 0.0
        self.advance()

    def advance(self) -> None:
        """Go on to the next window."""
        self._index += 1
        up = rng.exponential(rng.uniform_from_key(self._key, 2 * self._index))
        down = rng.exponential(rng.uniform_from_key(self._key, 2 * self._index + 1))
        self.start_s = self.end_s + self._outages.mean_up_s * up
        self.end_s = self.start_s + self._outages.mean_down_s * down


class SeriesCursor:
    """A place in a repeated series.

    Attributes:
        index: Number of the piece.
        until_s: Its end.
    """

    __slots__ = ("_begun_s", "_series", "index", "until_s")

    def __init__(self, series: LinkSeries, offset_s: float) -> None:
        """Stand at the first piece; the series began `offset_s` before time 0."""
        self._series = series
        self._begun_s = -offset_s
        self.index = 0
        self.until_s = self._begun_s + series.times_s[1]

    def advance(self, time_s: float) -> None:
        """Go on to the piece that holds a time."""
        times = self._series.times_s
        while time_s >= self.until_s:
            self.index += 1
            if self.index == len(times) - 1:
                self.index = 0
                self._begun_s += times[-1]
            self.until_s = self._begun_s + times[self.index + 1]


class RateProcess:
    """The rate at which bytes leave a channel, as it changes."""

    __slots__ = ("_bandwidth", "_cursor", "_faults", "_nominal", "_outages", "_series")

    def __init__(
        self,
        nominal_bits_per_s: float,
        bandwidth: LogProcess | None,
        outages: OutageWindows | None,
        series: tuple[float, ...],
        cursor: SeriesCursor | None,
        faults: list[tuple[FaultWindows, float]],
    ) -> None:
        """Combine what acts on a channel.

        Args:
            nominal_bits_per_s: Mean bandwidth.
            bandwidth: A factor on it.
            outages: Windows without service.
            series: Bandwidth by piece of a recorded series, instead of the nominal one.
            cursor: The place in it.
            faults: Windows of faults, and what each leaves of the bandwidth.
        """
        self._nominal = nominal_bits_per_s
        self._bandwidth, self._outages = bandwidth, outages
        self._series, self._cursor, self._faults = series, cursor, faults

    def at(self, time_s: float) -> tuple[float, float]:
        """Return the rate in bit/s at a time, and until when it stays; times must not fall."""
        rate, until_s = self._nominal, math.inf
        if self._cursor is not None:
            self._cursor.advance(time_s)
            rate, until_s = self._series[self._cursor.index], self._cursor.until_s
        if self._bandwidth is not None:
            self._bandwidth.advance(time_s)
            rate *= self._bandwidth.value
            until_s = min(until_s, self._bandwidth.until_s)
        if self._outages is not None:
            rate, until_s = _through(self._outages, 0.0, time_s, rate, until_s)
        for windows, factor in self._faults:
            rate, until_s = _through(windows, factor, time_s, rate, until_s)
        return rate, until_s

    def departure_s(self, start_s: float, size_bytes: float) -> float:
        """Return when the last byte of a message has left that begins to leave at a time."""
        bits = size_bytes * 8.0
        time_s = start_s
        while True:
            rate, until_s = self.at(time_s)
            if rate > 0.0:
                end_s = time_s + bits / rate
                if end_s <= until_s:
                    return end_s
                bits = max(0.0, bits - rate * (until_s - time_s))
            time_s = until_s


def _through(
    windows: OutageWindows | FaultWindows, factor: float, time_s: float, rate: float, until_s: float
) -> tuple[float, float]:
    """Return rate and end of the piece with the windows of one fault in mind."""
    while time_s >= windows.end_s:
        windows.advance()
    if time_s < windows.start_s:
        return rate, min(until_s, windows.start_s)
    return rate * factor, min(until_s, windows.end_s)


def _variance(parts: Sequence[Ar1]) -> float:
    variance = 0.0
    for part in parts:
        variance += part.sigma * part.sigma
    return variance


def log_centre(parts: Sequence[Ar1]) -> float:
    """Return the median at which a log-normal process has mean 1."""
    return math.exp(-0.5 * _variance(parts))


def bandwidth_process(process: BandwidthProcess, seed: int, entity: int) -> LogProcess:
    """Return the factor on a channel's bandwidth; log-normal, its mean is 1."""
    parts = process.parts
    marginal = QuantileMarginal(process.quantiles, parts) if process.quantiles else None
    key = rng.key(seed, Stream.BANDWIDTH, entity)
    return LogProcess(log_centre(parts), parts, process.period_s, key, marginal)
