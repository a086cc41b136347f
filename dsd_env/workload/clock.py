"""Coarse clocks: if a recording's clock ticks every few seconds, all requests of a tick share one time.

Replayed unchanged, they would arrive in bursts that never happened and wait for each other. The recording
does not say when within its tick a request arrived, so a replay warns of them, and
``scripts/import_workload.py --spread-ticks`` spreads them over the tick.
"""

from __future__ import annotations

import numpy as np

from dsd_env.workload.trace import FEW, FloatArray

_MIN_PER_TICK = 1.25
"""Requests that share one time, on average, from which on a clock counts as coarse."""
_JITTER = 0.1
"""How far from a multiple of the tick a distance may be, as a share of the tick ..."""
_REGULAR = 0.95
"""... and how many distances must not be farther."""


def clock_tick(arrival_s: FloatArray) -> float | None:
    """Return the tick of the clock behind times in seconds, or None if requests do not share times by it.

    A clock is coarse where requests share their times (5 of them have no more than 4 times) and these times
    lie on a grid; bursts at irregular times are not a matter of the clock.

    Args:
        arrival_s: Times, not falling, shape (n,).
    """
    if len(arrival_s) < FEW:
        return None
    gaps_s = np.diff(arrival_s)
    gaps_s = gaps_s[gaps_s > 0.0]
    if len(gaps_s) < 1 or len(arrival_s) < _MIN_PER_TICK * (len(gaps_s) + 1):
        return None
    tick_s = float(np.median(gaps_s[gaps_s <= 1.5 * gaps_s.min()]))
    ticks = gaps_s / tick_s
    regular = np.abs(ticks - np.round(ticks)) <= _JITTER
    return tick_s if regular.mean() >= _REGULAR else None
