"""Numbers of an observation by name: groups, units, raw values, and which of them tell the same."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from agents.understanding.settings import ExplainError
from dsd_env.control.encoding import Feature
from dsd_env.similar import hint

Columns = NDArray[np.int64]
"""Places of features in the observation."""

_SAME: Mapping[str, tuple[str, str]] = {
    "link.rtt_s": ("rtt_s", "own_device"),
    **{
        f"target.{name}": (f"target_{name}", "same_target")
        for name in ("queued", "resident", "colocated", "remote", "prefill_tokens", "iteration_s")
    },
}
"""Features that candidates tell once more: there by what name, and where which flag is set."""


def group_of(feature: Feature) -> str:
    """Return the group of a feature: the part of the view, or ``candidates`` for those of any candidate."""
    group = feature.name.partition(".")[0]
    return "candidates" if group.startswith("candidate_") else group


def groups(features: Sequence[Feature]) -> dict[str, Columns]:
    """Return the columns of every group, in the order of the observation."""
    found: dict[str, list[int]] = {}
    for column, feature in enumerate(features):
        found.setdefault(group_of(feature), []).append(column)
    return {name: np.array(columns, dtype=np.int64) for name, columns in found.items()}


def column_of(features: Sequence[Feature], name: str) -> int:
    """Return the column of a feature.

    Raises:
        ExplainError: There is none of that name; with the names most like it.
    """
    names = [feature.name for feature in features]
    if name not in names:
        raise ExplainError(f"no feature {name!r}{hint(_like(name, names))} docs/environment.md lists them")
    return names.index(name)


def columns_of(features: Sequence[Feature], wanted: Iterable[str]) -> Columns:
    """Return the columns of features that are named by name, by group, or by a pattern with ``*``.

    Raises:
        ExplainError: Something names no feature; with the names most like it.
    """
    names, by_group = [feature.name for feature in features], groups(features)
    found: set[int] = set()
    for name in wanted:
        if name in by_group:
            found |= set(by_group[name].tolist())
        elif "*" in name:
            matching = [column for column, each in enumerate(names) if fnmatch.fnmatchcase(each, name)]
            if not matching:
                raise ExplainError(f"no feature is like {name!r}; groups are {', '.join(by_group)}")
            found |= set(matching)
        else:
            found.add(_column(name, names, by_group))
    return np.array(sorted(found), dtype=np.int64)


def _column(name: str, names: Sequence[str], by_group: Mapping[str, Columns]) -> int:
    if name not in names:
        likes = hint(_like(name, [*names, *by_group]))
        raise ExplainError(f"no feature or group {name!r}{likes} Groups are {', '.join(by_group)}")
    return names.index(name)


def _like(name: str, names: Sequence[str]) -> list[str]:
    """Return the names most like one, or those that hold it or are the same in their second part."""
    if close := difflib.get_close_matches(name, names, n=2, cutoff=0.7):
        return close
    ending = name.rpartition(".")[2]
    held = [each for each in names if ending and ending in each.rpartition(".")[2]]
    return held[:2] or difflib.get_close_matches(name, names, n=2, cutoff=0.5)


def raw_values(features: Sequence[Feature], observations: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return observations in the units of their features.

    Args:
        features: The features of the columns.
        observations: Scaled, shape (n, features).

    Returns:
        float64 of the same shape; infinite where scaling has left no difference from infinity.
    """
    scaled = np.asarray(observations, dtype=np.float64)
    open_ended = np.array([feature.scale != "fraction" for feature in features])
    half = np.array([feature.half for feature in features])
    with np.errstate(divide="ignore", invalid="ignore"):
        opened = scaled * half / (1.0 - np.abs(scaled))
    return np.where(open_ended, opened, scaled)


def scaled_values(feature: Feature, raw: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return values of a feature as the observation has them: float32."""
    raw = np.asarray(raw, dtype=np.float64)
    if feature.scale == "fraction":
        return raw.astype(np.float32)
    return (raw / (np.abs(raw) + feature.half)).astype(np.float32)


def same_number(features: Sequence[Feature], name: str) -> list[tuple[int, int]]:
    """Return the features that tell the number of another one, too.

    Args:
        features: The features.
        name: The other one.

    Returns:
        Columns, each with that of the flag without which it tells something else.
    """
    if name not in _SAME:
        return []
    names = {feature.name: column for column, feature in enumerate(features)}
    field, flag = _SAME[name]
    candidates = dict.fromkeys(each.partition(".")[0] for each in names if each.startswith("candidate_"))
    told = [each for each in candidates if f"{each}.{field}" in names]
    return [(names[f"{each}.{field}"], names[f"{each}.{flag}"]) for each in told]


def with_value(
    features: Sequence[Feature], observations: NDArray[np.float32], name: str, raw: float, *, alone: bool
) -> None:
    """Set a feature of observations, in place, and with it those that tell the same number.

    Args:
        features: The features.
        observations: float32, shape (n, features).
        name: Which.
        raw: Its value, in its unit.
        alone: Leave the others as they are.
    """
    column = column_of(features, name)
    observations[:, column] = scaled_values(features[column], np.array(raw))
    for other, flag in [] if alone else same_number(features, name):
        there = observations[:, flag] > 0.5
        observations[there, other] = scaled_values(features[other], np.array(raw))
