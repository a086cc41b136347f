"""The Stable-Baselines3 environment of compiled worlds is the scalar environment, many times over."""

from __future__ import annotations

import math
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("numba")
pytest.importorskip("stable_baselines3")

from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize

import dsd_env
from dsd_env.envs import EdgeCloudEnv, FlatActionWrapper
from dsd_env.envs.sb3 import CompiledVecEnv
from dsd_env.scenario import Scenario
from tests.scenarios import tiny


def short(**overrides: Any) -> Scenario:
    return tiny(**{"episode__requests": 5, **overrides})


def draw(worlds: CompiledVecEnv, generator: np.random.Generator) -> np.ndarray:
    """Return actions that ignore the masks."""
    space = worlds.action_space
    if isinstance(space, gym.spaces.Discrete):
        return generator.integers(space.n, size=worlds.num_envs)
    return np.stack([generator.integers(size, size=worlds.num_envs) for size in space.nvec], axis=1)


@pytest.mark.parametrize("engine", ["reference", "compiled"])
def test_world_i_is_the_environment_seeded_with_i(engine: str) -> None:
    scenario, n = short(), 3
    worlds = dsd_env.make_sb3_vec_env(scenario, n, seed=7, full_infos=True, price_delays=True)
    environments = [
        gym.make("dsd_env/EdgeCloud-v0", scenario=scenario, engine=engine, price_delays=True)
        for _ in range(n)
    ]
    observations = worlds.reset()
    for i, environment in enumerate(environments):
        observation, info = environment.reset(seed=7 + i)
        np.testing.assert_array_equal(observations[i], observation)
        assert worlds.reset_infos[i] == info
    generator = np.random.default_rng(0)
    ended = 0
    for _ in range(300):
        actions = draw(worlds, generator)
        masks = worlds.env_method("action_masks")
        for i, environment in enumerate(environments):
            np.testing.assert_array_equal(masks[i], environment.unwrapped.action_masks())
        observations, rewards, dones, infos = worlds.step(actions)
        for i, environment in enumerate(environments):
            observation, reward, terminated, truncated, info = environment.step(actions[i])
            assert rewards[i] == np.float32(reward)
            assert dones[i] == (terminated or truncated)
            metrics, other_metrics = info.pop("episode_metrics", {}), infos[i].pop("episode_metrics", {})
            assert list(metrics) == list(other_metrics)
            for name, value in metrics.items():
                assert other_metrics[name] == value or math.isnan(value), name
            if dones[i]:
                ended += 1
                np.testing.assert_array_equal(infos[i].pop("terminal_observation"), observation)
                assert infos[i].pop("TimeLimit.truncated") == truncated
                assert set(infos[i].pop("episode")) == {"r", "l", "t"}
                observation, reset_info = environment.reset()
                assert worlds.reset_infos[i] == reset_info
            assert infos[i] == info
            np.testing.assert_array_equal(observations[i], observation)
    assert ended >= n


@pytest.mark.parametrize("flat", [False, True])
def test_it_is_like_stable_baselines_own_vec_env(flat: bool) -> None:
    """`DummyVecEnv` of monitored scalar environments gives the same, but for the clock in `episode`."""

    def make() -> gym.Env:
        env: gym.Env = EdgeCloudEnv(short())
        return Monitor(FlatActionWrapper(env) if flat else env)

    dummy = DummyVecEnv([make] * 3)
    worlds = CompiledVecEnv(short(), 3, flat_actions=flat)
    assert worlds.observation_space == dummy.observation_space
    assert worlds.action_space == dummy.action_space
    assert worlds.render_mode == dummy.render_mode
    assert worlds.seed(3) == dummy.seed(3) == [3, 4, 5]
    generator, ended = np.random.default_rng(0), 0
    for episode_options in (None, {"episode_seed": 5}, [{}, {"episode_seed": 1}, {}]):
        if episode_options is not None:
            worlds.set_options(episode_options)
            dummy.set_options(episode_options)
        np.testing.assert_array_equal(worlds.reset(), dummy.reset())
        assert worlds.reset_infos == dummy.reset_infos
        for _ in range(120):
            masks, other_masks = worlds.env_method("action_masks"), dummy.env_method("action_masks")
            np.testing.assert_array_equal(masks, other_masks)
            actions = draw(worlds, generator)
            found, expected = worlds.step(actions), dummy.step(actions)
            for one, other in zip(found[:3], expected[:3], strict=True):
                assert one.dtype == other.dtype
                np.testing.assert_array_equal(one, other)
            for i in np.flatnonzero(found[2]):
                info, other_info = found[3][i], expected[3][i]
                assert set(info) == set(other_info)
                np.testing.assert_array_equal(
                    info["terminal_observation"], other_info["terminal_observation"]
                )
                assert info["TimeLimit.truncated"] == other_info["TimeLimit.truncated"]
                assert info["episode"]["r"] == pytest.approx(other_info["episode"]["r"], abs=2e-6)
                assert info["episode"]["l"] == other_info["episode"]["l"]
                ended += 1
            assert worlds.reset_infos == dummy.reset_infos
    assert ended > 6


