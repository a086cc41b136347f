"""Published levels: the shift, the rules that find it, and whether the shipped models are what they say."""

import copy
import functools

import numpy as np
import pytest
from scipy.special import logit

from dsd_env import strict_yaml
from dsd_env.acceptance import TraceError, available_run_models, load_pool, load_run_model
from dsd_env.acceptance.runmodel import RunModel, draw_requests
from dsd_env.acceptance.stats import expected_tokens_iid, tokens_per_round
from dsd_env.calibration.acceptance.compare import statistics_of
from dsd_env.calibration.acceptance.published import (
    LONGEST_RUN,
    Facts,
    Figure,
    Publisher,
    equivalent_acceptance,
    load_facts,
    shift_process,
)
from dsd_env.paths import config_dir
from dsd_env.scenario import ScenarioError
from dsd_env.sim.world import WorldBuilder
from tests.acceptance.test_runmodel import group, process, renewal, state, with_source
from tests.engines import assert_engines_agree

FACTS = config_dir() / "acceptance" / "published.yaml"
SHIPPED = [name for name in available_run_models() if load_run_model(name).label == "published"]


def shape_model(_name: str = "shape") -> RunModel:
    """Two classes and two states a class for `chat`, a plain renewal process for `code`."""
    data = load_run_model("llama-3.1-8b_eagle3_mt-bench").model_dump(mode="json")
    hard, easy = state(0.35, longest=LONGEST_RUN), state(0.75, longest=LONGEST_RUN)
    moves = ((0.95, 0.05), (0.05, 0.95))
    chat = process(
        group(0.5, hard, easy, transition=moves),
        group(0.5, easy, renewal(0.8, LONGEST_RUN), transition=moves),
    )
    code = process(group(1.0, renewal(0.6, LONGEST_RUN)))
    data |= {"name": "shape", "longest_run": LONGEST_RUN}
    data["card"]["drafters"] = {"head": "made up"}
    data["processes"] = {
        "chat": {"head": chat.model_dump(mode="json")},
        "code": {"head": code.model_dump(mode="json")},
    }
    return RunModel.model_validate(data)


# ---------------------------------------------------------------------- the shift


def test_a_shift_moves_every_acceptance_alike_in_logits():
    chat = shape_model().process("chat", "head")
    moved = shift_process(chat, 0.8, LONGEST_RUN)
    assert moved.return_to_hard_token == chat.return_to_hard_token
    for before, after in zip(chat.classes, moved.classes, strict=True):
        assert (after.weight, after.start, after.transition) == (
            before.weight,
            before.start,
            before.transition,
        )
        for one, other in zip(before.states, after.states, strict=True):
            for name in ("accept_fresh", "accept_beyond"):
                apart = logit(getattr(other, name)) - logit(getattr(one, name))
                np.testing.assert_allclose(apart, 0.8, atol=2e-3)  # four decimals are kept
            assert (other.same_token, other.later_token, other.end_before) == (
                one.same_token,
                one.later_token,
                one.end_before,
            )
    back = shift_process(moved, -0.8, LONGEST_RUN).classes[0].states[0].accept_fresh
    np.testing.assert_allclose(back, chat.classes[0].states[0].accept_fresh, atol=2e-4)
    assert shift_process(chat, 0.0, LONGEST_RUN) == chat


def test_a_shift_of_a_renewal_process_has_a_closed_form():
    """Acceptance 0.6 is 0.4055 in logits; ln 4 is 0.8. Tokens per round are Leviathan's formula."""
    code = shift_process(shape_model().process("code", "head"), float(logit(0.8) - logit(0.6)), LONGEST_RUN)
    assert set(code.classes[0].states[0].accept_fresh) == {0.8}
    runs = draw_requests(code, LONGEST_RUN, 300, 400, 7)
    bounds = np.arange(301) * 400
    for gamma in (1, 4, 8):
        assert tokens_per_round(runs, gamma, bounds) == pytest.approx(
            expected_tokens_iid(0.8, gamma), rel=0.01
        )


def test_more_places_take_the_last_and_fewer_are_refused():
    short = process(group(1.0, renewal(0.6, 12)))
    longer = shift_process(short, 0.5, LONGEST_RUN).classes[0].states[0]
    assert len(longer.accept_fresh) == len(longer.end_before) == LONGEST_RUN
    assert longer.accept_fresh[-1] == longer.accept_fresh[0]
    with pytest.raises(ValueError, match="runs of 20 cannot become runs of 12"):
        shift_process(shape_model().process("code", "head"), 0.1, 12)


