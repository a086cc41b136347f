"""Times of the testbed's parts on this machine: the target's passes, the drafter's windows, an empty link.

Measured by the testbed's own code, on the cores where it runs, so that a scenario of them is the testbed's
twin (:mod:`dsd_env.testbed.twin`).
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from dsd_env.calibration.acceptance.recording.drafters import common_prefix_length
from dsd_env.strict_model import StrictNumbers
from dsd_env.testbed.drafters import LineMaker, Question, take_steps
from dsd_env.testbed.target import Feed, PackedTarget

#: New tokens of a pass, as (sequences, tokens of each).
SHAPES = ((1, 1), (1, 2), (2, 1), (1, 3), (4, 1), (1, 5), (2, 4), (1, 9), (4, 4), (4, 5), (2, 9), (4, 9))
#: Tokens of passes that read a prompt.
PROMPTS = (16, 32, 64, 128)
#: Windows that the drafter is timed with.
WINDOWS = (1, 2, 4, 8)
#: KV tokens that each sequence has before a timed pass: about what short questions have.
CONTEXT_TOKENS = 48


class Times(StrictNumbers, BaseModel):
    """Repeated times of one kind of work.

    Attributes:
        work: New tokens of a pass, or drafts of a window.
        seconds: Every repeat.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    work: int = Field(ge=1)
    seconds: tuple[float, ...] = Field(min_length=1)

    @property
    def median_s(self) -> float:
        """Median of the repeats."""
        return statistics.median(self.seconds)

    @property
    def mean_s(self) -> float:
        """Mean of the repeats."""
        return statistics.fmean(self.seconds)


def pin(cpus: Sequence[int]) -> bool:
    """Keep this process, all its threads to come included, on some cores; return whether that is possible."""
    if not cpus or not hasattr(os, "sched_setaffinity"):
        return False
    try:
        os.sched_setaffinity(0, cpus)
    except OSError:  # there are no such cores, or they are not for this process
        return False
    return True


class Neighbours:
    """How much of the machine others take: what is busy and not of these processes."""

    def __init__(self, pids: Iterable[int]) -> None:
        """Begin to watch.

        Args:
            pids: Processes of the testbed; their threads count, their children do not.
        """
        self._pids = list(pids)
        self._began_s = time.monotonic()
        self._began = self._foreign_s()

    def _foreign_s(self) -> float | None:
        try:
            ticks = os.sysconf("SC_CLK_TCK")
            first = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()[1:]
            user, nice, system, _, _, interrupts, soft, stolen = map(int, first[:8])
            own = 0
            for pid in self._pids:
                fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
                own += int(fields[11]) + int(fields[12])
        except (OSError, ValueError, AttributeError, IndexError):
            return None
        return (user + nice + system + interrupts + soft + stolen - own) / ticks

    def cores(self) -> float | None:
        """Return how many cores others kept busy on the average; None where the system does not tell."""
        now = self._foreign_s()
        if now is None or self._began is None:
            return None
        return max(0.0, now - self._began) / max(1e-9, time.monotonic() - self._began_s)


def time_target(
    target: PackedTarget,
    *,
    repeats: int = 6,
    shapes: Iterable[tuple[int, int]] = SHAPES,
    prompts: Iterable[int] = PROMPTS,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Times]:
    """Time passes of a target: some tokens of several sequences, and prompts.

    Rounds go through all shapes, so that a slow spell of the machine does not fall on one of them alone.

    Args:
        target: An empty target.
        repeats: Passes of each shape that count, behind one that does not.
        shapes: Sequences, and new tokens of each.
        prompts: Tokens of passes that read a prompt.
        clock: Seconds.

    Returns:
        Times by new tokens, ascending; shapes of equal size together.
    """
    shapes, prompts = list(shapes), list(prompts)
    sequences = max((n for n, _ in shapes), default=0)
    for sequence in range(sequences):
        target.read([Feed(sequence, _tokens(target, CONTEXT_TOKENS), 1)])
    found: dict[int, list[float]] = {}
    for repeat in range(repeats + 1):
        for n, each in shapes:
            began = clock()
            target.read([Feed(sequence, _tokens(target, each), each) for sequence in range(n)])
            if repeat:
                found.setdefault(n * each, []).append(clock() - began)
            for sequence in range(n):
                target.crop(sequence, CONTEXT_TOKENS)
        for size in prompts:
            began = clock()
            target.read([Feed(sequences, _tokens(target, size), 1)])
            if repeat:
                found.setdefault(size, []).append(clock() - began)
            target.crop(sequences, 0)
    return [Times(work=size, seconds=tuple(seconds)) for size, seconds in sorted(found.items())]


def _tokens(target: PackedTarget, count: int) -> list[int]:
    """Return some tokens; which ones does not matter to the time."""
    return [i % min(37, target.vocabulary) for i in range(count)]


def time_drafter(
    make_line: LineMaker,
    questions: Sequence[Question],
    outputs: Sequence[Sequence[int]],
    *,
    windows: Iterable[int] = WINDOWS,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[list[Times], list[Times]]:
    """Time windows of a drafter on the way of synchronous rounds through known outputs.

    A window begins as in the testbed: by going back to what is committed, which for a drafter with another
    vocabulary means to tokenise it, and with what of it the drafter has not read.

    Args:
        make_line: Makes the drafter of a request.
        questions: Requests.
        outputs: What the target answers to each.
        windows: Drafts of a window.
        clock: Seconds.

    Returns:
        Times by drafts, of windows that were filled; times of the first step by prompt tokens.
    """
    found: dict[int, list[float]] = {}
    first: dict[int, list[float]] = {}
    for question, output in zip(questions, outputs, strict=True):
        for gamma in windows:
            line = make_line(question)
            began = clock()
            line.rebase([])
            line.step()
            first.setdefault(len(question.prompt_ids), []).append(clock() - began)
            at = 1
            while at + gamma < len(output):
                began = clock()
                line.rebase(output[:at])
                drafts = take_steps(line, gamma) or []
                if len(drafts) >= gamma:
                    found.setdefault(gamma, []).append(clock() - began)
                at += common_prefix_length(drafts[:gamma], output[at:]) + 1
    return _by_work(found), _by_work(first)


def _by_work(found: dict[int, list[float]]) -> list[Times]:
    return [Times(work=size, seconds=tuple(seconds)) for size, seconds in sorted(found.items())]
