"""The entities of a simulation: step timers, drafter servers, targets, devices and requests.

They hold state and compute durations; the engine decides what happens and when.
"""

from __future__ import annotations

import copy
import functools
import math
from collections import deque
from dataclasses import dataclass, field
from enum import IntEnum

import simpy

from dsd_env.acceptance import AcceptanceRealisation, AcceptanceSource, TraceReplay
from dsd_env.control.view import RECENT_ROUNDS, DrafterKind, Site
from dsd_env.latency import NO_OVERHEAD, EngineOverhead, LatencyProfile, StepCoefficients
from dsd_env.laws import batching, drafting, reports, step_times
from dsd_env.laws.constants import (
    ACCEPTANCE_PRIOR,
    REPORTS_KEPT,
    SLOPE_TOKENS,
    TOKENS_PER_ROUND_PRIOR,
)
from dsd_env.network import Channel
from dsd_env.scenario.schema import Lookup, Power, Target
from dsd_env.workload import RequestSpec


@functools.lru_cache(maxsize=64)
def _compute_table_s(coefficients: StepCoefficients, max_tokens: int, pass_s: float) -> tuple[float, ...]:
    """Return the attention-free time of 0 … ``max_tokens`` new tokens; the same for every world."""
    return tuple(coefficients.compute_s(m) + pass_s for m in range(max_tokens + 1))


class StepTimer:
    """Iteration times of a latency profile, looked up in a table.

    Every engine reads the attention-free part from the same float64 table, so that all of them
    compute the same iteration times to the last bit.

    Attributes:
        compute_s: Attention-free time by number of new tokens; shared between timers.
        factor: Factor on every time.
        k_bw_s: Seconds per KV token read when every sequence has one new token.
        k_multi_s: Seconds per KV token read when some sequence has more.
        k_lat_s: Seconds per KV token of the longest sequence with more than one new token.
        per_round: It is that of a look-up, whose one step makes all proposals of a round.
        verify_share: Share of the target's part of an iteration that a look-up takes besides.
        per_iteration_s: What the engine adds to a target's iteration; see :func:`step_times.overhead_s`.
        per_sequence_s: The same for each sequence in it.
        per_token_s: The same for each new token.
        per_verifying_iteration_s: The same if it verifies drafts.
        token_limit: Beyond so many new tokens in an iteration, `per_token_s` is not added.
    """

    __slots__ = (
        "compute_s",
        "factor",
        "k_bw_s",
        "k_lat_s",
        "k_multi_s",
        "per_iteration_s",
        "per_round",
        "per_sequence_s",
        "per_token_s",
        "per_verifying_iteration_s",
        "token_limit",
        "verify_share",
    )

    def __init__(
        self,
        profile: LatencyProfile | StepCoefficients,
        max_tokens: int,
        engine: EngineOverhead = NO_OVERHEAD,
        pass_s: float = 0.0,
    ) -> None:
        """Tabulate a profile.

        Args:
            profile: The profile.
            max_tokens: Up to so many new tokens.
            engine: What the engine of a target adds to its iterations.
            pass_s: What an engine adds to each pass of a drafter.
        """
        coefficients = profile.coefficients if isinstance(profile, LatencyProfile) else profile
        self.compute_s = _compute_table_s(coefficients, max_tokens, pass_s)
        self.factor = 1.0
        self.per_iteration_s = engine.per_iteration_s
        self.per_sequence_s = engine.per_sequence_s
        self.per_token_s = engine.per_token_s
        self.per_verifying_iteration_s = engine.per_verifying_iteration_s
        self.token_limit = engine.token_limit
        self.k_bw_s = coefficients.k_bw_s_per_token
        self.k_multi_s = coefficients.k_bw_s_per_token + coefficients.k_multi_s_per_token
        self.k_lat_s = coefficients.k_lat_s_per_token
        self.per_round = False
        self.verify_share = 0.0

    @classmethod
    def of_lookup(cls, lookup: Lookup, max_tokens: int) -> StepTimer:
        """Return the timer of a look-up, whose step takes the same time whatever it processes."""
        timer = cls(StepCoefficients(t0_s=1.0, w_s=0.0, c_s_per_token=0.0, p=1.0), 0)
        timer.compute_s = (lookup.cost_per_round_s,) * (max_tokens + 1)
        timer.per_round = True
        timer.verify_share = lookup.share_of_verify
        return timer

    def scaled(self, factor: float) -> StepTimer:
        """Return a timer whose every time is ``factor`` times this one's."""
        timer = copy.copy(self)
        timer.factor = self.factor * factor
        return timer

    def overhead_s(self, sequences: int, new_tokens: int, verifying: int) -> float:
        """Return what the engine adds to an iteration; see :func:`step_times.overhead_s`."""
        return step_times.overhead_s(self, sequences, new_tokens, verifying)

    def step_s(self, new_tokens: int, kv_tokens: int, max_kv_multi_tokens: int) -> float:
        """Return the time of one iteration; see :mod:`dsd_env.latency.profile` for the form."""
        return step_times.step_s(self, self.factor, new_tokens, kv_tokens, max_kv_multi_tokens)

    def draft_s(
        self, lag_tokens: int, context_tokens: int, gamma: int, active: int, active_kv_tokens: int
    ) -> float:
        """Return the time to process the KV lag and draft; see :func:`dsd_env.laws.step_times.draft_s`."""
        return step_times.draft_s(
            self, self.factor, lag_tokens, context_tokens, gamma, active, active_kv_tokens
        )


