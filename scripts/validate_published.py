#!/usr/bin/env python3
"""Hold the simulator against figures that others measured and published.

    python scripts/validate_published.py
    python scripts/validate_published.py --only ucb --only clients --json out.json
    python scripts/validate_published.py --write docs/validation.md

Each check runs the simulator itself. What was taken from a source as an input, what was calibrated, and what
was met or missed is printed; the exit status is 1 when any figure is missed. The figures are facts in
``dsd_env/calibration/published/facts.yaml``; nothing else is needed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import _checkout  # noqa: F401
import _cli

from dsd_env.calibration.latency.report import replace_blocks
from dsd_env.calibration.published.edge import pipesd_bandwidth, pipesd_clients, ucb_specstop
from dsd_env.calibration.published.engines import sglang, vllm
from dsd_env.calibration.published.figures import Check, load_facts, summary, table
from dsd_env.files import write_text

CHECKS: dict[str, tuple[str, Callable[[Mapping[str, Any], Path], Check]]] = {
    "ucb": ("ucb_specstop", ucb_specstop),
    "clients": ("pipesd", pipesd_clients),
    "bandwidth": ("pipesd", pipesd_bandwidth),
    "sglang": ("sglang_grid", sglang),
    "vllm": ("vllm_8b_h100", vllm),
}
"""Check -> its part of the facts, and what makes it."""


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", choices=CHECKS, help="run this check (may be repeated)")
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--write", type=Path, help="put the tables into this document, between its markers")
    return parser.parse_args(argv)


def blocks(checks: list[Check]) -> dict[str, str]:
    """Return the document's blocks by name."""
    found = {"summary": "\n".join(summary(checks))} if len(checks) == len(CHECKS) else {}
    for check in checks:
        lines = [f"Source: {check.source}.", "", check.inputs, "", *table(check)]
        if check.misses:
            lines += [
                "",
                f"{len(check.misses)} of {len(check.figures)} figures are missed. {check.remarks}".rstrip(),
            ]
        found[check.name] = "\n".join(lines)
    return found


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = _parse(argv)
    facts = load_facts()
    checks = []
    for name in args.only or CHECKS:
        part, make = CHECKS[name]
        begun_s = time.perf_counter()
        with tempfile.TemporaryDirectory() as scratch:
            check = make(facts[part], Path(scratch))
        checks.append(check)
        print(f"\n## {check.title}\n\nSource: {check.source}.\n{check.inputs}\n")
        print("\n".join(table(check)), flush=True)
        print(f"{name}: {time.perf_counter() - begun_s:.0f} s", file=sys.stderr, flush=True)
    print("\n" + "\n".join(summary(checks)))
    try:
        if args.json is not None:
            write_text(args.json, json.dumps([check.as_json() for check in checks], indent=2) + "\n")
        if args.write is not None:
            write_text(args.write, replace_blocks(args.write.read_text(), blocks(checks)))
    except (OSError, ValueError) as error:
        print(f"validate_published: {error}", file=sys.stderr)
        return 2
    return 0 if all(check.passes for check in checks) else 1


if __name__ == "__main__":
    _cli.run(main)
