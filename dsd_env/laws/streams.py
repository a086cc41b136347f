"""How far a stream of drafts reaches, on either side.

Positions are output positions from 0. On the drafter's side ``known`` tokens are known to be committed,
``start`` is where the present generation of drafts begins, and ``drafted`` is the position after the newest
draft. On the target's side ``arrived`` is the position after the newest draft that has come.
"""

from __future__ import annotations

UNDER_WAY = 64
"""Messages of a stream that can be under way at a time in one direction.

A drafter waits until one of them has arrived, as on a socket whose buffer is full. A target leaves results
out meanwhile: the next one says as much.
"""

STEPS_KEPT = 128
"""Positions of which it is kept when their branches opened: twice the largest window."""

NOWHERE = 1 << 30
"""A position beyond every output: where the drafts of a generation that is right so far go wrong."""


def tokens_to_draft(window: int, chunk_tokens: int, known: int, drafted: int, capacity_left: int) -> int:
    """Return how many tokens a drafter drafts next; 0: it waits for a result.

    Args:
        window: Drafts that may lie beyond the known tokens, gamma.
        chunk_tokens: Drafts that are sent in one message.
        known: Tokens known to be committed.
        drafted: Position after its newest draft.
        capacity_left: Tokens that its KV has room for beyond that.
    """
    return max(0, min(chunk_tokens, window - (drafted - known), capacity_left))


def drafts_to_take(window: int, committed: int, arrived: int) -> int:
    """Return how many drafts a target takes into an iteration.

    Args:
        window: Gamma, as the newest message told it.
        committed: Tokens committed.
        arrived: Position after the newest draft that has come.
    """
    return max(0, min(window, arrived - committed))


def branch_tokens(depth: int, opened: int, steps: int) -> int:
    """Return how many tokens of a branch there are, behind the one that it opens with.

    Args:
        depth: Tokens of a whole branch.
        opened: Draft steps before it opened, and the one that opened it.
        steps: Draft steps until now, or until the newest message.
    """
    return max(0, min(depth, steps - opened))


def processed_tokens(start: int, drafted: int, right: int, valid: int, prompt_tokens: int) -> int:
    """Return how many tokens of the context are right in a drafter's KV after it has drafted.

    It has processed all that it drafted from and its own drafts but the newest, up to the first wrong one.

    Args:
        start: Where its present generation begins.
        drafted: Position after its newest draft.
        right: Positions up to which its drafts are known to be right.
        valid: Tokens that were right before this generation.
        prompt_tokens: Length of the prompt.
    """
    if drafted == start:
        return valid
    return prompt_tokens + min(drafted - 1, right)
