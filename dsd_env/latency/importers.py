"""Importers of a user's own measurements: llama-bench, vLLM's benchmarks, and a plain CSV.

Each importer is a function from files to :class:`Imported`: measured points, facts that the files state
about model and device, and notes on what was left out. Nothing here fits or writes; what cannot be derived
from a file is an error or a note, never a guess.

Field names of llama-bench are those of ``tools/llama-bench/llama-bench.cpp`` (``test::get_fields``; older
versions lack ``n_depth``), those of vLLM the ones that ``vllm/benchmarks/latency.py`` and ``serve.py`` write.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from dsd_env import strict_json
from dsd_env.latency.cells import DECODE, PREFILL, VERIFY, Cell

__all__ = [
    "CSV_COLUMNS",
    "LLAMA_BENCH_COMMAND",
    "Imported",
    "MeasuredPoint",
    "MeasurementError",
    "check_plausible",
    "import_csv",
    "import_llama_bench",
    "import_vllm",
    "write_csv",
]

MAX_FILE_BYTES = 256 * 1024**2
"""Larger inputs are refused: no benchmark writes them, a wrong path may."""

MAX_VERIFY_TOKENS = 17
"""Most new tokens of a sequence that counts as verification (16 drafts and the bonus position)."""

SHORTEST_S, LONGEST_S = 1e-6, 60.0
"""Bounds of one iteration; outside them a number is in another unit."""

_MAX_COUNT = 2**31
_MAX_BANDWIDTH = 50e12
"""No device reads its weights faster (bytes per second)."""
_MIN_BANDWIDTH = 8e9
"""None of the published devices reads them slower; a Raspberry Pi 5 reaches 10e9 (bytes per second)."""


class MeasurementError(ValueError):
    """A measurement cannot be used; the message names file, line or row, field, and what is expected."""


@dataclass(frozen=True)
class MeasuredPoint:
    """Duration of one iteration of equal sequences.

    Attributes:
        batch: sequences in the iteration.
        q: new tokens of each sequence.
        context: tokens of each sequence that were cached before the iteration; a mean may be fractional.
        seconds: duration; the median where repeats are known.
        phase: ``decode``, ``verify`` or ``prefill``.
        origin: file and line (or row) it comes from, for messages.
        samples_s: durations of the repeats, if known.
        repeats: number of repeats, if known.
        std_s: standard deviation over repeats, if known.
    """

    batch: int
    q: int
    context: float
    seconds: float
    phase: str
    origin: str
    samples_s: tuple[float, ...] = ()
    repeats: int | None = None
    std_s: float | None = None

    @property
    def key(self) -> str:
        """Name of the point; the train/held-out split depends on nothing else."""
        chunk = "chunk_" if self.phase == PREFILL else ""
        return f"{chunk}b{self.batch}_q{self.q}_s{self.context:.10g}"

    def cell(self, weight: float = 1.0) -> Cell:
        """The point as a cell of a fit."""
        longest = self.context + self.q
        return Cell(
            key=self.key,
            region=self.phase,
            new_tokens=self.batch * self.q,
            kv_tokens=round(self.batch * longest),
            max_kv_multi_tokens=round(longest) if self.q > 1 else 0,
            seconds=self.seconds,
            weight=weight,
        )


@dataclass(frozen=True)
class Imported:
    """What one or several files hold.

    Attributes:
        points: measured points, keys unique.
        facts: what the files state: ``model``, ``device``, ``weight_bytes``, ``software``, as far as they do.
        notes: what was left out or is only approximate, for the profile and the user.
    """

    points: tuple[MeasuredPoint, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def phase_of(q: int) -> str:
    """Region of a point by its new tokens: 1 decodes, up to 17 verify, more are a prefill chunk."""
    return DECODE if q == 1 else VERIFY if q <= MAX_VERIFY_TOKENS else PREFILL


# ------------------------------------------------------------------------------------------------- reading


def _read_text(path: Path) -> str:
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise MeasurementError(f"{path}: {size} bytes; more than {MAX_FILE_BYTES} are refused")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as e:
        raise MeasurementError(f"{path}: cannot be read: {e.strerror or e}") from e
    except UnicodeDecodeError as e:
        raise MeasurementError(f"{path}: not UTF-8 text (byte {e.start})") from e
    if not text.strip():
        raise MeasurementError(f"{path}: empty file")
    return text


def _parse_json(text: str, where: str) -> Any:
    """Strict JSON: no NaN or Infinity, no field given twice."""
    try:
        return strict_json.loads(text)
    except json.JSONDecodeError as e:
        line = f"line {e.lineno}, " if "line" not in where.rsplit(":", 1)[-1] else ""
        cut = "; the file looks truncated" if e.pos >= len(text.rstrip()) - 1 else ""
        raise MeasurementError(f"{where}: {line}column {e.colno}: not JSON: {e.msg}{cut}") from e
    except (ValueError, RecursionError) as e:
        raise MeasurementError(f"{where}: not usable JSON: {e}") from e


def _number(
    row: Mapping[str, Any],
    name: str,
    where: str,
    *,
    text: bool = False,
    low: float = 0.0,
    strict: bool = True,
) -> float:
    """A finite number above ``low`` (or equal, unless ``strict``); text is parsed only where ``text``."""
    if name not in row or row[name] is None:
        raise MeasurementError(f"{where}: field '{name}' is missing")
    raw = row[name]
    if text and isinstance(raw, str):
        try:
            raw = float(raw)
        except ValueError:
            raise MeasurementError(f"{where}: {name} = {row[name]!r:.60} is not a number") from None
    if isinstance(raw, bool) or not isinstance(raw, int | float):
        raise MeasurementError(f"{where}: {name} = {raw!r:.60} is not a number")
    try:
        value = float(raw)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value) or value < low or (strict and value == low):
        raise MeasurementError(
            f"{where}: {name} = {row[name]!r:.60} must be finite and {'>' if strict else '>='} {low:g}"
        )
    return value


def _count(row: Mapping[str, Any], name: str, where: str, *, text: bool = False, low: int = 0) -> int:
    value = _number(row, name, where, text=text, low=low, strict=False)
    if value != int(value) or value > _MAX_COUNT:
        raise MeasurementError(
            f"{where}: {name} = {row[name]!r:.60} must be a whole number up to {_MAX_COUNT}"
        )
    return int(value)


def _numbers(row: Mapping[str, Any], name: str, where: str) -> list[float]:
    values = row.get(name)
    if not isinstance(values, list) or not values:
        raise MeasurementError(f"{where}: field '{name}' is missing or not a list of numbers")
    return [_number({f"{name}[{i}]": v}, f"{name}[{i}]", where) for i, v in enumerate(values)]


def _csv_rows(path: Path, text: str) -> tuple[list[str], list[tuple[str, dict[str, str]]]]:
    """Header and rows with their place; ragged rows and repeated columns are errors."""
    reader = csv.reader(io.StringIO(text), strict=True)
    rows: list[tuple[str, dict[str, str]]] = []
    header: list[str] = []
    try:
        for values in reader:
            if not values or all(not v.strip() for v in values):
                continue
            if not header:
                header = [v.strip() for v in values]
                twice = sorted({h for h in header if header.count(h) > 1})
                if twice:
                    raise MeasurementError(
                        f"{path}: line {reader.line_num}: column(s) given twice: {', '.join(twice)}"
                    )
                continue
            where = f"{path}: line {reader.line_num}"
            if len(values) != len(header):
                raise MeasurementError(
                    f"{where}: {len(values)} fields where the header has {len(header)}: ragged or "
                    "truncated row"
                )
            rows.append((where, dict(zip(header, (v.strip() for v in values), strict=True))))
    except csv.Error as e:
        raise MeasurementError(f"{path}: line {reader.line_num}: not CSV: {e}") from e
    if not rows:
        raise MeasurementError(f"{path}: no rows below the header")
    return header, rows


def _without_duplicates(points: Iterable[MeasuredPoint]) -> tuple[MeasuredPoint, ...]:
    seen: dict[str, MeasuredPoint] = {}
    for p in points:
        if p.key in seen:
            raise MeasurementError(
                f"{p.origin}: batch {p.batch}, q {p.q}, context {p.context:g} was already given "
                f"({seen[p.key].origin}); keep one of them"
            )
        seen[p.key] = p
    return tuple(seen.values())


# --------------------------------------------------------------------------------------------- plausibility


def check_plausible(
    points: Sequence[MeasuredPoint], weight_bytes: float | None = None, field_name: str = "seconds"
) -> None:
    """Refuse points whose durations are in another unit.

    Four signs: a duration outside 1 µs … 60 s; a decode step so fast that the weights would be read at more
    than 50 TB/s, or so slow that a device reads them at less than 8 GB/s (a Raspberry Pi 5 reaches 10); one
    duration more than 20 times another of an iteration that does as much or more; and time that *falls* where
    batch, q and context grow (a duration per token given as that of the iteration).

    Args:
        points: what was read.
        weight_bytes: bytes of weights over all devices, if known.
        field_name: name of the field in messages.

    Raises:
        MeasurementError: naming the point's origin, the field, and the unit it looks like.
    """
    for p in points:
        if not SHORTEST_S <= p.seconds <= LONGEST_S:
            guess = "milli- or microseconds, or tokens/s" if p.seconds > LONGEST_S else "not seconds"
            raise MeasurementError(
                f"{p.origin}: {field_name} = {p.seconds:g} must be between {SHORTEST_S:g} and "
                f"{LONGEST_S:g} s "
                f"for one iteration; it looks like {guess}"
            )
    decode = [p for p in points if p.q == 1]
    if decode:
        fastest = min(decode, key=lambda p: p.seconds)
        size = weight_bytes or 0.0
        if size / fastest.seconds > _MAX_BANDWIDTH:
            raise MeasurementError(
                f"{fastest.origin}: {field_name} = {fastest.seconds:g}: reading {size:.3g} bytes of "
                "weights that "
                "fast takes more than 50 TB/s; is it per token or layer, or are the weights' bytes wrong?"
            )
        # Without the size: 2 s a step is slower than an 8B model on a Raspberry Pi.
        limit = max(size / _MIN_BANDWIDTH, 0.05) if weight_bytes else 2.0
        if fastest.seconds > limit:
            raise MeasurementError(
                f"{fastest.origin}: {field_name} = {fastest.seconds:g} is the fastest decode step; that is "
                f"implausibly slow (limit {limit:.3g} s) and looks like milliseconds or tokens/s"
            )
    # Four times the work in less than half of the time, in many pairs: one pair may be a disturbed machine.
    pairs, wrong = 0, []
    for a in points:
        for b in points:
            if not (b.batch >= a.batch and b.q >= a.q and b.context >= a.context):
                continue
            if a.seconds > 20.0 * b.seconds:
                raise MeasurementError(
                    f"{a.origin}: {field_name} = {a.seconds:g} is {a.seconds / b.seconds:.0f} times that of "
                    f"an iteration that does as much or more ({b.seconds:g}, {b.origin}): one of the two is "
                    "in another unit"
                )
            if b.batch * b.q >= 4 * a.batch * a.q:
                pairs += 1
                if b.seconds < 0.5 * a.seconds:
                    wrong.append((a, b))
    if wrong and len(wrong) > 0.3 * pairs:
        a, b = wrong[0]
        raise MeasurementError(
            f"{b.origin}: {field_name} = {b.seconds:g} is less than half of that of a smaller iteration "
            f"({a.seconds:g}, {a.origin}), as in {len(wrong)} of {pairs} such pairs: a duration per token, "
            "or tokens/s?"
        )


# ---------------------------------------------------------------------------------------------- generic CSV

CSV_COLUMNS = ("batch", "q", "context", "seconds")
_CSV_OPTIONAL = ("repeats", "std_s", "phase")


def import_csv(path: Path) -> Imported:
    """Import ``batch,q,context,seconds`` with optional ``repeats``, ``std_s`` and ``phase``.

    ``context`` counts the cached tokens of each sequence before the iteration, ``seconds`` is the duration of
    the whole iteration. ``phase`` (``decode``, ``verify``, ``prefill``) defaults to what q implies.

    Raises:
        MeasurementError: missing or unknown column, ragged row, NaN, negative or fractional count, a point
            given twice.
    """
    header, rows = _csv_rows(path, _read_text(path))
    missing = [c for c in CSV_COLUMNS if c not in header]
    unknown = [c for c in header if c not in (*CSV_COLUMNS, *_CSV_OPTIONAL)]
    if missing or unknown:
        hint = "".join(
            f"; '{c}' is not 'seconds': convert the unit"
            for c in unknown
            if re.search(r"(?i)ms|us|tok|sec", c)
        )
        raise MeasurementError(
            f"{path}: line 1: "
            + (
                f"missing column(s) {', '.join(missing)}"
                if missing
                else f"unknown column(s) {', '.join(unknown)}"
            )
            + f"; expected {','.join(CSV_COLUMNS)} and optionally {','.join(_CSV_OPTIONAL)}{hint}"
        )
    points = []
    for where, row in rows:
        batch = _count(row, "batch", where, text=True, low=1)
        q = _count(row, "q", where, text=True, low=1)
        context = _number(row, "context", where, text=True, strict=False)
        if context > _MAX_COUNT:
            raise MeasurementError(f"{where}: context = {row['context']} must be at most {_MAX_COUNT}")
        seconds = _number(row, "seconds", where, text=True)
        phase = row.get("phase") or phase_of(q)
        if phase not in (DECODE, VERIFY, PREFILL) or (phase == DECODE) != (q == 1):
            raise MeasurementError(
                f"{where}: phase = {phase!r:.30}: must be decode (q = 1), verify or prefill (q > 1); q = {q}"
            )
        repeats = _count(row, "repeats", where, text=True, low=1) if row.get("repeats") else None
        std = _number(row, "std_s", where, text=True, strict=False) if row.get("std_s") else None
        if std is not None and std > 10.0 * seconds:
            raise MeasurementError(
                f"{where}: std_s = {std:g} is over ten times seconds = {seconds:g}: units?"
            )
        points.append(MeasuredPoint(batch, q, context, seconds, phase, where, repeats=repeats, std_s=std))
    return Imported(_without_duplicates(points))


def write_csv(points: Sequence[MeasuredPoint]) -> str:
    """The points as text in the format of :func:`import_csv`."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow((*CSV_COLUMNS, *_CSV_OPTIONAL))
    for p in points:
        std = f"{p.std_s:.6g}" if p.std_s is not None else ""
        writer.writerow(
            (p.batch, p.q, f"{p.context:.10g}", f"{p.seconds:.9g}", p.repeats or "", std, p.phase)
        )
    return out.getvalue()


