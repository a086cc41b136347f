"""``dsd-env completion``: the script, and what a shell makes of it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dsd_env.cli.completion import SHELLS
from dsd_env.scenario import list_scenarios
from tests.cli.test_main import COMMANDS

pytest.importorskip("shtab")

# Completes the words that it is given, as readline has the function do.
ASK = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"
"$(complete -p dsd-env | sed 's/.*-F \\([^ ]*\\) .*/\\1/')"
printf '%s\\n' "${COMPREPLY[@]}"
"""


def completed(script: Path, *words: str) -> list[str]:
    done = subprocess.run(
        ["bash", "-c", ASK, "ask", str(script), "dsd-env", *words], capture_output=True, text=True, check=True
    )
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_commands_options_and_names(dsd_env_command, tmp_path):
    script = tmp_path / "dsd-env"
    script.write_text(dsd_env_command("completion", "bash").out, encoding="utf-8")
    assert set(completed(script, "")) == set(COMMANDS)
    assert completed(script, "simulate", "metro", "--sched") == ["--scheduler"]
    assert completed(script, "simulate", "metro_") == [n for n in list_scenarios() if n.startswith("metro_")]
    assert completed(script, "simulate", "metro", "--scheduler", "colo") == ["colocated_sd"]
    assert completed(script, "simulate", "metro", "--engine", "r") == ["reference"]
    assert completed(script, "evaluate", "metro", "--metrics", "e2e_s_p9") == ["e2e_s_p95", "e2e_s_p99"]
    assert "llama-3-70b_h100-sxm_tp4" in completed(script, "worth-it", "--target", "llama-3-70b_h")
    assert completed(script, "timeline", "metro", "--out", str(script)) == [str(script)]
    assert str(script) in completed(script, "show", str(tmp_path) + "/")


@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_is_sound_and_names_what_there_is(dsd_env_command, shell, tmp_path):
    said = dsd_env_command("completion", shell, "--json").json
    assert said["shell"] == shell and said["script"] + "\n" == dsd_env_command("completion", shell).out
    for name in (*COMMANDS, "metro_branches", "jsq_goodput", "e2e_s_mean"):
        assert name in said["script"]
    assert str(Path.home()) not in said["script"] and sys.prefix not in said["script"]
    if shutil.which(shell) is None:
        return
    file = tmp_path / "script"
    file.write_text(said["script"], encoding="utf-8")
    subprocess.run([shell, "-n", str(file)], check=True)


def test_without_its_library_the_message_says_what_to_install(dsd_env_command, monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    said = dsd_env_command("completion", "bash")
    assert (said.status, said.out) == (1, "")
    assert said.err == (
        "dsd-env: completing command lines needs the package shtab: pip install 'dsd-env[completion]'\n"
    )
