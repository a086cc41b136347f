"""Coarse clocks: if a recording's clock ticks every few seconds, all requests of a tick share one time.

Replayed unchanged, they would arrive in bursts that never happened and wait for each other. The recording
does not say when within its tick a request arrived, so this module spreads the requests over the tick.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import numpy as np

from dsd_env.workload.trace import FEW, FloatArray, RequestTrace

Spread = Literal["draws", "even"]

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


def spread_ticks(
    trace: RequestTrace, how: Spread = "draws", *, seed: int = 0, end_s: float | None = None
) -> RequestTrace:
    """Return a trace whose requests of one tick are spread over that tick; their order stays.

    A recorded time is taken as the beginning of its tick.

    Args:
        trace: With ``tick_s``; without one it is returned as it is.
        how: ``draws``: at times drawn uniformly in the tick, like those of independent clients; ``even``: at
            equal distances, the first at the recorded time.
        seed: Of the draws.
        end_s: Where the last tick ends, if before its own end.

    Raises:
        ValueError: ``how`` is neither.
    """
    if how not in ("draws", "even"):
        raise ValueError(f"spread_ticks = {how!r} must be 'draws' or 'even'")
    if trace.tick_s is None:
        return trace
    times_s = trace.arrival_s
    begins = np.flatnonzero(np.concatenate(([True], np.diff(times_s) > 0.0)))
    counts = np.diff(np.append(begins, len(times_s)))
    starts_s = times_s[begins]
    last_s = math.inf if end_s is None else end_s
    widths_s = np.minimum(trace.tick_s, np.diff(np.append(starts_s, max(last_s, float(starts_s[-1])))))
    group = np.repeat(np.arange(len(begins)), counts)
    if how == "even":
        places = (np.arange(len(times_s)) - begins[group]) / counts[group]
    else:
        drawn = np.random.default_rng(seed).random(len(times_s))
        places = drawn[np.lexsort((drawn, group))]
    spread_s = np.maximum.accumulate(times_s + widths_s[group] * places)
    return replace(trace, arrival_s=spread_s, tick_s=None)
