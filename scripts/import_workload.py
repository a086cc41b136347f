#!/usr/bin/env python3
"""Read a recorded trace of requests, say what is in it, cut it, change its rate, and save it for replay.

    python scripts/import_workload.py AzureLLMInferenceTrace_conv.csv
    python scripts/import_workload.py trace.jsonl --start-s 600 --duration-s 900 --rate-scale 2 --out cut.csv
    python scripts/import_workload.py BurstGPT.csv --first 10000 --out first.csv
    python scripts/import_workload.py cut.csv --scenario my.yaml

Formats: azure, mooncake, qwen, burstgpt, vidur and the project's own (plain), told apart by the first line;
docs/workload.md describes them. A file of any size is read, line by line and no further than the part that is
asked for. With ``--scenario``, requests longer than the scenario allows are counted.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import _checkout  # noqa: F401
import _cli
import numpy as np

from dsd_env import load_scenario
from dsd_env.calibration.workload.clock import spread_ticks
from dsd_env.calibration.workload.importers import IMPORTERS, import_trace
from dsd_env.calibration.workload.statistics import (
    PERCENTILES,
    WINDOWS_S,
    gap_cv,
    index_of_dispersion,
    rank_correlation,
    share_of_top_clients,
)
from dsd_env.scenario import ScenarioError
from dsd_env.workload import RequestTrace, save_trace


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("file", type=Path, help="the trace")
    parser.add_argument("--format", choices=list(IMPORTERS), help="default: found out")
    parser.add_argument(
        "--trust-units", action="store_true", help="do not ask whether times are in another unit"
    )
    parser.add_argument("--start-s", type=float, default=0.0, help="leave out what comes before")
    parser.add_argument("--duration-s", type=float, help="length of the part to keep")
    parser.add_argument("--first", type=int, metavar="N", help="keep the first N requests of the part")
    parser.add_argument("--rate-scale", type=float, default=1.0, help="at 2, twice as many requests a second")
    parser.add_argument(
        "--spread-ticks",
        nargs="?",
        const="draws",
        choices=("draws", "even"),
        help="spread requests that a coarse clock has come at once over its tick: at drawn places (the "
        "default) or at equal distances",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draws of --spread-ticks (default 0)")
    parser.add_argument("--out", type=Path, help="save it here, as CSV for `arrivals: {kind: replay}`")
    parser.add_argument("--scenario", help="count the requests that this scenario would cut short")
    args = parser.parse_args(argv)
    if not (args.start_s >= 0.0 and math.isfinite(args.start_s)):
        parser.error(f"--start-s {args.start_s} must be finite and at least 0")
    for option in ("duration_s", "first", "rate_scale"):
        value = getattr(args, option)
        if value is not None and not (value > 0 and math.isfinite(value)):
            parser.error(f"--{option.replace('_', '-')} {value} must be finite and above 0")
    if args.seed < 0:
        parser.error(f"--seed {args.seed} must be at least 0")
    return args


def summary(trace: RequestTrace) -> Iterator[str]:
    """Yield lines that say what is in a trace."""
    length_s = trace.duration_s
    yield f"requests          {len(trace)} over {length_s:.6g} s"
    if trace.dropped:
        yield f"left out          {trace.dropped} that failed"
    if trace.unused:
        yield f"not used          {', '.join(trace.unused)}"
    if length_s > 0.0:
        yield f"rate              {len(trace) / length_s:.4g} /s"
    if trace.tick_s is not None:
        times = len(np.unique(trace.arrival_s))
        yield (
            f"coarse clock      it ticks every {trace.tick_s:.4g} s: {len(trace)} requests have {times} "
            "times and come in bursts that nobody sent; --spread-ticks spreads them"
        )
    if len(trace) > 2 and length_s > 0.0:
        yield f"CV of gaps        {gap_cv(trace.arrival_s):.3f}"
    for window_s in WINDOWS_S:
        if length_s >= 10 * window_s:
            dispersion = index_of_dispersion(trace.arrival_s, window_s, length_s)
            yield f"{f'dispersion, {window_s} s':<18}{dispersion:.3f}"
    for name, tokens in (("prompt tokens", trace.prompt_tokens), ("output tokens", trace.output_tokens)):
        values = ", ".join(
            f"p{p} {v:.4g}" for p, v in zip(PERCENTILES, np.percentile(tokens, PERCENTILES), strict=True)
        )
        yield f"{name:<18}mean {tokens.mean():.4g}, {values}, most {tokens.max()}"
    if min(len(np.unique(trace.prompt_tokens)), len(np.unique(trace.output_tokens))) > 1:
        yield f"rank correlation  {rank_correlation(trace.prompt_tokens, trace.output_tokens):.3f}"
    for what, numbers, names in (
        ("clients", trace.client, trace.clients),
        ("kinds", trace.kind, trace.kinds),
    ):
        if numbers is not None:
            named = numbers[numbers >= 0]
            top = share_of_top_clients(np.bincount(named, minlength=len(names)))
            yield f"{what:<18}{len(names)}; the top 10 % make {100 * top:.1f} % of {len(named)} requests"
            if len(named) < len(numbers):
                yield f"{'':<18}{len(numbers) - len(named)} requests have none"


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = _parse(argv)
    try:
        recorded = import_trace(
            args.file,
            args.format,
            trust_units=args.trust_units,
            start_s=args.start_s,
            duration_s=args.duration_s,
            first=args.first,
        )
        trace = recorded
        if args.spread_ticks is not None:
            trace = spread_ticks(recorded, args.spread_ticks, seed=args.seed, end_s=args.duration_s)
        trace = trace.scaled(args.rate_scale)
        workload = None if args.scenario is None else load_scenario(args.scenario).workload
        # What is to be saved is saved before anything is printed: whoever reads that may go away.
        saved = None if args.out is None else save_trace(trace, args.out)
        print("\n".join(summary(trace)))
        if args.spread_ticks is not None and recorded.tick_s is None:
            print("nothing spread    no coarse clock was found")
        elif args.spread_ticks is not None:
            print(f"spread            over ticks of {recorded.tick_s:.4g} s of the recording")
        if workload is not None:
            for name, tokens, most in (
                ("prompts", trace.prompt_tokens, workload.max_prompt_tokens),
                ("answers", trace.output_tokens, workload.max_output_tokens),
            ):
                cut = int((tokens > most).sum())
                print(f"{name} cut short{cut:>8} ({100 * cut / len(trace):.2f} %) at {most} tokens")
        if saved is not None:
            print(f"wrote {saved}")
    except (ScenarioError, OSError, ValueError) as error:
        print(f"import_workload: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    _cli.run(main)
