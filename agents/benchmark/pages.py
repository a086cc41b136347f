"""Tables of a benchmark, as blocks of Markdown pages."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from agents.benchmark.config import Objective, Suite
from agents.benchmark.scoring import NOTHING, Row, Standing
from agents.benchmark.statistics import Interval

SCOREBOARD, OVER_ALL, SCENARIOS = "benchmark scoreboard", "benchmark scores", "benchmark scenarios"
SHORT_SCOREBOARD, CAPACITY = "benchmark short scoreboard", "benchmark capacity"
"""Names of the blocks."""

UNITS = {
    "e2e_s_mean": ("mean request time", "s"),
    "e2e_s_p95": ("95th percentile of request time", "s"),
    "ttft_s_mean": ("mean time to first token", "s"),
    "tpot_s_mean": ("mean time per token", "s"),
    "goodput_requests_per_s": ("goodput", "requests/s"),
    "throughput_tokens_per_s": ("throughput", "tokens/s"),
    "slo_attainment": ("share of SLOs met", ""),
    "cloud_usd_per_1m_tokens": ("cloud cost", "$ per 1M tokens"),
    "energy_j_per_1k_tokens": ("energy", "J per 1k tokens"),
}
"""Names of metrics in words, and their units."""
BEST = {
    "static": "best static",
    "rule": "best rule",
    "learned": "best learned",
    "reference": "upper reference",
}
LONGEST_NAMED = 60
"""Specifications that are longer are not written out in the scoreboard's legend."""
SHOWN_THRESHOLDS = (0.9, 1.0, 1.1, 1.25, 1.5)
NO_RECORDS = "No records yet: `python scripts/benchmark_suite.py` makes them."


def in_words(objective: Objective) -> str:
    """Return what schedulers are compared by."""
    text = ", ".join(filter(None, UNITS.get(objective.metric, (f"`{objective.metric}`", ""))))
    limit = objective.subject_to
    if limit is not None:
        word, _ = UNITS.get(limit.metric, (f"`{limit.metric}`", ""))
        bound = f"≥ {limit.at_least:g}" if limit.at_least is not None else f"≤ {limit.at_most:g}"
        text += f", with {word} {bound}"
    return text


def number(value: float) -> str:
    """Return a number of four digits, – for none."""
    if not math.isfinite(value):
        return "–"
    return f"{value:.4g}" if abs(value) < 10_000 else f"{value:,.0f}"


def percent(interval: Interval) -> str:
    """Return a gain with its interval, in per cent."""
    estimate, low, high = interval
    if not math.isfinite(estimate):
        return "–"
    text = f"{100 * estimate:+.1f} %"
    return text if not math.isfinite(low) else f"{text} ({100 * low:+.1f} … {100 * high:+.1f})"


