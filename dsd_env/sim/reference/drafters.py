"""Drafters: on devices, on edge servers, on GPUs of their own beside a target. First come, first served."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import simpy

from dsd_env.control.view import DrafterKind
from dsd_env.sim.entities import (
    DrafterServer,
    DraftJob,
    HeadStart,
    JobState,
    Request,
    SiteDrafter,
    servers_of,
)
from dsd_env.sim.events import EventKind, Order
from dsd_env.sim.reference.accounts import Accounts
from dsd_env.sim.reference.episode import Episode, Part
from dsd_env.sim.reference.resolution import Resolution
from dsd_env.sim.reference.stopping import Drafts, drafts_of, rule_of


class Drafters(Part):
    """Runs draft jobs: of rounds and streams, drafter prefills, and what is drafted ahead of a verification.

    Attributes:
        stop: When drafts end whose decisions do not say so; None: at their length.
        when_down: Called with a server that has crashed, before its jobs are queued again.
        when_up: Called with a server that is up again.
    """

    def __init__(self, episode: Episode, accounts: Accounts) -> None:
        """Take part in an episode."""
        super().__init__(episode)
        self._accounts = accounts
        self.stop = rule_of(self._protocol)
        self.when_down: Callable[[DrafterServer], None] = lambda _server: None
        self.when_up: Callable[[DrafterServer], None] = lambda _server: None

    def drafts(self, request: Request, drafter: SiteDrafter, resolution: Resolution) -> Drafts:
        """Return what a drafter makes of the window of a decision.

        The decision's stop rule, or else the protocol's, may end it, but not that of a look-up, which has no
        probabilities. It proposes what it has found, perhaps nothing.
        """
        realisation = request.realise(self._episode.seed, drafter.model)
        if drafter.kind == DrafterKind.LOOKUP:
            return Drafts(realisation.proposed_at(request.committed, resolution.gamma))
        return drafts_of(resolution.stop or self.stop, realisation, request.committed, resolution.gamma)

    def draft_window(self, request: Request, drafter: SiteDrafter, made: int) -> simpy.Event:
        """Make the drafts of a window, using a head start if there is one; return the event of their end."""
        head, request.head_start = request.head_start, None
        if head is None:
            request.chain_start = request.committed
        else:
            self._totals.discarded += max(0, head.drafts - made)
        lag = request.drafter_lag(drafter.number)
        done = self._env.event()
        request.draft = DraftJob(
            request,
            drafter,
            made,
            lag,
            request.context_tokens,
            done,
            opens=made > 0,
            head_start=head,
        )
        return self.queue_job(request.draft)

    def draft_ahead(self, request: Request, drafter: SiteDrafter, drafted: int) -> None:
        """Draft ahead while a window is verified: guess the token after it and draft another window.

        A look-up has no time to gain by that, and who doubts the first draft of a window none to guess by.
        """
        context = request.context_tokens + drafted
        if drafter.kind == DrafterKind.LOOKUP or drafted == 0:
            return
        if self._protocol.kind != "pipelined" or context + drafted + 1 > drafter.kv_capacity_tokens:
            return
        done = self._env.event()
        request.ahead = DraftJob(request, drafter, drafted + 1, 1, context, done, is_ahead=True)
        self.queue_job(request.ahead)

    def settle_ahead(self, request: Request) -> None:
        """Keep what was drafted ahead if the result confirms it; otherwise roll it back."""
        job, request.ahead = request.ahead, None
        if job is None:
            return
        done_s = job.done_s(self._now_s)
        tokens = job.tokens_after(done_s)
        if tokens > 0 and request.context_tokens == job.context_tokens + 1:
            # The whole window was right, and the drafter has processed all of it.
            request.drafter_valid[job.drafter.number] = job.context_tokens
        if request.guessed and done_s > 0.0:
            self.withdraw(job)
            request.head_start = HeadStart(job.drafter.number, job.context_tokens, done_s, tokens)
        else:
            self.roll_back(job)

    def roll_back(self, job: DraftJob) -> None:
        """Discard what a job has drafted ahead."""
        tokens = self.withdraw(job)
        self._totals.discarded += tokens
        self._log(EventKind.ROLLBACK, job.drafter.number, job.request, tokens)

    def discard_head_start(self, request: Request) -> None:
        """Discard a head start that the next window cannot use."""
        head, request.head_start = request.head_start, None
        assert head is not None
        self._totals.discarded += head.tokens
        self._log(EventKind.ROLLBACK, head.drafter_number, request, head.tokens)

    def withdraw(self, job: DraftJob) -> int:
        """Remove a job from its drafter; return how many of its tokens are complete."""
        tokens = job.tokens_after(job.done_s(self._now_s))
        if job.state == JobState.QUEUED:
            job.drafter.own_server.queue.remove(job)
        elif job.state == JobState.ACTIVE:
            assert job.timer is not None and job.timer.callbacks is not None
            job.timer.callbacks.clear()
            self._leave(job, tokens)
        return tokens

    def turn_of(self, job: DraftJob | None) -> int | None:
        """Return how many jobs are before one that waits; None if it does not wait."""
        if job is None or job.state != JobState.QUEUED:
            return None
        return job.drafter.own_server.queue.index(job)

    def queue_job(self, job: DraftJob, turn: int | None = None) -> simpy.Event:
        """Queue a job at its drafter, last or behind ``turn`` others; return the event of its end."""
        server = job.drafter.own_server
        server.queue.insert(len(server.queue) if turn is None else turn, job)
        self._start_drafts(server)
        return job.done

    def _start_drafts(self, server: DrafterServer) -> None:
        now_s = self._now_s
        while server.can_start:
            job = server.queue.popleft()
            begins = not server.active
            if begins:
                server.busy_since_s = now_s
            server.active.append(job)
            if begins and server.gpus > 0.0:
                self._accounts.occupancy_changes()
            job.start(now_s, self._episode.seed)
            number = job.drafter.number
            self._log(EventKind.DRAFT_START, number, job.request, job.gamma)
            job.timer = self._env.call_at(
                now_s + job.duration_s, Order.DRAFT_END, number, partial(self._draft_ended, job)
            )

    def _draft_ended(self, job: DraftJob) -> None:
        """Let a complete job leave its drafter."""
        server = job.drafter.own_server
        duration_s = self._now_s - job.start_s
        server.mean_job_s += self._protocol.stats_window * (duration_s - server.mean_job_s)
        if job.request.draft is job:
            job.request.draft = None
        # The job leaves the drafter before the request goes on.
        self._leave(job, job.gamma)
        job.done.succeed()

    def _leave(self, job: DraftJob, tokens: int) -> None:
        """Let a job, complete or not, leave its drafter, and start the next."""
        server, now_s = job.drafter.own_server, self._now_s
        job.state = JobState.ENDED
        server.active.remove(job)
        if not server.active:
            self._drafting_over(server)
        self._log(EventKind.DRAFT_END, job.drafter.number, job.request, tokens)
        label = "draft" if job.gamma or job.of_stream else "prefill"
        self._episode.add_bar(server.lane, label, job.start_s, now_s, job.request.number)
        self._start_drafts(server)

    def _drafting_over(self, server: DrafterServer) -> None:
        """Book the cost of a busy period of what drafters run on, which has just ended."""
        busy_s = self._now_s - server.busy_since_s
        server.busy_s += busy_s
        joules = (server.power.busy_w - server.power.idle_w) * busy_s
        self._totals.energy_joules += joules
        if server.gpus == 0.0:  # a user's device
            self._totals.client_joules += joules
        else:
            self._totals.gpu_s += busy_s * server.gpus
            self._accounts.occupancy_changes()

    def crash_drafters(self, drafters: tuple[SiteDrafter, ...]) -> None:
        """Take their KV from the drafters of a site that have servers of their own.

        They redo their drafts after their return, but not those drafted ahead.
        """
        for server in servers_of(drafters):
            server.down += 1
            if server.down > 1:
                continue
            for drafter in drafters:
                if drafter.server is server:
                    self.lose_kv(drafter.number)
            self.when_down(server)
            for job in [*server.active, *server.queue]:
                if job.is_ahead:
                    self.roll_back(job)
                    job.request.ahead = None
            if server.active:
                server.queue.extendleft(reversed(server.active))
                server.active.clear()
                self._drafting_over(server)
            for job in server.queue:
                job.begin_anew()

    def drafters_return(self, drafters: tuple[SiteDrafter, ...]) -> None:
        """Let the servers of a site's drafters go up again, unless another fault keeps them down."""
        for server in servers_of(drafters):
            server.down -= 1
            self._start_drafts(server)
            if server.down == 0:
                self.when_up(server)

    def lose_kv(self, drafter_number: int) -> None:
        """Take a drafter's KV of every request, and what it has drafted ahead."""
        for request in self._episode.active.values():
            request.drafter_valid.pop(drafter_number, None)
            if request.head_start is not None and request.head_start.drafter_number == drafter_number:
                self.discard_head_start(request)
