"""Sampling: the target's own runs, same-vocabulary drafters, direct speculative sampling, distillation.

With models so small that the law of their output can be enumerated, so that what is recorded and what
speculative decoding emits can be checked against the law itself.
"""

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra `record`")
pytest.importorskip("transformers", reason="needs the extra `record`")

import torch
from scipy.stats import chisquare

from dsd_env.acceptance import load_trace_set
from dsd_env.acceptance.replay import TraceReplay
from dsd_env.acceptance.source import AcceptanceRealisation, run_lengths
from dsd_env.acceptance.stats import summary
from dsd_env.calibration.acceptance.recording import distill, validate
from dsd_env.calibration.acceptance.recording.direct import DirectRound, read_prompts_once, speculative_runs
from dsd_env.calibration.acceptance.recording.drafters import TextDrafter, record_lookup
from dsd_env.calibration.acceptance.recording.models import LanguageModel, load_language_model
from dsd_env.calibration.acceptance.recording.prefix import PrefixDrafter, same_vocabulary
from dsd_env.calibration.acceptance.recording.prompts import Prompt, PromptError, read_prompts
from dsd_env.calibration.acceptance.recording.record import (
    LOOKUP,
    RecordingError,
    Settings,
    WorkDir,
    record_drafters,
)
from dsd_env.calibration.acceptance.recording.target import (
    Row,
    greedy_runs,
    inverse_cdf_sample,
    sampling_key,
    target_runs,
)
from tests.calibration.acceptance.recorded import (
    check_streams,
    direct_streams,
    record,
    replayed_streams,
)

VOCABULARY = 5
STOP = 0
PROMPT = [1, 2, 3]


