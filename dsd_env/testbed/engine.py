"""The cloud's iterations: who takes part, what the target reads, what comes of it.

As in the simulator: an engine never idles with work at hand. Whoever is ready takes part in the next
iteration, with one token or a window of drafts; what is left of the iteration's tokens goes to prompts.
Decisions are made on the event loop; only the model's pass runs on a thread of its own, so no lock is needed.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from dsd_env.calibration.acceptance.recording.prompts import Prompt
from dsd_env.sim.events import EventKind
from dsd_env.strict_model import StrictNumbers
from dsd_env.testbed.drafters import Line, LineMaker, NoLine, Question
from dsd_env.testbed.log import EventLog
from dsd_env.testbed.sessions import Session
from dsd_env.testbed.target import Feed, PackedTarget, Sampling
from dsd_env.testbed.wire import pb


class EngineConfig(StrictNumbers, BaseModel):
    """Caps of the engine, with the simulator's names.

    Attributes:
        max_num_seqs: Requests resident at a time.
        max_num_batched_tokens: New tokens of one iteration; decoding and verifying come first.
        max_kv_tokens: Tokens of KV that resident requests may come to need together.
        min_iteration_s: A pass that takes less is made to take this long; 0: as it comes. It stands for a
            larger target than the machine can hold, in tests and demonstrations.
        end_after_tokens: The target ends every output after so many tokens, as if it had nothing more to say.
            Clients do not know of it, as they do not know where an answer ends; 0: it ends where it ends.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_num_seqs: int = Field(16, ge=1)
    max_num_batched_tokens: int = Field(512, ge=1)
    max_kv_tokens: int = Field(16384, ge=1)
    min_iteration_s: float = Field(0.0, ge=0)
    end_after_tokens: int = Field(0, ge=0)


@dataclass
class _Job:
    """What one session does in one iteration: ``feed`` is made when its drafts are known."""

    session: Session
    start: int
    drafts: list[int]
    colocated: int = 0
    feed: Feed | None = None


@dataclass
class EngineStats:
    """What the engine is at.

    Attributes:
        iterations: Iterations so far.
        committed_tokens: Tokens that they committed.
        iteration_s: Duration of the last.
        batch_sequences: Sequences in it.
    """

    iterations: int = 0
    committed_tokens: int = 0
    iteration_s: float = 0.0
    batch_sequences: int = 0


