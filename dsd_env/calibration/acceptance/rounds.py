"""Models from what serving engines log: rounds and acceptance rates by place, not runs at every start.

An engine reports what the rounds that it ran accepted. That says nothing of the starts in between, so no
trace set can be made of it. What can be fitted is a renewal model: a round's ``j``-th draft is accepted with
a probability ``a_j`` given that those before it were, and after a mismatch all begins anew. With as many
drafts per round as were logged, its tokens per round are those logged; with fewer, they are what the model
makes of it. Logs with one record per request also give the spread between requests (a mixture of classes, by
EM).

The readers of engines' files are in :mod:`dsd_env.calibration.acceptance.vllm`,
:mod:`dsd_env.calibration.acceptance.sglang` and :mod:`dsd_env.calibration.acceptance.aiperf`. The results are
:class:`~dsd_env.acceptance.runmodel.RunModel` s, labelled ``fitted``, for the scenario's ``source: fitted``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

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
from dsd_env.acceptance.traceset import TraceError
from dsd_env.calibration.acceptance.aiperf import read_aiperf
from dsd_env.calibration.acceptance.counts import MAX_PLACES, Floats, RoundCounts, file_notes
from dsd_env.calibration.acceptance.importers import plain_rows
from dsd_env.calibration.acceptance.reading import field, integer, json_messages, read_text
from dsd_env.calibration.acceptance.sglang import read_sglang
from dsd_env.calibration.acceptance.vllm import (
    read_vllm_bench,
    read_vllm_log,
    read_vllm_metrics,
    read_vllm_responses,
)

MAX_CLASSES = 4
"""Most classes of requests that a fit to logged rounds tries."""
FORMATS = ("vllm-log", "vllm-metrics", "vllm-bench", "vllm-responses", "sglang", "aiperf", "plain")
"""What a file of rounds can be."""

__all__ = [
    "EXTRAPOLATED_PLACES",
    "FORMATS",
    "MAX_CLASSES",
    "RoundCounts",
    "fit_rounds",
    "format_of",
    "model_from_rounds",
    "read_aiperf",
    "read_plain_rounds",
    "read_sglang",
    "read_vllm_bench",
    "read_vllm_log",
    "read_vllm_metrics",
    "read_vllm_responses",
]


def format_of(path: Path) -> str:
    """Return the format of a file, by what is in it.

    Raises:
        TraceError: None of them, or it cannot be read.
    """
    content = read_text(path)
    if "SpecDecoding metrics:" in content:
        return "vllm-log"
    if re.search(r"^\s*vllm[:_]spec_decode_num_", content, re.MULTILINE):
        return "vllm-metrics"
    marks = {
        "aiperf": r'"spec_decode_acceptance"|"benchmark_phase"',
        "vllm-bench": r'"spec_decode_num_drafts"|"total_output_tokens"',
        "vllm-responses": r'"speculative_decoding"|"acceptance_histogram"',
        "sglang": r'"spec_(?:verify_ct|accept|correct_drafts)\w*"|"meta_info"|"sglext"',
        "plain": r'"rounds"',
    }
    for name, pattern in marks.items():
        if re.search(pattern, content):
            return name
    json_messages(path)  # says what it is if it is no JSON at all
    raise TraceError(
        f"{path}: holds nothing of speculative decoding that is known, of vLLM (log, /metrics, benchmark, "
        "responses), SGLang (responses), AIPerf (profile_export.jsonl) or the plain format with rounds; "
        "--format says what it should be. Traces with run lengths are for scripts/import_traces.py"
    )


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
    for where, kind, _, drafters, *_ in rows:
        for drafter, values in drafters.items():
            label = f"drafters.{drafter}.rounds"
            rounds = field(values, "rounds", f"{where}: drafters.{drafter}", list)
            if set(values) != {"rounds"}:
                raise TraceError(f"{where}: drafters.{drafter} must have rounds alone")
            tried, accepted, tokens = np.zeros(MAX_PLACES), np.zeros(MAX_PLACES), 0
            for pair in rounds:
                if not isinstance(pair, list) or len(pair) != 2:
                    raise TraceError(f"{where}: {label} must hold pairs [drafted, accepted]")
                drafted = integer(pair[0], f"{label} (drafted)", where, 0, MAX_PLACES)
                run = integer(pair[1], f"{label} (accepted)", where, 0, MAX_PLACES)
                if run > drafted:
                    raise TraceError(f"{where}: {label} has {run} accepted of {drafted} drafted")
                tried[: min(run + 1, drafted)] += 1.0
                accepted[:run] += 1.0
                tokens += run + 1
            found.setdefault(kind, {}).setdefault(drafter, []).append((tried, accepted, tokens))
    result: dict[str, dict[str, RoundCounts]] = {}
    for kind, group in found.items():
        for drafter, parts in group.items():
            sound = [part for part in parts if part[0][0] > 0] or parts
            left_out = len(parts) - len(sound)
            table = np.array([part[0] for part in sound])
            places = max(1, int(np.flatnonzero(table.sum(axis=0))[-1]) + 1 if table.any() else 1)
            result.setdefault(kind, {})[drafter] = RoundCounts(
                table[:, :places],
                np.array([part[1] for part in sound])[:, :places],
                np.array([part[2] for part in sound], np.int64),
                True,
                f"{path.name}, {kind}, {drafter}",
                left_out,
                tuple(file_notes(left_out, 0, 0)),
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
    command: str = "dsd_env.calibration.acceptance.rounds.model_from_rounds",
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
                **({"left_out": c.left_out} if c.left_out else {}),
                **({"notes": list(c.notes)} if c.notes else {}),
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
