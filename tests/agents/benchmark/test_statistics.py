"""Statistics: worked out by hand, and against SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from agents.benchmark.statistics import (
    gain,
    improvement_interval,
    interquartile_mean,
    optimality_gap,
    performance_profile,
    probability_of_improvement,
    relative_scores,
    stratified_interval,
)

A = np.array


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([3.0], 3.0),
        ([1.0, 3.0, 8.0], 4.0),  # int(3 / 4) = 0: nothing is cut off
        ([100.0, 1.0, 2.0, 4.0], 3.0),
        ([8.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], 4.5),
        ([0.0, 0.0, 1.0, 2.0, 3.0, 1000.0, 4.0], 2.0),  # of seven, one at each end
    ],
)
def test_interquartile_mean_cuts_a_quarter_at_each_end(values, expected: float) -> None:
    assert interquartile_mean(A(values)) == pytest.approx(expected)


def test_interquartile_mean_is_the_trimmed_mean_of_scipy() -> None:
    values = np.random.default_rng(1).lognormal(size=(50, 37))
    np.testing.assert_allclose(interquartile_mean(values), stats.trim_mean(values, 0.25, axis=1))


def test_probability_of_improvement_counts_pairs_and_halves_of_ties() -> None:
    x, y = [A([1.0, 2.0]), A([5.0, 5.0])], [A([1.0, 0.0]), A([5.0, 7.0])]
    # First scenario: 1 > 0, 2 > 1, 2 > 0 and a tie of four pairs; second: two ties of four.
    assert probability_of_improvement(x, y) == pytest.approx((3.5 / 4 + 1.0 / 4) / 2)
    assert probability_of_improvement(y, x) == pytest.approx(1 - (3.5 / 4 + 1.0 / 4) / 2)
    assert probability_of_improvement(x, x) == pytest.approx(0.5)


def test_probability_of_improvement_is_mann_whitney() -> None:
    generator = np.random.default_rng(2)
    x, y = generator.normal(0.3, size=30).round(1), generator.normal(size=20).round(1)
    u = stats.mannwhitneyu(x, y).statistic
    assert probability_of_improvement([x], [y]) == pytest.approx(u / (30 * 20))


def test_profile_and_gap() -> None:
    scores = [A([0.5, 1.5]), A([1.0, 2.0, 3.0, 4.0])]
    np.testing.assert_allclose(
        performance_profile(scores, A([0.0, 1.0, 2.0, 9.0])), [1.0, (0.5 + 0.75) / 2, (0.0 + 0.5) / 2, 0.0]
    )
    assert optimality_gap(scores) == pytest.approx((0.25 + 0.0) / 2)


def test_stratified_interval_resamples_within_scenarios() -> None:
    # Nothing varies within a scenario, however much scenarios differ: the interval has no width.
    constant = [np.full(5, 1.0), np.full(5, 3.0), np.full(5, 100.0)]
    estimate, low, high = stratified_interval(constant)
    assert estimate == low == high == interquartile_mean(np.concatenate(constant))
    varied = [np.random.default_rng(3).normal(size=20)]
    estimate, low, high = stratified_interval(varied, lambda values: values.mean(axis=-1))
    half = 1.96 * varied[0].std() / math.sqrt(20)
    assert (estimate - low, high - estimate) == pytest.approx((half, half), rel=0.1)
    assert stratified_interval(varied) == stratified_interval(varied), "the same every time"


def test_one_seed_has_no_interval_and_none_has_nothing() -> None:
    estimate, *bounds = stratified_interval([A([2.0])])
    assert estimate == 2.0 and all(map(math.isnan, bounds))
    assert all(map(math.isnan, stratified_interval([])))
    assert all(map(math.isnan, stratified_interval([A([])])))
    estimate, *bounds = improvement_interval([A([2.0])], [A([1.0])])
    assert estimate == 1.0 and all(map(math.isnan, bounds))


def test_improvement_interval_by_pairs_of_seeds() -> None:
    x = [np.arange(10.0)]
    assert improvement_interval(x, [x[0] - 100.0]) == (1.0, 1.0, 1.0)
    # Against itself every resample is a tie as a whole: pairs of seeds leave no chance to differ.
    assert improvement_interval(x, x) == pytest.approx((0.5, 0.5, 0.5))
    y = [np.random.default_rng(4).permutation(x[0])]
    estimate, low, high = improvement_interval(x, y)
    assert low < estimate < high and estimate == pytest.approx(0.5)
    with pytest.raises(ValueError, match="10 and 9 seeds"):
        improvement_interval(x, [x[0][:9]])


def test_improvement_interval_is_that_of_drawing_seeds_one_by_one() -> None:
    generator = np.random.default_rng(5)
    x, y = generator.normal(0.2, size=12), generator.normal(size=12)
    drawn = generator.integers(12, size=(20_000, 12))
    plain = [probability_of_improvement([x[rows]], [y[rows]]) for rows in drawn]
    assert improvement_interval([x], [y])[1:] == pytest.approx(np.quantile(plain, (0.025, 0.975)), abs=0.02)


def test_scores_are_relative_to_the_reference_on_each_seed() -> None:
    times, reference = A([2.0, 1.0, 4.0]), A([4.0, 1.0, 2.0])
    np.testing.assert_allclose(relative_scores(times, reference, lower_is_better=True), [2.0, 1.0, 0.5])
    np.testing.assert_allclose(relative_scores(times, reference, lower_is_better=False), [0.5, 1.0, 2.0])
    zero = relative_scores(A([0.0, 1.0, math.nan]), A([0.0, 0.0, 1.0]), lower_is_better=False)
    np.testing.assert_equal(zero, [1.0, math.nan, math.nan])


def test_gain_is_positive_where_it_is_better() -> None:
    times, reference = A([0.8, 1.6, 2.4]), A([1.0, 2.0, 3.0])
    assert gain(times, reference, lower_is_better=True) == pytest.approx((0.2, 0.2, 0.2))
    assert gain(reference, times, lower_is_better=False) == pytest.approx((0.25, 0.25, 0.25))
    noisy = A([0.9, 2.2, 2.4])
    estimate, low, high = gain(noisy, reference, lower_is_better=True)
    assert low < estimate < high
