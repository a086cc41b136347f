"""Comparing schedulers on paired seeds: the evaluation seeds, and confidence intervals of differences.

A seed gives every scheduler the same world. What the world does to both schedulers cancels in their
difference, so paired differences tell more than separate means.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

EVALUATION_SEEDS = range(2_000_000_000, 2_100_000_000)
"""Episode seeds of reported results; no part of training ever uses them."""

FEW_SEEDS = 10
"""With fewer seeds than this, users are warned that bootstrap intervals are too narrow."""
RESAMPLES = 10_000
BOOTSTRAP_SEED = 0


def evaluation_seeds(count: int) -> list[int]:
    """Return the first ``count`` evaluation seeds."""
    return list(EVALUATION_SEEDS[:count])


def bootstrap_mean(values: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return mean and 95 % percentile bootstrap interval over seeds, deterministically.

    Args:
        values: One value per seed; NaN (nothing observed) is left out.

    Returns:
        (mean, low, high). All three are NaN without values; low and high are NaN for a single value.
    """
    finite = values[np.isfinite(values)]
    if len(finite) == 0:
        return math.nan, math.nan, math.nan
    if len(finite) == 1:
        return float(finite[0]), math.nan, math.nan
    means = finite[_resamples(len(finite), RESAMPLES)].mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(finite.mean()), float(low), float(high)


def bootstrap_ratio(
    values: NDArray[np.float64], baseline: NDArray[np.float64], resamples: int = RESAMPLES
) -> tuple[float, float, float]:
    """Return mean(values) / mean(baseline) − 1 with its 95 % paired bootstrap interval.

    Each resample draws whole pairs, so what a seed does to both schedulers cancels.

    Args:
        values: One value per seed.
        baseline: Values of the baseline scheduler on the same seeds.
        resamples: Number of resamples.

    Returns:
        (relative difference, low, high). All three are NaN if no seed has both values or the baseline's mean
        is 0; low and high are NaN for a single pair.
    """
    both = np.isfinite(values) & np.isfinite(baseline)
    x, y = values[both], baseline[both]
    if len(x) == 0 or y.mean() == 0:
        return math.nan, math.nan, math.nan
    difference = float(x.mean() / y.mean() - 1.0)
    if len(x) == 1:
        return difference, math.nan, math.nan
    rows = _resamples(len(x), resamples)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = x[rows].mean(axis=1) / y[rows].mean(axis=1) - 1.0
    ratios = ratios[np.isfinite(ratios)]
    low, high = np.quantile(ratios, (0.025, 0.975)) if len(ratios) else (math.nan, math.nan)
    return difference, float(low), float(high)


def _resamples(n: int, count: int) -> NDArray[np.int64]:
    return np.random.default_rng(BOOTSTRAP_SEED).integers(n, size=(count, n))
