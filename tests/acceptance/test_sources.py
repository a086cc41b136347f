"""Sources of acceptance: exactness of replay, closed forms, determinism."""

import math
import time
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsd_env.acceptance import (
    MAX_RUN_LENGTH,
    AcceptanceError,
    AcceptanceRealisation,
    AcceptanceSource,
    DrafterTrace,
    IidAcceptance,
    MarkovAcceptance,
    PerDrafterAcceptance,
    PositionalAcceptance,
    TraceError,
    TraceReplay,
    TraceSet,
    acceptance_rate,
    expected_tokens_iid,
    run_continuation_share,
    run_lengths,
    saturation_share,
    summary,
    tokens_at_random_start,
    tokens_per_round,
)
from dsd_env.acceptance.stats import (
    autocorrelation,
    expected_run_survival,
    expected_tokens_per_round,
    fanout_hits,
    guess_rate,
    hazards,
    mean_by_request,
    realised_runs,
    round_starts,
)
from dsd_env.rng import Stream, uniform
from tests.acceptance_samples import card, make_trace

SOURCES: dict[str, AcceptanceSource] = {
    "iid": IidAcceptance(0.7),
    "positional": PositionalAcceptance((0.8, 0.6, 0.9)),
    "markov": MarkovAcceptance(0.9, 0.4),
    "markov_alternating": MarkovAcceptance(0.2, 0.7),
    "replay": TraceReplay(make_trace((30, 20, 25, 5), (0, 1, 0, 1))),
    "replay_kind": TraceReplay(make_trace((30, 20, 25, 5), (0, 1, 0, 1)), ["chat"]),
    "per_drafter": PerDrafterAcceptance(
        {"a": (IidAcceptance(0.5), "draft"), "b": (IidAcceptance(0.9), "draft")}
    ),
}
requests = st.integers(0, 10_000)
seeds = st.integers(0, 2**63)


@given(matches=st.lists(st.booleans(), max_size=60))
def test_run_lengths_counts_matches(matches):
    expected = []
    for s in range(len(matches)):
        run = 0
        while s + run < len(matches) and matches[s + run]:
            run += 1
        expected.append(run)
    assert run_lengths(np.array(matches, bool)).tolist() == expected


@pytest.mark.parametrize("name", SOURCES)
@given(seed=seeds, request_id=requests, n=st.integers(0, 200), more=st.integers(0, 100))
def test_every_source_meets_the_contract(name, seed, request_id, n, more):
    source = SOURCES[name]
    assert isinstance(source, AcceptanceSource)
    for drafter in source.drafters:
        short = source.realise(seed, request_id, n, drafter)
        again = source.realise(seed, request_id, n, drafter)
        longer = source.realise(seed, request_id, n + more, drafter)
        for column, dtype in (
            ("run_length", np.int32),
            ("top1_prob", np.float32),
            ("entropy_nats", np.float32),
        ):
            values = getattr(short, column)
            assert values.dtype == dtype
            assert values.shape == (n,)
            np.testing.assert_array_equal(values, getattr(again, column))
            # What lies in the future of a request must not change its past.
            np.testing.assert_array_equal(values, getattr(longer, column)[:n])
        assert ((short.run_length >= 0) & (short.run_length <= MAX_RUN_LENGTH)).all()
        assert ((short.top1_prob >= 0) & (short.top1_prob <= 1)).all()
        assert (short.entropy_nats >= 0).all()


@pytest.mark.parametrize("name", SOURCES)
def test_requests_and_seeds_differ(name):
    source = SOURCES[name]
    drafter = source.drafters[0]
    a, b, c = (source.realise(s, r, 100, drafter).run_length.tolist() for s, r in ((0, 0), (0, 1), (1, 0)))
    different = [x != y for x, y in ((a, b), (a, c))]
    assert any(different) if name.startswith("replay") else all(different)


@pytest.mark.parametrize("name", SOURCES)
def test_wrong_requests_are_named(name):
    source = SOURCES[name]
    with pytest.raises(AcceptanceError, match=f"unknown drafter 'nobody'.*{source.drafters[0]}"):
        source.realise(0, 0, 10, "nobody")
    with pytest.raises(AcceptanceError, match="must not be negative"):
        source.realise(0, 0, -1, source.drafters[0])
    with pytest.raises(AcceptanceError, match="kinds is empty"):
        source.realise(0, 0, 1, source.drafters[0], [])
    if source.kinds:
        with pytest.raises(AcceptanceError, match=r"unknown kinds \['maths'\]"):
            source.realise(0, 0, 1, source.drafters[0], ["maths"])


