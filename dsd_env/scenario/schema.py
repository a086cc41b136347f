"""The scenario schema: every number a simulation depends on, with its unit and its allowed range.

All models are frozen and reject unknown keys. Times are seconds, sizes bytes or tokens, rates per
second, power watts, energy joules, money US dollars.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from dsd_env.laws.constants import NO_BOUND_S
from dsd_env.strict_model import StrictNumbers

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._\-]*$", max_length=80)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]

MAX_GAMMA = 64
MAX_PLACEMENTS = 64


class _Model(StrictNumbers, BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Card(_Model):
    """What a scenario stands for, in words and measured numbers."""

    models: str = Field(description="The situation and the models it is about.")
    regime: str = Field(description="What limits performance here, and what a scheduler can win.")
    utilisation: str = Field(
        description="Measured utilisation and queueing, with the command that measured it."
    )
    limits: str = Field(default="", description="What the scenario does not say.")


class Power(_Model):
    """Electrical power of a device or server (all its GPUs together)."""

    idle_w: NonNegative
    busy_w: NonNegative

    @model_validator(mode="after")
    def _ordered(self) -> Power:
        if self.busy_w < self.idle_w:
            raise ValueError(f"busy_w ({self.busy_w}) must be at least idle_w ({self.idle_w})")
        return self


class SyntheticProfile(_Model):
    """Coefficients of the iteration time given in the scenario itself, for theory and what-if studies.

    t = t0 + (w^p + (c*m)^p)^(1/p) + k_bw * sum_kv + [any q > 1] * (k_multi * sum_kv + k_lat * max_kv); see
    :mod:`dsd_env.latency.profile` for their meaning and for profiles fitted to measurements.
    """

    t0_s: NonNegative = 0.0
    w_s: NonNegative = 0.0
    c_s_per_token: NonNegative = 0.0
    p: Annotated[float, Field(ge=1, le=64)] = 1.0
    k_bw_s_per_token: NonNegative = 0.0
    k_multi_s_per_token: NonNegative = 0.0
    k_lat_s_per_token: NonNegative = 0.0

    @model_validator(mode="after")
    def _takes_time(self) -> SyntheticProfile:
        if self.t0_s + self.w_s <= 0.0:
            raise ValueError("t0_s + w_s must be > 0: an iteration has to take time")
        return self


ProfileName = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._\-]*$|\.ya?ml$",
        description="Name of a shipped latency profile, or path of a YAML file.",
    ),
]
Profile = Annotated[
    Annotated[ProfileName, Tag("<name>")] | Annotated[SyntheticProfile, Tag("<coefficients>")],
    Discriminator(lambda value: "<name>" if isinstance(value, str) else "<coefficients>"),
]


class Drafter(_Model):
    """A draft model on a device or an edge server."""

    model: Name = Field(description="Draft model; names an entry of `acceptance`.")
    profile: Profile = Field(description="Latency profile of the model on this device.")
    concurrency: int = Field(default=1, ge=1, le=256, description="Sequences drafted at the same time.")
    kv_capacity_tokens: int = Field(
        default=1_000_000,
        ge=1,
        description="Longest context the drafter can hold; beyond it, it cannot draft.",
    )


class ColocatedDrafter(_Model):
    """A draft model on the target's own server.

    `shared` runs it on the target's GPUs: its steps lengthen the iteration for every sequence in it.
    `dedicated` gives it `gpus` GPUs of its own: a queue beside the target, paid for in cost and energy.
    """

    model: Name
    profile: Profile
    mode: Literal["shared", "dedicated"] = "shared"
    concurrency: int = Field(default=1, ge=1, le=256, description="Sequences drafted at once (dedicated).")
    gpus: NonNegative = Field(default=0.0, description="GPUs of its own (dedicated).")
    power: Power = Power(idle_w=0.0, busy_w=0.0)

    @model_validator(mode="after")
    def _dedicated_has_gpus(self) -> ColocatedDrafter:
        if self.mode == "dedicated" and self.gpus == 0:
            raise ValueError("mode 'dedicated' needs gpus > 0: the drafter's own GPUs are paid for")
        return self


class Jitter(_Model):
    """Heavy-tailed one-way delay jitter: log-normal with the given median and shape."""

    median_s: NonNegative = 0.0
    sigma: Annotated[float, Field(ge=0, le=3)] = 0.0


class Ar1(_Model):
    """A stationary Gaussian process with exponential autocorrelation, the logarithm of something."""

    sigma: Annotated[float, Field(ge=0, le=3)]
    correlation_s: Positive = Field(description="Time after which its autocorrelation is 1/e.")


class BandwidthProcess(_Model):
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


class DelayProcess(_Model):
    """A delay on top of propagation and jitter that changes slowly: log-normal, constant for a period."""

    median_s: Positive
    sigma: Annotated[float, Field(ge=0, le=3)]
    correlation_s: Positive
    period_s: Positive = 0.1

    @property
    def parts(self) -> tuple[Ar1]:
        """The process of its logarithm."""
        return (Ar1(sigma=self.sigma, correlation_s=self.correlation_s),)


class Outages(_Model):
    """Times without service, in both directions at once: exponential up and down times (Gilbert-Elliott)."""

    mean_up_s: Positive
    mean_down_s: Positive


class Replay(_Model):
    """A recorded series of bandwidth (and delay), repeated for ever; see :mod:`dsd_env.network.series`."""

    file: str = Field(min_length=1, description="Path of a CSV or Mahimahi file, or name of a shipped one.")
    random_start: bool = Field(default=True, description="Every link begins elsewhere in it.")


class Link(_Model):
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


class DeviceClass(_Model):
    """A class of client devices; every device has one user."""

    count: Count
    drafter: Drafter | None = None
    link: Name = Field(description="Link to every target.")
    edge_link: Name | None = Field(default=None, description="Link to every edge server.")
    power: Power = Field(description="Power while idle and while drafting.")
    radio_joules_per_byte: NonNegative = 0.0
    speed_spread: tuple[Positive, Positive] = Field(
        default=(1.0, 1.0), description="Each device's draft time is the profile's times a uniform factor."
    )


class EdgeServer(_Model):
    """A shared drafter near the clients."""

    count: Count = 1
    drafter: Drafter
    backhaul: Name = Field(description="Link to every target, shared by all that draft here.")
    gpus: Positive = 1.0
    price_usd_per_gpu_hour: NonNegative = 0.0
    power: Power


class Target(_Model):
    """A verification server in the cloud: continuous batching with B as fill target and cap."""

    count: Count = 1
    profile: Profile
    gpus: Positive
    kv_capacity_tokens: Annotated[int, Field(ge=1, le=1_000_000_000)]
    max_batch_size: Annotated[int, Field(ge=1, le=4096)] = 128
    initial_batch_size: Annotated[int, Field(ge=1, le=4096)] = Field(
        default=128, description="Batch size in force until a decision sets another."
    )
    max_batch_wait_s: NonNegative = Field(
        default=0.004, description="Longest time that the oldest queued sequence waits for B to fill."
    )
    prefill_chunk_tokens: Annotated[int, Field(ge=16, le=65536)] = 512
    kv_policy: Literal["reserve", "preempt"] = Field(
        default="reserve",
        description="reserve: a request is admitted when its worst case fits. preempt: when its prompt "
        "fits; if the pool overflows later, whoever was admitted last loses its KV and is prefilled again.",
    )
    graph_batch_tokens: tuple[Annotated[int, Field(ge=1, le=65536)], ...] = Field(
        default=(),
        description="Captured sizes (CUDA graphs): an iteration without prefill takes the time of the next "
        "captured number of new tokens; beyond the largest, and if empty, its own.",
    )
    order: Literal["decode_first", "prefill_first"] = "decode_first"
    within_class: Literal["fifo", "shortest_first"] = "fifo"
    colocated_drafter: ColocatedDrafter | None = None
    iteration_noise_sigma: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0, description="Shape of the log-normal, mean-one factor on each iteration's time."
    )
    straggler_share: Fraction = Field(
        default=0.0,
        description="Share of iterations that are stragglers, each by chance of its own. Where it was "
        "measured, the profile's `noise` has it, beside sigma and factor.",
    )
    straggler_factor: Annotated[float, Field(ge=1, le=1000)] = Field(
        default=1.0, description="How many times as long a straggler takes, beside the noise."
    )
    price_usd_per_gpu_hour: NonNegative = 0.0
    power: Power

    @model_validator(mode="after")
    def _batch(self) -> Target:
        sizes = self.graph_batch_tokens
        if any(b <= a for a, b in pairwise(sizes)):
            raise ValueError(f"graph_batch_tokens {sizes} must increase strictly")
        if self.initial_batch_size > self.max_batch_size:
            raise ValueError(
                f"initial_batch_size ({self.initial_batch_size}) must not exceed "
                f"max_batch_size ({self.max_batch_size})"
            )
        return self


class Constant(_Model):
    """A fixed number of tokens or seconds."""

    distribution: Literal["constant"]
    value: NonNegative


class LogNormal(_Model):
    """Log-normal by median and shape, clipped to [low, high]."""

    distribution: Literal["lognormal"]
    median: Positive
    sigma: Annotated[float, Field(ge=0, le=4)]
    low: NonNegative = 0.0
    high: Positive = 1.0e9

    @model_validator(mode="after")
    def _ordered(self) -> LogNormal:
        if self.low > self.high:
            raise ValueError(f"low ({self.low}) must not exceed high ({self.high})")
        return self


class Exponential(_Model):
    """Exponential by mean."""

    distribution: Literal["exponential"]
    mean: Positive


class Geometric(_Model):
    """Geometric on 1, 2, 3, ... by mean."""

    distribution: Literal["geometric"]
    mean: Annotated[float, Field(ge=1)]


class Quantiles(_Model):
    """Any positive distribution, by its quantiles.

    The logarithm is linear between them in terms of the normal quantile, as a log-normal's is everywhere;
    what lies beyond the outer levels has the outer values.
    """

    distribution: Literal["quantiles"]
    levels: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(min_length=2, max_length=64)
    values: tuple[Positive, ...] = Field(min_length=2, max_length=64)

    @model_validator(mode="after")
    def _ordered(self) -> Quantiles:
        if len(self.levels) != len(self.values):
            raise ValueError(f"{len(self.levels)} levels and {len(self.values)} values: give one for each")
        if any(b <= a for a, b in pairwise(self.levels)):
            raise ValueError(f"levels {self.levels} must increase strictly")
        if any(b < a for a, b in pairwise(self.values)):
            raise ValueError(f"values {self.values} must not fall")
        return self


Duration = Annotated[Constant | LogNormal | Exponential, Field(discriminator="distribution")]
Length = Annotated[Constant | LogNormal | Geometric | Quantiles, Field(discriminator="distribution")]


class ClosedLoop(_Model):
    """Every client thinks, asks, waits for the whole answer, and thinks again."""

    kind: Literal["closed_loop"]
    think_s: Duration


class Poisson(_Model):
    """Open arrivals at `rate_per_s` for the whole system, each from a uniformly drawn client."""

    kind: Literal["poisson"]
    rate_per_s: Positive


class RateModulation(_Model):
    """A factor on the arrival rate, log-normal with mean one, constant for `period_s`, then the next.

    Its logarithm is a first-order process. It goes on in the time of the load profile: faster at high load.
    """

    sigma: Annotated[float, Field(gt=0, le=3)]
    correlation_s: Positive
    period_s: Annotated[float, Field(ge=0.1, allow_inf_nan=False)] = 10.0


class BurstyClients(_Model):
    """Clients whose gaps vary more than those of the others; each is one by chance, drawn once."""

    fraction: Annotated[float, Field(gt=0, lt=1)]
    cv: Annotated[float, Field(ge=0.1, le=20)]


class Renewal(_Model):
    """Open arrivals with independent Weibull gaps: more (CV > 1) or less (CV < 1) bursty than Poisson's.

    The process has gone on for 32 mean gaps when the episode starts.
    """

    kind: Literal["renewal"]
    rate_per_s: Annotated[float, Field(ge=1e-6, le=1e6)] = Field(
        description="For the whole system, on average over time."
    )
    cv: Annotated[float, Field(ge=0.1, le=20)] = Field(
        default=1.0, description="Coefficient of variation of the gaps, before modulation."
    )
    per_client: bool = Field(
        default=False,
        description="Each device is a process of its own; otherwise there is one, and the device of "
        "each of its requests is drawn.",
    )
    client_rate_cv: Annotated[float, Field(ge=0, le=20)] = Field(
        default=0.0,
        description="Log-normal spread of the devices' rates (of their chance to be drawn), before they are "
        "scaled to `rate_per_s`; 0: all alike.",
    )
    bursty: BurstyClients | None = Field(
        default=None, description="With `per_client`: some devices' gaps have another CV."
    )
    modulation: RateModulation | None = Field(
        default=None, description="How the rate changes at random; with `per_client` each device's by itself."
    )

    @model_validator(mode="after")
    def _clients(self) -> Renewal:
        if self.bursty is not None and not self.per_client:
            raise ValueError("bursty needs per_client: true, since one process has no clients that differ")
        return self


class ReplayArrivals(_Model):
    """Open arrivals as recorded: times and lengths are those of a file, see :mod:`dsd_env.workload.trace`."""

    kind: Literal["replay"]
    trace: str = Field(min_length=1, description="Path of a trace of requests, as CSV.")
    trust_units: bool = Field(
        default=False, description="Its times are seconds: do not ask whether they may be in another unit."
    )
    start_s: NonNegative = Field(default=0.0, description="What comes before in the trace is left out.")
    duration_s: Positive | None = Field(
        default=None, description="Length of the part that is replayed; without it, to the trace's end."
    )
    rate_scale: Annotated[float, Field(gt=0, le=1e6)] = Field(
        default=1.0, description="At 2, the trace goes by twice as fast: twice the rate."
    )
    loop: bool = Field(
        default=False, description="Begin again at the end; without it the workload is finished then."
    )
    random_start: bool = Field(
        default=False,
        description="Begin at a time drawn from the seed and go round; without `loop`, once round.",
    )
    trace_kinds: bool = Field(
        default=False, description="Kinds are those of the trace, by name, instead of drawn by weight."
    )


Arrivals = Annotated[ClosedLoop | Poisson | Renewal | ReplayArrivals, Field(discriminator="kind")]


class LoadProfile(_Model):
    """Periodic, piecewise-linear multiplier on the arrival rate (or on 1 / think time)."""

    period_s: Positive = 60.0
    points: tuple[tuple[Fraction, Positive], ...] = Field(
        default=((0.0, 1.0),),
        min_length=1,
        description="(phase in [0, 1), multiplier), phases increasing; the last joins the first.",
    )
    random_phase: bool = Field(default=True, description="Start the episode at a phase drawn from the seed.")

    @model_validator(mode="after")
    def _increasing(self) -> LoadProfile:
        phases = [phase for phase, _ in self.points]
        if phases[0] != 0.0 or phases[-1] >= 1.0 or any(b <= a for a, b in pairwise(phases)):
            raise ValueError(f"phases {phases} must start at 0, increase strictly and stay below 1")
        return self


class TokenDeadlines(_Model):
    """A deadline for every token of an answer, from the request's arrival on.

    Token k, counted from 0, is due at ``first_s + k * per_token_s``: what a reader needs who begins in time
    and goes on at a constant pace (the expected delivery of Andes, arXiv 2404.16283). A burst ahead of the
    schedule is credit for a later stall, which a bound on every gap does not know.
    """

    first_s: Positive
    per_token_s: Positive
    token_share: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0, description="Share of the tokens that must be in time."
    )


class Slo(_Model):
    """A class of service-level objective: a request has to meet every bound given, at least one."""

    ttft_s: Positive | None = Field(default=None, description="Bound on the time to first token.")
    tpot_s: Positive | None = Field(default=None, description="Bound on the mean time per further token.")
    itl_p99_s: Positive | None = Field(
        default=None, description="Bound on the 99th percentile of the request's gaps between tokens."
    )
    deadlines: TokenDeadlines | None = None

    @model_validator(mode="after")
    def _bounds_something(self) -> Slo:
        if all(bound is None for bound in (self.ttft_s, self.tpot_s, self.itl_p99_s, self.deadlines)):
            raise ValueError("an SLO needs at least one bound > 0: ttft_s, tpot_s, itl_p99_s or deadlines")
        return self

    def bounds(self) -> dict[str, float]:
        """Return every bound by the name that the laws know it by; see :mod:`dsd_env.laws.slo`."""
        late = self.deadlines
        return {
            "slo_ttft_s": NO_BOUND_S if self.ttft_s is None else self.ttft_s,
            "slo_tpot_s": NO_BOUND_S if self.tpot_s is None else self.tpot_s,
            "slo_itl_p99_s": NO_BOUND_S if self.itl_p99_s is None else self.itl_p99_s,
            "slo_first_s": NO_BOUND_S if late is None else late.first_s,
            "slo_per_token_s": NO_BOUND_S if late is None else late.per_token_s,
            "slo_token_share": 0.0 if late is None else late.token_share,
        }


class RequestKind(_Model):
    """One component of the request mix."""

    weight: Positive
    slo: Name
    acceptance_kinds: tuple[str, ...] = Field(
        default=(), description="Kinds of recorded request to replay; empty: any the source has."
    )
    prompt_tokens: Length
    output_tokens: Length
    length_correlation: Annotated[float, Field(ge=-1, le=1)] = Field(
        default=0.0,
        description="Correlation of the normal variates behind the two lengths (Gaussian copula).",
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


class Workload(_Model):
    """Who asks when, for how much."""

    arrivals: Arrivals
    load: LoadProfile = LoadProfile()
    kinds: dict[Name, RequestKind] = Field(min_length=1)
    max_prompt_tokens: Count = 4096
    max_output_tokens: Count = 1024

    @model_validator(mode="after")
    def _recorded(self) -> Workload:
        if isinstance(self.arrivals, ReplayArrivals) and self.load.points != ((0.0, 1.0),):
            raise ValueError(
                f"load.points = {self.load.points} would not change a replayed trace: leave load out "
                "(`load: null`) and use arrivals.rate_scale"
            )
        return self


class TraceAcceptance(_Model):
    """Replay of a recorded trace set: exact for every speculation length."""

    source: Literal["trace"]
    trace: str = Field(min_length=1, description="Name of a shipped trace set, or a path.")
    drafter: Name = Field(description="Which drafter of the recording.")


class FittedAcceptance(_Model):
    """Replay of requests drawn from a fitted model, for pairs whose recordings cannot be shipped."""

    source: Literal["fitted"]
    model: str = Field(min_length=1, description="Name of a shipped fitted model, or a path.")
    drafter: Name = Field(description="Which drafter of the model.")


class IidAcceptanceConfig(_Model):
    """Every draft token is accepted with probability alpha, independently (synthetic)."""

    source: Literal["iid"]
    alpha: Fraction


class MarkovAcceptanceConfig(_Model):
    """Acceptance with memory: the chance of a match after a match and after a mismatch (synthetic)."""

    source: Literal["markov"]
    after_match: Fraction
    after_mismatch: Fraction


AcceptanceConfig = Annotated[
    TraceAcceptance | FittedAcceptance | IidAcceptanceConfig | MarkovAcceptanceConfig,
    Field(discriminator="source"),
]


class Protocol(_Model):
    """The coordinated execution protocol between drafter and target."""

    kind: Literal["synchronous", "pipelined"] = Field(
        default="synchronous",
        description="pipelined: while a window is verified, its drafter goes on as if all of it and its own "
        "guess of the token after it were accepted.",
    )
    header_bytes: NonNegative = 64.0
    bytes_per_token: NonNegative = 4.0
    draft_probabilities: Literal["none", "scalar", "top_k"] = "none"
    top_k: Annotated[int, Field(ge=1, le=4096)] = 16
    bytes_per_probability: NonNegative = 2.0
    plain_chunk_tokens: Annotated[int, Field(ge=1, le=1024)] = 8
    confidence_stop: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0,
        description="Drafting ends after a token whose top-1 probability is below this; 0: never.",
    )
    decision_latency_s: NonNegative = 0.0
    patience_s: Positive | None = Field(
        default=None,
        description="A target that gets no draft for so long after it sent a result decodes on alone.",
    )
    client_timeout_s: Positive | None = Field(
        default=None,
        description="A device that hears nothing for so long after it sent drafts sends them again, then "
        "waits twice as long.",
    )
    crash_detection_s: Positive = Field(
        default=0.25, description="Time until a crashed target's clients are being told."
    )
    telemetry_period_s: Positive = Field(default=0.05, description="How often servers publish their state.")
    stats_window: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.2, description="Weight of the newest sample in running estimates (EMA)."
    )

    @property
    def bytes_per_draft_token(self) -> float:
        """Bytes that one draft token takes on the way to the target."""
        if self.draft_probabilities == "none":
            return self.bytes_per_token
        if self.draft_probabilities == "scalar":
            return self.bytes_per_token + self.bytes_per_probability
        return self.bytes_per_token + self.top_k * (self.bytes_per_probability + self.bytes_per_token)


class Fault(_Model):
    """Something that fails now and then, and comes back.

    Every member of the class fails on its own: at the times in `at_s`, and after exponential times in
    service with mean `mean_interval_s`.
    """

    kind: Literal["link_outage", "bandwidth_collapse", "device_crash", "edge_crash", "target_crash"]
    of: Name = Field(
        description="The class that fails: of targets (target_crash), of edge servers (edge_crash), of "
        "devices (device_crash), of one of the two (link_outage, bandwidth_collapse: all its links)."
    )
    member: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="The only member of the class that fails, from 0; without it, each does."
    )
    at_s: tuple[NonNegative, ...] = Field(default=(), description="Scheduled beginnings, increasing.")
    mean_interval_s: Positive | None = Field(default=None, description="Mean time in service between faults.")
    duration_s: Duration
    bandwidth_factor: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.1, description="What is left of the bandwidth (bandwidth_collapse)."
    )

    @model_validator(mode="after")
    def _happens(self) -> Fault:
        if any(b <= a for a, b in pairwise(self.at_s)):
            raise ValueError(f"at_s {self.at_s} must increase strictly")
        if (len(self.at_s) == 0) == (self.mean_interval_s is None):
            raise ValueError("give either at_s (scheduled) or mean_interval_s (random)")
        return self


class Actions(_Model):
    """The lists that actions index into."""

    gammas: tuple[Annotated[int, Field(ge=0, le=MAX_GAMMA)], ...] = tuple(range(17))
    batch_sizes: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = (1, 2, 4, 8, 16, 32, 64, 128)
    targets_offered: Annotated[int, Field(ge=1, le=64)] = Field(
        default=2, description="Targets in the candidate list: the current one and the least loaded others."
    )

    @model_validator(mode="after")
    def _lists(self) -> Actions:
        for key, values in (("gammas", self.gammas), ("batch_sizes", self.batch_sizes)):
            if len(values) == 0 or any(b <= a for a, b in pairwise(values)):
                raise ValueError(f"{key} {values} must be non-empty and strictly increasing")
        if self.gammas[0] != 0:
            raise ValueError(
                f"gammas {self.gammas} must begin with 0 (plain decoding), the fallback of every action"
            )
        return self


class RewardWeights(_Model):
    """Weights of the named reward terms; every term is a cost per reference unit (see docs)."""

    latency: NonNegative = 1.0
    tpot: NonNegative = 0.0
    goodput: NonNegative = 0.0
    slo_violation: NonNegative = 0.0
    cloud_cost: NonNegative = 0.0
    energy: NonNegative = 0.0
    bytes: NonNegative = 0.0
    progress: NonNegative = 0.0


class Reward(_Model):
    """Weights and the reference values that make returns comparable across scenarios."""

    weights: RewardWeights = RewardWeights()
    reference_e2e_s: Positive = Field(
        default=5.0, description="A usual request time here; one unit of latency cost."
    )
    reference_usd_per_request: Positive = 1.0e-3
    reference_joules_per_request: Positive = 1.0e3
    reference_bytes_per_request: Positive = 1.0e4
    reference_output_tokens: Positive = 150.0


class Episode(_Model):
    """When an episode ends, and what its metrics are about.

    Either a window of simulated time, the same for every scheduler: after `warmup_s`, the requests that
    arrive in the next `window_s` are measured, and the episode goes on, with new arrivals, until all of them
    are done. Or a number of requests: `requests` after `warmup_requests`, by order of arrival.
    """

    requests: Count | None = Field(
        default=None,
        description="Truncate when so many requests have completed; 300 if there is no window either.",
    )
    horizon_s: Positive = Field(default=3600.0, description="Truncate at this simulated time.")
    warmup_requests: Annotated[int, Field(ge=0)] = Field(
        default=0, description="Requests by order of arrival that metrics leave out."
    )
    warmup_s: NonNegative = Field(default=0.0, description="Time before the window, which metrics leave out.")
    window_s: Positive | None = Field(
        default=None, description="Length of the window that is measured; whole cycles of the load."
    )
    total_requests: Count | None = Field(
        default=None,
        description="Stop arrivals after so many; the episode then terminates when all are done.",
    )

    @model_validator(mode="before")
    @classmethod
    def _by_number_or_by_time(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("window_s") is None and data.get("requests") is None:
            return {**data, "requests": 300}
        return data

    @model_validator(mode="after")
    def _one_or_the_other(self) -> Episode:
        if self.window_s is None:
            if self.warmup_s > 0.0:
                raise ValueError(f"warmup_s = {self.warmup_s} needs window_s; with requests, warmup_requests")
            return self
        for key in ("requests", "warmup_requests"):
            if getattr(self, key):
                raise ValueError(
                    f"{key} = {getattr(self, key)} beside window_s = {self.window_s}: measure a number of "
                    "requests (`window_s: null, warmup_s: 0`) or a window of time (`requests: null`)"
                )
        if self.end_s > self.horizon_s:
            raise ValueError(
                f"the window ends at warmup_s + window_s = {self.end_s}, after horizon_s = {self.horizon_s}"
            )
        return self

    @property
    def measured_requests(self) -> int:
        """Number of requests to measure; 0 with a window."""
        return self.requests or 0

    @property
    def end_s(self) -> float:
        """End of the window."""
        return self.warmup_s + (self.window_s or 0.0)


class Scenario(_Model):
    """A complete, validated scenario. See ``configs/scenarios/`` for the shipped ones."""

    name: Name
    version: Annotated[int, Field(ge=1)] = 1
    card: Card
    devices: dict[Name, DeviceClass] = Field(min_length=1)
    edge_servers: dict[Name, EdgeServer] = {}
    targets: dict[Name, Target] = Field(min_length=1)
    links: dict[Name, Link] = Field(min_length=1)
    workload: Workload
    slo: dict[Name, Slo] = Field(min_length=1)
    acceptance: dict[Name, AcceptanceConfig] = {}
    protocol: Protocol = Protocol()
    faults: dict[Name, Fault] = {}
    actions: Actions = Actions()
    reward: Reward = Reward()
    episode: Episode = Episode()
    egress_usd_per_gigabyte: NonNegative = 0.0
    client_usd_per_kwh: NonNegative = Field(
        default=0.0, description="What users pay for the electricity of their devices."
    )

    @model_validator(mode="after")
    def _references(self) -> Scenario:
        def need(key: str, name: str | None, table: dict[str, object], what: str) -> None:
            if name is not None and name not in table:
                raise ValueError(f"{key} = {name!r} is not among the {what}: {sorted(table)}")

        links, accept = dict[str, object](self.links), dict[str, object](self.acceptance)
        for name, device in self.devices.items():
            need(f"devices.{name}.link", device.link, links, "links")
            need(f"devices.{name}.edge_link", device.edge_link, links, "links")
            if device.drafter:
                need(f"devices.{name}.drafter.model", device.drafter.model, accept, "acceptance sources")
        for name, edge in self.edge_servers.items():
            need(f"edge_servers.{name}.backhaul", edge.backhaul, links, "links")
            need(f"edge_servers.{name}.drafter.model", edge.drafter.model, accept, "acceptance sources")
        for name, target in self.targets.items():
            if target.colocated_drafter:
                model = target.colocated_drafter.model
                need(f"targets.{name}.colocated_drafter.model", model, accept, "acceptance sources")
        for name, kind in self.workload.kinds.items():
            need(f"workload.kinds.{name}.slo", kind.slo, dict[str, object](self.slo), "SLO classes")
        sites: dict[str, dict[str, object]] = {
            "target_crash": {**self.targets},
            "edge_crash": {**self.edge_servers},
            "device_crash": {**self.devices},
        }
        if both := sorted(set(self.devices) & set(self.edge_servers)):
            raise ValueError(f"edge_servers {both} have the names of classes of devices: rename them")
        either: dict[str, object] = {**self.devices, **self.edge_servers}
        for name, fault in self.faults.items():
            table = sites.get(fault.kind, either)
            need(f"faults.{name}.of", fault.of, table, f"classes that a {fault.kind} can hit")
            count = getattr(table[fault.of], "count")  # noqa: B009
            if fault.member is not None and fault.member >= count:
                raise ValueError(
                    f"faults.{name}.member = {fault.member} must be below the count of {fault.of!r}, {count}"
                )
        self._fits()
        self._whole_cycles()
        return self

    def _whole_cycles(self) -> None:
        """Check that a window is as long as whole cycles of a load that changes."""
        load, window_s = self.workload.load, self.episode.window_s
        if window_s is None or len({value for _, value in load.points}) == 1:
            return
        cycles = window_s / load.period_s
        if round(cycles) < 1 or abs(cycles - round(cycles)) > 1e-9 * cycles:
            few = max(1, int(cycles))
            raise ValueError(
                f"episode.window_s = {window_s} is {cycles:.4g} cycles of the load (workload.load.period_s = "
                f"{load.period_s}), not a whole number: {few * load.period_s:g} or "
                f"{(few + 1) * load.period_s:g}"
            )

    @property
    def load_cycles(self) -> int:
        """Whole cycles of a changing load in the window; 0 if the load is constant or there is no window."""
        load, window_s = self.workload.load, self.episode.window_s
        if window_s is None or len({value for _, value in load.points}) == 1:
            return 0
        return round(window_s / load.period_s)

    def _fits(self) -> None:
        needed = self.kv_reservation_tokens(self.workload.max_prompt_tokens)
        for name, target in self.targets.items():
            if target.kv_capacity_tokens < needed:
                raise ValueError(
                    f"targets.{name}.kv_capacity_tokens = {target.kv_capacity_tokens} cannot hold the "
                    f"longest request: at least {needed} "
                    "(max_prompt_tokens + max_output_tokens + largest gamma + 1)"
                )
        if self.n_placements > MAX_PLACEMENTS:
            raise ValueError(
                f"actions.targets_offered = {self.actions.targets_offered} makes {self.n_placements} "
                f"placements; at most {MAX_PLACEMENTS} are supported"
            )

    def kv_reservation_tokens(self, prompt_tokens: int) -> int:
        """Return the KV tokens that a request reserves at its target for its whole stay."""
        return prompt_tokens + self.workload.max_output_tokens + max(self.actions.gammas) + 1

    @property
    def n_targets(self) -> int:
        """Number of target servers."""
        return sum(target.count for target in self.targets.values())

    @property
    def max_batch_sizes(self) -> tuple[int, ...]:
        """Largest batch of each target server, by number."""
        return tuple(target.max_batch_size for target in self.targets.values() for _ in range(target.count))

    @property
    def n_edge_servers(self) -> int:
        """Number of edge servers."""
        return sum(edge.count for edge in self.edge_servers.values())

    @property
    def n_devices(self) -> int:
        """Number of client devices."""
        return sum(device.count for device in self.devices.values())

    @property
    def n_placements(self) -> int:
        """Length of every request's candidate list."""
        return min(self.actions.targets_offered, self.n_targets) * (2 + self.n_edge_servers)
