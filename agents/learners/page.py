"""The tables of a comparison of learners, as a block of a page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from agents.benchmark.pages import number, percent, table
from agents.benchmark.statistics import gain
from agents.learners.comparing import Outcome, Results
from agents.learners.config import Comparison
from dsd_env.control import ActionSpace
from dsd_env.scenario import Scenario

BLOCK = "learners"
"""Name of the block of a page that the tables are written into."""


def page_table(comparison: Comparison, results: Results) -> str:
    """Return the tables of a comparison: what was reached, and what was chosen."""
    contest = comparison.contest()
    scenario = contest.load()
    lower, metric = contest.objective.better == "lower", contest.objective.metric
    against = [name for name in comparison.against if name in results.schedulers]
    rows, chosen = [], []
    for name in (*comparison.against, *comparison.beside):
        if (known := results.schedulers.get(name)) is not None:
            values = _means([known])
            others = [
                _gain(values, results.schedulers[each], lower) if each != name else "–" for each in against
            ]
            rows.append([f"`{name}`", "", number(_mean(values)), "", *others, ""])
    for name, learner in comparison.learners.items():
        about = comparison.about(scenario, learner)
        trainings = [each for each in results.learners.get(name, {}).values() if each.about == about]
        if not trainings:
            continue
        values = _means(trainings)
        each_mean = sorted(_mean(training.values) for training in trainings)
        spread = " ".join(number(mean) for mean in each_mean)
        cpu = [training.train_cpu_s for training in trainings if training.train_cpu_s is not None]
        others = [_gain(values, results.schedulers[each], lower) for each in against]
        took = f"{np.mean(cpu):.0f}" if cpu else "–"
        rows.append([name, learner.note, number(_mean(values)), spread, *others, took])
        chosen += [
            _choices(name, seed, each, scenario)
            for seed, each in sorted(results.learners[name].items())
            if each.about == about
        ]
    head = [
        "",
        "not as it comes",
        f"`{metric}`",
        "by training",
        *(f"over `{each}`" for each in against),
        "CPU s",
    ]
    lines = ["", *table(head, rows), ""]
    if chosen:
        places = [f"candidate {i}" for i in range(ActionSpace.of(scenario).n_placements)]
        lines += [*table(["learner", "seed", f"`{metric}`", "plain", "mean length", *places], chosen), ""]
    return "\n".join(lines)


def _means(outcomes: Sequence[Outcome]) -> dict[int, float]:
    """Return the mean over trainings by episode, of the episodes that all have."""
    seeds = [seed for seed in outcomes[0].values if all(seed in each.values for each in outcomes)]
    return {seed: float(np.mean([each.values[seed] for each in outcomes])) for seed in seeds}


def _mean(values: Mapping[int, float]) -> float:
    return float(np.mean(list(values.values())))


def _gain(values: Mapping[int, float], reference: Outcome, lower: bool) -> str:
    seeds = [seed for seed in values if seed in reference.values]
    own, other = ([of[seed] for seed in seeds] for of in (values, reference.values))
    return percent(gain(np.array(own), np.array(other), lower_is_better=lower))


def _choices(name: str, seed: int, outcome: Outcome, scenario: Scenario) -> list[str]:
    """Return the row of one training: plain decisions, the mean length of others, places of those."""
    lengths, _, placements = (np.array(each) for each in outcome.choices)
    gammas = np.array(ActionSpace.of(scenario).gammas)
    drafts = gammas[: len(lengths)] > 0
    share = lengths[: len(gammas)][drafts].sum()
    mean = float((lengths[: len(gammas)] * gammas).sum() / share) if share > 0 else math.nan
    percentages = [f"{100 * each:.0f} %" for each in (1.0 - share, *placements)]
    return [name, str(seed), number(_mean(outcome.values)), percentages[0], number(mean), *percentages[1:]]
