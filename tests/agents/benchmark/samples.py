"""Small benchmarks, records that were not simulated, and workers that die."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agents.benchmark.cells import Cell
from agents.benchmark.cluster import on_worker
from agents.benchmark.config import KEPT, Suite
from agents.benchmark.records import Record
from agents.benchmark.running import Outcome, simulate_cell
from dsd_env.paired import evaluation_seeds

TINY = """
title: Tiny
seeds: 2
baseline: node
schedulers:
  static: {plain: cloud_ar, node: "colocated_sd:4"}
  rules: [hf_heuristic]
scenarios:
  single_lan: {set: {workload.load.period_s: 5.0}}
  far:
    of: single_lan
    set: {links.lan.one_way_s: 0.04}
"""


def suite(**changes: Any) -> Suite:
    """Return a benchmark of one scenario, its variant and three schedulers, with other top-level keys."""
    from dsd_env import strict_yaml

    return Suite.model_validate({**strict_yaml.loads(TINY, "tiny"), **changes})


def records(
    entry: str, values: Mapping[str, Sequence[float]], specs: Mapping[str, str], metric: str = "e2e_s_mean"
) -> list[Record]:
    """Return records with values of one metric by scheduler, seed by seed."""
    found = []
    for name, by_seed in values.items():
        for seed, value in zip(evaluation_seeds(len(by_seed)), by_seed, strict=True):
            metrics = {**dict.fromkeys(KEPT, 1.0), "e2e_s_mean_drift": 0.0, metric: value}
            found.append(Record(entry, name, specs[name], seed, "0" * 64, metrics, "1" * 64, 0.5))
    return found


class DiesOnce:
    """Simulates cells; the first one, wherever that is, takes its process along."""

    def __init__(self, flag: Path, times: int = 1) -> None:
        self.flag, self.times = flag, times

    def _perhaps_die(self) -> None:
        for number in range(self.times):
            try:
                self.flag.with_suffix(f".{number}").touch(exist_ok=False)
            except FileExistsError:
                continue
            os.kill(os.getpid(), signal.SIGKILL)

    def __call__(self, cell: Cell, spec: str | None = None) -> Outcome:
        self._perhaps_die()
        return simulate_cell(cell) if spec is None else on_worker(cell, spec)
