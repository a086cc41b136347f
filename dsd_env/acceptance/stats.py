"""What a recording amounts to: tokens per round, acceptance, saturation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dsd_env.acceptance.source import MAX_RUN_LENGTH, run_lengths
from dsd_env.acceptance.traceset import DrafterTrace, TraceError, TraceSet
from dsd_env.rng import Stream, uniforms


def expected_tokens_iid(alpha: float, gamma: int) -> float:
    """Return the tokens per round under i.i.d. acceptance, ``(1 - alpha^(gamma+1)) / (1 - alpha)``.

    Leviathan et al., ICML 2023, equation 1; ``gamma + 1`` at ``alpha = 1``.
    """
    if gamma < 0 or not 0.0 <= alpha <= 1.0:
        raise ValueError(f"gamma {gamma} must not be negative and alpha {alpha} must be in 0..1")
    return gamma + 1.0 if alpha == 1.0 else (1.0 - alpha ** (gamma + 1)) / (1.0 - alpha)


def round_starts(run_length: ArrayLike, gamma: int, start: int = 0) -> list[int]:
    """Return where the rounds of a request begin if every round has ``gamma`` drafts.

    Each round commits ``min(gamma, L) + 1`` tokens, and the next begins after them.

    Args:
        run_length: Run lengths of one request, ``[n]``.
        gamma: Speculation length.
        start: Position of the first round.
    """
    runs = np.asarray(run_length).tolist()
    starts = []
    while start < len(runs):
        starts.append(start)
        start += min(gamma, runs[start]) + 1
    return starts


def tokens_per_round(run_length: ArrayLike, gamma: int, offsets: ArrayLike | None = None) -> float:
    """Return tokens committed per round when every round has ``gamma`` drafts (block efficiency).

    Rounds are walked as a decoder takes them, from the first position of each entry. Averaging
    ``min(gamma, L_s) + 1`` over *all* starts instead gives more, because a long run is then counted
    once for every position in it; see :func:`tokens_at_random_start`. An entry's last round counts
    what it accepted, also where that goes beyond the recorded end.

    Args:
        run_length: Run lengths, flat over all entries.
        gamma: Speculation length.
        offsets: Bounds of the entries, ``[n+1]``; default one entry.
    """
    runs = np.asarray(run_length)
    bounds = np.asarray([0, len(runs)] if offsets is None else offsets).tolist()
    tokens = rounds = 0
    for begin, end in pairwise(bounds):
        entry = runs[begin:end]
        starts = round_starts(entry, gamma)
        tokens += int(np.minimum(entry[starts], gamma).sum()) + len(starts)
        rounds += len(starts)
    return tokens / rounds


def tokens_at_random_start(run_length: ArrayLike, gamma: int) -> float:
    """Return the mean of ``min(gamma, L_s) + 1`` over all starts ``s``."""
    return float(np.minimum(np.asarray(run_length), gamma).mean()) + 1.0


def drafts_per_round(
    run_length: ArrayLike, proposed: ArrayLike, gamma: int, offsets: ArrayLike | None = None
) -> float:
    """Return the drafts per round when every round asks for ``gamma`` and gets what is proposed.

    Args:
        run_length: Run lengths, flat over all entries.
        proposed: Tokens proposed at most from each start.
        gamma: Speculation length.
        offsets: Bounds of the entries, ``[n+1]``; default one entry.
    """
    runs, offered = np.asarray(run_length), np.minimum(np.asarray(proposed), gamma)
    bounds = np.asarray([0, len(runs)] if offsets is None else offsets).tolist()
    drafts = rounds = 0
    for begin, end in pairwise(bounds):
        starts = round_starts(runs[begin:end], gamma)
        drafts += int(offered[begin:end][starts].sum())
        rounds += len(starts)
    return drafts / rounds


def acceptance_rate(run_length: ArrayLike, gamma: int, offsets: ArrayLike | None = None) -> float:
    """Return accepted over drafted tokens when every round has ``gamma`` drafts, rounds walked."""
    if gamma < 1:
        raise ValueError(f"gamma is {gamma}; a round without drafts has no acceptance rate")
    return (tokens_per_round(run_length, gamma, offsets) - 1.0) / gamma


def saturation_share(run_length: ArrayLike, gamma_max: int) -> float:
    """Return the share of starts whose run reached the longest the recording could see."""
    return float((np.asarray(run_length) >= gamma_max).mean())


def run_continuation_share(
    run_length: ArrayLike, offsets: ArrayLike, gamma_max: int = MAX_RUN_LENGTH
) -> float:
    """Return how often ``L_{s+1} = L_s - 1`` after a start that accepts something.

    It is 1 for drafters whose proposal depends on the true prefix alone. Saturated starts are
    left out: the true run there is unknown.
    """
    runs = np.asarray(run_length, dtype=np.int64)
    last = np.asarray(offsets, dtype=np.int64)[1:] - 1
    usable = (runs > 0) & (runs < gamma_max)
    usable[last] = False
    here = np.flatnonzero(usable)
    return float((runs[here + 1] == runs[here] - 1).mean()) if len(here) else float("nan")


def expected_run_survival(accept_prob: NDArray[np.float32], places: int) -> NDArray[np.float64]:
    """Return ``P(L_s >= j)`` of one prefix-only entry for each start and ``j = 1 .. places``.

    Args:
        accept_prob: ``[n]`` of one entry.
        places: Number of places.

    Returns:
        float64 ``[n, places]``; zero where a run would leave the entry.
    """
    n = len(accept_prob)
    padded = np.concatenate([accept_prob.astype(np.float64), np.zeros(places)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, places)[:n]
    return np.asarray(np.cumprod(windows, axis=1))


def _trace_of(trace: TraceSet, drafter: str) -> DrafterTrace:
    if drafter not in trace.drafters:
        raise TraceError(f"{trace.name}: unknown drafter {drafter!r}; it has: {', '.join(trace.drafters)}")
    return trace.drafters[drafter]


def _entries(trace: TraceSet, kinds: Sequence[str] | None) -> Iterable[slice]:
    return [slice(int(trace.offsets[e]), int(trace.offsets[e + 1])) for e in trace.entries_of(kinds)]


def hazards(
    trace: TraceSet, drafter: str, kinds: Sequence[str] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return how often each place of a round was examined and how often accepted, over all starts.

    Place ``j`` (from 1) is examined where the places before it were accepted and the recording
    could see it: not beyond ``gamma_max``, and not beyond the entry for prefix-only drafters.

    Returns:
        Two float64 arrays, one value per place.
    """
    values = _trace_of(trace, drafter)
    places = trace.gamma_max or MAX_RUN_LENGTH
    examined, accepted = np.zeros(places), np.zeros(places)
    for part in _entries(trace, kinds):
        if values.run_length is not None:
            at_least = values.run_length[part][:, None] >= np.arange(places + 1)[None, :]
            counts = at_least.sum(axis=0)
            examined += counts[:-1]
            accepted += counts[1:]
        else:
            assert values.accept_prob is not None  # a trace set has one of the two forms
            accept = values.accept_prob[part]
            survival = expected_run_survival(accept, places)
            before = np.concatenate([np.ones((len(accept), 1)), survival[:, :-1]], axis=1)
            inside = np.arange(len(accept))[:, None] + np.arange(places)[None, :] < len(accept)
            examined += (before * inside).sum(axis=0)
            accepted += survival.sum(axis=0)
    seen = examined > 0
    return examined[seen], accepted[seen]