# --- replay ---


@given(
    seed=seeds, request_id=requests, n=st.integers(1, 300), kinds=st.sampled_from([None, ["code"], ["chat"]])
)
def test_replay_is_the_recording(seed, request_id, n, kinds):
    trace = make_trace((30, 20, 25, 5, 1), (0, 1, 0, 1, 1))
    replay = TraceReplay(trace)
    entries = replay.entries(seed, request_id, n, kinds)
    chain = np.concatenate([np.arange(trace.offsets[e], trace.offsets[e + 1]) for e in entries])
    left = np.concatenate(
        [trace.offsets[e + 1] - np.arange(trace.offsets[e], trace.offsets[e + 1]) for e in entries]
    )
    got = replay.realise(seed, request_id, n, "look", kinds)
    recorded = trace.drafters["look"]
    assert recorded.run_length is not None
    np.testing.assert_array_equal(got.run_length, np.minimum(recorded.run_length[chain], left)[:n])
    np.testing.assert_array_equal(got.top1_prob, recorded.top1_prob[chain[:n]].astype(np.float32))
    np.testing.assert_array_equal(got.entropy_nats, recorded.entropy_nats[chain[:n]].astype(np.float32))
    # No run crosses a seam, all entries are of one kind, no more of them than needed.
    assert (got.run_length <= left[:n]).all()
    assert len({int(trace.kind[e]) for e in entries}) == 1
    assert kinds is None or {trace.kinds[trace.kind[e]] for e in entries} == set(kinds)
    assert len(chain) >= n > len(chain) - trace.lengths[entries[-1]]
    assert all(a != b for a, b in pairwise(entries))


@given(
    seed=seeds,
    request_id=requests,
    n=st.integers(1, 200),
    gamma=st.integers(0, 16),
    start=st.integers(0, 199),
)
def test_a_round_accepts_min_of_gamma_and_run_whatever_came_before(seed, request_id, n, gamma, start):
    """Walking by any speculation length sees what the recording says at the positions it visits."""
    trace = make_trace((40, 25, 31), (0, 0, 0))
    got = TraceReplay(trace).realise(seed, request_id, n, "look").run_length
    matches_needed = round_starts(got, gamma, min(start, n - 1))
    committed = min(start, n - 1)
    for s in matches_needed:
        assert s == committed
        committed += min(gamma, int(got[s])) + 1
    assert committed >= n


@given(seed=seeds, request_id=requests, n=st.integers(1, 120))
def test_prefix_only_drafters_match_where_u_is_below_a(seed, request_id, n):
    trace = make_trace((30, 20, 25), (0, 0, 0))
    replay = TraceReplay(trace)
    entries = replay.entries(seed, request_id, n)
    chain = np.concatenate([np.arange(trace.offsets[e], trace.offsets[e + 1]) for e in entries])
    ends = np.concatenate(
        [
            np.full(trace.lengths[e], m)
            for e, m in zip(entries, np.cumsum(trace.lengths[entries]), strict=True)
        ]
    )
    accept_prob = trace.drafters["model"].accept_prob
    assert accept_prob is not None
    accept = accept_prob[chain]
    match = [uniform(seed, Stream.ACCEPTANCE_MATCH, request_id, i) < a for i, a in enumerate(accept)]
    run = replay.realise(seed, request_id, n, "model").run_length
    for s in range(n):
        expected = 0
        while s + expected < ends[s] and match[s + expected]:
            expected += 1
        assert run[s] == expected


def test_all_drafters_see_the_same_request():
    """The pick does not depend on the drafter: mark each position by its confidence and compare."""
    lengths, total = (30, 20, 25), 75
    mark = (np.arange(total) / 128).astype(np.float16)
    run = np.zeros(total, np.uint8)
    drafters = {d: DrafterTrace(run, None, mark, mark) for d in ("a", "b")}
    drafters["c"] = DrafterTrace(None, np.zeros(total, np.float32), mark, mark)
    trace = make_trace(lengths, drafters=drafters, card=card(("a", "b", "c")))
    replay = TraceReplay(trace)
    seen = set()
    for request in range(60):
        marks = [replay.realise(7, request, 70, d).top1_prob.tolist() for d in "abc"]
        assert marks[0] == marks[1] == marks[2]
        seen.add(marks[0][0])
    assert seen == {0.0, 30 / 128, 50 / 128}  # every entry is used, from its first position