# --------------------------------------------------------------------------------------------- llama-bench

_LLAMA_SAME = (
    "model_filename",
    "model_type",
    "model_size",
    "cpu_info",
    "gpu_info",
    "backends",
    "n_threads",
    "type_k",
    "type_v",
    "n_gpu_layers",
    "split_mode",
    "flash_attn",
    "build_commit",
)
"""Fields that must not vary inside one profile."""

LLAMA_BENCH_COMMAND = "llama-bench -m MODEL -p 2,4,8,16,128,512 -n 32 -d 0,512,2048,4096 -r 5 -o jsonl"
"""Command whose output holds enough for a drafter profile with a knee: 28 tests."""


def _llama_rows(path: Path) -> list[tuple[str, dict[str, Any], bool]]:
    """Rows of one file as (place, fields, whether values are text); the format is seen from the content."""
    text = _read_text(path)
    start = text.lstrip()[0]
    if start == "[":
        rows = _parse_json(text, str(path))
        placed = [(f"{path}: row {i}", r) for i, r in enumerate(rows, start=1)]
    elif start == "{":
        placed = []
        for number, line in enumerate(text.splitlines(), start=1):
            if line.strip():
                where = f"{path}: line {number}"
                placed.append((where, _parse_json(line, where)))
    else:
        header, csv_rows = _csv_rows(path, text)
        if "n_prompt" not in header or "avg_ns" not in header:
            raise MeasurementError(
                f"{path}: line 1: no columns n_prompt and avg_ns: not the output of `llama-bench -o csv` "
                "(json, jsonl and csv are read; md and sql are not)"
            )
        return [(where, dict(r), True) for where, r in csv_rows]
    out = []
    for where, row in placed:
        if not isinstance(row, dict):
            raise MeasurementError(
                f"{where}: expected an object of llama-bench's fields, got {type(row).__name__}"
            )
        out.append((where, row, False))
    if not out:
        raise MeasurementError(f"{path}: holds no test")
    return out


