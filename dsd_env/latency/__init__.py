"""Latency of model iterations: profiles, the fit behind them and the tables they are fitted to."""

from dsd_env.latency.memory import MemoryShortageError, kv_capacity_tokens
from dsd_env.latency.overhead import (
    NO_OVERHEAD,
    EngineOverhead,
    OverheadError,
    list_overheads,
    load_overhead,
    save_overhead,
)
from dsd_env.latency.profile import (
    LatencyProfile,
    ProfileError,
    StepCoefficients,
    list_profiles,
    load_profile,
    save_profile,
)

__all__ = [
    "NO_OVERHEAD",
    "EngineOverhead",
    "LatencyProfile",
    "MemoryShortageError",
    "OverheadError",
    "ProfileError",
    "StepCoefficients",
    "kv_capacity_tokens",
    "list_overheads",
    "list_profiles",
    "load_overhead",
    "load_profile",
    "save_overhead",
    "save_profile",
]
