"""Many worlds of one scenario, stepped together; all results lie in arrays that are written in place."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dsd_env.control import ActionSpace
from dsd_env.sim.compiled import kernel
from dsd_env.sim.compiled import layout as la
from dsd_env.sim.compiled.layout import Layout
from dsd_env.sim.compiled.world import WorldReader


class WorldVector:
    """Worlds that stand at their due decisions.

    A world's rows are independent of how many worlds there are and of the others: world ``w`` with a seed is
    the :class:`~dsd_env.sim.compiled.CompiledSimulation` of that seed.

    Attributes:
        layout: The compiled scenario.
        observations: float32 ``[n, n_features]``; a world that has ended keeps its last.
        masks: bool ``[n, sum(nvec)]``.
        rewards: float64 ``[n]``, of the last step.
        terms: float64 ``[n, n_terms]``, unweighted reward terms of the last step.
        clocks: float64 ``[n, 2]``, simulated time and time since the decision before.
        statuses: int64 ``[n]``: ``DUE``, ``TERMINATED``, ``TRUNCATED`` or ``FAILED`` (see ``layout``).
        f: Float state, one row per world.
        s: Integer state, one row per world.
    """

    def __init__(
        self,
        layout: Layout,
        n_worlds: int,
        factors: Sequence[float],
        weights: Sequence[float],
        *,
        price_delays: bool = False,
        threads: int = 1,
    ) -> None:
        """Allocate the worlds; :meth:`begin` sets them up.

        Args:
            layout: The compiled scenario.
            n_worlds: How many.
            factors: From running total to reward term, in the order of the environment's terms.
            weights: Weights of the terms.
            price_delays: Account to each request how long it makes others wait.
            threads: Threads to step with.
        """
        if n_worlds < 1:
            raise ValueError(f"n_worlds = {n_worlds} must be at least 1")
        if threads < 1:
            raise ValueError(f"threads = {threads} must be at least 1")
        n_terms = len(factors)
        self.layout = layout
        # Pages of the tables at the end of each row are not touched before they are used.
        self.f = np.zeros((n_worlds, layout.n_float))
        self.s = np.zeros((n_worlds, layout.n_int), dtype=np.int64)
        self.observations = np.zeros((n_worlds, layout.n_features), dtype=np.float32)
        self.masks = np.zeros((n_worlds, layout.n_mask), dtype=np.bool_)
        self.rewards = np.zeros(n_worlds)
        self.terms = np.zeros((n_worlds, n_terms))
        self.clocks = np.zeros((n_worlds, 2))
        self.statuses = np.zeros(n_worlds, dtype=np.int64)
        self._totals = np.zeros((n_worlds, n_terms))
        self._factors = np.array(factors, dtype=np.float64)
        self._weights = np.array(weights, dtype=np.float64)
        self._price = int(price_delays)
        self._threads = threads
        self._sizes = np.array(ActionSpace.of(layout.scenario).nvec)
        self._readers = [WorldReader(layout, self.f[w], self.s[w]) for w in range(n_worlds)]

    def __len__(self) -> int:
        return len(self.rewards)

    def reader(self, world: int) -> WorldReader:
        """Return a look at one world."""
        return self._readers[world]

    def begin(self, worlds: NDArray[np.int64], seeds: NDArray[np.int64]) -> None:
        """Start new episodes in some worlds and run each to its first decision.

        Raises:
            RuntimeError: An episode ends before its first decision.
            EngineError: A bounded resource ran out.
        """
        layout = self.layout
        kernel.begin_worlds(
            layout.kf,
            layout.ki,
            self.f,
            self.s,
            worlds,
            seeds,
            self._price,
            self.observations,
            self.masks,
            self._totals,
            self.clocks,
        )
        self.statuses[worlds] = self.s[worlds, la.WI_STATUS]
        for world in worlds[self.statuses[worlds] != la.DUE]:
            self.reader(world).check()
            raise RuntimeError(
                f"scenario {layout.scenario.name!r} ends before its first decision; "
                f"is episode.horizon_s = {layout.scenario.episode.horizon_s:g} too short?"
            )

    def step(self, actions: NDArray[np.int64]) -> None:
        """Answer every world's due decision and run it to the next.

        Every world must stand at a decision: begin new episodes in those that have ended.

        Args:
            actions: int64 ``[n, 3]``: indices of speculation length, batch size and placement.

        Raises:
            ValueError: An action is outside the action space.
            EngineError: A bounded resource ran out in some world.
        """
        actions = np.ascontiguousarray(actions, dtype=np.int64)
        if actions.shape != (len(self), 3):
            raise ValueError(f"actions have shape {actions.shape}; expected {(len(self), 3)}")
        if (actions < 0).any() or (actions >= self._sizes).any():
            raise ValueError(f"an action is outside MultiDiscrete({self._sizes.tolist()})")
        layout = self.layout
        step = kernel.step_worlds
        if self._threads > 1:
            import numba

            numba.set_num_threads(min(self._threads, numba.config.NUMBA_NUM_THREADS))
            step = kernel.step_worlds_parallel
        step(
            layout.kf,
            layout.ki,
            self.f,
            self.s,
            actions,
            self._factors,
            self._weights,
            self.observations,
            self.masks,
            self.rewards,
            self._totals,
            self.terms,
            self.clocks,
            self.statuses,
        )
        if (self.statuses == la.FAILED).any():
            self.reader(int(np.flatnonzero(self.statuses == la.FAILED)[0])).check()