def _llama_seconds(
    row: Mapping[str, Any], where: str, text: bool, tokens: int
) -> tuple[float, tuple[float, ...]]:
    """Seconds of the whole test and of its repeats; refuses fields that contradict each other."""
    mean = _number(row, "avg_ns", where, text=text) * 1e-9
    rate = _number(row, "avg_ts", where, text=text)
    # Mean of rates against rate of the mean: they differ by the squared spread, not by a factor.
    if not 0.5 <= mean * rate / tokens <= 2.0:
        raise MeasurementError(
            f"{where}: avg_ns = {row['avg_ns']} and avg_ts = {row['avg_ts']} contradict each other: "
            f"{tokens} tokens at that rate take {tokens / rate:.3g} s, not {mean:.3g} s"
        )
    if text or "samples_ns" not in row:
        return mean, ()
    samples = tuple(v * 1e-9 for v in _numbers(row, "samples_ns", where))
    if abs(sum(samples) / len(samples) / mean - 1.0) > 0.02:
        raise MeasurementError(
            f"{where}: samples_ns has mean {sum(samples) / len(samples):.4g} s, avg_ns says {mean:.4g} s"
        )
    return float(np.median(samples)), samples


def import_llama_bench(files: Sequence[Path], select: Mapping[str, str] | None = None) -> Imported:
    """Import ``llama-bench -o json``, ``jsonl`` or ``csv`` files of one model on one device.

    A generation test (``n_gen``) gives the mean decode step over its contexts ``n_depth … n_depth + n_gen``;
    a prompt test gives a prefill chunk of ``n_prompt`` tokens on ``n_depth`` cached ones, cut into equal
    physical batches of ``n_ubatch``; up to 17 prompt tokens count as verification. Combined tests (``-pg``)
    and prompts that do not divide into equal batches are left out, with a note. Repeats are kept as samples
    of the noise where a repeat is one iteration; a mean over several hides it.

    Args:
        files: the files.
        select: field -> value (as text); rows that differ are left out.

    Raises:
        MeasurementError: unreadable or contradictory input, or rows of several configurations.
    """
    points: list[MeasuredPoint] = []
    notes: list[str] = []
    first: tuple[str, dict[str, Any]] | None = None
    seen_select: set[str] = set()
    for path in files:
        for where, row, text in _llama_rows(path):
            missing = [k for k in (select or {}) if k not in row]
            if missing:
                raise MeasurementError(f"{where}: no field '{missing[0]}' to select by")
            seen_select |= {f"{k}={row[k]}" for k in select or {}}
            if any(str(row[k]) != v for k, v in (select or {}).items()):
                continue
            if first is None:
                first = where, row
            for name in _LLAMA_SAME:
                if str(row.get(name)) != str(first[1].get(name)):
                    raise MeasurementError(
                        f"{where}: {name} = {row.get(name)!r:.60}, but {first[1].get(name)!r:.60} in "
                        f"{first[0]}: a "
                        f"profile is of one configuration; choose one by --select {name}=VALUE"
                    )
            prompt = _count(row, "n_prompt", where, text=text)
            gen = _count(row, "n_gen", where, text=text)
            depth = _count(row, "n_depth", where, text=text) if "n_depth" in row else 0
            if prompt + gen == 0:
                raise MeasurementError(f"{where}: n_prompt and n_gen are both 0")
            seconds, samples = _llama_seconds(row, where, text, prompt + gen)
            if prompt and gen:
                notes.append(
                    f"{where}: combined test pg{prompt},{gen} left out: its parts cannot be separated"
                )
                continue
            std = (
                _number(row, "stddev_ns", where, text=text, strict=False) * 1e-9
                if "stddev_ns" in row
                else None
            )
            if gen:
                batches, q, context = gen, 1, depth + (gen - 1) / 2.0
            else:
                ubatch = min(
                    _count(row, "n_batch", where, text=text, low=1),
                    _count(row, "n_ubatch", where, text=text, low=1),
                )
                batches = math.ceil(prompt / ubatch)
                if prompt % batches or (batches > 1 and prompt % ubatch):
                    notes.append(
                        f"{where}: pp{prompt} left out: not a multiple of the physical batch of {ubatch} "
                        "tokens"
                    )
                    continue
                q = prompt // batches
                context = depth + (prompt - q) / 2.0
            points.append(
                MeasuredPoint(
                    1, q, context, seconds / batches, phase_of(q), where,
                    samples if batches == 1 else (), len(samples) or None,
                    None if std is None else std / batches,
                )
            )  # fmt: skip
    if first is None:
        raise MeasurementError(
            f"{', '.join(map(str, files))}: no row matches "
            f"{', '.join(f'{k}={v}' for k, v in (select or {}).items())}; there are "
            f"{', '.join(sorted(seen_select))}"
        )
    if not points:
        raise MeasurementError(
            f"{', '.join(map(str, files))}: no usable test (all left out); run `{LLAMA_BENCH_COMMAND}`\n  "
            + "\n  ".join(notes)
        )
    if any(p.phase == VERIFY for p in points):
        notes.append(
            "llama-bench computes the logits of a prompt's last token only: verification of q tokens "
            "lacks the "
            "output projection of q - 1 positions"
        )
    where, row = first
    gpu, cpu = str(row.get("gpu_info") or ""), str(row.get("cpu_info") or "")
    facts: dict[str, Any] = {
        "model": str(row.get("model_type") or ""),
        "device": gpu or cpu,
        "software": f"llama.cpp {row.get('build_commit') or ''}".strip(),
    }
    if row.get("model_size") not in (None, ""):
        facts["weight_bytes"] = _count_large(row, "model_size", where)
    return Imported(_without_duplicates(points), facts, tuple(notes))


