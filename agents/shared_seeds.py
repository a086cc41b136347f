"""Worlds that share their seeds, and what they say about luck: a baseline that depends on the input.

What a decision is followed by depends more on who arrives next than on the decision, and a critic cannot know
who will. Worlds with the same seed have the same arrivals, prompts, links and drafts, whatever is decided in
them. So where a group of worlds plays the same episode, what the *others* of the group got at the same
simulated time tells what was luck. Their mean advantage is taken off every advantage:

    A'(w, t) = A(w, t) − mean of A(w', t'), over w' ≠ w in w's group, t' near t

As the world itself is not among those, what is subtracted does not depend on its action, and the expected
gradient is unchanged. It is the input-dependent baseline of Mao et al. ("Variance reduction for reinforcement
learning in input-driven environments", arXiv 1807.02264), with the critic's value inside of each A.

Worlds of the compiled engine are put into the same state before every rollout, that of each member in turn;
what follows then differs by their decisions alone. Others begin the same episodes, and drift apart as their
episodes end at different times.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback

from agents.horizons import clocks_s
from agents.tracking import Float64, Int64

if TYPE_CHECKING:
    from stable_baselines3.common.buffers import RolloutBuffer

DECISIONS_NEARBY = 32
"""Decisions of one world that are taken as being of the same time, on average."""


def groups_of(n_worlds: int, worlds_per_seed: int, n_scenarios: int = 1) -> Int64:
    """Return the number of every world's group, shape (n_worlds,).

    World ``i`` plays scenario ``i`` modulo their number; worlds of a group play the same.

    Args:
        n_worlds: A multiple of the other two's product.
        worlds_per_seed: Worlds in a group.
        n_scenarios: How many scenarios a mixture has.
    """
    worlds = np.arange(n_worlds)
    return worlds // n_scenarios // worlds_per_seed * n_scenarios + worlds % n_scenarios


def without_luck(
    advantages: Float64,
    known: NDArray[np.bool_],
    times_s: Float64,
    episodes: Int64,
    groups: Int64,
    width_s: float,
) -> Float64:
    """Return advantages less the mean of those that the others of the group had at the same simulated time.

    Args:
        advantages: Shape (T, n): T steps of n worlds.
        known: Those that count, shape (T, n); the others stay as they are.
        times_s: Simulated time of the decisions, shape (T, n).
        episodes: Number of the episode within its world, shape (T, n).
        groups: From :func:`groups_of`, shape (n,).
        width_s: Decisions are of the same time if theirs round to the same multiple of this.
    """
    steps, n = advantages.shape
    worlds = np.broadcast_to(np.arange(n), (steps, n))[known]
    moments = np.rint(times_s[known] / width_s).astype(np.int64)
    keys = np.stack((groups[worlds], episodes[known], moments), axis=1)
    cells = np.unique(keys, axis=0, return_inverse=True)[1].ravel()
    own = np.unique(cells * n + worlds, return_inverse=True)[1].ravel()
    values = advantages[known]
    sums = np.bincount(cells, values)[cells] - np.bincount(own, values)[own]
    counts = np.bincount(cells)[cells] - np.bincount(own)[own]
    result = advantages.copy()
    result[known] -= np.where(counts > 0, sums / np.maximum(counts, 1), 0.0)
    return result


class SharedSeedsCallback(BaseCallback):
    """Takes luck off the advantages of a rollout; before it, puts the worlds of a group into one state.

    It must stand before callbacks that look at the worlds when a rollout starts.
    """

    def __init__(self, groups: Int64, width_s: float | None = None) -> None:
        """Take the groups, and what is the same time.

        Args:
            groups: Group of every world, shape (n,).
            width_s: See :func:`without_luck`; default: what 32 decisions of a world take.
        """
        super().__init__()
        self._groups, self._width_s = groups, width_s
        self._rollouts = 0

    def _on_training_start(self) -> None:
        self._compiled = getattr(self.training_env.unwrapped, "worlds", None) is not None
        self._episodes = np.zeros(len(self._groups), dtype=np.int64)
        self._now_s = clocks_s(self.training_env, None)

    def _on_rollout_start(self) -> None:
        if self._compiled:
            self._put_together()
            self._now_s = clocks_s(self.training_env, None)
            self._episodes[:] = 0
        shape = (self._buffer.buffer_size, len(self._groups))
        self._times_s = np.zeros(shape)
        self._numbers = np.zeros(shape, dtype=np.int64)
        self._rollouts += 1

    def _put_together(self) -> None:
        env = self.training_env
        for group in np.unique(self._groups):
            members = np.flatnonzero(self._groups == group)
            leader = int(members[self._rollouts % len(members)])
            others = [world for world in members.tolist() if world != leader]
            state = env.clone_state(leader)  # type: ignore[attr-defined]
            self.model._last_obs = env.restore_state(state, others)  # type: ignore[attr-defined]
            self.model._last_episode_starts[others] = self.model._last_episode_starts[leader]  # type: ignore

    @property
    def _buffer(self) -> RolloutBuffer:
        return self.model.rollout_buffer  # type: ignore[attr-defined, no-any-return]

    def _on_step(self) -> bool:
        # The transition is added to the buffer after this.
        self._times_s[self._buffer.pos], self._numbers[self._buffer.pos] = self._now_s, self._episodes
        self._episodes += self.locals["dones"]
        self._now_s = clocks_s(self.training_env, self.locals)
        return True

    def _on_rollout_end(self) -> None:
        buffer = self._buffer
        known = getattr(buffer, "known", np.ones(self._times_s.shape, dtype=np.bool_))
        advantages = buffer.advantages.astype(np.float64)
        spread = np.diff(self._times_s, axis=0)[np.diff(self._numbers, axis=0) == 0]
        width_s = self._width_s or DECISIONS_NEARBY * float(spread.mean())
        lean = without_luck(advantages, known, self._times_s, self._numbers, self._groups, width_s)
        before, after = advantages[known].var(), lean[known].var()
        self.logger.record("rollout/luck", float(1.0 - after / before) if before > 0.0 else 0.0)
        buffer.advantages[:] = lean
