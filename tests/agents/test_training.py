"""Training: configuration, seeds, checkpoints, resuming, warm start."""

from __future__ import annotations

import json
import math
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
import yaml

from agents import checkpoints
from agents.callbacks import ValidationCallback
from agents.config import ConfigError, Credit, TrainConfig, WarmStart, load_config
from agents.environments import (
    NamedEpisodes,
    ScenarioEnv,
    TrainingEpisodes,
    make_vec_env,
    masks_of,
    reset_to,
)
from agents.export import export_run, find_checkpoint
from agents.rollouts import ByActor, BySchedulers, mean_metrics, play
from agents.seeds import (
    DEMONSTRATION_SEEDS,
    TRAINING_SEEDS,
    VALIDATION_SEEDS,
    training_seed,
)
from agents.tracking import tracker_of
from agents.training import RunError, build_model, train
from agents.warm_start import EPISODES_PER_WORLD, collect
from dsd_env import policy
from dsd_env.control import ActionSpace, ObservationEncoder
from dsd_env.files import sha256_of
from dsd_env.paired import EVALUATION_SEEDS
from dsd_env.paths import config_dir
from dsd_env.policy import MlpActor
from dsd_env.schedulers import make_scheduler

TINY = {
    "scenario": "single_lan",
    "overrides": {"episode.requests": 2},
    "timesteps": 128,
    "n_envs": 2,
    "ppo": {"n_steps": 32, "batch_size": 32, "n_epochs": 1},
    "network": {"actor": [8], "critic": [8]},
    "checkpoint": {"every_steps": 64},
    "validation": {"every_steps": 64, "episodes": 1, "select_by": "e2e_s_mean"},
}


def tiny(**changes) -> TrainConfig:
    return TrainConfig.model_validate({**TINY, **changes})


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "finished"
    train(tiny(), run, progress=False)
    return run


# Configuration


@pytest.mark.parametrize("path", sorted((config_dir() / "train").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configurations_are_valid(path: Path) -> None:
    config = load_config(path.stem)
    assert config == load_config(path)
    assert config == TrainConfig.model_validate(yaml.safe_load(config.to_yaml())), "saved whole and read back"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("timestep: 5", r"x\.yaml: unknown key 'timestep'"),
        ("ppo: {learning_rat: 1}", r"x\.yaml: unknown key 'ppo.learning_rat'"),
        ("ppo: {gamma: 1.5}", r"x\.yaml: ppo.gamma = 1.5: .*less than or equal to 1"),
        ("algorithm: dqn", r"x\.yaml: algorithm = 'dqn'"),
        ("n_envs: 1\nppo: {n_steps: 8, batch_size: 64}", "exceeds the rollout"),
        ("n_envs: 1\nppo: {n_steps: 9, batch_size: 8}", "does not divide the rollout"),
        ("credit: {kind: request, own_weight: 0}", "all 0"),
        ("validation: {select_by: slo_attainment}", "say 'max' or 'min'"),
        ("warm_start: {decisions: 100}", "'warm_start.scheduler' is missing"),
        ("- 1", "a mapping of keys"),
        ("a: [", "not readable as YAML"),
        ("!!python/object/apply:os.system ['true']", "not readable as YAML"),
    ],
)
def test_wrong_configurations(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path / "x.yaml")


def test_unknown_configuration_lists_the_shipped_ones() -> None:
    with pytest.raises(ConfigError, match=r"no training configuration 'nope'; shipped are \[.*'metro'"):
        load_config("nope")


# Seeds


def test_seed_ranges_are_disjoint() -> None:
    ranges = sorted(
        (TRAINING_SEEDS, VALIDATION_SEEDS, DEMONSTRATION_SEEDS, EVALUATION_SEEDS), key=lambda r: r.start
    )
    assert all(a.stop <= b.start for a, b in pairwise(ranges))


