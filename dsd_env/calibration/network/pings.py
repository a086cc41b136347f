"""Logs of round trips: ``ping`` of Linux, BusyBox, macOS, BSD and Windows, ``fping``, and tables of them.

With ``ping -D`` (also how LEOViz and LENS record Starlink) or ``fping -D`` every reply has the time at which
it came; otherwise pings are at equal distances. A ping whose number is missing, or of which the log says that
it had no answer, is lost. A table is CSV with ``timestamp`` and ``rtt`` in milliseconds, where ``-1``, ``0``
or an empty cell is a loss (LENS, IRTT).
"""

from __future__ import annotations

import csv
import datetime
import math
import re
from array import array
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dsd_env.network.errors import SeriesError
from dsd_env.network.foreign import (
    FPING,
    FPING_ROW,
    FPING_TRAILER,
    PING_HEADER,
    PING_NUMBER,
    PING_TIME,
    STAMP,
    WINDOWS_HEADER,
    WINDOWS_REPLY,
    recognise,
    table_columns,
)
from dsd_env.network.series import MIN_BITS_PER_S, LinkSeries
from dsd_env.text import TextError, open_text

FloatArray = NDArray[np.float64]

MAX_RTT_S = 20.0
DEFAULT_INTERVAL_S = 1.0
"""What ``ping`` and ``fping`` leave between two pings if not told otherwise."""
_MAX_PINGS = 20_000_000
_MAX_LINE = 100_000
_WRAP = 65536
"""Numbers of pings have 16 bits."""
_EPOCH_SCALES = ((1e18, 1e9), (1e15, 1e6), (1e12, 1e3))
"""Times above the first count from 1970 in units of which a second has the other."""

_LEADING = re.compile(STAMP)
_TRAILER = re.compile(r"^(?P<sent>\d{1,9}) packets transmitted, (?P<got>\d{1,9}) (?:packets )?received")
_TOOK = re.compile(r"\btime (?P<ms>\d{1,12})ms\b")
_WINDOWS_LOST = re.compile(
    r"^Request timed out\.|^Reply from \S+: [A-Z].*(?:unreachable|expired)|^General failure|transmit failed"
)
_WINDOWS_TRAILER = re.compile(r"Packets: Sent = (?P<sent>\d{1,9}), Received = (?P<got>\d{1,9})")


@dataclass(frozen=True)
class PingLog:
    """Pings in the order in which they were sent.

    Attributes:
        form: What the file is.
        sent_s: When each was sent, from the first, not falling, float64, shape (n,).
        rtt_s: Round trips, NaN where there was no answer, float64, shape (n,).
        timing: Where the times come from.
        loss_known: Whether the file tells pings without an answer.
    """

    form: str
    sent_s: FloatArray
    rtt_s: FloatArray
    timing: str
    loss_known: bool

    def __len__(self) -> int:
        """Return the number of pings."""
        return len(self.rtt_s)

    @property
    def answered(self) -> int:
        """Number of pings with an answer."""
        return int(np.isfinite(self.rtt_s).sum())

    @property
    def loss(self) -> float:
        """Share of pings without an answer."""
        return 1.0 - self.answered / len(self)


def read_pings(path: str | Path, *, interval_s: float | None = None, host: str | None = None) -> PingLog:
    """Read a log of round trips.

    Args:
        path: The file.
        interval_s: Time between two pings, where the log has no times; None: as its last lines say, or a
            second.
        host: Of a log of ``fping`` to several hosts, the one to read.

    Raises:
        SeriesError: No such log, no answers in it, or it contradicts itself.
        ValueError: ``interval_s`` is not above 0.
    """
    path = Path(path)
    if interval_s is not None and not (0.0 < interval_s <= 3600.0):
        raise ValueError(f"interval_s = {interval_s} must be above 0 and at most 3600")
    try:
        with open_text(path) as file:
            head: list[str] = []
            while len(head) < 200 and (line := file.readline(_MAX_LINE)):
                if line.strip() or head:
                    head.append(line)
            form = recognise(head)
            if form is None:
                begins = repr(head[0].strip()[:80]) if head else "nothing"
                raise SeriesError(
                    f"{path}: line 1: {begins} begins no log of ping or fping, nor a table with the columns "
                    "timestamp and rtt (a Mahimahi trace needs no import: a link replays it as it is)"
                )
            file.seek(0)
            if form == "table of round trips":
                return _table(path, file.read().split("\n"))
            log = _Log(path, form, host)
            number = 0
            while line := file.readline(_MAX_LINE):
                number += 1
                log.take(number, line)
    except TextError as error:
        raise SeriesError(str(error)) from None
    return log.result(interval_s)