def _count_large(row: Mapping[str, Any], name: str, where: str) -> int:
    value = _number(row, name, where, text=True, low=1.0, strict=False)
    if value != int(value) or value > 1e14:
        raise MeasurementError(
            f"{where}: {name} = {row[name]!r:.60} must be a whole number of bytes up to 1e14"
        )
    return int(value)


# ------------------------------------------------------------------------------------------------------ vLLM

_RUN_NAME = re.compile(
    r"(?i)(?<![a-z])(?:b|bs|batch)[-_=]?(\d+)[-_.](?:i|in|input)[-_=]?(\d+)"
    r"[-_.](?:o|out|output)[-_=]?(\d+)(?!\d)"
)

_SHAPE_HELP = (
    "the file does not state the run's shape: name it ...b8_i512_o128.json or write FILE@BATCH,INPUT,OUTPUT"
)


@dataclass(frozen=True)
class _LatencyRun:
    where: str
    batch: int
    input_tokens: int
    output_tokens: int
    samples_s: tuple[float, ...]

    @property
    def seconds(self) -> float:
        return float(np.median(self.samples_s))


def _split_shape(spec: str) -> tuple[Path, tuple[int, int, int] | None]:
    """``FILE@B,I,O`` -> path and shape; a name with ``b8_i512_o128`` states it as well."""
    name, at, shape = spec.rpartition("@")
    if at and re.fullmatch(r"\d{1,9},\d{1,9},\d{1,9}", shape):
        b, i, o = (int(v) for v in shape.split(","))
        return Path(name), (b, i, o)
    found = _RUN_NAME.search(Path(spec).name)
    if found and all(len(g) < 10 for g in found.groups()):
        return Path(spec), (int(found[1]), int(found[2]), int(found[3]))
    return Path(spec), None


