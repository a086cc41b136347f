"""One rule for seeds, wherever a user gives one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import dsd_env
from agents.config import ConfigError, load_config
from dsd_env.envs import EdgeCloudEnv, EdgeCloudVectorEnv
from dsd_env.envs.sb3 import CompiledVecEnv
from dsd_env.scenario import load_scenario
from dsd_env.sim.compiled import CompiledSimulation

SCENARIO = load_scenario("single_lan", episode__requests=2)
BAD: list[Any] = [-1, 1.5, True, "1", np.float32(2), 10.0]
TOO_LARGE = [2**63, 2**64, np.uint64(2**63)]


def named(value: object) -> Callable[[int, int], int]:
    return lambda world, episode: value  # type: ignore[return-value]


EPISODES: dict[str, Callable[[Any], object]] = {
    "simulate": lambda seed: dsd_env.simulate(SCENARIO, "cloud_ar", seed),
    "simulate on the reference": lambda seed: dsd_env.simulate(
        SCENARIO, "cloud_ar", seed, engine="reference"
    ),
    "ReferenceSimulation": lambda seed: dsd_env.ReferenceSimulation(SCENARIO, seed),
    "CompiledSimulation": lambda seed: CompiledSimulation(SCENARIO, seed),
    "reset of one": lambda seed: EdgeCloudEnv(SCENARIO).reset(options={"episode_seed": seed}),
    "reset of many": lambda seed: EdgeCloudVectorEnv(2, SCENARIO).reset(options={"episode_seed": [3, seed]}),
    "seeds named": lambda seed: CompiledVecEnv(SCENARIO, 1, episode_seeds=named(seed)).reset(),
}
GENERATORS: dict[str, Callable[[Any], object]] = {
    "reset of one": lambda seed: EdgeCloudEnv(SCENARIO).reset(seed=seed),
    "reset of many": lambda seed: EdgeCloudVectorEnv(2, SCENARIO).reset(seed=seed),
    "reset of many, listed": lambda seed: EdgeCloudVectorEnv(2, SCENARIO).reset(seed=[1, seed]),
    "made with a seed": lambda seed: CompiledVecEnv(SCENARIO, 2, seed),
    "seeded later": lambda seed: CompiledVecEnv(SCENARIO, 2).seed(seed),
}


@pytest.mark.parametrize("way", EPISODES)
def test_episode_seeds_are_checked(way: str) -> None:
    for seed in (*BAD, *TOO_LARGE):
        with pytest.raises(
            ValueError, match=r"seed = .* must be a whole number from 0 to 9223372036854775807"
        ):
            EPISODES[way](seed)
    for seed in (0, 2**63 - 1, np.int64(5), np.uint8(5)):
        EPISODES[way](seed)


@pytest.mark.parametrize("way", GENERATORS)
def test_seeds_of_generators_are_checked(way: str) -> None:
    for seed in BAD:
        with pytest.raises(ValueError, match=r"seed = .* must be a whole number of at least 0"):
            GENERATORS[way](seed)
    for seed in (0, 2**130, np.int64(5)):
        GENERATORS[way](seed)


def test_a_wrong_seed_changes_nothing() -> None:
    envs = EdgeCloudVectorEnv(2, SCENARIO)
    envs.reset(seed=1)
    before = [generator.bit_generator.state for generator in envs.np_random]
    with pytest.raises(ValueError, match="seed = -1"):
        envs.reset(seed=[5, -1])
    assert [generator.bit_generator.state for generator in envs.np_random] == before


def test_a_reset_without_a_seed_can_be_repeated() -> None:
    env = EdgeCloudEnv(SCENARIO)
    _, first = env.reset()
    _, again = env.reset(seed=env.np_random_seed)
    assert again["episode_seed"] == first["episode_seed"]


def test_the_largest_seed_comes_back_in_every_info() -> None:
    largest = 2**63 - 1
    options = {"episode_seed": largest}
    many = gym.make_vec("dsd_env/EdgeCloud-v0", 2, scenario=SCENARIO)
    one_each = gym.make_vec("dsd_env/EdgeCloud-v0", 2, vectorization_mode="sync", scenario=SCENARIO)
    for envs in (many, one_each):
        _, infos = envs.reset(options=dict(options))
        assert infos["episode_seed"].tolist() == [largest] * 2
        envs.close()


def test_a_run_of_a_training_takes_no_true_for_a_seed(tmp_path) -> None:
    for text in ("true", "1.0", "-1", str(2**31), "'1'"):
        (tmp_path / "c.yaml").write_text(f"seed: {text}")
        with pytest.raises(ConfigError, match="seed"):
            load_config(tmp_path / "c.yaml")
    assert load_config("smoke", seed=3).seed == 3


@pytest.mark.parametrize("text", ["-1", "1.5", "one", str(2**63)])
def test_the_scripts_say_what_a_seed_is(
    text: str, checkout, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(checkout / "scripts"))
    import record_traces

    with pytest.raises(SystemExit) as stopped:
        record_traces.parse_arguments([f"--seed={text}"])
    assert stopped.value.code == 2
    assert f"--seed: '{text}' must be a whole number from 0 to {2**63 - 1}" in capsys.readouterr().err
