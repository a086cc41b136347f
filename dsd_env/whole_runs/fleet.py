"""Simulations under a policy of the fleet view, its plans executed inside the compiled engine where it can.

The result is that of :func:`dsd_env.simulate`, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from dsd_env.envs import EdgeCloudFleetEnv
from dsd_env.policy import Policy
from dsd_env.policy.manifest import Fleet
from dsd_env.whole_runs.runs import R

Choose = Callable[[NDArray[np.float32], NDArray[np.bool_]], Sequence[int]]
"""Makes a plan, an action of the fleet view, of observation and mask."""


def run_fleet(tasks: Sequence[R], policy: Policy) -> Iterator[tuple[R, dict[str, float]]]:
    """Simulate tasks of one scenario under a policy of the fleet view; yield each with its metrics."""
    settings = policy.manifest.action.fleet
    assert isinstance(settings, Fleet)
    env = EdgeCloudFleetEnv(
        tasks[0].scenario, settings.control_period_s, settings.grouping, settings.name_targets
    )
    for task in tasks:
        yield task, play_plans(env, policy.choose, task.seed)[1]


def play_plans(env: EdgeCloudFleetEnv, choose: Choose, seed: int) -> tuple[float, dict[str, float]]:
    """Play an episode; return the sum of its rewards, and its metrics.

    Args:
        env: The environment.
        choose: What makes its plans.
        seed: Episode seed.
    """
    mask = env.action_masks()
    observation, _ = env.reset(options={"episode_seed": seed})
    total = 0.0
    while True:
        action = np.array(choose(observation, mask), dtype=np.int64)
        observation, reward, terminated, truncated, info = env.step(action)
        total += reward
        if terminated or truncated:
            return total, info["episode_metrics"]
