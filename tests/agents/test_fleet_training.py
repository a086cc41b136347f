"""Training on the fleet view: the key of the configuration, a run, its export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dsd_env
from agents.config import ConfigError, TrainConfig, load_config
from agents.environments import FleetEnv, TrainingEpisodes, make_vec_env, masks_of
from agents.export import export_run
from agents.horizons import rollout_shape
from agents.seeds import validation_seeds
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


FROM_PLAN = {"decisions": 128, "one_in": 1, "n_envs": 2, "epochs": 30, "rounds": 2, "learning_rate": 0.02}


@pytest.mark.parametrize("algorithm", ["ppo", "maskable_ppo"])
def test_a_warm_start_repeats_a_plan(algorithm: str, tmp_path: Path) -> None:
    config = tiny(
        algorithm=algorithm,
        timesteps=32,
        ppo={"n_steps": 16, "batch_size": 16, "n_epochs": 1, "learning_rate": 1e-9},
        warm_start={"scheduler": "workstation=4/1/colocated", **FROM_PLAN},
    )
    run, scenario = tmp_path / "run", config.load_scenario()
    train(config, run, progress=False)
    figures = json.loads((run / "run.json").read_text())["warm_start"]["result"]
    assert figures["decisions"] == 256 and figures["agreement"] == 1.0
    first = json.loads((run / "validation.jsonl").read_text().splitlines()[0])
    seeds = validation_seeds(2)
    plain = [dsd_env.simulate(scenario, "static:4:1:colocated", seed).metrics for seed in seeds]
    assert first["step"] == 0
    assert first["e2e_s_mean"] == pytest.approx(np.mean([each["e2e_s_mean"] for each in plain]))


def test_a_warm_start_repeats_a_bundle_as_far_as_it_was_asked(tmp_path: Path) -> None:
    """A bundle whose plan depends on what it sees: the learner's own states are asked about as well."""
    pytest.importorskip("onnx")
    teacher = tiny(timesteps=32, seed=5)
    train(teacher, tmp_path / "teacher", progress=False)
    export_run(tmp_path / "teacher", tmp_path / "bundle", "last")
    config = tiny(timesteps=32, warm_start={"scheduler": f"policy:{tmp_path / 'bundle'}", **FROM_PLAN})
    train(config, tmp_path / "run", progress=False)
    record = json.loads((tmp_path / "run" / "run.json").read_text())["warm_start"]
    assert record["scheduler"].startswith("policy:") and record["result"]["agreement"] > 0.8


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"warm_start": {"scheduler": "4/1/moon"}}, r"warm_start.scheduler: plan '4/1/moon'.*policy:DIR"),
        ({"warm_start": {"scheduler": "phone=plain"}}, r"names \['phone'\], the groups are"),
        ({"warm_start": {"scheduler": "policy:nowhere"}}, r"warm_start.scheduler: .*nowhere"),
        (
            {"warm_start": {"scheduler": "policy:configs/policies/slow_cloud_plan/policy"}},
            r"warm_start.scheduler: ",
        ),
        ({"choices": {"gammas": [5], "places": ["own"]}}, r"choices.gammas: 5 is not one of"),
    ],
)
def test_what_makes_no_plans_of_the_scenario_is_told_before_the_run(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=words):
        train(tiny(**changes), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_what_may_not_be_chosen_never_is_in_the_bundle_either(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    config = tiny(choices={"gammas": [2, 8], "places": ["colocated"]}, ppo={**TINY["ppo"], "ent_coef": 1.0})
    train(config, tmp_path / "run", progress=False)
    export_run(tmp_path / "run", tmp_path / "policy", "last")
    loaded = policy.load(tmp_path / "policy")
    space = loaded.fleet_space(config.load_scenario())
    assert len(space.gammas) > 2 and len(space.places) > 1  # the lists are whole
    n = len(loaded.manifest.observation)
    for row in np.random.default_rng(0).uniform(-1.0, 1.0, (100, n)).astype(np.float32):
        [choice] = space.choices(space.plan(loaded.choose(row, space.mask)))
        assert choice.gamma in (2, 8) and choice.place.word == "colocated"


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
        ("choices: {gammas: [4], places: [own]}", "cut actions.… by overrides, or give fleet"),
        ("fleet: {}\nchoices: {gammas: [4]}", r"'choices.places' is missing"),
        ("fleet: {}\ncredit: {kind: request}", "fleet has none"),
    ],
)
def test_wrong_settings_are_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        load_config(path)
