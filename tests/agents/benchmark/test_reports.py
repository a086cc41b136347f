"""Records of a benchmark as a report: the numbers that they hold, and what is left out."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from agents.benchmark import reports
from agents.benchmark.config import BenchmarkError
from agents.benchmark.records import Store
from dsd_env.paired import evaluation_seeds
from tests.agents.benchmark.samples import records, suite

SPECS = {"plain": "cloud_ar", "node": "colocated_sd:4", "hf_heuristic": "hf_heuristic"}


def test_an_evaluation_has_the_records_by_seed_and_differences_from_the_baseline() -> None:
    contest = suite().contest("far")
    found = reports.evaluation(
        contest,
        records("far", {"plain": [4.0, 6.0], "node": [2.0, 3.0]}, SPECS),
        {"window_s": 5.0, "warmup_s": 10.0},
        "node",
    )
    assert found is not None and list(found.metadata.seeds) == evaluation_seeds(2)
    (scenario,) = found.scenarios.values()
    assert list(scenario.schedulers) == ["node", "plain"], "the baseline comes first"
    assert (scenario.window_s, scenario.warmup_s, scenario.load_cycles) == (5.0, 10.0, contest.cycles)
    plain = scenario.schedulers["plain"]
    assert plain.specification == "cloud_ar" and plain.metrics["e2e_s_mean"].mean == 5.0
    assert plain.metrics["e2e_s_mean"].per_seed == (4.0, 6.0)
    assert plain.versus is not None and plain.versus.scheduler == "node"
    change = plain.versus.metrics["e2e_s_mean"]
    assert (change.relative, change.ci95) == (1.0, (1.0, 1.0)), "twice as much on each seed"
    assert scenario.schedulers["node"].versus is None


def test_a_seed_without_record_is_no_number_and_other_specifications_are_left_out() -> None:
    found = reports.evaluation(
        suite().contest("far"),
        [
            *records("far", {"node": [2.0, 3.0], "plain": [4.0]}, SPECS),
            *records("far", {"hf_heuristic": [1.0, math.nan]}, {"hf_heuristic": "hf_heuristic:own"}),
        ],
        {},
        None,
    )
    assert found is not None
    (scenario,) = found.scenarios.values()
    assert list(scenario.schedulers) == ["plain", "node"]
    assert scenario.schedulers["plain"].metrics["e2e_s_mean"].per_seed == (4.0, None)
    assert reports.evaluation(suite().contest("far"), [], {}, None) is None


def test_without_records_there_is_nothing_to_report(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="no records"):
        reports.write_report(suite(), Store(tmp_path), tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()
