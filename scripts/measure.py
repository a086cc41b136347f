#!/usr/bin/env python3
"""Time a transformers model on this machine and make a latency profile of it: ``configs/latency/NAME.yaml``.

    python scripts/measure.py llama-3.2-1b --device cuda --name my-1b FACTS
    python scripts/measure.py config.json --name my-model --budget-s 600 --cells-only

FACTS are the options that no timing can tell (docs/measuring.md). What is measured is written after every
visit of a cell; interrupted, or with its budget spent, the same command goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _checkout  # noqa: F401
import _cli
from _own_profile import add_facts, cells_file, facts_of, guarded, save_cells, save_own, show_own

from dsd_env.calibration.latency.importers import MeasurementError
from dsd_env.calibration.latency.measure import GridSpec, Measurement, StopRule, grid_cells, measure
from dsd_env.calibration.latency.torch_runner import (
    SHAPES,
    TorchRunner,
    build_model,
    environment,
    model_info,
    processor_name,
)
from dsd_env.files import write_text
from dsd_env.locks import hold

# Asked for before the hours of measuring, not after: what the model will tell is filled in for now.
_STAND_IN = {"model": "?", "device": "?", "precision": "?", "weight_bytes": 1, "kv_bytes_per_token": 1}
_PRECISIONS = {"bfloat16": "bf16", "float32": "fp32", "float16": "fp16"}


def _int_list(text: str) -> tuple[int, ...]:
    """``1,2,8-10`` -> (1, 2, 8, 9, 10)."""
    out: list[int] = []
    for part in text.split(","):
        low, dash, high = part.partition("-")
        try:
            first, last = int(low), int(high) if dash else int(low)
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"{part!r} is neither a number nor a range such as 1-17"
            ) from None
        if not 0 <= first <= last <= 2**20:
            raise argparse.ArgumentTypeError(f"{part!r}: out of range")
        out += range(first, last + 1)
    return tuple(dict.fromkeys(out))


def _positive_list(text: str) -> tuple[int, ...]:
    values = _int_list(text)
    if min(values) < 1:
        raise argparse.ArgumentTypeError("numbers must be >= 1")
    return values


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "what",
        metavar="MODEL",
        help=f"a built-in shape ({', '.join(SHAPES)}) or a config.json with random weights; or a checkpoint "
        "directory, GGUF file or hub id",
    )
    parser.add_argument("--out", type=Path, default=None, help="where to write; default: configs/latency")
    parser.add_argument("--date", default=None, help="date to record (YYYY-MM-DD); default: today")
    add_facts(parser)
    grid, rule = GridSpec(), StopRule()

    def shown(values: Sequence[int]) -> str:
        return ",".join(map(str, values))

    m = parser.add_argument_group("measuring")
    m.add_argument("--device", default="cpu", help="cpu, cuda, cuda:N or mps (default: %(default)s)")
    m.add_argument("--dtype", help="default: float32 on cpu, else bfloat16")
    m.add_argument("--threads", type=int, help="CPU threads; default: torch's own choice")
    m.add_argument(
        "--attention",
        default="packed",
        help="packed: SDPA without copies of KV heads; or one of transformers' names (default: %(default)s)",
    )
    m.add_argument("--no-cuda-graph", action="store_true", help="launch kernels one by one")
    m.add_argument(
        "--batches", type=_positive_list, default=grid.batches, help=f"default: {shown(grid.batches)}"
    )
    m.add_argument(
        "--queries",
        type=_positive_list,
        default=grid.queries,
        help=f"new tokens; default: {shown(grid.queries)}",
    )
    m.add_argument(
        "--contexts", type=_int_list, default=grid.contexts, help=f"default: {shown(grid.contexts)}"
    )
    m.add_argument(
        "--chunks", type=_positive_list, default=grid.chunks, help=f"prefill; default: {shown(grid.chunks)}"
    )
    m.add_argument(
        "--prefixes", type=_int_list, default=grid.prefixes, help=f"default: {shown(grid.prefixes)}"
    )
    m.add_argument("--kv-limit-tokens", type=int, help="leave out cells with more tokens of KV than this")
    m.add_argument(
        "--warmup", type=int, default=rule.warmup, help="untimed iterations a visit (default: %(default)s)"
    )
    m.add_argument("--min-repeats", type=int, default=rule.min_repeats, help="default: %(default)s")
    m.add_argument("--max-repeats", type=int, default=rule.max_repeats, help="default: %(default)s")
    m.add_argument(
        "--per-visit", type=int, default=rule.per_visit, help="repeats a visit (default: %(default)s)"
    )
    m.add_argument(
        "--half-width-pct",
        type=float,
        default=100.0 * rule.half_width,
        help="a cell is done when its median is known this well (default: %(default)s)",
    )
    m.add_argument(
        "--budget-s", type=float, help="begin no visit after this many seconds; run again to go on"
    )
    return parser.parse_args(argv)


def _measure(args: argparse.Namespace, path: Path) -> Measurement:
    """Measure with a progress bar; what is there so far is in ``path`` at any time."""
    rule = StopRule(
        args.min_repeats,
        args.max_repeats,
        args.half_width_pct / 100.0,
        args.budget_s,
        args.per_visit,
        args.warmup,
    )
    try:
        import torch
    except ImportError as e:
        raise MeasurementError(
            f"measuring needs torch and transformers ({e}): pip install 'dsd-env[record]'"
        ) from e
    if args.threads:
        torch.set_num_threads(args.threads)
    on_gpu = args.device.startswith("cuda")
    dtype = args.dtype or ("float32" if args.device == "cpu" else "bfloat16")
    graph = on_gpu and not args.no_cuda_graph
    print(f"measure: building {args.what} ({dtype}) on {args.device}", file=sys.stderr, flush=True)
    name, weights, model = build_model(args.what, args.device, dtype, args.attention)
    info = model_info(name, weights, model, args.device, dtype, args.attention, graph)
    grid = GridSpec(
        args.batches, args.queries, args.contexts, args.chunks, args.prefixes, args.kv_limit_tokens
    )
    cells = grid_cells(grid, info.context_limit_tokens)
    if not cells:
        raise MeasurementError("the grid holds no cell within the model's context and --kv-limit-tokens")
    from tqdm import tqdm

    with tqdm(total=len(cells), unit="cell", disable=None) as bar:

        def report(cell: str, done: int, total: int) -> None:
            bar.n = done
            bar.set_postfix_str(cell)

        runner = TorchRunner(model, args.device, graph)
        with hold(path.with_name(f"{path.name}.lock"), path):
            return measure(runner, info, cells, path, rule, environment(args.device), report)


def _coverage(m: Measurement, min_repeats: int) -> list[str]:
    """Lines on cells that were skipped or not reached, for the user and the profile's notes."""
    skipped = [c for c in m.cells if c.skipped]
    lines = [f"skipped: {c}: {c.skipped}" for c in skipped[:10]]
    if len(skipped) > 10:
        lines.append(f"skipped: {len(skipped) - 10} more cells that do not fit")
    few = sum(not c.skipped and len(c.samples_s) < min_repeats for c in m.cells)
    if few:
        lines.append(f"left out: {few} of {len(m.cells)} cells, not reached yet")
    return lines


