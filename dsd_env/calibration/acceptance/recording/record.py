"""The recording itself: target runs, then drafters, each request in a shard file of its own.

A work directory holds ``settings.json``, ``target/*.json`` and ``draft/*.json``, a file for every
request and temperature. Each is written to a temporary name and moved into place, so a recording can
be interrupted at any time and started again with the same command: what is there is not computed
twice.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from dsd_env.acceptance.traceset import DrafterTrace, TraceSet
from dsd_env.calibration.acceptance.recording.drafters import (
    LOOKUP_ENTROPY_NATS,
    LOOKUP_TOP1_PROB,
    DraftRecord,
    TextDrafter,
    record_lookup,
)
from dsd_env.calibration.acceptance.recording.models import LanguageModel
from dsd_env.calibration.acceptance.recording.prefix import PrefixDrafter, PrefixRecord
from dsd_env.calibration.acceptance.recording.prompts import PROMPT_SETS, Prompt
from dsd_env.calibration.acceptance.recording.target import Row, TargetRun, sampling_key, target_runs
from dsd_env.files import write_text

LOOKUP = "prompt-lookup"


class RecordingError(RuntimeError):
    """A recording cannot go on."""


@dataclass(frozen=True)
class Settings:
    """What defines a recording; a work directory belongs to one of these.

    Attributes:
        target: Target as named on the command line.
        drafter: Draft model as named on the command line.
        dtype: Compute dtype of both.
        max_tokens: Most starts recorded per request.
        gamma_max: Longest run recorded.
        max_draft_tokens: Most tokens of its own that a draft model with another vocabulary makes in one
            proposal.
        look_ahead: Tokens that the target runs further than ``max_tokens``, so that runs that begin near
            the end are seen whole.
        seed: Seed of the target's sampling.
    """

    target: str
    drafter: str
    dtype: str = "float32"
    max_tokens: int = 128
    gamma_max: int = 16
    max_draft_tokens: int = 40
    look_ahead: int = 16
    seed: int = 0


@dataclass(frozen=True)
class WorkDir:
    """The files of a recording under way."""

    root: Path

    def open(self, settings: Settings) -> None:
        """Create the directory or check that it belongs to the same settings.

        Raises:
            RecordingError: It belongs to other settings.
        """
        for part in ("target", "draft"):
            (self.root / part).mkdir(parents=True, exist_ok=True)
        path = self.root / "settings.json"
        if not path.exists():
            write_json(path, asdict(settings))
        elif (found := json.loads(path.read_text())) != asdict(settings):
            raise RecordingError(
                f"{self.root} holds a recording with other settings ({found}); "
                "give the same ones to go on with it, or another --work directory"
            )

    def shard(self, part: str, prompt: Prompt, temperature: float = 0.0) -> Path:
        """Return the shard of one request; its name is made of the request's id and text."""
        text = f"{prompt.text}\0{prompt.reply_prefix}" if prompt.reply_prefix else prompt.text
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        safe = "".join(c if c.isalnum() or c in "-._" else "_" for c in prompt.id)
        sampled = f"__T{temperature:g}" if temperature > 0 else ""
        return self.root / part / f"{prompt.kind}__{safe}__{digest}{sampled}.json"

    def run(self, prompt: Prompt, temperature: float = 0.0) -> TargetRun:
        """Return the target's run of one request."""
        row = json.loads(self.shard("target", prompt, temperature).read_text())
        return TargetRun(**{f.name: row[f.name] for f in fields(TargetRun)})


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, on one line: most of it is long lists of numbers."""
    write_text(path, json.dumps(value) + "\n")


def select_prompts(
    prompts: dict[str, list[Prompt]],
    tokens_of: Callable[[str, str], Sequence[int]],
    per_kind: int,
    max_prompt_tokens: int,
) -> list[Prompt]:
    """Take the first ``per_kind`` prompts of every kind that are short enough, in file order."""
    chosen: list[Prompt] = []
    for rows in prompts.values():
        taken = 0
        for prompt in rows:
            if taken == per_kind:
                break
            if len(tokens_of(prompt.text, prompt.reply_prefix)) <= max_prompt_tokens:
                chosen.append(prompt)
                taken += 1
    return chosen


def make_batches(lengths: Sequence[int], batch_size: int, batch_tokens: int, extra: int) -> list[list[int]]:
    """Group requests of similar length such that a batch's KV cache stays within a budget.

    Args:
        lengths: Prompt lengths, tokens.
        batch_size: Most requests in a batch.
        batch_tokens: Most tokens in a batch, padding and output included.
        extra: Output tokens added to every request.

    Returns:
        Lists of indices into ``lengths``.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batches:
            width = lengths[batches[-1][0]] + extra
            size = len(batches[-1]) + 1
            if size <= batch_size and size * width <= batch_tokens:
                batches[-1].append(index)
                continue
        batches.append([index])
    return batches


