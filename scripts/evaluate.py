"""Compare schedulers on the same episodes, which no training ever saw.

    python scripts/evaluate.py --scenarios metro,single_lan --schedulers cloud_ar,jsq_goodput --seeds 5 --json
    out.json

Prints means with 95 % bootstrap intervals over seeds, and differences paired by seed against the first
scheduler. With --json an interrupted evaluation continues where it stopped when started again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import _checkout
import _cli


def main() -> int:
    """Run the command line; return the exit status."""
    from dsd_env.cli.arguments import add_changes
    from dsd_env.cli.schedulers import listing

    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="schedulers:\n" + listing().replace("%", "%%"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--scenarios", required=True, metavar="A,B", help="names, or paths of YAML files")
    add_changes(parser)
    parser.add_argument(
        "--schedulers",
        required=True,
        metavar="X,Y",
        help="as below; NAME=X gives one a name of its own, for tables and files",
    )
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="episodes per pair (default 5)")
    parser.add_argument(
        "--requests", type=int, metavar="M", help="measured requests per episode, not the scenario's own"
    )
    parser.add_argument(
        "--cycles",
        type=int,
        metavar="C",
        help="measure so many cycles of the load after a warm-up, in simulated time, not the scenario's own",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every metric here")
    parser.add_argument(
        "--history",
        action="store_true",
        help="write load and decisions over time of each scheduler's first episode into FILE, too",
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="write an HTML page of it, too")
    parser.add_argument("--jobs", type=int, default=1, metavar="J", help="processes (default 1)")
    parser.add_argument("--metrics", metavar="M,N", help="metrics to print (default: a selection)")
    arguments = parser.parse_args()
    if arguments.requests is not None and arguments.cycles is not None:
        parser.error("--requests and --cycles: measure a number of requests or cycles of the load")
    for option in ("history", "report"):
        if getattr(arguments, option) and arguments.json is None:
            parser.error(f"--{option}: give --json FILE, too, where its numbers stand")
    _cli.at_least_one(parser, arguments, ("seeds", "requests", "cycles", "jobs"))
    return _cli.continuing_beside("evaluate", arguments.json, lambda sidecar: _evaluate(arguments, sidecar))


def _evaluate(arguments: argparse.Namespace, sidecar: Path | None) -> int:
    from tqdm import tqdm

    from agents import evaluation, provenance
    from agents.report import console, print_tables
    from dsd_env.cli.notes import closing_notes
    from dsd_env.cli.output import paragraph
    from dsd_env.files import write_json
    from dsd_env.report import write_report
    from dsd_env.schedulers.lists import aliases, named_schedulers

    shown = _names(arguments.metrics) if arguments.metrics else list(evaluation.TABLE_METRICS)
    schedulers = named_schedulers(arguments.schedulers)
    tasks = evaluation.plan(
        _names(arguments.scenarios),
        list(schedulers.values()),
        arguments.seeds,
        arguments.requests,
        cycles=arguments.cycles,
        changes=dict(arguments.changes),
    )
    evaluation.check_metrics(shown, tasks[0].scenario)
    partial = evaluation.PartialResults(sidecar)
    open_tasks = [task for task in tasks if task.key not in partial.results]
    if len(open_tasks) < len(tasks):
        print(f"{len(tasks) - len(open_tasks)} of {len(tasks)} simulations were finished before ({sidecar})")
    with tqdm(
        total=len(tasks), initial=len(tasks) - len(open_tasks), desc="evaluating", unit=" episodes"
    ) as bar:

        def done(task: evaluation.Task, metrics: dict[str, float]) -> None:
            partial.add(task, metrics)
            bar.update(1)

        evaluation.run_all(open_tasks, arguments.jobs, done)
    histories = {}
    if arguments.history:
        pairs = len(evaluation.groups_of(tasks, len(tasks)))
        found = tqdm(
            evaluation.histories_of(tasks, arguments.jobs),
            total=pairs,
            desc="histories",
            unit=" episodes",
        )
        histories = {task.key: history for task, history in found}

    metadata: dict[str, Any] = {
        "created": provenance.now_utc(),
        "versions": provenance.versions(),
        "git_commit": provenance.git_commit(_checkout.ROOT),
        "requests": arguments.requests,
        "cycles": arguments.cycles,
        "command": ["scripts/evaluate.py", *sys.argv[1:]],
    }
    names = {spec: name for name, spec in schedulers.items()}
    summary = evaluation.summarise(tasks, partial.results, metadata, histories, names)
    if arguments.json:
        write_json(arguments.json, summary)
        partial.discard()
    print_tables(summary, shown, console())
    for line in aliases(schedulers):
        print(line)
    if notes := closing_notes({task.label: task.scenario for task in tasks}.values(), arguments.seeds):
        print()
        print("\n".join(map(paragraph, notes)))
    if arguments.json:
        print(f"wrote {arguments.json}")
    if arguments.report:
        write_report([arguments.json], arguments.report)
        print(f"wrote {arguments.report}")
    return 0


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


if __name__ == "__main__":
    _cli.run(main)
