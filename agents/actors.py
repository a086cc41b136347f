"""From a Stable-Baselines3 learner to a plain NumPy actor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch as th
from sb3_contrib import MaskablePPO
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from dsd_env.policy.network import Float32, MlpActor

_ACTIVATIONS: dict[type[th.nn.Module], Literal["tanh", "relu"]] = {th.nn.Tanh: "tanh", th.nn.ReLU: "relu"}


def actor_layers(state: Mapping[str, th.Tensor]) -> list[tuple[Float32, Float32]]:
    """Return (weight, bias) of every layer from observation to logits.

    Args:
        state: State dict of an SB3 `MlpPolicy`.

    Raises:
        ValueError: It is the state of another kind of policy.
    """
    prefix = "mlp_extractor.policy_net."
    hidden = sorted(
        {int(name.removeprefix(prefix).split(".")[0]) for name in state if name.startswith(prefix)}
    )
    names = [f"{prefix}{index}" for index in hidden] + ["action_net"]
    foreign = sorted(
        name for name in state if name.startswith(("features_extractor.", "pi_features_extractor."))
    )
    if foreign or any(f"{name}.{part}" not in state for name in names for part in ("weight", "bias")):
        raise ValueError(f"not the state of an MlpPolicy; parameters are {sorted(state)}")
    return [(_array(state[f"{name}.weight"]), _array(state[f"{name}.bias"])) for name in names]


def _array(tensor: th.Tensor) -> Float32:
    # A copy: the learner goes on changing its parameters in place.
    return np.array(tensor.detach().cpu().numpy(), dtype=np.float32)


def normalisations_of(algorithm: str) -> Literal[1, 2]:
    """Return how often the distribution of ``ppo`` or ``maskable_ppo`` normalises its logits."""
    return 2 if algorithm == "maskable_ppo" else 1


def actor_of(model: OnPolicyAlgorithm, nvec: Sequence[int]) -> MlpActor:
    """Return a copy of a learner's actor as it is now.

    Raises:
        ValueError: Not an MlpPolicy with tanh or ReLU.
    """
    kind = getattr(model.policy, "activation_fn", None)
    activation = _ACTIVATIONS.get(kind) if kind is not None else None
    if activation is None:
        raise ValueError(f"activation {kind} is not supported; use tanh or ReLU")
    algorithm = "maskable_ppo" if isinstance(model, MaskablePPO) else "ppo"
    return MlpActor(actor_layers(model.policy.state_dict()), activation, nvec, normalisations_of(algorithm))
