"""The packed target against the model itself: one sequence, no cache, no mask."""

import random

import pytest

pytest.importorskip("transformers", reason="needs the extra `testbed`")
pytest.importorskip("grpc", reason="needs the extra `testbed`")

import torch

from dsd_env.testbed import target as module
from tests.testbed.pair import VOCABULARY, Feed, PackedTarget, Sampling, make_model, sampled


@pytest.fixture(scope="module")
def model():
    return make_model(seed=5)


def choices(model, tokens, wanted):
    with torch.inference_mode():
        logits = model(torch.tensor([tokens]), use_cache=False).logits[0, len(tokens) - wanted :]
    return logits.argmax(dim=-1).tolist()


@pytest.mark.parametrize("seed", range(3))
def test_ragged_sequences_that_grow_shrink_join_and_leave(model, seed, monkeypatch):
    monkeypatch.setattr(module, "MOST_DEAD", 8)  # so that dead columns are cleared away often
    draw = random.Random(seed)
    target = PackedTarget(model)
    held: dict[int, list[int]] = {}
    cleared = False
    for _ in range(40):
        feeds, expected = [], []
        for number in draw.sample(range(5), draw.randint(1, 4)):
            new = [draw.randrange(VOCABULARY) for _ in range(draw.randint(1, 6))]
            wanted = draw.randint(0, len(new))
            held[number] = held.get(number, []) + new
            feeds.append(Feed(number, new, wanted))
            expected.append(choices(model, held[number], wanted) if wanted else [])
        assert target.read(feeds) == expected
        assert all(target.length(number) == len(tokens) for number, tokens in held.items())
        columns = target.columns
        for number in draw.sample(sorted(held), draw.randint(0, len(held))):
            keep = draw.choice([0, draw.randint(0, len(held[number]))])
            target.crop(number, keep)
            held[number] = held[number][:keep]
            if not keep:
                del held[number]
        cleared = cleared or target.columns < columns
        assert target.columns >= sum(map(len, held.values()))
    assert cleared


def test_columns_do_not_grow_with_rejections(model):
    target = PackedTarget(model)
    target.read([Feed(1, [1, 2, 3], 1)])
    for _ in range(120):
        target.read([Feed(1, [4, 5, 6, 7], 4)])
        target.crop(1, 3)
    assert target.columns < 160
    target.crop(1, 0)
    assert target.length(1) == 0


def test_a_sampled_choice_is_decided_by_seed_and_position_alone(model):
    from dsd_env.testbed.drafters import Question

    how = Sampling(temperature=0.8, seed=11)
    question = Question([1, 2, 3], 8, None, how)
    tokens = [1, 2, 3, 4, 5]
    with torch.inference_mode():
        logits = model(torch.tensor([tokens]), use_cache=False).logits[0]
    expected = [sampled(logits[i : i + 1], question, 7 + i) for i in range(5)]
    target = PackedTarget(model)
    assert target.read([Feed(0, tokens, 5, first_position=7, sampling=how)]) == [expected]
    # In another company, and in pieces.
    target.read([Feed(1, tokens[:2], 0), Feed(2, [9, 9, 9], 1)])
    assert target.read([Feed(2, [8], 1), Feed(1, tokens[2:], 3, 9, how)])[1] == expected[2:]
