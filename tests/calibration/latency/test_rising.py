"""Times made not to fall."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsd_env.calibration.latency.rising import rising


def test_neighbours_that_fall_get_their_mean() -> None:
    assert rising([1.0, 3.0, 2.0, 5.0]) == [1.0, 2.5, 2.5, 5.0]
    assert rising([3.0, 2.0, 1.0]) == [2.0, 2.0, 2.0]
    assert rising([2.0, 1.0], [3.0, 1.0]) == [1.75, 1.75]
    assert rising([]) == []


def test_a_fall_between_two_that_are_sure_is_kept():
    assert rising([2.0, 1.0, 3.0], [8.0, 9.0, 1.0], sure=8.0) == [2.0, 1.0, 3.0]
    assert rising([2.0, 1.0, 3.0], [8.0, 7.0, 1.0], sure=8.0) == [23 / 15, 23 / 15, 3.0]
    # Two unsure ones may be sure together, and are then believed.
    assert rising([5.0, 3.0, 1.0], [4.0, 4.0, 8.0], sure=8.0) == [4.0, 4.0, 1.0]


@given(st.lists(st.tuples(st.floats(0.0, 1.0), st.floats(0.1, 9.0)), min_size=1, max_size=12))
def test_they_do_not_fall_and_keep_their_weighted_sum(points: list[tuple[float, float]]) -> None:
    values, weights = [value for value, _ in points], [weight for _, weight in points]
    made = rising(values, weights)
    assert all(a <= b for a, b in pairwise(made))
    total = sum(value * weight for value, weight in points)
    assert sum(value * weight for value, weight in zip(made, weights, strict=True)) == pytest.approx(total)
    if values == sorted(values):
        assert made == values
