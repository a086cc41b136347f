"""Vectorised environments on the compiled or the reference engine, each episode with a seed that we name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecMonitor

from agents.config import most_placements
from agents.seeds import training_seed
from dsd_env.envs import EdgeCloudFleetEnv
from dsd_env.scenario import Scenario
from dsd_env.sim.engines import EngineImportError, compiled_layout

if TYPE_CHECKING:
    from dsd_env.sim.compiled.world import WorldReader

ENV_ID = "dsd_env/EdgeCloud-v0"

EnvFactory = Callable[[], "gym.Env[Any, Any]"]

EpisodeSeeds = Callable[[int, int], int]
"""(environment, episode) -> seed of that episode."""


def reset_to(env: gym.Env[Any, Any], episode_seed: int) -> tuple[Any, dict[str, Any]]:
    """Start exactly the episode of a seed: the one that ``dsd_env.simulate`` runs with it."""
    return env.reset(options={"episode_seed": episode_seed})


@dataclass(frozen=True)
class TrainingEpisodes:
    """Seeds of training episodes; see :func:`agents.seeds.training_seed`.

    Attributes:
        run_seed: Seed of the run.
        start_step: Global step at which this process starts.
        groups: Number that stands for each environment; environments with the same one play the same
            episodes. Default: its own.
    """

    run_seed: int
    start_step: int
    groups: tuple[int, ...] = ()

    def __call__(self, worker: int, episode: int) -> int:
        """Return the seed of one episode of one environment."""
        number = self.groups[worker] if self.groups else worker
        return training_seed(self.run_seed, number, self.start_step, episode)


@dataclass(frozen=True)
class EachItsOwn:
    """Seeds for a mixture with which world `i` plays scenario `i` modulo their number, episode after episode.

    Which scenario an episode has is a function of its seed. Left to chance, each would have the same share of
    the episodes, and the busiest one most of the decisions.

    Attributes:
        seeds: Seeds to choose from.
        n_scenarios: How many scenarios the mixture lists.
    """

    seeds: EpisodeSeeds
    n_scenarios: int

    TRIES: ClassVar[int] = 256

    def __call__(self, world: int, episode: int) -> int:
        """Return the seed of one episode of one world."""
        from dsd_env.envs import drawn_scenario

        wanted = world % self.n_scenarios
        # One seed in n_scenarios will do: so many fail once in a billion episodes.
        tries = self.TRIES * math.ceil(self.n_scenarios / 12)
        for attempt in range(tries):
            seed = self.seeds(world, tries * episode + attempt)
            if drawn_scenario(seed, self.n_scenarios) == wanted:
                return seed
        raise RuntimeError(f"none of {tries} seeds draws scenario {wanted} of {self.n_scenarios}")


class NamedEpisodes(gym.Wrapper[Any, Any, Any, Any]):
    """Gives every episode of an environment the seed that is named for it, whatever seed the caller asks for.

    Stable-Baselines3 seeds an environment once and then resets it without a seed; the episodes would go on
    from a generator's state that a resumed run does not have, and from seeds that other purposes reserve.
    """

    def __init__(self, env: gym.Env[Any, Any], seeds: EpisodeSeeds, worker: int) -> None:
        """Wrap ``env`` as environment number ``worker``."""
        super().__init__(env)
        self._seeds, self._worker = seeds, worker
        self._episode = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start the next episode; ``seed`` is ignored."""
        self._episode += 1
        return reset_to(self.env, self._seeds(self._worker, self._episode - 1))

    def action_masks(self) -> Any:
        """Return the environment's mask of selectable indices."""
        return self.env.get_wrapper_attr("action_masks")()

    @property
    def view(self) -> Any:
        """The decision now due, typed."""
        return self.env.get_wrapper_attr("view")


@dataclass(frozen=True)
class _Factory:
    """A picklable environment constructor, for subprocesses."""

    make: EnvFactory
    seeds: EpisodeSeeds
    worker: int

    def __call__(self) -> gym.Env[Any, Any]:
        return NamedEpisodes(self.make(), self.seeds, self.worker)


class ScenarioEnv:
    """Makes the registered environment for one scenario, on the reference engine (picklable)."""

    def __init__(self, scenario: Scenario, *, price_delays: bool = False) -> None:
        """Remember the scenario, and whether the delay that requests cause to others is accounted."""
        self.scenario, self.price_delays = scenario, price_delays

    def __call__(self) -> gym.Env[Any, Any]:
        """Return a new environment."""
        import dsd_env  # noqa: F401

        return gym.make(
            ENV_ID,
            scenario=self.scenario,
            price_delays=self.price_delays,
            engine="reference",
            disable_env_checker=True,
        )


