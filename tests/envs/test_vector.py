"""Many worlds at once are the scalar environment many times over, to the last bit."""

from __future__ import annotations

import logging
import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.performance import benchmark_vector_step
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

pytest.importorskip("numba")

import dsd_env
from dsd_env.envs import (
    ENV_ID,
    REWARD_TERMS,
    EdgeCloudEnv,
    EdgeCloudVectorEnv,
    FlatActionWrapper,
    drawn_scenario,
)
from dsd_env.envs.infos import METRICS, RESOLVED_CODES
from dsd_env.scenario import Scenario, ScenarioError
from dsd_env.sim import engines
from tests.scenarios import tiny

SHORT = 4
"""Requests per episode, so that tests see several episodes."""


def short(**overrides: Any) -> Scenario:
    return tiny(**{"episode__requests": SHORT, **overrides})


CRASHES = {
    "target": {
        "kind": "target_crash",
        "of": "big",
        "mean_interval_s": 0.8,
        "duration_s": {"distribution": "exponential", "mean": 0.3},
    }
}


def mixture() -> list[Scenario]:
    """Three scenarios that differ in rewards, entities, faults and numbers of candidates."""
    return [
        short(faults=CRASHES),
        short(name="narrow", actions__targets_offered=1, reward__weights__latency=0.5),
        short(name="bare", edge_servers={}, actions__targets_offered=1, reward__reference_e2e_s=1.0),
    ]


def actions_of(envs: VectorEnv, generator: np.random.Generator) -> np.ndarray:
    """Return actions that ignore the masks."""
    space = envs.single_action_space
    if isinstance(space, gym.spaces.Discrete):
        return generator.integers(space.n, size=envs.num_envs)
    return np.stack([generator.integers(size, size=envs.num_envs) for size in space.nvec], axis=1)


def assert_same(found: Any, expected: Any, where: str = "infos") -> None:
    """Compare infos of vector environments, arrays with their types and NaN included."""
    if isinstance(expected, dict):
        assert set(found) == set(expected), where
        for key in expected:
            assert_same(found[key], expected[key], f"{where}[{key!r}]")
    elif isinstance(expected, np.ndarray) and expected.dtype == object:
        assert found.dtype == object, where
        assert len(found) == len(expected), where
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other, where)
    elif isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype, where
        np.testing.assert_array_equal(found, expected, err_msg=where)
    else:
        assert type(found) is type(expected), where
        assert found == expected or (found != found and expected != expected), where


def sync(n: int, mode: str = "NextStep", **arguments: Any) -> Any:
    return gym.make_vec(
        ENV_ID,
        num_envs=n,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": mode},
        **arguments,
    )


def same_step(*arguments: Any, **options: Any) -> EdgeCloudVectorEnv:
    """Return environments whose episodes begin where the one before ends."""
    return EdgeCloudVectorEnv(*arguments, autoreset_mode="SameStep", **options)


def rollout(envs: EdgeCloudVectorEnv, steps: int, seed: int | None = 5) -> list[tuple[Any, ...]]:
    """Return what a rollout with fixed actions gives."""
    generator = np.random.default_rng(0)
    trail: list[tuple[Any, ...]] = [envs.reset(seed=seed)]
    for _ in range(steps):
        trail.append(envs.step(actions_of(envs, generator)))
    return trail


# --- the same as scalar environments -------------------------------------------------------------


MODES = [mode.value for mode in AutoresetMode]


@pytest.mark.parametrize(
    ("mode", "engine", "options"),
    [
        *((mode, engine, {}) for mode in MODES for engine in ("reference", "compiled")),
        *((mode, "compiled", {"price_delays": True, "discount_rate_per_s": 0.7}) for mode in MODES),
        ("NextStep", "compiled", {"n_placements": 9}),
        *((mode, "reference", {"infos": "numeric"}) for mode in MODES),
        *(
            (mode, "compiled", {"infos": "numeric", "price_delays": True, "discount_rate_per_s": 0.7})
            for mode in MODES
        ),
        *((mode, "compiled", {"infos": "none"}) for mode in MODES),
        *((mode, "compiled", {"max_episode_steps": 13}) for mode in MODES),
        *((mode, "reference", {"max_episode_steps": 9, "infos": "numeric"}) for mode in MODES),
        # No episode is so short that this does not cut every one off at its first step.
        *((mode, "compiled", {"max_episode_steps": 1}) for mode in MODES),
    ],
)
def test_everything_is_as_in_a_sync_vector_env(mode: str, engine: str, options: dict[str, Any]) -> None:
    n, generator = 3, np.random.default_rng(1)
    envs = EdgeCloudVectorEnv(n, short(), autoreset_mode=mode, **options)
    # Here Gymnasium's `TimeLimit` counts the steps.
    expected = sync(n, mode, scenario=short(), engine=engine, **options)
    assert envs.autoreset_mode is expected.autoreset_mode is envs.metadata["autoreset_mode"]
    assert envs.observation_space == expected.observation_space
    assert envs.action_space == expected.action_space
    (observations, infos), (others, other_infos) = envs.reset(seed=7), expected.reset(seed=7)
    np.testing.assert_array_equal(observations, others)
    assert_same(infos, other_infos)
    ended = np.zeros(n, dtype=int)
    for _ in range(180):
        masks = np.array([env.unwrapped.action_masks() for env in expected.envs])
        np.testing.assert_array_equal(envs.action_masks(), masks)
        actions = actions_of(envs, generator)
        step, other = envs.step(actions), expected.step(actions)
        for one, two in zip(step[:4], other[:4], strict=True):
            assert one.dtype == two.dtype
            np.testing.assert_array_equal(one, two)
        assert_same(step[4], other[4])
        over = step[2] | step[3]
        ended += over
        if mode == "Disabled" and over.any():
            begun = envs.reset(options={"reset_mask": over})
            other_begun = expected.reset(options={"reset_mask": over})
            np.testing.assert_array_equal(begun[0], other_begun[0])
            assert_same(begun[1], other_begun[1])
    assert ended.all()
    assert [generator.bit_generator.state for generator in envs.np_random] == [
        generator.bit_generator.state for generator in expected.np_random
    ]
    assert str(envs.np_random_seed) == str(expected.np_random_seed)
    # Where they stand now, resets without seeds go on alike.
    assert_same(envs.reset()[1], expected.reset()[1])


