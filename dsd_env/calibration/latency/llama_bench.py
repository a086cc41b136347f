"""Reader of llama-bench's output (``-o json``, ``jsonl`` or ``csv``).

Field names are those of ``tools/llama-bench/llama-bench.cpp`` (``test::get_fields``; older versions lack
``n_depth``, newer ones have more settings each month).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dsd_env.calibration.latency.cells import VERIFY
from dsd_env.calibration.latency.measurements import (
    Imported,
    MeasuredPoint,
    MeasurementError,
    phase_of,
)
from dsd_env.calibration.latency.reading import (
    MAX_SECONDS,
    count_field,
    csv_table,
    json_documents,
    log_lines_note,
    number_field,
    numbers_field,
    text_of,
)

__all__ = ["LLAMA_BENCH_COMMAND", "import_llama_bench"]

LLAMA_BENCH_COMMAND = "llama-bench -m MODEL -p 2,4,8,16,128,512 -n 32 -d 0,512,2048,4096 -r 5 -o jsonl"
"""Command whose output holds enough for a drafter profile with a knee: 28 tests."""

_TEST = ("n_prompt", "n_gen", "n_depth")
"""The size of a test."""

_RESULT = re.compile(r"test_time|(avg|stddev|samples)_\w+")
"""What a test found, and when. Everything else is a setting, also what later versions will add."""

_ANY = "*"
"""Value of ``--select`` that lets a field differ."""

_WORDS = {"true": 1.0, "on": 1.0, "yes": 1.0, "false": 0.0, "off": 0.0, "no": 0.0}
_PLAIN_NUMBER = re.compile(r"[+-]?\d{1,15}(\.\d+)?", re.ASCII)


@dataclass(frozen=True)
class _Row:
    """One test: where it stands, its fields, and whether their values are text (CSV)."""

    where: str
    fields: dict[str, Any]
    text: bool


@dataclass
class _Settings:
    """Values of every setting, in the order in which they came, with the row in which each came first."""

    seen: dict[str, dict[Any, tuple[str, Any]]] = field(default_factory=dict)

    def add(self, row: _Row, names: Sequence[str]) -> None:
        for name in names:
            value = row.fields.get(name)
            self.seen.setdefault(name, {}).setdefault(_comparable(value), (row.where, value))

    def differing(self, free: Sequence[str]) -> list[str]:
        return [name for name, values in self.seen.items() if len(values) > 1 and name not in free]


def _comparable(value: Any) -> Any:
    """A form in which ``True``, ``1``, ``"on"`` and ``"1.0"`` are the same, and ``null`` a field left out."""
    if isinstance(value, bool | int | float):
        return float(value) if abs(value) < 1e15 else repr(value)
    if isinstance(value, str):
        word = value.strip()
        if word.lower() in _WORDS:
            return _WORDS[word.lower()]
        return float(word) if _PLAIN_NUMBER.fullmatch(word) else word
    return None if value is None else json.dumps(value, sort_keys=True)


def _shown(value: Any) -> str:
    return "(missing)" if value is None else f"{value!r:.60}"


def _as_option(value: Any) -> str:
    return json.dumps(value) if isinstance(value, bool | list | dict) else str(value)


# ------------------------------------------------------------------------------------------------- reading


def _rows(path: Path) -> tuple[list[_Row], list[str]]:
    """Rows of one file and notes on it; the format is seen from the content."""
    text = text_of(path)
    documents, others = json_documents(path, text) if _has_json(text) else ([], [])
    if not documents:
        return _csv_rows(path, text)
    rows = []
    for document in documents:
        listed = document.value if isinstance(document.value, list) else [document.value]
        for i, value in enumerate(listed, start=1):
            whole = isinstance(document.value, list)
            where = f"{path}: row {i}" if whole else f"{path}: line {document.line}"
            if not isinstance(value, dict):
                raise MeasurementError(
                    f"{where}: expected an object of llama-bench's fields, got {type(value).__name__}"
                )
            rows.append(_Row(where, value, False))
    if not rows:
        raise MeasurementError(f"{path}: holds no test")
    return rows, log_lines_note(path, others)


def _has_json(text: str) -> bool:
    return re.search(r"^[ \t]*(\{\s*[\"}]|\[\s*[\[{\]]|[\[{]\s*$)", text, re.MULTILINE) is not None


_OTHER_FORMATS = (
    (re.compile(r"^\s*\|\s*model\s*\|", re.MULTILINE), "md"),
    (re.compile(r"^\s*(CREATE TABLE|INSERT INTO)\b", re.MULTILINE), "sql"),
)


def _csv_rows(path: Path, text: str) -> tuple[list[_Row], list[str]]:
    for pattern, name in _OTHER_FORMATS:
        if found := pattern.search(text):
            raise MeasurementError(
                f"{path}: line {1 + text.count(chr(10), 0, found.start())}: this is the output of "
                f"`llama-bench -o {name}`, not the output of `llama-bench -o csv`: json, jsonl and csv are "
                "read"
            )
    try:
        table = csv_table(path, text, ("n_prompt", "n_gen", "avg_ns"), log_lines=True)
    except MeasurementError as e:
        if "missing column(s)" not in str(e):
            raise
        first = next(line for line in text.split("\n") if line.strip())
        raise MeasurementError(
            f"{path}: line 1: {first.strip()[:60]!r} is neither JSON nor the output of `llama-bench -o csv` "
            "(json, jsonl and csv are read; md and sql are not)"
        ) from e
    rows = [_Row(f"{path}: line {line}", dict(row), True) for line, row in table.rows]
    if not rows:
        raise MeasurementError(f"{path}: no rows below the header")
    return rows, log_lines_note(path, table.others)


def _check_select(select: Mapping[str, str], rows: Sequence[_Row]) -> None:
    for name in select:
        if not any(name in row.fields for row in rows):
            raise MeasurementError(f"{rows[0].where}: no field '{name}' to select by, nor in any other row")


def _matches(value: Any, wanted: str) -> bool:
    """Whether a field has the value that a user wrote: ``true`` is ``1``, ``99`` is ``99.0``."""
    if wanted == _ANY or str(value) == wanted:
        return True
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return bool(_comparable(float(wanted)) == _comparable(value))
        except ValueError:
            pass  # a word such as ``on``
    return _comparable(value) in (wanted, _comparable(wanted))


def _refuse_mixture(rows: Sequence[_Row], free: Sequence[str]) -> list[str]:
    """Refuse rows of several configurations; return notes on settings that the user lets differ."""
    names = dict.fromkeys(
        n for row in rows for n in row.fields if n not in _TEST and not _RESULT.fullmatch(n)
    )
    settings = _Settings()
    for row in rows:
        settings.add(row, list(names))
    differ = settings.differing(free)
    if differ:
        name, *more = differ
        (first, was), (where, now), *_ = settings.seen[name].values()
        choices = " or ".join(
            f"--select {name}={_as_option(v)}"
            for _, v in list(settings.seen[name].values())[:4]
            if v is not None
        )
        also = f"; {', '.join(more)} differ(s) too" if more else ""
        raise MeasurementError(
            f"{where}: {name} = {_shown(now)}, but {_shown(was)} in {first}: a profile is of one "
            f"configuration; choose one by {choices} (--select {name}={_ANY} to let it differ){also}"
        )
    return [
        f"{name} differs between rows ({', '.join(_shown(v) for _, v in settings.seen[name].values())}): "
        f"--select {name}={_ANY}"
        for name in free
        if len(settings.seen.get(name, {})) > 1
    ]


# --------------------------------------------------------------------------------------------------- a test


@dataclass(frozen=True)
class _Test:
    """One test as it was run.

    Attributes:
        row: its row.
        prompt: tokens of the prompt.
        gen: tokens generated.
        depth: tokens cached before.
        seconds: of the whole test: the median of its repeats, or the mean.
        samples_s: of each repeat, if known.
        std_s: standard deviation over repeats, if known.
    """

    row: _Row
    prompt: int
    gen: int
    depth: int
    seconds: float
    samples_s: tuple[float, ...]
    std_s: float | None

    @property
    def size(self) -> tuple[int, int, int]:
        return self.prompt, self.gen, self.depth


def _seconds(row: _Row, tokens: int, std_s: float | None) -> tuple[float, tuple[float, ...]]:
    """Seconds of the whole test and of its repeats; refuses fields that contradict each other."""
    fields, where = row.fields, row.where
    mean = number_field(fields, "avg_ns", where, text=row.text) * 1e-9
    rate = number_field(fields, "avg_ts", where, text=row.text)
    if mean > MAX_SECONDS:
        raise MeasurementError(
            f"{where}: avg_ns = {fields['avg_ns']!r:.60} must be at most {1e9 * MAX_SECONDS:g}"
        )
    # The mean of rates is at least the rate of the mean, and more by the squared spread.
    ratio = (std_s or 0.0) / mean
    spread = 1.0 + ratio * ratio
    if not 0.5 <= mean * rate / tokens <= 2.0 * spread:
        raise MeasurementError(
            f"{where}: avg_ns = {fields['avg_ns']} and avg_ts = {fields['avg_ts']} contradict each other: "
            f"{tokens} tokens at that rate take {tokens / rate:.3g} s, not {mean:.3g} s"
        )
    if row.text or "samples_ns" not in fields:
        return mean, ()
    samples = tuple(v * 1e-9 for v in numbers_field(fields, "samples_ns", where))
    if not abs(sum(samples) / len(samples) / mean - 1.0) <= 0.02:
        raise MeasurementError(
            f"{where}: samples_ns has mean {sum(samples) / len(samples):.4g} s, avg_ns says {mean:.4g} s"
        )
    return float(np.median(samples)), samples


def _test(row: _Row) -> _Test | None:
    """The test of a row; ``None`` if it has no tokens."""
    fields, where, text = row.fields, row.where, row.text
    if "n_prompt" not in fields and "avg_ns" not in fields:
        raise MeasurementError(
            f"{where}: field 'n_prompt' is missing: not a row of llama-bench (those of "
            "llama-batched-bench and others are not read)"
        )
    prompt = count_field(fields, "n_prompt", where, text=text)
    gen = count_field(fields, "n_gen", where, text=text)
    depth = count_field(fields, "n_depth", where, text=text) if "n_depth" in fields else 0
    if prompt + gen == 0:
        return None
    known = "stddev_ns" in fields
    std = number_field(fields, "stddev_ns", where, text=text, strict=False) * 1e-9 if known else None
    seconds, samples = _seconds(row, prompt + gen, std)
    return _Test(row, prompt, gen, depth, seconds, samples, std)


def _once(tests: Sequence[_Test]) -> tuple[list[_Test], list[str]]:
    """Tests without exact repetitions; contradictory ones are refused."""
    kept: dict[tuple[Any, ...], _Test] = {}
    twice = 0
    for test in tests:
        # Settings that may differ by the user's word make another test.
        batches = tuple(_comparable(test.row.fields.get(n)) for n in ("n_batch", "n_ubatch"))
        old = kept.setdefault((*test.size, *batches), test)
        if old is test:
            continue
        if (old.seconds, old.samples_s, old.std_s) != (test.seconds, test.samples_s, test.std_s):
            raise MeasurementError(
                f"{test.row.where}: n_prompt {test.prompt}, n_gen {test.gen}, n_depth {test.depth} was "
                f"already given ({old.row.where}): {old.seconds:.4g} s there, {test.seconds:.4g} s here; "
                "keep one of them (--select test_time=… chooses by the time of the run)"
            )
        twice += 1
    return list(kept.values()), [f"{twice} row(s) repeated exactly count once"] if twice else []


def _point(test: _Test) -> MeasuredPoint | str:
    """The cell that a test measures, or why it measures none."""
    row = test.row
    if test.prompt and test.gen:
        return (
            f"{row.where}: combined test pg{test.prompt},{test.gen} left out: its parts cannot be separated"
        )
    if test.gen:
        batches, q, context = test.gen, 1, test.depth + (test.gen - 1) / 2.0
    else:
        sizes = [
            count_field(row.fields, name, row.where, text=row.text, low=1) for name in ("n_batch", "n_ubatch")
        ]
        ubatch = min(sizes)
        batches = math.ceil(test.prompt / ubatch)
        if test.prompt % batches or (batches > 1 and test.prompt % ubatch):
            multiple = f"a multiple of the physical batch of {ubatch} tokens"
            return f"{row.where}: pp{test.prompt} left out: not {multiple}"
        q = test.prompt // batches
        context = test.depth + (test.prompt - q) / 2.0
    return MeasuredPoint(
        1, q, context, test.seconds / batches, phase_of(q), row.where,
        test.samples_s if batches == 1 else (), len(test.samples_s) or None,
        None if test.std_s is None else test.std_s / batches, certain_unit=True,
    )  # fmt: skip


def _unique_cells(points: Sequence[tuple[int, MeasuredPoint]]) -> tuple[list[MeasuredPoint], list[str]]:
    """Of different tests of one cell (a chunk at a depth, and in the midst of a prompt) the plainest."""
    best: dict[str, tuple[int, MeasuredPoint]] = {}
    notes = []
    for tokens, point in points:
        old = best.get(point.key)
        if old is None:
            best[point.key] = tokens, point
            continue
        left_out = max((old, (tokens, point)), key=lambda both: both[0])
        best[point.key] = (tokens, point) if left_out is old else old
        notes.append(
            f"{left_out[1].origin}: left out: the same cell (q {point.q}, context {point.context:g}) as "
            f"{best[point.key][1].origin}"
        )
    return [point for _, point in best.values()], notes


def import_llama_bench(files: Sequence[Path], select: Mapping[str, str] | None = None) -> Imported:
    """Import ``llama-bench -o json``, ``jsonl`` or ``csv`` files of one model on one device.

    A generation test (``n_gen``) gives the mean decode step over its contexts ``n_depth … n_depth + n_gen``;
    a prompt test gives a prefill chunk of ``n_prompt`` tokens on ``n_depth`` cached ones, cut into equal
    physical batches of ``n_ubatch``; up to 17 prompt tokens count as verification. Combined tests (``-pg``)
    and prompts that do not divide into equal batches are left out, with a note. Repeats are kept as samples
    of the noise where a repeat is one iteration; a mean over several hides it.

    All rows must be of one configuration: every field that is not a test's size, time or result must be the
    same in all of them, or be chosen. Lines that other programs wrote into the file are left out.

    Args:
        files: the files.
        select: field -> value as a user writes it (``true``, ``1`` and ``on`` are the same); rows that
            differ are left out. ``*`` lets the field differ.

    Raises:
        MeasurementError: unreadable or contradictory input, or rows of several configurations.
    """
    select = dict(select or {})
    rows: list[_Row] = []
    notes: list[str] = []
    for path in files:
        more, said = _rows(path)
        rows += more
        notes += said
    _check_select(select, rows)
    chosen = [row for row in rows if all(_matches(row.fields.get(k), v) for k, v in select.items())]
    named = ", ".join(map(str, files))
    if not chosen:
        there = sorted({f"{k}={_as_option(row.fields.get(k))}" for row in rows for k in select})
        raise MeasurementError(
            f"{named}: no row matches {', '.join(f'{k}={v}' for k, v in select.items())}; there are "
            f"{', '.join(there)}"
        )
    notes += _refuse_mixture(chosen, [k for k, v in select.items() if v == _ANY])
    tests = []
    for row in chosen:
        test = _test(row)
        if test is None:
            notes.append(f"{row.where}: n_prompt and n_gen are both 0: a test without tokens, left out")
        else:
            tests.append(test)
    tests, said = _once(tests)
    notes += said
    cells: list[tuple[int, MeasuredPoint]] = []
    for test in tests:
        point = _point(test)
        if isinstance(point, str):
            notes.append(point)
        else:
            cells.append((test.prompt + test.gen, point))
    points, said = _unique_cells(cells)
    notes += said
    if not points:
        raise MeasurementError(
            f"{named}: no usable test (all left out); run `{LLAMA_BENCH_COMMAND}`\n  " + "\n  ".join(notes)
        )
    if any(p.phase == VERIFY for p in points):
        notes.append(
            "llama-bench computes the logits of a prompt's last token only: verification of q tokens lacks "
            "the output projection of q - 1 positions"
        )
    return Imported(tuple(points), _facts(chosen[0]), tuple(notes))


def _facts(row: _Row) -> dict[str, Any]:
    """What a row states about model and device."""
    fields = row.fields
    facts: dict[str, Any] = {
        "model": str(fields.get("model_type") or ""),
        "device": str(fields.get("gpu_info") or "") or str(fields.get("cpu_info") or ""),
        "software": f"llama.cpp {fields.get('build_commit') or ''}".strip(),
    }
    if fields.get("model_size") not in (None, ""):
        facts["weight_bytes"] = count_field(fields, "model_size", row.where, text=True, low=1, high=10**14)
    return facts
