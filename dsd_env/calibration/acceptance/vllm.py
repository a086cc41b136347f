"""Readers of what vLLM reports of speculative decoding: its log, ``/metrics``, its benchmark, its responses.

The fields are those of vLLM's source and documentation up to 0.33. A number that stands in a file twice, or
follows from others in it, is checked against them, as exactly as it is printed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dsd_env.acceptance.traceset import TraceError
from dsd_env.calibration.acceptance import reading
from dsd_env.calibration.acceptance.counts import (
    ASSUMED,
    MAX_COUNT,
    MAX_PLACES,
    Floats,
    Request,
    RoundCounts,
    Shortfall,
    aggregate,
    check_falling,
    check_printed,
    count_of,
    file_notes,
    half_unit,
    per_request,
    reached_by_place,
    trials,
)
from dsd_env.calibration.acceptance.reading import each_item, integer, json_messages, number, read_text

_DETAILED = (
    "vLLM's responses say how much each round drafted: start it with --per-request-spec-decode-metrics "
    "detailed, keep the responses, and read those (vllm-responses)"
)

# ---------------------------------------------------------------------- log

_LOG_MARK = "SpecDecoding metrics:"
_LOG_FIELDS = {
    "Mean acceptance length": re.compile(r"Mean acceptance length:\s*([^,\s]+)"),
    "Accepted": re.compile(r"(?<!\w)Accepted:\s*([^,\s]+)\s*tokens"),
    "Drafted": re.compile(r"(?<!\w)Drafted:\s*([^,\s]+)\s*tokens"),
    # Up to the next name, the end of the message, or the end of the JSON text that holds it.
    "Per-position acceptance rate": re.compile(r'Per-position acceptance rate:\s*(.*?)(?=,\s*[A-Z]|["\\]|$)'),
}
_LOG_RATE = re.compile(r"[Dd]raft acceptance rate:\s*([^,%\s]+)\s*%")
_LOG_DEPTH = re.compile(r"Current speculative depth:\s*([^,\s]+)")
_COLOUR = re.compile(r"(?:\x1b|\^\[|#033|\\u001b|\\x1b|\\033|\u241b)\[[0-9;?]*[A-Za-z]")
"""Colours of a terminal, as they are and as programs write them that make them visible."""


def _text_number(text: str, name: str, where: str, low: float, high: float) -> float:
    try:
        value: float = float(text) if len(text) < 40 else math.nan
    except ValueError:
        raise TraceError(f"{where}: {name} holds {text[:40]!r}, must be a number") from None
    return number(value, name, where, low, high)


def _log_fields(message: str, where: str) -> dict[str, str]:
    """Return the texts of the fields that every message has."""
    found = {}
    for name, pattern in _LOG_FIELDS.items():
        values = list(dict.fromkeys(match.group(1) for match in pattern.finditer(message)))
        if not values:
            raise TraceError(f"{where}: lacks {name} of a metrics line")
        if len(values) > 1:
            raise TraceError(f"{where}: {name} is given twice, {values[0]!r} and {values[1]!r}")
        found[name] = values[0]
    return found


def _log_rates(text: str, where: str) -> list[float]:
    """Return the rates by place; places at the end that show ``nan`` were drafted by no round."""
    shown = [part.strip() for part in text.strip(" []").split(",")]
    while len(shown) > 1 and shown[-1].lower() == "nan":
        shown.pop()
    rates = [_text_number(part, "Per-position acceptance rate", where, 0.0, 1.0) for part in shown]
    if len(rates) > MAX_PLACES:
        raise TraceError(f"{where}: Per-position acceptance rate has more than {MAX_PLACES} values")
    return rates


def _log_rounds(accepted: float, mean: float, half: float, rates: list[float]) -> tuple[float, float]:
    """Return the least and the largest number of rounds that print as a line does."""
    total, slack = sum(rates), 0.0005 * len(rates) + 1e-9
    least = max(accepted / (total + slack), accepted / (mean - 1.0 + half))
    most = min(accepted / max(total - slack, 1e-12), accepted / max(mean - 1.0 - half, 1e-12))
    return least, most


def _log_message(message: str, where: str, short: Shortfall) -> Floats | None:
    """Return rounds and accepted drafts by place, ``[places + 1]``, of a message; ``None`` without drafts."""
    found = _log_fields(message, where)
    accepted = _text_number(found["Accepted"], "Accepted", where, 0, MAX_COUNT)
    drafted = _text_number(found["Drafted"], "Drafted", where, 0, MAX_COUNT)
    if accepted > drafted:
        raise TraceError(f"{where}: Accepted {accepted:g} is above Drafted {drafted:g}")
    if drafted == 0:
        return None
    rates = _log_rates(found["Per-position acceptance rate"], where)
    name = "Mean acceptance length"
    mean, half = _text_number(found[name], name, where, 1.0, 1.0 + len(rates)), half_unit(found[name])
    check_falling(rates, "Per-position acceptance rate", where)
    if abs(sum(rates) - (mean - 1.0)) > half + 0.0005 * len(rates) + 1e-6:
        raise TraceError(
            f"{where}: Mean acceptance length {mean:g} is not 1 + the sum of the rates, {1 + sum(rates):.3f}"
        )
    for text in _LOG_RATE.findall(message):
        share = _text_number(text, "Draft acceptance rate", where, 0.0, 100.0)
        check_printed(
            share, half_unit(text), 100.0 * accepted / drafted, "Draft acceptance rate",
            f"{accepted:.10g} of {drafted:.10g} drafts", where,
        )  # fmt: skip
    depth = [
        _text_number(text, "Current speculative depth", where, 0, MAX_PLACES)
        for text in _LOG_DEPTH.findall(message)
    ]
    return _log_reached(accepted, drafted, mean, half, rates, depth[:1], where, short)


def _log_reached(
    accepted: float,
    drafted: float,
    mean: float,
    half: float,
    rates: list[float],
    depth: list[float],
    where: str,
    short: Shortfall,
) -> Floats:
    places = len(rates)
    named = int(depth[0]) if depth and 0 < depth[0] < places and not any(rates[int(depth[0]) :]) else 0
    if accepted > 0:
        least, most = _log_rounds(accepted, mean, half, rates)
        least, most = least * (1 - 1e-9) - 1e-6, most * (1 + 1e-9) + 1e-6
        if math.floor(most) < math.ceil(least):
            raise TraceError(
                f"{where}: no number of rounds makes Accepted {accepted:.10g} and "
                f"Mean acceptance length {mean:g}"
            )
        # A depth that the line names and all rounds had leaves the places beyond it untried.
        if named and least <= drafted / named <= most:
            places = named
        if drafted / places > most:
            raise TraceError(
                f"{where}: Drafted {drafted:.10g} is more than {most:.0f} rounds of {places} places can "
                "draft; Mean acceptance length or Accepted does not belong to it"
            )
        rounds = float(math.ceil(drafted / places - 1e-9))
        if not least <= rounds <= most:
            rounds = float(max(round(accepted / sum(rates)), math.ceil(least)))
    else:
        # Without a single accepted draft nothing tells the rounds; they drafted all places.
        places = named or places
        rounds = float(math.ceil(drafted / places))
    short.add(where, "Drafted", drafted, rounds, places)
    shown = np.array(rates[:places])
    counts = np.round(rounds * shown)
    if counts.sum() != accepted or (abs(counts - rounds * shown) > 0.0005 * rounds + 1e-6).any():
        counts = np.minimum(rounds * shown * (accepted / max(rounds * shown.sum(), 1e-12)), rounds)
    return np.concatenate([[rounds], counts])


def read_vllm_log(path: Path) -> RoundCounts:
    """Read the ``SpecDecoding metrics:`` lines of a vLLM server's log.

    Each covers the interval since the one before it, over all requests. Read are *Mean acceptance length*,
    *Accepted*, *Drafted*, *Per-position acceptance rate* (rounds accepting beyond a place over all
    rounds), and, where they stand there, *Draft acceptance rate* and *Current speculative depth*. The number
    of rounds is not printed; it is what the drafted tokens make if every round drafted all places, and must
    fit the accepted tokens, their mean and the rates. Lines of intervals without drafts are left out.

    Raises:
        TraceError: No such line; one that is malformed, out of range or does not fit together; or rounds
            that drafted fewer tokens than the most.
    """
    path = Path(path)
    parts: list[Floats] = []
    left_out = cut = 0
    short = Shortfall(_DETAILED)
    for index, line in enumerate(read_text(path).split("\n"), start=1):
        if _LOG_MARK not in line:
            continue
        where = f"{path}, line {index}"
        messages = _COLOUR.sub("", line).split(_LOG_MARK)[1:]
        for position, message in enumerate(messages, start=1):
            if position < len(messages) and not all(p.search(message) for p in _LOG_FIELDS.values()):
                cut += 1  # Two processes wrote at once: the second's message begins inside the first's.
                continue
            reached = _log_message(message, where, short)
            if reached is None:
                left_out += 1
                continue
            parts.append(reached)
    if left_out and not parts:
        raise TraceError(f"{path}: holds no round with drafts: Drafted is 0 in {count_of(left_out, 'line')}")
    if not parts:
        raise TraceError(f"{path}: has no line with {_LOG_MARK!r} and rounds")
    notes = []
    if left_out:
        notes.append(f"{count_of(left_out, 'line')} left out: intervals without drafts")
    if cut:
        notes.append(f"{count_of(cut, 'line')} left out: another message begins in the middle")
    reached, tried = _sum([(part, part[:-1]) for part in parts])
    notes += short.notes(float(tried[-1]))
    return aggregate(reached, tried, f"vLLM log {path.name}", left_out + cut, tuple(notes))


def _sum(parts: list[tuple[Floats, Floats]]) -> tuple[Floats, Floats]:
    """Add up reached and tried of records; those with fewer places than others tried none beyond them."""
    places = max(len(tried) for _, tried in parts)
    reached = np.sum([np.pad(mine, (0, places + 1 - len(mine))) for mine, _ in parts], axis=0)
    tried = np.sum([np.pad(mine, (0, places - len(mine))) for _, mine in parts], axis=0)
    return reached, tried


# ---------------------------------------------------------------------- /metrics

_COUNTERS = ("drafts", "draft_tokens", "accepted_tokens", "accepted_tokens_per_pos", "draft_tokens_per_pos")
# A page as it is, or copied from a browser's table (NAME{LABELS} | VALUE, NAME{LABELS} => VALUE @[TIME]).
_PROMETHEUS = re.compile(
    r"\s*(vllm[:_]spec_decode_num_(" + "|".join(_COUNTERS) + r")(?:_total)?)(?![\w:])"
    r"\s*(\{.*\})?\s*(?:\||=>)?\s*(\S+)"
)
_LABEL = re.compile(r'([A-Za-z_]\w*)\s*=\s*"((?:[^"\\]|\\.)*)"')


@dataclass
class _Engine:
    """The counters of one engine: values without a place, and by place."""

    single: dict[str, float] = field(default_factory=dict)
    by_place: dict[str, dict[int, float]] = field(default_factory=dict)


_Engines = dict[frozenset[tuple[str, str]], _Engine]


def _samples(path: Path) -> Iterator[tuple[str, str, dict[str, str], float, int]]:
    """Yield name, counter, labels, value and line of the counters of a page."""
    for index, line in enumerate(read_text(path).split("\n"), start=1):
        match = _PROMETHEUS.match(line)
        if match is not None:
            name, counter, labels, text = match.groups()
            value = _text_number(text, name, f"{path}, line {index}", 0.0, MAX_COUNT)
            yield name, counter, dict(_LABEL.findall(labels or "")), value, index


def _prometheus(path: Path) -> _Engines:
    """Return the counters of a page by engine: by the labels, other than the place, that all of them have."""
    samples = list(_samples(path))
    if not any(counter == "accepted_tokens_per_pos" for _, counter, _, _, _ in samples):
        raise TraceError(f"{path}: has no vllm:spec_decode_num_accepted_tokens_per_pos_total")
    models = sorted({labels["model_name"] for _, _, labels, _, _ in samples if "model_name" in labels})
    if len(models) > 1:
        raise TraceError(f"{path}: holds counters of several models, {models[:3]}: keep the lines of one")
    common = set.intersection(*(set(labels) for _, _, labels, _, _ in samples)) - {"position"}
    engines: _Engines = {}
    lines: dict[tuple[object, ...], int] = {}
    for name, counter, labels, value, index in samples:
        where = f"{path}, line {index}"
        key = frozenset((label, labels[label]) for label in common)
        engine = engines.setdefault(key, _Engine())
        before = lines.setdefault((counter, labels.get("position"), key), index)
        if before != index:
            raise TraceError(
                f"{where}: {name} of the same labels stands in line {before}, too: two pages in one file? "
                "Give the earlier one as `before` (--before)"
            )
        if not counter.endswith("_per_pos"):
            engine.single[counter] = value
            continue
        text = labels.get("position", "")
        if not re.fullmatch(r"[0-9]{1,3}", text) or int(text) >= MAX_PLACES:
            raise TraceError(f"{where}: label position is {text[:20]!r}, must be 0..{MAX_PLACES - 1}")
        engine.by_place.setdefault(counter, {})[int(text)] = value
    return engines


def _subtract(after: _Engines, before: _Engines, path: Path, earlier: Path) -> None:
    """Subtract an earlier page's counters, in place."""
    restarted = f"{path}: counters are below those of {earlier}: the server was restarted, or swapped files"
    for key, then in before.items():
        now = after.get(key)
        if now is None:
            raise TraceError(f"{path}: lacks an engine that {earlier} has: {_labels(key)}")
        pairs: list[tuple[dict[Any, float], dict[Any, float]]] = [(now.single, then.single)]
        pairs += [(now.by_place.get(name, {}), values) for name, values in then.by_place.items()]
        for mine, theirs in pairs:
            for name, value in theirs.items():
                if name not in mine:
                    continue
                mine[name] -= value
                if mine[name] < 0:
                    raise TraceError(restarted)


