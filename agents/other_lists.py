"""Policies on environments whose lists of lengths and batch sizes are other than their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dsd_env.control import ActionSpace

if TYPE_CHECKING:
    from dsd_env.policy import Policy


class OtherLists:
    """Asks a policy in an environment with other lists.

    What the policy's lists do not have is not chosen, and what they have besides is masked.
    """

    def __init__(self, policy: Policy, own: ActionSpace) -> None:
        """Look up what of either list is on the other.

        Args:
            policy: The policy, not of flat actions.
            own: The environment's lists, with as many candidates as the policy's.

        Raises:
            ValueError: There are more or fewer candidates.
        """
        lists = policy.actions
        if lists.n_placements != own.n_placements:
            raise ValueError(f"{own.n_placements} candidates, and the policy knows {lists.n_placements}")
        self._policy, self._same = policy, lists == own
        self._gammas = [_place(value, own.gammas) for value in lists.gammas]
        self._batches = [_place(value, own.batch_sizes) for value in lists.batch_sizes]
        n_gammas, n_batches, n_placements = own.nvec
        # Where each entry of the policy's mask stands in the environment's; −1 is the False at its end.
        self._sources = np.array(
            [
                *self._gammas,
                *(place if place < 0 else n_gammas + place for place in self._batches),
                *range(n_gammas + n_batches, n_gammas + n_batches + n_placements),
            ]
        )
        self._mask = np.zeros(sum(own.nvec) + 1, dtype=np.bool_)

    def action(self, observation: NDArray[np.float32], mask: NDArray[np.bool_]) -> list[int]:
        """Return the policy's action, in the environment's indices.

        Args:
            observation: float32, shape (n_features,).
            mask: bool, shape (sum(own.nvec),).
        """
        if self._same:
            return self._policy.action(observation, mask)
        self._mask[:-1] = mask
        gamma, batch, placement = self._policy.action(observation, self._mask[self._sources])
        return [self._gammas[gamma], self._batches[batch], placement]


def _place(value: int, values: Sequence[int]) -> int:
    return values.index(value) if value in values else -1