class Engine:
    """Runs the target over the sessions that are resident."""

    def __init__(
        self,
        target: PackedTarget,
        stop_ids: frozenset[int],
        config: EngineConfig,
        log: EventLog,
        committed: Callable[[Session], None],
        colocated: LineMaker | None = None,
    ) -> None:
        """Put an engine together.

        Args:
            target: The target.
            stop_ids: Tokens that end an output.
            config: Its caps.
            log: Where events go.
            committed: Called with a session of which tokens were decided.
            colocated: Makes drafters that run here; None for none.
        """
        self._target, self._stop_ids, self._config, self._log = target, stop_ids, config, log
        self._committed, self._colocated = committed, colocated
        self._resident: list[Session] = []
        self._waiting: deque[Session] = deque()
        self._gone: set[int] = set()
        self._lines: dict[int, Line] = {}
        self._wake = asyncio.Event()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="target")
        self.stats = EngineStats()

    @property
    def resident(self) -> int:
        """Requests that hold KV."""
        return len(self._resident)

    @property
    def waiting(self) -> int:
        """Requests that wait to be admitted."""
        return len(self._waiting)

    @property
    def can_draft(self) -> bool:
        """Whether there is a drafter here."""
        return self._colocated is not None

    def fits(self, session: Session) -> bool:
        """Return whether a request can ever be admitted."""
        return self._need(session) <= self._config.max_kv_tokens

    def add(self, session: Session) -> None:
        """Take a new request; it is admitted when there is room."""
        self._waiting.append(session)
        self._log.write(EventKind.ENQUEUE, 0, session.number, len(session.prompt) + len(session.prefix))
        self.wake()

    def remove(self, session: Session) -> None:
        """Forget a request, at once or after the iteration under way."""
        if session in self._waiting:
            self._waiting.remove(session)
        if session in self._resident:
            self._resident.remove(session)
            self._gone.add(session.number)
        self.wake()

    def wake(self) -> None:
        """Say that somebody may have become ready."""
        self._wake.set()

    async def run(self) -> None:
        """Run iterations until cancelled."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                self._admit()
                jobs = self._compose()
                if not jobs:
                    self._wake.clear()
                    await self._wake.wait()
                    continue
                self._log.write(EventKind.ITERATION_START, 0, -1, len(jobs))
                started = time.perf_counter()
                choices = await loop.run_in_executor(self._pool, self._pass, jobs)
                rest = self._config.min_iteration_s - (time.perf_counter() - started)
                if rest > 0:
                    await asyncio.sleep(rest)
                self._apply(jobs, choices, time.perf_counter() - started)
                await asyncio.sleep(0)  # let messages in
        finally:
            self._pool.shutdown(wait=True)

    def _need(self, session: Session) -> int:
        return len(session.prompt) + session.max_new_tokens

    def _admit(self) -> None:
        """Give seats to those who wait, in their order; let those go who have left."""
        for number in self._gone:
            self._target.crop(number, 0)
            self._lines.pop(number, None)
        self._gone.clear()
        held = sum(map(self._need, self._resident))
        while self._waiting and len(self._resident) < self._config.max_num_seqs:
            need = self._need(self._waiting[0])
            if held + need > self._config.max_kv_tokens:
                break
            session = self._waiting.popleft()
            self._resident.append(session)
            held += need
            self._log.write(EventKind.ADMIT, 0, session.number, need)

    def _compose(self) -> list[_Job]:
        """Return who takes part: first those who decode or verify, then prompts."""
        left = self._config.max_num_batched_tokens
        jobs: list[_Job] = []
        reading: list[tuple[Session, int, int]] = []
        for session in self._resident:
            held = self._target.length(session.number)
            goal = len(session.prompt) + len(session.prefix) - 1
            if not len(session.prefix):
                reading.append((session, held, len(session.prompt)))
            elif held < goal:
                reading.append((session, held, goal))
            elif session.is_ready():
                job = self._decode_job(session)
                cost = 1 + len(job.drafts) + job.colocated
                if jobs and cost > left:
                    continue  # it comes first in the next one
                left -= cost
                jobs.append(job)
        for session, held, goal in reading:
            if left <= 0:
                break
            chunk = (session.prompt + session.prefix.tokens)[held : min(goal, held + left)]
            left -= len(chunk)
            last = held + len(chunk) == goal and not len(session.prefix)
            feed = Feed(session.number, chunk, int(last), 0, Sampling(session.temperature, session.seed))
            jobs.append(_Job(session, 0, [], feed=feed))
        taken = {id(job.session) for job in jobs}
        self._resident.sort(
            key=lambda session: id(session) in taken
        )  # stable: whoever was left out goes first
        return jobs

    def _decode_job(self, session: Session) -> _Job:
        start = len(session.prefix)
        if session.mode == pb.COLOCATED and self._colocated is not None:
            if session.number not in self._lines:
                self._lines[session.number] = self._line_of(session, self._colocated)
            return _Job(session, start, [], min(session.window, session.max_new_tokens - start - 1))
        return _Job(session, start, session.drafts_to_verify())

    def _line_of(self, session: Session, make: LineMaker) -> Line:
        """Return a drafter for a session; none where its drafter cannot serve it."""
        text, reply = session.prompt_text
        prompt = Prompt(session.request_id, "", text, reply) if text else None
        sampling = Sampling(session.temperature, session.seed)
        try:
            return make(Question(session.prompt, session.max_new_tokens, prompt, sampling))
        except ValueError:
            return NoLine()

    def _pass(self, jobs: list[_Job]) -> list[list[int]]:
        """Let drafters here draft, and the target read. On the model's thread."""
        for job in jobs:
            session = job.session
            if job.colocated > 0:
                line = self._lines[session.number]
                line.rebase(session.prefix.tokens)
                while len(job.drafts) < job.colocated and (new := line.step()) is not None:
                    job.drafts += new
                del job.drafts[job.colocated :]
            if job.feed is None:
                last = session.prefix.tokens[-1]
                sampling = Sampling(session.temperature, session.seed)
                tokens = [last, *job.drafts]
                job.feed = Feed(session.number, tokens, len(tokens), job.start, sampling)
        return self._target.read([job.feed for job in jobs if job.feed is not None])

    def _apply(self, jobs: list[_Job], choices: list[list[int]], duration_s: float) -> None:
        """Commit what an iteration decided."""
        self.stats.iterations += 1
        self.stats.iteration_s, self.stats.batch_sequences = duration_s, len(jobs)
        tokens = sum(len(job.feed.tokens) for job in jobs if job.feed is not None)
        self._log.write(EventKind.ITERATION_END, 0, -1, tokens, duration_s=round(duration_s, 6))
        for job, chosen in zip(jobs, choices, strict=True):
            session = job.session
            if not chosen or session.number in self._gone:
                continue
            late = session.counters.late_drafts
            new = session.decided(job.drafts, chosen, self._stop_ids, self._config.end_after_tokens)
            self.stats.committed_tokens += len(new)
            self._log.write(EventKind.COMMIT, 0, session.number, len(new), drafts=len(job.drafts))
            if session.counters.late_drafts > late:
                self._log.write(EventKind.LATE_DRAFTS, 0, session.number, session.counters.late_drafts - late)
            if session.finished:
                self._resident.remove(session)
                self._gone.add(session.number)
            else:
                self._target.crop(session.number, len(session.prompt) + len(session.prefix) - 1)
            self._committed(session)