def test_entries_are_picked_uniformly():
    trace = make_trace((30, 20, 25, 10), (0, 1, 0, 1))
    replay = TraceReplay(trace)
    counts = np.bincount([replay.entries(3, r, 1)[0] for r in range(4000)], minlength=4)
    assert (np.abs(counts - 1000) < 4 * math.sqrt(4000 * 0.25 * 0.75)).all()
    second = np.bincount([replay.entries(3, r, 60, ["code"])[1] for r in range(1000)], minlength=4)
    assert second[1] == second[3] == 0
    assert second[0] + second[2] == 1000


@given(seed=seeds, request_id=requests)
def test_picks_are_addressed_by_counter(seed, request_id):
    """The address of every pick is part of the reproducibility contract."""
    trace = make_trace((10, 10, 10, 10), (0, 0, 1, 0))
    picks = TraceReplay(trace).entries(seed, request_id, 80, ["code"])
    code = [0, 1, 3]
    u = [uniform(seed, Stream.ACCEPTANCE_PICK, request_id, i) for i in range(8)]
    expected = [code[int(u[0] * 3)]]
    for draw in u[1:]:
        place = code.index(expected[-1])
        expected.append(code[(place + 1 + int(draw * 2)) % 3])
    assert picks == expected


def test_replay_of_a_kind_that_is_not_there():
    with pytest.raises(TraceError, match="it has: code, chat"):
        TraceReplay(make_trace(), ["maths"])


def test_narrowed_replay_refuses_the_other_kinds():
    replay = TraceReplay(make_trace(), ["chat"])
    assert replay.kinds == ("chat",)
    with pytest.raises(AcceptanceError, match="unknown kinds"):
        replay.realise(0, 0, 5, "look", ["code"])


# --- closed forms ---


@pytest.mark.parametrize("gamma", [0, 1, 3, 8])
@pytest.mark.parametrize("alpha", [0.0, 0.2, 0.7, 0.95, 1.0])
def test_iid_tokens_per_round_meet_the_closed_form(alpha, gamma):
    source = IidAcceptance(alpha)
    rounds = []
    for request in range(40):
        run = source.realise(11, request, 500, "draft").run_length
        starts = np.array(round_starts(run, gamma))
        rounds.append(np.minimum(run[starts], gamma) + 1)
    tokens = np.concatenate(rounds)
    expected = expected_tokens_iid(alpha, gamma)
    if alpha in (0.0, 1.0) or gamma == 0:
        assert (tokens == expected).all()
    else:
        assert abs(tokens.mean() - expected) < 4 * tokens.std() / math.sqrt(len(tokens))


def test_edges_of_alpha():
    assert (IidAcceptance(0.0).realise(0, 0, 50, "draft").run_length == 0).all()
    assert (IidAcceptance(1.0).realise(0, 0, 50, "draft").run_length == MAX_RUN_LENGTH).all()
    assert expected_tokens_iid(1.0, 7) == 8.0
    assert expected_tokens_iid(0.0, 7) == 1.0
    assert expected_tokens_iid(0.5, 2) == pytest.approx(1.75)
    for alpha, gamma in ((-0.1, 1), (1.1, 1), (0.5, -1), (float("nan"), 1)):
        with pytest.raises(ValueError, match="must"):
            expected_tokens_iid(alpha, gamma)


def test_higher_alpha_never_shortens_a_run_of_the_same_request():
    runs = [IidAcceptance(a).realise(5, 3, 300, "draft").run_length for a in (0.1, 0.5, 0.9, 1.0)]
    for low, high in pairwise(runs):
        assert (low <= high).all()


def test_positional_has_the_survival_it_was_given():
    source = PositionalAcceptance((0.8, 0.5, 0.9))
    runs = np.concatenate([source.realise(1, r, 1000, "draft").run_length for r in range(40)])
    for j, expected in enumerate((0.8, 0.4, 0.36, 0.324), start=1):
        assert abs((runs >= j).mean() - expected) < 4 * math.sqrt(expected * (1 - expected) / len(runs))
    certain = PositionalAcceptance((1.0,)).realise(0, 0, 20, "draft").run_length
    assert (certain == MAX_RUN_LENGTH).all()
    never = PositionalAcceptance((1.0, 0.0)).realise(0, 0, 20, "draft").run_length
    assert (never == 1).all()


