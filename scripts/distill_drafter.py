#!/usr/bin/env python
"""Train a small drafter for a target on the target's own output, with the target's vocabulary.

The target writes user messages by itself and answers them (no data needed; --data-dir adds prompts that a
recording does not use). A student made of some of the target's layers learns its distributions. The
result is a checkpoint directory (safetensors and JSON) that record_traces.py takes as --drafter.

Ctrl-C stops it; the same command goes on where it stopped.

    python scripts/distill_drafter.py --target smollm2-135m --out drafters/smollm2-6l
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _checkout  # noqa: F401
import _cli
import _seeds

from dsd_env.calibration.acceptance.recording.models import ModelError
from dsd_env.calibration.acceptance.recording.prompts import PromptError
from dsd_env.calibration.acceptance.recording.record import RecordingError
from dsd_env.calibration.acceptance.recording.weights import WeightsError
from dsd_env.locks import LOCK_FILE, hold

if TYPE_CHECKING:
    from tqdm import tqdm

    from dsd_env.calibration.acceptance.recording.distill import DistillSettings
    from dsd_env.calibration.acceptance.recording.prompts import Prompt


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line's arguments, checked."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--target", default="smollm2-135m", help="as for record_traces.py (%(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="directory of the finished checkpoint")
    parser.add_argument("--work", type=Path, help="directory of the work under way (OUT.work)")
    parser.add_argument("--cache-dir", type=Path, help="cache of packaged weights")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (%(default)s)")
    data = parser.add_argument_group("training data")
    data.add_argument("--messages", type=int, default=340, help="messages the target writes (%(default)s)")
    data.add_argument("--message-tokens", type=int, default=64, help="longest message (%(default)s)")
    data.add_argument("--max-tokens", type=int, default=64, help="longest answer (%(default)s)")
    data.add_argument("--temperatures", type=float, nargs="+", default=[0.7, 1.0], help="(0.7 1.0)")
    data.add_argument("--data-dir", type=Path, help="directory of question files, for more prompts")
    data.add_argument("--skip-per-kind", type=int, default=200, help="leave out the first (%(default)s)")
    data.add_argument("--per-kind", type=int, default=100, help="then take this many (%(default)s)")
    # torch's generators draw the same for seeds that are equal in their last 31 bits here.
    data.add_argument(
        "--seed", type=_seeds.seed(2**31 - 1), default=0, help="seed of every draw (%(default)s)"
    )
    data.add_argument(
        "--answers", type=int, help="answer so many of all prompts, shuffled, in whole files (all)"
    )
    data.add_argument("--use-made", action="store_true", help="train on the runs made so far")
    data.add_argument("--data-only", action="store_true", help="stop before training")
    training = parser.add_argument_group("training")
    training.add_argument(
        "--layers", default="0,6,12,17,23,29", help="layers of the target to begin with (%(default)s)"
    )
    training.add_argument("--steps", type=int, default=200, help="optimiser steps (%(default)s)")
    training.add_argument("--batch-tokens", type=int, default=1024, help="per step (%(default)s)")
    training.add_argument("--learning-rate", type=float, default=1e-3, help="peak (%(default)s)")
    options = parser.parse_args(arguments)
    for name in ("threads", "messages", "message_tokens", "max_tokens", "per_kind", "batch_tokens", "steps"):
        if getattr(options, name) < (0 if name in ("messages", "per_kind") else 1):
            parser.error(f"--{name.replace('_', '-')} is too small")
    if options.answers is not None and options.answers < 1:
        parser.error("--answers must be at least 1")
    if any(not 0.0 <= t <= 10.0 for t in options.temperatures):
        parser.error("--temperatures must be in 0..10")
    if not 0.0 < options.learning_rate < 1.0:
        parser.error("--learning-rate must be in 0..1")
    try:
        options.layers = [int(x) for x in options.layers.split(",")]
    except ValueError:
        parser.error("--layers must be numbers with commas between them")
    return options


def advance(bar: tqdm[Any], done: int) -> None:
    """Move a progress bar on and draw it at once: a batch may take minutes."""
    bar.update(done)
    bar.refresh()


def run(options: argparse.Namespace) -> None:
    """Make the training data, train, and save the drafter."""
    from dsd_env.calibration.acceptance.recording.prompts import find_data_dir, read_prompts

    extra: list[Prompt] = []
    if options.data_dir is not None:
        directory = find_data_dir(options.data_dir)
        assert directory is not None  # an explicit directory without question files is an error
        for rows in read_prompts(directory).values():
            extra += rows[options.skip_per_kind : options.skip_per_kind + options.per_kind]

    import torch

    from dsd_env.calibration.acceptance.recording import distill

    torch.set_num_threads(options.threads)
    work = options.work or options.out.with_name(f"{options.out.name}.work")
    settings = distill.DistillSettings(
        target=options.target,
        messages=options.messages,
        message_tokens=options.message_tokens,
        max_tokens=options.max_tokens,
        temperatures=tuple(options.temperatures),
        seed=options.seed,
    )
    with hold(work / LOCK_FILE, work):
        distill.open_work(work, settings)
        if options.out.exists():
            raise RecordingError(f"{options.out} is there already; give another --out")
        make(options, settings, work, extra)


def make(options: argparse.Namespace, settings: DistillSettings, work: Path, extra: list[Prompt]) -> None:
    """Make data and drafter in a work directory that is locked; see :func:`run`."""
    from tqdm import tqdm

    from dsd_env.calibration.acceptance.recording import distill
    from dsd_env.calibration.acceptance.recording.models import load_language_model
    from dsd_env.calibration.acceptance.recording.prompts import Prompt

    print("loading the target ...", flush=True)
    target = load_language_model(options.target, cache_dir=options.cache_dir)
    if not options.use_made:
        with tqdm(total=settings.messages, desc="messages", unit="message") as bar:
            messages = distill.write_messages(target, work, settings, lambda done: advance(bar, done))
        prompts = [Prompt(f"self/{i}", "self", m) for i, m in enumerate(messages)] + extra
        most = min(options.answers or len(prompts), len(prompts))
        with tqdm(total=most, desc="runs", unit="prompt") as bar:
            distill.make_runs(target, prompts, work, settings, lambda done: advance(bar, done), most)
    if options.data_only:
        return
    training = distill.Training(
        layers=tuple(options.layers),
        steps=options.steps,
        batch_tokens=options.batch_tokens,
        learning_rate=options.learning_rate,
        seed=options.seed,
    )
    examples = distill.load_examples(work)
    with tqdm(total=training.steps, desc="training", unit="step") as bar:

        def show(done: int, figures: dict[str, float]) -> None:
            bar.update(done)
            bar.set_postfix({k: f"{v:.3g}" for k, v in figures.items()})

        student, facts = distill.train(target, examples, work, training, progress=show)
    card = {
        "model": options.out.name,
        "licence": target.card["licence"],
        "source": "scripts/distill_drafter.py",
        "distilled_from": target.card,
        "data": {k: v for k, v in asdict(settings).items() if k != "target"},
        "prompts": distill.prompts_used(work, settings),
        **facts,
    }
    distill.save_drafter(student, target, options.out, card)
    held = facts["held_out"]
    print(
        f"wrote {options.out}: on {held['tokens']} held-out tokens of the target, the most likely tokens "
        f"agree {held['agreement']:.1%} of the time and a sampled draft is accepted with probability "
        f"{held['acceptance']:.3f} (before training: {facts['held_out_before']['agreement']:.1%}, "
        f"{facts['held_out_before']['acceptance']:.3f})"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    options = parse_arguments(arguments)
    try:
        run(options)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on where this one stopped", file=sys.stderr)
        return 130
    except ImportError as error:
        print(f"error: {error}; training needs: pip install 'dsd-env[record]'", file=sys.stderr)
        return 2
    except (ModelError, PromptError, RecordingError, WeightsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    _cli.run(main)
