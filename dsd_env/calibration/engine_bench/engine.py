"""vLLM in a process of its own, closed-loop clients before it, and what every step did.

Written for vLLM 0.32 on CPU. The engine is driven step by step in its own process, so that a step's time is
that of the engine and of nothing between it and the clients. Every client asks its questions one after the
other, each as soon as the one before is answered.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

from dsd_env.calibration.engine_bench.runs import Answer, Question, Round, Run, Step
from dsd_env.serving.engines.session import (
    DEPLOYMENT_VARIABLE,
    POLICY_VARIABLE,
    EngineError,
    controller_from_environment,
)

START_S = 600.0
"""How long an engine may take to start: weights may come from a slow disk."""
SCHEDULER = "dsd_env.serving.engines.vllm.PolicyScheduler"
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    # Its own binding of threads to cores makes steps several times slower where other work runs as well.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
"""What vLLM is started with, unless the user's environment says otherwise."""

Watch = Callable[[dict[str, Any]], None]
"""Takes an event of a run: ``{"kind": "ask" | "step" | "done", ...}``."""


@dataclass(frozen=True)
class EngineSpec:
    """An engine to start.

    Attributes:
        target: Directory of the target's checkpoint.
        draft: Directory of the drafter's; None: no speculation, for settings of kind ``plain`` only.
        longest: Most drafts of a round.
        steered: Whether :class:`dsd_env.serving.engines.vllm.PolicyScheduler` schedules, or vLLM's own.
        policy: What decides, where it does.
        deployment: What describes the deployment to a rule; "": the policy's own.
        dtype: Compute dtype. With float32 the output does not depend on who shares a step.
        threads: Threads that compute.
        max_num_seqs: Requests resident at a time.
        max_model_len: Prompt and answer together at most, tokens.
        log: File for what vLLM has to say.
    """

    target: str
    draft: str | None
    log: str
    longest: int = 4
    steered: bool = False
    policy: str = ""
    deployment: str = ""
    dtype: str = "float32"
    threads: int = 2
    max_num_seqs: int = 8
    max_model_len: int = 250

    def options(self) -> dict[str, Any]:
        """Return vLLM's engine arguments."""
        found: dict[str, Any] = {
            "model": self.target,
            "dtype": self.dtype,
            "enforce_eager": True,
            "skip_tokenizer_init": True,
            "max_model_len": self.max_model_len,
            "max_num_seqs": self.max_num_seqs,
            "enable_prefix_caching": False,
            "disable_log_stats": False,
            "async_scheduling": False,
        }
        if self.draft is not None:
            found["per_request_spec_decode_metrics"] = "detailed"
            speculation: dict[str, Any] = {
                "method": "draft_model",
                "model": self.draft,
                "num_speculative_tokens": self.longest,
            }
            if self.steered:
                found["scheduler_cls"] = SCHEDULER
            else:
                # A table from the start, so that vLLM itself reads one; each setting has its own.
                speculation["num_speculative_tokens_per_batch_size"] = [(1, self.max_num_seqs, self.longest)]
            found["speculative_config"] = speculation
        return found


class Bench:
    """A started engine with its witness. In the process of the engine."""

    def __init__(self, spec: EngineSpec) -> None:
        """Start vLLM.

        Raises:
            EngineError: vLLM is missing.
        """
        try:
            from vllm.engine.arg_utils import EngineArgs
            from vllm.v1.engine.llm_engine import LLMEngine
        except ImportError as error:
            raise EngineError("needs vLLM 0.32 in this environment") from error
        import torch

        torch.set_num_threads(spec.threads)
        self.spec = spec
        self.engine = LLMEngine.from_engine_args(EngineArgs(**spec.options()))
        self.scheduler: Any = self.engine.engine_core.engine_core.scheduler
        self._scheduled: Any = None
        self._names = 0
        schedule = self.scheduler.schedule

        @functools.wraps(schedule)
        def witnessed(*arguments: Any, **named: Any) -> Any:
            self._scheduled = schedule(*arguments, **named)
            return self._scheduled

        self.scheduler.schedule = witnessed

    def use_table(self, table: Sequence[tuple[int, int, int]]) -> None:
        """Let vLLM draft by a table of batch sizes, made into what it looks up by its own function."""
        from vllm.v1.spec_decode.dynamic.utils import build_dynamic_sd_schedule_lookup

        self.scheduler.dynamic_sd_lookup = build_dynamic_sd_schedule_lookup(
            [tuple(row) for row in table],
            vllm_max_batch_size=self.spec.max_num_seqs,
            vllm_num_speculative_tokens=self.spec.longest,
        )

    def use_policy(self, policy: str) -> None:
        """Let another policy or rule decide from here on; nobody may be in service."""
        from dsd_env.serving.engines.vllm import Steering

        environment = {POLICY_VARIABLE: policy, DEPLOYMENT_VARIABLE: self.spec.deployment}
        self.scheduler.steering = Steering(controller_from_environment(environment), self.spec.longest)

    def run(self, setting: str, questions: Sequence[Question], clients: int, watch: Watch) -> Run:
        """Let clients ask all questions: client ``i`` asks ``i``, ``i + clients`` and so on, in turn."""
        return _Serving(self, setting, questions, clients, watch).run()

    def step(self) -> tuple[Any, Any, float]:
        """Do one step; return what was scheduled, what came out, and how long it took in seconds."""
        began_s = time.perf_counter()
        outputs = self.engine.step()
        return self._scheduled, outputs, time.perf_counter() - began_s

    def add(self, question: Question) -> str:
        """Hand a request to the engine; return its name there."""
        from vllm import SamplingParams

        name = f"bench-{self._names}"
        self._names += 1
        parameters = SamplingParams(
            temperature=0.0, max_tokens=question.output_tokens, detokenize=False, ignore_eos=True
        )
        self.engine.add_request(name, {"prompt_token_ids": list(question.prompt_ids)}, parameters)
        return name

    def facts(self) -> dict[str, Any]:
        """Return what the engine counted since it started."""
        found: dict[str, Any] = {
            "scheduler": f"{type(self.scheduler).__module__}.{type(self.scheduler).__qualname__}"
        }
        steering = getattr(self.scheduler, "steering", None)
        if steering is not None:
            found |= {
                "drafted": steering.drafted,
                "accepted": steering.accepted,
                "cut": steering.cut,
                "left": len(steering.controller.requests),
                "counts": dict(steering.controller.counts),
                "decides": steering.controller.scheduler,
            }
        return found


