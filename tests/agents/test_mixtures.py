"""One policy for several scenarios: training on mixtures, and policies on lists other than their own."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch as th

import dsd_env
from agents.benchmark.cells import Cell
from agents.benchmark.running import metrics_digest, metrics_of
from agents.config import ConfigError, Credit, TrainConfig, load_config
from agents.environments import EachItsOwn, make_vec_env, masks_of
from agents.evaluation import run_group, tasks_of
from agents.export import export_run
from agents.seeds import DEMONSTRATION_SEEDS
from agents.training import build_model, train
from agents.warm_start import collect
from dsd_env.policy import load
from dsd_env.scenario import load_scenario

LONGER = {"actions.gammas": [0, 1, 4, 8, 16]}
PARTS = {
    "lab": {
        "scenario": "single_lan",
        "imitate": "colocated_sd:4",
        "overrides": LONGER | {"episode.requests": 3},
    },
    "cabinets": {"scenario": "flaky_stream", "overrides": {"episode.requests": 12}},
}
MIXED = {
    "mixture": PARTS,
    "overrides": LONGER
    | {"actions.batch_sizes": [1], "episode.warmup_requests": 0, "episode.horizon_s": 3000.0},
    "timesteps": 1024,
    "n_envs": 4,
    "ppo": {"n_steps": 128, "batch_size": 256, "n_epochs": 1},
    "network": {"actor": [8], "critic": [8]},
    "credit": {"kind": "request", "own_weight": 1.0, "price_weight": 1.0},
    "validation": {"every_steps": 10**6, "episodes": 1, "select_by": "e2e_s_mean"},
    "warm_start": {"scheduler": "jsq_goodput", "decisions": 256, "one_in": 1, "n_envs": 4, "epochs": 2},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mixed")
    train(TrainConfig.model_validate(MIXED), folder / "run", progress=False)
    export_run(folder / "run", folder / "policy")
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scenario": "metro"}, "scenario and mixture are both given"),
        ({"mixture": {"lab": {"scenario": "single_lan"}}}, "has one scenario"),
        ({"n_envs": 3}, "n_envs = 3 is no multiple of the 2"),
        ({"vec_env": "dummy"}, "needs vec_env: compiled"),
        ({"rollout_s": 1.0}, "rollout_s: .* differ in pace"),
        ({"validation": {}}, "no common scale"),
        ({"credit": {"kind": "request", "per_token": True}}, "no common price"),
        ({"warm_start": {"scheduler": "cloud_ar", "n_envs": 3}}, "warm_start.n_envs = 3 is no multiple"),
        ({"mixture": PARTS | {"Big": {}}}, "Big"),
    ],
)
def test_impossible_mixtures(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(json.dumps(MIXED | changes))
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path / "x.yaml")


def test_every_world_plays_its_own_scenario() -> None:
    scenarios = TrainConfig.model_validate(MIXED).load_scenarios()
    env = make_vec_env(scenarios, 4, lambda world, episode: 1000 * world + episode, "compiled")
    env.reset()
    played = [[], [], [], []]
    for _ in range(600):
        actions = np.zeros((4, 3), dtype=np.int64)
        env.step(actions)
        for world in range(4):
            played[world].append(env.get_attr("scenario", [world])[0].name)
    assert [set(names) for names in played] == [{"lab"}, {"cabinets"}] * 2
    env.close()


def numbered(world: int, episode: int) -> int:
    return 1000 * world + episode


def test_what_a_scenario_does_not_offer_is_masked() -> None:
    config = TrainConfig.model_validate(MIXED)
    offered = config.offered()
    assert offered is not None and offered[:, :5].tolist() == [[True] * 5, [True] * 4 + [False]]
    env = make_vec_env(config.load_scenarios(), 4, numbered, "compiled", offered=offered)
    env.reset()
    one_by_one = [env.env_method("action_masks", indices=[world])[0] for world in range(4)]
    for masks in (masks_of(env), np.stack(env.env_method("action_masks")), np.stack(one_by_one)):
        assert masks[:, 4].tolist() == [True, False, True, False]
    for _ in range(50):
        stage_masks = masks_of(env)
        env.step(np.zeros((4, 3), dtype=np.int64))
        assert not stage_masks[[1, 3], 4].any()
    env.close()
    with pytest.raises(ValueError, match=r"offered: a mask of shape \(2, "):
        make_vec_env(config.load_scenarios(), 2, numbered, "compiled", offered=offered[:1])


def test_a_teacher_drafts_no_longer_than_is_offered() -> None:
    config = TrainConfig.model_validate(MIXED)
    scenarios, offered = config.load_scenarios(), config.offered()
    settings = config.warm_start.model_copy(update={"decisions": 400})
    teachers = dict.fromkeys(("lab", "cabinets"), "static:16:1:own")
    envs, first = partial(make_vec_env, scenarios, kind="compiled", offered=offered), DEMONSTRATION_SEEDS[0]
    generator = np.random.default_rng(0)
    shown = collect(envs, scenarios[0], settings, teachers, first, None, 0.5, Credit(), generator)
    world = np.arange(len(shown.actions)) % 4
    drafts = shown.actions[:, 0] > 0
    assert set(shown.actions[drafts & (world % 2 == 0), 0]) == {4}
    assert set(shown.actions[drafts & (world % 2 == 1), 0]) == {3}


def test_seeds_of_a_mixture_are_chosen_not_made() -> None:
    seeds = EachItsOwn(lambda world, episode: 7 * world + 11 * episode, 3)
    chosen = [seeds(world, episode) for world in range(6) for episode in range(4)]
    assert len(set(chosen)) == len(chosen)
    assert [dsd_env.envs.drawn_scenario(seed, 3) for seed in chosen] == [
        w % 3 for w in range(6) for _ in range(4)
    ]


def test_credit_counts_in_the_unit_of_each_scenario() -> None:
    config = TrainConfig.model_validate(MIXED)
    scenarios = config.load_scenarios()
    env = make_vec_env(scenarios, 4, lambda world, episode: world, "compiled", price_delays=True)
    th.manual_seed(0)
    weights = build_model(config, scenarios, env).rollout_buffer.weights  # type: ignore[attr-defined]
    expected = [scenario.reward.reference_e2e_s for scenario in scenarios] * 2
    assert weights.reference_s.tolist() == expected and len(set(expected)) == 2
    env.close()


def test_a_run_on_a_mixture_says_so(run: Path) -> None:
    about = json.loads((run / "run" / "scenario.json").read_text())
    assert list(about["mixture"]) == ["lab", "cabinets"]
    record = json.loads((run / "run" / "run.json").read_text())
    assert record["warm_start"]["teachers"] == {"lab": "colocated_sd:4", "cabinets": "jsq_goodput"}
    row = json.loads((run / "run" / "validation.jsonl").read_text().splitlines()[0])
    together = math.sqrt(row["lab/e2e_s_mean"] * row["cabinets/e2e_s_mean"])
    assert row["e2e_s_mean"] == pytest.approx(together)
    assert load(run / "policy").manifest.scenario.name == "mixture of 2: lab, cabinets"
    train(load_config(run / "run" / "config.yaml", timesteps=1536), run / "run", resume=True, progress=False)


@pytest.mark.parametrize("name", ["single_lan", "flaky_stream", "slow_cloud"])
def test_a_policy_decides_where_lists_are_others(run: Path, name: str) -> None:
    """With fewer candidates, and other lengths: as `simulate` says."""
    scenario = load_scenario(
        name, episode__requests=4, episode__warmup_requests=0, actions__gammas=[0, 2, 4, 6, 8]
    )
    spec = f"policy:{run / 'policy'}"
    told = {task.seed: metrics for task, metrics in run_group(tasks_of(name, scenario, spec, [7, 8]))}
    assert len(told) == 2
    for seed, metrics in told.items():
        expected = dsd_env.simulate(scenario, spec, seed=seed).metrics
        cell = Cell("x", scenario, "x", spec, "learned", seed, "x", ())
        assert metrics_digest(metrics_of(cell)) == metrics_digest(expected)
        assert all(metrics[key] == value or math.isnan(value) for key, value in expected.items())


def test_the_shipped_mixtures_can_be_loaded() -> None:
    config = load_config("generalist")
    offered = config.offered()
    assert offered is not None
    longest = dict(zip(config.mixture, offered[:, 8].tolist(), strict=True))
    assert longest["metro"] and not longest["flaky_stream"]
