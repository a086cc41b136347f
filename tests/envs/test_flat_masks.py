"""Masks of flat actions: exactly what the simulator carries out as it is, on every scenario and form."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsd_env.control import ActionSpace
from dsd_env.envs import ENV_ID, EdgeCloudEnv, EdgeCloudVectorEnv, FlatActionWrapper
from dsd_env.paths import config_dir
from dsd_env.scenario import Scenario, load_scenario
from tests.scenarios import TINY, tiny

SHIPPED = sorted(path.stem for path in (config_dir() / "scenarios").glob("*.yaml"))

SHORT, LONG = ({"distribution": "constant", "value": value} for value in (0.5, 1.0))
FAULTS: dict[str, Any] = {
    "targets": {"kind": "target_crash", "of": "big", "mean_interval_s": 0.5, "duration_s": SHORT},
    "small": {"kind": "target_crash", "of": "small", "at_s": [0.8, 2.5], "duration_s": LONG},
    "edge": {"kind": "edge_crash", "of": "box", "mean_interval_s": 1.0, "duration_s": LONG},
}


def crashing(**overrides: Any) -> Scenario:
    """Return a scenario whose targets, of different limits, and drafters come and go."""
    return load_scenario({**TINY, "faults": FAULTS}, **overrides)


def play(env: FlatActionWrapper, seed: int, steps: int) -> set[str | None]:
    """Take random valid flat actions, and compare the mask with the one made from the view at every step."""
    base = env.unwrapped
    assert isinstance(base, EdgeCloudEnv)
    rng = np.random.default_rng(seed)
    env.reset(seed=seed)
    seen: set[str | None] = set()
    for _ in range(steps):
        mask = env.action_masks()
        expected = base.actions.flat_mask(base.view, base.scenario.max_num_seqs)
        np.testing.assert_array_equal(mask, expected)
        *_, terminated, truncated, info = env.step(np.int64(rng.choice(np.flatnonzero(mask))))
        seen.add(info["resolved"])
        if terminated or truncated:
            break
    return seen


@pytest.mark.parametrize("name", [*SHIPPED, "tiny", "crashing"])
def test_valid_flat_actions_are_never_changed(name: str) -> None:
    made = {"tiny": tiny, "crashing": crashing}
    scenario: Any = made[name]() if name in made else name
    n_placements = ActionSpace.of(load_scenario(scenario)).n_placements + 2
    env = FlatActionWrapper(EdgeCloudEnv(scenario, n_placements=n_placements))
    assert play(env, 1, 150) == {None}


@settings(max_examples=8)
@given(seed=st.integers(0, 2**32), engine=st.sampled_from(["compiled", "reference"]))
def test_valid_flat_actions_are_never_changed_while_targets_crash(seed: int, engine: str) -> None:
    env = FlatActionWrapper(EdgeCloudEnv(crashing(), engine=engine))
    assert play(env, seed, 120) == {None}


@pytest.mark.parametrize("name", ["mobile", "flaky", "crashing"])
def test_the_mask_allows_exactly_what_is_not_changed(name: str) -> None:
    """Every action is tried at some decisions: valid is what comes back as it was."""
    env = FlatActionWrapper(EdgeCloudEnv(crashing() if name == "crashing" else name, n_placements=7))
    base = env.unwrapped
    assert isinstance(base, EdgeCloudEnv)
    rng = np.random.default_rng(5)
    env.reset(seed=5)
    reasons = set()
    for number in range(120):
        if number % 20 == 0:
            state, mask, candidates = base.clone_state(), env.action_masks(), base.view.candidates
            for action in range(env.action_space.n):
                gamma, batch, placement = env.action(np.int64(action))
                reason = env.step(np.int64(action))[4]["resolved"]
                reasons.add(reason)
                # A batch size without effect is another way to say 1, which stands for all of them.
                where = candidates[placement] if placement < len(candidates) else None
                matters = where is not None and (
                    (where.target.up and not where.same_target) or (gamma > 0 and not where.shares_target)
                )
                assert mask[action] == (reason is None and (batch == 0 or matters)), (number, action, reason)
                base.restore_state(state)
        if any(env.step(np.int64(rng.choice(np.flatnonzero(env.action_masks()))))[2:4]):
            env.reset()
    assert {None, "no_drafter"} <= reasons


def test_every_reason_is_met_where_targets_crash() -> None:
    env = EdgeCloudEnv(crashing())
    env.reset(seed=3)
    rng = np.random.default_rng(3)
    reasons = set()
    for _ in range(600):
        *_, terminated, truncated, info = env.step(rng.integers(env.action_space.nvec))
        reasons.add(info["resolved"])
        if terminated or truncated:
            env.reset()
    assert reasons == {None, "no_drafter", "batch_clipped", "target_down"}


def test_a_list_of_one_speculation_length_has_a_mask() -> None:
    for engine in ("compiled", "reference"):
        env = FlatActionWrapper(EdgeCloudEnv(tiny(actions__gammas=[0]), engine=engine))
        assert play(env, 2, 40) == {None}


def test_vector_environments_have_the_masks_of_the_wrapper() -> None:
    scenarios = [tiny(), crashing(name="crashing", actions__targets_offered=1)]
    options: dict[str, Any] = {"scenario": scenarios, "flat_actions": True, "n_placements": 8}
    envs = gym.make_vec(ENV_ID, num_envs=4, **options)
    assert isinstance(envs, EdgeCloudVectorEnv)
    _, infos = envs.reset(seed=2)
    alone = []
    for world in range(4):
        name = infos["scenario"][world]
        env = FlatActionWrapper(EdgeCloudEnv(next(s for s in scenarios if s.name == name), n_placements=8))
        env.reset(options={"episode_seed": int(infos["episode_seed"][world])})
        alone.append(env)
    assert len({env.unwrapped.scenario.name for env in alone}) == 2  # type: ignore[attr-defined]
    rng = np.random.default_rng(2)
    for _ in range(25):
        masks = envs.action_masks()
        actions = np.array([rng.choice(np.flatnonzero(mask)) for mask in masks])
        for world, env in enumerate(alone):
            np.testing.assert_array_equal(masks[world], env.action_masks())
            np.testing.assert_array_equal(masks[world], envs.call("action_masks")[world])
            env.step(actions[world])
        envs.step(actions)


def test_stable_baselines_worlds_have_them_too() -> None:
    pytest.importorskip("stable_baselines3")
    from dsd_env.envs.sb3 import CompiledVecEnv

    worlds = CompiledVecEnv(crashing(), 3, seed=1, flat_actions=True, full_infos=True)
    worlds.reset()
    rng = np.random.default_rng(1)
    for _ in range(200):
        masks = np.stack(worlds.env_method("action_masks"))
        assert masks.shape == (3, worlds.action_space.n)  # type: ignore[attr-defined]
        *_, infos = worlds.step(np.array([rng.choice(np.flatnonzero(mask)) for mask in masks]))
        assert [info["resolved"] for info in infos] == [None] * 3


@pytest.mark.benchmark
def test_flat_masks_cost_less_than_the_step() -> None:
    import time

    envs = gym.make_vec(ENV_ID, num_envs=64, scenario="metro", flat_actions=True, step_infos=False)
    assert isinstance(envs, EdgeCloudVectorEnv)
    envs.reset(seed=1)
    envs.action_masks()
    took_s = [0.0, 0.0]
    for _ in range(300):
        start_s = time.thread_time()
        mask = envs.action_masks()
        took_s[0] += time.thread_time() - start_s
        actions = mask.argmax(axis=1)
        start_s = time.thread_time()
        envs.step(actions)
        took_s[1] += time.thread_time() - start_s
    assert took_s[0] < took_s[1], took_s
