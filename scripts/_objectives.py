"""What a search of static choices goes by, as its command line and its tables spell it."""

from __future__ import annotations

import argparse
import math
import re

from pydantic import ValidationError

from agents.benchmark.pages import UNITS
from agents.constraint import Constraint

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


def change_percent(value: float, base: float) -> float:
    """Return by how many per cent a value differs from another one; NaN where that is 0."""
    return 100 * (value / base - 1) if base else math.nan


def metric_and_unit(metric: str) -> tuple[str, str]:
    """Return what a metric is called, and its unit, empty where it has none or its name says it."""
    return UNITS.get(metric, (f"`{metric}`", ""))
