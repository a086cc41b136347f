"""Tables of evaluation results for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from agents.evaluation import DRIFT


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
        table = Table(title=f"{escape(label)}: {seeds} episodes of {_measured(result)}")
        table.add_column("metric")
        table.add_column("scheduler", overflow="fold")
        table.add_column("mean", justify="right")
        table.add_column("95% interval", justify="right")
        windowed = result.get("window_s") is not None
        if windowed:
            table.add_column("s.e. within", justify="right")
        if len(schedulers) > 1:
            table.add_column(f"vs {escape(first)}, paired", justify="right")
        for metric in metrics:
            for name, entry in schedulers.items():
                mean, interval, change = _cells(entry, metric)
                cells = [mean, interval]
                if windowed:
                    cells.append(_error(entry, metric))
                cells.append(change)
                title = metric if name == first else ""
                table.add_row(title, escape(name), *cells[: len(table.columns) - 2])
            table.add_section()
        console.print(table)
        for note in drift_notes(result):
            console.print(escape(f"{label}: {note}"))


def _measured(result: Mapping[str, Any]) -> str:
    """Return what was measured in an episode."""
    if result.get("window_s") is None:
        return f"{result['requests']} requests"
    cycles = f" = {result['load_cycles']} load cycles" if result["load_cycles"] else ""
    return f"{result['window_s']:g} s{cycles} after {result['warmup_s']:g} s of warm-up"


def drift_notes(result: Mapping[str, Any]) -> list[str]:
    """Return a note for each metric whose window's halves differ by more than chance makes them."""
    notes = []
    for scheduler, entry in result["schedulers"].items():
        for name, value in entry["metrics"].items():
            drift = value.get("drift")
            if drift is not None and abs(drift) >= DRIFT:
                notes.append(
                    f"{scheduler}: {name} is {'higher' if drift > 0 else 'lower'} in the second half of the "
                    f"window, by {abs(drift):.1f} standard errors: not steady, take a longer warm-up"
                )
    return notes


def _error(entry: Mapping[str, Any], metric: str) -> str:
    """Return the standard error of a mean from the parts of the windows."""
    error = entry["metrics"][metric].get("se_batches")
    return "" if error is None else f"± {_number(error)}"


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