def test_rewards_and_lengths_add_up_to_what_episodes_report() -> None:
    worlds = CompiledVecEnv(short(), 2, seed=1)
    worlds.reset()
    generator, returns, lengths, ended = np.random.default_rng(0), np.zeros(2), np.zeros(2), 0
    for _ in range(200):
        _, rewards, dones, infos = worlds.step(draw(worlds, generator))
        returns += rewards
        lengths += 1
        for i in np.flatnonzero(dones):
            assert infos[i]["episode"]["r"] == pytest.approx(returns[i], rel=1e-5)
            assert infos[i]["episode"]["l"] == lengths[i]
            returns[i] = lengths[i] = 0
            ended += 1
        assert all(infos[i] == {} for i in np.flatnonzero(~dones))
        assert len({id(info) for info in infos}) == len(infos), "wrappers write into the dicts"
    assert ended > 3


@pytest.mark.parametrize("infos", ["full", "numeric", "none"])
@pytest.mark.parametrize("limit", [7, None])
def test_ends_and_infos_are_those_of_stable_baselines_own_vec_env(infos: str, limit: int | None) -> None:
    """`DummyVecEnv` of scalar environments, here with Gymnasium's `TimeLimit`, gives the same."""

    def make() -> gym.Env:
        return Monitor(
            gym.make("dsd_env/EdgeCloud-v0", scenario=short(), infos=infos, max_episode_steps=limit)
        )

    dummy = DummyVecEnv([make] * 2)
    worlds = dsd_env.make_sb3_vec_env(short(), 2, full_infos=True, infos=infos, max_episode_steps=limit)
    assert worlds.seed(3) == dummy.seed(3)
    np.testing.assert_array_equal(worlds.reset(), dummy.reset())
    generator, ended, keys = np.random.default_rng(0), 0, set()
    for _ in range(150):
        actions = draw(worlds, generator)
        found, expected = worlds.step(actions), dummy.step(actions)
        for one, other in zip(found[:3], expected[:3], strict=True):
            np.testing.assert_array_equal(one, other)
        for info, other_info in zip(found[3], expected[3], strict=True):
            # Stable-Baselines3's own has it at every step, and here it is at the ends.
            assert info.pop("TimeLimit.truncated", False) == other_info.pop("TimeLimit.truncated")
            # The rest of it is a clock and a rounded sum.
            assert info.pop("episode", {}).get("l") == other_info.pop("episode", {}).get("l")
            keys.add(frozenset(info) - {"terminal_observation"})
            np.testing.assert_equal(info, other_info)
        np.testing.assert_equal(worlds.reset_infos, dummy.reset_infos)
        ended += int(found[2].sum())
    assert ended > 1
    assert len(keys) == (2 if infos == "full" else 1), "those of the last step are others"


@pytest.mark.parametrize(
    "actions", [np.zeros((2, 3)), np.zeros((2, 3), dtype=np.bool_), np.full((2, 3), "1"), [[0.5, 0, 0]] * 2]
)
def test_actions_that_are_no_integers_are_refused_as_elsewhere(actions: Any) -> None:
    worlds = dsd_env.make_sb3_vec_env(tiny(), 2, seed=3)
    worlds.reset()
    with pytest.raises(ValueError, match=r"outside MultiDiscrete.*expected integers of shape \(2, 3\)"):
        worlds.step(actions)


def test_worlds_do_not_depend_on_how_many_there_are() -> None:
    trails = []
    for n, threads in ((1, 1), (5, 1), (5, 3)):
        worlds = dsd_env.make_sb3_vec_env(tiny(), n, seed=3, threads=threads)
        trail = [worlds.reset()[0]]
        for _ in range(50):
            trail.append(worlds.step(np.tile([1, 1, 0], (n, 1)))[0][0])
        worlds.close()
        trails.append(np.array(trail))
    np.testing.assert_array_equal(trails[0], trails[1])
    np.testing.assert_array_equal(trails[0], trails[2])


