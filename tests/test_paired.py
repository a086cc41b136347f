"""Intervals of means and of paired differences."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dsd_env.paired import EVALUATION_SEEDS, bootstrap_mean, bootstrap_ratio, evaluation_seeds

NAN = math.nan


def test_evaluation_seeds_are_the_first_of_their_range() -> None:
    assert evaluation_seeds(3) == [EVALUATION_SEEDS.start + number for number in range(3)]


def test_bootstrap_covers_and_is_deterministic() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        mean, low, high = bootstrap_mean(rng.normal(5.0, 1.0, 30))
        assert low < mean < high
        covered += low <= 5.0 <= high
    assert 0.88 <= covered / 200 <= 0.99
    values = rng.normal(size=7)
    assert bootstrap_mean(values) == bootstrap_mean(values)
    assert bootstrap_mean(np.full(4, 2.5)) == (2.5, 2.5, 2.5)


def test_bootstrap_leaves_out_what_was_not_observed() -> None:
    assert bootstrap_mean(np.array([NAN, 1.0, 3.0])) == bootstrap_mean(np.array([1.0, 3.0]))
    assert bootstrap_mean(np.array([NAN, 2.0]))[0] == 2.0
    assert all(math.isnan(x) for x in bootstrap_mean(np.array([NAN, 2.0]))[1:]), "one seed has no interval"
    assert all(math.isnan(x) for x in bootstrap_mean(np.array([NAN, NAN])))


def test_pairing_removes_what_the_seeds_share() -> None:
    rng = np.random.default_rng(1)
    world = rng.uniform(1.0, 10.0, 10)
    change, low, high = bootstrap_ratio(0.9 * world, world)
    assert (change, low, high) == pytest.approx((-0.1, -0.1, -0.1))
    _, loose_low, loose_high = bootstrap_ratio(0.9 * rng.permutation(world), world)
    assert loose_high - loose_low > 0.1
    assert all(math.isnan(x) for x in bootstrap_ratio(np.ones(3), np.zeros(3)))
    assert bootstrap_ratio(np.array([NAN, 2.0, 4.0]), np.array([1.0, 1.0, 2.0]))[0] == pytest.approx(1.0)
