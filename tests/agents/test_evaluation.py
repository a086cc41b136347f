"""Evaluation: pairing, bootstrap intervals, partial results, what goes into the JSON file."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import dsd_env
from agents import evaluation, identity
from agents.evaluation import (
    PartialResults,
    groups_of,
    plan,
    run_all,
    run_group,
    summarise,
)
from agents.report import print_tables
from dsd_env.paired import EVALUATION_SEEDS
from dsd_env.paths import config_dir
from dsd_env.scenario import ScenarioError

NAN = math.nan

METRICS = {
    *(
        f"{name}_{how}"
        for name in ("e2e_s", "ttft_s", "tpot_s", "itl_s")
        for how in ("mean", "p50", "p95", "p99")
    ),
    "throughput_tokens_per_s",
    "throughput_requests_per_s",
    "goodput_requests_per_s",
    "slo_attainment",
    "acceptance_rate",
    "block_efficiency",
    "wasted_draft_tokens_per_token",
    "gpu_s_per_1k_tokens",
    "cost_usd_per_1m_tokens",
    "energy_j_per_1k_tokens",
    "bytes_per_token",
    "utilisation_target",
    "jain_fairness",
}


def small_plan(seeds: int = 2, schedulers=("cloud_ar", "colocated_sd:4")):
    return plan(["single_lan"], schedulers, seeds, requests=2)


def everything(tasks, jobs: int = 1) -> dict[str, dict[str, float]]:
    results: dict[str, dict[str, float]] = {}
    run_all(tasks, jobs, lambda task, metrics: results.update({task.key: metrics}))
    return results


def test_every_scheduler_meets_the_same_evaluation_seeds() -> None:
    tasks = small_plan(3)
    by_scheduler = {
        name: [t.seed for t in tasks if t.scheduler == name] for name in ("cloud_ar", "colocated_sd:4")
    }
    assert by_scheduler["cloud_ar"] == by_scheduler["colocated_sd:4"] == list(EVALUATION_SEEDS[:3])
    assert len({task.key for task in tasks}) == 6
    assert {task.scenario.episode.requests for task in tasks} == {2}
    assert {t.key for t in tasks}.isdisjoint(t.key for t in plan(["single_lan"], ["cloud_ar"], 3, requests=3))


@pytest.mark.parametrize(
    ("scenarios", "schedulers", "message"),
    [
        (["nope"], ["cloud_ar"], "unknown scenario 'nope'"),
        (["single_lan"], ["clod_ar"], "unknown scheduler 'clod_ar'; did you mean 'cloud_ar'"),
        (["single_lan"], ["policy:/nowhere"], "no such directory"),
        (["single_lan"], ["cloud_ar", "cloud_ar"], "scheduler named twice: cloud_ar"),
        (["single_lan"], [], "at least one scheduler"),
    ],
)
def test_wrong_names_are_found_before_anything_runs(scenarios, schedulers, message: str) -> None:
    with pytest.raises((ValueError, ScenarioError), match=message):
        plan(scenarios, schedulers, 1)


def test_summary_has_every_metric_with_its_interval() -> None:
    tasks = small_plan()
    results = everything(tasks)
    summary = json.loads(json.dumps(summarise(tasks, results, {"note": 1}), allow_nan=False))
    assert summary["metadata"]["seeds"] == list(EVALUATION_SEEDS[:2])
    entry = summary["scenarios"]["single_lan"]["schedulers"]["colocated_sd:4"]
    assert set(entry["metrics"]) >= METRICS
    rows = [results[task.key] for task in tasks if task.scheduler == "colocated_sd:4"]
    e2e = entry["metrics"]["e2e_s_mean"]
    assert e2e["mean"] == pytest.approx(np.mean([row["e2e_s_mean"] for row in rows]))
    assert e2e["ci95"][0] <= e2e["mean"] <= e2e["ci95"][1]
    assert entry["versus"]["scheduler"] == "cloud_ar"
    plain = summary["scenarios"]["single_lan"]["schedulers"]["cloud_ar"]
    assert plain["metrics"]["acceptance_rate"] == {
        "mean": None,
        "ci95": [None, None],
        "per_seed": [None, None],
    }
    assert "versus" not in plain


def test_schedulers_appear_by_their_names() -> None:
    tasks = small_plan()
    results = everything(tasks)
    names = {"cloud_ar": "plain", "colocated_sd:4": "node"}
    named = summarise(tasks, results, {}, None, names)["scenarios"]["single_lan"]["schedulers"]
    bare = summarise(tasks, results, {})["scenarios"]["single_lan"]["schedulers"]
    assert list(named) == ["plain", "node"]
    assert named["node"]["specification"] == bare["colocated_sd:4"]["specification"] == "colocated_sd:4"
    assert named["node"]["versus"]["scheduler"] == "plain"
    assert named["node"]["metrics"] == bare["colocated_sd:4"]["metrics"]


def test_tables_show_means_intervals_and_differences() -> None:
    tasks = small_plan()
    summary = summarise(tasks, everything(tasks), {})
    console = Console(width=120, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    print_tables(summary, ["e2e_s_mean", "acceptance_rate"], console)
    text = console.export_text()
    mean = summary["scenarios"]["single_lan"]["schedulers"]["cloud_ar"]["metrics"]["e2e_s_mean"]["mean"]
    assert f"{mean:.4g}" in text
    assert "against cloud_ar" in text and "change" in text
    assert "–" in text, "a metric that was not observed"
    console.file.close()


def test_processes_give_the_same_results_as_one() -> None:
    tasks = small_plan()
    np.testing.assert_equal(everything(tasks, jobs=2), everything(tasks))


def test_results_are_those_of_simulate_on_the_reference_engine() -> None:
    tasks = small_plan(9, ("jsq_goodput",))  # more than are simulated side by side
    results = everything(tasks)
    for task in tasks:
        result = dsd_env.simulate(task.scenario, task.scheduler, task.seed, engine="reference")
        np.testing.assert_equal(results[task.key], result.metrics)


def test_the_reference_engine_stands_in_where_the_compiled_one_cannot(monkeypatch) -> None:
    tasks = small_plan(2)
    expected = everything(tasks)
    monkeypatch.setattr("agents.environments.compiled_layout", lambda *_: None)
    assert evaluation.engine_for(tasks[0].scenario) == "dummy"
    np.testing.assert_equal(everything(tasks), expected)


def test_groups_hold_one_scenario_and_scheduler_in_order() -> None:
    tasks = small_plan(5)
    groups = groups_of(tasks, 2)
    assert [task for group in groups for task in group] == tasks
    assert [len(group) for group in groups] == [2, 2, 1] * 2
    assert all(len({(task.label, task.scheduler) for task in group}) == 1 for group in groups)


def test_a_failing_simulation_is_named(monkeypatch) -> None:
    def explode(*_arguments, **_options):
        raise ZeroDivisionError("boom")

    (task,) = small_plan(1, ("cloud_ar",))
    monkeypatch.setattr("dsd_env.schedulers.static.StaticScheduler.decide", explode)
    with pytest.raises(
        evaluation.EvaluationError,
        match="'single_lan', scheduler 'cloud_ar', seed 2000000000: ZeroDivisionError: boom",
    ):
        list(run_group([task]))
    with pytest.raises(evaluation.EvaluationError, match="seeds 2000000000, 2000000001: ZeroDivisionError"):
        everything(small_plan(2))


def test_partial_results_survive_and_torn_lines_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "out.json.partial"
    first, second, third = plan(["single_lan"], ["cloud_ar"], 3)
    PartialResults(path).add(first, {"a": 1.5, "b": NAN})
    with path.open("a") as file:
        file.write('{"key": "torn", "metr')
    again = PartialResults(path)
    np.testing.assert_equal(again.results, {first.key: {"a": 1.5, "b": NAN}})
    again.add(second, {"a": 2.0, "b": 3.0})
    again.add(third, {"a": 4.0, "b": 5.0})
    assert PartialResults(path).results.keys() == {first.key, second.key, third.key}
    again.discard()
    assert not path.exists()


def test_rules_that_end_drafts_by_thresholds_of_their_own_are_evaluated_as_simulated() -> None:
    recorded = {
        "source": "trace",
        "trace": "qwen2.5-coder-1.5b_smollm2-135m_greedy",
        "drafter": "smollm2-135m",
    }
    for thresholds in ([], [0.5]):
        # None of the lists has it, and no other threshold may stand for it.
        scenario = dsd_env.load_scenario(
            "single_lan", acceptance={"draft": recorded}, actions__stop_thresholds=thresholds
        )
        tasks = evaluation.tasks_of("sure", scenario, "specdec_pp:0.77:own", [7])
        ((_, metrics),) = run_group(tasks)
        wanted = dsd_env.simulate(scenario, "specdec_pp:0.77:own", tasks[0].seed).metrics
        assert metrics == pytest.approx(wanted, nan_ok=True, rel=0, abs=0)


def key(scenario: str | Path, scheduler: str = "cloud_ar") -> str:
    (task,) = evaluation.tasks_of("mine", dsd_env.load_scenario(scenario), scheduler, [7])
    return task.key


def test_results_are_found_again_by_all_that_they_depend_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile, mine = tmp_path / "profile.yaml", tmp_path / "mine.yaml"
    text = (config_dir() / "latency" / "llama-3-8b_a100-sxm_tp1.yaml").read_text()
    profile.write_text(text)
    mine.write_text(f"extends: single_lan\nname: mine\ntargets: {{target: {{profile: {profile}}}}}\n")
    first = key(mine)
    assert key(mine) == first != key(mine, "colocated_sd:4") != key("single_lan", "colocated_sd:4")
    profile.write_text(re.sub(r"t0_s: .*", "t0_s: 0.5", text, count=1))
    assert profile.read_text() != text and key(mine) != first
    profile.write_text(text)
    assert key(mine) == first
    monkeypatch.setattr(identity, "engine_digest", lambda: "another engine")
    assert key(mine) != first
