"""Recorded requests: when they came and how long they were.

The file is CSV with a header: ``arrival_s,prompt_tokens,output_tokens`` and optionally ``client`` and
``kind``, in any order. Times are seconds from any origin, not falling; lengths are whole numbers of tokens,
at least 1; ``client`` and ``kind`` are words. The formats of published traces are read by
:mod:`dsd_env.workload.importers`.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

COLUMNS = ("arrival_s", "prompt_tokens", "output_tokens")
OPTIONAL = ("client", "kind")
MAX_TOKENS = 10_000_000
MAX_FILE_BYTES = 500_000_000
_EPOCH_S = 1e8
"""Seconds after which a time is taken to count from 1970: three years."""
_MAX_RATE_PER_S = 1e5
_MAX_GAP_S = 60.0
_MAX_WHOLE_GAP_S = 20.0
"""Mean gaps after which times are taken to be milliseconds: any, and those of whole numbers."""
_FEW = 10
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._\- ]{0,79}")
_NUMBER = re.compile(r"[0-9]{1,15}(\.[0-9]{0,20})?([eE][+-]?[0-9]{1,2})?")


class RequestTraceError(ValueError):
    """A trace of requests cannot be used; the message names file, line and field."""


@dataclass(frozen=True)
class RequestTrace:
    """Requests in order of arrival.

    Attributes:
        arrival_s: Times from the trace's beginning, float64, not falling, shape (n,).
        prompt_tokens: int64, at least 1, shape (n,).
        output_tokens: int64, at least 1, shape (n,).
        client: Number of the client of each request in ``clients``, int64, shape (n,); None if not known.
        clients: Names of the clients, in order of their first request.
        kind: Number of the kind of each request in ``kinds``, likewise.
        kinds: Names of the kinds.
        dropped: Requests that an importer left out, because they failed.
    """

    arrival_s: FloatArray
    prompt_tokens: IntArray
    output_tokens: IntArray
    client: IntArray | None = None
    clients: tuple[str, ...] = ()
    kind: IntArray | None = None
    kinds: tuple[str, ...] = ()
    dropped: int = 0

    def __len__(self) -> int:
        """Return the number of requests."""
        return len(self.arrival_s)

    @property
    def duration_s(self) -> float:
        """Time from the beginning to the last request."""
        return float(self.arrival_s[-1])

    def cut(
        self, start_s: float = 0.0, duration_s: float | None = None, first: int | None = None
    ) -> RequestTrace:
        """Return a part, whose times begin at its own beginning.

        Args:
            start_s: Beginning of the part.
            duration_s: Its length, its end not included; None: to the last request.
            first: At most so many requests.

        Raises:
            RequestTraceError: No request is in it.
        """
        end_s = math.inf if duration_s is None else start_s + duration_s
        low, high = np.searchsorted(self.arrival_s, [start_s, end_s])
        if first is not None:
            high = min(high, low + first)
        if high <= low:
            raise RequestTraceError(
                f"no request comes from {start_s:g} s to {end_s:g} s; the trace has {len(self)} over "
                f"{self.duration_s:g} s"
            )
        part = slice(int(low), int(high))
        client, clients = _renumber(self.client, self.clients, part)
        kind, kinds = _renumber(self.kind, self.kinds, part)
        return RequestTrace(
            self.arrival_s[part] - start_s,
            self.prompt_tokens[part],
            self.output_tokens[part],
            client,
            clients,
            kind,
            kinds,
        )

    def scaled(self, rate_scale: float) -> RequestTrace:
        """Return the trace at another speed: at 2, twice as many requests per second.

        Raises:
            ValueError: ``rate_scale`` is not positive.
        """
        if not (rate_scale > 0.0 and math.isfinite(rate_scale)):
            raise ValueError(f"rate_scale = {rate_scale} must be positive")
        return replace(self, arrival_s=self.arrival_s / rate_scale)


def _renumber(
    numbers: IntArray | None, names: tuple[str, ...], part: slice
) -> tuple[IntArray | None, tuple[str, ...]]:
    """Return the numbers of a part, with names in order of their first use there."""
    if numbers is None:
        return None, ()
    used, first, inverse = np.unique(numbers[part], return_index=True, return_inverse=True)
    order = np.argsort(first)
    new = np.empty(len(used), dtype=np.int64)
    new[order] = np.arange(len(used))
    return new[inverse], tuple(names[int(used[number])] for number in order)


def load_trace(path: str | Path, *, trust_units: bool = False) -> RequestTrace:
    """Load a trace in the format of this module.

    Args:
        path: The file.
        trust_units: Do not ask whether times may be in another unit.

    Raises:
        RequestTraceError: Not found, malformed, not finite, negative, out of order, or most likely in other
            units.
    """
    path = Path(path)
    builder = TraceBuilder(path, trust_units=trust_units)
    for line, row in read_csv(path, COLUMNS, OPTIONAL):
        builder.add(
            line,
            builder.number(line, "arrival_s", row["arrival_s"]),
            builder.tokens(line, "prompt_tokens", row["prompt_tokens"]),
            builder.tokens(line, "output_tokens", row["output_tokens"]),
            client=builder.word(line, "client", row["client"]) if "client" in row else None,
            kind=builder.word(line, "kind", row["kind"]) if "kind" in row else None,
        )
    return builder.trace()


def save_trace(trace: RequestTrace, path: str | Path) -> Path:
    """Write a trace as CSV, under a temporary name first; times as exactly as they are known."""
    path = Path(path)
    header = list(COLUMNS)
    columns: list[Sequence[object]] = [
        [repr(float(time_s)) for time_s in trace.arrival_s],
        trace.prompt_tokens.tolist(),
        trace.output_tokens.tolist(),
    ]
    for name, numbers, names in (
        ("client", trace.client, trace.clients),
        ("kind", trace.kind, trace.kinds),
    ):
        if numbers is not None:
            header.append(name)
            columns.append([names[number] for number in numbers.tolist()])
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(zip(*columns, strict=True))
    temporary.replace(path)
    return path


def read_text(path: Path) -> str:
    """Return the text of a file.

    Raises:
        RequestTraceError: There is no such file, it is too large, or it is not text.
    """
    if not path.is_file():
        raise RequestTraceError(f"{path}: there is no such file")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise RequestTraceError(f"{path}: larger than {MAX_FILE_BYTES} bytes")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestTraceError(f"{path}: not a text file ({error})") from error


def read_csv(
    path: Path, needed: tuple[str, ...], allowed: tuple[str, ...]
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield line number and fields by column of each row of a CSV file with a header.

    Raises:
        RequestTraceError: Not a CSV file with these columns.
    """
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    header: list[str] | None = None
    try:
        for row in reader:
            if not row or (len(row) == 1 and not row[0].strip()):
                continue
            fields = [field.strip() for field in row]
            if header is None:
                header = fields
                missing = [name for name in needed if name not in header]
                unknown = [name for name in header if name not in needed + allowed]
                if missing or unknown or len(set(header)) != len(header):
                    raise RequestTraceError(
                        f"{path}: line {reader.line_num}: the header is {_short(str(header))}; needed are "
                        f"{list(needed)}, allowed {list(allowed)}, each once"
                    )
                continue
            if len(fields) != len(header):
                raise RequestTraceError(
                    f"{path}: line {reader.line_num}: {len(fields)} fields, the header has {len(header)}"
                )
            yield reader.line_num, dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise RequestTraceError(f"{path}: line {reader.line_num}: {error}") from error
    if header is None:
        raise RequestTraceError(f"{path}: line 1: empty; a CSV begins with the header {','.join(needed)}")


