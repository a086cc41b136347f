"""Scenarios that measure a number of requests, or a window of simulated time in the steady state."""

from __future__ import annotations

import math

from dsd_env.scenario.loader import load_scenario
from dsd_env.scenario.schema import ClosedLoop, Constant, Duration, Exponential, Scenario


def measuring(scenario: Scenario, requests: int) -> Scenario:
    """Return a scenario that measures ``requests`` requests, instead of its own number or its window.

    Raises:
        ScenarioError: The number is impossible.
    """
    return load_scenario(scenario, episode__requests=requests, episode__window_s=None, episode__warmup_s=0.0)


def steady(scenario: Scenario, cycles: int | None = None, window_s: float | None = None) -> Scenario:
    """Return a scenario that measures the same window of simulated time, after a warm-up, for any scheduler.

    The warm-up is the longest of one cycle of the load, three mean think times of a closed loop, and 10 s.

    Args:
        scenario: The scenario.
        cycles: Number of load cycles in the window; a constant load has cycles of `period_s`, too. Default:
            as many as fill a minute, at least two.
        window_s: Length of the window, instead of a number of cycles.

    Raises:
        ScenarioError: The load changes, and ``window_s`` is not a whole number of its cycles.
    """
    period_s = scenario.workload.load.period_s
    arrivals = scenario.workload.arrivals
    warmup_s = max(10.0, period_s)
    if isinstance(arrivals, ClosedLoop):
        warmup_s = max(warmup_s, 3.0 * _mean_s(arrivals.think_s))
    if window_s is None:
        window_s = period_s * (cycles or max(2, math.ceil(60.0 / period_s)))
    horizon_s = max(scenario.episode.horizon_s, warmup_s + window_s)
    return load_scenario(
        scenario,
        episode__requests=None,
        episode__warmup_requests=0,
        episode__warmup_s=warmup_s,
        episode__window_s=window_s,
        episode__horizon_s=horizon_s,
    )


def _mean_s(law: Duration) -> float:
    """Return the mean of a distribution of durations, ignoring any clipping."""
    if isinstance(law, Constant):
        return law.value
    if isinstance(law, Exponential):
        return law.mean
    return law.median * math.exp(0.5 * law.sigma * law.sigma)
