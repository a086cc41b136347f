"""Importers of values at every output position: published data and the plain format.

What serving engines log are rounds and rates, which are not that; see
:mod:`dsd_env.calibration.acceptance.rounds`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dsd_env.acceptance.source import MAX_RANK, MAX_RUN_LENGTH
from dsd_env.acceptance.traceset import ENTRY_NAME, DrafterTrace, TraceError, TraceSet
from dsd_env.calibration.acceptance.ngram import ngram_proposals
from dsd_env.calibration.acceptance.reading import field, integer, json_lines, number
from dsd_env.workload import RequestTrace

_SPECDECODE_DRAFTERS = {"eagle": "acc_eagle", "ngram": "acc_ngram"}
_SPECDECODE_NGRAM = (3, 7, 20)
"""Shortest and longest n-gram, and most tokens proposed: this rule gives the runs of the files (see docs)."""
_MAX_TOKEN = 2**31 - 1
_SPECDECODE_MODELS = {"eagle": "EAGLE head for Llama-3.1-8B-Instruct", "ngram": "none (n-gram look-up)"}


def _specdecode_row(
    where: str, row: Any, drafters: Sequence[str]
) -> tuple[int, dict[str, list[int]], list[int]]:
    """Return prompt length, run lengths per drafter and, for n-grams, tokens proposed, of one line."""
    tokens = field(row, "prompt_token_ids", where, list)
    prompt = len(tokens)
    columns = {}
    for drafter in drafters:
        name = _SPECDECODE_DRAFTERS[drafter]
        columns[drafter] = field(field(row, name, where, dict), "acc_len", f"{where}: {name}", list)
    size = min(len(column) for column in columns.values())
    runs: dict[str, list[int]] = {}
    for drafter, column in columns.items():
        name = f"{_SPECDECODE_DRAFTERS[drafter]}.acc_len"
        runs[drafter] = [integer(v, name, where, 1, MAX_RUN_LENGTH + 1) - 1 for v in column[:size]]
    proposed: list[int] = []
    if "ngram" in runs:
        output = field(row, "generated_token_ids", where, list)
        text = [
            [integer(v, name, where, 0, _MAX_TOKEN) for v in values]
            for name, values in (("prompt_token_ids", tokens), ("generated_token_ids", output))
        ]
        _, found = ngram_proposals(text[0], text[1], *_SPECDECODE_NGRAM)
        known = [*found.tolist(), *[0] * size][:size]
        # At the few starts where the rule differs from the recorder's, what was accepted was proposed.
        proposed = [max(a, b) for a, b in zip(known, runs["ngram"], strict=True)]
    return prompt, runs, proposed


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
    have all of its positions. How many tokens the n-gram drafter proposed is not in the files, but follows
    from their tokens: runs of 3 to 7 tokens, looked up as :func:`ngram_proposals` does, give the recorded
    run lengths at 99.9 % of the starts. The data carry no licence: import them for your own use, do not
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
    if not drafters or len(set(drafters)) != len(drafters) or set(drafters) - set(_SPECDECODE_DRAFTERS):
        raise TraceError(f"drafters {list(drafters)} must be some of {list(_SPECDECODE_DRAFTERS)}")
    if not isinstance(files, Mapping):
        files = {p.stem.removeprefix("combined_"): p for p in files}
    kinds = tuple(files)
    kind_index: list[int] = []
    prompt_tokens: list[int] = []
    lengths: list[int] = []
    skipped = 0
    runs: dict[str, list[int]] = {d: [] for d in drafters}
    proposed: list[int] = []
    for index, path in enumerate(files.values()):
        for where, row in json_lines(Path(path)):
            prompt, columns, offered = _specdecode_row(where, row, drafters)
            size = len(next(iter(columns.values())))
            if size == 0:
                skipped += 1
                continue
            kind_index.append(index)
            prompt_tokens.append(prompt)
            lengths.append(size)
            for drafter, values in columns.items():
                runs[drafter] += values
            proposed += offered
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
            proposed=np.array(proposed, np.uint8) if drafter == "ngram" else None,
        )
    card: dict[str, Any] = {
        "label": "measured",
        "gamma_max": max(1, *(max(values) for values in (*runs.values(), proposed or [0]))),
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


# ---------------------------------------------------------------------- the plain format

_PLAIN_CARD = (
    "target",
    "drafters",
    "sampling",
    "licence",
    "date",
    "gamma_max",
    "label",
    "prompts",
    "software",
)
_COLUMNS = ("run_length", "accept_prob", "top1_prob", "entropy_nats", "proposed", "draft_prob", "rank")
_MAX_PROMPT = 2**31 - 1


def plain_card(row: Any, where: str) -> dict[str, Any]:
    """Return the card of a plain file, from its first line ``{"card": {...}}``.

    Raises:
        TraceError: Not an object, or a key that a card of the format does not have.
    """
    card: dict[str, Any] = field(row, "card", where, dict)
    if unknown := sorted(set(row) - {"card"} | set(card) - set(_PLAIN_CARD)):
        raise TraceError(
            f"{where}: unknown fields {unknown[:5]} of a card; it may have: {', '.join(_PLAIN_CARD)}"
        )
    if "gamma_max" in card:
        integer(card["gamma_max"], "card.gamma_max", where, 1, MAX_RUN_LENGTH)
    if "drafters" in card and not isinstance(card["drafters"], dict):
        raise TraceError(f"{where}: card.drafters must be an object, name -> description")
    if card.get("label", "measured") not in ("measured", "fitted", "published", "synthetic"):
        raise TraceError(f"{where}: card.label must be measured, fitted, published or synthetic")
    return card


class PlainRow(NamedTuple):
    """A request of a plain file; what its drafters hold is not looked at.

    Attributes:
        where: ``FILE, line N``.
        kind: Its kind.
        prompt_tokens: Length of the prompt.
        drafters: Drafter -> columns.
        id: Its name, if it has one.
        arrival_s: When it came, if that is known.
    """

    where: str
    kind: str
    prompt_tokens: int
    drafters: dict[str, Any]
    id: str | None
    arrival_s: float | None


def plain_rows(path: Path) -> tuple[dict[str, Any], list[PlainRow]]:
    """Read a file of the plain format; what drafters hold is not looked at.

    Returns:
        The card (empty without one), and the requests.

    Raises:
        TraceError: Unreadable, malformed, or without requests.
    """
    card: dict[str, Any] = {}
    rows: list[PlainRow] = []
    for index, (where, row) in enumerate(json_lines(path)):
        if index == 0 and isinstance(row, dict) and "card" in row:
            card = plain_card(row, where)
            continue
        kind = field(row, "kind", where, str)
        if not kind or len(kind) > 100:
            raise TraceError(f"{where}: kind must be a name of 1 to 100 characters")
        prompt = integer(field(row, "prompt_tokens", where), "prompt_tokens", where, 0, _MAX_PROMPT)
        drafters = field(row, "drafters", where, dict)
        if not drafters:
            raise TraceError(f"{where}: drafters is empty")
        if unknown := sorted(set(row) - {"kind", "prompt_tokens", "drafters", "id", "arrival_s"}):
            raise TraceError(f"{where}: unknown fields {unknown[:5]}")
        if rows and set(drafters) != set(rows[0].drafters):
            raise TraceError(
                f"{where}: drafters {sorted(drafters)} differ from the first {sorted(rows[0].drafters)}"
            )
        arrival_s = row.get("arrival_s")
        if arrival_s is not None:
            arrival_s = number(arrival_s, "arrival_s", where, 0.0, 1e8)
        name = row.get("id")
        rows.append(PlainRow(where, kind, prompt, drafters, None if name is None else str(name), arrival_s))
    if not rows:
        raise TraceError(f"{path}: holds no recorded request")
    if len({row.kind for row in rows}) > 255:
        raise TraceError(f"{path}: has more than 255 kinds")
    return card, rows


def _plain_column(where: str, drafter: str, name: str, values: Any) -> list[Any]:
    label = f"drafters.{drafter}.{name}"
    if not isinstance(values, list) or not values:
        raise TraceError(f"{where}: {label} must be a list with a value for every output position")
    if name in ("run_length", "proposed"):
        return [integer(v, label, where, 0, MAX_RUN_LENGTH) for v in values]
    if name == "rank":  # a vocabulary may be larger than the column can say
        return [min(integer(v, label, where, 1, _MAX_PROMPT), MAX_RANK) for v in values]
    # 60000: what float16 can hold.
    return [number(v, label, where, 0.0, 60000.0 if name == "entropy_nats" else 1.0) for v in values]


def import_plain(path: Path, name: str | None = None) -> TraceSet:
    """Import a trace set from the plain format: JSON lines, one request each.

    A line is ``{"kind": K, "prompt_tokens": N, "drafters": {D: {"run_length": [...]}}}``, or ``accept_prob``
    in place of ``run_length``; beside it may stand ``top1_prob``, ``entropy_nats``, ``draft_prob``, ``rank``
    and, with ``run_length``, ``proposed``. All lists of a line are equally long, one value per output
    position. The first line may be ``{"card": {...}}``. ``rounds`` of
    a run that took place are no such thing: see
    :func:`dsd_env.calibration.acceptance.rounds.read_plain_rounds`.

    Args:
        path: The file.
        name: Name of the trace set; default the file's.

    Raises:
        TraceError: Unreadable, malformed, out of range, or inconsistent; the message names file, line and
            field.
    """
    path = Path(path)
    card, rows = plain_rows(path)
    kinds = tuple(dict.fromkeys(row.kind for row in rows))
    lengths: list[int] = []
    columns: dict[str, dict[str, list[Any]]] = {}
    for where, _, _, drafters, *_ in rows:
        sizes: dict[str, int] = {}
        for drafter, found in drafters.items():
            if not isinstance(found, dict):
                raise TraceError(f"{where}: drafters.{drafter} must be an object")
            if "rounds" in found:
                raise TraceError(
                    f"{where}: drafters.{drafter} has rounds, which do not give runs at every start; "
                    "fit a model to them (read_plain_rounds)"
                )
            if unknown := sorted(set(found) - set(_COLUMNS)):
                raise TraceError(f"{where}: drafters.{drafter} has unknown fields {unknown[:5]}")
            if ("run_length" in found) == ("accept_prob" in found):
                raise TraceError(f"{where}: drafters.{drafter} must have either run_length or accept_prob")
            before = columns.setdefault(drafter, {column: [] for column in found})
            if set(before) != set(found):
                raise TraceError(
                    f"{where}: drafters.{drafter} has {sorted(found)}, the first line {sorted(before)}"
                )
            for column, values in found.items():
                numbers = _plain_column(where, drafter, column, values)
                before[column] += numbers
                sizes[f"{drafter}.{column}"] = len(numbers)
        if len(set(sizes.values())) != 1:
            raise TraceError(f"{where}: lists differ in length: {sizes}")
        lengths.append(next(iter(sizes.values())))
    traces = {drafter: _plain_trace(found) for drafter, found in columns.items()}
    given = card.get("drafters", {})
    full: dict[str, Any] = {
        "label": "measured",
        "target": {"model": "not stated"},
        "sampling": "not stated",
        "prompts": [],
        "software": {"origin": "imported from the plain format"},
        "date": "not stated",
        "licence": "not stated",
        **card,
        **({"entries": ids} if (ids := _ids(rows)) is not None else {}),
        "drafters": {d: given.get(d, {"model": "not stated"}) for d in traces},
    }
    try:
        return TraceSet(
            name=path.stem if name is None else name,
            kinds=kinds,
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            kind=np.array([kinds.index(row.kind) for row in rows], np.uint8),
            prompt_tokens=np.array([row.prompt_tokens for row in rows], np.int32),
            drafters=traces,
            card=full,
        )
    except TraceError as error:
        raise TraceError(f"{path}: {error}") from error


def _ids(rows: Sequence[PlainRow]) -> list[str] | None:
    """Return the names of the requests, if all have one, of their own, that a trace of requests can hold."""
    ids = [row.id for row in rows if row.id is not None and ENTRY_NAME.fullmatch(row.id)]
    return ids if len(set(ids)) == len(rows) else None


def plain_requests(path: Path) -> RequestTrace:
    """Return when the requests of a plain file came, how long they were, and which recorded one each is.

    Saved as CSV (:func:`dsd_env.workload.save_trace`) beside the trace set of :func:`import_plain`, it is
    replayed with the acceptance that every request had.

    Args:
        path: The file; every line has ``arrival_s``, not falling.

    Raises:
        TraceError: As :func:`import_plain`, or times that are missing or fall.
    """
    path = Path(path)
    trace = import_plain(path)
    _, rows = plain_rows(path)
    times: list[float] = []
    for row in rows:
        if row.arrival_s is None:
            raise TraceError(f"{row.where}: lacks arrival_s, so it cannot be replayed as a workload")
        if times and row.arrival_s < times[-1]:
            raise TraceError(f"{row.where}: arrival_s is {row.arrival_s:g}, before the line above it")
        if row.prompt_tokens < 1:
            raise TraceError(f"{row.where}: prompt_tokens is 0, a workload needs at least 1")
        times.append(row.arrival_s)
    return RequestTrace(
        np.array(times) - times[0],
        trace.prompt_tokens.astype(np.int64),
        trace.lengths.astype(np.int64),
        kind=trace.kind.astype(np.int64),
        kinds=trace.kinds,
        recorded=np.arange(len(rows)),
        recordings=trace.names,
    )


def _plain_trace(columns: Mapping[str, list[Any]]) -> DrafterTrace:
    """Return a drafter's arrays; confidence that was not recorded becomes constants."""
    runs, accept = columns.get("run_length"), columns.get("accept_prob")
    values = np.array(runs if runs is not None else accept, dtype=np.float64)
    share = float(np.clip((values > 0).mean() if runs is not None else values.mean(), 0.01, 1.0))
    n = len(values)
    return DrafterTrace(
        run_length=None if runs is None else np.array(runs, np.uint8),
        accept_prob=None if accept is None else np.array(accept, np.float32),
        top1_prob=np.array(columns.get("top1_prob", [share] * n), np.float16),
        entropy_nats=np.array(columns.get("entropy_nats", [-np.log(share)] * n), np.float16),
        proposed=np.array(columns["proposed"], np.uint8) if "proposed" in columns else None,
        draft_prob=np.array(columns["draft_prob"], np.float32) if "draft_prob" in columns else None,
        rank=np.array(columns["rank"], np.uint8) if "rank" in columns else None,
    )