def tiny_model(name, seed, layers=1):
    """Return an untrained model over five tokens whose distributions are far from uniform."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        eos_token_id=STOP,
        bos_token_id=None,
        pad_token_id=None,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).eval()
    model.lm_head = torch.nn.Linear(16, VOCABULARY)
    with torch.no_grad():
        model.lm_head.weight.normal_(std=0.3)
        model.lm_head.bias.zero_()
        model.lm_head.bias[STOP] = -2.0  # else nearly every run is over at once
    return LanguageModel(name, model, None, {"model": name}, frozenset({STOP}))


@pytest.fixture(scope="module")
def pair():
    return tiny_model("target", 1), tiny_model("draft", 2)


def law(model, tokens, temperature, prompt=PROMPT):
    """Return the probability of every output of at most ``tokens`` tokens, the stop token cut off."""
    found = {}

    def walk(output, p):
        if len(output) == tokens:
            found[tuple(output)] = found.get(tuple(output), 0.0) + p
            return
        with torch.inference_mode():
            logits = model.model(torch.tensor([prompt + output])).logits[0, -1].double()
        q = torch.softmax(logits / temperature, -1).tolist()
        for token in range(VOCABULARY):
            if token == STOP:
                found[tuple(output)] = found.get(tuple(output), 0.0) + p * q[token]
            else:
                walk([*output, token], p * q[token])

    walk([], 1.0)
    return found


def check_law(outputs, expected):
    """Assert that outputs follow a law (chi-square test of goodness of fit, rare outputs pooled)."""
    seen = {k: 0 for k in expected}
    for output in outputs:
        seen[tuple(output)] += 1
    n = len(outputs)
    common = [k for k, p in expected.items() if p * n >= 8]
    f = [seen[k] for k in common] + [n - sum(seen[k] for k in common)]
    e = [expected[k] * n for k in common]
    e.append(n - sum(e))
    if e[-1] < 1.0:
        f, e = f[:-1], e[:-1]
        e = [x * sum(f) / sum(e) for x in e]
    assert len(common) > 10
    assert chisquare(f, e).pvalue > 1e-3


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_sampled_runs_have_the_targets_law(pair, temperature):
    target, _ = pair
    rows = [Row(0, temperature, sampling_key(0, str(i), temperature)) for i in range(2500)]
    runs = target_runs(target, [PROMPT], rows, 3)
    check_law([r.output_ids for r in runs], law(target, 3, temperature))
    for run in runs[:20]:
        with torch.inference_mode():
            logits = target.model(torch.tensor([PROMPT + run.output_ids])).logits[0, len(PROMPT) - 1 :]
        log_p = torch.log_softmax(logits.double() / temperature, -1)
        want = [float(log_p[i, t]) for i, t in enumerate(run.output_ids)]
        np.testing.assert_allclose(run.log_prob, want, atol=1e-5)


def test_a_run_depends_on_its_key_and_not_on_its_company(pair):
    target, _ = pair
    prompts = [PROMPT, [4, 2], [3, 3, 1, 2, 4, 1]]
    rows = [
        Row(i, t, sampling_key(7, str(i), t)) for i in range(3) for t in (0.0, 0.7, 1.0) if (i, t) != (1, 0.7)
    ]
    together = target_runs(target, prompts, rows, 12)
    for row, run in zip(rows, together, strict=True):
        alone = target_runs(target, [prompts[row.prompt]], [Row(0, row.temperature, row.key)], 12)[0]
        assert alone.output_ids == run.output_ids
        assert alone.prompt_ids == prompts[row.prompt]
        np.testing.assert_allclose(alone.log_prob, run.log_prob, atol=1e-5)
    keys = {sampling_key(s, n, t) for s in (0, 1) for n in "ab" for t in (0.7, 1.0)}
    assert len(keys) == 8


def test_hidden_states_give_the_distributions_again(pair):
    target, _ = pair
    hidden = []
    rows = [Row(0, 1.0, sampling_key(0, str(i), 1.0)) for i in range(4)]
    runs = target_runs(target, [PROMPT], rows, 8, hidden=hidden)
    for run, states in zip(runs, hidden, strict=True):
        assert len(states) == len(run.output_ids)
        if not states:
            continue
        log_p = target.model.lm_head(torch.stack(states).float()).log_softmax(-1)
        got = log_p.gather(1, torch.tensor(run.output_ids)[:, None])[:, 0].tolist()
        np.testing.assert_allclose(got, run.log_prob, atol=0.02)  # kept in float16


def test_inverse_cdf_never_picks_what_has_no_probability():
    probs = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]]).repeat(4, 1)
    u = torch.tensor([1e-17, 0.5 - 1e-12, 0.5, 1.0 - 1e-16], dtype=torch.float64)
    assert inverse_cdf_sample(probs, u).tolist() == [1, 1, 3, 3]


@pytest.mark.parametrize(
    ("gamma", "temperature", "with_model"), [(1, 1.0, True), (3, 0.7, True), (2, 1.0, False)]
)
def test_speculative_sampling_is_lossless(pair, gamma, temperature, with_model):
    target, draft = pair
    n = 2000
    runs = speculative_runs(
        target,
        draft if with_model else None,
        [PROMPT] * n,
        gamma,
        3,
        temperature,
        [sampling_key(0, f"{gamma} {i}", temperature) for i in range(n)],
    )
    check_law([r.output_ids[:3] for r in runs], law(target, 3, temperature))
    accepted = sum(r.accepted for run in runs for r in run.rounds)
    assert 0 < accepted < sum(r.drafted for run in runs for r in run.rounds)


def record_set(pair, tmp_path, temperature, n, max_tokens):
    target, draft = pair
    settings = Settings("target", "draft", max_tokens=max_tokens, gamma_max=8, look_ahead=0)
    prompts = [Prompt(f"own/{i}", "chat", str(i)) for i in range(n)]
    target.encode_chat = lambda text, prefix="": [1 + int(text) % 4, 2, 1 + int(text) % 3, 2]
    name = f"tiny_{temperature}"
    trace, work = record(
        name, target, PrefixDrafter(draft), prompts, settings, tmp_path, temperature, batch_size=n
    )
    ids = {p.id: target.encode_chat(p.text) for p in prompts}
    return trace, ids, work, prompts


@pytest.mark.parametrize("temperature", [0.7, 1.0])
@pytest.mark.parametrize("drafter", ["draft", LOOKUP])
def test_replay_has_the_law_of_direct_speculative_sampling(pair, tmp_path, temperature, drafter):
    target, draft = pair
    trace, ids, _, _ = record_set(pair, tmp_path, temperature, 200, 10)
    assert trace.drafters["draft"].form == "accept_prob"
    assert trace.drafters[LOOKUP].form == "run_length"
    assert trace.card["temperature"] == temperature
    entries = range(trace.n_entries)
    prompts = [ids[trace.card["entries"][e]] for e in entries]
    for gamma in (1, 4):
        keys = [sampling_key(5, f"{drafter} {gamma} {e}", temperature) for e in entries]
        runs = speculative_runs(
            target, draft if drafter == "draft" else None, prompts, gamma, 10, temperature, keys
        )
        # The recording has no empty runs, so those of the direct decoder do not count either.
        pairs = [(e, r) for e, r in zip(entries, runs, strict=True) if r.output_ids]
        direct = [validate.counts_of_direct(r.rounds, min(10, len(r.output_ids))) for _, r in pairs]
        replay = [
            validate.counts_of_replay(validate.replayed_runs(trace, e, drafter, 3), gamma) for e, _ in pairs
        ]
        result = validate.compare_sampled(direct, replay, gamma, permutations=2000)
        assert result.direct_rounds > 300
        assert result.p_value > 1e-3, (gamma, result)


def test_the_comparison_finds_a_wrong_recording(pair, tmp_path):
    """Guards the test above: greedy acceptance replayed for sampled decoding must be found out."""
    trace, _, _, _ = record_set(pair, tmp_path, 1.0, 300, 10)
    wrong = []
    for e in range(trace.n_entries):
        part = slice(int(trace.offsets[e]), int(trace.offsets[e + 1]))
        accept = trace.drafters["draft"].accept_prob[part]
        wrong.append(validate.counts_of_replay(run_lengths(accept > 0.5), 4))
    right = [
        validate.counts_of_replay(validate.replayed_runs(trace, e, "draft", 3), 4)
        for e in range(trace.n_entries)
    ]
    assert validate.compare_sampled(right, wrong, 4, permutations=1000).p_value < 0.01


def test_a_replayed_stream_has_the_law_of_a_direct_one(pair, tmp_path):
    """Tokens that the target decides unseen: the chains between mistakes are as long as in the recording."""
    trace, ids, _, _ = record_set(pair, tmp_path, 1.0, 600, 10)
    check_streams(pair, trace, ids, 10)


def test_a_replayed_greedy_stream_is_the_direct_one(pair, tmp_path):
    trace, ids, _, _ = record_set(pair, tmp_path, 0.0, 12, 24)
    direct = direct_streams(pair, trace, ids, 0.0)
    assert list(direct.values()) == replayed_streams(trace, direct)
    assert sum(map(sum, direct.values())) > 0


def test_chains_of_a_stream_by_hand():
    rounds = [
        DirectRound(0, 2, 2, True),  # two verified, the third guessed
        DirectRound(3, 0, 0, True),  # nothing had arrived, guessed again
        DirectRound(4, 2, 1),  # one right, the next wrong
        DirectRound(6, 1, 1, False),  # right, but the guess behind it wrong
        DirectRound(8, 0, 0, False),
        DirectRound(9, 2, 2, True),
    ]
    assert validate.chain_lengths(rounds, 12) == [5, 1, 0, 3]
    assert validate.chain_lengths(rounds, 10) == [5, 1, 0, 1], "the end cuts the last one"
    assert validate.chain_lengths(rounds, 9) == [5, 1, 0], "none begins at the end"
    assert validate.chain_lengths(rounds, 3) == [3]
    realised = AcceptanceRealisation(
        run_lengths(np.array([1, 1, 0, 0, 1, 0, 1, 0, 0, 1, 1], bool)),
        np.zeros(11, np.float32),
        np.zeros(11, np.float32),
        guess=np.array([0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0], bool),
    )
    arrived = {0: 2, 3: 0, 4: 2, 6: 1, 8: 0, 9: 2}
    assert validate.stream_of_replay(realised, arrived.__getitem__) == [
        *rounds[:-1],
        DirectRound(9, 2, 2, False),  # the guess would be beyond the output
    ]


def test_accept_prob_is_what_it_is_defined_to_be(pair, tmp_path):
    target, draft = pair
    trace, ids, work, prompts = record_set(pair, tmp_path, 0.7, 5, 10)
    values = trace.drafters["draft"]
    for e, name in enumerate(trace.card["entries"]):
        prompt = next(p for p in prompts if p.id == name)
        run = work.run(prompt, 0.7)
        for i, x in enumerate(run.output_ids):
            context = torch.tensor([ids[name] + run.output_ids[:i]])
            with torch.inference_mode():
                p, q = (
                    torch.softmax(m.model(context).logits[0, -1].double() / 0.7, -1) for m in (target, draft)
                )
            at = int(trace.offsets[e]) + i
            assert values.accept_prob[at] == pytest.approx(min(1.0, float(q[x] / p[x])), abs=1e-5)
            assert values.draft_prob[at] == pytest.approx(float(q[x]), abs=1e-5)
            assert values.rank[at] == 1 + int((q > q[x]).sum())
            assert values.top1_prob[at] == pytest.approx(float(q.max()), abs=1e-3)
            assert values.entropy_nats[at] == pytest.approx(float(-(q * q.log()).sum()), abs=2e-3)


def test_greedy_recording_equals_direct_decoding(pair, tmp_path):
    target, draft = pair
    trace, ids, _, _ = record_set(pair, tmp_path, 0.0, 12, 24)
    entries = range(trace.n_entries)
    prompts = [ids[trace.card["entries"][e]] for e in entries]
    plain = greedy_runs(target, prompts, 24)
    values = trace.drafters["draft"]
    np.testing.assert_array_equal(values.draft_prob, values.accept_prob)
    np.testing.assert_array_equal(values.rank == 1, values.accept_prob == 1.0)
    accepted = 0
    for name in trace.drafters:
        speaker = draft if name == "draft" else None
        readers = read_prompts_once(target, speaker, prompts)
        for gamma in (1, 2, 4, 8):
            keys = [0] * len(prompts)
            runs = speculative_runs(target, speaker, prompts, gamma, 24, 0.0, keys, readers=readers)
            assert [r.output_ids[:24] for r in runs] == [r.output_ids for r in plain]
            direct = [validate.counts_of_direct(r.rounds, min(24, len(r.output_ids))) for r in runs]
            replay = [
                validate.counts_of_replay(validate.replayed_runs(trace, e, name), gamma) for e in entries
            ]
            result = validate.compare_greedy(direct, replay)
            assert result.differing == 0, (name, gamma)
            accepted += sum(map(sum, direct))
    assert accepted > 20


def with_branches(pair, prompt, n, window, fanout, depth):
    """Decode greedily with drafts that have branches.

    At each draft the drafter keeps its likeliest other tokens, and what it would draft behind each. Where a
    draft is wrong and the right token is one of them, the next window is that branch, whose tokens have no
    branches of their own. (Only branches that are looked at are made; the others would be as they are.)

    Returns:
        The output, and (position, tokens of the branch that it had) of the wrong drafts that could have one.
    """
    target, draft = pair

    def choices(model, tokens, last):
        with torch.inference_mode():
            return model.model(torch.tensor([tokens])).logits[0, -last:].float()

    def line(tokens, count):
        made = []
        for _ in range(count):
            made.append(int(choices(draft, tokens + made, 1).argmax()))
        return made

    output, wrong, branch = [], [], []
    while len(output) < n:
        known, on_branch = prompt + output, bool(branch)
        drafts = branch or line(known, window)
        decided = choices(target, known + drafts, len(drafts) + 1).argmax(-1).tolist()
        right = next((i for i, x in enumerate(drafts) if x != decided[i]), len(drafts))
        branch = []
        if right < len(drafts) and not on_branch:
            before = known + drafts[:right]
            ranked = choices(draft, before, 1)[0].argsort(descending=True, stable=True).tolist()
            others = [token for token in ranked if token != drafts[right]][:fanout]
            branch = line([*before, decided[right]], depth) if decided[right] in others else []
            wrong.append((len(output) + right, len(branch)))
        new = decided[: right + 1]
        if STOP in new:
            return output + new[: new.index(STOP)], wrong
        output += new
    return output, wrong


@pytest.mark.parametrize(("fanout", "seeds"), [(1, (3, 4)), (2, (7, 8))])
def test_direct_decoding_with_branches_hits_where_the_recording_says(tmp_path, fanout, seeds):
    """The output is the target's own, and wrong drafts have a branch where the replayed rank says so."""
    pair = tiny_model("target", seeds[0]), tiny_model("draft", seeds[1])
    trace, ids, _, _ = record_set(pair, tmp_path, 0.0, 12, 24)
    replay = TraceReplay(trace)
    hits = []
    for e, name in enumerate(trace.card["entries"]):
        (plain,) = greedy_runs(pair[0], [ids[name]], 24)
        n = int(trace.lengths[e])
        output, wrong = with_branches(pair, ids[name], n, window=4, fanout=fanout, depth=3)
        assert output[:n] == plain.output_ids[:n]
        rank = replay.trace.drafters["draft"].rank[trace.offsets[e] : trace.offsets[e + 1]]
        for position, tokens in wrong:
            if position < n:
                assert rank[position] > 1
                assert (tokens > 0) == (rank[position] <= fanout + 1), (name, position)
                hits.append(tokens > 0)
    assert 0 < sum(hits) < len(hits)


