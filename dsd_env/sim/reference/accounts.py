"""Totals that grow with time, the GPUs that are occupied, and the boundaries of the measured window."""

from __future__ import annotations

import math
from collections import deque

from dsd_env.sim.entities import Request, TargetServer
from dsd_env.sim.events import Order
from dsd_env.sim.metrics import Totals, Window, boundaries_s
from dsd_env.sim.reference.episode import Episode, Part

NOT_YET = 1 << 31
"""Stands for the number of a request that has not arrived yet."""


class Accounts(Part):
    """What is counted: requests, the window in which they are measured, and what grows with time.

    Attributes:
        arrived: Requests that have arrived.
        in_system: Those of them that have not completed.
        completed: Requests that have completed, in that order.
        newly_completed: Requests that completed since the last decision was answered.
        windows: The totals at the boundaries of the measured window that are passed.
        boundaries_s: When the others are.
    """

    def __init__(self, episode: Episode) -> None:
        """Set up for an episode in which nobody has arrived."""
        super().__init__(episode)
        self.arrived = 0
        self.in_system = 0
        self.completed: list[Request] = []
        self.newly_completed: list[Request] = []
        self.windows: list[Window] = []
        self.boundaries_s = deque(boundaries_s(episode.scenario))
        config = episode.scenario.episode
        self._by_number = config.window_s is None
        # Numbers of the first measured request and of the first after them, once they are known.
        self._first_measured = config.warmup_requests if self._by_number else NOT_YET
        self._end_measured = config.warmup_requests + config.measured_requests if self._by_number else NOT_YET
        # Requests without whose completion the episode does not end.
        self._cohort_left = self._end_measured if self._by_number else 0
        self._occupied = (0.0, 0.0)
        drafters = [drafter for _, drafter in sorted(self._world.drafters.items())]
        servers = [drafter.server for drafter in drafters if drafter.server is not None]
        self._servers = [server for server in dict.fromkeys(servers) if server.gpus > 0.0]

    @property
    def totals(self) -> Totals:
        """Cumulative totals from the start of the episode until now, as a copy."""
        return self.window(self._now_s).totals

    def count_arrival(self) -> int:
        """Count a request that arrives now; return its number."""
        self.accrue(self._now_s)
        number = self.arrived
        if self._by_number:
            if number == self._first_measured:
                self.windows.append(self.window(self._now_s))
        elif self.is_measured(number):
            self._cohort_left += 1
        self.arrived += 1
        self.in_system += 1
        return number

    def count_completion(self, request: Request) -> None:
        """Count a request that has completed; the episode may end with it."""
        self.in_system -= 1
        self.completed.append(request)
        self.newly_completed.append(request)
        self._totals.complete(request)
        if self._by_number:
            counts, over = request.number < self._end_measured, True
        else:
            counts, over = self.is_measured(request.number), self._end_measured != NOT_YET
        if counts:
            self._cohort_left -= 1
            if over and self._cohort_left == 0:
                self._episode.truncated = True

    def accrue(self, now_s: float) -> None:
        """Update the totals that grow with time."""
        self._totals.accrue(now_s, self.in_system, self._world.idle_w, *self._occupied)

    def occupancy_changes(self) -> None:
        """Accrue what the occupied GPUs have cost until now, and note which are occupied from now on."""
        self.accrue(self._now_s)
        gpus = usd_per_s = 0.0
        for target in self._world.targets:
            if target.is_occupied:
                gpus += target.config.gpus
                usd_per_s += target.config.gpus * target.config.price_usd_per_gpu_hour / 3600.0
        for server in self._servers:
            if server.active:
                gpus += server.gpus
                usd_per_s += server.gpus * server.price_usd_per_gpu_hour / 3600.0
        self._occupied = (gpus, usd_per_s)

    def occupy(self, target: TargetServer) -> None:
        """Note whether requests are at a target, after that may have changed."""
        if target.resident > 0 or len(target.waiting) > 0:
            target.kept_until_s = math.inf
            self._pay_for(target, True)
        elif target.kept_until_s == math.inf:
            keep_alive_s = target.config.keep_alive_s
            target.kept_until_s = until_s = self._now_s + keep_alive_s
            if keep_alive_s == 0.0:
                self._pay_for(target, False)
                return
            number = target.number
            self._env.call_at(until_s, Order.KEEP_ALIVE_END, number, lambda: self._keep_alive_ends(target))

    def _keep_alive_ends(self, target: TargetServer) -> None:
        """Let a target go, unless somebody has come meanwhile."""
        if self._now_s >= target.kept_until_s:
            self._pay_for(target, False)

    def _pay_for(self, target: TargetServer, occupied: bool) -> None:
        if target.is_occupied != occupied:
            target.is_occupied = occupied
            self.occupancy_changes()

    def window(self, time_s: float) -> Window:
        """Return the totals as they are at a time, which nothing has happened before."""
        totals = self._totals.copy()
        totals.accrue(time_s, self.in_system, self._world.idle_w, *self._occupied)
        return Window(time_s, totals, [target.busy_until_s(time_s) for target in self._world.targets])

    def pass_boundary(self, time_s: float) -> None:
        """Note what the window's metrics need at its start, at its end and between its parts.

        What happens at this instant comes after it.
        """
        self.windows.append(self.window(time_s))
        if len(self.windows) == 1:
            self._first_measured = self.arrived
        if not self.boundaries_s:
            self._end_measured = self.arrived
            if self._cohort_left == 0:
                self._episode.truncated = True
                self.accrue(time_s)
                self._env.jump(time_s)

    def is_measured(self, number: int) -> bool:
        """Return whether the request of this number is among the measured ones."""
        return self._first_measured <= number < self._end_measured
