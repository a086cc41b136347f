"""Statistics of benchmarks over several scenarios, with the definitions of rliable, in NumPy alone.

Agarwal et al., *Deep Reinforcement Learning at the Edge of the Statistical Precipice*, NeurIPS 2021, and
their library rliable. Scores come as one array per scenario, one number per seed; seeds are resampled within
each scenario (stratified). Seeds mean the same world for every scheduler here: comparisons resample them as
pairs, so that what two schedulers have in common on a seed cancels. rliable resamples both sides apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from dsd_env.paired import BOOTSTRAP_SEED, bootstrap_ratio

RESAMPLES = 2_000
"""Of intervals over several scenarios."""

Scores = Sequence[NDArray[np.float64]]
"""Per scenario, one score per seed."""
Interval = tuple[float, float, float]
"""(estimate, low, high) of a 95 % percentile bootstrap."""


def in_pairs(
    values: Mapping[int, float], reference: Mapping[int, float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return values and reference of the seeds that both have, in the reference's order."""
    seeds = [seed for seed in reference if seed in values]
    return np.array([values[seed] for seed in seeds]), np.array([reference[seed] for seed in seeds])


def interquartile_mean(values: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
    """Return the mean of the middle half: of n values, ``int(n / 4)`` are cut off at each end.

    Args:
        values: All scores, of all scenarios.
        axis: Along which they lie.
    """
    ordered = np.moveaxis(np.sort(values, axis=axis), axis, -1)
    cut = int(0.25 * ordered.shape[-1])
    trimmed: NDArray[np.float64] = ordered[..., cut : ordered.shape[-1] - cut].mean(axis=-1)
    return trimmed


def probability_of_improvement(x: Scores, y: Scores) -> float:
    """Return how likely a random run of X is better than one of Y, on a random scenario; ties count half.

    The mean over the scenarios of the Mann-Whitney statistic U(x, y) / (n_x · n_y).

    Args:
        x: Scores, more is better.
        y: Those of the other scheduler on the same scenarios.
    """
    return float(np.mean([_wins(a, b).mean() for a, b in zip(x, y, strict=True)]))


def _wins(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return for each pair 1 if x is greater, ½ if they tie, else 0."""
    wins: NDArray[np.float64] = (x[:, None] > y[None, :]) + 0.5 * (x[:, None] == y[None, :])
    return wins


def performance_profile(scores: Scores, thresholds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the share of runs above each threshold, as a mean over scenarios (run-score distribution)."""
    shares = [(each[None, :] > thresholds[:, None]).mean(axis=1) for each in scores]
    profile: NDArray[np.float64] = np.mean(shares, axis=0)
    return profile


def optimality_gap(scores: Scores, goal: float = 1.0) -> float:
    """Return by how much runs fall short of a goal on average: mean(max(0, goal − score))."""
    return float(np.mean([np.maximum(goal - each, 0.0).mean() for each in scores]))


def stratified_interval(
    scores: Scores,
    statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]] = interquartile_mean,
    resamples: int = RESAMPLES,
) -> Interval:
    """Return a statistic of all runs together with its stratified bootstrap interval.

    Args:
        scores: Per scenario, one per seed.
        statistic: Of the last axis: all runs of all scenarios, in a row.
        resamples: How often the seeds of every scenario are resampled.

    Returns:
        (estimate, low, high); NaN without a run, and no interval if no scenario has two.
    """
    if not scores or not all(len(each) for each in scores):
        return math.nan, math.nan, math.nan
    estimate = float(statistic(np.concatenate(scores)))
    if max(len(each) for each in scores) < 2:
        return estimate, math.nan, math.nan
    generator = np.random.default_rng(BOOTSTRAP_SEED)
    drawn = [each[generator.integers(len(each), size=(resamples, len(each)))] for each in scores]
    return estimate, *_bounds(statistic(np.concatenate(drawn, axis=1)))


def improvement_interval(x: Scores, y: Scores, resamples: int = RESAMPLES) -> Interval:
    """Return the probability of improvement with its stratified bootstrap interval, seeds in pairs.

    Args:
        x: Scores, more is better.
        y: Those of the other scheduler on the same seeds.
        resamples: How often the seeds of every scenario are resampled.

    Raises:
        ValueError: The seeds of a scenario are not as many on both sides.
    """
    for a, b in zip(x, y, strict=True):
        if len(a) != len(b):
            raise ValueError(f"{len(a)} and {len(b)} seeds: pairs need the same seeds on both sides")
    if not x or not all(len(each) for each in x):
        return math.nan, math.nan, math.nan
    estimate = probability_of_improvement(x, y)
    if max(len(each) for each in x) < 2:
        return estimate, math.nan, math.nan
    generator = np.random.default_rng(BOOTSTRAP_SEED)
    total = np.zeros(resamples)
    for a, b in zip(x, y, strict=True):
        n = len(a)
        # How often each seed is drawn: the mean over all drawn pairs is a quadratic form of these counts.
        counts = generator.multinomial(n, np.full(n, 1.0 / n), size=resamples).astype(np.float64)
        total += np.einsum("ri,ij,rj->r", counts, _wins(a, b), counts, optimize=True) / n**2
    return estimate, *_bounds(total / len(x))


def _bounds(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def relative_scores(
    values: NDArray[np.float64], reference: NDArray[np.float64], *, lower_is_better: bool
) -> NDArray[np.float64]:
    """Return scores in units of a reference on the same seeds: 1 is as good, 2 twice as good.

    Args:
        values: The objective, one per seed.
        reference: That of the reference on the same seeds.
        lower_is_better: Whether less of it is better.

    Returns:
        reference / values or values / reference; where both are 0 they are as good as each other, and a
        quotient that is not finite is NaN.
    """
    over, under = (reference, values) if lower_is_better else (values, reference)
    with np.errstate(divide="ignore", invalid="ignore"):
        scores = np.where((over == 0.0) & (under == 0.0), 1.0, over / under)
    return np.where(np.isfinite(scores), scores, math.nan)


def gain(
    values: NDArray[np.float64], reference: NDArray[np.float64], *, lower_is_better: bool
) -> tuple[float, float, float]:
    """Return by how much a mean is better than a reference's, relatively, with its paired interval.

    Returns:
        (gain, low, high): 0.1 is 10 % less time, or 10 % more of what is to be had.
    """
    change, low, high = bootstrap_ratio(values, reference)
    return (0.0 - change, 0.0 - high, 0.0 - low) if lower_is_better else (change, low, high)