def _labels(key: frozenset[tuple[str, str]]) -> str:
    return "{" + ",".join(f'{name}="{value}"' for name, value in sorted(key)) + "}"


def _by_place(engine: _Engine, counter: str, where: str) -> Floats:
    values = engine.by_place.get(counter, {})
    if sorted(values) != list(range(len(values))):
        raise TraceError(f"{where}: positions {sorted(values)[:10]} of {counter} are not 0, 1, 2, ...")
    return np.array([values[place] for place in range(len(values))])


def _engine_rounds(engine: _Engine, where: str, short: Shortfall) -> tuple[Floats, Floats, bool]:
    """Return reached ``[places + 1]`` and tried ``[places]`` of an engine; and whether it counts drafts."""
    accepted = _by_place(engine, "accepted_tokens_per_pos", where)
    drafted = _by_place(engine, "draft_tokens_per_pos", where)
    if "drafts" not in engine.single or not len(accepted):
        lacking = "drafts" if "drafts" not in engine.single else "accepted_tokens_per_pos"
        raise TraceError(f"{where}: has no vllm:spec_decode_num_{lacking}_total, but others of its counters")
    rounds = engine.single["drafts"]
    places = len(accepted)
    check_falling([rounds, *accepted.tolist()], "vllm:spec_decode_num_accepted_tokens_per_pos_total", where)
    reached = np.concatenate([[rounds], accepted])
    # The server may count while it answers, so a page's counters may be a round apart.
    slack = places * (1.0 + 1e-3 * rounds)
    total = engine.single.get("accepted_tokens")
    if total is not None and abs(total - accepted.sum()) > slack:
        raise TraceError(
            f"{where}: vllm:spec_decode_num_accepted_tokens_total is {total:.10g}, those by position sum to "
            f"{accepted.sum():.10g}"
        )
    tokens = engine.single.get("draft_tokens")
    if tokens is not None and tokens > rounds * places + slack:
        raise TraceError(
            f"{where}: vllm:spec_decode_num_draft_tokens_total is {tokens:.10g}, more than {rounds:.10g} "
            "rounds "
            f"of {places} places can draft"
        )
    if len(drafted):
        if tokens is not None and abs(tokens - drafted.sum()) > slack:
            raise TraceError(
                f"{where}: vllm:spec_decode_num_draft_tokens_total is {tokens:.10g}, those by position sum "
                "to "
                f"{drafted.sum():.10g}"
            )
        drafted = np.pad(drafted, (0, max(0, places - len(drafted))))[:places]
        return reached, trials(reached, drafted, where), True
    if tokens is not None:
        short.add(where, "vllm:spec_decode_num_draft_tokens_total", tokens, rounds, places)
    return reached, reached[:-1], tokens is not None


