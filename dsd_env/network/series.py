"""Recorded network series: bandwidth and delay by time, from CSV or Mahimahi files.

CSV, with a header: ``time_s, uplink_bits_per_s, downlink_bits_per_s`` and optionally ``extra_delay_s``; each row
holds from its time until the next one's, the last as long as the one before it. Mahimahi: one line per delivery
opportunity of 1,500 bytes, its time in milliseconds; the same file serves both directions.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dsd_env.paths import config_dir

COLUMNS = ("time_s", "uplink_bits_per_s", "downlink_bits_per_s")
OPTIONAL = ("extra_delay_s",)
MAHIMAHI_BYTES = 1500
_MAX_FILE_BYTES = 50_000_000
_MIN_BITS_PER_S = 100.0
"""A link slower than this, always, was given in Mbit/s, most likely."""


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
    if lines[0].strip().isdigit():
        return _mahimahi(lines, path)
    return _csv(lines, path)


def _csv(lines: list[str], path: Path) -> LinkSeries:
    reader = csv.reader(lines)
    header = [name.strip() for name in next(reader)]
    missing = [name for name in COLUMNS if name not in header]
    unknown = [name for name in header if name not in COLUMNS + OPTIONAL]
    if missing or unknown or len(set(header)) != len(header):
        raise SeriesError(
            f"{path}: line 1: the header is {header}; needed are {list(COLUMNS)}, allowed {list(OPTIONAL)}, "
            "each once"
        )
    columns: dict[str, list[float]] = {name: [] for name in header}
    for row in reader:
        line = reader.line_num
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
                f"{path}: {name} is never above {max(columns[name])}: in bit/s, not in Mbit/s, that is no link"
            )
    starts = [time - times[0] for time in times]
    delays = columns.get("extra_delay_s", [0.0] * len(times))
    return LinkSeries(
        (*starts, 2.0 * starts[-1] - starts[-2]),
        tuple(columns["uplink_bits_per_s"]),
        tuple(columns["downlink_bits_per_s"]),
        tuple(delays),
    )


def _mahimahi(lines: Iterable[str], path: Path, period_s: float = 1.0) -> LinkSeries:
    counts: list[int] = []
    last = 0
    for number, line in enumerate(lines, start=1):
        field = line.strip()
        if not field:
            continue
        if not field.isdigit():
            raise SeriesError(f"{path}: line {number}: {field!r} is not a time in whole milliseconds")
        time_ms = int(field)
        if time_ms < last:
            raise SeriesError(f"{path}: line {number}: {time_ms} ms comes before {last} ms")
        last = time_ms
        index = int(time_ms / (1e3 * period_s))
        if index > 10_000_000:
            raise SeriesError(f"{path}: line {number}: {time_ms} ms is too late to be a time of a trace")
        counts.extend([0] * (index + 1 - len(counts)))
        counts[index] += 1
    if len(counts) < 2:
        raise SeriesError(f"{path}: shorter than {2 * period_s} s")
    rates = tuple(count * MAHIMAHI_BYTES * 8.0 / period_s for count in counts)
    times = tuple(index * period_s for index in range(len(counts) + 1))
    return LinkSeries(times, rates, rates, (0.0,) * len(counts))