class _Serving:
    """One run: questions, clients, and what has come."""

    def __init__(
        self, bench: Bench, setting: str, questions: Sequence[Question], clients: int, watch: Watch
    ) -> None:
        self._bench, self._setting, self._watch = bench, setting, watch
        self._clients = clients
        self._waiting = [
            [(number, each) for number, each in enumerate(questions) if number % clients == client]
            for client in range(clients)
        ]
        self._open: dict[str, tuple[Answer, Question]] = {}
        self._answers: list[Answer] = []
        self._steps: list[Step] = []
        self._own: dict[str, dict[str, list[int]]] = {}
        self._origin_s = 0.0

    def run(self) -> Run:
        """Serve until all questions are answered."""
        self._origin_s = time.perf_counter()
        for client in range(self._clients):
            self._ask(client)
        while self._open:
            before = {name: self._context(name) for name in self._open}
            scheduled, outputs, duration_s = self._bench.step()
            self._take(scheduled, outputs, duration_s, before)
        duration_s = time.perf_counter() - self._origin_s
        self._answers.sort(key=lambda answer: answer.question)
        facts = self._bench.facts() | {"own_records": self._own}
        return Run(self._setting, self._clients, self._answers, self._steps, duration_s, facts)

    def _now_s(self) -> float:
        return time.perf_counter() - self._origin_s

    def _ask(self, client: int) -> None:
        if not self._waiting[client]:
            return
        number, question = self._waiting[client].pop(0)
        answer = Answer(number, client, question.kind, self._now_s())
        self._open[self._bench.add(question)] = answer, question
        self._watch({"kind": "ask", "question": number, "client": client, "text": question.kind})

    def _context(self, name: str) -> int:
        """Return the KV tokens of a request before the step; a request not yet taken in has none."""
        request = self._bench.scheduler.requests.get(_own_name(self._bench.scheduler.requests, name))
        return 0 if request is None else int(request.num_computed_tokens)

    def _take(self, scheduled: Any, outputs: Any, duration_s: float, before: dict[str, int]) -> None:
        """Take in what a step did."""
        now_s = self._now_s()
        drafts = {_outer(name): len(ids) for name, ids in scheduled.scheduled_spec_decode_tokens.items()}
        decoding = prefilling = prompt = context = 0
        for inner, count in scheduled.num_scheduled_tokens.items():
            name = _outer(inner)
            answer, _ = self._open[name]
            context += before.get(name, 0) + count
            if answer.tokens:
                decoding += 1
            else:
                prefilling += 1
                prompt += count
        self._steps.append(
            Step(
                duration_s,
                decoding,
                prefilling,
                prompt,
                sum(drafts.values()),
                context,
                int(scheduled.num_spec_tokens_to_schedule) if self._bench.spec.draft else 0,
            )
        )
        shown = []
        for output in outputs:
            answer, _ = self._open[output.request_id]
            new = list(output.outputs[0].token_ids)[len(answer.tokens) :]
            if new and not answer.tokens:
                answer.first_s = now_s
            elif new:
                answer.rounds.append(Round(drafts.get(output.request_id, 0), len(new)))
            answer.tokens += new
            shown.append((answer.question, drafts.get(output.request_id, 0), new))
        self._watch({"kind": "step", "time_s": now_s, "duration_s": duration_s, "requests": shown})
        for output in outputs:
            if output.finished:
                answer, _ = self._open.pop(output.request_id)
                answer.done_s = now_s
                self._answers.append(answer)
                self._own[str(answer.question)] = _own_record(output)
                self._watch({"kind": "done", "question": answer.question, "client": answer.client})
                self._ask(answer.client)