def read_vllm_metrics(path: Path, before: Path | None = None) -> RoundCounts:
    """Read a vLLM server's ``/metrics`` page (Prometheus text).

    Read are the counters ``vllm:spec_decode_num_drafts_total`` (rounds),
    ``vllm:spec_decode_num_accepted_tokens_per_pos_total{position="J"}``, and, where they are there,
    ``..._num_draft_tokens_per_pos_total`` (rounds that drafted a place; newer servers),
    ``..._num_draft_tokens_total`` and ``..._num_accepted_tokens_total``; engines are summed. They count since
    the server began. Lines copied from a browser's table (``NAME{LABELS} | VALUE``) are read, too.

    Args:
        path: The page.
        before: An earlier page, whose counts are subtracted.

    Raises:
        TraceError: No such counters, values that cannot be, or rounds that drafted fewer tokens than the
            most on a server that does not count drafts by place.
    """
    path = Path(path)
    engines = _prometheus(path)
    if before is not None:
        _subtract(engines, _prometheus(Path(before)), path, Path(before))
    short = Shortfall(f"Newer servers count vllm:spec_decode_num_draft_tokens_per_pos_total. {_DETAILED}")
    parts = []
    for key, engine in engines.items():
        where = f"{path}, {_labels(key)}" if len(engines) > 1 else str(path)
        parts.append(_engine_rounds(engine, where, short))
    reached, tried = _sum([(mine, tries) for mine, tries, _ in parts])
    notes = list(short.notes(float(tried[-1])))
    if not all(counted for _, _, counted in parts):
        notes.append(ASSUMED.format(places=len(tried)))
    return aggregate(reached, tried, f"vLLM metrics {path.name}", 0, tuple(notes))


