"""Tables of evaluation results for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table


def print_tables(summary: Mapping[str, Any], metrics: Sequence[str], console: Console) -> None:
    """Print one table per scenario, a section per metric, a line per scheduler.

    Args:
        summary: From :func:`agents.evaluation.summarise`.
        metrics: Which metrics, in order.
        console: Where to print.
    """
    seeds = len(summary["metadata"]["seeds"])
    for label, result in summary["scenarios"].items():
        schedulers = result["schedulers"]
        first = next(iter(schedulers))
        table = Table(title=f"{escape(label)}: {seeds} episodes of {result['requests']} requests")
        table.add_column("metric")
        table.add_column("scheduler", overflow="fold")
        table.add_column("mean", justify="right")
        table.add_column("95% interval", justify="right")
        if len(schedulers) > 1:
            table.add_column(f"vs {escape(first)}, paired", justify="right")
        for metric in metrics:
            for name, entry in schedulers.items():
                cells = _cells(entry, metric)
                title = metric if name == first else ""
                table.add_row(title, escape(name), *cells[: len(table.columns) - 2])
            table.add_section()
        console.print(table)


def _cells(entry: Mapping[str, Any], metric: str) -> tuple[str, str, str]:
    value = entry["metrics"][metric]
    if value["mean"] is None:
        return "–", "", ""
    versus = entry.get("versus", {}).get("metrics", {}).get(metric)
    change = ""
    if versus and versus["relative"] is not None:
        change = f"{_percent(versus['relative'])} {_interval(versus['ci95'], _percent)}"
    return _number(value["mean"]), _interval(value["ci95"], _number), change


def _interval(interval: Sequence[float | None], form: Callable[[float], str]) -> str:
    low, high = interval
    return "" if low is None or high is None else f"{form(low)} … {form(high)}"


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 10_000 else f"{value:,.0f}"


def _percent(value: float) -> str:
    return f"{100 * value:+.1f}%"
