#!/usr/bin/env python
r"""Let a trained policy steer a real pair of models inside a real vLLM on this machine's CPU, live.

One client asks, then eight at once. The policy decides the drafted length of every request at every step; the
live view shows them. Then the same questions are asked of vLLM without a drafter, with static lengths, and
with vLLM's own table by batch size, compiled from the policy. In float32 all outputs must be the same.

    make vllm-demo
    python scripts/vllm_demo.py --settings policy plain --phases 1:3
    python scripts/vllm_demo.py --target path/or/hub-id --draft path/or/hub-id
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _checkout  # noqa: F401
import _cli

if TYPE_CHECKING:
    from dsd_env.calibration.engine_bench.runs import Question, Run

NAMES = ("policy", "table", "static 1", "static 2", "static 3", "static 4", "plain")


def _phases(text: str) -> list[tuple[int, int]]:
    """``1:3,8:8`` -> one client with three questions, then eight with eight."""
    found = []
    for part in text.split(","):
        clients, _, number = part.partition(":")
        try:
            found.append((int(clients), int(number or clients)))
        except ValueError:
            raise argparse.ArgumentTypeError(f"{part!r} is not CLIENTS:QUESTIONS") from None
        if not 1 <= found[-1][0] <= 8 or not found[-1][0] <= found[-1][1] <= 64:
            raise argparse.ArgumentTypeError(f"{part!r}: 1 to 8 clients, and as many questions or more")
    return found


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line's arguments, checked."""
    from _vllm import add_engine_arguments

    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_engine_arguments(parser, dtype="float32")
    run = parser.add_argument_group("run")
    run.add_argument("--phases", type=_phases, default=[(1, 3), (8, 8)], help="CLIENTS:QUESTIONS,… (1:3,8:8)")
    run.add_argument(
        "--settings",
        nargs="+",
        choices=NAMES,
        metavar="NAME",
        default=list(NAMES),
        help=f"in their order (default: {', '.join(NAMES)})",
    )
    run.add_argument("--json", type=Path, help="file for the figures")
    run.add_argument("--quiet", action="store_true", help="no live view")
    found = parser.parse_args(arguments)
    _cli.at_least_one(parser, found, ("threads",))
    return found


def run(options: argparse.Namespace) -> int:
    """Run the demonstration; return 0 unless outputs differ that must not."""
    from _vllm import engine_spec, engines, every_setting, load_tokenizer, read_table
    from rich.console import Console
    from rich.live import Live

    from dsd_env.calibration.engine_bench.live import EngineView
    from dsd_env.calibration.engine_bench.prompts import coders, questions

    console = Console()
    console.print("the pair: fetched and expanded the first time (0.4 GB of packages, 4.5 GB on disk)")
    spec = engine_spec(options)
    tokenizer = load_tokenizer(spec.target)
    asked: list[list[Question]] = []
    for _, number in options.phases:
        asked.append(questions(*coders(tokenizer), number, first=sum(len(each) for each in asked)))
    settings = {setting.name: setting for setting in every_setting(spec, read_table(options.table))}
    results: dict[str, list[Run]] = {}
    with engines(spec, console.print) as engine_of:
        for name in options.settings:
            engine = engine_of(settings[name])
            engine.run("warm-up", asked[0][:1], 1)
            results[name] = []
            for (clients, _), block in zip(options.phases, asked, strict=True):
                title = f"{name} · {clients} client{'s' * (clients > 1)} · {options.dtype}"
                view = EngineView(title, lambda ids: str(tokenizer.decode(ids, skip_special_tokens=True)))
                live = nullcontext() if options.quiet else Live(get_renderable=view.show, console=console)
                with live:
                    results[name].append(engine.run(name, block, clients, view.watch))
                if options.quiet:
                    found = results[name][-1]
                    console.print(f"{title}: {_tokens(found) / found.duration_s:.1f} tok/s")
    console.print(table(results, options))
    return report(results, options, console)


def _tokens(run: Run) -> int:
    return sum(len(answer.tokens) for answer in run.answers)


def differing(results: dict[str, list[Run]]) -> dict[str, int]:
    """Return how many outputs of each setting differ from those of the last one."""
    last = list(results)[-1]

    def texts(name: str) -> list[list[int]]:
        return [answer.tokens for run in results[name] for answer in run.answers]

    return {
        name: sum(one != other for one, other in zip(texts(name), texts(last), strict=True))
        for name in results
    }


def table(results: dict[str, list[Run]], options: argparse.Namespace) -> Any:
    """Return the comparison as a table."""
    from rich.table import Table

    made = Table(title=f"one vLLM, {options.dtype}, {options.threads} threads")
    made.add_column("", no_wrap=True)
    for clients, _ in options.phases:
        made.add_column(f"tok/s, {clients} client{'s' * (clients > 1)}", justify="right")
    for name in ("ms per token", "drafted per round", "accepted per round", "seconds in all"):
        made.add_column(name, justify="right")
    for name, runs in results.items():
        answers = [answer for run in runs for answer in run.answers]
        rounds = [each for answer in answers for each in answer.rounds]
        later = sum(len(answer.tokens) - 1 for answer in answers)
        drafted = sum(each.drafted for each in rounds)
        made.add_row(
            name,
            *(f"{_tokens(run) / run.duration_s:.1f}" for run in runs),
            f"{1e3 * sum(answer.done_s - answer.first_s for answer in answers) / max(1, later):.0f}",
            f"{drafted / max(1, len(rounds)):.2f}",
            f"{sum(each.committed - 1 for each in rounds) / max(1, len(rounds)):.2f}" if drafted else "—",
            f"{sum(run.duration_s for run in runs):.1f}",
        )
    return made


def report(results: dict[str, list[Run]], options: argparse.Namespace, console: Any) -> int:
    """Say whether outputs agree and what the policy did; return the exit status."""
    for run, (clients, _) in zip(results.get("policy", []), options.phases, strict=False):
        lengths: dict[tuple[str, int], int] = {}
        for answer in run.answers:
            for each in answer.rounds:
                key = answer.kind, each.drafted
                lengths[key] = lengths.get(key, 0) + 1
        for kind in sorted({kind for kind, _ in lengths}):
            counts = ", ".join(f"{n} × {k}" for (of, k), n in sorted(lengths.items()) if of == kind)
            console.print(f"the policy, {clients} client(s), {kind}: rounds × drafts {counts}")
    wrong = differing(results)
    total = sum(wrong.values())
    if options.json:
        rows = {name: [run.as_dict() for run in runs] for name, runs in results.items()}
        options.json.write_text(json.dumps({"runs": rows, "differing_outputs": wrong}) + "\n")
    if not total:
        console.print("all outputs are the same, token for token")
    elif options.dtype == "float32":
        console.print(f"[red]outputs differ: {wrong}[/red]")
        return 1
    else:
        console.print(f"outputs that differ ({options.dtype} flips near ties; float32 must not): {wrong}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demonstration."""
    options = parse_arguments(arguments)
    from dsd_env.calibration.acceptance.recording.weights import WeightsError
    from dsd_env.serving.engines.session import EngineError

    try:
        return run(options)
    except KeyboardInterrupt:
        return 130
    except (ValueError, WeightsError, EngineError, OSError) as error:
        print(f"vllm_demo: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    _cli.run(main)
