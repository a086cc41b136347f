"""Simulations under static choices that a script remembers, in its output and beside it while it runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from _static_choices import BY_LOAD, make_static
from tqdm import tqdm

from agents.evaluation import PartialResults, Task, tasks_of
from agents.identity import key_of
from agents.seeds import SEARCH_SEEDS
from dsd_env.scenario import Scenario
from dsd_env.whole_runs.static import run_statics


@dataclass(frozen=True)
class Runs:
    """Simulations, remembered by all that they depend on, and the file that they are remembered in."""

    finished: PartialResults
    kept: tuple[str, ...]

    @classmethod
    def beside(
        cls, file: Path, before: dict[str, Any], kept: Iterable[str], needed: Iterable[str] = ()
    ) -> Runs:
        """Return the runs whose unfinished results lie beside a file of results.

        Args:
            file: The file of results.
            before: What it holds.
            kept: Metrics that are remembered.
            needed: Those without which a simulation counts as not done: earlier ones may not have kept them.
        """
        finished = PartialResults(file.with_name(file.name + ".partial"))
        known = {**before.get("simulations", {}), **finished.results}
        found = {key: _finite(metrics) for key, metrics in known.items()}
        finished.results = {key: found[key] for key in found if set(needed) <= set(found[key])}
        return cls(finished, tuple(kept))

    def run(self, wanted: Sequence[tuple[Scenario, str]], seeds: slice, label: str = "") -> None:
        """Simulate what has not been simulated yet.

        Args:
            wanted: Scenarios and static choices.
            seeds: Which of the seeds of searches.
            label: What the bar of progress says.
        """
        new: dict[str, Task] = {}
        for scenario, scheduler in wanted:
            for task in self._tasks(scenario, scheduler, seeds):
                if task.key not in self.finished.results:
                    new[task.key] = task
        if not new:
            return
        with tqdm(total=len(new), desc=label, leave=False) as bar:
            for task, metrics in run_statics(list(new.values()), make_static):
                self.finished.add(task, _finite({key: metrics[key] for key in self.kept if key in metrics}))
                bar.update()

    def rows(self, scenario: Scenario, scheduler: str, seeds: slice) -> list[dict[str, float]]:
        """Return what was measured, seed by seed."""
        return [self.finished.results[task.key] for task in self._tasks(scenario, scheduler, seeds)]

    def _tasks(self, scenario: Scenario, scheduler: str, seeds: slice) -> list[Task]:
        if not scheduler.startswith(BY_LOAD):
            return tasks_of(scenario.name, scenario, scheduler, SEARCH_SEEDS[seeds])
        make_static(scheduler).reset(scenario, 0)
        return [
            replace(
                task,
                scheduler=scheduler,
                key=key_of(task.key, scheduler),
            )
            for task in tasks_of(scenario.name, scenario, "cloud_ar", SEARCH_SEEDS[seeds])
        ]


def _finite(metrics: dict[str, float]) -> dict[str, float]:
    """Return what has been observed: the rest is NaN, which JSON does not know."""
    return {name: value for name, value in metrics.items() if math.isfinite(value)}
