#!/usr/bin/env python3
"""Simulate experiments of papers on parallel and distant drafting, and put theirs beside ours.

    python scripts/reproduce.py --list
    python scripts/reproduce.py amusd pearl
    python scripts/reproduce.py all --json reproductions.json --write docs/reproductions.md

Each paper's set-up is built as a scenario and simulated; nothing is tuned towards its figures. Figures, their
sources and what was not to be read are in ``dsd_env/calibration/published/papers.yaml``. With --json an
interrupted run continues where it stopped when started again, and papers that were simulated before stay.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import _checkout  # noqa: F401
import _cli

from agents.evaluation import PartialResults, Task
from agents.identity import digests_of, key_of
from dsd_env.calibration.pages import replace_blocks
from dsd_env.calibration.published.edge_cloud import DISTANCE, DSD, SPECEDGE
from dsd_env.calibration.published.one_box import AMUSD, DSI, PEARL
from dsd_env.calibration.published.reproductions import (
    Lab,
    Reproduction,
    block,
    load_papers,
    overview,
    results_of,
    run,
)
from dsd_env.calibration.published.saguaro import SAGUARO
from dsd_env.files import write_json, write_text
from dsd_env.scenario import Scenario

REPRODUCTIONS: dict[str, Reproduction] = {
    each.name: each for each in (AMUSD, DSI, PEARL, SAGUARO, SPECEDGE, DISTANCE, DSD)
}
OVERVIEW = "overview"
"""Name of the block of the page that has a line for each paper."""


class Remembering:
    """Simulates, remembers what was simulated, and says how it goes."""

    def __init__(self, finished: PartialResults) -> None:
        """Take the simulations that are finished."""
        self._finished = finished
        self.simulated = 0
        self.label = ""

    def __call__(self, scenario: Scenario, scheduler: str, seed: int, engine: str) -> Mapping[str, float]:
        """Return a simulation's quantities, simulated now or before."""
        key = key_of(*digests_of(scenario, scheduler), seed)
        if key not in self._finished.results:
            self._finished.add(
                Task(self.label, scenario, scheduler, seed, key), run(scenario, scheduler, seed, engine)
            )
            self.simulated += 1
            print(f"\r{self.label}: {self.simulated} simulations", end="", file=sys.stderr, flush=True)
        return self._finished.results[key]


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"all, or some of {', '.join(REPRODUCTIONS)}"
    )
    parser.add_argument("--list", action="store_true", help="say what there is, and end")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every simulation and the results")
    parser.add_argument(
        "--write", type=Path, metavar="PAGE", help="page whose tables are replaced, between its marks"
    )
    parser.add_argument(
        "--engine",
        default="auto",
        choices=("auto", "compiled", "reference"),
        help="the compiled engine is faster once it is compiled; both give the same (default auto)",
    )
    arguments = parser.parse_args(argv)
    if unknown := [name for name in arguments.names if name not in {*REPRODUCTIONS, "all"}]:
        parser.error(f"no paper {', '.join(unknown)}; there are {', '.join(REPRODUCTIONS)}, or all")
    if not arguments.names and not arguments.list:
        parser.error("name a paper, or all, or ask for the --list")
    if arguments.write and not arguments.write.is_file():
        parser.error(f"--write {arguments.write}: there is no such page")
    return arguments


def blocks(papers: Mapping[str, Any], found: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, str]:
    """Return the page's blocks by name; the overview once every paper is there."""
    texts = {name: block(REPRODUCTIONS[name], papers[name], claims) for name, claims in found.items()}
    if set(found) == set(REPRODUCTIONS):
        texts[OVERVIEW] = overview(REPRODUCTIONS.values(), papers, found)
    return texts


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    arguments = _parse(argv)
    papers = load_papers()
    if arguments.list:
        for name in REPRODUCTIONS:
            print(f"{name:10} arXiv {papers[name]['arxiv']}  {papers[name]['title']}")
        return 0
    return _cli.alone("reproduce", arguments.json, lambda: _run(arguments, papers))


def _simulations(kept: Mapping[str, Mapping[str, float | None]]) -> dict[str, dict[str, float]]:
    return {
        key: {name: math.nan if value is None else value for name, value in row.items()}
        for key, row in kept.items()
    }


def _as_json(rows: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float | None]]:
    """Return simulations as JSON has them: what was not observed (NaN) is null."""
    return {
        key: {name: value if math.isfinite(value) else None for name, value in row.items()}
        for key, row in rows.items()
    }


def _run(arguments: argparse.Namespace, papers: Mapping[str, Any]) -> int:
    file: Path | None = arguments.json
    before = json.loads(file.read_text(encoding="utf-8")) if file is not None and file.exists() else {}
    finished = PartialResults(None if file is None else file.with_name(f"{file.name}.partial"))
    finished.results = {**_simulations(before.get("simulations", {})), **finished.results}
    found: dict[str, Any] = {
        name: claims for name, claims in before.get("papers", {}).items() if name in REPRODUCTIONS
    }
    runner = Remembering(finished)
    for name in REPRODUCTIONS if "all" in arguments.names else dict.fromkeys(arguments.names):
        begun_s = time.perf_counter()
        runner.label, runner.simulated = name, 0
        found[name] = results_of(REPRODUCTIONS[name], Lab(runner, arguments.engine), papers)
        took_s = time.perf_counter() - begun_s
        print(f"\r{name}: {took_s:.0f} s, {runner.simulated} simulations", file=sys.stderr)
        print(f"\n## {name}\n\n{block(REPRODUCTIONS[name], papers[name], found[name])}", flush=True)
        if file is not None:
            write_json(file, {"papers": found, "simulations": _as_json(finished.results)})
            finished.discard()
    if arguments.write is not None:
        page = arguments.write.read_text(encoding="utf-8")
        try:
            write_text(arguments.write, replace_blocks(page, blocks(papers, found)))
        except ValueError as error:
            print(f"reproduce: {arguments.write}: {error}", file=sys.stderr)
            return 2
        print(arguments.write)
    return 0


if __name__ == "__main__":
    _cli.run(main)