def test_equivalent_acceptance_inverts_the_formula():
    def figure(**given) -> Figure:
        return Figure(
            target="t", drafter="d", kinds=("chat",), task="x", source="s", confidence="high", **given
        )

    for alpha, gamma in ((0.0, 3), (0.5, 1), (0.83, 6), (0.97, 16)):
        tokens = expected_tokens_iid(alpha, gamma)
        found = equivalent_acceptance(figure(gamma=gamma, tokens_per_round=tokens))
        assert found == pytest.approx(alpha, abs=1e-9)
    assert figure(gamma=5, acceptance=0.65).tokens == pytest.approx(4.25)


# ---------------------------------------------------------------------- the rules


def made_up() -> str:
    return MADE_UP.replace("<rest>", "task: x, source: s, confidence: low")


MADE_UP = """
date: "2026-01-01"
sources: {s: {title: made up, url: "https://example.org", date: "2026"}}
figures:
  chat: {target: big, drafter: good, kinds: [chat], gamma: 4, tokens_per_round: 3.4, <rest>}
  code: {target: big, drafter: good, kinds: [code], gamma: 3, acceptance: 0.7, <rest>}
  both: {target: big, drafter: weak, kinds: [chat, code], gamma: 5, tokens_per_round: 2.6, <rest>}
  tree: {target: big, drafter: good, kinds: [chat], gamma: 8, tree: true, tokens_per_round: 6.0, <rest>}
  tree-code: {target: big, drafter: good, kinds: [code], gamma: 8, tree: true, tokens_per_round: 7.0, <rest>}
models:
  big_published:
    target: big
    about: made up
    pairs:
      good:
        about: made up
        shape: &shape {model: shape, drafter: head, shape_of: {maths: chat, qa: chat}}
        levels: {chat: {figure: chat}, code: {figure: code}, maths: mean, qa: {same: chat}}
      weak:
        about: made up
        shape: *shape
        levels: {chat: {mixture: both}, code: {mixture: both}, maths: {mixture: both}, qa: {mixture: both}}
      middle:
        about: made up
        shape: *shape
        levels:
          chat: &between {between: {drafters: [weak, good], sizes: [1.0, 8.0], size: 2.0}}
          code: *between
          maths: *between
          qa: *between
      head:
        about: made up
        shape: *shape
        levels:
          chat: {unshifted: chat}
          code: {ratio: {to: {drafter: good, kind: chat}, figure: tree-code, over: tree}}
          maths: &beside {as_drafter: {drafter: good, by: chat}}
          qa: *beside
  small_published:
    target: small
    about: made up
    pairs:
      good:
        about: made up
        shape: *shape
        levels:
          {chat: {as_target: big}, code: {as_target: big}, maths: {as_target: big}, qa: {as_target: big}}
"""


def facts(change=None) -> Facts:
    data = strict_yaml.loads(made_up(), "made up")
    if change is not None:
        data = copy.deepcopy(data)
        change(data)
    return Facts.model_validate(data)


@pytest.fixture(scope="module")
def publisher() -> Publisher:
    return Publisher(facts(), shape_model, entries=60, positions=128)


def test_a_figure_is_met(publisher):
    assert publisher.tokens("big", "good", "chat", (4,))[0] == pytest.approx(3.4, rel=2e-3)
    assert publisher.tokens("big", "good", "code", (3,))[0] == pytest.approx(1 + 3 * 0.7, rel=2e-3)


def test_a_mixture_is_met_by_one_shift_and_kinds_stay_apart(publisher):
    shifts = {publisher.shift("big", "weak", kind) for kind in ("chat", "code", "maths", "qa")}
    assert len(shifts) == 1
    found = [publisher.tokens("big", "weak", kind, (5,))[0] for kind in ("chat", "code")]
    assert 2 / (1 / found[0] + 1 / found[1]) == pytest.approx(2.6, rel=2e-3)
    assert found[0] > found[1]  # as in the shape
    assert publisher.together("big", "weak", ("chat", "code"), 5) == pytest.approx(2.6, rel=2e-3)


