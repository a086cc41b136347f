"""Many environments of the fleet view as one Gymnasium vector environment; worlds may run in threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from numpy.typing import NDArray

from dsd_env.envs.fleet import EdgeCloudFleetEnv


def many(n: int, threads: int, arguments: dict[str, Any]) -> list[EdgeCloudFleetEnv]:
    """Return ``n`` environments that share one compiled scenario.

    Raises:
        ValueError: ``n`` or ``threads`` is not a whole number of at least 1, or another argument is wrong.
    """
    numbers: tuple[tuple[str, object], ...] = (("num_envs", n), ("threads", threads))
    for name, value in numbers:
        if not isinstance(value, (int, np.integer)) or value is True or value < 1:
            raise ValueError(f"{name} = {value!r} must be a whole number of at least 1")
    first = EdgeCloudFleetEnv(**arguments)
    return [first] + [EdgeCloudFleetEnv(**arguments, like=first) for _ in range(n - 1)]


class Ahead:
    """Simulates the next steps of several environments in parallel, before the steps are taken one by one."""

    def __init__(self, threads: int) -> None:
        """Start the given number of threads; with one thread, nothing is simulated ahead."""
        self._pool = ThreadPoolExecutor(threads, "fleet") if threads > 1 else None

    def simulate(self, steps: list[tuple[EdgeCloudFleetEnv, NDArray[np.int64]]]) -> None:
        """Simulate the step of each environment with its action.

        Raises:
            ValueError: An action is not in the action space; then nothing has been simulated.
        """
        if self._pool is None:
            return
        for env, action in steps:
            env.space.checked(action)
        for _ in self._pool.map(lambda step: step[0].simulate_ahead(step[1]), steps):
            pass

    def close(self) -> None:
        """Shut down the threads."""
        if self._pool is not None:
            self._pool.shutdown()


class EdgeCloudFleetVectorEnv(SyncVectorEnv):
    """Many :class:`~dsd_env.envs.fleet.EdgeCloudFleetEnv` as one Gymnasium ``SyncVectorEnv``.

    ```python
    >>> import gymnasium as gym
    >>> import dsd_env
    >>> envs = gym.make_vec("dsd_env/EdgeCloudFleet-v0", num_envs=2, scenario="single_lan", threads=2)
    >>> observations, infos = envs.reset(seed=1)
    >>> observations, rewards, terminations, truncations, infos = envs.step(envs.action_space.sample())
    >>> envs.close()

    ```

    World ``i`` after ``reset(seed=s)`` is the scalar environment after ``reset(seed=s + i)``, however many
    worlds and threads there are. Observations, infos and the behaviour at the end of an episode
    (`autoreset_mode`) are those of ``SyncVectorEnv``.

    | Parameter        | Type                       | Default      | Description                             |
    |------------------|----------------------------|--------------|-----------------------------------------|
    | `num_envs`       | **int**                    | `1`          | Number of worlds                        |
    | `threads`        | **int**                    | `1`          | Threads that simulate (compiled engine) |
    | `copy`           | **bool**                   | `True`       | Return copies of observations           |
    | `autoreset_mode` | **str** or `AutoresetMode` | `"NextStep"` | As of ``SyncVectorEnv``                 |
    | others           |                            |              | Those of the scalar environment         |
    """

    def __init__(
        self,
        num_envs: int = 1,
        *,
        threads: int = 1,
        copy: bool = True,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        **arguments: Any,
    ) -> None:
        envs = many(num_envs, threads, arguments)
        super().__init__([partial(_given, env) for env in envs], copy=copy, autoreset_mode=autoreset_mode)
        self._ahead = Ahead(threads)

    def step(self, actions: NDArray[np.int64]) -> Any:
        """Take a step in every world; see ``SyncVectorEnv.step``."""
        next_step = self.autoreset_mode is AutoresetMode.NEXT_STEP
        self._ahead.simulate(
            [
                (env.unwrapped, action)  # type: ignore[misc]
                for env, action, begins in zip(self.envs, actions, self._autoreset_envs, strict=True)
                if not (next_step and begins)
            ]
        )
        return super().step(actions)

    def action_masks(self) -> NDArray[np.bool_]:
        """Return, for every world, which choices can be executed (bool, shape (num_envs, sum(nvec)))."""
        return np.stack([env.unwrapped.action_masks() for env in self.envs])  # type: ignore[attr-defined]

    def close_extras(self, **kwargs: Any) -> None:
        """Shut down the threads."""
        self._ahead.close()
        super().close_extras(**kwargs)


def _given(env: EdgeCloudFleetEnv) -> EdgeCloudFleetEnv:
    return env
