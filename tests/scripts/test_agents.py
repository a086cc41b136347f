"""The command lines of training, export and evaluation, as their users start them."""

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

from dsd_env.cli.notes import START_UP, few_seeds

CONFIG = """
scenario: single_lan
overrides: {episode.requests: 2}
timesteps: 128
n_envs: 1
ppo: {n_steps: 64, batch_size: 64, n_epochs: 1}
network: {actor: [8], critic: [8]}
checkpoint: {every_steps: 64}
validation: {every_steps: 64, episodes: 1}
"""


def command(checkout: Path, name: str, *arguments) -> list[str]:
    return [sys.executable, str(checkout / "scripts" / f"{name}.py"), *map(str, arguments)]


def run(checkout: Path, name: str, *arguments, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "120"}
    return subprocess.run(
        command(checkout, name, *arguments),
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def call(checkout: Path, tmp_path: Path, monkeypatch, capsys):
    """Return a function that runs a script in this process; a new one takes seconds to import libraries."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(checkout / "scripts"))

    def run_here(name: str, *arguments) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", command(checkout, name, *arguments)[1:])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(checkout / "scripts" / f"{name}.py"), run_name="__main__")
        assert isinstance(stopped.value.code, int)
        return stopped.value.code, *capsys.readouterr()

    return run_here


def steps_saved(run_dir: Path) -> list[int]:
    """Return the steps of complete checkpoints (the JSON is written last)."""
    return sorted(int(path.stem.split("_")[1]) for path in (run_dir / "checkpoints").glob("step_*.json"))


def test_train_export_evaluate(checkout: Path, tmp_path: Path, call, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    trained = run(checkout, "train", "--config", "tiny.yaml", "--out", "run", "--report", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert "trained 128 decisions" in trained.stdout
    assert "training: 100%" in trained.stderr, "a progress bar"
    assert "Results: run" in (tmp_path / "run" / "report.html").read_text()

    code, _, errors = call("train", "--config", "tiny.yaml", "--out", "run")
    assert code == 1
    assert "exists and is not empty; give --resume" in errors

    code, _, errors = call("export", "--run", "run", "--out", "policy")
    assert code == 0, errors
    assert sorted(p.name for p in (tmp_path / "policy").iterdir()) == [
        "manifest.json",
        "policy.npz",
        "policy.onnx",
    ]

    arguments = ("--scenarios", "single_lan", "--schedulers", "cloud_ar,policy:policy", "--requests", "2")
    more = ("--seeds", "2", "--json", "out/e.json", "--history", "--report", "report.html")
    code, output, errors = call("evaluate", *arguments, *more)
    assert code == 0, errors
    assert "paired by episode, against cloud_ar" in output
    schedulers = json.loads((tmp_path / "out" / "e.json").read_text())["scenarios"]["single_lan"][
        "schedulers"
    ]
    learned = schedulers["policy:policy"]
    assert learned["metrics"]["e2e_s_mean"]["mean"] > 0
    # The history is that of the first episode.
    assert learned["history"]["requests_measured"] == 2
    assert learned["history"]["quantiles"]["e2e_s"][50] == pytest.approx(
        learned["metrics"]["e2e_s_p50"]["per_seed"][0]
    )
    assert "policy:policy" in (tmp_path / "report.html").read_text()
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["e.json"], "the sidecar is gone"


def test_tables_that_no_terminal_shows_are_not_cut_and_what_was_measured_is_told(call, monkeypatch) -> None:
    name = "a_name_of_its_own_" * 4
    pair = f"cloud_ar,{name}=edge_sd:4"
    arguments = ("--scenarios", "single_lan", "--schedulers", pair, "--seeds", 2, "--metrics", "e2e_s_mean")

    def rows(*more: object) -> list[str]:
        code, output, errors = call("evaluate", *arguments, *more)
        assert code == 0, errors
        return output.splitlines()

    monkeypatch.delenv("COLUMNS", raising=False)
    found = rows("--requests", 2)
    assert [line.split()[0] for line in found if line.startswith(name) and "%" in line] == [name]
    assert found[-3:] == ["", START_UP, few_seeds(2)]
    monkeypatch.setenv("COLUMNS", "80")
    found = rows("--cycles", 1)
    assert not [line for line in found if line.startswith(name) and "%" in line]
    assert found[-2:] == ["", few_seeds(2)]


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("train", ("--config", "nope", "--out", "run"), "no training configuration 'nope'"),
        ("train", ("--config", "wrong.yaml", "--out", "run"), "wrong.yaml: unknown key 'timestep'"),
        (
            "evaluate",
            ("--scenarios", "single_lan", "--schedulers", "cloud_ar", "--metrics", "speed"),
            "no metric speed. There are: e2e_s_mean",
        ),
        (
            "evaluate",
            ("--scenarios", "single_lan", "--schedulers", "cloud_ar", "--metrics", "e2e_mean"),
            "no metric e2e_mean; did you mean 'e2e_s_mean'? docs/simulator.md has",
        ),
        (
            "evaluate",
            ("--scenarios", "single_lan", "--schedulers", "edge_ds:4"),
            "unknown scheduler 'edge_ds'; did you mean 'edge_sd'?",
        ),
        ("train", ("--config", "lost.yaml", "--out", "run"), "unknown scenario 'atlantis'"),
        ("train", ("--out", "run", "--resume"), "no run to resume"),
        ("export", ("--run", "nowhere", "--out", "policy"), "config.yaml is missing"),
        ("evaluate", ("--scenarios", "atlantis", "--schedulers", "cloud_ar"), "unknown scenario 'atlantis'"),
        ("evaluate", ("--scenarios", "single_lan", "--schedulers", "magic"), "unknown scheduler 'magic'"),
    ],
)
def test_mistakes_are_explained(name: str, arguments, message: str, tmp_path: Path, call) -> None:
    (tmp_path / "wrong.yaml").write_text("timestep: 5")
    (tmp_path / "lost.yaml").write_text("scenario: atlantis")
    code, _, errors = call(name, *arguments)
    assert code == 1
    assert message in errors
    assert not (tmp_path / "run").exists()


def contents(run_dir: Path) -> list[bytes]:
    """Return the files of a run that only its start writes."""
    return [(run_dir / name).read_bytes() for name in ("run.json", "config.yaml", "scenario.json", ".lock")]


def test_killed_training_resumes_from_its_newest_checkpoint(checkout: Path, tmp_path: Path, call) -> None:
    """While it runs, a second one on its directory is turned away; its death frees the directory."""
    (tmp_path / "tiny.yaml").write_text(CONFIG.replace("timesteps: 128", "timesteps: 100000000"))
    process = subprocess.Popen(
        command(checkout, "train", "--config", "tiny.yaml", "--out", "run", "--quiet"),
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 60
        while len(steps_saved(tmp_path / "run")) < 2:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.02)
        before, boards = contents(tmp_path / "run"), list((tmp_path / "run" / "tensorboard").iterdir())
        code, output, errors = call("train", "--out", "run", "--resume", "--timesteps", 10**8, "--quiet")
        assert (code, output) == (1, ""), errors
        assert f"train: run is in use by process {process.pid} on" in errors and "tiny.yaml" in errors
        assert contents(tmp_path / "run") == before
        assert list((tmp_path / "run" / "tensorboard").iterdir()) == boards
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    newest = steps_saved(tmp_path / "run")[-1]

    target = newest + 128
    arguments = ("--out", "run", "--resume", "--timesteps", target)
    resumed = run(checkout, "train", *arguments, "--quiet", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert f"trained {target} decisions" in resumed.stdout
    starts = json.loads((tmp_path / "run" / "run.json").read_text())["starts"]
    assert [start["step"] for start in starts] == [0, newest]
    assert not (tmp_path / "run" / ".lock").exists()
    assert steps_saved(tmp_path / "run")[-1] == target


def test_interrupted_evaluation_continues(checkout: Path, tmp_path: Path, call) -> None:
    arguments = (
        "--scenarios",
        "single_lan",
        "--schedulers",
        "colocated_sd:2",
        "--requests",
        "20",
        "--seeds",
        "400",
    )
    process = subprocess.Popen(
        command(checkout, "evaluate", *arguments, "--json", "e.json"),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's Ctrl-C: not ignored, whatever started this test run.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    sidecar = tmp_path / "e.json.partial"
    deadline = time.monotonic() + 60
    while not sidecar.exists() or sidecar.read_text().count("\n") < 3:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    code, _, errors = call("evaluate", *arguments, "--json", "e.json")
    assert code == 1 and f"e.json is in use by process {process.pid} on" in errors
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "interrupted; the same command continues" in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "e.json").exists()

    finished = sidecar.read_text().count("\n")
    fewer = (*arguments[:-1], 3)
    result = run(checkout, "evaluate", *fewer, "--json", "e.json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "3 of 3 simulations were finished before" in result.stdout
    assert finished >= 3
    assert (tmp_path / "e.json").is_file()
    assert not list(tmp_path.glob("e.json.*")), "sidecar and lock are gone"


def test_nobody_has_to_listen(checkout: Path, tmp_path: Path) -> None:
    """As before `| head`: whatever is printed, and the progress bar, go into closed pipes."""
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    for name, arguments, result in (
        ("train", ("--config", "tiny.yaml", "--out", "run"), "run/final.zip"),
        ("export", ("--run", "run", "--out", "policy"), "policy/manifest.json"),
    ):
        reading, writing = os.pipe()
        os.close(reading)
        try:
            done = subprocess.run(
                command(checkout, name, *arguments),
                cwd=tmp_path,
                timeout=120,
                stdout=writing,
                stderr=writing if name == "train" else subprocess.PIPE,
            )
        finally:
            os.close(writing)
        assert (done.returncode, done.stderr or b"") == (0, b"")
        assert (tmp_path / result).is_file()
