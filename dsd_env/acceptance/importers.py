"""Importers of recordings that others have published."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dsd_env.acceptance.source import MAX_RUN_LENGTH
from dsd_env.acceptance.traceset import DrafterTrace, TraceError, TraceSet

_SPECDECODE_DRAFTERS = {"eagle": "acc_eagle", "ngram": "acc_ngram"}
_SPECDECODE_MODELS = {"eagle": "EAGLE head for Llama-3.1-8B-Instruct", "ngram": "none (n-gram look-up)"}


def _specdecode_row(
    path: Path, number: int, line: str, drafters: Sequence[str]
) -> tuple[int, dict[str, list[int]]]:
    """Return prompt length and run lengths per drafter of one line."""
    where = f"{path}, line {number}"
    try:
        row = json.loads(line)
        prompt = len(row["prompt_token_ids"])
        columns = {d: row[_SPECDECODE_DRAFTERS[d]]["acc_len"] for d in drafters}
        size = min(len(column) for column in columns.values())
    except json.JSONDecodeError as error:
        raise TraceError(f"{where}: not JSON: {error}") from error
    except (KeyError, TypeError) as error:
        raise TraceError(f"{where}: lacks a field of the format: {error}") from error
    runs: dict[str, list[int]] = {}
    for drafter, column in columns.items():
        for value in column[:size]:
            if type(value) is not int or not 1 <= value <= MAX_RUN_LENGTH + 1:
                raise TraceError(
                    f"{where}: {_SPECDECODE_DRAFTERS[drafter]}.acc_len holds {value!r}, "
                    f"must be an integer in 1..{MAX_RUN_LENGTH + 1}"
                )
        runs[drafter] = [value - 1 for value in column[:size]]
    return prompt, runs


def import_specdecode_bench(
    files: Mapping[str, Path] | Sequence[Path],
    name: str = "specdecode_bench_llama-3.1-8b",
    drafters: Sequence[str] = tuple(_SPECDECODE_DRAFTERS),
) -> TraceSet:
    """Import the acceptance lengths published with "Speculative Decoding: Performance or Illusion?".

    The format (arXiv 2601.11580, github.com/SpecDecode-Bench/simulator) is one JSON object a line with
    ``prompt_token_ids``, ``generated_token_ids``, ``acc_eagle.acc_len``, ``acc_ngram.acc_len``, where
    ``acc_len[s]`` is one more than the drafts accepted by a round that starts at output position
    ``s``. The two drafters' lists differ in length by a few positions in many requests and by more in
    some; a request is cut to the shortest list of the drafters asked for, so ask for one drafter to
    have all of its positions. The data carry no licence: import them for your own use, do not
    redistribute them or what is made from them.

    Confidence was not recorded. Its columns are constants per drafter, the share ``p`` of starts
    whose first draft is accepted and ``-ln p``, which tell a confidence rule nothing.

    Args:
        files: Kind -> file; or files named ``combined_KIND.jsonl``.
        name: Name of the trace set.
        drafters: ``eagle``, ``ngram`` or both.

    Raises:
        TraceError: A file is missing, empty or malformed, or a drafter is unknown.
    """
    if not drafters or set(drafters) - set(_SPECDECODE_DRAFTERS):
        raise TraceError(f"drafters {list(drafters)} must be some of {list(_SPECDECODE_DRAFTERS)}")
    if not isinstance(files, Mapping):
        files = {p.stem.removeprefix("combined_"): p for p in files}
    kinds = tuple(files)
    kind_index: list[int] = []
    prompt_tokens: list[int] = []
    lengths: list[int] = []
    skipped = 0
    runs: dict[str, list[int]] = {d: [] for d in drafters}
    for index, path in enumerate(files.values()):
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise TraceError(f"{path}: cannot be read: {error}") from error
        for number, line in enumerate(text.splitlines(), start=1):
            if not line.strip():
                continue
            prompt, columns = _specdecode_row(path, number, line, drafters)
            size = len(next(iter(columns.values())))
            if size == 0:
                skipped += 1
                continue
            kind_index.append(index)
            prompt_tokens.append(prompt)
            lengths.append(size)
            for drafter, values in columns.items():
                runs[drafter] += values
        if index not in kind_index:
            raise TraceError(f"{path}: holds no recorded request")
    if not lengths:
        raise TraceError("no files to import")
    total = sum(lengths)
    traces: dict[str, DrafterTrace] = {}
    for drafter, values in runs.items():
        accepted = float(np.clip(np.mean(np.array(values) > 0), 0.01, 1.0))
        traces[drafter] = DrafterTrace(
            run_length=np.array(values, np.uint8),
            accept_prob=None,
            top1_prob=np.full(total, accepted, np.float16),
            entropy_nats=np.full(total, -np.log(accepted), np.float16),
        )
    card: dict[str, Any] = {
        "label": "measured",
        "gamma_max": max(1, *(max(values) for values in runs.values())),
        "target": {"model": "Llama-3.1-8B-Instruct", "device": "one H100"},
        "drafters": {d: {"model": _SPECDECODE_MODELS[d], "form": "run_length"} for d in drafters},
        "confidence": "not recorded; constants stand in",
        "gamma_max_note": "the longest run found in the files; the recorder's own limit is not stated",
        "skipped_empty_requests": skipped,
        "sampling": "not stated in the files",
        "prompts": [{"name": k, "licence": "not stated"} for k in kinds],
        "software": {"origin": "github.com/SpecDecode-Bench/simulator, arXiv 2601.11580"},
        "date": "not stated",
        "licence": "none stated: for your own use only, not for redistribution",
    }
    return TraceSet(
        name=name,
        kinds=kinds,
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        kind=np.array(kind_index, np.uint8),
        prompt_tokens=np.array(prompt_tokens, np.int32),
        drafters=traces,
        card=card,
    )
