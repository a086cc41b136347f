"""Training environments: the registered environment, with seeds from the training range only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecMonitor

from agents.seeds import training_seed
from dsd_env.scenario import Scenario

ENV_ID = "dsd_env/EdgeCloud-v0"

EnvFactory = Callable[[], "gym.Env[Any, Any]"]


def reset_to(env: gym.Env[Any, Any], episode_seed: int) -> tuple[Any, dict[str, Any]]:
    """Start exactly the episode of a seed: the one that ``dsd_env.simulate`` runs with it."""
    return env.reset(options={"episode_seed": episode_seed})


class TrainingSeeds(gym.Wrapper[Any, Any, Any, Any]):
    """Gives every episode the next seed of its worker, whatever seed the caller asks for.

    Stable-Baselines3 seeds an environment once and then resets it without a seed; the episodes would go on
    from a generator's state that a resumed run does not have, and from seeds that other purposes reserve.
    """

    def __init__(self, env: gym.Env[Any, Any], run_seed: int, worker: int, start_step: int) -> None:
        """Wrap ``env``; see :func:`agents.seeds.training_seed` for the arguments."""
        super().__init__(env)
        self._address = (run_seed, worker, start_step)
        self._episode = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start the next training episode; ``seed`` is ignored."""
        self._episode += 1
        return reset_to(self.env, training_seed(*self._address, self._episode - 1))

    def action_masks(self) -> Any:
        """Return the environment's mask of selectable indices."""
        return self.env.get_wrapper_attr("action_masks")()


class _Factory:
    """A picklable environment constructor, for subprocesses."""

    def __init__(self, make: EnvFactory, address: tuple[int, int, int]) -> None:
        self.make, self.address = make, address

    def __call__(self) -> gym.Env[Any, Any]:
        return TrainingSeeds(self.make(), *self.address)


class ScenarioEnv:
    """Makes the registered environment for one scenario (picklable)."""

    def __init__(self, scenario: Scenario, *, price_delays: bool = False) -> None:
        """Remember the scenario, and whether the delay that requests cause to others is accounted."""
        self.scenario, self.price_delays = scenario, price_delays

    def __call__(self) -> gym.Env[Any, Any]:
        """Return a new environment."""
        import dsd_env  # noqa: F401

        return gym.make(
            ENV_ID, scenario=self.scenario, price_delays=self.price_delays, disable_env_checker=True
        )


def make_vec_env(make: EnvFactory, n_envs: int, kind: str, run_seed: int, start_step: int) -> VecEnv:
    """Return the vectorised training environment.

    Args:
        make: Makes one environment.
        n_envs: How many.
        kind: ``dummy`` (this process) or ``subproc`` (one process each).
        run_seed: Seed of the run.
        start_step: Global step at which this process starts.
    """
    factories: list[EnvFactory] = [_Factory(make, (run_seed, worker, start_step)) for worker in range(n_envs)]
    vec_env: VecEnv = (
        SubprocVecEnv(factories, start_method="spawn") if kind == "subproc" else DummyVecEnv(factories)
    )
    return VecMonitor(vec_env)
