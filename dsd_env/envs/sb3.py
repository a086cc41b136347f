"""Many environments as one Stable-Baselines3 ``VecEnv``, stepped together in compiled code."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from dsd_env.control import ActionSpace, ObservationEncoder
from dsd_env.envs.checks import check_options, checked_episode_seed, checked_generator_seed
from dsd_env.envs.episodes import EnvState
from dsd_env.envs.worlds import EpisodeSeeds, EpisodeWorlds, ScenarioLike, WorldMember
from dsd_env.extras import needs
from dsd_env.scenario import Scenario

with needs("train", "a VecEnv of Stable-Baselines3"):
    from stable_baselines3.common.monitor import Monitor
    from stable_baselines3.common.vec_env import VecEnv
    from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn


class CompiledVecEnv(VecEnv):
    """Environments of one scenario, or of a mixture, that step together in compiled code.

    World ``i`` is :class:`dsd_env.envs.EdgeCloudEnv` seeded with ``seed + i``: the same episodes,
    observations, rewards and masks, however many worlds and threads there are. When an episode ends, the next
    one begins at once. The info of the last step then holds all keys of the scalar environment's, and
    ``terminal_observation``, ``TimeLimit.truncated`` and ``episode`` (with ``r``, ``l``, ``t`` as in
    Stable-Baselines3's ``Monitor``); ``reset_infos`` holds the info of the episode that has begun.

    ``env_method("action_masks")`` returns the masks; sb3-contrib's ``MaskablePPO`` calls it. Mixtures work as
    in :class:`dsd_env.envs.EdgeCloudVectorEnv`.
    """

    def __init__(
        self,
        scenario: ScenarioLike | Sequence[ScenarioLike],
        n_envs: int,
        seed: int | None = None,
        *,
        price_delays: bool = False,
        full_infos: bool = False,
        episode_seeds: EpisodeSeeds | None = None,
        flat_actions: bool = False,
        n_placements: int | None = None,
        discount_rate_per_s: float | None = None,
        render_mode: str | None = None,
        threads: int = 1,
        engine_options: Mapping[str, int] | None = None,
        max_episode_steps: int | None = None,
        infos: str = "full",
        offered: NDArray[np.bool_] | None = None,
    ) -> None:
        """Compile the scenario; the first call on a machine also compiles the engine.

        Args:
            scenario: Name, file or content of a scenario; or a list of scenarios, from which each episode
                draws one.
            n_envs: Number of worlds.
            seed: World ``i`` draws its episode seeds from a generator seeded with ``seed + i``.
            price_delays: Add up, for every request, how long it makes others wait.
            full_infos: Give every step's info the keys of the scalar environment, which costs time.
            episode_seeds: Function that returns each episode's seed, instead of the generators.
            flat_actions: Take one ``Discrete`` action, as :class:`dsd_env.envs.FlatActionWrapper`, for DQN.
            n_placements: Length to which the lists of candidates are padded.
            discount_rate_per_s: Rate of ``info["discount"]``; None leaves that key out.
            render_mode: ``"ansi"`` or None.
            threads: Number of threads that step the worlds.
            engine_options: Bounds of the engine; see :func:`dsd_env.sim.compiled.compile_scenario`.
            max_episode_steps: Number of steps after which an episode is truncated.
            infos: ``"full"``; ``"numeric"``: at every step, the numbers of :mod:`dsd_env.envs.infos`;
                ``"none"``: only the keys that Stable-Baselines3 adds at the end of an episode.
            offered: Which entries of the common lists each scenario of a mixture offers; the others are
                masked. bool, shape (number of scenarios, sum(nvec)).

        Raises:
            ScenarioError: A scenario is not valid.
            ValueError: The scenarios of a mixture have different observation or action spaces, or an argument
                is wrong.
        """
        self.episodes = EpisodeWorlds(
            scenario,
            n_envs,
            render_mode=render_mode,
            discount_rate_per_s=discount_rate_per_s,
            price_delays=price_delays,
            n_placements=n_placements,
            flat_actions=flat_actions,
            name_seed=episode_seeds,
            threads=threads,
            engine_options=engine_options,
            max_episode_steps=max_episode_steps,
            infos=infos,
            offered=offered,
        )
        self.worlds = self.episodes.worlds
        # Numeric infos are meant for buffers, so they must have the same keys at every step.
        self._full_infos = full_infos or infos == "numeric"
        self._returns = np.zeros(n_envs)
        self._lengths = np.zeros(n_envs, dtype=np.int64)
        self._began_s = time.time()
        self._actions: NDArray[Any] = np.zeros(0, dtype=np.int64)
        super().__init__(n_envs, self.episodes.single_observation_space, self.episodes.single_action_space)
        if seed is not None:
            self.seed(seed)

    @property
    def scenarios(self) -> tuple[Scenario, ...]:
        """The scenarios, in the order in which they were given."""
        return self.episodes.scenarios

    @property
    def scenario(self) -> Scenario:
        """The scenario; the first one of a mixture."""
        return self.episodes.scenarios[0]

    @property
    def actions(self) -> ActionSpace:
        """The action space, with the lists that actions index into."""
        return self.episodes.actions

    @property
    def encoder(self) -> ObservationEncoder:
        """The observation encoder."""
        return self.episodes.encoder

    # ------------------------------------------------------------------ episodes

    def reset(self) -> VecEnvObs:
        """Start a new episode in every world; return the observations (float32, shape (n, n_features)).

        Seeds given to :meth:`seed` and options given to ``set_options`` (``{"episode_seed": int}``) take
        effect here, once.
        """
        given = []
        for options in self._options:
            check_options(options, ("episode_seed",))
            given.append(checked_episode_seed(options.get("episode_seed")))
        for world, seed in enumerate(self._seeds):
            if seed is not None:
                self.episodes.seed(world, seed)
        self._reset_seeds()
        self._reset_options()
        self._begin(self.episodes.all, given)
        return self.worlds.observations.copy()

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seed world ``i`` with ``seed + i`` at the next reset; None takes seeds from the operating system.

        Raises:
            ValueError: The seed is not a whole number of at least 0.
        """
        return super().seed(checked_generator_seed(seed))

    def _begin(self, worlds: NDArray[np.int64], seeds: Sequence[int | None] | None = None) -> None:
        self.episodes.begin(worlds, seeds)
        self._returns[worlds] = 0.0
        self._lengths[worlds] = 0
        for world in worlds.tolist():
            self.reset_infos[world] = self.episodes.begin_info(world)

    def step_async(self, actions: NDArray[Any]) -> None:
        """Store the actions of the next step: integers ``[n, 3]``, or ``[n]`` with flat actions."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Step every world, and begin a new episode in each world whose episode has ended."""
        dones = self.episodes.step(self._actions)
        rewards = self.worlds.rewards.astype(np.float32)
        self._returns += self.worlds.rewards
        self._lengths += 1
        # Every world gets a dict of its own, because wrappers write into the infos.
        infos: list[dict[str, Any]] = (
            list(self.episodes.step_infos()) if self._full_infos else [{} for _ in range(self.num_envs)]
        )
        if dones.any():
            ended = np.flatnonzero(dones)
            for world in ended.tolist():
                infos[world] = self._last_info(world, infos[world] if self._full_infos else None)
            self._begin(ended)
        return self.worlds.observations.copy(), rewards, dones, infos

    def _last_info(self, world: int, info: dict[str, Any] | None) -> dict[str, Any]:
        info = self.episodes.step_info(world) if info is None else info
        info["terminal_observation"] = self.worlds.observations[world].copy()
        truncated, terminated = self.episodes.truncations()[world], self.episodes.terminations()[world]
        info["TimeLimit.truncated"] = bool(truncated and not terminated)
        info["episode"] = {
            "r": round(float(self._returns[world]), 6),
            "l": int(self._lengths[world]),
            "t": round(time.time() - self._began_s, 6),
        }
        return info

    # ------------------------------------------------------------------ states

    def clone_state(self, world: int) -> tuple[EnvState, float, int]:
        """Return the state of a world, with the return and the length so far of its episode."""
        return self.episodes.save(world), float(self._returns[world]), int(self._lengths[world])

    def restore_state(
        self, state: tuple[EnvState, float, int], worlds: Sequence[int] | None = None
    ) -> VecEnvObs:
        """Restore a state of :meth:`clone_state` in some worlds, or in all; return all observations.

        Raises:
            ValueError: The state does not fit; see :meth:`dsd_env.envs.EdgeCloudEnv.restore_state`.
        """
        for world in range(self.num_envs) if worlds is None else worlds:
            self.episodes.restore(world, state[0])
            self._returns[world], self._lengths[world] = state[1:]
        return self.worlds.observations.copy()

    # ------------------------------------------------------------------ the rest of the VecEnv interface

    def action_masks(self) -> NDArray[np.bool_]:
        """Return the masks of all worlds: bool, (n, sum(nvec)), not copied; (n, n_flat) with flat actions."""
        return self.episodes.masks()

    def close(self) -> None:
        """Do nothing: the worlds hold only memory."""

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        """Return None for every world, with a warning: many worlds at once draw no timelines."""
        warnings.warn(
            "many worlds at once draw no images; take one environment with render_mode='rgb_array'",
            stacklevel=2,
        )
        return [None] * self.num_envs

    def _at(self, indices: VecEnvIndices) -> Iterable[WorldMember]:
        return (self.episodes.members[i] for i in self._get_indices(indices))

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return an attribute of some worlds; see :class:`dsd_env.envs.worlds.WorldMember`."""
        return [getattr(member, attr_name) for member in self._at(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of some worlds."""
        for member in self._at(indices):
            setattr(member, attr_name, value)

    def has_attr(self, attr_name: str) -> bool:
        """Return whether the worlds have an attribute."""
        return hasattr(WorldMember, attr_name) or all(
            attr_name in vars(member) for member in self.episodes.members
        )

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of some worlds; see :class:`dsd_env.envs.worlds.WorldMember`."""
        if method_name == "action_masks" and indices is None:
            # MaskablePPO asks at every step: return the rows of one array instead of one call per world.
            return list(self.episodes.masks())
        return [getattr(member, method_name)(*method_args, **method_kwargs) for member in self._at(indices)]

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """Return whether worlds do what a wrapper does: True for ``Monitor`` alone, whose infos they give."""
        monitored = issubclass(wrapper_class, Monitor)
        return [monitored for _ in self._at(indices)]
