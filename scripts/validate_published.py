#!/usr/bin/env python3
"""Hold the simulator against figures that others measured and published.

    python scripts/validate_published.py
    python scripts/validate_published.py --only ucb --only clients --json out.json
    python scripts/validate_published.py --write docs/validation.md
    python scripts/validate_published.py --data-dir DATA --write docs/validation.md

Each check runs the simulator itself. What was taken from a source as an input, what was calibrated, and what
was met or missed is printed; the exit status is 1 when any figure is missed. The figures are facts in
``dsd_env/calibration/published/facts.yaml``; nothing else is needed. One check more replays recorded
acceptance, which is not shipped: it is run where a data folder (--data-dir or ``DSD_DATA_DIR``) holds
``accept/specdecode_bench/combined_*.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import _checkout  # noqa: F401
import _cli

from dsd_env.acceptance.traceset import TraceError
from dsd_env.calibration.pages import replace_blocks
from dsd_env.calibration.published.edge import pipesd_bandwidth, pipesd_clients, ucb_specstop
from dsd_env.calibration.published.engines import sglang, vllm, vllm_profile, vllm_recorded
from dsd_env.calibration.published.figures import Check, load_facts, summary, table
from dsd_env.files import write_text

CHECKS: dict[str, tuple[str, Callable[[Mapping[str, Any], Path], Check]]] = {
    "ucb": ("ucb_specstop", ucb_specstop),
    "clients": ("pipesd", pipesd_clients),
    "bandwidth": ("pipesd", pipesd_bandwidth),
    "sglang": ("sglang_grid", sglang),
    "vllm": ("vllm_8b_h100", vllm),
    "vllm-profile": ("vllm_8b_h100", vllm_profile),
}
"""Check -> its part of the facts, and what makes it."""
WITH_DATA: dict[str, tuple[str, Callable[[Mapping[str, Any], Path, Path], Check]]] = {
    "vllm-recorded": ("vllm_8b_h100", vllm_recorded),
}
"""The same of checks that need recordings which are not shipped."""


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--only", action="append", choices=[*CHECKS, *WITH_DATA], help="run this check (may be repeated)"
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=os.environ.get("DSD_DATA_DIR"),
        help="folder of recordings that are not shipped (default: $DSD_DATA_DIR)",
    )
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--write", type=Path, help="put the tables into this document, between its markers")
    return parser.parse_args(argv)


def blocks(checks: list[Check]) -> dict[str, str]:
    """Return the document's blocks by name."""
    shipped = [check for check in checks if check.name in CHECKS]
    found = {"summary": "\n".join(summary(shipped))} if len(shipped) == len(CHECKS) else {}
    for check in checks:
        lines = [f"Source: {check.source}.", "", check.inputs, "", *table(check)]
        if check.misses:
            missed = f"{len(check.misses)} of {len(check.figures)} figures are missed."
            lines += ["", f"{missed} {check.remarks}".rstrip()]
        found[check.name] = "\n".join(lines)
    return found


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = _parse(argv)
    facts = load_facts()
    checks = []
    if args.data_dir is None and any(name in WITH_DATA for name in args.only or ()):
        print("validate_published: this check needs recordings: give --data-dir", file=sys.stderr)
        return 2
    for name in args.only or [*CHECKS, *(WITH_DATA if args.data_dir is not None else ())]:
        begun_s = time.perf_counter()
        with tempfile.TemporaryDirectory() as scratch:
            if name in CHECKS:
                part, make = CHECKS[name]
                check = make(facts[part], Path(scratch))
            else:
                part, make_with = WITH_DATA[name]
                try:
                    check = make_with(facts[part], Path(scratch), args.data_dir)
                except (OSError, TraceError) as error:
                    print(f"validate_published: {error}", file=sys.stderr)
                    return 2
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
