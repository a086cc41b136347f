"""Whether an answer comes in time: the bounds of a service-level objective.

`bounds` is whatever has the fields of :meth:`dsd_env.scenario.schema.Slo.bounds`; a bound that a class does
not have is :data:`dsd_env.laws.constants.NO_BOUND_S`, which nothing exceeds.
"""

from __future__ import annotations

from typing import Any

Request = Any
Bounds = Any


def late_tokens(elapsed_s: float, first_s: float, per_token_s: float, before: int, tokens: int) -> int:
    """Return how many of the tokens that arrive together come after their deadlines.

    Token k of an answer, counted from 0, is due ``first_s + k · per_token_s`` after the request's arrival:
    the schedule of a reader who begins in time and then goes on at a constant pace.

    Args:
        elapsed_s: Time from the request's arrival to theirs.
        first_s: When the first token is due.
        per_token_s: Time between deadlines.
        before: Tokens that have arrived before.
        tokens: Tokens that arrive now.
    """
    late = 0
    for place in range(before, before + tokens):
        # Deadlines increase, so the first one that is met ends the count.
        if elapsed_s <= first_s + per_token_s * place:
            break
        late += 1
    return late


def note_delivery(
    request: Request, bounds: Bounds, before: int, tokens: int, previous_s: float, arrives_s: float
) -> None:
    """Take tokens that arrive together at the client into a request's counts of what came late.

    Args:
        request: With ``arrival_s``, ``longest_gap_s``, ``late_gaps`` and ``late_tokens``.
        bounds: Its bounds.
        before: Tokens that have arrived before.
        tokens: Tokens that arrive now.
        previous_s: When the newest of those before arrived.
        arrives_s: When these arrive.
    """
    if before > 0:
        gap_s = arrives_s - previous_s
        request.longest_gap_s = max(request.longest_gap_s, gap_s)
        if gap_s > bounds.slo_itl_p99_s:
            request.late_gaps += 1
    elapsed_s = arrives_s - request.arrival_s
    request.late_tokens += late_tokens(elapsed_s, bounds.slo_first_s, bounds.slo_per_token_s, before, tokens)


def is_met(
    bounds: Bounds, ttft_s: float, tpot_s: float, tokens: int, late_gaps: int, late_tokens: int
) -> bool:
    """Return whether a completed request met every bound of its class.

    The 99th percentile of the gaps between tokens is within its bound if at most one gap in a hundred is
    longer.

    Args:
        bounds: The bounds.
        ttft_s: Time to first token.
        tpot_s: Mean time per token after it; 0 if there is none.
        tokens: Length of the answer.
        late_gaps: Gaps longer than the bound on them.
        late_tokens: Tokens after their deadlines.
    """
    return (
        ttft_s <= bounds.slo_ttft_s
        and tpot_s <= bounds.slo_tpot_s
        and 100 * late_gaps <= tokens - 1
        and tokens - late_tokens >= bounds.slo_token_share * tokens
    )


def deadline_slack_s(age_s: float, committed: int, first_s: float, per_token_s: float) -> float:
    """Return the time left until the next token of an answer is due; negative if it is late."""
    return first_s + per_token_s * committed - age_s
