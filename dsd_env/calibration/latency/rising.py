"""Times that a profile can hold: more tokens never take less."""

from __future__ import annotations

from collections.abc import Sequence


def rising(values: Sequence[float], weights: Sequence[float] | None = None) -> list[float]:
    """Return values that do not fall: neighbours that do get their mean.

    It is the nearest such sequence in weighted squares (isotonic regression by the pool-adjacent-violators
    algorithm).

    Args:
        values: In the order in which they are to rise.
        weights: What each counts in a mean; default: all alike.
    """
    pools: list[tuple[float, float, int]] = []  # mean, weight, values in the pool
    for index, value in enumerate(values):
        pool = (value, 1.0 if weights is None else weights[index], 1)
        while pools and pools[-1][0] > pool[0]:
            before, weight, size = pools.pop()
            total = weight + pool[1]
            pool = ((before * weight + pool[0] * pool[1]) / total, total, size + pool[2])
        pools.append(pool)
    return [mean for mean, _, size in pools for _ in range(size)]