@pytest.mark.parametrize("flat", [False, True])
def test_the_action_of_a_world_that_begins_anew_counts_for_nothing(flat: bool) -> None:
    nonsense = -7 if flat else (-7, 99, 99)
    one, other = (EdgeCloudVectorEnv(3, short(), flat_actions=flat) for _ in range(2))
    one.reset(seed=3)
    other.reset(seed=3)
    generator, over, begun = np.random.default_rng(0), np.zeros(3, dtype=np.bool_), 0
    for _ in range(300):
        actions = actions_of(one, generator)
        changed = actions.copy()
        changed[over] = nonsense
        step, expected = one.step(changed), other.step(actions)
        for found, as_expected in zip(step[:4], expected[:4], strict=True):
            np.testing.assert_array_equal(found, as_expected)
        assert not step[1][over].any()
        assert not (step[2] | step[3])[over].any()
        begun += int(over.sum())
        over = step[2] | step[3]
    assert begun > 3
    with pytest.raises(ValueError, match=r"world 0: action .* is outside"):
        one.step(np.full_like(actions, 999))


def test_without_autoreset_a_world_that_is_over_must_be_reset() -> None:
    envs = EdgeCloudVectorEnv(2, short(), autoreset_mode=AutoresetMode.DISABLED)
    envs.reset(seed=[0, 1])
    over = np.zeros(2, dtype=np.bool_)
    while not over.any():
        *_, terminations, truncations, _ = envs.step(np.ones((2, 3), dtype=np.int64))
        over = terminations | truncations
    numbers = ", ".join(str(world) for world in np.flatnonzero(over))
    with pytest.raises(gym.error.ResetNeeded, match=rf"worlds \[{numbers}\].*reset_mask"):
        envs.step(np.ones((2, 3), dtype=np.int64))
    envs.reset(options={"reset_mask": over})
    envs.step(np.ones((2, 3), dtype=np.int64))


def test_a_state_that_is_over_begins_anew_at_the_next_step() -> None:
    envs, other = (EdgeCloudVectorEnv(2, short(), max_episode_steps=20) for _ in range(2))
    envs.reset(seed=0)
    for _ in range(15):
        envs.step(np.ones((2, 3), dtype=np.int64))
    other.restore_state(envs.clone_state(0))
    for number in range(16, 30):
        steps = [each.step(np.ones((2, 3), dtype=np.int64)) for each in (envs, other)]
        assert steps[0][3].tolist() == steps[1][3].tolist() == [number == 20] * 2
        assert steps[0][0][0].tobytes() == steps[1][0][0].tobytes() == steps[1][0][1].tobytes()
        if number == 20:
            # The state of the end is an end, too.
            other.restore_state(envs.clone_state(0))
        assert (steps[0][1] == 0.0).tolist()[0] == (number == 21)


def test_terminations_are_told_from_truncations() -> None:
    scenario = short(episode__total_requests=3)
    envs, expected = EdgeCloudVectorEnv(2, scenario), sync(2, scenario=scenario)
    envs.reset(seed=1)
    expected.reset(seed=1)
    generator, ended = np.random.default_rng(2), 0
    while ended < 3:
        actions = actions_of(envs, generator)
        step, other = envs.step(actions), expected.step(actions)
        np.testing.assert_array_equal(step[2], other[2])
        assert not step[3].any()
        ended += int(step[2].sum())


def test_all_worlds_may_end_at_once() -> None:
    scenario = short(episode__horizon_s=1.0, episode__requests=100)
    envs, expected = same_step(2, scenario), sync(2, "SameStep", scenario=scenario)
    envs.reset(seed=1, options={"episode_seed": 3})
    expected.reset(seed=1, options={"episode_seed": 3})
    while True:
        actions = np.zeros((2, 3), dtype=np.int64)
        step, other = envs.step(actions), expected.step(actions)
        assert_same(step[4], other[4])
        if step[3].any():
            break
    assert step[3].all()
    assert "reward_terms" not in step[4]


@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_world_does_not_depend_on_the_others_or_on_threads(n: int, threads: int) -> None:
    envs = EdgeCloudVectorEnv(n, short(), threads=threads)
    alone = EdgeCloudVectorEnv(1, short())
    generator = np.random.default_rng(4)
    observations, other = envs.reset(seed=11)[0], alone.reset(seed=11 + n - 1)[0]
    np.testing.assert_array_equal(observations[-1], other[0])
    for _ in range(150):
        actions = actions_of(envs, generator)
        step, single = envs.step(actions), alone.step(actions[-1:])
        for one, two in zip(step[:4], single[:4], strict=True):
            np.testing.assert_array_equal(one[-1:], two)
    envs.close()


