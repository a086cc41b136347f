"""The workload: arrivals, load, kinds of request, and service-level objectives."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, model_validator

from dsd_env.laws.constants import NO_BOUND_S
from dsd_env.scenario.base import Count, Fraction, Model, Name, NonNegative, Positive
from dsd_env.scenario.distributions import Duration, Length, LogNormal, Quantiles


class ClosedLoop(Model):
    """Closed loop: every client thinks, sends a request, waits for the whole answer, and thinks again."""

    kind: Literal["closed_loop"]
    think_s: Duration = Field(description="Time between an answer and the client's next request.")


class Poisson(Model):
    """Open Poisson arrivals at `rate_per_s` for the whole system, each from a uniformly drawn client."""

    kind: Literal["poisson"]
    rate_per_s: Positive = Field(description="Arrival rate of the whole system.")


class RateModulation(Model):
    """A random factor on the arrival rate, log-normal with mean one, which changes every `period_s`.

    The logarithm of the factor is a first-order process. It runs in the time of the load profile: faster at
    high load.
    """

    sigma: Annotated[float, Field(gt=0, le=3)] = Field(
        description="Standard deviation of the logarithm of the factor."
    )
    correlation_s: Positive = Field(description="Time after which the autocorrelation is 1/e.")
    period_s: Annotated[float, Field(ge=0.1, allow_inf_nan=False)] = Field(
        default=10.0, description="Time for which the factor stays constant."
    )


class BurstyClients(Model):
    """Clients whose gaps have a CV of their own; whether a client is one of them is drawn once."""

    fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        description="Probability that a client is one of them."
    )
    cv: Annotated[float, Field(ge=0.1, le=20)] = Field(description="Coefficient of variation of their gaps.")


class Renewal(Model):
    """Open arrivals with independent Weibull gaps, burstier (CV > 1) or steadier (CV < 1) than Poisson.

    The process has run for 32 mean gaps when the episode starts.
    """

    kind: Literal["renewal"]
    rate_per_s: Annotated[float, Field(ge=1e-6, le=1e6)] = Field(
        description="Arrival rate of the whole system, averaged over time."
    )
    cv: Annotated[float, Field(ge=0.1, le=20)] = Field(
        default=1.0, description="Coefficient of variation of the gaps, before modulation."
    )
    per_client: bool = Field(
        default=False,
        description="Whether each device has an arrival process of its own. False: there is one process, and "
        "the device of each request is drawn.",
    )
    client_rate_cv: Annotated[float, Field(ge=0, le=20)] = Field(
        default=0.0,
        description="CV of the log-normal rates of the devices (of their probability to be drawn), before "
        "the rates are scaled to `rate_per_s`; 0: all devices are alike.",
    )
    bursty: BurstyClients | None = Field(
        default=None, description="With `per_client`: some devices have gaps with another CV."
    )
    modulation: RateModulation | None = Field(
        default=None,
        description="Random changes of the rate; with `per_client`, independent for each device.",
    )

    @model_validator(mode="after")
    def _clients(self) -> Renewal:
        if self.bursty is not None and not self.per_client:
            raise ValueError("bursty needs per_client: true, since one process has no clients that differ")
        return self


class ReplayArrivals(Model):
    """Open arrivals with the times and lengths of a recorded trace; see :mod:`dsd_env.workload.trace`."""

    kind: Literal["replay"]
    trace: str = Field(min_length=1, description="Path of a trace of requests, as CSV.")
    trust_units: bool = Field(
        default=False,
        description="Trust that times are seconds: do not check whether they have another unit.",
    )
    start_s: NonNegative = Field(
        default=0.0,
        description="Time in the trace at which the replay begins; what comes before is left out.",
    )
    duration_s: Positive | None = Field(
        default=None, description="Length of the replayed part; None: up to the end of the trace."
    )
    rate_scale: Annotated[float, Field(gt=0, le=1e6)] = Field(
        default=1.0, description="Factor on the rate: at 2, the trace is replayed twice as fast."
    )
    loop: bool = Field(
        default=False, description="Whether to start again at the end. False: the workload is then finished."
    )
    random_start: bool = Field(
        default=False,
        description="Whether to begin at a time drawn from the seed and wrap around; without `loop`, once.",
    )
    trace_kinds: bool = Field(
        default=False,
        description="Whether kinds come from the trace, by name, instead of being drawn by weight.",
    )


Arrivals = Annotated[ClosedLoop | Poisson | Renewal | ReplayArrivals, Field(discriminator="kind")]


class LoadProfile(Model):
    """Periodic, piecewise-linear multiplier on the arrival rate (or on 1 / think time)."""

    period_s: Positive = Field(default=60.0, description="Length of a cycle of the load.")
    points: tuple[tuple[Fraction, Positive], ...] = Field(
        default=((0.0, 1.0),),
        min_length=1,
        description="(phase in [0, 1), multiplier) points, phases increasing; the last connects to the "
        "first.",
    )
    random_phase: bool = Field(
        default=True, description="Whether the episode starts at a phase drawn from the seed."
    )

    @model_validator(mode="after")
    def _increasing(self) -> LoadProfile:
        phases = [phase for phase, _ in self.points]
        if phases[0] != 0.0 or phases[-1] >= 1.0 or any(b <= a for a, b in pairwise(phases)):
            raise ValueError(f"phases {phases} must start at 0, increase strictly and stay below 1")
        return self


class TokenDeadlines(Model):
    """A deadline for every token of an answer, relative to the request's arrival.

    Token k, counted from 0, is due at ``first_s + k * per_token_s``, as for a reader who starts on time and
    reads at a constant pace (the expected delivery of Andes, arXiv 2404.16283). Tokens delivered ahead of
    schedule make up for a later stall, which a bound on every gap would not allow.
    """

    first_s: Positive = Field(description="Time from arrival to the deadline of the first token.")
    per_token_s: Positive = Field(description="Time between the deadlines of successive tokens.")
    token_share: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0, description="Share of the tokens that must be on time."
    )


class Slo(Model):
    """A class of service-level objectives (SLO): a request must meet every bound; at least one is given."""

    ttft_s: Positive | None = Field(default=None, description="Bound on the time to first token.")
    tpot_s: Positive | None = Field(
        default=None, description="Bound on the mean time per token after the first."
    )
    itl_p99_s: Positive | None = Field(
        default=None, description="Bound on the 99th percentile of the request's gaps between tokens."
    )
    deadlines: TokenDeadlines | None = Field(default=None, description="A deadline for every token.")

    @model_validator(mode="after")
    def _bounds_something(self) -> Slo:
        if all(bound is None for bound in (self.ttft_s, self.tpot_s, self.itl_p99_s, self.deadlines)):
            raise ValueError("an SLO needs at least one bound > 0: ttft_s, tpot_s, itl_p99_s or deadlines")
        return self

    def bounds(self) -> dict[str, float]:
        """Return every bound by its name in :mod:`dsd_env.laws.slo`."""
        late = self.deadlines
        return {
            "slo_ttft_s": NO_BOUND_S if self.ttft_s is None else self.ttft_s,
            "slo_tpot_s": NO_BOUND_S if self.tpot_s is None else self.tpot_s,
            "slo_itl_p99_s": NO_BOUND_S if self.itl_p99_s is None else self.itl_p99_s,
            "slo_first_s": NO_BOUND_S if late is None else late.first_s,
            "slo_per_token_s": NO_BOUND_S if late is None else late.per_token_s,
            "slo_token_share": 0.0 if late is None else late.token_share,
        }


class RequestKind(Model):
    """One component of the request mix."""

    weight: Positive = Field(description="Relative frequency of the kind.")
    slo: Name = Field(description="Class of objectives, an entry of `slo`.")
    acceptance_kinds: tuple[str, ...] = Field(
        default=(), description="Kinds of recorded requests to replay; empty: any kind in the source."
    )
    prompt_tokens: Length = Field(description="Distribution of prompt lengths, cut at `max_prompt_tokens`.")
    output_tokens: Length = Field(description="Distribution of answer lengths, cut at `max_output_tokens`.")
    length_correlation: Annotated[float, Field(ge=-1, le=1)] = Field(
        default=0.0,
        description="Correlation of the normal variates from which the two lengths come (Gaussian copula).",
    )

    @model_validator(mode="after")
    def _correlated(self) -> RequestKind:
        for key in ("prompt_tokens", "output_tokens"):
            law = getattr(self, key)
            if self.length_correlation != 0.0 and not isinstance(law, LogNormal | Quantiles):
                raise ValueError(
                    f"length_correlation = {self.length_correlation} needs {key} to be lognormal or "
                    f"quantiles, not {law.distribution}"
                )
        return self


class Workload(Model):
    """The workload: arrivals, load profile, and the mix of request kinds."""

    arrivals: Arrivals = Field(description="When requests arrive, and from which devices.")
    load: LoadProfile = Field(default=LoadProfile(), description="How the arrival rate changes over a cycle.")
    kinds: dict[Name, RequestKind] = Field(min_length=1, description="Kinds of request by name.")
    max_prompt_tokens: Count = Field(default=4096, description="Longest prompt; longer ones are cut.")
    max_output_tokens: Count = Field(default=1024, description="Longest answer; longer ones are cut.")

    @model_validator(mode="after")
    def _recorded(self) -> Workload:
        if isinstance(self.arrivals, ReplayArrivals) and self.load.points != ((0.0, 1.0),):
            raise ValueError(
                f"load.points = {self.load.points} would not change a replayed trace: leave load out "
                "(`load: null`) and use arrivals.rate_scale"
            )
        return self
