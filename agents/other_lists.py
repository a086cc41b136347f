"""Policies on environments whose lists of lengths and batch sizes are other than their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dsd_env.control import ActionSpace

if TYPE_CHECKING:
    from dsd_env.policy import Policy


def action_of(
    policy: Policy, own: ActionSpace, observation: NDArray[np.float32], mask: NDArray[np.bool_]
) -> NDArray[np.int64] | list[int]:
    """Return a policy's action in an environment.

    Args:
        policy: The policy.
        own: The environment's lists, with as many candidates as the policy's.
        observation: float32, shape (n_features,).
        mask: bool, shape (sum(own.nvec),); what the policy's lists do not have is not chosen, and what they
            have besides is masked.
    """
    lists = policy.actions
    if lists == own:
        return policy.action(observation, mask)
    gamma, batch, placement = np.split(mask, np.cumsum(own.nvec)[:-1])
    allowed = [
        [value in now and bool(part[now.index(value)]) for value in was]
        for was, now, part in ((lists.gammas, own.gammas, gamma), (lists.batch_sizes, own.batch_sizes, batch))
    ]
    decision = policy.decide(observation, np.concatenate([*allowed, placement]).astype(np.bool_))
    return own.encode(decision)
