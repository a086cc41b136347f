"""Measures a testbed for its twin: what the target answers, what the drafter proposes, what takes how long.

The target works in a process of its own, on the cores on which it will serve; the drafter works here. Both
are timed while the other is at work, too, as they share caches and memory.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
import multiprocessing
import platform
import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from multiprocessing.connection import Connection as Pipe
from typing import Any

import numpy as np

from dsd_env.acceptance.traceset import DrafterTrace, TraceSet
from dsd_env.testbed.bench import CloudSpec, cloud_process, run_setting
from dsd_env.testbed.bench import Setting as BenchSetting
from dsd_env.testbed.client import ClientConfig, Output
from dsd_env.testbed.control import static
from dsd_env.testbed.drafters import LineMaker, Question
from dsd_env.testbed.link import LinkConfig
from dsd_env.testbed.target import Feed, PackedTarget
from dsd_env.testbed.timing import Times, pin, time_target
from dsd_env.testbed.twin import Live, Parts

logger = logging.getLogger(__name__)
#: Stands for confidence, which a line does not tell: no rule of the validation reads it.
UNKNOWN_PROBABILITY = 0.5


class MeasuringError(RuntimeError):
    """A testbed cannot be measured as it is; the message says why."""


def outputs_of(
    target: PackedTarget,
    stop_ids: frozenset[int],
    questions: Mapping[str, Question],
    tokens: int,
    together: int = 1,
) -> dict[str, list[int]]:
    """Return what the target answers to each question, greedily.

    Args:
        target: An empty target.
        stop_ids: Tokens that end an answer.
        questions: Questions by kind.
        tokens: Length of an answer.
        together: Questions that it answers at a time. With bfloat16 near-ties may flip by it.

    Raises:
        MeasuringError: An answer ends before it has so many tokens.
    """
    found: dict[str, list[int]] = {}
    kinds = list(questions)
    for begin in range(0, len(kinds), together):
        now = kinds[begin : begin + together]
        feeds = [Feed(i, questions[kind].prompt_ids, 1) for i, kind in enumerate(now)]
        answers: list[list[int]] = [[] for _ in now]
        while True:
            for answer, chosen in zip(answers, target.read(feeds), strict=True):
                answer += chosen
            if len(answers[0]) == tokens:
                break
            feeds = [Feed(i, answer[-1:], 1, len(answer)) for i, answer in enumerate(answers)]
        for i, kind in enumerate(now):
            target.crop(i, 0)
            if stop_ids & set(answers[i]):
                raise MeasuringError(
                    f"question {kind!r}: the answer ends before {tokens} tokens; take another question, or "
                    "fewer tokens"
                )
            found[kind] = answers[i]
    return found


def runs_of(make_line: LineMaker, question: Question, output: Sequence[int], most: int) -> list[int]:
    """Return how many drafts would be right from each position of an answer, at most ``most``."""
    runs = []
    line = make_line(question)
    for start in range(len(output)):
        line.rebase(output[:start])
        run, seen = 0, 0
        truth = output[start : start + most]
        while run < len(truth) and run == seen and (new := line.step()) is not None:
            seen += len(new)
            for token in new:
                if run < len(truth) and token == truth[run]:
                    run += 1
                else:
                    break
        runs.append(run)
    return runs


def trace_of(
    name: str,
    make_line: LineMaker,
    questions: Mapping[str, Question],
    outputs: Mapping[str, Sequence[int]],
    *,
    most: int,
    target: Mapping[str, Any],
    draft: str,
    draft_card: Mapping[str, Any],
) -> TraceSet:
    """Record how many drafts are right from every position, by the testbed's own drafter.

    Args:
        name: Name of the trace set.
        make_line: Makes the drafter of a request.
        questions: Questions by kind; each is a kind of its own.
        outputs: What the target answers.
        most: Longest run recorded.
        target: The target's card.
        draft: Name of the drafter.
        draft_card: Its card.
    """
    kinds = list(outputs)
    runs = [runs_of(make_line, questions[kind], outputs[kind], most) for kind in kinds]
    lengths = [len(run) for run in runs]
    positions = sum(lengths)
    trace = DrafterTrace(
        run_length=np.concatenate([np.array(run, np.uint8) for run in runs]),
        accept_prob=None,
        top1_prob=np.full(positions, UNKNOWN_PROBABILITY, np.float16),
        entropy_nats=np.zeros(positions, np.float16),
    )
    return TraceSet(
        name=name,
        kinds=tuple(kinds),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        kind=np.arange(len(kinds), dtype=np.uint8),
        prompt_tokens=np.array([len(questions[kind].prompt_ids) for kind in kinds], np.int32),
        drafters={draft: trace},
        card={
            "label": "measured",
            "description": "What the testbed's drafter proposes at every position of the target's answers.",
            "gamma_max": most,
            "target": dict(target),
            "drafters": {draft: {**draft_card, "form": "run_length"}},
            "sampling": "greedy",
            "temperature": 0.0,
            "prompts": [{"name": "validation", "licence": "as the project", "origin": "written for it"}],
            "entries": kinds,
            "software": software(),
            "date": today(),
            "licence": "Apache-2.0",
        },
    )


def software() -> dict[str, str]:
    """Return the versions that decide the times."""
    found = {"python": platform.python_version()}
    for package in ("torch", "transformers", "grpcio"):
        found[package] = importlib.metadata.version(package)
    return found


def today() -> str:
    """Return the date."""
    return datetime.now(UTC).date().isoformat()


def parts_of(passes: Sequence[Times], rounds: Sequence[tuple[list[Times], list[Times]]]) -> Parts:
    """Return times of both models, those of the drafter of one or several rounds of timing."""
    merged: list[tuple[Times, ...]] = []
    for which in (0, 1):
        found: dict[int, list[float]] = {}
        for timed in rounds:
            for times in timed[which]:
                found.setdefault(times.work, []).extend(times.seconds)
        merged.append(tuple(Times(work=n, seconds=tuple(s)) for n, s in sorted(found.items())))
    return Parts(passes=tuple(passes), windows=merged[0], first_steps=merged[1])


# ---------------------------------------------------------------------- the target's process


def _target_side(
    spec: CloudSpec,
    groups: Sequence[tuple[Mapping[str, Question], int]],
    tokens: int,
    repeats: int,
    pipe: Pipe,
) -> None:
    """Answer questions, then time passes. In a process of its own."""
    import torch

    from dsd_env.testbed.models import load_model

    pin(spec.cpus)
    torch.set_num_threads(spec.threads)
    try:
        loaded = load_model(spec.target, dtype=spec.dtype)
        target = PackedTarget(loaded.model)
        outputs: dict[str, list[int]] = {}
        for questions, together in groups:
            outputs |= outputs_of(target, loaded.stop_ids, questions, tokens, together)
        weights = sum(p.numel() * p.element_size() for p in loaded.model.parameters())
        # With the drafter at rest, until it hears of the answers; then while it works, too.
        passes = time_target(PackedTarget(loaded.model), repeats=repeats)
        pipe.send((outputs, passes, loaded.card, weights))
        pipe.send(time_target(PackedTarget(loaded.model), repeats=repeats))
    except MeasuringError as error:
        pipe.send(error)


class TargetSide:
    """The target at work in a process of its own."""

    def __init__(
        self,
        spec: CloudSpec,
        groups: Sequence[tuple[Mapping[str, Question], int]],
        tokens: int,
        repeats: int,
    ) -> None:
        """Start it.

        Args:
            spec: The target, and where it runs.
            groups: Questions, and how many of them it answers at a time.
            tokens: Length of an answer.
            repeats: Passes of each kind that are timed.
        """
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_target_side, args=(spec, groups, tokens, repeats, theirs), daemon=True
        )
        self._process.start()
        theirs.close()

    def answers(self) -> tuple[dict[str, list[int]], list[Times], dict[str, Any], int]:
        """Return answers by kind, times of passes with the edge at rest, the card, and bytes of weights."""
        found: tuple[dict[str, list[int]], list[Times], dict[str, Any], int] = self._next()
        return found

    @property
    def is_timing(self) -> bool:
        """Whether passes are being timed beside the edge's work."""
        return not self._pipe.poll(0)

    def passes(self) -> list[Times]:
        """Return the times of passes beside the edge's work, and let the process end."""
        found: list[Times] = self._next()
        self._process.join(30.0)
        return found

    def _next(self) -> Any:
        try:
            found = self._pipe.recv()
        except EOFError:
            raise MeasuringError("the target's process ended; see its messages above") from None
        if isinstance(found, MeasuringError):
            raise found
        return found

    def close(self) -> None:
        """End the process if it still runs."""
        if self._process.is_alive():
            self._process.terminate()


