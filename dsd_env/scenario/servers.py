"""Devices, edge servers and targets: the models on them, their speed, and their cost."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from dsd_env.latency.overhead import EngineOverhead, load_overhead
from dsd_env.scenario.base import Count, Fraction, Model, Name, NonNegative, Positive, WithLaterKeys


class Power(Model):
    """Electrical power of a device or server (all its GPUs together)."""

    idle_w: NonNegative = Field(description="Power while nothing runs, in watts.")
    busy_w: NonNegative = Field(description="Power at work, in watts; at least `idle_w`.")

    @model_validator(mode="after")
    def _ordered(self) -> Power:
        if self.busy_w < self.idle_w:
            raise ValueError(f"busy_w ({self.busy_w}) must be at least idle_w ({self.idle_w})")
        return self


class SyntheticProfile(Model):
    """Coefficients of the iteration time, given in the scenario itself for theory and what-if studies.

    t = t0 + (w^p + (c*m)^p)^(1/p) + k_bw * sum_kv + [any q > 1] * (k_multi * sum_kv + k_lat * max_kv); see
    :mod:`dsd_env.latency.profile` for the coefficients' meaning and for profiles fitted to measurements.
    """

    t0_s: NonNegative = Field(default=0.0, description="Fixed time of every iteration.")
    w_s: NonNegative = Field(
        default=0.0, description="Time to read the weights, the floor of a small iteration."
    )
    c_s_per_token: NonNegative = Field(default=0.0, description="Compute time of each new token.")
    p: Annotated[float, Field(ge=1, le=64)] = Field(
        default=1.0, description="Sharpness of the knee between `w` and `c m`; 1 adds the two."
    )
    k_bw_s_per_token: NonNegative = Field(
        default=0.0, description="Time to read each KV entry, over all sequences."
    )
    k_multi_s_per_token: NonNegative = Field(
        default=0.0,
        description="Further time for each KV entry if some sequence has more than one new token.",
    )
    k_lat_s_per_token: NonNegative = Field(
        default=0.0,
        description="Time for each KV entry of the longest sequence with more than one new token.",
    )

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


def _known_overhead(name: str) -> str:
    load_overhead(name)
    return name


OverheadName = Annotated[
    str, Field(description="Name of a shipped engine overhead."), AfterValidator(_known_overhead)
]
Overhead = Annotated[
    Annotated[OverheadName, Tag("<name>")] | Annotated[EngineOverhead, Tag("<parts>")],
    Discriminator(lambda value: "<name>" if isinstance(value, str) else "<parts>"),
]


MAX_DRAFTERS_PER_SITE = 4


class Lookup(Model):
    """Cost of a look-up drafter, which searches the text so far on the CPU and runs no model."""

    cost_per_round_s: NonNegative = Field(description="CPU time of one look-up round; usually microseconds.")
    share_of_verify: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0,
        description="Only at a target: additional time of each iteration in which the look-up proposes, as a "
        "share of the target's part of that iteration.",
    )


class _AnyDrafter(Model):
    """Fields common to all drafters: draft models, draft heads and look-ups."""

    model: Name = Field(description="Draft model, head or look-up; names an entry of `acceptance`.")
    kind: Literal["model", "head", "lookup"] = Field(
        default="model",
        description="model: a separate draft model. head: one or a few layers on the target's hidden states "
        "(EAGLE, MTP), only at a target. lookup: n-grams or suffixes of the text so far, without a model.",
    )
    profile: Profile | None = Field(
        default=None, description="Latency profile of the model or head on this hardware; a look-up has none."
    )
    lookup: Lookup | None = Field(default=None, description="Cost of a round (lookup).")

    @model_validator(mode="after")
    def _of_its_kind(self) -> _AnyDrafter:
        if self.kind == "lookup":
            if self.profile is not None:
                raise ValueError(
                    f"profile = {_shown(self.profile)} has no meaning for a drafter of kind 'lookup', which "
                    "runs no model: give lookup: {cost_per_round_s: ...} alone"
                )
            if self.lookup is None:
                raise ValueError("kind = 'lookup' needs lookup: {cost_per_round_s: ...}")
            return self
        if self.lookup is not None:
            raise ValueError(
                f"lookup = {_shown(self.lookup)} belongs to a drafter of kind 'lookup'; this one is of kind "
                f"{self.kind!r}, which has a latency profile instead"
            )
        if self.profile is None:
            raise ValueError(f"a drafter of kind {self.kind!r} needs profile: its latency profile")
        return self


def _shown(value: Model | str) -> str:
    return repr(value) if isinstance(value, str) else str(value.model_dump(exclude_defaults=True))


class Drafter(_AnyDrafter, WithLaterKeys):
    """A drafter on a device or an edge server."""

    later_keys: ClassVar[tuple[str, ...]] = ("draft_noise_sigma",)

    concurrency: int = Field(
        default=1,
        ge=1,
        le=256,
        description="Number of sequences drafted at the same time. On an edge server, omitted or `auto`: as "
        "many of the longest contexts as the memory of its card holds.",
    )
    kv_capacity_tokens: int = Field(
        default=1_000_000,
        ge=1,
        description="Longest context that the drafter can hold; beyond, it cannot draft.",
    )
    per_generation_s: Annotated[float, Field(ge=0, le=10)] = Field(
        default=0.0,
        description="Time that each round, and each generation of a stream, takes before its first draft, "
        "beside the draft steps: rollback, retokenisation, and with another vocabulary the step that settles "
        "a token.",
    )
    draft_noise_sigma: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0,
        description="Sigma of a log-normal factor with mean one on the time of a single draft; for a window "
        "of g drafts, sigma is divided by the root of g. With another vocabulary a draft can take two steps.",
    )

    @model_validator(mode="after")
    def _away_from_target(self) -> Drafter:
        if self.kind == "head":
            raise ValueError(
                "kind = 'head' is possible only among the drafters of a target: a draft head reads the "
                "target's hidden states; here kind must be 'model' or 'lookup'"
            )
        if self.lookup is not None and self.lookup.share_of_verify > 0.0:
            raise ValueError(
                f"lookup.share_of_verify = {self.lookup.share_of_verify} has a meaning only at a target, "
                "whose iterations it lengthens: here it must be 0"
            )
        if self.lookup is not None and self.per_generation_s > 0.0:
            raise ValueError(
                f"per_generation_s = {self.per_generation_s} has no meaning for a look-up, whose round costs "
                "lookup.cost_per_round_s: leave it out"
            )
        if self.lookup is not None and self.draft_noise_sigma > 0.0:
            raise ValueError(
                f"draft_noise_sigma = {self.draft_noise_sigma} has no meaning for a look-up, which makes all "
                "its drafts at once: leave it out"
            )
        return self


class ColocatedDrafter(_AnyDrafter):
    """A drafter on the target's own server.

    A `shared` drafter runs on the target's GPUs: its steps lengthen the iteration for every sequence in it (a
    look-up does so from the CPU). A `dedicated` drafter has `gpus` GPUs of its own and a queue beside the
    target; its GPUs count in cost and energy.
    """

    mode: Literal["shared", "dedicated"] = Field(
        default="shared",
        description="shared: on the target's GPUs, within its iterations. dedicated: on GPUs of its own.",
    )
    concurrency: int = Field(default=1, ge=1, le=256, description="Sequences drafted at once (dedicated).")
    gpus: NonNegative = Field(default=0.0, description="Number of the drafter's own GPUs (dedicated).")
    power: Power = Field(
        default=Power(idle_w=0.0, busy_w=0.0),
        description="Power of the drafter's own GPUs together (dedicated).",
    )

    @model_validator(mode="after")
    def _dedicated_has_gpus(self) -> ColocatedDrafter:
        if self.mode == "dedicated" and self.kind != "model":
            raise ValueError(
                f"mode = 'dedicated' needs kind 'model', not {self.kind!r}: a draft head reads the target's "
                "hidden states, and a look-up runs on the CPU; use 'shared'"
            )
        if self.mode == "dedicated" and self.gpus == 0:
            raise ValueError("mode 'dedicated' needs gpus > 0: the drafter's own GPUs are paid for")
        return self


Drafters = Annotated[tuple[Drafter, ...], Field(max_length=MAX_DRAFTERS_PER_SITE)]
ColocatedDrafters = Annotated[tuple[ColocatedDrafter, ...], Field(max_length=MAX_DRAFTERS_PER_SITE)]


def _only_one_list(key: str, one: object, several: tuple[object, ...]) -> None:
    """Refuse a site with both the key for one drafter and the key for a list of them."""
    if one is not None and several:
        raise ValueError(f"{key} and {key}s (with {len(several)}) are both given: give one or the other")


class DeviceClass(Model):
    """A class of client devices; every device has one user."""

    count: Count = Field(description="Number of devices of this class.")
    drafter: Drafter | None = Field(
        default=None, description="Drafter on each device; None: the devices do not draft."
    )
    drafters: Drafters = Field(default=(), description="Several drafters on each device, instead of one.")
    link: Name = Field(description="Link to every target.")
    edge_link: Name | None = Field(default=None, description="Link to every edge server.")
    power: Power = Field(description="Power while idle and while drafting.")
    radio_joules_per_byte: NonNegative = Field(
        default=0.0, description="Energy of the device's radio for each byte sent or received."
    )
    speed_spread: tuple[Positive, Positive] = Field(
        default=(1.0, 1.0), description="Range of a uniform random factor on the draft time of each device."
    )

    @model_validator(mode="after")
    def _one_list(self) -> DeviceClass:
        _only_one_list("drafter", self.drafter, self.drafters)
        return self

    @property
    def menu(self) -> tuple[Drafter, ...]:
        """The drafters of each device, in order; none, one or several."""
        return self.drafters if self.drafter is None else (self.drafter,)


class EdgeServer(Model):
    """A server near the clients that drafts for them."""

    count: Count = Field(default=1, description="Number of edge servers of this class.")
    drafter: Drafter | None = Field(default=None, description="Drafter on each server.")
    drafters: Drafters = Field(default=(), description="Several drafters on each server, instead of one.")
    backhaul: Name = Field(description="Link to every target, shared by all requests that draft here.")
    gpus: Positive = Field(default=1.0, description="Number of GPUs of each server.")
    price_usd_per_gpu_hour: NonNegative = Field(default=0.0, description="Price of each GPU for an hour.")
    power: Power = Field(description="Power of all GPUs of a server together.")

    @model_validator(mode="after")
    def _drafts(self) -> EdgeServer:
        _only_one_list("drafter", self.drafter, self.drafters)
        if not self.menu:
            raise ValueError("an edge server needs a drafter: give drafter, or drafters with 1 to 4 of them")
        return self

    @property
    def menu(self) -> tuple[Drafter, ...]:
        """The drafters of each server, in order; at least one."""
        return self.drafters if self.drafter is None else (self.drafter,)


_FORMER_TARGET_KEYS = {
    "max_batch_size": "use max_num_seqs, the requests that are resident at a time; every ready sequence "
    "takes part in the next iteration",
    "initial_batch_size": "leave it out: a batch size belongs to the request whose decision asks for it",
    "prefill_chunk_tokens": "use max_num_batched_tokens, the new tokens of an iteration, which verifications "
    "and prefills share",
}
"""Keys of older scenarios, each with the key or rule that replaced it."""


class Target(WithLaterKeys):
    """A verification server in the cloud, with continuous batching."""

    later_keys: ClassVar[tuple[str, ...]] = ("extra_one_way_s", "keep_alive_s")

    count: Count = Field(default=1, description="Number of targets of this class.")
    profile: Profile = Field(description="Latency profile of the target model on this hardware.")
    gpus: Positive = Field(description="Number of GPUs of each target; that of the profile, if it names one.")
    kv_capacity_tokens: Annotated[int, Field(ge=1, le=1_000_000_000)] = Field(
        description="Size of the KV pool in tokens. Omitted or `auto`: as many as fit into the GPUs' memory."
    )
    max_num_seqs: Annotated[int, Field(ge=1, le=4096)] = Field(
        default=256, description="Largest number of resident requests (admitted, holding KV) at a time."
    )
    max_num_batched_tokens: Annotated[int, Field(ge=16, le=131_072)] = Field(
        default=2048,
        description="Largest number of new tokens in an iteration. With order: decode_first, verifications "
        "and decodes come first, and prefills use the rest; with prefill_first, the other way round.",
    )
    max_batch_wait_s: Annotated[float, Field(ge=0, le=10)] = Field(
        default=0.004,
        description="Longest time that a verification waits for the batch size of its decision.",
    )
    max_admission_wait_s: Annotated[float, Field(ge=0, le=3600)] = Field(
        default=2.0, description="Longest time that a request yields to others at admission."
    )
    kv_policy: Literal["reserve", "preempt"] = Field(
        default="preempt",
        description="preempt: a request is admitted when its context fits; if the pool overflows later, the "
        "request admitted last loses its KV and is prefilled again. reserve: a request is admitted when its "
        "worst case fits.",
    )
    prefix_cache: bool = Field(
        default=True,
        description="Whether a preempted request reuses the part of its KV that has not been overwritten, "
        "and prefills only the rest.",
    )
    graph_batch_tokens: tuple[Annotated[int, Field(ge=1, le=65536)], ...] = Field(
        default=(),
        description="Captured sizes (CUDA graphs): an iteration without prefill takes as long as one padded "
        "to the next captured number of new tokens; beyond the largest, or if empty, its own time.",
    )
    order: Literal["decode_first", "prefill_first"] = Field(
        default="decode_first",
        description="Which jobs take tokens of an iteration first: verifications and decodes, or prefills.",
    )
    within_class: Literal["fifo", "shortest_first"] = Field(
        default="fifo",
        description="Order of jobs of one sort: by arrival, or the shortest first, except for the oldest.",
    )
    colocated_drafter: ColocatedDrafter | None = Field(default=None, description="Drafter at each target.")
    colocated_drafters: ColocatedDrafters = Field(
        default=(), description="Several drafters at each target, instead of one."
    )
    iteration_noise_sigma: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0, description="Sigma of the log-normal factor, with mean one, on each iteration's time."
    )
    straggler_share: Fraction = Field(
        default=0.0,
        description="Probability that an iteration is a straggler, independently of the others. If it was "
        "measured, the profile's `noise` holds it, with sigma and factor.",
    )
    straggler_factor: Annotated[float, Field(ge=1, le=1000)] = Field(
        default=1.0, description="Factor on the time of a straggler, in addition to the noise."
    )
    price_usd_per_gpu_hour: NonNegative = Field(
        default=0.0, description="Price of each GPU for an hour, while the target is occupied."
    )
    keep_alive_s: NonNegative = Field(
        default=0.0,
        description="Time after its last request has left during which a target still counts as occupied and "
        "is paid for. A target serves a new request at once in any case.",
    )
    power: Power = Field(description="Power of all GPUs of a target together.")
    engine_overhead: Overhead | None = Field(
        default=None,
        description="Time that the engine adds to the kernels of an iteration: numbers, or the name of a "
        "shipped overhead. None: the overhead in the latency profile.",
    )
    front_end_s: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0,
        description="Time from a prompt's arrival until it is queued: HTTP, tokenisation, and transfer to "
        "the engine's process.",
    )
    extra_one_way_s: Annotated[float, Field(ge=0, le=10)] = Field(
        default=0.0,
        description="One-way propagation delay beyond the links of clients and edge servers, for a target "
        "farther away than the links reach, e.g. in another region.",
    )

    @property
    def menu(self) -> tuple[ColocatedDrafter, ...]:
        """The drafters at each target, in order; none, one or several."""
        return self.colocated_drafters if self.colocated_drafter is None else (self.colocated_drafter,)

    @model_validator(mode="after")
    def _one_list(self) -> Target:
        _only_one_list("colocated_drafter", self.colocated_drafter, self.colocated_drafters)
        return self

    @model_validator(mode="after")
    def _batch(self) -> Target:
        sizes = self.graph_batch_tokens
        if any(b <= a for a, b in pairwise(sizes)):
            raise ValueError(f"graph_batch_tokens {sizes} must increase strictly")
        return self

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, given: Any) -> Any:
        if isinstance(given, dict):
            for key in _FORMER_TARGET_KEYS.keys() & given.keys():
                raise ValueError(f"{key} = {given[key]!r}: {_FORMER_TARGET_KEYS[key]}")
        return given
