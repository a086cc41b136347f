"""Reading files of strangers: every fault becomes a :class:`TraceError` that names file, line and field."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dsd_env import strict_json
from dsd_env.acceptance.traceset import TraceError

MAX_BYTES = 1_000_000_000
"""Files above this are refused rather than read into memory."""


def read_text(path: Path) -> str:
    """Return a file's text.

    Raises:
        TraceError: It cannot be read, is no UTF-8, or is too large.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise TraceError(f"{path}: larger than {MAX_BYTES} bytes")
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise TraceError(f"{path}: not UTF-8 text, byte {error.start}") from error
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte; TraceError is one, too
        if isinstance(error, TraceError):
            raise
        raise TraceError(f"{path}: cannot be read: {error}") from error


def parse_json(text: str, where: str) -> Any:
    """Return parsed JSON; NaN and Infinity, which are not JSON, are refused.

    Raises:
        TraceError: Not JSON.
    """
    try:
        return strict_json.loads(text, unique=False)
    except (ValueError, RecursionError) as error:
        raise TraceError(f"{where}: not JSON: {error}") from error


def json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield ``FILE, line N`` and the parsed value of every line that is not blank.

    Raises:
        TraceError: The file cannot be read, or a line is not JSON.
    """
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            yield where, parse_json(line, where)


def field(row: Any, name: str, where: str, kind: type | tuple[type, ...] = object) -> Any:
    """Return a field of an object, of a wanted type.

    Raises:
        TraceError: Not an object, no such field, or another type.
    """
    if not isinstance(row, Mapping):
        raise TraceError(f"{where}: must be a JSON object, found {type(row).__name__}")
    if name not in row:
        raise TraceError(f"{where}: lacks a field of the format: {name!r}")
    value = row[name]
    if not isinstance(value, kind):
        wanted = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise TraceError(f"{where}: {name} must be a {wanted}, found {type(value).__name__}")
    return value


def integer(value: Any, name: str, where: str, low: int, high: int) -> int:
    """Return a whole number in a range; neither booleans nor ``3.0`` pass.

    Raises:
        TraceError: Anything else.
    """
    if type(value) is not int or not low <= value <= high:
        raise TraceError(f"{where}: {name} holds {_short(value)}, must be an integer in {low}..{high}")
    return value


def number(value: Any, name: str, where: str, low: float, high: float) -> float:
    """Return a finite number in a range.

    Raises:
        TraceError: Anything else; the message thinks of percentages where fractions are wanted.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TraceError(f"{where}: {name} holds {_short(value)}, must be a number in {low:g}..{high:g}")
    if not (low <= value <= high) or not math.isfinite(value):
        hint = " (a percentage where a fraction is meant?)" if high == 1.0 and 1.0 < value <= 100.0 else ""
        raise TraceError(f"{where}: {name} holds {_short(value)}, must be in {low:g}..{high:g}{hint}")
    return float(value)


def _short(value: Any) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**30 else "a huge integer"
    return text if len(text) <= 60 else text[:57] + "..."