def test_seeds_take_effect_at_the_next_reset_once() -> None:
    worlds = CompiledVecEnv(short(), 2, seed=4)
    first = worlds.reset()
    assert (worlds.reset() != first).any(), "without a new seed the next episodes are others"
    worlds.seed(4)
    np.testing.assert_array_equal(worlds.reset(), first)
    with pytest.raises(ValueError, match="unknown reset options"):
        worlds.set_options({"seed": 1})
        worlds.reset()
    assert len(worlds.seed(None)) == 2


def test_episode_seeds_can_be_named() -> None:
    asked: list[tuple[int, int]] = []

    def name(world: int, episode: int) -> int:
        asked.append((world, episode))
        return 100 * world + episode

    worlds = CompiledVecEnv(short(), 2, seed=1, episode_seeds=name)
    worlds.reset()
    generator, finished = np.random.default_rng(0), []
    for _ in range(400):
        *_, dones, infos = worlds.step(draw(worlds, generator))
        finished += [infos[i]["episode_seed"] for i in np.flatnonzero(dones)]
    assert asked[:2] == [(0, 0), (1, 0)]
    assert {0, 1, 100, 101} <= set(finished)
    assert sorted(asked) == sorted(set(asked))


def test_actions_off_the_lists_are_refused() -> None:
    worlds = dsd_env.make_sb3_vec_env(tiny(), 2, seed=3)
    worlds.reset()
    with pytest.raises(ValueError, match="outside"):
        worlds.step(np.array([[0, 0, 0], [99, 0, 0]]))
    with pytest.raises(ValueError, match="shape"):
        worlds.step(np.zeros((3, 3), dtype=np.int64))


def test_attributes_of_worlds() -> None:
    worlds = CompiledVecEnv(short(), 3, seed=1)
    env = EdgeCloudEnv(short())
    worlds.reset()
    env.reset(seed=2)
    assert worlds.has_attr("action_masks")
    assert worlds.has_attr("view")
    assert not worlds.has_attr("gravity")
    assert worlds.get_attr("view", indices=1) == [env.view]
    assert worlds.get_attr("scenario") == [short()] * 3
    assert worlds.get_attr("action_space", [0]) == [env.action_space]
    with pytest.raises(AttributeError):
        worlds.get_attr("gravity")
    worlds.set_attr("gravity", 9.8, indices=[0, 2])
    assert worlds.get_attr("gravity", [0, 2]) == [9.8, 9.8]
    assert not worlds.has_attr("gravity")
    worlds.set_attr("gravity", 1.6)
    assert worlds.has_attr("gravity")
    assert len(worlds.env_method("metrics", indices=[1])) == 1
    np.testing.assert_array_equal(worlds.env_method("action_masks", indices=1)[0], env.action_masks())
    assert worlds.env_is_wrapped(gym.wrappers.TimeLimit) == [False] * 3
    assert worlds.env_is_wrapped(Monitor, indices=[0]) == [True]
    assert worlds.unwrapped is worlds
    assert worlds.scenario == worlds.scenarios[0] == short()


def test_text_is_the_only_picture() -> None:
    worlds = CompiledVecEnv(short(), 2, seed=1, render_mode="ansi")
    worlds.reset()
    assert worlds.render_mode == "ansi"
    assert worlds.render() is None
    assert worlds.env_method("render")[0].startswith("tiny")
    with pytest.warns(UserWarning, match="draw no images"):
        assert worlds.get_images() == [None, None]


def test_a_world_goes_on_from_a_state() -> None:
    worlds = CompiledVecEnv(short(), 2, seed=1)
    worlds.reset()
    generator = np.random.default_rng(0)
    for _ in range(20):
        worlds.step(draw(worlds, generator))
    states = [worlds.clone_state(i) for i in range(2)]
    futures = []
    for _ in range(2):
        generator, trail = np.random.default_rng(5), []
        for _ in range(150):
            observations, rewards, dones, infos = worlds.step(draw(worlds, generator))
            ends = [(info["episode"]["r"], info["episode"]["l"]) for info in infos if "episode" in info]
            trail.append((observations.tobytes(), rewards.tobytes(), dones.tobytes(), ends))
        futures.append(trail)
        for i, state in enumerate(states):
            worlds.restore_state(state, [i])
    assert futures[0] == futures[1]
    assert any(entry[3] for entry in futures[0])


