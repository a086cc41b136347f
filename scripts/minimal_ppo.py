#!/usr/bin/env python3
"""PPO on the scheduling environment, from top to bottom in one file: train, then compare with two rules.

    python scripts/minimal_ppo.py                        # some minutes on two cores
    python scripts/minimal_ppo.py --timesteps 2000000

Nothing but the environment comes from this project: the networks, the rollouts and the update stand here, in
the order in which they run. `scripts/train.py` is the full training, with warm start and resumption.
"""

from __future__ import annotations

import argparse
from typing import Any

import _checkout  # noqa: F401
import gymnasium
import numpy as np
import torch
from torch import nn
from torch.distributions import Categorical

import dsd_env
from dsd_env.control import ActionSpace, ObservationEncoder

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
)
parser.add_argument("--scenario", default="metro")
parser.add_argument("--timesteps", type=int, default=500_000, help="decisions to learn from")
parser.add_argument("--worlds", type=int, default=64, help="worlds stepped together")
parser.add_argument("--steps", type=int, default=128, help="decisions per world and rollout")
parser.add_argument("--seed", type=int, default=1)
parser.add_argument("--episodes", type=int, default=3, help="unseen episodes to compare on")
args = parser.parse_args()

LEARNING_RATE, EPOCHS, MINIBATCHES = 3e-4, 4, 8
DISCOUNT, GAE_LAMBDA, CLIP, ENTROPY, MAX_GRAD_NORM = 0.999, 0.95, 0.2, 0.003, 0.5

# The worlds. An action is three choices: speculation length, batch size, placement.
envs: Any = gymnasium.make_vec(
    "dsd_env/EdgeCloud-v0", args.worlds, scenario=args.scenario, autoreset_mode="SameStep", infos="numeric"
)
sizes = [int(n) for n in envs.single_action_space.nvec]
n_features = envs.single_observation_space.shape[0]
torch.manual_seed(args.seed)
torch.set_num_threads(1)


# The policy and the value, two networks. A masked choice has probability 0.
def network(n_out: int, gain: float) -> nn.Sequential:
    """Return a small network, its last layer scaled by ``gain``."""
    linear = [nn.Linear(n_features, 64), nn.Linear(64, 64), nn.Linear(64, n_out)]
    for layer, layer_gain in zip(linear, (2**0.5, 2**0.5, gain), strict=True):
        nn.init.orthogonal_(layer.weight, layer_gain)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(linear[0], nn.Tanh(), linear[1], nn.Tanh(), linear[2])


policy, value = network(sum(sizes), 0.01), network(1, 1.0)
parameters = [*policy.parameters(), *value.parameters()]
optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE, eps=1e-5)


def choices(observations: torch.Tensor, masks: torch.Tensor) -> list[Categorical]:
    """Return the distribution of each of the three choices."""
    logits = policy(observations).masked_fill(~masks, -1e8)
    return [Categorical(logits=part) for part in logits.split(sizes, dim=1)]


# Learn.
shape = (args.steps, args.worlds)
observations, masks = torch.zeros(*shape, n_features), torch.zeros(*shape, sum(sizes), dtype=torch.bool)
actions, log_probs = torch.zeros(*shape, 3, dtype=torch.long), torch.zeros(shape)
rewards, dones, values = torch.zeros(shape), torch.zeros(shape), torch.zeros(args.steps + 1, args.worlds)
observation, _ = envs.reset(seed=args.seed)
scale = 1.0  # running size of the returns, so that the value learns numbers near one
for update in range(1, max(1, args.timesteps // (args.steps * args.worlds)) + 1):
    for step in range(args.steps):
        observations[step] = torch.from_numpy(observation)
        masks[step] = torch.from_numpy(envs.action_masks())
        with torch.no_grad():
            heads = choices(observations[step], masks[step])
            actions[step] = torch.stack([head.sample() for head in heads], dim=1)
            log_probs[step] = sum(head.log_prob(actions[step, :, i]) for i, head in enumerate(heads))
            values[step] = value(observations[step])[:, 0]
        observation, reward, terminated, truncated, _ = envs.step(actions[step].numpy())
        rewards[step] = torch.from_numpy(reward.astype(np.float32))
        dones[step] = torch.from_numpy((terminated | truncated).astype(np.float32))
    with torch.no_grad():
        values[args.steps] = value(torch.from_numpy(observation))[:, 0]

    # Advantages by GAE. An episode's end by its number of requests is taken for its end.
    advantages, running = torch.zeros(shape), torch.zeros(args.worlds)
    for step in reversed(range(args.steps)):
        goes_on = 1.0 - dones[step]
        delta = rewards[step] / scale + DISCOUNT * values[step + 1] * goes_on - values[step]
        running = delta + DISCOUNT * GAE_LAMBDA * goes_on * running
        advantages[step] = running
    returns = advantages + values[:-1]
    scale *= max(1e-3, float(returns.std())) ** 0.1

    # Several passes over the rollout, each on the clipped surrogate.
    flat = [x.flatten(0, 1) for x in (observations, masks, actions, log_probs, advantages, returns)]
    for _ in range(EPOCHS):
        for batch in torch.randperm(args.steps * args.worlds).chunk(MINIBATCHES):
            obs, mask, action, old, advantage, wanted = (x[batch] for x in flat)
            heads = choices(obs, mask)
            ratio = (sum(head.log_prob(action[:, i]) for i, head in enumerate(heads)) - old).exp()
            advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
            surrogate = torch.min(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage).mean()
            entropy = sum(head.entropy().mean() for head in heads)
            loss = 0.5 * (value(obs)[:, 0] - wanted).pow(2).mean() - surrogate - ENTROPY * entropy
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM)
            optimizer.step()
    if update % 10 == 0:
        decisions = update * args.steps * args.worlds
        print(f"{decisions:9d} decisions  reward {float(rewards.mean()):9.5f}", flush=True)


# Compare on episodes that nobody has seen, the same for all.
class Learned:
    """The policy as a scheduler: from the typed view of a decision to its answer."""

    name = "learned"

    def reset(self, scenario: dsd_env.Scenario, seed: int) -> None:
        """Prepare for an episode."""
        self.encoder, self.space = ObservationEncoder.of(scenario), ActionSpace.of(scenario)

    def decide(self, view: dsd_env.DecisionView) -> dsd_env.Decision:
        """Return the most likely choices."""
        mask = torch.from_numpy(self.space.mask(view))[None]
        with torch.no_grad():
            heads = choices(torch.from_numpy(self.encoder.encode(view))[None], mask)
        return self.space.decode([int(head.probs.argmax()) for head in heads])


scenario = dsd_env.load_scenario(args.scenario)
print(f"\nmean request time in s on {args.episodes} unseen episodes of {args.scenario}")
for name in ("learned", "colocated_sd:1", "jsq_goodput"):
    scheduler = Learned() if name == "learned" else name
    times = [
        dsd_env.simulate(scenario, scheduler, seed=1000 + i).metrics["e2e_s_mean"]
        for i in range(args.episodes)
    ]
    print(f"  {name:15} {np.mean(times):.3f}   ({', '.join(f'{t:.3f}' for t in times)})")
