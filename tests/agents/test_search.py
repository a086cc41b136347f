"""Searches of plan rules: found again after an interruption, exported, honest about finding nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.config import ConfigError
from agents.evaluation import Task
from agents.search import LOG_FILE, Generation, SearchConfig, export_search, load_search, search
from dsd_env import policy
from dsd_env.paths import config_dir
from dsd_env.whole_runs.fleet import run_fleet

pytest.importorskip("cmaes")

TINY: dict[str, Any] = {
    "scenario": "single_lan",
    "overrides": {"episode.requests": 4},
    "fleet": {"control_period_s": 0.25, "grouping": "device"},
    "features": ["system.active_requests"],
    "choices": {"gammas": [0, 2, 4], "places": ["colocated", "own"]},
    "start": {"workstation": 0},
    "objective": "e2e_s_mean",
    "direction": "min",
    "generations": 4,
    "population": 5,
    "episodes": 1,
    "validation_episodes": 2,
    "validate_every": 2,
}


def config(**changes: Any) -> SearchConfig:
    return SearchConfig.model_validate({**TINY, **changes})


def test_a_search_beats_plain_decoding_and_its_bundle_repeats_it(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    seen: list[Generation] = []
    made = config()
    rule, best, kept = search(made, tmp_path / "run", threads=2, report=seen.append)
    assert [each.number for each in seen] == [1, 2, 3, 4]
    assert [each.validated is None for each in seen] == [True, False, True, False]
    assert kept["found"] < 0.9 * kept["start"]  # it begins with plain decoding
    export_search(made, rule, best, kept, tmp_path / "bundle")
    loaded = policy.load(tmp_path / "bundle")
    tasks = [Task("x", made.load_scenario(), "x", seed, "x") for seed in range(1_000_000_000, 1_000_000_002)]
    again = [metrics["e2e_s_mean"] for _, metrics in run_fleet(tasks, loaded)]
    assert np.mean(again) == kept["found"]


def test_an_interrupted_search_goes_on_to_the_same_end(tmp_path: Path) -> None:
    whole = search(config(), tmp_path / "whole")

    def stop(generation: Generation) -> None:
        if generation.number == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(config(), tmp_path / "cut", report=stop)
    with (tmp_path / "cut" / LOG_FILE).open("a", encoding="utf-8") as file:
        file.write('{"generation": 4, "val')  # the write that was cut off
    _, best, kept = search(config(), tmp_path / "cut")
    assert np.array_equal(best, whole[1]) and kept == whole[2]
    assert (tmp_path / "cut" / LOG_FILE).read_text() == (tmp_path / "whole" / LOG_FILE).read_text()


def test_a_search_that_finds_nothing_returns_its_start(tmp_path: Path) -> None:
    # More time a request is never better than that of plain decoding when the worst is looked for.
    made = config(direction="max", start={"workstation": 0}, sigma=1e-6)
    rule, best, kept = search(made, tmp_path)
    assert np.array_equal(best, rule.start()) and kept["found"] == kept["start"]


def test_a_folder_holds_one_search(tmp_path: Path) -> None:
    search(config(generations=1), tmp_path)
    with pytest.raises(ConfigError, match="another configuration"):
        search(config(generations=2), tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"objective": "e2e_mean"}, "objective: no metric e2e_mean; did you mean 'e2e_s_mean'"),
        ({"features": ["joy"]}, "features: 'joy' is not one of"),
        ({"start": {"phone": 0}}, "the groups are"),
        ({"choices": {"gammas": [4], "places": ["own"]}, "start": {"workstation": 4}}, "nothing to choose"),
    ],
)
def test_what_cannot_be_searched_is_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        search(config(**changes), tmp_path)


def test_shipped_searches_fit_their_scenarios() -> None:
    files = sorted((config_dir() / "search").glob("*.yaml"))
    assert files
    for file in files:
        made = load_search(file.stem)
        assert made.rule(made.load_scenario()).size > 0


def test_a_wrong_file_names_itself_and_the_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="shipped are"):
        load_search("nothing")
    file = tmp_path / "bad.yaml"
    text = "scenario: cost\nfeatures: [a]\nchoices: {gammas: [1], places: [own]}\nstart: {}\nwish: 1\n"
    file.write_text(text)
    with pytest.raises(ConfigError, match="wish"):
        load_search(file)


def test_a_search_begins_where_it_is_told(tmp_path: Path) -> None:
    made = config(start={"workstation": "4/own"})
    rule = made.checked(made.load_scenario())
    assert rule.choices.start == (4,) and rule.choices.start_places == ("own",)
    for wrong in ("own", "4/", "x/own", "-1"):
        with pytest.raises(ConfigError, match="no speculation length"):
            config(start={"workstation": wrong}).checked(made.load_scenario())
    with pytest.raises(ConfigError, match="'nowhere' is not one of"):
        config(start={"workstation": "4/nowhere"}).checked(made.load_scenario())
