"""Reader of vLLM's benchmark results: ``vllm bench latency`` and ``vllm bench serve --save-detailed``.

Field names are those that ``vllm/benchmarks/latency.py`` and ``serve.py`` write.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsd_env.calibration.latency.cells import DECODE, PREFILL
from dsd_env.calibration.latency.measurements import (
    Imported,
    MeasuredPoint,
    MeasurementError,
    unique_points,
)
from dsd_env.calibration.latency.plausible import TRUST_HINT
from dsd_env.calibration.latency.reading import (
    MAX_COUNT,
    MAX_SECONDS,
    count_field,
    json_documents,
    log_lines_note,
    number_field,
    numbers_field,
    text_of,
)

__all__ = ["import_vllm"]

_RUN_NAME = re.compile(
    r"(?i)(?<![a-z])(?:b|bs|batch)[-_=]?(\d+)[-_.](?:i|in|input)[-_=]?(\d+)"
    r"[-_.](?:o|out|output)[-_=]?(\d+)(?!\d)"
)

_SHAPE_HELP = (
    "the file does not state the run's shape: name it ...b8_i512_o128.json or write FILE@BATCH,INPUT,OUTPUT"
)

_FEWEST_GAPS = 20
"""Fewer gaps at a batch size make no point."""

_MOST_UNUSABLE = 0.2
"""Share of requests with odd messages, above which the stream itself is not one token a message."""

_TINY = 0.1
"""A first gap below this share of the request's median gap is no iteration."""

_SAME_CELL = 1.5
"""Two results of one server do not differ by more in the same cell."""

_LOAD = frozenset(
    ("date", "label", "request_rate", "max_concurrency", "burstiness", "ramp_up_strategy", "goodput")
)
"""Text fields of a result that say how it was loaded, not what was measured; all others must be the same."""


# ------------------------------------------------------------------------------------------- bench latency


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


def _latency_run(where: str, data: Mapping[str, Any], shape: tuple[int, int, int] | None) -> _LatencyRun:
    if shape is None:
        raise MeasurementError(f"{where}: {_SHAPE_HELP}")
    if min(shape) < 1 or max(shape) > MAX_COUNT:
        raise MeasurementError(f"{where}: batch, input and output lengths {shape} must all be >= 1")
    samples = numbers_field(data, "latencies", where)
    if max(samples) > MAX_SECONDS:
        raise MeasurementError(f"{where}: latencies = {max(samples):g} must be at most {MAX_SECONDS:g} s")
    mean = number_field(data, "avg_latency", where)
    if not abs(sum(samples) / len(samples) / mean - 1.0) <= 0.02:
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
                    f"given ({a.where}); keep one of them"
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
                "and decoding cannot be separated; left out"
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


# --------------------------------------------------------------------------------------------- bench serve


@dataclass(frozen=True)
class _Request:
    """One request that got tokens.

    Attributes:
        number: its place in the file's lists.
        start_s: when it was sent.
        ttft_s: from then to its first token.
        gaps_s: between its messages.
        inputs: tokens of its prompt.
        outputs: tokens of its answer.
        failed: it ended with an error, after the tokens that it got.
        opening: its first message was an opening chunk without a token, and has been left out.
    """

    number: int
    start_s: float
    ttft_s: float
    gaps_s: NDArray[np.float64]
    inputs: int
    outputs: int
    failed: bool = False
    opening: bool = False

    @property
    def one_token_each(self) -> bool:
        """Whether each message is one token, so that a gap is an iteration."""
        return not self.failed and len(self.gaps_s) == self.outputs - 1

    @property
    def times_s(self) -> NDArray[np.float64]:
        """When its messages came, shape (gaps + 1,)."""
        return self.start_s + self.ttft_s + np.concatenate([[0.0], np.cumsum(self.gaps_s)])

    def without_opening(self) -> _Request:
        """Leave out an opening chunk: one message too many, and the first two almost at once."""
        if len(self.gaps_s) != self.outputs or self.outputs < 2 or self.failed:
            return self
        if self.gaps_s[0] > _TINY * float(np.median(self.gaps_s[1:])):
            return self
        ttft = self.ttft_s + float(self.gaps_s[0])
        return replace(self, ttft_s=ttft, gaps_s=self.gaps_s[1:], opening=True)


_NEEDED = ("start_times", "ttfts", "itls", "input_lens", "output_lens")


