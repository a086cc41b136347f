"""Entries of others: made, checked to the last bit, and refused where anything was touched."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from agents.benchmark.config import BenchmarkError, load_suite
from agents.benchmark.running import run_here
from agents.benchmark.submissions import contests_of, load_submission, sampled, submit, verify
from agents.benchmark.workflow import Backend
from dsd_env import strict_yaml
from tests.agents.benchmark.samples import TINY
from tests.schedulers.test_table import table


def here(cells, on_outcome) -> None:
    run_here(cells, 1, on_outcome)


BACKEND: Backend = here


@pytest.fixture
def template(checkout: Path) -> dict:
    return strict_yaml.load(checkout / "benchmark" / "submissions" / "TEMPLATE.yaml")


@pytest.fixture
def entry(tmp_path: Path, template: dict) -> Path:
    """A submission to a small benchmark, with its records."""
    (tmp_path / "tiny.yaml").write_text(TINY)
    path = tmp_path / "submission.yaml"
    content = {**template, "suite": str(tmp_path / "tiny.yaml")}
    path.write_text(strict_yaml.dumps(content))
    report, digests = submit(path, BACKEND, lambda cells, store: lambda outcome: None)
    assert (report.cells, report.before, report.failures) == (4, 0, [])
    path.write_text(strict_yaml.dumps({**content, "records": digests}))
    return path


def test_the_template_is_a_valid_entry_to_a_shipped_benchmark(checkout: Path) -> None:
    submission = load_submission(checkout / "benchmark" / "submissions" / "TEMPLATE.yaml")
    contests = contests_of(submission, load_suite(submission.suite))
    assert set(contests) == set(load_suite("core").scenarios)
    assert {tuple(contest.schedulers) for contest in contests.values()} == {(submission.name,)}


def test_an_entry_that_was_not_touched_holds(entry: Path) -> None:
    replayed: list[str] = []
    planned: list[int] = []

    def on_plan(cells):
        planned.append(len(cells))
        return lambda outcome: replayed.append(outcome.cell.entry)

    assert verify(entry, 3, BACKEND, on_plan) == []
    assert planned == [3] == [len(replayed)]
    assert sorted(replayed) == ["far", "single_lan", "single_lan"] or sorted(replayed) == [
        "far",
        "far",
        "single_lan",
    ]
    # Made again, nothing is simulated.
    report, _ = submit(entry, BACKEND, lambda cells, store: lambda outcome: pytest.fail("simulated"))
    assert report.before == report.cells


def change_record(entry: Path, change) -> None:
    path = entry.parent / "records" / "far.json"
    data = json.loads(path.read_text())
    change(data["records"])
    path.write_text(json.dumps(data))


def test_a_number_that_was_changed_is_found_twice(entry: Path) -> None:
    def better(records) -> None:
        for record in records:
            record["metrics"]["e2e_s_mean"] *= 0.999

    change_record(entry, better)
    wrong = "\n".join(verify(entry, 100, BACKEND))
    assert "far.json: is not the file whose digest the submission names" in wrong
    assert "far, seed 2000000000: e2e_s_mean is " in wrong and "the record says" in wrong


def test_metrics_that_are_not_kept_are_vouched_for_as_well(entry: Path) -> None:
    change_record(entry, lambda records: records[0].update(metrics_sha256="0" * 64))
    assert any("does not keep differ" in each for each in verify(entry, 100, BACKEND))


def test_records_that_are_missing_or_of_other_inputs_are_counted(entry: Path) -> None:
    change_record(entry, lambda records: records.pop())
    assert any(each.startswith("1 of 4 cells have no record") for each in verify(entry, 1, BACKEND))
    change_record(entry, lambda records: records[0].update(inputs="0" * 64))
    assert any(
        each.startswith("1 of 3 records were made of other inputs") for each in verify(entry, 1, BACKEND)
    )
    (entry.parent / "records" / "far.json").unlink()
    assert any("far.json: is missing" in each for each in verify(entry, 1, BACKEND))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"author": "x"}, "unknown key 'author'"),
        ({"date": "soon"}, "date"),
        ({"training_wall_s": -1}, "training_wall_s = -1"),
        ({"schedulers": {}}, "schedulers"),
        ({"records": {"far": "123"}}, "records.far = '123'"),
        ({"format_version": 2}, "format_version = 2"),
    ],
)
def test_mistakes_name_file_and_key(change: dict, message: str, template: dict, tmp_path: Path) -> None:
    path = tmp_path / "submission.yaml"
    path.write_text(strict_yaml.dumps({**template, **change}))
    with pytest.raises(BenchmarkError, match=r"submission\.yaml") as error:
        load_submission(path)
    assert message in str(error.value)


def test_an_unknown_scenario_is_refused(template: dict, tmp_path: Path) -> None:
    path = tmp_path / "submission.yaml"
    path.write_text(strict_yaml.dumps({**template, "schedulers": {"atlantis": "cloud_ar"}}))
    with pytest.raises(BenchmarkError, match="no scenario atlantis in the benchmark"):
        submit(path, BACKEND, lambda cells, store: lambda outcome: None)


def test_a_sample_takes_scenarios_in_turn_and_repeats_itself(entry: Path) -> None:
    from agents.benchmark.submissions import _cells

    submission = load_submission(entry)
    suite = load_suite(submission.suite)
    cells = _cells(submission, suite, contests_of(submission, suite), entry.parent)
    draw = partial(sampled, cells)
    assert {cell.entry for cell in draw(2)} == {"single_lan", "far"}
    assert draw(3) == draw(4)[:3] and len(draw(9)) == 4


def test_an_entry_outside_the_checkout_is_made_and_checked_wherever_it_lies(
    tmp_path: Path, template: dict, monkeypatch
) -> None:
    """What it names lies beside it; it is moved and verified from another folder."""
    made, moved = tmp_path / "made", tmp_path / "sent" / "there"
    (made / "mine").mkdir(parents=True)
    (made / "tiny.yaml").write_text(TINY)
    (made / "mine" / "table.json").write_text(json.dumps(table((4, 2, 1)).model_dump(mode="json")))
    content = {**template, "suite": "tiny.yaml", "schedulers": {"*": "table:mine/table.json"}}
    path = made / "submission.yaml"
    path.write_text(strict_yaml.dumps(content))
    monkeypatch.chdir("/")
    report, digests = submit(path, BACKEND, lambda cells, store: lambda outcome: None)
    assert (report.cells, report.failures) == (4, [])
    path.write_text(strict_yaml.dumps({**content, "records": digests}))
    assert str(tmp_path) not in (made / "records" / "far.json").read_text()
    moved.parent.mkdir()
    made.rename(moved)
    monkeypatch.chdir(tmp_path)
    relative = Path("sent/there/submission.yaml")
    assert verify(relative, 2, BACKEND) == []
    other = json.dumps(table((4, 4, 1)).model_dump(mode="json"))
    (moved / "mine" / "table.json").write_text(other)
    assert any("4 of 4 records were made of other inputs" in each for each in verify(relative, 1, BACKEND))
    (moved / "mine" / "table.json").unlink()
    with pytest.raises(BenchmarkError, match=r"'two-drafts' = 'table:mine/table\.json'"):
        verify(relative, 1, BACKEND)
