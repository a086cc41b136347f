"""Observations with the mask in them, masks for sampling, and the checkers of Gymnasium on all forms."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from dsd_env.envs import (
    ENV_ID,
    DictObservationVectorWrapper,
    DictObservationWrapper,
    EdgeCloudEnv,
    EdgeCloudVectorEnv,
    FlatActionWrapper,
)
from tests.scenarios import tiny

TRAINERS = [
    ("observations", "action_mask", np.float32),
    ("obs", "mask", np.bool_),
    ("observation", "action_mask", "bool"),
    ("observations", "action_mask", np.int8),
]


def scalar(flat: bool, **options: Any) -> gym.Env:
    env: gym.Env = EdgeCloudEnv(tiny(episode__requests=3), **options)
    return FlatActionWrapper(env) if flat else env


def sampled(envs: gym.vector.VectorEnv, rng: np.random.Generator) -> Any:
    """Return an action of every world, masked ones included."""
    single = envs.single_action_space
    if isinstance(single, gym.spaces.Discrete):
        return rng.integers(single.n, size=envs.num_envs)
    return rng.integers(single.nvec, size=(envs.num_envs, 3))  # type: ignore[attr-defined]


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize(("observation_key", "mask_key", "dtype"), TRAINERS)
def test_the_mask_is_beside_the_observation(
    observation_key: str, mask_key: str, dtype: Any, flat: bool
) -> None:
    plain = scalar(flat)
    env = DictObservationWrapper(scalar(flat), observation_key, mask_key, dtype)
    found, info = env.reset(seed=2)
    expected, _ = plain.reset(seed=2)
    rng, over = np.random.default_rng(2), False
    for _ in range(150):
        assert list(found) == [observation_key, mask_key]
        assert found[mask_key].dtype == np.dtype(dtype)
        assert env.observation_space.contains(found)
        np.testing.assert_array_equal(found[observation_key], expected)
        np.testing.assert_array_equal(found[mask_key] != 0, plain.get_wrapper_attr("action_masks")())
        if over:
            found, expected = env.reset()[0], plain.reset()[0]
        nvec = [env.action_space.n] if flat else env.action_space.nvec  # type: ignore[attr-defined]
        action: Any = rng.integers(nvec)
        action = action[0] if flat else action
        found, _, terminated, truncated, info = env.step(action)
        expected = plain.step(action)[0]
        over = terminated or truncated
    assert info


def test_a_mask_that_was_returned_does_not_change() -> None:
    env = DictObservationWrapper(EdgeCloudEnv(tiny()), mask_dtype=bool)
    kept = [env.reset(seed=1)[0]["action_mask"]]
    copies = [kept[0].copy()]
    for _ in range(40):
        kept.append(env.step(np.array([2, 2, 1]))[0]["action_mask"])
        copies.append(kept[-1].copy())
    assert all(np.array_equal(one, other) for one, other in zip(kept, copies, strict=True))
    assert len({one.tobytes() for one in kept}) > 1


@pytest.mark.parametrize("flat", [False, True])
def test_many_worlds_have_the_masks_of_single_ones(flat: bool) -> None:
    """In the form of Gymnasium's own vector environment, the last observations of episodes included."""
    options: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP}
    own = EdgeCloudVectorEnv(3, tiny(episode__requests=3), flat_actions=flat)
    if own.metadata["autoreset_mode"] is not AutoresetMode.SAME_STEP:
        own = EdgeCloudVectorEnv(3, tiny(episode__requests=3), flat_actions=flat, **options)
    envs = DictObservationVectorWrapper(own, "obs", "mask", np.float32)
    each = [lambda: DictObservationWrapper(scalar(flat), "obs", "mask", np.float32)] * 3
    sync = SyncVectorEnv(each, **options)  # type: ignore[arg-type]
    assert envs.observation_space == sync.observation_space
    assert envs.single_observation_space == sync.single_observation_space
    found, expected = envs.reset(seed=7)[0], sync.reset(seed=7)[0]
    rng, ends = np.random.default_rng(7), 0
    for _ in range(200):
        assert found["obs"].tobytes() == expected["obs"].tobytes()
        assert found["mask"].dtype == np.float32
        assert found["mask"].tobytes() == expected["mask"].tobytes()
        assert envs.observation_space.contains(found)
        actions = sampled(envs, rng)
        found, *_, infos = envs.step(actions)
        expected, *_, same = sync.step(actions)
        assert ("final_obs" in infos) == ("final_obs" in same)
        for world in np.flatnonzero(infos.get("_final_obs", [])).tolist():
            ends += 1
            for key in ("obs", "mask"):
                one, other = infos["final_obs"][world][key], same["final_obs"][world][key]
                assert one.dtype == other.dtype
                np.testing.assert_array_equal(one, other)
    assert ends >= 3


