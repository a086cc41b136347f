"""Searches of static choices: what they try, how long they look, and what they write where."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from dsd_env.scenario import load_scenario
from dsd_env.scenario.measuring import steady
from tests.scenarios import tiny

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def scripts(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(checkout / "scripts"))


@pytest.mark.usefixtures("scripts")
def test_streams_are_tried_with_branches_where_each_decision_may_have_them() -> None:
    drafting_places = importlib.import_module("_static_choices").drafting_places
    places = partial(drafting_places, branches=True)
    assert places(load_scenario("metro")) == ["colocated", "own", "edge"]
    assert places(load_scenario("metro_branches")) == [
        *("colocated", "own", "edge"),
        *("own+branches", "edge+branches"),
    ]
    assert places(load_scenario("regions")) == ["colocated", "own"]


@pytest.mark.usefixtures("scripts")
def test_places_that_fail_are_tried_with_others_to_fall_back_on() -> None:
    places = importlib.import_module("_static_choices").drafting_places
    expected = ["colocated", "own", "edge", "own-edge-colocated", "edge-own-colocated"]
    assert places(load_scenario("flaky_stream")) == expected


@pytest.mark.usefixtures("scripts")
def test_a_constant_load_is_measured_as_long_as_the_load_that_changes() -> None:
    # slow_cloud's requests take 15 s; a window of any other length would measure a handful.
    scenario = load_scenario("slow_cloud")
    busy = importlib.import_module("sweep_static").Phase("busy", 1.2).apply(scenario)
    assert {value for _, value in busy.workload.load.points} == {1.2}
    assert steady(busy, 1).episode.window_s == steady(scenario, 1).episode.window_s


def test_tables_come_into_the_part_of_the_page_that_is_named(
    calls: Callable[[str], Call], tmp_path: Path
) -> None:
    (tmp_path / "tiny.json").write_text(json.dumps(tiny().model_dump(mode="json")))
    begin, end = "<!-- begin: best static choices{} -->", "<!-- end: best static choices{} -->"
    page = tmp_path / "page.md"
    page.write_text("\n".join(mark.format(part) for part in ("", ": others") for mark in (begin, end)))
    run = calls("best_static.py")
    given = ["--scenarios", tmp_path / "tiny.json", "--json", tmp_path / "out.json", "--jobs", 1]
    given += ["--confirm", 1, "--rules", "cloud_ar,colocated_sd:2", "--write", page]
    status, out, _ = run(*given, "--part", "others")
    assert status == 0 and str(page) in out
    first, second = page.read_text().split(end.format(""))
    assert "best for all" not in first and "(best for all)" in second
    status, _, err = run(*given, "--part", "nowhere")
    assert status == 2 and "the page has no block 'best static choices: nowhere'" in err
