"""Reading files of recorded requests line by line: their rows, the part to keep, and what is wrong.

A file is never read as a whole: rows go through a :class:`TraceBuilder`, which keeps those of the part that
is asked for, in compact arrays, and says when the rest need not be read.
"""

from __future__ import annotations

import csv
import math
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import TextIO, TypeVar

import numpy as np

from dsd_env.text import TextError, open_text
from dsd_env.workload.clock import clock_tick
from dsd_env.workload.trace import (
    MAX_RATE_PER_S,
    IntArray,
    RequestTrace,
    RequestTraceError,
    dropped_within,
    unit_fault,
)

Row = TypeVar("Row")

MAX_TOKENS = 10_000_000
SEPARATORS = {",": "','", ";": "';'", "\t": "a tab"}
_MAX_LINE = 10_000_000
_JUDGED = 50_000
"""So many requests are looked at before their unit is judged, even where fewer are kept."""
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._\- ]{0,79}")
_RECORDING = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._:/ -]{0,78}[A-Za-z0-9._:/-])?")
"""As the names of the entries of acceptance recordings."""
_NUMBER = re.compile(r"[0-9]{1,15}(\.[0-9]{0,20})?([eE][+-]?[0-9]{1,2})?")
_COMMA = re.compile(r"-?[0-9]+(,[0-9]+)+(\.[0-9]+)?")
_TRUSTED = re.compile(r"#\s*trust_units\s*[:=]\s*true", re.IGNORECASE)


@dataclass(frozen=True)
class Part:
    """The part of a trace to keep: as :meth:`RequestTrace.cut` takes it, but decided while reading.

    Attributes:
        start_s: Its beginning.
        duration_s: Its length, its end not included; None: to the last request.
        first: At most so many requests; None: all.
    """

    start_s: float = 0.0
    duration_s: float | None = None
    first: int | None = None

    def __post_init__(self) -> None:
        """Refuse parts that make no sense.

        Raises:
            ValueError: They do not.
        """
        if not (math.isfinite(self.start_s) and self.start_s >= 0.0):
            raise ValueError(f"start_s = {self.start_s} must be finite and at least 0")
        if self.duration_s is not None and not self.duration_s > 0.0:
            raise ValueError(f"duration_s = {self.duration_s} must be above 0")
        if self.first is not None and self.first < 1:
            raise ValueError(f"first = {self.first} must be at least 1")

    @property
    def end_s(self) -> float:
        """Where it ends."""
        return math.inf if self.duration_s is None else self.start_s + self.duration_s


class Lines:
    """The lines of a file, from the first that is neither empty nor a comment.

    Attributes:
        first: That line, without its end; empty if there is none.
        number: Its number, from 1.
        trusted: Whether a comment above it says that times are seconds.
    """

    def __init__(self, path: Path, file: TextIO) -> None:
        """Go to the first line that says something.

        Raises:
            RequestTraceError: A line is too long to be one of a trace.
        """
        self._path, self._file, self._read = path, file, 0
        self.trusted = False
        self.first = ""
        for line in self._lines():
            if line.startswith("#"):
                self.trusted = self.trusted or _TRUSTED.fullmatch(line.strip()) is not None
            elif line.strip() and not (self._read == 1 and line.lower().startswith("sep=")):
                self.first = line.rstrip("\n")
                break
        self.number = max(1, self._read)

    def _lines(self) -> Iterator[str]:
        while line := self._file.readline(_MAX_LINE):
            self._read += 1
            if len(line) == _MAX_LINE:
                raise self._too_long(self._read)
            yield line

    def _too_long(self, number: int) -> RequestTraceError:
        return RequestTraceError(
            f"{self._path}: line {number}: longer than {_MAX_LINE:,} characters; needed is one request a line"
        )

    def rest(self) -> Iterator[str]:
        """Yield the lines below the first one; those that are comments as empty ones."""
        readline, number = self._file.readline, self._read
        while line := readline(_MAX_LINE):
            number += 1
            if len(line) == _MAX_LINE:
                raise self._too_long(number)
            yield "\n" if line[0] == "#" else line


