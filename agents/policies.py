"""SB3's actor-critic policies for MultiDiscrete actions, with less work per step.

Stable-Baselines3 builds one distribution object per action dimension and step, and checks and normalises
each. With dozens of environments and a network this small, that takes several times as long as network and
simulator together. These subclasses compute the same probabilities, samples and entropies on plain tensors.
Parameters, ``predict`` and saved files are those of the original.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch as th
from numpy.typing import NDArray
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3.common.policies import ActorCriticPolicy

_MASKED_LOGIT = -1e8
"""What sb3-contrib puts in the place of a masked logit."""


Mask = NDArray[np.bool_] | th.Tensor | None


def log_probabilities(logits: th.Tensor, mask: th.Tensor | None, nvec: list[int]) -> list[th.Tensor]:
    """Return the log-probabilities of every dimension.

    Args:
        logits: Shape (N, sum(nvec)).
        mask: True where selectable, same shape; None: everywhere.
        nvec: Sizes of the dimensions.
    """
    if mask is not None:
        logits = logits.masked_fill(~mask, _MASKED_LOGIT)
    return [part.log_softmax(dim=1) for part in logits.split(nvec, dim=1)]


def sample(log_probs: list[th.Tensor]) -> th.Tensor:
    """Return one sample per row and dimension, int64, shape (N, dimensions).

    The largest of log-probability plus Gumbel noise, −log(exponential), is such a sample.
    """
    noisy = [part - th.empty_like(part).exponential_().log_() for part in log_probs]
    return th.stack([part.argmax(dim=1) for part in noisy], dim=1)


def log_prob_of(log_probs: list[th.Tensor], actions: th.Tensor) -> th.Tensor:
    """Return the log-probability of actions of shape (N, dimensions), shape (N,)."""
    columns = actions.long().split(1, dim=1)
    chosen = [part.gather(1, column) for part, column in zip(log_probs, columns, strict=True)]
    return th.cat(chosen, dim=1).sum(dim=1)


def entropy_of(log_probs: list[th.Tensor]) -> th.Tensor:
    """Return the sum of the dimensions' entropies, shape (N,)."""
    everything = th.cat(log_probs, dim=1)
    # A masked entry's probability is exactly 0 in float32, and 0 times its huge log-probability is 0.
    return -(everything * everything.exp()).sum(dim=1)


class FastMaskablePolicy(MaskableActorCriticPolicy):
    """``MlpPolicy`` of MaskablePPO, with less work per step."""

    def forward(
        self, obs: th.Tensor, deterministic: bool = False, action_masks: NDArray[np.bool_] | None = None
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """Return actions, values and log-probabilities of observations."""
        if deterministic:
            return super().forward(obs, deterministic, action_masks)  # type: ignore[no-any-return]
        return _forward(self, obs, action_masks)

    def evaluate_actions(
        self, obs: th.Tensor, actions: th.Tensor, action_masks: th.Tensor | None = None
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
        """Return values, log-probabilities and entropies of observations and actions."""
        return _evaluate(self, obs, actions, action_masks)


class FastPolicy(ActorCriticPolicy):
    """``MlpPolicy`` of PPO, with less work per step."""

    def forward(self, obs: th.Tensor, deterministic: bool = False) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """Return actions, values and log-probabilities of observations."""
        if deterministic:
            return super().forward(obs, deterministic)
        return _forward(self, obs, None)

    def evaluate_actions(self, obs: Any, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
        """Return values, log-probabilities and entropies of observations and actions."""
        return _evaluate(self, obs, actions, None)


def _forward(policy: Any, obs: th.Tensor, mask: Mask) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    log_probs, values = _outputs(policy, obs, mask)
    actions = sample(log_probs)
    return actions, values, log_prob_of(log_probs, actions)


def _evaluate(
    policy: Any, obs: th.Tensor, actions: th.Tensor, mask: Mask
) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    log_probs, values = _outputs(policy, obs, mask)
    return values, log_prob_of(log_probs, actions.view(len(values), -1)), entropy_of(log_probs)


def _outputs(policy: Any, obs: th.Tensor, mask: Mask) -> tuple[list[th.Tensor], th.Tensor]:
    latent_actor, latent_critic = policy.mlp_extractor(policy.extract_features(obs))
    logits = policy.action_net(latent_actor)
    if mask is not None:
        mask = th.as_tensor(mask, dtype=th.bool, device=logits.device).view(logits.shape)
    return log_probabilities(logits, mask, policy.action_dist.action_dims), policy.value_net(latent_critic)
