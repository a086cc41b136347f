"""Searches of static choices: what they try, how long they look, and what they write where."""

from __future__ import annotations

import argparse
import importlib
import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from agents.benchmark.objectives import objective_by, rank
from agents.constraint import Constraint
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
def test_only_what_a_scenario_offers_is_tried() -> None:
    choices = importlib.import_module("_static_choices")
    flaky, regions = load_scenario("flaky_stream"), load_scenario("regions")
    assert choices.listed_lengths(flaky, (1, 2, 4, 6, 8, 16)) == [1, 2, 4, 6, 8]
    assert [choices.batch_sizes_of(each) for each in (load_scenario("metro"), regions)] == [[4, 16], []]
    assert choices.batch_sizes_of(load_scenario("experts")) == [4, 8]


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


USD, SLO = "cloud_usd_per_1m_tokens", "slo_attainment"


@pytest.mark.usefixtures("scripts")
def test_bounds_are_written_and_read() -> None:
    objectives = importlib.import_module("_objectives")
    for text, limit in (
        ("slo_attainment >= 0.95", Constraint(metric=SLO, at_least=0.95)),
        ("slo_attainment.fast<=1", Constraint(metric="slo_attainment.fast", at_most=1.0)),
    ):
        assert objectives.bound(text) == limit == objectives.bound(objectives.spelled(limit))
    for text in ("slo_attainment > 0.95", "slo_attainment >= much", ">= 1", "slo_attainment >= nan", ""):
        with pytest.raises(argparse.ArgumentTypeError, match="is no bound: write 'METRIC >= NUMBER'"):
            objectives.bound(text)


@pytest.mark.parametrize(
    ("metric", "limit", "means", "order"),
    [
        ("e2e_s_mean", None, {"a": (2.0, 0), "b": (1.0, 0), "c": (math.nan, 0)}, "bac"),
        ("goodput_requests_per_s", None, {"a": (2.0, 0), "b": (1.0, 0), "c": (math.nan, 0)}, "abc"),
        # Who keeps to the bound comes first, however dear, and then who comes nearest to it.
        (USD, "slo_attainment >= 0.95", {"a": (1.0, 0.5), "b": (9.0, 0.95), "c": (2.0, 0.9)}, "bca"),
        (USD, "slo_attainment >= 0.95", {"a": (1.0, math.nan), "b": (9.0, 0.1), "c": (3.0, 1.0)}, "cba"),
        (USD, None, {"a": (1.0, 0.5), "b": (9.0, 0.95), "c": (2.0, 0.9)}, "acb"),
        ("goodput_requests_per_s", "slo_attainment <= 0.5", {"a": (1.0, 0.5), "b": (9.0, 0.6)}, "ab"),
    ],
)
@pytest.mark.usefixtures("scripts")
def test_the_best_comes_first(
    metric: str, limit: str | None, means: dict[str, tuple[float, float]], order: str
) -> None:
    objectives = importlib.import_module("_objectives")
    bound = None if limit is None else objectives.bound(limit)
    objective = objective_by(metric, bound, tiny())
    keys = {name: rank(objective, {metric: one, SLO: two}) for name, (one, two) in means.items()}
    assert "".join(sorted(keys, key=lambda name: keys[name])) == order


@pytest.mark.parametrize(
    ("metric", "best"),
    [("e2e_s_mean", "0/1/plain"), (USD, "0/1/plain"), ("goodput_requests_per_s", "4/1/own")],
)
@pytest.mark.usefixtures("scripts")
def test_a_search_by_class_goes_where_it_is_better(metric: str, best: str) -> None:
    # Every draft token is worth one more of whatever is measured.
    assert set(_descended(metric).values()) == {best}


def _descended(metric: str) -> dict[str, str]:
    choices = importlib.import_module("_static_choices")
    sweep, phase = _sweep(metric), importlib.import_module("sweep_static").Phase("busy", 1.2)

    def best_of(names: Sequence[str]) -> str:
        for name in names:
            drafts = sum(int(each.split("/")[0]) for each in choices.choice_of(name).values())
            sweep.results["busy", name] = {metric: 1.0 + drafts}
        return str(sweep.best(phase, list(names)))

    start, options = "static:2:1:own", ["2/1/own", "0/1/plain", "4/1/own"]
    found: dict[str, str] = choices.descend(tiny(), start, options, best_of)[1]
    return found