def test_rules_without_a_figure_follow_their_words(publisher):
    shift = functools.partial(publisher.shift, "big")
    good = {kind: shift("good", kind) for kind in ("chat", "code", "maths", "qa")}
    assert good["maths"] == pytest.approx((good["chat"] + good["code"]) / 2, abs=1e-3)
    assert good["qa"] == good["chat"]
    weak = shift("weak", "code")
    assert shift("middle", "code") == pytest.approx(
        weak + (good["code"] - weak) / 3, abs=2e-3
    )  # log2: 1 of 3
    assert shift("head", "chat") == 0.0
    assert shift("head", "maths") == pytest.approx(good["maths"] - good["chat"], abs=1e-3)
    level = publisher.level("big", "head", "code")
    assert level == (pytest.approx(1 + 2.4 * 6.0 / 5.0), 4)
    assert publisher.tokens("big", "head", "code", (4,))[0] == pytest.approx(level[0], rel=2e-3)
    assert publisher.shift("small", "good", "chat") == good["chat"]


def test_a_model_says_what_it_is(publisher):
    made = publisher.model("big_published", "a command")
    assert made.label == "published" and made.drafters == ("good", "weak", "middle", "head")
    assert made.card.fits["chat"]["good"]["tokens_per_round"] == 3.4
    assert made.card.fits["chat"]["good"]["rule"] == "figure"
    assert made.card.fits["maths"]["good"]["rule"] == "mean"
    assert any("weak: 1 figures" in note for note in made.card.notes)
    assert any("middle: no figure" in note for note in made.card.notes)
    again = Publisher(facts(), shape_model, entries=60, positions=128).model("big_published", "a command")
    assert again == made


def levels(data, drafter="good"):
    return data["models"]["big_published"]["pairs"][drafter]["levels"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: levels(d).update(chat={"figure": "nobody"}), r"levels\.chat: unknown figure 'nobody'"),
        (lambda d: d["figures"]["chat"].update(source="nobody"), r"figures\.chat\.source: unknown source"),
        (lambda d: d["figures"]["chat"].update(tokens_per_round=5.5), "5.5 tokens per round are more than"),
        (lambda d: d["figures"]["chat"].update(acceptance=0.5), "either tokens_per_round or acceptance"),
        (lambda d: d["figures"]["chat"].update(gamma=0), "greater than or equal to 1"),
        (lambda d: levels(d).update(chat={"figure": "chat", "same": "code"}), "exactly one rule"),
        (lambda d: d["figures"]["chat"].update(gammas=3), "Extra inputs"),
    ],
)
def test_impossible_facts_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        facts(change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: levels(d).update(chat={"same": "chat"}), "rests on itself"),
        (lambda d: levels(d).update(chat={"same": "poetry"}), "no level for 'poetry'"),
        (lambda d: levels(d).update(chat={"as_target": "huge"}), "of the target 'huge'"),
        (lambda d: d["figures"]["chat"].update(tokens_per_round=1.0), "are not within"),
        (lambda d: levels(d).update(chat="mean", code="mean"), "a mean of kinds that have figures"),
    ],
)
def test_rules_that_cannot_be_followed_are_named(change, message):
    with pytest.raises(TraceError, match=message):
        Publisher(facts(change), shape_model, entries=20, positions=64).shift("big", "good", "chat")


def test_a_file_of_facts_names_itself(tmp_path):
    path = tmp_path / "facts.yaml"
    path.write_text(made_up().replace("acceptance: 0.7", "acceptance: 70"))
    with pytest.raises(TraceError, match=r"facts\.yaml: figures\.code\.acceptance: "):
        load_facts(path)
    with pytest.raises(TraceError, match=r"facts\.yaml"):
        load_facts(tmp_path / "none" / "facts.yaml")


# ---------------------------------------------------------------------- shipped


def test_there_is_a_model_for_every_plan():
    assert sorted(SHIPPED) == sorted(load_facts(FACTS).models)
    for name, plan in load_facts(FACTS).models.items():
        assert load_run_model(name).drafters == tuple(plan.pairs)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_model_is_its_shape_at_the_shift_of_its_card(name):
    shipped, plan = load_run_model(name), load_facts(FACTS).models[name]
    for kind in shipped.kinds:
        for drafter in shipped.drafters:
            shape = plan.pairs[drafter].shape
            origin = load_run_model(shape.model).process(shape.shape_of.get(kind, kind), shape.drafter)
            shift = shipped.card.fits[kind][drafter]["shift"]
            assert shift_process(origin, shift, LONGEST_RUN) == shipped.process(kind, drafter), (
                kind,
                drafter,
            )


