"""Files of upper references: read as written, held against the benchmark, and what the page says of them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agents.benchmark.cells import ROOT
from agents.benchmark.config import BenchmarkError, load_suite
from agents.benchmark.records import Store
from agents.benchmark.running import metrics_digest
from agents.look_ahead.planning import Episode, replay
from agents.look_ahead.records import BLOCK, Kept, Reference, compare, page_table, read
from dsd_env.paired import evaluation_seeds
from tests.agents.benchmark.samples import records
from tests.agents.look_ahead.samples import config

FILES = sorted((ROOT / "benchmark" / "look_ahead").glob("*.json"))


def reference(folder: Path, values: list[float]) -> Reference:
    plan = np.array([[2, 0, 1]], dtype=np.int64)
    episodes = {}
    for seed, value in zip(evaluation_seeds(len(values)), values, strict=True):
        metrics = {"e2e_s_mean": value, "tpot_s_mean": math.nan}
        episode = Episode(seed, metrics, ((3.0, plan), (math.inf, plan * 0)), 4, 2, 31, 77.77)
        episodes[seed] = Kept.of(episode, list(metrics), 1.234)
    return Reference("tiny", config(folder), {"inputs": "0"}, episodes)


def store(folder: Path, suite: Path) -> Store:
    """Return records in which node takes 2 and 4 seconds, and plain 10."""
    contest = load_suite(suite).contest("single_lan")
    specs = {name: spec for name, (_, spec) in contest.schedulers.items()}
    found = Store(folder / "results")
    for record in records("single_lan", {"plain": [10.0, 10.0], "node": [2.0, 4.0]}, specs):
        found.add(record)
    return found


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = reference(tmp_path, [1.0, 2.5])
    written.write(tmp_path / "tiny.json")
    found = read(tmp_path / "tiny.json")
    assert found.config == written.config and found.about == written.about
    for seed, kept in written.episodes.items():
        assert replace(found.episodes[seed], metrics={}) == replace(kept, metrics={})
        assert found.episodes[seed].metrics["e2e_s_mean"] == kept.metrics["e2e_s_mean"]
        (first_s, first), (last_s, last) = found.episodes[seed].steps
        assert (first_s, last_s) == (3.0, math.inf)
        assert first.tolist() == [[2, 0, 1]] and last.tolist() == [[0, 0, 0]]
    assert len((tmp_path / "tiny.json").read_text().splitlines()[-5:]) == 5


@pytest.mark.parametrize("text", ["{}", "[", '{"format": "x", "format_version": 1}'])
def test_a_damaged_file_names_itself_and_says_what_to_do(text: str, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(BenchmarkError, match=r"bad\.json: holds no episodes .* run scripts/look_ahead\.py"):
        read(tmp_path / "bad.json")


def test_shares_of_the_gap_are_of_the_seeds_that_all_have(tmp_path: Path) -> None:
    found = reference(tmp_path, [1.0, 2.0])
    compared = compare(found, store(tmp_path, tmp_path / "tiny.yaml"))
    assert compared.names == {"static": "node", "rule": "node"} and len(compared.seeds) == 2
    assert compared.share("static") == 0.0 and compared.share("reference") == 1.0
    compared.values["learned"] = np.array([1.5, 3.0])  # half of the way from 3 to 1.5
    assert compared.share("learned") == pytest.approx(0.5)
    table = page_table([compared])
    assert "| `tiny` | mean request time, s | 2 | `node` 3 |" in table and "+50.0 %" in table
    alone = replace(found, episodes={1: found.episodes[evaluation_seeds(1)[0]]})
    with pytest.raises(BenchmarkError, match="none of its seeds"):
        compare(alone, store(tmp_path, tmp_path / "tiny.yaml"))


def test_no_share_of_a_gap_that_is_none(tmp_path: Path) -> None:
    compared = compare(reference(tmp_path, [3.0, 9.0]), store(tmp_path, tmp_path / "tiny.yaml"))
    assert math.isnan(compared.share("rule"))


def test_the_page_says_what_the_records_say() -> None:
    assert FILES
    page = (ROOT / "docs" / "upper_references.md").read_text(encoding="utf-8")
    records_of = Store(ROOT / "benchmark" / "results")
    table = page_table(compare(read(file), records_of) for file in FILES)
    assert f"<!-- begin: {BLOCK} -->\n{table}\n<!-- end: {BLOCK} -->" in page


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_recorded_plans_played_again_give_the_recorded_episode(file: Path) -> None:
    pytest.importorskip("numba")
    found = read(file)
    space = found.config.space(found.config.contest())
    seed, kept = min(found.episodes.items(), key=lambda each: len(each[1].plans))
    assert metrics_digest(replay(space, seed, kept.steps)) == kept.digest
