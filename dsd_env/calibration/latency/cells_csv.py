"""The plain table of measured cells, read and written."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path

from dsd_env.calibration.latency.cells import DECODE, PREFILL, VERIFY
from dsd_env.calibration.latency.measurements import (
    Imported,
    MeasuredPoint,
    MeasurementError,
    phase_of,
    unique_points,
)
from dsd_env.calibration.latency.plausible import TRUST_HINT
from dsd_env.calibration.latency.reading import (
    MAX_COUNT,
    MAX_SECONDS,
    count_field,
    csv_table,
    number_field,
    text_of,
)

__all__ = ["CSV_COLUMNS", "import_csv", "write_csv"]

CSV_COLUMNS = ("batch", "q", "context", "seconds")
_CSV_OPTIONAL = ("repeats", "std_s", "phase", "unit")


CERTAIN = "certain"
"""What the column ``unit`` says where no guess at the unit shall be made."""


def import_csv(path: Path, *, trust_units: bool = False) -> Imported:
    """Import ``batch,q,context,seconds`` with optional ``repeats``, ``std_s``, ``phase`` and ``unit``.

    ``context`` counts the cached tokens of each sequence before the iteration, ``seconds`` is the duration of
    the whole iteration. ``phase`` (``decode``, ``verify``, ``prefill``) defaults to what q implies. ``unit``
    is empty or ``certain``: then the row's unit is not doubted. Lines that begin with ``#`` are comments; a
    row given twice counts once.

    Args:
        path: the file.
        trust_units: the user says that units are right.

    Raises:
        MeasurementError: no header with these columns, ragged row, NaN, negative or fractional count, a point
            given twice with different numbers.
    """
    text = text_of(path)
    try:
        table = csv_table(path, text, CSV_COLUMNS)
    except MeasurementError as e:
        if "missing column(s)" in str(e):
            raise MeasurementError(f"{e}; expected {_expected()}{_unit_hint(str(e))}") from e
        raise
    unknown = [c for c in table.header if c not in (*CSV_COLUMNS, *_CSV_OPTIONAL)]
    if unknown:
        hint = _unit_hint(",".join(unknown))
        raise MeasurementError(
            f"{path}: line {table.line}: unknown column(s) {', '.join(unknown)}; expected {_expected()}{hint}"
        )
    points = []
    for line, row in table.rows:
        where = f"{path}: line {line}"
        batch = count_field(row, "batch", where, text=True, low=1)
        q = count_field(row, "q", where, text=True, low=1)
        context = number_field(row, "context", where, text=True, strict=False)
        if context > MAX_COUNT:
            raise MeasurementError(f"{where}: context = {row['context']} must be at most {MAX_COUNT}")
        seconds = number_field(row, "seconds", where, text=True)
        if seconds > MAX_SECONDS:
            raise MeasurementError(f"{where}: seconds = {row['seconds']:.60} must be at most {MAX_SECONDS:g}")
        phase = row.get("phase") or phase_of(q)
        if phase not in (DECODE, VERIFY, PREFILL) or (phase == DECODE) != (q == 1):
            raise MeasurementError(
                f"{where}: phase = {phase!r:.30}: must be decode (q = 1), verify or prefill (q > 1); q = {q}"
            )
        unit = row.get("unit", "")
        if unit not in ("", CERTAIN):
            raise MeasurementError(f"{where}: unit = {unit!r:.30}: must be empty or {CERTAIN!r}")
        repeats = count_field(row, "repeats", where, text=True, low=1) if row.get("repeats") else None
        std = number_field(row, "std_s", where, text=True, strict=False) if row.get("std_s") else None
        if std is not None and std > 10.0 * seconds and not (trust_units or unit):
            raise MeasurementError(
                f"{where}: std_s = {std:g} is over ten times seconds = {seconds:g}: units?{TRUST_HINT}"
            )
        points.append(
            MeasuredPoint(
                batch, q, context, seconds, phase, where,
                repeats=repeats, std_s=std, certain_unit=unit == CERTAIN,
            )
        )  # fmt: skip
    if not points:
        raise MeasurementError(f"{path}: no rows below the header")
    unique = unique_points(points)
    twice = len(points) - len(unique)
    return Imported(unique, notes=(f"{path}: {twice} row(s) repeated exactly count once",) if twice else ())


def _expected() -> str:
    return f"{','.join(CSV_COLUMNS)} and optionally {','.join(_CSV_OPTIONAL)}"


def _unit_hint(columns: str) -> str:
    """Return a hint for columns that hold durations in another unit."""
    found = re.search(r"found (.*)", columns)
    names = (found[1] if found else columns).split(",")
    return "".join(
        f"; '{name}' is not 'seconds': convert the unit"
        for name in names
        if name not in (*CSV_COLUMNS, *_CSV_OPTIONAL) and re.search(r"(?i)ms|us|tok|sec", name)
    )


def write_csv(points: Sequence[MeasuredPoint], *, trust_units: bool = False) -> str:
    """Return the points as text in the format of :func:`import_csv`.

    Args:
        points: what to write.
        trust_units: say in the column ``unit`` of every row that its unit is certain; without it, of the rows
            that are. There is no such column where no row is.
    """
    certain = [trust_units or p.certain_unit for p in points]
    columns = (*CSV_COLUMNS, *_CSV_OPTIONAL)[: None if any(certain) else -1]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    for p, sure in zip(points, certain, strict=True):
        std = f"{p.std_s:.6g}" if p.std_s is not None else ""
        row = (
            p.batch, p.q, f"{p.context:.10g}", f"{p.seconds:.9g}", p.repeats or "", std, p.phase,
            CERTAIN if sure else "",
        )  # fmt: skip
        writer.writerow(row[: len(columns)])
    return out.getvalue()
