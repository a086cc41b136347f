"""Costs of each way of drafting: closed forms by hand, and the engine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dsd_env.schedulers.worth import BusyTarget
from tests.scenarios import tiny

ROOT = Path(__file__).resolve().parents[2]


def busy(active: int = 4, acceptance: float = 0.5) -> BusyTarget:
    # 20 ms and 0.2 ms a new token, 0.1 us a KV token; a drafter of 3 ms beside the target.
    return BusyTarget.of(tiny().targets["big"], active, 250.0, acceptance)


def test_plain_decoding_and_drafts_at_the_target_are_the_sums_of_their_steps() -> None:
    plain, node = busy().plain(), busy().node(2)
    kv_s = 4 * 250 * 1e-7
    assert plain.token_s == pytest.approx(0.020 + 4 * 2e-4 + kv_s)
    assert node is not None
    assert node.iteration_s == pytest.approx(2 * 0.003 + 0.020 + 12 * 2e-4 + kv_s)
    assert node.token_s == pytest.approx(node.iteration_s / 1.75)


def test_a_stream_without_delay_is_verified_in_every_iteration() -> None:
    """With a drafter far faster than the target and next to it, acceptance alone limits a stream."""
    stream = busy(acceptance=0.0).stream(4, 1e-6, 0.0)
    assert stream.token_s == pytest.approx(stream.iteration_s, rel=1e-6)
    near, far = busy().stream(4, 0.003, 0.0), busy().stream(4, 0.003, 0.2)
    assert near.token_s < busy().plain().token_s < 1.05 * far.token_s


def test_rounds_miss_every_second_iteration_of_a_busy_target() -> None:
    cost = busy().rounds(1, 0.001, 0.002)
    # Two of the four are there at a time; the others are away until the next iteration begins.
    assert cost.iteration_s == pytest.approx(0.020 + 4 * 2e-4 + 2 * 250 * 1e-7)
    assert cost.token_s == pytest.approx(2.0 * cost.iteration_s / 1.5)


def test_a_target_without_a_drafter_has_no_way_of_its_own() -> None:
    alone = BusyTarget.of(tiny().targets["small"], 4, 250.0, 0.5)
    assert alone.node(2) is None
    assert [cost.way for cost in alone.best(0.003, 0.005)] == ["plain", "rounds", "stream"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"active": 0}, "active = 0 must be in 1..16"),
        ({"active": 17}, "active = 17 must be in 1..16"),
        ({"acceptance": 1.0}, "acceptance = 1.0 must be at least 0 and below 1"),
        ({"context_tokens": 0.0}, "context_tokens = 0.0 must be at least 1"),
    ],
)
def test_impossible_numbers_are_named(changes: dict[str, float], message: str) -> None:
    given = {"active": 4, "context_tokens": 250.0, "acceptance": 0.5, **changes}
    with pytest.raises(ValueError, match=message):
        BusyTarget.of(tiny().targets["big"], **given)  # type: ignore[arg-type]


def test_the_script_agrees_with_the_engine_on_what_is_best() -> None:
    numbers = ["--rtt-ms", "5", "--alpha", "0.75", "--active", "8", "--context", "320"]
    command = [*numbers, "--simulate", "--json"]
    done = subprocess.run(
        [sys.executable, "scripts/worth_it.py", *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    rows = json.loads(done.stdout)
    assert [row["way"] for row in rows] == ["plain", "node", "rounds", "stream"]
    for row in rows:
        # The engine's requests have prompts, too, and come and go.
        assert row["simulated_token_s"] == pytest.approx(row["token_s"], rel=0.08)
    best = min(rows, key=lambda row: row["token_s"])
    assert best == min(rows, key=lambda row: row["simulated_token_s"])
