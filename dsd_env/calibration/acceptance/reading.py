"""Reading files of strangers: every fault becomes a :class:`TraceError` that names file, line and field."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsd_env import strict_json, text
from dsd_env.acceptance.traceset import TraceError

MAX_BYTES = 1_000_000_000
"""Files above this are refused rather than read into memory."""


def read_text(path: Path) -> str:
    r"""Return a file's text, without a byte order mark and with ``\n`` as line ends.

    Raises:
        TraceError: It cannot be read, is no text, or is too large.
    """
    try:
        return text.read_text(path, max_bytes=MAX_BYTES)
    except text.TextError as error:
        raise TraceError(str(error)) from error


def parse_json(line: str, where: str) -> Any:
    """Return parsed JSON; NaN and Infinity, which are not JSON, and fields given twice are refused.

    Raises:
        TraceError: Not JSON.
    """
    try:
        return strict_json.loads(line)
    except json.JSONDecodeError as error:
        hint = ""
        if not line.lstrip().startswith("{"):
            hint = f"; it begins {_short(line.strip())}, but every line must be a JSON object"
        raise TraceError(f"{where}: not JSON: {error.msg}, column {error.colno}{hint}") from error
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


@dataclass(frozen=True)
class Message:
    """One JSON value of a file that a client of a server wrote.

    Attributes:
        where: ``FILE, line N``.
        value: The value.
        streamed: Whether it was an event of a stream (``data: {...}``).
    """

    where: str
    value: Any
    streamed: bool


_BEGINS_JSON = re.compile(r"\{|\[\s*(?:[\[{\"\]]|$)", re.MULTILINE)
_EVENT_FIELD = re.compile(r"(?:event|id|retry)?:|data:\s*(?:\[DONE\])?\s*$")
_LIKE_JSON = re.compile(r'"\s*:|[{}]')


def json_messages(path: Path) -> tuple[list[Message], int]:
    """Read JSON values from what a client of a server wrote, in whichever way they stand there.

    They may stand one a line, over several lines, one behind the other, or as events of a stream
    (``data: {...}``, ``data: [DONE]``). Lines of other programs before the first value (a log, a progress
    meter) are passed over.

    Returns:
        The values, and how many lines of other programs came before them.

    Raises:
        TraceError: The file cannot be read, or something in it is neither.
    """
    content = read_text(path)
    messages: list[Message] = []
    foreign = 0
    at, line = 0, 1
    while at < len(content):
        end = content.find("\n", at)
        end = len(content) if end < 0 else end
        rest = content[at:end].strip()
        where = f"{path}, line {line}"
        streamed = rest.startswith("data:")
        body = rest.removeprefix("data:").strip()
        if not rest or _EVENT_FIELD.match(rest):
            at, line = end + 1, line + 1
        elif _BEGINS_JSON.match(body):
            start = content.index(body[0], at)
            try:
                value, stop = strict_json.next_value(content, start, nan=True)
            except json.JSONDecodeError as error:
                place = f"line {error.lineno}, column {error.colno}"
                raise TraceError(f"{where}: not JSON: {error.msg}, {place}") from error
            except (ValueError, RecursionError) as error:
                raise TraceError(f"{where}: not JSON: {error}") from error
            messages.append(Message(where, value, streamed))
            line += content.count("\n", at, stop)
            at = stop
        elif not messages and not _LIKE_JSON.search(rest):
            foreign += 1
            at, line = end + 1, line + 1
        else:
            raise TraceError(f"{where}: not JSON: it begins {_short(rest)}")
    if not messages:
        first = content.strip().partition("\n")[0]
        begins = f"; it begins {_short(first)}" if first else ""
        raise TraceError(f"{path}: holds no JSON object{begins}")
    return messages, foreign


def each_item(messages: Iterable[Message]) -> Iterator[tuple[str, Any, bool]]:
    """Yield where it stands, value and whether it was streamed, of messages and of the items of lists."""
    for message in messages:
        if not isinstance(message.value, list):
            yield message.where, message.value, message.streamed
            continue
        inner = (
            Message(f"{message.where}, item {number}", item, message.streamed)
            for number, item in enumerate(message.value)
        )
        yield from each_item(inner)


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
    shown = repr(value) if not isinstance(value, int) or abs(value) < 10**30 else "a huge integer"
    return shown if len(shown) <= 60 else shown[:57] + "..."
