"""What the scripts around a real vLLM share: the pair, its tokenizer, settings, and their engines."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from _checkout import ROOT

from dsd_env.calibration.engine_bench.engine import EngineProcess, EngineSpec, engine_process
from dsd_env.calibration.engine_bench.runs import Setting

POLICY = ROOT / "configs" / "policies" / "vllm_tinyllama"
"""Folder of the shipped policy: the bundle, its scenario and its table."""


def add_engine_arguments(parser: argparse.ArgumentParser, *, dtype: str) -> None:
    """Add the options that describe the engine and its models."""
    group = parser.add_argument_group("engine")
    group.add_argument("--target", help="checkpoint directory or hub id; default: the packaged TinyLlama")
    group.add_argument("--draft", help="the same for a drafter with the target's vocabulary; goes with it")
    group.add_argument("--dtype", default=dtype, help="float32 or bfloat16 (%(default)s)")
    group.add_argument("--threads", type=int, default=2, help="threads that compute (%(default)s)")
    group.add_argument("--policy", type=Path, default=POLICY / "policy", help="folder of a bundle")
    group.add_argument(
        "--scenario", type=Path, default=POLICY / "scenario.yaml", help="what the policy was trained on"
    )
    group.add_argument(
        "--table", type=Path, default=POLICY / "vllm_table.json", help="scripts/compile_policy.py --vllm FILE"
    )
    group.add_argument("--logs", type=Path, default=Path("out/vllm"), help="folder for vLLM's messages")


def engine_spec(options: argparse.Namespace) -> EngineSpec:
    """Return the engine that the options describe; the packaged pair is fetched first if it is not there.

    Raises:
        ValueError: Only one of target and drafter is named.
    """
    from dsd_env.calibration.engine_bench.checkpoints import ensure_pair

    if (options.target is None) != (options.draft is None):
        raise ValueError("--target and --draft go together: both have one vocabulary")
    target, draft = options.target, options.draft
    if target is None:
        target, draft = (str(path) for path in ensure_pair())
    return EngineSpec(
        target=target,
        draft=draft,
        log=str(options.logs / "engine.log"),
        dtype=options.dtype,
        threads=options.threads,
        deployment=str(options.scenario),
        policy=str(options.policy),
    )


def load_tokenizer(target: str) -> Any:
    """Return the target's tokenizer."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(target)


def read_table(path: Path) -> tuple[tuple[int, int, int], ...]:
    """Return the rows of a file of ``num_speculative_tokens_per_batch_size``.

    Raises:
        ValueError: It holds none.
    """
    rows = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(rows, dict):
        rows = rows.get("num_speculative_tokens_per_batch_size")
    if not isinstance(rows, list) or not all(isinstance(row, list) and len(row) == 3 for row in rows):
        raise ValueError(f"{path}: must hold rows [smallest batch, largest batch, length]")
    return tuple((int(low), int(high), int(length)) for low, high, length in rows)


def every_setting(
    spec: EngineSpec, table: Sequence[tuple[int, int, int]], rules: Sequence[str] = ()
) -> list[Setting]:
    """Return plain decoding, every static length, the table, rules of the registry, and the policy."""
    most = spec.max_num_seqs
    static = [
        Setting(f"static {length}", "table", ((1, most, length),)) for length in range(1, spec.longest + 1)
    ]
    return [
        Setting("plain", "plain"),
        *static,
        Setting("table", "table", tuple(table)),
        *[Setting(rule, "policy", policy=rule) for rule in rules],
        Setting("policy", "policy", policy=spec.policy),
    ]


def engine_for(setting: Setting, spec: EngineSpec) -> EngineSpec:
    """Return the engine that a setting needs."""
    if setting.kind == "plain":
        return replace(spec, draft=None)
    return replace(spec, steered=setting.kind == "policy")


@contextmanager
def engines(
    spec: EngineSpec, tell: Callable[[str], None], *, keep: bool = False
) -> Iterator[Callable[[Setting], EngineProcess]]:
    """Give a function that returns the engine of a setting, set up for it.

    Args:
        spec: The engine, but for what a setting needs.
        tell: Takes a line when an engine is started.
        keep: Keep every engine for settings that take turns, which needs memory for up to three; otherwise
            one is there at a time.
    """
    open_now: dict[EngineSpec, EngineProcess] = {}

    with ExitStack() as stack:

        def engine(setting: Setting) -> EngineProcess:
            wanted = engine_for(setting, spec)
            if wanted not in open_now:
                if not keep:
                    stack.close()
                    open_now.clear()
                tell(f"starting vLLM for {setting.kind} (its messages: {spec.log})")
                open_now[wanted] = stack.enter_context(engine_process(wanted))
            found = open_now[wanted]
            if setting.kind == "table":
                found.use_table(setting.table)
            elif setting.kind == "policy":
                found.use_policy(setting.policy)
            return found

        yield engine
