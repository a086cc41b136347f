"""The edge client: drafts, sends, hears what was right, goes on.

One coroutine for each request. It does, over and over, what is due: take in what has come, send what should
be sent, draft a token if one may be drafted, else wait. The three protocols differ in three places only,
:meth:`_may_draft`, :meth:`_send_due` and what the cloud is asked for.

**Retry.** A message that stays without an answer is sent again unchanged. Results hold all that is committed
beyond what the client has acknowledged, so a lost one is made good by the next. When the RPC breaks, or
nothing is heard, the client opens another and takes the request up again, also from a server that has
forgotten it.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from dsd_env.extras import needs
from dsd_env.sim.events import EventKind
from dsd_env.strict_model import StrictNumbers
from dsd_env.testbed.connection import Connection, Lost
from dsd_env.testbed.control import EMA_WEIGHT, Decide, RequestScheduler, RoundDecision, Telemetry
from dsd_env.testbed.drafters import Line, LineMaker, Question, take_steps
from dsd_env.testbed.log import EventLog
from dsd_env.testbed.wire import Prefix, pb

with needs("testbed", "the testbed"):
    import grpc
    import grpc.aio

Protocol = Literal["synchronous", "pipelined", "streaming"]
#: Refusals after which it makes sense to come again.
PASSING = (pb.BUSY, pb.FLOOD)
#: A stream that sends no drafts acknowledges after so many committed tokens.
ACKNOWLEDGE_AFTER = 16


class TestbedError(RuntimeError):
    """A request that cannot be finished."""

    __test__ = False  # for pytest, which would take the name for a test's


class ClientConfig(StrictNumbers, BaseModel):
    """How a client goes about it.

    Attributes:
        protocol: Who waits for whom.
        stream_chunk_tokens: Drafts of a stream that are sent at once.
        plain_chunk_tokens: Tokens that the cloud may decode before the next decision, where it decodes alone.
        retry_s: A message without an answer is sent again after this time, or three round trips if that is
            longer.
        silence_s: When nothing is heard for so long, the RPC is given up.
        reconnect_s: Pause before another is tried.
        give_up_s: When no RPC has brought anything for so long, the request fails.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    protocol: Protocol = "streaming"
    stream_chunk_tokens: int = Field(1, ge=1)
    plain_chunk_tokens: int = Field(8, ge=1)
    retry_s: float = Field(1.0, gt=0)
    silence_s: float = Field(20.0, gt=0)
    reconnect_s: float = Field(0.2, gt=0)
    give_up_s: float = Field(120.0, gt=0)


@dataclass
class Output:
    """What became of a request.

    Attributes:
        tokens: Its output.
        finish_reason: ``stop`` or ``length``.
        ttft_s: Time to first token.
        e2e_s: Time to the last.
        times_s: When each token was known here, after the beginning.
        drafted: Tokens drafted.
        verified: Drafts that the target looked at.
        accepted: Those that were right.
        results: Results that brought tokens.
        iterations: Iterations of the target that decided a token.
        rollbacks: Times that drafts were given up.
        retries: Messages sent again.
        reconnects: RPCs after the first.
        rtt_s: Round trips measured.
    """

    tokens: list[int] = field(default_factory=list)
    finish_reason: str = ""
    ttft_s: float = 0.0
    e2e_s: float = 0.0
    times_s: list[float] = field(default_factory=list)
    drafted: int = 0
    verified: int = 0
    accepted: int = 0
    results: int = 0
    iterations: int = 0
    rollbacks: int = 0
    retries: int = 0
    reconnects: int = 0
    rtt_s: list[float] = field(default_factory=list)

    @property
    def tpot_s(self) -> float:
        """Mean time per output token behind the first."""
        return (self.e2e_s - self.ttft_s) / max(1, len(self.tokens) - 1)


