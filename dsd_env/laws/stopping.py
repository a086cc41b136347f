"""When a draft ends before its longest length, by what its drafter says of the tokens that it has made.

A rule has a ``kind``, a ``threshold`` and ``least``, the fewest drafts that it leaves. ``keeps`` says whether
the token at which it ends a round's draft is part of the draft, as in SpecDec++ and SVIP, or is dropped, as
in AdaEDL and llama.cpp: the drafter has then taken a step whose token nobody gets.
"""

from __future__ import annotations

import math
from typing import Any

NEVER, TOP1, SURVIVAL, ENTROPY, BOUND = range(5)
"""What a rule goes by; NEVER is no rule."""
LEAST_IN_DOUBT = 2
"""The fewest drafts of an action that stops in doubt: SpecDec++'s lower bound."""

SVIP_FACTOR = 0.15
"""Of the entropy under SVIP's root."""
ADAEDL_FACTOR = 0.2
"""Of the entropy under AdaEDL's root."""

Rule = Any


def doubts(kind: int, threshold: float, top1_prob: float, survival: float, entropy_nats: float) -> bool:
    """Return whether a rule doubts a draft's newest token, or the draft because of it.

    - TOP1: its probability in the drafter's distribution, the largest there, is below the threshold
      (llama.cpp's ``p_min``).
    - SURVIVAL: the probability that some token of the draft is rejected is above it, with the top-1
      probabilities as chances of acceptance (SpecDec++).
    - ENTROPY: sqrt(0.15 H) is above it (SVIP).
    - BOUND: 1 - sqrt(0.2 H), which bounds the chance of acceptance from below, is below it (AdaEDL).

    Args:
        kind: What the rule goes by.
        threshold: Its threshold.
        top1_prob: Top-1 probability of the drafter at the newest token.
        survival: Product of those of all tokens of the draft.
        entropy_nats: Entropy H of the drafter's distribution at the newest token, nats.
    """
    if kind == TOP1:
        return top1_prob < threshold
    if kind == SURVIVAL:
        return 1.0 - survival > threshold
    if kind == ENTROPY:
        return math.sqrt(SVIP_FACTOR * entropy_nats) > threshold
    if kind == BOUND:
        return 1.0 - math.sqrt(ADAEDL_FACTOR * entropy_nats) < threshold
    return False


def left(rule: Rule, made: int) -> int:
    """Return how many drafts are left of those that a round has made when a rule ends it."""
    return made if rule.keeps else made - 1
