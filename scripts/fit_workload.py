#!/usr/bin/env python3
"""Fit arrivals and lengths to recorded requests and write them to ``configs/workload/NAME.yaml``.

    python scripts/fit_workload.py --data-dir DATA --all [--plot]
    python scripts/fit_workload.py --data-dir DATA --name azure-conv-2023
    python scripts/fit_workload.py --data-dir DATA --show
    python scripts/fit_workload.py --list

The data folder (or ``DSD_DATA_DIR``) holds ``azure_llm`` and ``servegen``. Every fit is generated again by
the laws that simulations use, and a table compares what was given with what comes out; the file keeps it.
``--show`` does that for the shipped files without fitting anew.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import _checkout  # noqa: F401
import _cli

from dsd_env import strict_yaml
from dsd_env.files import write_text
from dsd_env.paths import config_dir, data_dir
from dsd_env.strict_yaml import StrictYamlError

FIGURES = Path(__file__).resolve().parent.parent / "docs" / "figures"


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--all", action="store_true", help="fit everything in the catalogue (minutes)")
    what.add_argument("--name", action="append", metavar="NAME", help="fit this one (may be repeated)")
    what.add_argument("--show", action="store_true", help="compare the shipped fits, fit nothing")
    what.add_argument("--list", action="store_true", help="list the catalogue and stop")
    parser.add_argument(
        "--data-dir", "--data", type=Path, metavar="DIR", help="folder of the data; default: DSD_DATA_DIR"
    )
    parser.add_argument("--out", type=Path, help="where to write; default: configs/workload")
    parser.add_argument("--plot", action="store_true", help="draw docs/figures/workload_NAME.png, too")
    parser.add_argument("--figures", type=Path, default=FIGURES, help="where to draw; default: docs/figures")
    return parser.parse_args(argv)


def _table(name: str, rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    yield f"| {name} | data | generated | off |"
    yield "|---|---|---|---|"
    for row in rows:
        off = f"{row['off_percent']:+.1f} %" if "off_percent" in row else f"{row['off']:+.3f}"
        cells = [_cell(row, column) for column in ("data", "generated")]
        yield f"| {row['statistic']} | {cells[0]} | {cells[1]} | {off} |"


def _cell(row: dict[str, Any], column: str) -> str:
    both = row.get(f"{column}_range")
    return f"{row[column]:.4g}" + (f" ({both[0]:.3g} to {both[1]:.3g})" if both else "")


def _write(path: Path, content: dict[str, Any]) -> None:
    """Write one fit, under a temporary name first."""
    head = (
        "# Fitted by scripts/fit_workload.py; docs/workload.md explains and compares. Not written by hand.\n"
        "# A scenario gives each kind of request its SLO.\n"
    )
    options: dict[str, Any] = {"default_flow_style": None, "width": 110, "allow_unicode": False}
    write_text(path, head + strict_yaml.dumps(content, **options))


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = _parse(argv)
    try:
        from dsd_env.calibration.workload import catalogue
        from dsd_env.calibration.workload.fit import FitError
        from dsd_env.workload import RequestTraceError
    except ImportError as error:
        print(f"fit_workload: {error}", file=sys.stderr)
        return 2
    if args.list:
        print("\n".join(f"{name:<26} {entry.path}" for name, entry in catalogue.CATALOGUE.items()))
        return 0
    folder = data_dir(args.data_dir)
    if folder is None:
        print("fit_workload: say where the data are: --data-dir DIR or DSD_DATA_DIR=DIR", file=sys.stderr)
        return 2
    unknown = [name for name in args.name or () if name not in catalogue.CATALOGUE]
    if unknown:
        print(f"fit_workload: unknown {', '.join(unknown)}; --list shows the catalogue", file=sys.stderr)
        return 2
    out = args.out or config_dir() / "workload"
    try:
        for name in args.name or catalogue.CATALOGUE:
            entry = catalogue.CATALOGUE[name]
            measured = catalogue.measure(entry, folder.expanduser())
            path = out / f"{name}.yaml"
            if args.show:
                model = catalogue.load_model(path)
            else:
                print(f"fitting {name} ...", file=sys.stderr)
                # What is written is rounded; what is compared is what was written.
                model = catalogue.Model.from_yaml(catalogue.fit_entry(entry, measured).to_yaml())
            generated, ranges, curves = catalogue.generate(model, measured)
            rows = catalogue.compare(measured.statistics, generated, measured.ranges, ranges)
            if not args.show:
                command = f"python scripts/fit_workload.py --data-dir $DSD_DATA_DIR --name {name}"
                source = {"path": entry.path, "licence": entry.licence}
                fields = {"workload": model.to_yaml(), "compared": rows}
                _write(path, {"name": name, "source": source, "command": command, **fields})
            if args.plot:
                from dsd_env.calibration.workload.plot import plot_fit

                given = "data" if entry.kind == "requests" else "made of published statistics"
                figure = args.figures / f"workload_{name}.png"
                plot_fit(figure, name, measured.curves, curves, given)
                print(f"drew {figure}", file=sys.stderr)
            print("\n".join(_table(name, rows)) + "\n")
    except (FitError, RequestTraceError, StrictYamlError, OSError) as error:
        print(f"fit_workload: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    _cli.run(main)