# ---------------------------------------------------------------------- across an undelayed link


def live_of(
    spec: CloudSpec, questions: Sequence[Question], make_line: LineMaker, config: ClientConfig | None = None
) -> Live:
    """Decode plainly across an undelayed link, and return what it took beside the target's passes."""

    async def ask() -> Live:
        async with cloud_process(spec) as port:
            live = await live_at(port, questions, make_line, config)
            together_s = await together_at(port, questions, make_line, config)
            return live.model_copy(update={"sequences": len(questions), "together_s": together_s})

    return asyncio.run(ask())


async def live_at(
    port: int, questions: Sequence[Question], make_line: LineMaker, config: ClientConfig | None = None
) -> Live:
    """Do it with a server that is there. The first question only opens the way and does not count."""
    outputs = await _decode_plainly(port, questions, make_line, config, clients=1)
    if len(outputs) < 2:
        raise MeasuringError("two questions are needed to measure the way")
    trips = [s for o in outputs[1:] for s in o.rtt_s]
    return Live(
        round_trip_s=statistics.median(trips) if trips else 0.0,
        token_s=_between_tokens_s(outputs[1:]),
        ttft_s=tuple(o.ttft_s for o in outputs[1:]),
        prompt_tokens=tuple(len(q.prompt_ids) for q in questions[1:]),
    )


async def together_at(
    port: int, questions: Sequence[Question], make_line: LineMaker, config: ClientConfig | None = None
) -> float:
    """Return the time from a token to the next while all questions are answered at a time, in seconds."""
    return _between_tokens_s(
        await _decode_plainly(port, questions, make_line, config, clients=len(questions))
    )


async def _decode_plainly(
    port: int,
    questions: Sequence[Question],
    make_line: LineMaker,
    config: ClientConfig | None,
    *,
    clients: int,
) -> list[Output]:
    """Let clients ask their questions across an undelayed link, and decode plainly."""
    plain = (config or ClientConfig(silence_s=120.0, give_up_s=300.0)).model_copy(
        update={"protocol": "synchronous"}
    )
    setting = BenchSetting("plain", plain, lambda: static(0))
    with ThreadPoolExecutor(1) as pool:
        return await run_setting(
            setting, port, LinkConfig(), questions, make_line, clients=clients, pool=pool
        )


def _between_tokens_s(outputs: Sequence[Output]) -> float:
    """Return the median time from a token to the next."""
    return statistics.median(
        later - earlier
        for output in outputs
        for earlier, later in zip(output.times_s, output.times_s[1:], strict=False)
    )
