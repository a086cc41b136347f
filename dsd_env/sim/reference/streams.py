"""Streams of drafts, the protocol in which nobody waits for anybody.

**The drafter** drafts token after token while fewer than gamma of them lie beyond the output that it knows to
be committed, and sends each chunk at once. **The target** keeps a seat for the stream in every iteration. It
takes the drafts that have come, at most gamma of them, commits those that are right and one token more, and
tells the drafter's site what is committed. Without drafts it decodes a token (``stream_idle: decode``), or
waits for a draft until its patience ends (``wait``).

**Generations.** All drafts that follow one another without a break are a generation. It is lost when a draft
is rejected, or when a token that the target has decided by itself differs from the draft for that place. The
target then drops the drafts of that generation that it has and those that still come. The drafter hears of it
with the result, goes back to the last token that was right, and begins the next generation right after what
is committed. So it does when the target has got ahead of its drafts.

**Branches** (``protocol.branches``). With each draft the drafter opens branches for the tokens that are most
likely beside it, and lets them grow by a token in every step, also while its window is full. What they hold
travels with the drafts. When a draft is wrong and the right token opens one of its branches, the target goes
on at once with what has come of that branch, as the next generation; the drafter, when it hears of it, makes
the branch its own line and does not go back. Tokens of a branch have no branches. Where a decision chooses
between streams with and without them (``actions.offer_branches``), it holds from the next generation on.

**Opening and closing.** A stream is opened at the target, which takes a seat and tells the drafter. Each
result that reaches the drafter calls for a decision there, one at a time; drafting goes on meanwhile. Gamma
and B act at once, on what is drafted and sent from then on. Another drafter, another target or gamma = 0
closes the stream: the drafter stops and sends word, and when that has come to the target, control is there.

Messages of a stream arrive in the order in which they were sent. A stream ends when its last token is
committed: that its drafter learns so one way later is left out. A drafter that crashes falls silent, and
begins a new generation after its return. A target that crashes ends the stream.
"""

from __future__ import annotations

import simpy

from dsd_env.control.view import Site
from dsd_env.laws.drafting import caught_up_tokens
from dsd_env.laws.streams import (
    NOWHERE,
    STEPS_KEPT,
    UNDER_WAY,
    branch_tokens,
    processed_tokens,
    tokens_to_draft,
)
from dsd_env.rng import Stream as RandomStream
from dsd_env.rng import uniform
from dsd_env.sim.entities import (
    DrafterServer,
    DraftJob,
    DraftMessage,
    Request,
    Stream,
    StreamResult,
)
from dsd_env.sim.events import EventKind, Order
from dsd_env.sim.reference.drafters import Drafters
from dsd_env.sim.reference.environment import Process
from dsd_env.sim.reference.episode import Episode, Part
from dsd_env.sim.reference.links import Links
from dsd_env.sim.reference.requests import Requests
from dsd_env.sim.reference.resolution import Resolution
from dsd_env.sim.reference.stopping import ends_stream
from dsd_env.sim.reference.targets import Targets

NO_ECHO = -1.0


