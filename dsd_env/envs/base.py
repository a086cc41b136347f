"""Base class of the scalar environments: it keeps the episode's seed and counts the episode's steps."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from dsd_env.envs.checks import check_options, checked_episode_seed, checked_generator_seed, draw_episode_seed


class EpisodicEnv(gym.Env[NDArray[np.float32], NDArray[np.int64]]):
    """An environment in which each episode has a seed, drawn from `np_random` unless the user gives it."""

    _episode_seed: int | None = None
    _steps = 0

    def _check_render_mode(self, render_mode: str | None) -> None:
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ValueError(f"render_mode = {render_mode!r} is not one of {self.metadata['render_modes']}")

    def _need_episode(self, purpose: str) -> None:
        if self._episode_seed is None:
            raise gym.error.ResetNeeded(f"call reset() before {purpose}")

    def _seed_of_reset(self, seed: int | None, options: dict[str, Any] | None) -> int:
        """Seed `np_random` as a reset asks for, and return the seed of the new episode."""
        options = options or {}
        check_options(options, ("episode_seed",))
        episode_seed = checked_episode_seed(options.get("episode_seed"))
        gym.Env.reset(self, seed=checked_generator_seed(seed))
        return draw_episode_seed(self.np_random) if episode_seed is None else episode_seed

    def _reached(self, limit: int | None) -> bool:
        return limit is not None and self._steps >= limit