def series_of_pings(
    log: PingLog,
    *,
    uplink_bits_per_s: float,
    downlink_bits_per_s: float,
    step_s: float = 0.0,
    outage_s: float = 2.0,
) -> tuple[LinkSeries, float, float]:
    """Return a series with the delays of pings, and the link's ``one_way_s`` and ``loss_probability``.

    Each direction has half of the round trip as its delay. The part that all delays share is ``one_way_s``. A
    lost ping keeps the delay of the one before it. Where no ping is answered for long, the link has no
    bandwidth; the other losses give ``loss_probability``, the same in both directions.

    Args:
        log: The pings.
        uplink_bits_per_s: Bandwidth of the uplink, which pings do not measure.
        downlink_bits_per_s: Bandwidth of the downlink.
        step_s: Length of a piece, over which round trips are averaged; 0: each ping is a piece.
        outage_s: After this many seconds without an answer the link counts as down.

    Returns:
        The series; ``one_way_s``; ``loss_probability`` of a direction.

    Raises:
        SeriesError: All pings were sent at one time, or pieces are longer than the log.
        ValueError: A bandwidth, ``step_s`` or ``outage_s`` is not possible.
    """
    if min(uplink_bits_per_s, downlink_bits_per_s) < MIN_BITS_PER_S:
        raise ValueError(f"a link needs at least {MIN_BITS_PER_S:g} bit/s in each direction")
    if step_s < 0.0 or outage_s <= 0.0:
        raise ValueError(f"step_s = {step_s} must not be negative, outage_s = {outage_s} above 0")
    sent_s, rtt_s = log.sent_s, log.rtt_s
    answered = np.isfinite(rtt_s)
    least_s = float(rtt_s[answered].min())
    # The number of the last ping with an answer, or of the first one that has any, at each ping.
    numbers = np.where(answered, np.arange(len(rtt_s)), -1)
    before = np.maximum(np.maximum.accumulate(numbers), int(np.argmax(answered)))
    # A stretch without an answer lasts from its first lost ping to the next answered one.
    down = np.zeros(len(rtt_s), dtype=bool)
    edges = np.flatnonzero(np.diff(np.concatenate(([0], (~answered).astype(np.int8), [0]))))
    ends_s = np.append(sent_s, sent_s[-1])
    for start, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        if ends_s[end] - sent_s[start] >= outage_s:
            down[start:end] = True
    lost = float((~answered & ~down).sum() / max(1, (~down).sum()))
    trips_s = rtt_s[before]
    if step_s > 0.0:
        piece = np.floor_divide(sent_s, step_s).astype(np.int64)
        kept, first, counts = np.unique(piece, return_index=True, return_counts=True)
        starts_s, trips_s = kept * step_s, np.add.reduceat(trips_s, first) / counts
        down = np.logical_and.reduceat(down, first)
    else:
        distinct = np.concatenate(([True], np.diff(sent_s) > 0.0))
        starts_s, trips_s, down = sent_s[distinct], trips_s[distinct], down[distinct]
    if len(starts_s) < 2:
        raise SeriesError(f"{len(starts_s)} pieces of the log; a series needs at least 2")
    starts = tuple(float(f"{start_s:.9g}") for start_s in (starts_s - starts_s[0]).tolist())
    delays = tuple(float(f"{delay_s:.9g}") for delay_s in ((trips_s - least_s) / 2.0).tolist())
    series = LinkSeries(
        (*starts, 2.0 * starts[-1] - starts[-2]),
        tuple(0.0 if off else uplink_bits_per_s for off in down.tolist()),
        tuple(0.0 if off else downlink_bits_per_s for off in down.tolist()),
        delays,
    )
    return series, least_s / 2.0, 1.0 - math.sqrt(1.0 - lost)


