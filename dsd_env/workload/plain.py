"""Reads the project's own format of traces, and knows published ones when it sees them.

A published trace is not read here: the message names the importer
(:mod:`dsd_env.calibration.workload.importers`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dsd_env.workload.reading import SEPARATORS, Part, TraceBuilder, csv_rows, fill, header_of, opened
from dsd_env.workload.trace import COLUMNS, OPTIONAL, RequestTrace, RequestTraceError

PLAIN = "plain"
TABLES: dict[str, tuple[str, ...]] = {
    "azure": ("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
    "burstgpt": (
        "Timestamp",
        "Model",
        "Request tokens",
        "Response tokens",
        "Total tokens",
        "Log Type",
    ),
    "vidur": ("arrived_at", "num_prefill_tokens", "num_decode_tokens"),
    PLAIN: COLUMNS,
}
"""The columns that a table of each format has, the first of them the time."""


def seems_to_be(first: str) -> str | None:
    """Return the format that the first line of a file fits; None: none.

    Args:
        first: The line.
    """
    text = first.lstrip()
    if text.startswith("{"):
        return None if text.strip() == "{" else "qwen" if '"chat_id"' in text else "mooncake"
    if text.startswith("["):
        return None
    headers = [set(header_of(first, separator)) for separator in SEPARATORS]
    for name, columns in TABLES.items():
        if any(set(columns) <= header for header in headers):
            return name
    for name, columns in TABLES.items():
        # A column is missing; the complaint of the format's own reader says which.
        if any(columns[0] in header for header in headers):
            return name
    return None


class Plain:
    """Takes the rows of the project's own format."""

    def __init__(self, builder: TraceBuilder) -> None:
        """Give rows to a builder."""
        self._builder = builder

    def take(self, line: int, row: Sequence[str]) -> None:
        """Give a row to it."""
        arrival_s, prompt, output, client, kind, recorded = row
        builder = self._builder
        if builder.wants(line, builder.number(line, "arrival_s", arrival_s)):
            builder.add(
                builder.tokens(line, "prompt_tokens", prompt),
                builder.tokens(line, "output_tokens", output),
                builder.word(line, "client", client),
                builder.word(line, "kind", kind),
                builder.recording(line, recorded),
            )


def load_trace(
    path: str | Path,
    *,
    trust_units: bool = False,
    start_s: float = 0.0,
    duration_s: float | None = None,
    first: int | None = None,
) -> RequestTrace:
    """Load a trace, or a part of it, in the project's own format (:mod:`dsd_env.workload.trace`).

    Args:
        path: The file.
        trust_units: Do not ask whether times may be in another unit.
        start_s: Beginning of the part, in seconds.
        duration_s: Its length in seconds, its end not included; None: to the last request.
        first: At most so many requests of it.

    Raises:
        RequestTraceError: Not found, malformed, not finite, negative, out of order, or most likely in other
            units.
        ValueError: The part makes no sense.
    """
    path = Path(path)
    part = Part(start_s, duration_s, first)
    with opened(path) as lines:
        seems = seems_to_be(lines.first)
        if seems not in (None, PLAIN):
            raise RequestTraceError(
                f"{path}: line {lines.number}: seems to be a trace in the format {seems}, not {PLAIN}: "
                f"import it first, python scripts/import_workload.py {path} --out TRACE.csv"
            )
        builder = TraceBuilder(path, part, COLUMNS[0], trust_units=trust_units or lines.trusted, dated=False)
        complete = fill(builder, csv_rows(path, lines, COLUMNS, OPTIONAL, ()), Plain(builder).take)
    return builder.trace(complete=complete)