class TargetTask(IntEnum):
    """What a request asks of its target."""

    PREFILL = 0
    VERIFY = 1
    PLAIN = 2
    COLOCATED = 3


@dataclass(slots=True, eq=False)
class Job:
    """The work of one request at a target, from the arrival of its message until it is done.

    Attributes:
        request: The request.
        task: What the target does once the context is in its KV.
        gamma: Draft tokens to verify (VERIFY) or to draft and verify (COLOCATED).
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

    @property
    def least_batch(self) -> int:
        """The smallest batch that it wants to take part in: B if its drafts came from elsewhere."""
        task = TargetTask.PREFILL if self.prefill_tokens else self.task
        return batching.least_batch(task, self.asked_batch)

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
        resident: Requests with KV there.
        waiting: Requests that wait for admission.
        remaining_s: Expected time until the iteration under way ends.
        iteration_s: Running mean iteration time.
        kv_fraction: Share of the KV pool reserved.
        token_s: Marginal time of one more new token at the usual size of an iteration, from the profile.
        up: Whether the target runs; a target that is down is reported, too.
        plain: Residents whose newest job there was plain decoding.
        colocated: Residents whose newest job there was drafted on its own GPUs.
        remote: Residents whose newest job there was to verify drafts made elsewhere.
        gamma_mean: Mean number of drafts in the newest jobs of the latter two.
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
        # What each resident has last asked of it, and with how many drafts.
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
        """Return how many residents decode plainly, draft here, draft elsewhere, and their mean gamma."""
        tasks = [task for task, _ in self.modes.values()]
        colocated, remote = tasks.count(TargetTask.COLOCATED), tasks.count(TargetTask.VERIFY)
        gammas = sum(gamma for task, gamma in self.modes.values() if task != TargetTask.PLAIN)
        mean = reports.mean_gamma(gammas, colocated + remote)
        return tasks.count(TargetTask.PLAIN), colocated, remote, mean

    def _token_s(self) -> float:
        timer = self.timer
        return step_times.marginal_token_s(timer, len(timer.compute_s), self.iteration_tokens, SLOPE_TOKENS)

    def noise(self, seed: int) -> float:
        """Return the random factor of the next iteration's time."""
        return step_times.iteration_noise(self.config, seed, self.number, self.iterations)


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
    head_start: HeadStart | None = None
    state: JobState = JobState.QUEUED
    start_s: float = 0.0
    duration_s: float = 0.0
    first_s: float = 0.0

    def start(self, now_s: float) -> None:
        """Compute when the job ends; the drafter must have put it among its active jobs already.

        A job with a head start continues from it, if that is faster than drafting the window anew from the
        committed tokens.
        """
        active = self.drafter.own_server.active
        kv_tokens = sum(job.context_tokens for job in active)
        self.state = JobState.ACTIVE
        timer = self.drafter.timer
        drafting.start_job(self, timer, timer.factor, len(active), kv_tokens, now_s)

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


