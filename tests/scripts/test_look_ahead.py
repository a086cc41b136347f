"""The command line of upper references: plays, keeps, continues, replays, and writes its table."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsd_env import strict_yaml
from tests.agents.look_ahead.samples import config

pytest.importorskip("numba")


@pytest.fixture
def call(calls):
    """Return a function that runs the script in this process."""
    return calls("look_ahead.py")


def test_it_plays_keeps_continues_replays_and_says_so(call, tmp_path: Path) -> None:
    made = config(tmp_path, every=8, holds=[8], sweeps=1)
    file = tmp_path / "tiny_ahead.yaml"
    file.write_text(strict_yaml.dumps(made.model_dump(mode="json")), encoding="utf-8")
    out = tmp_path / "records"
    status, said, _ = call(file, "--seeds", 1, "--out", out)
    assert status == 0 and "tiny_ahead, seed 2000000000: e2e_s_mean" in said
    first = (out / "tiny_ahead.json").read_bytes()
    status, said, _ = call(file, "--seeds", 1, "--out", out)
    assert status == 0 and said.startswith("tiny_ahead: 1 of 1 episodes were played before (")
    assert said.count("\n") == 1 and (out / "tiny_ahead.json").read_bytes() == first
    status, said, _ = call(file, "--seeds", 2, "--out", out)
    assert status == 0 and "seed 2000000001" in said and "seed 2000000000" not in said
    assert "1 of 2 episodes were played before" in said
    status, said, _ = call("--replay", "--out", out)
    assert status == 0 and said.count("the same") == 2
    wrong = (out / "tiny_ahead.json").read_text().replace('"metrics_sha256":"', '"metrics_sha256":"0', 1)
    (out / "tiny_ahead.json").write_text(wrong)
    status, said, _ = call("--replay", "--out", out)
    assert status == 1 and "OTHER NUMBERS" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "name a configuration"),
        (("nothing",), "no look-ahead 'nothing'"),
        (("slow_cloud", "--seeds", "0"), "--seeds 0"),
        (("slow_cloud", "--write", "page.md"), "--write needs --table"),
    ],
)
def test_mistakes_are_told(call, arguments: tuple[str, ...], words: str) -> None:
    status, _, errors = call(*arguments)
    assert status in (1, 2) and words in errors
