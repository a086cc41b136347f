"""Models from what serving engines log: rounds and acceptance rates by place, not runs at every start.

An engine reports what the rounds that it ran accepted. That says nothing of the starts in between, so no
trace set can be made of it. What can be fitted is a renewal model: a round's ``j``-th draft is accepted with
a probability ``a_j`` given that those before it were, and after a mismatch all begins anew. With as many
drafts per round as were logged, its tokens per round are those logged; with fewer, they are what the model
makes of it. Logs with one record per request also give the spread between requests (a mixture of classes, by
EM).

The results are :class:`~dsd_env.acceptance.runmodel.RunModel` s, labelled ``fitted``, for the scenario's
``source: fitted``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsd_env.acceptance.importers import plain_rows
from dsd_env.acceptance.reading import field, integer, json_lines, number, parse_json, read_text
from dsd_env.acceptance.runmodel import (
    AGES,
    FORMAT_VERSION,
    ModelCard,
    RequestClass,
    RunModel,
    RunProcess,
    RunState,
    move_row,
)
from dsd_env.acceptance.source import MAX_RUN_LENGTH
from dsd_env.acceptance.traceset import TraceError

Floats = NDArray[np.float64]

_MAX_COUNT = 10**15
_MAX_PLACES = MAX_RUN_LENGTH
MAX_CLASSES = 4
"""Most classes of requests that a fit to logged rounds tries."""


@dataclass(frozen=True)
class RoundCounts:
    """How often each place of a round was tried and accepted.

    Attributes:
        tried: float64 ``[n, places]``: per request (or one row for all), rounds whose drafts before place
            ``j`` were all accepted and that drafted place ``j``.
        accepted: float64 ``[n, places]``: those of them that accepted it.
        tokens: int64 ``[n]``: output tokens of each request; 0 where not known.
        per_request: Whether rows are requests. If not, there is one row, and nothing is known of the spread.
        origin: What was read.
    """

    tried: Floats
    accepted: Floats
    tokens: NDArray[np.int64]
    per_request: bool
    origin: str

    def __post_init__(self) -> None:
        """Check shapes and ranges.

        Raises:
            TraceError: Counts that cannot be.
        """
        if self.tried.ndim != 2 or self.tried.shape != self.accepted.shape or 0 in self.tried.shape:
            raise TraceError(f"{self.origin}: counts must be tables of requests by places")
        if not self.per_request and len(self.tried) != 1:
            raise TraceError(f"{self.origin}: aggregated counts have one row")
        if self.tried.shape[1] > _MAX_PLACES:
            raise TraceError(f"{self.origin}: more than {_MAX_PLACES} drafts in a round")
        for values in (self.tried, self.accepted):
            if not np.isfinite(values).all() or (values < 0).any():
                raise TraceError(f"{self.origin}: counts must be finite and not negative")
        if (self.accepted > self.tried * (1 + 1e-9) + 1e-6).any():
            raise TraceError(f"{self.origin}: more drafts accepted than tried")
        if not self.tried[:, 0].sum() > 0:
            raise TraceError(f"{self.origin}: holds no round with drafts")

    @property
    def tokens_per_round(self) -> float:
        """Tokens per round that drafted, bonus token included."""
        return 1.0 + float(self.accepted.sum() / self.tried[:, 0].sum())


def _from_histogram(accepted: Floats, drafted: int) -> tuple[Floats, Floats]:
    """Return tried and accepted by place, ``[drafted]``, of rounds by number of accepted drafts."""
    at_least = np.zeros(drafted + 1)
    at_least[: len(accepted)] = accepted[::-1].cumsum()[::-1]
    return at_least[:-1], at_least[1:]


def _aggregate(accepted: Sequence[float], drafts: float, origin: str) -> RoundCounts:
    """Return counts of all requests together from accepted drafts by place and the number of rounds."""
    reached = np.array([drafts, *accepted], dtype=np.float64)
    return RoundCounts(reached[None, :-1], reached[None, 1:], np.zeros(1, np.int64), False, origin)


def _falling(values: Sequence[float], name: str, where: str) -> None:
    """Check acceptance by place, which counts rounds that got *beyond* a place and so cannot rise."""
    for place in range(1, len(values)):
        if values[place] > values[place - 1] * (1 + 1e-9) + 1e-9:
            raise TraceError(
                f"{where}: {name} rises from {values[place - 1]:g} to {values[place]:g} at place "
                f"{place + 1}: "
                "these must be rates of all rounds, not of those that came so far"
            )


# ---------------------------------------------------------------------- vLLM

_LOG_MARK = "SpecDecoding metrics:"
_LOG_FIELDS = {
    "mean": re.compile(r"Mean acceptance length:\s*([^,\s]+)"),
    "accepted": re.compile(r"(?<!\w)Accepted:\s*([^,\s]+)\s*tokens"),
    "drafted": re.compile(r"(?<!\w)Drafted:\s*([^,\s]+)\s*tokens"),
    "rates": re.compile(r"Per-position acceptance rate:\s*(.*?)(?:,\s*Avg\b|$)"),
}


def _text_number(text: str, name: str, where: str, low: float, high: float) -> float:
    try:
        value: float = float(text) if len(text) < 40 else math.nan
    except ValueError:
        raise TraceError(f"{where}: {name} holds {text[:40]!r}, must be a number") from None
    return number(value, name, where, low, high)


def read_vllm_log(path: Path) -> RoundCounts:
    """Read the ``SpecDecoding metrics:`` lines of a vLLM server's log.

    Each covers the interval since the one before it, over all requests. Read are *Mean acceptance length*,
    *Accepted*, *Drafted* and *Per-position acceptance rate* (rounds accepting beyond a place over all
    rounds). The number of rounds is not printed; it follows as ``accepted / (mean - 1)``.

    Raises:
        TraceError: No such line, or one that is malformed, out of range or does not fit together.
    """
    path = Path(path)
    total: Floats = np.zeros(0)
    rounds = 0.0
    for index, line in enumerate(read_text(path).split("\n"), start=1):
        if _LOG_MARK not in line:
            continue
        where = f"{path}, line {index}"
        found = {}
        for name, pattern in _LOG_FIELDS.items():
            match = pattern.search(line)
            if match is None:
                raise TraceError(f"{where}: lacks {name} ({pattern.pattern.split(':')[0]}) of a metrics line")
            found[name] = match.group(1)
        rates = [
            _text_number(text.strip(), "Per-position acceptance rate", where, 0.0, 1.0)
            for text in found["rates"].strip(" []\r").split(",")
        ]
        if len(rates) > _MAX_PLACES:
            raise TraceError(f"{where}: Per-position acceptance rate has more than {_MAX_PLACES} values")
        mean = _text_number(found["mean"], "Mean acceptance length", where, 1.0, 1.0 + len(rates))
        accepted = _text_number(found["accepted"], "Accepted", where, 0, _MAX_COUNT)
        drafted = _text_number(found["drafted"], "Drafted", where, 1, _MAX_COUNT)
        _falling(rates, "Per-position acceptance rate", where)
        if accepted > drafted:
            raise TraceError(f"{where}: Accepted {accepted:g} is above Drafted {drafted:g}")
        if abs(sum(rates) - (mean - 1.0)) > 0.006 + 0.0006 * len(rates):  # as the line rounds them
            raise TraceError(
                f"{where}: Mean acceptance length {mean:g} is not 1 + the sum of the rates, "
                f"{1 + sum(rates):.3f}"
            )
        # Without a single accepted draft the mean says nothing of the rounds; they drafted all places.
        drafts = accepted / sum(rates) if sum(rates) > 0 else drafted / len(rates)
        counts = drafts * np.array(rates)
        size = max(len(total), len(counts))
        total = np.pad(total, (0, size - len(total))) + np.pad(counts, (0, size - len(counts)))
        rounds += drafts
    if not rounds:
        raise TraceError(f"{path}: has no line with {_LOG_MARK!r} and rounds")
    return _aggregate(total.tolist(), rounds, f"vLLM log {path.name}")


_PROMETHEUS = re.compile(r"^(vllm:spec_decode_num_(?:drafts|accepted_tokens_per_pos)_total)(\{.*\})?\s+(\S+)")
_POSITION = re.compile(r'[{,]\s*position="([^"]*)"')


def _prometheus(path: Path) -> tuple[float, dict[int, float]]:
    rounds, places = 0.0, dict[int, float]()
    for index, line in enumerate(read_text(path).split("\n"), start=1):
        match = _PROMETHEUS.match(line)
        if match is None:
            continue
        where = f"{path}, line {index}"
        value = _text_number(match.group(3), match.group(1), where, 0.0, _MAX_COUNT)
        if match.group(1).endswith("num_drafts_total"):
            rounds += value
            continue
        position = _POSITION.search(match.group(2) or "")
        text = position.group(1) if position else ""
        if not re.fullmatch(r"[0-9]{1,3}", text) or int(text) >= _MAX_PLACES:
            raise TraceError(f"{where}: label position is {text[:20]!r}, must be 0..{_MAX_PLACES - 1}")
        places[int(text)] = places.get(int(text), 0.0) + value
    if not places:
        raise TraceError(f"{path}: has no vllm:spec_decode_num_accepted_tokens_per_pos_total")
    if sorted(places) != list(range(len(places))):
        raise TraceError(f"{path}: positions {sorted(places)[:10]} are not 0, 1, 2, ...")
    return rounds, places


def read_vllm_metrics(path: Path, before: Path | None = None) -> RoundCounts:
    """Read a vLLM server's ``/metrics`` page (Prometheus text).

    Read are the counters ``vllm:spec_decode_num_drafts_total`` and
    ``vllm:spec_decode_num_accepted_tokens_per_pos_total{position="J"}``, summed over engines. They count
    since the server began.

    Args:
        path: The page.
        before: An earlier page, whose counts are subtracted.

    Raises:
        TraceError: No such counters, or values that cannot be.
    """
    path = Path(path)
    rounds, places = _prometheus(path)
    if before is not None:
        earlier, then = _prometheus(Path(before))
        rounds -= earlier
        places = {j: value - then.get(j, 0.0) for j, value in places.items()}
        if rounds < 0 or any(value < 0 for value in places.values()):
            raise TraceError(
                f"{path}: counters are below those of {before}: the server was restarted, or swapped files"
            )
    values = [places[j] for j in range(len(places))]
    _falling([rounds, *values], "vllm:spec_decode_num_accepted_tokens_per_pos_total", str(path))
    return _aggregate(values, rounds, f"vLLM metrics {path.name}")


def read_vllm_bench(path: Path) -> RoundCounts:
    """Read the result of ``vllm bench serve --save-result``.

    Read are ``spec_decode_num_drafts``, ``spec_decode_accepted_tokens`` and
    ``spec_decode_per_position_acceptance_rates`` (fractions; the file's ``spec_decode_acceptance_rate`` is in
    per cent and not read). All requests of the benchmark together.

    Raises:
        TraceError: Not such a file, or values that cannot be.
    """
    path = Path(path)
    where = str(path)
    row = parse_json(read_text(path), where)
    drafts = integer(
        field(row, "spec_decode_num_drafts", where), "spec_decode_num_drafts", where, 1, _MAX_COUNT
    )
    name = "spec_decode_per_position_acceptance_rates"
    values = field(row, name, where, list)
    if not 1 <= len(values) <= _MAX_PLACES:
        raise TraceError(f"{where}: {name} must have 1 to {_MAX_PLACES} values, has {len(values)}")
    rates = [number(v, name, where, 0.0, 1.0) for v in values]
    _falling(rates, name, where)
    accepted = integer(
        field(row, "spec_decode_accepted_tokens", where), "spec_decode_accepted_tokens", where, 0, _MAX_COUNT
    )
    if abs(drafts * sum(rates) - accepted) > 0.01 * accepted + 1:
        raise TraceError(
            f"{where}: spec_decode_accepted_tokens is {accepted}, but the rates of {drafts} drafts make "
            f"{drafts * sum(rates):.0f}"
        )
    return _aggregate([drafts * r for r in rates], drafts, f"vLLM benchmark {path.name}")


# ---------------------------------------------------------------------- SGLang

_HISTOGRAMS = ("spec_correct_drafts_histogram", "spec_accept_histogram")


def _meta_infos(where: str, row: Any) -> list[tuple[str, Any]]:
    """Return the ``meta_info`` objects of one line: of a response, of a list of them, or the line itself."""
    if isinstance(row, list):
        return [pair for n, item in enumerate(row) for pair in _meta_infos(f"{where}, item {n}", item)]
    if isinstance(row, dict) and "meta_info" in row:
        return [(f"{where}: meta_info", row["meta_info"])]
    if isinstance(row, dict) and isinstance(row.get("choices"), list):
        pairs = []
        for n, choice in enumerate(row["choices"]):
            pairs.append((f"{where}: choices[{n}].meta_info", field(choice, "meta_info", where)))
        return pairs
    return [(where, row)]


def read_sglang(path: Path, drafts_per_round: int | None = None) -> RoundCounts:
    """Read responses of an SGLang server, one JSON value a line.

    A line is a response of ``/generate`` or ``/v1/...`` (with ``return_meta_info``), a list of such, or a
    ``meta_info`` alone. Read are ``spec_accept_histogram`` (or its newer name
    ``spec_correct_drafts_histogram``; entry ``n`` counts the rounds that accepted ``n`` drafts),
    ``completion_tokens``, and ``spec_verify_ct``, which must be the histogram's sum. ``spec_accept_length``
    and ``spec_accept_rate`` alone give one mean and are not enough.

    Args:
        path: The file.
        drafts_per_round: The server's drafts per round (``--speculative-num-steps``); default the longest
            that any round of the file accepted.

    Raises:
        TraceError: No histograms, or values that cannot be.
    """
    path = Path(path)
    histograms: list[Floats] = []
    tokens: list[int] = []
    for line, row in json_lines(path):
        for where, meta in _meta_infos(line, row):
            if not isinstance(meta, Mapping):
                raise TraceError(f"{where}: must be a JSON object, found {type(meta).__name__}")
            name = next((h for h in _HISTOGRAMS if meta.get(h) is not None), None)
            if name is None:
                raise TraceError(
                    f"{where}: lacks a field of the format: {_HISTOGRAMS[1]!r}. A server without it "
                    "(and a request without speculation) reports means only, which do not say how runs end"
                )
            values = field(meta, name, where, list)
            limit = drafts_per_round if drafts_per_round is not None else _MAX_PLACES
            if not 1 <= len(values) <= limit + 1:
                raise TraceError(
                    f"{where}: {name} has {len(values)} entries; rounds of {limit} drafts have up to "
                    f"{limit + 1}"
                )
            counts = [integer(v, name, where, 0, _MAX_COUNT) for v in values]
            if "spec_verify_ct" in meta:
                rounds = integer(meta["spec_verify_ct"], "spec_verify_ct", where, 0, _MAX_COUNT)
                if rounds != sum(counts):
                    raise TraceError(f"{where}: spec_verify_ct is {rounds}, {name} sums to {sum(counts)}")
            size = integer(field(meta, "completion_tokens", where), "completion_tokens", where, 0, _MAX_COUNT)
            if sum(counts):
                histograms.append(np.array(counts, dtype=np.float64))
                tokens.append(size)
    if not histograms:
        raise TraceError(f"{path}: holds no request with rounds")
    places = drafts_per_round or max(1, *(len(h) - 1 for h in histograms))
    pairs = [_from_histogram(h, places) for h in histograms]
    tried, accepted = (np.array([pair[side] for pair in pairs]) for side in (0, 1))
    return RoundCounts(tried, accepted, np.array(tokens, np.int64), True, f"SGLang responses {path.name}")


# ---------------------------------------------------------------------- the plain format


def read_plain_rounds(path: Path) -> dict[str, dict[str, RoundCounts]]:
    """Read ``rounds`` of the plain format: ``"drafters": {D: {"rounds": [[drafted, accepted], ...]}}``.

    Returns:
        Kind -> drafter -> counts, per request.

    Raises:
        TraceError: Malformed, ``accepted`` above ``drafted``, or no round with drafts.
    """
    path = Path(path)
    _, rows = plain_rows(path)
    found: dict[str, dict[str, list[tuple[Floats, Floats, int]]]] = {}
    for where, kind, _, drafters in rows:
        for drafter, values in drafters.items():
            label = f"drafters.{drafter}.rounds"
            rounds = field(values, "rounds", f"{where}: drafters.{drafter}", list)
            if set(values) != {"rounds"}:
                raise TraceError(f"{where}: drafters.{drafter} must have rounds alone")
            tried, accepted, tokens = np.zeros(_MAX_PLACES), np.zeros(_MAX_PLACES), 0
            for pair in rounds:
                if not isinstance(pair, list) or len(pair) != 2:
                    raise TraceError(f"{where}: {label} must hold pairs [drafted, accepted]")
                drafted = integer(pair[0], f"{label} (drafted)", where, 0, _MAX_PLACES)
                run = integer(pair[1], f"{label} (accepted)", where, 0, _MAX_PLACES)
                if run > drafted:
                    raise TraceError(f"{where}: {label} has {run} accepted of {drafted} drafted")
                tried[: min(run + 1, drafted)] += 1.0
                accepted[:run] += 1.0
                tokens += run + 1
            found.setdefault(kind, {}).setdefault(drafter, []).append((tried, accepted, tokens))
    result: dict[str, dict[str, RoundCounts]] = {}
    for kind, group in found.items():
        for drafter, parts in group.items():
            table = np.array([part[0] for part in parts])
            places = max(1, int(np.flatnonzero(table.sum(axis=0))[-1]) + 1 if table.any() else 1)
            result.setdefault(kind, {})[drafter] = RoundCounts(
                table[:, :places],
                np.array([part[1] for part in parts])[:, :places],
                np.array([part[2] for part in parts], np.int64),
                True,
                f"{path.name}, {kind}, {drafter}",
            )
    return result


# ---------------------------------------------------------------------- fit


def _hazards(tried: Floats, accepted: Floats, base: Floats) -> Floats:
    """Return acceptance by place, shrunk to a base by two observations."""
    return np.asarray((accepted + 2.0 * base) / (tried + 2.0))


def _likelihood(tried: Floats, accepted: Floats, hazards: Floats) -> Floats:
    """Return each request's log-likelihood under each class, ``[n, C]``."""
    accept = np.clip(hazards, 1e-9, 1 - 1e-9)
    result: Floats = accepted @ np.log(accept).T + (tried - accepted) @ np.log1p(-accept).T
    return result