def _latency_run(path: Path, data: Mapping[str, Any], shape: tuple[int, int, int] | None) -> _LatencyRun:
    where = str(path)
    if shape is None:
        raise MeasurementError(f"{where}: {_SHAPE_HELP}")
    if min(shape) < 1 or max(shape) > _MAX_COUNT:
        raise MeasurementError(f"{where}: batch, input and output lengths {shape} must all be >= 1")
    samples = _numbers(data, "latencies", where)
    mean = _number(data, "avg_latency", where)
    if abs(sum(samples) / len(samples) / mean - 1.0) > 0.02:
        raise MeasurementError(
            f"{where}: avg_latency = {mean:g}, but the mean of latencies is {sum(samples) / len(samples):g}"
        )
    batch, inputs, outputs = shape
    return _LatencyRun(where, batch, inputs, outputs, tuple(samples))


def _latency_points(
    runs: Sequence[_LatencyRun], max_batched_tokens: int
) -> tuple[list[MeasuredPoint], list[str]]:
    """Decode steps from differences between output lengths; prefills from runs of one output token."""
    points: list[MeasuredPoint] = []
    notes: list[str] = []
    groups: dict[tuple[int, int], list[_LatencyRun]] = {}
    for run in runs:
        groups.setdefault((run.batch, run.input_tokens), []).append(run)
    for (batch, inputs), group in groups.items():
        group.sort(key=lambda r: r.output_tokens)
        for a, b in pairwise(group):
            if a.output_tokens == b.output_tokens:
                raise MeasurementError(
                    f"{b.where}: batch {batch}, input {inputs}, output {b.output_tokens} was already "
                    f"given ({a.where})"
                )
            steps = b.output_tokens - a.output_tokens
            seconds = (b.seconds - a.seconds) / steps
            if seconds <= 0.0:
                raise MeasurementError(
                    f"{b.where}: latencies: {b.output_tokens} output tokens take {b.seconds:g} s, no "
                    "longer than "
                    f"{a.output_tokens} tokens ({a.seconds:g} s, {a.where}); are the shapes right?"
                )
            # Step j = 1, 2, ... attends inputs + j tokens, its own included; the steps between both runs are
            # a.output_tokens ... b.output_tokens - 1.
            attended = inputs + (a.output_tokens + b.output_tokens - 1) / 2.0
            points.append(
                MeasuredPoint(batch, 1, attended - 1.0, seconds, DECODE, f"{a.where} and {b.where}")
            )
        if len(group) == 1 and group[0].output_tokens > 1:
            notes.append(
                f"{group[0].where}: one output length only for batch {batch}, input {inputs}: prefill "
                "and decoding "
                "cannot be separated; left out"
            )
        shortest = group[0]
        if shortest.output_tokens == 1:
            if batch * inputs > max_batched_tokens:
                notes.append(
                    f"{shortest.where}: prefill of {batch} x {inputs} tokens left out: more than the "
                    f"{max_batched_tokens} tokens of one iteration (--max-batched-tokens)"
                )
            elif inputs > 1:
                points.append(
                    MeasuredPoint(
                        batch, inputs, 0.0, shortest.seconds, PREFILL, shortest.where,
                        shortest.samples_s, len(shortest.samples_s), float(np.std(shortest.samples_s)),
                    )
                )  # fmt: skip
    return points, notes


