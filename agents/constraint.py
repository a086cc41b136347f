"""A bound that a mean has to keep to, whatever else it is judged by."""

from __future__ import annotations

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
        bound = self.at_most if self.at_least is None else self.at_least
        if self.metric.startswith(SHARES) and bound is not None and not 0.0 <= bound <= 1.0:
            raise ValueError(f"{self.metric} is a share, so the bound must be in [0, 1], not {bound:g}")
        return self

    def holds(self, mean: float) -> bool:
        """Return whether a mean keeps to it; NaN does not."""
        return mean >= self.at_least if self.at_least is not None else mean <= (self.at_most or 0.0)

    def lacks(self, mean: float) -> float:
        """Return by what share of the bound a mean misses it; 0 if it keeps to it."""
        if self.at_least is not None:
            return max(0.0, self.at_least - mean) / (abs(self.at_least) or 1.0)
        bound = self.at_most or 0.0
        return max(0.0, mean - bound) / (abs(bound) or 1.0)
