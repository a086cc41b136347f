"""What all readers of measurements share: text, JSON with log lines around it, CSV, and single fields.

Every function names file, line and field in its errors, which are of the type that the caller gives: those of
a user's measurements (:class:`~dsd_env.calibration.latency.measurements.MeasurementError`) and those of
published tables (:class:`~dsd_env.calibration.latency.tables.TableError`) differ.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsd_env import strict_json
from dsd_env.calibration.latency.measurements import MeasurementError
from dsd_env.text import TextError, read_text

__all__ = [
    "MAX_COUNT",
    "MAX_SECONDS",
    "CsvTable",
    "Document",
    "count_field",
    "csv_table",
    "json_documents",
    "log_lines_note",
    "number_field",
    "numbers_field",
    "text_of",
]

MAX_FILE_BYTES = 256 * 1024**2
"""Larger inputs are refused: no benchmark writes them, a wrong path may."""

MAX_COUNT = 2**31

MAX_SECONDS = 1e6
"""No iteration of any device takes longer, whatever its unit: eleven days."""

_NUMBER = re.compile(
    r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(nan|inf|infinity)", re.ASCII | re.IGNORECASE
)
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+", re.ASCII)
_BEGINS_JSON = re.compile(r"\{\s*(?:[\"}]|$)|\[\s*(?:[\[{\]]|$)")
"""How a line begins with which JSON begins; a log line such as ``[INFO]`` or ``[2026-01-01 …`` does not."""
_PART_OF_JSON = re.compile(r"\s*[\]}]|\s*,\s*$|\"[^\"\s]+\"\s*:")
_OTHER_DELIMITERS = {";": "';' (a spreadsheet's?)", "\t": "tabs", "|": "'|'"}


def text_of(path: Path, error: type[ValueError] = MeasurementError) -> str:
    """Return a file's text.

    Args:
        path: UTF-8, or UTF-16 with a byte order mark.
        error: type of the errors.

    Raises:
        error: not found, too large, empty, or not text.
    """
    try:
        text = read_text(path, max_bytes=MAX_FILE_BYTES)
    except TextError as e:
        raise error(str(e).replace(f"{path}: ", f"{path}: cannot be read: ", 1)) from e
    if not text.strip():
        raise error(f"{path}: empty file")
    return text


# ------------------------------------------------------------------------------------------------------ JSON


@dataclass(frozen=True)
class Document:
    """One JSON value of a file: the line that it begins in, and what it is."""

    line: int
    value: Any


def json_documents(
    path: Path, text: str, error: type[ValueError] = MeasurementError
) -> tuple[list[Document], list[int]]:
    """Return the JSON values of a file, and the numbers of the lines around them that are none.

    Values stand one after the other, on one line each (JSON lines) or over several. What other programs wrote
    between them (``2>&1`` puts a driver's messages there) is left out; a line that looks like a piece of
    JSON is not such a message but the rest of a damaged value, and refused.

    Raises:
        error: damaged JSON, NaN or Infinity, or a field given twice; with line and column.
    """
    documents: list[Document] = []
    others: list[int] = []
    at, line = 0, 1
    while at < len(text):
        end = text.find("\n", at)
        end = len(text) if end < 0 else end
        row = text[at:end].strip()
        if _BEGINS_JSON.match(row):
            start = at + text[at:end].index(row[0])
            value, stop = _parse(path, text, start, end, line, error)
            documents.append(Document(line, value))
            line += text.count("\n", at, stop)
            at = stop
            while at < len(text) and text[at] in " \t":
                at += 1
            if at < len(text) and text[at] == "\n":
                at, line = at + 1, line + 1
            continue
        if row:
            if _PART_OF_JSON.search(row) and (documents or row[0] not in "[("):
                raise error(f"{path}: line {line}: a piece of JSON without its beginning: {row:.40}")
            others.append(line)
        at, line = end + 1, line + 1
    return documents, others


def _parse(
    path: Path, text: str, start: int, end: int, line: int, error: type[ValueError]
) -> tuple[Any, int]:
    """Parse the value at ``start``, whose first line ends at ``end``; return it and where it stops."""
    try:
        return strict_json.next_value(text, start)
    except json.JSONDecodeError as e:
        alone = text[start:end].rstrip()
        if e.pos >= end and len(alone) > 2:
            # JSON lines: the line that is cut is at fault, not the next one, into which the parser ran.
            try:
                strict_json.loads(alone)
            except json.JSONDecodeError as one:
                cut = "; the line looks truncated" if one.pos >= len(alone) - 1 else ""
                raise error(f"{path}: line {line}: column {one.pos + 1}: not JSON: {one.msg}{cut}") from e
        cut = "; the file looks truncated" if e.pos >= len(text.rstrip()) - 1 else ""
        found = text[e.pos : e.pos + 40].split("\n")[0].strip()
        if (
            not cut
            and found
            and re.match(r"[A-Za-z]{3}", found)
            and not re.match(r"(true|false|null)\b", found)
        ):
            cut = f"; another program's line ({found:.20}…)? Keep its messages out of the file: 2>/dev/null"
        raise error(f"{path}: line {e.lineno}, column {e.colno}: not JSON: {e.msg}{cut}") from e
    except (ValueError, RecursionError) as e:
        raise error(f"{path}: line {line}: not usable JSON: {e}") from e


def log_lines_note(path: Path, lines: Sequence[int]) -> list[str]:
    """Return a note on lines that were left out, or none."""
    if not lines:
        return []
    shown = ", ".join(map(str, lines[:5])) + (", …" if len(lines) > 5 else "")
    return [f"{path}: {len(lines)} line(s) of other programs left out (line {shown})"]


# ------------------------------------------------------------------------------------------------------- CSV


@dataclass(frozen=True)
class CsvTable:
    """A CSV's header, its rows, and the lines that are none of either.

    Attributes:
        header: names of the columns, unique.
        line: line of the header.
        rows: (line, cells by column) of each row; every row has all columns.
        others: lines of other programs that were left out.
    """

    header: tuple[str, ...]
    line: int
    rows: Iterator[tuple[int, dict[str, str]]]
    others: list[int]


class _Lines:
    """Lines of a text without blank ones and comments; knows the number of the last one given."""

    def __init__(self, text: str) -> None:
        self._text, self._at, self._quoted = text, 0, False
        self.number = 0
        self.in_rows = False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        while self._at < len(self._text):
            end = self._text.find("\n", self._at)
            end = len(self._text) if end < 0 else end
            line = self._text[self._at : end]
            self._at, self.number = end + 1, self.number + 1
            if not self._quoted and (not line.strip() or line.lstrip().startswith("#")):
                continue
            if self.in_rows:  # a quoted cell may go on in the next line, whatever that begins with
                self._quoted ^= line.count('"') % 2 == 1
            return line + "\n"
        raise StopIteration


def csv_table(
    path: Path,
    text: str,
    needed: Sequence[str],
    error: type[ValueError] = MeasurementError,
    *,
    log_lines: bool = False,
) -> CsvTable:
    """Read a CSV. The format is looked at before the rows: what is no CSV with these columns has no rows.

    Lines that begin with ``#`` are comments. Rows are read as they are asked for; ``others`` is complete
    after the last.

    Args:
        path: for messages.
        text: the file's text.
        needed: columns by which the header is known; the caller says what else is missing.
        error: type of the errors.
        log_lines: leave out lines of other programs, before the header and between rows.

    Raises:
        error: no header with these columns, another delimiter, a column given twice; while reading the rows,
            a ragged row or one that is no CSV.
    """
    lines = _Lines(text)
    others: list[int] = []
    first: tuple[int, list[str]] | None = None
    wanted = set(needed)
    for line in lines:
        # The header by itself: quotes in a line before it must not swallow those that follow.
        names = [c.strip().strip('"') for c in line.split(",")]
        if wanted <= set(names):
            if first is not None and not log_lines:
                raise error(
                    f"{path}: line {first[0]}: {','.join(first[1]):.40} is not the header, which stands in "
                    f"line {lines.number}: delete what is before it, or begin those lines with #"
                )
            _refuse_twice(f"{path}: line {lines.number}", names, error)
            rows = _csv_rows(path, lines, tuple(names), others if log_lines else None, error)
            return CsvTable(tuple(names), lines.number, rows, others)
        for mark, called in _OTHER_DELIMITERS.items():
            if wanted <= {c.strip().strip('"') for c in line.split(mark)}:
                raise error(
                    f"{path}: line {lines.number}: columns are separated by {called}, not by commas: save it "
                    "as CSV with commas, and points in numbers"
                )
        if first is None:
            first = lines.number, names
        others.append(lines.number)
    if first is None:
        raise error(f"{path}: holds nothing but comments")
    missing = [c for c in needed if c not in first[1]]
    found = f"; found {','.join(first[1]):.80}"
    raise error(f"{path}: line {first[0]}: missing column(s) {', '.join(missing)}{found}")


def _refuse_twice(where: str, names: Sequence[str], error: type[ValueError]) -> None:
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise error(f"{where}: column(s) given twice: {', '.join(twice)}")


def _csv_rows(
    path: Path,
    lines: _Lines,
    header: tuple[str, ...],
    others: list[int] | None,
    error: type[ValueError],
) -> Iterator[tuple[int, dict[str, str]]]:
    lines.in_rows = True
    reader = csv.reader(lines, strict=True)
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as e:
            raise error(f"{path}: line {lines.number}: not CSV: {e}") from e
        line = lines.number
        if all(not c.strip() for c in cells):
            continue
        if others is not None and len(cells) == 1 < len(header) and re.match(r"[A-Za-z_]+\w*[: ]", cells[0]):
            others.append(line)
            continue
        if len(cells) != len(header):
            raise error(
                f"{path}: line {line}: {len(cells)} fields where the header has {len(header)}: ragged or "
                f"truncated row{_first_missing(cells, header)}"
            )
        yield line, dict(zip(header, (c.strip() for c in cells), strict=True))


def _first_missing(cells: Sequence[str], header: Sequence[str]) -> str:
    return f" (without {header[len(cells)]})" if len(cells) < len(header) else ""


# ---------------------------------------------------------------------------------------------------- fields


def number_field(
    row: Mapping[str, Any],
    name: str,
    where: str,
    *,
    text: bool = False,
    low: float = 0.0,
    strict: bool = True,
    bare: bool = False,
    error: type[ValueError] = MeasurementError,
) -> float:
    """Return a finite number above ``low`` (or equal, unless ``strict``); text is parsed only where ``text``.

    With ``bare`` the message shows a number that was read as text without quotes.

    Raises:
        error: missing, no number, or out of range.
    """
    if name not in row or row[name] is None:
        raise error(f"{where}: field '{name}' is missing")
    raw = row[name]
    if text and isinstance(raw, str):
        if not _NUMBER.fullmatch(raw):
            comma = ": a decimal comma? Write a point" if _DECIMAL_COMMA.fullmatch(raw) else ""
            raise error(f"{where}: {name} = {row[name]!r:.60} is not a number{comma}")
        raw = float(raw)
    if isinstance(raw, bool) or not isinstance(raw, int | float):
        raise error(f"{where}: {name} = {raw!r:.60} is not a number")
    try:
        value = float(raw)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value) or value < low or (strict and value == low):
        shown = f"{row[name]:.60}" if bare and isinstance(row[name], str) else _shown(row[name])
        raise error(f"{where}: {name} = {shown} must be finite and {'>' if strict else '>='} {low:g}")
    return value


def _shown(value: Any) -> str:
    """Short text of a value; an integer of thousands of digits has none."""
    try:
        return f"{value!r:.60}"
    except ValueError:
        return "a number of thousands of digits"


def count_field(
    row: Mapping[str, Any],
    name: str,
    where: str,
    *,
    text: bool = False,
    low: int = 0,
    high: int = MAX_COUNT,
    error: type[ValueError] = MeasurementError,
) -> int:
    """Return a whole number from ``low`` to ``high``.

    Raises:
        error: missing, no whole number, or out of range.
    """
    value = number_field(row, name, where, text=text, low=low, strict=False, error=error)
    if value != int(value) or value > high:
        raise error(f"{where}: {name} = {_shown(row[name])} must be a whole number up to {high}")
    return int(value)


def numbers_field(row: Mapping[str, Any], name: str, where: str) -> list[float]:
    """Return a list of positive numbers, at least one.

    Raises:
        MeasurementError: missing, no list, or an entry that is no positive number.
    """
    values = row.get(name)
    if not isinstance(values, list) or not values:
        raise MeasurementError(f"{where}: field '{name}' is missing or not a list of numbers")
    return [number_field({f"{name}[{i}]": v}, f"{name}[{i}]", where) for i, v in enumerate(values)]
