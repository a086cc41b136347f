"""Links: delay, bandwidth, loss, outages, and what they replay."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

from pydantic import Field, model_validator

from dsd_env.scenario.base import Model, NonNegative, Positive


class Jitter(Model):
    """Heavy-tailed one-way delay jitter: log-normal with the given median and shape."""

    median_s: NonNegative = 0.0
    sigma: Annotated[float, Field(ge=0, le=3)] = 0.0


class Ar1(Model):
    """A stationary Gaussian process with exponential autocorrelation, the logarithm of something."""

    sigma: Annotated[float, Field(ge=0, le=3)]
    correlation_s: Positive = Field(description="Time after which its autocorrelation is 1/e.")


class BandwidthProcess(Model):
    """Bandwidth around its nominal mean: log-normal, constant for a period, each direction on its own.

    The logarithm is the sum of a fast and a slow first-order process, since measured series are correlated
    over a second *and* over a minute, which one process cannot be. With `quantiles` that sum is only the
    ranking (a Gaussian copula): the distribution is the given one, which need not be log-normal.
    """

    period_s: Positive = 1.0
    fast: Ar1
    slow: Ar1 | None = None
    quantiles: tuple[Positive, Positive, Positive, Positive, Positive, Positive, Positive] | None = Field(
        default=None,
        description="Bandwidth over its nominal value at the 1, 5, 25, 50, 75, 95 and 99 % quantile.",
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
        """The processes that are added, one or two."""
        return (self.fast,) if self.slow is None else (self.fast, self.slow)


class DelayProcess(Model):
    """A delay on top of propagation and jitter that changes slowly: log-normal, constant for a period."""

    median_s: Positive
    sigma: Annotated[float, Field(ge=0, le=3)]
    correlation_s: Positive
    period_s: Positive = 0.1

    @property
    def parts(self) -> tuple[Ar1]:
        """The process of its logarithm."""
        return (Ar1(sigma=self.sigma, correlation_s=self.correlation_s),)


class Outages(Model):
    """Times without service, in both directions at once: exponential up and down times (Gilbert-Elliott)."""

    mean_up_s: Positive
    mean_down_s: Positive


class Replay(Model):
    """A recorded series of bandwidth (and delay), repeated for ever; see :mod:`dsd_env.network.series`."""

    file: str = Field(min_length=1, description="Path of a CSV or Mahimahi file, or name of a shipped one.")
    random_start: bool = Field(default=True, description="Every link begins elsewhere in it.")


class Link(Model):
    """A point-to-point path between two sites; each direction is a FIFO of its own."""

    one_way_s: NonNegative = Field(description="One-way propagation delay, each way.")
    one_way_spread: tuple[Positive, Positive] = Field(
        default=(1.0, 1.0),
        description="Each device's delay is one_way_s times a factor uniform in this range.",
    )
    uplink_bits_per_s: Positive
    downlink_bits_per_s: Positive
    jitter: Jitter = Jitter()
    loss_probability: Annotated[float, Field(ge=0, le=0.5)] = Field(
        default=0.0, description="Chance that a transmission is lost and repeated after `rto_s`."
    )
    rto_s: Positive = Field(default=0.2, description="Retransmission time-out.")
    bandwidth: BandwidthProcess | None = None
    delay: DelayProcess | None = None
    outages: Outages | None = None
    replay: Replay | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Link:
        if self.replay is not None and (self.bandwidth is not None or self.outages is not None):
            raise ValueError("replay takes the place of bandwidth and outages: give one or the other")
        if self.one_way_spread[0] > self.one_way_spread[1]:
            raise ValueError(f"one_way_spread {self.one_way_spread} must be [low, high] with low <= high")
        return self
