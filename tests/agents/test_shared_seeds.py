"""Worlds that play the same episodes, and the luck that they take off each other's advantages."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sb3_contrib import MaskablePPO
from stable_baselines3.common.callbacks import BaseCallback, CallbackList

from agents.config import ConfigError, TrainConfig, load_config
from agents.credit import RequestCreditCallback
from agents.environments import TrainingEpisodes, make_vec_env, masks_of
from agents.horizons import rollout_shape
from agents.shared_seeds import SharedSeedsCallback, groups_of, ordinals_of, without_luck
from agents.tracking import CompiledTracker
from agents.training import build_model, train
from dsd_env import load_scenario

SCENARIO = load_scenario("single_lan", episode__requests=6)


def config(**changes: Any) -> TrainConfig:
    """Return a small training on groups of two worlds."""
    return TrainConfig.model_validate(
        {
            "scenario": "single_lan",
            "overrides": {"episode.requests": 6},
            "timesteps": 512,
            "n_envs": 4,
            "worlds_per_seed": 2,
            "ppo": {"n_steps": 64, "batch_size": 128, "n_epochs": 1},
            "network": {"actor": [8], "critic": [8]},
            "validation": None,
            **changes,
        }
    )


def test_worlds_of_a_group_play_the_same_scenario_of_a_mixture() -> None:
    assert groups_of(6, 1).tolist() == [0, 1, 2, 3, 4, 5]
    assert groups_of(6, 3).tolist() == [0, 0, 0, 1, 1, 1]
    # Worlds 0, 2, 4, 6 play the first scenario, the others the second.
    assert groups_of(8, 2, 2).tolist() == [0, 1, 0, 1, 2, 3, 2, 3]


def test_the_mean_of_the_others_in_the_same_place_is_taken_off() -> None:
    # Groups of two worlds. World 0 decides in places 0, 0 and 1, world 1 in place 0 and twice in place 1.
    places = np.array([[0, 0, 0, 0], [0, 1, 5, 7], [1, 1, 6, 8]])
    advantages = np.array([[1.0, 4.0, 1.0, 2.0], [3.0, 6.0, 9.0, 9.0], [5.0, 8.0, 9.0, 9.0]])
    known, episodes = np.ones((3, 4), dtype=np.bool_), np.zeros((3, 4), dtype=np.int64)
    lean = without_luck(advantages, known, groups_of(4, 2), [episodes, places])
    assert lean[:, 0].tolist() == [1.0 - 4.0, 3.0 - 4.0, 5.0 - 7.0]
    assert lean[:, 1].tolist() == [4.0 - 2.0, 6.0 - 5.0, 8.0 - 5.0]
    # In other places there is nobody to compare with.
    assert lean[:, 2].tolist() == [1.0 - 2.0, 9.0, 9.0]
    known[0, 1] = False
    fewer = without_luck(advantages, known, groups_of(4, 2), [episodes, places])
    assert fewer[:, 0].tolist() == [1.0, 3.0, 5.0 - 7.0] and fewer[0, 1] == 4.0
    episodes[2, 0] = 1  # The same place of another episode is another place.
    assert without_luck(advantages, known, groups_of(4, 2), [episodes, places])[2, 0] == 5.0


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 4]))
def test_what_is_common_to_a_group_in_a_place_does_not_matter(seed: int, worlds_per_seed: int) -> None:
    draw = np.random.default_rng(seed)
    groups = groups_of(8, worlds_per_seed)
    # Every world decides once in every place, in an order of its own: all have somebody to compare with.
    places = draw.permuted(np.repeat(np.arange(20)[:, None], 8, axis=1), axis=0)
    own = draw.normal(size=(20, 8))
    luck = draw.normal(size=(20, 8))[places, groups[None, :]] * 100.0
    lean = partial(without_luck, known=np.ones((20, 8), dtype=np.bool_), groups=groups, places=[places])
    if worlds_per_seed == 1:
        np.testing.assert_array_equal(lean(own + luck), own + luck)
    else:
        np.testing.assert_allclose(lean(own + luck), lean(own), atol=1e-9)


def test_requests_are_counted_by_device_whatever_their_numbers() -> None:
    # Two worlds of two devices; in the second the other device asked first, so that numbers are exchanged.
    requests = np.array([[7, 8], [8, 7], [7, 8], [9, 9], [12, 12], [7, 7]])
    devices = np.array([[0, 0], [1, 1], [0, 0], [0, 0], [0, 0], [0, 0]])
    episodes = np.array([[0, 0], [0, 0], [0, 0], [0, 0], [0, 0], [1, 1]])
    ordinals = ordinals_of(requests, devices, episodes)
    assert ordinals[:, 0].tolist() == ordinals[:, 1].tolist() == [0, 0, 0, 1, 2, 0]


def test_the_same_request_of_the_same_device_is_told_in_every_world() -> None:
    """What is taken for the same request has the same prompt, however the worlds were steered."""
    scenario = load_scenario("slow_cloud", episode__requests=4, episode__warmup_requests=0)
    envs = make_vec_env(scenario, 4, TrainingEpisodes(3, 0, (0, 0, 0, 0)), "compiled")
    envs.reset()
    tracker, draw = CompiledTracker(envs), np.random.default_rng(5)
    rows: list[tuple[Any, ...]] = []
    prompts: list[list[int]] = []
    episode = np.zeros(4, dtype=np.int64)
    for _ in range(400):
        rows.append((tracker.due().requests, tracker.devices(), episode.copy()))
        prompts.append([view.request.prompt_tokens for view in envs.get_attr("view")])
        masks = masks_of(envs)
        logits = np.where(masks, draw.normal(size=masks.shape), -np.inf)
        ends = np.cumsum(envs.action_space.nvec)
        actions = [part.argmax(axis=1) for part in np.split(logits, ends[:-1], axis=1)]
        episode += envs.step(np.stack(actions, axis=1))[2]
    requests, devices, episodes = (np.array(each) for each in zip(*rows, strict=True))
    ordinals = ordinals_of(requests, devices, episodes)
    of_place: dict[tuple[int, ...], set[int]] = {}
    worlds_of: dict[tuple[int, ...], set[int]] = {}
    for (step, world), ordinal in np.ndenumerate(ordinals):
        place = (int(episodes[step, world]), int(devices[step, world]), int(ordinal))
        of_place.setdefault(place, set()).add(prompts[step][world])
        worlds_of.setdefault(place, set()).add(world)
    assert all(len(found) == 1 for found in of_place.values())
    assert len({next(iter(found)) for found in of_place.values()}) > 3
    assert sum(len(worlds) == 4 for worlds in worlds_of.values()) > 3
    envs.close()


class Look(BaseCallback):
    """Notes what every rollout began with, and what its decisions were at."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[np.ndarray[Any, Any]] = []
        self.seeds: list[list[int]] = []

    def _on_rollout_start(self) -> None:
        self.seen.append(self.model._last_obs.copy())
        self.seeds.append(list(self.training_env.episodes.episode_seeds))

    def _on_step(self) -> bool:
        return True