def record_targets(
    target: LanguageModel,
    prompts: Sequence[Prompt],
    work: WorkDir,
    settings: Settings,
    *,
    temperatures: Sequence[float] = (0.0,),
    batch_size: int = 32,
    batch_tokens: int = 12_000,
    progress: Callable[[int], None] = lambda _: None,
    status: Callable[[str], None] = lambda _: None,
) -> None:
    """Decode every prompt, at every temperature for which it has no target shard yet.

    Args:
        target: The target.
        prompts: Requests to record.
        work: Work directory.
        settings: Settings of the recording.
        temperatures: 0 is greedy.
        batch_size: Most runs decoded together: requests times temperatures.
        batch_tokens: Most tokens of KV cache in a batch.
        progress: Called with the number of requests done.
        status: Called after every forward pass with a few words on where it stands.
    """
    todo = {p: [t for t in temperatures if not work.shard("target", p, t).exists()] for p in prompts}
    missing = [p for p in prompts if todo[p]]
    progress(len(prompts) - len(missing))
    limit = settings.max_tokens + settings.look_ahead
    for kind in dict.fromkeys(p.kind for p in missing):
        prompts_of_kind = [p for p in missing if p.kind == kind]
        ids = [target.encode_chat(p.text, p.reply_prefix) for p in prompts_of_kind]
        most = max(1, batch_size // len(temperatures))
        budget = batch_tokens // len(temperatures)
        for batch in make_batches([len(i) for i in ids], most, budget, limit):
            chosen = [prompts_of_kind[i] for i in batch]
            # Every prompt is read once and continued at each of its temperatures.
            rows = [
                (p, Row(k, t, sampling_key(settings.seed, f"{p.id}\0{p.text}\0{p.reply_prefix}", t)))
                for k, p in enumerate(chosen)
                for t in todo[p]
            ]
            runs = target_runs(target, [ids[i] for i in batch], [row for _, row in rows], limit, status)
            for (prompt, row), run in zip(rows, runs, strict=True):
                write_json(
                    work.shard("target", prompt, row.temperature),
                    {"id": prompt.id, "kind": prompt.kind, "temperature": row.temperature, **asdict(run)},
                )
            progress(len(batch))


def record_drafters(
    drafter: TextDrafter | PrefixDrafter,
    prompts: Sequence[Prompt],
    work: WorkDir,
    settings: Settings,
    *,
    temperatures: Sequence[float] = (0.0,),
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Record both drafters for every request that has a target shard and no draft shard yet.

    Raises:
        RecordingError: The drafter has another vocabulary and a temperature is not 0.
    """
    check_temperatures(drafter, temperatures)
    for prompt in prompts:
        missing = [
            t
            for t in temperatures
            if work.shard("target", prompt, t).exists() and not work.shard("draft", prompt, t).exists()
        ]
        runs = {t: work.run(prompt, t) for t in missing}
        full = [t for t in missing if runs[t].output_ids]
        records: dict[float, dict[str, dict[str, list[Any]]]] = {t: {} for t in missing}
        n = settings.max_tokens
        if full and isinstance(drafter, PrefixDrafter):
            for t, record in zip(full, drafter.record([runs[t] for t in full], full, n), strict=True):
                records[t][drafter.draft.name] = _columns(record)
        for t in full:
            run = runs[t]
            positions = min(len(run.output_ids), n)
            if isinstance(drafter, TextDrafter):
                text = drafter.record(prompt, run.output_ids, positions, settings.gamma_max)
                records[t][drafter.draft.name] = _columns(text)
            lookup = record_lookup(run.prompt_ids, run.output_ids, positions, settings.gamma_max)
            records[t][LOOKUP] = _columns(lookup)
        for t in missing:
            write_json(work.shard("draft", prompt, t), records[t])
        progress(1)


def check_temperatures(drafter: TextDrafter | PrefixDrafter, temperatures: Sequence[float]) -> None:
    """Refuse to sample with a drafter of another vocabulary.

    Raises:
        RecordingError: It is one, and a temperature is not 0.
    """
    if isinstance(drafter, TextDrafter) and any(t > 0 for t in temperatures):
        raise RecordingError(
            f"{drafter.draft.name} and {drafter.target.name} have different vocabularies: speculative "
            "sampling compares probabilities of the same tokens, so such a pair can only be recorded at "
            "temperature 0"
        )


def _columns(record: DraftRecord | PrefixRecord) -> dict[str, list[Any]]:
    """Return the arrays of a record as lists."""
    arrays = {f.name: getattr(record, f.name) for f in fields(record)}
    return {name: values.tolist() for name, values in arrays.items() if values is not None}


def software_versions() -> dict[str, str]:
    """Return the versions that decide the numbers of a recording."""
    versions = {"python": platform.python_version(), "machine": platform.machine()}
    for package in ("torch", "transformers", "tokenizers", "gguf", "numpy", "dsd-env"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed as a package"
    return versions


def assemble(
    name: str,
    prompts: Sequence[Prompt],
    work: WorkDir,
    settings: Settings,
    target_card: dict[str, Any],
    drafter_card: dict[str, Any],
    drafter_name: str,
    licence: str,
    temperature: float = 0.0,
) -> TraceSet:
    """Make a trace set of every request whose shards at one temperature are complete.

    Raises:
        RecordingError: Not one request is complete.
    """
    kinds: list[str] = []
    kind_index: list[int] = []
    prompt_tokens: list[int] = []
    entries: list[str] = []
    finished = 0
    margins: list[float] = []
    columns: dict[str, dict[str, list[Any]]] = {drafter_name: {}, LOOKUP: {}}
    lengths: list[int] = []
    for prompt in prompts:
        paths = [work.shard(part, prompt, temperature) for part in ("target", "draft")]
        if not all(p.exists() for p in paths):
            continue
        run, drafts = (json.loads(p.read_text()) for p in paths)
        if not drafts:  # the target ended its turn at once
            continue
        if prompt.kind not in kinds:
            kinds.append(prompt.kind)
        kind_index.append(kinds.index(prompt.kind))
        prompt_tokens.append(len(run["prompt_ids"]))
        entries.append(prompt.id)
        lengths.append(len(drafts[LOOKUP]["run_length"]))
        finished += bool(run["finished"] and len(run["output_ids"]) <= settings.max_tokens)
        margins += run["margins"][: lengths[-1]]
        if "proposed" not in drafts[LOOKUP]:  # a work directory from before it was kept
            lookup = record_lookup(run["prompt_ids"], run["output_ids"], lengths[-1], settings.gamma_max)
            drafts[LOOKUP] = _columns(lookup)
        for d, column in columns.items():
            if len(entries) > 1 and set(drafts[d]) != set(column):
                raise RecordingError(
                    f"{paths[1]} has {sorted(drafts[d])} of {d}, shards before it {sorted(column)}: some are "
                    f"of another version of the recorder. Delete {work.root / 'draft'} and record the "
                    "drafters again; the target's runs are kept"
                )
            for field, values in drafts[d].items():
                column.setdefault(field, []).extend(values)
    if not entries:
        raise RecordingError(f"{work.root}: no request is complete yet")
    form = "run_length" if "run_length" in columns[drafter_name] else "accept_prob"
    used = {p.split("/")[0] for p in entries}
    known = {s.name for s in PROMPT_SETS}
    card: dict[str, Any] = {
        "label": "measured",
        "description": "What drafters do at every output position of a real target's own "
        + ("greedy runs." if temperature == 0 else "sampled runs."),
        "gamma_max": settings.gamma_max,
        "target": target_card,
        "drafters": {
            drafter_name: {
                **drafter_card,
                "form": form,
                **_drafter_facts(form, settings, temperature),
            },
            LOOKUP: {
                "model": "none (prompt look-up)",
                "form": "run_length",
                "proposal": "What followed the most recent earlier occurrence of the last n target tokens "
                "in prompt and output, for the longest n of 3, 2, 1 that has one; nothing without.",
                "confidence": "constants by n (0: no match)",
                "top1_prob_by_n": {str(n): round(p, 6) for n, p in LOOKUP_TOP1_PROB.items()},
                "entropy_nats_by_n": {str(n): round(h, 6) for n, h in LOOKUP_ENTROPY_NATS.items()},
            },
        },
        "sampling": (
            "greedy (argmax of the target; ties to the lowest token id)"
            if temperature == 0
            else f"temperature {temperature:g}, whole vocabulary (no top-k, no top-p), seed {settings.seed}"
        ),
        "temperature": temperature,
        "max_tokens": settings.max_tokens,
        "look_ahead_tokens": settings.look_ahead,
        "requests": len(entries),
        "ended_by_target": finished,
        "target_logit_margin": {
            "min": float(np.min(margins)),
            "share_below_1e-3": float(np.mean(np.array(margins) < 1e-3)),
        },
        "prompts": [
            {
                "name": s.name,
                "kind": s.kind,
                "licence": s.licence,
                "origin": s.origin,
                "instruction": s.instruction,
                "reply_prefix": s.reply_prefix,
            }
            for s in PROMPT_SETS
            if s.name in used
        ]
        + [{"name": n, "licence": "not recorded", "origin": "user's file"} for n in sorted(used - known)],
        "entries": entries,
        "software": software_versions(),
        "date": datetime.now(UTC).date().isoformat(),
        "licence": licence,
    }
    return TraceSet(
        name=name,
        kinds=tuple(kinds),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        kind=np.array(kind_index, np.uint8),
        prompt_tokens=np.array(prompt_tokens, np.int32),
        drafters={
            d: DrafterTrace(
                run_length=np.array(c["run_length"], np.uint8) if "run_length" in c else None,
                accept_prob=np.array(c["accept_prob"], np.float32) if "accept_prob" in c else None,
                top1_prob=np.array(c["top1_prob"], np.float16),
                entropy_nats=np.array(c["entropy_nats"], np.float16),
                proposed=np.array(c["proposed"], np.uint8) if "proposed" in c else None,
                draft_prob=np.array(c["draft_prob"], np.float32) if "draft_prob" in c else None,
                rank=np.array(c["rank"], np.uint8) if "rank" in c else None,
            )
            for d, c in columns.items()
        },
        card=card,
    )


def _drafter_facts(form: str, settings: Settings, temperature: float) -> dict[str, str]:
    """Return what the card says of a draft model's proposals and confidence."""
    if form == "run_length":
        return {
            "proposal": "The drafter reads the message in its own chat template and the committed text, and "
            f"decodes greedily to the end of its turn or {settings.max_draft_tokens} of its tokens; "
            "that text, tokenised on its own by the target's tokenizer, is the proposal.",
            "confidence": "top-1 probability and entropy (nats) of its first drafted token, "
            "in its own vocabulary, at temperature 1",
        }
    decodes = "decodes greedily" if temperature == 0 else f"samples at temperature {temperature:g}"
    return {
        "proposal": f"The drafter reads the tokens that the target reads and {decodes}.",
        "confidence": "top-1 probability and entropy (nats) of its distribution on the true prefix, "
        f"at temperature {temperature or 1.0:g}",
        "committed_token": "draft_prob: its probability in the drafter's distribution (greedy: 1 if it is "
        "the most likely one, else 0); rank: its place there, from 1 to 255 and more",
    }
