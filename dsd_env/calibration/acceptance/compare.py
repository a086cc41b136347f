"""What decides whether a model of acceptance is good: its statistics beside those of the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dsd_env.acceptance.runmodel import RunProcess, class_given_length, pick_classes, simulate_runs
from dsd_env.acceptance.stats import autocorrelation, expected_tokens_iid, mean_by_request, tokens_per_round
from dsd_env.rng import Stream, uniforms

GAMMAS = tuple(range(1, 17))
LAGS = (1, 2, 3, 4, 6, 8, 16, 32, 64)
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Statistics:
    """Statistics of run lengths.

    Attributes:
        tokens_per_round: float64 ``[16]``: at ``GAMMAS``, rounds walked.
        distribution: float64 ``[R+1]``: share of starts by run length.
        run_correlation: float64 ``[9]``: autocorrelation at ``LAGS`` of the run length, taken as at most 16.
        first_correlation: float64 ``[9]``: the same of whether the first draft is accepted.
        request_quantiles: float64 ``[5]``: ``QUANTILES`` over requests of their mean run length.
        request_sd: Standard deviation over requests of their mean run length.
    """

    tokens_per_round: NDArray[np.float64]
    distribution: NDArray[np.float64]
    run_correlation: NDArray[np.float64]
    first_correlation: NDArray[np.float64]
    request_quantiles: NDArray[np.float64]
    request_sd: float


def statistics_of(runs: ArrayLike, offsets: ArrayLike, longest_run: int) -> Statistics:
    """Return the statistics of run lengths, flat over requests with bounds ``offsets``."""
    values = np.minimum(np.asarray(runs, dtype=np.int64), longest_run)
    bounds = np.asarray(offsets, dtype=np.int64)
    means = mean_by_request(values, bounds)
    return Statistics(
        tokens_per_round=np.array([tokens_per_round(values, gamma, bounds) for gamma in GAMMAS]),
        distribution=np.bincount(values, minlength=longest_run + 1) / len(values),
        run_correlation=autocorrelation(np.minimum(values, GAMMAS[-1]), bounds, LAGS),
        first_correlation=autocorrelation(values > 0, bounds, LAGS),
        request_quantiles=np.quantile(means, QUANTILES),
        request_sd=float(means.std()),
    )


def simulate_like(
    process: RunProcess, longest_run: int, lengths: ArrayLike, repeats: int = 1, seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw requests as long as those of a recording, each length several times.

    The class of a request is drawn given its length.

    Args:
        process: The model.
        longest_run: Its longest run.
        lengths: Output positions of the recorded requests, ``[n]``.
        repeats: How often each is drawn.
        seed: Seed.

    Returns:
        Run lengths, flat, and the bounds of the requests, both int64.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    parts = []
    for repeat in range(repeats):
        u = uniforms(seed + repeat, Stream.ACCEPTANCE_PICK, 0, np.arange(len(sizes), dtype=np.int64))
        classes = pick_classes(class_given_length(process, sizes), u)
        parts.append(simulate_runs(process, longest_run, classes, sizes, seed + repeat))
    bounds = np.concatenate([[0], np.cumsum(np.tile(sizes, repeats))])
    return np.concatenate(parts), bounds.astype(np.int64)


def iid_alpha(runs: ArrayLike, longest_run: int) -> float:
    """Return accepted over examined drafts, over all starts: the alpha of an i.i.d. model."""
    values = np.minimum(np.asarray(runs, dtype=np.int64), longest_run)
    return float(values.sum() / (values.sum() + (values < longest_run).sum()))


def iid_tokens(alpha: float) -> NDArray[np.float64]:
    """Return the tokens per round of an i.i.d. model at ``GAMMAS``."""
    return np.array([expected_tokens_iid(alpha, gamma) for gamma in GAMMAS])


def relative_errors(found: ArrayLike, wanted: ArrayLike) -> NDArray[np.float64]:
    """Return ``found / wanted - 1``."""
    return np.asarray(np.asarray(found) / np.asarray(wanted) - 1.0)


def total_variation(p: ArrayLike, q: ArrayLike) -> float:
    """Return half the summed absolute difference of two distributions."""
    return 0.5 * float(np.abs(np.asarray(p) - np.asarray(q)).sum())


def cut(runs: ArrayLike, offsets: ArrayLike, positions: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the first positions of every request, and the new bounds."""
    values, bounds = np.asarray(runs, dtype=np.int64), np.asarray(offsets, dtype=np.int64)
    sizes = np.minimum(np.diff(bounds), positions)
    keep: Sequence[NDArray[np.int64]] = [values[a : a + n] for a, n in zip(bounds[:-1], sizes, strict=True)]
    return np.concatenate(keep), np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
