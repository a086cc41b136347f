"""Plots of fitted workloads for the documentation (needs matplotlib, extra ``calibrate``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dsd_env.calibration.workload.catalogue import CURVE_S, Curves
from dsd_env.extras import needs
from dsd_env.files import write_atomically

with needs("plot", "plotting workloads"):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

_DATA, _MODEL = "#0072b2", "#d55e00"


def plot_fit(path: Path, title: str, data: Curves, model: Curves, given: str = "data") -> None:
    """Write a figure of four panels: lengths, dispersion of counts, and rates or clients.

    Args:
        path: PNG to write, atomically.
        title: Title.
        data: What was measured.
        model: What the fit generates.
        given: What to call ``data``.
    """
    figure = Figure(figsize=(10.0, 7.0), layout="constrained")
    figure.suptitle(title)
    left, right, below, last = figure.subplots(2, 2).ravel()
    for curves, colour, name in ((data, _DATA, given), (model, _MODEL, "fitted model")):
        for tokens, style, what in ((curves.prompts, "-", "prompt"), (curves.outputs, "--", "answer")):
            levels = np.linspace(0.001, 0.999, 800)
            left.plot(
                np.quantile(tokens, levels),
                levels,
                style,
                color=colour,
                label=f"{what}, {name}",
                linewidth=1.3,
            )
        right.plot(CURVE_S, curves.dispersion, "o-", color=colour, label=name, markersize=4)
        _answers(below, data.prompts, curves, colour, name)
        if curves.shares is None:
            last.plot(np.arange(len(curves.per_minute)), curves.per_minute, color=colour, label=name)
        else:
            place = np.arange(1, len(curves.shares) + 1)
            last.plot(
                place, 100.0 * np.maximum(curves.shares, 1e-7), "o-", color=colour, label=name, markersize=4
            )
    left.set(xscale="log", xlabel="tokens", ylabel="share of requests not longer", title="Lengths")
    right.set(
        xscale="log",
        yscale="log",
        xlabel="window (s)",
        ylabel="variance / mean of requests in it",
        title="Dispersion (Poisson: 1)",
    )
    right.axhline(1.0, color="0.6", linewidth=0.8)
    below.set(
        xscale="log",
        xlabel="prompt (tokens), tenths of the requests",
        ylabel="mean answer (tokens)",
        title="Answers by prompt",
    )
    below.set_ylim(bottom=0.0)
    below.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    below.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    below.xaxis.set_minor_formatter(NullFormatter())
    if data.shares is None:
        last.set(xlabel="minute", ylabel="requests", title="One episode")
        last.set_ylim(bottom=0.0)
    else:
        last.set(
            yscale="log",
            xlabel="client, by rank",
            ylabel="share of requests (%)",
            title="Clients, median of 8 hours",
        )
        last.set_ylim(bottom=1e-3)
    for axes in (left, right, below, last):
        axes.grid(True, color="0.9")
        axes.legend(fontsize=8)
    _save(figure, path)


def _answers(axes: Any, prompts: np.ndarray, curves: Curves, colour: str, name: str) -> None:
    """Plot the mean answer against the median prompt of each tenth of the measured prompts."""
    edges = np.unique(np.quantile(prompts, np.arange(1, 10) / 10.0))
    tenth = np.searchsorted(edges, curves.prompts)
    used = [number for number in range(len(edges) + 1) if (tenth == number).any()]
    axes.plot(
        [float(np.median(curves.prompts[tenth == number])) for number in used],
        [float(curves.outputs[tenth == number].mean()) for number in used],
        "o-",
        color=colour,
        label=name,
        markersize=4,
    )


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    write_atomically(
        path, lambda temporary: figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})
    )