@contextmanager
def opened(path: Path) -> Iterator[Lines]:
    """Open a file for reading line by line.

    Raises:
        RequestTraceError: It cannot be read, or is not text.
    """
    try:
        with open_text(path) as file:
            yield Lines(path, file)
    except TextError as error:
        raise RequestTraceError(str(error)) from None


def header_of(line: str, separator: str) -> list[str]:
    """Return the fields of a CSV header, or nothing if it is none."""
    try:
        return [field.strip() for field in next(csv.reader([line], delimiter=separator, strict=True), [])]
    except csv.Error:
        return []


def csv_rows(
    path: Path, lines: Lines, needed: tuple[str, ...], optional: tuple[str, ...], unused: tuple[str, ...]
) -> Iterator[tuple[int, Sequence[str]]]:
    """Yield line number and fields of each row of a CSV file with a header.

    Fields come in the order of ``needed`` and ``optional``, blanks behind them not taken off; an absent
    optional column is one of empty cells.

    Raises:
        RequestTraceError: Not a CSV file with these columns.
    """
    allowed = needed + optional + unused
    separator = next((s for s in SEPARATORS if set(needed) <= set(header_of(lines.first, s))), ",")
    header = header_of(lines.first, separator)
    where = f"{path}: line {lines.number}"
    if not lines.first:
        raise RequestTraceError(f"{where}: empty; a CSV begins with the header {','.join(needed)}")
    missing = [name for name in needed if name not in header]
    unknown = [name for name in header if name not in allowed]
    if missing or unknown or len(set(header)) != len(header):
        fault = (
            f"missing {missing}" if missing else f"unknown {unknown}" if unknown else "a column is doubled"
        )
        raise RequestTraceError(
            f"{where}: the header is {short(str(header or lines.first))}: {short(fault)}; needed are "
            f"{list(needed)}, allowed {list(optional + unused)}, each once, separated by ',', ';' or tabs"
        )
    width = len(header)
    places = [header.index(name) if name in header else width for name in needed + optional]
    pick = itemgetter(*places)
    reader = csv.reader(lines.rest(), delimiter=separator, strict=True, skipinitialspace=True)
    try:
        for row in reader:
            if not row or (len(row) == 1 and not row[0].strip()):
                continue
            if len(row) != width:
                raise RequestTraceError(_ragged(path, lines.number + reader.line_num, row, width, separator))
            row.append("")
            yield lines.number + reader.line_num, pick(row)
    except csv.Error as error:
        raise RequestTraceError(f"{path}: line {lines.number + reader.line_num}: {error}") from error


def _ragged(path: Path, line: int, row: list[str], width: int, separator: str) -> str:
    message = f"{path}: line {line}: {len(row)} fields, the header has {width}"
    if len(row) == 1:
        for other, name in SEPARATORS.items():
            if other != separator and row[0].count(other) == width - 1:
                return f"{message}: this line is separated by {name}, the header by {SEPARATORS[separator]}"
        return f"{message}: {short(repr(row[0]))} is not a row of the table"
    if separator == "," and len(row) > width:
        return f"{message}; are numbers written with a decimal comma?"
    return message


def shown(value: object) -> str:
    """Return a value of a file as a message shows it: not longer than a line."""
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + "..."


def short(text: str) -> str:
    """Return a text as a message shows it: not longer than two lines."""
    return text if len(text) <= 200 else text[:200] + "..."


def fill(builder: TraceBuilder, rows: Iterable[tuple[int, Row]], take: Callable[[int, Row], None]) -> bool:
    """Give rows to a builder until it has enough; return whether they ended before."""
    try:
        for line, row in rows:
            take(line, row)
            if builder.full and builder.done:
                return False
    except (RequestTraceError, UnicodeError):
        if not builder.full:
            raise
        return False  # The part was complete; this came of looking further.
    return True


