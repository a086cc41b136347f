"""Benchmarks as files: what is taken over, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from agents.benchmark.config import BenchmarkError, load_suite
from agents.constraint import Constraint
from dsd_env.paths import config_dir
from dsd_env.scenario import load_scenario
from dsd_env.scenario.measuring import steady
from tests.agents.benchmark.samples import TINY, suite


def test_every_shipped_benchmark_is_whole() -> None:
    names = [path.stem for path in (config_dir() / "benchmark").glob("*.yaml")]
    assert "core" in names
    for name in names:
        for contest in load_suite(name).contests():
            assert set(contest.objective.metrics) <= set(contest.metrics(contest.load()))


def test_a_contest_takes_what_it_does_not_say_from_the_benchmark() -> None:
    contest = suite(cycles=3).contest("single_lan")
    assert contest.source == "single_lan" and contest.of is None
    assert contest.cycles == 3
    assert contest.objective.metric == "e2e_s_mean"
    assert contest.schedulers == {
        "plain": ("static", "cloud_ar"),
        "node": ("static", "colocated_sd:4"),
        "hf_heuristic": ("rules", "hf_heuristic"),
    }
    changed = load_scenario("single_lan", workload__load__period_s=5.0)
    assert contest.load() == steady(changed, 3)


def test_a_variant_takes_what_it_does_not_say_from_its_entry() -> None:
    scenarios = {
        "single_lan": {
            "cycles": 4,
            "objective": {"metric": "goodput_requests_per_s", "better": "higher"},
            "schedulers": {"learned": {"mine": "edge_sd:2"}},
            "without": ["plain"],
        },
        "far": {"of": "single_lan", "set": {"links.lan.one_way_s": 0.04}, "without": ["hf_heuristic"]},
    }
    contest = suite(scenarios=scenarios).contest("far")
    assert (contest.source, contest.cycles, contest.objective.better) == ("single_lan", 4, "higher")
    assert list(contest.schedulers) == ["node", "mine"]
    assert contest.load().links["lan"].one_way_s == 0.04


def test_own_schedulers_take_the_place_of_those_of_the_same_name() -> None:
    entry = {"schedulers": {"static": {"node": "colocated_sd:6"}}}
    assert suite(scenarios={"single_lan": entry}).contest("single_lan").schedulers["node"] == (
        "static",
        "colocated_sd:6",
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("title: Tiny", "titel: Tiny", "unknown key 'titel'"),
        ("seeds: 2", "seeds: 1", "seeds = 1: Input should be greater than or equal to 2"),
        ("seeds: 2", "seeds: many", "seeds = 'many' is not a number"),
        ("baseline: node", "baseline: mode", "baseline = 'mode' is no scheduler of scenarios.single_lan"),
        ("of: single_lan", "of: far", "must name an entry that is no variant"),
        ("rules: [hf_heuristic]", "rules: [plain]", "'plain': has two roles"),
        ("rules: [hf_heuristic]", "rules: [a, a]", "names a twice"),
        (
            "  static: {plain: cloud_ar, node",
            "  learned: {plain: cloud_ar, node",
            "names no static scheduler",
        ),
        ("of: single_lan", "of: single_lan\n    without: [nope]", "no scheduler 'nope' is given for it"),
        ("of: single_lan", "of: single_lan\n    objective: {metric: a, better: more}", "better = 'more'"),
        ("cloud_ar", '"cloud_ar,random"', "String should match pattern"),
    ],
)
def test_mistakes_name_file_and_key(old: str, new: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    assert old in TINY
    path.write_text(TINY.replace(old, new))
    with pytest.raises(BenchmarkError, match=r"wrong\.yaml") as error:
        load_suite(path)
    assert message in str(error.value)


def test_what_is_no_benchmark_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"no benchmark 'nope'; shipped are \["):
        load_suite("nope")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(BenchmarkError, match="is a mapping of keys, this is list"):
        load_suite(tmp_path / "list.yaml")


def test_an_unknown_metric_is_named() -> None:
    contest = suite(objective={"metric": "e2e_mean", "better": "lower"}).contest("single_lan")
    with pytest.raises(BenchmarkError, match="no metric 'e2e_mean'; did you mean 'e2e_s_mean'"):
        contest.metrics(contest.load())


def test_constraints_hold_for_means_and_not_for_nothing() -> None:
    least, most = Constraint(metric="x", at_least=0.9), Constraint(metric="x", at_most=0.0)
    assert least.holds(0.9) and not least.holds(0.89) and not least.holds(float("nan"))
    assert most.holds(0.0) and not most.holds(0.1) and not most.holds(float("nan"))
    for bounds in ({}, {"at_least": 1.0, "at_most": 2.0}):
        with pytest.raises(ValueError, match="give at_least or at_most"):
            Constraint(metric="x", **bounds)
    for bound in ({"at_least": 95.0}, {"at_most": -0.1}):
        with pytest.raises(ValueError, match=r"slo_attainment is a share, so the bound must be in \[0, 1\]"):
            Constraint(metric="slo_attainment", **bound)


GROUPED = {
    "baseline": None,
    "groups": {"pair": {"rules": {"goodput": "jsq_goodput", "heuristic": "hf_heuristic"}}},
    "schedulers": {"static": {"plain": "cloud_ar"}},
}


def test_a_group_takes_part_where_it_is_named_and_variants_may_leave_it_out() -> None:
    variant = {"of": "single_lan", "set": {"devices.laptop.count": 2}}
    scenarios = {
        "single_lan": {"groups": ["pair"], "without": ["heuristic"]},
        "metro": {},
        "more": variant,
        "fewer": {**variant, "without": ["pair"]},
    }
    found = suite(**GROUPED, scenarios=scenarios)
    taking_part = {name: list(found.contest(name).schedulers) for name in scenarios}
    assert taking_part == {
        "single_lan": ["plain", "goodput"],
        "metro": ["plain"],
        "more": ["plain", "goodput"],
        "fewer": ["plain"],
    }


def test_a_group_that_there_is_not_is_named() -> None:
    with pytest.raises(ValueError, match=r"scenarios.metro.groups: no \['pear'\]; there are \['pair'\]"):
        suite(**GROUPED, scenarios={"metro": {"groups": ["pear"]}})
    with pytest.raises(ValueError, match=r"scenarios\.metro\.without: no scheduler 'pair' is given for it"):
        suite(**GROUPED, scenarios={"metro": {"without": ["pair"]}})
