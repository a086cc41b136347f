"""A comparison of learners: trains and measures what is missing, and keeps each result as it comes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from sb3_contrib import RecurrentPPO

from agents.benchmark.config import KEPT, Contest
from agents.evaluation import run_group, tasks_of
from agents.learners.config import Comparison, Learner, LearnersError
from agents.learners.playing import ByMemory, Counted
from agents.learners.training import build, trained
from agents.rollouts import BySchedulers, Decide, play
from dsd_env import strict_json
from dsd_env.files import write_json
from dsd_env.paired import evaluation_seeds
from dsd_env.policy import export_sb3
from dsd_env.scenario import Scenario

FORMAT, FORMAT_VERSION = "dsd_env.learners", 1


@dataclass(frozen=True)
class Outcome:
    """A training, or a scheduler, on the evaluation episodes.

    Attributes:
        about: Digest of what it depends on.
        values: The objective by seed of the episode.
        metrics: Means of more metrics.
        choices: Share of the decisions by index: of speculation lengths, batch sizes and placements. Empty
            for schedulers.
        moves: Share of decisions that move the request's drafter; see :meth:`Counted.moves`.
        train_cpu_s: CPU time of the training; None if not known.
    """

    about: str
    values: Mapping[int, float]
    metrics: Mapping[str, float]
    choices: Sequence[Sequence[float]] = ()
    moves: float | None = None
    train_cpu_s: float | None = None


def _outcome(contest: Contest, about: str, rows: Mapping[int, Mapping[str, float]]) -> Outcome:
    names = [name for name in KEPT if name in next(iter(rows.values()))]
    means = {name: float(np.mean([row[name] for row in rows.values()])) for name in names}
    return Outcome(
        about,
        {seed: float(rows[seed][contest.objective.metric]) for seed in sorted(rows)},
        {name: value for name, value in means.items() if math.isfinite(value)},
    )


def _evaluated(
    comparison: Comparison,
    contest: Contest,
    scenario: Scenario,
    learner: Learner,
    seed: int,
    folder: Path,
    progress: bool,
) -> Outcome:
    """Train one learner with one seed and play the evaluation episodes."""
    about = comparison.about(scenario, learner)
    # Trainings of other settings lie beside it, under other names.
    name = f"{about[:12]}-{seed}"
    model, took_s = trained(comparison, scenario, learner, seed, folder / f"{name}.zip", progress)
    if isinstance(model, RecurrentPPO):
        decide: Decide = ByMemory(model)
    else:
        export_sb3(model, scenario, folder / name, overwrite=True)
        decide = BySchedulers(f"policy:{folder / name}")
    counted = Counted(decide, scenario)
    seeds = evaluation_seeds(comparison.episodes)
    rows = {
        episode.seed: episode.metrics
        for episode in play(scenario, seeds, counted, kind="compiled", side_by_side=len(seeds))
    }
    model.get_env().close()  # type: ignore[union-attr]
    return replace(
        _outcome(contest, about, rows),
        choices=counted.shares(),
        moves=counted.moves(),
        train_cpu_s=None if took_s is None else round(took_s, 1),
    )


@dataclass(frozen=True)
class Results:
    """What has been measured.

    Attributes:
        schedulers: By name.
        learners: By name and training seed.
    """

    schedulers: dict[str, Outcome]
    learners: dict[str, dict[int, Outcome]]


def read_results(file: Path) -> Results:
    """Return the results in a file; none if there is no such file.

    Raises:
        LearnersError: It is a file of something else, or damaged.
    """
    if not file.is_file():
        return Results({}, {})
    try:
        data = strict_json.loads(file.read_text(encoding="utf-8"))
        if (data["format"], data["format_version"]) != (FORMAT, FORMAT_VERSION):
            raise LearnersError(f"{file}: no results of learners in format version {FORMAT_VERSION}")
        schedulers = {name: _parsed(each) for name, each in data["schedulers"].items()}
        learners = {
            name: {int(seed): _parsed(each) for seed, each in trainings.items()}
            for name, trainings in data["learners"].items()
        }
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise LearnersError(f"{file}: no results of learners ({type(error).__name__}: {error})") from error
    return Results(schedulers, learners)


def _parsed(data: Mapping[str, Any]) -> Outcome:
    values = {int(seed): float(value) for seed, value in data["values"].items()}
    return Outcome(
        data["about"],
        values,
        data["metrics"],
        data.get("choices", ()),
        data.get("moves"),
        data.get("train_cpu_s"),
    )


def _plain(outcome: Outcome) -> dict[str, Any]:
    values = {str(seed): value for seed, value in outcome.values.items()}
    data: dict[str, Any] = {"about": outcome.about, "values": values, "metrics": dict(outcome.metrics)}
    if outcome.choices:
        data["choices"] = [list(each) for each in outcome.choices]
        data |= {"moves": outcome.moves, "train_cpu_s": outcome.train_cpu_s}
    return data


def _write(file: Path, contest: Contest, results: Results) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    data = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "entry": contest.name,
        "metric": contest.objective.metric,
        "schedulers": {name: _plain(each) for name, each in results.schedulers.items()},
        "learners": {
            name: {str(seed): _plain(each) for seed, each in sorted(trainings.items())}
            for name, trainings in results.learners.items()
        },
    }
    write_json(file, data)


def run_comparison(
    comparison: Comparison,
    file: Path,
    runs: Path,
    report: Callable[[str, Outcome], None],
    progress: bool = True,
) -> Results:
    """Measure what is missing; keep each result as it comes.

    All learners are trained with the first seed before one is with the second, so that an interrupted
    comparison is a comparison.

    Args:
        comparison: What is compared.
        file: The results.
        runs: Folder of the trained models and their bundles.
        report: Is told of each result.
        progress: Show progress bars.

    Raises:
        LearnersError: The comparison cannot be made.
    """
    contest, results = comparison.contest(), read_results(file)
    scenario, seeds = contest.load(), evaluation_seeds(comparison.episodes)

    def enough(known: Outcome | None, about: str) -> bool:
        return known is not None and known.about == about and len(known.values) >= comparison.episodes

    for name in (*comparison.against, *comparison.beside):
        tasks = tasks_of(comparison.entry, scenario, contest.schedulers[name][1], seeds)
        about = tasks[0].key
        if enough(results.schedulers.get(name), about):
            continue
        rows = {task.seed: metrics for task, metrics in run_group(tasks)}
        results.schedulers[name] = _outcome(contest, about, rows)
        _write(file, contest, results)
        report(name, results.schedulers[name])
    missing = [
        (seed, name, learner)
        for seed in range(1, comparison.train_seeds + 1)
        for name, learner in comparison.learners.items()
        if not enough(results.learners.get(name, {}).get(seed), comparison.about(scenario, learner))
    ]
    for learner in {name: learner for _, name, learner in missing}.values():
        # Settings that a library refuses are told now, not after the trainings before.
        build(comparison, scenario, learner, 0).get_env().close()  # type: ignore[union-attr]
    for seed, name, learner in missing:
        trainings = results.learners.setdefault(name, {})
        new = _evaluated(
            comparison, contest, scenario, learner, seed, runs / name.replace(" ", "_"), progress
        )
        known = trainings.get(seed)
        if new.train_cpu_s is None and known is not None and known.about == new.about:
            new = replace(new, train_cpu_s=known.train_cpu_s)
        trainings[seed] = new
        _write(file, contest, results)
        report(f"{name}, seed {seed}", new)
    return results
