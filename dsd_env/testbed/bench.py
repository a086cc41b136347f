"""A testbed on one machine: the server in a process of its own, the link and the clients here."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from statistics import fmean

from dsd_env.testbed.client import ClientConfig, EdgeClient, Output
from dsd_env.testbed.connection import open_channel
from dsd_env.testbed.control import Decide
from dsd_env.testbed.drafters import LineMaker, Question
from dsd_env.testbed.engine import EngineConfig
from dsd_env.testbed.link import LinkConfig, ShapedProxy
from dsd_env.testbed.log import EventLog

#: A target takes minutes to load the first time.
START_S = 900.0


@dataclass(frozen=True)
class CloudSpec:
    """A server to start.

    Attributes:
        target: Model, as the recorder names it.
        draft: Model of a drafter beside the target; None: none. ``lookup`` is prompt look-up.
        dtype: Compute dtype. With float32 an output does not depend on who shares an iteration.
        threads: Threads of torch.
        cpus: Cores that it keeps to; empty: all. Nothing where the system has no such thing.
        engine: Caps of the engine.
        log: Where its events go.
        epoch_unix_s: Time that counts as 0 in it.
    """

    target: str
    draft: str | None = None
    dtype: str = "float32"
    threads: int = 1
    cpus: tuple[int, ...] = ()
    engine: EngineConfig = field(default_factory=EngineConfig)
    log: Path | None = None
    epoch_unix_s: float | None = None


def load_drafter(draft: str, target: str, dtype: str) -> LineMaker:
    """Return what makes the lines of a drafter named by its model, or ``lookup``."""
    from dsd_env.testbed.drafters import line_maker
    from dsd_env.testbed.models import load_model, load_tokenizer

    if draft == "lookup":
        return line_maker(None, None)
    return line_maker(load_model(draft, dtype=dtype), load_tokenizer(target, dtype=dtype))


def _serve(spec: CloudSpec, pipe: Pipe) -> None:
    """Run a server until the pipe is closed. In a process of its own."""
    import torch

    from dsd_env.testbed.models import load_model
    from dsd_env.testbed.server import CloudServer
    from dsd_env.testbed.timing import pin

    pin(spec.cpus)
    torch.set_num_threads(spec.threads)
    logging.basicConfig(level=logging.WARNING)

    async def run() -> None:
        target = load_model(spec.target, dtype=spec.dtype)
        colocated = None if spec.draft is None else load_drafter(spec.draft, spec.target, spec.dtype)
        log = EventLog(spec.log, side="cloud", epoch_unix_s=spec.epoch_unix_s)
        server = CloudServer(target.model, target.stop_ids, engine=spec.engine, colocated=colocated, log=log)
        async with server.serving() as port:
            pipe.send(port)
            await asyncio.get_running_loop().run_in_executor(None, _wait, pipe)
        log.close()

    asyncio.run(run())


def _wait(pipe: Pipe) -> None:
    with suppress(EOFError):
        pipe.recv()


@asynccontextmanager
async def cloud_process(spec: CloudSpec) -> AsyncIterator[int]:
    """Start a server in a process of its own and give its port."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(spec, theirs), daemon=True)
    process.start()
    theirs.close()
    loop = asyncio.get_running_loop()
    try:
        if not await loop.run_in_executor(None, ours.poll, START_S):
            raise RuntimeError("the server did not start in time")
        try:
            port: int = ours.recv()
        except EOFError:
            raise RuntimeError("the server did not start; see its messages above") from None
        yield port
    finally:
        ours.close()
        await loop.run_in_executor(None, process.join, 10.0)
        if process.is_alive():
            process.terminate()


@dataclass(frozen=True)
class Setting:
    """One way of decoding.

    Attributes:
        name: What it is called in tables.
        config: Of the clients.
        decide: Makes the scheduler.
    """

    name: str
    config: ClientConfig
    decide: Callable[[], Decide]


@dataclass(frozen=True)
class Summary:
    """What a setting came to, over all requests. Times in seconds.

    Attributes:
        name: The setting.
        requests: Requests served.
        tokens: Output tokens.
        ttft_s: Mean time to first token.
        tpot_s: Mean time per output token behind the first: of all tokens, so that long answers weigh more.
        e2e_s: Mean time to the last token.
        rtt_s: Mean round trip; 0.0 where none was measured.
        drafted: Drafts made.
        verified: Drafts that the target looked at.
        accepted: Those that were right.
        iterations: Iterations that decided a token.
        retries: Messages sent again.
    """

    name: str
    requests: int
    tokens: int
    ttft_s: float
    tpot_s: float
    e2e_s: float
    rtt_s: float
    drafted: int
    verified: int
    accepted: int
    iterations: int
    retries: int

    @property
    def tokens_per_iteration(self) -> float:
        """Tokens that an iteration of a request brought on the average."""
        return self.tokens / max(1, self.iterations)


def summarise(name: str, outputs: Sequence[Output]) -> Summary:
    """Return the means of a setting's outputs."""
    later = sum(len(o.tokens) - 1 for o in outputs if o.tokens)
    samples = [s for o in outputs for s in o.rtt_s]
    return Summary(
        name=name,
        requests=len(outputs),
        tokens=sum(len(o.tokens) for o in outputs),
        ttft_s=fmean(o.ttft_s for o in outputs),
        tpot_s=sum(o.e2e_s - o.ttft_s for o in outputs) / max(1, later),
        e2e_s=fmean(o.e2e_s for o in outputs),
        rtt_s=fmean(samples) if samples else 0.0,
        drafted=sum(o.drafted for o in outputs),
        verified=sum(o.verified for o in outputs),
        accepted=sum(o.accepted for o in outputs),
        iterations=sum(o.iterations for o in outputs),
        retries=sum(o.retries for o in outputs),
    )


async def run_setting(
    setting: Setting,
    port: int,
    link: LinkConfig,
    questions: Sequence[Question],
    make_line: LineMaker,
    *,
    clients: int = 1,
    pool: Executor | None = None,
    log: EventLog | None = None,
    on_tokens: Callable[[int, list[int]], None] | None = None,
) -> list[Output]:
    """Let clients ask their questions one after the other, across a fresh link.

    Args:
        setting: How they go about it.
        port: The server's port on this machine.
        link: The link, the same in both directions, with draws of its own each.
        questions: All questions; client ``i`` asks those with number ``i``, ``i + clients``, …
        make_line: Makes the drafter of a request.
        clients: Number of clients.
        pool: Where they draft. Clients that share it share a device.
        log: Where events go.
        on_tokens: Called with the number of a question and the tokens that have become known.

    Returns:
        One output for each question.
    """
    outputs: list[Output | None] = [None] * len(questions)
    async with AsyncExitStack() as stack:
        back = link.model_copy(update={"seed": link.seed + 1})
        proxy = ShapedProxy(f"127.0.0.1:{port}", link, back)
        near = await stack.enter_async_context(proxy.serving())
        decide = setting.decide()

        async def work(number: int) -> None:
            channel = open_channel(f"127.0.0.1:{near}")
            client = EdgeClient(channel, make_line, decide, setting.config, number=number, pool=pool, log=log)
            try:
                for index in range(number, len(questions), clients):
                    tell = None if on_tokens is None else partial(on_tokens, index)
                    outputs[index] = await client.generate(questions[index], on_tokens=tell)
            finally:
                await channel.close()

        await asyncio.gather(*(work(number) for number in range(clients)))
    return [output for output in outputs if output is not None]


def spare_threads() -> int:
    """Return the cores of this machine but one, which drafts."""
    return max(1, (os.cpu_count() or 2) - 1)
