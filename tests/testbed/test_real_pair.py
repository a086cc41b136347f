"""The packaged pair in two processes across a bad link. Slow: 1.2 GB of weights, minutes of CPU."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("grpc", reason="needs the extra `testbed`")
pytest.importorskip("transformers", reason="needs the extra `testbed`")

import torch

from dsd_env.calibration.acceptance.recording.prompts import Prompt
from dsd_env.calibration.acceptance.recording.target import greedy_runs
from dsd_env.testbed.bench import CloudSpec, Setting, cloud_process, load_drafter, run_setting, spare_threads
from dsd_env.testbed.client import ClientConfig
from dsd_env.testbed.control import HfHeuristic, static
from dsd_env.testbed.drafters import Question
from dsd_env.testbed.link import LinkConfig
from dsd_env.testbed.models import load_model, load_tokenizer

pytestmark = pytest.mark.slow

TARGET, DRAFT, TOKENS = "qwen2.5-coder-1.5b", "smollm2-135m", 24
PROMPTS = [
    Prompt("own/0", "code", "Write a Python function that returns the n-th Fibonacci number."),
    Prompt("own/1", "maths", "A train covers 180 km in 2.5 hours. What is its mean speed in km/h?"),
]
LINK = LinkConfig(delay_s=0.02, jitter_s=0.005, drop=0.1, duplicate=0.1, reorder=0.1, seed=2)
SETTINGS = [
    ("synchronous", lambda: static(4)),
    ("pipelined", HfHeuristic),
    ("streaming", lambda: static(6)),
]


def test_the_packaged_pair_is_lossless_across_a_bad_link():
    tokenizer = load_tokenizer(TARGET)
    questions = [Question(tokenizer.encode_chat(p.text, p.reply_prefix), TOKENS, p) for p in PROMPTS]

    async def run():
        torch.set_num_threads(1)
        drafter = load_drafter(DRAFT, TARGET, "float32")
        outputs = {}
        with ThreadPoolExecutor(1) as pool:
            async with cloud_process(CloudSpec(TARGET, threads=spare_threads())) as port:
                for protocol, decide in SETTINGS:
                    patient = ClientConfig(protocol=protocol, retry_s=2, silence_s=300, give_up_s=900)
                    setting = Setting(protocol, patient, decide)
                    outputs[protocol] = await run_setting(
                        setting, port, LINK, questions, drafter, clients=2, pool=pool
                    )
        return outputs

    outputs = asyncio.run(run())
    truth = [
        greedy_run.output_ids
        for question in questions
        for greedy_run in greedy_runs(load_model(TARGET), [question.prompt_ids], TOKENS)
    ]
    for protocol, found in outputs.items():
        assert [o.tokens for o in found] == truth, protocol
    assert sum(o.accepted for o in outputs["synchronous"]) > 5
