"""Links: delay, bandwidth, loss, outages, and replayed recordings."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

from pydantic import Field, model_validator

from dsd_env.scenario.base import Model, NonNegative, Positive


class Jitter(Model):
    """Heavy-tailed jitter of the one-way delay: log-normal with the given median and shape."""

    median_s: NonNegative = Field(default=0.0, description="Median of the jitter of a message.")
    sigma: Annotated[float, Field(ge=0, le=3)] = Field(
        default=0.0, description="Standard deviation of its logarithm."
    )


class Ar1(Model):
    """A stationary Gaussian process with exponential autocorrelation, for the logarithm of a quantity."""

    sigma: Annotated[float, Field(ge=0, le=3)] = Field(description="Standard deviation of the process.")
    correlation_s: Positive = Field(description="Time after which the autocorrelation is 1/e.")


class BandwidthProcess(Model):
    """Bandwidth that varies around its nominal mean, constant for a period, independently in each direction.

    The bandwidth is log-normal. Its logarithm is the sum of a fast and a slow first-order process, because
    measured series are correlated over a second *and* over a minute, which a single process cannot reproduce.
    With `quantiles` the sum only ranks the values (a Gaussian copula), and the bandwidth has the given
    distribution, which need not be log-normal.
    """

    period_s: Positive = Field(default=1.0, description="Time for which the bandwidth stays constant.")
    fast: Ar1 = Field(description="The process, or the faster of two.")
    slow: Ar1 | None = Field(default=None, description="A second process, added to the first.")
    quantiles: tuple[Positive, Positive, Positive, Positive, Positive, Positive, Positive] | None = Field(
        default=None,
        description="Bandwidth, relative to the nominal value, at the 1, 5, 25, 50, 75, 95 and 99 % "
        "quantiles.",
    )

    @model_validator(mode="after")
    def _has_a_distribution(self) -> BandwidthProcess:
        if self.quantiles is None:
            return self
        if any(b < a for a, b in pairwise(self.quantiles)):
            raise ValueError(f"quantiles {self.quantiles} must not decrease")
        if self.fast.sigma == 0.0 and (self.slow is None or self.slow.sigma == 0.0):
            raise ValueError("quantiles need a process that varies: sigma > 0 of fast or slow")
        return self

    @property
    def parts(self) -> tuple[Ar1, ...]:
        """The one or two processes whose sum is used."""
        return (self.fast,) if self.slow is None else (self.fast, self.slow)


class DelayProcess(Model):
    """A time-varying delay on top of propagation and jitter, constant for a period.

    With `median_s` the delay is log-normal. With `quantiles_s` it has the given distribution, and `sigma`,
    `correlation_s` and `slow` only set the order in which its values occur (a Gaussian copula). Measured
    round trips do not show how they divide into the way up and the way down: with `both_ways` both directions
    have the same delay at any time, so that a round trip has twice the delay.
    """

    median_s: Positive | None = Field(default=None, description="Median of a log-normal one-way delay.")
    sigma: Annotated[float, Field(ge=0, le=3)] = Field(
        description="Standard deviation of the (fast) process of the logarithm."
    )
    correlation_s: Positive = Field(description="Time after which the autocorrelation is 1/e.")
    slow: Ar1 | None = Field(default=None, description="A second process, added to the first.")
    period_s: Positive = Field(default=0.1, description="Time for which the delay stays constant.")
    quantiles_s: tuple[Positive, Positive, Positive, Positive, Positive, Positive, Positive] | None = Field(
        default=None, description="One-way delay at the 1, 5, 25, 50, 75, 95 and 99 % quantiles."
    )
    both_ways: bool = Field(
        default=False, description="Whether both directions of the link have the same delay at any time."
    )

    @model_validator(mode="after")
    def _has_a_distribution(self) -> DelayProcess:
        if (self.median_s is None) == (self.quantiles_s is None):
            raise ValueError("give either median_s (log-normal) or quantiles_s")
        if self.quantiles_s is not None:
            if any(b < a for a, b in pairwise(self.quantiles_s)):
                raise ValueError(f"quantiles_s {self.quantiles_s} must not decrease")
            if all(part.sigma == 0.0 for part in self.parts):
                raise ValueError("quantiles_s need a process that varies: sigma > 0, or that of slow")
        return self

    @property
    def parts(self) -> tuple[Ar1, ...]:
        """The one or two processes whose sum is used."""
        fast = Ar1(sigma=self.sigma, correlation_s=self.correlation_s)
        return (fast,) if self.slow is None else (fast, self.slow)


class Outages(Model):
    """Outages in both directions at once, with exponential up and down times (Gilbert-Elliott)."""

    mean_up_s: Positive = Field(description="Mean time between outages.")
    mean_down_s: Positive = Field(description="Mean length of an outage.")


class Replay(Model):
    """A recorded series of bandwidth (and delay), repeated endlessly; see :mod:`dsd_env.network.series`."""

    file: str = Field(min_length=1, description="Path of a CSV or Mahimahi file, or name of a shipped file.")
    random_start: bool = Field(
        default=True, description="Whether each link starts at a random point of the series."
    )


class Link(Model):
    """A point-to-point path between two sites; each direction is a separate FIFO queue."""

    one_way_s: NonNegative = Field(description="One-way propagation delay, in each direction.")
    one_way_spread: tuple[Positive, Positive] = Field(
        default=(1.0, 1.0),
        description="Range of a uniform random factor on `one_way_s`, drawn for each device.",
    )
    uplink_bits_per_s: Positive = Field(
        description="Bandwidth towards the target, or towards the edge server."
    )
    downlink_bits_per_s: Positive = Field(description="Bandwidth back.")
    jitter: Jitter = Field(default=Jitter(), description="Random delay of each message.")
    loss_probability: Annotated[float, Field(ge=0, le=0.5)] = Field(
        default=0.0, description="Probability that a transmission is lost and repeated after `rto_s`."
    )
    rto_s: Positive = Field(default=0.2, description="Retransmission time-out.")
    bandwidth: BandwidthProcess | None = Field(
        default=None, description="How the bandwidth varies; None: it is constant."
    )
    delay: DelayProcess | None = Field(
        default=None, description="Further delay that varies; None: there is none."
    )
    outages: Outages | None = Field(default=None, description="When the link is down at random; None: never.")
    replay: Replay | None = Field(
        default=None, description="A recorded series, in place of `bandwidth` and `outages`."
    )

    @model_validator(mode="after")
    def _ordered(self) -> Link:
        if self.replay is not None and (self.bandwidth is not None or self.outages is not None):
            raise ValueError("replay takes the place of bandwidth and outages: give one or the other")
        if self.one_way_spread[0] > self.one_way_spread[1]:
            raise ValueError(f"one_way_spread {self.one_way_spread} must be [low, high] with low <= high")
        return self
