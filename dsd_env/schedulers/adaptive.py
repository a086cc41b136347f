"""A scheduler that combines a rule for the speculation length with a draft site, a route and a batch size."""

from __future__ import annotations

from typing import NamedTuple

from dsd_env.control import Decision, DecisionView, Site, StopRule
from dsd_env.scenario import Scenario
from dsd_env.schedulers.base import Scheduler
from dsd_env.schedulers.lengths import LengthRule, Outcome, remember
from dsd_env.schedulers.routing import make_route
from dsd_env.schedulers.rules import decision_at
from dsd_env.schedulers.stops import StoppingRule


class _Last(NamedTuple):
    """A request's last decision, and the request's state when it was made."""

    now_s: float
    committed_tokens: int
    gamma: int


class AdaptiveScheduler:
    """Drafts as many tokens as a rule says, at the first site that can draft, for the target of a route.

    A round lasts from a decision to the request's next decision; the round's tokens are those committed in
    between. At admission the rule is asked for a length like at any other decision, but a drafter that can
    draft prefills whatever the rule says.

    Attributes:
        name: Canonical specification.
        rule: The rule for the speculation length.
        stopping: The same rule, if it can also end a draft before that length; otherwise None.
        sites: Draft sites in order of preference; if none is possible, the target decodes plainly.
        route: The route, as :func:`~dsd_env.schedulers.routing.make_route` reads it.
        batch_size: Batch size B; 1 waits nowhere.
    """

    def __init__(
        self, name: str, rule: LengthRule, sites: tuple[Site, ...], route: str = "jsq", batch_size: int = 1
    ) -> None:
        """Combine the rule with sites, route and batch size."""
        self.name = name
        self.rule = rule
        self.stopping = rule if isinstance(rule, StoppingRule) else None
        self.sites = sites
        self.route = route
        self.batch_size = batch_size
        self._routed = make_route(route)
        self._seed = 0
        self._last: dict[int, _Last] = {}

    def reset(self, scenario: Scenario, seed: int) -> None:
        """Forget the last episode."""
        self._seed = seed
        self._last.clear()
        self.rule.reset(seed)

    def decide(self, view: DecisionView) -> Decision:
        """Report the request's last round to the rule, and return the next decision."""
        last = self._last.pop(view.request_id, None)
        if last is not None:
            tokens = view.request.committed_tokens - last.committed_tokens
            self.rule.learn(view, Outcome(last.gamma, max(view.now_s - last.now_s, 1e-9), tokens))
        gamma = self.rule.length(view)
        decision = self.with_length(view, gamma, self.stopping.stop(view) if self.stopping else None)
        if not view.request.is_admission:
            last = _Last(view.now_s, view.request.committed_tokens, decision.gamma)
            remember(self._last, view.request_id, last)
        return decision

    def with_length(self, view: DecisionView, gamma: int, stop: StopRule | None = None) -> Decision:
        """Return the decision for a view when the rule has named this length and when a draft ends before."""
        target = self._routed(view, self._seed) if view.request.is_admission else view.target.index
        if view.request.is_admission:
            # The length of the first round is not known yet, so let the drafter prefill if there is one.
            gamma = max(gamma, view.gammas[min(1, len(view.gammas) - 1)])
        decision = decision_at(view, self.sites, target, gamma, self.batch_size)
        return decision if decision.gamma == 0 else decision._replace(stop=stop)


def stopping_rule(scheduler: Scheduler) -> StoppingRule | None:
    """Return the rule by which a scheduler ends drafts before their length; None if it has no such rule."""
    return scheduler.stopping if isinstance(scheduler, AdaptiveScheduler) else None
