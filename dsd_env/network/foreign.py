"""Knows logs and tables of round trips when it sees them.

A link does not replay them; the reader of series sends whoever names one to the importer
(:mod:`dsd_env.calibration.network.pings`), which reads them by the same patterns.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_TIMES = ("timestamp", "time", "time_s", "ts")
_TRIPS = {"rtt": 1e-3, "rtt_ms": 1e-3, "latency_ms": 1e-3, "rtt_s": 1.0}

STAMP = r"^(?:\[(?P<stamp>\d{9,10}\.\d{1,9})\]\s*)?"
PING_NUMBER = re.compile(r"\b(?:icmp_)?[rs]eq[= ](?P<seq>\d{1,9})\b")
PING_TIME = re.compile(r"\btime(?P<sign>[=<]) ?(?P<ms>\d{1,6}(?:\.\d{1,6})?) ?ms\b")
PING_HEADER = re.compile(r"^PING .*data bytes|^PING .*bytes of data")
WINDOWS_HEADER = re.compile(r"^Pinging .* with \d+ bytes of data")
WINDOWS_REPLY = re.compile(r"^Reply from \S+: (?:bytes=\d+ )?time(?P<sign>[=<])(?P<ms>\d{1,6})ms")
FPING = re.compile(
    STAMP + r"(?P<host>\S+)\s*: \[(?P<seq>\d{1,9})\], (?:(?P<lost>.*timed out|.*unreachable)|"
    r"\d+ bytes, (?P<ms>\d{1,6}(?:\.\d{1,6})?) ms\b)"
)
FPING_TRAILER = re.compile(r"^(?P<host>\S+)\s*: xmt/rcv/%loss = (?P<sent>\d{1,9})/(?P<got>\d{1,9})/")
FPING_ROW = re.compile(r"^(?P<host>\S+)\s*:(?P<trips>(?: (?:\d{1,6}(?:\.\d{1,6})?|-)){2,})\s*$")


def recognise(lines: Sequence[str]) -> str | None:
    """Return what kind of log of round trips lines belong to, or None."""
    for line in lines:
        line = line.strip()
        if FPING.match(line) or FPING_ROW.match(line) or FPING_TRAILER.match(line):
            return "log of fping"
        if WINDOWS_HEADER.match(line) or WINDOWS_REPLY.match(line):
            return "log of Windows' ping"
        if PING_HEADER.match(line) or (PING_NUMBER.search(line) and PING_TIME.search(line)):
            return "log of ping"
    return "table of round trips" if lines and table_columns(lines[0]) is not None else None


def table_columns(line: str) -> tuple[str, int, int, float] | None:
    """Return separator, columns of time and round trip, and the latter's unit in seconds."""
    for separator in (",", ";", "\t"):
        names = [name.strip().strip('"').lower() for name in line.split(separator)]
        times = [names.index(name) for name in _TIMES if name in names]
        trips = [(names.index(name), unit) for name, unit in _TRIPS.items() if name in names]
        if times and trips:
            return separator, times[0], *trips[0]
    return None
