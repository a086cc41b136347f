"""``worth-it``: the answer of the formulas, the same as the script's."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from dsd_env.cli import worth

NUMBERS = ("--rtt-ms", "5", "--alpha", "0.75", "--active", "32")


def test_the_script_and_the_command_say_the_same(dsd_env_command, checkout):
    done = subprocess.run(
        [sys.executable, "scripts/worth_it.py", *NUMBERS, "--json"],
        cwd=checkout,
        capture_output=True,
        text=True,
        check=True,
    )
    rows = dsd_env_command("worth-it", *NUMBERS, "--json").json
    assert json.loads(done.stdout) == rows
    assert [row["way"] for row in rows] == list(worth.WORDS)


@pytest.mark.parametrize(("rtt_ms", "answer"), [("5", "is worth it"), ("400", "is not worth it")])
def test_the_answer_follows_the_table(dsd_env_command, rtt_ms, answer):
    numbers = ("--rtt-ms", rtt_ms, *NUMBERS[2:])
    lines = dsd_env_command("worth-it", *numbers).out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[-1].startswith(f"A remote drafter {answer}")
    assert lines[0].split() == ["target", "llama-3-70b_h100-sxm_tp4"]
    assert lines[2].split()[:3] == ["remote", "drafter", "llama-3.2-3b-q4_rtx-4090,"]
    rows = {row["way"]: row["token_s"] for row in dsd_env_command("worth-it", *numbers, "--json").json}
    assert (min(rows["rounds"], rows["stream"]) < min(rows["plain"], rows["node"])) == (
        answer == "is worth it"
    )


def test_profiles_that_do_not_fit_together_are_told_of(dsd_env_command):
    lines = dsd_env_command(
        "worth-it", *NUMBERS, "--node-drafter", "llama-3.2-1b-q4_rtx-4090"
    ).out.splitlines()
    assert any("was measured on" in line for line in lines)
    assert any("are taken to be right equally often" in line for line in lines)


def test_wrong_numbers_of_the_script_are_usage_errors(checkout):
    done = subprocess.run(
        [sys.executable, "scripts/worth_it.py", *NUMBERS, "--drafter", "nothing"],
        cwd=checkout,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and "no latency profile named 'nothing'" in done.stderr