def _columns(data: Mapping[str, Any], where: str) -> tuple[dict[str, list[Any]], list[str]]:
    """The lists of a result, one entry a request, and notes on them."""
    missing = [n for n in _NEEDED if n not in data]
    columns = {n: data.get(n) for n in _NEEDED if n in data}
    notes: list[str] = []
    if missing == ["start_times"]:
        if data.get("max_concurrency") == 1 and all(isinstance(c, list) for c in columns.values()):
            columns["start_times"] = _one_after_the_other(columns, where)
            notes.append(f"{where}: no start_times; with max_concurrency 1 requests ran one after the other")
        else:
            raise MeasurementError(
                f"{where}: field start_times missing: without it nobody knows how many requests ran at the "
                "same time; measure with a vLLM that records start_times, or with --max-concurrency 1"
            )
    elif missing:
        raise MeasurementError(
            f"{where}: field(s) {', '.join(missing)} missing: means and percentiles do not say what was "
            "in an iteration; run `vllm bench serve ... --save-result --save-detailed`"
        )
    lists = {n: c for n, c in columns.items() if isinstance(c, list)}
    if len(lists) < len(_NEEDED) or len({len(c) for c in lists.values()}) != 1:
        raise MeasurementError(f"{where}: {', '.join(_NEEDED)} must be lists of the same length")
    return lists, notes


def _one_after_the_other(columns: Mapping[str, Any], where: str) -> list[float]:
    """Start times of requests that never overlap; a second apart, which no gap sees."""
    starts, now = [], 0.0
    for i, (ttft, gaps) in enumerate(zip(columns["ttfts"], columns["itls"], strict=False)):
        place = f"{where}: request {i}"
        starts.append(now)
        times = [ttft, *(gaps if isinstance(gaps, list) else [])]
        now += 1.0 + sum(
            number_field({"ttfts/itls": t}, "ttfts/itls", place, strict=False) for t in times if t is not None
        )
    return starts


def _requests(data: Mapping[str, Any], where: str) -> tuple[list[_Request], int, list[str]]:
    """Requests that got tokens, the number of requests in all, and notes on those left out."""
    columns, notes = _columns(data, where)
    errors = data.get("errors") if isinstance(data.get("errors"), list) else None
    requests: list[_Request] = []
    failed: list[int] = []
    empty: list[int] = []
    total = len(columns["itls"])
    for i in range(total):
        place = f"{where}: request {i}"
        row = {n: c[i] for n, c in columns.items()}
        broken = bool(errors is not None and i < len(errors) and errors[i])
        gaps = [] if row["itls"] is None else row["itls"]
        nothing = row["output_lens"] in (None, 0) or row["ttfts"] in (None, 0)
        if nothing and not (broken and row["ttfts"] and gaps):
            (failed if broken else empty).append(i)
            continue
        if not isinstance(gaps, list):
            raise MeasurementError(f"{place}: itls = {gaps!r:.40} is not a list")
        seconds = [
            number_field({f"itls[{k}]": v}, f"itls[{k}]", place, strict=False) for k, v in enumerate(gaps)
        ]
        start = number_field(row, "start_times", place, strict=False)
        ttft = number_field(row, "ttfts", place)
        if max(ttft, *seconds, 0.0) > MAX_SECONDS:
            raise MeasurementError(f"{place}: ttfts, itls must be at most {MAX_SECONDS:g} s")
        inputs = count_field(row, "input_lens", place, low=1)
        # What an error left of the answer is counted by its messages.
        outputs = len(gaps) + 1 if broken else count_field(row, "output_lens", place)
        if broken:
            failed.append(i)
        requests.append(_Request(i, start, ttft, np.array(seconds), inputs, outputs, broken))
    if failed:
        notes.append(
            f"{where}: {len(failed)} of {total} requests failed and are left out (request {_few(failed)})"
            "; what the server did for those that got no token is not known"
        )
    if empty:
        notes.append(
            f"{where}: {len(empty)} of {total} requests without tokens left out (request {_few(empty)})"
        )
    if not any(not r.failed for r in requests):
        raise MeasurementError(f"{where}: no request finished")
    return requests, total, notes


def _few(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:5])) + (", …" if len(numbers) > 5 else "")


