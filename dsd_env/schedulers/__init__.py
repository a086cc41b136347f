"""Schedulers by name: baselines, and trained policies behind the same protocol."""

from dsd_env.schedulers.base import Scheduler, SchedulerError
from dsd_env.schedulers.registry import make_scheduler, scheduler_help, scheduler_names

__all__ = ["Scheduler", "SchedulerError", "make_scheduler", "scheduler_help", "scheduler_names"]