def _serve_table(data: Mapping[str, Any], where: str) -> list[tuple[float, float, list[float], int]]:
    """(start, TTFT, ITLs, input tokens) of every request that finished; checks lengths and units."""
    needed = ("start_times", "ttfts", "itls", "input_lens", "output_lens")
    missing = [n for n in needed if n not in data]
    if missing:
        raise MeasurementError(
            f"{where}: field(s) {', '.join(missing)} missing: means and percentiles do not say what was "
            "in an "
            "iteration; run `vllm bench serve ... --save-result --save-detailed`"
            + (" with a vLLM that records start_times" if missing == ["start_times"] else "")
        )
    columns = [data[n] for n in needed]
    if not all(isinstance(c, list) for c in columns) or len({len(c) for c in columns}) != 1:
        raise MeasurementError(f"{where}: {', '.join(needed)} must be lists of the same length")
    errors = data.get("errors") if isinstance(data.get("errors"), list) else None
    table = []
    for i in range(len(columns[0])):
        place = f"{where}: request {i}"
        row = {n: data[n][i] for n in needed}
        if (errors is not None and i < len(errors) and errors[i]) or row["output_lens"] == 0:
            continue
        itls = row["itls"]
        if not isinstance(itls, list):
            raise MeasurementError(f"{place}: itls = {itls!r:.40} is not a list")
        gaps = [_number({f"itls[{k}]": v}, f"itls[{k}]", place, strict=False) for k, v in enumerate(itls)]
        outputs = _count(row, "output_lens", place)
        if len(gaps) != outputs - 1:
            raise MeasurementError(
                f"{place}: {len(gaps)} itls for {outputs} output tokens: several tokens came in one message "
                "(speculative decoding, or a coarse stream), so a gap is no iteration"
            )
        start = _number(row, "start_times", place, strict=False)
        ttft = _number(row, "ttfts", place)
        table.append((start, ttft, gaps, _count(row, "input_lens", place, low=1)))
    if not table:
        raise MeasurementError(f"{where}: no request finished")
    ttft_ms = data.get("mean_ttft_ms")
    if isinstance(ttft_ms, int | float) and not isinstance(ttft_ms, bool) and len(table) == len(columns[0]):
        mean = 1e3 * float(np.mean([t[1] for t in table]))
        if not 0.9 <= mean / max(float(ttft_ms), 1e-12) <= 1.1:
            raise MeasurementError(
                f"{where}: mean_ttft_ms = {ttft_ms:g}, but ttfts (seconds) have a mean of {mean:g} ms: units?"
            )
    return table


