#!/usr/bin/env python
r"""The testbed on several machines: a cloud server, a link in front of it, and edge clients.

    python scripts/testbed.py serve --target qwen2.5-coder-1.5b --address 0.0.0.0:50051 \
        --token-file tokens.txt --tls-key server.key --tls-certificate server.pem --tls-clients authority.pem
    python scripts/testbed.py link --upstream cloud:50051 --address 127.0.0.1:50052 --rtt-ms 40 --drop 0.01
    python scripts/testbed.py ask --server 127.0.0.1:50052 --draft smollm2-135m --rule expected_time \
        "Write a Python function that reverses a list."

A file of tokens has a line for each client, its name and its token. `ask` takes its own token from the
environment, TESTBED_TOKEN. The link speaks without TLS, so TLS is for a server without one in front.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import _checkout  # noqa: F401
import _cli


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line's arguments, checked."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", help="run the target", allow_abbrev=False)
    serve.add_argument(
        "--target", default="qwen2.5-coder-1.5b", help="packaged name, .gguf, directory, hub id"
    )
    serve.add_argument("--draft", help="drafter beside the target: the same, or `lookup`")
    serve.add_argument("--address", default="127.0.0.1:50051", help="host and port (%(default)s)")
    serve.add_argument("--dtype", default="float32")
    serve.add_argument("--device", default="cpu", help="torch device of the models (%(default)s)")
    serve.add_argument("--threads", type=int, help="of torch (all cores)")
    serve.add_argument("--max-num-seqs", type=int, default=16, help="requests resident at a time")
    serve.add_argument("--log", type=Path, help="file for the log of events")
    serve.add_argument("--token-file", type=Path, help="names and bearer tokens of clients")
    for name in ("key", "certificate", "clients"):
        serve.add_argument(f"--tls-{name}", type=Path, help="PEM; `clients`: authority of their certificates")
    link = commands.add_parser("link", help="shape the way to a server", allow_abbrev=False)
    link.add_argument("--upstream", required=True, help="host and port of the server")
    link.add_argument("--address", default="127.0.0.1:50052", help="host and port (%(default)s)")
    link.add_argument("--rtt-ms", type=float, default=40.0)
    link.add_argument("--jitter-ms", type=float, default=0.0)
    link.add_argument("--kbytes-per-s", type=float, default=0.0, help="bandwidth each way; 0: no limit")
    link.add_argument(
        "--replay", type=Path, metavar="SERIES", help="bandwidth and further delay by time: CSV or Mahimahi"
    )
    for name in ("drop", "duplicate", "reorder"):
        link.add_argument(f"--{name}", type=float, default=0.0, help="share of messages")
    link.add_argument("--seed", type=int, default=0)
    ask = commands.add_parser("ask", help="ask a question, drafting here", allow_abbrev=False)
    ask.add_argument("message")
    ask.add_argument("--server", default="127.0.0.1:50051", help="host and port (%(default)s)")
    ask.add_argument("--target", default="qwen2.5-coder-1.5b", help="the server's, for its tokenizer")
    ask.add_argument("--draft", default="smollm2-135m", help="draft model, or `lookup`")
    ask.add_argument("--dtype", default="float32")
    ask.add_argument("--protocol", choices=("synchronous", "pipelined", "streaming"), default="streaming")
    ask.add_argument(
        "--rule", default="expected_time", help="expected_time, hf_heuristic, static:N, cloud:N, plain"
    )
    ask.add_argument("--tokens", type=int, default=64, help="most output tokens")
    ask.add_argument("--temperature", type=float, default=0.0)
    ask.add_argument("--seed", type=int, default=0, help="of the draws")
    ask.add_argument("--log", type=Path, help="file for the log of events")
    for name in ("authority", "key", "certificate"):
        ask.add_argument(f"--tls-{name}", type=Path, help="PEM; `authority`: who signed the server's")
    found = parser.parse_args(arguments)
    if found.command == "link" and found.replay is not None and found.kbytes_per_s:
        parser.error("--replay has a bandwidth of its own: leave --kbytes-per-s out")
    names = {"serve": ("threads", "max_num_seqs"), "link": (), "ask": ("tokens",)}[found.command]
    _cli.at_least_one(parser, found, names)
    return found


def read_tokens(path: Path) -> dict[str, str]:
    """Return the token of each client by its name.

    Raises:
        ValueError: A line is not a name and a token.
    """
    tokens: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 2 or words[0] in tokens or len(words[1]) < 16:
            raise ValueError(
                f"{path}, line {number}: must be a new name and a token of 16 characters or more"
            )
        tokens[words[0]] = words[1]
    if not tokens:
        raise ValueError(f"{path}: holds no token")
    return tokens


async def serve(options: argparse.Namespace) -> int:
    """Run the target until interrupted."""
    import torch

    from dsd_env.testbed.bench import load_drafter
    from dsd_env.testbed.engine import EngineConfig
    from dsd_env.testbed.log import EventLog
    from dsd_env.testbed.models import load_model
    from dsd_env.testbed.server import CloudServer, server_credentials

    tokens = None if options.token_file is None else read_tokens(options.token_file)
    credentials = None
    if options.tls_key or options.tls_certificate or options.tls_clients:
        if not (options.tls_key and options.tls_certificate):
            raise ValueError("TLS needs --tls-key and --tls-certificate")
        credentials = server_credentials(options.tls_key, options.tls_certificate, options.tls_clients)
    if options.threads:
        torch.set_num_threads(options.threads)
    target = load_model(options.target, dtype=options.dtype)
    target.model.to(options.device)
    colocated = None if options.draft is None else load_drafter(options.draft, options.target, options.dtype)
    server = CloudServer(
        target.model,
        target.stop_ids,
        engine=EngineConfig(max_num_seqs=options.max_num_seqs),
        tokens=tokens,
        colocated=colocated,
        log=EventLog(options.log, side="cloud"),
    )
    async with server.serving(options.address, credentials) as port:
        print(f"{options.target} serves at port {port}", flush=True)
        await asyncio.Event().wait()
    return 0


async def link(options: argparse.Namespace) -> int:
    """Pass messages on until interrupted."""
    from dsd_env.network.series import load_series
    from dsd_env.testbed.link import LinkConfig, ShapedProxy

    up = LinkConfig(
        series=None if options.replay is None else load_series(options.replay),
        delay_s=options.rtt_ms / 2e3,
        jitter_s=options.jitter_ms / 1e3,
        bandwidth_bytes_per_s=1e3 * options.kbytes_per_s,
        drop=options.drop,
        duplicate=options.duplicate,
        reorder=options.reorder,
        seed=options.seed,
    )
    proxy = ShapedProxy(options.upstream, up, up.model_copy(update={"seed": options.seed + 1}))
    async with proxy.serving(options.address) as port:
        print(f"the link to {options.upstream} begins at port {port}", flush=True)
        await asyncio.Event().wait()
    return 0


async def ask(options: argparse.Namespace) -> int:
    """Ask one question and print the answer as it comes."""
    from dsd_env.calibration.acceptance.recording.prompts import Prompt
    from dsd_env.testbed.bench import load_drafter, summarise
    from dsd_env.testbed.client import ClientConfig, EdgeClient
    from dsd_env.testbed.connection import client_credentials, open_channel
    from dsd_env.testbed.control import parse_rule
    from dsd_env.testbed.drafters import Question
    from dsd_env.testbed.log import EventLog
    from dsd_env.testbed.models import load_tokenizer
    from dsd_env.testbed.target import Sampling

    rule = parse_rule(options.rule)
    credentials = None
    if options.tls_authority:
        credentials = client_credentials(options.tls_authority, options.tls_key, options.tls_certificate)
    target = load_tokenizer(options.target, dtype=options.dtype)
    prompt = Prompt("ask/0", "chat", options.message)
    sampling = Sampling(options.temperature, options.seed)
    question = Question(target.encode_chat(prompt.text), options.tokens, prompt, sampling)
    drafter = load_drafter(options.draft, options.target, options.dtype)
    channel = open_channel(options.server, credentials)
    log = EventLog(options.log)
    client = EdgeClient(
        channel,
        drafter,
        rule,
        ClientConfig(protocol=options.protocol),
        token=os.environ.get("TESTBED_TOKEN"),
        log=log,
    )
    said: list[int] = []
    shown = ""

    def show(new: list[int]) -> None:
        nonlocal shown
        said.extend(new)
        text = target.decode(said).rstrip("\ufffd")
        print(text[len(shown) :], end="", flush=True)
        shown = text

    try:
        output = await client.generate(question, on_tokens=show)
    finally:
        await channel.close()
        log.close()
    one = summarise(options.rule, [output])
    print(
        f"\n\n{one.tokens} tokens, {1e3 * one.tpot_s:.0f} ms each, first after {one.ttft_s:.2f} s; "
        f"{one.accepted} of {one.verified} drafts accepted, RTT {1e3 * one.rtt_s:.0f} ms"
    )
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one of the parts."""
    from dsd_env.testbed.client import TestbedError

    options = parse_arguments(arguments)
    try:
        return asyncio.run({"serve": serve, "link": link, "ask": ask}[options.command](options))
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError, TestbedError) as error:
        print(f"testbed: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    _cli.run(main)
