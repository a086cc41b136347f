"""Target servers: admission to the KV pool, the ready queue, iterations, and what they commit."""

from __future__ import annotations

from dsd_env.control.estimators import note_lengths
from dsd_env.control.view import Site
from dsd_env.laws import drafting, slo
from dsd_env.laws.batching import may_enter
from dsd_env.laws.streams import NOWHERE
from dsd_env.sim.entities import Job, Request, Stream, TargetServer, TargetTask
from dsd_env.sim.events import EventKind, Order
from dsd_env.sim.iteration import IterationCost
from dsd_env.sim.reference.accounts import Accounts
from dsd_env.sim.reference.environment import Process
from dsd_env.sim.reference.episode import Episode, Part
from dsd_env.sim.reference.links import Links
from dsd_env.sim.reference.resolution import Resolution
from dsd_env.sim.reference.shares import bar_label, charge, shares_of


class TargetDownError(Exception):
    """A message has reached a target that is down."""


class Targets(Part):
    """Runs jobs at targets, from the arrival of the message that asks for one until the job is done."""

    def __init__(self, episode: Episode, accounts: Accounts, links: Links) -> None:
        """Take part in an episode."""
        super().__init__(episode)
        self._accounts = accounts
        self._links = links

    def serve(
        self,
        request: Request,
        target: TargetServer,
        task: TargetTask,
        resolution: Resolution | None,
        *,
        gamma: int = 0,
        dropped: int = 0,
        prefill: int = 0,
        warm: bool = False,
        stream: Stream | None = None,
    ) -> Process:
        """Queue a job at a target and wait until it is done; that of a stream is when the stream closes."""
        if target.down:
            request.lost_target = target.number
            raise TargetDownError
        request.served += 1
        chunk = self._protocol.plain_chunk_tokens
        done = self._env.event()
        job = Job(request, task, gamma, chunk, prefill, warm, done, stream=stream, dropped=dropped)
        job.coalesces = task == TargetTask.VERIFY
        if stream is not None:
            stream.job = job
            job.coalesces = self._protocol.stream_idle == "wait"
        if resolution is not None:
            job.drafter_number = resolution.drafter_number
            job.asked_batch = resolution.batch_size
        if request.target != target.number:
            if request.target >= 0:
                self._release(request)
            request.target = target.number
            self._enter(target, job)
        elif request.kv_reserved_tokens == 0:
            # The target has preempted the request since its last job.
            job.prefill_again()
            self._enter(target, job)
        elif stream is not None and job.coalesces and not job.prefill_tokens:
            self._idle(target, job)
        else:
            self._join(target, job)
        request.control = (Site.COLOCATED, target.number)
        if task != TargetTask.PREFILL:
            target.modes[request.number] = (task, gamma if stream is None else stream.window)
        self._wake(target)
        yield job.done
        request.report = target.report(self._now_s)

    def _release(self, request: Request) -> None:
        """Free a request's KV at its target."""
        target = self._world.targets[request.target]
        request.kept_tokens = 0
        if request.kv_reserved_tokens > 0:
            target.kv_reserved_tokens -= request.kv_reserved_tokens
            request.kv_reserved_tokens = 0
            target.resident -= 1
        target.modes.pop(request.number, None)
        self._accounts.occupy(target)
        self._admit(target)
        self._wake(target)

    def _enter(self, target: TargetServer, job: Job) -> None:
        """Let a job's request wait for admission."""
        job.entered_s = self._now_s
        target.waiting.append(job)
        self._accounts.occupy(target)
        self._admit(target)

    def _admit(self, target: TargetServer) -> None:
        """Admit waiting requests in order, past those that stand back, while there are seats and KV."""
        config = target.config
        for job in list(target.waiting):
            if target.resident >= config.max_num_seqs:
                return
            latest_s = job.entered_s + config.max_admission_wait_s
            if not may_enter(target.resident, config.max_num_seqs, job.asked_batch, self._now_s, latest_s):
                continue
            request = job.request
            need = self._kv_to_admit(target, job)
            if target.kv_reserved_tokens + need > config.kv_capacity_tokens:
                return
            target.waiting.remove(job)
            if request.kept_tokens > 0:
                job.skip_cached(target.cached_tokens(request))
                request.kept_tokens = 0
            self._give_kv(target, request, need)
            target.resident += 1
            request.admission = target.admissions
            target.admissions += 1
            self._log(EventKind.ADMIT, target.number, request, need)
            self._join(target, job)

    @staticmethod
    def _give_kv(target: TargetServer, request: Request, tokens: int) -> None:
        target.kv_reserved_tokens += tokens
        target.kv_given_tokens += tokens
        request.kv_reserved_tokens += tokens

    def _kv_to_admit(self, target: TargetServer, job: Job) -> int:
        """Return the free KV tokens that admission takes: a request's worst case, or what it needs now."""
        if target.config.kv_policy == "preempt":
            return job.request.context_tokens + job.gamma
        return self._episode.scenario.kv_reservation_tokens(job.request.spec.prompt_tokens)

    def _join(self, target: TargetServer, job: Job) -> None:
        job.queued_s = self._now_s
        job.sequence = target.joined
        target.joined += 1
        target.ready.append(job)
        self._log(EventKind.ENQUEUE, target.number, job.request, job.gamma + 1)

    def _wake(self, target: TargetServer) -> None:
        """Schedule when a target next has something to do by itself.

        It starts an iteration, or admits a request that has stood back long enough.
        """
        if target.idle and target.ready:
            check_s = self._now_s if target.is_due(self._now_s) else target.due_s
            if check_s < target.check_s:
                target.check_s = check_s
                self._look_at(target, check_s)
        stood_back_s = self._stood_back_s(target)
        if stood_back_s < target.admission_check_s:
            target.admission_check_s = stood_back_s
            self._look_at(target, stood_back_s)

    def _look_at(self, target: TargetServer, time_s: float) -> None:
        self._env.call_at(time_s, Order.ITERATION_START, target.number, lambda: self._check(target))

    def _check(self, target: TargetServer) -> None:
        if target.check_s == self._now_s:
            target.check_s = float("inf")
        if target.admission_check_s == self._now_s:
            target.admission_check_s = float("inf")
            self._admit(target)
        if target.idle and target.ready and target.is_due(self._now_s):
            self._start_iteration(target)
        self._wake(target)

    def _stood_back_s(self, target: TargetServer) -> float:
        """Return when the first of those who stand back at a target no longer does (infinity: nobody)."""
        for job in target.waiting:
            latest_s = job.entered_s + target.config.max_admission_wait_s
            if job.asked_batch > 1 and latest_s > self._now_s:
                return latest_s
        return float("inf")

    def _start_iteration(self, target: TargetServer) -> None:
        now_s = self._now_s
        batch = target.compose()
        if target.config.kv_policy == "preempt":
            batch = self._make_room(target, batch)
            if not batch:
                return
        shares = shares_of(target, batch)
        prefills = any(job.prefill_tokens for job, _ in batch)
        captured = () if prefills else target.config.graph_batch_tokens
        cost = IterationCost(target.timer, target.shared, shares, captured)
        expected_s = cost.duration_s
        duration_s = cost.compute_s * target.noise(self._episode.seed) + cost.overhead_s
        if self._episode.price_delays:
            charge(target, batch, shares, cost)
        for job, _ in batch:
            if job.stream is not None and not job.prefill_tokens:
                job.stream.verifying, job.stream.verifying_start = job.gamma, job.stream.seen_start
        target.running = batch
        target.idle = False
        target.iterations += 1
        target.iteration_start_s = now_s
        target.expected_end_s = now_s + expected_s
        self._log(EventKind.ITERATION_START, target.number, None, len(batch))
        target.end = self._env.call_at(
            now_s + duration_s, Order.ITERATION_END, target.number, lambda: self._end_iteration(target)
        )

    def _make_room(self, target: TargetServer, batch: list[tuple[Job, int]]) -> list[tuple[Job, int]]:
        """Reserve the KV that each sequence of a batch needs; return the batch without preempted ones.

        While the pool would overflow, the request admitted last loses its KV, whether it is in this batch, in
        the ready queue, or drafting elsewhere.
        """
        capacity = target.config.kv_capacity_tokens
        for job, _ in batch:
            request = job.request
            need = request.context_tokens + (0 if job.prefill_tokens else job.gamma)
            while request.kv_reserved_tokens > 0 and (
                target.kv_reserved_tokens + max(0, need - request.kv_reserved_tokens) > capacity
            ):
                self._preempt(target, batch)
            if request.kv_reserved_tokens > 0:
                self._give_kv(target, request, max(0, need - request.kv_reserved_tokens))
        return [(job, tokens) for job, tokens in batch if job.request.kv_reserved_tokens > 0]

    def _preempt(self, target: TargetServer, batch: list[tuple[Job, int]]) -> None:
        """Preempt the request admitted last: it loses its KV, waits at the front and prefills again."""
        victim = max(
            (
                request
                for request in self._episode.active.values()
                if request.target == target.number and request.kv_reserved_tokens > 0
            ),
            key=lambda request: request.admission,
        )
        self._totals.preemptions += 1
        self._log(EventKind.PREEMPT, target.number, victim, victim.kv_reserved_tokens)
        free = target.config.kv_capacity_tokens - target.kv_reserved_tokens
        victim.kept_tokens = victim.context_tokens
        victim.overwritten_from_tokens = target.kv_given_tokens + free
        target.kv_reserved_tokens -= victim.kv_reserved_tokens
        victim.kv_reserved_tokens = 0
        target.resident -= 1
        for number in target.shared:
            victim.drafter_valid.pop(number, None)
        for job in [*target.ready, *(job for job, _ in batch)]:
            if job.request is victim:
                if job.prefill_tokens:
                    victim.kept_tokens = job.prefilled_tokens
                job.prefill_again()
                job.entered_s = self._now_s
                target.waiting.appendleft(job)
        target.ready = [job for job in target.ready if job.request is not victim]

    def _end_iteration(self, target: TargetServer) -> None:
        now_s = self._now_s
        batch = target.running
        duration_s = self.iteration_over(target)
        target.iteration_s += self._protocol.stats_window * (duration_s - target.iteration_s)
        new_tokens = sum(tokens for _, tokens in batch)
        target.iteration_tokens += self._protocol.stats_window * (new_tokens - target.iteration_tokens)
        self._log(EventKind.ITERATION_END, target.number, None, new_tokens)
        lane = f"target:{target.number}"
        self._episode.add_bar(lane, bar_label(batch), target.iteration_start_s, now_s, -1)
        for job, tokens in batch:
            self._advance(target, job, tokens)
        self._wake(target)

    def iteration_over(self, target: TargetServer) -> float:
        """Make a target idle and book the cost of its iteration; return how long the iteration ran."""
        duration_s = self._now_s - target.iteration_start_s
        target.running = []
        target.idle = True
        target.busy_s += duration_s
        config = target.config
        self._totals.gpu_s += duration_s * config.gpus
        self._totals.energy_joules += duration_s * (config.power.busy_w - config.power.idle_w)
        return duration_s

    def _advance(self, target: TargetServer, job: Job, tokens: int) -> None:
        """Apply what one iteration did for one job."""
        request = job.request
        if job.prefill_tokens:
            job.prefill_tokens -= tokens
            job.prefilled_tokens += tokens
            if job.warm_drafter and job.drafter_number in target.shared:
                request.drafter_valid[job.drafter_number] = job.prefilled_tokens
            if job.closes and not job.prefill_tokens:
                self._done(job)
                return
            if job.prefill_tokens or job.task != TargetTask.PREFILL:
                target.ready.append(job)
                return
            self._commit(request, 1)
        elif job.task == TargetTask.PLAIN:
            self._commit(request, 1)
            job.chunk_tokens -= 1
            if job.chunk_tokens > 0 and not request.finished:
                self._join(target, job)
                return
            note_lengths(request, 0, 0)
        elif job.task == TargetTask.COLOCATED:
            request.chain_start = request.committed
            self._verified(request, job.drafter_number, job.gamma, job.dropped)
        elif job.stream is not None:
            self._step_stream(target, job, job.stream)
            return
        else:
            self._verified(request, job.drafter_number, job.gamma, job.dropped)
        self._done(job)

    def _done(self, job: Job) -> None:
        self._env.at(self._now_s, Order.JOB_DONE, job.request.number, job.done)

    def _verified(self, request: Request, drafter_number: int, drafted: int, dropped: int) -> None:
        """Commit the outcome of verifying ``drafted`` tokens: the accepted ones and one more.

        Those ``dropped`` were made, too: the drafter has processed the draft before them.
        """
        model = self._world.drafters[drafter_number].model
        realisation = request.realise(self._episode.seed, model)
        start = request.committed
        left = request.spec.output_tokens - start
        run = realisation.run_at(start, request.chain_start)
        accepted = drafting.accepted_tokens(drafted, run, left)
        committed = min(accepted + 1, left)
        request.guessed = realisation.guessed_after(start, drafted, request.chain_start)
        request.drafter_valid[drafter_number] = drafting.valid_after(
            request.context_tokens, drafted + dropped, accepted
        )
        self._totals.discarded += dropped
        request.drafted_at, request.drafted_branches = drafter_number, False
        request.verifies += 1
        request.drafted += drafted
        request.accepted += accepted
        request.round_tokens = committed
        # Drafts after the first rejected one follow a wrong path, for which no confidence is recorded.
        last = min(start + max(0, min(accepted, drafted - 1)), len(realisation.top1_prob) - 1)
        confidence = float(realisation.top1_prob[last])
        request.learn(model, drafted, accepted, committed, confidence, self._protocol.stats_window)
        self._totals.verified(drafted, accepted, committed)
        if drafted:
            self._episode.telemetry.count_verified(model, drafted, accepted)
        self._commit(request, committed)

    # ------------------------------------------------------------------ streams

    def _step_stream(self, target: TargetServer, job: Job, stream: Stream) -> None:
        """Commit what an iteration made of a stream's drafts: the accepted ones and one more token."""
        request, drafted = job.request, job.gamma
        realisation = request.realise(self._episode.seed, stream.drafter.model)
        start = request.committed
        left = request.spec.output_tokens - start
        accepted, confidence = 0, 0.0
        if drafted:
            run = realisation.run_at(start, stream.verifying_start)
            accepted = drafting.accepted_tokens(drafted, run, left)
            last = min(start + min(accepted, drafted - 1), len(realisation.top1_prob) - 1)
            confidence = float(realisation.top1_prob[last])
        committed = min(accepted + 1, left)
        self._totals.stream_iterations += 1
        if drafted:
            request.verifies += 1
            request.drafted += drafted
            request.accepted += accepted
            self._totals.verified(drafted, accepted, committed)
            self._episode.telemetry.count_verified(stream.drafter.model, drafted, accepted)
        else:
            self._totals.stream_idle_iterations += 1
        verified = stream.verifying == drafted
        if verified:
            self._keep_drafts(request, stream, drafted, accepted)
        self._commit(request, committed)
        if not verified:
            stream.compare(start)
        stream.verifying = 0
        if request.finished:
            stream.stop()
            self._done(job)
            return
        stream.tell(committed, drafted, accepted, confidence)
        if job.closes:
            self._done(job)
        elif job.coalesces and stream.drafts_to_take(request.committed) == 0:
            self._idle(target, job)
        else:
            self._join(target, job)

    def _keep_drafts(self, request: Request, stream: Stream, drafted: int, accepted: int) -> None:
        """Decide whether the drafts that an iteration has not verified are still right.

        They are if all that it verified were, and the drafter's own token for the place after them, which the
        target has decided by itself, is the same. That one is of no use any more even then.
        """
        if stream.seen_generation == 0 or stream.lost_at < NOWHERE:
            return
        place = request.committed + accepted
        more = max(0, stream.arrived - (request.committed + drafted))
        realisation = request.realise(self._episode.seed, stream.drafter.model)
        if accepted == drafted and realisation.guessed_at(place, stream.seen_start):
            self._totals.discarded += min(more, 1)
            return
        stream.lost_at = place
        self._totals.discarded += more
        if place < stream.arrived:
            stream.take_branch()

    def _idle(self, target: TargetServer, job: Job) -> None:
        """Let a stream's job wait for drafts, no longer than the target's patience."""
        job.idle = True
        job.idles += 1
        idles = job.idles
        patience_s = float(self._protocol.patience_s or 0.0)

        def decode() -> None:
            if job.idle and job.idles == idles and job.request.stream is job.stream:
                self._totals.takeovers += 1
                self._log(EventKind.TAKEOVER, target.number, job.request, patience_s)
                self._end_idle(target, job)

        self._env.call_at(self._now_s + patience_s, Order.TIMEOUT, 2 * job.request.number, decode)

    def _end_idle(self, target: TargetServer, job: Job) -> None:
        job.idle = False
        if job.request.kv_reserved_tokens == 0:
            # The target has preempted the request meanwhile.
            job.prefill_again()
            self._enter(target, job)
        else:
            self._join(target, job)
        self._wake(target)

    def note_drafts(self, request: Request, stream: Stream) -> None:
        """Note that a message of a stream has come.

        The B that it tells is that of verifications, at once: a request that waits to be admitted again does
        not stand back for it.
        """
        target = self._world.targets[request.target]
        target.modes[request.number] = (TargetTask.STREAM, stream.seen_window)
        job = stream.job
        assert job is not None
        if request.kv_reserved_tokens > 0 and job.asked_batch != stream.seen_batch:
            job.asked_batch = stream.seen_batch
            self._wake(target)
        if job.idle and stream.drafts_to_take(request.committed) > 0:
            self._end_idle(target, job)

    def close_seat(self, job: Job) -> None:
        """Close a stream as soon as its context is there and no iteration needs it."""
        target = self._world.targets[job.request.target]
        job.closes = True
        if job.idle:
            job.idle = False
            self._done(job)
        elif job in target.ready and not job.prefill_tokens:
            target.ready.remove(job)
            self._done(job)

    # ------------------------------------------------------------------ tokens

    def _commit(self, request: Request, tokens: int) -> None:
        """Commit output tokens at the target and send them to the client.

        Tokens that overtake those of a target farther away count as delivered with them: a text is read in
        order.
        """
        now_s = self._now_s
        if request.committed == 0:
            request.first_commit_s = now_s
        request.last_commit_s = now_s
        request.committed += tokens
        self._totals.output_tokens += tokens
        self._totals.sequence_iterations += 1
        self._episode.telemetry.count_tokens(tokens)
        self._log(EventKind.COMMIT, request.target, request, tokens)
        size = tokens * self._protocol.bytes_per_token
        arrives_s = self._links.send_down(request.device, size, request, request.target)
        if self._protocol.token_acks:
            self._links.time_tokens(request, arrives_s)
        before = request.committed - tokens
        previous_s = request.delivery_s[-1] if before else arrives_s
        arrives_s = max(arrives_s, previous_s)
        slo.note_delivery(request, request.spec, before, tokens, previous_s, arrives_s)
        request.delivery_s.append(arrives_s)
        request.delivery_tokens.append(tokens)
        if request.finished:
            self._release(request)
