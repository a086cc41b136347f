"""Worlds that begin training in the middle of their episodes."""

from __future__ import annotations

from functools import partial

import numpy as np
from sb3_contrib import MaskablePPO
from stable_baselines3.common.callbacks import BaseCallback, CallbackList

from agents.environments import TrainingEpisodes, make_vec_env
from agents.stagger import StaggerCallback
from dsd_env import load_scenario
from dsd_env.control import ObservationEncoder

SCENARIO = load_scenario("single_lan", episode__requests=6)
N_ENVS = 20  # more than stagger.SOURCES: some worlds share a source


class Look(BaseCallback):
    """Notes where the worlds stand when training starts, then stops it."""

    def _on_training_start(self) -> None:
        self.views = self.training_env.get_attr("view")
        self.clocks_s = np.array([view.now_s for view in self.views])
        self.observations = self.model._last_obs.copy()

    def _on_step(self) -> bool:
        return False


def learn(stagger: bool) -> Look:
    make_envs = partial(make_vec_env, SCENARIO, kind="compiled")
    envs = make_envs(N_ENVS, TrainingEpisodes(1, 0))
    model = MaskablePPO("MlpPolicy", envs, n_steps=8, batch_size=16, seed=3)
    look = Look()
    callbacks: list[BaseCallback] = [look]
    if stagger:
        callbacks.insert(0, StaggerCallback(make_envs, SCENARIO, TrainingEpisodes(1, 0)))
    model.learn(8 * N_ENVS, callback=CallbackList(callbacks))
    envs.close()
    return look


def test_worlds_begin_at_different_points_of_their_episodes() -> None:
    plain, staggered = learn(False), learn(True)
    assert np.ptp(plain.clocks_s) < 0.25 * np.ptp(staggered.clocks_s)
    assert len(np.unique(staggered.clocks_s)) == N_ENVS
    # A world that shares its source with another stands later in the same episode.
    assert (staggered.clocks_s[16:] > staggered.clocks_s[: N_ENVS - 16]).all()


def test_the_learner_sees_the_states_that_the_worlds_stand_in() -> None:
    look = learn(True)
    encoder = ObservationEncoder.of(SCENARIO)
    for view, observation in zip(look.views, look.observations, strict=True):
        np.testing.assert_array_equal(encoder.encode(view), observation)
