"""``list``, ``show`` and ``schedulers``."""

from __future__ import annotations

import pytest

from dsd_env.scenario import Scenario, list_scenarios, load_scenario
from dsd_env.schedulers import scheduler_names


def test_every_scenario_has_a_line(dsd_env_command):
    lines = dsd_env_command("list").out.splitlines()
    assert [line.split()[0] for line in lines] == list_scenarios()
    assert max(map(len, lines)) <= 80
    assert all(len(line.split()) > 4 for line in lines)
    # Each says all that it has to say: nothing is cut off at 80 columns.
    assert all(line.endswith(".") and not line.endswith("...") for line in lines)


def test_every_shipped_scenario_begins_with_what_it_is(dsd_env_command):
    for row in dsd_env_command("list", "--json").json:
        assert row["title"].endswith(".") or row["title"].endswith(":") or len(row["title"]) > 20
        assert not row["title"].startswith(("name", "extends", "#"))
        scenario = load_scenario(row["name"])
        assert row["devices"] == scenario.n_devices and row["targets"] == scenario.n_targets
        assert row["edge_servers"] == scenario.n_edge_servers
        assert row["protocol"].startswith(scenario.protocol.kind)


@pytest.mark.parametrize("name", ["single_lan", "metro", "stream_node_branches", "dsd_paper"])
def test_a_scenario_is_shown_within_80_columns(dsd_env_command, name):
    out = dsd_env_command("show", name).out
    scenario = load_scenario(name)
    for part in (*scenario.devices, *scenario.targets, *scenario.edge_servers, *scenario.workload.kinds):
        assert part in out
    assert scenario.protocol.kind in out and f"placements: {scenario.n_placements}" in out
    assert "".join(scenario.card.regime.split()) in "".join(out.split())
    assert " ".join(map(str, scenario.actions.batch_sizes)) in out
    assert max(map(len, out.splitlines())) <= 80


def test_the_command_that_measures_what_the_card_tells_is_shown_and_runs(dsd_env_command):
    *_, word, line = dsd_env_command("show", "single_lan").out.splitlines()
    assert word == "to measure it, as above:"
    program, *words = line.split()
    assert program == "dsd-env"
    said = dsd_env_command(*words, "--json").json
    told = load_scenario("single_lan").card.utilisation
    assert f"mean request time {said['metrics']['e2e_s_mean']:.2f} s" in told
    assert line not in dsd_env_command("show", "single_lan", "--set", "episode.requests=7").out


def test_json_holds_the_whole_scenario_with_its_changes(dsd_env_command):
    said = dsd_env_command(
        "show", "metro", "--set", "protocol.kind=pipelined", "--set", "episode__requests=7", "--json"
    )
    scenario = Scenario.model_validate(said.json)
    assert scenario == load_scenario("metro", protocol__kind="pipelined", episode__requests=7)


def test_a_file_is_validated_and_shown(dsd_env_command, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("extends: single_lan\nname: mine\nepisode: {requests: 3}\n", encoding="utf-8")
    assert dsd_env_command("show", file).out.startswith("mine\n")
    assert dsd_env_command("show", file, "--json").json["episode"]["requests"] == 3
    file.write_text("extends: single_lan\nname: mine\nepisode: {request: 3}\n", encoding="utf-8")
    said = dsd_env_command("show", file)
    assert said.status == 1 and "unknown key 'episode.request'" in said.err and str(file) in said.err


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 0.001), ("0.5", 0.5), ("null", None), ("{kind: poisson, rate_per_s: 2}", "poisson")],
)
def test_values_are_read_as_in_a_file(dsd_env_command, text, value):
    key = "workload__arrivals" if isinstance(value, str) else "protocol__patience_s"
    scenario = dsd_env_command("show", "single_lan", "--set", f"{key}={text}", "--json").json
    found = scenario["workload"]["arrivals"]["kind"] if isinstance(value, str) else scenario["protocol"]
    assert found == value or found["patience_s"] == value


def test_every_scheduler_is_listed(dsd_env_command):
    assert [row["name"] for row in dsd_env_command("schedulers", "--json").json] == list(scheduler_names())
    out = dsd_env_command("schedulers").out
    assert all(name in out for name in scheduler_names())
    assert max(map(len, out.splitlines())) <= 80


def test_thresholds_are_shown_where_there_are_any(dsd_env_command):
    assert "until in doubt by: 0.3 0.4 0.5" in dsd_env_command("show", "sure_drafters").out
    assert "doubt" not in dsd_env_command("show", "single_lan").out


def test_a_card_of_another_scenario_is_shown_as_such(dsd_env_command, tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("extends: metro\nname: mine\ndevices: {phone: {count: 1}}\n")
    measured = load_scenario("metro").card.utilisation.split()[0]
    for arguments in ((str(mine),), ("metro", "--set", "devices.phone.count=1")):
        out = dsd_env_command("show", *arguments).out
        assert "of the scenario that this one changes" in out
        assert "measured:\n" not in out and "situation:\n" in out
    assert f"measured:\n  {measured}" in dsd_env_command("show", "metro").out


def test_a_workload_that_is_not_there_is_told_by_show(dsd_env_command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mine = tmp_path / "mine.yaml"
    mine.write_text(
        "extends: single_lan\nname: mine\nworkload: {load: null, arrivals: {kind: replay, trace: no.csv}}\n"
    )
    done = dsd_env_command("show", "mine.yaml")
    assert done.status == 1
    assert f"no.csv: there is no such file (relative to the working directory, {tmp_path})" in done.err
