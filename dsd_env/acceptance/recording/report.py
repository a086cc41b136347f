"""Figures of a recording in either form, walked round by round. Needs numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from dsd_env.acceptance.stats import first_draft_indicator, saturation_share, tokens_per_round
from dsd_env.acceptance.traceset import TraceSet


@dataclass(frozen=True)
class WalkedSummary:
    """Main figures of one drafter over some kinds.

    Attributes:
        requests: Requests.
        positions: Output positions.
        tokens_per_round: Speculation length -> tokens per round, bonus token included.
        first_draft_accepted: Share of starts whose first draft is accepted.
        saturated: Share of starts whose run reached ``gamma_max``; ``None`` in the form ``accept_prob``.
    """

    requests: int
    positions: int
    tokens_per_round: dict[int, float]
    first_draft_accepted: float
    saturated: float | None


def expected_walk(accept_prob: NDArray[np.float32], gamma: int) -> tuple[float, float]:
    """Return expected rounds and committed tokens of one request if every round has ``gamma`` drafts.

    Exact: the places where rounds begin form a Markov chain, since matches of different positions are
    independent given the committed text. A round from ``s`` ends at the first position that does not
    match, or after ``gamma`` matches with the bonus token; a run ends with the entry.

    Args:
        accept_prob: ``[n]`` of one entry.
        gamma: Speculation length.
    """
    n = len(accept_prob)
    begins = np.zeros(n + gamma + 2)
    begins[0] = 1.0
    rounds = tokens = 0.0
    for s in range(n):
        here = begins[s]
        if here == 0.0:
            continue
        rounds += here
        reach = here  # probability that a round begins at s and its first j drafts are accepted
        for j in range(gamma + 1):
            last = j == gamma or s + j >= n
            stop = reach if last else reach * (1.0 - float(accept_prob[s + j]))
            begins[s + j + 1] += stop
            tokens += stop * (j + 1)
            if last:
                break
            reach -= stop
    return rounds, tokens


def walked_summary(
    trace: TraceSet, drafter: str, gammas: Sequence[int], kinds: Sequence[str] | None = None
) -> WalkedSummary:
    """Return the main figures of one drafter; of ``accept_prob`` drafters the exact expectation."""
    entries = trace.entries_of(kinds)
    values = trace.drafters[drafter]
    offsets = np.concatenate([[0], np.cumsum(trace.lengths[entries])])
    per_round: dict[int, float] = {}
    saturated = None
    if values.run_length is not None:
        runs = values.run_length[trace.positions_of(kinds)]
        per_round = {g: tokens_per_round(runs, g, offsets) for g in gammas}
        saturated = saturation_share(runs, trace.gamma_max or 255)
    else:
        assert values.accept_prob is not None  # a trace set has one of the two forms
        accept = values.accept_prob[trace.positions_of(kinds)]
        for g in gammas:
            walks = [expected_walk(accept[a:b], g) for a, b in pairwise(offsets.tolist())]
            per_round[g] = sum(t for _, t in walks) / sum(r for r, _ in walks)
    first = np.concatenate(list(first_draft_indicator(trace, drafter, kinds)))
    return WalkedSummary(len(entries), int(offsets[-1]), per_round, float(first.mean()), saturated)
