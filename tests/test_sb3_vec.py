"""The vector of compiled worlds is the scalar environment, many times over."""

from __future__ import annotations

import math

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("numba")
pytest.importorskip("stable_baselines3")

import dsd_env
from tests.scenarios import tiny


@pytest.mark.parametrize("engine", ["reference", "compiled"])
def test_world_i_is_the_environment_seeded_with_i(engine: str) -> None:
    scenario, n = tiny(episode__requests=5), 3
    worlds = dsd_env.make_sb3_vec_env(scenario, n, seed=7, full_infos=True, price_delays=True)
    environments = [
        gym.make("dsd_env/EdgeCloud-v0", scenario=scenario, engine=engine, price_delays=True)
        for _ in range(n)
    ]
    observations = worlds.reset()
    for i, environment in enumerate(environments):
        observation, info = environment.reset(seed=7 + i)
        np.testing.assert_array_equal(observations[i], observation)
        assert worlds.reset_infos[i]["decision"] == info["decision"]
        assert worlds.reset_infos[i]["episode_seed"] == info["episode_seed"]
    generator = np.random.default_rng(0)
    ended = 0
    for _ in range(300):
        actions = np.stack([generator.integers(size, size=n) for size in worlds.actions.nvec], axis=1)
        masks = worlds.env_method("action_masks")
        for i, environment in enumerate(environments):
            np.testing.assert_array_equal(masks[i], environment.unwrapped.action_masks())
        observations, rewards, dones, infos = worlds.step(actions)
        for i, environment in enumerate(environments):
            observation, reward, terminated, truncated, info = environment.step(actions[i])
            assert rewards[i] == np.float32(reward)
            assert dones[i] == (terminated or truncated)
            for key in ("now_s", "dt_s", "reward_terms", "resolved", "invalid_actions", "completed"):
                assert infos[i][key] == info[key], key
            if dones[i]:
                ended += 1
                np.testing.assert_array_equal(infos[i]["terminal_observation"], observation)
                assert infos[i]["TimeLimit.truncated"] == truncated
                for name, value in info["episode_metrics"].items():
                    assert infos[i]["episode_metrics"][name] == value or math.isnan(value), name
                observation, _ = environment.reset()
            else:
                assert infos[i]["decision"] == info["decision"]
            np.testing.assert_array_equal(observations[i], observation)
    assert ended >= n


def test_worlds_do_not_depend_on_how_many_there_are() -> None:
    trails = []
    for n in (1, 5):
        worlds = dsd_env.make_sb3_vec_env(tiny(), n, seed=3)
        trail = [worlds.reset()[0]]
        for _ in range(50):
            trail.append(worlds.step(np.tile([1, 1, 0], (n, 1)))[0][0])
        trails.append(np.array(trail))
    np.testing.assert_array_equal(trails[0], trails[1])


def test_actions_off_the_lists_are_refused() -> None:
    worlds = dsd_env.make_sb3_vec_env(tiny(), 2, seed=3)
    worlds.reset()
    with pytest.raises(ValueError, match="outside"):
        worlds.step(np.array([[0, 0, 0], [99, 0, 0]]))
    with pytest.raises(ValueError, match="shape"):
        worlds.step(np.zeros((3, 3), dtype=np.int64))


def test_ppo_learns_from_it() -> None:
    from stable_baselines3 import PPO

    worlds = dsd_env.make_sb3_vec_env(tiny(), 4, seed=0)
    model = PPO("MlpPolicy", worlds, n_steps=64, batch_size=64, device="cpu")
    model.learn(1024)
    assert model.ep_info_buffer