def test_comparisons():
    assert validate.compare_greedy([[1, 2], [0]], [[1, 2], [0]]) == validate.GreedyComparison(3, 0)
    assert validate.compare_greedy([[1, 2], [0]], [[1, 1, 1], [0]]) == validate.GreedyComparison(4, 2)
    rounds = [DirectRound(0, 4, 3), DirectRound(4, 4, 4), DirectRound(9, 4, 1)]
    assert validate.counts_of_direct(rounds, 6) == [3, 2]
    same = validate.compare_sampled([[1, 0], [2]], [[1, 0], [2]], 2, permutations=50)
    assert (same.statistic, same.p_value) == (0.0, 1.0)
    rng = np.random.default_rng(0)
    a = [rng.integers(0, 3, 8).tolist() for _ in range(60)]
    b = [rng.integers(0, 2, 8).tolist() for _ in range(60)]
    assert validate.compare_sampled(a, b, 2, permutations=500).p_value < 0.01


def test_look_up_under_sampling_is_a_comparison_of_tokens(pair):
    """Its distribution is one-hot: accepted with probability p(y), and then the committed token is y."""
    record = record_lookup([1, 2, 3, 1, 2], [3, 4], 2, 4)
    assert record.run_length.tolist() == [1, 0]


def test_sampling_needs_one_vocabulary(pair, tmp_path):
    target, draft = pair
    settings = Settings("target", "draft")
    work = WorkDir(tmp_path)
    work.open(settings)
    with pytest.raises(RecordingError, match="different vocabularies"):
        record_drafters(TextDrafter(draft, target), [], work, settings, temperatures=(0.0, 0.7))


