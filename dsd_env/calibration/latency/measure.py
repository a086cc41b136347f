"""Measuring the time of iterations over a (batch, q, context) grid: cells, stop rule, file.

A measurement is a JSON file that is rewritten atomically after every visit of a cell: interrupted, it goes on
with the same command. What times a cell is a :class:`Runner`; see
:mod:`dsd_env.calibration.latency.torch_runner`.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dsd_env import strict_json
from dsd_env.calibration.latency.cells import DECODE, PREFILL
from dsd_env.calibration.latency.measurements import MeasuredPoint, MeasurementError, phase_of
from dsd_env.calibration.latency.reading import text_of
from dsd_env.files import write_text
from dsd_env.strict_model import StrictNumbers

__all__ = [
    "CellRecord",
    "GridSpec",
    "Measurement",
    "ModelInfo",
    "Runner",
    "StopRule",
    "grid_cells",
    "half_width",
    "load_measurement",
    "measure",
]

# -------------------------------------------------------------------------------------------------- records

_Positive = Annotated[float, Field(gt=0.0, le=1e4, allow_inf_nan=False)]
_Count = Annotated[int, Field(strict=True, ge=0, le=2**31)]


class _Record(StrictNumbers, BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CellRecord(_Record):
    """One cell: what it is, its repeats in the order taken, and why it was skipped, if it was."""

    batch: Annotated[int, Field(strict=True, ge=1, le=2**20)]
    q: Annotated[int, Field(strict=True, ge=1, le=2**20)]
    context: _Count
    phase: Literal["decode", "verify", "prefill"]
    samples_s: tuple[_Positive, ...] = ()
    skipped: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> CellRecord:
        if (self.phase == DECODE) != (self.q == 1):
            raise ValueError(f"phase {self.phase} does not go with q = {self.q}")
        return self

    @property
    def key(self) -> tuple[int, int, int, str]:
        """Identity of the cell."""
        return self.batch, self.q, self.context, self.phase

    def __str__(self) -> str:
        """Short text for progress and messages."""
        return f"{self.phase} batch {self.batch} q {self.q} context {self.context}"


class ModelInfo(_Record):
    """What was measured: settings that must not change inside one measurement."""

    model: str
    weights: str
    device: str
    dtype: str
    attention: str
    cuda_graph: bool
    threads: int
    weight_bytes: Annotated[int, Field(strict=True, gt=0)]
    kv_bytes_per_token: Annotated[int, Field(strict=True, gt=0)]
    context_limit_tokens: int | None = None


class Measurement(_Record):
    """A measurement file."""

    format: Literal["dsd_env latency measurement 1"] = "dsd_env latency measurement 1"
    info: ModelInfo
    environment: dict[str, str] = Field(default_factory=dict)
    cells: tuple[CellRecord, ...] = ()

    @model_validator(mode="after")
    def _once_each(self) -> Measurement:
        keys = [c.key for c in self.cells]
        twice = next((k for k in keys if keys.count(k) > 1), None) if len(set(keys)) < len(keys) else None
        if twice is not None:
            raise ValueError(f"cell {twice} is given twice")
        return self

    def points(self, min_samples: int = 1) -> list[MeasuredPoint]:
        """Measured points (medians) of all cells with enough repeats."""
        out = []
        for c in self.cells:
            if len(c.samples_s) >= min_samples:
                std = float(np.std(c.samples_s, ddof=1)) if len(c.samples_s) > 1 else None
                out.append(
                    MeasuredPoint(
                        c.batch, c.q, c.context, float(np.median(c.samples_s)), c.phase, str(c),
                        c.samples_s, len(c.samples_s), std, certain_unit=True,
                    )
                )  # fmt: skip
        return out


def load_measurement(path: Path) -> Measurement:
    """Load a measurement file.

    Raises:
        MeasurementError: unreadable, truncated or impossible content; names file and field.
    """
    text = text_of(path)
    try:
        data = strict_json.loads(text, nan=True)
    except (ValueError, RecursionError) as e:
        raise MeasurementError(f"{path}: cannot be read as a measurement: {e}") from e
    try:
        return Measurement.model_validate(data)
    except ValidationError as e:
        first = e.errors()[0]
        place = ".".join(map(str, first["loc"])) or "(whole file)"
        raise MeasurementError(f"{path}: {place} = {first['input']!r:.60}: {first['msg']}") from e


def _dump(m: Measurement) -> str:
    """JSON with one cell a line, samples to a microsecond's hundredth."""
    head = json.dumps(
        {"format": m.format, "info": m.info.model_dump(), "environment": m.environment}, indent=1
    )
    rows = []
    for c in m.cells:
        row = c.model_dump(mode="json")
        row["samples_s"] = [float(f"{s:.8g}") for s in c.samples_s]
        rows.append("  " + json.dumps({k: v for k, v in row.items() if v or k == "context"}))
    return head.rstrip("}\n ") + '\n },\n "cells": [\n' + ",\n".join(rows) + "\n ]\n}\n"


