"""``simulate``: the numbers are those of the function."""

from __future__ import annotations

import json
import math

import pytest

import dsd_env
from dsd_env.cli.notes import START_UP, absent_sites, constant_confidence
from dsd_env.cli.simulate import SELECTION
from dsd_env.scenario import load_scenario
from dsd_env.scenario.measuring import steady
from dsd_env.schedulers import make_scheduler
from dsd_env.sim.metrics import METRICS, class_metrics

ARGUMENTS = (
    "simulate",
    "single_lan",
    "--scheduler",
    "edge_sd:4",
    "--seed",
    1,
    "--requests",
    3,
    "--engine",
    "reference",
)


def test_json_holds_what_the_function_returns(dsd_env_command):
    found = dsd_env_command(*ARGUMENTS, "--json").json
    result = dsd_env.simulate("single_lan", "edge_sd:4", seed=1, requests=3, engine="reference")
    assert found.pop("metrics") == {
        name: None if math.isnan(value) else value for name, value in result.metrics.items()
    }
    assert found == {
        "scenario": "single_lan",
        "changes": {},
        "requests": 3,
        "cycles": None,
        "scheduler": "edge_sd:4",
        "seed": 1,
        "engine": "reference",
        "decisions": result.decisions,
        "resolved": {},
    }


def test_changes_of_the_scenario_reach_the_simulation(dsd_env_command):
    change = ("--set", "links__lan__one_way_s=0.5")
    slow = dsd_env_command(*ARGUMENTS, *change, "--json").json
    assert slow["changes"] == {"links__lan__one_way_s": 0.5}
    scenario = load_scenario("single_lan", links__lan__one_way_s=0.5)
    result = dsd_env.simulate(scenario, "edge_sd:4", seed=1, requests=3, engine="reference")
    assert slow["metrics"]["e2e_s_mean"] == result.metrics["e2e_s_mean"]


def test_the_table_has_a_line_for_each_metric(dsd_env_command):
    *lines, blank, note = dsd_env_command(*ARGUMENTS).out.splitlines()
    assert (blank, note) == ("", START_UP)
    assert "reference engine" in lines[0]
    assert [line.split()[0] for line in lines[2:]] == list(SELECTION)
    assert max(map(len, lines)) <= 80
    scenario = load_scenario("single_lan")
    assert set(SELECTION) <= set(METRICS)
    every = dsd_env_command(*ARGUMENTS, "--metrics", "all").out.splitlines()[2:-2]
    assert [line.split()[0] for line in every] == [*METRICS, *class_metrics(scenario)]
    assert any(line.split()[1] == "-" for line in every), "what was not observed is a dash"
    few = dsd_env_command(*ARGUMENTS, "--metrics", "slo_attainment.interactive,load").out.splitlines()[2:-2]
    assert [line.split()[0] for line in few] == ["slo_attainment.interactive", "load"]


def test_decisions_executed_otherwise_are_told(dsd_env_command):
    few = ("--set", "targets__target__max_num_seqs=2")
    arguments = ("simulate", "single_lan", "--scheduler", "static:4:8:own", "--requests", 3)
    said = dsd_env_command(*arguments, "--engine", "reference", *few)
    scenario = load_scenario("single_lan", targets__target__max_num_seqs=2)
    resolved = dsd_env.simulate(scenario, "static:4:8:own", requests=3, engine="reference").resolved
    assert resolved["batch_clipped"] > 0
    for reason, count in resolved.items():
        assert f"  {count} of them executed otherwise than asked: {reason}\n" in said.out


def test_cycles_measure_the_steady_state(dsd_env_command):
    arguments = ("simulate", "single_lan", "--scheduler", "edge_sd:4", "--seed", 1, "--engine", "reference")
    found = dsd_env_command(*arguments, "--cycles", 1, "--json").json
    assert found["cycles"] == 1 and found["requests"] is None
    scenario = steady(load_scenario("single_lan"), 1)
    result = dsd_env.simulate(scenario, "edge_sd:4", seed=1, engine="reference")
    assert found["metrics"]["e2e_s_mean"] == result.metrics["e2e_s_mean"]
    assert found["metrics"]["window_s"] == scenario.episode.window_s
    assert START_UP not in dsd_env_command(*arguments, "--cycles", 1).out
    said = dsd_env_command(*arguments, "--cycles", 1, "--requests", 3)
    assert said.status == 1 and "--requests and --cycles" in said.err


def test_a_place_where_nothing_drafts_is_told_apart_from_the_numbers(dsd_env_command):
    arguments = ("simulate", "single_lan", "--requests", 2, "--engine", "reference")
    said = dsd_env_command(*arguments, "--scheduler", "static:8:1:edge", "--json")
    assert said.status == 0 and json.loads(said.out)["metrics"]["acceptance_rate"] is None
    assert said.err == (
        "dsd-env: note: static:8:1:edge: scenario 'single_lan' has no drafter at 'edge', so what is to draft "
        "there decodes plainly; it has drafters at 'colocated', 'own'\n"
    )
    assert dsd_env_command(*arguments, "--scheduler", "static:8:1:own").err == ""


@pytest.mark.parametrize(
    ("scenario", "scheduler", "sites"),
    [
        ("stream_node", "static:8:1:edge", ["edge"]),
        ("stream_node", "static:8:1:own", []),
        ("stream_node", "static:0:1:edge", []),
        ("stream_node", "static:8:1:plain", []),
        ("stream_node", "edge_sd:4", []),
        ("stream_node", "cloud_ar", []),
        ("stream_node", "jsq_goodput", []),
        ("stream_node", "static_map:client=8/1/edge", ["edge"]),
        ("stream_node", "by_load:above=9+quiet=8/1/own+busy=8/1/edge", ["edge"]),
        ("stream_node", "static:8:1:edge-own", []),
        ("metro", "static:8:1:edge", []),
    ],
)
def test_only_choices_of_one_site_without_drafters_are_told(scenario, scheduler, sites):
    lines = absent_sites(make_scheduler(scheduler), load_scenario(scenario))
    assert [line.split("no drafter at ")[1].split(",")[0] for line in lines] == [
        f"'{site}'" for site in sites
    ]


def test_close_names_of_metrics_are_suggested(dsd_env_command):
    said = dsd_env_command(*ARGUMENTS, "--metrics", "e2e_mean_s,ttft_s_p95")
    assert said.status == 1 and said.out == ""
    assert said.err.startswith("dsd-env: no metric e2e_mean_s; did you mean 'e2e_s_mean'")
    assert "_se'" not in said.err and "_drift'" not in said.err
    said = dsd_env_command(*ARGUMENTS, "--metrics", "e2e_mean_s_se")
    assert "did you mean 'e2e_s_mean_se'" in said.err


def test_rules_that_go_by_confidence_are_told_where_there_is_none():
    trace = {"source": "trace", "trace": "smollm2-135m_smollm2-4l_greedy", "drafter": "smollm2-4l"}
    recorded = load_scenario("single_lan", acceptance={"draft": trace})
    modelled = load_scenario("slow_cloud")
    assert "one confidence for all tokens" in constant_confidence(make_scheduler("svip"), modelled)[0]
    assert constant_confidence(make_scheduler("adaptive:4:own"), modelled) == []
    assert constant_confidence(make_scheduler("svip"), recorded) == []