def _certain_unit(
    data: Mapping[str, Any], requests: Sequence[_Request], total: int, where: str, trust_units: bool
) -> bool:
    """Whether times are certainly seconds: their mean in milliseconds is in the file too, and agrees."""
    if data.get("mean_ttft_ms") is None or isinstance(data["mean_ttft_ms"], bool):
        return False
    stated = number_field(data, "mean_ttft_ms", where, strict=False)
    finished = [r.ttft_s for r in requests if not r.failed]
    mean = 1e3 * float(np.mean(finished))
    if 0.9 <= mean / max(stated, 1e-12) <= 1.1:
        return True
    if len(finished) == total and not trust_units:
        raise MeasurementError(
            f"{where}: mean_ttft_ms = {stated:g}, but ttfts (seconds) have a mean of {mean:g} ms: units?"
            f"{TRUST_HINT}"
        )
    return False


def _check_messages(requests: Sequence[_Request], where: str) -> list[str]:
    """Refuse a stream that is not one token a message; else say which requests' gaps are left out."""
    longer = [r for r in requests if r.outputs > 1 and not r.failed]
    notes = []
    openings = sum(r.opening for r in longer)
    if openings:
        notes.append(
            f"{where}: {openings} of {len(longer)} answers begin with a message without a token (the opening "
            "chunk of the chat endpoint): left out, the first token is the next message"
        )
    odd = [r for r in longer if not r.one_token_each]
    if not odd:
        return notes
    merged = [r for r in odd if len(r.gaps_s) < r.outputs - 1]
    more = [r for r in odd if len(r.gaps_s) > r.outputs - 1]
    if len(odd) == len(longer) or (len(odd) > 1 and len(odd) > _MOST_UNUSABLE * len(longer)):
        kind = merged if len(merged) >= len(more) else more
        one = kind[0]
        said = (
            f"{where}: request {one.number}: {len(one.gaps_s)} itls for {one.outputs} output tokens, and "
            f"{len(odd)} of {len(longer)} requests are alike: "
        )
        if kind is merged:
            raise MeasurementError(
                f"{said}several tokens came in one message (speculative decoding, or a coarse stream), so a "
                "gap is no iteration"
            )
        chat = (
            "an opening chunk of the chat endpoint that comes before the first token"
            if all(len(r.gaps_s) == r.outputs for r in more)
            else "tokens counted anew from the text, or messages without one"
        )
        raise MeasurementError(
            f"{said}more messages than tokens ({chat}), so nobody knows which gap is an iteration; measure "
            "at the completions endpoint (--backend openai --endpoint /v1/completions)"
        )
    what = [
        f"{len(kind)} with {words}"
        for kind, words in ((merged, "several tokens in one message"), (more, "more messages than tokens"))
        if kind
    ]
    numbers = _few([r.number for r in odd])
    notes.append(
        f"{where}: gaps of {len(odd)} of {len(longer)} requests left out (request {numbers}): "
        f"{' and '.join(what)}; they count as running"
    )
    return notes


def _serve_points(
    data: Mapping[str, Any], where: str, max_batched_tokens: int, trust_units: bool
) -> tuple[list[MeasuredPoint], list[str]]:
    """Decode steps and prefills of a load test, from the times at which tokens reached the client.

    A gap between two tokens of a request, in which no other request got its first token, is one iteration
    of as many sequences as were then decoding. Per batch size the median over at least 20 gaps is taken. A
    request that came while nothing else ran gives a prefill.
    """
    raw, total, notes = _requests(data, where)
    certain = _certain_unit(data, raw, total, where, trust_units)
    requests = [r.without_opening() for r in raw]
    notes += _check_messages(requests, where)
    points = [
        *_decode_points(requests, where, certain),
        *_prefill_points(requests, where, certain, max_batched_tokens),
    ]
    if not points:
        raise MeasurementError(
            f"{where}: no batch size with {_FEWEST_GAPS} undisturbed gaps and no prompt that ran alone: too "
            "short a run, or prompts arrive in nearly every iteration; use longer outputs "
            "(--random-output-len 512)"
        )
    notes.append(
        f"{where}: times are those at the client: HTTP, tokenisation and streaming are part of every "
        "iteration and of TTFT"
    )
    return points, notes