class _Log:
    """Takes the lines of a log."""

    def __init__(self, path: Path, form: str, host: str | None) -> None:
        self._path, self._form, self._host = path, form, host
        self._chosen = host is not None
        self._trips: dict[int, float] = {}
        self._stamps: dict[int, float] = {}
        self._last = 0
        self._header_line = 0
        self._totals: tuple[int, int, int] | None = None
        self._took_s: float | None = None

    def take(self, number: int, line: str) -> None:
        """Take a line."""
        complete, line = line.endswith("\n"), line.strip()
        try:
            if self._form == "log of fping":
                self._fping(number, line)
            elif self._form == "log of ping":
                self._ping(number, line)
            else:
                self._windows(number, line)
        except _NotRead as error:
            # The last line of a log whose writer was stopped is cut anywhere.
            if complete:
                raise self._error(number, f"{line[:120]!r} {error}") from None

    def _error(self, number: int, message: str) -> SeriesError:
        return SeriesError(f"{self._path}: line {number}: {message}")

    def _begin(self, number: int) -> None:
        if self._header_line:
            raise self._error(
                number, f"a second log begins (the first in line {self._header_line}): give each its own file"
            )
        self._header_line = number

    def _ping(self, number: int, line: str) -> None:
        if PING_HEADER.match(line):
            self._begin(number)
            return
        if found := _TRAILER.match(line):
            self._end(number, int(found["sent"]), int(found["got"]))
            if took := _TOOK.search(line):
                self._took_s = int(took["ms"]) / 1000.0
            return
        seq = PING_NUMBER.search(line)
        reply = "bytes from" in line and "nreachable" not in line and "xceeded" not in line
        if seq is None:
            if reply or "icmp_seq" in line:
                raise _NotRead("has no number of a ping")
            return
        place = self._unwrap(number, int(seq["seq"]))
        if not reply:
            self._trips.setdefault(place, math.nan)
            return
        trip = PING_TIME.search(line)
        if trip is None:
            raise _NotRead("has no time in ms")
        if "DUP!" in line:
            return
        self._answer(number, place, _seconds(trip["ms"], trip["sign"]), _LEADING.match(line))

    def _windows(self, number: int, line: str) -> None:
        if WINDOWS_HEADER.match(line):
            self._begin(number)
        elif found := _WINDOWS_TRAILER.search(line):
            self._end(number, int(found["sent"]), int(found["got"]))
        elif trip := WINDOWS_REPLY.match(line):
            self._answer(number, len(self._trips), _seconds(trip["ms"], trip["sign"]), None)
        elif _WINDOWS_LOST.search(line):
            self._trips[len(self._trips)] = math.nan
        elif line.startswith("Reply from"):
            raise _NotRead("has no time in ms")

    def _fping(self, number: int, line: str) -> None:
        found = FPING.match(line) or FPING_TRAILER.match(line) or FPING_ROW.match(line)
        if found is None:
            if ": [" in line:
                raise _NotRead("is neither an answer nor a loss")
            return
        named = found["host"]
        if self._host is None:
            self._host = named
        elif named != self._host:
            if not self._chosen:
                raise self._error(number, f"several hosts ({self._host}, {named}): choose one with --host")
            return
        fields = found.groupdict()
        if "sent" in fields:
            self._end(number, int(fields["sent"]), int(fields["got"]))
        elif "trips" in fields:
            for trip in fields["trips"].split():
                place = len(self._trips)
                if trip == "-":
                    self._trips[place] = math.nan
                else:
                    self._answer(number, place, _seconds(trip, "="), None)
        elif fields["lost"] is not None:
            self._trips.setdefault(int(fields["seq"]), math.nan)
        else:
            self._answer(number, int(fields["seq"]), _seconds(fields["ms"], "="), found)

    def _unwrap(self, number: int, seq: int) -> int:
        """Return the number of a ping, counted on through all rounds of its 16 bits."""
        if seq >= _WRAP:
            raise self._error(number, f"icmp_seq = {seq} is not below {_WRAP}")
        if not self._trips:
            self._last = seq
            return seq
        ahead = (seq - self._last) % _WRAP
        place = self._last + (ahead if ahead <= _WRAP // 2 else ahead - _WRAP)
        self._last = max(self._last, place)
        return place

    def _answer(self, number: int, place: int, rtt_s: float, stamped: re.Match[str] | None) -> None:
        if rtt_s > MAX_RTT_S:
            raise self._error(number, f"time = {1000 * rtt_s:g} ms is above {1000 * MAX_RTT_S:g} ms")
        if math.isfinite(self._trips.get(place, math.nan)):
            raise self._error(number, f"ping {place} is answered twice: two logs in one file?")
        self._trips[place] = rtt_s
        if stamped is not None and stamped["stamp"] is not None:
            self._stamps[place] = float(stamped["stamp"]) - rtt_s

    def _end(self, number: int, sent: int, got: int) -> None:
        if self._totals is not None:
            raise self._error(number, "a second log ends here: give each its own file")
        self._totals = (number, sent, got)

    def result(self, interval_s: float | None) -> PingLog:
        """Return the pings."""
        answered = sum(1 for rtt_s in self._trips.values() if math.isfinite(rtt_s))
        if answered < 2:
            raise SeriesError(
                f"{self._path}: {answered} answers in it; needed are at least 2 (ping -q keeps none)"
            )
        first, last = min(self._trips), max(self._trips)
        if self._header_line and self._form == "log of ping":
            first = min(first, 1)
        if self._form != "log of ping":
            first = 0
        if self._totals is not None:
            line, sent, got = self._totals
            if got != answered or sent < last - first + 1:
                raise self._error(
                    line,
                    f"says that {sent} pings had {got} answers; {answered} answers to {last - first + 1} are "
                    "in the log: lines are missing",
                )
            last = first + sent - 1
        if last - first + 1 > _MAX_PINGS:
            raise SeriesError(f"{self._path}: {last - first + 1} pings; at most {_MAX_PINGS} are read")
        rtt_s = np.full(last - first + 1, math.nan)
        places = np.fromiter(self._trips, dtype=np.int64, count=len(self._trips)) - first
        rtt_s[places] = np.fromiter(self._trips.values(), dtype=np.float64, count=len(self._trips))
        if self._stamps and len(self._stamps) == answered:
            return PingLog(self._form, self._sent(first, len(rtt_s)), rtt_s, "its stamps", loss_known=True)
        if self._stamps:
            raise SeriesError(
                f"{self._path}: {len(self._stamps)} of {answered} answers have a time in brackets"
            )
        timing = "as told"
        if interval_s is None and self._took_s and len(rtt_s) > 1:
            interval_s, timing = self._took_s / (len(rtt_s) - 1), "its last lines"
        if interval_s is None:
            interval_s, timing = DEFAULT_INTERVAL_S, "assumed: it does not say"
        sent_s = np.arange(len(rtt_s), dtype=np.float64) * float(interval_s)
        return PingLog(self._form, sent_s, rtt_s, f"{interval_s:g} s apart, {timing}", loss_known=True)

    def _sent(self, first: int, count: int) -> FloatArray:
        """Return when each ping was sent: as stamped, and in between by its number."""
        known = np.array(sorted(self._stamps), dtype=np.int64)
        stamps_s = np.array([self._stamps[place] for place in known.tolist()])
        _check_order(self._path, stamps_s)
        stamps_s = np.maximum.accumulate(stamps_s)
        step_s = (stamps_s[-1] - stamps_s[0]) / max(1, known[-1] - known[0])
        places = np.arange(first, first + count)
        sent_s = np.interp(places, known, stamps_s)
        sent_s += step_s * (np.minimum(0, places - known[0]) + np.maximum(0, places - known[-1]))
        return np.asarray(sent_s - sent_s[0], dtype=np.float64)


class _NotRead(Exception):
    """A line that ought to be one of the log's cannot be read."""


def _check_order(path: Path, times_s: FloatArray) -> None:
    back_s = float((np.maximum.accumulate(times_s) - times_s).max())
    if back_s > 1.0:
        raise SeriesError(
            f"{path}: its times go back by {back_s:g} s: was the clock set, or are there two logs?"
        )


def _seconds(ms: str, sign: str) -> float:
    """Return a round trip in seconds; one below a bound counts as half of it."""
    return float(ms) / (1000.0 if sign == "=" else 2000.0)


def _table(path: Path, lines: list[str]) -> PingLog:
    """Read a CSV table."""
    start = next(number for number, line in enumerate(lines) if line.strip())
    columns = table_columns(lines[start])
    assert columns is not None  # that is what it was recognised by
    separator, time_column, trip_column, unit_s = columns
    names = [name.strip().strip('"') for name in lines[start].split(separator)]
    times, trips = array("d"), array("d")
    reader = csv.reader(lines[start + 1 :], delimiter=separator)
    try:
        for row in reader:
            line = start + 1 + reader.line_num
            if not row or (len(row) == 1 and not row[0].strip()):
                continue
            if len(row) != len(names):
                raise SeriesError(f"{path}: line {line}: {len(row)} fields, the header has {len(names)}")
            where = f"{path}: line {line}: "
            times.append(_moment(f"{where}{names[time_column]}", row[time_column].strip()))
            trips.append(_trip(f"{where}{names[trip_column]}", row[trip_column].strip(), unit_s))
    except csv.Error as error:
        raise SeriesError(f"{path}: line {start + 1 + reader.line_num}: {error}") from error
    rtt_s = np.array(trips, dtype=np.float64)
    if np.isfinite(rtt_s).sum() < 2:
        raise SeriesError(f"{path}: {int(np.isfinite(rtt_s).sum())} answers in it; needed are at least 2")
    sent_s = np.array(times, dtype=np.float64)
    _check_order(path, sent_s)
    sent_s = np.maximum.accumulate(sent_s)
    lost = bool(np.isnan(rtt_s).any())
    return PingLog("table of round trips", sent_s - sent_s[0], rtt_s, "its times", loss_known=lost)


def _moment(where: str, field: str) -> float:
    """Return a time in seconds: a number from any beginning, in a unit that follows from it, or a date."""
    try:
        value = float(field)
    except ValueError:
        try:
            moment = datetime.datetime.fromisoformat(field)
            if moment.tzinfo is None:
                moment = moment.replace(tzinfo=datetime.UTC)
            return moment.timestamp()
        except (ValueError, OverflowError):
            raise SeriesError(f"{where} = {field[:80]!r} is no time") from None
    if not (math.isfinite(value) and 0.0 <= value < 1e19):
        raise SeriesError(f"{where} = {field[:80]} must be finite, not negative and a time")
    for least, per_s in _EPOCH_SCALES:
        if value >= least:
            return value / per_s
    return value


def _trip(where: str, field: str, unit_s: float) -> float:
    """Return a round trip in seconds, NaN for a loss."""
    if field in ("", "-", "-1"):
        return math.nan
    try:
        value = float(field)
    except ValueError:
        raise SeriesError(f"{where} = {field[:80]!r} is not a number") from None
    if value in (0.0, -1.0):
        return math.nan
    if not 0.0 < value * unit_s <= MAX_RTT_S:
        raise SeriesError(
            f"{where} = {field[:80]} is not a round trip: finite, above 0 and at most {MAX_RTT_S:g} s"
        )
    return value * unit_s
