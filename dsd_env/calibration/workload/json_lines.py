"""Rows of traces that are JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dsd_env import strict_json
from dsd_env.workload.reading import Lines, short
from dsd_env.workload.trace import RequestTraceError


def json_rows(
    path: Path, lines: Lines, needed: tuple[str, ...], optional: tuple[str, ...]
) -> Iterator[tuple[int, Sequence[Any]]]:
    """Yield line number and values of each object of a file of JSON lines.

    Values come in the order of ``needed`` and ``optional``; an absent optional one is None.

    Raises:
        RequestTraceError: A line is not JSON or not an object, or lacks a field.
    """
    if not lines.first:
        raise RequestTraceError(f"{path}: line 1: empty; JSON lines have the fields {', '.join(needed)}")
    yield lines.number, _values(path, lines.number, lines.first, needed, optional)
    for number, text in enumerate(lines.rest(), start=lines.number + 1):
        if text.strip():
            yield number, _values(path, number, text, needed, optional)


def _values(
    path: Path, line: int, text: str, needed: tuple[str, ...], optional: tuple[str, ...]
) -> Sequence[Any]:
    where = f"{path}: line {line}"
    try:
        record = strict_json.loads(text, unique=False)
    except json.JSONDecodeError as error:
        near = text[max(0, error.pos - 20) : error.pos + 20].strip()
        raise RequestTraceError(
            f"{where}: not JSON: {error.msg} at column {error.pos + 1}, near {near!r}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise RequestTraceError(f"{where}: not JSON: {short(str(error))}") from None
    if not isinstance(record, dict):
        raise RequestTraceError(f"{where}: a line is an object, this is {type(record).__name__}")
    for name in needed:
        if name not in record:
            raise RequestTraceError(f"{where}: {name} is missing")
    return [record.get(name) for name in needed + optional]
