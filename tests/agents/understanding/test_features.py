"""Features by name, group and pattern; units; what tells the same number."""

from __future__ import annotations

import numpy as np
import pytest

from agents.understanding.features import (
    column_of,
    columns_of,
    groups,
    raw_values,
    same_number,
    scaled_values,
    with_value,
)
from agents.understanding.settings import ExplainError, Settings
from dsd_env.control import ObservationEncoder
from tests.scenarios import tiny

FEATURES = ObservationEncoder.of(tiny()).features
NAMES = [feature.name for feature in FEATURES]


def test_groups_are_a_partition() -> None:
    found = groups(FEATURES)
    assert list(found) == ["request", "target", "link", "drafter", "candidates", "system"]
    assert sorted(np.concatenate(list(found.values())).tolist()) == list(range(len(FEATURES)))
    assert columns_of(FEATURES, ["link"]).tolist() == found["link"].tolist()


def test_names_and_patterns() -> None:
    found = columns_of(FEATURES, ["candidate_*.rtt_s", "link.rtt_s", "link.rtt_s"])
    assert [NAMES[column] for column in found] == [name for name in NAMES if name.endswith(".rtt_s")]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("link.rtt", "did you mean 'link.rtt_s'"),
        ("rtt_s", "did you mean 'link.rtt_s'"),
        ("target.residents", "did you mean 'target.resident'"),
        ("candidate_*.speed", "no feature is like 'candidate_*.speed'; groups are request, target"),
        ("targets", "did you mean 'target'"),
    ],
)
def test_unknown_names_are_answered_with_near_ones(name: str, words: str) -> None:
    with pytest.raises(ExplainError) as told:
        columns_of(FEATURES, [name])
    assert words in str(told.value)
    with pytest.raises(ExplainError, match="no feature"):
        column_of(FEATURES, name)


def test_raw_values_undo_the_scaling() -> None:
    for feature in FEATURES:
        raw = {"fraction": [0.0, 0.25, 1.0], "squash": [0.0, 0.5, 30.0], "signed": [-2.0, 0.0, 0.7]}
        values = np.array(raw[feature.scale]) * feature.half
        scaled = scaled_values(feature, values)
        assert (np.abs(scaled) <= 1.0).all()
        np.testing.assert_allclose(raw_values([feature], scaled[:, None])[:, 0], values, rtol=1e-4)


def test_a_bound_that_there_is_not_is_infinite() -> None:
    feature = FEATURES[NAMES.index("request.slo_ttft_s")]
    assert np.isinf(raw_values([feature], scaled_values(feature, np.array([[1e9]])))).all()


@pytest.mark.parametrize("alone", [False, True])
def test_what_tells_the_same_number_goes_along(alone: bool) -> None:
    observations = np.zeros((2, len(FEATURES)), dtype=np.float32)
    observations[0, NAMES.index("candidate_1.own_device")] = 1.0
    with_value(FEATURES, observations, "link.rtt_s", 0.03, alone=alone)
    assert observations[:, NAMES.index("link.rtt_s")].tolist() == [0.5, 0.5]
    others = [NAMES.index(f"candidate_{i}.rtt_s") for i in range(6)]
    expected = np.zeros((2, 6))
    expected[0, 1] = 0.0 if alone else 0.5
    np.testing.assert_array_equal(observations[:, others], expected)
    assert (observations != 0.0).sum() == 3 + (not alone)


def test_few_features_tell_the_same() -> None:
    assert same_number(FEATURES, "request.rounds") == []
    found = same_number(FEATURES, "target.resident")
    assert [NAMES[column] for column, _ in found] == [f"candidate_{i}.target_resident" for i in range(6)]
    assert {NAMES[flag].partition(".")[2] for _, flag in found} == {"same_target"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"axes": ("link.rtt_s", "link.rtt_s")}, "named twice"),
        ({"leaves": (8, 8)}, "names something twice"),
        ({"seeds": 0}, "greater than or equal to 1"),
        ({"replace": "zero"}, "shuffle"),
        ({"speed": 1}, "Extra inputs"),
    ],
)
def test_settings_are_checked(given, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Settings(**given)
