"""How long the rest of a benchmark will take: by what its scheduler and scenario took so far."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean

from agents.benchmark.cells import Cell
from agents.benchmark.records import Record

FIRST_GUESS_S = {"static": 3.0, "rules": 30.0, "learned": 30.0, "references": 120.0}
"""Time of a cell of which nothing is known yet, by role."""


class RestTime:
    """Estimates the rest of a benchmark from the wall times of its cells."""

    def __init__(self, known: Iterable[Record], waiting: Iterable[Cell], workers: int) -> None:
        """Take what is known, what is to come, and how many work on it."""
        self._waiting = list(waiting)
        self._workers = max(1, workers)
        self._by_pair: dict[tuple[str, str], list[float]] = {}
        self._by_role: dict[str, list[float]] = {}
        for record in known:
            self._by_pair.setdefault((record.entry, record.name), []).append(record.wall_s)

    def done(self, cell: Cell, wall_s: float) -> None:
        """Take note of a cell that is finished."""
        self._waiting.remove(cell)
        self._by_pair.setdefault((cell.entry, cell.name), []).append(wall_s)
        self._by_role.setdefault(cell.role, []).append(wall_s)

    def expected_s(self, cell: Cell) -> float:
        """Return the time that a cell will take."""
        known = self._by_pair.get((cell.entry, cell.name)) or self._by_role.get(cell.role)
        return fmean(known) if known else FIRST_GUESS_S[cell.role]

    def rest_s(self) -> float:
        """Return the time that the rest will take."""
        pairs: dict[tuple[str, str], tuple[Cell, int]] = {}
        for cell in self._waiting:
            first, count = pairs.get((cell.entry, cell.name), (cell, 0))
            pairs[cell.entry, cell.name] = first, count + 1
        return sum(self.expected_s(cell) * count for cell, count in pairs.values()) / self._workers


def in_words(seconds: float) -> str:
    """Return a time as people say it."""
    minutes = seconds / 60.0
    if minutes < 1.5:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 90.0 else f"{minutes / 60.0:.1f} h"