@pytest.mark.parametrize("threads", [2, 5, 16])
def test_threads_change_nothing(threads: int) -> None:
    scenarios, n = mixture(), 7
    one = EdgeCloudVectorEnv(n, scenarios, n_placements=6, price_delays=True)
    many = EdgeCloudVectorEnv(n, scenarios, n_placements=6, price_delays=True, threads=threads)
    for expected, found in zip(rollout(one, 200), rollout(many, 200), strict=True):
        for array, other in zip(found[:-1], expected[:-1], strict=True):
            np.testing.assert_array_equal(array, other)
        assert_same(found[-1], expected[-1])
    many.close()
    many.close()


def test_flat_actions_are_those_of_the_wrapper() -> None:
    envs = same_step(2, short(), flat_actions=True)
    scalars = [FlatActionWrapper(EdgeCloudEnv(short())) for _ in range(2)]
    assert envs.single_action_space == scalars[0].action_space
    envs.reset(seed=3)
    for i, env in enumerate(scalars):
        env.reset(seed=3 + i)
    generator = np.random.default_rng(3)
    ended = 0
    for _ in range(150):
        np.testing.assert_array_equal(envs.action_masks(), [env.action_masks() for env in scalars])
        actions = actions_of(envs, generator)
        step = envs.step(actions)
        for i, env in enumerate(scalars):
            observation, reward, terminated, truncated, _ = env.step(actions[i])
            assert (step[1][i], step[2][i], step[3][i]) == (reward, terminated, truncated)
            if terminated or truncated:
                ended += 1
                observation, _ = env.reset()
            np.testing.assert_array_equal(step[0][i], observation)
    assert ended
    with pytest.raises(ValueError, match="outside Discrete"):
        envs.step(np.array([0, envs.single_action_space.n]))
    with pytest.raises(ValueError, match="shape"):
        envs.step(np.zeros((2, 3), dtype=np.int64))


# --- Gymnasium's conventions ---------------------------------------------------------------------


def test_make_vec_makes_it() -> None:
    envs = gym.make_vec(ENV_ID, num_envs=8, scenario=short())
    assert type(envs.unwrapped) is EdgeCloudVectorEnv
    assert str(envs) == f"EdgeCloudVectorEnv({ENV_ID}, num_envs=8)"
    assert envs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    assert envs.num_envs == 8
    assert envs.observation_space == batch_space(envs.single_observation_space, 8)
    assert envs.action_space == batch_space(envs.single_action_space, 8)
    observations, infos = envs.reset(seed=0)
    assert observations in envs.observation_space
    assert set(infos) == {
        name for key in ("now_s", "dt_s", "decision", "episode_seed", "scenario") for name in (key, f"_{key}")
    }
    for _ in range(20):
        observations, rewards, terminations, truncations, _ = envs.step(envs.action_space.sample())
        assert observations in envs.observation_space
        assert rewards.shape == terminations.shape == truncations.shape == (8,)
        assert terminations.dtype == truncations.dtype == np.bool_
    envs.close()
    assert envs.closed
    assert envs.spec.max_episode_steps is None
    again = gym.make_vec(envs.spec)
    np.testing.assert_array_equal(again.reset(seed=0)[0], envs.reset(seed=0)[0])


def test_the_specification_has_the_limit_on_steps_as_that_of_one_environment() -> None:
    envs = gym.make_vec("dsd_env/EdgeCloud-v0", num_envs=2, scenario="single_lan", max_episode_steps=7)
    assert envs.spec is not None and envs.spec.max_episode_steps == 7
    again = gym.make_vec(envs.spec)
    assert again.spec is not None and again.spec.max_episode_steps == 7
    assert gym.spec("dsd_env/EdgeCloud-v0").max_episode_steps is None
    for each in (envs, again):
        each.close()


def test_gymnasium_measures_its_speed() -> None:
    envs = EdgeCloudVectorEnv(4, short())
    assert benchmark_vector_step(envs, target_duration=1, seed=1) > 100.0


@pytest.mark.parametrize("mode", MODES)
def test_episode_statistics_of_gymnasium_are_right(mode: str) -> None:
    wrap = gym.wrappers.vector.RecordEpisodeStatistics
    envs = gym.wrappers.vector.DictInfoToList(wrap(EdgeCloudVectorEnv(3, short(), autoreset_mode=mode)))
    envs.reset(seed=2)
    generator, returns, lengths, told = np.random.default_rng(0), np.zeros(3), np.zeros(3, dtype=int), 0
    over = np.zeros(3, dtype=np.bool_)
    for _ in range(250):
        _, rewards, terminations, truncations, infos = envs.step(actions_of(envs, generator))
        returns += rewards
        lengths += ~over if mode == "NextStep" else 1
        over = terminations | truncations
        for i in np.flatnonzero(over):
            last = infos[i]["final_info"] if mode == "SameStep" else infos[i]
            assert infos[i]["episode"]["r"] == pytest.approx(returns[i])
            assert infos[i]["episode"]["l"] == lengths[i]
            assert last["episode_metrics"]["requests_completed"] >= SHORT
            returns[i], lengths[i], told = 0.0, 0, told + 1
        if mode == "Disabled" and over.any():
            envs.reset(options={"reset_mask": over})
    assert told >= 3


