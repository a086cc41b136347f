#!/usr/bin/env python3
"""Read a log of ping or fping, say what is in it, and save it as a series that a link can replay.

    python scripts/import_network.py ping.txt
    python scripts/import_network.py ping.txt --uplink-bits-per-s 2e7 --downlink-bits-per-s 1e8 --out link.csv

Reads ping of Linux (with and without -D), BusyBox, macOS, BSD and Windows, fping, and CSV tables with
timestamp and rtt (LENS); docs/network.md describes them. A ping without an answer is a loss. Pings measure no
bandwidth: say what the link has.
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

from dsd_env.calibration.network.pings import PingLog, read_pings, series_of_pings
from dsd_env.network import save_series

PERCENTILES = (1, 5, 25, 50, 75, 95, 99)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("file", type=Path, help="the log")
    parser.add_argument("--host", help="of a log of fping to several hosts, the one to read")
    parser.add_argument(
        "--interval-s", type=float, help="time between two pings, where the log does not have it (1)"
    )
    parser.add_argument("--uplink-bits-per-s", type=float, help="bandwidth of the link, not in the log")
    parser.add_argument("--downlink-bits-per-s", type=float, help="likewise")
    parser.add_argument(
        "--step-s", type=float, default=0.0, help="average over pieces so long; default: each ping is a piece"
    )
    parser.add_argument(
        "--outage-s",
        type=float,
        default=2.0,
        help="from so many seconds without an answer on the link is down (default %(default)s); shorter ones "
        "are losses",
    )
    parser.add_argument("--out", type=Path, help="save the series here, for `replay: {file: ...}` of a link")
    args = parser.parse_args(argv)
    for option in ("interval_s", "uplink_bits_per_s", "downlink_bits_per_s", "outage_s"):
        value = getattr(args, option)
        if value is not None and not (value > 0.0 and math.isfinite(value)):
            parser.error(f"--{option.replace('_', '-')} {value} must be finite and above 0")
    if not (args.step_s >= 0.0 and math.isfinite(args.step_s)):
        parser.error(f"--step-s {args.step_s} must be finite and at least 0")
    if args.out is not None and None in (args.uplink_bits_per_s, args.downlink_bits_per_s):
        parser.error(
            "pings measure no bandwidth: --out needs the link's --uplink-bits-per-s and --downlink-bits-per-s"
        )
    return args


def summary(log: PingLog) -> Iterator[str]:
    """Yield lines that say what is in a log."""
    yield f"file              {log.form}"
    yield f"pings             {len(log)} over {log.sent_s[-1]:.6g} s; times: {log.timing}"
    lost = len(log) - log.answered
    if log.loss_known:
        yield f"no answer         {lost} ({100 * log.loss:.2f} %), at most {_longest_run(log)} on end"
    else:
        yield "no answer         not in this file, which has answers only: the loss is not known"
    trips_ms = 1000.0 * log.rtt_s[np.isfinite(log.rtt_s)]
    values = ", ".join(
        f"p{p} {v:.4g}" for p, v in zip(PERCENTILES, np.percentile(trips_ms, PERCENTILES), strict=True)
    )
    yield f"round trip (ms)   least {trips_ms.min():.4g}, mean {trips_ms.mean():.4g}, {values}"


def _longest_run(log: PingLog) -> int:
    """Return how many pings on end had no answer, at most."""
    answered = np.flatnonzero(np.concatenate(([True], np.isfinite(log.rtt_s), [True])))
    return int(np.diff(answered).max()) - 1


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = _parse(argv)
    try:
        log = read_pings(args.file, interval_s=args.interval_s, host=args.host)
        lines = list(summary(log))
        if args.out is not None:
            series, one_way_s, loss = series_of_pings(
                log,
                uplink_bits_per_s=args.uplink_bits_per_s,
                downlink_bits_per_s=args.downlink_bits_per_s,
                step_s=args.step_s,
                outage_s=args.outage_s,
            )
            link = {
                "one_way_s": f"{one_way_s:.6g}",
                "uplink_bits_per_s": f"{args.uplink_bits_per_s:.6g}",
                "downlink_bits_per_s": f"{args.downlink_bits_per_s:.6g}",
                "loss_probability": f"{loss:.4g}",
                "replay": f"{{file: {args.out}}}",
            }
            of_link = [f"  {key}: {value}" for key, value in link.items()]
            comments = (f"Made by scripts/import_network.py of {args.file.name}; its link:", *of_link)
            save_series(series, args.out, comments=comments)
            lines += [
                f"wrote {args.out}: {len(series.extra_delay_s)} pieces; the link in a scenario:",
                *of_link,
            ]
            down = sum(rate == 0.0 for rate in series.uplink_bits_per_s)
            if down:
                lines.append(f"in {down} pieces it is down: nothing answered for {args.outage_s:g} s or more")
            if loss > 0.5:
                lines.append("a link's loss_probability is 0.5 at most")
        print("\n".join(lines))
    except (OSError, ValueError) as error:
        print(f"import_network: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    _cli.run(main)
