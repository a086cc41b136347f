"""``evaluate``: pairs of seeds, their differences and intervals."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

import dsd_env
from dsd_env.cli.evaluate import SELECTION, summarise
from dsd_env.cli.notes import START_UP, closing_notes
from dsd_env.paired import bootstrap_mean, bootstrap_ratio, evaluation_seeds
from dsd_env.report.content import content
from dsd_env.report.reading import read_results
from dsd_env.scenario.measuring import steady
from dsd_env.sim.metrics import METRICS

ARGUMENTS = ("evaluate", "single_lan", "--requests", 2, "--engine", "reference", "--seeds", 3)
PAIR = ("--schedulers", "cloud_ar,edge_sd:4")


def test_seeds_and_metrics_are_those_of_single_simulations(dsd_env_command):
    found = dsd_env_command(*ARGUMENTS, *PAIR, "--json").json
    assert found["seeds"] == evaluation_seeds(3) and found["baseline"] == "cloud_ar"
    per_seed = {}
    for name in ("cloud_ar", "edge_sd:4"):
        results = [
            dsd_env.simulate("single_lan", name, seed, requests=2, engine="reference")
            for seed in evaluation_seeds(3)
        ]
        per_seed[name] = np.array([result.metrics["e2e_s_mean"] for result in results])
        metric = found["schedulers"][name]["metrics"]["e2e_s_mean"]
        assert metric["per_seed"] == per_seed[name].tolist()
        mean, low, high = bootstrap_mean(per_seed[name])
        assert metric["mean"] == mean and metric["ci95"] == [low, high]
    assert "versus" not in found["schedulers"]["cloud_ar"]
    versus = found["schedulers"]["edge_sd:4"]["versus"]["e2e_s_mean"]
    difference, low, high = bootstrap_mean(per_seed["edge_sd:4"] - per_seed["cloud_ar"])
    assert versus["difference"] == difference < 0.0 and versus["ci95"] == [low, high]
    relative, low, high = bootstrap_ratio(per_seed["edge_sd:4"], per_seed["cloud_ar"])
    assert versus["relative"] == relative and versus["relative_ci95"] == [low, high]


def test_episodes_inside_the_compiled_engine_are_the_references(dsd_env_command):
    """Static choices and the goodput rule are not asked in Python; the result is the same to the last bit."""
    pytest.importorskip("numba")
    schedulers = (
        "--schedulers",
        "edge_sd:4,jsq_goodput,hf_heuristic",
        "--seeds",
        2,
        "--requests",
        5,
        "--json",
    )
    fast = dsd_env_command("evaluate", "single_lan", *schedulers).json
    slow = dsd_env_command("evaluate", "single_lan", "--engine", "reference", *schedulers).json
    assert fast["schedulers"] == slow["schedulers"]
    with_history = dsd_env_command("evaluate", "single_lan", *schedulers, "--history").json["schedulers"]
    for name, found in fast["schedulers"].items():
        assert with_history[name].pop("history")
        assert with_history[name] == found


def test_what_seeds_have_in_common_cancels_in_the_differences():
    generator = np.random.default_rng(0)
    world = generator.normal(10.0, 3.0, 12)
    gain = generator.normal(-0.5, 0.01, 12)
    rows = {
        "first": [{"m": value} for value in world],
        "second": [{"m": value} for value in world + gain],
    }
    summary = summarise(rows)["second"]
    low, high = summary["versus"]["m"]["ci95"]
    assert low <= gain.mean() <= high and high - low < 0.05
    low, high = summary["metrics"]["m"]["ci95"]
    assert high - low > 1.0


def test_the_interval_covers_as_often_as_the_page_says(checkout):
    """Few seeds make the percentile bootstrap too narrow; docs/command_line.md says by how much."""
    text = (checkout / "docs" / "command_line.md").read_text(encoding="utf-8")
    generator = np.random.default_rng(1)
    for seeds in (5, 10, 20):
        means = generator.normal(0.0, 1.0, (600, seeds))
        hit = sum(low <= 0.0 <= high for _, low, high in map(bootstrap_mean, means)) / 600
        said = next(line for line in text.splitlines() if line.startswith(f"| {seeds} seeds |"))
        assert 100.0 * hit == pytest.approx(float(said.split("|")[2].strip().removesuffix("%")), abs=4.0)


def test_one_seed_has_no_interval(dsd_env_command):
    arguments = ("evaluate", "single_lan", "--requests", 2, "--engine", "reference", "--seeds", 1, *PAIR)
    found = dsd_env_command(*arguments, "--json").json
    assert found["schedulers"]["edge_sd:4"]["versus"]["e2e_s_mean"]["ci95"] == [None, None]
    out = dsd_env_command(*arguments).out
    assert "too narrow" not in out
    row = next(line for line in out.splitlines() if line.startswith("edge_sd:4"))
    assert row.split()[3] == "-"


def test_the_tables_fit_80_columns_and_warn_of_few_seeds(dsd_env_command):
    out = dsd_env_command(*ARGUMENTS, *PAIR).out
    assert max(map(len, out.splitlines())) <= 80
    assert [line.split(",")[0] for line in out.splitlines() if ", 3 seeds" in line] == list(SELECTION)
    assert set(SELECTION) <= set(METRICS)
    assert out.splitlines()[-3:-1] == ["", START_UP]
    assert out.endswith("Of 3 seeds these intervals are too narrow; take 10 or more.\n")
    chosen = dsd_env_command(*ARGUMENTS, *PAIR, "--metrics", "itl_s_p99").out
    assert chosen.startswith("itl_s_p99, 3 seeds")


def test_start_ups_are_named_where_others_are_measured_in_the_steady_state():
    begun = dsd_env.load_scenario("single_lan")
    windowed = steady(begun, 1)
    assert closing_notes([begun], 1) == [START_UP]
    assert closing_notes([begun, windowed], 10) == [f"single_lan: {START_UP}"]
    assert closing_notes([windowed], 10) == []


def test_cycles_measure_a_window(dsd_env_command):
    arguments = ("evaluate", "single_lan", "--schedulers", "cloud_ar", "--seeds", 1, "--engine", "reference")
    found = dsd_env_command(*arguments, "--cycles", 1, "--json").json
    window_s = found["schedulers"]["cloud_ar"]["metrics"]["window_s"]["mean"]
    assert window_s == dsd_env.load_scenario("single_lan").workload.load.period_s
    assert not math.isnan(window_s)
    assert START_UP not in dsd_env_command(*arguments, "--cycles", 1).out


def test_a_place_where_nothing_drafts_is_told_once(dsd_env_command):
    said = dsd_env_command(*ARGUMENTS, "--schedulers", "static:8:1:edge,cloud_ar", "--json")
    schedulers = json.loads(said.out)["schedulers"]
    assert (
        schedulers["static:8:1:edge"]["metrics"]["e2e_s_mean"]
        == (schedulers["cloud_ar"]["metrics"]["e2e_s_mean"])
    )
    assert said.err.count("\n") == 1 and "has no drafter at 'edge'" in said.err


def test_schedulers_have_names_of_their_own(dsd_env_command, tmp_path):
    named = ("--schedulers", "plain=cloud_ar,four ahead=edge_sd:4")
    found = dsd_env_command(*ARGUMENTS, *named, "--json")
    plain = dsd_env_command(*ARGUMENTS, *PAIR, "--json").json
    ours = json.loads(found.out)
    assert list(ours["schedulers"]) == ["plain", "four ahead"] and ours["baseline"] == "plain"
    assert ours["schedulers"]["four ahead"] == plain["schedulers"]["edge_sd:4"]
    assert ours["schedulers"]["four ahead"]["specification"] == "edge_sd:4"
    (tmp_path / "named.json").write_text(found.out)
    (result,) = content([read_results(tmp_path / "named.json")])["evaluations"]
    assert [(one["name"], one["specification"]) for one in result["schedulers"]] == [
        ("plain", "cloud_ar"),
        ("four ahead", "edge_sd:4"),
    ]
    out = dsd_env_command(*ARGUMENTS, *named, "--metrics", "e2e_s_mean").out
    assert "four ahead = edge_sd:4" in out.splitlines()


def test_a_wrong_scheduler_shows_before_anything_is_simulated(dsd_env_command, monkeypatch):
    monkeypatch.setattr("dsd_env.cli.evaluate.simulate", lambda *_args, **_: pytest.fail("simulated"))
    assert dsd_env_command(*ARGUMENTS, "--schedulers", "cloud_ar,nobody").status == 1
    assert dsd_env_command(*ARGUMENTS, "--schedulers", "cloud_ar", "--metrics", "joy").status == 1
