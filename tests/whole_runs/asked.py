"""Whole runs inside the compiled engine against runs in which the scheduler is asked for every decision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

import dsd_env
from dsd_env.scenario import Scenario
from dsd_env.schedulers import make_scheduler
from dsd_env.whole_runs.runs import fast_runs


@dataclass(frozen=True)
class Asked:
    """A run that is asked for."""

    scenario: Scenario
    scheduler: str
    seed: int


def check_whole_runs(scenario: Scenario, spec: str, seeds: Sequence[int]) -> None:
    """Check that a scheduler plays whole runs, and that all metrics are those of asking it, bit for bit."""
    runs = fast_runs([Asked(scenario, spec, seed) for seed in seeds])
    assert runs is not None
    played = {run.seed: metrics for run, metrics in runs}
    assert list(played) == list(seeds)
    for seed, metrics in played.items():
        asked = dsd_env.simulate(scenario, make_scheduler(spec), seed)
        np.testing.assert_equal(metrics, dict(asked.metrics))