# ---------------------------------------------------------------------- benchmark


def _bench_rates(row: Any, where: str) -> tuple[list[float], float]:
    """Return the rates by place (without those that no round drafted) and how far rounding moves each."""
    name = "spec_decode_per_position_acceptance_rates"
    values = list(reading.field(row, name, where, list))
    while len(values) > 1 and values[-1] is None:
        values.pop()
    if not 1 <= len(values) <= MAX_PLACES:
        raise TraceError(f"{where}: {name} must have 1 to {MAX_PLACES} values, has {len(values)}")
    rates = [number(v, name, where, 0.0, 1.0) for v in values]
    check_falling(rates, name, where)
    return rates, min(half_unit(v) for v in values)


def read_vllm_bench(path: Path) -> RoundCounts:
    """Read the result of ``vllm bench serve --save-result``.

    Read are ``spec_decode_num_drafts`` (rounds), ``spec_decode_draft_tokens``,
    ``spec_decode_accepted_tokens`` and ``spec_decode_per_position_acceptance_rates`` (fractions of all
    rounds); ``spec_decode_acceptance_rate`` (per cent) and ``spec_decode_acceptance_length`` are checked. All
    requests of the benchmark together.

    Raises:
        TraceError: Not such a file, several results in one file (``--append-result``), values that cannot be,
            or rounds that drafted fewer tokens than the most.
    """
    path = Path(path)
    messages, _ = json_messages(path)
    if len(messages) > 1:
        raise TraceError(
            f"{messages[1].where}: a second result begins: {len(messages)} stand in the file "
            "(--append-result); "
            "put each into a file of its own"
        )
    where, row = str(path), messages[0].value
    name = "spec_decode_num_drafts"
    if isinstance(row, Mapping) and "total_output_tokens" in row and name not in row:
        raise TraceError(
            f"{where}: lacks a field of the format: {name!r}; the server ran without speculation"
        )
    drafts = integer(reading.field(row, name, where), name, where, 1, MAX_COUNT)
    rates, half = _bench_rates(row, where)
    places = len(rates)
    name = "spec_decode_accepted_tokens"
    accepted = integer(reading.field(row, name, where), name, where, 0, MAX_COUNT)
    made = drafts * sum(rates)
    if abs(made - accepted) > min(drafts * places * half, 0.01 * accepted) + 1.0:
        raise TraceError(
            f"{where}: spec_decode_accepted_tokens is {accepted}, but the rates of {drafts} drafts make "
            f"{made:.0f}; newer versions give rates of the rounds that drafted a place, which do not say "
            "how many "
            "those were"
        )
    name = "spec_decode_acceptance_length"
    if row.get(name) is not None:
        length = number(row[name], name, where, 1.0, 1.0 + MAX_PLACES)
        what = f"{accepted} drafts accepted in {drafts} rounds"
        check_printed(length, half_unit(row[name]), 1.0 + accepted / drafts, name, what, where)
    short = Shortfall(f"/metrics of newer servers counts drafts by place (read_vllm_metrics). {_DETAILED}")
    notes = _bench_drafted(row, where, drafts, accepted, places, short)
    reached = drafts * np.array([1.0, *rates])
    notes += short.notes(float(reached[-2]))
    return aggregate(reached, None, f"vLLM benchmark {path.name}", 0, notes)


