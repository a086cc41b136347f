"""A session against what its messages may do, in any order and any number."""

import random

import pytest

pytest.importorskip("grpc", reason="needs the extra `testbed`")
pytest.importorskip("transformers", reason="needs the extra `testbed`")

from hypothesis import given
from hypothesis import strategies as st

from dsd_env.testbed.sessions import REPLAY_WINDOW, ReplayGuard, Session
from dsd_env.testbed.wire import Limits, Prefix, Refused, next_digest, pb, prompt_digest

PROMPT = [5, 6, 7]
#: The target's output in these tests, by position.
TRUTH = [(7 * i + 3) % 50 for i in range(64)]


def make_session(max_new_tokens=40, **more):
    session = Session(
        number=0,
        request_id="0" * 32,
        secret=b"s" * 16,
        owner="",
        prompt=PROMPT,
        max_new_tokens=max_new_tokens,
        temperature=0.0,
        seed=0,
        limits=Limits(max_window=8),
        vocabulary=64,
        prefix=Prefix(PROMPT),
        **more,
    )
    session.decided([], [TRUTH[0]], frozenset())  # the prompt's end
    return session


def tail(session, tokens, *, base=None, start=None, generation=None, mode=pb.FREE_RUN, window=8, **more):
    base = len(session.prefix) if base is None else base
    return pb.DraftTailStream(
        mode=mode,
        window=window,
        generation=session.generation if generation is None else generation,
        base_committed_len=base,
        base_digest=session.prefix.digest(base),
        start_token_pos=base if start is None else start,
        tokens=tokens,
        **more,
    )


def iterate(session):
    """One iteration of a target that says TRUTH."""
    drafts = session.drafts_to_verify()
    at = len(session.prefix)
    return drafts, session.decided(drafts, TRUTH[at : at + len(drafts) + 1], frozenset())


def test_digests_chain_and_tell_prefixes_apart():
    prefix = Prefix(PROMPT, [1, 2])
    assert prefix.digest() == next_digest(next_digest(prompt_digest(PROMPT), 1), 2)
    assert len({Prefix(PROMPT, t).digest() for t in ([], [1], [2], [1, 2], [2, 1])}) == 5
    assert prompt_digest([1, 2]) != prompt_digest([2, 1])


def test_a_window_is_verified_and_commits_one_more():
    session = make_session()
    session.take(1, tail(session, [TRUTH[1], TRUTH[2], 63, 62], mode=pb.VERIFY))
    assert session.is_ready()
    drafts, new = iterate(session)
    assert (len(drafts), new) == (4, TRUTH[1:4])
    assert (session.counters.drafts_verified, session.counters.drafts_accepted) == (4, 2)
    assert not session.is_ready()  # it was asked once
    assert session.generation == 1  # a draft was wrong


def test_a_stream_slides_on_while_all_is_right():
    session = make_session()
    session.take(1, tail(session, TRUTH[1:4]))
    session.take(2, tail(session, TRUTH[4:6], start=4))
    assert iterate(session) == (TRUTH[1:6], TRUTH[1:7])
    assert session.generation == 0
    assert iterate(session) == ([], [TRUTH[7]])
    assert session.counters.idle_iterations == 1
    assert session.is_ready()  # it waits for nobody


def test_a_token_of_the_targets_own_that_differs_ends_the_generation():
    session = make_session()
    session.take(1, tail(session, [TRUTH[1], 63, TRUTH[3]], window=1))
    assert iterate(session) == ([TRUTH[1]], TRUTH[1:3])
    assert session.generation == 1
    assert session.buffered_drafts == 0
    # What still comes of the old generation is late.
    session.take(2, tail(session, [TRUTH[4]], start=4, base=1, generation=0))
    assert (session.buffered_drafts, session.counters.late_drafts) == (0, 2)


def test_a_late_draft_that_differs_from_what_is_committed_ends_the_generation():
    session = make_session()
    session.take(1, tail(session, []))
    iterate(session)
    iterate(session)
    session.take(2, tail(session, [TRUTH[1], 63, TRUTH[3], TRUTH[4]], base=1))
    assert session.generation == 1
    assert session.buffered_drafts == 0


def test_a_hole_waits_for_its_message():
    session = make_session()
    session.take(1, tail(session, [TRUTH[3]], start=3))
    assert session.drafts_to_verify() == []
    session.take(2, tail(session, [TRUTH[1], TRUTH[2]]))
    assert session.drafts_to_verify() == TRUTH[1:4]


def test_the_output_never_gets_too_long():
    session = make_session(max_new_tokens=4)
    session.take(1, tail(session, TRUTH[1:8]))
    assert session.drafts_to_verify() == TRUTH[1:3]
    iterate(session)
    assert session.finish_reason == "length"
    assert session.prefix.tokens == TRUTH[:4]


