"""Simulations under a policy of the fleet view, its plans executed inside the compiled engine where it can.

The result is that of :func:`dsd_env.simulate`, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from agents.fast_runs import R
from dsd_env.envs import EdgeCloudFleetEnv
from dsd_env.policy import Policy
from dsd_env.policy.manifest import Fleet


def run_fleet(tasks: Sequence[R], policy: Policy) -> Iterator[tuple[R, dict[str, float]]]:
    """Simulate tasks of one scenario under a policy of the fleet view; yield each with its metrics."""
    settings = policy.manifest.action.fleet
    assert isinstance(settings, Fleet)
    env = EdgeCloudFleetEnv(
        tasks[0].scenario, settings.control_period_s, settings.grouping, settings.name_targets
    )
    mask = env.action_masks()
    for task in tasks:
        observation, info = env.reset(options={"episode_seed": task.seed})
        over = False
        while not over:
            action = policy.choose(observation, mask)
            observation, _, terminated, truncated, info = env.step(action)  # type: ignore[arg-type]
            over = terminated or truncated
        yield task, info["episode_metrics"]