def wrapped_in(name: str, envs: EdgeCloudVectorEnv) -> Any:
    wrappers = gym.wrappers.vector
    if name == "TransformObservation":
        return wrappers.TransformObservation(envs, func=lambda x: x + 1.0, observation_space=None)
    if name == "NumpyToTorch":
        pytest.importorskip("torch")
        pytest.importorskip("array_api_compat")
        return wrappers.NumpyToTorch(envs, device="cpu")
    if name == "ClipReward":
        return wrappers.ClipReward(envs, -1.0, 1.0)
    if name == "RescaleObservation":
        return wrappers.RescaleObservation(envs, np.float32(0.0), np.float32(1.0))
    return getattr(wrappers, name)(envs)


WRAPPERS = (
    "DictInfoToList",
    "FlattenObservation",
    "TransformObservation",
    "RescaleObservation",
    "NormalizeObservation",
    "NormalizeReward",
    "ClipReward",
    "NumpyToTorch",
)


@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.parametrize(
    ("mode", "infos"), [("NextStep", "full"), ("NextStep", "numeric"), ("SameStep", "numeric")]
)
def test_vector_wrappers_of_gymnasium_work(name: str, mode: str, infos: str) -> None:
    """With NEXT_STEP all do, torch's with numeric infos; docs/environment.md has the table."""
    envs = EdgeCloudVectorEnv(2, short(), autoreset_mode=mode, infos=infos)
    refused: Any = None
    if mode == "SameStep" and name.endswith("Observation"):
        refused = ValueError
    elif name == "NumpyToTorch" and (infos == "full" or mode == "SameStep"):
        refused = (RuntimeError, TypeError, BufferError)
    generator, ended = np.random.default_rng(0), 0

    def run() -> None:
        nonlocal ended
        wrapped = wrapped_in(name, envs)
        observations, _ = wrapped.reset(seed=0)
        for _ in range(150):
            actions: Any = actions_of(envs, generator)
            if name == "NumpyToTorch":
                import torch

                actions = torch.from_numpy(actions)
            observations, rewards, terminations, truncations, _ = wrapped.step(actions)
            ended += int((terminations | truncations).sum())
        assert observations.shape == envs.observation_space.shape
        assert rewards.shape == (2,)

    if refused is None:
        run()
        assert ended
    else:
        with pytest.raises(refused):
            run()


def test_seeds_of_all_kinds_do_what_gymnasium_says() -> None:
    envs, expected = same_step(3, short()), sync(3, "SameStep", scenario=short())
    for seed in (4, [9, 8, 7], [3, None, 5]):
        assert_same(envs.reset(seed=seed)[1], expected.reset(seed=seed)[1])
        assert str(envs.np_random_seed) == str(expected.np_random_seed)
    with pytest.raises(ValueError, match="num_envs = 3"):
        envs.reset(seed=[1, 2])


def test_a_mask_resets_some_worlds_alone() -> None:
    envs, expected = EdgeCloudVectorEnv(3, short()), sync(3, scenario=short())
    envs.reset(seed=1)
    expected.reset(seed=1)
    generator = np.random.default_rng(0)
    for seed in (None, 6, [2, 2, 2]):
        for _ in range(10):
            actions = actions_of(envs, generator)
            envs.step(actions)
            expected.step(actions)
        mask = np.array([True, False, True])
        options = {"reset_mask": mask, "episode_seed": 12} if seed is None else {"reset_mask": mask}
        found, other = (
            envs.reset(seed=seed, options=options),
            expected.reset(seed=seed, options=dict(options)),
        )
        np.testing.assert_array_equal(found[0], other[0])
        assert_same(found[1], other[1])
        assert "reset_mask" in options, "the caller's options are the caller's"
    actions = actions_of(envs, generator)
    assert_same(envs.step(actions)[4], expected.step(actions)[4])


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"reset_mask": [True, False]}, TypeError, "numpy array of bool"),
        ({"reset_mask": np.array([1, 0])}, TypeError, "numpy array of bool"),
        ({"reset_mask": np.array([True])}, ValueError, r"expected \(2,\)"),
        ({"reset_mask": np.array([False, False])}, ValueError, "at least one"),
        ({"episode_seed": -1}, ValueError, "whole number"),
        ({"episode_seed": [1]}, ValueError, "num_envs = 2"),
        ({"low": 1}, ValueError, "unknown reset options"),
    ],
)
def test_wrong_reset_options_are_named(options: dict[str, Any], error: type, words: str) -> None:
    envs = EdgeCloudVectorEnv(2, short())
    with pytest.raises(error, match=words):
        envs.reset(options=options)


def test_episode_seeds_are_those_of_simulate() -> None:
    scenario = short()
    envs = EdgeCloudVectorEnv(2, scenario)
    _, infos = envs.reset(options={"episode_seed": [21, None]})
    assert infos["episode_seed"][0] == 21
    scheduler = dsd_env.make_scheduler("edge_sd:4")
    scheduler.reset(scenario, 21)
    while True:
        decision = scheduler.decide(envs.get_attr("view")[0])
        action = envs.call("actions")[0].encode(decision)
        *_, terminations, truncations, infos = envs.step(np.stack([action, [0, 0, 0]]))
        if terminations[0] or truncations[0]:
            break
    result = dsd_env.simulate(scenario, "edge_sd:4", 21, engine="reference")
    for name, value in result.metrics.items():
        found = infos["episode_metrics"][name][0]
        assert found == value or (math.isnan(found) and math.isnan(value)), name


