"""Whole episodes, several side by side, for evaluation, validation and imitation.

On the compiled engine or on the reference engine: the numbers are the same, those of
:func:`dsd_env.simulate`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv

from agents.config import ConfigError
from agents.environments import EnvFactory, make_vec_env, masks_of, reader_of
from agents.plans import chooser_of
from dsd_env.control import ActionSpace
from dsd_env.control.fleet import FleetSpace
from dsd_env.policy import PolicyError
from dsd_env.policy.network import MlpActor
from dsd_env.policy.other_lists import OtherLists
from dsd_env.scenario import Scenario
from dsd_env.schedulers import Scheduler, make_scheduler
from dsd_env.schedulers.goodput import GoodputScheduler
from dsd_env.schedulers.policy import PolicyScheduler
from dsd_env.whole_runs.goodput import DueDecisions, can_play


@dataclass(frozen=True)
class Episode:
    """One episode that has been played.

    Attributes:
        seed: Its seed.
        metrics: Every metric, as :func:`dsd_env.simulate` gives them.
        reward: Sum of the environment's rewards, to six digits.
    """

    seed: int
    metrics: dict[str, float]
    reward: float


class Stage:
    """Environments of one scenario side by side, and what their deciders see.

    Attributes:
        scenario: The scenario; of a mixture the first.
        actions: The action lists.
        env: The environments.
        observations: float32, shape (n, n_features).
        masks: bool, shape (n, sum(nvec)).
        seeds: Seed of the episode in each.
    """

    def __init__(self, scenario: Scenario, env: VecEnv, seeds: Sequence[int]) -> None:
        """Begin an episode in every environment.

        Args:
            scenario: The scenario.
            env: Its environments.
            seeds: List that names the episode's seed in each, kept up to date by whoever gives the seeds.
        """
        self.scenario, self.env, self.seeds = scenario, env, seeds
        self.actions: ActionSpace = getattr(env, "actions", None) or ActionSpace.of(scenario)
        self.observations: NDArray[np.float32] = env.reset()  # type: ignore[assignment]
        self.masks = masks_of(env)

    def scenario_of(self, world: int) -> Scenario:
        """Return the scenario of the episode in an environment."""
        episodes = getattr(self.env, "episodes", None)
        return self.scenario if episodes is None else episodes.scenario_of(world)

    def step(
        self, actions: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_], Sequence[dict[str, Any]]]:
        """Step all; return rewards, whether each ended, and infos."""
        self.observations, rewards, dones, infos = self.env.step(actions)  # type: ignore[assignment]
        self.masks = masks_of(self.env)
        return rewards, dones, infos


Decide = Callable[[Stage, Sequence[int]], NDArray[np.int64]]
"""(stage, numbers of k environments) -> their actions, shape (k, 3); of the fleet view (k, 3 · groups)."""


class BySchedulers:
    """Decides by a scheduler's name; every environment has one of its own, set up for its episode."""

    def __init__(self, name: str | Mapping[str, str], *, nearest: bool = False) -> None:
        """Remember the scheduler's name, or one for each scenario by the scenario's name.

        Args:
            name: It, or they.
            nearest: Where a draft ends by a threshold that is not listed, take the nearest that is. Otherwise
                that is an error.
        """
        self.name, self._nearest = name, nearest
        self._players: dict[int, tuple[int, Scheduler]] = {}
        self._compiled: dict[str, DueDecisions] = {}
        self._asked: dict[str, OtherLists] = {}

    def __call__(self, stage: Stage, which: Sequence[int]) -> NDArray[np.int64]:
        """Return the scheduler's actions in some environments."""
        return np.array([self._action(stage, world) for world in which])

    def _action(self, stage: Stage, world: int) -> Sequence[int] | NDArray[np.int64]:
        seed, scenario = stage.seeds[world], stage.scenario_of(world)
        known, player = self._players.get(world, (None, None))
        if player is None or known != seed:
            if player is None or not isinstance(self.name, str):
                player = make_scheduler(self.name if isinstance(self.name, str) else self.name[scenario.name])
            player.reset(scenario, seed)
            self._players[world] = (seed, player)
        if isinstance(player, GoodputScheduler) and (reader := reader_of(stage.env, world)) is not None:
            # The same decisions as in Python, many times faster.
            if scenario.name not in self._compiled and can_play(scenario):
                self._compiled[scenario.name] = DueDecisions(player, scenario)
            if scenario.name in self._compiled:
                return stage.actions.encode(self._compiled[scenario.name](reader))
        if isinstance(player, PolicyScheduler):
            policy, own = player.policy, stage.actions
            # It reads the observation; to assemble the typed view would take longer than all the rest.
            if policy.actions == own:
                return policy.action(stage.observations[world], stage.masks[world])
            if not policy.flat and policy.actions.n_placements == own.n_placements:
                if scenario.name not in self._asked:
                    self._asked[scenario.name] = OtherLists(policy, own)
                return self._asked[scenario.name].action(stage.observations[world], stage.masks[world])
        decision = player.decide(stage.env.get_attr("view", [world])[0])
        return stage.actions.encode(stage.actions.nearest(decision) if self._nearest else decision)


