"""Times freed of falls that are noise."""

from __future__ import annotations

import math
from collections.abc import Sequence


def rising(
    values: Sequence[float], weights: Sequence[float] | None = None, *, sure: float = math.inf
) -> list[float]:
    """Return values that do not fall: neighbours that do get their mean.

    It is the nearest such sequence in weighted squares (isotonic regression by the pool-adjacent-violators
    algorithm), unless some falls are kept.

    Args:
        values: In the order in which they are to rise.
        weights: What each counts in a mean; default: all alike.
        sure: A fall between two that both weigh at least so much is kept; default: none is.
    """
    pools: list[tuple[float, float, int]] = []  # mean, weight, values in the pool
    for index, value in enumerate(values):
        pool = (value, 1.0 if weights is None else weights[index], 1)
        while pools and pools[-1][0] > pool[0] and min(pools[-1][1], pool[1]) < sure:
            before, weight, size = pools.pop()
            total = weight + pool[1]
            pool = ((before * weight + pool[0] * pool[1]) / total, total, size + pool[2])
        pools.append(pool)
    return [mean for mean, _, size in pools for _ in range(size)]
