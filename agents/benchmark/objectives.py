"""Objectives that a user names: which way of a metric is better, and which of two results is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from agents.benchmark.config import Objective
from agents.constraint import Constraint
from agents.evaluation import check_metrics
from dsd_env.report.words import better
from dsd_env.scenario import Scenario
from dsd_env.sim.metrics import metric_names


def objective_by(metric: str, limit: Constraint | None, scenario: Scenario) -> Objective:
    """Return what schedulers of a scenario are compared by.

    Args:
        metric: Episode metric.
        limit: What the mean of another metric has to keep to.
        scenario: The scenario.

    Raises:
        ValueError: An episode has no such metric, neither more nor less of the first one is better, or the
            bound is of that one itself.
    """
    check_metrics([metric, *([] if limit is None else [limit.metric])], scenario)
    if limit is not None and limit.metric == metric:
        raise ValueError(f"{metric} is what choices are compared by: the bound must be of another metric")
    if not _direction(metric):
        known = ", ".join(name for name in metric_names(scenario) if _direction(name))
        raise ValueError(f"neither more nor less of {metric} is better. There are: {known}")
    way: Literal["lower", "higher"] = "higher" if _direction(metric) > 0 else "lower"
    return Objective(metric=metric, better=way, subject_to=limit)


def _direction(metric: str) -> int:
    # What tells how sure another metric is says nothing about which way is better.
    return 0 if metric.endswith(("_se", "_drift")) else better(metric)


def rank(objective: Objective, means: Mapping[str, float]) -> tuple[float, float]:
    """Return what schedulers are sorted by, the best first.

    By what is lacking to the bound, none where it is kept, and then by the metric. What was not observed
    comes last.

    Args:
        objective: What they are compared by.
        means: Means of one scheduler over episodes.
    """
    limit, value = objective.subject_to, means.get(objective.metric, math.nan)
    if not math.isfinite(value):
        return math.inf, math.inf
    lacks = 0.0 if limit is None else limit.lacks(means.get(limit.metric, math.nan))
    return lacks, value if objective.better == "lower" else -value