class FleetEnv:
    """Makes environments of the fleet view, which share what is compiled of the scenario (picklable)."""

    def __init__(self, scenario: Scenario, engine: str, settings: Mapping[str, Any]) -> None:
        """Remember scenario, engine and settings."""
        self.scenario, self.engine, self.settings = scenario, engine, dict(settings)
        self._first: EdgeCloudFleetEnv | None = None

    def __call__(self) -> gym.Env[Any, Any]:
        """Return a new environment."""
        env = EdgeCloudFleetEnv(self.scenario, engine=self.engine, like=self._first, **self.settings)
        self._first = self._first or env
        return env

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_first": None}


def make_vec_env(
    scenario: Scenario | Sequence[Scenario],
    n_envs: int,
    seeds: EpisodeSeeds,
    kind: str,
    *,
    price_delays: bool = False,
    make: EnvFactory | None = None,
    n_placements: int | None = None,
    offered: NDArray[np.bool_] | None = None,
) -> VecEnv:
    """Return environments side by side; environment ``i`` plays the same episodes whatever the kind.

    Args:
        scenario: The scenario; or several, for ``compiled`` alone: world ``i`` then plays the scenario whose
            place on the list is ``i`` modulo their number.
        n_envs: How many environments.
        seeds: Names every episode's seed; for ``subproc`` it must be picklable.
        kind: ``compiled`` (worlds of the compiled engine, stepped together), ``dummy`` (environments of the
            reference engine in this process) or ``subproc`` (one process each).
        price_delays: Account to every request how long it makes others wait.
        make: Makes one environment, instead of the registered one; not for ``compiled``.
        n_placements: Length to which the lists of candidates are filled up, for ``compiled`` alone. Default:
            the longest of the scenarios.
        offered: What each scenario offers of the common lists, for ``compiled`` alone; bool, shape (number of
            scenarios, sum(nvec)).

    Raises:
        ValueError: ``make`` is given for ``compiled``, or the compiled engine cannot be used here.
    """
    if kind == "compiled":
        if make is not None:
            raise ValueError(
                "vec_env 'compiled' steps worlds of its own; take 'dummy' for another environment"
            )
        try:
            from dsd_env.envs.sb3 import CompiledVecEnv
        except EngineImportError as error:
            raise ValueError(f"vec_env 'compiled': {error}; or set vec_env: dummy, far slower") from error

        scenarios = [scenario] if isinstance(scenario, Scenario) else list(scenario)
        if len(scenarios) > 1:
            seeds = EachItsOwn(seeds, len(scenarios))
        # It reports episodes as VecMonitor does.
        return CompiledVecEnv(
            scenarios,
            n_envs,
            price_delays=price_delays,
            episode_seeds=seeds,
            n_placements=n_placements or most_placements(scenarios),
            offered=offered,
        )
    if not isinstance(scenario, Scenario):
        raise ValueError(f"vec_env {kind!r}: several scenarios side by side need 'compiled'")
    make = make or ScenarioEnv(scenario, price_delays=price_delays)
    factories: list[EnvFactory] = [_Factory(make, seeds, worker) for worker in range(n_envs)]
    vec_env: VecEnv = (
        SubprocVecEnv(factories, start_method="spawn") if kind == "subproc" else DummyVecEnv(factories)
    )
    return VecMonitor(vec_env)


def engine_for(scenario: Scenario) -> str:
    """Return the faster kind of environment that simulates a scenario: ``compiled`` or ``dummy``."""
    return "dummy" if compiled_layout("auto", scenario) is None else "compiled"


def masks_of(env: VecEnv) -> NDArray[np.bool_]:
    """Return the masks of all environments (bool, shape (n, sum(nvec))); the next step may change them."""
    together = getattr(env, "action_masks", None)
    return together() if together is not None else np.stack(env.env_method("action_masks"))


def reader_of(env: VecEnv, world: int) -> WorldReader | None:
    """Return a look at a world of the compiled engine, good until its next episode; of others None."""
    worlds = getattr(env, "worlds", None)
    return None if worlds is None else worlds.reader(world)
