"""A tiny testbed, and a twin of it in a folder."""

import asyncio
from dataclasses import replace

from dsd_env.testbed.client import ClientConfig
from dsd_env.testbed.engine import EngineConfig
from dsd_env.testbed.measuring import live_at, outputs_of, parts_of, together_at, trace_of
from dsd_env.testbed.server import CloudServer
from dsd_env.testbed.target import PackedTarget
from dsd_env.testbed.timing import time_drafter, time_target
from dsd_env.testbed.twin import Calibration, Live, scenario_of, variant, write_profiles, write_scenario

from .pair import QUICK, STOP, make_pair, questions

TOKENS = 12
PAIR = make_pair()


def long_enough(count: int) -> dict:
    """Questions whose answers do not end by themselves."""
    found = {}
    for number, question in enumerate(questions(4 * count, max_new_tokens=TOKENS + 32)):
        if len(PAIR.alone(replace(question, max_new_tokens=TOKENS))) == TOKENS and len(found) < count:
            found[f"q{number}"] = question
    assert len(found) == count
    return found


QUESTIONS = long_enough(3)


def make_twin(folder):
    """All steps of a calibration, on tiny models: folder, path of the scenario, answers, what was found."""
    outputs = outputs_of(PackedTarget(PAIR.target), STOP, QUESTIONS, TOKENS)
    trace = trace_of(
        "tiny", PAIR.line, QUESTIONS, outputs, most=8, target={"model": "tiny"}, draft="draft",
        draft_card={"model": "noisy"},
    )  # fmt: skip
    trace.save(folder)
    windows = time_drafter(PAIR.line, list(QUESTIONS.values()), list(outputs.values()), windows=(1, 4))
    passes = time_target(PackedTarget(PAIR.target), repeats=2, shapes=((1, 1), (1, 2), (2, 4)), prompts=(16,))
    assert [times.work for times in passes] == [1, 2, 8, 16] and all(len(t.seconds) == 2 for t in passes)
    parts = parts_of(passes, [windows, windows])
    assert parts.windows[0].seconds == windows[0][0].seconds * 2

    async def live() -> Live:
        server = CloudServer(PAIR.target, STOP, engine=EngineConfig(end_after_tokens=TOKENS))
        async with server.serving() as port:
            asked = (port, list(QUESTIONS.values()), PAIR.line, ClientConfig(**QUICK))
            together = {"sequences": len(QUESTIONS), "together_s": await together_at(*asked)}
            return (await live_at(*asked)).model_copy(update=together)

    found = Calibration(
        target="tiny", draft="draft", dtype="float64", target_bytes=1, draft_bytes=1, processor="any",
        software="any", date="2026-01-01", apart=parts, together=parts, live=asyncio.run(live()),
    )  # fmt: skip
    kinds = {kind: len(question.prompt_ids) for kind, question in QUESTIONS.items()}
    write_profiles(found, folder, "a test")
    data = scenario_of(
        found, "tiny", kinds, trace=str(folder / "tiny"), folder=folder, output_tokens=TOKENS, requests=4,
        think_s=0.01,
    )  # fmt: skip
    write_scenario(folder / "tiny.yaml", data, "a test")
    return folder, folder / "tiny.yaml", outputs, found


def variant_of(twin, setting):
    folder, path, _, found = twin
    return variant(
        found, path, folder, rtt_s=setting.rtt_s, clients=setting.clients, protocol=setting.protocol,
        plain=setting.rule == "plain",
    )  # fmt: skip
