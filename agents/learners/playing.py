"""How trained learners decide in the episodes of an evaluation, and what they choose."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sb3_contrib import RecurrentPPO

from agents.rollouts import Decide, Stage
from dsd_env.control import ActionSpace, ObservationEncoder
from dsd_env.scenario import Scenario


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
    """Counts what is chosen."""

    def __init__(self, decide: Decide, scenario: Scenario) -> None:
        """Ask ``decide`` in environments of a scenario."""
        self._decide = decide
        actions, names = ActionSpace.of(scenario), ObservationEncoder.of(scenario).names
        self._counts = [np.zeros(size, dtype=np.int64) for size in actions.nvec]
        # Behind the lengths come thresholds, all of which draft.
        self._drafts = np.array(
            [*(gamma > 0 for gamma in actions.gammas), *(True for _ in actions.stop_thresholds)]
        )
        self._rounds = names.index("request.rounds")
        self._current = np.array(
            [names.index(f"candidate_{i}.is_current") for i in range(actions.n_placements)]
        )
        self._later = self._moved = 0

    def __call__(self, stage: Stage, which: Sequence[int]) -> NDArray[np.int64]:
        """Return the actions in some environments."""
        actions = self._decide(stage, which)
        for dimension, counts in enumerate(self._counts):
            counts += np.bincount(actions[:, dimension], minlength=len(counts))
        seen = stage.observations[list(which)]
        stays = seen[np.arange(len(actions)), self._current[actions[:, 2]]] > 0.0
        later = (seen[:, self._rounds] > 0.0) & self._drafts[actions[:, 0]]
        self._later += int(later.sum())
        self._moved += int((later & ~stays).sum())
        return actions

    def shares(self) -> list[list[float]]:
        """Return the share of the decisions that each index has: of lengths, batch sizes and placements."""
        return [[round(float(share), 6) for share in each / max(1, each.sum())] for each in self._counts]

    def moves(self) -> float:
        """Return the share of decisions that draft elsewhere, of those that draft after a first round.

        Elsewhere than in the request's last round: another drafter has to prefill the context first.
        """
        return round(self._moved / max(1, self._later), 6)
