"""Labels are what was known and done; a network repeats what can be told from them; bundles say whose."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from agents.benchmark.config import BenchmarkError
from agents.config import ConfigError
from agents.look_ahead.distilling import (
    DistilConfig,
    distil,
    export_distilled,
    load_distilling,
    validate,
)
from agents.look_ahead.labels import Labels, base_labels_of, labels_of
from agents.look_ahead.planning import LookAhead
from agents.look_ahead.playing import play_missing
from agents.look_ahead.records import Reference
from agents.seeds import TRAINING_SEEDS
from dsd_env import policy, strict_yaml
from dsd_env.control.fleet_view import FleetEncoder
from dsd_env.envs import EdgeCloudFleetEnv
from dsd_env.paths import config_dir
from tests.agents.look_ahead.samples import config

pytest.importorskip("numba")


def written(folder: Path, **changes: Any) -> DistilConfig:
    """Return what distils a small look-ahead, whose file is written into a folder."""
    given = {"every": 8, "holds": [8], "sweeps": 1, "gammas": [0, 4]} | changes
    file = folder / "tiny_ahead.yaml"
    file.write_text(strict_yaml.dumps(config(folder, **given).model_dump(mode="json")), encoding="utf-8")
    return DistilConfig(
        reference=str(file),
        episodes=2,
        held_out=1,
        own_rounds=1,
        own_episodes=1,
        network={"actor": [16], "critic": [8]},
        imitation={"epochs": 5, "batch_size": 16, "learning_rate": 0.02},
        validation_episodes=1,
    )


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[DistilConfig, LookAhead, Reference]:
    folder = tmp_path_factory.mktemp("distil")
    made = written(folder)
    player = LookAhead(made.look_ahead())
    return made, player, play_missing(player, folder / "out" / "tiny_ahead.json", made.seeds)


def episodes_of(made: DistilConfig, found: Reference) -> list[Any]:
    return [found.episodes[seed] for seed in made.seeds]


def test_the_shipped_ones_fit_their_look_aheads() -> None:
    for file in sorted((config_dir() / "distill").glob("*.yaml")):
        assert load_distilling(file.stem).look_ahead().scenario


def test_the_look_ahead_plays_training_episodes_alone() -> None:
    seeds = DistilConfig(reference="cost", episodes=50).seeds
    assert len(set(seeds)) == 50 and all(seed in TRAINING_SEEDS for seed in seeds)
    assert DistilConfig(reference="cost", episodes=(7, 3), held_out=1).seeds == [seeds[7], seeds[3]]


def test_labels_are_the_observations_of_the_environment_and_the_plans_followed(played: Any) -> None:
    made, player, found = played
    kept = found.episodes[made.seeds[0]]
    labels = labels_of(player.world, player.base, [kept])
    env = EdgeCloudFleetEnv(player.space.scenario, **made.look_ahead().fleet.model_dump())
    observation, _ = env.reset(options={"episode_seed": kept.seed})
    for row, plan in enumerate(labels.plans):
        assert observation.tobytes() == labels.observations[row].tobytes()
        observation, _, _, truncated, info = env.step(plan)
    assert truncated and row == len(labels.plans) - 1
    assert info["episode_metrics"]["e2e_s_mean"] == kept.metrics["e2e_s_mean"]
    assert (labels.base == player.config.base_plan(player.space).ravel()).all()
    assert 0 < labels.changed.sum() < len(labels.plans)
    late = labels_of(player.world, player.base, [kept], player.begin_s)
    assert 0 < len(late.plans) < len(labels.plans)
    assert (late.observations == labels.observations[-len(late.plans) :]).all()


def test_where_the_policy_goes_by_itself_the_base_says_what_to_do(played: Any) -> None:
    made, player, _ = played
    [seed] = made.own_seeds(0)
    assert seed in TRAINING_SEEDS and seed not in made.seeds and made.own_seeds(1) != [seed]
    plain = player.space.uniform("plain").ravel()
    visited = base_labels_of(player.world, player.base, lambda seen, mask: plain, [seed])
    base = player.config.base_plan(player.space).ravel()
    assert (visited.plans == base).all() and not visited.changed.any()
    names = FleetEncoder.of(player.space).names
    # The plan in force is that of who drives, from the second period on.
    lengths = visited.observations[:, names.index("group_0.gamma")]
    assert (lengths == 0.0).all()


def test_plans_of_another_simulator_are_no_labels(played: Any) -> None:
    made, player, found = played
    kept = replace(found.episodes[made.seeds[0]], digest="0" * 64)
    with pytest.raises(BenchmarkError, match=r"other numbers than those kept.*play them anew"):
        labels_of(player.world, player.base, [kept])


def test_what_can_be_told_from_the_observation_is_repeated(played: Any) -> None:
    """Labels that follow from a feature: a network learns them, and chooses nothing that no label has."""
    made, player, found = played
    labels = labels_of(player.world, player.base, episodes_of(made, found))
    space = player.space
    one, other = space.uniform("4/1/colocated").ravel(), space.uniform("plain").ravel()
    middle = np.median(labels.observations[:, 0])
    plans = np.where(labels.observations[:, :1] > middle, one, other)
    known = Labels(labels.observations, plans, np.tile(one, (len(plans), 1)), labels.seeds)
    longer = made.imitation.model_copy(update={"epochs": 60})
    fit = made.model_copy(update={"imitation": longer, "own_rounds": 0})
    distilled = distil(fit, player, known)
    assert distilled.figures["policy_repeats"] > 0.9 > distilled.figures["base_repeats"]
    mask = np.ones(sum(space.nvec), dtype=np.bool_)
    random = np.random.default_rng(0).uniform(-1.0, 1.0, (200, labels.observations.shape[1]))
    chosen = {tuple(distilled.actor.action(row.astype(np.float32), mask)) for row in random}
    per_part = [{plan[part] for plan in chosen} for part in range(3)]
    assert all(got <= {one[part], other[part]} for part, got in enumerate(per_part))


def test_what_is_not_observed_is_not_used(played: Any) -> None:
    made, player, found = played
    labels = labels_of(player.world, player.base, episodes_of(made, found))
    blind = distil(made.model_copy(update={"observe": ("system.*",)}), player, labels)
    first = blind.actor.layers[0][0]
    assert np.flatnonzero(np.abs(first).sum(axis=0)).size < first.shape[1] / 2
    with pytest.raises(ValueError, match="'moon' names no feature"):
        distil(made.model_copy(update={"observe": ("moon",)}), player, labels)


def test_a_bundle_says_whose_decisions_it_repeats(played: Any, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    made, player, found = played
    distilled = distil(made, player, labels_of(player.world, player.base, episodes_of(made, found)))
    validated = validate(made, player, distilled.actor)
    assert validated["base"].keys() == validated["policy"].keys() == {"e2e_s_mean"}
    export_distilled(made, player, distilled, validated, tmp_path / "policy")
    loaded = policy.load(tmp_path / "policy")
    training = loaded.manifest.training
    assert json.loads(training.warm_start or "")["scheduler"] == "look_ahead:tiny_ahead"
    assert training.algorithm == "imitation" and json.loads(training.notes) == validated
    assert loaded.fleet_space(player.space.scenario).is_like(player.space)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"episodes": 3, "held_out": 3}, "leaves nothing of episodes = 3"),
        ({"episodes": 1}, "episodes"),
        ({"episodes": [4, 7, 4]}, "names one twice"),
        ({"wish": 1}, "wish"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        DistilConfig.model_validate({"reference": "cost"} | changes)


def test_a_look_ahead_that_there_is_not_is_told() -> None:
    with pytest.raises(ConfigError, match=r"reference: no look-ahead 'nothing'"):
        DistilConfig(reference="nothing").look_ahead()
