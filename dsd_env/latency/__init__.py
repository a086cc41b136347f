"""Latency of model iterations: profiles, the fit behind them and the tables they are fitted to."""

from dsd_env.latency.profile import (
    LatencyProfile,
    ProfileError,
    StepCoefficients,
    list_profiles,
    load_profile,
    save_profile,
)

__all__ = [
    "LatencyProfile",
    "ProfileError",
    "StepCoefficients",
    "list_profiles",
    "load_profile",
    "save_profile",
]