# ----------------------------------------------------------------------------------------------------- grid


@dataclass(frozen=True)
class GridSpec:
    """Which cells to measure.

    Attributes:
        batches: numbers of sequences.
        queries: new tokens of each sequence; 1 decodes, 2 … 17 verify.
        contexts: cached tokens of each sequence.
        chunks: prefill chunks of one sequence.
        prefixes: tokens cached before a chunk.
        kv_limit_tokens: cells with more tokens of KV are left out.
    """

    batches: tuple[int, ...] = (1, 2, 4, 8)
    queries: tuple[int, ...] = (1, 2, 3, 5, 9, 17)
    contexts: tuple[int, ...] = (128, 512, 1024, 2048)
    chunks: tuple[int, ...] = (32, 64, 128, 256)
    prefixes: tuple[int, ...] = (0, 1024)
    kv_limit_tokens: int | None = None


def grid_cells(grid: GridSpec, context_limit_tokens: int | None = None) -> list[CellRecord]:
    """Cells of a grid in the order of measuring: scattered, so that a run cut short has seen all of the grid.

    The order follows a hash of the cell; neighbours are measured at different times, so slow drift of the
    machine does not look like a slope.
    """
    cells = [
        CellRecord(batch=b, q=q, context=c, phase=phase_of(q))
        for b in grid.batches
        for q in grid.queries
        for c in grid.contexts
    ]
    cells += [CellRecord(batch=1, q=n, context=p, phase=PREFILL) for n in grid.chunks for p in grid.prefixes]
    unique = {
        c.key: c for c in cells if context_limit_tokens is None or c.context + c.q <= context_limit_tokens
    }
    limit = grid.kv_limit_tokens
    kept = [c for c in unique.values() if limit is None or c.batch * (c.context + c.q) <= limit]
    return sorted(
        kept, key=lambda c: hashlib.blake2b(repr(c.key).encode(), digest_size=8, key=b"order").digest()
    )


# ------------------------------------------------------------------------------------------------ stop rule


@dataclass(frozen=True)
class StopRule:
    """When a cell, and when the whole run, is done.

    Attributes:
        min_repeats: repeats that every cell gets, at least 6 (below, no 95 % interval of the median exists).
        max_repeats: repeats after which a cell is done in any case.
        half_width: a cell is done when the half-width of its median's 95 % interval is below this share of
            the median.
        budget_s: no further visit is begun after this many seconds; ``None`` for no limit.
        per_visit: repeats taken each time that a cell is visited.
        warmup: untimed iterations at the start of each visit.
    """

    min_repeats: int = 6
    max_repeats: int = 60
    half_width: float = 0.02
    budget_s: float | None = None
    per_visit: int = 6
    warmup: int = 2

    def __post_init__(self) -> None:
        """Refuse impossible rules."""
        if not 6 <= self.min_repeats <= self.max_repeats:
            raise ValueError("need 6 <= min_repeats <= max_repeats")
        if not 0.0 < self.half_width < 1.0 or self.per_visit < 1 or self.warmup < 0:
            raise ValueError("need 0 < half_width < 1, per_visit >= 1, warmup >= 0")
        if self.budget_s is not None and not self.budget_s > 0.0:
            raise ValueError("budget_s must be > 0")

    def done(self, samples_s: Sequence[float]) -> bool:
        """Whether a cell with these repeats needs no more."""
        n = len(samples_s)
        return n >= self.max_repeats or (n >= self.min_repeats and half_width(samples_s) < self.half_width)


