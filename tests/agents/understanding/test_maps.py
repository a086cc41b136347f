"""Cells of maps, and what stands in them."""

from __future__ import annotations

import numpy as np
import pytest

from agents.understanding.decisions import Reading
from agents.understanding.features import column_of, scaled_values
from agents.understanding.maps import axes_of, axis_of, changed_map, nullable, visited_map
from agents.understanding.settings import ExplainError, Settings
from agents.understanding.visits import Visits
from tests.agents.understanding.samples import crowd, window

READING = Reading(crowd())


def test_few_values_have_a_cell_each() -> None:
    axis = axis_of("x", "1", np.array([1.0, 2.0, 2.0, 4.0]), 8)
    assert axis.edges.tolist() == [1.0, 1.5, 3.0, 4.0]
    assert axis.middles.tolist() == [1.0, 2.0, 4.0]
    assert axis.cell_of(np.array([0.0, 1.5, 2.0, 9.0])).tolist() == [0, 1, 1, 2]


def test_many_values_have_cells_of_as_many_visits() -> None:
    raw = np.random.default_rng(0).exponential(size=8000)
    axis = axis_of("x", "s", raw, 8)
    assert np.bincount(axis.cell_of(raw)).tolist() == pytest.approx([1000] * 8, abs=2)
    assert (np.diff(axis.edges) > 0).all() and (np.diff(axis.middles) > 0).all()


@pytest.mark.parametrize("raw", [np.full(50, 3.0), np.array([3.0, 4.0])])
def test_hardly_any_values(raw: np.ndarray) -> None:
    axis = axis_of("x", "s", raw, 4)
    assert len(axis.middles) == len(np.unique(raw)) == len(axis.edges) - 1
    assert axis.cell_of(raw).max() == len(axis.middles) - 1


def test_many_equal_values_leave_no_empty_cell() -> None:
    raw = np.concatenate([np.zeros(900), np.linspace(1.0, 2.0, 100)])
    axis = axis_of("x", "s", raw, 8)
    assert np.bincount(axis.cell_of(raw), minlength=len(axis.middles)).min() > 0
    assert len(axis.middles) == 8


def test_values_without_bound_have_no_map() -> None:
    with pytest.raises(ExplainError, match="has no bound"):
        axis_of("request.slo_ttft_s", "s", np.array([1.0, np.inf]), 4)


def residents(n: int) -> tuple[Visits, np.ndarray]:
    """Return rounds with 0 to 7 residents, decided by their number alone."""
    rng = np.random.default_rng(1)
    features = READING.features
    observations = rng.uniform(0.1, 0.6, (n, len(features))).astype(np.float32)
    for column, feature in enumerate(features):
        if feature.unit == "0/1":
            observations[:, column] = 1.0
    observations[:, column_of(features, "request.is_admission")] = 0.0
    raw = rng.integers(0, 8, n)
    column = column_of(features, "target.resident")
    observations[:, column] = scaled_values(features[column], raw.astype(float))
    masks = np.ones((n, sum(READING.actions.nvec)), dtype=bool)
    return Visits(observations, masks, decided(observations), n), raw


def decided(observations: np.ndarray, masks: object = None) -> np.ndarray:
    column = column_of(READING.features, "target.resident")
    scaled = observations[:, column].astype(float)
    gammas = [window(64.0 * x / (1.0 - x)) for x in scaled]
    actions = np.zeros((len(observations), 3), dtype=np.int64)
    actions[:, 0] = [READING.actions.gammas.index(gamma) for gamma in gammas]
    return actions


def test_maps_show_the_rule() -> None:
    visits, raw = residents(3000)
    settings = Settings(axes=("request.acceptance_rate", "target.resident"), bins=8, sweep_states=20)
    across, upwards = axes_of(READING, visits, settings)
    np.testing.assert_allclose(upwards.middles, np.arange(8), atol=1e-4)
    assert len(across.middles) == 8
    expected = np.repeat([[float(window(n))] for n in range(8)], 8, axis=1)
    visited = visited_map(READING, visits, across, upwards)
    np.testing.assert_array_equal(visited.gamma, expected)
    assert visited.counts.sum(axis=1).tolist() == np.bincount(raw).tolist()
    np.testing.assert_array_equal(visited.shares.sum(axis=0), np.ones((8, 8)))
    np.testing.assert_array_equal(visited.shares[0], expected == 0)
    assert (visited.elsewhere == 0.0).all()
    generator = np.random.default_rng(0)
    changed = changed_map(READING, decided, visits, across, upwards, settings, generator)
    np.testing.assert_array_equal(changed.gamma, expected)
    assert (changed.counts == 20).all()


def test_cells_without_states_are_null() -> None:
    visits, raw = residents(500)
    settings = Settings(axes=("request.acceptance_rate", "target.resident"))
    across, upwards = axes_of(READING, visits, settings)
    some = visits.where(raw != 2)
    content = visited_map(READING, some, across, upwards).json(READING.categories)
    assert content["gamma_mean"][2] == [None] * 8 == content["share"]["plain"][2]
    assert content["states"][2] == [0] * 8
    assert nullable(np.array([[1.0, np.nan]])) == [[1.0, None]]
