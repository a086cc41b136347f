"""Tables and a plot of testbed and twin side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from dsd_env.files import write_atomically
from dsd_env.testbed.against import CLOSE_PCT, GOALS_PCT, METRICS, Row, Served, paired_gain, rankings
from dsd_env.testbed.changing import gain_by_spell

_TITLES = {
    "ttft_s_mean": "TTFT, mean",
    "ttft_s_p95": "TTFT, p95",
    "tpot_s_mean": "time per token, mean",
    "tpot_s_p95": "time per token, p95",
    "e2e_s_mean": "request time, mean",
    "e2e_s_p95": "request time, p95",
    "tokens_per_s": "tokens/s",
    "accepted_per_round": "accepted per round",
}


def markdown(rows: Sequence[Row]) -> str:
    """Return the figures as tables: a setting a line, then the rankings."""
    settings = list(dict.fromkeys(row.setting for row in rows))
    cells = {(row.setting, row.metric): row for row in rows}
    metrics = [metric for metric in METRICS if any(row.metric == metric for row in rows)]
    lines = [
        "| setting | " + " | ".join(_TITLES[metric] for metric in metrics) + " |",
        "|---" * (len(metrics) + 1) + "|",
    ]
    for setting in settings:
        line = [_cell(cells.get((setting, metric))) for metric in metrics]
        lines.append(f"| {setting} | " + " | ".join(line) + " |")
    lines += ["", "Measured, and by how much the simulation is off; a missed goal is bold.", ""]
    for metric, goal in GOALS_PCT.items():
        errors = [row for row in rows if row.metric == metric and row.error_pct is not None]
        if errors:
            within = sum(row.within for row in errors)
            worst = max(errors, key=lambda row: abs(row.error_pct or 0.0))
            lines.append(
                f"- {_TITLES[metric]}: {within} of {len(errors)} settings within {goal:g} %; worst "
                f"{worst.error_pct:+.1f} % ({worst.setting})"
            )
    lines.append("")
    for ranking in rankings(rows):
        if ranking.pairs == 0:
            continue
        lines.append(
            f"- {ranking.where}: measured {' < '.join(ranking.measured)}; simulated "
            f"{' < '.join(ranking.simulated)}: {ranking.agree} of {ranking.pairs} pairs in the same order"
            + (
                f"; of the others {ranking.close_wrong} are less than {CLOSE_PCT:g} % apart in the testbed"
                if ranking.agree < ranking.pairs
                else ""
            )
        )
    return "\n".join(lines) + "\n"


def gains(runs: Mapping[str, Sequence[Served]], series: Path | None = None) -> str:
    """Return a table of what learned policies gain over the other ways, measured, by link and clients.

    Args:
        runs: Requests by name of the setting.
        series: What their link replayed, if it changed: requests have no partners then.
    """
    lines = []
    for name, ours in runs.items():
        way, _, where = name.partition("_")
        if not way.endswith("-policy"):
            continue
        for other, theirs in runs.items():
            if other != name and other.partition("_")[2] == where:
                found = paired_gain(ours, theirs) if series is None else gain_by_spell(ours, theirs, series)
                gain, low, high = found
                against = other.partition("_")[0]
                lines.append(f"| {where} | {way} | {against} | {gain:+.1f} % | {low:+.1f} … {high:+.1f} % |")
    if not lines:
        return ""
    head = ["| where | way | against | request time less by | 95 % interval |", "|---|---|---|---|---|"]
    return "\n".join([*head, *lines]) + "\n"


def _cell(row: Row | None) -> str:
    if row is None:
        return "—"
    unit = "" if row.metric in ("tokens_per_s", "accepted_per_round") else " s"
    off = "" if row.error_pct is None else f" ({row.error_pct:+.1f} %)"
    text = f"{row.measured:.3g}{unit}{off}"
    return text if row.within else f"**{text}**"


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draw measured against simulated request time and time per token, a point a setting."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D

    shown = ("e2e_s_mean", "tpot_s_mean", "e2e_s_p95", "tpot_s_p95")
    ways = list(dict.fromkeys(row.setting.partition("_")[0] for row in rows))
    wheres = list(dict.fromkeys(row.setting.partition("_")[2] for row in rows))
    figure, axes = plt.subplots(2, 2, figsize=(10, 9.5), layout="constrained")
    for axis, metric in zip(axes.flat, shown, strict=True):
        points = [row for row in rows if row.metric == metric]
        for row in points:
            way, _, where = row.setting.partition("_")
            axis.plot(
                row.measured,
                row.simulated,
                "os^Dv<>p"[wheres.index(where) % 8],
                color=f"C{ways.index(way) % 10}",
                markersize=8,
                alpha=0.8,
            )
        low = 0.9 * min(min(row.measured, row.simulated) for row in points)
        high = 1.1 * max(max(row.measured, row.simulated) for row in points)
        goal = GOALS_PCT[metric] / 100
        axis.plot([low, high], [low, high], color="0.4", linewidth=1)
        axis.fill_between(
            [low, high],
            [low * (1 - goal), high * (1 - goal)],
            [low * (1 + goal), high * (1 + goal)],
            color="0.9",
            zorder=0,
        )
        axis.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
        axis.set(
            title=f"{_TITLES[metric]} (band: ±{100 * goal:g} %)", xlabel="measured, s", ylabel="simulated, s"
        )
        for each in (axis.xaxis, axis.yaxis):
            each.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
            each.set_minor_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
        axis.tick_params(which="both", labelsize=8)
    handles = [Line2D([], [], color=f"C{i % 10}", marker="o", ls="", label=w) for i, w in enumerate(ways)]
    handles += [
        Line2D([], [], color="0.3", marker="os^Dv<>p"[i % 8], ls="", label=where.replace("_", ", "))
        for i, where in enumerate(wheres)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=6, fontsize=9)
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=110, format="png"))
    plt.close(figure)
