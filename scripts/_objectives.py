"""What a search of static choices goes by: a metric, which way is better, and a bound of another metric."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Mapping
from typing import Literal

from pydantic import ValidationError

from agents.benchmark.config import Objective
from agents.benchmark.pages import UNITS
from agents.constraint import Constraint
from agents.evaluation import check_metrics
from dsd_env.report.words import better
from dsd_env.scenario import Scenario
from dsd_env.sim.metrics import metric_names

_BOUND = re.compile(r"\s*([^\s<>=]+)\s*(>=|<=)\s*(\S+)\s*")


def bound(text: str) -> Constraint:
    """Return what ``METRIC >= NUMBER`` or ``METRIC <= NUMBER`` says, for ``argparse``."""
    found = _BOUND.fullmatch(text)
    try:
        if found is None:
            raise ValueError(text)
        metric, sign, number = found[1], found[2], float(found[3])
        if not math.isfinite(number):
            raise ValueError(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no bound: write 'METRIC >= NUMBER' or 'METRIC <= NUMBER'"
        ) from None
    try:
        return Constraint(metric=metric, **{"at_least" if sign == ">=" else "at_most": number})
    except ValidationError as error:
        said = str(error.errors()[0]["msg"]).removeprefix("Value error, ")
        raise argparse.ArgumentTypeError(f"{text!r}: {said}") from None


def spelled(limit: Constraint) -> str:
    """Return a bound as :func:`bound` reads it."""
    if limit.at_least is not None:
        return f"{limit.metric} >= {limit.at_least:g}"
    return f"{limit.metric} <= {limit.at_most:g}"


def objective_of(metric: str, limit: Constraint | None, scenario: Scenario) -> Objective:
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
    lacks = 0.0
    if limit is not None:
        mean = means.get(limit.metric, math.nan)
        lacks = limit.lacks(mean) if math.isfinite(mean) else math.inf
    return lacks, value if objective.better == "lower" else -value


def change_percent(value: float, base: float) -> float:
    """Return by how many per cent a value differs from another one; NaN where that is 0."""
    return 100 * (value / base - 1) if base else math.nan


def metric_and_unit(metric: str) -> tuple[str, str]:
    """Return what a metric is called, and its unit, empty where it has none or its name says it."""
    return UNITS.get(metric, (f"`{metric}`", ""))
