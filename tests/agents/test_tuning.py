"""Tuning of rules: templates, studies that go on, and that it finds what is best."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import pytest

from agents.constraint import Constraint
from agents.evaluation import Task, run_group
from agents.seeds import training_seed
from agents.tuning import Range, Sampler, Template, TemplateError, Tuned, Words, tune
from dsd_env import Scenario, load_scenario

pytest.importorskip("optuna")

SCENARIO = load_scenario("single_lan", episode__requests=4)


def test_a_template_says_what_to_tune_and_is_filled() -> None:
    made = Template("pack:{4..48 whole}:{1|2}:1:colocated+{-0.5..2e1}")
    assert made.holes == (Range(4.0, 48.0, True), Words(("1", "2")), Range(-0.5, 20.0, False))
    assert made.fill(["7", "2", "0.25"]) == "pack:7:2:1:colocated+0.25"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cloud_ar", "nothing to tune"),
        ("static:{1:1:own", "not closed"),
        ("static:{4}:1:own", "neither LOW..HIGH"),
        ("static:{4..4}:1:own", "LOW below HIGH"),
        ("static:{4..inf}:1:own", "neither"),
        ("static:{1..2.5 whole}:1:own", "must be whole"),
        ("static:{1||2}:1:own", "empty word"),
        ("static:{1|1}:1:own", "twice"),
        ("static:{2|4 from 4}:1:own", "words have no spaces"),
        ("static:{1..4 whole from 2.5}:1:own", "2.5 is none of the numbers"),
        ("static:{1..4 from 5}:1:own", "5 is none of the numbers"),
    ],
)
def test_a_template_that_cannot_be_read_is_refused(text: str, words: str) -> None:
    with pytest.raises(TemplateError, match=words):
        Template(text)


def test_it_finds_the_best_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    template, study = Template("adaptive:{1|2|4|8}:colocated"), tmp_path / "study.db"

    def go(trials: int) -> tuple[list[str], str, float]:
        tried: list[str] = []
        found = tune(
            SCENARIO,
            template,
            metric="e2e_s_mean",
            direction="min",
            trials=trials,
            episodes=2,
            study=study,
            report=lambda scheduler, value: tried.append(scheduler),
        )
        return tried, found.scheduler, found.value

    first, _, _ = go(6)
    assert len(first) == 6
    more, best, value = go(12)
    assert len(more) == 6  # those of before are not simulated again
    again, same, _ = go(3)
    assert again == [] and same == best
    seeds = [training_seed(0, worker, 0, 0) for worker in range(2)]
    means = {}
    for gamma in (1, 2, 4, 8):
        tasks = [Task("x", SCENARIO, f"adaptive:{gamma}:colocated", seed, "") for seed in seeds]
        means[tasks[0].scheduler] = sum(m["e2e_s_mean"] for _, m in run_group(tasks)) / 2
    assert value == means[best] == min(means[each] for each in {*first, *more})


@pytest.mark.parametrize(
    ("text", "untuned"),
    [
        ("jsq_goodput:load_weight={0..3}", "jsq_goodput"),
        ("jsq_goodput:load_weight={0..3}+pack={1..9 whole}+explore=2", "jsq_goodput:explore=2"),
        ("jsq_goodput:explore=2+load_weight={0..3}+pack={1..9 whole from 4}", "jsq_goodput:explore=2+pack=4"),
        ("adaptive:{2|4}:colocated", "adaptive:2:colocated"),
        ("pack:{4..48 whole}:4:1:colocated", None),
    ],
)
def test_what_a_rule_is_before_it_is_tuned(text: str, untuned: str | None) -> None:
    assert Template(text).untuned == untuned


def test_the_untuned_rule_is_measured_on_the_same_episodes() -> None:
    def go(text: str, compare: bool) -> Tuned:
        return tune(
            SCENARIO,
            Template(text),
            metric="e2e_s_mean",
            direction="min",
            trials=1,
            episodes=2,
            compare=compare,
        )

    assert go("jsq_goodput:load_weight={0..3}", False).untuned is None
    found = go("jsq_goodput:load_weight={0..3}", True)
    tasks = [Task("x", SCENARIO, "jsq_goodput", training_seed(0, worker, 0, 0), "") for worker in range(2)]
    assert found.untuned == "jsq_goodput"
    assert found.untuned_value == sum(m["e2e_s_mean"] for _, m in run_group(tasks)) / 2
    begun = go("jsq_goodput:load_weight={0..3 from 1}", True)
    assert (begun.untuned, begun.untuned_value) == (begun.scheduler, begun.value)


@pytest.mark.parametrize("sampler", ["tpe", "cmaes"])
def test_the_beginning_is_tried_first(sampler: Sampler) -> None:
    tried: list[str] = []
    tune(
        SCENARIO,
        Template("jsq_goodput:load_weight={0..3 from 1}+pack={1..9 whole from 4}"),
        metric="e2e_s_mean",
        direction="min",
        trials=3,
        episodes=1,
        sampler=sampler,
        report=lambda scheduler, value: tried.append(scheduler),
    )
    assert tried[0] == "jsq_goodput:load_weight=1+pack=4"
    assert len(set(tried)) == 3


def test_cma_es_searches_numbers_alone() -> None:
    for template in ("static:{1|2}:1:own", "jsq_goodput:load_weight={0..3}"):
        with pytest.raises(TemplateError, match="CMA-ES searches numbers, each with a beginning"):
            tune(
                SCENARIO,
                Template(template),
                metric="e2e_s_mean",
                direction="min",
                trials=1,
                episodes=1,
                sampler="cmaes",
            )


def test_what_was_not_observed_keeps_to_no_bound() -> None:
    for bound in (
        Constraint(metric="acceptance_rate", at_least=0.6),
        Constraint(metric="e2e_s_p95", at_most=2.0),
    ):
        assert not bound.holds(math.nan) and bound.lacks(math.nan) == math.inf
        assert bound.holds(bound.bound) and bound.lacks(bound.bound) == 0.0
    assert Constraint(metric="e2e_s_p95", at_most=2.0).lacks(3.0) == pytest.approx(0.5)


def test_who_breaks_a_constraint_pays_for_what_is_lacking() -> None:
    def value(constraint: Constraint | None, direction: Literal["min", "max"]) -> float:
        return tune(
            SCENARIO,
            Template("static:{4|8}:1:own"),
            metric="e2e_s_mean",
            direction=direction,
            trials=1,
            episodes=1,
            constraint=constraint,
        ).value

    free = value(None, "min")
    assert value(Constraint(metric="slo_attainment", at_least=0.5), "min") == free
    # Half of the bound is kept, so that half of it is lacking.
    twice = Constraint(metric="e2e_s_mean", at_least=2.0 * free)
    assert value(twice, "min") == pytest.approx(6.0 * free)
    assert value(twice, "max") == pytest.approx(-4.0 * free)


def test_what_is_no_scheduler_is_refused() -> None:
    with pytest.raises(TemplateError, match=r"gives 'static:.:1:moon'"):
        tune(
            SCENARIO,
            Template("static:{1|2}:1:moon"),
            metric="e2e_s_mean",
            direction="min",
            trials=1,
            episodes=1,
        )


def test_an_unknown_metric_is_refused() -> None:
    with pytest.raises(ValueError, match="no metric e2e_mean; did you mean 'e2e_s_mean'"):
        tune(
            SCENARIO, Template("static:{1|2}:1:own"), metric="e2e_mean", direction="max", trials=1, episodes=1
        )


def test_a_study_goes_on_elsewhere_and_belongs_to_one_scenario(tmp_path: Path) -> None:
    template, study = Template("jsq_goodput:prior_acceptance={0.4..0.9}"), tmp_path / "study.db"

    def go(trials: int, scenario: Scenario) -> list[str]:
        tried: list[str] = []
        tune(
            scenario,
            template,
            metric="e2e_s_mean",
            direction="min",
            trials=trials,
            episodes=1,
            study=study,
            report=lambda scheduler, value: tried.append(scheduler),
        )
        return tried

    first = go(3, SCENARIO)
    more = go(5, SCENARIO)
    assert len(first) == 3 and len(more) == 2 and not set(first) & set(more)
    far = load_scenario("single_lan", episode__requests=4, links__lan__one_way_s=0.2)
    assert len(go(3, far)) == 3