def shown(value: object) -> str:
    """Return a value of a file as a message shows it: not longer than a line."""
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + "..."


def _short(text: str) -> str:
    return text if len(text) <= 200 else text[:200] + "..."


class TraceBuilder:
    """Takes requests one by one, checks them, and makes a trace of them."""

    def __init__(
        self, path: Path, *, trust_units: bool = False, max_rate_per_s: float = _MAX_RATE_PER_S
    ) -> None:
        """Begin a trace; messages name the file.

        Args:
            path: The file.
            trust_units: Do not ask whether times may be in another unit.
            max_rate_per_s: Mean rate above which they are.
        """
        self._path, self._trust, self._max_rate_per_s = path, trust_units, max_rate_per_s
        self._arrivals: list[float] = []
        self._prompts: list[int] = []
        self._outputs: list[int] = []
        self._client: list[int] = []
        self._clients: dict[str, int] = {}
        self._kind: list[int] = []
        self._kinds: dict[str, int] = {}
        self._whole = True
        self.dropped = 0

    def error(self, line: int, message: str) -> RequestTraceError:
        """Return the error about a line."""
        return RequestTraceError(f"{self._path}: line {line}: {_short(message)}")

    def number(self, line: int, name: str, field: str) -> float:
        """Return a plain decimal number that is finite and not negative."""
        if not _NUMBER.fullmatch(field):
            raise self.error(line, f"{name} = {shown(field)} is not a finite number, at least 0")
        return float(field)

    def tokens(self, line: int, name: str, field: str, least: int = 1) -> int:
        """Return a whole number of tokens."""
        if not (field.isascii() and field.isdigit() and len(field) <= 12):
            raise self.error(line, f"{name} = {shown(field)} is not a whole number of tokens")
        return self.in_range(line, name, int(field), least)

    def in_range(self, line: int, name: str, value: int, least: int = 1) -> int:
        """Return a number of tokens that is possible."""
        if not least <= value <= MAX_TOKENS:
            raise self.error(line, f"{name} = {value} must lie within {least} and {MAX_TOKENS} tokens")
        return value

    def word(self, line: int, name: str, field: str) -> str:
        """Return the name of a client or a kind."""
        if not _WORD.fullmatch(field):
            raise self.error(
                line,
                f"{name} = {shown(field)} is not a name: letters, digits, '.', '_', '-' and blanks, up to 80",
            )
        return field

    def add(
        self,
        line: int,
        arrival_s: float,
        prompt_tokens: int,
        output_tokens: int,
        *,
        client: str | None = None,
        kind: str | None = None,
        field: str = "arrival_s",
    ) -> None:
        """Take a request; ``field`` is what the file calls its time."""
        if self._arrivals and arrival_s < self._arrivals[-1]:
            raise self.error(
                line, f"{field}: {arrival_s!r} s comes before the request above it, {self._arrivals[-1]!r} s"
            )
        if field == "arrival_s" and not self._trust and arrival_s > _EPOCH_S:
            raise self.error(
                line,
                f"{field} = {arrival_s!r} is above {_EPOCH_S:g} s: counted from 1970, or in milliseconds?",
            )
        self._whole = self._whole and arrival_s.is_integer()
        self._arrivals.append(arrival_s)
        self._prompts.append(prompt_tokens)
        self._outputs.append(output_tokens)
        if client is not None:
            self._client.append(self._clients.setdefault(client, len(self._clients)))
        if kind is not None:
            self._kind.append(self._kinds.setdefault(kind, len(self._kinds)))

    def trace(self, *, field: str = "arrival_s") -> RequestTrace:
        """Return the trace; its times begin at 0 where the file counts from another time.

        Raises:
            RequestTraceError: There are fewer than two requests, or their times are most likely in another
                unit.
        """
        n = len(self._arrivals)
        if n < 2:
            raise RequestTraceError(f"{self._path}: {n} requests; a trace needs at least 2")
        length_s = self._arrivals[-1] - self._arrivals[0]
        if length_s <= 0.0:
            raise RequestTraceError(f"{self._path}: {field}: all {n} requests come at one time")
        if not self._trust and n >= _FEW:
            gap_s = length_s / (n - 1)
            if gap_s < 1.0 / self._max_rate_per_s:
                raise RequestTraceError(
                    f"{self._path}: {field}: requests come {gap_s:g} s apart on average; is it another unit?"
                )
            if gap_s > (_MAX_WHOLE_GAP_S if self._whole else _MAX_GAP_S):
                raise RequestTraceError(
                    f"{self._path}: {field}: requests come {gap_s:g} s apart on average; are the times in "
                    "milliseconds?"
                )
        origin_s = 0.0 if field == "arrival_s" else self._arrivals[0]
        return RequestTrace(
            np.array(self._arrivals, dtype=np.float64) - origin_s,
            np.array(self._prompts, dtype=np.int64),
            np.array(self._outputs, dtype=np.int64),
            np.array(self._client, dtype=np.int64) if self._clients else None,
            tuple(self._clients),
            np.array(self._kind, dtype=np.int64) if self._kinds else None,
            tuple(self._kinds),
            self.dropped,
        )