def test_misuse_says_what_to_do() -> None:
    envs = EdgeCloudVectorEnv(2, short())
    for use in (lambda: envs.step(np.zeros((2, 3), dtype=int)), envs.action_masks):
        with pytest.raises(gym.error.ResetNeeded, match="reset"):
            use()
    envs.reset(options={"reset_mask": np.array([True, False])})
    with pytest.raises(gym.error.ResetNeeded, match="reset"):
        envs.step(np.zeros((2, 3), dtype=np.int64))
    envs.reset(seed=0)
    before = envs.step(np.zeros((2, 3), dtype=np.int64))[4]["now_s"]
    for actions, words in (
        (np.array([[0, 0, 0], [0, 99, 0]]), r"\[0, 99, 0\] is outside"),
        (np.array([[0, 0, 0], [0, -1, 0]]), "outside"),
        (np.zeros((3, 3), dtype=np.int64), "shape"),
        (np.zeros((2, 3)), "integers"),
        (np.zeros((2, 3), dtype=np.bool_), "integers"),
        ([[0, 0, 0], [0, 0, True]], "integers"),
        ([[0, 0, 0], [0, 0]], "integers"),
        (np.zeros((2, 3), dtype="<U1"), "integers"),
    ):
        with pytest.raises(ValueError, match=words):
            envs.step(actions)
    np.testing.assert_array_equal(envs.get_attr("now_s"), before)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"engine": "reference"}, "vectorization_mode='sync'"),
        ({"engine": "warp"}, "compiled engine alone"),
        ({"render_mode": "rgb_array"}, "is not one of"),
        ({"discount_rate_per_s": -1.0}, "at least 0"),
        ({"num_envs": 0}, "at least 1"),
        ({"threads": 0}, "threads = 0"),
        ({"n_placements": 2}, "less than the 6 candidates"),
        ({"autoreset_mode": "next_step"}, "autoreset_mode = 'next_step' is not one of.*NextStep"),
        ({"max_episode_steps": 0}, "max_episode_steps = 0"),
        ({"max_episode_steps": 1.5}, "max_episode_steps = 1.5"),
        ({"max_episode_steps": True}, "max_episode_steps = True"),
        ({"infos": "some"}, "infos = 'some' is not one of"),
        ({"infos": "numeric", "step_infos": False}, "step_infos must be True"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        EdgeCloudVectorEnv(**{"num_envs": 1, "scenario": short(), **arguments})


def test_members_answer_like_a_scalar_environment() -> None:
    envs = EdgeCloudVectorEnv(2, short(), render_mode="ansi")
    env = EdgeCloudEnv(short(), render_mode="ansi")
    envs.reset(seed=[5, 1])
    env.reset(seed=1)
    for _ in range(20):
        envs.step(np.array([[0, 0, 0], [3, 2, 1]]))
        env.step(np.array([3, 2, 1]))
    assert envs.render()[1] == env.render()
    assert envs.get_attr("view")[1] == env.view
    np.testing.assert_array_equal(envs.call("action_masks")[1], env.action_masks())
    assert envs.call("describe")[1]["request_id"] == env.view.request_id
    assert envs.get_attr("simulation")[1].totals == env.simulation.totals
    assert envs.get_attr("action_space")[0] == env.action_space
    envs.set_attr("label", ["a", "b"])
    assert envs.get_attr("label") == ("a", "b")
    envs.set_attr("label", 3)
    assert envs.get_attr("label") == (3, 3)
    with pytest.raises(ValueError, match="num_envs"):
        envs.set_attr("label", [1, 2, 3])
    with pytest.raises(RuntimeError, match="belongs to an environment"):
        envs.get_attr("simulation")[0].next_decision()


def test_rendering_without_a_mode_warns() -> None:
    envs = EdgeCloudVectorEnv(1, short())
    envs.reset(seed=0)
    with pytest.warns(UserWarning, match="without a render mode"):
        assert envs.render() == (None,)


# --- arrays ---------------------------------------------------------------------------------------


def test_observations_are_copies_unless_asked_otherwise() -> None:
    envs = EdgeCloudVectorEnv(2, short())
    first, _ = envs.reset(seed=0)
    kept, masks = first.copy(), envs.action_masks()
    kept_masks = masks.copy()
    for _ in range(10):
        envs.step(np.ones((2, 3), dtype=np.int64))
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(masks, kept_masks)

    shared = EdgeCloudVectorEnv(2, short(), copy=False)
    one, _ = shared.reset(seed=0)
    two = shared.step(np.ones((2, 3), dtype=np.int64))[0]
    assert one is two
    assert shared.action_masks() is shared.action_masks()


def test_a_trainers_arrays_are_written_in_place() -> None:
    envs = EdgeCloudVectorEnv(2, short(), copy=False)
    expected = rollout(EdgeCloudVectorEnv(2, short()), 150)
    pages = np.full((151, *envs.observation_space.shape), np.nan, dtype=np.float32)
    masks = np.zeros((2, int(envs.single_action_space.nvec.sum())), dtype=np.bool_)
    generator, ended = np.random.default_rng(0), 0
    envs.write_into(pages[0], masks)
    observations, _ = envs.reset(seed=5)
    assert observations is not pages
    assert np.shares_memory(observations, pages[0])
    for step in range(1, 151):
        envs.write_into(observations=pages[step])
        infos = envs.step(actions_of(envs, generator))[4]
        assert_same(infos, expected[step][4])
        ended += int(np.sum(infos.get("_episode_metrics", 0)))
    assert ended
    np.testing.assert_array_equal(pages, [step[0] for step in expected])
    np.testing.assert_array_equal(masks, [member.action_masks() for member in envs.worlds.members])
    for wrong, words in (
        (np.zeros((2, 3), dtype=np.float32), "expected float32 of shape"),
        (pages[0].astype(np.float64), "expected float32"),
        (np.zeros((pages.shape[2], 2), dtype=np.float32).T, "contiguous"),
    ):
        with pytest.raises(ValueError, match=words):
            envs.write_into(observations=wrong)


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_infos_can_be_left_out(mode: str) -> None:
    envs, full = (
        EdgeCloudVectorEnv(2, short(), step_infos=told, autoreset_mode=mode) for told in (False, True)
    )
    ended, over = 0, np.zeros(2, dtype=np.bool_)
    for found, expected in zip(rollout(envs, 150)[1:], rollout(full, 150)[1:], strict=True):
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_array_equal(found[1], expected[1])
        infos, before, over = found[4], over, found[2] | found[3]
        if mode == "SameStep" and over.any():
            ended += 1
            assert_same(infos["final_info"], expected[4]["final_info"])
            assert_same(infos["episode_seed"], expected[4]["episode_seed"])
        elif mode == "NextStep" and over.any():
            ended += 1
            assert_same(infos["episode_metrics"], expected[4]["episode_metrics"])
            assert infos["_resolved"].tolist() == over.tolist()
        elif mode == "NextStep" and before.any():
            assert_same(infos["episode_seed"], expected[4]["episode_seed"])
            assert infos["_decision"].tolist() == before.tolist()
        else:
            assert infos == {}
    assert ended


def test_numeric_infos_are_alike_at_every_reset_and_step() -> None:
    envs = EdgeCloudVectorEnv(
        3, mixture(), n_placements=6, infos="numeric", price_delays=True, discount_rate_per_s=0.1
    )
    shapes: set[tuple[Any, ...]] = set()
    scenarios: set[tuple[int, str]] = set()
    trail = rollout(envs, 200)
    for infos in (entry[-1] for entry in trail):
        shapes.add(tuple(sorted((key, value.dtype.str, value.shape) for key, value in infos.items())))
        assert all(infos["_" + key].all() for key in infos if not key.startswith("_"))
        for seed, number in zip(
            infos["episode_seed"].tolist(), infos["scenario_index"].tolist(), strict=True
        ):
            scenarios.add((number, mixture()[drawn_scenario(seed, 3)].name))
    assert len(shapes) == 1
    assert all(dtype[1] in "bif" for _, dtype, _ in next(iter(shapes)))
    assert scenarios == {(0, "tiny"), (1, "narrow"), (2, "bare")}
    told = np.array([entry[-1]["has_episode_metrics"] for entry in trail])
    ends = np.array([np.zeros(3, dtype=bool), *(entry[2] | entry[3] for entry in trail[1:])])
    np.testing.assert_array_equal(told, ends)
    completed = METRICS.index("requests_completed")
    values = np.array([entry[-1]["episode_metrics"][:, completed] for entry in trail])
    assert np.isfinite(values[told]).all()
    assert np.isnan(values[~told]).all()
    codes = set(np.concatenate([entry[-1]["resolved_code"] for entry in trail]).tolist())
    assert codes == set(RESOLVED_CODES.values())


def test_codes_of_reasons_are_the_engines() -> None:
    from dsd_env.laws.resolve import REASONS

    assert tuple(RESOLVED_CODES) == REASONS
    assert tuple(RESOLVED_CODES.values()) == tuple(range(len(REASONS)))


# --- mixtures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["reference", "compiled"])
def test_every_episode_of_a_mixture_is_the_scalar_one_of_its_scenario_and_seed(engine: str) -> None:
    scenarios, n = mixture(), 3
    envs = same_step(n, scenarios, n_placements=6)
    scalars = {
        (scenario.name, i): EdgeCloudEnv(scenario, n_placements=6, engine=engine)
        for scenario in scenarios
        for i in range(n)
    }
    assert all(env.observation_space == envs.single_observation_space for env in scalars.values())
    assert all(env.action_space == envs.single_action_space for env in scalars.values())
    running: list[EdgeCloudEnv | None] = [None] * n
    seen: list[str] = []
    reasons: set[str | None] = set()
    absent = 0

    def begin(i: int, observation: np.ndarray, infos: dict[str, Any]) -> None:
        name, seed = infos["scenario"][i], int(infos["episode_seed"][i])
        assert name == scenarios[drawn_scenario(seed, len(scenarios))].name
        running[i] = scalars[name, i]
        expected, info = running[i].reset(options={"episode_seed": seed})
        np.testing.assert_array_equal(observation, expected)
        assert info["scenario"] == name
        seen.append(name)

    observations, infos = envs.reset(seed=0)
    for i in range(n):
        begin(i, observations[i], infos)
    generator = np.random.default_rng(1)
    for _ in range(400):
        masks = envs.action_masks()
        actions = actions_of(envs, generator)
        observations, rewards, terminations, truncations, infos = envs.step(actions)
        for i, env in enumerate(running):
            np.testing.assert_array_equal(masks[i], env.action_masks())
            absent += int(actions[i, 2] >= env.scenario.n_placements)
            observation, reward, terminated, truncated, info = env.step(actions[i])
            assert (rewards[i], terminations[i], truncations[i]) == (reward, terminated, truncated)
            final = infos["final_info"] if terminated or truncated else infos
            assert final["resolved"][i] == info["resolved"]
            reasons.add(info["resolved"])
            assert final["invalid_actions"][i] == info["invalid_actions"]
            for term in REWARD_TERMS:
                assert final["reward_terms"][term][i] == info["reward_terms"][term]
            if terminated or truncated:
                np.testing.assert_array_equal(infos["final_obs"][i], observation)
                assert final["scenario"][i] == info["scenario"]
                assert final["episode_seed"][i] == info["episode_seed"]
                begin(i, observations[i], infos)
            else:
                np.testing.assert_array_equal(observations[i], observation)
    assert set(seen) == {"tiny", "narrow", "bare"}
    assert reasons == {None, "no_drafter", "batch_clipped", "target_down"}
    assert len(seen) > 2 * n
    assert absent > 20


def test_draws_of_scenarios_are_fair_and_repeat() -> None:
    drawn = np.array([drawn_scenario(seed, 3) for seed in range(6000)])
    counts = np.bincount(drawn, minlength=3)
    assert len(counts) == 3
    assert np.abs(counts - 2000).max() < 5 * math.sqrt(6000 * 2 / 9)
    assert drawn.tolist()[:50] == [drawn_scenario(seed, 3) for seed in range(50)]


def test_a_scenario_listed_twice_is_drawn_twice_as_often() -> None:
    names = []
    scenarios = [short(), short(), short(name="other")]
    envs = EdgeCloudVectorEnv(8, scenarios)
    for seed in range(40):
        names += list(envs.reset(seed=seed * 8)[1]["scenario"])
    assert 0.55 < names.count("tiny") / len(names) < 0.78


def test_shipped_scenarios_mix() -> None:
    for scenarios, options in (
        (["metro", "wan", "overload"], {}),
        (["heavy_draft", "metro"], {"n_placements": 18}),
    ):
        envs = EdgeCloudVectorEnv(6, scenarios, **options)
        _, infos = envs.reset(seed=0)
        assert set(infos["scenario"]) == set(scenarios)
        for _ in range(10):
            assert envs.step(envs.action_space.sample())[0] in envs.observation_space


def test_a_mixture_of_one_is_that_scenario() -> None:
    one, listed = EdgeCloudVectorEnv(2, short()), EdgeCloudVectorEnv(2, [short()])
    for expected, found in zip(rollout(one, 30), rollout(listed, 30), strict=True):
        np.testing.assert_array_equal(found[0], expected[0])


def test_the_number_of_worlds_does_not_matter_to_a_mixture() -> None:
    many = EdgeCloudVectorEnv(5, mixture(), n_placements=6)
    alone = EdgeCloudVectorEnv(1, mixture(), n_placements=6)
    generator = np.random.default_rng(0)
    many.reset(seed=2)
    alone.reset(seed=2 + 3)
    for _ in range(200):
        actions = actions_of(many, generator)
        step, single = many.step(actions), alone.step(actions[3:4])
        for one, two in zip(step[:4], single[:4], strict=True):
            np.testing.assert_array_equal(one[3:4], two)


@pytest.mark.parametrize(
    ("scenarios", "options", "words"),
    [
        (
            [tiny(), tiny(name="n", actions__gammas=[0, 3])],
            {},
            r"actions.gammas = \[0, 1.*load_scenario\('n'",
        ),
        ([tiny(), tiny(name="n", actions__batch_sizes=[1, 3])], {}, "actions.batch_sizes"),
        ([tiny(), tiny(name="n", actions__targets_offered=1)], {}, "have 6 and 3 placements.*n_placements=6"),
        ([tiny(), tiny(name="n", actions__targets_offered=1)], {"n_placements": 4}, "n_placements = 4"),
        ([tiny(), tiny(episode__requests=7)], {}, "named 'tiny'.*name="),
        ([], {}, "at least one"),
    ],
)
def test_mixtures_that_cannot_be_are_explained(
    scenarios: list[Scenario], options: dict[str, Any], words: str
) -> None:
    with pytest.raises((ValueError, ScenarioError), match=words):
        EdgeCloudVectorEnv(1, scenarios, **options)


def test_the_scalar_environment_takes_one_scenario() -> None:
    with pytest.raises(ValueError, match="make_vec"):
        EdgeCloudEnv(["metro", "wan"])


# --- states to go back to -------------------------------------------------------------------------


def play(env: EdgeCloudEnv, steps: int, action_seed: int = 0) -> list[tuple[Any, ...]]:
    """Play on from where the environment stands, over the ends of episodes."""
    generator, trail = np.random.default_rng(action_seed), []
    for _ in range(steps):
        observation, reward, terminated, truncated, info = env.step(
            np.array([generator.integers(size) for size in env.actions.nvec])
        )
        masks = env.action_masks().tobytes()
        trail.append((observation.tobytes(), reward, terminated, truncated, repr(info), masks))
        if terminated or truncated:
            observation, info = env.reset()
            trail.append((observation.tobytes(), repr(info), repr(env.view)))
    return trail


@pytest.mark.parametrize("engine", ["compiled", "reference"])
def test_a_restored_environment_goes_on_as_if_never_left(engine: str) -> None:
    env = EdgeCloudEnv(short(), engine=engine, price_delays=True, discount_rate_per_s=0.1)
    env.reset(seed=3)
    play(env, 17)
    state = env.clone_state()
    here = env.view, env.action_masks().tobytes()
    first = play(env, 150)
    assert any(len(entry) == 3 for entry in first), "the future has an end of an episode in it"
    for _ in range(2):
        # What comes in between may be anything: other actions, other seeds.
        play(env, 23, action_seed=9)
        env.reset(seed=77)
        observation = env.restore_state(state)
        assert observation in env.observation_space
        assert (env.view, env.action_masks().tobytes()) == here
        assert play(env, 150) == first
    # Another environment of the same arguments goes on likewise.
    other = EdgeCloudEnv(short(), engine=engine, price_delays=True, discount_rate_per_s=0.1)
    other.restore_state(state)
    assert play(other, 150) == first


@pytest.mark.parametrize("engine", ["compiled", "reference"])
def test_a_state_at_an_end_is_an_end(engine: str) -> None:
    env = EdgeCloudEnv(short(), engine=engine)
    env.reset(seed=1)
    while True:
        *_, terminated, truncated, _ = env.step(np.array([1, 1, 0]))
        if terminated or truncated:
            break
    metrics = env.simulation.metrics()
    state = env.clone_state()
    following = env.reset()[1]["episode_seed"]
    env.restore_state(state)
    assert env.simulation.metrics() == pytest.approx(metrics, rel=0, abs=0, nan_ok=True)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.array([1, 1, 0]))
    assert env.reset()[1]["episode_seed"] == following


