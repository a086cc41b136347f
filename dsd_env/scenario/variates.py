"""Random variates of the distributions in scenarios, drawn by counter."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist

from dsd_env.laws import variates
from dsd_env.scenario.schema import Constant, Exponential, Geometric, LogNormal, Quantiles


class LogQuantiles:
    """A positive distribution given by quantiles, as a function of a standard normal variate.

    The logarithm of the value is piecewise linear in the variate; the outer pieces continue outwards.

    Attributes:
        scores: Standard normal scores of the quantiles.
        logs: Logarithms of the quantiles.
        slopes: Slopes of the logarithm between the scores.
    """

    __slots__ = ("logs", "scores", "slopes")

    def __init__(self, scores: Sequence[float], quantiles: Sequence[float]) -> None:
        """Set the quantiles and their scores, both ascending."""
        self.scores = list(scores)
        self.logs = [math.log(quantile) for quantile in quantiles]
        self.slopes = [
            (high - low) / (z_high - z_low)
            for (low, high), (z_low, z_high) in zip(pairwise(self.logs), pairwise(self.scores), strict=True)
        ]

    def at(self, z: float) -> float:
        """Return the value at a standard normal variate."""
        return variates.log_quantile(self.scores, self.logs, self.slopes, len(self.slopes), z)


class QuantileTable(LogQuantiles):
    """A distribution given by quantiles that takes the outer values beyond the outer quantiles."""

    __slots__ = ()

    def __init__(self, law: Quantiles) -> None:
        """Set the quantiles of a distribution in a scenario."""
        normal = NormalDist()
        super().__init__([normal.inv_cdf(level) for level in law.levels], law.values)

    def at(self, z: float) -> float:
        """Return the value at a standard normal variate."""
        return super().at(min(max(z, self.scores[0]), self.scores[-1]))


@functools.lru_cache(maxsize=256)
def quantile_table(law: Quantiles) -> QuantileTable:
    """Return the table of a distribution; it is made once and cached."""
    return QuantileTable(law)


@dataclass(frozen=True, slots=True)
class VariateTable:
    """A distribution of a scenario in the form that :mod:`dsd_env.laws.variates` takes."""

    code: int
    a: float = 0.0
    b: float = 0.0
    low: float = 0.0
    high: float = 0.0
    pieces: int = 0
    scores: Sequence[float] = ()
    logs: Sequence[float] = ()
    slopes: Sequence[float] = ()


@functools.lru_cache(maxsize=256)
def variate_table(law: Constant | LogNormal | Exponential | Geometric | Quantiles) -> VariateTable:
    """Return a distribution of a scenario as numbers; the table is made once and cached."""
    if isinstance(law, Constant):
        return VariateTable(variates.CONSTANT, law.value)
    if isinstance(law, Exponential):
        return VariateTable(variates.EXPONENTIAL, law.mean)
    if isinstance(law, Geometric):
        log_rest = 0.0 if law.mean == 1.0 else math.log(1.0 - 1.0 / law.mean)
        return VariateTable(variates.GEOMETRIC, law.mean, log_rest)
    if isinstance(law, LogNormal):
        return VariateTable(variates.LOG_NORMAL, law.median, law.sigma, law.low, law.high)
    table = quantile_table(law)
    return VariateTable(
        variates.QUANTILES,
        pieces=len(table.slopes),
        scores=table.scores,
        logs=table.logs,
        slopes=table.slopes,
    )


def value_at(law: LogNormal | Quantiles, z: float) -> float:
    """Return the value of a distribution at a standard normal variate."""
    return variates.value_at(variate_table(law), z)


def draw(
    law: Constant | LogNormal | Exponential | Geometric | Quantiles,
    seed: int,
    stream: int,
    entity: int,
    counter: int,
) -> float:
    """Return one variate of a distribution; it uses the draws ``counter`` and ``counter + 1``."""
    return variates.draw(variate_table(law), seed, stream, entity, counter)
