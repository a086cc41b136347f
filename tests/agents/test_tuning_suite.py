"""Tuning of a benchmark's rules: one budget, results that are kept and found by the benchmark."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agents.benchmark.config import BenchmarkError, load_suite, read_found, results_of
from agents.tuning_suite import TuningError, load_tunings, run_all, run_study, studies, waiting
from dsd_env import strict_yaml

pytest.importorskip("optuna")


def files(tmp_path: Path, **changes: Any) -> Path:
    """Write a benchmark and its tunings; return the path of the latter."""
    tunings = tmp_path / "tunings.yaml"
    suite = {
        "title": "T",
        "tuned": str(tunings),
        "schedulers": {"static": ["cloud_ar"], "rules": {"best": "tuned:rule"}},
        "scenarios": {"single_lan": {}, "far": {"of": "single_lan", "set": {"links.lan.one_way_s": 0.02}}},
    }
    (tmp_path / "suite.yaml").write_text(strict_yaml.dumps(suite))
    data = {
        "suite": str(tmp_path / "suite.yaml"),
        "trials": 2,
        "episodes": 1,
        "rules": {"rule": {"template": "jsq_goodput:load_weight={0..2 from 1}"}},
        "scenarios": {"single_lan": ["rule"]},
    }
    tunings.write_text(strict_yaml.dumps({**data, **changes}))
    return tunings


def test_results_are_kept_and_the_benchmark_finds_them(tmp_path: Path) -> None:
    path = files(tmp_path)
    every = studies(load_tunings(path))
    results = results_of(path)
    assert results == tmp_path / "tunings.json"
    told: list[str] = []
    found = run_all(every, results, 1, lambda study, result: told.append(study.rule))
    assert told == ["rule"]
    scheduler = found["single_lan"]["rule"]["scheduler"]
    assert scheduler.startswith("jsq_goodput:load_weight=")
    assert read_found(results, ValueError) == found
    assert not list(waiting(every, found))
    suite = load_suite(tmp_path / "suite.yaml")
    assert suite.contest("single_lan").schedulers["best"] == ("rules", scheduler)
    # A variant is one on which nothing was tuned: it takes what was found for its scenario.
    assert suite.contest("far").schedulers["best"] == ("rules", scheduler)
    assert (
        load_suite(tmp_path / "suite.yaml", tuned=False).contest("far").schedulers["best"][1] == "tuned:rule"
    )


def test_a_group_names_several_rules_and_each_is_tuned_once(tmp_path: Path) -> None:
    rules = {
        name: {"template": f"jsq_goodput:{name}={{0.1..0.9 from 0.5}}"} for name in ("slo_margin", "relief")
    }
    rules["rule"] = {"template": "jsq_goodput:load_weight={0..2 from 1}"}
    tunings = files(
        tmp_path,
        rules=rules,
        groups={"both": ["slo_margin", "relief"]},
        scenarios={"single_lan": ["relief", "both"], "far": ["both", "rule"]},
    )
    named = [(study.contest.name, study.rule) for study in studies(load_tunings(tunings))]
    assert named == [
        ("single_lan", "relief"), ("single_lan", "slo_margin"),
        ("far", "slo_margin"), ("far", "relief"), ("far", "rule"),
    ]  # fmt: skip


def test_a_rule_can_have_a_budget_of_its_own(tmp_path: Path) -> None:
    rules = {"rule": {"template": "jsq_goodput:load_weight={0..2 from 1}", "trials": 5}}
    (study,) = studies(load_tunings(files(tmp_path, rules=rules)))
    assert study.trials == study.about["trials"] == 5


def test_a_database_keeps_trials_of_studies_that_did_not_end(tmp_path: Path, monkeypatch) -> None:
    database, results = tmp_path / "trials.db", tmp_path / "found.json"
    (study,) = studies(load_tunings(files(tmp_path)))
    first = run_study(study, database)
    asked: list[int] = []
    monkeypatch.setattr("agents.tuning.run_group", lambda tasks: asked.append(len(tasks)))
    assert run_study(study, database) == first and not asked, "both trials were there already"
    found = run_all([study], results, 1, database=database)
    assert found["single_lan"]["rule"]["scheduler"] == first["scheduler"]


def test_processes_that_open_a_new_database_together(tmp_path: Path) -> None:
    rules = {name: {"template": f"jsq_goodput:{name}={{0..1 from 0}}"} for name in ("slo_margin", "relief")}
    tunings = files(tmp_path, rules=rules, scenarios={"single_lan": list(rules)}, trials=1)
    found = run_all(
        studies(load_tunings(tunings)), tmp_path / "found.json", 2, database=tmp_path / "new" / "trials.db"
    )
    assert set(found["single_lan"]) == set(rules)


def test_another_budget_asks_for_another_result(tmp_path: Path) -> None:
    every = studies(load_tunings(files(tmp_path)))
    found = run_all(every, tmp_path / "found.json", 1)
    more = studies(load_tunings(files(tmp_path, trials=3)))
    assert [study.rule for study in waiting(more, found)] == ["rule"]


def test_what_has_not_been_tuned_is_an_error_of_the_benchmark(tmp_path: Path) -> None:
    files(tmp_path)
    suite = load_suite(tmp_path / "suite.yaml")
    with pytest.raises(BenchmarkError, match=r"scenarios.single_lan: 'tuned:rule' .*run scripts/tune.py"):
        suite.contest("single_lan")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scenarios": {"single_lan": ["rool"]}}, r"tunings.yaml.*no rules \['rool'\]; there are \['rule'\]"),
        ({"scenarios": {"moon": ["rule"]}}, r"\['moon'\] are not in"),
        ({"groups": {"all": ["rool"]}}, r"tunings.yaml.*groups.all: no rules \['rool'\]"),
        ({"groups": {"rule": ["rule"]}}, r"tunings.yaml.*groups: \['rule'\] are names of rules, too"),
        ({"trials": 0}, "tunings.yaml.*trials"),
        ({"rules": {"rule": {"template": "jsq_goodput"}}}, "tunings.yaml.*rules.rule.*nothing to tune"),
        (
            {"rules": {"rule": {"template": "jsq_goodput:hopeless={1..1000 from 2}"}}},
            r"tunings.yaml.*rules.rule.*hopeless = 1000 must be in \[0, 100\]",
        ),
        (
            {"rules": {"rule": {"template": "static:{1|2}:1:own", "sampler": "cmaes"}}},
            "tunings.yaml.*rules.rule.*CMA-ES searches numbers",
        ),
        ({"budget": 3}, "tunings.yaml.*budget"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(TuningError, match=words):
        studies(load_tunings(files(tmp_path, **changes)))


def test_a_damaged_file_of_results_is_refused(tmp_path: Path) -> None:
    (tmp_path / "found.json").write_text("{")
    with pytest.raises(TuningError, match=r"found.json: no file of results"):
        read_found(tmp_path / "found.json", TuningError)


def test_the_shipped_results_belong_to_the_shipped_tunings() -> None:
    found = read_found(results_of("core"), TuningError)
    left = [(study.contest.name, study.rule) for study in waiting(studies(load_tunings("core")), found)]
    assert not left, "run python scripts/tune.py --config core"
    assert json.dumps(found)
