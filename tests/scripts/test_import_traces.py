"""scripts/import_traces.py: a trace set of one's own, and the lines of a scenario that use it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

import dsd_env
from dsd_env.acceptance import load_trace_set

RUNS = {"chat": [2, 1, 0, 4, 3, 2, 1, 0], "code": [5, 4, 3, 2, 1, 0]}


@pytest.fixture
def call(calls):
    return calls("import_traces.py")


def written(path: Path, *, card: bool = True, arrivals: bool = True) -> Path:
    lines: list[dict[str, object]] = [{"card": {"gamma_max": 16, "licence": "own data"}}] if card else []
    for number, (kind, runs) in enumerate(RUNS.items()):
        line: dict[str, object] = {
            "kind": kind,
            "prompt_tokens": 100,
            "drafters": {"d": {"run_length": runs}},
        }
        lines.append(line | ({"arrival_s": 1.5 * number} if arrivals else {}))
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    return path


def scenario_lines(output: str) -> dict[str, object]:
    """Return what is printed of a scenario, as a scenario of the shipped one with its draft model."""
    read = yaml.safe_load(output[output.index("acceptance:") :])
    read["acceptance"] = {"draft": read["acceptance"]["d"]}
    return {"extends": "single_lan", "name": "mine", **read}


def test_what_is_printed_plays_the_trace_set(call, tmp_path: Path) -> None:
    code, output, errors = call(written(tmp_path / "mine.jsonl"), "--out", "recordings")
    assert (code, errors) == (0, "")
    assert output.startswith(
        "wrote recordings/mine.npz and recordings/mine.json: 2 requests (chat, code), 14 "
    )
    assert "gamma_max" not in output
    assert load_trace_set(tmp_path / "recordings" / "mine.npz").drafters["d"].run_length.tolist() == [
        *RUNS["chat"],
        *RUNS["code"],
    ]
    scenario = dsd_env.load_scenario(scenario_lines(output))
    result = dsd_env.simulate(scenario, "edge_sd:4", 1, requests=2, engine="reference")
    assert 0.0 < result.metrics["acceptance_rate"] < 1.0


def test_requests_are_written_with_their_own_acceptance(call, tmp_path: Path) -> None:
    file = written(tmp_path / "mine.jsonl")
    code, output, errors = call(file, "--out", "recordings", "--name", "pair", "--workload")
    assert (code, errors) == (0, "")
    scenario = dsd_env.load_scenario(scenario_lines(output))
    assert scenario.episode.requests == 2
    result = dsd_env.simulate(scenario, "edge_sd:4", 1, engine="reference")
    assert result.requests["output_tokens"].tolist() == [8, 6]
    late = written(tmp_path / "late.jsonl", arrivals=False)
    code, _, errors = call(late, "--out", "other", "--workload")
    assert code == 1 and "late.jsonl, line 2: lacks arrival_s" in errors
    assert not (tmp_path / "other").exists()


def test_what_a_card_does_not_state_is_told(call, tmp_path: Path) -> None:
    code, output, _ = call(written(tmp_path / "mine.jsonl", card=False), "--out", "recordings")
    assert code == 0 and "note: the card states no gamma_max" in output


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"rounds": [[4, 2], [4, 0]]}, "a fitted model can: python scripts/fit_rounds.py mine.jsonl --save"),
        (
            {"run_length": [4, -2]},
            "mine.jsonl, line 1: drafters.d.run_length holds -2, must be an integer in",
        ),
    ],
)
def test_what_makes_no_trace_set_is_refused(call, tmp_path: Path, line, message: str) -> None:
    row = {"kind": "chat", "prompt_tokens": 5, "drafters": {"d": line}}
    (tmp_path / "mine.jsonl").write_text(json.dumps(row), encoding="utf-8")
    code, output, errors = call("mine.jsonl", "--out", "recordings")
    assert (code, output) == (1, "")
    assert errors.startswith("import_traces: ") and message in errors
    assert not (tmp_path / "recordings").exists()
