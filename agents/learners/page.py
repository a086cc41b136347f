"""The tables of a comparison of learners, as a block of a page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from agents.benchmark.pages import number, percent, table
from agents.benchmark.statistics import gain, in_pairs
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
    lower, metric = contest.objective.better == "lower", f"`{contest.objective.metric}`"
    against = {name: results.schedulers[name] for name in comparison.against if name in results.schedulers}
    shown = {name: results.schedulers[name] for name in comparison.beside if name in results.schedulers}
    reached, chosen = [], []
    for name, known in {**against, **shown}.items():
        gains = ["–" if name == other else _gain(known.values, against[other], lower) for other in against]
        reached.append([f"`{name}`", "", number(_mean(known.values)), "", *gains, ""])
    for name, learner in comparison.learners.items():
        about = comparison.about(scenario, learner)
        trainings = {
            seed: each
            for seed, each in sorted(results.learners.get(name, {}).items())
            if each.about == about and seed <= comparison.train_seeds
        }
        if not trainings:
            continue
        values = _means(list(trainings.values()))
        by_training = ", ".join(number(_mean(each.values)) for each in trainings.values())
        took = [each.train_cpu_s for each in trainings.values() if each.train_cpu_s is not None]
        gains = [_gain(values, each, lower) for each in against.values()]
        cpu_s = f"{np.mean(took):.0f}" if took else "–"
        reached.append([name, learner.note, number(_mean(values)), by_training, *gains, cpu_s])
        chosen += [[name, str(seed), *_chosen(each, scenario)] for seed, each in trainings.items()]
    gains = [f"over `{name}`" for name in against]
    lines = ["", *table(["", "set", metric, "by training", *gains, "CPU s"], reached), ""]
    if chosen:
        places = [f"candidate {i}" for i in range(ActionSpace.of(scenario).n_placements)]
        head = ["learner", "training", metric, "plain", "mean length", *places, "moves"]
        lines += [*table(head, chosen), ""]
    return "\n".join(lines)


def _means(outcomes: Sequence[Outcome]) -> dict[int, float]:
    """Return the mean over trainings by episode, of the episodes that all have."""
    seeds = [seed for seed in outcomes[0].values if all(seed in each.values for each in outcomes)]
    return {seed: float(np.mean([each.values[seed] for each in outcomes])) for seed in seeds}


def _mean(values: Mapping[int, float]) -> float:
    return float(np.mean(list(values.values())))


def _gain(values: Mapping[int, float], reference: Outcome, lower: bool) -> str:
    return percent(gain(*in_pairs(values, reference.values), lower_is_better=lower))


def _chosen(outcome: Outcome, scenario: Scenario) -> list[str]:
    """Return what a training reached and chose: plain decisions, the mean length of others, places, moves."""
    lengths, _, placements = (np.array(each) for each in outcome.choices)
    gammas = np.array(ActionSpace.of(scenario).gammas)
    of_gammas = lengths[: len(gammas)]
    drafts = of_gammas[gammas > 0].sum()
    mean = float((of_gammas * gammas).sum() / drafts) if drafts > 0 else math.nan
    plain, *places = (f"{100 * share:.0f} %" for share in (of_gammas[gammas == 0].sum(), *placements))
    moves = "–" if outcome.moves is None else f"{100 * outcome.moves:.1f} %"
    return [number(_mean(outcome.values)), plain, number(mean), *places, moves]
