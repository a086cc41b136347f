"""Command line of ``calibrate.py`` for measurements of others' tools: options, and what they run.

See docs/measuring.md. The work is done in :mod:`dsd_env.calibration.latency.importers` and ``own``; here are
options, files and messages.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _own_profile import add_facts, facts_of, guarded, save_cells, save_own, show_own

from dsd_env.calibration.latency.importers import (
    LLAMA_BENCH_COMMAND,
    Imported,
    MeasurementError,
    check_plausible,
    import_csv,
    import_llama_bench,
    import_vllm,
)


def add_sources(group: Any) -> None:
    """Add the three ways to name measurements to the group of which one option is required."""
    group.add_argument(
        "--from-llama-bench", nargs="+", metavar="FILE", help="output of `llama-bench -o json|jsonl|csv`"
    )
    group.add_argument(
        "--from-vllm",
        nargs="+",
        metavar="FILE[@B,I,O]",
        help="output of `vllm bench latency` (batch, input and output length from the name or after @), "
        "and of "
        "`vllm bench serve --save-detailed`",
    )
    group.add_argument("--from-csv", metavar="FILE", help="table batch,q,context,seconds")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that describe the profile, and those of the readers."""
    facts = add_facts(parser)
    facts.add_argument(
        "--select",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="llama-bench: use these rows only (true, 1 and on are the same; * lets the field differ)",
    )
    facts.add_argument(
        "--max-batched-tokens",
        type=int,
        default=8192,
        help="vLLM's max_num_batched_tokens (default: %(default)s)",
    )


def wanted(args: argparse.Namespace) -> bool:
    """Whether one of the three ways was chosen."""
    return bool(args.from_llama_bench or args.from_vllm or args.from_csv)


def _read(args: argparse.Namespace) -> tuple[Imported, str, str | None]:
    """What the files hold, the name of their source, and the role that it implies."""
    if args.from_csv:
        imported = import_csv(Path(args.from_csv), trust_units=args.trust_units)
        return imported, "measured cells of the user (CSV)", None
    if args.from_vllm:
        imported = import_vllm(args.from_vllm, args.max_batched_tokens, trust_units=args.trust_units)
        return imported, "vLLM benchmark", "target"
    select = dict(s.split("=", 1) for s in args.select if "=" in s)
    if len(select) != len(args.select):
        raise MeasurementError("--select: expected FIELD=VALUE, each field once")
    return import_llama_bench([Path(f) for f in args.from_llama_bench], select), "llama-bench", "drafter"


def _portable(note: str, args: argparse.Namespace) -> str:
    """A note with files by their names: folders of this machine are nobody's business."""
    files = [*(args.from_llama_bench or ()), *(args.from_vllm or ()), *filter(None, [args.from_csv])]
    for file in sorted((f.split("@")[0] for f in files), key=len, reverse=True):
        note = note.replace(file, Path(file).name)
    return note


def run(args: argparse.Namespace, argv: Sequence[str]) -> int:
    """Import, fit, and write profile and cells; returns the exit status."""
    return guarded("calibrate", args, lambda: _run(args, argv), "interrupted")


def _run(args: argparse.Namespace, argv: Sequence[str]) -> None:
    imported, origin, role = _read(args)
    points, known, notes = list(imported.points), dict(imported.facts), list(imported.notes)
    if software := known.pop("software", None):
        origin = f"{origin} ({software})"
    if args.cells_only:
        save_cells(args, points)
    print(f"{len(points)} cells", file=sys.stderr)
    if args.cells_only:
        print("\n".join(notes), file=sys.stderr)
        return
    facts = facts_of(args, known, role)
    per_device = float(facts.weight_bytes) / facts.parallelism
    notes += check_plausible(points, per_device, trust_units=args.trust_units)
    hint = f"; for example `{LLAMA_BENCH_COMMAND}`" if args.from_llama_bench else ""
    notes = [_portable(note, args) for note in notes]
    profile, _, _ = save_own(args, argv, facts, points, origin, notes, hint)
    show_own(args, profile)