@pytest.mark.parametrize(
    ("after_match", "after_mismatch"), [(0.9, 0.3), (0.2, 0.8), (0.5, 0.5), (0.0, 1.0), (1.0, 0.5)]
)
def test_markov_has_the_transitions_it_was_given(after_match, after_mismatch):
    source = MarkovAcceptance(after_match, after_mismatch)
    match = np.concatenate([source.realise(2, r, 2000, "draft").run_length > 0 for r in range(20)])
    inner = np.ones(len(match), bool)
    inner[::2000] = False
    before, here = match[:-1][inner[1:]], match[1:][inner[1:]]
    for given_match, expected in ((True, after_match), (False, after_mismatch)):
        chosen = here[before == given_match]
        if len(chosen):
            tolerance = 4 * math.sqrt(expected * (1 - expected) / len(chosen))
            assert abs(chosen.mean() - expected) <= tolerance
    if 0 < source.stationary < 1:
        assert abs(match.mean() - source.stationary) < 0.03


def test_markov_steps_equal_a_loop():
    for pair in ((0.9, 0.3), (0.2, 0.8)):
        source = MarkovAcceptance(*pair)
        run = source.realise(4, 9, 200, "draft").run_length
        state = uniform(4, Stream.ACCEPTANCE_MATCH, 9, 0) < source.stationary
        for i in range(200):
            if i:
                state = uniform(4, Stream.ACCEPTANCE_MATCH, 9, i) < (pair[0] if state else pair[1])
            assert (run[i] > 0) == state


@pytest.mark.parametrize(
    "build",
    [
        lambda: IidAcceptance(1.1),
        lambda: IidAcceptance(float("nan")),
        lambda: IidAcceptance(0.5, label="guessed"),  # type: ignore[arg-type]
        lambda: IidAcceptance(0.5, drafters=()),
        lambda: IidAcceptance(0.5, drafters=("a", "a")),
        lambda: PositionalAcceptance(()),
        lambda: PositionalAcceptance((0.5, -0.1)),
        lambda: MarkovAcceptance(1.0, 0.0),
        lambda: MarkovAcceptance(2.0, 0.5),
        lambda: PerDrafterAcceptance({}),
        lambda: PerDrafterAcceptance({"a": (IidAcceptance(0.5), "other")}),
    ],
)
def test_impossible_parameters(build):
    with pytest.raises(AcceptanceError):
        build()


# --- fits and figures ---


def iid_trace(alpha, requests_=60, n=200, cap=16):
    """A run-length recording of i.i.d. acceptance, limited as a real one is."""
    source = IidAcceptance(alpha)
    runs = [np.minimum(source.realise(0, r, n, "draft").run_length, cap) for r in range(requests_)]
    total = requests_ * n
    flat = np.full(total, 0.5, np.float16)
    return TraceSet(
        name="iid",
        kinds=("any",),
        offsets=np.arange(0, total + 1, n, dtype=np.int64),
        kind=np.zeros(requests_, np.uint8),
        prompt_tokens=np.ones(requests_, np.int32),
        drafters={"d": DrafterTrace(np.concatenate(runs).astype(np.uint8), None, flat, flat)},
        card=card(("d",), gamma_max=cap, label="synthetic"),
    )


def test_fits_recover_what_made_the_recording():
    trace = iid_trace(0.8)
    iid = IidAcceptance.fit(trace, "d")
    assert iid.alpha == pytest.approx(0.8, abs=0.02)
    assert (iid.label, iid.drafters) == ("fitted", ("d",))
    markov = MarkovAcceptance.fit(trace, "d")
    assert markov.after_match == pytest.approx(0.8, abs=0.03)
    assert markov.after_mismatch == pytest.approx(0.8, abs=0.03)
    places = PositionalAcceptance.fit(trace, "d").accept_by_place
    assert len(places) == 16
    assert places[:6] == pytest.approx([0.8] * 6, abs=0.05)


