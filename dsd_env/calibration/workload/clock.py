"""Spreads the requests that a coarse clock gave one time over its tick.

The recording does not say when within its tick a request arrived; see :mod:`dsd_env.workload.clock`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import numpy as np

from dsd_env.workload.trace import RequestTrace

Spread = Literal["draws", "even"]


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
