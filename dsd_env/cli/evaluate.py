"""``dsd-env evaluate``: schedulers on the same episodes, and by how much they differ.

One process simulates one episode after the other, static choices, the field's rules and policies inside the
compiled engine. ``scripts/evaluate.py`` of a checkout does the same for many scenarios, with several
processes, and goes on where it was interrupted; its means and intervals are the same to the last bit.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dsd_env.cli.arguments import (
    Commands,
    add_cycles,
    add_engine,
    add_json,
    add_requests,
    add_scenario,
    at_least_one,
    command,
    measured_scenario_of,
    schedulers,
)
from dsd_env.cli.notes import closing_notes, tell_notes
from dsd_env.cli.output import number, paragraph, print_json, table
from dsd_env.cli.simulate import add_metrics, chosen
from dsd_env.history import recorded
from dsd_env.paired import RESAMPLES, bootstrap_mean, bootstrap_ratio, evaluation_seeds
from dsd_env.scenario import Scenario
from dsd_env.schedulers import make_scheduler
from dsd_env.schedulers.lists import aliases
from dsd_env.sim.engines import compiled_layout
from dsd_env.sim.world import WorldBuilder
from dsd_env.simulate import simulate
from dsd_env.whole_runs import fast_runs

_EXAMPLES = """
dsd-env evaluate single_lan --schedulers cloud_ar,edge_sd:4 --seeds 10
dsd-env evaluate metro --schedulers jsq_goodput,mine=policy:mine --cycles 1
dsd-env evaluate wan --schedulers cloud_ar,jsq_goodput --json --history"""

_NOTES = """
The episodes are ones that no training ever saw. For each metric: means, and
the differences to the first scheduler, paired by seed, with 95 % intervals.
An episode begins with an empty system: without --cycles (or a window of the
scenario's own) it is the start-up that is measured."""

SELECTION = (
    "e2e_s_mean",
    "ttft_s_mean",
    "tpot_s_mean",
    "slo_attainment",
    "throughput_tokens_per_s",
    "cloud_usd_per_1m_tokens",
)
"""What is printed unless something else is asked for; JSON holds every metric."""

_CI = f"percentile bootstrap over seeds, {RESAMPLES} resamples, fixed generator seed; null if < 2 seeds"

Rows = dict[str, list[dict[str, float]]]
"""The metrics of each scheduler, seed by seed."""


def add(commands: Commands) -> None:
    """Add the command."""
    does = "Compare schedulers on the same episodes."
    parser = command(commands, "evaluate", does, _EXAMPLES, run, notes=_NOTES)
    add_scenario(parser)
    parser.add_argument(
        "--schedulers",
        type=schedulers,
        required=True,
        metavar="X,Y",
        help="rules, or policy:FOLDER; NAME=X gives one a name of its own; differences are those to the "
        "first",
    )
    parser.add_argument(
        "--seeds", type=at_least_one, default=5, metavar="N", help="episodes each (default 5)"
    )
    add_engine(parser)
    add_requests(parser)
    add_cycles(parser)
    add_metrics(parser)
    parser.add_argument(
        "--history",
        action="store_true",
        help="with --json: of each scheduler's first episode also load and decisions over time, for "
        "`dsd-env report`",
    )
    add_json(parser, "print JSON with every metric of every seed, NaN as null")


def run(arguments: argparse.Namespace) -> int:
    """Simulate all pairs and print the comparison."""
    if arguments.history and not arguments.json:
        raise ValueError("--history: only --json prints histories")
    scenario = measured_scenario_of(arguments)
    shown = chosen(arguments.metrics, scenario, SELECTION)
    asked: dict[str, str] = arguments.schedulers
    for spec in asked.values():  # a wrong name shows now, not after an hour
        scheduler = make_scheduler(spec)
        scheduler.reset(scenario, 0)
        tell_notes(scheduler, scenario)
    seeds = evaluation_seeds(arguments.seeds)
    rows, histories = _simulated(scenario, asked, seeds, arguments.engine, histories=arguments.history)
    summary = summarise(rows)
    for name, spec in asked.items():
        summary[name] = {"specification": spec, **summary[name]}
    for name, history in histories.items():
        summary[name]["history"] = history
    if arguments.json:
        head = {
            "scenario": scenario.name,
            "changes": dict(arguments.changes),
            "requests": arguments.requests,
            "cycles": arguments.cycles,
            "seeds": seeds,
            "ci95": _CI,
            "baseline": next(iter(asked)),
        }
        print_json({**head, "schedulers": summary})
        return 0
    print("\n\n".join(_text(summary, name, len(seeds)) for name in shown))
    if own := aliases(asked):
        print()
        print("\n".join(own))
    if notes := closing_notes([scenario], len(seeds)):
        print()
        print("\n".join(map(paragraph, notes)))
    return 0


def _simulated(
    scenario: Scenario, asked: dict[str, str], seeds: list[int], engine: str, *, histories: bool
) -> tuple[Rows, dict[str, Any]]:
    """Simulate every scheduler on every seed; say on a terminal how far it is.

    Returns:
        The metrics, and if asked for the history of each scheduler's first episode.
    """
    builder = WorldBuilder(scenario)
    rows: Rows = {name: [] for name in asked}
    kept: dict[str, Any] = {}
    whole, done = len(asked) * len(seeds), 0
    for name, spec in asked.items():
        left = list(seeds)
        if histories:
            result, kept[name] = recorded(scenario, spec, left.pop(0), builder=builder, engine=engine)
            rows[name].append(result.metrics)
        runs = [_Asked(scenario, spec, seed) for seed in left]
        for metrics in _metrics(runs, builder, engine):
            rows[name].append(metrics)
            if sys.stderr.isatty():
                told = done + len(rows[name])
                end = "\n" if told == whole else "\r"
                print(f"simulated {told} of {whole} episodes", end=end, file=sys.stderr, flush=True)
        done += len(seeds)
    return rows, kept


def _metrics(runs: list[_Asked], builder: WorldBuilder, engine: str) -> Iterator[dict[str, float]]:
    """Simulate runs of one scenario and scheduler, whole episodes inside the compiled engine where it can."""
    if runs and compiled_layout(engine, runs[0].scenario, builder) is not None:
        found = fast_runs(runs)
        if found is not None:
            yield from (metrics for _, metrics in found)
            return
    for run in runs:
        yield simulate(run.scenario, run.scheduler, run.seed, builder=builder, engine=engine).metrics


class _Asked(NamedTuple):
    """One simulation."""

    scenario: Scenario
    scheduler: str
    seed: int


def summarise(rows: Rows) -> dict[str, Any]:
    """Return means and intervals of every metric, and the differences to the first scheduler's.

    Args:
        rows: Metrics by scheduler, one for each seed, the same seeds in the same order.
    """
    first = next(iter(rows))
    summary: dict[str, Any] = {}
    for name, of_seeds in rows.items():
        metrics, versus = {}, {}
        for metric in of_seeds[0]:
            own, base = _values(of_seeds, metric), _values(rows[first], metric)
            mean, low, high = bootstrap_mean(own)
            metrics[metric] = {"mean": mean, "ci95": [low, high], "per_seed": own.tolist()}
            difference, low, high = bootstrap_mean(own - base)
            relative, relative_low, relative_high = bootstrap_ratio(own, base)
            versus[metric] = {
                "difference": difference,
                "ci95": [low, high],
                "relative": relative,
                "relative_ci95": [relative_low, relative_high],
            }
        summary[name] = {"metrics": metrics, **({} if name == first else {"versus": versus})}
    return summary


def _values(rows: list[dict[str, float]], metric: str) -> NDArray[np.float64]:
    return np.array([row[metric] for row in rows], dtype=np.float64)


def _text(summary: dict[str, Any], metric: str, seeds: int) -> str:
    """Return the lines of one metric."""
    first = next(iter(summary))
    head = ["scheduler", "mean", "difference", "95 % interval", "relative"]
    rows = [head]
    for name, entry in summary.items():
        row = [name, number(entry["metrics"][metric]["mean"]), "", "", ""]
        if name != first:
            change = entry["versus"][metric]
            low, high = change["ci95"]
            row[2] = number(change["difference"])
            row[3] = "-" if np.isnan(low) else f"{number(low)} to {number(high)}"
            row[4] = "-" if np.isnan(change["relative"]) else f"{100.0 * change['relative']:+.1f} %"
        rows.append(row)
    paired = "; differences paired by seed" if len(summary) > 1 else ""
    return f"{metric}, {seeds} seed{'s' * (seeds != 1)}{paired}\n{table(rows, ' rrrr')}"
