"""One static choice while it is quiet, and another while it is busy."""

from __future__ import annotations

from dsd_env.control import Decision, DecisionView
from dsd_env.scenario import Scenario
from dsd_env.schedulers.lengths import remember
from dsd_env.schedulers.static import StaticMapScheduler, StaticScheduler

StaticRule = StaticScheduler | StaticMapScheduler


class ByLoadScheduler:
    """A static rule for requests that come while it is quiet, another for those that come while it is busy.

    Each request keeps the rule that held at its admission. An operator would write this who has measured
    both.

    Attributes:
        name: Canonical specification.
        quiet: The rule for requests that come while it is quiet.
        busy: The other one.
    """

    def __init__(self, name: str, above: int, quiet: StaticRule, busy: StaticRule) -> None:
        """Build the rule.

        Args:
            name: Canonical specification.
            above: It is busy while the targets on offer have more requests than this, those that wait for
                admission too.
            quiet: The rule for requests that come otherwise.
            busy: The rule for requests that come then.
        """
        self.name, self.quiet, self.busy = name, quiet, busy
        self._above = above
        self._chosen: dict[int, StaticRule] = {}

    def reset(self, scenario: Scenario, seed: int) -> None:
        """Begin an episode; both rules check the scenario."""
        self._chosen = {}
        self.quiet.reset(scenario, seed)
        self.busy.reset(scenario, seed)

    def decide(self, view: DecisionView) -> Decision:
        """Return the decision of the rule that this request has."""
        if view.request.is_admission:
            targets = {each.target.index: each.target for each in view.candidates}.values()
            busy = sum(target.resident + target.waiting for target in targets) > self._above
            remember(self._chosen, view.request_id, self.busy if busy else self.quiet)
        return self._rule(view).decide(view)

    def holds(self, view: DecisionView, decision: Decision) -> bool:
        """Return whether this request's rule decides alike as long as its placement can draft."""
        return self._rule(view).holds(view, decision)

    def _rule(self, view: DecisionView) -> StaticRule:
        """Return the rule of a request; one whose admission was not seen has that of quiet hours."""
        return self._chosen.get(view.request_id, self.quiet)