def _bench_drafted(
    row: Mapping[str, Any], where: str, drafts: int, accepted: int, places: int, short: Shortfall
) -> tuple[str, ...]:
    """Compare the drafted tokens of a benchmark with rounds times places; return what to note."""
    rate: float | None = None
    if row.get("spec_decode_acceptance_rate") is not None:
        rate = number(row["spec_decode_acceptance_rate"], "spec_decode_acceptance_rate", where, 0.0, 100.0)
    if row.get("spec_decode_draft_tokens") is not None:
        name = "spec_decode_draft_tokens"
        drafted = integer(row[name], name, where, 1, MAX_COUNT)
        if not accepted <= drafted <= drafts * places:
            raise TraceError(
                f"{where}: {name} is {drafted}, must be in {accepted}..{drafts * places}: at least the "
                "accepted "
                f"drafts, at most {drafts} rounds x {places} places"
            )
        if rate is not None:
            what = f"{accepted} of {drafted} drafts"
            half = half_unit(row["spec_decode_acceptance_rate"])
            check_printed(rate, half, 100.0 * accepted / drafted, "spec_decode_acceptance_rate", what, where)
        short.add(where, name, drafted, drafts, places)
        return ()
    if rate and accepted:
        half = half_unit(row["spec_decode_acceptance_rate"])
        most = 100.0 * accepted / max(rate - half, 1e-9)
        name = "drafted tokens by spec_decode_acceptance_rate, at most"
        short.add(where, name, min(most, drafts * places), drafts, places)
        return ()
    return (ASSUMED.format(places=places),)


