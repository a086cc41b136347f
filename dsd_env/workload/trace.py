"""Recorded requests: when they came and how long they were.

The file is CSV with a header: ``arrival_s,prompt_tokens,output_tokens`` and optionally ``client``, ``kind``
and ``recorded``, in any order. Times are seconds from any origin, not falling; lengths are whole numbers of
tokens, at least 1; the others are words, or empty where a request has none. ``recorded`` names the request of
an acceptance recording whose acceptance this one had. Lines that begin with ``#``
are comments; ``# trust_units: true`` above the header says that times are seconds, however it looks. It is
read by :func:`dsd_env.workload.load_trace`; the formats of published traces by
:mod:`dsd_env.calibration.workload.importers`.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dsd_env.files import write_atomically

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

COLUMNS = ("arrival_s", "prompt_tokens", "output_tokens")
OPTIONAL = ("client", "kind", "recorded")
TRUSTED = "# trust_units: true"
"""A comment above the header: a reader does not ask whether times are in another unit."""
MAX_RATE_PER_S = 1e5
"""Mean rate above which times are taken to be in a larger unit than seconds."""
FEW = 10
"""Below so many requests nothing is concluded from their distances."""
_EPOCH_S = 1e8
"""Seconds after which a time is taken to count from 1970: three years."""
_MAX_GAP_S = 60.0
_MAX_WHOLE_GAP_S = 20.0
"""Mean gaps after which times are taken to be milliseconds: any, and those of whole numbers."""
_TRUST = (
    "if they are seconds, say so: --trust-units of scripts/import_workload.py, trust_units=True of "
    "import_trace, or trust_units: true beside the trace in a scenario"
)


class RequestTraceError(ValueError):
    """A trace of requests cannot be used; the message names file, line and field."""


@dataclass(frozen=True)
class RequestTrace:
    """Requests in order of arrival.

    Attributes:
        arrival_s: Times from the trace's beginning, float64, not falling, shape (n,).
        prompt_tokens: int64, at least 1, shape (n,).
        output_tokens: int64, at least 1, shape (n,).
        client: Number of the client of each request in ``clients``, -1 where it has none, int64, shape (n,);
            None if no request has one.
        clients: Names of the clients, in order of their first request.
        kind: Number of the kind of each request in ``kinds``, likewise.
        kinds: Names of the kinds.
        dropped_s: Times of the requests that an importer left out because they failed, as ``arrival_s``,
            shape (dropped,).
        tick_s: Tick of the clock behind the times, where it is so coarse that requests share theirs; None
            where it is not. See :mod:`dsd_env.workload.clock`.
        unused: Columns or fields of the file that are known and not used.
        recorded: Number in ``recordings`` of the recorded request whose acceptance each had, likewise.
        recordings: Their names.
    """

    arrival_s: FloatArray
    prompt_tokens: IntArray
    output_tokens: IntArray
    client: IntArray | None = None
    clients: tuple[str, ...] = ()
    kind: IntArray | None = None
    kinds: tuple[str, ...] = ()
    dropped_s: FloatArray = field(default_factory=lambda: np.empty(0))
    tick_s: float | None = None
    unused: tuple[str, ...] = ()
    recorded: IntArray | None = None
    recordings: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Return the number of requests."""
        return len(self.arrival_s)

    @property
    def dropped(self) -> int:
        """Number of requests that an importer left out because they failed."""
        return len(self.dropped_s)

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
        if first is not None and low + first <= high:
            high = low + first
            end_s = float(self.arrival_s[high - 1]) if high > low else start_s
        if high <= low:
            raise RequestTraceError(
                f"no request comes from {start_s:g} s to {end_s:g} s; the trace has {len(self)} over "
                f"{self.duration_s:g} s"
            )
        part = slice(int(low), int(high))
        client, clients = _renumber(self.client, self.clients, part)
        kind, kinds = _renumber(self.kind, self.kinds, part)
        recorded, recordings = _renumber(self.recorded, self.recordings, part)
        return RequestTrace(
            self.arrival_s[part] - start_s,
            self.prompt_tokens[part],
            self.output_tokens[part],
            client,
            clients,
            kind,
            kinds,
            dropped_within(self.dropped_s, start_s, end_s),
            self.tick_s,
            self.unused,
            recorded,
            recordings,
        )

    def scaled(self, rate_scale: float) -> RequestTrace:
        """Return the trace at another speed: at 2, twice as many requests per second.

        Raises:
            ValueError: ``rate_scale`` is not positive.
        """
        if not (rate_scale > 0.0 and math.isfinite(rate_scale)):
            raise ValueError(f"rate_scale = {rate_scale} must be positive")
        if not math.isfinite(self.duration_s / rate_scale):
            raise ValueError(f"rate_scale = {rate_scale} would stretch {self.duration_s:g} s too far")
        return replace(
            self,
            arrival_s=self.arrival_s / rate_scale,
            dropped_s=self.dropped_s / rate_scale,
            tick_s=None if self.tick_s is None else self.tick_s / rate_scale,
        )


