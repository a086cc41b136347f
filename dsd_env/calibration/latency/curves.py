"""Piecewise linear curves through measured points."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Curve"]


@dataclass(frozen=True)
class Curve:
    """Piecewise linear curve through measured points; flat before the first, last slope after the last."""

    x: NDArray[np.float64]
    y: NDArray[np.float64]

    @staticmethod
    def of(points: Mapping[float, float]) -> Curve:
        """Curve through ``{x: y}``; at least one point."""
        xs = sorted(points)
        return Curve(np.array(xs, dtype=np.float64), np.array([points[x] for x in xs], dtype=np.float64))

    def __call__(self, at: float) -> float:
        """Value at ``at``."""
        if at <= self.x[-1] or len(self.x) == 1:
            return float(np.interp(at, self.x, self.y))
        slope = (self.y[-1] - self.y[-2]) / (self.x[-1] - self.x[-2])
        return float(self.y[-1] + max(slope, 0.0) * (at - self.x[-1]))

    def inside(self, at: float) -> bool:
        """Whether ``at`` needs no extrapolation to the right."""
        return bool(at <= self.x[-1])