class Streams(Part):
    """Runs the drafters' side of streams, and the messages between both sides."""

    def __init__(
        self, episode: Episode, links: Links, drafters: Drafters, targets: Targets, requests: Requests
    ) -> None:
        """Take part in an episode."""
        super().__init__(episode)
        self._links = links
        self._drafters = drafters
        self._targets = targets
        self._requests = requests
        self._fanout, self._depth = self._protocol.branches.fanout, self._protocol.branches.depth
        drafters.when_down, drafters.when_up = self._suspend, self._resume

    def uses(self, resolution: Resolution) -> bool:
        """Return whether the drafts of a decision are streamed."""
        if self._protocol.kind != "streaming" or resolution.gamma == 0:
            return False
        return self._world.drafters[resolution.drafter_number].can_stream

    # ------------------------------------------------------------------ opening, closing

    def open(self, request: Request, resolution: Resolution) -> Stream:
        """Open a stream at the target, which tells the drafter (:meth:`tell_opened`)."""
        drafter = self._world.drafters[resolution.drafter_number]
        number = {
            Site.OWN_DEVICE: request.device.number,
            Site.EDGE_SERVER: resolution.edge_server,
            Site.COLOCATED: resolution.target,
        }[resolution.site]
        stream = Stream(
            drafter,
            (resolution.site, number),
            resolution.target,
            resolution.gamma,
            resolution.batch_size,
            resolution.stop or self._drafters.stop,
            stop=lambda: self._stop(request, stream),
            tell=lambda *outcome: self._tell(request, stream, *outcome),
            take_branch=lambda: self.take_branch(request, stream),
            compare=lambda first: self._compare(request, stream, first),
            suspended=drafter.own_server.down > 0,
            seen_window=resolution.gamma,
            seen_batch=resolution.batch_size,
            branches=resolution.branches,
        )
        request.drafted_at, request.drafted_branches = drafter.number, resolution.branches
        self._log(EventKind.STREAM_OPEN, resolution.target, request, resolution.gamma)
        return stream

    def tell_opened(self, request: Request, stream: Stream, lag_tokens: int) -> None:
        """Tell the drafter that a stream is open, with the tokens that it lacks."""
        request.stream = stream
        arrives_s = self._send_down(request, stream, lag_tokens)
        self._result_leaves(
            request, stream, StreamResult(arrives_s, NO_ECHO, request.committed, request.last_commit_s)
        )

    def tell_first_token(self, request: Request, stream: Stream, echo_s: float) -> None:
        """Tell a drafter on the device that a stream is open, with the answer's first token."""
        request.stream = stream
        result = StreamResult(request.delivery_s[-1], echo_s, request.committed, request.last_commit_s)
        self._result_leaves(request, stream, result)

    def _stop(self, request: Request, stream: Stream) -> None:
        """End a stream: what its drafter has made and nobody has verified is of no use."""
        request.stream = None
        if request.draft is not None:
            self._totals.discarded += self._drafters.withdraw(request.draft)
            request.draft = None
        if stream.renewal is not None:
            stream.renewal.interrupt()
            stream.renewal = None
        if stream.lost_at == NOWHERE:
            self._totals.discarded += max(0, stream.arrived - request.committed)
        for message in stream.messages:
            self._totals.discarded += message.tokens

    def _close(self, request: Request, stream: Stream, resolution: Resolution) -> None:
        """Stop drafting, and send word to the target."""
        stream.closing = resolution
        self._log(EventKind.STREAM_CLOSE, stream.drafter.number, request, stream.generation)
        drafted = self._give_up_draft(request, stream)
        if stream.generation:
            self._note_processed(request, stream, drafted, stream.known)
        self._send(request, stream, 0, closes=True)

    # ------------------------------------------------------------------ the drafter's side

    def go_on(self, request: Request, turn: int | None = None) -> None:
        """Draft the next tokens of a request's stream, if there is one and it has reason to.

        Its job takes the ``turn`` of one that a result has made useless before it began.
        """
        stream = request.stream
        if stream is None or stream.suspended or stream.closing is not None or request.draft is not None:
            return
        drafter = stream.drafter
        if stream.generation == 0 or drafter.number in request.warming:
            return
        if len(stream.messages) >= UNDER_WAY or self._pauses(request, stream, stream.drafted - 1):
            return
        context = request.spec.prompt_tokens + stream.drafted
        tokens = tokens_to_draft(
            stream.window,
            self._protocol.stream_chunk_tokens,
            stream.known,
            stream.drafted,
            drafter.kv_capacity_tokens - context,
        )
        for newest in range(stream.drafted, stream.drafted + tokens - 1):
            if self._pauses(request, stream, newest):
                tokens = newest + 1 - stream.drafted
                break
        branches = self._open_branches(stream)
        if tokens == 0 and branches == 0:
            return
        lag = 1 if tokens else 0
        opens = tokens > 0 and stream.drafted == stream.start
        if opens:
            # The newest token gives the next one: it is processed again if that is known already.
            lag = max(1, context - request.drafter_valid.get(drafter.number, 0))
        done = self._env.event()
        assert done.callbacks is not None
        done.callbacks.append(lambda _event: self._drafted(request, stream, tokens, branches))
        request.draft = DraftJob(
            request,
            drafter,
            tokens,
            lag,
            context,
            done,
            of_stream=True,
            opens=opens,
            branch_tokens=branches,
        )
        self._drafters.queue_job(request.draft, turn)

    def _open_branches(self, stream: Stream) -> int:
        """Return how many tokens the next step makes for branches; these grow though the window is full."""
        position = stream.drafted
        while position > stream.branch_start:
            if stream.steps - stream.opened_at(position - 1) >= self._depth:
                break
            position -= 1
        return self._fanout * (stream.drafted - position)

    def _pauses(self, request: Request, stream: Stream, newest: int) -> bool:
        """Return whether its stop rule ends a draft whose newest token is not known to be committed yet."""
        rule = stream.stop_rule
        if rule is None or newest < stream.known:
            return False
        realisation = request.realise(self._episode.seed, stream.drafter.model)
        return ends_stream(rule, realisation, stream.known, newest)

    def _drafted(self, request: Request, stream: Stream, tokens: int, branches: int) -> None:
        """Send the tokens that the drafter has made, those of branches and those that open them, too."""
        opening = self._fanout if tokens and stream.branch_start < NOWHERE else 0
        self._totals.branch_drafted += branches
        self._totals.branch_sent += branches + opening
        stream.steps += 1
        for position in range(stream.drafted, stream.drafted + tokens):
            stream.opened[position % STEPS_KEPT] = stream.steps
        self._send(request, stream, tokens, branches + opening)
        stream.drafted += tokens
        self.go_on(request)

    def _result_arrives(self, request: Request, stream: Stream) -> None:
        """Let a drafter take in a result, go back if it was wrong, and ask for a decision."""
        if request.stream is not stream:
            return
        result = stream.results.popleft()
        self._expect_result(request, stream)
        if stream.closing is not None:
            return
        self._learn(request, stream, result)
        request.control = stream.place
        before, stream.known = stream.known, result.committed
        stream.known_commit_s = result.commit_s
        if not stream.suspended:
            turn = self._drafters.turn_of(request.draft)
            self._take_in(request, stream, before)
            self.go_on(request, turn)
        if stream.renewal is None:
            stream.renewal = self._env.process(self._renew(request, stream))

    def _take_in(self, request: Request, stream: Stream, before: int) -> None:
        """Compare what has been committed since ``before`` with the drafts."""
        if stream.generation == 0:
            self._begin(request, stream)
            return
        wrong = self._first_wrong(request, stream, before)
        if wrong == NOWHERE and stream.drafted >= stream.known:
            self._note_processed(request, stream, stream.drafted, stream.known)
            return
        drafted = self._give_up_draft(request, stream)
        if wrong < NOWHERE and self._is_in_branch(request, stream, wrong, stream.branch_start):
            self._totals.branch_hits += 1
            self._adopt(request, stream, wrong)
            drafted = stream.drafted
            wrong = self._first_wrong(request, stream, stream.start)
            if wrong == NOWHERE and drafted >= stream.known:
                self._note_processed(request, stream, drafted, stream.known)
                return
        elif stream.branch_start <= wrong < NOWHERE:
            self._totals.branch_misses += 1
        right = min(wrong, stream.known)
        self._log(EventKind.STREAM_ROLLBACK, stream.drafter.number, request, drafted - min(right, drafted))
        self._note_processed(request, stream, drafted, right)
        self._begin(request, stream)

    def _first_wrong(self, request: Request, stream: Stream, before: int) -> int:
        """Return the first position from ``before`` on at which a draft differs from what is committed."""
        end = min(stream.known, stream.drafted)
        if stream.seen_generation == stream.generation:
            return stream.lost_at if stream.lost_at < end else NOWHERE
        if stream.adopted_at < NOWHERE and stream.seen_generation == stream.generation + 1:
            return stream.adopted_at if stream.adopted_at < end else NOWHERE
        return self._first_other(request, stream, before, end, stream.start)

    def _first_other(self, request: Request, stream: Stream, first: int, end: int, start: int) -> int:
        """Return the first of some positions at which the drafter's own token is another than the target's.

        The target has decided all of them without a draft.
        """
        realisation = request.realise(self._episode.seed, stream.drafter.model)
        for position in range(first, end):
            if not realisation.guessed_at(position, start):
                return position
        return NOWHERE

    def _is_in_branch(self, request: Request, stream: Stream, wrong: int, branch_start: int) -> bool:
        """Return whether the right token for a wrong draft opens one of its branches."""
        if wrong < branch_start or wrong >= request.spec.output_tokens:
            return False
        model = stream.drafter.model
        rank = request.realise(self._episode.seed, model).rank
        if rank is not None:
            return int(rank[wrong]) <= self._fanout + 1
        hits = self._episode.scenario.hits(model)
        u = uniform(self._episode.seed, RandomStream.ACCEPTANCE_RANK, request.spec.uid, wrong)
        return u < hits[self._fanout - 1]

    def _adopt(self, request: Request, stream: Stream, wrong: int) -> None:
        """Let a drafter go on with the branch that begins with the right token for a wrong draft."""
        tokens = branch_tokens(self._depth, stream.opened_at(wrong), stream.steps)
        stream.generation += 1
        stream.start = wrong + 1
        stream.drafted = stream.start + tokens
        stream.branch_start = stream.drafted if stream.branches else NOWHERE
        stream.started_s = self._now_s
        self._totals.generations += 1
        request.drafter_valid[stream.drafter.number] = request.spec.prompt_tokens + wrong
        self._log(EventKind.BRANCH_ADOPTED, stream.drafter.number, request, tokens)

    def _begin(self, request: Request, stream: Stream) -> None:
        """Begin a generation right after what is known to be committed."""
        stream.generation += 1
        stream.start = stream.drafted = stream.known
        stream.branch_start = stream.known if stream.branches else NOWHERE
        stream.started_s = self._now_s
        self._totals.generations += 1

    def _give_up_draft(self, request: Request, stream: Stream) -> int:
        """Stop drafting, and note what of the committed text the drafter need not read again."""
        job = request.draft
        if job is not None and job.opens:
            read = job.context_tokens - job.lag_tokens + caught_up_tokens(job, self._now_s)
            valid = request.drafter_valid.get(stream.drafter.number, 0)
            request.drafter_valid[stream.drafter.number] = max(valid, read)
        return self._stop_drafting(request, stream)

    def _stop_drafting(self, request: Request, stream: Stream) -> int:
        """Withdraw the draft under way; return the position after the newest token, those in it included."""
        if request.draft is None:
            return stream.drafted
        tokens = self._drafters.withdraw(request.draft)
        request.draft = None
        self._totals.discarded += tokens
        return stream.drafted + tokens

    def _note_processed(self, request: Request, stream: Stream, drafted: int, right: int) -> None:
        """Note how much of the text the drafter's KV holds, of which ``right`` output tokens are right."""
        number, prompt = stream.drafter.number, request.spec.prompt_tokens
        valid = request.drafter_valid.get(number, 0)
        request.drafter_valid[number] = processed_tokens(stream.start, drafted, right, valid, prompt)

    def _learn(self, request: Request, stream: Stream, result: StreamResult) -> None:
        """Take what a result tells into what the request's controller knows."""
        weight = self._protocol.stats_window
        if result.tokens:
            request.idle_share += weight * ((1.0 if result.drafted == 0 else 0.0) - request.idle_share)
        if result.drafted:
            request.learn(
                stream.drafter.model,
                result.drafted,
                result.accepted,
                result.tokens,
                result.confidence,
                weight,
            )
        if result.echo_s >= 0.0 and stream.place[0] == Site.OWN_DEVICE:
            self._links.measure_round_trip(request, self._now_s - result.echo_s, stream.target)

    def _renew(self, request: Request, stream: Stream) -> Process:
        """Take a decision at the drafter's place and carry it out."""
        try:
            resolution = yield from self._requests.ask(request)
        except simpy.Interrupt:
            return
        stream.renewal = None
        request.rounds += 1
        same = resolution.gamma > 0 and resolution.drafter_number == stream.drafter.number
        if same and resolution.target == stream.target:
            stream.window, stream.batch_size = resolution.gamma, resolution.batch_size
            stream.stop_rule = resolution.stop or self._drafters.stop
            stream.branches = request.drafted_branches = resolution.branches
            self.go_on(request)
        else:
            self._close(request, stream, resolution)

    # ------------------------------------------------------------------ crashes of drafters

    def _suspend(self, server: DrafterServer) -> None:
        """Let the drafters of a server that has crashed fall silent."""
        for request in self._episode.active.values():
            stream = request.stream
            if stream is not None and stream.drafter.server is server:
                stream.suspended = True
                self._stop_drafting(request, stream)
                stream.start = stream.drafted  # its KV holds nothing any more

    def _resume(self, server: DrafterServer) -> None:
        """Let the drafters of a server that is up again begin anew after what they know to be committed."""
        for request in self._episode.active.values():
            stream = request.stream
            if stream is not None and stream.drafter.server is server and stream.suspended:
                stream.suspended = False
                if stream.known >= 0 and stream.closing is None:
                    # The target may have gone on with a branch, as the generation after the last.
                    stream.generation += 1
                    self._begin(request, stream)
                    self.go_on(request)

    # ------------------------------------------------------------------ messages

    def _send(
        self, request: Request, stream: Stream, tokens: int, branches: int = 0, closes: bool = False
    ) -> None:
        """Send drafts and tokens of branches to the target, or word that the stream is to be closed."""
        now_s = self._now_s
        size = (tokens + branches) * self._protocol.bytes_per_draft_token
        site, number = stream.place
        if site == Site.OWN_DEVICE:
            arrives_s = self._links.send_up(request.device, size, request, stream.target)
        elif site == Site.EDGE_SERVER:
            arrives_s = self._links.send_backhaul(number, stream.target, True, size, request)
        else:
            arrives_s = now_s
        if not closes:
            self._log(EventKind.DRAFT_SENT, stream.drafter.number, request, stream.drafted)
        message = DraftMessage(
            arrives_s,
            now_s,
            stream.generation,
            stream.start,
            stream.drafted,
            tokens,
            stream.steps,
            stream.window,
            stream.batch_size,
            closes,
            stream.branch_start < NOWHERE,
        )
        stream.messages.append(message)
        if len(stream.messages) == 1:
            self._expect_message(request, stream)

    def _expect_message(self, request: Request, stream: Stream) -> None:
        if stream.messages:
            self._env.call_at(
                stream.messages[0].arrives_s,
                Order.DELIVERY,
                request.number,
                lambda: self._message_arrives(request, stream),
            )

    def _message_arrives(self, request: Request, stream: Stream) -> None:
        """Let the target take in a message."""
        if request.stream is not stream:
            return
        message = stream.messages.popleft()
        was_full = len(stream.messages) == UNDER_WAY - 1
        self._expect_message(request, stream)
        job = stream.job
        assert job is not None
        if message.closes:
            self._targets.close_seat(job)
            return
        stream.echo_sent_s, stream.echo_came_s = message.sent_s, self._now_s
        stream.seen_window, stream.seen_batch = message.window, message.batch_size
        self._take_drafts(request, stream, message)
        self._targets.note_drafts(request, stream)
        if was_full:
            self.go_on(request)

    def _take_drafts(self, request: Request, stream: Stream, message: DraftMessage) -> None:
        """Keep drafts that may be right, and drop the others."""
        committed = request.committed
        end = message.first + message.tokens
        stream.seen_steps = message.steps
        if message.generation > stream.seen_generation:
            if stream.lost_at == NOWHERE:
                self._totals.discarded += max(0, stream.arrived - (committed + stream.verifying))
            stream.verifying = 0
            stream.seen_generation, stream.seen_start = message.generation, message.start
            stream.seen_branch_start = message.first if message.branches else NOWHERE
            stream.adopted_at = NOWHERE
            stream.arrived = message.first
            stream.lost_at = self._first_other(request, stream, message.start, committed, message.start)
        elif message.generation < stream.seen_generation:
            self._drop_late(request, stream, message)
            self._extend_branch(request, stream)
            return
        elif message.branches and stream.seen_branch_start == NOWHERE:
            stream.seen_branch_start = message.first
        if stream.lost_at < NOWHERE:
            self._drop_late(request, stream, message)
            if message.first <= stream.lost_at < end:
                self.take_branch(request, stream)
            return
        self._totals.discarded += max(0, min(end, committed) - message.first)
        stream.arrived = end

    def _compare(self, request: Request, stream: Stream, first: int) -> None:
        """Compare drafts that the target has, none of which it has verified, with what is committed.

        They are of a generation that came while it verified drafts of the one before: the drafter has crashed
        and was back at once.
        """
        if stream.lost_at < NOWHERE:
            return
        more = max(0, stream.arrived - first)
        stream.lost_at = self._first_other(request, stream, first, request.committed, stream.seen_start)
        if stream.lost_at == NOWHERE:
            self._totals.discarded += min(more, request.committed - first)
            return
        self._totals.discarded += more
        if stream.lost_at < stream.arrived:
            self.take_branch(request, stream)

    def _drop_late(self, request: Request, stream: Stream, message: DraftMessage) -> None:
        """Drop drafts of a generation that is known to be wrong."""
        if message.tokens == 0:
            return
        self._totals.discarded += message.tokens
        self._totals.late_drafts += message.tokens
        self._log(EventKind.LATE_DRAFTS, stream.target, request, message.tokens)

    def take_branch(self, request: Request, stream: Stream) -> None:
        """Let the target go on with a branch of the wrong draft, if one begins with the right token."""
        wrong = stream.lost_at
        if not self._is_in_branch(request, stream, wrong, stream.seen_branch_start):
            return
        stream.seen_generation += 1
        stream.seen_start = stream.arrived = wrong + 1
        stream.seen_branch_start, stream.adopted_at = NOWHERE, wrong
        stream.lost_at = self._first_other(request, stream, wrong + 1, request.committed, wrong + 1)
        self._extend_branch(request, stream)
        self._log(EventKind.BRANCH_TAKEN, stream.target, request, stream.arrived - stream.seen_start)

    def _extend_branch(self, request: Request, stream: Stream) -> None:
        """Take in what has come of the branch that the target goes on with."""
        opened = stream.opened_at(stream.adopted_at)
        arrived = stream.seen_start + branch_tokens(self._depth, opened, stream.seen_steps)
        more = arrived - stream.arrived
        if more <= 0:
            return
        self._totals.branch_used += more
        late = max(0, min(arrived, request.committed) - stream.arrived)
        self._totals.discarded += more if stream.lost_at < NOWHERE else late
        stream.arrived = arrived

    def _tell(
        self, request: Request, stream: Stream, tokens: int, drafted: int, accepted: int, confidence: float
    ) -> None:
        """Tell the drafter what an iteration has committed, unless too much is under way to it."""
        now_s = self._now_s
        if len(stream.results) >= UNDER_WAY:
            return
        echo_s = NO_ECHO
        if stream.echo_came_s >= 0.0:
            echo_s = stream.echo_sent_s + (now_s - stream.echo_came_s)
            stream.echo_came_s = NO_ECHO
        if stream.place[0] == Site.OWN_DEVICE:
            arrives_s = request.delivery_s[-1]
        else:
            arrives_s = self._send_down(request, stream, tokens)
        result = StreamResult(
            arrives_s, echo_s, request.committed, now_s, tokens, drafted, accepted, confidence
        )
        self._result_leaves(request, stream, result)

    def _send_down(self, request: Request, stream: Stream, tokens: int) -> float:
        """Send tokens from the target to the drafter's place; return when they arrive."""
        size = tokens * self._protocol.bytes_per_token
        site, number = stream.place
        if site == Site.OWN_DEVICE:
            return self._links.send_down(request.device, size, request, stream.target)
        if site == Site.EDGE_SERVER:
            return self._links.send_backhaul(number, stream.target, False, size, request)
        return self._now_s

    def _result_leaves(self, request: Request, stream: Stream, result: StreamResult) -> None:
        stream.results.append(result)
        if len(stream.results) == 1:
            self._expect_result(request, stream)

    def _expect_result(self, request: Request, stream: Stream) -> None:
        if stream.results:
            self._env.call_at(
                stream.results[0].arrives_s,
                Order.DELIVERY,
                request.number,
                lambda: self._result_arrives(request, stream),
            )
