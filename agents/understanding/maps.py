"""Decisions over two features: in the states that were met, and in those with these two changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.understanding.decisions import Reading
from agents.understanding.features import column_of, raw_values, same_number, with_value
from agents.understanding.settings import ExplainError, Settings
from agents.understanding.subject import DecideMany
from agents.understanding.visits import Visits

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Axis:
    """One feature of a map.

    Attributes:
        name: The feature.
        unit: Its unit.
        edges: Where cells end, rising, first and last included, in its unit.
        middles: A value in the middle of what was met in each cell.
    """

    name: str
    unit: str
    edges: Floats
    middles: Floats

    def cell_of(self, raw: Floats) -> NDArray[np.int64]:
        """Return the number of each value's cell; a value at an edge belongs to the cell above it."""
        return np.searchsorted(self.edges[1:-1], raw, side="right").astype(np.int64)

    def json(self) -> dict[str, Any]:
        """Return it for the file of results."""
        return {
            "feature": self.name,
            "unit": self.unit,
            "edges": self.edges.tolist(),
            "middles": self.middles.tolist(),
        }


def axis_of(name: str, unit: str, raw: Floats, bins: int) -> Axis:
    """Return an axis with cells of about as many visits each; few different values have a cell each.

    Args:
        name: The feature.
        unit: Its unit.
        raw: Values that were met.
        bins: Most cells.

    Raises:
        ExplainError: Values are not finite.
    """
    if not np.isfinite(raw).all():
        raise ExplainError(f"axes: {name} has no bound in some states, so that no map can be drawn over it")
    values = np.unique(raw)
    if len(values) <= bins:
        edges = np.concatenate([values[:1], (values[1:] + values[:-1]) / 2.0, values[-1:]])
    else:
        levels = np.linspace(0.0, 1.0, bins + 1)
        edges = np.unique(np.quantile(raw, levels))
        if len(edges) <= bins // 2:  # most visits have one value: let the others have cells, too
            edges = np.unique(np.quantile(values, levels))
    if len(edges) == 2 or len(values) == 1:
        return Axis(name, unit, np.array([values[0], values[-1]]), np.array([float(np.median(raw))]))
    cells = np.searchsorted(edges[1:-1], raw, side="right")
    # A cell between two edges that nothing fell into (many equal values) goes with the one above it.
    used = np.unique(cells)
    edges = np.concatenate([edges[used], edges[-1:]])
    cells = np.searchsorted(edges[1:-1], raw, side="right")
    middles = np.array([float(np.median(raw[cells == cell])) for cell in range(len(edges) - 1)])
    return Axis(name, unit, edges, middles)


@dataclass(frozen=True)
class HeatMap:
    """What is decided in every cell; arrays have the shape (cells upwards, cells across).

    Attributes:
        counts: States, int64.
        gamma: Mean speculation length, in tokens; NaN without states.
        shares: Share of every category of :class:`Reading`, shape (categories, up, across); NaN likewise.
        elsewhere: Share that is sent to another target than the first on offer.
    """

    counts: NDArray[np.int64]
    gamma: Floats
    shares: Floats
    elsewhere: Floats

    def json(self, categories: tuple[str, ...]) -> dict[str, Any]:
        """Return it for the file of results; NaN has become null."""
        return {
            "states": self.counts.tolist(),
            "gamma_mean": nullable(self.gamma),
            "share": {name: nullable(share) for name, share in zip(categories, self.shares, strict=True)},
            "share_at_another_target": nullable(self.elsewhere),
        }


def nullable(values: Floats) -> Any:
    """Return an array as lists with None for NaN."""
    found = values.astype(object)
    found[~np.isfinite(values)] = None
    return found.tolist()


def axes_of(reading: Reading, rounds: Visits, settings: Settings) -> tuple[Axis, Axis]:
    """Return the axes of the maps, with cells by what was met.

    Raises:
        ExplainError: A feature does not exist, or no map can be drawn over it.
    """
    found = []
    for name in settings.axes:
        unit = reading.features[column_of(reading.features, name)].unit
        found.append(axis_of(name, unit, _raw(reading, rounds, name), settings.bins))
    return found[0], found[1]


def _raw(reading: Reading, visits: Visits, name: str) -> Floats:
    """Return a feature in its unit, to four digits: more than float32 leaves, so that counts are whole."""
    column = column_of(reading.features, name)
    raw = raw_values([reading.features[column]], visits.observations[:, [column]])[:, 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = 10.0 ** (3.0 - np.floor(np.log10(np.abs(raw))))
        rounded = np.round(raw * scale) / scale
    return np.where(np.isfinite(rounded), rounded, raw)


def visited_map(reading: Reading, rounds: Visits, across: Axis, upwards: Axis) -> HeatMap:
    """Return the map of decisions in states as they were met."""
    cells = [axis.cell_of(_raw(reading, rounds, axis.name)) for axis in (upwards, across)]
    shape = (len(upwards.middles), len(across.middles))
    executed = reading.executed(rounds.observations, rounds.actions)
    return _summed(reading, executed, np.ravel_multi_index((cells[0], cells[1]), shape), shape)


def changed_map(
    reading: Reading,
    decide: DecideMany,
    rounds: Visits,
    across: Axis,
    upwards: Axis,
    settings: Settings,
    generator: np.random.Generator,
) -> HeatMap:
    """Return the map of decisions in the same states for every cell, with the two features changed to it.

    That is the policy's partial dependence on the two; masks stay as they were.
    """
    n = min(settings.sweep_states, len(rounds))
    chosen = np.sort(generator.permutation(len(rounds))[:n])
    base, masks = rounds.observations[chosen], rounds.masks[chosen]
    shape = (len(upwards.middles), len(across.middles))
    executed = []
    for up in upwards.middles.tolist():
        for side in across.middles.tolist():
            states = base.copy()
            with_value(reading.features, states, across.name, side, alone=settings.alone)
            with_value(reading.features, states, upwards.name, up, alone=settings.alone)
            executed.append(reading.executed(states, decide(states, masks)))
    cells = np.repeat(np.arange(shape[0] * shape[1]), n)
    return _summed(reading, np.concatenate(executed), cells, shape)


def moved_along(reading: Reading, settings: Settings) -> dict[str, list[str]]:
    """Return for each axis the features that are changed with it."""
    if settings.alone:
        return {name: [] for name in settings.axes}
    return {
        name: [reading.features[column].name for column, _ in same_number(reading.features, name)]
        for name in settings.axes
    }


def _summed(
    reading: Reading, executed: NDArray[np.int64], cells: NDArray[np.int64], shape: tuple[int, int]
) -> HeatMap:
    size = shape[0] * shape[1]
    counts = np.bincount(cells, minlength=size)

    def mean(values: NDArray[Any]) -> Floats:
        with np.errstate(invalid="ignore"):
            means: Floats = np.bincount(cells, weights=values.astype(np.float64), minlength=size) / counts
        return means.reshape(shape)

    category = reading.category(executed)
    shares = np.stack([mean(category == number) for number in range(len(reading.categories))])
    elsewhere = mean(reading.ranks[executed[:, 2]] > 0)
    return HeatMap(counts.reshape(shape), mean(reading.gammas(executed)), shares, elsewhere)
