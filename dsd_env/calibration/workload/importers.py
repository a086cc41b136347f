"""Readers of published traces of requests.

======== ================================================================================================
format   file
======== ================================================================================================
azure    Azure LLM inference traces 2023 and 2024: CSV ``TIMESTAMP,ContextTokens,GeneratedTokens``, times as
         ``2023-11-16 18:15:46.6805900``, with or without a UTC offset; ``NumImages`` of the multimodal trace
         of 2025 is not used
mooncake Mooncake: JSON lines with ``timestamp`` (whole milliseconds), ``input_length``, ``output_length`` and
         ``hash_ids``, which are not used
qwen     Qwen-Bailian: JSON lines with ``timestamp`` (seconds), ``input_length``, ``output_length``,
         ``chat_id``, ``parent_chat_id`` (the turns of a conversation are one client), ``type`` (the kind);
         ``turn`` and ``hash_ids`` are not used
burstgpt BurstGPT: CSV ``Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type``, optionally
         ``Session ID`` (the client) and ``Elapsed time`` (not used); seconds. The log type is the kind
vidur    Vidur: CSV ``arrived_at,num_prefill_tokens,num_decode_tokens``; seconds
plain    the project's own, see :mod:`dsd_env.workload.trace`
======== ================================================================================================

A CSV may be separated by commas, semicolons or tabs, and its columns may stand in any order. In all of the
published formats a request without output tokens has failed: it is left out and counted.
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from dsd_env.calibration.workload import clock
from dsd_env.calibration.workload.json_lines import json_rows
from dsd_env.workload.plain import PLAIN, TABLES, Plain, seems_to_be
from dsd_env.workload.reading import Lines, Part, TraceBuilder, csv_rows, fill, opened, shown
from dsd_env.workload.trace import COLUMNS, MAX_RATE_PER_S, OPTIONAL, RequestTrace, RequestTraceError

_STAMP = re.compile(r"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)?", re.ASCII)
_MAX_TIMESTAMP_MS = 10**12


class _Reader(Protocol):
    """Takes the rows of one format, in the order of its columns."""

    def __init__(self, builder: TraceBuilder) -> None: ...

    def take(self, line: int, row: Sequence[Any]) -> None:
        """Give a row to the builder."""


class _Azure:
    def __init__(self, builder: TraceBuilder) -> None:
        self._builder = builder
        self._origin_s: int | None = None
        self._second: tuple[str, str, str | None, int] = ("", "", None, 0)

    def take(self, line: int, row: Sequence[str]) -> None:
        stamp, prompt, output = row
        builder = self._builder
        whole_s, fraction_s = self._stamp(line, stamp)
        if self._origin_s is None:
            self._origin_s = whole_s
        if whole_s < self._origin_s:
            raise builder.error(line, f"TIMESTAMP = {stamp} comes before the first one")
        time_s = whole_s - self._origin_s + fraction_s
        if output.strip() == "0":
            builder.drop(time_s)
        elif builder.wants(line, time_s):
            builder.add(
                builder.tokens(line, "ContextTokens", prompt), builder.tokens(line, "GeneratedTokens", output)
            )

    def _stamp(self, line: int, field: str) -> tuple[int, float]:
        """Return whole seconds since 1970 and the fraction."""
        found = _STAMP.fullmatch(field) or _STAMP.fullmatch(field.strip())
        if found is None:
            raise self._builder.error(
                line, f"TIMESTAMP = {shown(field)} is not a time like 2023-11-16 18:15:46.6805900"
            )
        day, hours, fraction, offset = found.groups()
        if self._second[:3] != (day, hours, offset):
            zone = "+00:00" if offset in (None, "Z") else offset
            try:
                moment = datetime.datetime.fromisoformat(f"{day}T{hours}{zone}")
                self._second = (day, hours, offset, int(moment.timestamp()))
            except (ValueError, OverflowError) as error:
                raise self._builder.error(line, f"TIMESTAMP = {shown(field)}: {error}") from None
        return self._second[3], float(f"0.{fraction or 0}")


class _BurstGpt:
    def __init__(self, builder: TraceBuilder) -> None:
        self._builder = builder

    def take(self, line: int, row: Sequence[str]) -> None:
        time, _model, request_field, response_field, total_field, log_type, session = row
        builder = self._builder
        arrival_s = builder.number(line, "Timestamp", time)
        response = builder.tokens(line, "Response tokens", response_field, least=0)
        request = builder.tokens(line, "Request tokens", request_field, least=min(1, response))
        total = builder.tokens(line, "Total tokens", total_field, least=0)
        if total != request + response:
            raise builder.error(line, f"Total tokens = {total} is not {request} + {response}")
        kind = builder.word(line, "Log Type", log_type)
        client = builder.word(line, "Session ID", session)
        if response == 0:
            builder.drop(arrival_s)
        elif builder.wants(line, arrival_s):
            builder.add(request, response, client, kind)


class _Vidur:
    def __init__(self, builder: TraceBuilder) -> None:
        self._builder = builder

    def take(self, line: int, row: Sequence[str]) -> None:
        time, prompt, output = row
        builder = self._builder
        arrival_s = builder.number(line, "arrived_at", time)
        if output.strip() == "0":
            builder.drop(arrival_s)
        elif builder.wants(line, arrival_s):
            builder.add(
                builder.tokens(line, "num_prefill_tokens", prompt),
                builder.tokens(line, "num_decode_tokens", output),
            )


class _Mooncake:
    def __init__(self, builder: TraceBuilder) -> None:
        self._builder = builder

    def take(self, line: int, row: Sequence[Any]) -> None:
        time_ms, prompt, output = row
        builder = self._builder
        if type(time_ms) is not int:
            raise builder.error(line, f"timestamp = {shown(time_ms)} is not a whole number of milliseconds")
        if not 0 <= time_ms <= _MAX_TIMESTAMP_MS:
            raise builder.error(
                line, f"timestamp = {shown(time_ms)} ms is not within 0 and {_MAX_TIMESTAMP_MS}"
            )
        if type(output) is int and output == 0:
            builder.drop(time_ms / 1000.0)
        elif builder.wants(line, time_ms / 1000.0):
            builder.add(
                builder.in_range(line, "input_length", prompt),
                builder.in_range(line, "output_length", output),
            )


class _Qwen:
    def __init__(self, builder: TraceBuilder) -> None:
        self._builder = builder
        self._roots: dict[str, str] = {}

    def take(self, line: int, row: Sequence[Any]) -> None:
        time_s, prompt, output, chat, parent, kind = row
        builder = self._builder
        if type(time_s) not in (int, float) or not (math.isfinite(time_s) and 0 <= time_s <= 1e12):
            raise builder.error(
                line, f"timestamp = {shown(time_s)} is not a finite number of seconds, at least 0"
            )
        client = self._session(line, chat, parent)
        kind = self._name(line, "type", kind)
        if type(output) is int and output == 0:
            builder.drop(float(time_s))
        elif builder.wants(line, float(time_s)):
            builder.add(
                builder.in_range(line, "input_length", prompt),
                builder.in_range(line, "output_length", output),
                client,
                kind,
            )

    def _session(self, line: int, chat: object, parent: object) -> str | None:
        """Return the first turn of the conversation that a turn belongs to, as far as the file has it."""
        own = self._name(line, "chat_id", chat)
        before = None if parent == -1 else self._name(line, "parent_chat_id", parent)
        root = own if before is None else self._roots.get(before, before)
        if own is not None and root is not None:
            self._roots[own] = root
        return root

    def _name(self, line: int, name: str, value: object) -> str | None:
        if value is None:
            return None
        if type(value) is int and 0 <= value < 10**18:
            return str(value)
        if not isinstance(value, str):
            raise self._builder.error(line, f"{name} = {shown(value)} is neither a name nor a whole number")
        return self._builder.word(line, name, value)


@dataclass(frozen=True)
class Format:
    """A format of traces.

    Attributes:
        reader: Takes the rows.
        needed: Columns or fields, in the order in which the reader takes them; the time is ``time``.
        optional: Those that may be absent or empty, which follow.
        unused: Those that are known and not used.
        time: What the format calls the time of a request.
        lines: Whether it has JSON lines; otherwise it is CSV.
        dated: Whether times may count from any date.
        max_rate_per_s: Mean rate above which times are taken for another unit.
    """

    reader: Callable[[TraceBuilder], _Reader]
    needed: tuple[str, ...]
    optional: tuple[str, ...]
    unused: tuple[str, ...]
    time: str
    lines: bool = False
    dated: bool = True
    max_rate_per_s: float = MAX_RATE_PER_S


FORMATS: dict[str, Format] = {
    "azure": Format(_Azure, TABLES["azure"], (), ("NumImages",), "TIMESTAMP"),
    "mooncake": Format(
        _Mooncake,
        ("timestamp", "input_length", "output_length"),
        (),
        ("hash_ids",),
        "timestamp",
        lines=True,
        # Whole seconds taken for milliseconds come a thousand times too fast.
        max_rate_per_s=500.0,
    ),
    "qwen": Format(
        _Qwen,
        ("timestamp", "input_length", "output_length", "chat_id"),
        ("parent_chat_id", "type"),
        ("turn", "hash_ids"),
        "timestamp",
        lines=True,
    ),
    "burstgpt": Format(
        _BurstGpt,
        TABLES["burstgpt"],
        ("Session ID",),
        ("Elapsed time",),
        "Timestamp",
    ),
    "vidur": Format(_Vidur, TABLES["vidur"], (), (), "arrived_at"),
    PLAIN: Format(Plain, COLUMNS, OPTIONAL, (), "arrival_s", dated=False),
}


def import_trace(
    path: str | Path,
    kind: str | None = None,
    *,
    trust_units: bool = False,
    start_s: float = 0.0,
    duration_s: float | None = None,
    first: int | None = None,
    spread_ticks: bool | clock.Spread = False,
    seed: int = 0,
) -> RequestTrace:
    """Read a trace of any of the formats, or a part of it, of a file of any size.

    The part is that of :meth:`RequestTrace.cut`, but the file is read line by line and no further than
    needed (and as far as its units are judged by: 50,000 requests); what is wrong beyond is not seen.

    Args:
        path: The file.
        kind: One of :data:`FORMATS`; None: found out from the first line.
        trust_units: Do not ask whether times may be in another unit.
        start_s: Beginning of the part, in seconds from the beginning of the trace.
        duration_s: Its length in seconds, its end not included; None: to the last request.
        first: At most so many requests of it.
        spread_ticks: Spread requests that share their time because of a coarse clock over its tick, at
            ``draws`` (or True) or ``even`` places; see
            :func:`dsd_env.calibration.workload.clock.spread_ticks`. The part is chosen by the times as
            recorded.
        seed: Of what is drawn for that.

    Raises:
        RequestTraceError: Anything that is wrong with the file; no format fits.
        ValueError: ``start_s``, ``duration_s``, ``first`` or ``spread_ticks`` make no sense.
    """
    path = Path(path)
    part = Part(start_s, duration_s, first)
    if kind is not None and kind not in FORMATS:
        raise RequestTraceError(f"{path}: unknown format {kind!r}; there are {', '.join(FORMATS)}")
    with opened(path) as lines:
        form = FORMATS[_guess(path, lines) if kind is None else _told(path, lines, kind)]
        builder = TraceBuilder(
            path,
            part,
            form.time,
            trust_units=trust_units or lines.trusted,
            max_rate_per_s=form.max_rate_per_s,
            dated=form.dated,
        )
        rows: Iterable[tuple[int, Sequence[Any]]]
        if form.lines:
            rows = json_rows(path, lines, form.needed, form.optional)
        else:
            rows = csv_rows(path, lines, form.needed, form.optional, form.unused)
        complete = fill(builder, rows, form.reader(builder).take)
        unused = tuple(name for name in form.unused if name in lines.first)
    trace = builder.trace(complete=complete, unused=unused)
    if spread_ticks is False:
        return trace
    how: clock.Spread = "draws" if spread_ticks is True else spread_ticks
    return clock.spread_ticks(trace, how, seed=seed, end_s=duration_s)


def _guess(path: Path, lines: Lines) -> str:
    """Return the format that the first line fits."""
    first = lines.first
    found = seems_to_be(first)
    if found is not None:
        return found
    where = f"{path}: line {lines.number}"
    if first.strip() == "{":
        raise RequestTraceError(f"{where}: JSON over several lines; needed is one object a line")
    if first.lstrip().startswith("["):
        raise RequestTraceError(f"{where}: a JSON array; needed is one object a line")
    if first.strip() and all(_is_number(field) for field in first.replace(";", ",").split(",")):
        raise RequestTraceError(f"{where}: {first[:80]!r}: there is no header that names the columns")
    raise RequestTraceError(f"{where}: no known format ({', '.join(FORMATS)}) begins with {first[:80]!r}")


def _told(path: Path, lines: Lines, kind: str) -> str:
    """Return the format that is asked for, unless the file is clearly of another.

    Raises:
        RequestTraceError: It is.
    """
    try:
        seems = _guess(path, lines)
    except RequestTraceError:
        return kind
    if seems == kind or FORMATS[seems].time == FORMATS[kind].time:
        return kind
    raise RequestTraceError(
        f"{path}: line {lines.number}: seems to be a trace in the format {seems}, not {kind}: "
        "leave the format out to have it found out"
    )


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


IMPORTERS: dict[str, Callable[..., RequestTrace]] = {
    name: partial(import_trace, kind=name) for name in FORMATS
}
"""The reader of each format, called as :func:`import_trace`."""
