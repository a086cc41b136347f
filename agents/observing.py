"""Learners that see only part of the observation: for ablations of what a policy needs to know."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch as th
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
