"""Random variates of the laws that scenarios name, drawn by counter."""

from __future__ import annotations

import math

from dsd_env import rng
from dsd_env.rng import Stream
from dsd_env.scenario.schema import Constant, Exponential, Geometric, LogNormal


def draw(
    law: Constant | LogNormal | Exponential | Geometric, seed: int, stream: Stream, entity: int, counter: int
) -> float:
    """Return one variate; it uses the draws ``counter`` and ``counter + 1``."""
    if isinstance(law, Constant):
        return law.value
    u = rng.uniform(seed, stream, entity, counter)
    if isinstance(law, Exponential):
        return law.mean * rng.exponential(u)
    if isinstance(law, Geometric):
        return 1.0 if law.mean == 1.0 else 1.0 + math.floor(math.log(u) / math.log(1.0 - 1.0 / law.mean))
    z = rng.normal(u, rng.uniform(seed, stream, entity, counter + 1))
    return min(max(law.median * math.exp(law.sigma * z), law.low), law.high)