EXTRAPOLATED_PLACES = 32
"""A model of rounds has runs up to at least this, with the acceptance of the last place that was logged."""


def fit_rounds(
    counts: RoundCounts, longest_run: int | None = None, n_classes: int | None = None
) -> RunProcess:
    """Fit a renewal model to counts of rounds by maximum likelihood.

    Args:
        counts: The counts.
        longest_run: Longest run of the model; default the places counted. Places beyond those counted take
            the acceptance of the last.
        n_classes: Classes of requests; default by the Bayesian information criterion, up to
            :data:`MAX_CLASSES`, and 1 for counts that are not per request.
    """
    tried, accepted = counts.tried, np.minimum(counts.accepted, counts.tried)
    base = (accepted.sum(axis=0) + 0.5) / (tried.sum(axis=0) + 1.0)
    n, places = tried.shape
    choices = range(1, MAX_CLASSES + 1) if counts.per_request else (1,)
    best: tuple[float, Floats, Floats, Floats] | None = None
    for size in choices if n_classes is None else (n_classes,):
        if size > n:
            break
        rates = accepted.sum(axis=1) / np.maximum(tried.sum(axis=1), 1.0)
        rank = np.argsort(np.argsort(rates, kind="stable"), kind="stable")
        posterior = np.eye(size)[np.minimum(rank * size // n, size - 1)]
        score = np.zeros((n, size))
        for _ in range(200):
            weight = (posterior.sum(axis=0) + 1.0) / (n + size)
            hazards = np.array(
                [_hazards(posterior[:, c] @ tried, posterior[:, c] @ accepted, base) for c in range(size)]
            )
            score = _likelihood(tried, accepted, hazards) + np.log(weight)
            new = np.exp(score - score.max(axis=1, keepdims=True))
            new /= new.sum(axis=1, keepdims=True)
            done = float(np.abs(new - posterior).max()) < 1e-6
            posterior = new
            if done:
                break
        high = score.max(axis=1)
        total = float((high + np.log(np.exp(score - high[:, None]).sum(axis=1))).sum())
        criterion = -2.0 * total + (size * places + size - 1) * math.log(n)
        if best is None or criterion < best[0]:
            best = criterion, weight, hazards, posterior
    if best is None:
        raise TraceError(f"{counts.origin}: {n_classes} classes need as many requests; there are {n}")
    _, weight, hazards, posterior = best
    known = np.log(np.maximum(counts.tokens, 1))
    longest = places if longest_run is None else longest_run
    order = np.argsort(hazards[:, 0], kind="stable")
    shares = [round(float(w), 5) for w in weight]
    shares[int(np.argmax(shares))] = round(1.0 - (sum(shares) - max(shares)), 5)
    classes = []
    for c in order:
        mass = posterior[:, c] / max(float(posterior[:, c].sum()), 1e-9)
        mean = float(mass @ known)
        classes.append(
            RequestClass(
                weight=shares[c],
                log_length_mean=round(mean, 4),
                log_length_sd=round(max(math.sqrt(float(mass @ (known - mean) ** 2)), 0.05), 4),
                start=(1.0,),
                transition=((1.0,),),
                states=(_renewal_state(hazards[c], longest),),
            )
        )
    return RunProcess(classes=tuple(classes), return_to_hard_token=((0.0,),), pass_hard_token=((0.0,),))


def _renewal_state(hazards: Floats, longest: int) -> RunState:
    """Return the state of a renewal model: the token that ends a run ends it from every start before it."""
    accept = [round(float(a), 4) for a in hazards[:longest]]
    accept += accept[-1:] * (longest - len(accept))
    rows = move_row(longest, longest) + 1
    return RunState(
        accept_fresh=tuple(accept),
        accept_beyond=tuple(accept),
        end_before=(1.0,) * longest,
        same_token=((1.0,) * rows,) * AGES,
        later_token=((0.0,) * rows,) * AGES,
    )


def model_from_rounds(
    name: str,
    counts: Mapping[str, Mapping[str, RoundCounts]],
    *,
    target: str,
    drafters: Mapping[str, str] | None = None,
    date: str,
    data: str,
    licence: str,
    command: str = "dsd_env.acceptance.rounds.model_from_rounds",
    n_classes: int | None = None,
) -> RunModel:
    """Return a model fitted to counts of rounds, of one or several kinds and drafters.

    Args:
        name: Name of the model.
        counts: Kind -> drafter -> counts. Every kind needs every drafter.
        target: The target model.
        drafters: Drafter -> what it is; default not stated.
        date: Date of the fit, ``YYYY-MM-DD``.
        data: Where they come from.
        licence: Their licence.
        command: What made the model.
        n_classes: As for :func:`fit_rounds`.

    Raises:
        TraceError: Kinds with different drafters, or a name or date that no model can have.
    """
    if not counts or not all(counts.values()):
        raise TraceError(f"{name}: no counts to fit")
    known = sorted({drafter for group in counts.values() for drafter in group})
    for kind, group in counts.items():
        if sorted(group) != known:
            raise TraceError(f"{name}: kind {kind!r} has drafters {sorted(group)}, others {known}")
    # Runs go on beyond the places logged: one that ended there would end the rounds of fewer drafts, too.
    places = max(c.tried.shape[1] for group in counts.values() for c in group.values())
    longest = max(places, EXTRAPOLATED_PLACES)
    fits = {
        kind: {
            drafter: {
                "origin": c.origin,
                "requests": len(c.tried) if c.per_request else "aggregated",
                "rounds": round(float(c.tried[:, 0].sum())),
                "tokens_per_round": round(c.tokens_per_round, 4),
                "places": int(c.tried.shape[1]),
            }
            for drafter, c in group.items()
        }
        for kind, group in counts.items()
    }
    try:
        card = ModelCard(
            target=target,
            drafters={d: (drafters or {}).get(d, "not stated") for d in known},
            data=data,
            licence=licence,
            method="Renewal model by maximum likelihood from rounds that were run.",
            command=command,
            date=date,
            fits=fits,
            notes=(
                "Only acceptance by place in the round is known: memory along the output is not, and with "
                "fewer drafts per round than logged, tokens per round rest on the renewal assumption.",
            ),
        )
        return RunModel(
            format_version=FORMAT_VERSION,
            name=name,
            label="fitted",
            longest_run=longest,
            card=card,
            processes={
                kind: {drafter: fit_rounds(c, longest, n_classes) for drafter, c in group.items()}
                for kind, group in counts.items()
            },
        )
    except ValueError as error:
        if isinstance(error, TraceError):
            raise
        raise TraceError(f"{name}: not a model: {error}") from error
