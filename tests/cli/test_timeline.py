"""``timeline``: what it writes, and that the script of a checkout is the same."""

from __future__ import annotations

import json
import subprocess
import sys

import dsd_env

ARGUMENTS = (
    "single_lan",
    *("--scheduler", "edge_sd:4", "--seed", "1"),
    *("--engine", "reference", "--requests", "5"),
)


def test_the_file_is_the_timelines(dsd_env_command, tmp_path):
    out = tmp_path / "trace.json"
    said = dsd_env_command("timeline", *ARGUMENTS, "--out", out)
    result = dsd_env.simulate(
        "single_lan", "edge_sd:4", seed=1, requests=5, engine="reference", timeline=True
    )
    assert result.timeline is not None
    trace = json.loads(out.read_text())
    assert trace == json.loads(json.dumps(result.timeline.trace()))
    events = len(trace["traceEvents"])
    assert said.status == 0 and f"wrote {out}: {events:,} events" in said.out
    assert "ui.perfetto.dev" in said.out and "chrome://tracing" in said.out


def test_a_span_and_some_requests(dsd_env_command, tmp_path):
    out = tmp_path / "trace.json"
    bounds = ("--from-s", "1", "--to-s", "6", "--only", "0-0,1")
    found = dsd_env_command("timeline", *ARGUMENTS, *bounds, "--out", out, "--json").json
    assert found.pop("events") == len(json.loads(out.read_text())["traceEvents"])
    assert found.pop("bytes") == out.stat().st_size
    assert 6.0 <= found.pop("simulated_s") < 8.0
    assert found == {
        "file": str(out),
        "scenario": "single_lan",
        "scheduler": "edge_sd:4",
        "seed": 1,
        "engine": "reference",
    }
    result = dsd_env.simulate(
        "single_lan", "edge_sd:4", seed=1, requests=5, engine="reference", timeline=True, until_s=6.0
    )
    assert result.timeline is not None
    trace = result.timeline.trace(1.0, 6.0, only=[0, 1])
    assert json.loads(out.read_text()) == json.loads(json.dumps(trace))


def test_what_cannot_be_shown_is_an_error_and_leaves_no_file(dsd_env_command, tmp_path):
    out = tmp_path / "trace.json"
    said = dsd_env_command("timeline", *ARGUMENTS, "--from-s", 5, "--to-s", 5, "--out", out)
    assert said.status == 1 and said.err == "dsd-env: --from-s 5 must be below --to-s 5\n"
    said = dsd_env_command("timeline", *ARGUMENTS, "--only", "77", "--out", out)
    assert said.status == 1 and "requests [77] did not arrive" in said.err
    assert not list(tmp_path.iterdir())


def test_a_folder_that_does_not_exist_is_not_made(dsd_env_command, tmp_path):
    for name in ("timeline", "picture"):
        out = tmp_path / "nodir" / ("trace.json" if name == "timeline" else "lan.png")
        said = dsd_env_command(name, *ARGUMENTS, "--out", out)
        assert said.status == 1 and said.out == ""
        folder = str(out.parent)
        assert said.err == f"dsd-env: --out {out}: folder {folder!r} does not exist; make it first\n"
    assert not list(tmp_path.iterdir())


def test_the_script_writes_the_same_file(dsd_env_command, checkout, tmp_path):
    dsd_env_command("timeline", *ARGUMENTS, "--out", tmp_path / "command.json")
    subprocess.run(
        [sys.executable, "scripts/timeline.py", *ARGUMENTS, "--out", str(tmp_path / "script.json")],
        cwd=checkout,
        capture_output=True,
        check=True,
    )
    assert (tmp_path / "command.json").read_bytes() == (tmp_path / "script.json").read_bytes()
    done = subprocess.run(
        [sys.executable, "scripts/timeline.py", "nowhere", "--scheduler", "random", "--out", "x"],
        cwd=checkout,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and done.stderr.startswith("timeline: unknown scenario 'nowhere'")
