"""The workload: which device asks when, and how long its prompts and answers are."""

from dsd_env.workload.clock import clock_tick
from dsd_env.workload.generator import RequestSpec, WorkloadGenerator
from dsd_env.workload.load import LoadClock
from dsd_env.workload.plain import load_trace
from dsd_env.workload.replay import Schedule, replay_schedule
from dsd_env.workload.trace import RequestTrace, RequestTraceError, save_trace

__all__ = [
    "LoadClock",
    "RequestSpec",
    "RequestTrace",
    "RequestTraceError",
    "Schedule",
    "WorkloadGenerator",
    "clock_tick",
    "load_trace",
    "replay_schedule",
    "save_trace",
]
