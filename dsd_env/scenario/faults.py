"""Faults: failures of links, devices and servers from which they recover."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, model_validator

from dsd_env.scenario.base import Model, Name, NonNegative, Positive
from dsd_env.scenario.distributions import Duration


class Fault(Model):
    """A recurrent failure of a link, device or server.

    Every member of the class fails independently: either at the times in `at_s`, or after exponential times
    in service with mean `mean_interval_s`.
    """

    kind: Literal["link_outage", "bandwidth_collapse", "device_crash", "edge_crash", "target_crash"] = Field(
        description="What fails."
    )
    of: Name = Field(
        description="Class that fails: of targets (target_crash), edge servers (edge_crash) or devices "
        "(device_crash); for link_outage and bandwidth_collapse, a class of devices or of edge servers, "
        "whose links all fail."
    )
    member: Annotated[int, Field(ge=0)] | None = Field(
        default=None,
        description="The only member of the class that fails, counted from 0; None: every member.",
    )
    at_s: tuple[NonNegative, ...] = Field(default=(), description="Scheduled start times, increasing.")
    mean_interval_s: Positive | None = Field(default=None, description="Mean time in service between faults.")
    duration_s: Duration = Field(description="How long it fails each time.")
    bandwidth_factor: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.1, description="Remaining share of the bandwidth (bandwidth_collapse)."
    )

    @model_validator(mode="after")
    def _happens(self) -> Fault:
        if any(b <= a for a, b in pairwise(self.at_s)):
            raise ValueError(f"at_s {self.at_s} must increase strictly")
        if (len(self.at_s) == 0) == (self.mean_interval_s is None):
            raise ValueError("give either at_s (scheduled) or mean_interval_s (random)")
        return self