def first_draft_indicator(
    trace: TraceSet, drafter: str, kinds: Sequence[str] | None = None
) -> Iterator[NDArray[np.float64]]:
    """Yield per entry the probability that the first draft from each start is accepted."""
    values = _trace_of(trace, drafter)
    for part in _entries(trace, kinds):
        if values.run_length is not None:
            yield (values.run_length[part] > 0).astype(np.float64)
        else:
            assert values.accept_prob is not None  # a trace set has one of the two forms
            yield values.accept_prob[part].astype(np.float64)


def guess_rate(trace: TraceSet, drafter: str, kinds: Sequence[str] | None = None) -> float | None:
    """Return how often the drafter's own token is the one that the target chose without seeing a draft.

    The mean of ``draft_prob``; ``None`` if that was not recorded.
    """
    values = _trace_of(trace, drafter).draft_prob
    return None if values is None else float(values[trace.positions_of(kinds)].mean(dtype=np.float64))


def fanout_hits(
    trace: TraceSet, drafter: str, fanouts: Sequence[int], kinds: Sequence[str] | None = None
) -> NDArray[np.float64] | None:
    """Return how often the committed token is among the likeliest ``F + 1`` where the draft was rejected.

    A drafter that prepares branches for the ``F`` likeliest tokens beside its draft then has one at hand.
    Positions count by their probability of rejection. (A sampled draft may itself be none of the likeliest;
    then one of ``F + 1`` branches counts too many.)

    Args:
        trace: The recording.
        drafter: One of its drafters.
        fanouts: Branches beside the main line, from 1 on.
        kinds: Kinds to use; default all.

    Returns:
        A share for each fan-out; ``None`` if ranks were not recorded. NaN if nothing is ever rejected.
    """
    ranks = _trace_of(trace, drafter).rank
    if ranks is None:
        return None
    rejected = 1.0 - np.concatenate(list(first_draft_indicator(trace, drafter, kinds)))
    rank = ranks[trace.positions_of(kinds)]
    total = float(rejected.sum())
    return np.array([float(rejected[rank <= f + 1].sum()) / total if total else np.nan for f in fanouts])


