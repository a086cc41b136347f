"""The latency profile that a scenario names or gives in place."""

from __future__ import annotations

from dsd_env.latency.profile import LatencyProfile, StepCoefficients, load_profile
from dsd_env.scenario.schema import Profile, SyntheticProfile


def latency_profile(profile: Profile) -> LatencyProfile | StepCoefficients:
    """Return the profile that a scenario names, or the coefficients that it gives itself."""
    if isinstance(profile, SyntheticProfile):
        return StepCoefficients(**profile.model_dump())
    return load_profile(profile)