@dataclass(slots=True)
class Learned:
    """What a request's controller has learned of a draft model.

    Attributes:
        acceptance_rate: Running acceptance rate.
        tokens_per_round: Running number of committed tokens per round.
        model_rounds: Number of rounds.
    """

    acceptance_rate: float = ACCEPTANCE_PRIOR
    tokens_per_round: float = TOKENS_PER_ROUND_PRIOR
    model_rounds: int = 0


@dataclass(slots=True)
class Device:
    """A client device with its links and its drafter, if it has one.

    Attributes:
        number: Number of the device.
        up: Channel towards the targets.
        down: Channel from the targets.
        edge_up: Channel towards the edge servers.
        edge_down: Channel from the edge servers.
        drafters: Its drafters, in order.
        radio_joules_per_byte: Energy of its radio.
        rtt_s: Running mean of the round-trip times that its controller has measured.
        rtt_deviation_s: Running mean of their absolute deviations from it.
        rtt_sample_s: When the newest of them was measured.
        loss: Running share of messages that needed a retransmission.
        down_faults: Number of faults that keep it down; 0 while it is up.
    """

    number: int
    up: Channel
    down: Channel
    edge_up: Channel | None
    edge_down: Channel | None
    drafters: tuple[SiteDrafter, ...]
    radio_joules_per_byte: float
    rtt_s: float
    rtt_deviation_s: float = 0.0
    rtt_sample_s: float = -1.0
    loss: float = 0.0
    down_faults: int = 0

    @property
    def drafter(self) -> SiteDrafter | None:
        """The first of its drafters; None if it has none."""
        return self.drafters[0] if self.drafters else None

    @property
    def jobs(self) -> int:
        """Draft jobs under way and waiting on it."""
        return sum(len(server.active) + len(server.queue) for server in servers_of(self.drafters))

    def measure(self, now_s: float, sample_s: float, weight: float) -> None:
        """Take a round-trip sample into the running estimates."""
        reports.measure_round_trip(self, now_s, sample_s, weight)