# ---------------------------------------------------------------------- responses


def _counts(value: Any, name: str, where: str, most: int) -> list[int]:
    """Return a list of counts that a request reports."""
    if not isinstance(value, list) or not 1 <= len(value) <= most:
        size = f"{len(value)} entries" if isinstance(value, list) else type(value).__name__
        raise TraceError(f"{where}: {name} must be a list of 1 to {most} counts, has {size}")
    return [integer(v, name, where, 0, MAX_COUNT) for v in value]


def _by_draft_length(
    values: Mapping[str, Any], where: str, places: int, histogram: list[int]
) -> Floats | None:
    """Return rounds by drafted and accepted drafts, ``[places + 1, places + 1]``, where they are told."""
    name = "acceptance_histogram_by_draft_length"
    table = np.zeros((places + 1, places + 1))
    if values.get(name) is not None:
        rows = reading.field(values, name, where, dict)
        for text, row in rows.items():
            if not re.fullmatch(r"[0-9]{1,3}", text) or int(text) > places:
                raise TraceError(f"{where}: {name} has a draft length {text[:20]!r}, must be 0..{places}")
            counts = _counts(row, f"{name}[{text}]", where, int(text) + 1)
            table[int(text), : len(counts)] += counts
    elif values.get("per_step_drafted") is not None:
        name = "per_step_drafted"
        drafted = reading.field(values, "per_step_drafted", where, list)
        accepted = reading.field(values, "per_step_accepted", where, list)
        if len(drafted) != len(accepted):
            raise TraceError(
                f"{where}: per_step_drafted has {len(drafted)} steps, per_step_accepted {len(accepted)}"
            )
        for length, run in zip(drafted, accepted, strict=True):
            integer(length, "per_step_drafted", where, 0, places)
            table[length, integer(run, "per_step_accepted", where, 0, length)] += 1.0
    else:
        return None
    if table.sum(axis=0).tolist() != [float(n) for n in histogram] + [0.0] * (places + 1 - len(histogram)):
        raise TraceError(f"{where}: {name} counts other rounds than acceptance_histogram")
    return table