class ByPlans:
    """Decides in the fleet view by a plan, or by a bundle that is asked about every environment by itself."""

    def __init__(self, space: FleetSpace, name: str) -> None:
        """Take ``policy:DIR``, or a plan; see :func:`agents.plans.chooser_of`.

        Raises:
            ConfigError: It is neither, or a bundle of other plans.
        """
        self._width = len(space.nvec)
        try:
            self._choose = chooser_of(space, name)
        except (ConfigError, PolicyError) as error:
            raise ConfigError(
                f"{error}; in the fleet view a scheduler is a plan, such as 4/1/edge or "
                "GROUP=4/1/edge+GROUP=plain, or policy:DIR, a bundle of the fleet view"
            ) from error

    def __call__(self, stage: Stage, which: Sequence[int]) -> NDArray[np.int64]:
        """Return the plans in some environments, int64, shape (k, 3 · groups)."""
        plans = [self._choose(stage.observations[world], stage.masks[world]) for world in which]
        return np.array(plans, dtype=np.int64).reshape(len(which), self._width)


class ByActor:
    """Decides by an actor, for all environments at once.

    The products are added up in another order than for one state at a time: where logits tie within that
    rounding, the decision can differ from the exported policy's.
    """

    def __init__(self, actor: MlpActor) -> None:
        """Take the weights."""
        self._layers = actor.layers
        self._activation = np.tanh if actor.activation == "tanh" else partial(np.maximum, np.float32(0.0))
        self._bounds = list(pairwise(accumulate(actor.nvec, initial=0)))

    def __call__(self, stage: Stage, which: Sequence[int]) -> NDArray[np.int64]:
        """Return the actor's deterministic actions in some environments."""
        x = stage.observations[which]
        for weight, bias in self._layers[:-1]:
            x = self._activation(x @ weight.T + bias)
        weight, bias = self._layers[-1]
        logits = np.where(stage.masks[which], x @ weight.T + bias, -np.inf)
        return np.stack([logits[:, start:stop].argmax(axis=1) for start, stop in self._bounds], axis=1)


@dataclass
class _Queue:
    """Hands out the episodes of a list in the order in which environments ask for one."""

    seeds: Sequence[int]
    current: list[int]
    busy: list[bool]
    handed_out: int = field(default=0)

    def __call__(self, world: int, episode: int) -> int:
        if self.handed_out < len(self.seeds):
            self.current[world] = self.seeds[self.handed_out]
            self.handed_out += 1
            self.busy[world] = True
        else:
            # Nothing left for this one: it plays its last episode again, since all step or none.
            self.busy[world] = False
        return self.current[world]


def play(
    scenario: Scenario,
    seeds: Sequence[int],
    decide: Decide,
    *,
    kind: str,
    make: EnvFactory | None = None,
    side_by_side: int = 8,
    n_placements: int | None = None,
    offered: NDArray[np.bool_] | None = None,
) -> Iterator[Episode]:
    """Play one episode per seed to its end and yield each as it ends.

    Args:
        scenario: The scenario.
        seeds: The episodes.
        decide: Who decides.
        kind: ``compiled`` or ``dummy``, see :func:`agents.environments.make_vec_env`.
        make: Makes one environment, instead of the registered one.
        side_by_side: At most so many episodes at a time.
        n_placements: Length to which the list of candidates is filled up.
        offered: What the scenario offers of its lists, the rest being masked; bool, shape (1, sum(nvec)).
    """
    n = min(side_by_side, len(seeds))
    queue = _Queue(seeds, [0] * n, [False] * n)
    env = make_vec_env(scenario, n, queue, kind, make=make, n_placements=n_placements, offered=offered)
    try:
        stage = Stage(scenario, env, queue.current)
        actions = np.zeros((n, *env.action_space.shape), dtype=np.int64)  # type: ignore[misc]
        playing, left = list(queue.busy), len(seeds)
        while left:
            which = [world for world in range(n) if playing[world]]
            actions[which] = decide(stage, which)
            was = list(queue.current)
            _, dones, infos = stage.step(actions)
            for world in np.flatnonzero(dones).tolist():
                if playing[world]:
                    info = infos[world]
                    yield Episode(was[world], info["episode_metrics"], float(info["episode"]["r"]))
                    left -= 1
                playing[world] = queue.busy[world]
    finally:
        env.close()


def mean_metrics(episodes: Sequence[Episode]) -> dict[str, float]:
    """Return the means of ``return`` and every metric; one that is NaN in every episode stays NaN."""
    rows = [{"return": episode.reward, **episode.metrics} for episode in episodes]
    result = {}
    for name in rows[0]:
        finite = [row[name] for row in rows if math.isfinite(row[name])]
        result[name] = float(np.mean(finite)) if finite else math.nan
    return result
