"""Warm start: imitate a scheduler's decisions before reinforcement learning.

The first round collects the scheduler's decisions in the states that the scheduler itself visits; later
rounds let the learner drive and ask the scheduler what it would have done there (DAgger; Ross, Gordon &
Bagnell, AISTATS 2011), so that the learner also knows the way back from its own mistakes. All rounds together
are fitted by maximum likelihood. The critic is fitted to the discounted returns seen in the last round.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch as th
from numpy.typing import NDArray
from sb3_contrib import MaskablePPO
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecEnv
from tqdm import tqdm

from agents.actors import actor_of
from agents.config import Credit, Imitation, WarmStart
from agents.credit import Completions, advantages, link, token_value
from agents.environments import EpisodeSeeds
from agents.rollouts import ByActor, ByPlans, BySchedulers, Decide, Stage
from agents.seeds import DEMONSTRATION_SEEDS
from agents.tracking import Completed, Moments, tracker_of
from dsd_env.control.fleet import FleetSpace
from dsd_env.policy.network import MlpActor
from dsd_env.scenario import Scenario

MakeEnvs = Callable[[int, EpisodeSeeds], VecEnv]
"""(how many, seeds of their episodes) -> environments side by side."""

EPISODES_PER_WORLD = 10_000
"""Room for the episodes of one environment among the demonstration seeds."""


@dataclass
class Demonstrations:
    """States, masks, the scheduler's actions there, and the returns of what was really done.

    Attributes:
        observations: float32, (N, n_features).
        masks: bool, (N, n_logits).
        actions: int64, (N, 3); of the fleet view (N, 3 · groups).
        returns: float32, (N,); NaN where the rest of the episode is not known.
    """

    observations: NDArray[np.float32]
    masks: NDArray[np.bool_]
    actions: NDArray[np.int64]
    returns: NDArray[np.float32]


@dataclass
class _Episodes:
    """Consecutive seeds for each environment; `current` holds those of the episodes under way."""

    first: int
    current: list[int]

    def __call__(self, world: int, episode: int) -> int:
        self.current[world] = self.first + world * EPISODES_PER_WORLD + episode
        return self.current[world]


def collect(
    make_envs: MakeEnvs,
    scenario: Scenario,
    config: WarmStart,
    teachers: Mapping[str, str],
    first_seed: int,
    driver: MlpActor | None,
    gamma: float,
    credit: Credit,
    generator: np.random.Generator,
    space: FleetSpace | None = None,
    progress: bool = True,
) -> Demonstrations:
    """Run episodes and note what the scheduler decides in some of the states.

    Args:
        make_envs: Makes the environments.
        scenario: Their scenario; of a mixture the first.
        config: How many decisions to note, and one in how many.
        teachers: Whose decisions, by the name of the scenario.
        first_seed: Seed of the first episode.
        driver: Who acts; None: the scheduler itself.
        gamma: Discount of the returns.
        credit: Along what the returns are computed.
        generator: Picks the states.
        space: The plans, in the fleet view.
        progress: Show a progress bar.
    """
    n = config.n_envs
    steps = -(-config.decisions * config.one_in // n)
    seeds = _Episodes(first_seed, [0] * n)
    env = make_envs(n, seeds)
    teacher: Decide = (
        BySchedulers(teachers, nearest=True) if space is None else ByPlans(space, teachers[scenario.name])
    )
    pupil = None if driver is None else ByActor(driver)
    kept = generator.random((steps, n)) * config.one_in < 1.0
    observations, masks, actions = [], [], []
    everybody = list(range(n))
    trail = _Trail(steps, n, credit)
    try:
        stage = Stage(scenario, env, seeds.current)
        trail.begin(env)
        names = sorted(set(teachers.values()))
        words = f"collecting {names[0] if len(names) == 1 else f'{len(names)} schedulers'}"
        for t in tqdm(range(steps), desc=words, unit=" steps", leave=False, disable=not progress):
            asked = everybody if pupil is None else np.flatnonzero(kept[t]).tolist()
            acted = np.zeros((n, *env.action_space.shape), dtype=np.int64)  # type: ignore[misc]
            if asked:
                told = teacher(stage, asked)
                acted[asked] = told if space is not None else _within(stage, asked, told)
            if kept[t].any():
                observations.append(stage.observations[kept[t]])
                masks.append(stage.masks[kept[t]])
                actions.append(acted[kept[t]])
            if pupil is not None:
                acted = pupil(stage, everybody)
            trail.add(t, *stage.step(acted))
        references_s = np.array([stage.scenario_of(world).reward.reference_e2e_s for world in everybody])
    finally:
        env.close()
    returns = trail.returns(gamma, references_s)
    return Demonstrations(
        np.concatenate(observations), np.concatenate(masks), np.concatenate(actions), returns[kept]
    )


def _within(stage: Stage, which: Sequence[int], actions: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return a scheduler's actions with the longest offered length instead of a longer one.

    It goes by the lists of the scenario, which in a mixture may be longer than what is offered.
    """
    lengths = stage.masks[which, : stage.actions.nvec[0]]
    for row, offered in enumerate(lengths):
        if not offered[actions[row, 0]] and offered[1:].any():
            actions[row, 0] = int(np.flatnonzero(offered[: actions[row, 0]]).max())
    return actions


