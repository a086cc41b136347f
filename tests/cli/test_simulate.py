"""``simulate``: the numbers are those of the function."""

from __future__ import annotations

import math

import dsd_env
from dsd_env.cli.simulate import SELECTION
from dsd_env.scenario import load_scenario
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
    lines = dsd_env_command(*ARGUMENTS).out.splitlines()
    assert "reference engine" in lines[0]
    assert [line.split()[0] for line in lines[2:]] == list(SELECTION)
    assert max(map(len, lines)) <= 80
    scenario = load_scenario("single_lan")
    assert set(SELECTION) <= set(METRICS)
    every = dsd_env_command(*ARGUMENTS, "--metrics", "all").out.splitlines()[2:]
    assert [line.split()[0] for line in every] == [*METRICS, *class_metrics(scenario)]
    assert any(line.split()[1] == "-" for line in every), "what was not observed is a dash"
    few = dsd_env_command(*ARGUMENTS, "--metrics", "slo_attainment.interactive,load").out.splitlines()[2:]
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
