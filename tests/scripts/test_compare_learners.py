"""The command line of the comparison of learners: trains, continues, writes its tables, tells mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.agents.test_learners import TINY

pytest.importorskip("numba")


@pytest.fixture
def call(calls):
    """Return a function that runs the script in this process."""
    return calls("compare_learners.py")


def test_it_trains_continues_and_writes_its_tables(call, tmp_path: Path) -> None:
    file, out, page = tmp_path / "tiny.yaml", tmp_path / "out", tmp_path / "page.md"
    file.write_text(yaml.safe_dump({**TINY, "learners": {"DQN": TINY["learners"]["DQN"]}}))
    arguments = (file, "--out", out, "--runs", tmp_path / "runs", "--quiet")
    status, said, _ = call(*arguments)
    assert status == 0 and "single_lan, DQN, seed 1: " in said and "\n| DQN |" in said
    first = (out / "tiny.json").read_bytes()
    status, again, _ = call(*arguments)
    assert status == 0 and "seed 1" not in again and said.endswith(again)
    assert (out / "tiny.json").read_bytes() == first
    page.write_text("before\n<!-- begin: learners -->\n<!-- end: learners -->\nafter\n")
    status, _, _ = call(file, "--table", "--write", page, "--out", out)
    text = page.read_text()
    assert status == 0 and text.startswith("before\n") and text.endswith("after\n") and "\n| DQN |" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "name a file of learners"),
        (("nothing",), "no file of learners 'nothing'"),
        (("slow_cloud", "--write", "page.md"), "--write needs --table"),
    ],
)
def test_mistakes_are_told(call, arguments: tuple[str, ...], words: str) -> None:
    status, _, errors = call(*arguments)
    assert status in (1, 2) and words in errors