def test_looking_ahead_in_many_worlds_does_not_disturb_the_one() -> None:
    env, undisturbed = EdgeCloudEnv(short()), EdgeCloudEnv(short())
    env.reset(seed=5)
    undisturbed.reset(seed=5)
    plans = EdgeCloudVectorEnv(4, short())
    for _ in range(10):
        observations = plans.restore_state(env.clone_state())
        assert (observations == observations[0]).all()
        best = plans.step(np.array([[g, 1, 0] for g in range(4)]))
        env_state = env.clone_state()
        step = env.step(np.array([2, 1, 0]))
        np.testing.assert_array_equal(best[0][2], step[0])
        assert best[1][2] == step[1]
        env.restore_state(env_state)
        one, other = env.step(np.array([1, 1, 0])), undisturbed.step(np.array([1, 1, 0]))
        assert one[0].tobytes() == other[0].tobytes()
        assert one[1:4] == other[1:4]


def test_states_travel_between_worlds_of_a_mixture() -> None:
    envs = same_step(3, mixture(), n_placements=6)
    generator = np.random.default_rng(0)
    for seed in range(6):
        envs.reset(seed=seed)
        for _ in range(30):
            envs.step(actions_of(envs, generator))
        state = envs.clone_state(0)
        env = EdgeCloudEnv(state.scenario, n_placements=6)
        env.restore_state(state)
        envs.restore_state(state, [2])
        for _ in range(40):
            actions = np.repeat(actions_of(envs, generator)[:1], 3, axis=0)
            observations, rewards, terminations, truncations, infos = envs.step(actions)
            expected, reward, terminated, truncated, info = env.step(actions[0])
            for i in (0, 2):
                last = infos["final_obs"][i] if terminated or truncated else observations[i]
                np.testing.assert_array_equal(last, expected)
                assert (rewards[i], terminations[i], truncations[i]) == (reward, terminated, truncated)
            if terminated or truncated:
                assert infos["final_info"]["invalid_actions"][2] == info["invalid_actions"]
                break


