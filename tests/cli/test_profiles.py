"""``profiles``: what is listed is what a scenario can name."""

from __future__ import annotations

from dsd_env.acceptance import available_run_models, available_trace_sets
from dsd_env.latency import list_profiles, load_profile
from dsd_env.scenario import load_scenario


def test_everything_that_is_shipped_has_a_line(dsd_env_command):
    out = dsd_env_command("profiles").out
    lines = [line.split() for line in out.splitlines()]
    assert max(map(len, out.splitlines())) <= 80
    words = {line[0] for line in lines if line}
    assert {*list_profiles(), *available_trace_sets(), *available_run_models()} <= words
    name = "llama-3-70b_h100-sxm_tp4"
    assert [name, "target", "4", load_profile(name).label] in lines


def test_json_says_what_stands_in_a_scenario(dsd_env_command):
    found = dsd_env_command("profiles", "--json").json
    assert [row["name"] for row in found["latency_profiles"]] == list_profiles()
    sources = [("trace", "trace", row) for row in found["trace_sets"]]
    sources += [(row["kind"], "model", row) for row in found["acceptance_models"]]
    assert len(sources) == len(available_trace_sets()) + len(available_run_models())
    for source, key, row in sources:
        assert row["drafters"] and row["requests"]
        for drafter in row["drafters"]:
            said = {"source": source, key: row["name"], "drafter": drafter}
            load_scenario("single_lan", acceptance__draft=said)
