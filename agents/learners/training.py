"""Training of learners as their libraries ship them."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from sb3_contrib import MaskablePPO, RecurrentPPO
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm

from agents.checkpoints import CheckpointError, read, restore, save
from agents.environments import TrainingEpisodes
from agents.learners.config import Comparison, Learner, LearnersError
from dsd_env.envs.sb3 import CompiledVecEnv
from dsd_env.scenario import Scenario

LEARNERS: dict[str, type[BaseAlgorithm]] = {
    "ppo": PPO,
    "maskable_ppo": MaskablePPO,
    "dqn": DQN,
    "recurrent_ppo": RecurrentPPO,
}


def build(comparison: Comparison, scenario: Scenario, learner: Learner, seed: int) -> BaseAlgorithm:
    """Return an untrained learner with its worlds.

    Every learner gets the environment's own reward: that of everybody, over the time to the next decision of
    whichever request. Actions are three indices, for DQN one flat index; MaskablePPO alone asks for masks.

    Raises:
        LearnersError: The library refuses the settings.
    """
    kind = LEARNERS[learner.algorithm]
    env = CompiledVecEnv(
        scenario,
        comparison.n_envs,
        episode_seeds=TrainingEpisodes(seed, 0),
        flat_actions=learner.algorithm == "dqn",
        infos="none",
    )
    policy = "MlpLstmPolicy" if learner.algorithm == "recurrent_ppo" else "MlpPolicy"
    try:
        return kind(policy, env, seed=seed, device="cpu", **learner.settings)
    except (TypeError, ValueError, AssertionError) as error:
        env.close()
        raise LearnersError(f"{kind.__name__}: settings {learner.settings}: {error}") from error


def trained(
    comparison: Comparison, scenario: Scenario, learner: Learner, seed: int, file: Path, progress: bool
) -> tuple[BaseAlgorithm, float | None]:
    """Return a trained learner and the CPU time of its training in s; None if it was trained before.

    Raises:
        LearnersError: The library refuses the settings.
        CheckpointError: What is kept of an earlier training does not fit.
    """
    # Sums, and so what is learned, do not depend on how many cores the machine has.
    torch.set_num_threads(1)
    model = build(comparison, scenario, learner, seed)
    try:
        kept = read(file)
    except CheckpointError:
        kept = None  # none yet, or one that was cut off: it takes minutes to train another
    if kept is not None:
        restore(model, kept)
        return model, None
    began_s = time.process_time()
    model.learn(comparison.timesteps, progress_bar=progress)
    took_s = time.process_time() - began_s
    file.parent.mkdir(parents=True, exist_ok=True)
    save(model, file)
    return model, took_s
