#!/usr/bin/env python3
"""Fit link processes to statistics of measured networks and write them to ``configs/network/NAME.yaml``.

    python scripts/fit_network.py --data DATA --all
    python scripts/fit_network.py --data DATA --name lumos5g-5g
    python scripts/fit_network.py --data DATA --show
    python scripts/fit_network.py --list

The data folder (or ``DSD_DATA_DIR``) holds ``network_stats.csv``. Every fit is generated again by the code
that simulations use, and a table compares what was given with what comes out; ``--show`` does that for the
shipped files without fitting anew. Scenarios hold copies of these numbers, and a test compares them.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import _checkout  # noqa: F401
import _cli
import numpy as np

from dsd_env import strict_yaml
from dsd_env.files import write_text
from dsd_env.paths import config_dir, data_dir
from dsd_env.scenario.schema import Link
from dsd_env.strict_yaml import StrictYamlError

if TYPE_CHECKING:
    from dsd_env.calibration.network.fit import NetworkRow, Statistics

STATISTICS_FILE = "network_stats.csv"
SECONDS = 40_000
PINGS = 240_000
PLACES = 20_000
SEED = 1


class Entry(NamedTuple):
    """One fit.

    Attributes:
        row: Name of the row in the file of statistics.
        kind: ``bandwidth`` (a series by the second), ``delay`` (a series of round trips) or ``spread`` (round
            trips of many places).
        interval_s: Time between two pings, for a series of round trips.
        sent: Pings sent, answered or not; 0: not known, or no pings.
    """

    row: str
    kind: str
    interval_s: float = math.nan
    sent: int = 0


CATALOGUE = {
    "att-lte-driving-down": Entry("mahimahi ATT-LTE-driving.down", "bandwidth"),
    "att-lte-driving-up": Entry("mahimahi ATT-LTE-driving.up", "bandwidth"),
    "tmobile-lte-driving-down": Entry("mahimahi TMobile-LTE-driving.down", "bandwidth"),
    "verizon-lte-short-down": Entry("mahimahi Verizon-LTE-short.down", "bandwidth"),
    "verizon-lte-short-up": Entry("mahimahi Verizon-LTE-short.up", "bandwidth"),
    "lumos5g-5g": Entry("Lumos5G 5G (all traces concatenated)", "bandwidth"),
    "lumos5g-4g": Entry("Lumos5G 4G (all traces concatenated)", "bandwidth"),
    "starlink-rtt": Entry(
        "Starlink ping (LEOViz; replies 101 ms apart over 900 s; 15 % of 8,882 pings unanswered)",
        "delay",
        interval_s=0.101,
        sent=8882,
    ),
    "ookla-4g-lte-rtt": Entry("Ookla latency 4G-LTE", "spread"),
    "ookla-5g-near-rtt": Entry("Ookla latency <100km 5G-NSA-Low-Band", "spread"),
}

RENAMED = {
    "Starlink ping (LEOViz; replies 101 ms apart over 900 s; 15 % of 8,882 pings unanswered)": (
        "Starlink ping (LEOViz, 10ms)"
    )
}
"""Rows that an earlier edition of the statistics calls otherwise; the numbers are the same."""


def row_of(entry: Entry, measured: Mapping[str, NetworkRow], folder: Path) -> NetworkRow:
    """Return the row of a fit, with what is known of its pings.

    Raises:
        FitError: The table has no such row.
    """
    from dsd_env.calibration.network.fit import FitError

    name = entry.row if entry.row in measured else RENAMED.get(entry.row, entry.row)
    if name not in measured:
        raise FitError(f"{folder / STATISTICS_FILE}: there is no row {entry.row!r}")
    if entry.kind != "delay":
        return measured[name]
    return dataclasses.replace(measured[name], interval_s=entry.interval_s, sent=entry.sent)


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
        "--data-dir", "--data", dest="data", type=Path, help="folder of the statistics; default: DSD_DATA_DIR"
    )
    parser.add_argument("--out", type=Path, help="where to write; default: configs/network")
    return parser.parse_args(argv)


def _fit(entry: Entry, row: NetworkRow) -> dict[str, Any]:
    """Return the fitted fields."""
    from dsd_env.calibration.network import fit

    if entry.kind == "bandwidth":
        found = fit.fit_bandwidth(row)
        fields: dict[str, Any] = {
            "bits_per_s": found.bits_per_s,
            "bandwidth": found.bandwidth.model_dump(mode="json"),
        }
        if found.outages is not None:
            fields["outages"] = found.outages.model_dump(mode="json")
        return fields
    link = fit.fit_delay(row) if entry.kind == "delay" else fit.fit_spread(row)
    fields = {"one_way_s": link.one_way_s, "one_way_spread": list(link.one_way_spread)}
    if link.jitter.median_s > 0.0:
        fields["jitter"] = link.jitter.model_dump(mode="json")
    if link.delay is not None:
        fields["delay"] = link.delay.model_dump(mode="json", exclude_none=True)
    if link.loss_probability > 0.0:
        fields["loss_probability"] = link.loss_probability
    return fields


def _generate(entry: Entry, row: NetworkRow, fields: dict[str, Any]) -> Statistics:
    """Return the statistics of what simulations make of fitted fields."""
    from dsd_env.calibration.network import fit

    fields = dict(fields)
    rate = fields.pop("bits_per_s", 1e15)
    link = Link.model_validate(
        {"one_way_s": 0.0, "uplink_bits_per_s": rate, "downlink_bits_per_s": rate, **fields}
    )
    if entry.kind == "bandwidth":
        return fit.statistics_of(1e-6 * fit.generate_bandwidth(link, SECONDS, SEED), row.resolution)
    if entry.kind == "delay":
        trips = fit.generate_round_trips(link, PINGS, row.interval_s, SEED)
        return fit.statistics_of(1e3 * trips[np.isfinite(trips)], row.resolution)
    trips = fit.generate_first_round_trips(link, PLACES, SEED)
    return fit.statistics_of(1e3 * trips, row.resolution, correlated=False)


def _table(rows: list[tuple[str, Statistics, Statistics]]) -> Iterator[str]:
    """Yield the lines of a Markdown table: given, generated; what is off by more than 10 % is starred."""
    from dsd_env.calibration.network.fit import deviations

    names = max((list(given.named()) for _, given, _ in rows), key=len)
    yield "| fit | | " + " | ".join(names) + " | within 10 % |"
    yield "|---" * (len(names) + 3) + "|"
    for name, given, generated in rows:
        off = deviations(given, generated)
        wanted, found = given.named(), generated.named()
        cells = [f"{wanted[key]:.4g}" if key in wanted else "" for key in names]
        yield f"| {name} | given | " + " | ".join(cells) + " | |"
        cells = [_cell(key, found[key], off[key]) if key in wanted else "" for key in names]
        good = sum(abs(value) <= 0.1 for value in off.values())
        yield "| | generated | " + " | ".join(cells) + f" | {good} of {len(off)} |"


def _cell(name: str, value: float, deviation: float) -> str:
    text = f"{value:.2f}" if name == "cv" or name.startswith("ac") else f"{value:.3g}"
    return text + (r"\*" if abs(deviation) > 0.1 else "")


def _write(path: Path, name: str, entry: Entry, row: NetworkRow, fields: dict[str, Any]) -> None:
    """Write one fit, under a temporary name first."""
    head = (
        f"# Fitted by scripts/fit_network.py to one row of {STATISTICS_FILE}; docs/network.md compares.\n"
        "# Not written by hand. Scenarios hold copies of these numbers.\n"
    )
    content = {
        "name": name,
        "source": {"file": STATISTICS_FILE, "row": entry.row, "unit": row.unit, "samples": row.samples},
        "command": f"python scripts/fit_network.py --data $DSD_DATA_DIR --name {name}",
        "link": fields,
    }
    options: dict[str, Any] = {"default_flow_style": None, "width": 100, "allow_unicode": False}
    write_text(path, head + strict_yaml.dumps(content, **options))


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = _parse(argv)
    if args.list:
        print("\n".join(f"{name:<26} {entry.row}" for name, entry in CATALOGUE.items()))
        return 0
    try:
        from dsd_env.calibration.network.fit import FitError, read_rows
    except ImportError as error:
        print(f"fit_network: {error}", file=sys.stderr)
        return 2
    folder = data_dir(args.data)
    if folder is None:
        print(
            "fit_network: say where the statistics are: --data DIR or DSD_DATA_DIR=DIR",
            file=sys.stderr,
        )
        return 2
    unknown = [name for name in args.name or () if name not in CATALOGUE]
    if unknown:
        print(f"fit_network: unknown {', '.join(unknown)}; --list shows the catalogue", file=sys.stderr)
        return 2
    out = args.out or config_dir() / "network"
    compared: list[tuple[str, Statistics, Statistics]] = []
    try:
        measured = read_rows(folder.expanduser() / STATISTICS_FILE)
        for name in args.name or CATALOGUE:
            entry = CATALOGUE[name]
            row = row_of(entry, measured, folder)
            path = out / f"{name}.yaml"
            if args.show:
                fields = strict_yaml.load(path)["link"]
            else:
                print(f"fitting {name}", file=sys.stderr, flush=True)
                fields = _fit(entry, row)
                _write(path, name, entry, row, fields)
            compared.append((name, row.given, _generate(entry, row, fields)))
    except (FitError, StrictYamlError, OSError) as error:
        print(f"fit_network: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"fit_network: interrupted; {len(compared)} file(s) written to {out}", file=sys.stderr)
        return 130
    print("\n".join(_table(compared)))
    return 0


if __name__ == "__main__":
    _cli.run(main)