def half_width(samples_s: Sequence[float]) -> float:
    """Relative half-width of the distribution-free 95 % interval of the median.

    The interval runs from the k-th smallest to the k-th largest value, k the largest rank for which a
    Binomial(n, 1/2) falls below it with probability at most 2.5 %. Infinite for fewer than six values.
    """
    n = len(samples_s)
    k, tail = 0, 0.0
    while True:
        tail += math.comb(n, k) / 2.0**n
        if tail > 0.025 or k >= n // 2:
            break
        k += 1
    if k == 0:
        return math.inf
    ordered = sorted(samples_s)
    return (ordered[n - k] - ordered[k - 1]) / (2.0 * float(np.median(ordered)))


# ------------------------------------------------------------------------------------------------- measuring


class Runner(Protocol):
    """Times cells of one model on one device."""

    def prepare(self, cells: Sequence[CellRecord]) -> dict[tuple[int, int, int, str], str]:
        """Allocate for the largest cell that fits; return the reason for each cell that does not."""
        ...

    def time(self, cell: CellRecord, warmup: int, repeats: int) -> list[float]:
        """Seconds of ``repeats`` iterations after ``warmup`` untimed ones.

        Raises:
            MemoryError: the cell does not fit.
        """
        ...


def _visits(cells: Mapping[tuple[int, int, int, str], CellRecord], rule: StopRule) -> Iterator[CellRecord]:
    """Cells to visit: all that lack repeats in their order, over and over, until none does."""
    while True:
        open_cells = [key for key, c in cells.items() if not c.skipped and not rule.done(c.samples_s)]
        if not open_cells:
            return
        for key in open_cells:
            yield cells[key]


def measure(
    runner: Runner,
    info: ModelInfo,
    wanted: Sequence[CellRecord],
    path: Path,
    rule: StopRule,
    environment: Mapping[str, str] | None = None,
    report: Callable[[str, int, int], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Measurement:
    """Measure cells, going on with what the file already holds.

    Every cell is visited once before any is visited again, so the repeats of a cell are spread over the run.
    The file is written after each visit; ``KeyboardInterrupt`` passes through and loses the visit under way.

    Args:
        runner: what times a cell.
        info: settings; a file made with others is refused.
        wanted: cells in the order of measuring.
        path: measurement file.
        rule: when to stop.
        environment: software and machine, kept in the file.
        report: called with (cell or "", cells done, cells in all) before each visit and at the end.
        clock: seconds; replaced in tests.

    Returns:
        The measurement, cells of the file that are not wanted now included.

    Raises:
        MeasurementError: the file is broken or was made with other settings.
    """
    known: dict[tuple[int, int, int, str], CellRecord] = {}
    if path.is_file():
        old = load_measurement(path)
        differ = [f for f in ModelInfo.model_fields if getattr(old.info, f) != getattr(info, f)]
        if differ:
            f = differ[0]
            raise MeasurementError(
                f"{path}: measured with {f} = {getattr(old.info, f)!r}, now {getattr(info, f)!r}: give "
                "another --name "
                "or delete the file"
            )
        known = {c.key: c for c in old.cells}
    rest = {key: c for key, c in known.items() if key not in {w.key for w in wanted}}
    cells = {w.key: known.get(w.key, w) for w in wanted}
    # What did not fit may fit now (another process gone): decided anew.
    cells = {key: replace_skipped(c, "") for key, c in cells.items()}
    for key, reason in runner.prepare(list(cells.values())).items():
        cells[key] = replace_skipped(cells[key], reason)

    def current() -> Measurement:
        kept = (*cells.values(), *rest.values())
        return Measurement(info=info, environment=dict(environment or {}), cells=kept)

    begin = clock()
    total = len(cells)
    for cell in _visits(cells, rule):
        if rule.budget_s is not None and clock() - begin >= rule.budget_s:
            break
        if report is not None:
            report(str(cell), sum(bool(c.skipped) or rule.done(c.samples_s) for c in cells.values()), total)
        try:
            more = runner.time(cell, rule.warmup, rule.per_visit)
        except MemoryError as e:
            cells[cell.key] = replace_skipped(cell, f"does not fit in memory: {e}")
        else:
            cells[cell.key] = cell.model_copy(update={"samples_s": (*cell.samples_s, *more)})
        write_text(path, _dump(current()))
    result = current()
    write_text(path, _dump(result))
    if report is not None:
        report("", sum(bool(c.skipped) or rule.done(c.samples_s) for c in cells.values()), total)
    return result


def replace_skipped(cell: CellRecord, reason: str) -> CellRecord:
    """The cell with another reason for being skipped."""
    return cell if cell.skipped == reason else cell.model_copy(update={"skipped": reason})
