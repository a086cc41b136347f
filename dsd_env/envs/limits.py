"""Limits on the steps of an episode: the environment's own limit and the limit of Gymnasium's wrapper."""

from __future__ import annotations

import sys
from typing import Any

import gymnasium as gym
import numpy as np


def checked_max_episode_steps(steps: object) -> int | None:
    """Return the argument `max_episode_steps`, checked; -1 means no limit, as for ``gymnasium.make``.

    Raises:
        ValueError: The argument is neither None nor -1 nor a whole number above 0.
    """
    if steps is None:
        return None
    if isinstance(steps, bool) or not isinstance(steps, (int, np.integer)) or (steps < 1 and steps != -1):
        raise ValueError(f"max_episode_steps = {steps!r} must be a whole number above 0, or None")
    return None if steps == -1 else int(steps)


def surrounding_time_limit(env: gym.Env[Any, Any]) -> int | None:
    """Return the limit of the ``TimeLimit`` wrapper that is calling ``env.reset()``, or None without one.

    ``gymnasium.make`` wraps the environment in a ``TimeLimit`` and does not pass `max_episode_steps` on, so
    the environment would not know which info is the episode's last. During a reset, however, the wrapper is
    on the call stack. With several wrappers, the smallest limit counts.

    Args:
        env: The environment, whose ``reset`` is running.
    """
    code, limit = gym.wrappers.TimeLimit.reset.__code__, None
    frame = sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code is code and (wrapper := frame.f_locals["self"]).unwrapped is env:
            steps = int(wrapper._max_episode_steps)
            limit = steps if limit is None else min(limit, steps)
    return limit