def test_states_that_do_not_fit_are_refused() -> None:
    env = EdgeCloudEnv(short())
    with pytest.raises(gym.error.ResetNeeded):
        env.clone_state()
    env.reset(seed=0)
    state = env.clone_state()
    with pytest.raises(ValueError, match="another n_placements"):
        EdgeCloudEnv(short(), n_placements=7).restore_state(state)
    with pytest.raises(ValueError, match="scenario 'tiny'"):
        EdgeCloudEnv(short(episode__requests=3)).restore_state(state)
    with pytest.raises(ValueError, match="engine 'compiled'"):
        EdgeCloudEnv(short(), engine="reference").restore_state(state)
    reference = EdgeCloudEnv(short(), engine="reference")
    reference.reset(seed=0)
    with pytest.raises(ValueError, match="engine 'reference'"):
        EdgeCloudVectorEnv(1, short()).restore_state(reference.clone_state())


# --- bounds and first use -------------------------------------------------------------------------


def test_bounds_of_the_engine_can_be_raised() -> None:
    from dsd_env.sim.compiled import EngineError

    for options, fails in (({"heap_events": 8}, True), ({"heap_events": 4096}, False)):
        envs = EdgeCloudVectorEnv(2, short(), engine_options=options)
        if fails:
            with pytest.raises(EngineError, match="heap_events"):
                rollout(envs, 100)
        else:
            rollout(envs, 100)


def test_an_episode_without_a_decision_is_explained() -> None:
    with pytest.raises(RuntimeError, match="horizon_s = 1e-06"):
        EdgeCloudVectorEnv(2, short(episode__horizon_s=1e-6)).reset(seed=0)


def test_a_long_compilation_is_announced(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import time

    monkeypatch.setattr(engines, "PATIENCE_S", 0.02)
    with caplog.at_level(logging.WARNING, logger="dsd_env"):
        with engines.announced(lambda: False):
            pass
        with engines.announced(lambda: True):
            time.sleep(0.3)
        assert not caplog.messages
        with engines.announced(lambda: False):
            time.sleep(0.3)
    assert ["compiling the simulator" in message for message in caplog.messages] == [True]


def test_an_unknown_bound_of_the_engine_is_named() -> None:
    with pytest.raises(ValueError, match=r"unknown engine options \['heap'\].*heap_events"):
        EdgeCloudVectorEnv(1, short(), engine_options={"heap": 8})
