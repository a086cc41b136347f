"""Cells: what their digests depend on, that they are simulate's episodes, and that none is lost."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import dsd_env
from agents import identity
from agents.benchmark.cells import cells_of, located, plan
from agents.benchmark.config import BenchmarkError
from agents.benchmark.running import (
    LostWorkerError,
    Outcome,
    metrics_digest,
    metrics_of,
    run_here,
    simulate_cell,
)
from agents.evaluation import plan as evaluation_plan
from agents.evaluation import run_group
from dsd_env.paired import EVALUATION_SEEDS, evaluation_seeds
from dsd_env.scenario import load_scenario
from tests.agents.benchmark.samples import DiesOnce, suite


def one(scheduler: str, role: str = "rules", scenario: str | Path = "single_lan", **changes):
    """Return the first cell of a scheduler."""
    schedulers = {"static": {"plain": "cloud_ar"}, role: {"it": scheduler}}
    if role == "static":
        schedulers = {"static": {"it": scheduler}}
    entry = {"scenario": str(scenario), "set": changes}
    contest = suite(schedulers=schedulers, scenarios={"one": entry}, baseline=None).contest("one")
    return cells_of(contest, contest.load(), "it", evaluation_seeds(1))[0]


def test_cheap_cells_come_first_and_every_scheduler_before_a_second_seed() -> None:
    cells = plan(suite())
    assert len(cells) == 2 * 3 * 2 and len({cell.inputs for cell in cells}) == len(cells)
    order = [(cell.role, cell.seed) for cell in cells]
    first, second = EVALUATION_SEEDS[:2]
    assert order == [
        *[("static", first)] * 4,
        *[("static", second)] * 4,
        *[("rules", first)] * 2,
        *[("rules", second)] * 2,
    ]


def test_a_part_of_a_plan_has_the_cells_of_the_whole() -> None:
    whole = {(cell.entry, cell.name, cell.seed): cell.inputs for cell in plan(suite())}
    part = plan(suite(), seeds=1, entries=["far"], schedulers=["node"])
    assert [(cell.entry, cell.name, cell.seed) for cell in part] == [("far", "node", EVALUATION_SEEDS[0])]
    assert whole["far", "node", EVALUATION_SEEDS[0]] == part[0].inputs
    for what, names in (("entries", "scenario"), ("schedulers", "scheduler")):
        with pytest.raises(BenchmarkError, match=f"no {names} 'nope' in the benchmark"):
            plan(suite(), **{what: ["nope"]})


def test_schedulers_that_are_unknown_or_do_not_fit_show_before_anything_runs() -> None:
    with pytest.raises(BenchmarkError, match=r"scenarios.one, scheduler 'it' = 'clod_ar': unknown scheduler"):
        one("clod_ar")
    with pytest.raises(BenchmarkError, match="no such directory"):
        one("policy:/nowhere")
    contest = suite().contest("far")
    with pytest.raises(BenchmarkError, match="evaluation seeds"):
        cells_of(contest, contest.load(), "node", [7])


def test_inputs_change_with_what_the_result_depends_on(monkeypatch) -> None:
    base = one("edge_sd:4")
    assert one("edge_sd:4").inputs == base.inputs
    assert one("edge_sd:4", role="learned").inputs == base.inputs, "not with what it is called"
    assert one("edge_sd:2").inputs != base.inputs
    assert one("edge_sd:4", **{"links.lan.one_way_s": 0.002}).inputs != base.inputs
    assert one("edge_sd:4", **{"card.limits": "Other words."}).inputs == base.inputs, "not with the card"
    monkeypatch.setattr("agents.identity.engine_digest", lambda: "another engine")
    assert one("edge_sd:4").inputs != base.inputs


def test_a_bundle_counts_by_what_is_in_it(checkout: Path, tmp_path: Path) -> None:
    bundle = checkout / "validation" / "policy_c1"
    shutil.copytree(bundle, tmp_path / "copy")
    digest = identity.scheduler_digest(f"policy:{bundle}")
    assert identity.scheduler_digest(f"policy:{tmp_path / 'copy'}") == digest
    assert identity.scheduler_digest(f"policy:{checkout / 'validation' / 'policy_c4'}") != digest


def test_source_without_words_about_it() -> None:
    text = '"""Module."""\n\nX = 1  # why\n"""What X is."""\n\ndef f():\n    """Doc."""\n    return "#"\n'
    assert identity.bare_source(text) == 'X = 1\ndef f():\n    return "#"'


def test_the_code_of_a_scheduler_is_its_own_modules() -> None:
    def modules(spec: str) -> set[str]:
        return {path.stem for path in identity.scheduler_sources(spec)}

    static = modules("cloud_ar")
    assert {"static", "rules", "base"} <= static and not {"registry", "goodput", "adaptive"} & static
    assert {"goodput", "stream_model"} <= modules("jsq_goodput")


def test_data_files_are_those_that_the_scenario_names() -> None:
    named = [path.stem for path in identity.data_files(load_scenario("fleet_24"))]
    assert "llama-3-8b_a100-sxm_tp1" in named and "llama-3-70b_h100-sxm_tp4" not in named
    for source, key, name, ends in (
        ("trace", "trace", "smollm2-135m_smollm2-4l_t1", {"json", "npz"}),
        ("fitted", "model", "llama-3-8b_published", {"json"}),
    ):
        acceptance = {"source": source, key: name, "drafter": "any"}
        scenario = load_scenario("single_lan", acceptance__draft=acceptance)
        found = {path.name for path in identity.data_files(scenario)}
        assert {f"{name}.{end}" for end in ends} <= found


@pytest.mark.parametrize("scheduler", ["cloud_ar", "colocated_sd:4", "jsq_goodput"])
def test_a_cell_is_the_episode_of_simulate_and_of_evaluate(scheduler: str) -> None:
    cell = one(scheduler, role="rules", **{"workload.load.period_s": 5.0})
    metrics = metrics_of(cell)
    rule = dsd_env.make_scheduler(scheduler)
    np.testing.assert_equal(metrics, dsd_env.simulate(cell.scenario, rule, cell.seed).metrics)
    outcome = simulate_cell(cell)
    assert outcome.digest == metrics_digest(metrics) and not outcome.failure and outcome.wall_s > 0
    assert outcome.metrics["e2e_s_mean"] == metrics["e2e_s_mean"]
    # Without changes of the scenario, `evaluate.py --cycles` asks for the very same episode.
    plain = one(scheduler)
    (task,) = evaluation_plan(["single_lan"], [scheduler], 1, cycles=1)
    assert task.scenario == plain.scenario and task.seed == plain.seed
    np.testing.assert_equal(next(iter(run_group([task])))[1], metrics_of(plain))


def test_a_policy_reads_the_engines_observations_with_the_same_result(checkout: Path) -> None:
    folder = checkout / "validation"
    cell = one(
        f"policy:{folder / 'policy_c1'}",
        role="learned",
        scenario=folder / "testbed-train_rtt5_c1.yaml",
        **{"workload.load.period_s": 5.0},
    )
    expected = dsd_env.simulate(cell.scenario, cell.scheduler, cell.seed).metrics
    np.testing.assert_equal(metrics_of(cell), expected)


def test_bundles_are_found_from_the_checkouts_root(checkout: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert located("policy:validation/policy_c1") == f"policy:{checkout / 'validation' / 'policy_c1'}"
    assert located("edge_sd:4") == "edge_sd:4" and located("policy:/nowhere") == "policy:/nowhere"


def test_a_cell_that_fails_says_why(monkeypatch) -> None:
    def fail(cell):
        raise RuntimeError("the room is full")

    monkeypatch.setattr("agents.benchmark.running.metrics_of", fail)
    outcome = simulate_cell(one("cloud_ar"))
    assert outcome.failure == "RuntimeError: the room is full" and not outcome.metrics


def test_processes_that_die_lose_no_cell(tmp_path: Path) -> None:
    cells = plan(suite())[:6]
    outcomes: list[Outcome] = []
    run_here(cells, 2, outcomes.append, work=DiesOnce(tmp_path / "died"))
    assert (tmp_path / "died.0").exists()
    digests = {outcome.cell.inputs: outcome.digest for outcome in outcomes}
    assert len(outcomes) == 6
    assert digests == {cell.inputs: simulate_cell(cell).digest for cell in cells}


def test_processes_that_die_again_and_again_end_it(tmp_path: Path) -> None:
    with pytest.raises(LostWorkerError, match=r"died 3 times.*Try fewer --jobs"):
        run_here(plan(suite())[:1], 2, lambda outcome: None, work=DiesOnce(tmp_path / "died", times=9))