def _serve_points(
    data: Mapping[str, Any], where: str, max_batched_tokens: int
) -> tuple[list[MeasuredPoint], list[str]]:
    """Decode steps and prefills of a load test, from the times at which tokens reached the client.

    A gap between two tokens of a request, in which no other request got its first token, is one iteration
    of as many sequences as were then decoding. Per batch size the median over at least 20 gaps is taken. A
    request that came while nothing else ran gives a prefill.
    """
    table = _serve_table(data, where)
    first = np.array([start + ttft for start, ttft, _, _ in table])
    begin = np.array([start for start, *_ in table])
    end = np.array([start + ttft + sum(gaps) for start, ttft, gaps, _ in table])
    sent, firsts, ends = np.sort(begin), np.sort(first), np.sort(end)
    # Tokens held by requests that decode: +inputs+1 at the first token, +1 a token, all back at the end.
    moments, changes = [], []
    for (start, ttft, gaps, inputs), stop in zip(table, end, strict=True):
        times = start + ttft + np.concatenate([[0.0], np.cumsum(gaps)])
        moments += [*times, stop + 1e-9]
        changes += [inputs + 1.0, *([1.0] * len(gaps)), -(inputs + 1.0 + len(gaps))]
    order = np.argsort(moments, kind="stable")
    at = np.array(moments)[order]
    held = np.cumsum(np.array(changes)[order])

    by_batch: dict[int, list[tuple[float, float]]] = {}
    for start, ttft, gaps, _ in table:
        times = start + ttft + np.concatenate([[0.0], np.cumsum(gaps)])
        t0, t1 = times[:-1], times[1:]
        middle = 0.5 * (t0 + t1)
        running = np.searchsorted(firsts, middle, "right") - np.searchsorted(ends, middle, "right")
        waiting = np.searchsorted(sent, t1, "right") - np.searchsorted(firsts, t0, "right")
        tokens = held[np.searchsorted(at, middle, "right") - 1]
        for k in np.nonzero((waiting == 0) & (running > 0) & (t1 > t0))[0]:
            by_batch.setdefault(int(running[k]), []).append((float(t1[k] - t0[k]), float(tokens[k])))
    points, notes = [], []
    for batch, seen in sorted(by_batch.items()):
        if len(seen) < 20:
            continue
        gaps_s, tokens = np.array([s for s, _ in seen]), np.array([t for _, t in seen])
        points.append(
            MeasuredPoint(
                batch, 1, float(np.round(np.median(tokens) / batch)), float(np.median(gaps_s)), DECODE,
                f"{where}: {len(seen)} gaps at batch {batch}", tuple(gaps_s), len(seen), float(gaps_s.std()),
            )
        )  # fmt: skip
    alone: dict[int, list[float]] = {}
    for start, ttft, _, inputs in table:
        before = np.searchsorted(sent, start, "left") - np.searchsorted(ends, start, "right")
        beside = np.searchsorted(sent, start + ttft, "right") - np.searchsorted(sent, start, "left")
        if before <= 0 and beside == 1 and 1 < inputs <= max_batched_tokens:
            alone.setdefault(inputs, []).append(ttft)
    for inputs, seen_s in sorted(alone.items()):
        points.append(
            MeasuredPoint(
                1, inputs, 0.0, float(np.median(seen_s)), PREFILL,
                f"{where}: {len(seen_s)} lone prompts of {inputs}",
                tuple(seen_s), len(seen_s), float(np.std(seen_s)),
            )
        )  # fmt: skip
    if not points:
        raise MeasurementError(
            f"{where}: no batch size with 20 undisturbed gaps and no prompt that ran alone: too short a "
            "run, or "
            "prompts arrive in nearly every iteration; use longer outputs (--random-output-len 512)"
        )
    notes.append(
        f"{where}: times are those at the client: HTTP, tokenisation and streaming are part of every "
        "iteration "
        "and of TTFT"
    )
    return points, notes