def _decode_points(requests: Sequence[_Request], where: str, certain: bool) -> list[MeasuredPoint]:
    sent = np.sort([r.start_s for r in requests])
    firsts = np.sort([r.start_s + r.ttft_s for r in requests])
    ends = np.sort([r.times_s[-1] for r in requests])
    # Tokens held by requests that decode: +inputs+1 at the first token, the others as its messages come, all
    # back at the end.
    moments, changes = [], []
    for r in requests:
        times = r.times_s
        each = (r.outputs - 1) / max(len(r.gaps_s), 1)
        moments += [*times, times[-1] + 1e-9]
        changes += [r.inputs + 1.0, *([each] * len(r.gaps_s)), -(r.inputs + 1.0 + each * len(r.gaps_s))]
    order = np.argsort(moments, kind="stable")
    at = np.array(moments)[order]
    held = np.cumsum(np.array(changes)[order])

    by_batch: dict[int, list[tuple[float, float]]] = {}
    for r in requests:
        if not r.one_token_each:
            continue
        t0, t1 = r.times_s[:-1], r.times_s[1:]
        middle = 0.5 * (t0 + t1)
        running = np.searchsorted(firsts, middle, "right") - np.searchsorted(ends, middle, "right")
        waiting = np.searchsorted(sent, t1, "right") - np.searchsorted(firsts, t0, "right")
        tokens = held[np.searchsorted(at, middle, "right") - 1]
        for k in np.nonzero((waiting == 0) & (running > 0) & (t1 > t0))[0]:
            by_batch.setdefault(int(running[k]), []).append((float(t1[k] - t0[k]), float(tokens[k])))
    points = []
    for batch, seen in sorted(by_batch.items()):
        if len(seen) < _FEWEST_GAPS:
            continue
        gaps_s, tokens = np.array([s for s, _ in seen]), np.array([t for _, t in seen])
        context = max(float(np.round(np.median(tokens) / batch)), 0.0)
        points.append(
            MeasuredPoint(
                batch, 1, context, float(np.median(gaps_s)), DECODE,
                f"{where}: {len(seen)} gaps at batch {batch}", tuple(gaps_s), len(seen), float(gaps_s.std()),
                certain,
            )
        )  # fmt: skip
    return points


def _prefill_points(
    requests: Sequence[_Request], where: str, certain: bool, max_batched_tokens: int
) -> list[MeasuredPoint]:
    sent = np.sort([r.start_s for r in requests])
    ends = np.sort([r.times_s[-1] for r in requests])
    alone: dict[int, list[float]] = {}
    for r in requests:
        before = np.searchsorted(sent, r.start_s, "left") - np.searchsorted(ends, r.start_s, "right")
        beside = np.searchsorted(sent, r.start_s + r.ttft_s, "right") - np.searchsorted(
            sent, r.start_s, "left"
        )
        if before <= 0 and beside == 1 and 1 < r.inputs <= max_batched_tokens:
            alone.setdefault(r.inputs, []).append(r.ttft_s)
    return [
        MeasuredPoint(
            1, inputs, 0.0, float(np.median(seen)), PREFILL, f"{where}: {len(seen)} lone prompts of {inputs}",
            tuple(seen), len(seen), float(np.std(seen)), certain,
        )
        for inputs, seen in sorted(alone.items())
    ]  # fmt: skip


def _pooled(points: Sequence[MeasuredPoint]) -> list[MeasuredPoint]:
    """Points of several results of one server; repeats of the same cell are put together.

    Raises:
        MeasurementError: the same cell takes times that are no repeats of each other.
    """
    cells: dict[str, list[MeasuredPoint]] = {}
    for p in points:
        cells.setdefault(p.key, []).append(p)
    out = []
    for group in cells.values():
        low, high = min(group, key=lambda p: p.seconds), max(group, key=lambda p: p.seconds)
        if high.seconds > _SAME_CELL * low.seconds:
            raise MeasurementError(
                f"{high.origin}: batch {high.batch}, q {high.q}, context {high.context:g} was already given "
                f"({low.origin}) with {low.seconds:.4g} s, here {high.seconds:.4g} s: results of different "
                "servers? Give them apart"
            )
        samples = tuple(s for p in group for s in p.samples_s)
        if len(group) == 1:
            out.append(group[0])
            continue
        out.append(
            replace(
                group[0],
                seconds=float(np.median(samples)),
                samples_s=samples,
                repeats=len(samples),
                std_s=float(np.std(samples)),
                origin=" and ".join(p.origin for p in group),
                certain_unit=all(p.certain_unit for p in group),
            )
        )
    return out


# ------------------------------------------------------------------------------------------------- together


@dataclass(frozen=True)
class _Result:
    """One JSON object of a file: where it stands, its fields, and the shape that the file's name states."""

    where: str
    data: dict[str, Any]
    shape: tuple[int, int, int] | None


