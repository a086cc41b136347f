#!/usr/bin/env python
r"""Steer a real pair of models across a shaped link, live, and compare with static choices.

The target runs in a process of its own; the draft model runs here; a shim between them delays messages. A
rule picks the window at every result. Then the same questions are asked with plain decoding and with static
lengths, and a table shows what each took. All outputs must be the same, token for token.

    python scripts/testbed_demo.py
    python scripts/testbed_demo.py --rtt-ms 80 --protocol synchronous --rule hf_heuristic
    python scripts/testbed_demo.py --target path/or/hub-id --draft path/or/hub-id --tokens 128
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _checkout  # noqa: F401
import _cli

if TYPE_CHECKING:
    from dsd_env.testbed.bench import Setting, Summary
    from dsd_env.testbed.drafters import Question

MESSAGES = (
    "Write a Python function that returns the n-th Fibonacci number.",
    "Write a Python function that tells whether a word is a palindrome.",
    "Write a Python class for a stack with push, pop and peek.",
    "Write a Python function that counts the words in a text file.",
)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line's arguments, checked."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    models = parser.add_argument_group("models")
    models.add_argument(
        "--target", default="qwen2.5-coder-1.5b", help="packaged name, .gguf, directory or hub id"
    )
    models.add_argument("--draft", default="smollm2-135m", help="the same, or `lookup`")
    models.add_argument("--dtype", default="float32", help="compute dtype (%(default)s)")
    models.add_argument("--threads", type=int, help="of the target (all cores but one)")
    link = parser.add_argument_group("link")
    link.add_argument("--rtt-ms", type=float, default=20.0, help="round trip (%(default)s)")
    link.add_argument("--jitter-ms", type=float, default=0.0, help="its standard deviation, each way")
    link.add_argument("--drop", type=float, default=0.0, help="share of messages lost")
    run = parser.add_argument_group("run")
    run.add_argument("--protocol", choices=("synchronous", "pipelined", "streaming"), default="streaming")
    run.add_argument(
        "--rule", default="expected_time", help="expected_time, hf_heuristic, static:N, cloud:N, plain"
    )
    run.add_argument(
        "--compare", nargs="*", default=["plain", "static:2", "static:4", "static:8"], help="rules"
    )
    run.add_argument("--tokens", type=int, default=32, help="of each output, at most")
    run.add_argument("--questions", type=int, default=2, help="how many are asked")
    run.add_argument("--clients", type=int, default=1, help="who ask them, side by side")
    run.add_argument("--logs", type=Path, help="directory for the logs of events")
    run.add_argument("--json", type=Path, help="file for the figures")
    run.add_argument("--quiet", action="store_true", help="no live view")
    found = parser.parse_args(arguments)
    _cli.at_least_one(parser, found, ("threads", "tokens", "questions", "clients"))
    return found


def make_questions(options: argparse.Namespace) -> tuple[list[Question], Any]:
    """Return the questions, and the target's tokenizer."""
    from dsd_env.calibration.acceptance.recording.prompts import Prompt
    from dsd_env.testbed.drafters import Question
    from dsd_env.testbed.models import load_tokenizer

    target = load_tokenizer(options.target, dtype=options.dtype)
    questions = []
    for number in range(options.questions):
        prompt = Prompt(f"demo/{number}", "code", MESSAGES[number % len(MESSAGES)])
        questions.append(Question(target.encode_chat(prompt.text), options.tokens, prompt))
    return questions, target


def settings(options: argparse.Namespace) -> list[Setting]:
    """Return what is run: the rule first, then what it is compared with."""
    from dsd_env.testbed.bench import Setting
    from dsd_env.testbed.client import ClientConfig
    from dsd_env.testbed.control import parse_rule

    found = []
    for name in [options.rule, *options.compare]:
        parse_rule(name)  # a wrong name is told before anything is loaded
        config = ClientConfig(protocol=options.protocol, retry_s=2.0, silence_s=120.0, give_up_s=300.0)
        label = name if name == "plain" or name.startswith("cloud") else f"{options.protocol} {name}"
        found.append(Setting(label, config, partial(parse_rule, name)))
    return found


