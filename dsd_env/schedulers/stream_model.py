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

**With branches** a wrong draft does not always send the drafter back. With the probability of a hit the right
token opens a branch, and the stream goes on with what has come of it. So there are more paths: beside the one
that begins after a rollback one for each number of the branch's tokens that have come when the target turns
to it. What ends a path decides which comes next: a hit leads to a branch, anything else back to a rollback.
Paths are weighed by how often they come in the long run, and the means are over all of them
(:func:`yield_with_branches`). It takes all branches to be L deep, and their tokens to come one per step.

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
_ROUNDS = 60
"""Times that the shares of paths are moved towards those in the long run."""
LEAST_ALIVE = 1e-4
"""A path is followed while it is alive with more than this probability."""
GRID, ACCEPTANCE_GRID = 64.0, 100.0
"""Ratios of times are rounded to steps of 1/64 of their logarithm (1.6 %), acceptance rates to hundredths, so
that results are used again."""
LEAST_RATIO = 1e-3
LEAST_STEP = round(GRID * math.log(LEAST_RATIO))
"""Times below this share of an iteration are taken to be it; and that as a step of the grid."""


class StreamYield(NamedTuple):
    """What an iteration yields for a stream, on average.

    Attributes:
        tokens: Committed tokens.
        drafts: Drafts verified.
    """

    tokens: float
    drafts: float


class Path(NamedTuple):
    """A generation of drafts, as long as all is right; times are in iterations.

    Attributes:
        taken: Drafts that its iterations take.
        committed: Position at the start of each iteration, from 0 at the first.
        drafted_at: When each draft is complete; for those of the branch that it began with, as if the
            drafter had made them where it made the others.
        branch: Tokens of that branch, which have no branches of their own.
    """

    taken: tuple[int, ...]
    committed: tuple[int, ...]
    drafted_at: tuple[float, ...]
    branch: int


def path_of(gamma: int, step: float, first: float, way: float, chunk_tokens: int = 1) -> tuple[int, ...]:
    """Return how many drafts the iterations of a generation take, as long as all is right.

    It begins with the iteration that starts when something was wrong. All times are in iterations.

    Args:
        gamma: Window: drafts that may lie beyond what the drafter knows to be committed.
        step: Time of a draft step, waits for the drafter included.
        first: Time of the first one, which takes in what the drafter has not processed.
        way: Time of a message from the drafter to the target, and of one back.
        chunk_tokens: Drafts that are sent in one message, as far as the window has room.

    Returns:
        Drafts by iteration. The path starts anew after the last one: the target has got ahead of the drafter,
        or it is not followed any further.
    """
    return followed(gamma, step, first, way, (), chunk_tokens).taken


def followed(
    gamma: int, step: float, first: float, way: float, branch: Sequence[float], chunk_tokens: int = 1
) -> Path:
    """Return a generation as in :func:`path_of`, perhaps one that begins with a branch.

    Args:
        gamma: Window.
        step: Time of a draft step.
        first: Time of the first one after a rollback.
        way: Time of a message, either way.
        branch: When the tokens of the branch are complete; empty after a rollback.
        chunk_tokens: Drafts that are sent in one message, as far as the window has room; each is complete
            when the last of its message is.
    """
    taken: list[int] = []
    committed = [0]  # at the start of each iteration
    drafted_at = list(branch)  # when each draft is complete
    knows = 0  # the drafter knows what was committed at the start of this iteration

    def draft_until(time: float) -> None:
        nonlocal knows
        while True:
            begin = max(drafted_at[-1], way) if drafted_at else way
            while len(drafted_at) - committed[knows] >= gamma and knows < len(committed) - 1:
                knows += 1
                begin = max(begin, knows + way)
            room = gamma - (len(drafted_at) - committed[knows])
            sent = min(chunk_tokens, room)
            done = begin + (step if drafted_at else first) + (sent - 1) * step
            if done > time or room <= 0:
                return
            drafted_at.extend([done] * sent)

    for i in range(LONGEST_PATH):
        arrived = bisect.bisect_right(drafted_at, i - way)
        k = max(0, min(gamma, arrived - committed[i]))
        taken.append(k)
        draft_until(i + 1 + way)
        committed.append(committed[i] + k + 1)
        if len(drafted_at) < committed[-1] or committed[-1] > MOST_TOKENS:
            break
    return Path(tuple(taken), tuple(committed), tuple(drafted_at), len(branch))


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


class Branches(NamedTuple):
    """Branches of a stream.

    Attributes:
        hit: Probability that the right token for a wrong draft opens one.
        depth: Tokens of a branch.
    """

    hit: float
    depth: int


class _State(NamedTuple):
    """What a path yields on average until something is wrong, and what comes then."""

    iterations: float
    tokens: float
    drafts: float
    next: dict[int, float]


_ROLLBACK, _LATEST = -1000, -8
"""The path after a rollback, among those named by how many tokens of a branch have come: fewer than 0 where
the branch itself is still under way, for at most so many steps."""


def yield_with_branches(
    gamma: int, step: float, first: float, way: float, acceptance: float, branches: Branches
) -> StreamYield:
    """Return the mean yield of a stream whose drafts have branches; times are in iterations."""
    states: dict[int, _State] = {}
    wanted = [_ROLLBACK]
    while wanted:
        name = wanted.pop()
        if name not in states:
            path = _begun(gamma, step, first, way, name, branches.depth)
            states[name] = _state(path, step, way, acceptance, branches)
            wanted += states[name].next
    # How often each path comes: the stationary distribution of what follows what.
    share = dict.fromkeys(states, 1.0 / len(states))
    for _ in range(_ROUNDS):
        new = dict.fromkeys(states, 0.0)
        for name, weight in share.items():
            for after, probability in states[name].next.items():
                new[after] += weight * probability
        share = {name: 0.5 * (share[name] + new[name]) for name in states}
    iterations = sum(share[name] * state.iterations for name, state in states.items())
    return StreamYield(
        sum(share[name] * state.tokens for name, state in states.items()) / iterations,
        sum(share[name] * state.drafts for name, state in states.items()) / iterations,
    )


