"""Running what is missing, and keeping what another version of the code made."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest

from agents.benchmark.cells import plan
from agents.benchmark.config import BenchmarkError
from agents.benchmark.records import Store
from agents.benchmark.running import run_here
from agents.benchmark.workflow import adopt, run, same, states, wanted
from tests.agents.benchmark.samples import suite


def here(cells, on_outcome) -> None:
    run_here(cells, 1, on_outcome)


@pytest.fixture
def made(tmp_path: Path):
    """A benchmark that has run: its cells, contests and records."""
    cells = plan(suite())
    contests = {contest.name: contest for contest in suite().contests()}
    store = Store(tmp_path)
    report = run(cells, contests, store, here)
    assert (report.cells, report.before, report.failures) == (12, 0, [])
    return cells, contests, store


def test_only_what_is_missing_is_simulated(made, tmp_path: Path) -> None:
    cells, contests, _ = made
    again = Store(tmp_path)
    assert states(cells, again)["far"] == {"done": 6, "stale": 0, "missing": 0}
    report = run(cells, contests, again, here, lambda outcome: pytest.fail("simulated"))
    assert report.before == 12
    assert again.about("far")["changes"]["links.lan.one_way_s"] == 0.04


def test_a_failure_leaves_the_other_cells_and_is_reported(made, tmp_path: Path, monkeypatch) -> None:
    cells, contests, _ = made

    def broken(left, on_outcome) -> None:
        run_here(left[:-1], 1, on_outcome)
        monkeypatch.setattr("agents.benchmark.running.metrics_of", lambda cell: 1 / 0)
        run_here(left[-1:], 1, on_outcome)

    store = Store(tmp_path / "new")
    report = run(cells, contests, store, broken)
    assert [(cell, why) for cell, why in report.failures] == [
        (cells[-1], "ZeroDivisionError: division by zero")
    ]
    assert len(list(Store(tmp_path / "new"))) == 11


def of_another_engine(cells):
    """The same cells, as a change of the engine's code makes them."""
    return [dataclasses.replace(cell, inputs=cell.inputs[::-1]) for cell in cells]


def test_stale_records_are_kept_where_a_replay_gives_the_same_numbers(made, tmp_path: Path) -> None:
    cells, contests, store = made
    changed = next(record for record in store if (record.entry, record.name) == ("far", "plain"))
    metrics = {**changed.metrics, "e2e_s_mean": changed.metrics["e2e_s_mean"] * (1 + 1e-15)}
    store.add(dataclasses.replace(changed, metrics=metrics))
    newer, replayed = of_another_engine(cells), []
    assert states(newer, store)["far"]["stale"] == 6
    taken = adopt(newer, contests, store, here, replayed.append)
    assert len(replayed) == 6, "one of each scheduler and scenario"
    assert taken == {
        (cell.entry, cell.name): 0 if (cell.entry, cell.name) == ("far", "plain") else 1 for cell in newer
    }
    read = Store(tmp_path)
    assert states(newer, read)["far"] == {"done": 5, "stale": 1, "missing": 0}
    assert sum(record.adopted for record in read) == 5
    assert adopt(cells, contests, Store(tmp_path / "none"), here) == {}


def test_records_of_another_scenario_or_specification_are_never_taken_over(made) -> None:
    cells, contests, store = made
    far = {"far": contests["far"].model_copy(update={"schedulers": {"node": ("static", "edge_sd:4")}})}
    newer = [cell for cell in of_another_engine(cells) if (cell.entry, cell.name) == ("far", "node")]
    assert adopt(newer, far, store, here) == {}
    version = {"far": contests["far"].model_copy(update={"changes": {"version": 2}})}
    assert adopt(newer, version, store, here) == {}
    newer = [
        dataclasses.replace(cell, scenario=cell.scenario.model_copy(update={"version": 2})) for cell in newer
    ]
    assert adopt(newer, contests, store, here) == {}


def test_same_is_to_the_last_bit() -> None:
    assert same({"a": 1.0, "b": math.nan}, {"a": 1.0, "b": math.nan})
    assert not same({"a": 1.0}, {"a": math.nextafter(1.0, 2.0)})
    assert not same({"a": 1.0}, {"a": math.nan}) and not same({"a": 1.0}, {"b": 1.0})


def test_records_of_a_scenario_that_is_gone_are_named(made) -> None:
    _, _, store = made
    assert {len(places) for places in wanted(suite(), store).values()} == {6}
    with pytest.raises(BenchmarkError, match="records of 'far', which the benchmark has not"):
        wanted(suite(scenarios={"single_lan": {}}), store)