@pytest.mark.parametrize("name", SHIPPED)
def test_the_pool_meets_what_was_published(name):
    known, pool = load_facts(FACTS), load_pool(name)
    target = known.models[name].target
    met = 0
    for drafter, values in pool.drafters.items():
        assert values.run_length is not None
        by_kind = {}
        for kind in pool.kinds:
            positions = pool.positions_of([kind])
            by_kind[kind] = values.run_length[positions]
        bounds = np.arange(len(positions) // 512 + 1) * 512
        for kind, level in known.models[name].pairs[drafter].levels.items():
            if level == "mean" or level.figure is None:
                continue
            figure = known.figures[level.figure]
            found = tokens_per_round(by_kind[kind], figure.gamma, bounds)
            assert found == pytest.approx(figure.tokens, rel=0.005), (drafter, kind)
            met += 1
            for gamma, share in enumerate(figure.by_place, start=1):  # a check by place, not fitted to
                starts = tokens_per_round(by_kind[kind], gamma, bounds) - tokens_per_round(
                    by_kind[kind], gamma - 1, bounds
                )
                assert starts == pytest.approx(share, abs=0.12), (drafter, kind, gamma)
        mixtures = {
            level.mixture
            for level in known.models[name].pairs[drafter].levels.values()
            if level != "mean" and level.mixture is not None
        }
        for mixture in mixtures:
            figure = known.figures[mixture]
            rates = [tokens_per_round(by_kind[kind], figure.gamma, bounds) for kind in figure.kinds]
            assert len(rates) / sum(1 / rate for rate in rates) == pytest.approx(figure.tokens, rel=0.005), (
                drafter
            )
            met += 1
    assert met > 0 and target in {figure.target for figure in known.figures.values()}


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shape_is_kept(name):
    """Requests differ as far as in the shape, in logits of their first draft, and remember as long.

    The autocorrelation of whether a draft is accepted falls with the level where drafts are rarely accepted,
    though nothing but the level changes; hence the wide tolerance.
    """
    plan, pool = load_facts(FACTS).models[name], load_pool(name)
    n = 100
    bounds = np.arange(n + 1) * 512
    for drafter, pair in plan.pairs.items():
        runs = pool.drafters[drafter].run_length
        assert runs is not None
        origin = load_run_model(pair.shape.model)
        for kind in ("code", "chat", "instruction"):
            own = runs[pool.positions_of([kind])[: n * 512]]
            shape = origin.process(pair.shape.shape_of.get(kind, kind), pair.shape.drafter)
            drawn = np.minimum(draw_requests(shape, origin.longest_run, n, 512, 1), LONGEST_RUN)
            here, there = (
                np.clip((values.reshape(-1, 512) > 0).mean(axis=1), 1 / 512, 1 - 1 / 512)
                for values in (own, drawn)
            )
            spread = float(logit(here).std()), float(logit(there).std())
            assert spread[0] == pytest.approx(spread[1], rel=0.4, abs=0.05), (drafter, kind)
            correlation = [
                statistics_of(values, bounds, LONGEST_RUN).first_correlation[[4, 6]]  # lags 6 and 16
                for values in (own, drawn)
            ]
            np.testing.assert_allclose(correlation[0], correlation[1], atol=0.2, err_msg=f"{drafter}, {kind}")


def test_a_better_drafter_of_a_target_is_accepted_more():
    fits = load_run_model("llama-3-70b_published").card.fits
    for group_ in fits.values():
        small, middle, large = (group_[d]["shift"] for d in ("llama-3.2-1b", "llama-3.2-3b", "llama-3-8b"))
        assert small < middle < large
    for group_ in load_run_model("qwen3-32b_published").card.fits.values():
        assert group_["qwen3-0.6b"]["shift"] < group_["qwen3-1.7b"]["shift"]


@pytest.mark.parametrize("drafter", ["llama-3.2-3b", "eagle3"])
def test_both_engines_replay_a_published_model(drafter):
    source = {"source": "published", "model": "llama-3-70b_published", "drafter": drafter}
    scenario = with_source(source, acceptance_kinds=["code", "chat"])
    assert assert_engines_agree(scenario, "indices", 5) > 100


def test_a_source_says_what_its_model_is():
    source = {"source": "fitted", "model": "llama-3-70b_published", "drafter": "eagle3"}
    with pytest.raises(ScenarioError, match=r"acceptance\.draft\.source = 'fitted', but .* is published"):
        WorldBuilder(with_source(source))
