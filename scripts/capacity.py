"""Find the largest arrival rate at which enough requests meet their SLO, per scheduler.

    python scripts/capacity.py --scenario metro --schedulers cloud_ar,colocated_sd:2,jsq_goodput --seeds 3
    --json capacity.json

Bisects the load on the same seeds for every scheduler and rate, over a window of simulated time in the steady
state. What is scaled: the rate of open arrivals, the speed of a recorded trace, the number of clients of a
closed loop (their think times stay). With --json an interrupted search continues where it stopped when
started again.
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
    from dsd_env.cli.schedulers import listing

    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="schedulers:\n" + listing().replace("%", "%%"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--scenario", required=True, metavar="A", help="name, or path of a YAML file")
    parser.add_argument(
        "--schedulers", required=True, metavar="X,Y", help="as below; NAME=X gives one a name of its own"
    )
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="episodes per rate (default 3)")
    parser.add_argument(
        "--share", type=float, default=0.95, help="share of requests that meet their SLO (default 0.95)"
    )
    parser.add_argument(
        "--tolerance", type=float, default=0.05, help="relative width of the last bracket (default 0.05)"
    )
    parser.add_argument("--cycles", type=int, metavar="C", help="cycles of the load in a window")
    parser.add_argument(
        "--window-s", type=float, metavar="S", help="length of the window instead, in seconds"
    )
    parser.add_argument(
        "--grace-s",
        type=float,
        default=60.0,
        metavar="S",
        help="an episode ends so long after its window; who is not done then has missed (default 60)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every rate tried here")
    parser.add_argument("--jobs", type=int, default=1, metavar="J", help="processes (default 1)")
    arguments = parser.parse_args()
    _cli.at_least_one(parser, arguments, ("seeds", "cycles", "jobs"))
    if not 0.0 < arguments.share < 1.0:
        parser.error(f"--share {arguments.share}: must be between 0 and 1")
    for name in ("tolerance", "window_s", "grace_s"):
        value = getattr(arguments, name)
        if value is not None and not value > 0.0:
            parser.error(f"--{name.replace('_', '-')} {value}: must be > 0")
    return _cli.continuing_beside("capacity", arguments.json, lambda partial: _search(arguments, partial))


def _search(arguments: argparse.Namespace, partial: Path | None) -> int:
    from agents import capacity, evaluation, provenance
    from agents.report import console as make_console
    from dsd_env import load_scenario
    from dsd_env.files import write_json
    from dsd_env.schedulers.lists import aliases, named_schedulers

    console = make_console()
    schedulers = named_schedulers(arguments.schedulers)
    names = {spec: name for name, spec in schedulers.items()}
    scenario = capacity.prepared(
        load_scenario(arguments.scenario), arguments.cycles, arguments.window_s, arguments.grace_s
    )
    unit = capacity.what_scales(scenario)

    def tell(scheduler: str, probe: capacity.Probe) -> None:
        print(
            f"{names[scheduler]}: {probe.offered:.4g} {unit} (× {probe.scale:.3g}): "
            f"{100 * probe.attainment:.1f} % of {probe.requests} requests",
            flush=True,
        )

    kept = evaluation.PartialResults(partial)
    if kept.results:
        print(f"{len(kept.results)} simulations were finished before ({partial})")
    search = capacity.Search(
        arguments.scenario,
        scenario,
        seeds=arguments.seeds,
        share=arguments.share,
        tolerance=arguments.tolerance,
        jobs=arguments.jobs,
        kept=kept,
        on_probe=tell,
    )
    for spec in names:
        # An unfit policy is to be found before an hour of another scheduler.
        evaluation.tasks_of(arguments.scenario, scenario, spec, [0])
    found = {name: search.run(spec) for name, spec in schedulers.items()}
    if arguments.json:
        episode = scenario.episode
        summary: dict[str, Any] = {
            "metadata": {
                "created": provenance.now_utc(),
                "versions": provenance.versions(),
                "git_commit": provenance.git_commit(_checkout.ROOT),
                "command": ["scripts/capacity.py", *sys.argv[1:]],
            },
            "scenario": arguments.scenario,
            "scaled": unit,
            "share": arguments.share,
            "tolerance": arguments.tolerance,
            "seeds": arguments.seeds,
            "warmup_s": episode.warmup_s,
            "window_s": episode.window_s,
            "horizon_s": episode.horizon_s,
            "schedulers": {
                name: {"specification": one.scheduler, **one.to_json()} for name, one in found.items()
            },
        }
        write_json(arguments.json, summary)
        kept.discard()
    _print(found, arguments.scenario, unit, arguments.share, console)
    for line in aliases(schedulers):
        print(line)
    if arguments.json:
        print(f"wrote {arguments.json}")
    return 0


def _print(found: dict[str, Any], scenario: str, unit: str, share: float, console: Any) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(
        title=f"{escape(scenario)}: most load at which {100 * share:g} % of requests meet their SLO"
    )
    table.add_column("scheduler", overflow="fold")
    for head in (unit, "arrivals/s", "met there", "too much"):
        table.add_column(head, justify="right")
    for name, one in found.items():
        if one.best is None:
            cells = ["none", "", "", f"{one.above.offered:.4g}"]
        else:
            above = "not found" if one.above is None else f"{one.above.offered:.4g}"
            best = one.best
            cells = [
                f"{best.offered:.4g}",
                f"{best.arrivals_per_s:.4g}",
                f"{100 * best.attainment:.1f} %",
                above,
            ]
        table.add_row(escape(name), *cells)
    console.print(table)


if __name__ == "__main__":
    _cli.run(main)
