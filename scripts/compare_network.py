#!/usr/bin/env python3
"""Hold a fitted link against a recorded one by what each does to the times of requests.

    python scripts/compare_network.py --name starlink-rtt --log ping.txt
    python scripts/compare_network.py --name starlink-rtt --data $DSD_DATA_DIR

The same small system runs with the link of ``configs/network/NAME.yaml`` and with the log replayed
(any log that ``import_network.py`` reads). Without a log, series are made up that have the percentiles of the
fit's row of ``network_stats.csv`` but come about otherwise: a level of its own for every 15 s, and noise. The
exit status is 1 if p50, p95, p99 or the standard deviation of request times differ by more than 10 %.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import _checkout  # noqa: F401
import _cli
import fit_network
import numpy as np

from dsd_env import strict_yaml
from dsd_env.calibration.network.pings import read_pings
from dsd_env.paths import config_dir, data_dir
from dsd_env.scenario.schema import Link

if TYPE_CHECKING:
    from dsd_env.calibration.network.effect import Effect
    from dsd_env.calibration.network.pings import PingLog

LIMIT = 0.10
SCHEDULERS = ("static:4:1:own", "cloud_ar:1")


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--name", default="starlink-rtt", help="the fit (default %(default)s)")
    parser.add_argument("--log", type=Path, help="log of pings to replay")
    parser.add_argument("--data", type=Path, help="folder of the statistics; default: DSD_DATA_DIR")
    parser.add_argument("--requests", type=int, default=2000, help="requests a seed (default %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds (default %(default)s)")
    args = parser.parse_args(argv)
    if args.requests < 1 or args.seeds < 1:
        parser.error(f"--requests {args.requests} and --seeds {args.seeds} must be at least 1")
    entry = fit_network.CATALOGUE.get(args.name)
    if entry is None or entry.kind != "delay":
        names = [name for name, entry in fit_network.CATALOGUE.items() if entry.kind == "delay"]
        parser.error(f"--name {args.name} is no fit of round trips; those are: {', '.join(names)}")
    return args


def made_up(name: str, folder: Path) -> Iterator[tuple[str, PingLog]]:
    """Yield series with the statistics of a fit's row, by what they are."""
    from dsd_env.calibration.network import fit
    from dsd_env.calibration.network.effect import slotted_series

    entry = fit_network.CATALOGUE[name]
    row = fit_network.row_of(entry, fit.read_rows(folder / fit_network.STATISTICS_FILE), folder)
    lost = 1.0 - row.answered_share
    for seed in (1, 2):
        log = slotted_series(
            row.given.percentiles, fit.PERCENTILES, interval_s=row.interval_s, lost=lost, seed=seed
        )
        yield f"15 s slots, series {seed}", log
    log = slotted_series(
        row.given.percentiles, fit.PERCENTILES, interval_s=row.interval_s, lost=lost, run_pings=5.0
    )
    yield "15 s slots, losses in runs of 0.5 s", log
    log = slotted_series(
        row.given.percentiles, fit.PERCENTILES, interval_s=row.interval_s, lost=lost, run_pings=50.0
    )
    yield "15 s slots, losses in runs of 5 s", log


def lines_of(title: str, wanted: Effect, found: Effect) -> Iterator[str]:
    """Yield rows of the table: the replayed link, and the fitted one beside it."""
    yield f"| {title} | replayed | " + " | ".join(f"{v:.3f}" for v in wanted.named().values()) + " | |"
    off = off_by(wanted, found)
    cells = [f"{value:.3f} ({100 * off[key]:+.1f} %)" for key, value in found.named().items()]
    verdict = "yes" if max(map(abs, off.values())) <= LIMIT else "no"
    yield "| | fitted | " + " | ".join(cells) + f" | {verdict} |"


def off_by(wanted: Effect, found: Effect) -> dict[str, float]:
    """Return by how much each figure of the fitted link is off, as a share."""
    values = found.named()
    return {key: values[key] / value - 1.0 for key, value in wanted.named().items()}


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = _parse(argv)
    try:
        from dsd_env.calibration.network.effect import BITS_PER_S, effect_of, replayed_link
    except ImportError as error:
        print(f"compare_network: {error}", file=sys.stderr)
        return 2
    folder = data_dir(args.data)
    if args.log is None and folder is None:
        print("compare_network: give a log (--log) or the statistics (--data)", file=sys.stderr)
        return 2
    fields = strict_yaml.load(config_dir() / "network" / f"{args.name}.yaml")["link"]
    fitted = Link.model_validate(
        {"uplink_bits_per_s": BITS_PER_S, "downlink_bits_per_s": BITS_PER_S, **fields}
    )
    good = True
    try:
        if args.log is not None:
            series = [(args.log.name, read_pings(args.log))]
        else:
            assert folder is not None
            series = list(made_up(args.name, folder.expanduser()))
        print(f"times of requests in s; fitted: {args.name}; within: all four within {100 * LIMIT:.0f} %")
        for scheduler in SCHEDULERS:
            options = {"seeds": tuple(range(1, args.seeds + 1)), "requests": args.requests}
            found = effect_of(fitted, scheduler, **options)
            print(f"\n| {scheduler} | | p50 | p95 | p99 | spread | within |\n|---|---|---|---|---|---|---|")
            for title, log in series:
                with tempfile.TemporaryDirectory() as scratch:
                    link = replayed_link(log, Path(scratch) / "series.csv")
                    wanted = effect_of(link, scheduler, **options)
                print("\n".join(lines_of(title, wanted, found)), flush=True)
                good = good and max(map(abs, off_by(wanted, found).values())) <= LIMIT
        for title, log in series:
            trips_ms = 1e3 * log.rtt_s[np.isfinite(log.rtt_s)]
            values = ", ".join(
                f"p{p} {v:.4g}"
                for p, v in zip((1, 50, 99), np.percentile(trips_ms, (1, 50, 99)), strict=True)
            )
            print(
                f"\n{title}: {len(log)} pings over {log.sent_s[-1]:.0f} s, "
                f"{100 * log.loss:.1f} % lost; ms: {values}"
            )
    except (OSError, ValueError) as error:
        print(f"compare_network: {error}", file=sys.stderr)
        return 1
    return 0 if good else 1


if __name__ == "__main__":
    _cli.run(main)
