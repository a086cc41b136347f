"""Replay against speculative decoding done directly with the same models on the same prompts.

Greedy: every round must accept exactly what replay says. Sampling: two runs of one request differ, so the
distributions of the accepted count are compared by a paired permutation test.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dsd_env.acceptance.replay import TraceReplay
from dsd_env.acceptance.source import AcceptanceRealisation
from dsd_env.acceptance.stats import round_starts
from dsd_env.acceptance.traceset import DrafterTrace, TraceSet
from dsd_env.calibration.acceptance.recording.direct import DirectRound
from dsd_env.rng import uniform_from_key


@dataclass(frozen=True)
class GreedyComparison:
    """Accepted counts of direct rounds against those of replay.

    Attributes:
        rounds: Rounds compared.
        differing: Rounds in which the counts differ.
    """

    rounds: int
    differing: int


@dataclass(frozen=True)
class SampledComparison:
    """Distribution of the accepted count, direct against replay.

    Attributes:
        requests: Requests, each decoded once by both.
        direct_rounds: Rounds decoded directly.
        replay_rounds: Rounds replayed.
        direct_mean: Mean accepted count of the direct rounds.
        replay_mean: The same of the replayed ones.
        statistic: Homogeneity statistic of the two histograms.
        p_value: Share of permutations with a statistic at least as large.
        permutations: Permutations drawn.
    """

    requests: int
    direct_rounds: int
    replay_rounds: int
    direct_mean: float
    replay_mean: float
    statistic: float
    p_value: float
    permutations: int


def single_entry(trace: TraceSet, entry: int) -> TraceSet:
    """Return a trace set of one entry, so that replay can pick no other."""
    part = slice(int(trace.offsets[entry]), int(trace.offsets[entry + 1]))
    return TraceSet(
        name=f"{trace.name}-{entry}",
        kinds=(trace.kinds[int(trace.kind[entry])],),
        offsets=np.array([0, part.stop - part.start], np.int64),
        kind=np.zeros(1, np.uint8),
        prompt_tokens=trace.prompt_tokens[entry : entry + 1],
        drafters={
            name: DrafterTrace(
                None if d.run_length is None else d.run_length[part],
                None if d.accept_prob is None else d.accept_prob[part],
                d.top1_prob[part],
                d.entropy_nats[part],
                None if d.proposed is None else d.proposed[part],
                None if d.draft_prob is None else d.draft_prob[part],
                None if d.rank is None else d.rank[part],
            )
            for name, d in trace.drafters.items()
        },
        card=trace.card,
    )


def replayed_runs(trace: TraceSet, entry: int, drafter: str, seed: int = 0) -> NDArray[np.int32]:
    """Return the run lengths that replay gives a request that is exactly one entry, int32 ``[n]``.

    The number of the request is made of the entry's name, so it does not depend on what else was recorded.
    """
    return replayed(trace, entry, drafter, seed).run_length


def replayed(trace: TraceSet, entry: int, drafter: str, seed: int = 0) -> AcceptanceRealisation:
    """Return what replay says of a request that is exactly one entry; see :func:`replayed_runs`."""
    n = int(trace.lengths[entry])
    request = zlib.crc32(str(trace.card["entries"][entry]).encode())
    return TraceReplay(single_entry(trace, entry)).realise(seed, request, n, drafter)


def counts_of_replay(run_length: NDArray[np.int32], gamma: int) -> list[int]:
    """Return the accepted counts of the rounds of one request, each with ``gamma`` drafts."""
    return [min(gamma, int(run_length[s])) for s in round_starts(run_length, gamma)]


def counts_of_direct(rounds: Sequence[DirectRound], n: int) -> list[int]:
    """Return the accepted counts of direct rounds, cut as replay cuts them: a run ends at position ``n``.

    Args:
        rounds: The rounds of one request.
        n: Output tokens looked at: those of the run, at most those that were recorded.
    """
    return [min(r.accepted, n - r.start) for r in rounds if r.start < n]


def chain_lengths(rounds: Sequence[DirectRound], n: int) -> list[int]:
    """Return how long each chain of drafts of a stream was right, in tokens.

    A chain begins at the first token or behind a mistake. Its tokens are right where a verified draft is
    accepted, or where the target's own token is what the drafter has drafted there unseen. The first one that
    is not ends it; the last chain may be cut by the end of the output.

    Args:
        rounds: The rounds of one request.
        n: Output tokens looked at.
    """
    lengths: list[int] = []
    right = 0
    for r in rounds:
        if r.start >= n:
            break
        accepted = min(r.accepted, n - r.start)
        right += accepted
        if r.start + accepted >= n:
            break
        if accepted == r.drafted and r.guessed:
            right += 1
            continue
        lengths.append(right)
        right = 0
    return [*lengths, right] if right else lengths


def stream_of_replay(realisation: AcceptanceRealisation, arrived: Callable[[int], int]) -> list[DirectRound]:
    """Return the rounds of a replayed stream, of a drafter that goes by the true prefix alone.

    Args:
        realisation: What replay says of the request.
        arrived: Output position -> drafts that have arrived when the target goes on there.
    """
    rounds: list[DirectRound] = []
    start, n = 0, len(realisation.run_length)
    while start < n:
        drafted = arrived(start)
        accepted = min(drafted, realisation.run_at(start, start), n - start)
        guessed = accepted == drafted and realisation.guessed_at(start + drafted, start)
        rounds.append(DirectRound(start, drafted, accepted, guessed))
        start += accepted + 1
    return rounds


def arrivals(key: int, window: int) -> Callable[[int], int]:
    """Return how many of a window's drafts have arrived at each output position: 0 to ``window - 1``."""
    return lambda position: int(uniform_from_key(key, position) * window)


