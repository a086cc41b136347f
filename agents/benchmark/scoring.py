"""From records to what they say: means with intervals, standings per scenario, scores over all scenarios.

Pure functions of a benchmark and its records. Numbers are rounded to six digits, so that the same records
give the same text on every machine.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.benchmark.config import Contest, Objective, Role, Suite
from agents.benchmark.records import Record
from agents.benchmark.statistics import (
    Interval,
    gain,
    improvement_interval,
    optimality_gap,
    performance_profile,
    relative_scores,
    stratified_interval,
)
from dsd_env.paired import BOOTSTRAP_SEED, RESAMPLES, bootstrap_mean

NOTHING: Interval = (math.nan, math.nan, math.nan)
THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(31))
"""Of performance profiles: scores of 0.5 to 2."""
BEST = {
    "static": ("static",),
    "rule": ("static", "rules"),
    "learned": ("learned",),
    "reference": ("references",),
}
"""Among which roles the best one of a scenario is looked for."""


def rounded(value: float) -> float | None:
    """Return a number to six digits, None for NaN."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


@dataclass(frozen=True)
class Row:
    """What a scheduler came to in a scenario.

    Attributes:
        name: Its name.
        role: What it is.
        spec: Its specification.
        seeds: Its seeds, sorted.
        means: Of every metric, (mean, low, high) over the seeds.
        feasible: Whether it keeps to the objective's constraint.
        wall_s: Mean time of a simulation.
        values: The objective, by seed.
    """

    name: str
    role: Role
    spec: str
    seeds: tuple[int, ...]
    means: Mapping[str, Interval]
    feasible: bool
    wall_s: float
    values: Mapping[int, float] = field(repr=False)


