"""The simulator: entities, the reference engine, telemetry and metrics."""

from dsd_env.sim.events import Event, EventKind, Span
from dsd_env.sim.reference import ReferenceSimulation

__all__ = ["Event", "EventKind", "ReferenceSimulation", "Span"]
