"""Training on the fleet view: the key of the configuration, a run, its export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dsd_env
from agents.config import ConfigError, TrainConfig, load_config
from agents.environments import FleetEnv, TrainingEpisodes, make_vec_env, masks_of
from agents.export import export_run
from agents.horizons import rollout_shape
from agents.training import train
from dsd_env import policy
from dsd_env.envs import EdgeCloudFleetEnv

TINY: dict[str, Any] = {
    "scenario": "single_lan",
    "overrides": {"episode.requests": 4},
    "timesteps": 64,
    "n_envs": 2,
    "fleet": {"control_period_s": 0.25, "grouping": "device"},
    "ppo": {"n_steps": 16, "batch_size": 16, "n_epochs": 1},
    "network": {"actor": [8], "critic": [8]},
    "checkpoint": {"every_steps": 64},
    "validation": {"every_steps": 32, "episodes": 2, "select_by": "e2e_s_mean"},
}


def tiny(**changes: Any) -> TrainConfig:
    return TrainConfig.model_validate({**TINY, **changes})


@pytest.mark.parametrize("algorithm", ["ppo", "maskable_ppo"])
def test_a_run_trains_validates_and_exports(algorithm: str, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    run, config = tmp_path / "run", tiny(algorithm=algorithm)
    assert train(config, run, progress=False).num_timesteps == 64
    assert (run / "best.zip").is_file() and (run / "validation.jsonl").is_file()
    manifest = export_run(run, tmp_path / "policy", "last")
    fleet = manifest.action.fleet
    assert fleet is not None and (fleet.control_period_s, fleet.grouping) == (0.25, "device")
    loaded = policy.load(tmp_path / "policy")
    scenario = config.load_scenario()
    assert loaded.fleet_space(scenario).nvec == config.action_sizes([scenario])
    result = dsd_env.simulate(scenario, f"policy:{tmp_path / 'policy'}", 1)
    assert result.metrics["e2e_s_mean"] > 0.0


@pytest.mark.parametrize("engine", ["compiled", "reference"])
def test_environments_play_the_episodes_that_are_named(engine: str) -> None:
    config = tiny()
    scenario = config.load_scenario()
    assert config.fleet is not None
    make = FleetEnv(scenario, engine, config.fleet.model_dump())
    seeds = TrainingEpisodes(3, 0)
    envs = make_vec_env(scenario, 2, seeds, "dummy", make=make)
    observations = envs.reset()
    alone = EdgeCloudFleetEnv(scenario, 0.25, "device")
    for worker in range(2):
        expected = alone.reset(options={"episode_seed": seeds(worker, 0)})[0]
        assert np.asarray(observations)[worker].tobytes() == expected.tobytes()
    assert masks_of(envs).tolist() == [alone.action_masks().tolist()] * 2
    envs.close()


def test_a_rollout_spans_simulated_time_by_the_period() -> None:
    config = tiny(rollout_s=20.0, rollout_decisions=4096)
    shape = rollout_shape(config, config.load_scenario())
    assert shape is not None
    assert shape.decisions_per_s == 4.0
    assert shape.n_steps * 0.25 == 20.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fleet: {control_period_s: 0}", r"fleet.control_period_s = 0.0: .*greater than 0"),
        ("fleet: {grouping: city}", r"fleet.grouping = 'city'"),
        ("fleet: {period: 1}", r"unknown key 'fleet.period'"),
        ("fleet: {}\nwarm_start: {scheduler: cloud_ar}", "fleet has none of"),
        ("fleet: {}\ncredit: {kind: request}", "fleet has none"),
    ],
)
def test_wrong_settings_are_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        load_config(path)