def compare_greedy(direct: Sequence[Sequence[int]], replay: Sequence[Sequence[int]]) -> GreedyComparison:
    """Compare accepted counts round by round; a missing round counts as a differing one."""
    rounds = differing = 0
    for a, b in zip(direct, replay, strict=True):
        rounds += max(len(a), len(b))
        differing += sum(x != y for x, y in zip(a, b, strict=False)) + abs(len(a) - len(b))
    return GreedyComparison(rounds, differing)


def compare_sampled(
    direct: Sequence[Sequence[int]],
    replay: Sequence[Sequence[int]],
    gamma: int,
    *,
    permutations: int = 10_000,
    seed: int = 0,
) -> SampledComparison:
    """Test whether direct and replayed rounds have the same distribution of accepted counts.

    Rounds of one request depend on each other, so rounds cannot be permuted. If replay is right, a
    request's direct and its replayed counts are two independent draws of the same law, and exchanging the
    two changes nothing: the permutation test exchanges them, or not, request by request. The statistic is
    that of the chi-square test of homogeneity of the two pooled histograms; its null distribution is the
    permutations', not the chi-square's.

    Args:
        direct: Accepted counts by request.
        replay: The same of replay, in the same order.
        gamma: Drafts per round.
        permutations: Permutations drawn.
        seed: Their seed.
    """
    a, b = (
        np.stack([np.bincount(np.asarray(c, np.int64), minlength=gamma + 1) for c in side]).astype(np.float64)
        for side in (direct, replay)
    )
    observed = float(_homogeneity(a.sum(0)[None], b.sum(0)[None])[0])
    swap = np.random.default_rng(seed).integers(0, 2, (permutations, len(a))).astype(np.float64)
    total, difference = a.sum(0) + b.sum(0), b - a
    first = a.sum(0) + swap @ difference
    null = _homogeneity(first, total - first)
    places = np.arange(gamma + 1)
    return SampledComparison(
        requests=len(a),
        direct_rounds=int(a.sum()),
        replay_rounds=int(b.sum()),
        direct_mean=float(a.sum(0) @ places / a.sum()),
        replay_mean=float(b.sum(0) @ places / b.sum()),
        statistic=observed,
        p_value=float((1 + (null >= observed - 1e-9).sum()) / (1 + permutations)),
        permutations=permutations,
    )


def _homogeneity(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the chi-square statistic of homogeneity of histograms ``[..., cells]``, one per row."""
    total = a + b
    n_a, n_b = a.sum(-1, keepdims=True), b.sum(-1, keepdims=True)
    n = n_a + n_b
    with np.errstate(invalid="ignore", divide="ignore"):
        parts = (a - total * n_a / n) ** 2 / (total * n_a / n) + (b - total * n_b / n) ** 2 / (
            total * n_b / n
        )
    return np.asarray(np.where(total > 0, parts, 0.0).sum(-1))