def test_positional_fit_has_the_recorded_distribution_of_runs():
    trace = make_trace((400, 300), (0, 1), card=card())
    fitted = PositionalAcceptance.fit(trace, "look", min_samples=1)
    run = trace.drafters["look"].run_length
    assert run is not None
    recorded = [(run >= j).mean() for j in range(1, len(fitted.accept_by_place) + 1)]
    np.testing.assert_allclose(fitted.survival()[: len(recorded)], recorded)


def test_fit_of_a_prefix_only_drafter():
    accept = np.full(100, 0.6, np.float32)
    flat = np.full(100, 0.5, np.float16)
    trace = make_trace(
        (60, 40), (0, 1), drafters={"m": DrafterTrace(None, accept, flat, flat)}, card=card(("m",))
    )
    assert IidAcceptance.fit(trace, "m").alpha == pytest.approx(0.6)
    markov = MarkovAcceptance.fit(trace, "m")
    assert (markov.after_match, markov.after_mismatch) == pytest.approx((0.6, 0.6))
    np.testing.assert_allclose(
        expected_run_survival(accept[:3], 2), [[0.6, 0.36], [0.6, 0.36], [0.6, 0.0]], rtol=1e-6
    )
    examined, accepted = hazards(trace, "m")
    np.testing.assert_allclose(accepted / examined, 0.6, rtol=1e-6)


def test_figures_of_a_recording_done_by_hand():
    run = [2, 1, 0, 0, 3, 1]
    assert round_starts(run, 1) == [0, 2, 3, 4]
    assert tokens_per_round(run, 1) == pytest.approx((2 + 1 + 1 + 2) / 4)
    assert tokens_per_round(run, 16) == pytest.approx((3 + 1 + 4) / 3)
    assert tokens_per_round(run, 1, [0, 4, 6]) == pytest.approx((2 + 1 + 1 + 2) / 4)
    assert tokens_per_round(run, 0) == 1.0
    assert tokens_at_random_start(run, 2) == pytest.approx((3 + 2 + 1 + 1 + 3 + 2) / 6)
    assert acceptance_rate(run, 1) == pytest.approx(2 / 4)
    assert saturation_share(run, 3) == pytest.approx(1 / 6)
    assert run_continuation_share(run, [0, 6]) == pytest.approx(2 / 3)
    assert math.isnan(run_continuation_share([0, 0], [0, 2]))
    with pytest.raises(ValueError, match="without drafts"):
        acceptance_rate(run, 0)


def test_summary_of_a_kind():
    trace = make_trace((400, 300), (0, 1))
    figures = summary(trace, "look", (1, 4), ["chat"])
    assert figures["requests"] == 1
    assert figures["positions"] == 300
    run = trace.drafters["look"].run_length
    assert run is not None
    run = run[400:]
    assert figures["tokens_per_round@4"] == pytest.approx(tokens_per_round(run, 4))
    expected = summary(trace, "model", (2,), ["chat"])  # prefix-only: expectations
    accept = trace.drafters["model"].accept_prob
    assert accept is not None
    assert expected["first_draft_accepted"] == pytest.approx(float(accept[400:].mean()))
    assert expected["tokens_per_round@2"] == pytest.approx(expected_tokens_per_round(accept[400:], 2))
    assert expected["continuation"] == 1.0
    with pytest.raises(TraceError, match="unknown drafter"):
        summary(trace, "nobody")


def test_per_drafter_delegates_and_takes_the_weakest_label():
    replay = TraceReplay(make_trace((30, 20), (0, 1)))
    both = PerDrafterAcceptance({"edge": (replay, "look"), "cloud": (IidAcceptance(0.9, "fitted"), "draft")})
    assert both.label == "fitted"
    assert both.kinds == ("code", "chat")
    np.testing.assert_array_equal(
        both.realise(0, 1, 20, "edge", ["chat"]).run_length,
        replay.realise(0, 1, 20, "look", ["chat"]).run_length,
    )
    assert PerDrafterAcceptance({"edge": (replay, "look")}).label == "measured"


@pytest.mark.benchmark
@pytest.mark.parametrize("name", SOURCES)
def test_a_request_is_realised_in_a_tenth_of_a_millisecond(name):
    source = SOURCES[name]
    drafter = source.drafters[0]
    best = math.inf
    for _ in range(5):
        begin = time.perf_counter()
        for request in range(200):
            source.realise(0, request, 150, drafter)
        best = min(best, (time.perf_counter() - begin) / 200)
    assert best < 100e-6, f"{best * 1e6:.0f} µs"