def _outer(name: str) -> str:
    """Return the name that a request was added under; vLLM appends some letters to it inside."""
    return "-".join(name.split("-")[:2])


def _own_name(requests: dict[str, Any], name: str) -> str:
    return next((inner for inner in requests if _outer(inner) == name), name)


def _own_record(output: Any) -> dict[str, list[int]]:
    """Return vLLM's own record of a request's drafting steps; empty where it keeps none."""
    for place in (output, output.outputs[0], getattr(output, "metrics", None)):
        for attribute in ("spec_decode_metrics", "spec_decode_stats"):
            found = getattr(place, attribute, None)
            if found is not None:
                return {
                    key: [int(each) for each in getattr(found, key)]
                    for key in ("per_step_drafted", "per_step_accepted")
                }
    return {}


# ---------------------------------------------------------------- in a process of its own


def _work(spec: EngineSpec, pipe: Pipe) -> None:
    """Serve calls that come through a pipe, until it closes. In a process of its own."""
    log = os.open(spec.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        bench = Bench(spec)
    except BaseException as error:  # whatever it is, the parent has to know
        pipe.send(("failed", f"{type(error).__name__}: {error}"))
        raise
    pipe.send(("started", None))
    with suppress(EOFError):
        while True:
            call, arguments = pipe.recv()
            try:
                if call == "table":
                    bench.use_table(arguments)
                    pipe.send(("result", None))
                elif call == "policy":
                    bench.use_policy(arguments)
                    pipe.send(("result", None))
                else:
                    setting, questions, clients = arguments
                    found = bench.run(setting, questions, clients, lambda event: pipe.send(("event", event)))
                    pipe.send(("result", found.as_dict()))
            except Exception as error:
                pipe.send(("failed", f"{type(error).__name__}: {error}"))
                raise
    sys.stdout.flush()
    # vLLM's threads would keep the process.
    os._exit(0)


class EngineProcess:
    """An engine in a process of its own, as its caller sees it."""

    def __init__(self, pipe: Pipe, log: str) -> None:
        """Take the pipe to it."""
        self._pipe, self._log = pipe, log

    def use_table(self, table: Sequence[tuple[int, int, int]]) -> None:
        """See :meth:`Bench.use_table`."""
        self._pipe.send(("table", [tuple(row) for row in table]))
        self.wait(lambda event: None)

    def use_policy(self, policy: str) -> None:
        """See :meth:`Bench.use_policy`."""
        self._pipe.send(("policy", policy))
        self.wait(lambda event: None)

    def run(
        self, setting: str, questions: Sequence[Question], clients: int, watch: Watch | None = None
    ) -> Run:
        """See :meth:`Bench.run`."""
        self._pipe.send(("run", (setting, list(questions), clients)))
        return Run.from_dict(self.wait(watch or (lambda event: None)))

    def wait(self, watch: Watch) -> Any:
        """Wait for an answer, handing on events.

        Raises:
            EngineError: The engine failed; the message says where its log is.
        """
        while True:
            try:
                kind, value = self._pipe.recv()
            except (EOFError, ConnectionResetError):
                raise EngineError(f"the engine ended; its log: {self._log}") from None
            if kind == "event":
                watch(value)
            elif kind == "failed":
                raise EngineError(f"the engine failed: {value}; its log: {self._log}")
            else:
                return value


@contextmanager
def engine_process(spec: EngineSpec) -> Iterator[EngineProcess]:
    """Start an engine in a process of its own.

    Raises:
        EngineError: It does not start.
    """
    Path(spec.log).parent.mkdir(parents=True, exist_ok=True)
    ours = ENVIRONMENT | {"OMP_NUM_THREADS": str(spec.threads)}
    ours = {key: os.environ.get(key, value) for key, value in ours.items()}
    if spec.steered:
        ours |= {POLICY_VARIABLE: spec.policy, DEPLOYMENT_VARIABLE: spec.deployment}
    with _variables(ours):
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(target=_work, args=(spec, there))
        process.start()
    there.close()
    try:
        if not here.poll(START_S):
            raise EngineError(f"the engine did not start in time; its log: {spec.log}")
        found = EngineProcess(here, spec.log)
        found.wait(lambda event: None)
        yield found
    finally:
        here.close()
        process.join(10.0)
        if process.is_alive():
            process.kill()
            process.join()


@contextmanager
def _variables(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables for a while, for a process that is started meanwhile."""
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
