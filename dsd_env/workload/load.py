"""Load that changes over time, expressed by a clock that runs faster when the load is high."""

from __future__ import annotations

import bisect

from dsd_env.laws import arrivals
from dsd_env.scenario.schema import LoadProfile


class LoadClock:
    """A clock that runs at the speed of the load profile: at multiplier 2, twice as fast.

    Both arrival processes use it. A client that would think for 10 s at load 1 thinks until the
    clock has advanced by 10; a Poisson process of unit rate on this clock is the inhomogeneous
    Poisson process with that rate profile (time rescaling, Daley & Vere-Jones, section 7.4).
    """

    def __init__(self, profile: LoadProfile, phase: float = 0.0) -> None:
        """Start the clock.

        Args:
            profile: Periodic piecewise-linear multiplier.
            phase: Where in the period time 0 lies, in [0, 1).
        """
        self.period_s = profile.period_s
        self.offset_s = phase * profile.period_s
        points = [(p * profile.period_s, value) for p, value in profile.points]
        points.append((profile.period_s, profile.points[0][1]))
        self.times_s = [start for start, _ in points]
        self.values = [value for _, value in points]
        self.segments = len(points) - 1

    def multiplier(self, now_s: float) -> float:
        """Return the load multiplier at a time."""
        position_s = (now_s + self.offset_s) % self.period_s
        segment = bisect.bisect_right(self.times_s, position_s) - 1
        start_s, end_s = self.times_s[segment], self.times_s[segment + 1]
        low, high = self.values[segment], self.values[segment + 1]
        return low + (high - low) * (position_s - start_s) / (end_s - start_s)

    def advance(self, now_s: float, amount: float) -> float:
        """Return the time at which the clock, starting at ``now_s``, has advanced by ``amount``."""
        return arrivals.load_advance(self, self.offset_s, now_s, amount)
