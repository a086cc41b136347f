#!/usr/bin/env python
r"""Check a recording against speculative decoding done directly with the same models and prompts.

Greedy: every round must accept exactly what replay says. Sampling: the distributions of the accepted
count are compared by a permutation test over requests (see docs/acceptance.md). Prints a table and
writes a JSON report. The models must share a vocabulary.

With --streams the drafts are not waited for: of a window of the given length 0, 1, ... have arrived when the
target goes on (drawn by output position), and the chains of right drafts are compared. They must be equal
greedily, and of one law under sampling.

    python scripts/validate_traces.py --trace smollm2-135m_smollm2-6l_t1 --drafter drafters/smollm2-6l \
        --data-dir ../shared/data --out validation.json
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import _checkout  # noqa: F401
import _cli
import _seeds

from dsd_env.acceptance.traceset import TraceError, TraceSet, load_trace_set
from dsd_env.calibration.acceptance.recording.models import ModelError
from dsd_env.calibration.acceptance.recording.prompts import Prompt, PromptError
from dsd_env.calibration.acceptance.recording.record import (
    LOOKUP,
    RecordingError,
    software_versions,
    write_json,
)
from dsd_env.calibration.acceptance.recording.weights import WeightsError


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line's arguments, checked."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--trace", required=True, help="name or path of the recording")
    parser.add_argument("--out", type=Path, required=True, help="JSON report")
    parser.add_argument("--target", default="smollm2-135m", help="as for record_traces.py (%(default)s)")
    parser.add_argument("--drafter", required=True, help="the draft model of the recording")
    parser.add_argument("--drafters", help="comma-separated drafters of the recording to check (all)")
    parser.add_argument("--dtype", default="float32", help="compute dtype (%(default)s)")
    parser.add_argument("--cache-dir", type=Path, help="cache of packaged weights")
    parser.add_argument("--data-dir", type=Path, help="directory of question files ($DSD_DATA_DIR)")
    parser.add_argument("--prompts", type=Path, help="own prompts instead, as they were recorded")
    parser.add_argument("--requests", type=int, default=60, help="requests, spread over kinds (%(default)s)")
    parser.add_argument("--kinds", help="comma-separated kinds to take them from (all)")
    parser.add_argument("--gammas", type=int, nargs="+", default=[1, 2, 4, 8], help="(1 2 4 8)")
    parser.add_argument("--streams", action="store_true", help="streams with windows of --gammas instead")
    parser.add_argument("--seed", type=_seeds.seed(), default=1, help="seed of the direct runs (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=30, help="requests decoded together (%(default)s)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads (%(default)s)")
    options = parser.parse_args(arguments)
    if min(options.gammas) < 1 or options.requests < 2 or options.batch_size < 1 or options.threads < 1:
        parser.error("--gammas, --batch-size and --threads must be at least 1, --requests at least 2")
    if options.streams and options.drafters and LOOKUP in options.drafters.split(","):
        parser.error(f"--streams is for draft models: what {LOOKUP} proposes depends on where it starts")
    return options


def prompts_of(trace: TraceSet, options: argparse.Namespace) -> dict[str, Prompt]:
    """Return the recorded prompts by id, cut as the ids in the card say."""
    from dsd_env.calibration.acceptance.recording.prompts import (
        KINDS,
        find_data_dir,
        read_prompt_file,
        read_prompts,
    )

    if options.prompts:
        return {p.id: p for rows in read_prompt_file(options.prompts).values() for p in rows}
    directory = find_data_dir(options.data_dir)
    if directory is None:
        raise PromptError("no question files found: name their directory by --data-dir or DSD_DATA_DIR")
    cuts = {}
    for entry, kind in zip(trace.card["entries"], trace.kind, strict=True):
        _, at, words = entry.partition("@")
        if at and words.isdigit():
            cuts[trace.kinds[int(kind)]] = int(words)
    kinds = [k for k in trace.kinds if k in KINDS]
    return {p.id: p for rows in read_prompts(directory, kinds, cuts).values() for p in rows}


def choose(trace: TraceSet, requests: int, kinds: Sequence[str] | None) -> list[int]:
    """Return entries, the first of every kind, as many of each kind as there are."""
    trace.entries_of(kinds)  # refuses unknown kinds
    per_kind = [trace.entries_of([k]).tolist() for k in kinds or trace.kinds]
    chosen: list[int] = []
    for place in range(max(map(len, per_kind))):
        chosen += [rows[place] for rows in per_kind if place < len(rows)]
    return sorted(chosen[:requests])


def read_direct_counts(path: Path, identity: dict[str, Any]) -> dict[str, dict[str, dict[str, list[int]]]]:
    """Return the direct counts of an earlier report: drafter -> gamma -> entry -> accepted by round.

    Raises:
        RecordingError: There is a report there, and it is of something else.
    """
    if not path.exists():
        return {}
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        found = {k: report[k] for k in identity}
        counts: dict[str, dict[str, dict[str, list[int]]]] = report["direct_counts"]
    except (ValueError, KeyError, TypeError) as error:
        raise RecordingError(f"{path}: not a report of this script: {error}") from error
    if found != identity:
        raise RecordingError(f"{path} is the report of another validation ({found}); give another --out")
    return counts


def run(options: argparse.Namespace) -> int:
    """Check, print, write; return 1 if a greedy round differs."""
    trace = load_trace_set(options.trace)
    known = prompts_of(trace, options)
    names = options.drafters.split(",") if options.drafters else list(trace.drafters)
    if options.streams and not options.drafters:
        names.remove(LOOKUP)
    if unknown := [n for n in names if n not in trace.drafters]:
        raise RecordingError(f"{trace.name}: unknown drafters {unknown}; it has: {', '.join(trace.drafters)}")
    temperature = trace.card.get("temperature", 0.0)
    if type(temperature) not in (int, float) or not 0 <= temperature <= 10:
        raise RecordingError(f"{trace.name}: the card's temperature is {temperature!r}, must be in 0..10")
    entries = choose(trace, options.requests, options.kinds.split(",") if options.kinds else None)
    if missing := [trace.card["entries"][e] for e in entries if trace.card["entries"][e] not in known]:
        raise RecordingError(f"{trace.name}: prompts {missing[:3]} are not in the question files")

    import torch
    from tqdm import tqdm

    from dsd_env.calibration.acceptance.recording import validate
    from dsd_env.calibration.acceptance.recording.direct import read_prompts_once, speculative_runs
    from dsd_env.calibration.acceptance.recording.models import load_language_model
    from dsd_env.calibration.acceptance.recording.prefix import same_vocabulary
    from dsd_env.calibration.acceptance.recording.target import sampling_key

    torch.set_num_threads(options.threads)
    load: dict[str, Any] = {"dtype": options.dtype, "cache_dir": options.cache_dir}
    target = load_language_model(options.target, **load)
    draft = load_language_model(options.drafter, name=Path(options.drafter).name, **load)
    if not same_vocabulary(target, draft):
        raise RecordingError(
            "target and drafter have different vocabularies; "
            "see tests/calibration/acceptance/test_real_models.py"
        )
    limit = int(trace.card["max_tokens"])
    identity = {
        "target": options.target,
        "drafter": Path(options.drafter).name,
        "temperature": temperature,
        "max_tokens": limit,
        "seed": options.seed,
        **({"streams": True} if options.streams else {}),
    }
    counts = read_direct_counts(options.out, identity)
    rows: list[dict[str, Any]] = []
    report = {
        "trace": trace.name,
        "npz_sha256": trace.card.get("npz_sha256"),
        **identity,
        "entries": [trace.card["entries"][e] for e in entries],
        "software": software_versions(),
        "results": rows,
        "direct_counts": counts,
    }
    prompts = {}
    for e in entries:
        p = known[trace.card["entries"][e]]
        prompts[e] = target.encode_chat(p.text, p.reply_prefix)
        if len(prompts[e]) != trace.prompt_tokens[e]:
            raise RecordingError(f"{trace.name}: prompt {p.id} has another length than when it was recorded")
    ids = {e: str(trace.card["entries"][e]) for e in entries}
    differing = 0
    for name in names:
        speaker = None if name == LOOKUP else draft
        had = counts.setdefault(name, {str(g): {} for g in options.gammas})
        todo = [e for e in entries if any(ids[e] not in had.setdefault(str(g), {}) for g in options.gammas)]
        todo.sort(key=lambda e: len(prompts[e]))
        batches = [todo[i : i + options.batch_size] for i in range(0, len(todo), options.batch_size)]
        # The prompts are read once, for every gamma.
        read = [read_prompts_once(target, speaker, [prompts[e] for e in b]) for b in batches]
        for gamma in options.gammas:
            with tqdm(total=len(todo), desc=f"{name} gamma={gamma}", unit="request") as bar:
                for batch, readers in zip(batches, read, strict=True):
                    if all(ids[e] in had[str(gamma)] for e in batch):
                        continue
                    arrived = None
                    if options.streams:
                        arrived = arrivals([ids[e] for e in batch], options.seed, gamma)
                    done = speculative_runs(
                        target,
                        speaker,
                        [prompts[e] for e in batch],
                        gamma,
                        limit,
                        float(temperature),
                        [
                            sampling_key(options.seed, f"{name}\0{gamma}\0{ids[e]}", temperature)
                            for e in batch
                        ],
                        lambda left: bar.set_postfix_str(f"{left} at work"),
                        readers,
                        arrived,
                    )
                    count = validate.chain_lengths if options.streams else validate.counts_of_direct
                    for e, r in zip(batch, done, strict=True):
                        had[str(gamma)][ids[e]] = count(r.rounds, min(limit, len(r.output_ids)))
                    bar.update(len(batch))
                    write_json(options.out, report)  # what is done is not done again
            if options.streams:
                replay = [replayed_chains(trace, e, name, options.seed, gamma) for e in entries]
            else:
                replay = [
                    validate.counts_of_replay(validate.replayed_runs(trace, e, name, options.seed), gamma)
                    for e in entries
                ]
            direct = [had[str(gamma)][ids[e]] for e in entries]
            row: dict[str, Any] = {"drafter": name, "gamma": gamma}
            if temperature == 0:
                greedy = validate.compare_greedy(direct, replay)
                differing += greedy.differing
                row |= asdict(greedy)
            else:
                most = limit if options.streams else gamma
                row |= asdict(validate.compare_sampled(direct, replay, most))
            rows.append(row)
            write_json(options.out, report)
            print(json.dumps(row), flush=True)
    print_table(report)
    return 1 if differing else 0


def arrivals(names: Sequence[str], seed: int, window: int) -> Callable[[int, int], int]:
    """Return how many drafts of a window have arrived: number of a request and output position -> drafts."""
    from dsd_env.calibration.acceptance.recording import validate
    from dsd_env.calibration.acceptance.recording.target import sampling_key

    of_request = [validate.arrivals(sampling_key(seed, f"arrivals\0{name}", 1.0), window) for name in names]
    return lambda request, position: of_request[request](position)


def replayed_chains(trace: TraceSet, entry: int, drafter: str, seed: int, window: int) -> list[int]:
    """Return the lengths of the chains of a replayed stream, with the arrivals of the direct one."""
    from dsd_env.calibration.acceptance.recording import validate

    realised = validate.replayed(trace, entry, drafter, seed)
    arrived = arrivals([str(trace.card["entries"][entry])], seed, window)
    rounds = validate.stream_of_replay(realised, lambda at: arrived(0, at))
    return validate.chain_lengths(rounds, len(realised.run_length))


def print_table(report: dict[str, Any]) -> None:
    """Print the results."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{report['trace']}: replay against direct speculative decoding")
    headings = [k for k in report["results"][0] if k not in ("permutations", "statistic")]
    for heading in headings:
        table.add_column(heading.replace("_", " "))
    for row in report["results"]:
        table.add_row(*(f"{row[h]:.3f}" if isinstance(row[h], float) else str(row[h]) for h in headings))
    Console().print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    options = parse_arguments(arguments)
    try:
        return run(options)
    except KeyboardInterrupt:
        print("\nstopped; the report holds what was done", file=sys.stderr)
        return 130
    except ImportError as error:
        print(f"error: {error}; validating needs: pip install 'dsd-env[record]'", file=sys.stderr)
        return 2
    except (ModelError, PromptError, RecordingError, TraceError, WeightsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    _cli.run(main)