def expected_tokens_per_round(accept_prob: ArrayLike, gamma: int, offsets: ArrayLike | None = None) -> float:
    """Return the expected tokens over the expected rounds of a prefix-only drafter, rounds walked.

    Exact, by dynamic programming over the positions at which a round may begin: position 0 begins one for
    certain; a round at ``s`` accepts ``j`` drafts, and leads to ``s + j + 1``, with the probability that
    positions ``s .. s+j-1`` match and ``s+j`` does not (or ``j`` is ``gamma``). Runs end with their entry, as
    in replay.

    Args:
        accept_prob: Acceptance probabilities, flat over all entries.
        gamma: Speculation length.
        offsets: Bounds of the entries, ``[n+1]``; default one entry.
    """
    accept = np.asarray(accept_prob)
    bounds = np.asarray([0, len(accept)] if offsets is None else offsets).tolist()
    tokens = rounds = 0.0
    for begin, end in pairwise(bounds):
        n = end - begin
        survival = np.concatenate(
            [np.ones((n, 1)), expected_run_survival(accept[begin:end].astype(np.float32), gamma)], axis=1
        )
        leaving = survival.copy()
        leaving[:, :-1] -= survival[:, 1:]  # P(the round accepts j), j = 0 .. gamma
        begins = np.zeros(n + gamma + 1)
        begins[0] = 1.0
        for s in range(n):
            begins[s + 1 : s + gamma + 2] += begins[s] * leaving[s]
        rounds += float(begins[:n].sum())
        tokens += float(begins[:n] @ survival.sum(axis=1))
    return tokens / rounds


def realised_runs(trace: TraceSet, drafter: str, seed: int = 0) -> NDArray[np.int64]:
    """Return run lengths at every start: the recorded ones, or one realisation of a prefix-only drafter.

    Args:
        trace: The trace set.
        drafter: One of its drafters.
        seed: Entry ``e`` draws at ``(seed, ACCEPTANCE_MATCH, e, position)``.
    """
    values = _trace_of(trace, drafter)
    if values.run_length is not None:
        return values.run_length.astype(np.int64)
    assert values.accept_prob is not None  # a trace set has one of the two forms
    parts = []
    for entry, (begin, end) in enumerate(pairwise(trace.offsets.tolist())):
        u = uniforms(seed, Stream.ACCEPTANCE_MATCH, entry, np.arange(end - begin, dtype=np.int64))
        parts.append(run_lengths(u < values.accept_prob[begin:end]))
    return np.minimum(np.concatenate(parts), MAX_RUN_LENGTH).astype(np.int64)


