"""Streams of a real pair against the replay of its recording: SmolLM2 and a student distilled on the spot.

Slow: 100 MB of weights (from the cache, or downloaded), some minutes of CPU. Run with ``-m slow``.
"""

import os

import pytest

pytest.importorskip("torch", reason="needs the extra `record`")
pytest.importorskip("transformers", reason="needs the extra `record`")

import torch

from dsd_env.calibration.acceptance.recording import distill
from dsd_env.calibration.acceptance.recording.models import load_language_model
from dsd_env.calibration.acceptance.recording.prefix import PrefixDrafter
from dsd_env.calibration.acceptance.recording.prompts import Prompt
from dsd_env.calibration.acceptance.recording.record import Settings
from tests.calibration.acceptance.recorded import check_streams, direct_streams, record, replayed_streams

pytestmark = pytest.mark.slow

TARGET = "smollm2-135m"
#: Messages that the target writes: the student learns from the answers to some, the others are recorded.
TAUGHT, RECORDED = 48, 80
#: Output tokens of a recorded request.
TOKENS = 40
DATA = distill.DistillSettings(TARGET, TAUGHT + RECORDED + 16, 32, 32, (0.7, 1.0), 0)
TRAINING = distill.Training(layers=(0, 1, 14, 29), steps=40)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Return target, student, and the messages that the student has not learnt from."""
    torch.set_num_threads(os.cpu_count() or 1)
    root = tmp_path_factory.mktemp("distil")
    target = load_language_model(TARGET)
    distill.open_work(root, DATA)
    messages = distill.write_messages(target, root, DATA, lambda _: None)
    prompts = [Prompt(f"self/{i}", "chat", text) for i, text in enumerate(messages)]
    distill.make_runs(target, prompts[:TAUGHT], root, DATA, lambda _: None)
    student, facts = distill.train(target, distill.load_examples(root), root, TRAINING)
    assert facts["held_out"]["acceptance"] > 10 * facts["held_out_before"]["acceptance"]
    distill.save_drafter(student, target, root / "draft", {"model": "draft", "licence": "Apache-2.0"})
    draft = load_language_model(str(root / "draft"), name="draft")
    return target, draft, prompts[TAUGHT : TAUGHT + RECORDED]


def recorded(pair, directory, temperature, requests):
    """Return the recording of the first prompts, and their tokens by id."""
    target, draft, prompts = pair
    settings = Settings(TARGET, "draft", max_tokens=TOKENS, gamma_max=8, look_ahead=0)
    chosen = prompts[:requests]
    trace, _ = record(
        "pair", target, PrefixDrafter(draft), chosen, settings, directory, temperature, batch_size=40
    )
    return trace, {p.id: target.encode_chat(p.text) for p in chosen}


def test_a_replayed_stream_has_the_law_of_a_direct_one(pair, tmp_path):
    trace, ids = recorded(pair, tmp_path, 1.0, RECORDED)
    result, _ = check_streams(pair[:2], trace, ids, TOKENS)
    assert result.direct_mean > 0.02, "some chains are right"


def test_a_replayed_greedy_stream_is_the_direct_one(pair, tmp_path):
    trace, ids = recorded(pair, tmp_path, 0.0, 16)
    direct = direct_streams(pair[:2], trace, ids, 0.0)
    assert list(direct.values()) == replayed_streams(trace, direct)
    assert sum(map(sum, direct.values())) > 0
