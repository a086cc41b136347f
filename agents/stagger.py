"""Worlds that begin training in the middle of their episodes, each at another point.

Worlds that all begin at time 0 stay in step: with dozens of them, a short training sees little but the first
seconds of episodes, when clients wake up and prompts queue, and every update sees one phase of the load. So
a few worlds run whole episodes with the policy at hand, and what they were on the way is copied into the
training worlds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from agents.actors import actor_of
from agents.environments import EpisodeSeeds
from agents.rollouts import ByActor, Decide, Stage
from agents.warm_start import MakeEnvs
from dsd_env.scenario import Scenario

SOURCES = 16
"""At most so many worlds run ahead."""

STATES = 32
"""Of each, at least half as many states are kept, evenly spread over its episode, and no more than these."""

MOST_STEPS = 400_000
"""A policy that never finishes an episode is stopped after so many decisions."""


def states_on_the_way(env: VecEnv, stage: Stage, decide: Decide) -> list[list[Any]]:
    """Return states of every world of an environment, in order, until its first episode ends.

    Args:
        env: Environments that can clone their state (compiled), just reset.
        stage: The stage that they stand on.
        decide: Who decides.
    """
    n = env.num_envs
    kept: list[list[Any]] = [[] for _ in range(n)]
    playing = np.ones(n, dtype=np.bool_)
    gap, everybody = 1, list(range(n))
    for t in range(MOST_STEPS):
        if not playing.any():
            break
        if t % gap == 0:
            for world in np.flatnonzero(playing).tolist():
                kept[world].append(env.clone_state(world))  # type: ignore[attr-defined]
            if max(map(len, kept)) > STATES:
                # Of episodes that have ended as well: what counts is the time, not the number.
                kept, gap = [states[::2] for states in kept], 2 * gap
        playing &= ~stage.step(decide(stage, everybody))[1]
    return kept


class StaggerCallback(BaseCallback):
    """Before the first rollout, puts every world at another point of an episode of the policy as it is.

    It must stand before callbacks that look at the worlds when training starts.
    """

    def __init__(
        self, make_envs: MakeEnvs, scenario: Scenario, seeds: EpisodeSeeds, *, mixed: int = 1
    ) -> None:
        """Run ahead in environments of ``make_envs``, which must be compiled.

        Args:
            make_envs: Makes them.
            scenario: Their scenario; of a mixture the first.
            seeds: Seeds of the training episodes; those of workers that the training does not have are used.
            mixed: How many scenarios the mixture has.
        """
        super().__init__()
        self._make_envs, self._scenario, self._seeds, self._mixed = make_envs, scenario, seeds, mixed

    def _on_training_start(self) -> None:
        worlds = self.training_env
        n = worlds.num_envs
        # As many for each scenario of a mixture: world i plays scenario i modulo their number.
        sources = min(n, max(SOURCES // self._mixed, 1) * self._mixed)
        env = self._make_envs(sources, lambda source, episode: self._seeds(n + source, episode))
        try:
            stage = Stage(self._scenario, env, [0] * sources)
            actor = actor_of(self.model, stage.actions.nvec)  # type: ignore[arg-type]
            kept = states_on_the_way(env, stage, ByActor(actor))
        finally:
            env.close()
        for world in range(n):
            states = kept[world % sources]
            share = (world // sources + 0.5) / -(-n // sources)
            state = states[int(share * len(states))]
            self.model._last_obs = worlds.restore_state(state, [world])  # type: ignore[attr-defined]

    def _on_step(self) -> bool:
        return True
