"""What decisions come to: those of one form have one effect, in the simulator."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from agents.environments import engine_for
from agents.rollouts import BySchedulers, play
from agents.understanding.decisions import Reading
from agents.understanding.settings import ExplainError
from agents.understanding.subject import PolicyOfMany, policy_of
from agents.understanding.visits import Noting
from dsd_env.control import ActionSpace
from dsd_env.policy import load
from dsd_env.scenario import load_scenario
from tests.agents.understanding.samples import TRAINING, anyhow, by_residents, crowd, exported
from tests.conftest import ROOT
from tests.scenarios import tiny

pytest.importorskip("numba")


def many_states(scenario, n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    reading = Reading(scenario)
    observations = rng.uniform(0.0, 1.0, (n, len(reading.features))).astype(np.float32)
    nvec = reading.actions.nvec
    masks = rng.random((n, sum(nvec))) < 0.7
    masks[:, [0, nvec[0], nvec[0] + nvec[1]]] = True
    return observations, masks


@pytest.mark.parametrize("streaming", [False, True])
def test_decisions_of_one_form_have_one_effect(streaming: bool, tmp_path: Path) -> None:
    """Whole episodes with every decision as the policy makes it, and in the form that stands for it."""
    kind = "streaming" if streaming else "synchronous"
    # An untrained policy that streams takes a hundred thousand decisions to the end.
    scenario = tiny(protocol={"kind": kind}, episode__horizon_s=60.0)
    decide = PolicyOfMany(exported(anyhow(scenario), scenario, tmp_path / "policy"))
    reading = Reading(scenario)
    changed = 0

    def as_made(stage, which):
        return decide(stage.observations[which], stage.masks[which])

    def in_form(stage, which):
        nonlocal changed
        made = as_made(stage, which)
        form = reading.executed(stage.observations[which], made)
        changed += int((form != made).any(axis=1).sum())
        assert reading.allowed(stage.masks[which], form).diagonal().all()
        return form

    kind = engine_for(scenario)
    metrics = [
        [(episode.seed, episode.metrics) for episode in play(scenario, [1], how, kind=kind)]
        for how in (as_made, in_form)
    ]
    assert changed > 20, "otherwise this test shows nothing"
    np.testing.assert_equal(metrics[0], metrics[1])


def test_form_by_hand() -> None:
    reserve = {f"targets__{name}__kv_policy": "reserve" for name in ("big", "small")}
    reading = Reading(tiny(**reserve))
    names = [feature.name for feature in reading.features]
    observation = np.zeros((1, len(names)), dtype=np.float32)
    for flag in ("candidate_1.valid", "candidate_1.same_target", "candidate_1.coalesces"):
        observation[0, names.index(flag)] = 1.0

    def form(*action: int) -> list[int]:
        return reading.executed(observation, np.array([action])).tolist()[0]

    assert form(3, 2, 1) == [3, 2, 1]
    observation[0, names.index("candidate_1.coalesces")] = 0.0
    assert form(3, 2, 1) == [3, 0, 1], "its verification waits for nobody"
    assert form(0, 2, 1) == [0, 0, 0], (
        "plain decoding at the target, wherever its drafts would have been made"
    )
    assert form(3, 2, 4) == [0, 2, 3], "nobody drafts there: plain at that target, which it enters"
    observation[0, names.index("request.is_admission")] = 1.0
    assert form(3, 0, 1) == [1, 0, 1], "at admission it only matters whether it is 0"
    observation[0, names.index("candidate_1.streams")] = 1.0
    assert form(3, 0, 1) == [3, 0, 1], "but it opens a stream with its window"
    # Whoever can lose its KV enters again.
    assert Reading(tiny()).executed(observation, np.array([[0, 2, 0]])).tolist() == [[0, 2, 0]]


def test_words_and_categories() -> None:
    reading = Reading(tiny())
    assert reading.places == ("colocated", "own", "edge") * 2
    assert reading.categories == ("plain", "colocated", "own", "edge")
    executed = np.array([[0, 0, 3], [3, 2, 4]])
    assert [reading.words(each) for each in executed] == ["plain, target +1", "gamma 4, own, target +1, B 4"]
    assert reading.gammas(executed).tolist() == [0, 4]
    assert reading.category(executed).tolist() == [0, 2]
    assert reading.difference(executed[:1], executed[1:]) == (1.0, 1.0, 1.0, 4.0)
    menu = Reading(load_scenario("drafter_menu"))
    assert any(word.endswith(" 2") for word in menu.places), menu.places


@pytest.mark.parametrize("flat", [False, True])
def test_many_at_once_are_decided_as_one_by_one(flat: bool, tmp_path: Path) -> None:
    scenario = tiny()
    for number, gain in enumerate((4.0, 0.01)):  # with the small one, logits are nearly equal
        policy = exported(anyhow(scenario, flat=flat, gain=gain), scenario, tmp_path / str(number))
        observations, masks = many_states(scenario, 300)
        alone = [policy.action(x, mask) for x, mask in zip(observations, masks, strict=True)]
        np.testing.assert_array_equal(PolicyOfMany(policy)(observations, masks), alone)


def test_policies_of_longer_lists_decide_on_the_scenarios_own(tmp_path: Path) -> None:
    """As evaluation has them decide, state by state; nothing is selected that only fills a list up."""
    scenario = tiny(actions__gammas=[0, 2, 3, 8], actions__targets_offered=1)
    longer = tiny(actions__gammas=[0, 1, 2, 4, 8, 12], actions__batch_sizes=[1, 2, 32])
    actor = anyhow(longer)
    actor.layers[-1][1][0] -= 10.0  # not plain decoding alone
    policy = exported(actor, longer, tmp_path / "policy")
    places = longer.n_placements
    reading = Reading(scenario, places)
    decide = PolicyOfMany(policy, reading.actions)
    teacher = BySchedulers(f"policy:{tmp_path / 'policy'}")
    lengths = set()

    def both(stage, which):
        wanted = teacher(stage, which)
        made = decide(stage.observations[which], stage.masks[which])
        np.testing.assert_array_equal(made, wanted)
        form = reading.executed(stage.observations[which], made)
        assert reading.allowed(stage.masks[which], form).diagonal().all()
        lengths.update(reading.gammas(form).tolist())
        return made

    episodes = play(scenario, [1, 2], both, kind="compiled", n_placements=places)
    assert len(list(episodes)) == 2
    assert len(lengths) > 1 and lengths <= {0, 2, 8}


def test_near_ties_are_left_to_the_policy(tmp_path: Path) -> None:
    scenario = tiny()
    actor = anyhow(scenario, gain=0.0)
    nvec = ActionSpace.of(scenario).nvec
    rng = np.random.default_rng(0)
    actor.layers[-1][1][:] = 1e-4 + rng.uniform(0.0, 2e-7, sum(nvec))
    policy = exported(actor, scenario, tmp_path / "policy")
    observations, masks = many_states(scenario, 50)
    alone = [policy.action(x, mask) for x, mask in zip(observations, masks, strict=True)]
    np.testing.assert_array_equal(PolicyOfMany(policy)(observations, masks), alone)


def test_the_sample_does_not_depend_on_how_many_play(tmp_path: Path) -> None:
    scenario = crowd(20)
    decide = PolicyOfMany(exported(by_residents(scenario), scenario, tmp_path / "policy"))
    found = []
    for side_by_side in (1, 3):
        noting = Noting(lambda stage, which: decide(stage.observations[which], stage.masks[which]), 60)
        kind = engine_for(scenario)
        assert len(list(play(scenario, [5, 6, 7], noting, kind=kind, side_by_side=side_by_side))) == 3
        found.append(noting.visits())
    assert found[0].met == found[1].met > 500 and len(found[0]) == 60
    for name in ("observations", "masks", "actions"):
        np.testing.assert_array_equal(getattr(found[0], name), getattr(found[1], name))


def test_nothing_is_noted_of_the_warm_up(tmp_path: Path) -> None:
    scenario = crowd(10)
    decide = PolicyOfMany(exported(by_residents(scenario), scenario, tmp_path / "policy"))
    noting = Noting(
        lambda stage, which: decide(stage.observations[which], stage.masks[which]), 60, after_s=1e9
    )
    list(play(scenario, [5], noting, kind=engine_for(scenario)))
    with pytest.raises(ExplainError, match="measure longer"):
        noting.visits()


def test_only_schedulers_of_single_requests_are_explained(tmp_path: Path) -> None:
    bundle = ROOT / "configs" / "policies" / "slow_cloud_plan" / "policy"
    with pytest.raises(ExplainError, match="plans of the fleet view"):
        policy_of(f"policy:{bundle}", load_scenario("slow_cloud"))
    assert policy_of("cloud_ar", tiny()) is None
    smaller = tiny(actions__targets_offered=1)
    exported(anyhow(smaller), smaller, tmp_path / "policy")
    with pytest.raises(ValueError, match="does not fit"):
        policy_of(f"policy:{tmp_path / 'policy'}", tiny())
    assert load(tmp_path / "policy").manifest.training == TRAINING