def test_questions_can_be_cut(tmp_path):
    (tmp_path / "eagle_sum_question.jsonl").write_text(
        '{"question_id": 1, "turns": ["Summarize:  one two  three"]}\n{"question_id": 2, "turns": ["a b"]}\n'
    )
    prompts = read_prompts(tmp_path, ["summarisation"], {"summarisation": 3})["summarisation"]
    assert prompts == [
        Prompt("CNN-DM/1@3", "summarisation", "Summarize: one two"),
        Prompt("CNN-DM/2", "summarisation", "a b"),
    ]
    with pytest.raises(PromptError, match="unknown kinds"):
        read_prompts(tmp_path, ["summarisation"], {"poetry": 3})


# Distillation: a target that has learnt a text, and a student of one of its two layers.


@pytest.fixture(scope="module")
def trained():
    from tests.calibration.acceptance.test_recording import make_model

    return make_model("target", 330, None, 40, 0)


WORDS = ["Count the words.", "The naïve café owner", "once by hand;", "def count(words):"]
DATA = distill.DistillSettings("target", 6, 8, 20, (0.7, 1.0), 0)
TRAINING = distill.Training(layers=(0,), steps=12, batch_tokens=200, learning_rate=3e-3, held_out=0.2)


@pytest.fixture(scope="module")
def examples(trained, tmp_path_factory):
    root = tmp_path_factory.mktemp("distill")
    distill.open_work(root, DATA)
    messages = distill.write_messages(trained, root, DATA, lambda _: None)
    assert 0 < len(messages) <= 6
    assert distill.write_messages(trained, root, DATA, lambda _: None) == messages
    prompts = [Prompt(f"own/{i}", "self", m) for i, m in enumerate([*messages, *WORDS])]
    distill.make_runs(trained, prompts, root, DATA, lambda _: None)
    made = {p: p.stat().st_mtime_ns for p in root.rglob("*")}
    distill.make_runs(trained, prompts, root, DATA, lambda _: None)
    assert {p: p.stat().st_mtime_ns for p in root.rglob("*")} == made
    with pytest.raises(RecordingError, match="other prompts"):
        distill.make_runs(trained, prompts[1:], root, DATA, lambda _: None)
    with pytest.raises(RecordingError, match="other settings"):
        distill.open_work(root, distill.DistillSettings("target", 6, 8, 20, (1.0,), 0))
    return distill.load_examples(root)


