"""Fit plots for the documentation (needs matplotlib, extra ``calibrate``)."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from dsd_env.latency.catalogue import Built
from dsd_env.latency.cells import DECODE, PREFILL, VERIFY
from dsd_env.latency.fit import relative_errors

__all__ = ["plot_fit", "plot_overview"]

_COLOURS = {DECODE: "#0072b2", VERIFY: "#d55e00", PREFILL: "#009e73"}


def _save(figure: Figure, path: Path) -> None:
    """Write the PNG atomically."""
    FigureCanvasAgg(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, tmp = tempfile.mkstemp(dir=path.parent, suffix=".png")
    os.close(handle)
    figure.savefig(tmp, dpi=110, metadata={"Software": None})
    os.chmod(tmp, 0o644)
    os.replace(tmp, path)


def _plain_log_ticks(*axes: Any) -> None:
    """1, 2, 5, 10, ... instead of powers of ten, which label a narrow range too little or too densely."""
    for axis in axes:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def _parity(axes: Any, built: Built) -> None:
    """Held-out cells: table against profile."""
    assert built.fit is not None
    k = built.fit.coefficients
    for region, colour in _COLOURS.items():
        cells = [c for c in built.fit.heldout if c.region == region]
        table = 1e3 * np.array([c.seconds for c in cells])
        form = table * (1.0 + relative_errors(k, cells))
        axes.loglog(table, form, "o", ms=3.5, alpha=0.6, color=colour, label=f"{region} ({len(cells)})")
    low, high = axes.get_xlim()
    line = np.array([low, high])
    axes.loglog(line, line, color="0.3", lw=0.8)
    axes.fill_between(line, line / 1.1, line * 1.1, color="0.85", zorder=0, label="within 10 %")
    _plain_log_ticks(axes.xaxis, axes.yaxis)
    axes.set_xlabel("kernel-sum table, ms")
    axes.set_ylabel("profile, ms")
    axes.legend(fontsize=8)


def plot_fit(built: Built, path: Path) -> None:
    """Two panels: step time against new tokens at a context of 1,024, and held-out cells against the form."""
    assert built.fit is not None and built.model is not None
    p, k = built.profile, built.fit.coefficients
    figure = Figure(figsize=(10.5, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    context = 1024
    batches = [b for b in (1, 2, 4, 8, 16, 32, 64, 128) if b * context <= (p.kv_capacity_tokens or 10**9)]
    for q, colour in zip((1, 5, 17), ("#0072b2", "#d55e00", "#cc79a7"), strict=True):
        points = [(b, built.model.sequences_s(b, q, context)) for b in batches]
        known = [(b, s) for b, s in points if s is not None]
        left.plot(
            [b for b, _ in known],
            [1e3 * s for _, s in known],
            "o",
            ms=4,
            color=colour,
            label=f"q = {q}: table",
        )
        curve = [1e3 * k.step_s(b * q, b * (context + q), context + q if q > 1 else 0) for b in batches]
        left.plot(batches, curve, "-", lw=1.2, color=colour, label=f"q = {q}: profile")
    left.set_xscale("log", base=2)
    left.set_yscale("log")
    _plain_log_ticks(left.yaxis)
    left.set_xticks(batches, [str(b) for b in batches])
    left.set_xlabel("sequences in the batch, context 1,024")
    left.set_ylabel("iteration, ms")
    left.legend(fontsize=8)
    _parity(right, built)
    e = p.error
    figure.suptitle(
        f"{p.model} on {p.parallelism} x {p.device}: held-out error median {e.heldout_median_pct:.1f} %, "
        f"p95 {e.heldout_p95_pct:.1f} % over {e.cells} cells",
        fontsize=11,
    )
    _save(figure, path)


def plot_overview(built: Sequence[Built], path: Path) -> None:
    """Held-out cells of every fitted profile against the form, one panel each."""
    columns = 5
    rows = -(-len(built) // columns)
    figure = Figure(figsize=(3.6 * columns, 3.5 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, one in zip(grid, built, strict=False):
        _parity(axes, one)
        axes.set_title(one.profile.name, fontsize=9)
    for axes in grid[len(built) :]:
        axes.set_visible(False)
    _save(figure, path)
