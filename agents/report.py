"""Tables of evaluation results for the terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from agents.evaluation import DRIFT

WITHIN = "within"
COLUMNS = {"mean": 6, "95 %": 15, WITHIN: 9, "change": 6, "95 % of it": 13}
"""Columns by heading, with the least width of each."""
NO_END = 10_000
"""Columns of an output that has no width of its own: more than any table needs."""


def console() -> Console:
    """Return where tables are printed: as wide as the terminal, or as the tables need where there is none.

    What a file or another program reads is not cut for a screen; the variable COLUMNS says how wide it is
    to be nevertheless.
    """
    narrow = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console() if narrow else Console(width=NO_END)


def print_tables(summary: Mapping[str, Any], metrics: Sequence[str], console: Console) -> None:
    """Print the results of each scenario: metric by metric, a line per scheduler. 80 columns are enough.

    `within` is the standard error of the mean from the parts of the windows. Where the window is a single
    cycle of the load it is left out, since parts differ there by what the load does.

    Args:
        summary: From :func:`agents.evaluation.summarise`.
        metrics: Which metrics, in order.
        console: Where to print.
    """
    seeds = len(summary["metadata"]["seeds"])
    for label, result in summary["scenarios"].items():
        schedulers = result["schedulers"]
        first = next(iter(schedulers))
        shown = {WITHIN} if result.get("window_s") is not None and result["load_cycles"] != 1 else set()
        shown |= {"change", "95 % of it"} if len(schedulers) > 1 else set()
        columns = {name: least for name, least in COLUMNS.items() if name in {"mean", "95 %"} | shown}
        console.print(f"\n[bold]{escape(label)}[/bold]: {seeds} episodes of {_measured(result)}")
        if len(schedulers) > 1:
            console.print(f"changes are paired by episode, against {escape(first)}")
        for metric in metrics:
            cells = {name: _cells(entry, metric) for name, entry in schedulers.items()}
            console.print(f"\n[bold]{escape(metric)}[/bold]")
            console.print(_table(cells, columns, console.width))
        for note in drift_notes(result):
            console.print(escape(f"{label}: {note}"))


def _table(cells: Mapping[str, Mapping[str, str]], columns: Mapping[str, int], width: int) -> Table:
    """Return the table of one metric: its cells by scheduler and heading."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    longest, spare = max(map(len, cells)), width - sum(least + 3 for least in columns.values())
    table.add_column("", overflow="fold", width=min(longest, spare))
    for heading, least in columns.items():
        table.add_column(heading, justify="right", no_wrap=True, min_width=least)
    for name, told in cells.items():
        table.add_row(escape(name), *(told[heading] for heading in columns))
    return table


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


def _cells(entry: Mapping[str, Any], metric: str) -> dict[str, str]:
    """Return what is told of one metric of one scheduler, by the columns' headings."""
    value = entry["metrics"][metric]
    if value["mean"] is None:
        return {"mean": "–"} | dict.fromkeys(list(COLUMNS)[1:], "")
    error = value.get("se_batches")
    versus = entry.get("versus", {}).get("metrics", {}).get(metric)
    known = versus is not None and versus["relative"] is not None
    told = (
        _number(value["mean"]),
        _interval(value["ci95"], _number),
        "" if error is None else f"± {error:.2g}",
        _percent(versus["relative"]) if known else "",
        _interval(versus["ci95"], _percent) if known else "",
    )
    return dict(zip(COLUMNS, told, strict=True))


def _interval(interval: Sequence[float | None], form: Callable[[float], str]) -> str:
    low, high = interval
    return "" if low is None or high is None else f"{form(low)}…{form(high)}"


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 10_000 else f"{value:,.0f}"


def _percent(value: float) -> str:
    return f"{100 * value:+.1f}%"