class _Trail:
    """What the returns of all steps are computed from; requests are followed where they are credited."""

    def __init__(self, steps: int, n: int, credit: Credit) -> None:
        shape = (steps, n)
        self.credit = credit
        self.moments = Moments.empty(shape)
        self.episodes = np.zeros(shape, dtype=np.int64)
        self.rewards = np.zeros(shape)
        self.dones = np.zeros(shape, dtype=np.bool_)
        self.completed: dict[int, Completed] = {}

    def begin(self, env: VecEnv) -> None:
        """Follow environments that have been reset."""
        if self.credit.kind == "request":
            self._tracker = tracker_of(env)
            self._due = self._tracker.due()
        self._episode = np.zeros(env.num_envs, dtype=np.int64)

    def add(
        self,
        t: int,
        rewards: NDArray[np.float32],
        dones: NDArray[np.bool_],
        infos: Sequence[dict[str, Any]],
    ) -> None:
        """Note one step of all environments."""
        self.episodes[t], self.rewards[t], self.dones[t] = self._episode, rewards, dones
        self._episode += dones
        if self.credit.kind != "request":
            return
        self.moments.put(t, self._due)
        completed = self._tracker.completed(infos, dones)
        if len(completed.worlds):
            self.completed[t] = completed
        self._due = self._tracker.due()

    def returns(self, gamma: float, references_s: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return the return of every step, shape (T, n); NaN where the rest is not known."""
        if self.credit.kind == "request":
            return self._returns_by_request(gamma, references_s)
        steps, n = self.rewards.shape
        result = np.zeros((steps, n))
        total = np.zeros(n)
        for t in range(steps - 1, -1, -1):
            total = self.rewards[t] + gamma * np.where(self.dones[t], 0.0, total)
            result[t] = total
        if gamma > 0:
            # Too close to the cut for the discounted rest to be negligible (5 %); with γ = 1 that is
            # everything since the last end of an episode.
            tail = steps if gamma == 1 else min(steps, int(np.ceil(np.log(0.05) / np.log(gamma))))
            ends_later = np.logical_or.accumulate(self.dones[::-1])[::-1]
            result[steps - tail :][~ends_later[steps - tail :]] = np.nan
        return result.astype(np.float32)

    def _returns_by_request(self, gamma: float, references_s: NDArray[np.float64]) -> NDArray[np.float32]:
        weights = self.credit.weights(references_s)
        completions = Completions.of(self.completed, self.episodes)
        chains = link(self.moments, self.episodes, self.rewards, completions, weights)
        # With V = 0 and λ = 1 the advantage is the return; a chain that breaks off has none.
        result = advantages(chains, np.zeros(self.rewards.shape), token_value(chains, weights), gamma, 1.0)
        result[~chains.complete()] = np.nan
        return result.astype(np.float32)


def warm_start(
    model: OnPolicyAlgorithm,
    make_envs: MakeEnvs,
    scenario: Scenario,
    config: WarmStart,
    credit: Credit,
    seed: int,
    teachers: Mapping[str, str] | None = None,
    space: FleetSpace | None = None,
    progress: bool = True,
) -> dict[str, float]:
    """Fit a fresh learner to a scheduler; see the module's docstring.

    Args:
        model: PPO or MaskablePPO; its actor (and critic) are changed.
        make_envs: Makes the environments for collecting.
        scenario: Their scenario; of a mixture the first.
        config: The stage's settings.
        credit: Along what the critic's returns are computed.
        seed: Seed of the run; picks the demonstration episodes and the order of the minibatches.
        teachers: Whose decisions are imitated, by the name of the scenario. Default: the configured one's.
        space: The plans, in the fleet view, whose teachers make plans (:class:`agents.rollouts.ByPlans`).
        progress: Show progress bars.

    Returns:
        Figures for the record: decisions used, those left out because the mask forbade the scheduler's
        choice, and the share of the last round's decisions that the fitted actor reproduces in all
        dimensions.
    """
    teachers = teachers or {scenario.name: config.scheduler}
    generator = np.random.default_rng(seed)
    nvec = [int(n) for n in model.action_space.nvec]  # type: ignore[attr-defined]
    seen: list[Demonstrations] = []
    # Room for every round's episodes: none is longer than one decision per episode allows.
    first = DEMONSTRATION_SEEDS.start + (seed * 1_000_003) % (len(DEMONSTRATION_SEEDS) // 2)
    left_out = 0
    for round_number in range(config.rounds):
        driver = actor_of(model, nvec) if round_number else None
        first_seed = first + round_number * 1_000_000
        shown = collect(
            make_envs,
            scenario,
            config,
            teachers,
            first_seed,
            driver,
            model.gamma,
            credit,
            generator,
            space,
            progress,
        )
        possible = _allowed(shown, nvec)
        left_out += int((~possible).sum())
        if not possible.any():
            whose = ", ".join(sorted(set(teachers.values())))
            raise ValueError(f"the mask forbids every decision of {whose}: nothing to imitate")
        seen.append(shown)
        kept = [_allowed(d, nvec) for d in seen]
        observations = np.concatenate([d.observations[k] for d, k in zip(seen, kept, strict=True)])
        masks = np.concatenate([d.masks[k] for d, k in zip(seen, kept, strict=True)])
        actions = np.concatenate([d.actions[k] for d, k in zip(seen, kept, strict=True)])
        told = f"imitating, round {round_number + 1}"
        fit_actor(model, observations, masks, actions, config, generator, told, progress=progress)
    if config.critic:
        _fit_critic(model, seen[-1], config, generator, progress)
    actor = actor_of(model, nvec)
    probe = range(0, len(seen[-1].actions), max(1, len(seen[-1].actions) // 2000))
    agree = [
        actor.action(seen[-1].observations[i], seen[-1].masks[i]) == seen[-1].actions[i].tolist()
        for i in probe
    ]
    return {
        "decisions": float(sum(len(d.actions) for d in seen)),
        "left_out": float(left_out),
        "agreement": float(np.mean(agree)),
    }


def _allowed(shown: Demonstrations, nvec: list[int]) -> NDArray[np.bool_]:
    starts = np.concatenate(([0], np.cumsum(nvec)[:-1]))
    rows = np.arange(len(shown.actions))[:, None]
    return np.asarray(shown.masks[rows, shown.actions + starts].all(axis=1))


def fit_actor(
    model: OnPolicyAlgorithm,
    observations: NDArray[np.float32],
    masks: NDArray[np.bool_],
    actions: NDArray[np.int64],
    config: Imitation,
    generator: np.random.Generator,
    told: str = "imitating",
    after_epoch: Callable[[], None] = lambda: None,
    progress: bool = True,
) -> None:
    """Fit a learner's actor to decisions by maximum likelihood.

    Args:
        model: PPO or MaskablePPO; its actor is changed.
        observations: float32, (N, n_features).
        masks: bool, (N, n_logits).
        actions: int64, (N, dimensions); those that the masks allow.
        config: The fit's settings.
        generator: Orders the minibatches.
        told: What the progress bar says.
        after_epoch: Called after every epoch.
        progress: Show a progress bar.
    """
    policy: ActorCriticPolicy = model.policy
    parameters = [*policy.mlp_extractor.policy_net.parameters(), *policy.action_net.parameters()]
    optimiser = th.optim.Adam(parameters, lr=config.learning_rate)
    x, m, y = (th.as_tensor(array, device=model.device) for array in (observations, masks, actions))
    maskable = isinstance(model, MaskablePPO)
    policy.set_training_mode(True)
    for _ in tqdm(range(config.epochs), desc=told, unit=" epochs", leave=False, disable=not progress):
        for rows in _minibatches(len(x), config.batch_size, generator):
            options = {"action_masks": m[rows]} if maskable else {}
            _, log_prob, entropy = policy.evaluate_actions(x[rows], y[rows], **options)
            loss = -log_prob.mean()
            if entropy is not None and config.entropy > 0.0:
                loss = loss - config.entropy * entropy.mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        after_epoch()


def _fit_critic(
    model: OnPolicyAlgorithm,
    shown: Demonstrations,
    config: WarmStart,
    generator: np.random.Generator,
    progress: bool,
) -> None:
    known = np.isfinite(shown.returns)
    if not known.any():
        return
    policy: ActorCriticPolicy = model.policy
    parameters = [*policy.mlp_extractor.value_net.parameters(), *policy.value_net.parameters()]
    optimiser = th.optim.Adam(parameters, lr=config.learning_rate)
    x = th.as_tensor(shown.observations[known], device=model.device)
    y = th.as_tensor(shown.returns[known], device=model.device)
    with th.no_grad():
        # The fit need not first learn the mean, which may be large.
        policy.value_net.bias.fill_(float(y.mean()))
    bar = tqdm(
        range(config.epochs), desc="fitting the critic", unit=" epochs", leave=False, disable=not progress
    )
    for _ in bar:
        for rows in _minibatches(len(x), config.batch_size, generator):
            loss = th.nn.functional.mse_loss(policy.predict_values(x[rows]).flatten(), y[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()


def _minibatches(n: int, size: int, generator: np.random.Generator) -> list[th.Tensor]:
    order = generator.permutation(n)
    return [th.as_tensor(part) for part in np.array_split(order, max(1, round(n / size)))]
