"""The shipped recording against the real models that made it. Slow: 1.2 GB of weights, minutes of CPU.

Weights come from the cache (``$DSD_CACHE_DIR``, default ``~/.cache/dsd_env``); what is missing is
downloaded. Run with ``-m slow``.
"""

import json
import os

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra `record`")
pytest.importorskip("transformers", reason="needs the extra `record`")

import torch

from dsd_env.acceptance import TraceReplay, load_trace_set
from dsd_env.calibration.acceptance.recording.direct import speculative_decode
from dsd_env.calibration.acceptance.recording.drafters import (
    TextDrafter,
    common_prefix_length,
    lookup_proposal,
    record_lookup,
)
from dsd_env.calibration.acceptance.recording.models import load_language_model
from dsd_env.calibration.acceptance.recording.prompts import Prompt, find_data_dir, read_prompts
from dsd_env.calibration.acceptance.recording.record import LOOKUP, Settings
from dsd_env.calibration.acceptance.recording.target import greedy_runs
from tests.calibration.acceptance.recorded import record

pytestmark = pytest.mark.slow

NAME = "qwen2.5-coder-1.5b_smollm2-135m_greedy"
#: Output positions looked at in each request of the shipped recording.
POSITIONS = 20
#: Speculation length and first position of the direct runs.
CASES = ((2, 0), (8, 3), (16, 0))
OWN_PROMPTS = [
    Prompt("own/0", "code", "Write a Python function that returns the n-th Fibonacci number."),
    Prompt("own/1", "maths", "A train covers 180 km in 2.5 hours. What is its mean speed in km/h?"),
    Prompt(
        "own/2",
        "chat",
        "Écris une phrase sur le café, puis un émoji 🙂 et une liste de trois boissons.",
    ),
]


@pytest.fixture(scope="module")
def drafter():
    torch.set_num_threads(os.cpu_count() or 1)
    card = load_trace_set(NAME).card
    draft = load_language_model("smollm2-135m", dtype=card["drafters"]["smollm2-135m"]["compute_dtype"])
    target = load_language_model("qwen2.5-coder-1.5b", dtype=card["target"]["compute_dtype"])
    assert target.card["sha256"] == card["target"]["sha256"]
    assert draft.card["sha256"] == card["drafters"]["smollm2-135m"]["sha256"]
    return TextDrafter(draft, target)


def run_lengths_of(trace, name):
    run_length = trace.drafters[name].run_length
    assert run_length is not None
    return run_length


@pytest.fixture(scope="module")
def recorded(drafter):
    """Return the shipped recording and, for its first two requests of every kind, the target's run anew.

    Yields ``(trace, [(entry, prompt, run)])``. All runs are one batch, to read the weights once for all.
    """
    directory = find_data_dir()
    if directory is None:
        pytest.skip("needs the question files: set DSD_DATA_DIR to their folder")
    trace = load_trace_set(NAME)
    known = {p.id: p for rows in read_prompts(directory, trace.kinds).values() for p in rows}
    entries = [int(e) for k in trace.kinds for e in trace.entries_of([k])[:2]]
    prompts = [known[trace.card["entries"][e]] for e in entries]
    ids = [drafter.target.encode_chat(p.text, p.reply_prefix) for p in prompts]
    runs = greedy_runs(drafter.target, ids, POSITIONS + 16)
    return trace, list(zip(entries, prompts, runs, strict=True))


def test_recorded_positions_are_recomputed(drafter, recorded):
    """Target, run lengths and confidence of the shipped recording, by the plain one-sequence path."""
    trace, requests = recorded
    values = trace.drafters[drafter.draft.name]
    run_length, lookup_runs = run_lengths_of(trace, drafter.draft.name), run_lengths_of(trace, LOOKUP)
    for entry, prompt, run in requests:
        begin, length, output = int(trace.offsets[entry]), int(trace.lengths[entry]), run.output_ids
        assert len(run.prompt_ids) == trace.prompt_tokens[entry]
        assert len(output) == length or min(len(output), length) >= POSITIONS
        n = min(length, POSITIONS)
        for s in range(0, n, 5):
            proposal = drafter.propose(prompt, output[:s], 16)
            matches = common_prefix_length(proposal, output[s : s + 16])
            assert matches == run_length[begin + s], (prompt.id, s)
            context = [t for part in drafter.context_ids(prompt, output[:s]) for t in part]
            with torch.inference_mode():
                p = torch.softmax(drafter.draft.model(torch.tensor([context])).logits[0, -1].double(), -1)
            assert float(p.max()) == pytest.approx(float(values.top1_prob[begin + s]), abs=1e-3)
            entropy = float(-(p * p.clamp(min=1e-300).log()).sum())
            assert entropy == pytest.approx(float(values.entropy_nats[begin + s]), abs=5e-3)
        lookup = record_lookup(run.prompt_ids, output, n, 16)
        np.testing.assert_array_equal(lookup.run_length, lookup_runs[begin : begin + n], err_msg=prompt.id)