def test_wrong_arguments_of_the_wrappers_are_named() -> None:
    env = EdgeCloudEnv(tiny())
    with pytest.raises(ValueError, match="are both 'x'"):
        DictObservationWrapper(env, "x", "x")
    with pytest.raises(ValueError, match="must be text"):
        DictObservationWrapper(env, "", "x")
    with pytest.raises(ValueError, match="mask_dtype = 'complex128'"):
        DictObservationWrapper(env, mask_dtype=complex)
    with pytest.raises(TypeError, match="EdgeCloudEnv, got CartPoleEnv"):
        DictObservationWrapper(gym.make("CartPole-v1"))
    with pytest.raises(TypeError, match="must be inside DictObservationWrapper"):
        FlatActionWrapper(DictObservationWrapper(env))
    sync = SyncVectorEnv([lambda: EdgeCloudEnv(tiny())])
    with pytest.raises(TypeError, match="got SyncVectorEnv; into that put"):
        DictObservationVectorWrapper(sync)  # type: ignore[arg-type]


def test_masks_for_sampling_are_what_the_spaces_take() -> None:
    env, flat = EdgeCloudEnv(tiny()), FlatActionWrapper(EdgeCloudEnv(tiny()))
    env.reset(seed=1)
    flat.reset(seed=1)
    for space in (env.action_space, flat.action_space):
        space.seed(1)
    for _ in range(60):
        action = env.action_space.sample(mask=env.sample_mask())
        bounds = np.cumsum([0, *env.actions.nvec])[:-1]
        assert env.action_masks()[bounds + action].all()
        index = flat.action_space.sample(mask=flat.sample_mask())
        assert flat.action_masks()[index]
        if any(env.step(action)[2:4]):
            env.reset()
        if any(flat.step(index)[2:4]):
            flat.reset()


@pytest.mark.parametrize("flat", [False, True])
def test_masks_for_sampling_of_many_worlds(flat: bool) -> None:
    envs = DictObservationVectorWrapper(EdgeCloudVectorEnv(3, tiny(), flat_actions=flat))
    envs.reset(seed=1)
    single = envs.single_action_space
    for space in (envs.action_space, single):
        space.seed(1)
    bounds = np.cumsum([0, *envs.unwrapped.worlds.actions.nvec])[:-1]  # type: ignore[attr-defined]
    for _ in range(20):
        masks, wanted = envs.action_masks(), envs.sample_mask()
        actions = np.stack([single.sample(mask=mask) for mask in wanted])
        for row, action in zip(masks, actions, strict=True):
            assert row[action] if flat else row[bounds + action].all()
        if flat:
            actions = envs.action_space.sample(mask=wanted)
            assert masks[np.arange(3), actions].all()
        envs.step(actions)


# --- what Gymnasium checks of its own environments, on every registered one ----------------------

IDS = sorted(name for name in gym.registry if name.startswith("dsd_env/"))


def test_there_are_registered_environments() -> None:
    assert ENV_ID in IDS


@pytest.mark.parametrize("env_id", IDS)
@pytest.mark.parametrize("engine", ["auto", "compiled", "reference"])
def test_every_registered_environment_passes_the_checker_in_all_its_render_modes(
    env_id: str, engine: str
) -> None:
    pytest.importorskip("matplotlib")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make(env_id, scenario=tiny(), engine=engine)
        check_env(env.unwrapped)
        env.close()


def test_metadata_say_what_every_engine_can_show() -> None:
    for engine in ("auto", "compiled", "reference"):
        assert EdgeCloudEnv(tiny(), engine=engine).metadata["render_modes"] == ["ansi", "rgb_array"]
    assert EdgeCloudEnv.metadata["render_modes"] == ["ansi", "rgb_array"]


@pytest.mark.parametrize("env_id", IDS)
@pytest.mark.parametrize("engine", ["compiled", "reference"])
def test_two_rollouts_of_one_seed_are_equivalent(env_id: str, engine: str) -> None:
    """Gymnasium's test of determinism: spaces, observations, rewards, ends and infos."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one, other = (gym.make(env_id, scenario=tiny(), engine=engine) for _ in range(2))
        first, second = one.reset(seed=0), other.reset(seed=0)
        assert data_equivalence(first[0], second[0])
        assert data_equivalence(first[1], second[1])
        one.action_space.seed(0)
        for _ in range(100):
            action = one.action_space.sample()
            steps = one.step(action), other.step(action)
            for a, b in zip(*steps, strict=True):
                # Metrics that a short episode has no samples for are NaN on both sides.
                assert data_equivalence(a, b) or repr(a) == repr(b)
            if steps[0][2] or steps[0][3]:
                one.reset(seed=1)
                other.reset(seed=1)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("dtype", [np.int8, np.bool_, np.float32])
def test_wrapped_environments_pass_the_checker(flat: bool, dtype: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # What it says of every wrapper.
        warnings.filterwarnings("ignore", message=".*different from the unwrapped version")
        check_env(DictObservationWrapper(scalar(flat), mask_dtype=dtype), skip_render_check=True)
