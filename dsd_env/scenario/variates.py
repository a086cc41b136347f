"""Random variates of the laws that scenarios name, drawn by counter."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import NormalDist

from dsd_env import rng
from dsd_env.rng import Stream
from dsd_env.scenario.schema import Constant, Exponential, Geometric, LogNormal, Quantiles


class LogQuantiles:
    """A positive distribution by quantiles, as a function of a standard normal variate.

    Its logarithm is piecewise linear in the variate, the outer pieces continued.

    Attributes:
        scores: Standard normal scores of the quantiles.
        logs: Logarithms of the quantiles.
        slopes: Of the logarithm, between the scores.
    """

    __slots__ = ("logs", "scores", "slopes")

    def __init__(self, scores: Sequence[float], quantiles: Sequence[float]) -> None:
        """Take the quantiles at some scores, both ascending."""
        self.scores = list(scores)
        self.logs = [math.log(quantile) for quantile in quantiles]
        self.slopes = [
            (high - low) / (z_high - z_low)
            for (low, high), (z_low, z_high) in zip(pairwise(self.logs), pairwise(self.scores), strict=True)
        ]

    def at(self, z: float) -> float:
        """Return the value at a standard normal variate."""
        piece = 0
        while piece < len(self.slopes) - 1 and z >= self.scores[piece + 1]:
            piece += 1
        return math.exp(self.logs[piece] + self.slopes[piece] * (z - self.scores[piece]))


class QuantileTable(LogQuantiles):
    """A law by quantiles: what lies beyond the outer ones has their values."""

    __slots__ = ()

    def __init__(self, law: Quantiles) -> None:
        """Take the quantiles of a law."""
        normal = NormalDist()
        super().__init__([normal.inv_cdf(level) for level in law.levels], law.values)

    def at(self, z: float) -> float:
        """Return the value at a standard normal variate."""
        return super().at(min(max(z, self.scores[0]), self.scores[-1]))


@functools.lru_cache(maxsize=256)
def quantile_table(law: Quantiles) -> QuantileTable:
    """Return the table of a law; made once."""
    return QuantileTable(law)


def value_at(law: LogNormal | Quantiles, z: float) -> float:
    """Return the value of a law at a standard normal variate."""
    if isinstance(law, Quantiles):
        return quantile_table(law).at(z)
    return min(max(law.median * math.exp(law.sigma * z), law.low), law.high)


def draw(
    law: Constant | LogNormal | Exponential | Geometric | Quantiles,
    seed: int,
    stream: Stream,
    entity: int,
    counter: int,
) -> float:
    """Return one variate; it uses the draws ``counter`` and ``counter + 1``."""
    if isinstance(law, Constant):
        return law.value
    u = rng.uniform(seed, stream, entity, counter)
    if isinstance(law, Exponential):
        return law.mean * rng.exponential(u)
    if isinstance(law, Geometric):
        return 1.0 if law.mean == 1.0 else 1.0 + math.floor(math.log(u) / math.log(1.0 - 1.0 / law.mean))
    return value_at(law, rng.normal(u, rng.uniform(seed, stream, entity, counter + 1)))
