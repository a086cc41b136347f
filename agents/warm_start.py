"""Warm start: imitate a scheduler's decisions before reinforcement learning.

The first round collects the scheduler's decisions in the states that the scheduler itself visits; later
rounds let the learner drive and ask the scheduler what it would have done there (DAgger; Ross, Gordon &
Bagnell, AISTATS 2011), so that the learner also knows the way back from its own mistakes. All rounds together
are fitted by maximum likelihood. The critic is fitted to the discounted returns seen in the last round.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from numpy.typing import NDArray
from sb3_contrib import MaskablePPO
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from tqdm import tqdm

from agents.actors import actor_of
from agents.config import Credit, WarmStart
from agents.credit import (
    Moment,
    advantages,
    completions_in,
    decision_of,
    link,
    token_value,
)
from agents.environments import reset_to
from agents.seeds import DEMONSTRATION_SEEDS
from dsd_env.policy.network import MlpActor
from dsd_env.scenario import Scenario
from dsd_env.schedulers import make_scheduler


@dataclass
class Demonstrations:
    """States, masks, the scheduler's actions there, and the returns of what was really done.

    Attributes:
        observations: float32, (N, n_features).
        masks: bool, (N, n_logits).
        actions: int64, (N, 3).
        returns: float32, (N,); NaN where the rest of the episode is not known.
    """

    observations: NDArray[np.float32]
    masks: NDArray[np.bool_]
    actions: NDArray[np.int64]
    returns: NDArray[np.float32]


def collect(
    env: gym.Env[Any, Any],
    scenario: Scenario,
    scheduler_name: str,
    decisions: int,
    first_seed: int,
    driver: MlpActor | None,
    gamma: float,
    credit: Credit,
) -> Demonstrations:
    """Run episodes and note what the scheduler decides.

    Args:
        env: An `EdgeCloudEnv`, wrapped or not.
        scenario: Its scenario.
        scheduler_name: Whose decisions to note.
        decisions: How many.
        first_seed: Seed of the first episode; the next ones follow.
        driver: Who acts; None: the scheduler itself.
        gamma: Discount of the returns.
        credit: Along what the returns are computed.
    """
    scheduler = make_scheduler(scheduler_name)
    base: Any = env.unwrapped
    rows: list[tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.int64]]] = []
    returns: list[NDArray[np.float32]] = []
    seed = first_seed
    with tqdm(total=decisions, desc=f"collecting {scheduler_name}", unit=" decisions", leave=False) as bar:
        while len(rows) < decisions:
            observation, info = reset_to(env, seed)
            scheduler.reset(scenario, seed)
            episode = _Episode()
            done = False
            while not done:
                mask = base.action_masks().copy()
                wanted = base.actions.encode(scheduler.decide(base.view))
                acted = (
                    wanted if driver is None else np.array(driver.action(observation, mask), dtype=np.int64)
                )
                rows.append((np.array(observation), mask, wanted))
                due = decision_of(info)
                observation, reward, terminated, truncated, info = env.step(acted)
                episode.add(due, float(reward), info)
                done = terminated or truncated or len(rows) >= decisions
                bar.update(1)
            returns.append(episode.returns(terminated, gamma, credit, scenario.reward.reference_e2e_s))
            seed += 1
    observations, masks, actions = zip(*rows, strict=True)
    return Demonstrations(np.array(observations), np.array(masks), np.array(actions), np.concatenate(returns))


class _Episode:
    """What the returns of one episode are computed from."""

    def __init__(self) -> None:
        self.moments: list[Moment] = []
        self.rewards: list[float] = []
        self.completions: dict[tuple[int, int], tuple[Moment, int]] = {}

    def add(self, due: Moment, reward: float, info: dict[str, Any]) -> None:
        for completion in completions_in(info):
            self.completions[0, completion.request] = (completion, len(self.rewards))
        self.moments.append(due)
        self.rewards.append(reward)

    def returns(
        self, finished: bool, gamma: float, credit: Credit, reference_s: float
    ) -> NDArray[np.float32]:
        n = len(self.rewards)
        result = np.zeros(n)
        if credit.kind == "request":
            weights = credit.weights(reference_s)
            zeros = np.zeros(n, dtype=np.int64)
            chains = link(self.moments, zeros, np.array(self.rewards), self.completions, weights)
            # With V = 0 and λ = 1 the advantage is the return; a chain that breaks off has none.
            result = advantages(chains, np.zeros(n), token_value([chains], weights), gamma, 1.0)
            complete = np.array([(0, moment.request) in self.completions for moment in self.moments])
            result[~(chains.known & complete)] = np.nan
            return result.astype(np.float32)
        total = 0.0
        for t in range(n - 1, -1, -1):
            total = self.rewards[t] + gamma * total
            result[t] = total
        if not finished and gamma > 0:
            # Too close to the cut for the discounted rest to be negligible (5 %); with γ = 1 that is
            # everything.
            tail = n if gamma == 1 else min(n, int(np.ceil(np.log(0.05) / np.log(gamma))))
            result[n - tail :] = np.nan
        return result.astype(np.float32)


def warm_start(
    model: OnPolicyAlgorithm,
    env: gym.Env[Any, Any],
    scenario: Scenario,
    config: WarmStart,
    credit: Credit,
    seed: int,
) -> dict[str, float]:
    """Fit a fresh learner to a scheduler; see the module's docstring.

    Args:
        model: PPO or MaskablePPO; its actor (and critic) are changed.
        env: The environment for collecting.
        scenario: Its scenario.
        config: The stage's settings.
        credit: Along what the critic's returns are computed.
        seed: Seed of the run; picks the demonstration episodes and the order of the minibatches.

    Returns:
        Figures for the record: decisions used, those left out because the mask forbade the scheduler's
        choice, and the share of the last round's decisions that the fitted actor reproduces in all
        dimensions.
    """
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
            env, scenario, config.scheduler, config.decisions, first_seed, driver, model.gamma, credit
        )
        possible = _allowed(shown, nvec)
        left_out += int((~possible).sum())
        if not possible.any():
            raise ValueError(f"the mask forbids every decision of {config.scheduler!r}: nothing to imitate")
        seen.append(shown)
        kept = [_allowed(d, nvec) for d in seen]
        observations = np.concatenate([d.observations[k] for d, k in zip(seen, kept, strict=True)])
        masks = np.concatenate([d.masks[k] for d, k in zip(seen, kept, strict=True)])
        actions = np.concatenate([d.actions[k] for d, k in zip(seen, kept, strict=True)])
        _fit_actor(model, observations, masks, actions, config, generator, round_number)
    if config.critic:
        _fit_critic(model, seen[-1], config, generator)
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


def _fit_actor(
    model: OnPolicyAlgorithm,
    observations: NDArray[np.float32],
    masks: NDArray[np.bool_],
    actions: NDArray[np.int64],
    config: WarmStart,
    generator: np.random.Generator,
    round_number: int,
) -> None:
    policy: ActorCriticPolicy = model.policy
    parameters = [*policy.mlp_extractor.policy_net.parameters(), *policy.action_net.parameters()]
    optimiser = th.optim.Adam(parameters, lr=config.learning_rate)
    x, m, y = (th.as_tensor(array, device=model.device) for array in (observations, masks, actions))
    maskable = isinstance(model, MaskablePPO)
    policy.set_training_mode(True)
    for _ in tqdm(
        range(config.epochs), desc=f"imitating, round {round_number + 1}", unit=" epochs", leave=False
    ):
        for rows in _minibatches(len(x), config.batch_size, generator):
            options = {"action_masks": m[rows]} if maskable else {}
            _, log_prob, _ = policy.evaluate_actions(x[rows], y[rows], **options)
            loss = -log_prob.mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()


def _fit_critic(
    model: OnPolicyAlgorithm, shown: Demonstrations, config: WarmStart, generator: np.random.Generator
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
    for _ in tqdm(range(config.epochs), desc="fitting the critic", unit=" epochs", leave=False):
        for rows in _minibatches(len(x), config.batch_size, generator):
            loss = th.nn.functional.mse_loss(policy.predict_values(x[rows]).flatten(), y[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()


def _minibatches(n: int, size: int, generator: np.random.Generator) -> list[th.Tensor]:
    order = generator.permutation(n)
    return [th.as_tensor(part) for part in np.array_split(order, max(1, round(n / size)))]
