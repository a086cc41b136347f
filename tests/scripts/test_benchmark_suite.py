"""The benchmark's command line, as its users start it."""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agents.benchmark import pages, workflow
from agents.benchmark.config import Suite, load_suite
from agents.benchmark.records import Store
from dsd_env import strict_yaml
from tests.agents.benchmark.samples import TINY
from tests.pages import blocks


@pytest.fixture
def call(checkout: Path, tmp_path: Path, monkeypatch, capsys):
    """Return a function that runs the script in this process on a small benchmark."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(checkout / "scripts"))
    (tmp_path / "tiny.yaml").write_text(TINY)
    script = checkout / "scripts" / "benchmark_suite.py"

    def run_here(*arguments, where=("--suite", "tiny.yaml", "--out", "out")) -> tuple[int, str, str]:
        words = [str(script), *where, *map(str, arguments)]
        monkeypatch.setattr("sys.argv", words)
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(script), run_name="__main__")
        return stopped.value.code, *capsys.readouterr()

    return run_here


def test_run_status_summary_and_check(call, tmp_path: Path) -> None:
    code, output, errors = call("--status")
    assert (code, errors) == (0, "")
    assert "single_lan: 0 done, 0 stale, 6 missing" in output and "of simulation to do" in output

    code, output, errors = call("--schedulers", "plain,node")
    assert code == 0, errors
    assert "8/8 cells" in errors, "a progress bar"
    code, output, errors = call()
    assert code == 0 and "8 of 12 cells were finished before" in output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "analysis.json",
        "results",
        "summary.json",
        "tables.md",
    ]
    found = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert set(found["far"]["hf_heuristic"]["e2e_s_mean"]) == {"mean", "ci95", "seeds"}
    records = json.loads((tmp_path / "out" / "results" / "far.json").read_text())["records"]
    assert len(records) == 6 and all(record["wall_s"] > 0 for record in records)
    tables = (tmp_path / "out" / "tables.md").read_text()
    assert "### far" in tables and "`links.lan.one_way_s` = 0.04" in tables

    assert call("--check")[0] == 0
    (tmp_path / "out" / "tables.md").write_text(tables.replace("### far", "### near"))
    code, _, errors = call("--check")
    assert code == 1 and "tables.md is not what the records say" in errors
    code, output, _ = call("--summary", "--report", "page.html")
    assert code == 0 and (tmp_path / "out" / "tables.md").read_text() == tables
    assert "page.html: open it in a browser" in output
    page = (tmp_path / "page.html").read_text()
    assert "<title>Tiny</title>" in page and "links.lan" not in page and ">far<" in page

    (tmp_path / "tiny.yaml").write_text(TINY.replace('node: "colocated_sd:4"', 'node: "colocated_sd:2"'))
    assert "single_lan: 4 done, 2 stale, 0 missing" in call("--status")[1]
    code, output, _ = call("--prune")
    assert code == 0 and "4 records dropped" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--suite", "nope"), "no benchmark 'nope'; shipped are"),
        (("--suite", "cor"), "no benchmark 'cor'; did you mean 'core'? Shipped are"),
        (("--scenarios", "atlantis"), "no scenario 'atlantis' in the benchmark; it has"),
        (("--schedulers", "nod"), "no scheduler 'nod' in the benchmark; did you mean 'node'? It has"),
    ],
)
def test_mistakes_are_explained(call, arguments, message: str) -> None:
    code, _, errors = call(*arguments)
    assert code == 1 and message in errors
    assert len(errors.splitlines()) == 1


def test_a_submission_that_is_not_there_is_told_before_a_bar(call) -> None:
    code, _, errors = call("--verify", "nowhere.yaml", where=())
    assert code == 1 and "nowhere.yaml: cannot be read: there is no such file" in errors
    assert len(errors.splitlines()) == 1


def test_options_that_exclude_each_other(call, monkeypatch) -> None:
    code, _, errors = call("--ray", "auto", "--jobs", "2")
    assert code == 2 and "--jobs and --ray" in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--submit", "mine.yaml", "--seeds", "2"),
            "--submit goes by the submission's file and takes no --seeds",
        ),
        (("--submit", "mine.yaml", "--scenarios", "far"), "takes no --scenarios"),
        (
            ("--verify", "mine.yaml", "--out", "there"),
            "--verify goes by the submission's file and takes no --out",
        ),
        (("--submit", "mine.yaml", "--sample", "2"), "takes no --sample"),
        (("--summary", "--seeds", "2"), "--summary is for the whole benchmark and takes no --seeds"),
        (("--status", "--report", "x.html"), "--status writes no tables, and takes no --report"),
        (("--sample", "2"), "--sample is for --verify alone"),
    ],
)
def test_options_that_would_mean_nothing_are_refused(call, arguments, message: str) -> None:
    code, _, errors = call(*arguments, where=())
    assert code == 2 and message in errors


def test_an_interrupted_benchmark_continues(call, checkout: Path, tmp_path: Path) -> None:
    long = TINY.replace("seeds: 2", "seeds: 300").replace("period_s: 5.0", "period_s: 400.0")
    (tmp_path / "tiny.yaml").write_text(long)
    words = [checkout / "scripts" / "benchmark_suite.py", "--suite", "tiny.yaml", "--out", "out"]
    process = subprocess.Popen(
        [sys.executable, *map(str, words)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # A shell's Ctrl-C: not ignored, whatever started this test run.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    partial = tmp_path / "out" / "results" / "single_lan.json.partial"
    deadline = time.monotonic() + 120
    while not partial.exists() or partial.read_text().count("\n") < 3:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command continues" in errors
    assert not partial.exists(), "tidied up"
    before = len(Store(tmp_path / "out" / "results").records("single_lan"))
    assert before >= 3
    code, output, _ = call("--status")
    assert code == 0 and f"single_lan: {before} done, 0 stale, {900 - before} missing" in output


def test_what_is_committed_is_what_the_records_say() -> None:
    store = Store(workflow.FOLDER / "results")
    files = workflow.texts(load_suite("core"), store, workflow.FOLDER, workflow.PAGES)
    assert not workflow.differing(files), "run python scripts/benchmark_suite.py --summary"


def test_the_pages_have_the_blocks() -> None:
    page, readme = workflow.PAGES
    assert f"<!-- begin: {pages.SHORT_SCOREBOARD} -->" in readme.read_text(encoding="utf-8")
    text = page.read_text(encoding="utf-8")
    for name in (pages.SCOREBOARD, pages.OVER_ALL, pages.CAPACITY, pages.SCENARIOS):
        assert f"<!-- begin: {name} -->" in text and f"<!-- end: {name} -->" in text


def test_the_example_on_the_page_is_a_benchmark(checkout: Path) -> None:
    (example,) = [block for block in blocks(checkout / "docs" / "benchmark.md") if block.language == "yaml"]
    suite = Suite.model_validate(strict_yaml.loads(example.text, example.where))
    assert suite.contest("fleet_24_far").load().links["wifi"].one_way_s == 0.06
