"""The processes that change a link over time: bandwidth, delay, outages, replayed series.

Each process is constant over pieces of time. It remembers its current piece and only moves forward, because
a channel never asks about an earlier time than before. Each random draw belongs to the number of a piece, so
the values do not depend on when, or how often, a channel asks.

The classes hold state and constants; the rules by which they advance are in :mod:`dsd_env.laws.links`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from dsd_env import rng
from dsd_env.laws import links
from dsd_env.network.faults import FaultWindows
from dsd_env.network.series import LinkSeries
from dsd_env.rng import Stream
from dsd_env.scenario.schema import Ar1, BandwidthProcess, Outages
from dsd_env.scenario.variates import LogQuantiles

QUANTILE_Z = (-2.326348, -1.644854, -0.674490, 0.0, 0.674490, 1.644854, 2.326348)
"""Standard normal quantiles at 1, 5, 25, 50, 75, 95 and 99 %."""
MAX_Z = links.MAX_Z


class QuantileMarginal(LogQuantiles):
    """Turns a normal variate into a value of a positive distribution that seven quantiles describe.

    Attributes:
        spread: Standard deviation of the normal variate.
    """

    __slots__ = ("spread",)

    def __init__(self, quantiles: Sequence[float], parts: Sequence[Ar1]) -> None:
        """Compute the distribution for a variate that is the sum of the given processes."""
        super().__init__(QUANTILE_Z, quantiles)
        self.spread = math.sqrt(_variance(parts))

    def at(self, x: float) -> float:
        """Return the value that belongs to a variate."""
        return super().at(min(max(x / self.spread, -MAX_Z), MAX_Z))


class LogProcess:
    """A positive process: the exponential of the sum of one or two first-order Gaussian processes.

    Its value is constant for a period and then changes. :func:`dsd_env.laws.links.advance_process` reads and
    writes these attributes.

    Attributes:
        value: Its value in the current period.
        until_s: End of the current period.
    """

    __slots__ = (
        "by_quantiles",
        "centre",
        "index",
        "key",
        "logs",
        "parts",
        "period_s",
        "pieces",
        "rho",
        "scores",
        "sigma",
        "slopes",
        "spread",
        "step",
        "until_s",
        "value",
        "x",
    )

    def __init__(
        self,
        centre: float,
        parts: tuple[Ar1, ...],
        period_s: float,
        stream_key: int,
        marginal: QuantileMarginal | None = None,
    ) -> None:
        """Start in the first period.

        Args:
            centre: Median of the value.
            parts: The Gaussian processes whose sum is the logarithm, one or two.
            period_s: Length of a period.
            stream_key: Key of the random draws.
            marginal: Distribution of the value; without it the value is log-normal.
        """
        self.centre, self.period_s, self.parts = centre, period_s, len(parts)
        self.sigma = [part.sigma for part in parts]
        self.rho = [math.exp(-period_s / part.correlation_s) for part in parts]
        self.step = [
            sigma * math.sqrt(1.0 - rho * rho) for sigma, rho in zip(self.sigma, self.rho, strict=True)
        ]
        self.by_quantiles = marginal is not None
        if marginal is not None:
            self.spread, self.pieces = marginal.spread, len(marginal.slopes)
            self.scores, self.logs, self.slopes = marginal.scores, marginal.logs, marginal.slopes
        self.x = [0.0] * len(parts)
        self.value = self.until_s = 0.0
        links.begin_process(self, self, stream_key)

    def advance(self, time_s: float) -> None:
        """Advance to the period that contains a time."""
        links.advance_process(self, self, time_s)


class OutageWindows:
    """The windows of time in which a link has no service, one after the other.

    Attributes:
        start_s: Beginning of the current window.
        end_s: End of the current window.
    """

    __slots__ = ("end_s", "index", "key", "mean_down_s", "mean_up_s", "start_s")

    def __init__(self, outages: Outages, stream_key: int) -> None:
        """Start with the first window."""
        self.mean_up_s, self.mean_down_s, self.key = outages.mean_up_s, outages.mean_down_s, stream_key
        self.index = -1
        self.start_s = self.end_s = 0.0
        self.advance()

    def advance(self) -> None:
        """Advance to the next window."""
        links.next_outage(self, self, self.key)


class SeriesCursor:
    """The current piece of a recorded series that repeats for ever.

    Attributes:
        index: Number of the current piece.
        until_s: End of the current piece.
    """

    __slots__ = ("begun_s", "index", "pieces", "times_s", "until_s")

    def __init__(self, series: LinkSeries, offset_s: float) -> None:
        """Start with the first piece of a series that began `offset_s` before time 0."""
        self.times_s, self.pieces = series.times_s, len(series.times_s) - 1
        links.begin_cursor(self, self, offset_s)

    def advance(self, time_s: float) -> None:
        """Advance to the piece that contains a time."""
        links.advance_cursor(self, self, time_s)


class RateProcess:
    """The rate of a channel over time, and the delay that it adds to messages.

    The functions of :mod:`dsd_env.laws.links` read and write these attributes.

    Attributes:
        measured_bits_per_s: Bandwidth estimated from the messages that have left.
        busy_from_s: Time since which the channel has had something to send without a break.
    """

    def __init__(
        self,
        nominal_bits_per_s: float,
        bandwidth: LogProcess | None,
        outages: OutageWindows | None,
        series: tuple[float, ...],
        cursor: SeriesCursor | None,
        faults: list[tuple[FaultWindows, float]],
        *,
        delay: LogProcess | None = None,
        series_delay: tuple[tuple[float, ...], SeriesCursor] | None = None,
    ) -> None:
        """Combine everything that changes a channel.

        Args:
            nominal_bits_per_s: Mean bandwidth.
            bandwidth: Process of a factor on the mean bandwidth.
            outages: Windows of time without service.
            series: Bandwidth in each piece of a recorded series; it replaces the mean bandwidth.
            cursor: The current piece of that series.
            faults: Windows of each fault that hits the channel, and the share of bandwidth that it leaves.
            delay: Process of a delay that every message has in addition to the propagation.
            series_delay: Delay in each piece of a recorded series, and the current piece of that series.
        """
        self.nominal_bits_per_s = self.measured_bits_per_s = nominal_bits_per_s
        self.sample_bits_per_s = self.sample_left_s = self.busy_from_s = 0.0
        self.has_bandwidth, self.bandwidth = bandwidth is not None, bandwidth
        self.has_outages, self.outage = outages is not None, outages
        if outages is not None:
            self.mean_up_s, self.mean_down_s = outages.mean_up_s, outages.mean_down_s
        self.bits_per_s, self.cursor = series, cursor
        # Both cursors, that of the bandwidth and that of the delay, run through the pieces of one series.
        place = cursor if cursor is not None else series_delay[1] if series_delay is not None else None
        self.pieces = place.pieces if cursor is not None and place is not None else 0
        self.times_s = place.times_s if place is not None else ()
        self.has_delay, self.delay = delay is not None, delay
        self.has_series_delay = series_delay is not None
        self.extra_delay_s: tuple[float, ...] = () if series_delay is None else series_delay[0]
        self.delay_cursor: SeriesCursor | None = None if series_delay is None else series_delay[1]
        self.n_breaks = len(faults)
        self.breaks = [windows for windows, _ in faults]
        for windows, factor in faults:
            windows.fault.bandwidth_factor = factor
        self._seed = self.breaks[0].seed if self.breaks else 0

    def at(self, time_s: float) -> tuple[float, float]:
        """Return the rate in bit/s at a time, and the time until which it holds; times must not fall."""
        return links.rate_at(self, self, self._seed, time_s)

    def departure_s(self, start_s: float, size_bytes: float) -> float:
        """Return when the last byte of a message leaves, if its first byte begins to leave at `start_s`."""
        return links.departure_s(self, self, self._seed, start_s, size_bytes)


def _variance(parts: Sequence[Ar1]) -> float:
    variance = 0.0
    for part in parts:
        variance += part.sigma * part.sigma
    return variance


def log_centre(parts: Sequence[Ar1]) -> float:
    """Return the median at which a log-normal process has mean 1."""
    return math.exp(-0.5 * _variance(parts))


def bandwidth_process(process: BandwidthProcess, seed: int, entity: int) -> LogProcess:
    """Return the process of the factor on a channel's bandwidth; a log-normal one has mean 1."""
    parts = process.parts
    marginal = QuantileMarginal(process.quantiles, parts) if process.quantiles else None
    key = rng.key(seed, Stream.BANDWIDTH, entity)
    return LogProcess(log_centre(parts), parts, process.period_s, key, marginal)
