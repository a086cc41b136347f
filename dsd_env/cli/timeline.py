"""``dsd-env timeline``: an episode as a trace file for ui.perfetto.dev and chrome://tracing.

``scripts/timeline.py`` of a checkout is the same.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from dsd_env.cli.arguments import (
    Commands,
    add_json,
    add_scenario,
    add_simulation,
    between,
    command,
    scenario_of,
)
from dsd_env.cli.output import check_folder, print_json
from dsd_env.scenario import Scenario
from dsd_env.sim.timeline import Timeline
from dsd_env.simulate import Result, simulate

_EXAMPLES = """
dsd-env timeline single_lan --scheduler edge_sd:4 --out trace.json
dsd-env timeline metro --scheduler jsq_goodput --to-s 5 --out trace.json
dsd-env timeline flaky --scheduler random --only 3,7-9 --out trace.json"""

_NOTES = """
Open the file at ui.perfetto.dev or in chrome://tracing. Devices, edge servers
and targets are processes; iterations, drafts, messages and requests slices."""

_MOST_REQUESTS = 1_000_000


def add(commands: Commands) -> None:
    """Add the command."""
    does = "Write what happened in an episode as a trace for timeline viewers."
    add_arguments(command(commands, "timeline", does, _EXAMPLES, run, notes=_NOTES))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the simulation, and what of it is written."""
    add_scenario(parser)
    add_simulation(parser)
    parser.add_argument(
        "--from-s",
        type=between(0.0, math.inf),
        default=0.0,
        metavar="S",
        help="leave out what is over by then, in simulated seconds (default 0)",
    )
    parser.add_argument(
        "--to-s",
        type=between(0.0, math.inf),
        default=math.inf,
        metavar="S",
        help="stop there, the simulation too (default: the end of the episode)",
    )
    parser.add_argument(
        "--only", type=_numbers, metavar="3,7-9", help="leave out other requests, by number from 0 on"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the trace (JSON)")
    add_json(parser, "print what was written as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Simulate, write the trace, say what was written."""
    check_folder(arguments.out)
    if not arguments.from_s < arguments.to_s:
        raise ValueError(f"--from-s {arguments.from_s:g} must be below --to-s {arguments.to_s:g}")
    scenario = scenario_of(arguments)
    result, timeline = recorded(arguments, scenario, arguments.to_s)
    events = timeline.write(arguments.out, arguments.from_s, arguments.to_s, arguments.only)
    size_bytes = arguments.out.stat().st_size
    if arguments.json:
        print_json(
            {
                "file": str(arguments.out),
                "events": events,
                "bytes": size_bytes,
                "scenario": scenario.name,
                "scheduler": result.scheduler,
                "seed": result.seed,
                "engine": result.engine,
                "simulated_s": result.metrics["duration_s"],
            }
        )
    else:
        print(f"wrote {arguments.out}: {events:,} events, {1e-6 * size_bytes:.1f} MB")
        print("open it at ui.perfetto.dev or chrome://tracing")
    return 0


def recorded(arguments: argparse.Namespace, scenario: Scenario, until_s: float) -> tuple[Result, Timeline]:
    """Simulate what a command line says until a time; return the result and its timeline."""
    result = simulate(
        scenario,
        arguments.scheduler,
        arguments.seed,
        requests=arguments.requests,
        engine=arguments.engine,
        timeline=True,
        until_s=until_s,
    )
    assert result.timeline is not None
    return result, result.timeline


def _numbers(text: str) -> frozenset[int]:
    """Return the numbers of a list such as ``3,7-9``."""
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        last = last if dash else first
        if not (first.isdecimal() and last.isdecimal()) or int(last) < int(first):
            raise argparse.ArgumentTypeError(f"{part!r} in {text!r} is no number such as 3, nor a range 7-9")
        if int(last) - int(first) >= _MOST_REQUESTS:
            raise argparse.ArgumentTypeError(f"{part!r} are too many requests")
        found.update(range(int(first), int(last) + 1))
    return frozenset(found)