def _results(spec: str) -> tuple[list[_Result], list[str]]:
    """All results of one file, and notes on it."""
    path, shape = _split_shape(spec)
    text = text_of(path)
    documents, others = json_documents(path, text)
    if not documents:
        first = next(line.strip() for line in text.split("\n") if line.strip())
        raise MeasurementError(f"{path}: not JSON: expected the object that vLLM writes, got {first[:40]!r}")
    notes = log_lines_note(path, others)
    results = []
    for document in documents:
        where = str(path) if len(documents) == 1 else f"{path}: line {document.line}"
        if not isinstance(document.value, dict):
            raise MeasurementError(
                f"{where}: expected the object that vLLM writes, got {type(document.value).__name__}"
            )
        results.append(_Result(where, document.value, shape))
    if len(results) > 1:
        lines = _few([d.line for d in documents])
        notes.append(
            f"{path}: {len(results)} results in one file (--append-result; lines {lines}), taken together as "
            "those of one server"
        )
    return results, notes


def _check_same_server(results: Sequence[_Result]) -> None:
    """Refuse results whose settings differ: every text field that does not describe the load."""
    first: dict[str, tuple[str, str]] = {}
    for result in results:
        for name, value in result.data.items():
            if not isinstance(value, str) or name in _LOAD:
                continue
            where, was = first.setdefault(name, (result.where, value))
            if value != was:
                raise MeasurementError(
                    f"{result.where}: {name} = {value!r:.60}, but {was!r:.60} in {where}: a profile is of "
                    "one configuration; give the results of one"
                )


def import_vllm(
    specs: Sequence[str], max_batched_tokens: int = 8192, *, trust_units: bool = False
) -> Imported:
    """Import result files of ``vllm bench latency`` and ``vllm bench serve`` of one model on one device.

    * ``latency``: whole batches of equal requests. Two output lengths at the same batch and input length
      give the mean decode step between them; a run with ``--output-len 1`` gives the prefill. The shape is
      read from the file name (``b8_i512_o128``) or from ``FILE@BATCH,INPUT,OUTPUT``.
    * ``serve`` with ``--save-detailed``: decode steps at the batch sizes that occurred, and prefills of
      prompts that ran alone. Requests that failed or got no token are left out; of those whose messages are
      no single tokens the gaps are, while they count as running. Several results (of several files, or of one
      with ``--append-result``) are taken together.

    Neither holds an iteration with several new tokens on a cached context: verification is not measured.

    Args:
        specs: paths, each optionally followed by ``@BATCH,INPUT,OUTPUT``.
        max_batched_tokens: vLLM's ``max_num_batched_tokens``; larger prefills take several iterations.
        trust_units: the user says that units are right.

    Raises:
        MeasurementError: unreadable or contradictory input, or a file that lacks what is needed.
    """
    runs: list[_LatencyRun] = []
    served: list[_Result] = []
    points: list[MeasuredPoint] = []
    notes: list[str] = []
    for spec in specs:
        results, said = _results(spec)
        notes += said
        for result in results:
            data = result.data
            if "latencies" in data and "avg_latency" in data:
                runs.append(_latency_run(result.where, data, result.shape))
            elif "mean_ttft_ms" in data or "ttfts" in data or "request_throughput" in data:
                served.append(result)
            else:
                raise MeasurementError(
                    f"{result.where}: neither `vllm bench latency` (avg_latency, latencies) nor `vllm bench "
                    "serve` (mean_ttft_ms, ttfts, ...)"
                )
    _check_same_server(served)
    for result in served:
        more, said = _serve_points(result.data, result.where, max_batched_tokens, trust_units)
        points += more
        notes += said
    points = _pooled(points)
    more, said = _latency_points(runs, max_batched_tokens)
    points = [*points, *more]
    notes += said
    if not points:
        raise MeasurementError(
            f"{', '.join(specs)}: no iteration can be derived; give at least two output lengths for the "
            "same batch and input length, one of them 1\n  " + "\n  ".join(notes)
        )
    notes.append(
        "neither benchmark runs several new tokens on a cached context: verification is extrapolated "
        "from decoding and prefill"
    )
    facts: dict[str, Any] = {"software": "vLLM"}
    model = next((r.data["model_id"] for r in served if isinstance(r.data.get("model_id"), str)), None)
    if model is not None:
        facts["model"] = model
    return Imported(unique_points(points), facts, tuple(notes))
