"""Recorded network series: bandwidth and delay by time, from CSV or Mahimahi files.

CSV, with a header: ``time_s, uplink_bits_per_s, downlink_bits_per_s`` and optionally ``extra_delay_s``; each
row holds from its time until the time of the next one; the last row holds as long as the one before it.
Mahimahi: one line per delivery opportunity of 1,500 bytes, its time in milliseconds, from 1; the last line
ends the period of the trace, which then repeats. The same file serves both directions. Lines that begin with
``#`` are comments.
"""

from __future__ import annotations

import csv
import math
import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from dsd_env.files import write_text
from dsd_env.network.errors import SeriesError
from dsd_env.network.foreign import recognise
from dsd_env.paths import config_dir
from dsd_env.text import TextError, read_text

COLUMNS = ("time_s", "uplink_bits_per_s", "downlink_bits_per_s")
OPTIONAL = ("extra_delay_s",)
MAHIMAHI_BYTES = 1500
_MAX_FILE_BYTES = 50_000_000
MIN_BITS_PER_S = 1e4
"""A link slower than this, always, was given in another unit, most likely."""
_MAX_DELAY_S = 10.0
"""A delay longer than this, likewise."""
_MOST = {"time_s": 1e9, "uplink_bits_per_s": 1e15, "downlink_bits_per_s": 1e15}
"""Values above these are not seconds from any beginning, or bits per second."""
_MAX_MAHIMAHI_MS = 86_400_000
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


@dataclass(frozen=True)
class LinkSeries:
    """Bandwidth and delay, piecewise constant.

    Attributes:
        times_s: Beginnings of the pieces, the first 0, and the end of the last one; length n + 1.
        uplink_bits_per_s: Length n.
        downlink_bits_per_s: Length n.
        extra_delay_s: One-way delay on top of the link's own, length n.
    """

    times_s: tuple[float, ...]
    uplink_bits_per_s: tuple[float, ...]
    downlink_bits_per_s: tuple[float, ...]
    extra_delay_s: tuple[float, ...]

    @property
    def length_s(self) -> float:
        """Time after which the series repeats."""
        return self.times_s[-1]


def load_series(name: str | Path) -> LinkSeries:
    """Load a series by path, or a shipped one by name.

    Raises:
        SeriesError: Not found, malformed, not finite, negative, out of order, or never any bandwidth.
    """
    path = Path(name)
    if not path.is_file():
        path = config_dir() / "network" / f"{name}.csv"
    if not path.is_file():
        raise SeriesError(f"network series {str(name)!r} does not exist")
    try:
        text = read_text(path, max_bytes=_MAX_FILE_BYTES)
    except TextError as error:
        raise SeriesError(str(error)) from None
    lines = ["" if line.startswith("#") else line for line in text.split("\n")]
    first = next((number for number, line in enumerate(lines) if line.strip()), None)
    if first is None:
        raise SeriesError(f"{path}: line 1: empty; a CSV begins with the header {','.join(COLUMNS)}")
    if _is_whole(lines[first].strip()):
        return _mahimahi(lines, path)
    found = recognise(lines[first : first + 50])
    if found is not None:
        raise SeriesError(
            f"{path}: line {first + 1}: a {found}, not a series: import it first, "
            f"python scripts/import_network.py {path} --out SERIES.csv"
        )
    if lines[first].lstrip().startswith(("{", "[")):
        raise SeriesError(
            f"{path}: line {first + 1}: JSON, not a series: CSV begins with {','.join(COLUMNS)}"
        )
    return _csv(lines, first, path)


def save_series(series: LinkSeries, path: str | Path, *, comments: tuple[str, ...] = ()) -> Path:
    """Write a series as CSV, atomically.

    A file has no end: its last row holds as long as the one before it. Where the last piece does not, it is
    written as two halves.

    Args:
        series: The series.
        path: Where to.
        comments: Lines above the header, without their ``#``.
    """
    path = Path(path)
    lines = [f"# {comment}" for comment in comments]
    lines.append(",".join((*COLUMNS, *OPTIONAL)))
    columns = (
        series.times_s[:-1],
        series.uplink_bits_per_s,
        series.downlink_bits_per_s,
        series.extra_delay_s,
    )
    rows = list(zip(*columns, strict=True))
    lasts_s = series.times_s[-1] - rows[-1][0]
    if len(rows) < 2 or not math.isclose(lasts_s, rows[-1][0] - rows[-2][0]):
        rows.append((rows[-1][0] + lasts_s / 2, *rows[-1][1:]))
    lines += [",".join(f"{value:.9g}" for value in row) for row in rows]
    write_text(path, "\n".join(lines) + "\n")
    return path


