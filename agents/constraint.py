"""A bound that a mean has to keep to, whatever else it is judged by."""

from __future__ import annotations

import math

from pydantic import Field, model_validator

from agents.config_files import ConfigModel

SHARES = ("slo_attainment", "acceptance_rate", "utilisation", "jain_fairness")
"""How the names of metrics begin that are shares."""


class Constraint(ConfigModel):
    """What the mean of a metric over all episodes has to keep to."""

    metric: str = Field(min_length=1)
    at_least: float | None = None
    at_most: float | None = None

    @model_validator(mode="after")
    def _one_bound(self) -> Constraint:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError("give at_least or at_most, one of them")
        if self.metric.startswith(SHARES) and not 0.0 <= self.bound <= 1.0:
            raise ValueError(f"{self.metric} is a share, so the bound must be in [0, 1], not {self.bound:g}")
        return self

    @property
    def bound(self) -> float:
        """The bound, whichever way it holds."""
        bound = self.at_most if self.at_least is None else self.at_least
        assert bound is not None
        return bound

    def holds(self, mean: float) -> bool:
        """Return whether a mean keeps to it; NaN does not."""
        return mean <= self.bound if self.at_least is None else mean >= self.bound

    def lacks(self, mean: float) -> float:
        """Return by what share of the bound a mean misses it; 0 if it keeps to it, infinity for NaN."""
        if math.isnan(mean):
            return math.inf
        return 0.0 if self.holds(mean) else abs(mean - self.bound) / (abs(self.bound) or 1.0)