def test_branches_that_end_early_give_the_recorded_run_lengths(drafter, recorded):
    """The shipped recording was made before branches ended at the first contradicting byte."""
    trace, requests = recorded
    run_length = run_lengths_of(trace, drafter.draft.name)
    for entry, prompt, run in requests[::2]:  # one of every kind
        begin = int(trace.offsets[entry])
        n = min(int(trace.lengths[entry]), POSITIONS)
        again = drafter.record(prompt, run.output_ids, n, 16)
        np.testing.assert_array_equal(again.run_length, run_length[begin : begin + n], err_msg=prompt.id)


def check_replay_against_direct(drafter, prompt, prompt_ids, output, replayed, n, cases):
    """Assert that direct speculative decoding accepts ``min(gamma, L)`` in every round; count the rounds.

    Args:
        drafter: The pair.
        prompt: The request.
        prompt_ids: Its target tokens.
        output: The target's plain greedy output, at least ``n`` tokens.
        replayed: Run lengths by drafter.
        n: Tokens to decode.
        cases: ``(gamma, start)`` pairs.
    """
    proposers = {
        drafter.draft.name: lambda committed, gamma: drafter.propose(prompt, committed, gamma),
        LOOKUP: lambda committed, gamma: lookup_proposal(prompt_ids + list(committed), gamma)[0],
    }
    rounds_checked = 0
    for name, propose in proposers.items():
        run = replayed[name]
        for gamma, start in cases:
            committed = output[:start]
            got, rounds = speculative_decode(drafter.target, prompt_ids, propose, gamma, n, committed)
            assert got[:n] == output[:n], (prompt.id, name, gamma, start)
            accepted = [r.accepted for r in rounds]
            expected = [min(gamma, int(run[r.start])) for r in rounds]
            assert accepted == expected, (prompt.id, name, gamma, start)
            rounds_checked += len(rounds)
    return rounds_checked


def test_direct_speculative_decoding_accepts_what_the_shipped_recording_says(drafter, recorded):
    trace, requests = recorded
    rounds = 0
    for entry, prompt, run in requests[::2]:  # one of every kind
        begin, end = int(trace.offsets[entry]), int(trace.offsets[entry + 1])
        replayed = {name: run_lengths_of(trace, name)[begin:end] for name in trace.drafters}
        n = min(end - begin, 16)
        cases = ((1, 0), (4, 0), (16, 0), (4, 7))
        rounds += check_replay_against_direct(
            drafter, prompt, run.prompt_ids, run.output_ids, replayed, n, cases
        )
    assert rounds > 100
    print(f"{rounds} rounds compared")


def test_replay_of_a_fresh_recording_equals_direct_speculative_decoding(drafter, tmp_path):
    """Record, save, load and replay our own prompts, then decode directly at several gammas and starts."""
    settings = Settings("qwen2.5-coder-1.5b", "smollm2-135m", max_tokens=12)
    trace, work = record("fresh", drafter.target, drafter, OWN_PROMPTS, settings, tmp_path)
    replay = TraceReplay(trace)
    rounds = 0
    for prompt in OWN_PROMPTS:
        run = json.loads(work.shard("target", prompt).read_text())
        n = int(trace.lengths[trace.kinds.index(prompt.kind)])
        # Replay reads within the entry only; the recording looks further, as far as the target went.
        assert replay.entries(0, 0, n, [prompt.kind]) == [trace.kinds.index(prompt.kind)]
        replayed = {d: replay.realise(0, 0, n, d, [prompt.kind]).run_length for d in trace.drafters}
        recorded = {d: run_lengths_of(trace, d)[trace.positions_of([prompt.kind])] for d in trace.drafters}
        for d in trace.drafters:
            np.testing.assert_array_equal(replayed[d], np.minimum(recorded[d], np.arange(n, 0, -1)))
        rounds += check_replay_against_direct(
            drafter, prompt, run["prompt_ids"], run["output_ids"], recorded, n, CASES
        )
    assert rounds > 50
    print(f"{rounds} rounds compared")