@pytest.mark.parametrize("kind", ["step", "request"])
def test_worlds_of_a_group_begin_every_rollout_in_one_state(kind: str) -> None:
    settings = config(credit={"kind": kind})
    groups = groups_of(4, 2)
    envs = make_vec_env(SCENARIO, 4, TrainingEpisodes(3, 0, tuple(groups.tolist())), "compiled")
    model = build_model(settings, SCENARIO, envs)
    assert isinstance(model, MaskablePPO)
    look, luck = Look(), SharedSeedsCallback(groups)
    credit = [RequestCreditCallback()] if kind == "request" else []
    model.learn(512, callback=CallbackList([luck, look, *credit]))
    assert len(look.seen) == 2
    for observations, seeds in zip(look.seen, look.seeds, strict=True):
        np.testing.assert_array_equal(observations[::2], observations[1::2])
        assert (observations[0] != observations[2]).any()
        assert seeds[0] == seeds[1] != seeds[2] == seeds[3]
    envs.close()


def test_a_world_that_takes_over_a_state_goes_on_with_the_episodes_of_its_leader() -> None:
    envs = make_vec_env(SCENARIO, 2, TrainingEpisodes(3, 0, (0, 0)), "compiled")
    envs.reset()
    first = list(envs.episodes.episode_seeds)
    action = np.zeros((1, 3), dtype=np.int64)
    # The first world alone plays an episode to its end and begins the next.
    idle = np.array([True, False])
    while not envs.episodes.step(np.repeat(action, 2, axis=0), idle)[0]:
        pass
    envs.episodes.begin(np.array([0]))
    assert envs.episodes.episode_seeds[0] != first[0] == envs.episodes.episode_seeds[1]
    envs.restore_state(envs.clone_state(0), [1])
    envs.episodes.begin(np.array([0, 1]))
    assert envs.episodes.episode_seeds[0] == envs.episodes.episode_seeds[1]
    envs.close()


@pytest.mark.parametrize(
    "changes",
    [
        {"credit": {"kind": "request", "own_weight": 1.0}},
        {
            "scenario": "tiers",
            "overrides": {"episode.requests": 20, "episode.warmup_requests": 0},
            "fleet": {"grouping": "slo"},
            "ppo": {"n_steps": 16, "batch_size": 32, "n_epochs": 1},
            "timesteps": 64,
        },
    ],
)
def test_a_run_of_either_view_learns_on_shared_seeds_and_logs_the_luck(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing import event_accumulator  # type: ignore[import-untyped]

    settings = config(**changes)
    done = train(settings, tmp_path / "run", progress=False)
    assert done.num_timesteps >= settings.timesteps
    log = event_accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    log.Reload()
    luck = [point.value for point in log.Scalars("rollout/luck")]
    assert luck and all(-10.0 < value <= 1.0 for value in luck) and any(luck)


def test_no_world_has_a_seed_for_itself(tmp_path: Path) -> None:
    file = tmp_path / "train.yaml"
    file.write_text("n_envs: 6\nworlds_per_seed: 4\nppo: {n_steps: 64, batch_size: 64}\n")
    with pytest.raises(ConfigError, match=r"train.yaml.*n_envs = 6 is no multiple of worlds_per_seed = 4"):
        load_config(file)


def test_requests_are_compared_only_where_worlds_begin_in_one_state() -> None:
    with pytest.raises(
        ValueError, match=r"worlds_per_seed = 2 with credit.kind = 'request' needs vec_env: compiled"
    ):
        config(vec_env="dummy", credit={"kind": "request"})
    assert config(vec_env="dummy").worlds_per_seed == 2


def test_worlds_are_given_up_in_whole_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agents.horizons.decisions_per_s", lambda scenario, scheduler: 1000.0)
    given = config(
        n_envs=16, worlds_per_seed=4, rollout_s=10.0, rollout_decisions=100_000, ppo={"batch_size": 1000}
    )
    shape = rollout_shape(given, SCENARIO)
    assert shape is not None and (shape.n_envs, shape.n_steps) == (8, 10_000)
