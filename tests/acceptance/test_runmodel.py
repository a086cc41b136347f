"""Fitted generative models: the file format, drawing from a model, the fit, and both engines."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsd_env.acceptance import (
    TraceError,
    TraceReplay,
    available_run_models,
    expected_tokens_iid,
    generate_pool,
    load_pool,
    load_run_model,
    tokens_per_round,
)
from dsd_env.acceptance.runmodel import (
    AGES,
    ModelCard,
    RequestClass,
    RunModel,
    RunProcess,
    RunState,
    Unseen,
    class_given_length,
    move_row,
    pick_classes,
    simulate_runs,
)
from dsd_env.calibration.acceptance.compare import GAMMAS, cut, iid_alpha, simulate_like, statistics_of
from dsd_env.calibration.acceptance.importers import import_specdecode_bench
from dsd_env.calibration.acceptance.runfit import (
    fit_process,
    fit_unseen,
    held_out_log_likelihood,
    log_likelihood,
    subset,
)
from dsd_env.scenario import ScenarioError, load_scenario
from dsd_env.sim.world import WorldBuilder
from tests.engines import assert_engines_agree
from tests.scenarios import TINY

LONGEST = 12


def state(accept=0.7, same=0.6, later=0.25, before=0.4, longest=LONGEST) -> RunState:
    rows = move_row(longest, longest) + 1
    # Nothing lies before the token that ended a run of one, so its row has no third way.
    first = later + (1.0 - same - later)
    return RunState(
        accept_fresh=(accept,) * longest,
        accept_beyond=(accept,) * longest,
        end_before=(before,) * longest,
        same_token=((same,) * rows,) * AGES,
        later_token=((first, *(later,) * (rows - 1)),) * AGES,
    )


def renewal(accept: float, longest=LONGEST) -> RunState:
    return state(accept, same=1.0, later=0.0, longest=longest)


def group(weight, *states, start=None, transition=None, length=4.0) -> RequestClass:
    n = len(states)
    return RequestClass(
        weight=weight,
        log_length_mean=length,
        log_length_sd=0.5,
        start=start or (1.0 / n,) * n,
        transition=transition or tuple(tuple(float(i == j) for j in range(n)) for i in range(n)),
        states=states,
    )


def process(*classes, back=0.0, over=0.0) -> RunProcess:
    return RunProcess(classes=classes, return_to_hard_token=((back,),), pass_hard_token=((over,),))


def model(name="made-up", **processes) -> RunModel:
    processes = processes or {
        "code": process(group(0.5, state(0.5)), group(0.5, state(0.9))),
        "chat": process(group(1.0, state(0.3))),
    }
    return RunModel(
        format_version=1,
        name=name,
        label="fitted",
        longest_run=LONGEST,
        card=ModelCard(
            target="a target",
            drafters={"head": "a head"},
            data="none",
            licence="Apache-2.0",
            method="made up",
            command="none",
            date="2026-01-01",
        ),
        processes={kind: {"head": p} for kind, p in processes.items()},
    )


# ---------------------------------------------------------------------- the law


@given(
    accept=st.floats(0.0, 1.0),
    same=st.floats(0.01, 1.0),
    split=st.floats(0.0, 1.0),
    before=st.floats(0.0, 1.0),
    longest=st.integers(1, 20),
)
def test_every_row_is_a_distribution(accept, same, split, before, longest):
    table = state(accept, same, (1 - same) * split, before, longest).table()
    assert table.shape == (AGES, longest + 1, longest + 1)
    np.testing.assert_allclose(table.sum(axis=-1), 1.0)
    assert (table >= 0.0).all()
    for p in range(1, longest + 1):  # staying on the token is what `same` says, whatever else happens
        np.testing.assert_allclose(table[:, p, p - 1], same, atol=1e-9)


def test_a_renewal_model_has_the_tokens_per_round_of_its_acceptance():
    p = process(group(1.0, renewal(0.7, 40)))
    runs = simulate_runs(p, 40, np.zeros(200, np.int64), np.full(200, 2000), 3)
    bounds = np.arange(201) * 2000
    for gamma in (1, 4, 16):  # i.i.d. matches: the closed form
        assert tokens_per_round(runs, gamma, bounds) == pytest.approx(
            expected_tokens_iid(0.7, gamma), rel=0.01
        )
    assert iid_alpha(runs, 40) == pytest.approx(0.7, abs=0.005)
    inner = runs.reshape(200, 2000)
    after = inner[:, :-1] > 0
    assert (inner[:, 1:][after] == inner[:, :-1][after] - 1).all()


def test_a_hard_token_is_come_back_to_and_passed():
    # A run of exactly 6 first; then always before the hard token unless it is returned to or passed.
    first = RunState(
        accept_fresh=(1.0,) * 6 + (0.0,) * (LONGEST - 6),
        accept_beyond=(1.0,) * LONGEST,
        end_before=(1.0,) * LONGEST,
        same_token=((0.5,) * (move_row(LONGEST, LONGEST) + 1),) * AGES,
        later_token=((0.5, *(0.0,) * move_row(LONGEST, LONGEST)),) * AGES,
    )
    for back, over in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0)):
        p = process(group(1.0, first), back=back, over=over)
        runs = simulate_runs(p, LONGEST, np.zeros(4000, np.int64), np.full(4000, 3), 1).reshape(-1, 3)
        assert (runs[:, 0] == 6).all()
        np.testing.assert_allclose((runs[:, 1] == 5).mean(), 0.5, atol=0.03)
        fell_short = runs[runs[:, 1] < 5]
        assert len(fell_short) > 1500
        if back:
            assert (fell_short[:, 2] == 4).all()
        elif over:
            assert (fell_short[:, 2] > 4).all()
        else:
            assert (fell_short[:, 2] != 4).any()


def test_age_makes_the_same_token_likelier_to_stay():
    rows = move_row(LONGEST, LONGEST) + 1
    ages = tuple((same,) * rows for same in (0.2, 0.9, 0.9, 0.9))
    rest = tuple((1.0 - row[0],) * rows for row in ages)
    aging = state().model_copy(update={"same_token": ages, "later_token": rest})
    runs = simulate_runs(process(group(1.0, aging)), LONGEST, np.zeros(400, np.int64), np.full(400, 100), 5)
    x = runs.reshape(400, 100)
    inner = (x[:, :-2] >= 2) & (x[:, 1:-1] >= 1)
    kept = x[:, 1:-1] == x[:, :-2] - 1
    keeps = x[:, 2:] == x[:, 1:-1] - 1
    assert keeps[inner & kept].mean() == pytest.approx(0.9, abs=0.02)
    assert keeps[inner & ~kept].mean() == pytest.approx(0.2, abs=0.02)


def test_a_longer_request_begins_with_the_shorter_one_and_others_do_not_matter():
    p = model().processes["code"]["head"]
    classes = np.array([0, 1, 1])
    long = simulate_runs(p, LONGEST, classes, np.array([50, 80, 60]), 7)
    short = simulate_runs(p, LONGEST, classes[:2], np.array([20, 30]), 7)
    np.testing.assert_array_equal(short, np.concatenate([long[:20], long[50:80]]))
    assert (simulate_runs(p, LONGEST, classes[:2], np.array([20, 30]), 8) != short).any()


def test_class_by_length():
    p = process(group(0.5, state(), length=3.0), group(0.5, state(), length=6.0))
    law = class_given_length(p, np.array([20, 400]))
    np.testing.assert_allclose(law.sum(axis=1), 1.0)
    assert law[0, 0] > 0.99 and law[1, 1] > 0.99
    assert pick_classes(np.array([0.25, 0.75]), np.array([0.1, 0.24, 0.26, 0.999])).tolist() == [0, 0, 1, 1]


# ---------------------------------------------------------------------- pool


def test_pool(tmp_path):
    made = model()
    pool = generate_pool(made, entries=40, positions=64)
    again = generate_pool(made, entries=40, positions=64)
    np.testing.assert_array_equal(pool.drafters["head"].run_length, again.drafters["head"].run_length)
    other = generate_pool(made, entries=40, positions=64, seed=1)
    assert (pool.drafters["head"].run_length != other.drafters["head"].run_length).any()
    assert pool.label == "fitted" and pool.gamma_max == LONGEST
    assert pool.kinds == ("code", "chat") and pool.n_entries == 80 and set(pool.lengths) == {64}
    for column in (pool.drafters["head"].top1_prob, pool.drafters["head"].entropy_nats):
        assert len(set(column.tolist())) == 1  # nothing a confidence rule could peek at
    # Half of the requests of `code` are of the easy class, and both classes are spread over the pool.
    means = pool.drafters["head"].run_length[: 40 * 64].reshape(40, 64).mean(axis=1)
    assert 15 <= (means > 2.5).sum() <= 25
    assert 3 <= (means[:20] > 2.5).sum() <= 17
    pool.save(tmp_path)  # a pool is a trace set like any other
    assert TraceReplay(pool).realise(0, 0, 100, "head", ["chat"]).run_length.shape == (100,)
    with pytest.raises(ValueError, match="positive"):
        generate_pool(made, entries=0)


def sampled(name="sampled") -> RunModel:
    """Return a model of a sampling drafter: what the target chose without a draft is guessed less often."""
    made = model(name)
    processes = {
        kind: {"head": group["head"].model_copy(update={"unseen": Unseen(where_right=w, where_wrong=0.1)})}
        for (kind, group), w in zip(made.processes.items(), (0.5, 0.8), strict=True)
    }
    return made.model_copy(update={"processes": processes})


def test_a_pool_of_a_sampling_drafter_has_guesses(tmp_path):
    assert generate_pool(model(), entries=2, positions=8).drafters["head"].draft_prob is None
    made = load_run_model(sampled().save(tmp_path))
    assert made == sampled()
    pool = generate_pool(made, entries=30, positions=64)
    head = pool.drafters["head"]
    np.testing.assert_array_equal(
        head.run_length, generate_pool(model("sampled"), 30, 64).drafters["head"].run_length
    )
    for kind, where_right in (("code", 0.5), ("chat", 0.8)):
        at = pool.positions_of([kind])
        expected = np.where(head.run_length[at] > 0, where_right, 0.1).astype(np.float32)
        np.testing.assert_array_equal(head.draft_prob[at], expected)
    realised = TraceReplay(pool).realise(0, 0, 3000, "head", ["chat"])
    right = realised.run_length > 0
    assert realised.guess[right].mean() == pytest.approx(0.8, abs=0.05)
    assert realised.guess[~right].mean() == pytest.approx(0.1, abs=0.05)


def test_guesses_are_fitted_to_what_a_verified_draft_would_meet():
    rng = np.random.default_rng(0)
    accept = rng.random(50_000)
    guess = accept * rng.random(50_000)
    match = rng.random(50_000) < accept
    found = fit_unseen(accept, guess)
    assert found.where_right == pytest.approx(guess[match].mean(), abs=0.01)
    assert found.where_wrong == pytest.approx(guess[~match].mean(), abs=0.01)
    both = accept.mean() * found.where_right + (1.0 - accept.mean()) * found.where_wrong
    assert both == pytest.approx(guess.mean(), abs=1e-4), "the share of right guesses is the recorded one"
    assert fit_unseen(np.ones(3), np.array([0.2, 0.4, 0.6])).where_wrong == 0.4, "never asked for"
    with pytest.raises(ValueError, match="a value per accept_prob"):
        fit_unseen(np.ones(3), np.ones(2))


# ---------------------------------------------------------------------- files


def test_round_trip(tmp_path):
    made = model()
    path = made.save(tmp_path)
    assert load_run_model(path) == made
    assert made.save(tmp_path / "again").read_bytes() == path.read_bytes()
    assert [p.name for p in tmp_path.glob("*.json")] == ["made-up.json"]
    assert load_pool(path) is load_pool(str(path))
    with pytest.raises(TraceError, match=r"unknown kind 'x'; it has: code, chat"):
        made.process("x", "head")
    with pytest.raises(TraceError, match=r"unknown drafter 'x'; it has: head"):
        made.process("code", "x")


def changed(data, path, value):
    *parents, last = path
    inner = data
    for key in parents:
        inner = inner[key]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return data


CODE = ("processes", "code", "head")
CLASS = (*CODE, "classes", 0)
STATE = (*CLASS, "states", 0)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("format_version",), 2, "format_version is 2"),
        (("label",), "measured", "label"),
        (("surprise",), 1, "surprise.*Extra"),
        (("card", "date"), "yesterday", r"card\.date"),
        (("card", "licence"), ..., r"card\.licence"),
        (("longest_run",), 0, "longest_run"),
        (("longest_run",), 300, "longest_run"),
        (("longest_run",), 7, "must have longest_run = 7 values"),
        (("card", "drafters"), {}, "card.drafters is empty"),
        (("card", "drafters"), {"other": "x"}, r"must have the drafters \['other'\]"),
        ((*CLASS, "weight"), 0.9, "weights must sum to 1"),
        ((*CLASS, "weight"), -0.5, r"weight.*greater than or equal"),
        ((*CLASS, "log_length_sd"), 0, "log_length_sd"),
        ((*CLASS, "start"), [0.4], "start must sum to 1"),
        ((*CLASS, "transition"), [[0.5, 0.5]], "must fit the 1 states"),
        ((*STATE, "accept_fresh"), [0.5] * 3, "accept_fresh must have longest_run"),
        ((*STATE, "accept_fresh", 0), 50, r"accept_fresh\.0.*less than or equal to 1"),
        ((*STATE, "accept_fresh", 0), "x", r"accept_fresh\.0 = 'x' is not a number"),
        ((*STATE, "accept_fresh", 0), True, r"accept_fresh\.0 = True is not a number"),
        (("longest_run",), True, "longest_run = True is not a number"),
        ((*STATE, "same_token"), [[0.5]], "same_token must have 4 rows"),
        ((*STATE, "same_token", 0, 2), 0.99, "same_token . later_token is 1.24 at age 0, row 2"),
        ((*CODE, "return_to_hard_token"), [[0.5, 0.5], [0.5]], "tables of one shape"),
        ((*CODE, "pass_hard_token"), [[1.0]], None),
        ((*CODE, "unseen"), {"where_right": 1.5, "where_wrong": 0.1}, r"unseen\.where_right.*less than"),
        ((*CODE, "unseen"), {"where_right": 0.5}, r"unseen\.where_wrong.*required"),
        (
            (*CODE, "unseen"),
            {"where_right": 0.5, "where_wrong": 0.1},
            "head must have unseen for all kinds, or for none",
        ),
    ],
)
def test_damaged_files_are_named(tmp_path, path, value, message):
    data = changed(json.loads(model().save(tmp_path).read_text()), path, value)
    if message is None:
        data = changed(data, (*CODE, "return_to_hard_token"), [[0.5]])
        message = "must not be above 1"
    file = tmp_path / "bad.json"
    file.write_text(json.dumps(data))
    with pytest.raises(TraceError, match=f"(?s)bad.json.*{message}"):
        load_run_model(file)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"a": 1, "a": 2}', "[" * 100_000, "\x00", '{"format_version": NaN}']
)
def test_files_that_are_no_models(tmp_path, text):
    file = tmp_path / "bad.json"
    file.write_text(text)
    with pytest.raises(TraceError, match=r"bad\.json"):
        load_run_model(file)
    file.write_bytes(b"\xff\xfe{")
    with pytest.raises(TraceError, match=r"bad\.json"):
        load_run_model(file)


def test_random_corruption_never_raises_anything_else(tmp_path_factory):
    directory = tmp_path_factory.mktemp("models")
    good = model().save(directory).read_bytes()
    rng = np.random.default_rng(0)
    file = directory / "bad.json"
    refused = 0
    for _ in range(100):
        data = bytearray(good)
        for _ in range(int(rng.integers(1, 4))):
            at = int(rng.integers(len(data)))
            what = int(rng.integers(3))
            if what == 0:
                data[at] = int(rng.integers(256))
            elif what == 1:
                del data[at : at + int(rng.integers(1, 50))]
            else:
                del data[at:]
                break
        file.write_bytes(bytes(data))
        file_model = None
        try:
            load_run_model.__globals__["_load"].cache_clear()
            file_model = load_run_model(file)
        except TraceError as error:
            assert "bad.json" in str(error)
            refused += 1
        if file_model is not None:  # what is accepted can be drawn from
            generate_pool(file_model, entries=2, positions=8)
    assert refused > 50


# ---------------------------------------------------------------------- shipped


def test_shipped_models():
    assert "llama-3.1-8b_specdecode-bench" in available_run_models()
    for name in available_run_models():
        shipped = load_run_model(name)
        assert shipped.name == name and shipped.label in ("fitted", "published")
        for kind, group_ in shipped.card.fits.items():
            assert set(group_) == set(shipped.drafters) and kind in shipped.kinds
        pool = load_pool(name)
        assert pool.n_entries == 400 * len(shipped.kinds)


def test_the_card_of_the_specdecode_model_says_what_the_docs_say():
    card = load_run_model("llama-3.1-8b_specdecode-bench").card
    for kind, group_ in card.fits.items():
        for drafter, figures in group_.items():
            errors = np.abs(figures["tokens_error_percent"])
            # The goal is 3 %. The one miss, by 0.2 points at 12 drafts and more, is in the docs.
            assert errors.max() <= (3.3 if (kind, drafter) == ("chat", "ngram") else 3.0), (kind, drafter)
            assert errors.max() < np.abs(figures["iid_tokens_error_percent"]).max(), (kind, drafter)


def test_the_pool_has_the_tokens_per_round_that_the_data_have():
    """The figures were computed from the data when they were collected, by other code."""
    pool = load_pool("llama-3.1-8b_specdecode-bench")
    for kind, drafter, gamma, expected in (
        ("maths", "eagle", 3, 2.39),
        ("maths", "ngram", 3, 1.16),
        ("summarisation", "eagle", 5, 2.58),
        ("chat", "eagle", 3, 2.25),
    ):
        positions = pool.positions_of([kind])
        runs = pool.drafters[drafter].run_length[positions]
        bounds = np.arange(len(positions) // 512 + 1) * 512
        if kind == "maths":  # its requests are short: 165 tokens on average
            runs, bounds = cut(runs, bounds, 165)
        assert tokens_per_round(runs, gamma, bounds) == pytest.approx(expected, rel=0.05), (kind, drafter)


# ---------------------------------------------------------------------- fit


@pytest.fixture(scope="module")
def made_data():
    """Runs of a known process with two classes and two states, lengths that tell the classes."""
    easy, hard = state(0.9, same=0.7, later=0.2), state(0.4, same=0.7, later=0.1)
    stay = ((0.95, 0.05), (0.05, 0.95))
    truth = process(
        group(0.6, hard, state(0.6), transition=stay, length=4.5),
        group(0.4, state(0.7), easy, transition=stay, length=5.5),
        back=0.5,
        over=0.1,
    )
    rng = np.random.default_rng(1)
    classes = (rng.random(240) < 0.4).astype(np.int64)
    lengths = np.maximum(np.exp(rng.normal(np.where(classes == 1, 5.5, 4.5), 0.5)), 5).astype(np.int64)
    runs = simulate_runs(truth, LONGEST, classes, lengths, 11)
    return truth, runs, np.concatenate([[0], np.cumsum(lengths)])


def test_fit_finds_what_was_put_in(made_data):
    truth, runs, offsets = made_data
    seen = []
    fit = fit_process(runs, offsets, LONGEST, 2, 2, progress=lambda _, value: seen.append(value))
    # Expectation-maximisation never gets worse, but for the pull of the prior.
    assert (np.diff(seen[2:]) >= -1.0).all()
    assert fit.log_likelihood >= log_likelihood(truth, runs, offsets, LONGEST) - 20
    assert fit.process.classes[0].weight == pytest.approx(0.6, abs=0.12)
    back, over = np.array(fit.process.return_to_hard_token), np.array(fit.process.pass_hard_token)
    assert back[0, 0] == pytest.approx(0.5, abs=0.12) and over[0, 0] == pytest.approx(0.1, abs=0.12)
    wanted = statistics_of(runs, offsets, LONGEST)
    found = statistics_of(*simulate_like(fit.process, LONGEST, np.diff(offsets), 4), LONGEST)
    np.testing.assert_allclose(found.tokens_per_round, wanted.tokens_per_round, rtol=0.03)
    np.testing.assert_allclose(found.run_correlation[:4], wanted.run_correlation[:4], atol=0.05)
    assert len(wanted.tokens_per_round) == len(GAMMAS)
    # What is stored is what was fitted.
    assert log_likelihood(fit.process, runs, offsets, LONGEST) == pytest.approx(fit.log_likelihood, rel=1e-3)
    first, second = (fit_process(runs, offsets, LONGEST, 2, 2, iterations=3).process for _ in range(2))
    assert first == second


def test_held_out_likelihood_prefers_memory_where_there_is_some(made_data):
    _, runs, offsets = made_data
    plain = held_out_log_likelihood(runs, offsets, LONGEST, 1, 1, iterations=12)
    rich = held_out_log_likelihood(runs, offsets, LONGEST, 2, 2, iterations=12)
    assert rich > plain + 0.01


def test_fit_checks_what_it_is_given():
    runs = np.array([1, 2, 0, 3])
    for offsets in ([0, 3], [1, 4], [0, 2, 2, 4], [0]):
        with pytest.raises(ValueError, match="offsets"):
            fit_process(runs, np.array(offsets), 5, 1, 1)
    with pytest.raises(ValueError, match="negative"):
        fit_process(-runs, np.array([0, 4]), 5, 1, 1)
    with pytest.raises(ValueError, match="positive"):
        fit_process(runs, np.array([0, 4]), 5, 0, 1)
    part, bounds = subset(runs, np.array([0, 1, 4]), [1])
    assert part.tolist() == [2, 0, 3] and bounds.tolist() == [0, 3]


# ---------------------------------------------------------------------- scenarios, engines


def with_source(source, **kind):
    data = {k: v for k, v in TINY.items()}
    question = {**TINY["workload"]["kinds"]["question"], **kind}
    return load_scenario(
        {
            **data,
            "acceptance": {"draft": source},
            "workload": {**TINY["workload"], "kinds": {"question": question}},
            "episode": {**TINY["episode"], "requests": 10, "warmup_requests": 0},
        }
    )


@pytest.mark.parametrize("drafter", ["eagle", "ngram"])
def test_both_engines_replay_a_fitted_model(drafter):
    source = {"source": "fitted", "model": "llama-3.1-8b_specdecode-bench", "drafter": drafter}
    scenario = with_source(source, acceptance_kinds=["maths", "chat"])
    assert assert_engines_agree(scenario, "indices", 5) > 100


def test_both_engines_replay_a_sampled_model(tmp_path):
    source = {"source": "fitted", "model": str(sampled().save(tmp_path)), "drafter": "head"}
    scenario = with_source(source).model_copy()
    scenario = load_scenario({**scenario.model_dump(mode="json"), "protocol": {"kind": "pipelined"}})
    assert assert_engines_agree(scenario, "edge_sd:2", 5) > 100


def test_a_path_names_a_model_of_ones_own(tmp_path):
    path = model("mine").save(tmp_path)
    builder = WorldBuilder(with_source({"source": "fitted", "model": str(path), "drafter": "head"}))
    source, drafter = builder.build(0).sources["draft"]
    assert (source.label, source.kinds, drafter) == ("fitted", ("code", "chat"), "head")


def test_what_a_model_does_not_have_is_named():
    name = "llama-3.1-8b_specdecode-bench"
    with pytest.raises(TraceError, match=f"unknown fitted model 'nobody'; shipped are: .*{name}"):
        WorldBuilder(with_source({"source": "fitted", "model": "nobody", "drafter": "eagle"}))
    with pytest.raises(ScenarioError, match=r"drafter = 'medusa' is not in the fitted model.*eagle.*ngram"):
        WorldBuilder(with_source({"source": "fitted", "model": name, "drafter": "medusa"}))
    with pytest.raises(
        ScenarioError, match=r"acceptance_kinds = \['poems'\] is not in the fitted model.*maths"
    ):
        WorldBuilder(
            with_source({"source": "fitted", "model": name, "drafter": "eagle"}, acceptance_kinds=["poems"])
        )
    with pytest.raises(ScenarioError, match="unknown key"):
        with_source({"source": "fitted", "model": name, "drafter": "eagle", "seed": 1})


def test_replacing_the_runs_of_a_pool_is_still_checked():
    pool = load_pool("llama-3.1-8b_specdecode-bench")
    trace = pool.drafters["eagle"]
    assert trace.run_length is not None
    with pytest.raises(TraceError, match="above gamma_max"):
        replace(
            pool,
            drafters={**pool.drafters, "eagle": replace(trace, run_length=trace.run_length + np.uint8(5))},
        )


def test_the_shipped_model_meets_the_data_where_they_are(data_dir):
    path = data_dir / "accept" / "specdecode_bench" / "combined_gsm8k.jsonl"
    if not path.is_file():
        pytest.skip(f"needs {path}")
    shipped = load_run_model("llama-3.1-8b_specdecode-bench")
    for drafter in shipped.drafters:
        trace = import_specdecode_bench({"maths": path}, drafters=[drafter])
        recorded = trace.drafters[drafter].run_length
        assert recorded is not None
        drawn = simulate_like(shipped.process("maths", drafter), 20, trace.lengths, 6, seed=77)
        for gamma in (1, 4, 16):
            wanted = tokens_per_round(recorded, gamma, trace.offsets)
            assert tokens_per_round(drawn[0], gamma, drawn[1]) == pytest.approx(wanted, rel=0.03)
        figures = shipped.card.fits["maths"][drafter]
        total = log_likelihood(shipped.process("maths", drafter), recorded, trace.offsets, 20)
        assert total == pytest.approx(figures["log_likelihood"], rel=1e-4)
