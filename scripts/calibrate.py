#!/usr/bin/env python3
"""Fit latency profiles to measured tables and write them to ``configs/latency/NAME.yaml``.

    python scripts/calibrate.py --data-dir DATA --all
    python scripts/calibrate.py --data-dir DATA --profile llama-3-70b_h100-sxm_tp4 --plot
    python scripts/calibrate.py --list

The data folder (or ``DSD_DATA_DIR``) holds ``aiconfigurator/``, ``llmservingsim/``, ``splitwise-sim/`` and
``edge_bench/`` as docs/calibration.md describes. Each profile is written atomically; interrupting leaves
those already written in place. ``--all`` also writes the measured engine's overhead to ``configs/engines/``.

    python scripts/calibrate.py --data-dir DATA --profile NAME --interconnect pcie --interconnect-gb-s 25

derives the all-reduces of tensor parallelism from a bandwidth instead of the device's measured table, and
names the profile after it.

Your own hardware, from what other tools measured (docs/measuring.md; FACTS are the options that no timing can
tell; ``scripts/measure.py`` measures by itself):

    python scripts/calibrate.py --from-llama-bench bench.jsonl --name my-phone FACTS
    python scripts/calibrate.py --from-vllm lat_b8_i512_o1.json lat_b8_i512_o128.json --name my-8b FACTS
    python scripts/calibrate.py --from-csv cells.csv --name my-cells FACTS
"""

from __future__ import annotations

import argparse
import datetime
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import _checkout  # noqa: F401
import _cli
from _own_hardware import add_options, add_sources, run, wanted

from dsd_env.calibration.latency.report import print_table
from dsd_env.latency import list_profiles, load_profile, save_overhead, save_profile
from dsd_env.paths import config_dir, data_dir

if TYPE_CHECKING:
    from dsd_env.calibration.latency.catalogue import Built


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--all", action="store_true", help="build every profile of the catalogue")
    what.add_argument("--profile", action="append", metavar="NAME", help="build this one (may be repeated)")
    what.add_argument("--list", action="store_true", help="list the catalogue and stop")
    what.add_argument(
        "--show", action="store_true", help="print the error table of the shipped profiles and stop"
    )
    add_sources(what)
    parser.add_argument("--data-dir", type=Path, default=None, help="measured tables; default: DSD_DATA_DIR")
    parser.add_argument("--out", type=Path, default=None, help="where to write; default: configs/latency")
    parser.add_argument(
        "--interconnect",
        choices=("nvlink", "pcie"),
        help="what joins the GPUs of --profile, instead of measured",
    )
    parser.add_argument(
        "--interconnect-gb-s",
        type=float,
        metavar="GB/S",
        help="its bus bandwidth in an all-reduce: 2 (n - 1) / n times the bytes over the time",
    )
    parser.add_argument("--plot", action="store_true", help="also draw fit plots into --figures")
    parser.add_argument("--figures", type=Path, default=Path("docs/figures"), help="folder of the plots")
    parser.add_argument("--date", default=None, help="date to record (YYYY-MM-DD); default: today")
    add_options(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = _parse(argv)
    if wanted(args):
        return run(args, ["scripts/calibrate.py", *(sys.argv[1:] if argv is None else argv)])
    try:
        from dsd_env.calibration.latency.catalogue import CATALOGUE, Link, build
        from dsd_env.calibration.latency.engines import engine_fit
        from dsd_env.calibration.latency.tables import TableError
    except ImportError as e:
        print(f"calibrate: {e}; install the extra: pip install -e '.[calibrate]'", file=sys.stderr)
        return 2
    if args.list:
        print("\n".join(CATALOGUE))
        return 0
    if args.show:
        shipped = list_profiles()
        names = [n for n in CATALOGUE if n in shipped] + [n for n in shipped if n not in CATALOGUE]
        print_table([load_profile(n) for n in names])
        return 0

    raw = data_dir(args.data_dir)
    if raw is None:
        print(
            "calibrate: say where the measured tables are: --data-dir DIR or DSD_DATA_DIR=DIR",
            file=sys.stderr,
        )
        return 2
    folder = raw.expanduser().resolve()
    if not folder.is_dir():
        print(f"calibrate: {raw}: no such folder", file=sys.stderr)
        return 2
    names = list(CATALOGUE) if args.all else list(args.profile)
    unknown = [n for n in names if n not in CATALOGUE]
    if unknown:
        print(
            f"calibrate: unknown profile(s) {', '.join(unknown)}; --list shows the catalogue", file=sys.stderr
        )
        return 2
    link = None
    if (args.interconnect is None) != (args.interconnect_gb_s is None) or (args.interconnect and args.all):
        print("calibrate: --interconnect goes with --interconnect-gb-s and --profile", file=sys.stderr)
        return 2
    if args.interconnect:
        if not 0.1 <= args.interconnect_gb_s <= 10_000.0:
            print(
                f"calibrate: --interconnect-gb-s {args.interconnect_gb_s} must be in [0.1, 10000]",
                file=sys.stderr,
            )
            return 2
        link = Link(args.interconnect, args.interconnect_gb_s)
    date = args.date or datetime.date.today().isoformat()
    out = args.out or config_dir() / "latency"

    built: list[Built] = []
    try:
        for i, name in enumerate(names, start=1):
            print(f"[{i}/{len(names)}] {name}", file=sys.stderr, flush=True)
            # The folder differs from machine to machine and is no part of the recipe: record its variable.
            command = f"python scripts/calibrate.py --data-dir $DSD_DATA_DIR --profile {name}"
            if link is not None:
                command += f" --interconnect {link.kind} --interconnect-gb-s {link.gigabytes_per_s:g}"
            one = build(name, folder, command, date, link)
            save_profile(one.profile, out / f"{one.profile.name}.yaml")
            built.append(one)
        if args.all:
            save_overhead(engine_fit(folder).overhead, out.parent / "engines" / "vllm-v1-2025.yaml")
    except (TableError, RuntimeError, ValueError) as e:
        print(f"calibrate: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"calibrate: interrupted; {len(built)} profile(s) written to {out}", file=sys.stderr)
        return 130
    if args.plot:
        try:
            from dsd_env.calibration.latency.plot import plot_fit, plot_overview
        except ImportError as e:
            print(f"calibrate: {e}", file=sys.stderr)
            return 2
        fitted = [b for b in built if b.fit is not None]
        for b in fitted:
            plot_fit(b, args.figures / f"latency_{b.profile.name}.png")
        if len(fitted) > 1:
            plot_overview(fitted, args.figures / "latency_overview.png")
    print_table([b.profile for b in built])
    return 0


if __name__ == "__main__":
    _cli.run(main)
