"""``dsd-env report``: results as one HTML file.

``scripts/report.py`` of a checkout is the same.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from dsd_env.cli.arguments import Commands, add_json, command
from dsd_env.cli.output import check_folder, print_json
from dsd_env.report import write_report

_EXAMPLES = """
dsd-env report results.json --out report.html
dsd-env report before.json after.json runs/mine --out all.html --title Mine"""

_NOTES = """
Results are what `dsd-env evaluate --json --history` prints, among others. The
page needs no network: scoreboard, differences, latencies, goodput by class,
load and decisions over time, cost, capacity, learning curves, provenance, and
a table behind every figure."""


def add(commands: Commands) -> None:
    """Add the command."""
    does = "Write results as an HTML page with figures and tables."
    add_arguments(command(commands, "report", does, _EXAMPLES, run, notes=_NOTES))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what is read and what is written."""
    parser.add_argument(
        "results",
        metavar="RESULT",
        nargs="+",
        type=Path,
        help="JSON of evaluate, evaluate.py, demo.py, best_static.py or capacity.py, or the folder of a "
        "training run",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the page (HTML)")
    parser.add_argument("--title", metavar="TEXT", help="its title (default: the names of the results)")
    add_json(parser, "print what was written as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Read the results, write the page, say what was written."""
    check_folder(arguments.out)
    size_bytes = write_report(arguments.results, arguments.out, arguments.title)
    if arguments.json:
        results = [str(path) for path in arguments.results]
        print_json({"file": str(arguments.out), "bytes": size_bytes, "results": results})
    else:
        print(f"wrote {arguments.out}: {1e-3 * size_bytes:,.0f} kB; open it in a browser")
    return 0