def test_an_end_of_turn_among_the_drafts():
    session = make_session()
    session.take(1, tail(session, TRUTH[1:5]))
    session.decided(TRUTH[1:5], TRUTH[1:6], frozenset({TRUTH[3]}))
    assert session.finish_reason == "stop"
    assert session.prefix.tokens == TRUTH[:3]
    assert not session.is_ready()


def test_decoding_alone_stops_where_it_was_told():
    session = make_session()
    session.take(1, tail(session, [], mode=pb.PLAIN, run_until_len=4))
    while session.is_ready():
        iterate(session)
    assert len(session.prefix) == 4


def test_another_prefix_is_told_the_state():
    session = make_session()
    wrong = tail(session, TRUTH[1:3])
    wrong.base_digest ^= 1
    assert session.take(1, wrong)
    assert session.buffered_drafts == 0
    assert session.counters.resyncs == 1


REFUSED = {
    "mode": ({"mode": 9}, pb.MALFORMED),
    "no mode": ({"mode": 0}, pb.MALFORMED),
    "window": ({"window": 9}, pb.TOO_LARGE),
    "huge window": ({"window": 2**32 - 1}, pb.TOO_LARGE),
    "too many": ({"tokens": [1] * 9}, pb.TOO_LARGE),
    "token": ({"tokens": [64]}, pb.MALFORMED),
    "ahead of base": ({"start_token_pos": 10}, pb.MALFORMED),
    "behind base": ({"start_token_pos": 0}, pb.MALFORMED),
    "base": ({"base_committed_len": 2, "start_token_pos": 2}, pb.MALFORMED),
    "huge base": ({"base_committed_len": 2**32 - 1, "start_token_pos": 2**32 - 1}, pb.MALFORMED),
    "run_until": ({"mode": pb.PLAIN, "run_until_len": 41}, pb.MALFORMED),
    "generation": ({"generation": 2**63}, pb.MALFORMED),
}


@pytest.mark.parametrize("name", REFUSED)
def test_nonsense_is_refused_and_changes_nothing(name):
    changes, code = REFUSED[name]
    session = make_session()
    message = tail(session, TRUTH[1:3])
    for key, value in changes.items():
        if key == "tokens":
            del message.tokens[:]
            message.tokens.extend(value)
        else:
            setattr(message, key, value)
    with pytest.raises(Refused) as refusal:
        session.take(1, message)
    assert refusal.value.code == code
    assert refusal.value.reason
    assert (session.mode, session.buffered_drafts, session.generation) == (pb.MODE_UNSPECIFIED, 0, 0)


def test_two_drafts_for_one_place_contradict_each_other():
    session = make_session()
    session.take(1, tail(session, TRUTH[1:3]))
    with pytest.raises(Refused, match="two drafts") as refusal:
        session.take(2, tail(session, [TRUTH[1], 63]))
    assert refusal.value.code == pb.CONTRADICTION


def test_sequence_numbers():
    guard = ReplayGuard()
    assert guard.is_new(1, b"a")
    assert not guard.is_new(1, b"a")
    with pytest.raises(Refused, match="used for another"):
        guard.is_new(1, b"b")
    assert guard.is_new(3, b"c")
    assert guard.is_new(2, b"d")  # overtaken on the way
    for sequence, reason in ((0, "begin at 1"), (3 + REPLAY_WINDOW + 1, "leaps")):
        with pytest.raises(Refused, match=reason):
            guard.is_new(sequence, b"e")
    for sequence in range(4, 2 * REPLAY_WINDOW):
        assert guard.is_new(sequence, b"x")
    with pytest.raises(Refused, match="too old"):
        guard.is_new(1, b"a")
    assert len(guard._seen) <= REPLAY_WINDOW


@given(st.integers(0, 2**32))
def test_messages_in_any_order_and_number_never_change_the_output(seed):
    """Right and wrong drafts, old and new, at any time: the committed tokens are the truth's."""
    draw = random.Random(seed)
    session = make_session()
    old: list[pb.DraftTailStream] = []
    for sequence in range(1, 60):
        if session.finished:
            break
        base = draw.randint(0, len(session.prefix))
        start = base + draw.randint(0, 3)
        tokens = [
            t if draw.random() < 0.7 else draw.randrange(64)
            for t in TRUTH[start : start + draw.randint(0, 5)]
        ]
        generation = max(0, session.generation + draw.randint(-1, 1))
        mode = draw.choice([pb.VERIFY, pb.FREE_RUN, pb.FREE_RUN, pb.PLAIN])
        message = tail(
            session,
            tokens,
            base=base,
            start=start,
            generation=generation,
            mode=mode,
            window=draw.randint(0, 8),
            run_until_len=draw.randint(0, 40),
        )
        old.append(message)
        try:
            session.take(sequence, draw.choice(old))
        except Refused as refusal:
            assert refusal.code == pb.CONTRADICTION
        while session.is_ready() and draw.random() < 0.6:
            iterate(session)
        assert session.prefix.tokens == TRUTH[: len(session.prefix)]
        assert session.buffered_drafts <= session.limits.max_window
        assert session.counters.drafts_accepted <= session.counters.drafts_verified
