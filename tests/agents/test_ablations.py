"""Trainings with something taken away, and learners that see part of the observation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from agents.ablations import AblationError, load_ablations, page_table, read_results, run_ablations
from agents.config import TrainConfig
from agents.environments import make_vec_env
from agents.observing import seen
from agents.training import build_model
from dsd_env.paths import config_dir

TINY = {
    "entry": "single_lan",
    "seeds": 2,
    "base": {
        "timesteps": 128,
        "n_envs": 2,
        "ppo": {"n_steps": 32, "batch_size": 32, "n_epochs": 1},
        "network": {"actor": [8], "critic": [8]},
        "validation": None,
    },
    "variants": {"the whole": {}, "plain": {"note": "drafts", "overrides": {"actions.gammas": [0, 1]}}},
}


def written(tmp_path: Path, **changes: object) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY, **changes}, sort_keys=False))
    return path


def test_every_variant_is_trained_measured_and_kept(tmp_path: Path) -> None:
    config, file, told = load_ablations(written(tmp_path)), tmp_path / "out" / "tiny.json", []
    results = run_ablations(
        config, file, tmp_path / "runs", lambda name, _: told.append(name), progress=False
    )
    assert told == ["the whole", "plain"] and all(len(each.values) == 2 for each in results.values())
    assert all(np.isfinite(list(each.values.values())).all() for each in results.values())
    assert read_results(file) == results
    again = run_ablations(config, file, tmp_path / "runs", lambda name, _: told.append(name), progress=False)
    assert again == results and len(told) == 2, "nothing is done twice"
    rows = page_table(config, results).splitlines()
    assert len([row for row in rows if row.startswith("| `single_lan`")]) == 2
    assert "| drafts |" in rows[-2] + rows[-1] + rows[-3]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"entry": "nowhere"}, "entry = 'nowhere' is none of"),
        ({"variants": {"a": {"overrides": {"actions.gammas": [0]}}, "b": {}}}, "is the whole training"),
        ({"variants": {"a": {}}}, "variants"),
        ({"base": {"timestep": 1}}, "base: unknown key 'timestep'"),
    ],
)
def test_impossible_files(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(AblationError, match=message):
        config = load_ablations(written(tmp_path, **changes))
        config.training(config.variants["the whole"])


@pytest.mark.parametrize(
    "path", sorted((config_dir() / "ablations").glob("*.yaml")), ids=lambda path: path.stem
)
def test_shipped_files_can_be_trained(path: Path) -> None:
    config = load_ablations(path.stem)
    for variant in config.variants.values():
        training = config.training(variant)
        scenario = training.load_scenario()
        if training.observe:
            assert any(seen(training.feature_names([scenario]), training.observe))


def test_what_is_not_seen_has_no_weight() -> None:
    config = TrainConfig.model_validate(
        {
            "scenario": "single_lan",
            "observe": ["request.rounds", "candidate_*.valid"],
            "n_envs": 2,
            "ppo": {"n_steps": 32, "batch_size": 32, "n_epochs": 2},
            "network": {"actor": [8], "critic": [8]},
        }
    )
    scenario = config.load_scenario()
    env = make_vec_env(scenario, 2, lambda world, episode: world + 2 * episode, "compiled")
    model = build_model(config, scenario, env)
    model.learn(128)
    env.close()
    kept = seen(config.feature_names([scenario]), config.observe)
    assert 1 < sum(kept) < len(kept)
    for network in (model.policy.mlp_extractor.policy_net, model.policy.mlp_extractor.value_net):
        weight = network[0].weight.detach().numpy()
        assert (weight[:, ~np.array(kept)] == 0.0).all() and (weight[:, kept] != 0.0).all()


def test_a_pattern_that_names_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"observe: 'requests\.\*' names no feature"):
        seen(["request.rounds"], ["requests.*"])