# --- learning -------------------------------------------------------------------------------------


def learners() -> dict[str, tuple[Any, dict[str, Any]]]:
    from sb3_contrib import MaskablePPO, RecurrentPPO
    from stable_baselines3 import A2C, DQN, PPO

    return {
        "ppo": (PPO, {"n_steps": 64, "batch_size": 128}),
        "maskable_ppo": (MaskablePPO, {"n_steps": 64, "batch_size": 128}),
        "a2c": (A2C, {"n_steps": 8}),
        "dqn": (DQN, {"learning_starts": 200, "buffer_size": 2000, "train_freq": 8}),
        "recurrent_ppo": (
            RecurrentPPO,
            {
                "n_steps": 64,
                "batch_size": 256,
                "n_epochs": 1,
                "policy_kwargs": {"lstm_hidden_size": 16, "net_arch": [16]},
            },
        ),
    }


@pytest.mark.parametrize(
    ("name", "mixed"),
    [
        ("ppo", False),
        ("maskable_ppo", False),
        ("maskable_ppo", True),
        ("a2c", False),
        ("dqn", False),
        ("dqn", True),
        ("recurrent_ppo", False),
    ],
)
def test_every_algorithm_learns_from_it(name: str, mixed: bool) -> None:
    algorithm, options = learners()[name]
    scenario: Any = short()
    if mixed:
        scenario = [short(), short(name="narrow", actions__targets_offered=1)]
    worlds = dsd_env.make_sb3_vec_env(
        scenario, 4, seed=0, flat_actions=name == "dqn", n_placements=6, threads=2 if mixed else 1
    )
    policy = "MlpLstmPolicy" if name == "recurrent_ppo" else "MlpPolicy"
    model = algorithm(policy, worlds, seed=1, device="cpu", **options)
    before = [parameter.detach().clone() for parameter in model.policy.parameters()]
    model.learn(1024)
    assert model.num_timesteps >= 1024
    assert len(model.ep_info_buffer) > 4
    assert all("r" in episode for episode in model.ep_info_buffer)
    assert any((one != other).any() for one, other in zip(before, model.policy.parameters(), strict=True))
    worlds.close()


def test_evaluation_trusts_its_episodes_without_a_warning() -> None:
    from stable_baselines3 import PPO
    from stable_baselines3.common.evaluation import evaluate_policy

    worlds = CompiledVecEnv(short(), 2, seed=0)
    model = PPO("MlpPolicy", worlds, n_steps=32, batch_size=64, device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mean, deviation = evaluate_policy(model, worlds, n_eval_episodes=4)
    assert mean < 0.0
    assert deviation >= 0.0


def test_stable_baselines_wrappers_fit() -> None:
    worlds = VecNormalize(CompiledVecEnv(short(), 2, seed=0), norm_obs=False)
    worlds.reset()
    ended = 0
    for _ in range(250):
        *_, dones, infos = worlds.step(np.ones((2, 3), dtype=np.int64))
        ended += sum("episode" in infos[i] for i in np.flatnonzero(dones))
    assert ended > 1
    # Its episodes are in the infos already, so a monitor around it has nothing to add, and says so.
    with pytest.warns(UserWarning, match="already wrapped"):
        VecMonitor(CompiledVecEnv(short(), 2, seed=0))


@pytest.mark.benchmark
def test_a_step_without_infos_costs_little_beyond_the_engine() -> None:
    """With 64 worlds: at most 2 microseconds per step and world more than the engine alone takes."""
    import time

    n, steps = 64, 400
    worlds = CompiledVecEnv("metro", n)
    actions = np.tile([2, 5, 0], (n, 1)).astype(np.int64)

    def took_s(step: Any) -> float:
        # What a step of the simulation takes depends on the phase of the episode, so both see the same.
        best = math.inf
        for _ in range(3):
            worlds.seed(0)
            worlds.reset()
            worlds.step(actions)
            start_s = time.thread_time()
            for _ in range(steps):
                step(actions)
            best = min(best, (time.thread_time() - start_s) / (steps * n))
        return best

    whole_s, engine_s = took_s(worlds.step), took_s(worlds.worlds.step)
    assert whole_s - engine_s < 2e-6, f"{1e6 * whole_s:.2f} and {1e6 * engine_s:.2f} microseconds"
