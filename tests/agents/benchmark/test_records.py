"""Records on disk: nothing is lost, nothing is mistaken for something else."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest

from agents.benchmark.cells import plan
from agents.benchmark.config import BenchmarkError
from agents.benchmark.records import Record, Store
from agents.benchmark.running import Outcome
from tests.agents.benchmark.samples import suite


@pytest.fixture
def cell():
    return plan(suite(), seeds=1, entries=["single_lan"], schedulers=["plain"])[0]


def outcome_of(cell, value: float = 2.0) -> Outcome:
    metrics = {**dict.fromkeys(cell.metrics, value), "acceptance_rate": math.nan}
    return Outcome(cell, metrics, "a" * 64, 0.25)


def test_a_record_is_found_again_after_a_kill_and_after_tidying(cell, tmp_path: Path) -> None:
    store = Store(tmp_path / "results")
    assert store.find(cell) is None and store.state(cell) == "missing"
    store.add(Record.of(outcome_of(cell), "cloud_ar"))
    for again in (store, Store(tmp_path / "results")):
        record = again.find(cell)
        assert record is not None and record.metrics["e2e_s_mean"] == 2.0
        assert math.isnan(record.metrics["acceptance_rate"])
    store.tidy({cell.entry: {"cycles": 1}})
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["single_lan.json"]
    read = Store(tmp_path / "results")
    assert read.find(cell) is not None and read.about(cell.entry) == {"cycles": 1}
    lines = (tmp_path / "results" / "single_lan.json").read_text().splitlines()
    assert sum('"seed"' in line for line in lines) == 1, "one record a line"


def test_a_line_that_was_cut_off_swallows_no_other(cell, tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.add(Record.of(outcome_of(cell), "cloud_ar"))
    path = tmp_path / "single_lan.json.partial"
    whole = path.read_bytes()
    path.write_bytes(whole + whole[: len(whole) // 2])
    again = Store(tmp_path)
    assert len(again.records("single_lan")) == 1
    other = dataclasses.replace(Record.of(outcome_of(cell), "cloud_ar"), seed=5)
    again.add(other)
    assert len(Store(tmp_path).records("single_lan")) == 2


def test_records_of_other_inputs_are_stale_and_newer_ones_take_their_place(cell, tmp_path: Path) -> None:
    store = Store(tmp_path)
    old = dataclasses.replace(Record.of(outcome_of(cell, 1.0), "cloud_ar"), inputs="0" * 64)
    store.add(old)
    assert store.find(cell) is None and store.state(cell) == "stale"
    store.add(Record.of(outcome_of(cell, 3.0), "cloud_ar"))
    assert store.state(cell) == "done"
    assert [record.metrics["e2e_s_mean"] for record in Store(tmp_path).records("single_lan")] == [3.0]


def test_a_record_without_a_metric_that_is_wanted_is_stale(cell, tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.add(Record.of(outcome_of(cell), "cloud_ar"))
    assert store.state(dataclasses.replace(cell, metrics=(*cell.metrics, "itl_s_max"))) == "stale"


def test_records_that_are_not_wanted_can_be_dropped(cell, tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.add(Record.of(outcome_of(cell), "cloud_ar"))
    assert store.drop("single_lan", {("plain", cell.seed)}) == 0
    assert store.drop("single_lan", set()) == 1 and not list(store)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.update(format="other"),
        lambda data: data.update(format_version=2),
        lambda data: data["records"][0].pop("inputs"),
        lambda data: data["records"][0].update(metrics=[1.0]),
    ],
)
def test_damaged_files_are_named(change, cell, tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.add(Record.of(outcome_of(cell), "cloud_ar"))
    store.tidy({"single_lan": {}})
    path = tmp_path / "single_lan.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(BenchmarkError, match=r"single_lan.json: holds no records of a benchmark"):
        Store(tmp_path)
