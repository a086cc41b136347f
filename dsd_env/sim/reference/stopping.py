"""Where a stop rule ends a draft, by the confidence that the acceptance source has of each position."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dsd_env.acceptance import AcceptanceRealisation
from dsd_env.control import StopKind, StopRule
from dsd_env.laws import stopping
from dsd_env.scenario.schema import Protocol


class Drafts(NamedTuple):
    """What a drafter makes of a window that it is asked for.

    Attributes:
        made: Draft steps.
        dropped: Tokens of them that are not part of the draft: the one that it doubted, or none.
    """

    made: int
    dropped: int = 0

    @property
    def kept(self) -> int:
        """Drafts to be verified."""
        return self.made - self.dropped


def rule_of(protocol: Protocol) -> StopRule | None:
    """Return the rule of decisions that have none of their own: the protocol's `confidence_stop`.

    It is compared with probabilities in float32, so in float32.
    """
    if protocol.confidence_stop == 0.0:
        return None
    return StopRule(StopKind.TOP1, float(np.float32(protocol.confidence_stop)))


def drafts_of(rule: StopRule | None, realisation: AcceptanceRealisation, start: int, gamma: int) -> Drafts:
    """Return what a drafter makes of ``gamma`` drafts from a position on.

    A rule that keeps the token which it doubts has no say at the last one.
    """
    if rule is None:
        return Drafts(gamma)
    for made in range(1, gamma if rule.keeps else gamma + 1):
        if _ends(rule, realisation, start, made, stopping.left(rule, made)):
            return Drafts(made, made - stopping.left(rule, made))
    return Drafts(gamma)


def ends_stream(rule: StopRule, realisation: AcceptanceRealisation, first: int, newest: int) -> bool:
    """Return whether a stream's drafter makes no more drafts after its newest until it hears more.

    Args:
        rule: The rule.
        realisation: What is known of the drafter at every position.
        first: Position of the first draft that is not known to be right.
        newest: Position of the newest; it has been sent, whether the rule keeps it or not.
    """
    made = newest - first + 1
    return _ends(rule, realisation, first, made, made)


def _ends(rule: StopRule, realisation: AcceptanceRealisation, first: int, made: int, left: int) -> bool:
    """Return whether a rule ends a draft at the newest of its tokens.

    On a wrong path the confidence recorded there stands in for the drafter's. Behind the end of the answer
    nothing is recorded, and the draft ends.
    """
    newest = first + made - 1
    if newest >= len(realisation.top1_prob):
        return True
    survival = 1.0
    for position in range(first, newest + 1):
        survival *= float(realisation.top1_prob[position])
    top1, entropy = float(realisation.top1_prob[newest]), float(realisation.entropy_nats[newest])
    return left >= rule.least and stopping.doubts(rule.kind, rule.threshold, top1, survival, entropy)