async def run(options: argparse.Namespace) -> int:
    """Run the demonstration; return 0 if all outputs agree."""
    import torch
    from rich.console import Console
    from rich.live import Live

    from dsd_env.testbed.bench import (
        CloudSpec,
        cloud_process,
        load_drafter,
        run_setting,
        spare_threads,
        summarise,
    )
    from dsd_env.testbed.link import LinkConfig
    from dsd_env.testbed.live import LiveView
    from dsd_env.testbed.log import EventLog

    console = Console()
    chosen = settings(options)
    questions, target = make_questions(options)
    torch.set_num_threads(1)
    drafter = load_drafter(options.draft, options.target, options.dtype)
    console.print(f"loading {options.target} in a process of its own (minutes the first time)")
    if options.logs:
        options.logs.mkdir(parents=True, exist_ok=True)
    spec = CloudSpec(
        options.target,
        options.draft if any(name.startswith("cloud") for name in (options.rule, *options.compare)) else None,
        options.dtype,
        options.threads or spare_threads(),
        log=options.logs / "cloud.jsonl" if options.logs else None,
    )
    link = LinkConfig(delay_s=options.rtt_ms / 2e3, jitter_s=options.jitter_ms / 1e3, drop=options.drop)
    summaries: list[Summary] = []
    texts: list[list[list[int]]] = []
    with ThreadPoolExecutor(1) as pool:
        async with cloud_process(spec) as port:
            for number, setting in enumerate(chosen):
                title = f"{setting.name} · {options.target} ← {options.draft} · RTT {options.rtt_ms:g} ms"
                view = LiveView(title, target.decode)
                path = options.logs / f"edge-{number}.jsonl" if options.logs else None
                log = EventLog(path, watch=view.watch)
                live = nullcontext() if options.quiet else Live(get_renderable=view.show, console=console)
                with live:
                    outputs = await run_setting(
                        setting,
                        port,
                        link,
                        questions,
                        drafter,
                        clients=options.clients,
                        pool=pool,
                        log=log,
                        on_tokens=view.tokens,
                    )
                log.close()
                summaries.append(summarise(setting.name, outputs))
                texts.append([output.tokens for output in outputs])
                if options.quiet:
                    console.print(f"{setting.name}: {summaries[-1].tpot_s * 1e3:.0f} ms per token")
    same = all(text == texts[0] for text in texts)
    console.print(table(summaries, options))
    console.print("all outputs are the same, token for token" if same else "[red]outputs differ[/red]")
    if options.json:
        rows = [
            summary.__dict__ | {"same_output": text == texts[0]}
            for summary, text in zip(summaries, texts, strict=True)
        ]
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0 if same else 1


def table(summaries: Sequence[Summary], options: argparse.Namespace) -> Any:
    """Return the comparison as a table."""
    from rich.table import Table

    made = Table(
        title=f"{options.questions} questions, {options.clients} client(s), RTT {options.rtt_ms:g} ms"
    )
    for name in (
        "",
        "ms per token",
        "TTFT ms",
        "tokens/s",
        "tokens per iteration",
        "accepted of verified",
        "RTT ms",
    ):
        made.add_column(name, justify="right" if name else "left", no_wrap=not name)
    for one in summaries:
        share = f"{one.accepted}/{one.verified}" if one.verified else "—"
        made.add_row(
            one.name,
            f"{1e3 * one.tpot_s:.0f}",
            f"{1e3 * one.ttft_s:.0f}",
            f"{1 / one.tpot_s:.2f}" if one.tpot_s else "—",
            f"{one.tokens_per_iteration:.2f}",
            share,
            f"{1e3 * one.rtt_s:.0f}",
        )
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demonstration."""
    options = parse_arguments(arguments)
    try:
        return asyncio.run(run(options))
    except KeyboardInterrupt:
        return 130
    except ValueError as error:
        print(f"testbed_demo: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    _cli.run(main)
