"""Drafters, what they run on, and their jobs."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING

import simpy

from dsd_env.control.view import DrafterKind
from dsd_env.laws import drafting, reports
from dsd_env.laws.constants import REPORTS_KEPT
from dsd_env.scenario.schema import Power
from dsd_env.sim.entities.step_timer import StepTimer

if TYPE_CHECKING:
    from dsd_env.sim.entities.requests import Request


@dataclass(slots=True, eq=False)
class SiteDrafter:
    """One of the drafters at a site: a device, an edge server or a target.

    Attributes:
        number: Its number: r times the number of sites and that of its site, for the r-th drafter there from
            0. Sites are numbered devices first, then edge servers, then targets.
        kind: What proposes.
        model: Its draft model.
        timer: Step times.
        concurrency: Number of its jobs that can run together.
        kv_capacity_tokens: Longest context that it can hold.
        server: What it runs on; None if that is its target's GPUs, or the CPU within its iterations.
        reports: Periodic reports (time, jobs, expected wait, up), newest last.
    """

    number: int
    kind: DrafterKind
    model: str
    timer: StepTimer
    concurrency: int
    kv_capacity_tokens: int
    server: DrafterServer | None
    reports: deque[tuple[float, int, float, bool]] = field(default_factory=lambda: deque(maxlen=REPORTS_KEPT))

    @property
    def own_server(self) -> DrafterServer:
        """The server of a drafter that does not share its target's."""
        assert self.server is not None
        return self.server

    @property
    def can_stream(self) -> bool:
        """Whether it can stream its drafts: a draft model that does not share its target's GPUs."""
        return self.server is not None and self.kind == DrafterKind.MODEL

    def report(self, now_s: float) -> tuple[float, int, float, bool]:
        """Return (time, jobs, expected wait, up) as the drafter would report them now."""
        server = self.own_server
        active, queued = len(server.active), len(server.queue)
        same = not server.active or server.active[0].drafter is self
        taken = reports.places_taken(active, queued, self.concurrency, same)
        wait_s = reports.drafter_wait_s(taken, queued, self.concurrency, server.mean_job_s)
        return now_s, active + queued, wait_s, server.down == 0


class DrafterServer:
    """What drafters run on: a device, an edge server, or GPUs of a drafter's own beside a target.

    It serves its jobs first come, first served, one drafter's at a time, and of that up to its `concurrency`
    together, which share each step. Draft models on one device or edge server share it; a look-up has a
    server of its own, a CPU, as has a dedicated drafter.

    Attributes:
        lane: Its name in timelines.
        power: Its power, for the energy of drafting.
        gpus: GPUs that the operator pays for; 0 on a user's device.
        price_usd_per_gpu_hour: Price of one of them.
        active: Jobs under way.
        queue: Jobs waiting.
        busy_s: Time with at least one job under way.
        mean_job_s: Running mean of a job's time.
        down: Number of faults that keep it down; 0 while it is up.
    """

    def __init__(
        self,
        lane: str,
        timer: StepTimer,
        power: Power,
        gpus: float = 0.0,
        price_usd_per_gpu_hour: float = 0.0,
    ) -> None:
        """Set up an idle server; `timer` is that of its first drafter, the rest see the class."""
        self.lane = lane
        self.power = power
        self.gpus = gpus
        self.price_usd_per_gpu_hour = price_usd_per_gpu_hour
        self.active: list[DraftJob] = []
        self.queue: deque[DraftJob] = deque()
        self.busy_s = 0.0
        self.busy_since_s = 0.0
        self.mean_job_s = timer.step_s(1, 0, 0)
        self.down = 0

    @property
    def can_start(self) -> bool:
        """Whether the first job in the queue can start now."""
        if self.down or not self.queue:
            return False
        first = self.queue[0].drafter
        return not self.active or (self.active[0].drafter is first and len(self.active) < first.concurrency)