def test_a_part_of_the_prompts_can_be_answered(trained, tmp_path):
    """The first files of all prompts, shuffled: more are the same ones and then some."""
    settings = replace(DATA, max_tokens=1, temperatures=(1.0,))
    distill.open_work(tmp_path, settings)
    count = 2 * distill.RUNS_PER_FILE + 1
    prompts = [Prompt(f"own/{i}", "self", WORDS[i % len(WORDS)]) for i in range(count)]
    done = []
    distill.make_runs(trained, prompts, tmp_path, settings, done.append, distill.RUNS_PER_FILE - 1)
    assert done == [distill.RUNS_PER_FILE]
    assert distill.prompts_used(tmp_path, settings) == {"own": distill.RUNS_PER_FILE}
    first = sorted((tmp_path / "runs").iterdir())
    before = [p.read_bytes() for p in first]
    distill.make_runs(trained, prompts, tmp_path, settings, done.append, 10_000)
    assert sum(done[1:]) == len(prompts)
    assert [p.read_bytes() for p in first] == before
    assert len(list((tmp_path / "runs").iterdir())) == 3


def test_a_student_of_every_layer_is_the_target(trained, examples):
    student = distill.make_student(trained.model, (0, 1))
    found = distill.evaluate(student, trained.model.lm_head, examples, 400)
    assert found.agreement > 0.99
    assert found.acceptance == pytest.approx(1.0, abs=5e-3)  # the target's states are kept in float16
    assert found.divergence_nats == pytest.approx(0.0, abs=1e-3)
    with pytest.raises(RecordingError, match=r"0\.\.1"):
        distill.make_student(trained.model, (0, 2))


