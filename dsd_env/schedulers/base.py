"""The scheduler protocol: a scheduler maps the view of a decision to the decision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from dsd_env.control import Decision, DecisionView
from dsd_env.control.fleet_view import FleetTelemetry
from dsd_env.scenario import Scenario


class SchedulerError(ValueError):
    """A scheduler's name or argument is wrong; the message says which names or values are allowed."""


@runtime_checkable
class Scheduler(Protocol):
    """Makes the decisions of one simulation.

    `decide` depends only on its view, the scenario and seed given to `reset`, and the scheduler's own random
    draws, addressed by ``(seed, Stream.SCHEDULER, request_id, counter)``. Simulations that share a scheduler
    therefore cannot influence each other, and a run can be repeated bit for bit. Rules that learn during an
    episode (``adaptive`` with a bandit or a running mean) also depend on the views since `reset`, so they can
    serve only one simulation at a time.

    Attributes:
        name: Canonical specification; ``make_scheduler(name)`` builds the same scheduler.
    """

    name: str

    def reset(self, scenario: Scenario, seed: int) -> None:
        """Prepare for one episode of ``scenario`` with this episode seed."""
        ...

    def decide(self, view: DecisionView) -> Decision:
        """Return the decision for a view, with gamma and batch size from the view's lists."""
        ...


@runtime_checkable
class FleetWatcher(Protocol):
    """A scheduler that also reads the telemetry of the whole fleet."""

    def watch(self, telemetry: Callable[[], FleetTelemetry]) -> None:
        """Take a function that returns the fleet's telemetry during the episode; called after `reset`."""
        ...