@dataclass(frozen=True)
class Standing:
    """A scenario's rows, and who is the best in it.

    Attributes:
        contest: The scenario.
        rows: By name, in the benchmark's order; schedulers without a record are left out.
        best: Names of the best static choice, rule (static ones among them), learned policy and reference; of
            several with the same mean the first in the benchmark's order.
        tied: By role, those whose mean is the best one's, too, to the digits of :func:`rounded`; without
            roles where nobody's is.
    """

    contest: Contest
    rows: Mapping[str, Row]
    best: Mapping[str, str]
    tied: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    _gains: dict[tuple[str, str], Interval] = field(default_factory=dict, repr=False)

    def gain(self, name: str, over: str | None) -> Interval:
        """Return by how much one is better than another, relatively, on the seeds of both; else NaN."""
        if over is None or over == name or name not in self.rows or over not in self.rows:
            return NOTHING
        if (name, over) not in self._gains:
            mine, other = self._pairs(self.rows[name], self.rows[over])
            self._gains[name, over] = gain(mine, other, lower_is_better=self._lower)
        return self._gains[name, over]

    def scores(self, name: str) -> NDArray[np.float64]:
        """Return one score per seed: 1 is the best static choice, more is better, 0 who may not compete."""
        row, best = self.rows[name], self.rows[self.best["static"]]
        mine, other = self._pairs(row, best)
        scores = relative_scores(mine, other, lower_is_better=self._lower)
        return scores[np.isfinite(scores)] if row.feasible else np.zeros(len(scores))

    def ranked(self, name: str, over: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the objective of two on the seeds of both, more being better."""
        rows = self.rows[name], self.rows[over]
        sign = -1.0 if self._lower else 1.0
        pair = self._pairs(*rows)
        x, y = (
            sign * values if row.feasible else np.full_like(values, -np.inf)
            for row, values in zip(rows, pair, strict=True)
        )
        seen = ~(np.isnan(x) | np.isnan(y))
        return x[seen], y[seen]

    def share_of_gap(self, name: str) -> float:
        """Return the share of what lies between best rule and upper reference that one gains; else NaN."""
        if "reference" not in self.best or "rule" not in self.best:
            return math.nan
        rule, top, mine = (
            self.rows[each].means[self.contest.objective.metric][0]
            for each in (self.best["rule"], self.best["reference"], name)
        )
        gap = top - rule
        # A reference that is no better than the rule leaves no gap.
        return (mine - rule) / gap if (gap < 0.0) == self._lower and gap != 0.0 else math.nan

    @property
    def _lower(self) -> bool:
        return self.contest.objective.better == "lower"

    @staticmethod
    def _pairs(x: Row, y: Row) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        common = [seed for seed in x.seeds if seed in y.values]
        return np.array([x.values[seed] for seed in common]), np.array([y.values[seed] for seed in common])


def standing(contest: Contest, records: Iterable[Record]) -> Standing | None:
    """Return the standing of a scenario; None without a record of a static choice."""
    by_name: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda record: record.seed):
        given = contest.schedulers.get(record.name)
        if given is not None and given[1] == record.scheduler:
            by_name.setdefault(record.name, []).append(record)
    rows = {
        name: _row(name, role, spec, by_name[name], contest.objective)
        for name, (role, spec) in contest.schedulers.items()
        if name in by_name
    }
    found = {
        what: best_of([row for row in rows.values() if row.role in roles], contest.objective)
        for what, roles in BEST.items()
    }
    best = {what: names[0] for what, names in found.items() if names}
    tied = {what: tuple(names[1:]) for what, names in found.items() if len(names) > 1}
    return Standing(contest, rows, best, tied) if "static" in best else None


def _row(name: str, role: Role, spec: str, records: Sequence[Record], objective: Objective) -> Row:
    metrics = [metric for metric in records[0].metrics if all(metric in each.metrics for each in records)]
    values = np.array([[record.metrics[metric] for record in records] for metric in metrics])
    means = dict(zip(metrics, bootstrap_means(values), strict=True))
    limit = objective.subject_to
    return Row(
        name=name,
        role=role,
        spec=spec,
        seeds=tuple(record.seed for record in records),
        means=means,
        feasible=limit is None or limit.holds(means.get(limit.metric, NOTHING)[0]),
        wall_s=float(np.mean([record.wall_s for record in records])),
        values={record.seed: record.metrics.get(objective.metric, math.nan) for record in records},
    )


def bootstrap_means(values: NDArray[np.float64]) -> list[Interval]:
    """Return :func:`dsd_env.paired.bootstrap_mean` of every row, all at once.

    Args:
        values: One row per metric, one column per seed.
    """
    n = values.shape[1]
    whole = np.logical_and.reduce(np.isfinite(values), axis=1)
    found = [
        NOTHING if full and n > 1 else bootstrap_mean(row)
        for full, row in zip(whole.tolist(), values, strict=True)
    ]
    if n > 1 and whole.any():
        bounds = np.quantile(values[whole] @ _counts(n).T / n, (0.025, 0.975), axis=1).T
        for number, mean, (low, high) in zip(
            np.flatnonzero(whole), values[whole].mean(axis=1), bounds, strict=True
        ):
            found[number] = float(mean), float(low), float(high)
    return found


@functools.lru_cache(maxsize=8)
def _counts(n: int) -> NDArray[np.float64]:
    """Return how often each of n seeds is drawn in every resample of `bootstrap_mean`."""
    drawn = np.random.default_rng(BOOTSTRAP_SEED).integers(n, size=(RESAMPLES, n))
    counts = np.zeros((RESAMPLES, n))
    for column in drawn.T:
        counts[np.arange(RESAMPLES), column] += 1.0
    return counts


def best_of(rows: Sequence[Row], objective: Objective) -> list[str]:
    """Return those with the best mean, of those with most seeds that keep to the constraint, in order."""
    seen = [row for row in rows if math.isfinite(row.means.get(objective.metric, NOTHING)[0])]
    allowed = [row for row in seen if row.feasible] or seen
    most = max((len(row.seeds) for row in allowed), default=0)
    means = {row.name: rounded(row.means[objective.metric][0]) for row in allowed if len(row.seeds) == most}
    known = [mean for mean in means.values() if mean is not None]
    if not known:
        return []
    top = min(known) if objective.better == "lower" else max(known)
    return [name for name, mean in means.items() if mean == top]


def standings(suite: Suite, records: Iterable[Record]) -> list[Standing]:
    """Return the standing of every scenario that has one, in order."""
    by_entry: dict[str, list[Record]] = {}
    for record in records:
        by_entry.setdefault(record.entry, []).append(record)
    found = [standing(contest, by_entry.get(contest.name, [])) for contest in suite.contests()]
    return [each for each in found if each is not None]


def summary(found: Sequence[Standing]) -> dict[str, Any]:
    """Return ``{scenario: {scheduler: {metric: {"mean", "ci95", "seeds"}}}}``, NaN as None."""
    return {
        each.contest.name: {
            row.name: {
                metric: {
                    "mean": rounded(mean),
                    "ci95": [rounded(low), rounded(high)],
                    "seeds": len(row.seeds),
                }
                for metric, (mean, low, high) in row.means.items()
            }
            for row in each.rows.values()
        }
        for each in found
    }


def _interval(interval: Interval) -> dict[str, Any]:
    estimate, low, high = interval
    return {"value": rounded(estimate), "ci95": [rounded(low), rounded(high)]}


def analysis(suite: Suite, found: Sequence[Standing]) -> dict[str, Any]:
    """Return all that tables and figures show besides the summary: gains, scores, profiles."""
    main = [each for each in found if each.contest.of is None]
    variants = [each for each in found if each.contest.of is not None]
    return {
        "title": suite.title,
        "scenarios": {each.contest.name: _scenario(each, suite.baseline) for each in found},
        "main": over_all(main),
        "generalisation": over_all(variants),
    }


def _scenario(standing: Standing, baseline: str | None) -> dict[str, Any]:
    contest = standing.contest
    return {
        "of": contest.of,
        "objective": contest.objective.model_dump(mode="json", exclude_none=True),
        "best": dict(standing.best),
        **({"tied": {what: list(names) for what, names in standing.tied.items()}} if standing.tied else {}),
        "schedulers": {
            row.name: {
                "role": row.role,
                "spec": row.spec,
                "seeds": len(row.seeds),
                "feasible": row.feasible,
                "wall_s": rounded(row.wall_s),
                "gain_over_best_static": _interval(standing.gain(row.name, standing.best["static"])),
                "gain_over_best_rule": _interval(standing.gain(row.name, standing.best.get("rule"))),
                "gain_over_baseline": _interval(standing.gain(row.name, baseline)),
                "share_of_gap": rounded(standing.share_of_gap(row.name)),
            }
            for row in standing.rows.values()
        },
    }


def over_all(found: Sequence[Standing]) -> dict[str, Any]:
    """Return the scores over scenarios, of the schedulers that every one of them has and of the best by role.

    The best of a role is another one in each scenario; it is chosen on the seeds that it is measured on.
    """
    if not found:
        return {"scenarios": [], "schedulers": {}}
    common = [name for name in found[0].rows if all(name in each.rows for each in found)]
    entrants: dict[str, list[str]] = {name: [name] * len(found) for name in common}
    for what in BEST:
        if all(what in each.best for each in found):
            entrants[f"best {what}"] = [each.best[what] for each in found]
    scores = {}
    for label, names in entrants.items():
        own = [each.scores(name) for each, name in zip(found, names, strict=True)]
        if not all(len(each) for each in own):
            continue
        pairs = [each.ranked(name, each.best["static"]) for each, name in zip(found, names, strict=True)]
        x, y = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        scores[label] = {
            "interquartile_mean": _interval(stratified_interval(own)),
            "mean": rounded(float(np.mean([each.mean() for each in own]))),
            "optimality_gap": rounded(optimality_gap(own)),
            "probability_of_improvement_over_best_static": _interval(improvement_interval(x, y)),
            "profile": [rounded(share) for share in performance_profile(own, np.array(THRESHOLDS)).tolist()],
        }
    return {
        "scenarios": [each.contest.name for each in found],
        "thresholds": list(THRESHOLDS),
        "schedulers": scores,
    }