def test_training_helps_and_goes_on_where_it_stopped(trained, examples, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    student, facts = distill.train(trained, examples, tmp_path / "a", TRAINING)
    assert facts["held_out"]["divergence_nats"] < 0.7 * facts["held_out_before"]["divergence_nats"]
    assert facts["held_out"]["acceptance"] > facts["held_out_before"]["acceptance"]

    class Stop(Exception):
        pass

    calls = []

    def interrupt(done, _figures):
        calls.append(done)
        if len(calls) == 8:
            raise Stop

    with pytest.raises(Stop):
        distill.train(trained, examples, tmp_path / "b", TRAINING, checkpoint_every=5, progress=interrupt)
    assert json.loads((tmp_path / "b" / "checkpoint.json").read_text())["step"] == 5
    resumed, again = distill.train(trained, examples, tmp_path / "b", TRAINING, checkpoint_every=5)
    assert again["steps"] == 12
    for (name, a), b in zip(student.state_dict().items(), resumed.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6, msg=name)
    other = distill.Training(layers=(1,), steps=2)
    with pytest.raises(RecordingError, match="other layers"):
        distill.train(trained, examples, tmp_path / "b", other)


def test_the_target_is_not_changed_by_training(trained, examples, tmp_path):
    before = {k: v.clone() for k, v in trained.model.state_dict().items()}
    distill.train(trained, examples, tmp_path, TRAINING)
    for name, value in trained.model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_saved_drafter_is_loaded_and_has_the_targets_vocabulary(trained, tmp_path):
    student = distill.make_student(trained.model, (0,))
    card = {"model": "mine", "licence": "Apache-2.0", "steps": 3}
    distill.save_drafter(student, trained, tmp_path / "mine", card)
    assert not list((tmp_path / "mine").glob("*.bin"))
    loaded = load_language_model(str(tmp_path / "mine"), name="mine")
    assert loaded.card["steps"] == 3
    assert same_vocabulary(loaded, trained)
    ids = torch.tensor([[5, 6, 7]])
    with torch.inference_mode():
        torch.testing.assert_close(loaded.model(ids).logits, student.eval()(ids).logits)
    with pytest.raises(RecordingError, match="there already"):
        distill.save_drafter(student, trained, tmp_path / "mine", card)


def run_script(checkout, name, *arguments):
    return subprocess.run(
        [sys.executable, str(checkout / "scripts" / name), *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=checkout,
    )


def load_script(checkout, name):
    """Return a script as a module: a process of its own would import torch once more for every call."""
    spec = importlib.util.spec_from_file_location(f"script_{name}", checkout / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_scripts_end_to_end(trained, checkout, tmp_path, monkeypatch, capsys):
    """Distil a drafter, record it at two temperatures, and validate both recordings."""
    monkeypatch.syspath_prepend(checkout / "scripts")
    trained.model.save_pretrained(tmp_path / "big")
    trained.tokenizer.save_pretrained(tmp_path / "big")

    def call(name, arguments):
        status = load_script(checkout, name).main([str(a) for a in arguments])
        out = capsys.readouterr()
        assert status == 0, out.err
        return out.out

    arguments = ["--target", tmp_path / "big", "--out", tmp_path / "small", "--messages", 6, "--steps", 4]
    arguments += ["--message-tokens", 8, "--max-tokens", 12, "--layers", "0"]
    assert "held-out" in call("distill_drafter", arguments)
    rows = [{"prompt": w, "kind": k} for w, k in zip(WORDS, ("chat", "chat", "code", "code"), strict=True)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    models = ["--target", tmp_path / "big", "--drafter", tmp_path / "small", "--threads", 1]
    models += ["--prompts", tmp_path / "prompts.jsonl"]
    arguments = [*models, "--out", tmp_path, "--max-tokens", 16, "--gamma-max", 8, "--temperature", 0, 1]
    assert "tokens per round" in call("record_traces", arguments)
    for suffix, temperature in (("greedy", 0), ("t1", 1)):
        trace = load_trace_set(tmp_path / f"big_small_{suffix}")
        assert trace.card["temperature"] == temperature
        assert trace.card["drafters"]["small"]["form"] == "accept_prob"
        assert trace.card["drafters"]["small"]["steps"] == 4
        assert set(trace.drafters) == {"small", LOOKUP}
        assert summary(trace, "small", [4])["tokens_per_round@4"] >= 1.0
        out = tmp_path / f"{suffix}.json"
        arguments = [*models, "--trace", tmp_path / trace.name, "--out", out, "--gammas", 1, 4]
        call("validate_traces", arguments)
        report = json.loads(out.read_text())
        assert [(r["drafter"], r["gamma"]) for r in report["results"]] == [
            ("small", 1), ("small", 4), (LOOKUP, 1), (LOOKUP, 4)
        ]  # fmt: skip
        streams = [*models, "--trace", tmp_path / trace.name, "--out", tmp_path / f"{suffix}_streams.json"]
        call("validate_traces", [*streams, "--gammas", 1, 3, "--streams"])
        report_of_streams = json.loads((tmp_path / f"{suffix}_streams.json").read_text())
        assert [(r["drafter"], r["gamma"]) for r in report_of_streams["results"]] == [
            ("small", 1),
            ("small", 3),
        ]
        call("validate_traces", arguments)  # all is there already
        again = json.loads(out.read_text())
        assert again == report
        other = load_script(checkout, "validate_traces").main([str(a) for a in [*arguments, "--seed", 9]])
        assert other == 2
        assert "another validation" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("record_traces.py", ["--temperature", "-1"], "--temperature must be in 0..10"),
        ("record_traces.py", ["--cut-words", "summarisation=x"], "KIND=N"),
        ("distill_drafter.py", ["--layers", "a"], "--layers must be numbers"),
        ("distill_drafter.py", ["--steps", "0"], "--steps is too small"),
        ("validate_traces.py", ["--trace", "none", "--drafter", "d"], "does not exist"),
        ("validate_traces.py", ["--trace", "none", "--drafter", "d", "--gammas", "0"], "at least 1"),
        (
            "validate_traces.py",
            ["--trace", "none", "--drafter", "d", "--streams", "--drafters", LOOKUP],
            "depends on where it starts",
        ),
    ],
)
def test_the_scripts_explain_mistakes(checkout, tmp_path, script, arguments, message):
    done = run_script(checkout, script, "--out", tmp_path / "out", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