def autocorrelation(values: ArrayLike, offsets: ArrayLike, lags: Sequence[int]) -> NDArray[np.float64]:
    """Return the autocorrelation within entries of a quantity by position, about its mean over all of them.

    Differences between entries therefore count: a value that does not fall to zero at long lags is the spread
    between requests. NaN where no entry is long enough, or the quantity is constant.

    Args:
        values: The quantity, flat over all entries.
        offsets: Bounds of the entries, ``[n+1]``.
        lags: Lags in positions, positive.
    """
    centred = np.asarray(values, dtype=np.float64)
    centred = centred - centred.mean()
    variance = float((centred**2).mean())
    last = np.repeat(np.asarray(offsets)[1:], np.diff(offsets))  # where the entry of each position ends
    found = []
    for lag in lags:
        here = np.flatnonzero(np.arange(len(centred)) + lag < last)
        pairs = centred[here] * centred[here + lag]
        found.append(float(pairs.mean()) / variance if len(pairs) and variance > 0.0 else float("nan"))
    return np.array(found)


def mean_by_request(values: ArrayLike, offsets: ArrayLike) -> NDArray[np.float64]:
    """Return the mean of a quantity over the positions of each entry."""
    bounds = np.asarray(offsets)
    return np.asarray(np.add.reduceat(np.asarray(values, dtype=np.float64), bounds[:-1]) / np.diff(bounds))


def summary(
    trace: TraceSet,
    drafter: str,
    gammas: Sequence[int] = (1, 2, 4, 8, 16),
    kinds: Sequence[str] | None = None,
) -> dict[str, float]:
    """Return the main figures of a drafter over some kinds.

    For a prefix-only drafter they are expectations over its matches (:func:`expected_tokens_per_round`).

    Returns:
        ``requests``, ``positions``, ``tokens_per_round@G`` for every gamma, ``first_draft_accepted``,
        ``saturated`` (share of starts; 0 without a limit) and ``continuation``; for drafters that may
        propose fewer tokens than asked for, ``drafts_per_round@G``, too.

    Raises:
        TraceError: Unknown kind or drafter.
    """
    values = _trace_of(trace, drafter)
    entries, positions = trace.entries_of(kinds), trace.positions_of(kinds)
    offsets = np.concatenate([[0], np.cumsum(trace.lengths[entries])])
    counts = {"requests": float(len(entries)), "positions": float(len(positions))}
    if values.run_length is None:
        assert values.accept_prob is not None  # a trace set has one of the two forms
        accept = values.accept_prob[positions]
        limit = trace.gamma_max
        return {
            **counts,
            **{f"tokens_per_round@{g}": expected_tokens_per_round(accept, g, offsets) for g in gammas},
            "first_draft_accepted": float(accept.mean(dtype=np.float64)),
            "saturated": 0.0 if limit is None else _expected_saturation(accept, offsets, limit),
            "continuation": 1.0,
        }
    chosen = values.run_length[positions]
    gamma_max = trace.gamma_max or MAX_RUN_LENGTH
    offered = None if values.proposed is None else values.proposed[positions]
    return {
        **counts,
        **{f"tokens_per_round@{g}": tokens_per_round(chosen, g, offsets) for g in gammas},
        **(
            {}
            if offered is None
            else {f"drafts_per_round@{g}": drafts_per_round(chosen, offered, g, offsets) for g in gammas}
        ),
        "first_draft_accepted": float((chosen > 0).mean()),
        "saturated": saturation_share(chosen, gamma_max),
        "continuation": run_continuation_share(chosen, offsets, gamma_max),
    }


def _expected_saturation(accept: NDArray[np.float32], offsets: NDArray[np.int64], limit: int) -> float:
    reached = [
        expected_run_survival(accept[begin:end], limit)[:, -1] for begin, end in pairwise(offsets.tolist())
    ]
    return float(np.concatenate(reached).mean())