def test_a_chain_goes_on_with_the_run_of_its_beginning_as_far_as_that_is_known() -> None:
    run = np.array([3, 5, 0, 16, 2, 7], dtype=np.int32)
    zeros = np.zeros(6, dtype=np.float32)
    dependent = AcceptanceRealisation(run, zeros, zeros, longest_run=16)
    assert dependent.run_at(0, 0) == 3
    assert dependent.run_at(2, 0) == 1, "what is left of three"
    assert dependent.run_at(3, 0) == 0, "and nothing of it is left"
    guessing = replace(dependent, guess=np.ones(6, bool))
    assert [guessing.run_at(i, 0) for i in (2, 3, 5)] == [1, 0, 7], "a right guess leads beyond its end"
    assert dependent.run_at(5, 3) == 7, "a run of 16 may be longer in truth: the present position's"
    by_prefix = AcceptanceRealisation(run, zeros, zeros)
    assert by_prefix.run_at(2, 0) == 0, "where it started does not matter"


def test_without_a_column_of_its_own_a_guess_is_right_where_a_draft_is() -> None:
    zeros = np.zeros(6, dtype=np.float32)
    by_prefix = AcceptanceRealisation(np.array([1, 0, 3, 2, 1, 0], np.int32), zeros, zeros)
    assert [by_prefix.guessed_at(i, 0) for i in range(8)] == [True, False, True, True, True, *[False] * 3]
    assert by_prefix.guessed_after(2, 2, 2) and not by_prefix.guessed_after(2, 3, 2)
    dependent = AcceptanceRealisation(np.array([3, 0, 0, 16, 0, 9], np.int32), zeros, zeros, longest_run=16)
    assert dependent.guessed_at(2, 0) and not dependent.guessed_at(3, 0), "what is left of three"
    assert dependent.guessed_after(0, 2, 0) and not dependent.guessed_after(0, 3, 0)
    # A run of 16 from position 3 covers position 4, where one that began anew would have nothing.
    assert dependent.guessed_after(3, 1, 3)
    assert not dependent.guessed_after(3, 3, 3), "beyond the output"


def test_a_guess_with_a_column_of_its_own_is_asked_behind_a_window_that_is_all_right() -> None:
    run, zeros = np.array([2, 1, 0, 1, 0], np.int32), np.zeros(5, dtype=np.float32)
    guess = np.array([False, True, True, True, True])
    drawn = AcceptanceRealisation(run, zeros, zeros, guess=guess)
    assert [drawn.guessed_at(i, 0) for i in range(6)] == [*guess.tolist(), False]
    assert drawn.guessed_after(0, 2, 0), "both drafts, then the guess, though a draft there would be wrong"
    assert not drawn.guessed_after(0, 3, 0), "the third draft is wrong"
    assert not drawn.guessed_after(3, 2, 3), "beyond the output"


def test_guesses_are_draws_of_their_own_by_the_probability_that_was_recorded() -> None:
    trace = make_trace((30, 20, 25), (0, 0, 0))
    model = trace.drafters["model"]
    assert model.accept_prob is not None
    share = np.linspace(0.2, 1.0, 75, dtype=np.float32)
    model = replace(model, draft_prob=model.accept_prob * share)
    trace = replace(trace, drafters={"look": trace.drafters["look"], "model": model})
    replay, n = TraceReplay(trace), 70
    assert replay.realise(5, 1, n, "look").guess is None
    right = wrong = expected = 0.0
    for request in range(300):
        realised = replay.realise(5, request, n, "model")
        assert realised.guess is not None and model.draft_prob is not None
        picked = [range(*trace.offsets[e : e + 2].tolist()) for e in replay.entries(5, request, n)]
        at = np.concatenate(picked)[:n]
        draws = [uniform(5, Stream.ACCEPTANCE_GUESS, request, i) for i in range(n)]
        np.testing.assert_array_equal(realised.guess, draws < model.draft_prob[at])
        np.testing.assert_array_equal(realised.guess[:9], replay.realise(5, request, 9, "model").guess)
        accepted = realised.run_length > 0
        right += (realised.guess & accepted).sum()
        wrong += realised.guess.sum()
        expected += float((model.draft_prob[at] * model.accept_prob[at]).sum())
    assert right == pytest.approx(expected, rel=0.05), "independent of whether a verified draft is accepted"
    assert wrong > right


