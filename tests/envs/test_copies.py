"""Copies and pickles of environments and simulations in mid-episode go on exactly as the originals."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from dsd_env.control import ActionSpace
from dsd_env.envs import ENV_ID, DictObservationWrapper, EdgeCloudEnv, EdgeCloudVectorEnv, FlatActionWrapper
from dsd_env.sim import ReferenceSimulation
from dsd_env.sim.compiled import CompiledSimulation
from dsd_env.sim.engines import compiled_layout
from tests.scenarios import tiny

Copier = Callable[[Any], Any]


def pickled(thing: Any) -> Any:
    return pickle.loads(pickle.dumps(thing))


COPIERS = pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
FORMS = pytest.mark.parametrize(
    "options", [{"engine": "compiled"}, {"engine": "reference"}, {"render_mode": "rgb_array"}], ids=str
)


def act(env: gym.Env, rng: np.random.Generator) -> tuple[Any, ...]:
    nvec = env.unwrapped.action_space.nvec  # type: ignore[attr-defined]
    action: Any = rng.integers(nvec)
    if isinstance(env.action_space, gym.spaces.Discrete):
        action = np.ravel_multi_index(tuple(action), nvec)
    return env.step(action)


def assert_same_future(one: gym.Env, other: gym.Env, steps: int = 150) -> None:
    """Step both alike over ends and resets; the copy must not notice that the other is stepped first."""
    dice = np.random.default_rng(1), np.random.default_rng(1)
    for _ in range(steps):
        first, second = act(one, dice[0]), act(other, dice[1])
        np.testing.assert_equal(second[0], first[0])
        assert second[1:4] == first[1:4]
        assert repr(second[4]) == repr(first[4])
        one_base, other_base = one.unwrapped, other.unwrapped
        assert isinstance(one_base, EdgeCloudEnv) and isinstance(other_base, EdgeCloudEnv)
        assert other_base.view == one_base.view
        assert other_base.action_masks().tobytes() == one_base.action_masks().tobytes()
        assert other_base.simulation.totals == one_base.simulation.totals
        if first[2] or first[3]:
            again, same = one.reset(), other.reset()
            np.testing.assert_equal(same[0], again[0])
            assert repr(same[1]) == repr(again[1])


@COPIERS
@FORMS
def test_a_copy_in_mid_episode_goes_on_as_the_original(copied: Copier, options: dict[str, Any]) -> None:
    env = gym.make(ENV_ID, scenario=tiny(), price_delays=True, **options)
    env.reset(seed=4)
    rng = np.random.default_rng(0)
    for _ in range(35):
        act(env, rng)
    other = copied(env)
    assert other.unwrapped.engine == env.unwrapped.engine  # type: ignore[attr-defined]
    assert other.unwrapped.view == env.unwrapped.view  # type: ignore[attr-defined]
    assert other.spec == env.spec
    before = copied(other)
    assert_same_future(env, other)
    # What a copy does does not touch the environment that it is from.
    again = copied(before)
    assert_same_future(before, again)


@COPIERS
@FORMS
def test_copies_before_the_first_and_after_the_last_step(copied: Copier, options: dict[str, Any]) -> None:
    env = EdgeCloudEnv(tiny(episode__requests=2), **options)
    fresh = copied(env)
    with pytest.raises(gym.error.ResetNeeded):
        fresh.step(np.array([0, 0, 0]))
    one, other = env.reset(seed=3), fresh.reset(seed=3)
    assert one[0].tobytes() == other[0].tobytes()
    rng, over = np.random.default_rng(0), False
    while not over:
        *_, terminated, truncated, _ = act(env, rng)
        over = terminated or truncated
    ended = copied(env)
    with pytest.raises(gym.error.ResetNeeded):
        ended.step(np.array([0, 0, 0]))
    assert ended.view == env.view
    assert repr(ended.simulation.metrics()) == repr(env.simulation.metrics())
    assert ended.reset()[0].tobytes() == env.reset()[0].tobytes()


@COPIERS
def test_wrapped_environments_are_copied_with_their_wrappers(copied: Copier) -> None:
    limited = gym.wrappers.TimeLimit(EdgeCloudEnv(tiny(), engine="reference"), 50)
    env: Any = DictObservationWrapper(FlatActionWrapper(limited), mask_dtype=bool)
    env.reset(seed=4)
    for _ in range(30):
        act(env, np.random.default_rng(0))
    other = copied(env)
    assert_same_future(env, other, steps=70)


@pytest.mark.parametrize("engine", ["reference", "compiled"])
def test_a_timeline_of_a_copy_is_that_of_the_original(engine: str) -> None:
    pytest.importorskip("matplotlib")
    env = EdgeCloudEnv(tiny(), render_mode="rgb_array", engine=engine)
    env.reset(seed=4)
    rng = np.random.default_rng(0)
    for _ in range(40):
        act(env, rng)
    other = pickled(env)
    assert other._episodes.events() == env._episodes.events()
    assert np.array_equal(other.render(), env.render())


def test_a_copy_of_the_compiled_environment_is_as_small_as_what_it_uses() -> None:
    env = EdgeCloudEnv("metro", engine="compiled")
    env.reset(seed=1)
    for _ in range(50):
        env.step(np.array([2, 2, 0]))
    layout = compiled_layout("compiled", env.scenario)
    assert layout is not None
    # What all worlds of the scenario share is large, because it holds the acceptance model.
    assert len(pickle.dumps(env)) - layout.constants.nbytes < 6e6


@COPIERS
@pytest.mark.parametrize("engine", [ReferenceSimulation, CompiledSimulation])
@pytest.mark.parametrize("due", [True, False])
def test_simulations_are_copied_with_their_events(copied: Copier, engine: Any, due: bool) -> None:
    scenario = tiny()
    space = ActionSpace.of(scenario)
    one = engine(scenario, 5, record_events=True, price_delays=True)
    rng = np.random.default_rng(2)
    for _ in range(25):
        one.next_decision()
        one.decide(space.decode(rng.integers(space.nvec)))
    if due:
        one.next_decision()
    other = copied(one)
    assert other.events == one.events
    views = []
    for simulation in (one, other):
        rng, seen = np.random.default_rng(3), []
        if due:
            simulation.decide(space.decode(rng.integers(space.nvec)))
        while (view := simulation.next_decision()) is not None:
            seen.append(view)
            simulation.decide(space.decode(rng.integers(space.nvec)))
        views.append(seen)
    assert views[1] == views[0]
    assert other.events == one.events
    assert len(one.events) > 200
    assert repr(other.metrics()) == repr(one.metrics())
    assert (other.terminated, other.truncated) == (one.terminated, one.truncated)


@COPIERS
def test_vector_environments_are_copied_with_their_worlds(copied: Copier) -> None:
    scenarios = [tiny(episode__requests=3), tiny(name="other", actions__targets_offered=1)]
    envs = EdgeCloudVectorEnv(3, scenarios, n_placements=6)
    nvec = envs.single_action_space.nvec  # type: ignore[attr-defined]
    envs.reset(seed=1)
    rng = np.random.default_rng(0)
    for _ in range(20):
        envs.step(rng.integers(nvec, size=(3, 3)))
    envs.get_attr("view")
    other = copied(envs)
    dice = np.random.default_rng(1), np.random.default_rng(1)
    for _ in range(150):
        first = envs.step(dice[0].integers(nvec, size=(3, 3)))
        second = other.step(dice[1].integers(nvec, size=(3, 3)))
        for one, same in zip(first[:4], second[:4], strict=True):
            assert one.tobytes() == same.tobytes()
        assert repr(first[4]) == repr(second[4])
        assert other.get_attr("view") == envs.get_attr("view")


@COPIERS
def test_stable_baselines_worlds_are_copied(copied: Copier) -> None:
    pytest.importorskip("stable_baselines3")
    from dsd_env.envs.sb3 import CompiledVecEnv

    worlds = CompiledVecEnv(tiny(episode__requests=3), 2, seed=1)
    worlds.reset()
    rng = np.random.default_rng(0)
    for _ in range(20):
        worlds.step(rng.integers(worlds.action_space.nvec, size=(2, 3)))  # type: ignore[attr-defined]
    other = copied(worlds)
    for _ in range(100):
        actions = rng.integers(worlds.action_space.nvec, size=(2, 3))  # type: ignore[attr-defined]
        first, second = worlds.step(actions), other.step(actions)
        assert first[0].tobytes() == second[0].tobytes()
        assert first[1].tobytes() == second[1].tobytes()
        assert other.get_attr("view") == worlds.get_attr("view")
