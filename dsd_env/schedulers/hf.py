"""The speculation-length heuristic of Hugging Face's assisted generation."""

from __future__ import annotations

from dsd_env.control import Decision, DecisionView, Site
from dsd_env.control.actions import snap, snap_up
from dsd_env.scenario import Scenario
from dsd_env.schedulers.rules import decision_at, stay_or_route

INITIAL_TOKENS = 5
"""`num_assistant_tokens` with which the heuristic starts."""


class HfHeuristicScheduler:
    """If all drafts were accepted, k += 2; otherwise k = max(1, k - 1).

    Source: ``num_assistant_tokens_schedule="heuristic"`` of transformers (`AssistedCandidateGenerator.
    update_candidate_strategy`). k is read from the view's last draft round, so the rule needs no state
    of its own. On a list with gaps an increase goes at least to the next listed length and a decrease at
    least to the one below, so that the rule never gets stuck.

    Attributes:
        name: Canonical specification.
        sites: Draft sites in order of preference; if none is possible, the target decodes plainly.
        batch_size: Batch size B; 1 waits nowhere.
    """

    def __init__(self, name: str, sites: tuple[Site, ...], batch_size: int = 1) -> None:
        """Build the rule."""
        self.name = name
        self.sites = sites
        self.batch_size = batch_size

    def reset(self, scenario: Scenario, seed: int) -> None:
        """Do nothing: the rule has no state."""

    def decide(self, view: DecisionView) -> Decision:
        """Return the next speculation length at the preferred site."""
        target = stay_or_route(view)
        return decision_at(view, self.sites, target, next_length(view), self.batch_size)


def next_length(view: DecisionView) -> int:
    """Return k of the next round from the last draft round in the view; 0 if the list has no draft length."""
    drafting = view.gammas[1:]
    if not drafting:
        return 0
    for drafted, accepted in zip(view.request.recent_gammas, view.request.recent_accepted, strict=True):
        if drafted > 0:
            if accepted >= drafted:
                return snap_up(drafting, drafted + 2)
            return snap(drafting, max(1, drafted - 1))
    return snap(drafting, INITIAL_TOKENS)
