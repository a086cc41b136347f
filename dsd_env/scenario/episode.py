"""What a learner is given: the actions, the reward, the episode."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

from pydantic import Field, model_validator

from dsd_env.scenario.base import Count, Model, NonNegative, Positive

MAX_GAMMA = 64


class Actions(Model):
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
        if self.batch_sizes[0] != 1:
            raise ValueError(f"batch_sizes {self.batch_sizes} must begin with 1, which waits nowhere")
        return self


class RewardWeights(Model):
    """Weights of the named reward terms; every term is a cost per reference unit (see docs)."""

    latency: NonNegative = 1.0
    tpot: NonNegative = 0.0
    goodput: NonNegative = 0.0
    slo_violation: NonNegative = 0.0
    cloud_cost: NonNegative = 0.0
    energy: NonNegative = 0.0
    bytes: NonNegative = 0.0
    progress: NonNegative = 0.0


class Reward(Model):
    """Weights and the reference values that make returns comparable across scenarios."""

    weights: RewardWeights = RewardWeights()
    reference_e2e_s: Positive = Field(
        default=5.0, description="A usual request time here; one unit of latency cost."
    )
    reference_usd_per_request: Positive = 1.0e-3
    reference_joules_per_request: Positive = 1.0e3
    reference_bytes_per_request: Positive = 1.0e4
    reference_output_tokens: Positive = 150.0


class Episode(Model):
    """When an episode ends, and what its metrics leave out."""

    requests: Count = Field(default=300, description="Truncate when so many requests have completed.")
    horizon_s: Positive = Field(default=3600.0, description="Truncate at this simulated time.")
    warmup_requests: Annotated[int, Field(ge=0)] = Field(
        default=0, description="Requests by order of arrival that metrics leave out."
    )
    total_requests: Count | None = Field(
        default=None,
        description="Stop arrivals after so many; the episode then terminates when all are done.",
    )