def request_rounds(
    values: Mapping[str, Any], tokens: int | None, where: str, short: Shortfall
) -> Request | None:
    """Return the rounds of one request's ``speculative_decoding``; ``None`` without drafts."""
    name = "num_spec_tokens"
    places = integer(reading.field(values, name, where), name, where, 1, MAX_PLACES)
    name = "acceptance_histogram"
    histogram = _counts(reading.field(values, name, where), name, where, places + 1)
    rounds = sum(histogram)
    accepted = sum(j * n for j, n in enumerate(histogram))
    for name, made in (("num_spec_steps", rounds), ("num_accepted_draft_tokens", accepted)):
        if values.get(name) is not None and integer(values[name], name, where, 0, MAX_COUNT) != made:
            raise TraceError(f"{where}: {name} is {values[name]}, acceptance_histogram makes {made}")
    name = "num_draft_tokens"
    drafted = integer(reading.field(values, name, where), name, where, 0, MAX_COUNT)
    if not accepted <= drafted <= rounds * places:
        raise TraceError(
            f"{where}: {name} is {drafted}, must be in {accepted}..{rounds * places}: at least the accepted "
            "drafts, "
            f"at most {rounds} rounds x {places} places"
        )
    if drafted == 0:
        return None
    for name, exact, what in (
        ("mean_acceptance_length", 1.0 + accepted / rounds, f"{accepted} drafts accepted in {rounds} rounds"),
        ("draft_acceptance_rate", accepted / drafted, f"{accepted} of {drafted} drafts"),
    ):
        if values.get(name) is not None:
            printed = number(values[name], name, where, 0.0, 1.0 + MAX_PLACES)
            check_printed(printed, half_unit(values[name]), exact, name, what, where)
    if tokens is not None and accepted + rounds > tokens + places + 1:
        raise TraceError(
            f"{where}: completion_tokens is {tokens}, but {rounds} rounds with {accepted} drafts accepted "
            "made "
            f"{accepted + rounds}"
        )
    reached = reached_by_place(histogram, places)
    table = _by_draft_length(values, where, places, histogram)
    if table is None:
        short.add(where, name="num_draft_tokens", drafted=drafted, rounds=rounds, places=places)
        tried = reached[:-1]
    else:
        lengths = np.arange(places + 1)
        if int(lengths @ table.sum(axis=1)) != drafted:
            raise TraceError(
                f"{where}: num_draft_tokens is {drafted}, the draft lengths of the rounds make "
                f"{int(lengths @ table.sum(axis=1))}"
            )
        # Place j (from 0) was tried by rounds that accepted at least j drafts and drafted more than j.
        tried = np.array([table[j + 1 :, j:].sum() for j in range(places)])
    return Request(reached, tried, accepted + rounds if tokens is None else tokens)