def test_hits_by_fanout_count_where_drafts_are_rejected() -> None:
    trace = make_trace((3, 2), (0, 1))
    accept = np.array([1.0, 0.5, 0.0, 0.25, 0.75], np.float32)
    model = replace(
        trace.drafters["model"],
        accept_prob=accept,
        draft_prob=accept / 2,
        rank=np.array([1, 2, 9, 1, 3], np.uint8),
    )
    trace = replace(trace, drafters={"look": trace.drafters["look"], "model": model})
    # Rejected: 0, 0.5, 1, 0.75, 0.25 of a time.
    assert fanout_hits(trace, "model", (1, 2, 8)) == pytest.approx([1.25 / 2.5, 1.5 / 2.5, 1.0])
    assert fanout_hits(trace, "model", (1,), ["chat"]) == pytest.approx([0.75])
    assert guess_rate(trace, "model") == pytest.approx(0.25)
    assert guess_rate(trace, "model", ["code"]) == pytest.approx(0.25)
    assert guess_rate(trace, "look") is None and fanout_hits(trace, "look", (1,)) is None
    runs = replace(trace.drafters["look"], run_length=np.array([2, 1, 0, 1, 0], np.uint8), rank=model.rank)
    trace = replace(trace, drafters={"look": runs, "model": model})
    assert fanout_hits(trace, "look", (1, 2, 8)) == pytest.approx([0.0, 0.5, 1.0])


@given(
    accept=st.lists(st.floats(0.0, 1.0, width=32), min_size=1, max_size=8),
    gamma=st.integers(1, 5),
)
def test_expected_tokens_per_round_is_what_all_outcomes_average_to(accept, gamma):
    """Against brute force: every pattern of matches, weighted by its probability."""
    n = len(accept)
    tokens = rounds = 0.0
    for pattern in range(2**n):
        matches = np.array([bool(pattern >> i & 1) for i in range(n)])
        weight = float(np.prod(np.where(matches, accept, 1.0 - np.array(accept, dtype=np.float64))))
        runs = run_lengths(matches)
        starts = round_starts(runs, gamma)
        rounds += weight * len(starts)
        tokens += weight * (int(np.minimum(runs[starts], gamma).sum()) + len(starts))
    assert expected_tokens_per_round(np.array(accept, np.float32), gamma) == pytest.approx(tokens / rounds)


def test_expected_tokens_per_round_counts_entries_apart_and_meets_realisations():
    trace = make_trace((2000, 1500), (0, 1))
    accept = trace.drafters["model"].accept_prob
    assert accept is not None
    whole = expected_tokens_per_round(accept, 4, trace.offsets)
    runs = [realised_runs(trace, "model", seed) for seed in range(20)]
    assert tokens_per_round(np.concatenate(runs[:1]), 4, trace.offsets) != tokens_per_round(
        runs[1], 4, trace.offsets
    )
    mean = np.mean([tokens_per_round(r, 4, trace.offsets) for r in runs])
    assert mean == pytest.approx(whole, rel=0.01)
    certain = np.ones(10, np.float32)
    assert expected_tokens_per_round(certain, 4, [0, 10]) == pytest.approx(5.0)  # two rounds
    assert expected_tokens_per_round(np.zeros(10, np.float32), 4) == 1.0
    recorded = trace.drafters["look"].run_length
    assert recorded is not None
    np.testing.assert_array_equal(realised_runs(trace, "look"), recorded)


def test_autocorrelation_and_means_stay_within_requests():
    values, offsets = np.array([1.0, 0, 1, 0, 5, 5, 5, 5]), [0, 4, 8]
    np.testing.assert_allclose(mean_by_request(values, offsets), [0.5, 5.0])
    found = autocorrelation(values, offsets, [1, 3, 4])
    centred = values - values.mean()
    pairs = [(0, 1), (1, 2), (2, 3), (4, 5), (5, 6), (6, 7)]
    assert found[0] == pytest.approx(np.mean([centred[a] * centred[b] for a, b in pairs]) / centred.var())
    assert found[1] == pytest.approx(
        np.mean([centred[0] * centred[3], centred[4] * centred[7]]) / centred.var()
    )
    assert math.isnan(found[2])  # no request is that long
    assert math.isnan(autocorrelation(np.ones(4), [0, 4], [1])[0])
