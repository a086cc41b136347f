"""Targets, the jobs of requests there, and what targets report."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

import simpy

from dsd_env.laws import batching, reports, step_times
from dsd_env.laws.constants import REPORTS_KEPT, SLOPE_TOKENS
from dsd_env.scenario.schema import Target
from dsd_env.sim.entities.drafters import SiteDrafter
from dsd_env.sim.entities.step_timer import StepTimer

if TYPE_CHECKING:
    from dsd_env.sim.entities.requests import Request
    from dsd_env.sim.entities.streams import Stream


class TargetTask(IntEnum):
    """What a request asks of its target."""

    PREFILL = 0
    VERIFY = 1
    PLAIN = 2
    COLOCATED = 3
    STREAM = 4


@dataclass(slots=True, eq=False)
class Job:
    """The work of one request at a target, from the arrival of its message until it is done.

    Attributes:
        request: The request.
        task: What the target does once the context is in its KV.
        gamma: Draft tokens to verify (VERIFY; STREAM, in the present iteration) or to draft and verify
            (COLOCATED).
        chunk_tokens: Tokens still to decode (PLAIN).
        prefill_tokens: Context tokens that still must be prefilled first.
        warm_drafter: Whether the co-located drafter prefills the same tokens.
        done: Event of the job's end.
        drafter_number: Number of the drafter whose drafts are to be verified, that is to draft (COLOCATED),
            or that prefills along (`warm_drafter`).
        asked_batch: Batch size of the decision behind it, B; 1 asks for no wait.
        entered_s: When it began to wait for admission.
        prefilled_tokens: Context tokens prefilled so far.
        queued_s: When it joined the target's ready queue.
        sequence: Rank in which it joined; breaks ties.
        stream: The stream whose drafts it verifies (STREAM).
        coalesces: Whether it waits for the batch that it asks for once its context is there.
        idle: It waits for drafts, and is neither ready nor in an iteration (STREAM).
        idles: How often it has begun to.
        closes: Its stream is to be closed.
        dropped: Tokens that its drafter has made, or makes, beside the `gamma`, and that are no part of the
            draft: a stop rule has doubted them.
    """

    request: Request
    task: TargetTask
    gamma: int
    chunk_tokens: int
    prefill_tokens: int
    warm_drafter: bool
    done: simpy.Event
    drafter_number: int = -1
    asked_batch: int = 1
    entered_s: float = 0.0
    prefilled_tokens: int = 0
    queued_s: float = 0.0
    sequence: int = 0
    stream: Stream | None = None
    coalesces: bool = False
    idle: bool = False
    idles: int = 0
    closes: bool = False
    dropped: int = 0

    @property
    def least_batch(self) -> int:
        """The smallest batch that it wants to take part in: B if its drafts came from elsewhere."""
        return batching.least_batch(self.coalesces and self.prefill_tokens == 0, self.asked_batch)

    def prefill_again(self) -> None:
        """Prefill the whole lost context again, but for the newest token, which the task processes.

        A request that was in before does not stand back when it returns.
        """
        newest = 0 if self.task == TargetTask.PREFILL else 1
        self.prefill_tokens = self.request.context_tokens - newest
        self.prefilled_tokens = 0
        self.asked_batch = 1

    def skip_cached(self, cached_tokens: int) -> None:
        """Leave out of the prefill what the prefix cache still holds; a prompt's last token stays."""
        needed = 1 if self.task == TargetTask.PREFILL else 0
        skipped = min(cached_tokens, self.prefill_tokens - needed)
        self.prefill_tokens -= skipped
        self.prefilled_tokens += skipped


@dataclass(slots=True)
class Report:
    """The state of a target, as the target reports it.

    Attributes:
        time_s: When the report was made.
        queued: Requests that wait for admission or for an iteration.
        running: Sequences in the iteration under way.
        resident: Requests that are admitted there: they hold a seat and KV.
        waiting: Requests that wait for admission.
        remaining_s: Expected time until the iteration under way ends.
        iteration_s: Running mean iteration time.
        kv_fraction: Share of the KV pool reserved.
        token_s: Marginal time of one more new token at the usual size of an iteration, from the profile.
        up: Whether the target runs; a target that is down is reported, too.
        plain: Requests at this target whose newest job there was plain decoding. This and the two following
            count each request whose target this is from its first job after the prefill on, also while it
            waits for admission, having moved here or lost its KV. So their sum may be above `resident`, and
            it is below where residents have had nothing but their prefill.
        colocated: Requests whose newest job there was drafted on its own GPUs.
        remote: Requests whose newest job there was to verify drafts made elsewhere, streams included.
        gamma_mean: Mean number of drafts in the newest jobs of the latter two; a stream's is its window.
        prefill_tokens: Context tokens that its jobs still have to prefill.
    """

    time_s: float
    queued: int
    running: int
    resident: int
    waiting: int
    remaining_s: float
    iteration_s: float
    kv_fraction: float
    token_s: float
    up: bool
    plain: int
    colocated: int
    remote: int
    gamma_mean: float
    prefill_tokens: int