def _value(row: Row, metric: str) -> str:
    estimate, low, high = row.means.get(metric, NOTHING)
    text = number(estimate)
    return f"{text} ({number(low)} … {number(high)})" if math.isfinite(low) else text


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table."""
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return lines + [f"| {' | '.join(row)} |" for row in rows]


def scoreboard(suite: Suite, found: Sequence[Standing]) -> str:
    """Return the table with one line per scenario: the best of each role, and by how much."""
    if not found:
        return NO_RECORDS
    baseline = f"over `{suite.baseline}`" if suite.baseline else ""
    shown = [what for what in BEST if what != "reference" and any(what in each.best for each in found)]
    head = ["scenario", "compared by", *(BEST[what] for what in shown if what != "learned")]
    learned = "learned" in shown
    head += ["best learned", "over best rule"] if learned else []
    head += [f"best {baseline}"] if baseline else []
    rows = []
    for each in found:
        metric = each.contest.objective.metric
        cells = [f"`{each.contest.name}`", in_words(each.contest.objective)]
        for what in [what for what in shown if what != "learned"] + ["learned"] * learned:
            names = _with_ties(each, what)
            cells.append(f"{names} {number(each.rows[each.best[what]].means[metric][0])}" if names else "–")
        if learned:
            cells.append(percent(each.gain(each.best.get("learned", ""), each.best.get("rule"))))
        if baseline:
            ranked = [each.best[what] for what in ("rule", "learned") if what in each.best]
            top = max(ranked, key=lambda name: each.scores(name).mean())
            cells.append(f"`{top}` {percent(each.gain(top, suite.baseline))}")
        rows.append(cells)
    seeds = sorted({len(row.seeds) for each in found for row in each.rows.values()})
    words = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    note = f"Means over {words} held-out episodes in the steady state; gains are paired, with 95 % intervals."
    if any(each.tied for each in found):
        note += " Where several are named, their means are equal, and the gain is that of the first."
    return "\n".join([note, "", *table(head, rows), "", legend(found)])


def short_scoreboard(suite: Suite, found: Sequence[Standing]) -> str:
    """Return the scoreboard without the generalisation set, and a sentence on what came out there."""
    main = [each for each in found if each.contest.of is None]
    if len(main) == len(found):
        return scoreboard(suite, found)
    return "\n\n".join([scoreboard(suite, main), _on_variants([each for each in found if each.contest.of])])


def _on_variants(found: Sequence[Standing]) -> str:
    """Return a sentence on where the best policy is significantly ahead and behind, the worst named."""
    gains = {
        each.contest.name: each.gain(each.best.get("learned", ""), each.best.get("rule")) for each in found
    }
    known = {name: gain for name, gain in gains.items() if math.isfinite(gain[1])}
    some = "is one variant" if len(found) == 1 else f"are {len(found)} variants"
    text = f"Beside these there {some} with other distances, loads, fleets or acceptance"
    if not known:
        return f"{text}."
    ahead = sum(low > 0 for _, low, _ in known.values())
    behind = sum(high < 0 for _, _, high in known.values())
    worst, gain = min(known.items(), key=lambda item: item[1][0])
    return (
        f"{text}. On {len(known)} of them policies take part: the best one is significantly ahead of the "
        f"best rule on {ahead} and behind it on {behind}; the largest loss is on `{worst}`, {percent(gain)}."
    )


def legend(found: Sequence[Standing]) -> str:
    """Return a sentence that says what the names of schedulers in the scoreboard stand for."""
    meant: dict[str, set[str]] = {}
    for each in found:
        ties = [name for names in each.tied.values() for name in names]
        shown = [name for what, name in each.best.items() if what != "reference"]
        for name in [*shown, *ties]:
            meant.setdefault(name, set()).add(each.contest.schedulers[name][1])
    parts = [f"`{name}` is {_in_short(meant[name])}" for name in sorted(meant)]
    return f"Names: {'; '.join(parts)}. An entry's own names and constants stand in its records."


def _in_short(specifications: set[str]) -> str:
    if len(specifications) == 1:
        (one,) = specifications
        return f"`{one}`" if len(one) <= LONGEST_NAMED else f"`{one.partition(':')[0]}` with constants found"
    if all(each.startswith("policy:") for each in specifications):
        return " or ".join(f"`{each}`" for each in sorted(specifications))
    kinds = sorted({each.partition(":")[0] for each in specifications})
    words = " or ".join(f"`{kind}`" for kind in kinds)
    return f"{words}, for each scenario its own"


def _with_ties(standing: Standing, what: str) -> str:
    """Return the best of a role and those whose mean is equal, the best first; "" without any."""
    names = [standing.best[what], *standing.tied.get(what, ())] if what in standing.best else []
    return ", ".join(f"`{name}`" for name in names)


def over_all(analysis: Mapping[str, Any]) -> str:
    """Return the tables of scores over all scenarios, and over those of the generalisation set."""
    parts = []
    for key, title in (("main", "All scenarios"), ("generalisation", "Generalisation set")):
        scores = analysis[key]
        if not scores["schedulers"]:
            continue
        at = [scores["thresholds"].index(threshold) for threshold in SHOWN_THRESHOLDS]
        head = ["scheduler", "interquartile mean", "mean", "P(better than best static)"]
        head += [f"> {threshold:g}" for threshold in SHOWN_THRESHOLDS]
        rows = []
        for name, score in scores["schedulers"].items():
            shares = [f"{100 * score['profile'][place]:.0f} %" for place in at]
            better = score["probability_of_improvement_over_best_static"]
            rows.append(
                [
                    name if name.startswith("best ") else f"`{name}`",
                    _scored(score["interquartile_mean"]),
                    f"{score['mean']:.3f}",
                    _scored(better, 2),
                    *shares,
                ]
            )
        names = ", ".join(f"`{name}`" for name in scores["scenarios"])
        parts += ["", f"**{title}** ({names})", "", *table(head, rows)]
    if parts:
        parts += ["", "A scheduler stands here if it has records in all scenarios of its table."]
    return "\n".join(parts[1:]) if parts else NO_RECORDS


def _scored(interval: Mapping[str, Any], digits: int = 3) -> str:
    low, high = interval["ci95"]
    text = f"{interval['value']:.{digits}f}"
    return text if low is None else f"{text} ({low:.{digits}f} … {high:.{digits}f})"


def scenarios(suite: Suite, found: Sequence[Standing]) -> str:
    """Return one table per scenario, one line per scheduler, and what is missing."""
    parts: list[str] = []
    for each in found:
        contest = each.contest
        changes = ", ".join(f"`{key}` = {value}" for key, value in contest.changes.items())
        variant = f" (a variant of `{contest.of}`: {changes})" if contest.of else ""
        cycles = f"{contest.cycles} cycle{'s' * (contest.cycles != 1)} of the load"
        parts += ["", f"### {contest.name}", ""]
        parts += [
            f"By {in_words(contest.objective)}; {contest.objective.better} is better{variant}. {cycles}."
        ]
        parts += [contest.note] * bool(contest.note)
        parts += ["", *_scenario(each, suite), ""]
        parts += _specs(each)
        parts += _ties(each)
        missing = [name for name in contest.schedulers if name not in each.rows]
        fewer = {row.name: len(row.seeds) for row in each.rows.values() if len(row.seeds) < suite.seeds}
        if missing:
            parts += ["", f"Not run: {', '.join(f'`{name}`' for name in missing)}."]
        if fewer and len(fewer) == len(each.rows) and len(set(fewer.values())) == 1:
            parts += ["", f"{next(iter(fewer.values()))} of {suite.seeds} seeds so far."]
        elif fewer:
            told = ", ".join(f"`{name}` {count}" for name, count in fewer.items())
            parts += ["", f"Fewer than {suite.seeds} seeds so far: {told}."]
    return "\n".join(parts[1:]) if parts else NO_RECORDS


def _scenario(standing: Standing, suite: Suite) -> list[str]:
    metric = standing.contest.objective.metric
    unit = UNITS.get(metric, (metric, ""))[1]
    marks: dict[str, str] = {}
    for what, name in standing.best.items():
        for equal in (name, *standing.tied.get(what, ())):
            marks.setdefault(equal, BEST[what])
    head = ["scheduler", "kind", f"`{metric}`{f' ({unit})' if unit else ''}", "over best static"]
    head += [f"over `{suite.baseline}`"] if suite.baseline else []
    head += ["p95 (s)", "goodput (1/s)", "SLO", "load", "$ per 1M tokens", "wall (s)"]
    rows = []
    for row in standing.rows.values():
        mark = f" **{marks[row.name]}**" if row.name in marks else ""
        missed = "" if row.feasible else " (misses the constraint)"
        cells = [f"`{row.name}`{mark}{missed}", row.role, _value(row, metric)]
        cells.append(percent(standing.gain(row.name, standing.best["static"])))
        cells += [percent(standing.gain(row.name, suite.baseline))] if suite.baseline else []
        others = ("e2e_s_p95", "goodput_requests_per_s", "slo_attainment", "load", "cloud_usd_per_1m_tokens")
        for other in others:
            mean = row.means.get(other, NOTHING)[0]
            cells.append(f"{100 * mean:.0f} %" if other == "slo_attainment" else number(mean))
        rows.append([*cells, f"{row.wall_s:.1f}"])
    return table(head, rows)


def _specs(standing: Standing) -> list[str]:
    named = [row for row in standing.rows.values() if row.name != row.spec]
    return [", ".join(f"`{row.name}` = `{row.spec}`" for row in named) + "."] if named else []


def _ties(standing: Standing) -> list[str]:
    """Return a line on those that have the best mean together, and who of them stands for it."""
    texts: dict[str, None] = {}
    for what in standing.tied:
        texts[
            f"{_with_ties(standing, what)} have the same mean: comparisons with the best take the first."
        ] = None
    return ["", *texts] if texts else []


def capacity(found: Sequence[Mapping[str, Any]]) -> str:
    """Return one table of capacities at SLO.

    Args:
        found: What ``scripts/capacity.py --json`` wrote, by file.
    """
    rows = []
    for each in found:
        for scheduler, one in each["schedulers"].items():
            best, above = one["best"], one["above"]
            rows.append(
                [
                    f"`{each['scenario']}`",
                    f"`{scheduler}`",
                    f"{100 * each['share']:g} %",
                    "none tried" if best is None else f"{number(best['offered'])} {each['scaled']}",
                    "–" if best is None else number(best["arrivals_per_s"]),
                    "not found" if above is None else number(above["offered"]),
                    str(each["seeds"]),
                ]
            )
    head = ["scenario", "scheduler", "objectives met", "capacity", "arrivals/s", "too much", "seeds"]
    return "\n".join(table(head, rows)) if rows else "No capacities yet."


def drifting(found: Sequence[Standing], limit: float) -> list[str]:
    """Return a note per scheduler whose windows' halves differ by so many standard errors over all seeds."""
    notes = []
    for each in found:
        for row in each.rows.values():
            mean = row.means.get("e2e_s_mean_drift", NOTHING)[0]
            drift = mean * math.sqrt(len(row.seeds))
            if abs(drift) >= limit:
                word = "longer" if drift > 0 else "shorter"
                notes.append(
                    f"{each.contest.name}, {row.name}: requests take {word} in the second half of the "
                    f"window, by {abs(drift):.1f} standard errors: not steady"
                )
    return notes
