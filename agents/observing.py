"""Learners that see only part of the observation, or may choose only part of what there is."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import cast

import numpy as np
import torch as th
from numpy.typing import NDArray
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm


def seen(names: Sequence[str], patterns: Sequence[str]) -> list[bool]:
    """Return which features some patterns name.

    Args:
        names: Names of the features.
        patterns: As of file names: ``request.*``, ``candidate_*.valid``.

    Raises:
        ValueError: A pattern names no feature.
    """
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"observe: {pattern!r} names no feature; there are {', '.join(names[:5])}, …")
    return [any(fnmatchcase(name, pattern) for pattern in patterns) for name in names]


def see_only(model: OnPolicyAlgorithm, names: Sequence[str], patterns: Sequence[str]) -> None:
    """Blind a fresh learner to all features but some.

    Their weights in the first layers of actor and critic are 0 and get no gradient, so that they stay 0: what
    is saved and exported is a network like any other, which looks at nothing else.

    Args:
        model: PPO or MaskablePPO with an MlpPolicy.
        names: Names of the features.
        patterns: What it sees; see :func:`seen`.
    """
    kept = th.as_tensor(seen(names, patterns), dtype=th.float32, device=model.device)
    networks = model.policy.mlp_extractor.policy_net, model.policy.mlp_extractor.value_net
    for network in networks:
        first = next(layer for layer in network.modules() if isinstance(layer, th.nn.Linear))
        with th.no_grad():
            first.weight.mul_(kept)
        first.weight.register_hook(lambda gradient: gradient * kept)


NEVER = -1e4
"""Logit of what a learner may not choose: its probability is 0, in float32 too."""


def choose_only(model: OnPolicyAlgorithm, allowed: NDArray[np.bool_]) -> None:
    """Take all choices but some from a fresh learner.

    Their logits are constant, far below all others, and get no gradient: what is saved and exported is a
    network like any other, which never chooses them.

    Args:
        model: PPO or MaskablePPO with an MlpPolicy.
        allowed: What it may choose, bool, shape (sum(nvec),).
    """
    layer = cast("th.nn.Linear", model.policy.action_net)
    kept = th.as_tensor(allowed, dtype=th.float32, device=model.device)
    with th.no_grad():
        layer.weight.mul_(kept[:, None])
        layer.bias.mul_(kept).add_(NEVER * (1.0 - kept))
    layer.weight.register_hook(lambda gradient: gradient * kept[:, None])
    layer.bias.register_hook(lambda gradient: gradient * kept)
