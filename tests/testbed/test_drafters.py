"""Lines against the recorder's drafters: the same proposals, token by token, from any prefix."""

import asyncio

import pytest

pytest.importorskip("grpc", reason="needs the extra `testbed`")
pytest.importorskip("transformers", reason="needs the extra `testbed`")

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from dsd_env.calibration.acceptance.recording.drafters import TextDrafter, lookup_proposal
from dsd_env.calibration.acceptance.recording.models import LanguageModel
from dsd_env.calibration.acceptance.recording.prompts import Prompt
from dsd_env.testbed.control import static
from dsd_env.testbed.drafters import LookupLine, ModelLine, Question, TextLine, line_maker
from dsd_env.testbed.engine import EngineConfig
from dsd_env.testbed.target import Sampling
from tests.testbed.pair import Pair, client, make_pair, questions, testbed

TEXT = (
    "the cat sat on the mat, and the dog sat on the cat.\n  The naïve owner isn't there; café, café! 🙂\n" * 3
)


def speaker(name, vocabulary, seed):
    """A model of random weights with a byte-level tokenizer of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        [TEXT],
        trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=["<end>"], initial_alphabet=alphabet),
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        initializer_range=0.5,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=None,
    )
    return LanguageModel(name, LlamaForCausalLM(config).double().eval(), fast, {}, frozenset({0}))


@pytest.fixture(scope="module")
def speakers():
    return speaker("target", 300, 3), speaker("draft", 290, 4)


def first(line, gamma):
    """The first tokens of a line's proposal."""
    found = []
    while len(found) < gamma and (new := line.step()) is not None:
        found += new
    return found[:gamma]


def test_a_drafter_with_another_vocabulary_proposes_what_the_recorders_does(speakers):
    target, draft = speakers
    drafter = TextDrafter(draft, target, max_draft_tokens=12)
    prompt = Prompt("own/0", "chat", "the cat")
    line = TextLine(drafter, Question(target.encode("the cat"), 40, prompt))
    committed = target.encode(" sat on the naïve mat, isn't it 🙂 there")
    proposals = set()
    # Forwards, and back again: the cache goes along.
    for length in [*range(0, len(committed), 2), 3, 0, len(committed)]:
        line.rebase(committed[:length])
        proposal = first(line, 5)
        assert proposal == drafter.propose(prompt, committed[:length], 5)
        proposals.add(tuple(proposal))
    assert len(proposals) > 3
    assert any(proposals)


def test_such_a_drafter_serves_whole_requests(speakers):
    target, draft = speakers
    make = line_maker(draft, target)
    prompt = Prompt("own/0", "chat", "the cat sat")
    question = Question(target.encode_chat(prompt.text), 12, prompt)
    pair = Pair(target.model, draft)

    async def run(decide):
        slow = EngineConfig(min_iteration_s=0.02)
        async with testbed(pair, colocated=make, engine=slow) as (_, _, channel):
            one = client(channel, pair, "synchronous", decide)
            one.make_line = make
            return await one.generate(question)

    for decide in (static(3), static(3, "cloud")):
        output = asyncio.run(run(decide))
        assert output.tokens == pair.alone(question)
        assert output.verified > 0
    with pytest.raises(ValueError, match="as text"):
        make(Question([1, 2], 4))
    with pytest.raises(ValueError, match="greedy"):
        make(Question([1, 2], 4, prompt, Sampling(0.5)))


def test_one_vocabulary_needs_no_text(speakers):
    target, _ = speakers
    assert isinstance(line_maker(target, target)(Question([1, 2], 4)), ModelLine)


def test_a_model_line_drafts_its_own_greedy_continuation():
    pair = make_pair(0.05)
    question = questions(1)[0]
    line = pair.line(question)
    own = Pair(pair.draft.model, pair.draft)
    for committed in ([], [3, 4, 5], [3, 4], [3, 9, 9, 9], []):
        line.rebase(committed)
        there = Question(question.prompt_ids + committed, 6)
        assert first(line, 6) == own.alone(there)


def test_look_up_goes_on_where_the_words_stood():
    question = Question([1, 2, 3, 4, 5, 1, 2], 10)
    line = LookupLine(question)
    line.rebase([3])
    assert first(line, 3) == [4, 5, 1]
    assert first(line, 1) == lookup_proposal([*question.prompt_ids, 3, 4, 5, 1], 1)[0]
    line.rebase([9])
    assert line.step() is None