@dataclass(frozen=True, slots=True)
class HeadStart:
    """Tokens that a drafter has drafted ahead, on a guess that has turned out right.

    Attributes:
        drafter_number: Number of the drafter.
        context_tokens: Context that it drafted from: committed tokens and the window under verification.
        done_s: Time that it has spent on drafting ahead.
        tokens: Complete tokens, including the guess of the token after the window.
    """

    drafter_number: int
    context_tokens: int
    done_s: float
    tokens: int

    @property
    def drafts(self) -> int:
        """Complete drafts of the next window."""
        return max(0, self.tokens - 1)


class JobState(IntEnum):
    """Whether a draft job waits, runs or has ended."""

    QUEUED = drafting.QUEUED
    ACTIVE = drafting.ACTIVE
    ENDED = drafting.ENDED


@dataclass(slots=True, eq=False)
class DraftJob:
    """The work of a drafter for one request: drafting, or a drafter prefill (gamma = 0).

    Attributes:
        request: The request.
        drafter: The drafter.
        gamma: Tokens to draft.
        lag_tokens: Committed tokens to process first, the newest included.
        context_tokens: Number of tokens that the drafts follow.
        done: Event of its completion.
        timer: Scheduled event of its end; cancelled if the job is withdrawn or begins anew.
        is_ahead: Whether it drafts ahead of a verification, on a guess.
        of_stream: Whether it drafts the next tokens of a stream.
        opens: Whether it begins a round or a generation, which may take time beside its steps.
        branch_tokens: Tokens of branches that it makes beside (streams).
        head_start: Part of this window that was drafted ahead.
        state: Whether it waits, runs or has ended.
        start_s: When it started.
        duration_s: How long it takes.
        first_s: How long its first token takes.
    """

    request: Request
    drafter: SiteDrafter
    gamma: int
    lag_tokens: int
    context_tokens: int
    done: simpy.Event
    timer: simpy.Event | None = None
    is_ahead: bool = False
    of_stream: bool = False
    opens: bool = False
    branch_tokens: int = 0
    head_start: HeadStart | None = None
    state: JobState = JobState.QUEUED
    start_s: float = 0.0
    duration_s: float = 0.0
    first_s: float = 0.0

    def start(self, now_s: float, seed: int) -> None:
        """Compute when the job ends; the drafter must have put it among its active jobs already.

        A job with a head start continues from it, if that is faster than drafting the window anew from the
        committed tokens.
        """
        active = self.drafter.own_server.active
        kv_tokens = sum(job.context_tokens for job in active)
        branch_tokens = sum(job.branch_tokens for job in active)
        self.state = JobState.ACTIVE
        timer = self.drafter.timer
        drafting.start_job(
            self,
            timer,
            timer.factor,
            len(active),
            kv_tokens,
            branch_tokens,
            now_s,
            seed,
            self.request.number,
        )

    @property
    def head_context_tokens(self) -> int:
        """Context that its head start was drafted from; 0 without one."""
        return 0 if self.head_start is None else self.head_start.context_tokens

    @property
    def head_drafts(self) -> int:
        """Complete drafts of its head start."""
        return 0 if self.head_start is None else self.head_start.drafts

    @property
    def head_done_s(self) -> float:
        """Time that the drafter has spent on its head start."""
        return 0.0 if self.head_start is None else self.head_start.done_s

    def begin_anew(self) -> None:
        """Return to the queue with all its work to do, because the drafter has lost its KV."""
        if self.timer is not None and self.timer.callbacks is not None:
            self.timer.callbacks.clear()
        if self.gamma > 0:
            self.request.chain_start = self.request.committed
            self.opens = True
        self.state = JobState.QUEUED
        self.lag_tokens = self.context_tokens
        self.head_start = None

    def done_s(self, now_s: float) -> float:
        """Return the time that the drafter has spent on it until now."""
        return drafting.done_s(self, now_s)

    def tokens_after(self, done_s: float) -> int:
        """Return how many of its tokens are complete after the drafter has spent ``done_s`` on it."""
        return drafting.tokens_after(self, done_s)


def servers_of(drafters: tuple[SiteDrafter, ...]) -> list[DrafterServer]:
    """Return the servers that drafters of a site run on, each once, in order; not their target."""
    return list(dict.fromkeys(drafter.server for drafter in drafters if drafter.server is not None))
