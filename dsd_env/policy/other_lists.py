"""Policies where lists of lengths and batch sizes are other than their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dsd_env.control import ActionSpace

if TYPE_CHECKING:
    from dsd_env.policy import Policy


class OtherLists:
    """Asks a policy where the lists are other ones than its own.

    What the policy's lists do not have is not chosen, and what they have besides is masked.
    """

    def __init__(self, policy: Policy, own: ActionSpace) -> None:
        """Look up what of either list is on the other.

        Args:
            policy: The policy, not of flat actions.
            own: The lists there, with as many candidates as the policy's.

        Raises:
            ValueError: There are more or fewer candidates.
        """
        lists = policy.actions
        if lists.n_placements != own.n_placements:
            raise ValueError(f"{own.n_placements} candidates, and the policy knows {lists.n_placements}")
        self._policy, self._same = policy, lists == own
        self._lengths, self._batches = (
            places(lists.lengths, own.lengths),
            places(lists.batch_sizes, own.batch_sizes),
        )
        # Where nothing stands, −1 is the False at the end of the mask that it points into.
        self._sources = sources(lists, own)
        self._mask = np.zeros(sum(own.nvec) + 1, dtype=np.bool_)

    def action(self, observation: NDArray[np.float32], mask: NDArray[np.bool_]) -> list[int]:
        """Return the policy's action, in indices of the lists there.

        Args:
            observation: float32, shape (n_features,).
            mask: bool, shape (sum(own.nvec),).
        """
        if self._same:
            return self._policy.action(observation, mask)
        self._mask[:-1] = mask
        gamma, batch, placement = self._policy.action(observation, self._mask[self._sources])
        return [self._lengths[gamma], self._batches[batch], placement]


def places(was: Sequence[object], now: Sequence[object], start: int = 0) -> list[int]:
    """Return where the entries of one list are on another one, counted from ``start``; -1: nowhere."""
    return [start + now.index(value) if value in now else -1 for value in was]


def sources(lists: ActionSpace, own: ActionSpace) -> NDArray[np.int64]:
    """Return where each entry of a mask for some lists stands in one for other lists; -1: nowhere.

    Args:
        lists: Whose mask is asked for.
        own: Whose mask is there, with as many candidates.

    Returns:
        int64, shape (sum(lists.nvec),).
    """
    n_lengths, n_batches, n_placements = own.nvec
    rest = range(n_lengths + n_batches, n_lengths + n_batches + n_placements)
    lengths = places(lists.lengths, own.lengths)
    batches = places(lists.batch_sizes, own.batch_sizes, n_lengths)
    return np.array([*lengths, *batches, *rest], dtype=np.int64)
