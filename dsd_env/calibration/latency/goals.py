"""How well a profile shall predict the cells that its fit did not see."""

from __future__ import annotations

from dsd_env.latency.profile import LatencyProfile

GOAL_MEDIAN_PCT = 2.5
GOAL_P95_PCT = 8.0


def meets_goal(p: LatencyProfile) -> bool:
    """Whether the held-out error is within both goals."""
    e = p.error
    return e.heldout_median_pct <= GOAL_MEDIAN_PCT and e.heldout_p95_pct <= GOAL_P95_PCT
