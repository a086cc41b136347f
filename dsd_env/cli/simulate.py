"""``dsd-env simulate``: one episode and its metrics."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from dsd_env.cli.arguments import (
    Commands,
    add_cycles,
    add_json,
    add_scenario,
    add_simulation,
    command,
    measured_scenario_of,
    names,
)
from dsd_env.cli.notes import start_up, tell_notes
from dsd_env.cli.output import number, paragraph, print_json, table
from dsd_env.scenario import Scenario
from dsd_env.schedulers import make_scheduler
from dsd_env.sim.metrics import metric_names
from dsd_env.similar import hint, metrics_like
from dsd_env.simulate import simulate

_EXAMPLES = """
dsd-env simulate single_lan --scheduler edge_sd:4 --seed 1
dsd-env simulate metro --scheduler jsq_goodput --cycles 1
dsd-env simulate metro --scheduler jsq_goodput --requests 50 --json
dsd-env simulate flaky --scheduler random --set protocol.patience_s=0.2"""

_NOTES = """
A metric's name ends in its unit: _s are seconds. docs/simulator.md defines
every one. `dsd-env schedulers` lists the schedulers. An episode begins with an
empty system: without --cycles (or a window of the scenario's own) it is the
start-up that is measured."""

SELECTION = (
    "e2e_s_mean",
    "e2e_s_p95",
    "ttft_s_mean",
    "ttft_s_p95",
    "tpot_s_mean",
    "stall_s_p95",
    "slo_attainment",
    "goodput_requests_per_s",
    "throughput_tokens_per_s",
    "acceptance_rate",
    "block_efficiency",
    "tokens_per_iteration",
    "wasted_draft_tokens_per_token",
    "load",
    "utilisation_target",
    "requests_in_system_mean",
    "gpu_occupied_s_per_1k_tokens",
    "cloud_usd_per_1m_tokens",
    "energy_j_per_1k_tokens",
    "bytes_per_token",
    "requests_measured",
    "requests_unfinished",
    "window_s",
    "duration_s",
)
"""What is printed unless something else is asked for; JSON holds every metric."""

ALL = "all"


def add(commands: Commands) -> None:
    """Add the command."""
    does = "Simulate one episode and print its metrics."
    parser = command(commands, "simulate", does, _EXAMPLES, run, notes=_NOTES)
    add_scenario(parser)
    add_simulation(parser)
    add_cycles(parser)
    add_metrics(parser)
    add_json(parser, "print JSON with every metric, NaN as null")


def add_metrics(parser: argparse.ArgumentParser) -> None:
    """Add ``--metrics``."""
    parser.add_argument(
        "--metrics",
        type=names,
        metavar="M,N",
        help="metrics to print (default: a selection; all: every one)",
    )


def chosen(asked: Sequence[str] | None, scenario: Scenario, default: Sequence[str]) -> list[str]:
    """Return the metrics to print.

    Args:
        asked: Those asked for, or ``all``; None: the default.
        scenario: The scenario, whose classes of SLO have metrics of their own.
        default: Those that are printed if none are asked for.

    Raises:
        ValueError: One of those asked for does not exist.
    """
    known = metric_names(scenario)
    if asked is None:
        return list(default)
    if list(asked) == [ALL]:
        return list(known)
    if unknown := [name for name in asked if name not in known]:
        meant = hint(metrics_like(unknown, known))
        raise ValueError(f"no metric {', '.join(unknown)}{meant} --metrics all prints those that there are")
    return list(asked)


def run(arguments: argparse.Namespace) -> int:
    """Simulate and print."""
    scenario = measured_scenario_of(arguments)
    shown = chosen(arguments.metrics, scenario, SELECTION)
    scheduler = make_scheduler(arguments.scheduler)
    scheduler.reset(scenario, arguments.seed)  # what does not fit shows before the engine is compiled
    tell_notes(scheduler, scenario)
    result = simulate(scenario, scheduler, arguments.seed, engine=arguments.engine)
    if arguments.json:
        print_json(
            {
                "scenario": scenario.name,
                "changes": dict(arguments.changes),
                "requests": arguments.requests,
                "cycles": arguments.cycles,
                "scheduler": result.scheduler,
                "seed": result.seed,
                "engine": result.engine,
                "decisions": result.decisions,
                "resolved": result.resolved,
                "metrics": result.metrics,
            }
        )
        return 0
    what = f"{scenario.name}, {result.scheduler}, seed {result.seed}: {result.decisions} decisions"
    print(paragraph(f"{what} ({result.engine} engine)"))
    for reason, count in result.resolved.items():
        print(f"  {count} of them executed otherwise than asked: {reason}")
    print(table([["metric", "value"], *([name, number(result.metrics[name])] for name in shown)], " r"))
    if note := start_up(scenario):
        print()
        print(paragraph(note))
    return 0
