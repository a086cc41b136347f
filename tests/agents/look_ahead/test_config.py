"""Configurations of upper references: the shipped ones fit, wrong ones say where and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from agents.config import ConfigError
from agents.look_ahead.config import load_look_ahead
from dsd_env.paths import config_dir
from tests.agents.look_ahead.samples import config


@pytest.mark.parametrize(
    "file", sorted((config_dir() / "look_ahead").glob("*.yaml")), ids=lambda path: path.stem
)
def test_shipped_ones_fit_their_scenarios(file: Path) -> None:
    made = load_look_ahead(file.stem)
    assert made.space(made.contest()).groups


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"horizon_s": 20.0}, "leave horizon_s out"),
        ({"score": "reward"}, "needs horizon_s"),
        ({"score": "luck"}, "score"),
        ({"score": "reward", "horizon_s": 2.0, "holds": [8]}, "the longest takes 4 s, horizon_s = 2"),
        ({"gammas": [4, 4]}, "names something twice"),
        ({"gammas": []}, "gammas"),
        ({"every": 0}, "every"),
        ({"budget": 0}, "budget"),
        ({"surely": 1.0}, "surely = 1 needs redraws of at least 2, not 0"),
        ({"wish": 1}, "wish"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=words):
        config(tmp_path, **changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scenario": "moon"}, r"scenario = 'moon' is not one of \['single_lan', 'fleet', 'slow_cloud'\]"),
        ({"gammas": [5]}, "gammas: 5 is not one of"),
        ({"places": ["edge"]}, "places: 'edge' is not one of"),
        ({"base": "4/1/moon"}, "base: plan '4/1/moon'"),
        ({"base": {"phone": "plain"}}, "the groups are"),
    ],
)
def test_what_does_not_fit_the_scenario_is_refused(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    made = config(tmp_path, **changes)
    with pytest.raises(ConfigError, match=words):
        made.space(made.contest())


def test_a_base_by_group_is_that_plan(tmp_path: Path) -> None:
    made = config(tmp_path, base={"workstation": "8/1/own"})
    space = made.space(made.contest())
    assert space.describe(made.base_plan(space)) == "workstation=8/1/own"


def test_a_wrong_file_names_itself_key_and_range(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="shipped are"):
        load_look_ahead("nothing")
    file = tmp_path / "bad.yaml"
    file.write_text("scenario: cost\nbase: plain\ngammas: [4]\nplaces: [own]\nsweeps: -1\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"bad\.yaml.*sweeps.*0"):
        load_look_ahead(file)
