"""scripts/inspect_traces.py and scripts/fit_acceptance.py, as a user runs them."""

import json
import subprocess
import sys

import numpy as np
import pytest

from dsd_env.acceptance import load_run_model
from tests.acceptance_samples import make_trace


def run(checkout, script, *arguments, fails=False):
    done = subprocess.run(
        [sys.executable, str(checkout / "scripts" / script), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode != 0) == fails, done.stderr
    return done.stderr if fails else done.stdout


def test_both_forms_are_inspected(checkout, tmp_path):
    trace = make_trace((300, 200, 250), (0, 1, 0))
    npz, _ = trace.save(tmp_path)
    shown = json.loads(
        run(checkout, "inspect_traces.py", npz, "--json", "--gammas", "1,4", "--plot", tmp_path / "f")
    )
    assert {(s["drafter"], s["form"]) for s in shown} == {("look", "run_length"), ("model", "accept_prob")}
    assert {tuple(s["kinds"]) for s in shown} == {("code",), ("chat",), ("code", "chat")}
    for s in shown:
        assert list(s["tokens_per_round"]) == ["1", "4"]
        assert 1.0 <= s["tokens_per_round"]["1"] <= s["tokens_per_round"]["4"] <= 5.0
        assert sum(s["run_length_share"]) == pytest.approx(1.0)
        assert (
            s["positions"] == {1: 200, 2: 550, 3: 750}[1 if s["kinds"] == ["chat"] else 1 + len(s["kinds"])]
        )
    whole = next(s for s in shown if s["drafter"] == "look" and len(s["kinds"]) == 2)
    assert whole["first_draft_accepted"] == pytest.approx(np.mean(trace.drafters["look"].run_length > 0))
    assert whole["censored_at"] == 16
    figures = sorted(p.name for p in (tmp_path / "f").iterdir())
    assert len(figures) == 2 and all(name.endswith(".png") for name in figures)
    text = run(checkout, "inspect_traces.py", npz, "--kind", "code", "--drafter", "model")
    for words in (
        "tokens per round",
        "i.i.d.",
        "acceptance by place",
        "by output position",
        "autocorrelation",
    ):
        assert words in text
    assert "look" not in text


def test_plain_files_and_models_are_inspected_and_faults_told(checkout, tmp_path):
    path = tmp_path / "mine.jsonl"
    row = {"kind": "code", "prompt_tokens": 3, "drafters": {"d": {"accept_prob": [1, 0.5, 0.5, 0]}}}
    path.write_text(json.dumps(row))
    (shown,) = json.loads(run(checkout, "inspect_traces.py", path, "--json", "--gammas", "1"))
    assert shown["first_draft_accepted"] == 0.5
    name = "llama-3.1-8b_eagle3_mt-bench"
    (shown,) = json.loads(run(checkout, "inspect_traces.py", name, "--json", "--gammas", "7"))
    assert shown["label"] == "fitted" and shown["tokens_per_round"]["7"] == pytest.approx(3.53, abs=0.05)
    assert "neither a file nor shipped" in run(checkout, "inspect_traces.py", "nobody", fails=True)
    assert "unknown kinds" in run(checkout, "inspect_traces.py", name, "--kind", "poems", fails=True)
    path.write_text("{")
    assert "line 1: not JSON" in run(checkout, "inspect_traces.py", path, fails=True)


def test_published_figures_are_rebuilt_to_the_byte_but_for_the_date(checkout, tmp_path):
    name = "llama-3.1-8b_eagle3_mt-bench"
    text = run(checkout, "fit_acceptance.py", "--name", name, "--out", tmp_path)
    assert "published 3.53" in text
    fitted, shipped = load_run_model(tmp_path / f"{name}.json"), load_run_model(name)
    assert fitted.processes == shipped.processes
    assert fitted.model_copy(update={"card": shipped.card}) == shipped
    assert name in run(checkout, "fit_acceptance.py", "--list")
    assert "unknown models" in run(checkout, "fit_acceptance.py", "--name", "x", fails=True)