def _sweep(metric: str, limit: str | None = None) -> Any:
    objectives = importlib.import_module("_objectives")
    bound = None if limit is None else objectives.bound(limit)
    objective = objective_by(metric, bound, tiny())
    return importlib.import_module("sweep_static").Sweep(None, objective, 1, 2, None, 1)


@pytest.mark.usefixtures("scripts")
def test_changes_are_those_of_the_metric() -> None:
    phase = importlib.import_module("sweep_static").Phase("busy", 1.2)
    sweep = _sweep(USD, "slo_attainment >= 0.95")
    rows = {"a": [(2.2, 1.0), (2.0, 0.8)], "b": [(2.0, 1.0), (2.0, 1.0)], "c": [(0.0, 1.0), (1.0, 1.0)]}
    for name, values in rows.items():
        sweep.confirmed["busy", name] = [{USD: usd, SLO: slo, "e2e_s_mean": 1.0} for usd, slo in values]
    assert sweep.against(phase, "a", "b") == pytest.approx((5.0, 5.0))
    assert sweep.bounded(phase, "a") == pytest.approx(0.9)
    assert math.isnan(sweep.against(phase, "a", "c")[0])
    assert _sweep(USD).bounded(phase, "a") is None


def test_tables_by_another_metric_name_it_and_its_bound(calls: Callable[[str], Call], tmp_path: Path) -> None:
    (tmp_path / "tiny.json").write_text(json.dumps(tiny().model_dump(mode="json")))
    run = calls("sweep_static.py")
    given = ["--scenario", tmp_path / "tiny.json", "--requests", 20, "--confirm", 2, "--out", tmp_path / "o"]
    given += ["--gammas", 2, "--windows", 2, "--class-gammas", 2, "--descend", "mixed"]
    status, out, _ = run(*given)
    assert status == 0 and "\nMean request time (s) of single choices, load in brackets:\n" in out
    assert "Compared by" not in out
    # The same file goes on by another metric, which it has not kept.
    given += ["--metric", "goodput_requests_per_s", "--subject-to", "slo_attainment.chat >= 0.01"]
    status, out, _ = run(*given)
    limit = "`slo_attainment.chat` ≥ 0.01"
    assert status == 0 and f"\nCompared by goodput, requests/s, with {limit}; more is better.\n" in out
    assert "--metric goodput_requests_per_s --subject-to 'slo_attainment.chat >= 0.01' --seeds 1" in out
    found = json.loads((tmp_path / "o.json").read_text())
    by_name = {
        row["scheduler"]: row["goodput_requests_per_s"]
        for row in found["results"]
        if row["phase"] == "busy" and row["scheduler"].startswith("static:")
        if row["scheduler"].split(":")[2] == "1"
    }
    assert found["phases"]["busy"]["best_single"] == max(by_name, key=lambda name: by_name[name])
    # One episode tells no error, and JSON has no NaN.
    status, out, _ = run(*given, "--brief", "--confirm", 1)
    head = "| goodput, requests/s (load, `slo_attainment.chat`) | plain decoding, requests/s |"
    assert status == 0 and head in out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--metric", "joy"), "no metric joy. There are: e2e_s_mean, "),
        (("--metric", "e2e_mean"), "no metric e2e_mean; did you mean 'e2e_s_mean'"),
        (("--metric", "load"), "neither more nor less of load is better. There are: e2e_s_mean, "),
        (("--subject-to", "joy >= 1"), "no metric joy."),
        (("--subject-to", "joy"), "'joy' is no bound"),
        (("--subject-to", "slo_attainment >= 95"), "is a share, so the bound must be in [0, 1]"),
        (("--subject-to", "e2e_s_mean <= 5"), "the bound must be of another metric"),
    ],
)
def test_metrics_that_there_are_not_are_refused(
    options: tuple[str, ...], said: str, calls: Callable[[str], Call]
) -> None:
    status, _, err = calls("sweep_static.py")("--scenario", "single_lan", "--out", "x", *options)
    assert status == 2 and said in err