class EdgeClient:
    """A device with a drafter."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        make_line: LineMaker,
        decide: Decide,
        config: ClientConfig | None = None,
        *,
        number: int = 0,
        pool: Executor | None = None,
        token: str | None = None,
        log: EventLog | None = None,
    ) -> None:
        """Make a client.

        Args:
            channel: The way to the server.
            make_line: Makes the drafter of a request.
            decide: The scheduler.
            config: How it goes about it.
            number: Its number in the log.
            pool: Where drafts are computed; clients that share a device share it. None: asyncio's own.
            token: Bearer token.
            log: Where events go.
        """
        self.channel, self.make_line, self.decide = channel, make_line, decide
        self.config = config or ClientConfig()
        self.number, self.pool, self.token = number, pool, token
        self.log = log or EventLog()
        self._requests = 0

    async def generate(
        self,
        question: Question,
        *,
        request_id: str | None = None,
        secret: bytes | None = None,
        committed: Sequence[int] = (),
        on_tokens: Callable[[list[int]], None] | None = None,
    ) -> Output:
        """Return the target's output for a request.

        Args:
            question: The request.
            request_id: Its name; default a random one.
            secret: What proves that it is the caller's; default a random one. A client that has crashed names
                both, and goes on where it was.
            committed: Output that the caller knows already.
            on_tokens: Called with the tokens that become known.

        Raises:
            TestbedError: It was refused, or the server cannot be reached.
        """
        self._requests += 1
        request = _Request(
            self,
            question,
            self.number * 1_000_000 + self._requests - 1,
            request_id or secrets.token_hex(16),
            secret or secrets.token_bytes(16),
            committed,
            on_tokens,
        )
        return await request.run()


class _Request:
    """One request on its way."""

    def __init__(
        self,
        client: EdgeClient,
        question: Question,
        number: int,
        request_id: str,
        secret: bytes,
        committed: Sequence[int],
        on_tokens: Callable[[list[int]], None] | None,
    ) -> None:
        self._client, self._config, self._question = client, client.config, question
        self._number, self._request_id, self._secret = number, request_id, secret
        self._on_tokens = on_tokens
        self._began_s = time.monotonic()
        self._line = client.make_line(question)
        self._prefix = Prefix(question.prompt_ids, committed)
        self._out = Output(times_s=[0.0] * len(committed))
        self._connection: Connection | None = None
        self._synced = self._finished = False
        # What has been drafted behind the prefix, how much of it was sent, and under which generation.
        self._drafts: list[int] = []
        self._sent = 0
        self._generation = 0
        self._line_ended = False
        # What the cloud was last asked for.
        self._awaiting: pb.EdgeMessage | None = None
        self._announced: tuple[int, int] | None = None
        self._acknowledged = self._run_until = 0
        self._decision = RoundDecision(0)
        self._decide_at = 0
        self._telemetry = Telemetry(
            request=number,
            protocol=self._config.protocol,
            prompt_tokens=len(question.prompt_ids),
            max_new_tokens=question.max_new_tokens,
        )
        self._heard_s = self._progress_s = self._began_s

    # ------------------------------------------------------------------ the loop

    async def run(self) -> Output:
        """Run it to its end."""
        self._log(EventKind.ARRIVAL, len(self._question.prompt_ids), request_id=self._request_id)
        self._line.rebase(self._prefix.tokens)
        self._decide()
        try:
            while not self._finished:
                try:
                    if self._connection is None:
                        await self._connect()
                    await self._turn()
                except Lost as lost:
                    await self._reconnect(lost)
            self._out.e2e_s = time.monotonic() - self._began_s
            self._out.tokens = self._prefix.tokens
            self._log(EventKind.COMPLETE, self._out.e2e_s, tokens=len(self._out.tokens))
            if self._connection is not None:
                await self._connection.close("complete")
                self._connection = None
            return self._out
        finally:
            if isinstance(self._client.decide, RequestScheduler):
                self._client.decide.finished(self._number, self._out if self._finished else None)
            if self._connection is not None:
                await self._connection.close()

    async def _turn(self) -> None:
        """Do what is due; wait if nothing is."""
        connection = self._connection
        assert connection is not None
        while not connection.inbox.empty() and not self._finished:
            self._heard(connection.inbox.get_nowait())
        if self._finished:
            return
        if self._synced:
            await self._send_due(connection)
        if self._may_draft():
            await self._draft()
            return
        telemetry = self._telemetry
        patience_s = max(self._config.retry_s, 3 * telemetry.rtt_s + 2 * telemetry.iteration_s)
        try:
            self._heard(await asyncio.wait_for(connection.inbox.get(), patience_s))
        except TimeoutError:
            if time.monotonic() - self._heard_s > self._config.silence_s:
                raise Lost(None, "nothing was heard") from None
            await self._ask_again(connection)

    async def _connect(self) -> None:
        """Open an RPC, and the request with it."""
        self._connection = Connection(self._client.channel, self._request_id, self._client.token)
        self._synced = False
        self._heard_s = time.monotonic()
        opened = pb.DraftOpen(
            secret=self._secret,
            prompt_token_ids=self._question.prompt_ids,
            committed_outputs=self._prefix.tokens,
            max_new_tokens=self._question.max_new_tokens,
            temperature=self._question.sampling.temperature,
            seed=self._question.sampling.seed,
        )
        if self._question.prompt is not None:
            opened.prompt_text = self._question.prompt.text
            opened.reply_prefix = self._question.prompt.reply_prefix
        self._awaiting = await self._connection.send(open=opened)

    async def _reconnect(self, lost: Lost) -> None:
        """Give an RPC up; the next turn opens another."""
        if lost.code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
            raise TestbedError(str(lost)) from lost
        if time.monotonic() - self._progress_s > self._config.give_up_s:
            raise TestbedError(f"the server cannot be reached: {lost}") from lost
        self._log(EventKind.FAULT, 0, reason=str(lost))
        if self._connection is not None:
            connection, self._connection = self._connection, None
            await connection.close()
        self._out.reconnects += 1
        await asyncio.sleep(self._config.reconnect_s)

    async def _ask_again(self, connection: Connection) -> None:
        """Send the message that has no answer again, or ask for the state."""
        self._out.retries += 1
        if self._awaiting is not None:
            await connection.send_again(self._awaiting)
        elif self._synced:
            self._announced = None
            self._sent = 0
            await self._send_tail(connection, self._drafts[: self._telemetry.max_window])
            await self._send_tail(connection, [])  # an answer even where the cloud has nothing new

    # ------------------------------------------------------------------ hearing

    def _heard(self, item: pb.CloudMessage | Lost) -> None:
        """Take in what has come."""
        if isinstance(item, Lost):
            raise item
        now = self._heard_s = time.monotonic()
        body = item.WhichOneof("body")
        if body == "refusal":
            if item.refusal.code in PASSING:
                raise Lost(None, item.refusal.reason)
            raise TestbedError(f"refused: {item.refusal.reason}")
        if body == "close":
            raise TestbedError(f"closed by the server: {item.close.reason}")
        if body == "sync":
            self._heard_sync(item.sync)
        elif body == "commit" and self._synced:
            self._heard_commit(item.commit)
        self._progress_s = now

    def _heard_sync(self, sync: pb.DraftSync) -> None:
        """Begin, or begin again, from the state that the cloud has."""
        ours, theirs = self._prefix.tokens, list(sync.committed_outputs)
        if theirs[: len(ours)] != ours[: len(theirs)]:
            raise TestbedError("the server's output differs from what it said before")
        if not self._synced and self._out.reconnects:
            self._log(EventKind.RETURN, 0)
        self._synced = True
        self._telemetry = replace(self._telemetry, max_window=sync.max_window)
        self._announced = self._awaiting = None
        self._acknowledged = self._run_until = 0
        new = theirs[len(ours) :]
        self._extend(new)
        self._compare(new)  # what is still right goes on its way once more
        self._sent = 0
        self._generation = max(self._generation, sync.generation)
        self._finish(sync.finished, sync.finish_reason)
        if new or self._decision.gamma > sync.max_window:
            self._decide()

    def _heard_commit(self, commit: pb.VerifyCommit) -> None:
        """Take in a result: tokens, and how it stands with the drafts."""
        assert self._connection is not None
        known, begin = len(self._prefix), commit.pre_verify_committed_len
        length = begin + len(commit.committed_tokens)
        self._measure(commit)
        if begin > known or length < known:
            return  # of another time; a newer one has come or will come
        new = list(commit.committed_tokens[known - begin :])
        if new:
            self._extend(new)
            if self._prefix.digest() != commit.committed_digest:
                raise TestbedError("the server's digest does not fit what it said")
            self._compare(new)
            if self._awaiting is not None and self._awaiting.drafts.base_committed_len < len(self._prefix):
                self._awaiting = None
        if commit.generation > self._generation:
            self._roll_back(len(self._drafts))
            self._generation = commit.generation
        self._finish(commit.finished, commit.finish_reason)
        if new and not self._finished and len(self._prefix) >= self._decide_at:
            self._decide()

    def _extend(self, new: Sequence[int]) -> None:
        """Append tokens that are committed."""
        if not new:
            return
        self._prefix.extend(new)
        at_s = time.monotonic() - self._began_s
        if not self._out.times_s:
            self._out.ttft_s = at_s
        self._out.times_s += [at_s] * len(new)
        self._out.results += 1
        self._log(EventKind.COMMIT, len(new))
        if self._on_tokens is not None:
            self._on_tokens(list(new))

    def _compare(self, new: Sequence[int]) -> None:
        """Let the window of drafts slide over new tokens, or give the drafts up."""
        right = 0
        while right < min(len(new), len(self._drafts)) and new[right] == self._drafts[right]:
            right += 1
        if right == len(new):
            del self._drafts[:right]
            self._sent = max(0, self._sent - right)
        elif right == len(self._drafts):  # the target has got ahead
            self._drafts.clear()
            self._sent = 0
            self._line_ended = False
            if self._drafts_here():
                self._line.rebase(self._prefix.tokens)
        else:
            self._roll_back(len(self._drafts) - right)

    def _roll_back(self, vain: int) -> None:
        """Give up all drafts and go on behind the prefix, as a new generation."""
        if vain:
            self._out.rollbacks += 1
            streams = self._config.protocol == "streaming"
            self._log(EventKind.STREAM_ROLLBACK if streams else EventKind.ROLLBACK, vain)
        self._drafts.clear()
        self._sent = 0
        self._generation += 1
        self._line_ended = False
        if self._drafts_here():
            self._line.rebase(self._prefix.tokens)

    def _finish(self, finished: bool, reason: str) -> None:
        if finished:
            self._finished = True
            self._out.finish_reason = reason

    # ------------------------------------------------------------------ measuring, deciding

    def _measure(self, commit: pb.VerifyCommit) -> None:
        """Take in the telemetry of a result."""
        assert self._connection is not None
        seen, out = self._telemetry, self._out
        rtt_s = self._connection.rtt_s(commit.echo_sequence, commit.hold_s)
        if rtt_s is not None:
            out.rtt_s.append(rtt_s)
            seen = replace(seen, newest_rtt_s=rtt_s)
            rtt_s = rtt_s if not seen.rtt_s else seen.rtt_s + EMA_WEIGHT * (rtt_s - seen.rtt_s)
        drafted = commit.drafts_verified - out.verified
        accepted = commit.drafts_accepted - out.accepted
        iterations = commit.iterations - out.iterations
        if drafted < 0 or accepted < 0 or iterations < 0:  # an old one, or a server that was started anew
            drafted = accepted = iterations = 0
        out.verified, out.accepted, out.iterations = (
            commit.drafts_verified,
            commit.drafts_accepted,
            commit.iterations,
        )
        rate, per_round = seen.acceptance_rate, seen.tokens_per_round
        if drafted:
            rate += EMA_WEIGHT * (accepted / drafted - rate)
        if iterations:
            per_round += EMA_WEIGHT * (accepted / iterations + 1 - per_round)
        self._telemetry = replace(
            seen,
            rtt_s=seen.rtt_s if rtt_s is None else rtt_s,
            last_drafted=seen.last_drafted + drafted,
            last_accepted=seen.last_accepted + accepted,
            acceptance_rate=rate,
            tokens_per_round=per_round,
            rounds=out.results,
            iteration_s=commit.iteration_s,
            batch_sequences=commit.batch_sequences,
            resident_sequences=commit.resident_sequences,
            waiting_requests=commit.waiting_requests,
            idle_share=commit.idle_iterations / max(1, commit.iterations),
        )

    def _decide(self) -> None:
        """Ask the scheduler."""
        seen = replace(
            self._telemetry,
            committed_tokens=len(self._prefix),
            age_s=time.monotonic() - self._began_s,
            drafts_in_flight=len(self._drafts),
            window=self._decision.gamma,
            placement=self._decision.placement,
        )
        decision = self._client.decide(seen)
        if not 0 <= decision.gamma <= seen.max_window:
            raise ValueError(f"the scheduler decided gamma {decision.gamma}, not 0 to {seen.max_window}")
        self._telemetry = replace(self._telemetry, last_drafted=0, last_accepted=0)
        before, self._decision = self._drafts_here(), decision
        self._decide_at = len(self._prefix)
        self._log(
            EventKind.DECISION, decision.gamma, placement=decision.placement, rtt_s=round(seen.rtt_s, 6)
        )
        if self._drafts_here():
            if not before:
                self._roll_back(0)
        else:
            if before:
                self._roll_back(len(self._drafts))
            self._decide_at += self._config.plain_chunk_tokens

    def _drafts_here(self) -> bool:
        return self._decision.gamma > 0 and self._decision.placement == "edge"

    # ------------------------------------------------------------------ drafting, sending

    def _room(self) -> int:
        """Drafts that the output has room for; the target adds a token of its own."""
        return self._question.max_new_tokens - len(self._prefix) - 1

    def _may_draft(self) -> bool:
        if not self._drafts_here() or self._line_ended or len(self._drafts) >= self._room():
            return False
        if not len(self._prefix):
            return not self._drafts  # read the prompt while the cloud does
        gamma = self._decision.gamma
        if self._config.protocol == "pipelined" and self._awaiting is not None:
            return len(self._drafts) < 2 * gamma + 1  # those on their way, a guess, and the next round
        if self._config.protocol == "synchronous" and self._awaiting is not None:
            return False
        return len(self._drafts) < gamma

    async def _draft(self) -> None:
        """Draft a token, or a whole window where no result can come meanwhile.

        So clients of one device that wait for results take turns by windows, as in the simulator.
        """
        wanted = 0
        if self._config.protocol == "synchronous" and len(self._prefix):
            wanted = min(self._decision.gamma, self._room()) - len(self._drafts)
        self._log(EventKind.DRAFT_START, max(1, wanted))
        loop = asyncio.get_running_loop()
        new, took_s = await loop.run_in_executor(self._client.pool, _timed_steps, self._line, wanted)
        seen = self._telemetry
        if len(self._prefix) and new:  # the first step reads the prompt
            step_s, mean_s = took_s / len(new), seen.draft_step_s
            mean_s = mean_s + EMA_WEIGHT * (step_s - mean_s) if mean_s else step_s
            self._telemetry = replace(seen, draft_step_s=mean_s)
        self._log(EventKind.DRAFT_END, len(new or ()), duration_s=round(took_s, 6))
        if new is None:
            self._line_ended = True
            return
        self._out.drafted += len(new)
        self._drafts += new

    async def _send_due(self, connection: Connection) -> None:
        """Send what should be sent now."""
        if not len(self._prefix):
            return  # the prompt's first token comes by itself
        if self._drafts_here() and self._config.protocol == "streaming":
            most = min(len(self._drafts), self._room(), self._telemetry.max_window)
            due = self._drafts[self._sent : most]
            full = len(due) >= self._config.stream_chunk_tokens or not self._may_draft()
            behind = len(self._prefix) - self._acknowledged >= ACKNOWLEDGE_AFTER
            if self._announced != (pb.FREE_RUN, self._decision.gamma) or (due and full) or behind:
                await self._send_tail(connection, due)
        elif self._drafts_here():
            gamma = min(self._decision.gamma, max(self._room(), 0))
            if self._awaiting is None and (len(self._drafts) >= gamma or self._line_ended):
                self._sent = 0
                self._awaiting = await self._send_tail(connection, self._drafts[:gamma])
        elif (
            self._announced != (self._mode(), self._decision.gamma)
            or self._run_until < min(self._decide_at + self._config.plain_chunk_tokens, self._most())
            or len(self._prefix) - self._acknowledged >= ACKNOWLEDGE_AFTER
        ):
            # A chunk more than the next decision is for, so that the cloud need not wait for it.
            self._run_until = min(self._decide_at + self._config.plain_chunk_tokens, self._most())
            await self._send_tail(connection, [])

    def _most(self) -> int:
        return self._question.max_new_tokens

    def _mode(self) -> pb.Mode:
        if self._drafts_here():
            return pb.FREE_RUN if self._config.protocol == "streaming" else pb.VERIFY
        return pb.COLOCATED if self._decision.gamma else pb.PLAIN

    async def _send_tail(self, connection: Connection, tokens: Sequence[int]) -> pb.EdgeMessage:
        """Send drafts behind those already sent, and what the cloud is to do."""
        base = len(self._prefix)
        tail = pb.DraftTailStream(
            mode=self._mode(),
            window=self._decision.gamma,
            generation=self._generation,
            base_committed_len=base,
            base_digest=self._prefix.digest(),
            start_token_pos=base + self._sent,
            tokens=tokens,
            run_until_len=self._run_until,
        )
        if self._announced is None and tail.mode == pb.FREE_RUN:
            self._log(EventKind.STREAM_OPEN, tail.window)
        elif self._announced is not None and self._announced[0] == pb.FREE_RUN != tail.mode:
            self._log(EventKind.STREAM_CLOSE, self._generation)
        self._log(EventKind.DRAFT_SENT if tokens else EventKind.SEND, base + self._sent, tokens=len(tokens))
        self._announced = (tail.mode, tail.window)
        self._acknowledged = base
        self._sent += len(tokens)
        return await connection.send(drafts=tail)

    def _log(self, kind: EventKind, value: float, **more: object) -> None:
        self._client.log.write(kind, self._client.number, self._number, value, **more)


def _timed_steps(line: Line, wanted: int) -> tuple[list[int] | None, float]:
    """Return what :func:`take_steps` does, and how long it took."""
    started = time.perf_counter()
    return take_steps(line, wanted), time.perf_counter() - started
