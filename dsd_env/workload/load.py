"""Load that rises and falls: time measured in how much users want to ask."""

from __future__ import annotations

import math

from dsd_env.scenario.schema import LoadProfile


class LoadClock:
    """Runs at the speed of the load profile: at multiplier 2, twice as much happens per second.

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
        self._period_s = profile.period_s
        self._offset_s = phase * profile.period_s
        points = [(p * profile.period_s, value) for p, value in profile.points]
        points.append((profile.period_s, profile.points[0][1]))
        self._starts_s = [start for start, _ in points]
        self._values = [value for _, value in points]

    def multiplier(self, now_s: float) -> float:
        """Return the load multiplier at a time."""
        position_s, segment = self._locate(now_s)
        start_s, end_s = self._starts_s[segment], self._starts_s[segment + 1]
        low, high = self._values[segment], self._values[segment + 1]
        return low + (high - low) * (position_s - start_s) / (end_s - start_s)

    def advance(self, now_s: float, amount: float) -> float:
        """Return the time at which the clock, starting at ``now_s``, has advanced by ``amount``."""
        position_s, segment = self._locate(now_s)
        elapsed_s = 0.0
        while True:
            start_s, end_s = self._starts_s[segment], self._starts_s[segment + 1]
            slope = (self._values[segment + 1] - self._values[segment]) / (end_s - start_s)
            value = self._values[segment] + slope * (position_s - start_s)
            rest_s = end_s - position_s
            area = rest_s * (value + 0.5 * slope * rest_s)
            if area >= amount:
                return now_s + elapsed_s + _time_to_area(value, slope, amount)
            amount -= area
            elapsed_s += rest_s
            segment += 1
            position_s = end_s
            if segment == len(self._starts_s) - 1:
                segment, position_s = 0, 0.0

    def _locate(self, now_s: float) -> tuple[float, int]:
        position_s = math.fmod(now_s + self._offset_s, self._period_s)
        segment = len(self._starts_s) - 2
        while self._starts_s[segment] > position_s:
            segment -= 1
        return position_s, segment


def _time_to_area(value: float, slope: float, area: float) -> float:
    """Return t with value*t + slope*t²/2 = area, by the form that does not cancel."""
    if slope == 0.0:
        return area / value
    return 2.0 * area / (value + math.sqrt(max(0.0, value * value + 2.0 * slope * area)))
