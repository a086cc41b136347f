"""Tune a rule for a scenario with Optuna, on training episodes.

    python scripts/tune.py --scenario slow_cloud --scheduler "jsq_goodput:prior_acceptance={0.4..0.9}"
    python scripts/tune.py --scenario cost --scheduler "pack:{16..96 whole}:{2|4|8}:1:colocated"
        --metric cloud_usd_per_1m_tokens --study runs/tuning.db

    python scripts/tune.py --config core --jobs 2

Braces hold what is tuned: {LOW..HIGH} a number, {LOW..HIGH whole} a whole one, {A|B|C} one of some words;
{0..2 from 1} says where to begin. Whole cycles of the load are measured, in the steady state; beside the best
stands what the rule does untuned: as it begins, or with its own defaults. The same command continues a study
in its file. --config tunes many rules of a benchmark with one budget, by a file of configs/tune/, and keeps
what it finds beside it; with --study it continues within a study, too. Seeds of evaluations are never used.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import _checkout  # noqa: F401
import _cli

from agents.benchmark.config import read_found, results_of
from agents.tuning import Template, prepare_database, tune
from agents.tuning_suite import Study, TuningError, load_tunings, run_all, studies, waiting
from dsd_env.scenario import load_scenario
from dsd_env.scenario.measuring import steady

ALONE = ("scenario", "scheduler", "metric", "max", "trials", "episodes", "cycles", "seed", "json")
"""Options of a single study."""


def main() -> int:
    """Run the script; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--scenario", help="name or path")
    parser.add_argument("--scheduler", metavar="TEMPLATE", help="specification with braces")
    parser.add_argument(
        "--config", metavar="FILE", help="tune all that a file says, or a shipped one by its name"
    )
    parser.add_argument("--found", type=Path, metavar="FILE", help="results of --config (default: beside it)")
    parser.add_argument("--jobs", type=int, default=1, metavar="J", help="processes of --config")
    parser.add_argument("--metric", default="e2e_s_mean", help="episode metric (default: %(default)s)")
    parser.add_argument("--max", action="store_true", help="more of the metric is better, not less")
    parser.add_argument("--trials", type=int, default=30, metavar="N", help="default: %(default)s")
    parser.add_argument("--episodes", type=int, default=2, metavar="N", help="of each (default: %(default)s)")
    parser.add_argument(
        "--cycles", type=int, default=1, metavar="N", help="of the load in the window measured"
    )
    parser.add_argument("--study", type=Path, metavar="FILE", help="database to keep every trial in")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print the result as JSON alone")
    arguments = parser.parse_args()
    _cli.at_least_one(parser, arguments, ["trials", "episodes", "cycles", "jobs"])
    if (arguments.config is None) == (arguments.scenario is None or arguments.scheduler is None):
        parser.error("give --scenario and --scheduler, or --config")
    if arguments.config is not None:
        ignored = [f"--{name}" for name in ALONE if getattr(arguments, name) != parser.get_default(name)]
        if ignored:
            parser.error(f"{', '.join(ignored)}: with --config the file says what is tuned, and how")
    kept = arguments.study is not None
    hint = "the same command continues" if kept else "with --study FILE the same command would continue"
    if arguments.config is not None and not kept:
        hint = "the same command continues after the studies that ended; with --study FILE, within them"
    work = _tune_all if arguments.config is not None else _tune_one
    return _cli.continuing("tune", lambda: work(arguments), (ValueError, OSError, ModuleNotFoundError), hint)


def _tune_one(arguments: argparse.Namespace) -> int:
    if arguments.study is not None:
        prepare_database(arguments.study)
    found = tune(
        steady(load_scenario(arguments.scenario), arguments.cycles),
        Template(arguments.scheduler),
        metric=arguments.metric,
        direction="max" if arguments.max else "min",
        trials=arguments.trials,
        episodes=arguments.episodes,
        study=arguments.study,
        seed=arguments.seed,
        compare=True,
        report=_quiet if arguments.json else _print,
    )
    if arguments.json:
        told: dict[str, Any] = {"scheduler": found.scheduler, "value": found.value, "trials": found.trials}
        if found.untuned is not None:
            told["untuned"] = {"scheduler": found.untuned, "value": found.untuned_value}
        print(json.dumps(told))
        return 0
    if found.untuned is None:
        print("untuned: unknown; {LOW..HIGH from START} says where a rule begins")
    else:
        print(f"untuned: {found.untuned}   {arguments.metric} {found.untuned_value:.5g}")
    print(f"best of {found.trials}: {found.scheduler}   {arguments.metric} {found.value:.5g}")
    cycles = "a cycle" if arguments.cycles == 1 else f"{arguments.cycles} cycles"
    episodes = f"{arguments.episodes} training episode{'s' * (arguments.episodes != 1)}"
    print(
        f"means of {episodes}, over {cycles} of the load in the steady state: "
        f"compare with evaluations of --cycles {arguments.cycles}, not with those of a start-up"
    )
    return 0


def _tune_all(arguments: argparse.Namespace) -> int:
    path = arguments.found or results_of(arguments.config)
    every = studies(load_tunings(arguments.config))
    rest = list(waiting(every, read_found(path, TuningError)))
    print(f"{len(rest)} of {len(every)} studies to do", flush=True)

    def tell(study: Study, result: dict[str, Any]) -> None:
        value = f"{study.contest.objective.metric} {result['value']:.5g}"
        print(f"{study.contest.name}, {study.rule}: {result['scheduler']}   {value}", flush=True)

    def work() -> int:
        run_all(every, path, arguments.jobs, tell, arguments.study)
        return 0

    return _cli.alone("tune", path, work)


def _print(scheduler: str, value: float) -> None:
    print(f"{value:12.5g}  {scheduler}", flush=True)


def _quiet(scheduler: str, value: float) -> None:
    pass


if __name__ == "__main__":
    _cli.run(main)