def test_training_episodes_use_training_seeds_whatever_is_asked_for() -> None:
    class Recorder(gym.Env):
        observation_space, action_space = gym.spaces.Box(0, 1, (1,)), gym.spaces.Discrete(2)
        seen: list[int]

        def reset(self, *, seed=None, options=None):
            assert seed is None
            self.seen.append(options["episode_seed"])
            return np.zeros(1, dtype=np.float32), {}

    seen: dict[tuple[int, int, int], list[int]] = {}
    for address in ((0, 0, 0), (0, 1, 0), (1, 0, 0), (0, 0, 4096)):
        env = Recorder()
        env.seen = seen[address] = []
        run_seed, worker, start_step = address
        wrapped = NamedEpisodes(env, TrainingEpisodes(run_seed, start_step), worker)
        for seed in (None, EVALUATION_SEEDS[0], VALIDATION_SEEDS[0], None):
            wrapped.reset(seed=seed)
        assert seen[address] == [training_seed(*address, k) for k in range(4)]
    every = [seed for seeds in seen.values() for seed in seeds]
    assert len(set(every)) == 16
    assert all(seed in TRAINING_SEEDS for seed in every)


def test_an_episode_seed_means_the_same_episode_as_in_simulate() -> None:
    import dsd_env

    scenario = tiny().load_scenario()
    env, seed = ScenarioEnv(scenario)(), VALIDATION_SEEDS[3]
    scheduler = make_scheduler("colocated_sd:2")
    reset_to(env, seed)
    scheduler.reset(scenario, seed)
    done = False
    base: Any = env.unwrapped
    while not done:
        _, _, terminated, truncated, info = env.step(base.actions.encode(scheduler.decide(base.view)))
        done = terminated or truncated
    expected = dsd_env.simulate(scenario, "colocated_sd:2", seed).metrics
    # The environment reads its totals at every step, and a sum in other portions may end on another last bit.
    assert info["episode_metrics"] == pytest.approx(expected, rel=0, abs=0, nan_ok=True)


# Runs


def test_a_run_leaves_everything_behind(finished: Path) -> None:
    config = load_config(finished / "config.yaml")
    assert config == tiny()
    record = json.loads((finished / "run.json").read_text())
    assert record["starts"][0]["versions"]["stable-baselines3"]
    assert json.loads((finished / "scenario.json").read_text())["episode"]["requests"] == 2
    steps = [json.loads(line) for line in (finished / "validation.jsonl").read_text().splitlines()]
    assert [row["step"] for row in steps] == [64, 128]
    best = checkpoints.read(finished / "best.zip")
    assert best.score == min(row["e2e_s_mean"] for row in steps), "times are minimised"
    assert checkpoints.read(finished / "final.zip").num_timesteps == 128
    assert list((finished / "tensorboard").glob("events*"))
    assert not list(finished.rglob("*.tmp"))


def test_existing_runs_are_not_overwritten(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="give --resume to continue"):
        train(tiny(), finished, progress=False)
    with pytest.raises(RunError, match="no run to resume"):
        train(tiny(), tmp_path / "new", resume=True, progress=False)
    with pytest.raises(RunError, match="another configuration"):
        train(tiny(seed=5), finished, resume=True, progress=False)
    (tmp_path / "empty").mkdir()
    train(tiny(timesteps=64, validation=None), tmp_path / "empty", progress=False)


