"""What a stream of drafts yields: tokens and verified drafts per iteration of a busy target.

The model follows one request at a target whose iterations all take as long, with every draft right with the
same probability, independently (:mod:`dsd_env.sim.reference.streams` is the protocol). As long as all is
right, nothing in a generation of drafts is random: when each draft is made, when it arrives, how many each
iteration takes. So there is one *path*, the drafts that its iterations take, and the generation follows it
until something is wrong:

* Iteration i takes k drafts of those that have arrived, and commits (1 - a^(k + 1)) / (1 - a) tokens on
  average.
* The generation survives it with probability a^(k + 1): all k were right, and so was the draft for the
  place after them, which the target has decided by itself. Else the next generation begins when word of
  that reaches the drafter, and the path starts anew.
* The first iterations of a path take no drafts: one way passes until the drafter knows, then it must
  overtake a target that goes on decoding, a token an iteration, and one more way passes. Each such token
  must match, too. A drafter that the target has got ahead of begins anew. So distance costs more than its
  time: with i idle iterations a path is through to its first drafts with probability a^i.

A path that ends starts anew in the same state, so that means over a path are long-run means (renewal
reward): tokens per iteration = sum of P(alive at i) x tokens(i), over the sum of P(alive at i).

Iterations do not really take equally long, so that a draft that is just in time in the model is sometimes
late. The results are means over some lengths around the expected one (:data:`SPREAD`). How near they come
to simulations is measured in ``tests/schedulers/test_stream_model.py``.
"""

from __future__ import annotations

import bisect
import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

SPREAD = (0.97, 1.0, 1.03)
"""Lengths of iterations that results are means over, in expected ones."""
LONGEST_PATH, MOST_TOKENS = 48, 96
"""Iterations of a path that are followed, and tokens; later ones have next to no weight, or are alike."""
LEAST_ALIVE = 1e-4
"""A path is followed while it is alive with more than this probability."""
_GRID, _ACCEPTANCE_GRID = 64.0, 100.0
"""Ratios of times are rounded to steps of 1/64 of their logarithm (1.6 %), acceptance rates to hundredths, so
that results are used again."""
_LEAST_RATIO = 1e-3
_LEAST_STEP = round(_GRID * math.log(_LEAST_RATIO))
"""Times below this share of an iteration are taken to be it; and that as a step of the grid."""


class StreamYield(NamedTuple):
    """What an iteration yields for a stream, on average.

    Attributes:
        tokens: Committed tokens.
        drafts: Drafts verified.
    """

    tokens: float
    drafts: float


def path_of(gamma: int, step: float, first: float, way: float) -> tuple[int, ...]:
    """Return how many drafts the iterations of a generation take, as long as all is right.

    It begins with the iteration that starts when something was wrong. All times are in iterations.

    Args:
        gamma: Window: drafts that may lie beyond what the drafter knows to be committed.
        step: Time of a draft step, waits for the drafter included.
        first: Time of the first one, which takes in what the drafter has not processed.
        way: Time of a message from the drafter to the target, and of one back.

    Returns:
        Drafts by iteration. The path starts anew after the last one: the target has got ahead of the drafter,
        or it is not followed any further.
    """
    taken: list[int] = []
    committed = [0]  # at the start of each iteration
    drafted_at: list[float] = []  # when each draft is complete
    knows = 0  # the drafter knows what was committed at the start of this iteration

    def draft_until(time: float) -> None:
        nonlocal knows
        while True:
            begin = drafted_at[-1] if drafted_at else way
            while len(drafted_at) - committed[knows] >= gamma and knows < len(committed) - 1:
                knows += 1
                begin = max(begin, knows + way)
            done = begin + (step if drafted_at else first)
            if done > time or len(drafted_at) - committed[knows] >= gamma:
                return
            drafted_at.append(done)

    for i in range(LONGEST_PATH):
        arrived = bisect.bisect_right(drafted_at, i - way)
        k = max(0, min(gamma, arrived - committed[i]))
        taken.append(k)
        draft_until(i + 1 + way)
        committed.append(committed[i] + k + 1)
        if len(drafted_at) < committed[-1] or committed[-1] > MOST_TOKENS:
            break
    return tuple(taken)


def yield_of(path: Sequence[int], acceptance: float) -> StreamYield:
    """Return the mean yield of a stream that follows a path until something is wrong, then starts anew.

    Args:
        path: Drafts by iteration; see :func:`path_of`.
        acceptance: Probability that a draft is right, given that those before it were; below 1.
    """
    alive, iterations, tokens, drafts = 1.0, 0.0, 0.0, 0.0
    for k in path:
        survival = acceptance ** (k + 1)
        iterations += alive
        tokens += alive * (1.0 - survival) / (1.0 - acceptance)
        drafts += alive * k
        alive *= survival
        if alive < LEAST_ALIVE:
            break
    return StreamYield(tokens / iterations, drafts / iterations)


@functools.lru_cache(maxsize=1 << 14)
def _paths(gamma: int, step: int, first: int, way: int) -> tuple[tuple[int, ...], ...]:
    """Return the paths of the lengths in :data:`SPREAD`, for ratios given as steps of the grid."""
    times = [math.exp(each / _GRID) for each in (step, first, way)]
    return tuple(path_of(gamma, *(time / length for time in times)) for length in SPREAD)


@functools.lru_cache(maxsize=1 << 16)
def _yield(gamma: int, acceptance: int, step: int, first: int, way: int) -> StreamYield:
    """Return the yield for arguments given as steps of their grids."""
    yields = [yield_of(path, acceptance / _ACCEPTANCE_GRID) for path in _paths(gamma, step, first, way)]
    n = len(yields)
    return StreamYield(sum(each.tokens for each in yields) / n, sum(each.drafts for each in yields) / n)


def stream_yield(
    gamma: int, acceptance: float, step_s: float, first_s: float, rtt_s: float, iteration_s: float
) -> StreamYield:
    """Return what an iteration of a busy target yields for a stream, on average.

    Args:
        gamma: Window, at least 1.
        acceptance: Probability that a draft is right, given that those before it were; at most 0.99 counts.
        step_s: Time of a draft step, waits for the drafter included.
        first_s: Time of the first one of a generation.
        rtt_s: Round trip between drafter and target, both ways alike.
        iteration_s: Time of an iteration.
    """
    step = _on_grid(step_s / iteration_s)
    first = step if first_s == step_s else _on_grid(first_s / iteration_s)
    way = _on_grid(0.5 * rtt_s / iteration_s)
    return _yield(gamma, min(99, round(_ACCEPTANCE_GRID * acceptance)), step, first, way)


def _on_grid(ratio: float) -> int:
    return round(_GRID * math.log(ratio)) if ratio > _LEAST_RATIO else _LEAST_STEP
