"""Recorded network series: bandwidth and delay by time, from CSV or Mahimahi files.

CSV, with a header: ``time_s, uplink_bits_per_s, downlink_bits_per_s`` and optionally ``extra_delay_s``; each
row holds from its time until the next one's, the last as long as the one before it. Mahimahi: one line per
delivery opportunity of 1,500 bytes, its time in milliseconds, from 1; the last line ends the period of the
trace. The same file serves both directions.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from dsd_env.paths import config_dir

COLUMNS = ("time_s", "uplink_bits_per_s", "downlink_bits_per_s")
OPTIONAL = ("extra_delay_s",)
MAHIMAHI_BYTES = 1500
_MAX_FILE_BYTES = 50_000_000
_MIN_BITS_PER_S = 1e4
"""A link slower than this, always, was given in another unit, most likely."""
_MAX_DELAY_S = 10.0
"""A delay longer than this, likewise."""
_MAX_MAHIMAHI_MS = 86_400_000


class SeriesError(ValueError):
    """A network series cannot be used; the message names file, line and field."""


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
    if path.stat().st_size > _MAX_FILE_BYTES:
        raise SeriesError(f"{path}: larger than {_MAX_FILE_BYTES} bytes")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise SeriesError(f"{path}: not a text file ({error})") from error
    lines = text.splitlines()
    if not lines or not lines[0].strip():
        raise SeriesError(f"{path}: line 1: empty; a CSV begins with the header {','.join(COLUMNS)}")
    if _is_whole(lines[0].strip()):
        return _mahimahi(lines, path)
    return _csv(lines, path)


def _csv(lines: list[str], path: Path) -> LinkSeries:
    reader = csv.reader(lines)
    try:
        rows = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise SeriesError(f"{path}: line {reader.line_num}: {error}") from error
    header = [name.strip() for name in rows[0][1]]
    missing = [name for name in COLUMNS if name not in header]
    unknown = [name for name in header if name not in COLUMNS + OPTIONAL]
    if missing or unknown or len(set(header)) != len(header):
        raise SeriesError(
            f"{path}: line 1: the header is {header}; needed are {list(COLUMNS)}, allowed {list(OPTIONAL)}, "
            "each once"
        )
    columns: dict[str, list[float]] = {name: [] for name in header}
    for line, row in rows[1:]:
        if not row:
            continue
        if len(row) != len(header):
            raise SeriesError(f"{path}: line {line}: {len(row)} fields, the header has {len(header)}")
        for name, field in zip(header, row, strict=True):
            try:
                value = float(field)
            except ValueError:
                raise SeriesError(f"{path}: line {line}: {name} = {field!r} is not a number") from None
            if not math.isfinite(value) or value < 0.0:
                raise SeriesError(f"{path}: line {line}: {name} = {field} must be finite and not negative")
            if name == "extra_delay_s" and value > _MAX_DELAY_S:
                raise SeriesError(
                    f"{path}: line {line}: {name} = {field} is above {_MAX_DELAY_S:g} s; not in milliseconds?"
                )
            columns[name].append(value)
        times = columns["time_s"]
        if len(times) > 1 and times[-1] <= times[-2]:
            raise SeriesError(f"{path}: line {line}: time_s = {times[-1]} does not come after {times[-2]}")
    times = columns["time_s"]
    if len(times) < 2:
        raise SeriesError(f"{path}: {len(times)} rows; a series needs at least 2")
    for name in COLUMNS[1:]:
        if max(columns[name]) < _MIN_BITS_PER_S:
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


def _is_whole(field: str) -> bool:
    return field.isascii() and field.isdigit()


def _mahimahi(lines: Iterable[str], path: Path) -> LinkSeries:
    times_ms: list[int] = []
    for number, line in enumerate(lines, start=1):
        field = line.strip()
        if not field:
            continue
        if not _is_whole(field):
            raise SeriesError(f"{path}: line {number}: {field!r} is not a time in whole milliseconds")
        if len(field) > 9 or int(field) > _MAX_MAHIMAHI_MS:
            raise SeriesError(f"{path}: line {number}: {field} ms is longer than a day")
        if times_ms and int(field) < times_ms[-1]:
            raise SeriesError(f"{path}: line {number}: {field} ms comes before {times_ms[-1]} ms")
        times_ms.append(int(field))
    length_ms = times_ms[-1]
    if length_ms < 2000:
        raise SeriesError(f"{path}: {length_ms} ms long; a series needs at least 2 s")
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