def test_resuming_continues_count_weights_and_optimiser(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    before = checkpoints.newest(run)
    assert before and before.num_timesteps == 128
    final = train(tiny(timesteps=192), run, resume=True, progress=False)
    assert final.num_timesteps == 192
    assert final.n_updates == before.n_updates + 1
    assert [start["step"] for start in json.loads((run / "run.json").read_text())["starts"]] == [0, 128]
    steps = [json.loads(line)["step"] for line in (run / "validation.jsonl").read_text().splitlines()]
    assert steps == [64, 128, 192]


def test_restoring_gives_the_same_learner(finished: Path) -> None:
    config = tiny()
    scenario = config.load_scenario()
    vec_env = make_vec_env(scenario, 2, TrainingEpisodes(0, 0), "compiled")
    model = build_model(config, scenario, vec_env)
    checkpoint = checkpoints.newest(finished)
    assert checkpoint
    checkpoints.restore(model, checkpoint)
    from stable_baselines3.common.save_util import load_from_zip_file

    saved: Any = load_from_zip_file(str(checkpoint.path), load_data=False)[1]
    for name, tensor in model.policy.state_dict().items():
        assert th.equal(tensor, saved["policy"][name])
    assert (
        model.policy.optimizer.state_dict()["state"][0]["step"]
        == saved["policy.optimizer"]["state"][0]["step"]
    )
    assert model.num_timesteps == 128
    other = build_model(tiny(network={"actor": [9]}), scenario, vec_env)
    with pytest.raises(checkpoints.CheckpointError, match="does not fit"):
        checkpoints.restore(other, checkpoint)


def test_damaged_checkpoints_are_passed_over(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    paths = sorted((run / "checkpoints").glob("*.zip"))
    assert [int(path.stem.split("_")[1]) for path in paths] == [64, 128]
    paths[1].write_bytes(paths[1].read_bytes()[:-100])
    newest = checkpoints.newest(run)
    assert newest and newest.num_timesteps == 64
    paths[0].with_suffix(".json").unlink()
    assert checkpoints.newest(run) is None
    with pytest.raises(checkpoints.CheckpointError, match="SHA-256"):
        checkpoints.read(paths[1])


def test_old_checkpoints_are_pruned(tmp_path: Path) -> None:
    config = tiny(timesteps=256, checkpoint={"every_steps": 32, "keep": 2}, validation=None)
    train(config, tmp_path / "run", progress=False)
    steps = sorted(int(p.stem.split("_")[1]) for p in (tmp_path / "run" / "checkpoints").glob("*.zip"))
    assert steps == [192, 256]


def test_the_same_run_twice_is_the_same_run(finished: Path, tmp_path: Path) -> None:
    train(tiny(), tmp_path / "again", progress=False)
    assert (tmp_path / "again" / "validation.jsonl").read_text() == (
        finished / "validation.jsonl"
    ).read_text()


def test_interrupt_saves_a_checkpoint(tmp_path: Path) -> None:
    class Interrupts(gym.Wrapper):
        steps = 0

        def step(self, action):
            Interrupts.steps += 1
            if Interrupts.steps == 70:
                raise KeyboardInterrupt
            return self.env.step(action)

    config = tiny(n_envs=1, vec_env="dummy", timesteps=1000, validation=None, checkpoint={"every_steps": 500})
    make = ScenarioEnv(config.load_scenario())
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run", progress=False, make_env=lambda: Interrupts(make()))
    saved = checkpoints.newest(tmp_path / "run")
    assert saved and saved.num_timesteps == 69


@pytest.mark.parametrize("algorithm", ["ppo", "maskable_ppo"])
def test_request_credit_and_warm_start_run_end_to_end(
    algorithm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny(
        algorithm=algorithm,
        credit={"kind": "request", "own_weight": 1.0, "global_weight": 0.1},
        warm_start={"scheduler": "colocated_sd:4", "decisions": 128, "one_in": 1, "epochs": 2},
        timesteps=64,
    )
    train(config, tmp_path / "run", progress=False)
    said = capsys.readouterr().err
    assert not [bar for bar in ("collecting", "imitating", "critic") if bar in said]
    manifest = export_run(tmp_path / "run", tmp_path / "policy")
    assert "colocated_sd:4" in (manifest.training.warm_start or "")
    assert json.loads(manifest.training.warm_start or "")["result"]["decisions"] == 256
    policy.load(tmp_path / "policy").check_scenario(config.load_scenario())


def test_worker_processes(tmp_path: Path) -> None:
    final = train(tiny(vec_env="subproc", timesteps=64, validation=None), tmp_path / "run", progress=False)
    assert final.num_timesteps == 64


# Warm start


def test_warm_start_reproduces_the_scheduler(tmp_path: Path) -> None:
    config = tiny(
        timesteps=64,
        ppo={"n_steps": 32, "batch_size": 32, "n_epochs": 1, "learning_rate": 1e-9},
        warm_start={
            "scheduler": "colocated_sd:4",
            "decisions": 400,
            "one_in": 1,
            "epochs": 30,
            "learning_rate": 0.01,
        },
    )
    train(config, tmp_path / "run", progress=False)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["warm_start"]["result"]["agreement"] > 0.95
    first = (tmp_path / "run" / "validation.jsonl").read_text().splitlines()[0]
    assert json.loads(first)["step"] == 0, "what imitation alone reaches is on record"
    import dsd_env

    scenario = config.load_scenario()
    export_run(tmp_path / "run", tmp_path / "policy")
    learned = dsd_env.simulate(scenario, f"policy:{tmp_path / 'policy'}", 1).metrics["e2e_s_mean"]
    taught = dsd_env.simulate(scenario, "colocated_sd:4", 1).metrics["e2e_s_mean"]
    assert learned == pytest.approx(taught, rel=0.1)


ENGINES = ["compiled", "dummy"]


def make_envs(kind: str, scenario):
    return lambda n, seeds: make_vec_env(scenario, n, seeds, kind, price_delays=True)


def demonstrations(kind: str, scenario, driver=None, credit=Credit(), **options):  # noqa: B008
    settings = WarmStart.model_validate({"scheduler": "cloud_ar", "n_envs": 2, "one_in": 1, **options})
    generator = np.random.default_rng(0)
    first, gamma = DEMONSTRATION_SEEDS[0], 0.5
    envs, teachers = make_envs(kind, scenario), {scenario.name: settings.scheduler}
    return collect(envs, scenario, settings, teachers, first, driver, gamma, credit, generator)


@pytest.mark.parametrize("kind", ENGINES)
def test_collected_returns_are_the_discounted_rewards(kind: str) -> None:
    scenario = tiny(overrides={"episode.requests": 4}).load_scenario()
    shown = demonstrations(kind, scenario, decisions=160)
    assert {int(action[0]) for action in shown.actions} == {0}, "plain decoding"
    for world in range(2):
        env = ScenarioEnv(scenario)()
        rewards: list[float] = []
        reset_to(env, DEMONSTRATION_SEEDS[0] + world * EPISODES_PER_WORLD)
        mine = slice(world, None, 2)
        for action in shown.actions[mine]:
            _, reward, terminated, truncated, _ = env.step(action)
            rewards.append(float(reward))
            if terminated or truncated:
                break
        returns = shown.returns[mine][: len(rewards)]
        known = np.flatnonzero(np.isfinite(returns))
        assert len(known) > 10
        for t in known:
            tail = sum(0.5**k * reward for k, reward in enumerate(rewards[t:]))
            assert returns[t] == pytest.approx(tail, rel=1e-4)


def test_both_engines_show_the_same() -> None:
    scenario = tiny(overrides={"episode.requests": 4}).load_scenario()
    credit = Credit(kind="request", own_weight=1.0, price_weight=1.0)
    nvec = ActionSpace.of(scenario).nvec
    width = len(ObservationEncoder.of(scenario).features)
    driver = MlpActor([(np.zeros((sum(nvec), width)), np.zeros(sum(nvec)))], "tanh", nvec)
    for options in ({}, {"driver": driver, "one_in": 5}):
        settings: Any = {"scheduler": "jsq_goodput", "decisions": 200, "credit": credit, **options}
        one, other = (demonstrations(kind, scenario, **settings) for kind in ENGINES)
        np.testing.assert_array_equal(one.observations, other.observations)
        np.testing.assert_array_equal(one.masks, other.masks)
        np.testing.assert_array_equal(one.actions, other.actions)
        np.testing.assert_array_equal(np.isfinite(one.returns), np.isfinite(other.returns))
        np.testing.assert_allclose(one.returns, other.returns, rtol=1e-6)
        assert 50 < len(one.actions) <= 201


def test_both_engines_are_followed_alike() -> None:
    scenario = tiny(overrides={"episode.requests": 4}).load_scenario()
    seeds = TrainingEpisodes(3, 0)
    envs = [make_vec_env(scenario, 3, seeds, kind, price_delays=True) for kind in ENGINES]
    observations = [env.reset() for env in envs]
    trackers = [tracker_of(env) for env in envs]
    generator = np.random.default_rng(0)
    ended = completions = 0
    for _ in range(400):
        np.testing.assert_array_equal(*observations)
        np.testing.assert_array_equal(*(masks_of(env) for env in envs))
        for ours, theirs in zip(*(tracker.due() for tracker in trackers), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        sizes = ActionSpace.of(scenario).nvec
        actions = np.stack([generator.integers(size, size=3) for size in sizes], axis=1)
        steps = [env.step(actions) for env in envs]
        observations = [step[0] for step in steps]
        for mine, theirs in zip(steps[0][1:3], steps[1][1:3], strict=True):
            np.testing.assert_array_equal(mine, theirs)
        dones = steps[0][2]
        found = [t.completed(step[3], dones) for t, step in zip(trackers, steps, strict=True)]
        order = [np.lexsort((each.moments.requests, each.worlds)) for each in found]
        np.testing.assert_array_equal(found[0].worlds[order[0]], found[1].worlds[order[1]])
        for mine, theirs in zip(found[0].moments, found[1].moments, strict=True):
            np.testing.assert_array_equal(mine[order[0]], theirs[order[1]])
        ended += int(dones.sum())
        completions += len(found[0].worlds)
    assert ended >= 3 and completions >= 12


def test_completions_are_reported_once_each() -> None:
    scenario = tiny(overrides={"episode.requests": 4}).load_scenario()
    env = ScenarioEnv(scenario)()
    _, info = reset_to(env, 0)
    found, done = [], False
    while not done:
        _, _, terminated, truncated, info = env.step(np.array([1, 0, 0]))
        assert all(time_s <= info["now_s"] for _, time_s, *_ in info["completed"])
        found += [(request, time_s) for request, time_s, *_ in info["completed"]]
        done = terminated or truncated
    table = env.get_wrapper_attr("simulation").requests_table()
    assert sorted(found) == sorted(zip(table["request"].tolist(), table["completed_s"].tolist(), strict=True))
    assert len(found) == 4


# Validation and export of runs


@pytest.mark.parametrize("kind", ENGINES)
def test_episodes_are_those_of_simulate_whoever_decides(kind: str) -> None:
    import dsd_env

    scenario = tiny().load_scenario()
    nvec = ActionSpace.of(scenario).nvec
    width = len(ObservationEncoder.of(scenario).features)
    plain = MlpActor([(np.zeros((sum(nvec), width)), np.zeros(sum(nvec)))], "tanh", nvec)
    seeds = [5, 1, 4, 2]
    for decide, name in ((BySchedulers("random"), "random"), (ByActor(plain), "static:0:1:plain")):
        # Fewer environments than episodes: they are refilled.
        episodes = list(play(scenario, seeds, decide, kind=kind, side_by_side=3))
        assert sorted(episode.seed for episode in episodes) == sorted(seeds)
        for episode in episodes:
            np.testing.assert_equal(episode.metrics, dsd_env.simulate(scenario, name, episode.seed).metrics)
            assert episode.reward < 0
    means = mean_metrics(episodes)
    assert math.isnan(means["acceptance_rate"]), "an all-zero actor decodes plainly and drafts nothing"
    assert means["e2e_s_mean"] == pytest.approx(np.mean([e.metrics["e2e_s_mean"] for e in episodes]))
    assert means["return"] == pytest.approx(np.mean([e.reward for e in episodes]))


def test_unknown_metric_is_explained(tmp_path: Path) -> None:
    config = tiny(validation={"select_by": "happiness", "direction": "max", "episodes": 1})
    with pytest.raises(ValueError, match=r"'happiness' is no episode metric; there are \[.*'e2e_s_mean'"):
        train(config, tmp_path / "run", progress=False)


def test_which_checkpoint_is_exported(finished: Path, tmp_path: Path) -> None:
    assert find_checkpoint(finished, "best").path.name == "best.zip"
    assert find_checkpoint(finished, "last").path.name == "final.zip"
    assert find_checkpoint(finished, "checkpoints/step_000000000064.zip").num_timesteps == 64
    with pytest.raises(checkpoints.CheckpointError):
        find_checkpoint(finished, "checkpoints/nope.zip")
    manifest = export_run(finished, tmp_path / "policy", "last")
    assert manifest.training.steps == 128
    assert manifest.training.checkpoint == "final.zip"
    assert manifest.training.config_sha256 == tiny().sha256()
    with pytest.raises(RunError, match=r"config\.yaml is missing"):
        export_run(tmp_path, tmp_path / "other")


def test_export_never_opens_the_pickled_part(finished: Path, tmp_path: Path) -> None:
    import zipfile

    run = tmp_path / "run"
    shutil.copytree(finished, run)
    poisoned = run / "poisoned.zip"
    with zipfile.ZipFile(run / "final.zip") as old, zipfile.ZipFile(poisoned, "w") as new:
        for name in old.namelist():
            # Anything that reads this entry fails.
            new.writestr(name, b"poison" if name == "data" else old.read(name))
    description = json.loads((run / "final.json").read_text())
    description["sha256"] = sha256_of(poisoned)
    (run / "poisoned.json").write_text(json.dumps(description))
    export_run(run, tmp_path / "policy", "poisoned.zip")


def test_a_pickle_among_the_tensors_is_refused(finished: Path, tmp_path: Path) -> None:
    import io
    import zipfile

    run, marker = tmp_path / "run", tmp_path / "executed"
    shutil.copytree(finished, run)

    class Evil:
        def __reduce__(self):
            return Path.touch, (marker,)

    buffer = io.BytesIO()
    th.save(Evil(), buffer)
    with zipfile.ZipFile(run / "final.zip") as old, zipfile.ZipFile(run / "evil.zip", "w") as new:
        for name in old.namelist():
            new.writestr(name, buffer.getvalue() if name == "policy.pth" else old.read(name))
    description = json.loads((run / "final.json").read_text())
    description["sha256"] = sha256_of(run / "evil.zip")
    (run / "evil.json").write_text(json.dumps(description))
    with pytest.raises(checkpoints.CheckpointError):
        export_run(run, tmp_path / "policy", "evil.zip")
    assert not marker.exists()


def test_a_state_that_keeps_the_bound_goes_before_all_that_do_not(tmp_path: Path) -> None:
    bound = {"metric": "slo_attainment", "at_least": 0.95}
    config = tiny(
        validation={"select_by": "cloud_usd_per_1m_tokens", "direction": "min", "subject_to": bound}
    ).validation
    assert config is not None
    callback = ValidationCallback(tmp_path, config, [], "compiled")
    chosen = []
    states = [(2.0, 0.80), (1.0, 0.70), (2.5, 0.90), (3.0, 0.96), (1.0, 0.94), (2.9, 1.0), (2.95, 0.97)]
    for usd, met in states:
        lacks = callback._lacking({"slo_attainment": met})
        if callback._is_better(usd, lacks):
            callback.best, callback._lacks = usd, lacks
            chosen.append((usd, met))
    assert chosen == [(2.0, 0.80), (2.5, 0.90), (3.0, 0.96), (2.9, 1.0)]


def test_the_bound_of_a_validation_is_kept_with_its_checkpoint(tmp_path: Path) -> None:
    bound = {"metric": "ttft_s_mean", "at_least": 1e9}  # nobody waits so long
    validation = {"select_by": "e2e_s_mean", "every_steps": 64, "episodes": 1}
    train(tiny(validation={**validation, "subject_to": bound}), tmp_path / "run", progress=False)
    assert 0.5 <= checkpoints.read(tmp_path / "run" / checkpoints.BEST).lacks <= 1.0
    unknown = {**bound, "metric": "happiness"}
    with pytest.raises(ValueError, match=r"subject_to\.metric = 'happiness' is no episode metric"):
        train(tiny(validation={**validation, "subject_to": unknown}), tmp_path / "other", progress=False)
