"""The entities of a simulation: step timers, drafters, targets, devices and requests, a file for each kind.

They hold state and compute durations; the engine decides what happens and when.
"""

from dsd_env.sim.entities.drafters import (
    DrafterServer,
    DraftJob,
    HeadStart,
    JobState,
    SiteDrafter,
    servers_of,
)
from dsd_env.sim.entities.requests import Device, Request
from dsd_env.sim.entities.step_timer import StepTimer
from dsd_env.sim.entities.streams import DraftMessage, Stream, StreamResult
from dsd_env.sim.entities.targets import Job, Report, TargetServer, TargetTask

__all__ = [
    "Device",
    "DraftJob",
    "DraftMessage",
    "DrafterServer",
    "HeadStart",
    "Job",
    "JobState",
    "Report",
    "Request",
    "SiteDrafter",
    "StepTimer",
    "Stream",
    "StreamResult",
    "TargetServer",
    "TargetTask",
    "servers_of",
]
