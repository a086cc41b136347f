"""Many environments of the fleet view as one Stable-Baselines3 ``VecEnv``; worlds may run in threads."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsd_env.envs.fleet_vector import Ahead, many
from dsd_env.extras import needs

with needs("train", "a VecEnv of Stable-Baselines3"):
    from stable_baselines3.common.monitor import Monitor
    from stable_baselines3.common.vec_env import DummyVecEnv
    from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn


class FleetVecEnv(DummyVecEnv):
    """Environments of the fleet view, each wrapped in SB3's ``Monitor``.

    World ``i`` is :class:`dsd_env.envs.fleet.EdgeCloudFleetEnv` seeded with ``seed + i``, however many worlds
    and threads there are. ``env_method("action_masks")`` returns the masks; ``MaskablePPO`` calls it.
    """

    def __init__(
        self, n_envs: int = 8, seed: int | None = None, *, threads: int = 1, **arguments: Any
    ) -> None:
        """Make the environments.

        Args:
            n_envs: Number of worlds.
            seed: World ``i`` draws its episode seeds from a generator seeded with ``seed + i``.
            threads: Number of threads that simulate (compiled engine).
            **arguments: Arguments of the scalar environment.

        Raises:
            ScenarioError: The scenario is not valid.
            ValueError: An argument is wrong.
        """
        super().__init__([partial(Monitor, env) for env in many(n_envs, threads, arguments)])
        self._ahead = Ahead(threads)
        if seed is not None:
            self.seed(seed)

    def step_wait(self) -> VecEnvStepReturn:
        """Step every world, and begin a new episode in each world whose episode has ended."""
        actions: NDArray[np.int64] = self.actions
        self._ahead.simulate(
            [(env.unwrapped, action) for env, action in zip(self.envs, actions, strict=True)]  # type: ignore[misc]
        )
        return super().step_wait()

    def close(self) -> None:
        """Shut down the threads."""
        self._ahead.close()
        super().close()
