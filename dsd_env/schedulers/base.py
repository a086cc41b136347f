"""The scheduler protocol: a pure function from the view of a decision to the decision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from dsd_env.control import Decision, DecisionView
from dsd_env.control.fleet_view import FleetTelemetry
from dsd_env.scenario import Scenario


class SchedulerError(ValueError):
    """A scheduler's name or argument is wrong; the message says what is known or allowed."""


@runtime_checkable
class Scheduler(Protocol):
    """Answers the decisions of one simulation.

    `decide` depends on nothing but its view, the scenario and seed given to `reset`, and draws of its
    own addressed by ``(seed, Stream.SCHEDULER, request_id, counter)``. Two simulations that share a
    scheduler therefore cannot influence each other, and a run can be repeated bit for bit. Rules that learn
    as they go (``adaptive`` with a bandit or a running mean) depend on the views since `reset` as well: they
    serve one simulation at a time.

    Attributes:
        name: Canonical specification; ``make_scheduler(name)`` builds the same scheduler.
    """

    name: str

    def reset(self, scenario: Scenario, seed: int) -> None:
        """Prepare for one episode of ``scenario`` with this episode seed."""
        ...

    def decide(self, view: DecisionView) -> Decision:
        """Return the decision, with gamma and batch size from the view's lists."""
        ...


@runtime_checkable
class FleetWatcher(Protocol):
    """A scheduler that also needs what a controller of the whole fleet knows."""

    def watch(self, telemetry: Callable[[], FleetTelemetry]) -> None:
        """Take what tells of the fleet during the episode; called after `reset`."""
        ...