class TargetServer:
    """A target: admission queue, ready queue, KV pool and the iteration under way."""

    def __init__(
        self,
        number: int,
        config: Target,
        timer: StepTimer,
        drafters: tuple[SiteDrafter, ...],
    ) -> None:
        """Set up an idle target.

        Args:
            number: Number of the target.
            config: Its configuration.
            timer: Iteration times of the target model.
            drafters: The drafters at it, in order. Those without a server of their own share its GPUs.
        """
        self.number = number
        self.config = config
        self.timer = timer
        self.drafters = drafters
        self.shared = {drafter.number: drafter.timer for drafter in drafters if drafter.server is None}
        self.waiting: deque[Job] = deque()
        self.ready: list[Job] = []
        self.running: list[tuple[Job, int]] = []
        self.kv_reserved_tokens = 0
        self.kv_given_tokens = 0
        self.resident = 0
        self.is_occupied = False
        # Infinite while somebody is there; after that the end of the time that it is kept, and paid for.
        self.kept_until_s = 0.0
        # What each request whose target it is has last asked of it, and with how many drafts.
        self.modes: dict[int, tuple[TargetTask, int]] = {}
        self.iterations = 0
        self.joined = 0
        self.admissions = 0
        self.busy_s = 0.0
        self.iteration_start_s = 0.0
        self.expected_end_s = 0.0
        self.iteration_s = timer.step_s(1, 0, 0) + timer.overhead_s(1, 1, 0)
        self.idle = True
        self.down = 0
        self.end: simpy.Event | None = None
        self.check_s = math.inf
        self.admission_check_s = math.inf
        self.reports: deque[Report] = deque(maxlen=REPORTS_KEPT)
        self.iteration_tokens = 1.0
        chunk = config.max_num_batched_tokens
        self.prefill_token_s = step_times.prefill_token_s(timer, chunk)

    def busy_until_s(self, now_s: float) -> float:
        """Return how long it has been busy, the iteration under way included."""
        return self.busy_s if self.idle else self.busy_s + (now_s - self.iteration_start_s)

    def compose(self) -> list[tuple[Job, int]]:
        """Take the next batch from the ready queue: jobs with their number of new tokens.

        All take part whose new tokens fit into `max_num_batched_tokens`: one class (prefill or decode) first,
        then the other, and within a class first come, first served, or shortest first, but for the job that
        has waited longest, which goes before the others of its class. A prefill takes what is left of the
        budget; a verification takes part as a whole or not at all.
        """
        for job in self.ready:
            if job.stream is not None and job.prefill_tokens == 0:
                job.gamma = job.stream.drafts_to_take(job.request.committed)
        config = self.config
        rank_of_prefill = 1 if config.order == "decode_first" else -1
        shortest_first = config.within_class == "shortest_first"
        oldest = min(self.ready, key=lambda job: (job.queued_s, job.sequence))

        def key(job: Job) -> tuple[int, bool, int, float, int]:
            size = (job.prefill_tokens or job.gamma) if shortest_first else 0
            return (
                rank_of_prefill if job.prefill_tokens else 0,
                job is not oldest,
                size,
                job.queued_s,
                job.sequence,
            )

        budget = config.max_num_batched_tokens
        batch: list[tuple[Job, int]] = []
        left: list[Job] = []
        for job in sorted(self.ready, key=key):
            tokens = min(job.prefill_tokens, budget) if job.prefill_tokens else job.gamma + 1
            if 0 < tokens <= budget:
                budget -= tokens
                batch.append((job, tokens))
            else:
                left.append(job)
        self.ready = left
        return batch

    def is_due(self, now_s: float) -> bool:
        """Return whether an iteration of the ready jobs, of which there are some, begins now."""
        least = min(job.least_batch for job in self.ready)
        return batching.starts(len(self.ready), self.resident, least, now_s, self.due_s)

    @property
    def due_s(self) -> float:
        """When an iteration begins at the latest: no ready job waits longer than `max_batch_wait_s`."""
        return min(job.queued_s for job in self.ready) + self.config.max_batch_wait_s

    def cached_tokens(self, request: Request) -> int:
        """Return how much of a preempted request's KV nobody has overwritten yet."""
        if not self.config.prefix_cache:
            return 0
        return batching.cached_tokens(
            request.kept_tokens, self.kv_given_tokens, request.overwritten_from_tokens
        )

    def report(self, now_s: float) -> Report:
        """Return the present state as a report."""
        return Report(
            now_s,
            len(self.ready) + len(self.waiting),
            len(self.running),
            self.resident,
            len(self.waiting),
            reports.remaining_s(self.idle, self.expected_end_s, now_s),
            self.iteration_s,
            self.kv_reserved_tokens / self.config.kv_capacity_tokens,
            self._token_s(),
            self.down == 0,
            *self._modes(),
            sum(
                job.prefill_tokens for job in (*self.ready, *self.waiting, *(job for job, _ in self.running))
            ),
        )

    def _modes(self) -> tuple[int, int, int, float]:
        """Return how many requests decode plainly, draft here, draft elsewhere, and their mean gamma."""
        tasks = [task for task, _ in self.modes.values()]
        colocated = tasks.count(TargetTask.COLOCATED)
        remote = tasks.count(TargetTask.VERIFY) + tasks.count(TargetTask.STREAM)
        gammas = sum(gamma for task, gamma in self.modes.values() if task != TargetTask.PLAIN)
        mean = reports.mean_gamma(gammas, colocated + remote)
        return tasks.count(TargetTask.PLAIN), colocated, remote, mean

    def _token_s(self) -> float:
        timer = self.timer
        return step_times.marginal_token_s(timer, len(timer.compute_s), self.iteration_tokens, SLOPE_TOKENS)

    def noise(self, seed: int) -> float:
        """Return the random factor of the next iteration's time."""
        return step_times.iteration_noise(self.config, seed, self.number, self.iterations)