class TraceBuilder:
    """Takes requests one by one, checks them, keeps those of a part, and makes a trace of them.

    For each request, :meth:`wants` looks at its time and says whether it is kept; :meth:`add` keeps it.

    Attributes:
        full: Whether the part is complete.
    """

    def __init__(
        self,
        path: Path,
        part: Part,
        field: str,
        *,
        trust_units: bool = False,
        max_rate_per_s: float = MAX_RATE_PER_S,
        dated: bool = True,
    ) -> None:
        """Begin a trace; messages name the file.

        Args:
            path: The file.
            part: What to keep of it.
            field: What the file calls the time of a request.
            trust_units: Do not ask whether times may be in another unit.
            max_rate_per_s: Mean rate above which they are.
            dated: Whether times may count from any date; the trace then begins with its first request.
        """
        self._path, self._part, self._field = path, part, field
        self._trust, self._max_rate_per_s, self._dated = trust_units, max_rate_per_s, dated
        self._end_s = part.end_s
        self._arrivals = array("d")
        self._ahead = array("d")
        self._dropped = array("d")
        self._prompts, self._outputs = array("i"), array("i")
        self._client, self._kind = array("i"), array("i")
        self._clients: dict[str, int] = {}
        self._kinds: dict[str, int] = {}
        self._recorded = array("i")
        self._recordings: dict[str, int] = {}
        self._seen = 0
        self._first_s = self._last_s = -math.inf
        self._origin_s = 0.0
        self._whole = True
        self.full = False

    @property
    def done(self) -> bool:
        """Whether the rest of the file need not be read."""
        return self.full and self._seen >= _JUDGED

    def error(self, line: int, message: str) -> RequestTraceError:
        """Return the error about a line."""
        return RequestTraceError(f"{self._path}: line {line}: {short(message)}")

    def number(self, line: int, name: str, field: str) -> float:
        """Return a plain decimal number that is finite and not negative."""
        if not (_NUMBER.fullmatch(field) or _NUMBER.fullmatch(field := field.strip())):
            raise self.error(
                line, f"{name} = {shown(field)} is not a finite number, at least 0{_hint(field)}"
            )
        return float(field)

    def tokens(self, line: int, name: str, field: str, least: int = 1) -> int:
        """Return a whole number of tokens."""
        if not field.isdigit():
            field = field.strip()
        if not (field.isascii() and field.isdigit() and len(field) <= 12):
            raise self.error(line, f"{name} = {shown(field)} is not a whole number of tokens{_hint(field)}")
        return self.in_range(line, name, int(field), least)

    def in_range(self, line: int, name: str, value: object, least: int = 1) -> int:
        """Return a number of tokens that is whole and possible."""
        if type(value) is not int:
            raise self.error(line, f"{name} = {shown(value)} is not a whole number of tokens")
        if not least <= value <= MAX_TOKENS:
            raise self.error(line, f"{name} = {shown(value)} must lie within {least} and {MAX_TOKENS} tokens")
        return value

    def word(self, line: int, name: str, field: str) -> str | None:
        """Return the name of a client or a kind; None for an empty cell."""
        field = field.strip()
        if not field:
            return None
        if not _WORD.fullmatch(field):
            raise self.error(
                line,
                f"{name} = {shown(field)} is not a name: letters, digits, '.', '_', '-' and blanks, up to 80",
            )
        return field

    def recording(self, line: int, field: str) -> str | None:
        """Return the name of a recorded request; None for an empty cell."""
        field = field.strip()
        if field and not _RECORDING.fullmatch(field):
            raise self.error(
                line,
                f"recorded = {shown(field)} is not a name: letters, digits, '.', '_', '-', '/', ':' and "
                "blanks, up to 80",
            )
        return field or None

    def wants(self, line: int, time_s: float) -> bool:
        """Take the time of the next request; return whether it is in the part.

        Raises:
            RequestTraceError: It comes before the one above it.
        """
        if time_s < self._last_s:
            raise self.error(
                line, f"{self._field}: {time_s!r} s comes before the request above it, {self._last_s!r} s"
            )
        if self._seen == 0:
            self._first_s = time_s
            self._origin_s = time_s if self._dated else 0.0
        self._last_s = time_s
        self._seen += 1
        self._whole = self._whole and time_s.is_integer()
        since_s = time_s - self._origin_s
        if since_s >= self._end_s:
            self.full = True
        if self.full:
            self._ahead.append(time_s)
            return False
        if since_s < self._part.start_s:
            return False
        if not self._dated and not self._trust:
            # At once, so that the line is named.
            fault = unit_fault(1, time_s, time_s, self._whole, self._max_rate_per_s, dated=False)
            if fault is not None:
                raise RequestTraceError(f"{self._path}: line {line}: {self._field} = {fault}")
        return True

    def add(
        self,
        prompt_tokens: int,
        output_tokens: int,
        client: str | None = None,
        kind: str | None = None,
        recorded: str | None = None,
    ) -> None:
        """Keep the request whose time was taken last."""
        self._arrivals.append(self._last_s)
        self._prompts.append(prompt_tokens)
        self._outputs.append(output_tokens)
        self._client.append(-1 if client is None else self._clients.setdefault(client, len(self._clients)))
        self._kind.append(-1 if kind is None else self._kinds.setdefault(kind, len(self._kinds)))
        number = -1 if recorded is None else self._recordings.setdefault(recorded, len(self._recordings))
        self._recorded.append(number)
        if len(self._arrivals) == self._part.first:
            self.full = True

    def drop(self, time_s: float) -> None:
        """Take note of a request that failed."""
        if not self.full:
            self._dropped.append(time_s)

    def trace(self, *, complete: bool, unused: tuple[str, ...] = ()) -> RequestTrace:
        """Return the trace; its times begin at 0 where the file counts from another time.

        Args:
            complete: Whether the file has been read to its end.
            unused: What is known and not used in the file.

        Raises:
            RequestTraceError: There are fewer than two requests in the file, or none in the part, or times
                are most likely in another unit.
        """
        seen, part = self._seen, self._part
        if complete and seen < 2:
            also = f" ({len(self._dropped)} failed)" if self._dropped else ""
            raise RequestTraceError(f"{self._path}: {seen} requests{also}; a trace needs at least 2")
        length_s = self._last_s - self._first_s
        if complete and length_s <= 0.0:
            raise RequestTraceError(f"{self._path}: {self._field}: all {seen} requests come at one time")
        if not self._trust and length_s > 0.0:
            fault = unit_fault(
                seen, self._first_s, self._last_s, self._whole, self._max_rate_per_s, dated=True
            )
            if fault is not None:
                raise RequestTraceError(f"{self._path}: {self._field}: {fault}")
        if not self._arrivals:
            raise RequestTraceError(
                f"{self._path}: no request comes from {part.start_s:g} s to {self._end_s:g} s; "
                f"{seen} come up to {self._last_s - self._origin_s:g} s"
            )
        times_s = np.frombuffer(self._arrivals, dtype=np.float64)
        tick_s = clock_tick(np.append(times_s, np.frombuffer(self._ahead)) if self._ahead else times_s)
        end_s = self._end_s
        if len(self._arrivals) == part.first:
            end_s = float(times_s[-1]) - self._origin_s
        dropped_s = np.frombuffer(self._dropped) if self._dropped else np.empty(0)
        return RequestTrace(
            times_s - self._origin_s - part.start_s,
            _integers(self._prompts),
            _integers(self._outputs),
            _integers(self._client) if self._clients else None,
            tuple(self._clients),
            _integers(self._kind) if self._kinds else None,
            tuple(self._kinds),
            dropped_within(dropped_s - self._origin_s, part.start_s, end_s),
            tick_s,
            unused,
            _integers(self._recorded) if self._recordings else None,
            tuple(self._recordings),
        )


def _integers(values: array[int]) -> IntArray:
    return np.frombuffer(values, dtype=np.int32).astype(np.int64)


def _hint(field: str) -> str:
    if not field:
        return ": the cell is empty"
    return (
        ": written with a comma? Decimals need a point, thousands nothing" if _COMMA.fullmatch(field) else ""
    )
