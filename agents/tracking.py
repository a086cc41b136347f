"""Whose decision is due in every world, and who has completed: what credit per request needs to know.

The compiled engine is read by array; of other environments the same is taken from their infos.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv

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
        from dsd_env.sim.compiled import layout

        self._worlds = vec_env.worlds
        ki = self._worlds.layout.ki
        view = int(ki[layout.O_VIEW])
        self._request, self._now = view + layout.V_REQUEST, view + layout.V_NOW
        self._committed = view + layout.V_COMMITTED
        # Blocks of requests: integers begin at `ints`, floats at `floats`, `stride` apart.
        self._ints, self._int_stride = int(ki[layout.O_REQ_I]), int(ki[layout.K_R_STRIDE])
        self._floats, self._float_stride = int(ki[layout.O_REQ_F]), layout.RF_STRIDE
        self._newly = int(ki[layout.O_NEWLY])
        self._numbers = np.arange(len(self._worlds))
        self._la = layout

    def due(self) -> Moments:
        """Return the decision now due in every world."""
        f, pending = self._worlds.f, self._worlds.s[:, self._la.WI_PENDING]
        delay = self._floats + pending * self._float_stride + self._la.RF_DELAY_CAUSED
        return Moments(
            f[:, self._request].astype(np.int64),
            f[:, self._now].copy(),
            f[self._numbers, delay],
            f[:, self._committed].astype(np.int64),
        )

    def completed(self, infos: Sequence[Mapping[str, Any]], dones: NDArray[np.bool_]) -> Completed:
        """Return who completed during the last step.

        A world that ended has begun anew by now; who completed in its last step stands in its info.
        """
        counts = np.where(dones, 0, self._worlds.s[:, self._la.WI_NEWLY_N])
        found = [self._newly_completed(counts > i, i) for i in range(int(counts.max()))]
        for world in np.flatnonzero(dones).tolist():
            rows = infos[world].get("completed", ())
            found.append(Completed(np.full(len(rows), world), Moments.of(rows)))
        if len(found) == 1:
            return found[0]
        worlds = np.concatenate([each.worlds for each in found]) if found else np.empty(0, dtype=np.int64)
        columns = zip(*(each.moments for each in found), strict=True)
        return Completed(worlds, Moments(*map(np.concatenate, columns)) if found else Moments.of(()))

    def _newly_completed(self, which: NDArray[np.bool_], i: int) -> Completed:
        """Return the i-th request that completed in each of some worlds."""
        worlds, la = np.flatnonzero(which), self._la
        f, s = self._worlds.f, self._worlds.s
        slots = s[worlds, self._newly + i]
        ints, floats = self._ints + slots * self._int_stride, self._floats + slots * self._float_stride
        return Completed(
            worlds,
            Moments(
                s[worlds, ints + la.RI_NUMBER],
                f[worlds, floats + la.RF_LAST_DELIVERY],
                f[worlds, floats + la.RF_DELAY_CAUSED],
                s[worlds, ints + la.RI_COMMITTED],
            ),
        )


def tracker_of(vec_env: VecEnv) -> Tracker:
    """Return what follows the requests of an environment that has been reset."""
    worlds = vec_env.unwrapped
    if getattr(worlds, "worlds", None) is not None:
        return CompiledTracker(worlds)  # type: ignore[arg-type]
    return InfoTracker(vec_env)
