"""Assisted generation steered by a controller: tiny random models, and a real pair (slow)."""

import pytest

pytest.importorskip("torch", reason="needs the extra `record`")
pytest.importorskip("transformers", reason="needs the extra `record`")

import torch
import transformers

from dsd_env.serving import Controller
from dsd_env.serving.engines import EngineError
from dsd_env.serving.engines.transformers import generate
from tests.serving.engines.samples import GAMMAS, Cycle, Witness, engine
from tests.serving.samples import make_bundle

TOKENS = 48


def tiny(layers, seed, like=None, noise=0.0):
    """Return a random model; one like another has its weights, slightly changed, and so agrees at times."""
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=None,
        initializer_range=0.5,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    if like is not None:
        model.load_state_dict(like.state_dict())
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(noise * torch.randn_like(weight))
    return model


@pytest.fixture(scope="module")
def pair():
    target = tiny(2, 0)
    return target, tiny(2, 1, target, 0.03)


@pytest.fixture(scope="module")
def prompts():
    rng = torch.Generator().manual_seed(3)
    return [torch.randint(1, 64, (1, length), generator=rng) for length in (3, 12, 30)]


def plainly(model, prompt, tokens=TOKENS):
    return model.generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=tokens
    )


def check(output, answers, prompt, greedy):
    """Check the text, the lengths drafted against the answers (the first is the admission), and the sums."""
    assert output.sequences.tolist() == greedy.tolist()
    new = greedy.shape[1] - prompt.shape[1]
    assert [each.asked for each in output.rounds] == answers[1:]
    left = new - 1  # The prefill has given the first.
    for each in output.rounds:
        assert each.drafted == min(each.asked, left - 1)
        assert 0 <= each.accepted <= each.drafted
        left -= each.accepted + 1
    assert left == 0


@pytest.mark.parametrize("noise", ["drafter", "itself"])
def test_text_is_greedy_and_lengths_are_those_decided(pair, prompts, noise):
    target, drafter = pair
    drafter = target if noise == "itself" else drafter
    accepted = 0
    for prompt in prompts:
        controller = Witness(Cycle((4, 0, 1, 6, 0, 0, 2)), engine())
        output = generate(
            target, drafter, prompt, controller, max_new_tokens=TOKENS, attention_mask=torch.ones_like(prompt)
        )
        check(output, next(iter(controller.answers.values())), prompt, plainly(target, prompt))
        accepted += sum(each.accepted for each in output.rounds)
        if noise == "itself":
            # Whatever lies between, the drafter's context is the true one: all of its drafts are right.
            assert all(each.accepted == each.drafted for each in output.rounds)
        assert not controller.requests
        assert controller.counts["unknown_request"] == 0
    assert accepted > 10


def test_stale_drafts_do_not_stay_in_the_drafters_context(pair, prompts, monkeypatch):
    """After wrong drafts and rounds of plain decoding, the drafter proposes what it does from scratch."""
    target, drafter = pair
    prompt = prompts[1]
    controller = Witness(Cycle((6, 0, 0, 0, 6, 6)), engine())
    output = generate(
        target, drafter, prompt, controller, max_new_tokens=TOKENS, attention_mask=torch.ones_like(prompt)
    )
    assert any(each.accepted < each.drafted for each in output.rounds)
    place = prompt.shape[1] + 1
    for each in output.rounds:
        text = output.sequences[:, : place + each.drafted]
        drafts = (
            plainly(drafter, output.sequences[:, :place], each.drafted)[:, place:] if each.drafted else None
        )
        right = 0
        if drafts is not None:
            for own, true in zip(drafts[0], text[0, place:], strict=False):
                if own != true:
                    break
                right += 1
        assert each.accepted == right
        place += each.accepted + 1


@pytest.mark.parametrize("policy", ["bundle", "hf_heuristic", "jsq_goodput"])
def test_bundles_and_rules(pair, prompts, tmp_path, policy):
    target, drafter = pair
    deployment = engine()
    decides = make_bundle(tmp_path / "policy", deployment.scenario, 5) if policy == "bundle" else policy
    controller = Witness(decides, deployment)
    for prompt in prompts:
        controller.answers.clear()
        output = generate(
            target, drafter, prompt, controller, max_new_tokens=TOKENS, attention_mask=torch.ones_like(prompt)
        )
        check(output, next(iter(controller.answers.values())), prompt, plainly(target, prompt))
    assert controller.counts["safe"] == 0


def test_an_unsure_drafter_drafts_what_was_decided(pair, prompts):
    """transformers lets drafting end at a confidence below a threshold; here the decision holds."""
    target, drafter = pair
    drafter.generation_config.assistant_confidence_threshold = 0.999
    try:
        output = generate(target, drafter, prompts[0], Controller(Cycle((6,)), engine()), max_new_tokens=30)
    finally:
        drafter.generation_config.assistant_confidence_threshold = None
    assert all(each.drafted == 6 for each in output.rounds[:3])


def test_one_tokenizer_alone_is_refused(pair, prompts):
    with pytest.raises(EngineError, match="both tokenizers"):
        generate(*pair, prompts[0], Controller("hf_heuristic", engine()), tokenizer=object())


def test_the_request_is_closed_after_an_error(pair, prompts):
    controller = Controller("hf_heuristic", engine(GAMMAS))
    with pytest.raises(ValueError, match="batch_size"):
        generate(*pair, torch.cat([prompts[0]] * 2), controller, max_new_tokens=4)
    assert not controller.requests


# ---------------------------------------------------------------- real models


@pytest.fixture(scope="module")
def real():
    from dsd_env.calibration.acceptance.recording.models import load_language_model

    return load_language_model("qwen2.5-coder-1.5b"), load_language_model("smollm2-135m")


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["bundle", "hf_heuristic"])
def test_the_packaged_pair(real, tmp_path, policy):
    """Two vocabularies: lengths decided are drafter tokens, those verified are target tokens."""
    target, drafter = real
    deployment = engine()
    decides = make_bundle(tmp_path / "policy", deployment.scenario, 5) if policy == "bundle" else policy
    controller = Witness(decides, deployment)
    text = "Write a Python function that returns the n-th Fibonacci number."
    prompt = torch.tensor([target.encode_chat(text)])
    made: list[int] = []
    draft = drafter.model.generate

    def counting(*arguments, **options):
        output = draft(*arguments, **options)
        made.append(len(output.scores))
        return output

    drafter.model.generate = counting
    try:
        output = generate(
            target.model,
            drafter.model,
            prompt,
            controller,
            tokenizer=target.tokenizer,
            assistant_tokenizer=drafter.tokenizer,
            max_new_tokens=TOKENS,
            attention_mask=torch.ones_like(prompt),
        )
    finally:
        del drafter.model.generate
    assert output.sequences.tolist() == plainly(target.model, prompt).tolist()
    answers = next(iter(controller.answers.values()))[1:]
    assert [each.asked for each in output.rounds] == answers
    room, wanted = TOKENS - 1, []
    for each in output.rounds:
        wanted.append(min(each.asked, room - 1))
        room -= each.accepted + 1
    assert made == [each for each in wanted if each > 0]
    assert sum(each.accepted for each in output.rounds) > 0
    assert 1 + sum(each.accepted + 1 for each in output.rounds) == TOKENS
