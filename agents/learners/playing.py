"""How trained learners decide in the episodes of an evaluation, and what they choose."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sb3_contrib import RecurrentPPO

from agents.rollouts import Decide, Stage


class ByMemory:
    """Decides by a RecurrentPPO; every environment has a memory of its own, empty when its episode begins."""

    def __init__(self, model: RecurrentPPO) -> None:
        """Take the trained learner."""
        self._model = model
        self._state: tuple[NDArray[np.float32], ...] | None = None
        self._seeds: list[int | None] = []

    def __call__(self, stage: Stage, which: Sequence[int]) -> NDArray[np.int64]:
        """Return the learner's deterministic actions in some environments."""
        at = list(which)
        if self._state is None:
            shape = list(self._model.policy.lstm_hidden_state_shape)
            shape[1] = len(stage.seeds)
            self._state = (np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.float32))
            self._seeds = [None] * len(stage.seeds)
        begins = np.array([self._seeds[world] != stage.seeds[world] for world in at])
        own = tuple(part[:, at] for part in self._state)
        actions, after = self._model.predict(
            stage.observations[at], state=own, episode_start=begins, deterministic=True
        )
        assert after is not None
        for part, new in zip(self._state, after, strict=True):
            part[:, at] = new
        for world in at:
            self._seeds[world] = stage.seeds[world]
        return np.asarray(actions, dtype=np.int64)


class Counted:
    """Counts how often each index is chosen in each dimension.

    Attributes:
        counts: By dimension.
    """

    def __init__(self, decide: Decide, sizes: Sequence[int]) -> None:
        """Ask ``decide``; dimensions have so many indices."""
        self._decide = decide
        self.counts = [np.zeros(size, dtype=np.int64) for size in sizes]

    def __call__(self, stage: Stage, which: Sequence[int]) -> NDArray[np.int64]:
        """Return the actions in some environments."""
        actions = self._decide(stage, which)
        for dimension, counts in enumerate(self.counts):
            counts += np.bincount(actions[:, dimension], minlength=len(counts))
        return actions

    def shares(self) -> list[list[float]]:
        """Return the share of the decisions that each index has, by dimension."""
        return [[round(float(share), 6) for share in each / max(1, each.sum())] for each in self.counts]
