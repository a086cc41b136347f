"""Readers of published traces of requests.

======== ================================================================================================
format   file
======== ================================================================================================
azure    Azure LLM inference traces 2023 and 2024: CSV ``TIMESTAMP,ContextTokens,GeneratedTokens``, times as
         ``2023-11-16 18:15:46.6805900``, with or without a UTC offset
mooncake Mooncake: JSON lines with ``timestamp`` (whole milliseconds), ``input_length``, ``output_length`` and
         ``hash_ids``, which are not used
burstgpt BurstGPT: CSV ``Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type``, optionally
         ``Session ID`` (the client) and ``Elapsed time``; seconds. The log type is the kind; requests without
         response tokens failed and are left out
plain    the project's own, see :mod:`dsd_env.workload.trace`
======== ================================================================================================
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dsd_env import strict_json
from dsd_env.workload.trace import (
    COLUMNS,
    RequestTrace,
    RequestTraceError,
    TraceBuilder,
    load_trace,
    read_csv,
    read_text,
    shown,
)

AZURE = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
BURSTGPT = ("Timestamp", "Model", "Request tokens", "Response tokens", "Total tokens", "Log Type")
BURSTGPT_OPTIONAL = ("Session ID", "Elapsed time")
MOONCAKE = ("timestamp", "input_length", "output_length")
_STAMP = re.compile(r"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)?", re.ASCII)
_MAX_TIMESTAMP_MS = 10**12


def import_azure(path: str | Path, *, trust_units: bool = False) -> RequestTrace:
    """Read an Azure trace.

    Raises:
        RequestTraceError: Anything that is wrong with the file.
    """
    path = Path(path)
    builder = TraceBuilder(path, trust_units=trust_units)
    origin_s: int | None = None
    for line, row in read_csv(path, AZURE, ()):
        whole_s, fraction_s = _stamp(builder, line, row["TIMESTAMP"])
        origin_s = whole_s if origin_s is None else origin_s
        if whole_s < origin_s:
            raise builder.error(line, f"TIMESTAMP = {row['TIMESTAMP']} comes before the first one")
        builder.add(
            line,
            whole_s - origin_s + fraction_s,
            builder.tokens(line, "ContextTokens", row["ContextTokens"]),
            builder.tokens(line, "GeneratedTokens", row["GeneratedTokens"]),
            field="TIMESTAMP",
        )
    return builder.trace(field="TIMESTAMP")


def _stamp(builder: TraceBuilder, line: int, field: str) -> tuple[int, float]:
    """Return whole seconds since 1970 and the fraction."""
    found = _STAMP.fullmatch(field)
    if found is None:
        raise builder.error(
            line, f"TIMESTAMP = {shown(field)} is not a time like 2023-11-16 18:15:46.6805900"
        )
    day, clock, fraction, offset = found.groups()
    zone = "+00:00" if offset in (None, "Z") else offset
    try:
        moment = datetime.datetime.fromisoformat(f"{day}T{clock}{zone}")
        return int(moment.timestamp()), float(f"0.{fraction or 0}")
    except (ValueError, OverflowError) as error:
        raise builder.error(line, f"TIMESTAMP = {shown(field)}: {error}") from None


def import_burstgpt(path: str | Path, *, trust_units: bool = False) -> RequestTrace:
    """Read a BurstGPT trace.

    Raises:
        RequestTraceError: Anything that is wrong with the file.
    """
    path = Path(path)
    builder = TraceBuilder(path, trust_units=trust_units)
    for line, row in read_csv(path, BURSTGPT, BURSTGPT_OPTIONAL):
        arrival_s = builder.number(line, "Timestamp", row["Timestamp"])
        response = builder.tokens(line, "Response tokens", row["Response tokens"], least=0)
        request = builder.tokens(line, "Request tokens", row["Request tokens"], least=min(1, response))
        total = builder.tokens(line, "Total tokens", row["Total tokens"], least=0)
        if total != request + response:
            raise builder.error(line, f"Total tokens = {total} is not {request} + {response}")
        kind = builder.word(line, "Log Type", row["Log Type"])
        session = row.get("Session ID")
        client = None if session is None else builder.word(line, "Session ID", session)
        if response == 0:
            builder.dropped += 1
            continue
        builder.add(line, arrival_s, request, response, client=client, kind=kind, field="Timestamp")
    return builder.trace(field="Timestamp")


def import_mooncake(path: str | Path, *, trust_units: bool = False) -> RequestTrace:
    """Read a Mooncake trace.

    Raises:
        RequestTraceError: Anything that is wrong with the file.
    """
    path = Path(path)
    # Whole seconds taken for milliseconds come a thousand times too fast.
    builder = TraceBuilder(path, trust_units=trust_units, max_rate_per_s=500.0)
    for line, text in enumerate(read_text(path).split("\n"), start=1):
        if not text.strip():
            continue
        record = _record(builder, line, text)
        for name in MOONCAKE:
            if name not in record:
                raise builder.error(line, f"{name} is missing")
            if type(record[name]) is not int:
                what = "milliseconds" if name == "timestamp" else "tokens"
                raise builder.error(line, f"{name} = {shown(record[name])} is not a whole number of {what}")
        time_ms = record["timestamp"]
        if not 0 <= time_ms <= _MAX_TIMESTAMP_MS:
            raise builder.error(
                line, f"timestamp = {shown(time_ms)} ms is not within 0 and {_MAX_TIMESTAMP_MS}"
            )
        builder.add(
            line,
            time_ms / 1000.0,
            builder.in_range(line, "input_length", record["input_length"]),
            builder.in_range(line, "output_length", record["output_length"]),
            field="timestamp",
        )
    return builder.trace(field="timestamp")


def _record(builder: TraceBuilder, line: int, text: str) -> dict[str, Any]:
    try:
        record = strict_json.loads(text, unique=False)
    except (ValueError, RecursionError) as error:
        raise builder.error(line, f"not JSON: {error}") from None
    if not isinstance(record, dict):
        raise builder.error(line, f"a line is an object, this is {type(record).__name__}")
    return record


IMPORTERS: dict[str, Callable[..., RequestTrace]] = {
    "azure": import_azure,
    "mooncake": import_mooncake,
    "burstgpt": import_burstgpt,
    "plain": load_trace,
}


def import_trace(path: str | Path, kind: str | None = None, *, trust_units: bool = False) -> RequestTrace:
    """Read a trace of any of the formats.

    Args:
        path: The file.
        kind: One of :data:`IMPORTERS`; None: found out from the first line.
        trust_units: Do not ask whether times may be in another unit.

    Raises:
        RequestTraceError: Anything that is wrong with the file; no format fits.
    """
    path = Path(path)
    kind = _guess(path) if kind is None else kind
    if kind not in IMPORTERS:
        raise RequestTraceError(f"{path}: unknown format {kind!r}; there are {', '.join(IMPORTERS)}")
    return IMPORTERS[kind](path, trust_units=trust_units)


def _guess(path: Path) -> str:
    first = read_text(path).lstrip().split("\n", 1)[0]
    for kind, column in (("azure", AZURE[0]), ("burstgpt", BURSTGPT[0]), ("plain", COLUMNS[0])):
        if column in [field.strip() for field in first.split(",")]:
            return kind
    if first.startswith("{"):
        return "mooncake"
    raise RequestTraceError(
        f"{path}: line 1: no known format ({', '.join(IMPORTERS)}) begins with {first[:80]!r}"
    )
