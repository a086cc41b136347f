"""Many environments on the compiled engine as one Stable-Baselines3 ``VecEnv``."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import seeding
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from dsd_env.control import ActionSpace, DecisionView, ObservationEncoder
from dsd_env.envs.edge_cloud import MAX_SEED, REWARD_TERMS, reward_factors
from dsd_env.scenario import Scenario, load_scenario
from dsd_env.sim.compiled import compile_scenario
from dsd_env.sim.compiled import layout as la
from dsd_env.sim.compiled.vector import WorldVector
from dsd_env.sim.compiled.world import REASONS

EpisodeSeeds = Callable[[int, int], int]
"""(world, episode) -> seed of that episode."""


class CompiledVecEnv(VecEnv):
    """Environments of one scenario that step together in compiled code.

    World ``i`` is :class:`dsd_env.envs.EdgeCloudEnv` seeded with ``seed + i``: the same episodes,
    observations, rewards and masks, however many worlds there are. Episodes begin anew at once when they end,
    and the infos of the last step then hold ``terminal_observation``, ``TimeLimit.truncated``, ``episode``
    (``r``, ``l``, ``t`` as Stable-Baselines3's ``Monitor`` gives them) and ``episode_metrics``.

    ``env_method("action_masks")`` gives the masks, as sb3-contrib's ``MaskablePPO`` asks for them.
    """

    def __init__(
        self,
        scenario: str | Path | Scenario | Mapping[str, Any],
        n_envs: int,
        seed: int | None = None,
        *,
        price_delays: bool = False,
        full_infos: bool = False,
        episode_seeds: EpisodeSeeds | None = None,
        threads: int = 1,
    ) -> None:
        """Compile the scenario; the first call compiles the engine too, unless its cache is there.

        Args:
            scenario: Name, file or content.
            n_envs: Number of worlds.
            seed: World ``i`` draws its episodes' seeds from a generator seeded with ``seed + i``.
            price_delays: Account to every request how long it makes others wait.
            full_infos: Give every step's info the keys of the scalar environment, which costs time.
            episode_seeds: Names each episode's seed, instead of the generators.
            threads: Threads to step with.
        """
        self.scenario = load_scenario(scenario)
        self.actions = ActionSpace.of(self.scenario)
        self.encoder = ObservationEncoder.of(self.scenario)
        factors, weighted = reward_factors(self.scenario)
        weights = [0.0] * len(REWARD_TERMS)
        for index, weight in weighted:
            weights[index] = weight
        layout = compile_scenario(self.scenario)
        self.worlds = WorldVector(
            layout, n_envs, factors, weights, price_delays=price_delays, threads=threads
        )
        self._price_delays = price_delays
        self._full_infos = full_infos
        self._episode_seeds = episode_seeds
        self._generators: list[np.random.Generator] = []
        self._episode = np.zeros(n_envs, dtype=np.int64)
        self._returns = np.zeros(n_envs)
        self._lengths = np.zeros(n_envs, dtype=np.int64)
        self._began_s = time.time()
        self._actions = np.zeros((n_envs, 3), dtype=np.int64)
        self._members = [WorldMember(self, world) for world in range(n_envs)]
        self.render_mode = None
        super().__init__(
            n_envs,
            gym.spaces.Box(self.encoder.low, self.encoder.high, dtype=np.float32),
            gym.spaces.MultiDiscrete(list(self.actions.nvec)),
        )
        self.seed(seed)

    # ------------------------------------------------------------------ episodes

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seed every world's generator; takes effect with its next episode."""
        seeds: list[int | None] = [None if seed is None else seed + i for i in range(self.num_envs)]
        self._generators = [seeding.np_random(each)[0] for each in seeds]
        self._episode[:] = 0
        return seeds

    def _next_seed(self, world: int) -> int:
        episode = int(self._episode[world])
        self._episode[world] += 1
        if self._episode_seeds is not None:
            return self._episode_seeds(world, episode)
        return int(self._generators[world].integers(MAX_SEED))

    def _begin(self, worlds: NDArray[np.int64]) -> None:
        seeds = np.array([self._next_seed(int(world)) for world in worlds], dtype=np.int64)
        self.worlds.begin(worlds, seeds)
        self._returns[worlds] = 0.0
        self._lengths[worlds] = 0
        for world, seed in zip(worlds, seeds, strict=True):
            self._members[world].episode_seed = int(seed)

    def reset(self) -> VecEnvObs:
        """Start a new episode in every world; return the observations (float32, shape (n, n_features))."""
        self._begin(np.arange(self.num_envs))
        self.reset_infos = [
            {"episode_seed": member.episode_seed, "decision": member.describe()} for member in self._members
        ]
        return self.worlds.observations.copy()

    def step_async(self, actions: NDArray[Any]) -> None:
        """Take note of the actions of the step to come, int64 ``[n, 3]``."""
        self._actions = np.asarray(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """Step every world; begin new episodes where one has ended."""
        worlds = self.worlds
        worlds.step(self._actions)
        rewards = worlds.rewards.astype(np.float32)
        self._returns += worlds.rewards
        self._lengths += 1
        dones = worlds.statuses != la.DUE
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if self._full_infos:
            infos = [member.step_info() for member in self._members]
        if dones.any():
            ended = np.flatnonzero(dones)
            for world in ended:
                infos[world].update(self._last_info(int(world)))
            self._begin(ended)
        return worlds.observations.copy(), rewards, dones, infos

    def _last_info(self, world: int) -> dict[str, Any]:
        worlds = self.worlds
        return {
            "terminal_observation": worlds.observations[world].copy(),
            "TimeLimit.truncated": bool(worlds.statuses[world] == la.TRUNCATED),
            "episode": {
                "r": round(float(self._returns[world]), 6),
                "l": int(self._lengths[world]),
                "t": round(time.time() - self._began_s, 6),
            },
            "episode_metrics": worlds.reader(world).metrics(),
            "episode_seed": self._members[world].episode_seed,
        }

    # ------------------------------------------------------------------ the rest of the VecEnv interface

    def action_masks(self) -> NDArray[np.bool_]:
        """Return the masks of all worlds (bool, shape (n, sum(nvec))), without a copy."""
        return self.worlds.masks

    def close(self) -> None:
        """Nothing to do: all is memory."""

    def _at(self, indices: VecEnvIndices) -> Iterable[WorldMember]:
        return (self._members[i] for i in self._get_indices(indices))

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return an attribute of some worlds; see :class:`WorldMember`."""
        return [getattr(member, attr_name) for member in self._at(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of some worlds."""
        for member in self._at(indices):
            setattr(member, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of some worlds; see :class:`WorldMember`."""
        return [getattr(member, method_name)(*method_args, **method_kwargs) for member in self._at(indices)]

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """Return that no world is wrapped in anything."""
        return [False for _ in self._at(indices)]


class WorldMember:
    """One world of a :class:`CompiledVecEnv`: what ``get_attr`` and ``env_method`` reach.

    Attributes:
        scenario: The scenario.
        actions: Its action lists.
        encoder: Its observation encoder.
        episode_seed: Seed of the episode under way.
        render_mode: Always None.
        spec: Always None.
    """

    def __init__(self, parent: CompiledVecEnv, world: int) -> None:
        """Stand for one world."""
        self._parent, self._world = parent, world
        self.scenario, self.actions, self.encoder = parent.scenario, parent.actions, parent.encoder
        self.episode_seed = -1
        self.render_mode = None
        self.spec = None

    def action_masks(self) -> NDArray[np.bool_]:
        """Return the mask of the due decision (bool, shape (sum(nvec),))."""
        mask: NDArray[np.bool_] = self._parent.worlds.masks[self._world].copy()
        return mask

    @property
    def view(self) -> DecisionView:
        """The decision now due, typed."""
        return self._parent.worlds.reader(self._world).view()

    @property
    def now_s(self) -> float:
        """Simulated time."""
        return self._parent.worlds.reader(self._world).now_s

    def metrics(self) -> dict[str, float]:
        """Return every metric of the episode so far."""
        return self._parent.worlds.reader(self._world).metrics()

    def describe(self) -> dict[str, Any]:
        """Return the scalar environment's ``info["decision"]`` of the due decision."""
        reader = self._parent.worlds.reader(self._world)
        v = reader.f[int(reader.layout.ki[la.O_VIEW]) :]
        described: dict[str, Any] = {
            "request_id": int(v[la.V_REQUEST]),
            "device": int(v[la.V_DEVICE]),
            "counter": int(v[la.V_COUNTER]),
            "is_admission": bool(v[la.V_ADMISSION] != 0.0),
            "committed_tokens": int(v[la.V_COMMITTED]),
        }
        request = reader.due_request()
        if self._parent._price_delays and request is not None:
            described["delay_caused_s"] = request.delay_caused_s
        return described

    def step_info(self) -> dict[str, Any]:
        """Return the scalar environment's info of the last step, but for what only its end has."""
        worlds, w = self._parent.worlds, self._world
        reader = worlds.reader(w)
        info: dict[str, Any] = {
            "now_s": float(worlds.clocks[w, 0]),
            "dt_s": float(worlds.clocks[w, 1]),
            "reward_terms": dict(zip(REWARD_TERMS, worlds.terms[w].tolist(), strict=True)),
            "resolved": REASONS[int(reader.s[la.WI_REASON])],
            "invalid_actions": int(reader.s[la.WI_INVALID]),
            "completed": [
                (request.number, request.completed_s, request.delay_caused_s, request.committed)
                for request in reader.newly_completed()
            ],
        }
        if worlds.statuses[w] == la.DUE:
            info["decision"] = self.describe()
        return info
