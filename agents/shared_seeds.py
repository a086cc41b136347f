"""Worlds that share their seeds, and what they say about luck: a baseline that depends on the input.

What a decision is followed by depends more on who arrives next, how long the answer will be and which drafts
are right than on the decision, and a critic cannot know any of it. Worlds with the same seed have the same
arrivals, prompts, answers, links and drafts, whatever is decided in them. So where a group of worlds plays
the same episode, what the *others* of the group got in the same place tells what was luck. Their mean
advantage is taken off every advantage:

    A'(w, x) = A(w, x) − mean of A(w', x'), over w' ≠ w in w's group, x' in the same place as x

As the world itself is not among those, what is subtracted does not depend on its action, and the expected
gradient is unchanged. It is the input-dependent baseline of Mao et al. ("Variance reduction for reinforcement
learning in input-driven environments", arXiv 1807.02264), with the critic's value inside of each A.

The same place is: with credit by request (on compiled worlds alone), the same request of the same device, in
the same few tokens; with credit by step the same simulated time.

Worlds of the compiled engine are put into the same state before every rollout, that of each member in turn;
what follows then differs by their decisions alone. Others begin the same episodes, and drift apart as their
episodes end at different times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback

from agents.credit import MaskableRequestRolloutBuffer, RequestRolloutBuffer
from agents.horizons import clocks_s
from agents.tracking import CompiledTracker, Float64, Int64, is_compiled

if TYPE_CHECKING:
    from stable_baselines3.common.buffers import RolloutBuffer

DECISIONS_NEARBY = 32
"""Decisions of one world that are taken as being of the same time, on average."""

TOKENS_NEARBY = 16
"""Tokens of one answer that are taken as being the same place."""


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


def ordinals_of(requests: Int64, devices: Int64, episodes: Int64) -> Int64:
    """Return which of its device's requests every decision is of, counted from the first one that decides.

    Numbers of requests go by arrival, so in a closed loop they depend on what was decided; that a request is
    its device's third does not.

    Args:
        requests: Number of the request within its episode, shape (T, n): T steps of n worlds.
        devices: Number of its device, shape (T, n).
        episodes: Number of the episode within its world, shape (T, n).
    """
    worlds = np.broadcast_to(np.arange(requests.shape[1]), requests.shape)
    rows = np.stack([each.ravel() for each in (worlds, episodes, devices, requests)], axis=1)
    found, which = np.unique(rows, axis=0, return_inverse=True)
    begins = np.append(True, (np.diff(found[:, :3], axis=0) != 0).any(axis=1))
    first = np.maximum.accumulate(np.where(begins, np.arange(len(found)), 0))
    return (np.arange(len(found)) - first)[which.ravel()].reshape(requests.shape)


def without_luck(
    advantages: Float64, known: NDArray[np.bool_], groups: Int64, places: Sequence[Int64]
) -> Float64:
    """Return advantages less the mean of those that the others of the group had in the same place.

    Args:
        advantages: Shape (T, n): T steps of n worlds.
        known: Those that count, shape (T, n); the others stay as they are.
        groups: From :func:`groups_of`, shape (n,).
        places: Whole numbers that together say where a decision is, each of shape (T, n).
    """
    n = advantages.shape[1]
    worlds = np.broadcast_to(np.arange(n), advantages.shape)[known]
    keys = np.stack([groups[worlds], *(each[known] for each in places)], axis=1)
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
            width_s: With credit by step, decisions are of the same time if theirs round to the same multiple
                of this; default: what 32 decisions of a world take.
        """
        super().__init__()
        self._groups, self._width_s = groups, width_s
        self._rollouts = 0

    def _on_training_start(self) -> None:
        self._episode = np.zeros(len(self._groups), dtype=np.int64)
        self._tracker: CompiledTracker | None = None
        if isinstance(self._buffer, RequestRolloutBuffer | MaskableRequestRolloutBuffer):
            # Of worlds that are not in the same state at first nobody knows which requests are the same.
            self._tracker = CompiledTracker(self.training_env.unwrapped)  # type: ignore[arg-type]
        self._due = self._now(None)

    def _now(self, step: Mapping[str, Any] | None) -> Float64:
        """Return whose device's request is due in every world, or with credit by step the simulated time."""
        if self._tracker is None:
            return clocks_s(self.training_env, step)
        return self._tracker.devices().astype(np.float64)

    def _on_rollout_start(self) -> None:
        if is_compiled(self.training_env):
            self._put_together()
            self._due = self._now(None)
            self._episode[:] = 0
        shape = (self._buffer.buffer_size, len(self._groups))
        self._dues, self._episodes = np.zeros(shape), np.zeros(shape, dtype=np.int64)
        self._rollouts += 1

    def _put_together(self) -> None:
        env, begins = self.training_env, self.model._last_episode_starts
        assert begins is not None
        for group in np.unique(self._groups):
            members = np.flatnonzero(self._groups == group)
            leader = int(members[self._rollouts % len(members)])
            others = [world for world in members.tolist() if world != leader]
            state = env.clone_state(leader)  # type: ignore[attr-defined]
            self.model._last_obs = env.restore_state(state, others)  # type: ignore[attr-defined]
            begins[others] = begins[leader]

    @property
    def _buffer(self) -> RolloutBuffer:
        return self.model.rollout_buffer  # type: ignore[attr-defined, no-any-return]

    def _on_step(self) -> bool:
        # The transition is added to the buffer after this.
        self._episodes[self._buffer.pos], self._dues[self._buffer.pos] = self._episode, self._due
        self._episode += self.locals["dones"]
        self._due = self._now(self.locals)
        return True

    def _places(self) -> list[Int64]:
        buffer = self._buffer
        if isinstance(buffer, RequestRolloutBuffer | MaskableRequestRolloutBuffer):
            moments, devices = buffer.moments, self._dues.astype(np.int64)
            ordinals = ordinals_of(moments.requests, devices, self._episodes)
            return [self._episodes, devices, ordinals, moments.tokens // TOKENS_NEARBY]
        gaps_s = np.diff(self._dues, axis=0)[np.diff(self._episodes, axis=0) == 0]
        width_s = self._width_s or DECISIONS_NEARBY * float(gaps_s.mean())
        return [self._episodes, np.rint(self._dues / width_s).astype(np.int64)]

    def _on_rollout_end(self) -> None:
        buffer = self._buffer
        known = getattr(buffer, "known", np.ones(self._episodes.shape, dtype=np.bool_))
        advantages = buffer.advantages.astype(np.float64)
        lean = without_luck(advantages, known, self._groups, self._places())
        before, after = advantages[known].var(), lean[known].var()
        self.logger.record("rollout/luck", float(1.0 - after / before) if before > 0.0 else 0.0)
        buffer.advantages[:] = lean
