"""Scenarios that cannot stream: the error names the key, the value, what is allowed and the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from dsd_env.scenario import ScenarioError, load_scenario
from tests.lab import lab

NO_MODEL = {"kind": "lookup", "model": "draft", "profile": None, "lookup": {"cost_per_round_s": 1e-5}}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"devices__client__drafter": None},
            ["protocol.kind = 'streaming'", "needs a drafter of kind 'model'", "'dedicated'"],
        ),
        (
            {"devices__client__drafter": NO_MODEL},
            ["protocol.kind = 'streaming'", "needs a drafter of kind 'model'"],
        ),
        ({"actions__gammas": [0]}, ["actions.gammas", "only 0", "window"]),
        ({"protocol__stream_idle": "wait"}, ["stream_idle = wait", "patience_s", "> 0"]),
        (
            {"protocol__stream_idle": "wait", "protocol__patience_s": 0},
            ["protocol.patience_s = 0", "greater than 0"],
        ),
        ({"protocol__stream_idle": "sleep"}, ["protocol.stream_idle = 'sleep'", "'decode' or 'wait'"]),
        (
            {"protocol__stream_chunk_tokens": 17},
            ["protocol.stream_chunk_tokens = 17", "at most 16", "gammas"],
        ),
        (
            {"protocol__stream_chunk_tokens": 0},
            ["protocol.stream_chunk_tokens = 0", "greater than or equal to 1"],
        ),
        (
            {"protocol__stream_chunk_tokens": 65},
            ["protocol.stream_chunk_tokens = 65", "less than or equal to 64"],
        ),
        ({"protocol__branches": {"depth": 4}}, ["protocol.branches: depth = 4", "without fanout"]),
        ({"actions__edge_servers_offered": 2}, ["actions.edge_servers_offered = 2", "none to offer"]),
        ({"protocol__stream_chunks": 2}, ["unknown key 'protocol.stream_chunks'"]),
    ],
)
def test_a_scenario_that_cannot_stream_says_why(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ScenarioError) as caught:
        lab(protocol__kind="streaming", **changes)
    for word in words:
        assert word in str(caught.value)


def test_the_error_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    data = {"extends": "single_lan", "protocol": {"kind": "streaming", "stream_idle": "wait"}}
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    with pytest.raises(ScenarioError, match=r"mine\.yaml.*stream_idle = wait needs patience_s"):
        load_scenario(path)


def test_a_dedicated_drafter_is_enough_and_a_chunk_may_fill_the_window() -> None:
    at = "targets__target__colocated_drafter__"
    scenario = lab(
        protocol__kind="streaming",
        protocol__stream_chunk_tokens=16,
        devices__client__drafter=None,
        **{f"{at}mode": "dedicated", f"{at}gpus": 1},
    )
    assert scenario.protocol.stream_chunk_tokens == max(scenario.actions.gammas)
