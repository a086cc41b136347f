"""Standings, scores and tables of records whose answer is known."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from agents.benchmark import goals, pages
from agents.benchmark.scoring import analysis, bootstrap_means, standings, summary
from dsd_env.paired import bootstrap_mean
from tests.agents.benchmark.samples import records, suite

SPECS = {
    "plain": "cloud_ar",
    "node": "colocated_sd:4",
    "hf_heuristic": "hf_heuristic",
    "mine": "edge_sd:2",
    "oracle": "edge_sd:1",
}
TIMES = {
    "plain": [4.0, 6.0],
    "node": [2.0, 4.0],
    "hf_heuristic": [3.0, 3.0],
    "mine": [1.0, 2.0],
    "oracle": [0.5, 2.0],
}


def whole(**changes):
    schedulers = {
        "static": {name: SPECS[name] for name in ("plain", "node")},
        "rules": ["hf_heuristic"],
        "learned": {"mine": SPECS["mine"]},
        "references": {"oracle": SPECS["oracle"]},
    }
    return suite(schedulers=schedulers, **changes)


def both_entries(values=TIMES):
    return records("single_lan", values, SPECS) + records("far", values, SPECS)


def test_the_best_of_each_role_and_gains_by_pairs_of_seeds() -> None:
    first, second = standings(whole(), both_entries())
    assert (first.contest.name, second.contest.name) == ("single_lan", "far")
    # node and the heuristic have the same mean, 3 s: the earlier one is named.
    assert first.best == {"static": "node", "rule": "node", "learned": "mine", "reference": "oracle"}
    assert first.gain("mine", "node") == pytest.approx((0.5, 0.5, 0.5))
    assert first.gain("plain", "node")[0] == pytest.approx(1 - 5 / 3)
    assert all(map(math.isnan, first.gain("node", "node")))
    np.testing.assert_allclose(first.scores("mine"), [2.0, 2.0])
    np.testing.assert_allclose(first.scores("hf_heuristic"), [2 / 3, 4 / 3])
    # Of the 1.75 s between rule and reference, 1.5 are gained.
    assert first.share_of_gap("mine") == pytest.approx(1.5 / 1.75)


def test_more_can_be_better() -> None:
    changed = whole(objective={"metric": "e2e_s_mean", "better": "higher"})
    first, _ = standings(changed, both_entries())
    assert first.best["static"] == "plain"
    assert first.gain("plain", "node")[0] == pytest.approx(5 / 3 - 1)
    np.testing.assert_allclose(first.scores("node"), [0.5, 2 / 3])
    assert math.isnan(first.share_of_gap("mine")), "the reference is worse than the rule"


def test_who_misses_the_constraint_is_not_ranked() -> None:
    limit = {"metric": "slo_attainment", "at_least": 0.9}
    changed = whole(objective={"metric": "e2e_s_mean", "better": "lower", "subject_to": limit})
    found = both_entries()
    for record in found:
        if record.name in ("node", "mine"):
            record.metrics["slo_attainment"] = 0.5  # type: ignore[index]
    first, _ = standings(changed, found)
    assert first.best["static"] == "plain" and not first.rows["node"].feasible
    np.testing.assert_array_equal(first.scores("mine"), [0.0, 0.0])
    over = analysis(changed, [first])["main"]["schedulers"]
    assert over["mine"]["probability_of_improvement_over_best_static"]["value"] == 0.0
    assert "(misses the constraint)" in pages.scenarios(changed, [first])


def test_summary_has_the_promised_form() -> None:
    found = json.loads(json.dumps(summary(standings(whole(), both_entries())), allow_nan=False))
    assert set(found) == {"single_lan", "far"} and set(found["far"]) == set(SPECS)
    entry = found["single_lan"]["node"]["e2e_s_mean"]
    assert entry == {"mean": 3.0, "ci95": [2.0, 4.0], "seeds": 2}


def test_intervals_of_all_metrics_at_once_are_those_of_each() -> None:
    values = np.random.default_rng(0).normal(size=(3, 7))
    values[1, 2] = math.nan
    for own, row in zip(bootstrap_means(values), values, strict=True):
        assert own == pytest.approx(bootstrap_mean(row))
    (single,) = bootstrap_means(np.array([[2.0]]))
    assert single[0] == 2.0 and math.isnan(single[1])


def test_scores_over_scenarios_keep_variants_apart() -> None:
    found = analysis(whole(), standings(whole(), both_entries()))
    assert found["main"]["scenarios"] == ["single_lan"] and found["generalisation"]["scenarios"] == ["far"]
    scores = found["main"]["schedulers"]
    assert scores["mine"]["interquartile_mean"]["value"] == pytest.approx(2.0)
    assert scores["best learned"] == scores["mine"] and scores["best static"]["mean"] == 1.0
    # mine: 1 and 2 s against 2 and 4 s of the best static choice: three pairs won, one tied.
    better = scores["mine"]["probability_of_improvement_over_best_static"]
    assert better["value"] == pytest.approx(0.875)
    profile = dict(zip(found["main"]["thresholds"], scores["hf_heuristic"]["profile"], strict=True))
    assert (profile[0.5], profile[1.0], profile[1.5]) == (1.0, 0.5, 0.0)


def test_a_scheduler_that_a_scenario_lacks_has_no_score_over_all() -> None:
    two = whole(scenarios={"single_lan": {}, "flaky": {}})
    some = {name: values for name, values in TIMES.items() if name != "mine"}
    found = standings(two, records("single_lan", TIMES, SPECS) + records("flaky", some, SPECS))
    assert "mine" not in analysis(two, found)["main"]["schedulers"]
    assert "Not run: `mine`" in pages.scenarios(two, found)


def test_unfinished_schedulers_are_not_the_best_and_are_named() -> None:
    found = records("single_lan", {**TIMES, "node": [0.1]}, SPECS)
    (first,) = standings(whole(), found)
    assert first.best["static"] == "plain"
    assert "Fewer than 2 seeds so far: `node` 1." in pages.scenarios(whole(), [first])


def test_records_of_another_specification_are_left_out() -> None:
    found = records("single_lan", TIMES, {**SPECS, "node": "colocated_sd:6"})
    assert "node" not in standings(whole(), found)[0].rows


def test_the_scoreboard_has_a_line_per_scenario() -> None:
    text = pages.scoreboard(whole(), standings(whole(), both_entries()))
    (line,) = [line for line in text.splitlines() if line.startswith("| `single_lan`")]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == [
        "`single_lan`",
        "mean request time, s",
        "`node` 3",
        "`node`, `hf_heuristic` 3",
        "`mine` 1.5",
        "+50.0 % (+50.0 … +50.0)",
        "`mine` +50.0 % (+50.0 … +50.0)",
    ]
    assert pages.scoreboard(whole(), []) == pages.scenarios(whole(), []) == pages.NO_RECORDS


def test_the_short_scoreboard_counts_what_came_out_on_variants_and_names_the_largest_loss() -> None:
    found = standings(whole(), both_entries())
    text = pages.short_scoreboard(whole(), found)
    assert "| `single_lan`" in text and "| `far`" not in text
    assert "Beside these there is one variant" in text
    assert "ahead of the best rule on 1 and behind it on 0" in text
    assert pages.short_scoreboard(whole(), found[:1]) == pages.scoreboard(whole(), found[:1])
    times = {**TIMES, "mine": [6.0, 6.2]}
    variant = standings(whole(), [*records("single_lan", TIMES, SPECS), *records("far", times, SPECS)])
    text = pages.short_scoreboard(whole(), variant)
    assert "on 0 and behind it on 1; the largest loss is on `far`, -" in text


def test_equal_means_are_all_marked_and_the_first_stands_for_them() -> None:
    tied = {**TIMES, "plain": [4.0, 2.0]}
    for order in (tied, dict(reversed(tied.items()))):  # the order is the benchmark's, not that of records
        (first,) = standings(whole(), records("single_lan", order, SPECS))
        assert first.best["static"] == "plain" and first.tied["static"] == ("node",)
        assert first.best["rule"] == "plain" and first.tied["rule"] == ("node", "hf_heuristic")
        assert set(first.tied) == {"static", "rule"}
    text = pages.scenarios(whole(), [first])
    assert "| `plain` **best static** |" in text and "| `node` **best static** |" in text
    assert "| `hf_heuristic` **best rule** |" in text and "| `mine` **best learned** |" in text
    assert (
        "`plain`, `node`, `hf_heuristic` have the same mean: comparisons with the best take the first."
        in text
    )
    assert "their means are equal" in pages.scoreboard(whole(), [first])
    assert analysis(whole(), [first])["scenarios"]["single_lan"]["tied"]["static"] == ["node"]
    # A difference beyond the digits that are published decides nothing; one within them does.
    for by, best in ((1e-9, "plain"), (1e-4, "node")):
        (first,) = standings(whole(), records("single_lan", {**tied, "node": [2.0, 4.0 - by]}, SPECS))
        assert first.best["static"] == best
    # Without a tie nothing is said of one.
    (first,) = standings(whole(), records("single_lan", {**TIMES, "hf_heuristic": [3.0, 3.1]}, SPECS))
    assert first.tied == {} and "tied" not in analysis(whole(), [first])["scenarios"]["single_lan"]
    assert "same mean" not in pages.scenarios(whole(), [first])
    assert "equal" not in pages.scoreboard(whole(), [first])


def test_drift_is_told_in_standard_errors_over_all_seeds() -> None:
    found = records("single_lan", TIMES, SPECS)
    for record in found:
        if record.name == "plain":
            record.metrics["e2e_s_mean_drift"] = 3.0  # type: ignore[index]
    (note,) = pages.drifting(standings(whole(), found), 4.0)
    assert "single_lan, plain: requests take longer" in note and "4.2 standard errors" in note


def test_capacities_as_their_script_writes_them() -> None:
    probe = {"scale": 2.0, "offered": 48.0, "arrivals_per_s": 9.5, "attainment": 0.96, "requests": 900}
    result = {
        "scenario": "fleet_24",
        "scaled": "clients",
        "share": 0.95,
        "seeds": 3,
        "schedulers": {
            "cloud_ar": {"best": probe, "above": {**probe, "offered": 50.0}},
            "edge_sd:4": {"best": None, "above": probe},
            "edge_sd:6": {"best": probe, "above": None},
        },
    }
    first, second, third = pages.capacity([result]).splitlines()[2:]
    assert first == "| `fleet_24` | `cloud_ar` | 95 % | 48 clients | 9.5 | 50 | 3 |"
    assert "none tried" in second and "not found" in third
    assert pages.capacity([]) == "No capacities yet."


@pytest.mark.parametrize(
    ("specification", "single"),
    [
        ("cloud_ar", True),
        ("colocated_sd:4", True),
        ("static:8:1:colocated:eagle3", True),
        ("static:8:1:own", False),
        ("edge_sd:8", False),
        ("pack:32:4:1:colocated", True),
        ("pack:32:4:1:own", False),
        ("static_map:a=4/1/colocated@0+b=0/1/plain", True),
        ("static_map:a=4/1/colocated@0+b=8/1/own", False),
        ("jsq_goodput", False),
    ],
)
def test_single_nodes_are_told_by_where_they_draft(specification: str, single: bool) -> None:
    assert goals.is_single_node(specification) == single


def test_goals_hold_the_best_against_single_nodes_and_policies_against_rules() -> None:
    found = standings(whole(), both_entries())
    lines = goals.goals(whole(), found).splitlines()
    (cells,) = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines if "single_lan" in line
    ]
    assert cells[1] == "`mine`" and cells[3] == "`node` 3" and cells[4].startswith("+50.0 %")
    assert not any("`far`" in line for line in lines)  # a variant
    assert goals.goals(whole(), []) == goals.across([]) == pages.NO_RECORDS


def test_who_takes_part_in_several_scenarios_has_a_line_over_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(goals, "LEAST_ENTRIES", 2)
    text = goals.across(standings(whole(), both_entries()))
    (line,) = [line for line in text.splitlines() if line.startswith("| `mine`")]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1] == "2" and cells[2] == cells[3] == "+100.0 %" and cells[-1] == "0"
