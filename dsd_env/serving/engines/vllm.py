"""A scheduler of vLLM whose speculation length is a controller's, per request.

Start vLLM with ``--scheduler-cls dsd_env.serving.engines.vllm.PolicyScheduler`` and the policy in the
environment variable ``DSD_POLICY`` (see :mod:`dsd_env.serving.engines.session`). Run with vLLM 0.32.0 on CPU;
its scheduler interface is not public, so another version may need changes here.

vLLM fixes how many tokens its drafter makes when it schedules a step; the drafts are made at the end of that
step and verified in the next one. So the decision for a round is taken one step before it, when the outcome
of the round before is not yet known. The drafter runs as long as the longest length wanted in the batch;
before they are verified, the drafts of each request are cut to its own length.

It subclasses ``Scheduler``, with which vLLM does not schedule asynchronously.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterable
from typing import Any

from dsd_env.serving.controller import Controller
from dsd_env.serving.engines.session import EngineError, EngineSession, Round, controller_from_environment
from dsd_env.serving.telemetry import DraftKv, IterationDone, TargetState

RECORD_VARIABLE = "DSD_RECORD_ROUNDS"
"""Environment variable; "1" keeps the rounds of all requests, for tests and short runs."""


class _Steered:
    """One request: its session, and lengths on their way from decision to verification.

    Attributes:
        session: Its session.
        wanted: Length decided for the drafts that are made next; None: not decided yet.
        asked: Length decided for the drafts to be verified next.
    """

    __slots__ = ("asked", "context", "session", "wanted")

    def __init__(self, session: EngineSession, prompt_tokens: int) -> None:
        self.session = session
        self.context = prompt_tokens
        self.wanted: int | None = None
        self.asked = 0


class Steering:
    """What the scheduler asks and tells, without vLLM: lengths by name of the request.

    Attributes:
        controller: What decides.
        longest: Most drafts that vLLM's drafter makes; decisions above are cut.
        rounds: Rounds by name of the request, if they are recorded.
        drafted: Drafts verified so far.
        accepted: Those that were right.
        cut: Decisions that were above `longest`.
    """

    def __init__(self, controller: Controller, longest: int, *, record: bool = False) -> None:
        """Begin without requests."""
        self.controller = controller
        self.longest = longest
        self.rounds: dict[str, list[Round]] = {}
        self.drafted = self.accepted = self.cut = 0
        self._record = record
        self._requests: dict[str, _Steered] = {}
        self._step_began_s = 0.0
        self._state: TargetState | None = None

    def arrive(self, name: str, prompt_tokens: int) -> None:
        """Note a new request."""
        if name in self._requests:
            self.finish(name)
        session = EngineSession(self.controller, name, prompt_tokens=prompt_tokens, keep_rounds=False)
        self._requests[name] = _Steered(session, prompt_tokens)
        if self._record:
            self.rounds[name] = []

    def longest_wanted(self, names: Iterable[str]) -> int:
        """Decide for those in a step that have no decision yet, and return the longest length of all."""
        present = [(name, each) for name in names if (each := self._requests.get(name)) is not None]
        undecided = [(name, each) for name, each in present if each.wanted is None]
        now_s = self.controller.now_s()
        if self._state is not None:
            # Nothing has happened since the step's end: whoever decides at the target sees it as it is.
            self.controller.observe(dataclasses.replace(self._state, time_s=now_s))
        answers = self.controller.decide_many([name for name, _ in undecided], now_s)
        for (_, each), answer in zip(undecided, answers, strict=True):
            wanted = each.session.take(answer)
            self.cut += wanted > self.longest
            each.wanted = min(wanted, self.longest)
        return max((each.wanted or 0 for _, each in present), default=0)

    def length(self, name: str) -> int:
        """Return the length of the drafts that have just been made; the next decision is due."""
        each = self._requests.get(name)
        if each is None:
            return 0
        each.asked, each.wanted = each.wanted or 0, None
        return each.asked

    def committed(self, name: str, drafted: int, tokens: int) -> None:
        """Note what a step gave a request.

        Args:
            name: The request.
            drafted: Drafts verified.
            tokens: Tokens sampled, before a stop condition cut them; 0: it is still being prefilled.
        """
        each = self._requests.get(name)
        if each is None or tokens < 1:
            return
        each.context += tokens
        if not each.session.begun:
            each.session.begin()
        else:
            accepted = min(drafted, tokens - 1)
            each.session.report(drafted, accepted, tokens)
            self.drafted += drafted
            self.accepted += accepted
            if self._record:
                self.rounds[name].append(Round(each.asked, drafted, accepted))
        # vLLM's drafter runs over every new token, also when nothing is drafted.
        self.controller.observe(DraftKv(name, each.context - 1, site="colocated"))

    def finish(self, name: str) -> None:
        """Note that a request has ended."""
        each = self._requests.pop(name, None)
        if each is not None:
            each.session.close()

    def step_begins(self) -> None:
        """Note that a step has been scheduled."""
        self._step_began_s = time.perf_counter()

    def step_ends(self, new_tokens: int, *, resident: int, waiting: int, kv_fraction: float) -> None:
        """Note that a step has been carried out, and what is there now; it is told with the next question.

        vLLM asks for lengths between two steps, when none is under way: what it calls running is resident.

        Args:
            new_tokens: New tokens of the step.
            resident: Requests that hold KV.
            waiting: Requests that wait for admission.
            kv_fraction: Share of the KV pool in use.
        """
        duration_s = time.perf_counter() - self._step_began_s
        if new_tokens > 0 and self._step_began_s > 0.0:
            self.controller.observe(IterationDone(duration_s, new_tokens))
        self._state = TargetState(
            running=0,
            resident=resident,
            queued=waiting,
            waiting=waiting,
            kv_fraction=min(1.0, max(0.0, kv_fraction)),
        )


def _scheduler_class() -> Any:
    """Return the scheduler class; vLLM is imported here."""
    try:
        from vllm.v1.core.sched.scheduler import Scheduler
    except ImportError as error:
        raise EngineError("needs vLLM 0.32 in this environment") from error

    class PolicyScheduler(Scheduler):  # type: ignore[misc]
        """vLLM's scheduler with lengths from a controller.

        Attributes:
            steering: What asks the controller.
        """

        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            if not self.num_spec_tokens:
                raise EngineError(
                    "vLLM drafts nothing: give a speculative_config, whose num_speculative_tokens is the "
                    "longest length that the policy may decide on"
                )
            self.steering = Steering(
                controller_from_environment(),
                self.num_spec_tokens,
                record=os.environ.get(RECORD_VARIABLE) == "1",
            )
            # vLLM asks here for the length of a step, by its batch size; see `__getitem__`.
            self.dynamic_sd_lookup = self

        def __getitem__(self, batch_size: int) -> int:
            """Return how many tokens the drafter makes at the end of the step being scheduled."""
            return self.steering.longest_wanted([request.request_id for request in self.running])

        def add_request(self, request: Any) -> None:
            """Note a new request."""
            new = request.request_id not in self.requests
            super().add_request(request)
            if new:
                self.steering.arrive(request.request_id, request.num_prompt_tokens)

        def schedule(self, *arguments: Any, **named: Any) -> Any:
            """Schedule a step."""
            output = super().schedule(*arguments, **named)
            self.steering.step_begins()
            return output

        def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
            """Report what the step gave, then let vLLM take it in, which may end requests."""
            steering, sampled = self.steering, model_runner_output.sampled_token_ids
            verified = scheduler_output.scheduled_spec_decode_tokens
            for name in scheduler_output.num_scheduled_tokens:
                tokens = sampled[model_runner_output.req_id_to_index[name]] if sampled else ()
                steering.committed(name, len(verified.get(name, ())), len(tokens))
            outputs = super().update_from_output(scheduler_output, model_runner_output)
            steering.step_ends(
                scheduler_output.total_num_scheduled_tokens,
                resident=len(self.running),
                waiting=len(self.waiting),
                kv_fraction=self.kv_cache_manager.usage,
            )
            return outputs

        def update_draft_token_ids(self, draft_token_ids: Any) -> None:
            """Take over the drafts, each request's cut to its own length."""
            super().update_draft_token_ids(draft_token_ids)
            for name in draft_token_ids.req_ids:
                request = self.requests.get(name)
                if request is None or request.is_finished() or request.is_prefill_chunk:
                    continue
                request.spec_token_ids = request.spec_token_ids[: self.steering.length(name)]

        def _free_request(self, request: Any, *arguments: Any, **named: Any) -> Any:
            """Note that a request has ended."""
            self.steering.finish(request.request_id)
            return super()._free_request(request, *arguments, **named)

    PolicyScheduler.__module__, PolicyScheduler.__qualname__ = __name__, "PolicyScheduler"
    return PolicyScheduler


def __getattr__(name: str) -> Any:
    """Make the scheduler class when it is asked for, so that this module needs no vLLM."""
    if name == "PolicyScheduler":
        made = globals()[name] = _scheduler_class()
        return made
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
