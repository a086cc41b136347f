"""From a learner of a training run to a plain NumPy actor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from sb3_contrib import MaskablePPO
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from dsd_env.policy.from_sb3 import activation_named, actor_layers
from dsd_env.policy.network import MlpActor


def normalisations_of(algorithm: str) -> Literal[1, 2]:
    """Return how often the distribution of ``ppo`` or ``maskable_ppo`` normalises its logits."""
    return 2 if algorithm == "maskable_ppo" else 1


def actor_of(model: OnPolicyAlgorithm, nvec: Sequence[int]) -> MlpActor:
    """Return a copy of a learner's actor as it is now.

    Raises:
        ValueError: Not an MlpPolicy with tanh or ReLU.
    """
    activation = activation_named(getattr(model.policy, "activation_fn", None))
    algorithm = "maskable_ppo" if isinstance(model, MaskablePPO) else "ppo"
    return MlpActor(actor_layers(model.policy.state_dict()), activation, nvec, normalisations_of(algorithm))


__all__ = ["actor_layers", "actor_of", "normalisations_of"]
