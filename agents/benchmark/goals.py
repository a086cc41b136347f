"""What a benchmark was to show, and what it shows: against single nodes, against rules, policy by policy."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

from agents.benchmark.config import Suite
from agents.benchmark.pages import NO_RECORDS, number, percent, table
from agents.benchmark.scoring import Standing, best_of

GOALS, ACROSS = "benchmark goals", "benchmark across"
"""Names of the blocks."""
LEAST_ENTRIES = 3
"""Who takes part in fewer scenarios has no line in the table across scenarios."""
_PLACE = re.compile(r"\d+/\d+/([^+@]+)")


def is_single_node(specification: str) -> bool:
    """Return whether a static choice drafts on the targets' own servers alone, or not at all."""
    kind, _, rest = specification.partition(":")
    if kind in ("cloud_ar", "colocated_sd"):
        return True
    if kind in ("static", "pack"):
        return rest.split(":", 3 if kind == "pack" else 2)[-1].startswith(("colocated", "plain"))
    places = _PLACE.findall(rest) if kind == "static_map" else []
    return bool(places) and all(place.startswith(("colocated", "plain")) for place in places)


def _value(standing: Standing, name: str) -> float:
    return standing.rows[name].means[standing.contest.objective.metric][0]


def _better(standing: Standing, name: str, over: str) -> float:
    """Return the objective's ratio of two by their means, above 1 where the first is better."""
    mine, other = _value(standing, name), _value(standing, over)
    return other / mine if standing.contest.objective.better == "lower" else mine / other


def _best_of(standing: Standing, names: Iterable[str]) -> str | None:
    """Return the best of some schedulers, the first of equals; None: there is none."""
    rows = [standing.rows[name] for name in names]
    return next(iter(best_of(rows, standing.contest.objective)), None)


def goals(suite: Suite, found: Sequence[Standing]) -> str:
    """Return the table of the main scenarios: the best against single nodes, and policies against rules."""
    rows = []
    for each in found:
        if each.contest.of:
            continue
        top = _best_of(each, [each.best[what] for what in ("rule", "learned") if what in each.best])
        static = [row.name for row in each.rows.values() if row.role == "static"]
        node = _best_of(each, [name for name in static if is_single_node(each.rows[name].spec)])
        learned = each.best.get("learned")
        gap = each.share_of_gap(learned) if learned else math.nan
        rows.append(
            [
                f"`{each.contest.name}`",
                f"`{top}`" if top else "–",
                percent(each.gain(top, suite.baseline)) if top else "–",
                f"`{node}` {number(_value(each, node))}" if node else "–",
                percent(each.gain(top, node)) if top and node else "–",
                f"`{learned}`" if learned else "–",
                percent(each.gain(learned, each.best.get("rule"))) if learned else "–",
                f"{100 * gap:.0f} %" if math.isfinite(gap) else "–",
            ]
        )
    if not rows:
        return NO_RECORDS
    head = ["scenario", "best of all", f"over `{suite.baseline}`", "best single node", "best of all over it"]
    head += ["best learned", "over best rule", "of what is left to the upper reference"]
    return "\n".join(table(head, rows))


def across(found: Sequence[Standing]) -> str:
    """Return one line per rule and policy that takes part in several scenarios: how it does over all."""
    names = dict.fromkeys(
        row.name for each in found for row in each.rows.values() if row.role in ("rules", "learned")
    )
    rows = []
    for name in names:
        where = [each for each in found if name in each.rows and each.rows[name].feasible]
        if len(where) < LEAST_ENTRIES:
            continue
        others = [_opponent(each, name) for each in where]
        gains = [each.gain(name, other) for each, other in zip(where, others, strict=True)]
        worst = min(range(len(gains)), key=lambda n: gains[n][0])
        behind = [each.contest.name for each, gain in zip(where, gains, strict=True) if gain[2] < 0.0]
        static = [_better(each, name, each.best["static"]) for each in where]
        rule = [_better(each, name, other) for each, other in zip(where, others, strict=True)]
        rows.append(
            [
                f"`{name}`",
                str(len(where)),
                f"{100 * (_geometric_mean(static) - 1):+.1f} %",
                f"{100 * (_geometric_mean(rule) - 1):+.1f} %",
                f"`{where[worst].contest.name}` {percent(gains[worst])}",
                str(len(behind)),
            ]
        )
    if not rows:
        return NO_RECORDS
    head = ["scheduler", "scenarios", "over best static", "over best other rule", "worst, against that"]
    return "\n".join(table([*head, "significantly behind it in"], rows))


def _opponent(standing: Standing, name: str) -> str:
    """Return the best rule or static choice other than one itself."""
    rules = [row.name for row in standing.rows.values() if row.role in ("static", "rules")]
    best = _best_of(standing, [each for each in rules if each != name])
    return best or standing.best["static"]


def _geometric_mean(ratios: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, ratios)) / len(ratios))