def _begun(gamma: int, step: float, first: float, way: float, come: int, depth: int) -> Path:
    """Return the path after a rollback, or with a branch of which so many tokens have come to the target."""
    if come == _ROLLBACK:
        return followed(gamma, step, first, way, ())
    # The drafter has made more: those under way, and those of its steps until it hears of the hit.
    made = min(depth, max(0, come + int(2.0 * way / step)))
    return followed(gamma, step, step, way, [(n + 1 - come) * step - way for n in range(made)])


def _state(path: Path, step: float, way: float, acceptance: float, branches: Branches) -> _State:
    alive, iterations, tokens, drafts = 1.0, 0.0, 0.0, 0.0
    following: dict[int, float] = {}
    for i, k in enumerate(path.taken):
        iterations += alive
        drafts += alive * k
        for j in range(k + 1):
            # All before it were right, and this one is not: a draft, or the one for the target's own token.
            tokens += alive
            wrong = alive * (1.0 - acceptance)
            place = path.committed[i] + j
            name, share = _ROLLBACK, 0.0
            if path.branch <= place < len(path.drafted_at):
                ready = path.drafted_at[place]
                if ready <= i + 1.0 + way:
                    come = int((i + 1.0 - way - ready) // step)
                    name, share = max(_LATEST, min(branches.depth, come)), branches.hit
            following[name] = following.get(name, 0.0) + share * wrong
            following[_ROLLBACK] = following.get(_ROLLBACK, 0.0) + (1.0 - share) * wrong
            alive *= acceptance
        if alive < LEAST_ALIVE:
            break
    following[_ROLLBACK] = following.get(_ROLLBACK, 0.0) + alive
    return _State(iterations, tokens, drafts, {name: p for name, p in following.items() if p > 0.0})


@functools.lru_cache(maxsize=1 << 16)
def _branching_yield(
    gamma: int, acceptance: int, step: int, first: int, way: int, branches: Branches
) -> StreamYield:
    """Return the yield with branches for arguments given as steps of their grids."""
    step_s, first_s, way_s = (math.exp(each / GRID) for each in (step, first, way))
    right = acceptance / ACCEPTANCE_GRID
    yields = [
        yield_with_branches(gamma, step_s / length, first_s / length, way_s / length, right, branches)
        for length in SPREAD
    ]
    n = len(yields)
    return StreamYield(sum(each.tokens for each in yields) / n, sum(each.drafts for each in yields) / n)


@functools.lru_cache(maxsize=1 << 14)
def _paths(gamma: int, step: int, first: int, way: int, chunk_tokens: int) -> tuple[tuple[int, ...], ...]:
    """Return the paths of the lengths in :data:`SPREAD`, for ratios given as steps of the grid."""
    step_s, first_s, way_s = (math.exp(each / GRID) for each in (step, first, way))
    return tuple(
        path_of(gamma, step_s / length, first_s / length, way_s / length, chunk_tokens) for length in SPREAD
    )


@functools.lru_cache(maxsize=1 << 16)
def _yield(gamma: int, acceptance: int, step: int, first: int, way: int, chunk_tokens: int) -> StreamYield:
    """Return the yield for arguments given as steps of their grids."""
    paths = _paths(gamma, step, first, way, chunk_tokens)
    yields = [yield_of(path, acceptance / ACCEPTANCE_GRID) for path in paths]
    n = len(yields)
    return StreamYield(sum(each.tokens for each in yields) / n, sum(each.drafts for each in yields) / n)


def stream_yield(
    gamma: int,
    acceptance: float,
    step_s: float,
    first_s: float,
    rtt_s: float,
    iteration_s: float,
    branches: Branches | None = None,
    chunk_tokens: int = 1,
) -> StreamYield:
    """Return what an iteration of a busy target yields for a stream, on average.

    Args:
        gamma: Window, at least 1.
        acceptance: Probability that a draft is right, given that those before it were; at most 0.99 counts.
        step_s: Time of a draft step, waits for the drafter included.
        first_s: Time of the first one of a generation.
        rtt_s: Round trip between drafter and target, both ways alike.
        iteration_s: Time of an iteration.
        branches: Branches of its drafts, if they have any.
        chunk_tokens: Drafts that are sent in one message; 1 with branches.
    """
    # Word of a loss finds the drafter in the middle of a message, which it makes to its end: half of what a
    # message takes more than a step, on average. (Without that the model promised up to 14 % too much.)
    first_s += 0.5 * (min(chunk_tokens, gamma) - 1) * step_s
    step = _on_grid(step_s / iteration_s)
    first = step if first_s == step_s else _on_grid(first_s / iteration_s)
    way = _on_grid(0.5 * rtt_s / iteration_s)
    rate = min(99, round(ACCEPTANCE_GRID * acceptance))
    if branches is not None:
        return _branching_yield(gamma, rate, step, first, way, branches)
    return _yield(gamma, rate, step, first, way, chunk_tokens)


def _on_grid(ratio: float) -> int:
    return round(GRID * math.log(ratio)) if ratio > LEAST_RATIO else LEAST_STEP
