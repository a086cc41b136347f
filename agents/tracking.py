"""Whose decision is due in every world, and who has completed: what credit per request needs to know.

The compiled engine is read by array; of other environments the same is taken from their infos.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv

from dsd_env.control.due import DUE_FIELDS

if TYPE_CHECKING:
    from dsd_env.envs.sb3 import CompiledVecEnv

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]


class Moments(NamedTuple):
    """What is known of requests at decisions of theirs, or at their completion; arrays of one shape.

    Attributes:
        requests: Number of the request within its episode, int64.
        times_s: Simulated time, float64.
        delays_s: Delay that the request has caused to others so far, float64.
        tokens: Output tokens committed so far, int64.
    """

    requests: Int64
    times_s: Float64
    delays_s: Float64
    tokens: Int64

    @classmethod
    def of(cls, rows: Iterable[Sequence[float]]) -> Moments:
        """Return the moments of (request, time, delay caused, tokens) tuples, shape (n,)."""
        table = np.array(list(rows), dtype=np.float64).reshape(-1, 4)
        return cls(
            table[:, 0].astype(np.int64), table[:, 1].copy(), table[:, 2].copy(), table[:, 3].astype(np.int64)
        )

    @classmethod
    def joined(cls, parts: Sequence[Moments]) -> Moments:
        """Return the moments of several one-dimensional parts, one after the other."""
        if not parts:
            return cls.of(())
        return cls(
            np.concatenate([part.requests for part in parts]),
            np.concatenate([part.times_s for part in parts]),
            np.concatenate([part.delays_s for part in parts]),
            np.concatenate([part.tokens for part in parts]),
        )

    @classmethod
    def empty(cls, shape: tuple[int, ...]) -> Moments:
        """Return room for moments; no request has the number −1 that stands there."""
        return cls(np.full(shape, -1), np.zeros(shape), np.zeros(shape), np.zeros(shape, dtype=np.int64))

    def put(self, step: int, moments: Moments) -> None:
        """Write the moments of one step, shape (n,), into these of shape (T, n)."""
        self.requests[step], self.times_s[step] = moments.requests, moments.times_s
        self.delays_s[step], self.tokens[step] = moments.delays_s, moments.tokens

    def pick(self, which: Int64) -> Moments:
        """Return some of the moments, shape (k,)."""
        return Moments(self.requests[which], self.times_s[which], self.delays_s[which], self.tokens[which])

    def by_world(self) -> Moments:
        """Return moments of shape (T, n) in one row: environment by environment, step by step."""
        return Moments(
            self.requests.T.ravel(), self.times_s.T.ravel(), self.delays_s.T.ravel(), self.tokens.T.ravel()
        )


class Completed(NamedTuple):
    """Requests that completed during one step.

    Attributes:
        worlds: Number of the environment of each, int64, shape (k,).
        moments: Their completions, shape (k,).
    """

    worlds: Int64
    moments: Moments


class Tracker(Protocol):
    """Follows the requests of a vectorised environment."""

    def due(self) -> Moments:
        """Return the decision now due in every world, shape (n,), as copies."""
        ...

    def completed(self, infos: Sequence[Mapping[str, Any]], dones: NDArray[np.bool_]) -> Completed:
        """Return who completed during the last step."""
        ...


def decision_row(info: Mapping[str, Any], now_s: float) -> tuple[float, float, float, float]:
    """Return (request, time, delay caused, tokens) of the decision that an ``info`` announces."""
    decision = info["decision"]
    return (
        float(decision["request_id"]),
        now_s,
        float(decision.get("delay_caused_s", 0.0)),
        float(decision["committed_tokens"]),
    )


class InfoTracker:
    """Reads infos, which must hold ``now_s``, ``decision`` and ``completed`` as the environment's do."""

    def __init__(self, vec_env: VecEnv) -> None:
        """Follow an environment that has been reset."""
        self._env = vec_env.unwrapped
        self._rows = [decision_row(info, float(info["now_s"])) for info in self._env.reset_infos]

    def due(self) -> Moments:
        """Return the decision now due in every world."""
        return Moments.of(self._rows)

    def completed(self, infos: Sequence[Mapping[str, Any]], dones: NDArray[np.bool_]) -> Completed:
        """Return who completed during the last step, and note what is due now."""
        worlds: list[int] = []
        rows: list[Sequence[float]] = []
        for world, (info, done) in enumerate(zip(infos, dones, strict=True)):
            worlds += [world] * len(info["completed"])
            rows += info["completed"]
            begun = self._env.reset_infos[world] if done else info
            self._rows[world] = decision_row(begun, float(begun["now_s"]))
        return Completed(np.array(worlds, dtype=np.int64), Moments.of(rows))


class CompiledTracker:
    """Reads the arrays of a :class:`dsd_env.envs.sb3.CompiledVecEnv`; no work per world and step."""

    def __init__(self, vec_env: CompiledVecEnv) -> None:
        """Follow an environment that has been reset."""
        from dsd_env.sim.compiled import batch

        self._worlds = vec_env.worlds
        due = {field.name: batch.FACT_DUE + place for place, field in enumerate(DUE_FIELDS)}
        self._request, self._committed = due["request_id"], due["committed_tokens"]
        self._device = due["device"]
        self._completed = batch.FACT_COMPLETED

    def due(self) -> Moments:
        """Return the decision now due in every world."""
        worlds = self._worlds
        return Moments(
            worlds.facts[:, self._request].copy(),
            worlds.clocks[:, 0].copy(),
            worlds.delays[:, 0].copy(),
            worlds.facts[:, self._committed].copy(),
        )

    def devices(self) -> Int64:
        """Return the device of the request whose decision is due in every world, shape (n,), as copies."""
        return self._worlds.facts[:, self._device].copy()

    def completed(self, infos: Sequence[Mapping[str, Any]], dones: NDArray[np.bool_]) -> Completed:
        """Return who completed during the last step.

        A world that ended has begun anew by now; who completed in its last step stands in its info.
        """
        worlds: list[int] = []
        rows: list[Sequence[float]] = []
        # Few worlds have any at one step: a request completes once in dozens of decisions.
        for world in np.flatnonzero((self._worlds.facts[:, self._completed] > 0) | dones).tolist():
            if dones[world]:
                found: Sequence[Sequence[float]] = infos[world]["completed"]
            else:
                found = [
                    (request.number, request.completed_s, request.delay_caused_s, request.committed)
                    for request in self._worlds.reader(world).newly_completed()
                ]
            # In an episode of very many requests the engine no longer keeps all of them.
            found = [row for row in found if math.isfinite(row[1])]
            worlds += [world] * len(found)
            rows += found
        return Completed(np.array(worlds, dtype=np.int64), Moments.of(rows))


def is_compiled(vec_env: VecEnv) -> bool:
    """Return whether an environment steps worlds of the compiled engine."""
    return getattr(vec_env.unwrapped, "worlds", None) is not None


def tracker_of(vec_env: VecEnv) -> Tracker:
    """Return what follows the requests of an environment that has been reset."""
    if is_compiled(vec_env):
        return CompiledTracker(vec_env.unwrapped)  # type: ignore[arg-type]
    return InfoTracker(vec_env)
