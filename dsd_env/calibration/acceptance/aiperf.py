"""Reader of what AIPerf exports per request: ``profile_export.jsonl`` with ``spec_decode_acceptance``.

AIPerf asks the server for acceptance per request and writes it beside the request's times, in the form of
vLLM's per-request metrics, but for a sparse histogram. The fields are those of
``aiperf/common/models/spec_decode_models.py`` and ``record_models.py`` at commit 0786f0c.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsd_env.acceptance.traceset import TraceError
from dsd_env.calibration.acceptance import reading
from dsd_env.calibration.acceptance.counts import (
    MAX_COUNT,
    MAX_PLACES,
    Request,
    RoundCounts,
    Shortfall,
    count_of,
    per_request,
)
from dsd_env.calibration.acceptance.reading import integer
from dsd_env.calibration.acceptance.vllm import request_rounds

_FIELD = "spec_decode_acceptance"


def _histogram(values: Mapping[str, Any], where: str) -> dict[int, int]:
    """Return accepted drafts -> rounds, of a sparse histogram."""
    name = "acceptance_histogram"
    found = reading.field(values, name, where, dict)
    counts: dict[int, int] = {}
    for key, value in found.items():
        if not re.fullmatch(r"[0-9]{1,3}", key) or int(key) > MAX_PLACES:
            raise TraceError(f"{where}: {name} has the key {key[:20]!r}, must be 0..{MAX_PLACES}")
        if int(key) in counts:
            raise TraceError(f"{where}: {name} gives {int(key)} twice")
        counts[int(key)] = integer(value, f"{name}.{key}", where, 0, MAX_COUNT)
    return counts


def _places(values: Mapping[str, Any], counts: Mapping[int, int], where: str) -> int:
    """Return the most drafts of a round: as configured or, where that is not said, as rounds drafted."""
    configured = values.get("num_spec_tokens")
    if configured is not None:
        return integer(configured, "num_spec_tokens", where, 1, MAX_PLACES)
    drafted = values.get("per_step_drafted")
    if drafted is None:
        raise TraceError(
            f"{where}: num_spec_tokens and per_step_drafted are null: nothing says how many drafts "
            "a round had"
        )
    if not isinstance(drafted, list):
        raise TraceError(
            f"{where}: per_step_drafted must be a list of integers, found {type(drafted).__name__}"
        )
    most = [integer(n, f"per_step_drafted.{i}", where, 0, MAX_PLACES) for i, n in enumerate(drafted)]
    return max([1, *most, *counts])


def _request(values: Mapping[str, Any], where: str, short: Shortfall) -> Request | None:
    counts = _histogram(values, where)
    places = _places(values, counts, where)
    if counts and max(counts) > places:
        raise TraceError(
            f"{where}: acceptance_histogram has the key {max(counts)!r}, rounds have {places} drafts at most"
        )
    dense = {
        **values,
        "num_spec_tokens": places,
        "acceptance_histogram": [counts.get(j, 0) for j in range(places + 1)],
    }
    tokens = values.get("completion_tokens")
    if tokens is not None:
        tokens = integer(tokens, "completion_tokens", where, 0, MAX_COUNT)
    return request_rounds(dense, tokens, where, short)


def read_aiperf(path: Path) -> RoundCounts:
    """Read the records of AIPerf's ``profile_export.jsonl``.

    Read is ``spec_decode_acceptance`` of every record of the profiling phase: ``acceptance_histogram``
    (accepted drafts -> rounds), ``num_spec_tokens`` (places; where it is null, the most that a round
    drafted), ``num_draft_tokens``, and ``per_step_drafted`` with ``per_step_accepted``. The other fields are
    checked. Warm-up requests, and those that failed, were cancelled or have no acceptance, are left out.

    Raises:
        TraceError: No such records, values that cannot be, or rounds that drafted fewer tokens than the
            most in a file that does not say which.
    """
    path = Path(path)
    short = Shortfall("Have the server report each round: vLLM's --per-request-spec-decode-metrics detailed.")
    requests: list[Request] = []
    without = {"of the warm-up": 0, "failed or cancelled": 0, "without acceptance": 0}
    for where, row in reading.json_lines(path):
        meta = reading.field(row, "metadata", where, dict)
        values = row.get(_FIELD)
        if meta.get("benchmark_phase") == "warmup":
            without["of the warm-up"] += 1
        elif row.get("error") or meta.get("was_cancelled"):
            without["failed or cancelled"] += 1
        elif values is None:
            without["without acceptance"] += 1
        else:
            if not isinstance(values, Mapping):
                raise TraceError(f"{where}: {_FIELD} must be a JSON object, found {type(values).__name__}")
            request = _request(values, f"{where}: {_FIELD}", short)
            if request is None:
                without["without acceptance"] += 1
            else:
                requests.append(request)
    left_out = sum(without.values())
    reasons = [f"{count_of(n, 'request')} left out: {why}" for why, n in without.items() if n]
    if not requests:
        raise TraceError(
            f"{path}: holds no request with rounds ({'; '.join(reasons) or 'no record'}): {_FIELD} is there "
            "if the server reports acceptance per request (vLLM: --per-request-spec-decode-metrics)"
        )
    places = max(len(request.tried) for request in requests)
    reached_last = sum(float(request.tried[-1]) for request in requests)
    notes = [*reasons, *short.notes(reached_last)]
    return per_request(requests, places, f"AIPerf records {path.name}", left_out, notes)
