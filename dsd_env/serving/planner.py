"""Plans of a policy of the fleet view in real systems: asked for when due, guarded, held until the next."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from dsd_env.control import Decision, DecisionView
from dsd_env.control.fleet import Plan
from dsd_env.control.fleet_view import FleetEncoder, FleetTelemetry, FleetView, fleet_view
from dsd_env.policy import Policy
from dsd_env.scenario import Scenario
from dsd_env.schedulers.fleet import PlanScheduler
from dsd_env.serving.guard import Guard

logger = logging.getLogger("dsd_env.serving")


class GroupPlan(NamedTuple):
    """What a plan says for a group of requests.

    Attributes:
        group: Name of the group.
        gamma: Speculation length; 0 is plain decoding.
        batch_size: Smallest batch that a verification should wait for.
        place: Where to draft, as `static_map` writes it: ``edge``, ``colocated:MODEL``, …
    """

    group: str
    gamma: int
    batch_size: int
    place: str


class ServedPlan(NamedTuple):
    """The plan in force.

    Attributes:
        words: The plan in words, one ``GROUP=G/B/PLACE`` for each group.
        groups: The same, group by group.
        source: What made it: ``policy`` or ``safe_plan``.
        reason: Why it is the safe plan; "" otherwise.
        number: How many plans there have been, this one included.
        made_s: When it was made, in seconds since the controller's beginning.
        due_s: When the next one is due; it is made for the first decision at that time or after it.
    """

    words: str
    groups: tuple[GroupPlan, ...]
    source: str
    reason: str
    number: int
    made_s: float
    due_s: float

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {**self._asdict(), "groups": [group._asdict() for group in self.groups]}


class Planner:
    """Holds the plan in force, and makes the next one when it is due.

    The observation, the plan and what a request's decision is by it are made by the functions that make them
    in a simulation (:mod:`dsd_env.control.fleet`, :mod:`dsd_env.control.fleet_view`).

    Attributes:
        policy: The bundle.
        space: Groups and choices.
        group_of: The space's, as lists, in which single numbers are found faster.
        observation: What the newest plan was made of (float32); None before the first, or if there was none.
        source: What made the plan in force.
        reason: Why it is the safe plan; "" otherwise.
        number: Plans so far.
    """

    def __init__(self, policy: Policy, scenario: Scenario, safe_plan: str, before: Planner | None) -> None:
        """Begin with plain decoding for all, and a plan that is due.

        Args:
            policy: The bundle; this uses it from now on.
            scenario: What is served.
            safe_plan: Plan in words that is in force when the policy is not asked.
            before: What planned before; its plan stays in force until the next decision.

        Raises:
            dsd_env.policy.PolicyError: The bundle does not fit.
            dsd_env.control.fleet.FleetError: The safe plan cannot be made here.
        """
        self.policy, self.space = policy, policy.fleet_space(scenario)
        self.group_of: list[list[int]] = self.space.group_of.tolist()
        self._encoder = FleetEncoder.of(self.space)
        self._safe_plan = self.space.uniform(safe_plan)
        self._player = PlanScheduler(self.space)
        self.source, self.reason, self.number = "policy", "", 0
        if before is not None and before.space.nvec == self.space.nvec:
            self._player.set_plan(before.plan)
            self.source, self.reason, self.number = before.source, before.reason, before.number
        self.observation: Any = None
        self._made_s = self._next_s = 0.0

    @property
    def plan(self) -> Plan:
        """The plan in force."""
        return self._player.plan

    def due(self, now_s: float) -> bool:
        """Return whether a plan has to be made before a decision."""
        return now_s >= self._next_s

    def view(self, told: FleetTelemetry) -> FleetView:
        """Return what is known of the fleet, typed."""
        return fleet_view(self.space, told, self.plan)

    def renew(self, look: Callable[[], tuple[FleetTelemetry, str]], now_s: float, guard: Guard) -> None:
        """Make the plan that is due; the safe one if the policy is not trusted.

        Args:
            look: Tells what is known of the fleet, and what makes that doubtful ("": nothing).
            now_s: When.
            guard: The guard rails.
        """
        begin_s = time.perf_counter()
        self.number += 1
        self._made_s, self._next_s = now_s, self.space.next_tick_s(now_s)
        self.observation = None
        plan, self.reason = None, guard.reason
        try:
            told, doubt = look()
        except (ArithmeticError, LookupError, ValueError) as error:
            logger.debug("no view of the fleet", exc_info=error)
            self.reason = "error"
            guard.note("error")
        else:
            if guard.asks_policy():
                plan, self.reason = guard.ask(lambda: self._choose(told), doubt, begin_s)
        self.source = "safe_plan" if plan is None else "policy"
        self._player.set_plan(self._safe_plan if plan is None else plan)

    def _choose(self, told: FleetTelemetry) -> Plan:
        observation = self._encoder.encode(self.view(told))
        self.observation = observation
        if not np.isfinite(observation).all():
            raise FloatingPointError("the observation is not finite")
        return self.space.plan(self.policy.choose(observation, self.space.mask))

    def decide(self, view: DecisionView) -> Decision:
        """Return a request's decision by the plan in force.

        Raises:
            LookupError: The request is of no group: the workload of the description has none with its
                objectives.
        """
        return self._player.decide(view)

    @property
    def served(self) -> ServedPlan:
        """The plan in force, to be told."""
        groups = tuple(
            GroupPlan(
                group.name,
                choice.gamma,
                choice.batch_size,
                choice.place.word if choice.gamma > 0 else "plain",
            )
            for group, choice in zip(self.space.groups, self.space.choices(self.plan), strict=True)
        )
        words = self.space.describe(self.plan)
        return ServedPlan(words, groups, self.source, self.reason, self.number, self._made_s, self._next_s)