def _speculative(value: Any, where: str) -> Any:
    """Return a response's ``speculative_decoding``, ``None`` where it has none.

    Raises:
        TraceError: Not a response.
    """
    if not isinstance(value, Mapping):
        raise TraceError(f"{where}: must be a JSON object, found {type(value).__name__}")
    if "acceptance_histogram" in value:
        return value
    if not {"choices", "metrics", "speculative_decoding", "error"} & set(value):
        raise TraceError(
            f"{where}: lacks a field of the format: 'metrics'; is it a response of a vLLM server?"
        )
    metrics = value.get("metrics", value)
    found = metrics.get("speculative_decoding") if isinstance(metrics, Mapping) else metrics
    if found is not None and not isinstance(found, Mapping):
        raise TraceError(
            f"{where}: metrics.speculative_decoding must be a JSON object, found {type(found).__name__}"
        )
    return found


def read_vllm_responses(path: Path) -> RoundCounts:
    """Read responses of a vLLM server with ``--per-request-spec-decode-metrics summary`` or ``detailed``.

    The file holds responses of ``/v1/chat/completions`` or ``/v1/completions``, one a line, one behind the
    other, or as events of streams, whose last chunk has the metrics (``stream_options.include_usage``). Read
    is ``metrics.speculative_decoding``: ``acceptance_histogram`` (entry ``n`` counts the rounds that accepted
    ``n`` drafts), ``num_spec_tokens`` (places), ``num_draft_tokens``; and what rounds drafted, from
    ``acceptance_histogram_by_draft_length`` or, with ``detailed``, ``per_step_drafted`` and
    ``per_step_accepted``. The other fields are checked. Requests without drafts, or without the metrics
    (``n`` above 1, failures), are left out.

    Raises:
        TraceError: No such metrics, values that cannot be, or rounds that drafted fewer tokens than the most
            in a file that does not say which.
    """
    path = Path(path)
    messages, foreign = json_messages(path)
    short = Shortfall("Start the server with --per-request-spec-decode-metrics detailed.")
    requests: list[Request] = []
    known: dict[str, tuple[str, Any]] = {}
    streams: set[str] = set()
    left_out = again = 0
    for where, value, streamed in each_item(messages):
        metrics = _speculative(value, where)
        name = str(value.get("id") or "")
        if streamed or str(value.get("object", "")).endswith(".chunk"):
            streams.add(name)
            if metrics is None:
                continue
        elif metrics is None:
            left_out += 1
            continue
        if name in known:
            before, same = known[name]
            if same != metrics:
                raise TraceError(f"{where}: id {name[:40]!r} has other metrics than in {before}")
            again += 1
            continue
        if name:
            known[name] = where, metrics
        usage = value.get("usage")
        tokens = None
        if isinstance(usage, Mapping) and usage.get("completion_tokens") is not None:
            tokens = integer(usage["completion_tokens"], "usage.completion_tokens", where, 0, MAX_COUNT)
        request = request_rounds(metrics, tokens, f"{where}: metrics.speculative_decoding", short)
        if request is None:
            left_out += 1
        else:
            requests.append(request)
    left_out += len(streams - set(known))
    if not requests:
        raise TraceError(
            f"{path}: holds no request with rounds ({left_out} without): metrics.speculative_decoding is "
            "there if the "
            "server runs with --per-request-spec-decode-metrics, and streams need include_usage"
        )
    places = max(len(request.tried) for request in requests)
    reached_last = sum(float(request.tried[-1]) for request in requests)
    notes = [*file_notes(left_out, again, foreign), *short.notes(reached_last)]
    return per_request(requests, places, f"vLLM responses {path.name}", left_out, notes)
