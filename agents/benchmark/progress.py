"""About how long the rest of a benchmark will take.

What a cell takes depends on its scheduler and on its scenario, by a factor of hundreds. So a cell is expected
to take what the same scheduler took in the same scenario; one of a pair that was never simulated, what its
scenario and its scheduler took elsewhere. Records of before may be of another machine: how this one compares
shows with the first cells, and so does how many cells it works on at a time.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from statistics import fmean

from agents.benchmark.cells import Cell
from agents.benchmark.records import Record

FIRST_GUESS_S = {"static": 3.0, "rules": 30.0, "learned": 30.0, "references": 120.0}
"""Time of a cell of which nothing is known yet, by role."""
SETTLING_S = 30.0
"""For so long the number of workers counts as much as what they were seen to do."""
SWEEPS = 20
"""Of the fit of scenarios' and schedulers' factors, which alternates between them."""

Pair = tuple[str, str]
"""Names of a scenario and of a scheduler."""


class RestTime:
    """Estimates the rest of a benchmark from the wall times of its cells."""

    def __init__(
        self,
        known: Iterable[Record],
        waiting: Iterable[Cell],
        workers: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take what is known, and begin.

        Args:
            known: Records of before, stale ones among them.
            waiting: The cells that are to come.
            workers: How many work on them, as far as that is known.
            clock: Returns the time, in seconds.
        """
        self._roles: dict[Pair, str] = {}
        self._waiting: Counter[Pair] = Counter()
        for cell in waiting:
            self._roles[cell.entry, cell.name] = cell.role
            self._waiting[cell.entry, cell.name] += 1
        times: dict[Pair, list[float]] = {}
        for record in known:
            times.setdefault((record.entry, record.name), []).append(record.wall_s)
        self._before = {pair: fmean(each) for pair, each in times.items()}
        self._now: dict[Pair, list[float]] = {}
        self._workers = max(1, workers)
        self._clock = clock
        self._start_s = clock()
        self._work_s = 0.0

    def done(self, cell: Cell, wall_s: float, *, failed: bool = False) -> None:
        """Take note of a cell that is finished; the time of one that failed says nothing about others."""
        pair = cell.entry, cell.name
        self._waiting[pair] -= 1
        self._work_s += wall_s
        if not failed:
            self._now.setdefault(pair, []).append(wall_s)

    def expected_s(self, entry: str, name: str) -> float:
        """Return the time that a cell of a scenario and a scheduler will take."""
        return self._expected((entry, name), self._factors())

    def rest_s(self) -> float:
        """Return the time that the rest will take, about."""
        factors = self._factors()
        counts = {pair: count for pair, count in self._waiting.items() if count > 0}
        work_s = sum(self._expected(pair, factors) * count for pair, count in counts.items())
        return work_s / min(self._at_a_time(), max(1, sum(counts.values())))

    def _at_a_time(self) -> float:
        """Return how many cells are worked on at a time: as many as there are workers, then as was seen."""
        elapsed_s = self._clock() - self._start_s
        return max(0.1, (self._workers * SETTLING_S + self._work_s) / (SETTLING_S + elapsed_s))

    def _pace(self) -> float:
        """Return how much longer cells take here than records of before say."""
        both = [pair for pair in self._now if self._before.get(pair, 0.0) > 0.0]
        told_s = sum(self._before[pair] * len(self._now[pair]) for pair in both)
        return sum(sum(self._now[pair]) for pair in both) / told_s if told_s > 0.0 else 1.0

    def _factors(self) -> tuple[Mapping[Pair, float], Mapping[str, float], Mapping[str, float]]:
        """Return the mean time of each known pair, and logarithms of what its two sides contribute to it."""
        pace = self._pace()
        means = {pair: mean * pace for pair, mean in self._before.items()}
        means |= {pair: fmean(each) for pair, each in self._now.items()}
        logs = {pair: math.log(max(mean, 1e-3)) for pair, mean in means.items()}
        return means, *_two_sides(logs)

    def _expected(
        self, pair: Pair, factors: tuple[Mapping[Pair, float], Mapping[str, float], Mapping[str, float]]
    ) -> float:
        means, scenarios, schedulers = factors
        if pair in means:
            return means[pair]
        entry, name = pair
        guess = math.log(FIRST_GUESS_S[self._roles[pair]])
        if name in schedulers:
            scheduler = schedulers[name]
        else:  # as others of its role
            alike = [
                schedulers[other]
                for (_, other), role in self._roles.items()
                if other in schedulers and role == self._roles[pair]
            ]
            scheduler = fmean(alike) if alike else guess
        return math.exp(scheduler + scenarios.get(entry, 0.0))


def _two_sides(logs: Mapping[Pair, float]) -> tuple[dict[str, float], dict[str, float]]:
    """Return one number per scenario and one per scheduler whose sums are near those of their pairs.

    The least squares of a table with gaps, by turns: each scenario's mean of what its schedulers leave open,
    then each scheduler's of what its scenarios do. The scenarios' have the mean 0.
    """
    scenarios = dict.fromkeys((entry for entry, _ in logs), 0.0)
    schedulers = dict.fromkeys((name for _, name in logs), 0.0)
    for _ in range(SWEEPS):
        for side, other, at in ((schedulers, scenarios, 1), (scenarios, schedulers, 0)):
            left: dict[str, list[float]] = {}
            for pair, value in logs.items():
                left.setdefault(pair[at], []).append(value - other[pair[1 - at]])
            side |= {key: fmean(values) for key, values in left.items()}
        mean = fmean(scenarios.values()) if scenarios else 0.0
        scenarios = {key: value - mean for key, value in scenarios.items()}
        schedulers = {key: value + mean for key, value in schedulers.items()}
    return scenarios, schedulers


def in_words(seconds: float) -> str:
    """Return a time as people say it."""
    minutes = seconds / 60.0
    if minutes < 1.5:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 90.0 else f"{minutes / 60.0:.1f} h"
