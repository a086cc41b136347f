"""What a scenario says about a server's speed: a profile by name or in place, and its engine's overhead."""

from __future__ import annotations

from typing import Protocol

from pydantic import BaseModel

from dsd_env.latency.overhead import NO_OVERHEAD, EngineOverhead, load_overhead
from dsd_env.latency.profile import LatencyProfile, StepCoefficients, load_profile

ProfileChoice = str | BaseModel
"""Name or path of a profile, or a scenario's own coefficients."""


class TargetConfig(Protocol):
    """What of a target's configuration decides on its overhead."""

    @property
    def profile(self) -> ProfileChoice:
        """Its latency profile."""

    @property
    def engine_overhead(self) -> str | EngineOverhead | None:
        """The overhead that the scenario gives it."""


def latency_profile(profile: ProfileChoice) -> LatencyProfile | StepCoefficients:
    """Return the profile that a scenario names, or the coefficients that it gives itself."""
    if isinstance(profile, str):
        return load_profile(profile)
    return StepCoefficients(**profile.model_dump())


def profile_overhead(profile: LatencyProfile | StepCoefficients) -> EngineOverhead:
    """Return the overhead that a profile carries; coefficients carry none."""
    return (profile.overhead if isinstance(profile, LatencyProfile) else None) or NO_OVERHEAD


def target_overhead(target: TargetConfig) -> EngineOverhead:
    """Return the overhead of a target's engine: the scenario's, else that of its profile.

    Raises:
        OverheadError: The scenario names one that does not exist.
    """
    chosen = target.engine_overhead
    if chosen is None:
        return profile_overhead(latency_profile(target.profile))
    return load_overhead(chosen) if isinstance(chosen, str) else chosen