def import_vllm(specs: Sequence[str], max_batched_tokens: int = 8192) -> Imported:
    """Import result files of ``vllm bench latency`` and ``vllm bench serve`` of one model on one device.

    * ``latency``: whole batches of equal requests. Two output lengths at the same batch and input length
      give the mean decode step between them; a run with ``--output-len 1`` gives the prefill. The shape is
      read from the file name (``b8_i512_o128``) or from ``FILE@BATCH,INPUT,OUTPUT``.
    * ``serve`` with ``--save-detailed``: decode steps at the batch sizes that occurred, and prefills of
      prompts that ran alone.

    Neither holds an iteration with several new tokens on a cached context: verification is not measured.

    Args:
        specs: paths, each optionally followed by ``@BATCH,INPUT,OUTPUT``.
        max_batched_tokens: vLLM's ``max_num_batched_tokens``; larger prefills take several iterations.

    Raises:
        MeasurementError: unreadable or contradictory input, or a file that lacks what is needed.
    """
    runs: list[_LatencyRun] = []
    points: list[MeasuredPoint] = []
    notes: list[str] = []
    facts: dict[str, Any] = {"software": "vLLM"}
    for spec in specs:
        path, shape = _split_shape(spec)
        data = _parse_json(_read_text(path), str(path))
        if not isinstance(data, dict):
            raise MeasurementError(f"{path}: expected the object that vLLM writes, got {type(data).__name__}")
        if "latencies" in data and "avg_latency" in data:
            runs.append(_latency_run(path, data, shape))
        elif "mean_ttft_ms" in data or "ttfts" in data or "request_throughput" in data:
            more, said = _serve_points(data, str(path), max_batched_tokens)
            points += more
            notes += said
            model = data.get("model_id")
            if isinstance(model, str) and facts.setdefault("model", model) != model:
                raise MeasurementError(
                    f"{path}: model_id = {model!r}, but {facts['model']!r} in another file"
                )
        else:
            raise MeasurementError(
                f"{path}: neither `vllm bench latency` (avg_latency, latencies) nor `vllm bench serve` "
                "(mean_ttft_ms, ttfts, ...)"
            )
    more, said = _latency_points(runs, max_batched_tokens)
    points = [*points, *more]
    notes += said
    if not points:
        raise MeasurementError(
            f"{', '.join(specs)}: no iteration can be derived; give at least two output lengths for the "
            "same batch "
            "and input length, one of them 1\n  " + "\n  ".join(notes)
        )
    notes.append(
        "neither benchmark runs several new tokens on a cached context: verification is extrapolated "
        "from decoding "
        "and prefill"
    )
    return Imported(_without_duplicates(points), facts, tuple(notes))
