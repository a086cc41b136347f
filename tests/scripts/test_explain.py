"""The command line that explains schedulers: its files, its summary, its answers to mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dsd_env.scenario import load_scenario
from tests.agents.understanding.samples import anyhow, exported

pytest.importorskip("numba")
pytest.importorskip("sklearn")


@pytest.fixture
def call(calls):
    """Return a function that runs the script in this process."""
    return calls("explain.py")


def test_it_writes_numbers_figures_and_a_page(call, tmp_path: Path) -> None:
    scenario = load_scenario("single_lan")
    exported(anyhow(scenario), scenario, tmp_path / "policy")
    small = ("--requests", 4, "--seeds", 1, "--test-seeds", 2, "--singles", 1, "--leaves", "3,6")
    few = ("--sweep-states", 10, "--repeats", 1, "--bins", 3)
    status, said, errors = call("single_lan", "--scheduler", "policy:policy", "--out", "out", *small, *few)
    assert status == 0, errors
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        "explanation.json",
        "heat_maps.png",
        "importance.png",
        "tree_3.txt",
        "tree_6.txt",
        "trees.png",
    ]
    assert all(len(line) <= 80 for line in said.splitlines())
    assert "e2e_s_mean" in said and "candidates" in said and "wrote out" in said
    result = json.loads((tmp_path / "out" / "explanation.json").read_text())
    assert result["objective"] == {"metric": "e2e_s_mean", "better": "lower", "subject_to": None}
    assert len(result["trees"]) == 2 and result["settings"]["bins"] == 3
    assert (tmp_path / "out" / "tree_6.txt").read_text() == result["trees"][1]["rules"]
    assert (tmp_path / "out" / "heat_maps.png").read_bytes().startswith(b"\x89PNG")
    assert "![Importance of features](importance.png)" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("atlantis", "--scheduler", "cloud_ar"), "unknown scenario 'atlantis'"),
        (("single_lan", "--scheduler", "clod_ar"), "did you mean 'cloud_ar'?"),
        (("single_lan", "--scheduler", "policy:nowhere"), "no such directory"),
        (("single_lan", "--scheduler", "cloud_ar", "--axes", "link.rtt,target.resident"), "'link.rtt_s'"),
        (("single_lan", "--scheduler", "cloud_ar", "--axes", "link.rtt_s"), "name two features"),
        (("single_lan", "--scheduler", "cloud_ar", "--metric", "e2e_mean"), "did you mean 'e2e_s_mean'"),
        (("single_lan", "--scheduler", "cloud_ar", "--leaves", "few"), "give whole numbers"),
        (("single_lan", "--scheduler", "cloud_ar", "--leaves", "1"), "leaves.0"),
        (
            ("single_lan", "--scheduler", "cloud_ar", "--cycles", "1", "--requests", "2"),
            "--requests and --cycles",
        ),
        (("single_lan", "--scheduler", "cloud_ar", "--set", "episode.request=1"), "episode.request"),
    ],
)
def test_mistakes_are_told(call, tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    status, _, errors = call(*arguments, "--out", "out")
    assert status in (1, 2) and words in errors, errors
    assert not (tmp_path / "out" / "explanation.json").exists()