def _csv(lines: list[str], first: int, path: Path) -> LinkSeries:
    separator, header = _header(lines[first], first + 1, path)
    columns: dict[str, list[float]] = {name: [] for name in header}
    for line, row in _rows(lines, first, separator, path):
        if len(row) != len(header):
            raise SeriesError(f"{path}: line {line}: {len(row)} fields, the header has {len(header)}")
        for name, field in zip(header, row, strict=True):
            columns[name].append(_value(f"{path}: line {line}: {name}", name, field.strip()))
        times = columns["time_s"]
        if len(times) > 1 and times[-1] <= times[-2]:
            raise SeriesError(f"{path}: line {line}: time_s = {times[-1]} does not come after {times[-2]}")
    times = columns["time_s"]
    if len(times) < 2:
        raise SeriesError(f"{path}: {len(times)} rows; a series needs at least 2")
    for name in COLUMNS[1:]:
        if max(columns[name]) < MIN_BITS_PER_S:
            raise SeriesError(
                f"{path}: {name} is never above {max(columns[name]):g} bit/s; not in kbit/s or Mbit/s?"
            )
    starts = [time - times[0] for time in times]
    delays = columns.get("extra_delay_s", [0.0] * len(times))
    return LinkSeries(
        (*starts, 2.0 * starts[-1] - starts[-2]),
        tuple(columns["uplink_bits_per_s"]),
        tuple(columns["downlink_bits_per_s"]),
        tuple(delays),
    )


def _header(line: str, number: int, path: Path) -> tuple[str, list[str]]:
    """Return the separator of the columns, and their names."""
    found = {}
    for separator in (",", ";", "\t"):
        try:
            found[separator] = [name.strip() for name in next(csv.reader([line], delimiter=separator), [])]
        except csv.Error:
            found[separator] = [line.strip()]
    separator = next((s for s, names in found.items() if set(COLUMNS) <= set(names)), ",")
    header = found[separator]
    missing = [name for name in COLUMNS if name not in header]
    unknown = [name for name in header if name not in COLUMNS + OPTIONAL]
    if missing or unknown or len(set(header)) != len(header):
        shown = str(header)
        raise SeriesError(
            f"{path}: line {number}: the header is {shown[:200]}; needed are {list(COLUMNS)}, allowed "
            f"{list(OPTIONAL)}, each once"
        )
    return separator, header


def _rows(lines: list[str], first: int, separator: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield line number and fields of each row below the header."""
    reader = csv.reader(lines[first + 1 :], delimiter=separator)
    try:
        for row in reader:
            if row and not (len(row) == 1 and not row[0].strip()):
                yield first + 1 + reader.line_num, row
    except csv.Error as error:
        raise SeriesError(f"{path}: line {first + 1 + reader.line_num}: {error}") from error


def _value(where: str, name: str, field: str) -> float:
    """Return a number of a field."""
    shown = field if len(field) <= 80 else field[:80] + "..."
    if field.lower().lstrip("+-") in ("nan", "inf", "infinity"):
        raise SeriesError(f"{where} = {shown} must be finite and not negative")
    if not _NUMBER.fullmatch(field):
        raise SeriesError(f"{where} = {shown!r} is not a number")
    value = float(field)
    if not math.isfinite(value) or value < 0.0:
        raise SeriesError(f"{where} = {shown} must be finite and not negative")
    if value > _MOST.get(name, value):
        raise SeriesError(f"{where} = {shown} is above {_MOST[name]:g}; not in another unit?")
    if name == "extra_delay_s" and value > _MAX_DELAY_S:
        raise SeriesError(f"{where} = {shown} is above {_MAX_DELAY_S:g} s; not in milliseconds?")
    return value


def _is_whole(field: str) -> bool:
    return field.isascii() and field.isdigit()


def _mahimahi(lines: list[str], path: Path) -> LinkSeries:
    times_ms = array("l")
    for number, line in enumerate(lines, start=1):
        field = line.strip()
        if not field:
            continue
        if not _is_whole(field):
            raise SeriesError(f"{path}: line {number}: {field[:80]!r} is not a time in whole milliseconds")
        if len(field) > 9 or int(field) > _MAX_MAHIMAHI_MS:
            raise SeriesError(f"{path}: line {number}: {field[:80]} ms is longer than a day")
        if times_ms and int(field) < times_ms[-1]:
            raise SeriesError(f"{path}: line {number}: {field} ms comes before {times_ms[-1]} ms")
        times_ms.append(int(field))
    length_ms = times_ms[-1]
    if length_ms < 1:
        raise SeriesError(f"{path}: the last time is 0 ms; it is the period of the trace, at least 1 ms")
    if length_ms <= 1000:
        # It goes round within a second, and what is made of it is a bandwidth by the second.
        rate = len(times_ms) * MAHIMAHI_BYTES * 8.0 / (length_ms / 1000.0)
        return LinkSeries((0.0, 1.0, 2.0), (rate, rate), (rate, rate), (0.0, 0.0))
    if length_ms < 2000:
        # Two rounds, so that there are whole seconds.
        times_ms.extend([time_ms + length_ms for time_ms in times_ms])
        length_ms *= 2
    # Pieces of a second; what is left at the end belongs to the last.
    pieces = length_ms // 1000
    counts = [0] * pieces
    for time_ms in times_ms:
        counts[min(max(0, time_ms - 1) // 1000, pieces - 1)] += 1
    times_s = (*(float(piece) for piece in range(pieces)), length_ms / 1000.0)
    rates = tuple(
        count * MAHIMAHI_BYTES * 8.0 / (end_s - start_s)
        for count, (start_s, end_s) in zip(counts, pairwise(times_s), strict=True)
    )
    return LinkSeries(times_s, rates, rates, (0.0,) * pieces)
