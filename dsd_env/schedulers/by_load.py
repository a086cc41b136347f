"""A scheduler with one static rule for low load and another for high load."""

from __future__ import annotations

from dsd_env.control import Decision, DecisionView
from dsd_env.scenario import Scenario
from dsd_env.schedulers.lengths import remember
from dsd_env.schedulers.static import StaticMapScheduler, StaticScheduler

StaticRule = StaticScheduler | StaticMapScheduler


class ByLoadScheduler:
    """Applies one static rule to requests admitted at low load, and another to those admitted at high load.

    Each request keeps the rule chosen at its admission. An operator who has measured both rules would write
    this scheduler.

    Attributes:
        name: Canonical specification.
        quiet: The rule for requests admitted at low load.
        busy: The rule for requests admitted at high load.
    """

    def __init__(self, name: str, above: int, quiet: StaticRule, busy: StaticRule) -> None:
        """Build the rule.

        Args:
            name: Canonical specification.
            above: Load above which the busy rule applies: the number of requests at the targets on offer,
                including those that wait for admission.
            quiet: The rule for requests admitted while the load is at most ``above``.
            busy: The rule for requests admitted while the load is higher.
        """
        self.name, self.quiet, self.busy = name, quiet, busy
        self._above = above
        self._chosen: dict[int, StaticRule] = {}

    def reset(self, scenario: Scenario, seed: int) -> None:
        """Start an episode; both rules check the scenario."""
        self._chosen = {}
        self.quiet.reset(scenario, seed)
        self.busy.reset(scenario, seed)

    def decide(self, view: DecisionView) -> Decision:
        """Return the decision of the request's rule, which is chosen at admission."""
        if view.request.is_admission:
            targets = {each.target.index: each.target for each in view.candidates}.values()
            busy = sum(target.resident + target.waiting for target in targets) > self._above
            remember(self._chosen, view.request_id, self.busy if busy else self.quiet)
        return self._rule(view).decide(view)

    def holds(self, view: DecisionView, decision: Decision) -> bool:
        """Return whether the request's rule repeats this decision while its placement can draft."""
        return self._rule(view).holds(view, decision)

    def _rule(self, view: DecisionView) -> StaticRule:
        """Return the rule of a request; the quiet rule, if the request's admission was not seen."""
        return self._chosen.get(view.request_id, self.quiet)
