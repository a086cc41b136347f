"""Who asks when, for how much."""

from dsd_env.workload.generator import RequestSpec, WorkloadGenerator
from dsd_env.workload.load import LoadClock

__all__ = ["LoadClock", "RequestSpec", "WorkloadGenerator"]
