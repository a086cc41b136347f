"""The command line as a whole: help, errors, exit status, pipes, what is imported."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

import dsd_env
from dsd_env.cli import main as whole
from dsd_env.cli.output import table

COMMANDS = (
    "list",
    "show",
    "schedulers",
    "profiles",
    "simulate",
    "evaluate",
    "worth-it",
    "timeline",
    "picture",
    "report",
    "completion",
)
QUICK = ("--engine", "reference", "--requests", "2")


def started(*arguments: str, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "dsd_env", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_has_examples_and_fits_80_columns(dsd_env_command, name):
    said = dsd_env_command(*([name] if name else []), "--help")
    assert said.status == 0 and said.err == ""
    assert "examples:\n  dsd-env " in said.out
    assert max(map(len, said.out.splitlines())) <= 80
    if not name:
        listed = [
            line.split()[0] for line in said.out.splitlines() if line.startswith("    ") and line[4] != " "
        ]
        assert listed == list(COMMANDS)
    else:
        assert "--json" in said.out


def test_every_command_of_an_example_is_understood(dsd_env_command):
    parser = whole.parser()
    for name in COMMANDS:
        text = dsd_env_command(name, "--help").out
        examples = [line.split() for line in text.splitlines() if line.startswith("  dsd-env ")]
        assert examples
        for _, *arguments in examples:
            if ">" in arguments:
                arguments = arguments[: arguments.index(">")]
            assert parser.parse_args(arguments).run is not None


@pytest.mark.parametrize(
    "arguments",
    [
        ["list"],
        ["show", "stream_node_branches"],
        ["show", "mobile"],
        ["schedulers"],
        ["simulate", "single_lan", "--scheduler", "random", *QUICK, "--metrics", "all"],
        ["evaluate", "single_lan", "--schedulers", "cloud_ar,static:8:1:own", "--seeds", "2", *QUICK],
        ["worth-it", "--rtt-ms", "15", "--alpha", "0.8", "--active", "64", "--per-card", "8"],
        ["timeline", "single_lan", "--scheduler", "edge_sd:4", *QUICK, "--out", "trace.json"],
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_output_fits_80_columns(dsd_env_command, arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = dsd_env_command(*arguments)
    assert said.status == 0 and said.out
    assert max(map(len, said.out.splitlines())) <= 80


def test_a_table_that_is_too_wide_breaks_its_widest_text(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    rows = [["name", "n", "what"], ["one", "10", "a word " * 6 + "x" * 30], ["two", "2", ""]]
    lines = table(rows, " r").splitlines()
    assert max(map(len, lines)) <= 40
    assert lines[0] == "name   n  what" and lines[-1] == "two    2"
    assert "".join("".join(line[10:].split()) for line in lines[1:-1]) == "aword" * 6 + "x" * 30


def test_the_version_is_the_packages(dsd_env_command):
    assert dsd_env_command("--version").out == f"dsd-env {dsd_env.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "dsd-env: the following arguments are required: COMMAND"),
        (["fly"], "dsd-env: argument COMMAND: invalid choice: 'fly'"),
        (["show"], "dsd-env show: the following arguments are required: SCENARIO"),
        (["simulate", "metro"], "dsd-env simulate: the following arguments are required: --scheduler"),
        (["simulate", "metro", "--sched", "random"], "the following arguments are required: --scheduler"),
        (
            ["simulate", "metro", "--scheduler", "random", "--seed", "-1"],
            "'-1' must be a whole number",
        ),
        (["simulate", "metro", "--scheduler", "random", "--seed", "x"], "'x' must be a whole number"),
        (["simulate", "metro", "--scheduler", "random", "--engine", "fast"], "invalid choice: 'fast'"),
        (["simulate", "metro", "--scheduler", "random", "--requests", "0"], "whole number of at least 1"),
        (["show", "metro", "--set", "episode__requests"], "'episode__requests' is not KEY=VALUE"),
        (["show", "metro", "--set", "episode____x=1"], "is not KEY=VALUE"),
        (["show", "metro", "--set", "episode..x=1"], "is not KEY=VALUE, with dots"),
        (["show", "metro", "--set", "=1"], "is not KEY=VALUE"),
        (["show", "metro", "--set", "name=[1"], "argument --set: name"),
        (["evaluate", "metro", "--schedulers", ","], "',' names no scheduler"),
        (["evaluate", "metro", "--schedulers", "random,random"], "scheduler named twice: random"),
        (
            ["evaluate", "metro", "--schedulers", "jsq_goodput:load_weight=1,prior_trials=3"],
            "a comma separates schedulers, + the parameters of one",
        ),
        (
            ["worth-it", "--rtt-ms", "5", "--alpha", "1.5", "--active", "1"],
            "'1.5' must be a number from",
        ),
        (["worth-it", "--rtt-ms", "nan", "--alpha", "0.5", "--active", "1"], "'nan' must be a number from"),
        (
            ["timeline", "metro", "--scheduler", "random", "--out", "x", "--only", "9-3"],
            "'9-3' in '9-3' is no number",
        ),
    ],
)
def test_a_wrong_command_line_is_told_in_one_line(dsd_env_command, arguments, message):
    said = dsd_env_command(*arguments)
    assert said.status == 2 and said.out == ""
    assert message in said.err
    assert said.err.startswith("dsd-env") and said.err.endswith("--help\n")
    assert said.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["simulate", "metroo", "--scheduler", "random"], "'metroo'; did you mean 'metro'? Shipped are"),
        (["show", "nowhere"], "unknown scenario 'nowhere'"),
        (["show", "./nowhere.yaml"], "scenario file 'nowhere.yaml' does not exist"),
        (["show", "single_lan", "--set", "episode__requests=-1"], "episode__requests = -1"),
        (
            ["show", "single_lan", "--set", "episode.requests=-1"],
            "with episode.requests overridden: episode.requests = -1",
        ),
        (["show", "single_lan", "--set", "nothing__such=1"], "unknown key 'nothing'"),
        (["simulate", "single_lan", "--scheduler", "rando"], "did you mean 'random'?"),
        (["simulate", "single_lan", "--scheduler", "policy:nowhere"], "nowhere"),
        (["simulate", "single_lan", "--scheduler", "random", "--metrics", "joy"], "no metric joy"),
        (
            ["evaluate", "single_lan", "--schedulers", "random", "--requests", "2", "--cycles", "1"],
            "--cycles",
        ),
        (
            ["worth-it", "--rtt-ms", "5", "--alpha", "0.5", "--active", "1", "--drafter", "x"],
            "profile named 'x'",
        ),
    ],
)
def test_an_error_is_told_in_one_line(dsd_env_command, arguments, message):
    said = dsd_env_command(*arguments)
    assert said.status == 1 and said.out == ""
    assert said.err.startswith("dsd-env: ") and message in said.err
    assert said.err.count("\n") == 1


def test_each_problem_of_a_scenario_has_a_line(dsd_env_command):
    said = dsd_env_command(
        "show", "single_lan", "--set", "episode__requests=-1", "--set", "links__lan__rto_s=x"
    )
    assert said.status == 1
    assert all(line.startswith("dsd-env: ") for line in said.err.splitlines())
    assert said.err.count("\n") == 2


def test_a_file_that_cannot_be_written_is_named(dsd_env_command, tmp_path):
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "trace.json"
    said = dsd_env_command("timeline", "single_lan", "--scheduler", "cloud_ar", *QUICK, "--out", out)
    assert said.status == 1
    assert said.err.count("\n") == 1 and str(tmp_path / "file") in said.err and "Errno" not in said.err


def test_a_fault_of_ours_keeps_its_traceback(dsd_env_command, monkeypatch):
    def broken() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("dsd_env.cli.scenarios.list_scenarios", broken)
    with pytest.raises(ZeroDivisionError):
        dsd_env_command("list")


def test_ctrl_c_ends_with_130(dsd_env_command, monkeypatch):
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dsd_env.cli.scenarios.list_scenarios", interrupted)
    said = dsd_env_command("list")
    assert (said.status, said.err) == (130, "dsd-env: interrupted\n")


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_process_at_work_can_be_interrupted():
    code = (
        "import os, signal, sys, time; from dsd_env.cli import main, scenarios;"
        # A shell's background jobs ignore the signal, and so do their children.
        "signal.signal(signal.SIGINT, signal.default_int_handler);"
        "scenarios.list_scenarios = lambda: (os.write(1, b'at work'), time.sleep(60));"
        "sys.argv = ['dsd-env', 'list']; main.run()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.read(7) == "at work"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "dsd-env: interrupted\n")


def test_a_reader_that_goes_away_is_no_error():
    with started("show", "metro", "--json") as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.read(1) == "{"
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=60) == 0


def test_the_script_of_the_wheel_runs_the_command_line(checkout: Path):
    project = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(project["scripts"]) == {whole.PROGRAM}
    module, _, function = project["scripts"][whole.PROGRAM].partition(":")
    assert getattr(import_module(module), function) is whole.run
    done = started("--version")
    assert done.communicate(timeout=60)[0] == f"dsd-env {dsd_env.__version__}\n"


def test_importing_the_package_does_not_import_the_command_line():
    code = (
        "import sys, dsd_env;"
        "print([name for name in sys.modules if name.startswith('dsd_env.cli')]);"
        "import dsd_env.cli.main;"
        "heavy = ('numba', 'torch', 'stable_baselines3', 'matplotlib');"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n[]\n"
