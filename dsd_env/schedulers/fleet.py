"""Plans of the fleet view as schedulers: a fixed one, and those that a trained policy makes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from dsd_env.control import Decision, DecisionView
from dsd_env.control.fleet import FleetSpace, GroupChoice, Plan
from dsd_env.control.fleet_view import FleetEncoder, FleetTelemetry, fleet_view
from dsd_env.scenario import Scenario
from dsd_env.schedulers.base import SchedulerError
from dsd_env.schedulers.static import StaticChoice, apply_static

if TYPE_CHECKING:
    from dsd_env.policy import Policy


def static_choice(choice: GroupChoice) -> StaticChoice:
    """Return a group's choice as static rules have it."""
    gamma, batch_size, place = choice
    return StaticChoice(gamma, batch_size, (place.site,), place.drafter, place.target, place.branches)


class PlanScheduler:
    """Decides every request by a plan; it may be exchanged at any time.

    A fixed plan is the rule `static_map` with the same choices, bit for bit.

    Attributes:
        name: What it is called.
        space: The plan's space.
        plan: The plan in force; int64, shape (groups, 3).
    """

    def __init__(self, space: FleetSpace, plan: Plan | None = None, name: str = "plan") -> None:
        """Begin with a plan; without one, with plain decoding everywhere."""
        self.name, self.space = name, space
        self.set_plan(space.first_plan if plan is None else plan)

    def set_plan(self, plan: Plan) -> None:
        """Decide by another plan from now on."""
        self.plan = plan
        self._choices = [static_choice(choice) for choice in self.space.choices(plan)]

    def reset(self, scenario: Scenario, seed: int) -> None:
        """Do nothing: a fixed plan has no state."""

    def decide(self, view: DecisionView) -> Decision:
        """Return the choice of the request's group."""
        return apply_static(view, self._choices[self.space.group_of_view(view)])


class FleetPolicyScheduler:
    """Runs an exported policy of the fleet view: it is asked for a plan, and the plan decides.

    It is asked when the first decision at or after a multiple of its period is due, as the environment
    ``dsd_env/EdgeCloudFleet-v0`` is. What it reads is no part of a request's view: whoever simulates hands it
    over by :meth:`watch`.

    Attributes:
        name: ``policy:PATH``.
        policy: The loaded bundle.
        space: The plans of the scenario; None before :meth:`reset`.
    """

    def __init__(self, name: str, policy: Policy) -> None:
        """Take a loaded bundle, which must be of the fleet view."""
        self.name, self.policy = name, policy
        self.space: FleetSpace | None = None
        self._telemetry: Callable[[], FleetTelemetry] | None = None

    def reset(self, scenario: Scenario, seed: int) -> None:
        """Prepare groups and observation of the scenario.

        Raises:
            dsd_env.policy.PolicyError: The policy was made for other groups, lists or features.
        """
        self.space = self.policy.fleet_space(scenario)
        self._encoder = FleetEncoder.of(self.space)
        self._player = PlanScheduler(self.space)
        self._next_s = 0.0
        self._telemetry = None

    def watch(self, telemetry: Callable[[], FleetTelemetry]) -> None:
        """Take what tells of the fleet during this episode; after :meth:`reset`."""
        self._telemetry = telemetry

    def decide(self, view: DecisionView) -> Decision:
        """Return the choice of the request's group, by a new plan if one is due.

        Raises:
            SchedulerError: Nobody has handed the fleet's telemetry over.
        """
        if self.space is None:
            raise RuntimeError("call reset(scenario, seed) before decide(view)")
        if self._telemetry is None:
            raise SchedulerError(
                f"{self.name}: a policy of the fleet view needs more than the view of one request; run it "
                "with dsd_env.simulate or scripts/evaluate.py"
            )
        if view.now_s >= self._next_s:
            told = fleet_view(self.space, self._telemetry(), self._player.plan)
            action = self.policy.choose(self._encoder.encode(told), self.space.mask)
            self._player.set_plan(self.space.plan(action))
            self._next_s = self.space.next_tick_s(view.now_s)
        return self._player.decide(view)
