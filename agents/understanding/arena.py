"""What a change of a scheduler costs in the simulator: the same episodes with and without it, in pairs."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from agents.benchmark.config import Objective, load_suite
from agents.benchmark.objectives import objective_by
from agents.environments import engine_for
from agents.evaluation import PartialResults, Task, run_group
from agents.identity import digests_of, key_of
from agents.rollouts import Decide, play
from dsd_env.paired import bootstrap_mean, bootstrap_ratio
from dsd_env.scenario import Scenario

SIDE_BY_SIDE = 8
"""Episodes that are played at a time."""


def objective_of(label: str, scenario: Scenario, metric: str | None = None) -> Objective:
    """Return what a scenario is judged by: the metric given, the benchmark's, or mean request time.

    Args:
        label: The scenario as the user named it.
        scenario: Its content.
        metric: A metric; None: that of the shipped benchmark's entry of this name.

    Raises:
        ValueError: There is no such metric, with the names most like it; or neither more nor less of it is
            better.
    """
    if metric is not None:
        return objective_by(metric, None, scenario)
    suite = load_suite("core", tuned=False)
    if label in suite.scenarios:
        return suite.contest(label).objective
    return suite.objective


class Cost(NamedTuple):
    """What a variant costs, paired by seed.

    Attributes:
        means: Mean of every metric of the objective.
        cost: Relative change of the objective towards the worse: 0.1 is a tenth worse.
        ci95: Its interval; NaN for fewer than two seeds.
        per_seed: The objective, by seed.
    """

    means: dict[str, float]
    cost: float
    ci95: tuple[float, float]
    per_seed: list[float]

    def json(self) -> dict[str, Any]:
        """Return it for the file of results."""
        return {
            "means": {name: _json(value) for name, value in self.means.items()},
            "cost": _json(self.cost),
            "ci95": [_json(each) for each in self.ci95],
            "per_seed": [_json(each) for each in self.per_seed],
        }


@dataclass(frozen=True)
class Arena:
    """Plays variants of a scheduler on the same episodes, and remembers what it has played.

    Attributes:
        label: The scenario as the user named it.
        scenario: Its content.
        scheduler: Specification of the scheduler.
        seeds: The episodes.
        objective: What is compared.
        finished: Results of earlier runs, and where new ones are kept.
        n_placements: Length to which the list of candidates is filled up; None: the scenario's own.
        told: Called after every episode with its seed.
    """

    label: str
    scenario: Scenario
    scheduler: str
    seeds: Sequence[int]
    objective: Objective
    finished: PartialResults
    n_placements: int | None = None
    told: Callable[[int], object] = lambda seed: None

    def baseline(self) -> list[dict[str, float]]:
        """Return the metrics of the scheduler itself, seed by seed."""
        return self._played("itself", {}, None)

    def variant(self, name: str, depends_on: Mapping[str, Any], decide: Decide) -> list[dict[str, float]]:
        """Return the metrics of a variant, seed by seed.

        Args:
            name: What it is called.
            depends_on: All that tells it from another variant of that name; as JSON.
            decide: Who decides.
        """
        return self._played(name, depends_on, decide)

    def cost(self, rows: Sequence[Mapping[str, float]], baseline: Sequence[Mapping[str, float]]) -> Cost:
        """Return what a variant costs against the scheduler itself."""
        metric = self.objective.metric
        own = np.array([row[metric] for row in rows], dtype=np.float64)
        usual = np.array([row[metric] for row in baseline], dtype=np.float64)
        change, low, high = bootstrap_ratio(own, usual)
        if self.objective.better == "higher":
            change, low, high = -change, -high, -low
        means = {
            name: bootstrap_mean(np.array([row[name] for row in rows], dtype=np.float64))[0]
            for name in self.objective.metrics
        }
        return Cost(means, change + 0.0, (low + 0.0, high + 0.0), own.tolist())

    def _played(
        self, name: str, depends_on: Mapping[str, Any], decide: Decide | None
    ) -> list[dict[str, float]]:
        common = [
            *digests_of(self.scenario, self.scheduler),
            list(self.objective.metrics),
            name,
            dict(depends_on),
        ]
        tasks = [
            Task(self.label, self.scenario, self.scheduler, seed, key_of(*common, seed))
            for seed in self.seeds
        ]
        waiting = {task.seed: task for task in tasks if task.key not in self.finished.results}
        for task in tasks:
            if task.seed not in waiting:
                self.told(task.seed)
        if waiting and decide is None:
            for task, metrics in run_group(list(waiting.values())):
                self._keep(task, metrics)
        elif waiting and decide is not None:
            kind = engine_for(self.scenario)
            episodes = play(
                self.scenario,
                list(waiting),
                decide,
                kind=kind,
                side_by_side=SIDE_BY_SIDE,
                n_placements=self.n_placements,
            )
            for episode in episodes:
                self._keep(waiting[episode.seed], episode.metrics)
        return [self.finished.results[task.key] for task in tasks]

    def _keep(self, task: Task, metrics: Mapping[str, float]) -> None:
        self.finished.add(task, {name: metrics[name] for name in self.objective.metrics})
        self.told(task.seed)


def digest_of(*arrays: np.ndarray[Any, Any]) -> str:
    """Return a digest of arrays, to tell variants apart that depend on them."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _json(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