def _known(m: Measurement) -> dict[str, Any]:
    """Facts that a measurement states."""
    return {
        "model": m.info.model,
        "device": m.environment.get("gpu") or m.environment.get("processor") or processor_name(),
        "precision": _PRECISIONS.get(m.info.dtype, m.info.dtype),
        "weight_bytes": m.info.weight_bytes,
        "kv_bytes_per_token": m.info.kv_bytes_per_token,
        "context_limit_tokens": m.info.context_limit_tokens,
    }


def _work(args: argparse.Namespace, argv: Sequence[str]) -> None:
    if not args.cells_only:
        facts_of(args, dict(_STAND_IN), None)
    table = cells_file(args)
    m = _measure(args, table.with_name(f"{args.name}.json"))
    points, lines = m.points(args.min_repeats), _coverage(m, args.min_repeats)
    threads = f", {m.info.threads} threads" if m.info.threads else ""
    notes = [
        f"whole iterations of transformers with {m.info.weights} weights, {m.info.attention} attention"
        f"{', CUDA graph' if m.info.cuda_graph else ''}{threads}; medians of at least "
        f"{args.min_repeats} repeats; "
        "a serving engine's scheduler and paged cache are not part of it",
        *lines,
    ]
    if not points:
        raise MeasurementError(
            f"no cell has {args.min_repeats} repeats yet: raise --budget-s, or run the same command again"
        )
    save_cells(args, points)
    print("\n".join([f"{len(points)} cells", *lines]), file=sys.stderr)
    if args.cells_only:
        print("\n".join(notes), file=sys.stderr)
        return
    software = f"torch {m.environment.get('torch')}, transformers {m.environment.get('transformers')}"
    profile, fit, noise = save_own(
        args,
        argv,
        facts_of(args, _known(m), None),
        points,
        f"own measurement ({software})",
        notes,
        "; run the same command again to measure the rest" if lines else "",
    )
    summary = {
        "noise": None if noise is None else dataclasses.asdict(noise),
        "error": profile.error.model_dump(),
        "heldout_error_pct": {
            c.key: round(100.0 * float(e), 2) for c, e in zip(fit.heldout, fit.errors(), strict=True)
        },
    }
    write_text(table.with_name(f"{args.name}.fit.json"), json.dumps(summary, indent=1) + "\n")
    show_own(args, profile)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = _parse(argv)
    command = ["scripts/measure.py", *(sys.argv[1:] if argv is None else argv)]
    kept = "interrupted; cells measured so far are kept, the same command goes on"
    return guarded("measure", args, lambda: _work(args, command), kept)


if __name__ == "__main__":
    _cli.run(main)