def dropped_within(dropped_s: FloatArray, start_s: float, end_s: float) -> FloatArray:
    """Return the times of left out requests that lie in a part, from its beginning.

    What failed before the first request of the whole trace belongs to a part that begins with the trace.
    """
    low_s = -math.inf if start_s <= 0.0 else start_s
    return dropped_s[(dropped_s >= low_s) & (dropped_s < end_s)] - start_s


def _renumber(
    numbers: IntArray | None, names: tuple[str, ...], part: slice
) -> tuple[IntArray | None, tuple[str, ...]]:
    """Return the numbers of a part, with names in order of their first use there; -1 stays."""
    if numbers is None:
        return None, ()
    here = numbers[part]
    named = here >= 0
    if not named.any():
        return None, ()
    used, first, inverse = np.unique(here[named], return_index=True, return_inverse=True)
    order = np.argsort(first)
    new = np.empty(len(used), dtype=np.int64)
    new[order] = np.arange(len(used))
    result = np.full(len(here), -1, dtype=np.int64)
    result[named] = new[inverse]
    return result, tuple(names[int(used[number])] for number in order)


def unit_fault(
    requests: int, first_s: float, last_s: float, whole: bool, max_rate_per_s: float, *, dated: bool
) -> str | None:
    """Return why times are most likely in another unit than seconds, and what to do; None if they are not.

    Args:
        requests: How many there are.
        first_s: Time of the first.
        last_s: Time of the last.
        whole: Whether all times are whole numbers.
        max_rate_per_s: Mean rate above which they are.
        dated: Whether times may count from any date.
    """
    if not dated and last_s > _EPOCH_S:
        return f"{last_s!r} is above {_EPOCH_S:g} s: counted from 1970, or in milliseconds? ({_TRUST})"
    if requests < FEW:
        return None
    gap_s = (last_s - first_s) / (requests - 1)
    if gap_s < 1.0 / max_rate_per_s:
        return f"requests come {gap_s:g} s apart on average; is it another unit? ({_TRUST})"
    if gap_s > (_MAX_WHOLE_GAP_S if whole else _MAX_GAP_S):
        return f"requests come {gap_s:g} s apart on average; are the times in milliseconds? ({_TRUST})"
    return None


def save_trace(trace: RequestTrace, path: str | Path) -> Path:
    """Write a trace as CSV, atomically; times as exactly as they are known.

    Where a reader would ask whether times are in another unit, the file says that they are seconds.
    """
    path = Path(path)
    header = list(COLUMNS)
    columns: list[Sequence[object]] = [
        [repr(time_s) for time_s in trace.arrival_s.tolist()],
        trace.prompt_tokens.tolist(),
        trace.output_tokens.tolist(),
    ]
    for name, numbers, names in (
        ("client", trace.client, trace.clients),
        ("kind", trace.kind, trace.kinds),
        ("recorded", trace.recorded, trace.recordings),
    ):
        if numbers is not None:
            header.append(name)
            columns.append([names[number] if number >= 0 else "" for number in numbers.tolist()])
    times_s = trace.arrival_s
    whole = bool((times_s == np.floor(times_s)).all())
    asked = unit_fault(len(trace), float(times_s[0]), float(times_s[-1]), whole, MAX_RATE_PER_S, dated=False)

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            if asked is not None:
                file.write(TRUSTED + "\n")
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(header)
            writer.writerows(zip(*columns, strict=True))

    write_atomically(path, write)
    return path
