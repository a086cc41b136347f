"""Wrappers of the environment."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from dsd_env.envs.edge_cloud import EdgeCloudEnv

Observation = NDArray[np.float32]


class FlatActionWrapper(
    gym.ActionWrapper[Observation, np.int64, NDArray[np.int64]], gym.utils.RecordConstructorArgs
):
    """One `Discrete` action for algorithms without `MultiDiscrete`, such as DQN.

    Index ``i`` stands for ``numpy.unravel_index(i, nvec)``: placement varies fastest, then batch size,
    then speculation length.

    Args:
        env: An :class:`EdgeCloudEnv`, wrapped or not.

    Raises:
        TypeError: The innermost environment is another one.
    """

    def __init__(self, env: gym.Env[Observation, NDArray[np.int64]]) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        gym.ActionWrapper.__init__(self, env)
        base = env.unwrapped
        if not isinstance(base, EdgeCloudEnv):
            raise TypeError(f"FlatActionWrapper wraps EdgeCloudEnv, got {type(base).__name__}")
        self._base = base
        self._actions = base.actions
        self.action_space = gym.spaces.Discrete(self._actions.n_flat)

    def action(self, action: np.int64) -> NDArray[np.int64]:
        """Return the MultiDiscrete action (int64, shape (3,)) of a flat one."""
        return self._actions.unflatten(np.asarray(action))

    def flat_action(self, action: NDArray[np.int64]) -> int:
        """Return the flat action of a MultiDiscrete one, the inverse of :meth:`action`."""
        gamma, batch, placement = (int(index) for index in action)
        return int(np.ravel_multi_index((gamma, batch, placement), self._actions.nvec))

    def action_masks(self) -> NDArray[np.bool_]:
        """Return which flat actions are valid (bool, shape (n,)): those valid in every dimension."""
        return self._actions.flat_mask(self._base.action_masks())
