"""The environment many times over, as a Stable-Baselines3 ``VecEnv`` stepped in compiled code."""

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
    observations, rewards and masks, however many worlds and threads there are. Episodes begin anew at once
    when they end; the infos of the last step then hold all that the scalar environment's do, and
    ``terminal_observation``, ``TimeLimit.truncated`` and ``episode`` (``r``, ``l``, ``t`` as
    Stable-Baselines3's ``Monitor`` gives them); ``reset_infos`` holds the infos of the episode that has
    begun.

    ``env_method("action_masks")`` gives the masks, as sb3-contrib's ``MaskablePPO`` asks for them.
    Mixtures are those of :class:`dsd_env.envs.EdgeCloudVectorEnv`.
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
        """Compile the scenario; the first call on a machine compiles the engine too.

        Args:
            scenario: Name, file or content; or a list, of which each episode draws one.
            n_envs: Number of worlds.
            seed: World ``i`` draws its episodes' seeds from a generator seeded with ``seed + i``.
            price_delays: Account to every request how long it makes others wait.
            full_infos: Give every step's info the keys of the scalar environment, which costs time.
            episode_seeds: Names each episode's seed, instead of the generators.
            flat_actions: One ``Discrete`` action, as :class:`dsd_env.envs.FlatActionWrapper` has it, for DQN.
            n_placements: Length to which the lists of candidates are filled up.
            discount_rate_per_s: Adds ``info["discount"]``.
            render_mode: ``"ansi"`` or None.
            threads: Threads to step with.
            engine_options: Bounds of the engine; see :func:`dsd_env.sim.compiled.compile_scenario`.
            max_episode_steps: Truncates episodes.
            infos: ``"full"``; ``"numeric"``: at every step, the numbers of :mod:`dsd_env.envs.infos`;
                ``"none"``: only what Stable-Baselines3 adds at an end.
            offered: What each scenario of a mixture offers of the common lists, the rest being masked; bool,
                shape (number of scenarios, sum(nvec)).

        Raises:
            ScenarioError: A scenario is not valid.
            ValueError: The scenarios of a mixture have different spaces, or an argument is wrong.
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
        # Numeric infos are there to be stored, for which they must be the same at every step.
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
        """The scenarios, as listed."""
        return self.episodes.scenarios

    @property
    def scenario(self) -> Scenario:
        """The scenario; of a mixture the first."""
        return self.episodes.scenarios[0]

    @property
    def actions(self) -> ActionSpace:
        """The action lists."""
        return self.episodes.actions

    @property
    def encoder(self) -> ObservationEncoder:
        """The observation encoder."""
        return self.episodes.encoder

    # ------------------------------------------------------------------ episodes

    def reset(self) -> VecEnvObs:
        """Start a new episode in every world; return the observations (float32, shape (n, n_features)).

        Seeds of :meth:`seed` and options of ``set_options`` (``{"episode_seed": int}``) take effect here,
        once.
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
        """Seed world ``i`` with ``seed + i`` at the next reset, None: from the operating system.

        Raises:
            ValueError: It is not a whole number of at least 0.
        """
        return super().seed(checked_generator_seed(seed))

    def _begin(self, worlds: NDArray[np.int64], seeds: Sequence[int | None] | None = None) -> None:
        self.episodes.begin(worlds, seeds)
        self._returns[worlds] = 0.0
        self._lengths[worlds] = 0
        for world in worlds.tolist():
            self.reset_infos[world] = self.episodes.begin_info(world)

    def step_async(self, actions: NDArray[Any]) -> None:
        """Take note of the actions of the step to come: integers ``[n, 3]``, or ``[n]`` with flat actions."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Step every world; begin new episodes where one has ended."""
        dones = self.episodes.step(self._actions)
        rewards = self.worlds.rewards.astype(np.float32)
        self._returns += self.worlds.rewards
        self._lengths += 1
        # A dict of its own for every world, since wrappers write into them.
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
        """Return the state of a world, with the return and the length of its episode so far."""
        return self.episodes.save(world), float(self._returns[world]), int(self._lengths[world])

    def restore_state(
        self, state: tuple[EnvState, float, int], worlds: Sequence[int] | None = None
    ) -> VecEnvObs:
        """Put some worlds, or all, into a state of :meth:`clone_state`; return all observations.

        Raises:
            ValueError: The state does not fit.
        """
        for world in range(self.num_envs) if worlds is None else worlds:
            self.episodes.restore(world, state[0])
            self._returns[world], self._lengths[world] = state[1:]
        return self.worlds.observations.copy()

    # ------------------------------------------------------------------ the rest of the VecEnv interface

    def action_masks(self) -> NDArray[np.bool_]:
        """Return the masks of all worlds: bool, (n, sum(nvec)), not copied; if flat (n, n_flat)."""
        return self.episodes.masks()

    def close(self) -> None:
        """Nothing to do: all is memory."""

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        """Return None for every world, with a warning: timelines need the reference engine."""
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
            # Asked for at every step; the rows of one array, not one call per world.
            return list(self.episodes.masks())
        return [getattr(member, method_name)(*method_args, **method_kwargs) for member in self._at(indices)]

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """Return whether worlds do what a wrapper does: only ``Monitor``'s ``episode`` is in their infos."""
        monitored = issubclass(wrapper_class, Monitor)
        return [monitored for _ in self._at(indices)]
