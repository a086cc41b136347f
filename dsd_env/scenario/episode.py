"""The learning problem of a scenario: action lists, reward weights, and the length of an episode."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from dsd_env.laws.stopping import LEAST_IN_DOUBT
from dsd_env.scenario.base import Count, Model, NonNegative, Positive, WithLaterKeys

MAX_GAMMA = 64


class Actions(WithLaterKeys):
    """The lists that actions index into."""

    later_keys: ClassVar[tuple[str, ...]] = ("stop_thresholds",)

    gammas: tuple[Annotated[int, Field(ge=0, le=MAX_GAMMA)], ...] = Field(
        default=tuple(range(17)),
        description="Speculation lengths, strictly increasing from 0, plain decoding.",
    )
    batch_sizes: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = Field(
        default=(1, 2, 4, 8, 16, 32, 64, 128),
        description="Batch sizes, strictly increasing from 1, which waits for nobody.",
    )
    stop_thresholds: tuple[Annotated[float, Field(gt=0.0, lt=1.0)], ...] = Field(
        default=(),
        max_length=32,
        description="Further speculation lengths, after those of `gammas`. Each is the largest of `gammas`, "
        "but the draft ends once the drafter estimates that some draft token is rejected with more than this "
        "probability (SpecDec++'s rule).",
    )
    targets_offered: Annotated[int, Field(ge=1, le=64)] = Field(
        default=2, description="Targets in the candidate list: the current one and the least loaded others."
    )
    edge_servers_offered: Annotated[int, Field(ge=1, le=64)] | None = Field(
        default=None,
        description="Number of edge servers in the candidate list: the current one, then those whose next "
        "draft would come soonest; if there are not more edge servers, all of them in that order. None: all "
        "edge servers, in the order of their numbers.",
    )
    offer_branches: bool = Field(
        default=False,
        description="Whether each drafter that can stream is offered twice: without branches, and with those "
        "of `protocol.branches`. False: all streams have the branches of `protocol.branches`, if any.",
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
        if any(b <= a for a, b in pairwise(self.stop_thresholds)):
            raise ValueError(f"stop_thresholds {self.stop_thresholds} must be strictly increasing")
        if self.stop_thresholds and self.gammas[-1] <= LEAST_IN_DOUBT:
            raise ValueError(
                f"stop_thresholds {self.stop_thresholds} need drafts to end: the longest of gammas is "
                f"{self.gammas[-1]}, and doubt ends none before {LEAST_IN_DOUBT} tokens"
            )
        if self.batch_sizes[0] != 1:
            raise ValueError(f"batch_sizes {self.batch_sizes} must begin with 1, which waits nowhere")
        return self


class RewardWeights(Model):
    """Weights of the reward terms by name; see :data:`dsd_env.control.rewards.TERMS` for the terms."""

    latency: NonNegative = Field(default=1.0, description="Time that requests spend in the system.")
    tpot: NonNegative = Field(default=0.0, description="Time per output token, against its bound.")
    goodput: NonNegative = Field(default=0.0, description="Requests that met their objectives.")
    slo_violation: NonNegative = Field(default=0.0, description="Requests that did not.")
    cloud_cost: NonNegative = Field(default=0.0, description="Dollars for the cloud.")
    energy: NonNegative = Field(default=0.0, description="Joules of servers, devices and radios.")
    bytes: NonNegative = Field(default=0.0, description="Bytes sent over all links.")
    progress: NonNegative = Field(default=0.0, description="Output tokens.")


class Reward(Model):
    """Reward weights, and the reference values that make returns comparable across scenarios."""

    weights: RewardWeights = Field(default=RewardWeights(), description="Weights of the reward terms.")
    reference_e2e_s: Positive = Field(
        default=5.0, description="Typical request time in the scenario; one unit of latency cost."
    )
    reference_usd_per_request: Positive = Field(
        default=1.0e-3, description="Typical cost of a request; one unit of cloud cost."
    )
    reference_joules_per_request: Positive = Field(
        default=1.0e3, description="Typical energy of a request; one unit of energy."
    )
    reference_bytes_per_request: Positive = Field(
        default=1.0e4, description="Typical bytes of a request; one unit of bytes."
    )
    reference_output_tokens: Positive = Field(
        default=150.0, description="Typical length of an answer; one unit of progress."
    )


class Episode(Model):
    """When an episode ends, and which requests its metrics cover.

    An episode measures either a window of simulated time, which is the same for every scheduler, or a number
    of requests. With a window, the requests that arrive during `window_s` after `warmup_s` are measured, and
    the episode continues, with new arrivals, until all of them have completed. With a number, `requests`
    requests after the first `warmup_requests` are measured, in order of arrival.
    """

    requests: Count | None = Field(
        default=None,
        description="Number of requests to measure, after `warmup_requests`; the episode is truncated when "
        "all of them and of the warm-up have completed. Default: 300 without a window.",
    )
    horizon_s: Positive = Field(default=3600.0, description="Truncate at this simulated time.")
    warmup_requests: Annotated[int, Field(ge=0)] = Field(
        default=0, description="Number of first requests, by order of arrival, that metrics leave out."
    )
    warmup_s: NonNegative = Field(default=0.0, description="Warm-up before the window; metrics leave it out.")
    window_s: Positive | None = Field(
        default=None, description="Length of the measured window; whole cycles of a changing load."
    )
    total_requests: Count | None = Field(
        default=None,
        description="Number of requests after which arrivals stop; the episode terminates when all are done.",
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
        """Number of requests to measure; 0 if a window is measured."""
        return self.requests or 0

    @property
    def end_s(self) -> float:
        """Simulated time at which the window ends."""
        return self.warmup_s + (self.window_s or 0.0)