@dataclass(slots=True, eq=False)
class Request:
    """A request and its state.

    Attributes:
        number: Its rank by arrival in the episode, from 0.
        spec: What the workload draws: its class, its lengths and its SLO.
        device: The device that it comes from.
        arrival_s: When it arrived.
        acceptance: Realised acceptance by draft model.
        committed: Output tokens committed at the target.
        target: Target that holds its KV; -1 before admission.
        control: Site and number (of device, edge server or target) where its decisions are taken.
        drafted_at: Number of the drafter of the last draft round; -1 before the first.
        drafter_valid: Number of its context tokens that each drafter's KV holds, by drafter number.
        warming: Drafter prefills under way, by drafter number.
        process: Its SimPy process.
        draft: Draft job of the present round; None once it has ended.
        ahead: Job that drafts ahead while the target verifies.
        head_start: What was drafted ahead, once the guess has turned out right.
        guessed: Whether the last window and the guess of the token after it were right.
        chain_start: Output position from which its drafter has drafted without beginning anew.
        in_flight: Arrival of its message that is under way.
        served: Counter of jobs queued at targets and of cancellations. A target's patience has run out if
            the counter has not changed meanwhile.
        exchange: Counter of windows sent, results received and cancellations. A device's time-out has run
            out if the counter has not changed meanwhile.
        kv_reserved_tokens: KV tokens that it holds at its target; 0 while it waits for room there.
        admission: Its rank among the admissions to its target.
        kept_tokens: KV tokens that the target still had of it when it was preempted.
        overwritten_from_tokens: Reading of the target's `kv_given_tokens` from which on they are overwritten.
        report: Report of its target that came with the newest result.
        own_jobs: Number of draft jobs on its device when its controller last saw them.
        learned: What its controller has learned of each draft model, by name.
        delay_caused_s: Time by which it has delayed other requests, summed over them, if that is computed.
        longest_gap_s: Longest time between tokens at its client.
        late_gaps: Gaps longer than its SLO allows.
        late_tokens: Tokens that came after their deadlines.
    """

    number: int
    spec: RequestSpec
    device: Device
    arrival_s: float
    control: tuple[Site, int]
    acceptance: dict[str, AcceptanceRealisation]
    sources: dict[str, tuple[AcceptanceSource, str]]
    committed: int = 0
    target: int = -1
    drafted_at: int = -1
    drafter_valid: dict[int, int] = field(default_factory=dict)
    warming: dict[int, simpy.Event] = field(default_factory=dict)
    process: simpy.Process | None = None
    draft: DraftJob | None = None
    ahead: DraftJob | None = None
    head_start: HeadStart | None = None
    guessed: bool = False
    chain_start: int = 0
    in_flight: simpy.Event | None = None
    served: int = 0
    exchange: int = 0
    kv_reserved_tokens: int = 0
    admission: int = 0
    kept_tokens: int = 0
    overwritten_from_tokens: int = 0
    report: Report | None = None
    own_jobs: int = 0
    delay_caused_s: float = 0.0
    decisions: int = 0
    rounds: int = 0
    verifies: int = 0
    drafted: int = 0
    accepted: int = 0
    round_tokens: int = 0
    first_commit_s: float = 0.0
    last_commit_s: float = 0.0
    delivery_s: list[float] = field(default_factory=list)
    delivery_tokens: list[int] = field(default_factory=list)
    completed_s: float = math.nan
    acceptance_rate: float = ACCEPTANCE_PRIOR
    tokens_per_round: float = TOKENS_PER_ROUND_PRIOR
    learned: dict[str, Learned] = field(default_factory=dict)
    recent_gammas: tuple[int, ...] = (0,) * RECENT_ROUNDS
    recent_accepted: tuple[int, ...] = (0,) * RECENT_ROUNDS
    last_confidence: float = 0.0
    longest_gap_s: float = 0.0
    late_gaps: int = 0
    late_tokens: int = 0

    def learn(
        self, model: str, drafted: int, accepted: int, committed: int, confidence: float, weight: float
    ) -> None:
        """Update the controller's statistics by the outcome of a draft round."""
        of_model = self.learned.setdefault(model, Learned())
        drafting.learn_round(of_model, drafted, accepted, committed, weight)
        of_model.model_rounds += 1
        self.recent_gammas = (drafted, *self.recent_gammas[:-1])
        self.recent_accepted = (accepted, *self.recent_accepted[:-1])
        drafting.learn_round(self, drafted, accepted, committed, weight)
        self.last_confidence = confidence

    @property
    def context_tokens(self) -> int:
        """Prompt and committed output."""
        return self.spec.prompt_tokens + self.committed

    @property
    def finished(self) -> bool:
        """Whether all its tokens are committed."""
        return self.committed >= self.spec.output_tokens

    def drafter_lag(self, drafter_number: int) -> int:
        """Return how many committed tokens a drafter has not processed: at least 1, the newest."""
        return self.context_tokens - self.drafter_valid.get(drafter_number, 0)

    def realise(self, seed: int, model: str) -> AcceptanceRealisation:
        """Return the acceptance of a draft model's proposals; it is drawn at the first call."""
        realisation = self.acceptance.get(model)
        if realisation is None:
            source, drafter = self.sources[model]
            spec = self.spec
            kinds = spec.acceptance_kinds or None
            if isinstance(source, TraceReplay):
                realisation = source.realise(
                    seed, spec.uid, spec.output_tokens, drafter, kinds, spec.recorded
                )
            else:
                realisation = source.realise(seed, spec.uid, spec.output_tokens, drafter, kinds)
            self.acceptance[model] = realisation
        return realisation
