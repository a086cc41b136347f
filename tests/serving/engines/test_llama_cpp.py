"""Drafts for llama-cpp-python: calls like those of its loop, and, among the slow tests, the real one.

The real one runs where llama-cpp-python is installed, or with the interpreter that DSD_LLAMA_CPP_PYTHON
names.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dsd_env.serving import Controller
from dsd_env.serving.engines import EngineError
from dsd_env.serving.engines.llama_cpp import Drafting, policy_draft_model
from tests.serving.engines.samples import Cycle, Witness, engine

RUN = Path(__file__).with_name("llama_cpp_run.py")


def true_token(position):
    return (7 * position + position // 3) % 50


def proposal(tokens, length):
    """Propose what is true, but for every fourth position."""
    places = np.arange(len(tokens), len(tokens) + length)
    return np.array([true_token(p) + (p % 4 == 3) for p in places], np.intc)


def generate(draft, prompt, tokens):
    """Do what llama-cpp-python's loop does; return its text and what each round had."""
    text = [true_token(p) for p in range(prompt)]
    rounds, end = [], prompt + tokens
    text.append(true_token(prompt))
    while len(text) < end:
        drafts = draft(np.array(text, np.intc)).tolist()
        right = 0
        while right < len(drafts) and drafts[right] == true_token(len(text) + right):
            right += 1
        rounds.append((len(drafts), right))
        text += [true_token(len(text) + i) for i in range(right + 1)]
    return text, rounds


def test_lengths_are_the_decisions_and_rounds_are_reported():
    controller = Witness(Cycle((4, 0, 2, 6)), engine())
    draft = Drafting(proposal, controller)
    text, rounds = generate(draft, 12, 60)
    assert text == [true_token(p) for p in range(len(text))]
    (answers,) = controller.answers.values()
    assert [drafted for drafted, _ in rounds] == answers[1:]
    # The last round shows in no later call.
    assert [each[1:] for each in draft.rounds] == rounds[:-1]
    assert {right for _, right in rounds} >= {0, 2, 3}
    request = next(iter(controller.requests.values()))
    assert request.spec.prompt_tokens == 12
    draft.close()
    assert not controller.requests


def test_another_prompt_is_another_request():
    controller = Witness(Cycle((2,)), engine())
    draft = Drafting(proposal, controller)
    draft(np.array([1, 2, 3], np.intc))
    draft(np.array([1, 2, 4, 5], np.intc))
    draft(np.array([1, 2], np.intc))
    assert len(controller.answers) == 3
    assert len(controller.requests) == 1
    draft.close()
    draft.close()


def test_a_buffer_that_changes_later_is_not_kept():
    """llama-cpp-python hands out a view of its own buffer."""
    controller = Controller(Cycle((2,)), engine())
    draft = Drafting(proposal, controller)
    buffer = np.array([true_token(p) for p in range(20)], np.intc)
    draft(buffer[:6])
    buffer[6:] = 49
    buffer[6] = true_token(6)
    draft(buffer[:8])
    assert draft.rounds == [(2, 2, 1)]


def test_drafters_may_stop_early():
    draft = Drafting(lambda tokens, length: proposal(tokens, 1), Controller(Cycle((6,)), engine()))
    _, rounds = generate(draft, 5, 20)
    assert all(drafted == 1 for drafted, _ in rounds)
    assert all(each.asked == 6 for each in draft.rounds)


@pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is not None, reason="llama-cpp-python is here")
def test_without_llama_cpp_it_says_so():
    with pytest.raises(EngineError, match="needs llama-cpp-python"):
        policy_draft_model(proposal, Controller("hf_heuristic", engine()))


@pytest.mark.slow
@pytest.mark.parametrize("drafter", ["lookup", "model"])
def test_inside_llama_cpp(tmp_path, drafter):
    """SmolLM2 with prompt look-up, and with itself as a drafter: greedy text as without drafts."""
    from dsd_env.calibration.acceptance.recording.weights import ensure_weights

    python = os.environ.get("DSD_LLAMA_CPP_PYTHON")
    if not python:
        if importlib.util.find_spec("llama_cpp") is None:
            pytest.skip("needs llama-cpp-python: set DSD_LLAMA_CPP_PYTHON to an interpreter that has it")
        python = sys.executable
    out = tmp_path / "out.json"
    done = subprocess.run(
        [python, str(RUN), str(ensure_weights("smollm2-135m")), drafter, str(out)],
        env=os.environ | {"PYTHONPATH": str(RUN.parents[3])},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    for found in json.loads(out.read_text()):
        assert found["steered"] == found["plain"]
        asked = [each[0] for each in found["rounds"]]
        assert asked == found["answers"][1 : len(asked) + 1]
        drafted = [each[1] for each in found["rounds"]]
        assert drafted == found["returned"][: len(drafted)]
        assert all(d <= a for a, d in zip(asked, drafted, strict=True))
        if drafter == "model":
            assert drafted == asked
            assert set(drafted) >= {0, 1, 3, 5}
        accepted = sum(each[2] for each in found["rounds"])
        assert accepted > 0
        assert accepted + len(found["rounds"]) <= len(found["steered"])
