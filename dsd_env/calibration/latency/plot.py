"""Plots of the calibration pages (needs matplotlib, extra ``calibrate``)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dsd_env.calibration.latency.catalogue import Built
from dsd_env.calibration.latency.cells import DECODE, PREFILL, VERIFY
from dsd_env.calibration.latency.edge import CLASSES, fit_class, load_figures, streamed_bytes
from dsd_env.calibration.latency.goals import GOAL_MEDIAN_PCT, GOAL_P95_PCT
from dsd_env.calibration.latency.noise import STRAGGLER_THRESHOLD
from dsd_env.calibration.latency.splitwise import load_splitwise, select
from dsd_env.extras import needs
from dsd_env.files import write_bytes

with needs("plot", "plotting latency profiles"):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

__all__ = ["plot_documentation", "plot_fit", "plot_overview"]

_COLOURS = {DECODE: "#0072b2", VERIFY: "#d55e00", PREFILL: "#009e73"}


def _save(figure: Figure, path: Path) -> None:
    """Write the PNG atomically, with a palette: half the size, and nobody sees the difference."""
    FigureCanvasAgg(figure)
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110, metadata={"Software": None})
    with Image.open(drawn) as image:
        image.convert("RGB").quantize(
            colors=256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE
        ).save(small, format="png", optimize=True)
    write_bytes(path, small.getvalue())


def _plain_log_ticks(*axes: Any) -> None:
    """1, 2, 5, 10, ... instead of powers of ten, which label a narrow range too little or too densely."""
    for axis in axes:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def _parity(axes: Any, built: Built, small: bool = False) -> None:
    """Held-out cells: table against profile."""
    assert built.fit is not None
    errors = built.fit.errors()
    regions = np.array([c.region for c in built.fit.heldout])
    table = 1e3 * np.array([c.seconds for c in built.fit.heldout])
    for region, colour in _COLOURS.items():
        inside = regions == region
        if not inside.any():
            continue
        form = table[inside] * (1.0 + errors[inside])
        label = f"{region} ({inside.sum()})"
        axes.loglog(table[inside], form, "o", ms=2.5 if small else 3.5, alpha=0.6, color=colour, label=label)
    low, high = axes.get_xlim()
    line = np.array([low, high])
    axes.loglog(line, line, color="0.3", lw=0.8)
    axes.fill_between(line, line / 1.1, line * 1.1, color="0.85", zorder=0, label="within 10 %")
    _plain_log_ticks(axes.xaxis, axes.yaxis)
    if small:
        axes.tick_params(labelsize=7)
        return
    axes.set_xlabel("table, ms")
    axes.set_ylabel("profile, ms")
    axes.legend(fontsize=8)


def plot_fit(built: Built, path: Path) -> None:
    """Two panels: step time against batch at a context of 1,024, and held-out cells against the profile."""
    assert built.fit is not None
    p, k = built.profile, built.profile.coefficients
    figure = Figure(figsize=(10.5, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    context = 1024
    batches = [b for b in (1, 2, 4, 8, 16, 32, 64, 128) if b * context <= (p.kv_capacity_tokens or 10**9)]
    for q, colour in zip((1, 5, 17), ("#0072b2", "#d55e00", "#cc79a7"), strict=True):
        points = [(b, built.model.sequences_s(b, q, context)) for b in batches] if built.model else []
        known = [(b, s) for b, s in points if s is not None]
        left.plot(
            [b for b, _ in known],
            [1e3 * s for _, s in known],
            "o",
            ms=4,
            color=colour,
            label=f"q = {q}: table" if known else None,
        )
        curve = [1e3 * k.step_s(b * q, b * (context + q), context + q if q > 1 else 0) for b in batches]
        left.plot(batches, curve, "-", lw=1.2, color=colour, label=f"q = {q}: profile")
        smooth = built.fit.closed_form
        if smooth is not None and k.compute_knots is not None and built.model is not None:
            curve = [
                1e3 * smooth.step_s(b * q, b * (context + q), context + q if q > 1 else 0) for b in batches
            ]
            left.plot(batches, curve, ":", lw=1.0, color=colour, label="closed form" if q == 17 else None)
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
    """Held-out median and 95th percentile of every fitted profile, taken form against the other one."""
    rows = [b.profile for b in built if b.profile.error.other_form_median_pct is not None]
    figure = Figure(figsize=(8.5, 1.2 + 0.17 * len(rows)), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    y = np.arange(len(rows))[::-1]
    for panel, goal, name, taken, other in (
        (
            axes[0],
            GOAL_MEDIAN_PCT,
            "median",
            [p.error.heldout_median_pct for p in rows],
            [p.error.other_form_median_pct for p in rows],
        ),
        (
            axes[1],
            GOAL_P95_PCT,
            "95th percentile",
            [p.error.heldout_p95_pct for p in rows],
            [p.error.other_form_p95_pct for p in rows],
        ),
    ):
        panel.axvline(goal, color="0.6", lw=1.0, label="goal")
        panel.plot(other, y, "o", ms=4, mfc="none", color="0.5", label="other form")
        panel.plot(taken, y, "o", ms=4, color="#0072b2", label="form taken")
        panel.set_xscale("log")
        _plain_log_ticks(panel.xaxis)
        panel.grid(axis="y", color="0.92")
        panel.set_xlabel(f"held-out error, {name}, %")
    axes[0].set_yticks(y, [p.name for p in rows], fontsize=6.5)
    axes[0].set_ylim(-1, len(rows))
    figure.legend(*axes[1].get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=3)
    _save(figure, path)


_PANELS: dict[str, tuple[str, ...]] = {
    "a100": (
        "llama-3-70b_a100-sxm_tp4",
        "llama-3-70b_a100-sxm_tp8",
        "qwen3-32b_a100-sxm_tp2",
        "llama-3-8b_a100-sxm_tp1",
        "llama-3.2-3b_a100-sxm_tp1",
        "llama-3.2-1b_a100-sxm_tp1",
    ),
    "h100_h200": (
        "llama-3-70b_h100-sxm_tp4",
        "llama-3-70b_h200-sxm_tp2",
        "qwen3-32b_h100-sxm_tp2",
        "llama-3-8b_h100-sxm_tp1",
        "llama-3-8b_h200-sxm_tp1",
        "llama-3.2-1b_h100-sxm_tp1",
    ),
    "l40s_rtx": (
        "llama-3-70b_rtx-pro-6000_tp2",
        "qwen3-32b_rtx-pro-6000_tp1",
        "llama-3-8b_rtx-pro-6000_tp1",
        "llama-3-70b_l40s_tp4",
        "llama-3-8b_l40s_tp1",
        "llama-3-8b_rtx-4090_tp1",
    ),
}
_SINGLE = (
    "llama-3-70b_h100-sxm_tp4",
    "llama-3-70b_a100-sxm_tp4",
    "llama-3-8b_h100-sxm_tp1",
    "llama-3-8b_rtx-4090_tp1",
    "llama-3-8b_rtx-pro-6000_tp1",
)


def plot_documentation(built: Sequence[Built], data_dir: Path, figures: Path) -> None:
    """Every figure of the calibration pages.

    Args:
        built: the whole catalogue.
        data_dir: folder of the measured tables.
        figures: folder to write ``latency_*.png`` into.
    """
    by_name = {b.profile.name: b for b in built}
    for name in _SINGLE:
        plot_fit(by_name[name], figures / f"latency_{name}.png")
    plot_overview([b for b in built if b.fit is not None], figures / "latency_overview.png")
    for family, names in _PANELS.items():
        figure = Figure(figsize=(10.0, 6.4), layout="constrained")
        for axes, name in zip(figure.subplots(2, 3).ravel(), names, strict=True):
            _parity(axes, by_name[name], small=True)
            axes.set_title(name, fontsize=8)
        figure.axes[0].legend(fontsize=7)
        figure.supxlabel("kernel-sum table, ms", fontsize=9)
        figure.supylabel("profile, ms", fontsize=9)
        _save(figure, figures / f"latency_parity_{family}.png")
    _plot_whole_iterations(built, figures / "latency_whole_iterations.png")
    _plot_edge(data_dir, figures / "latency_edge.png")
    _plot_noise(data_dir, figures / "latency_noise.png")


def _plot_whole_iterations(built: Sequence[Built], path: Path) -> None:
    """Splitwise's decode iterations against batch and prompts against length, with profiles of both kinds."""
    measured = [b for b in built if b.profile.label == "measured"]
    kernels = {b.profile.name: b.profile for b in built}
    figure = Figure(figsize=(10.5, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    colours = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
    for b, colour in zip(measured, colours, strict=False):
        p = b.profile
        label = f"{p.device.split('-')[0]} TP{p.parallelism}"
        by_batch = sorted(
            (c.new_tokens, 1e3 * c.seconds) for c in b.cells if c.region == DECODE and c.key.endswith("_s576")
        )
        batches = [m for m, _ in by_batch]
        left.plot(batches, [s for _, s in by_batch], "o", ms=4, color=colour, label=label)
        left.plot(batches, [1e3 * p.step_s(m, m * 577, 0) for m in batches], "-", lw=1.2, color=colour)
        bare = kernels[p.name.removesuffix("_splitwise2023")]
        left.plot(batches, [1e3 * bare.step_s(m, m * 577, 0) for m in batches], ":", lw=1.0, color=colour)
        prompts = sorted((c.new_tokens, 1e3 * c.seconds) for c in b.cells if c.region == PREFILL)
        lengths = [m for m, _ in prompts]
        right.plot(lengths, [s for _, s in prompts], "o", ms=4, color=colour)
        right.plot(lengths, [1e3 * p.step_s(m, m, m) for m in lengths], "-", lw=1.2, color=colour)
        right.plot(lengths, [1e3 * bare.step_s(m, m, m) for m in lengths], ":", lw=1.0, color=colour)
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        _plain_log_ticks(axes.yaxis)
        axes.set_ylabel("iteration, ms")
    ticks = [1, 2, 4, 8, 16, 32, 64]
    left.set_xticks(ticks, [str(t) for t in ticks])
    left.set_xlabel("sequences decoding, context 576")
    ticks = [128, 256, 512, 1024, 2048, 4096, 8192]
    right.set_xticks(ticks, [str(t) for t in ticks])
    right.set_xlabel("prompt tokens")
    figure.legend(*left.get_legend_handles_labels(), fontsize=8, loc="outside right center")
    figure.suptitle(
        "Llama-2-70B: Splitwise's measurements (dots), profiles on them (lines), kernel sums (dotted)",
        fontsize=11,
    )
    _save(figure, path)


def _plot_edge(data_dir: Path, path: Path) -> None:
    """Published decode steps against the class form."""
    figures = load_figures(data_dir)
    figure = Figure(figsize=(6.2, 4.8), layout="constrained")
    axes = figure.subplots()
    colours = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")
    for name, colour in zip(CLASSES, colours, strict=True):
        cls = fit_class(name, figures)
        published = [1e3 * f.decode_s for f in cls.figures]
        form = [
            1e3
            * (
                (streamed_bytes(f.model, f.quant) or 0.0) / (f.bandwidth_bytes_per_s * cls.eta)
                + cls.overhead_s
            )
            for f in cls.figures
        ]
        axes.loglog(published, form, "o", ms=4, alpha=0.8, color=colour, label=f"{name} ({len(published)})")
    line = np.array(axes.get_xlim())
    axes.loglog(line, line, color="0.3", lw=0.8)
    axes.fill_between(line, line / 1.2, line * 1.2, color="0.88", zorder=0, label="within 20 %")
    _plain_log_ticks(axes.xaxis, axes.yaxis)
    axes.set_xlabel("published step, ms a token")
    axes.set_ylabel("class form: bytes / (eta x bandwidth) + overhead, ms")
    axes.legend(fontsize=8)
    _save(figure, path)


def _plot_noise(data_dir: Path, path: Path) -> None:
    """Distribution of single iterations around the median of their kind."""
    cells = load_splitwise(data_dir)
    figure = Figure(figsize=(6.2, 3.8), layout="constrained")
    axes = figure.subplots()
    for hardware, colour in (("a100-80gb", "#0072b2"), ("h100-80gb", "#d55e00")):
        for what, style in (("one iteration (prompt)", "-"), ("mean of a run (decode)", ":")):
            ratios = []
            for c in select(cells, "llama2-70b", hardware, None):
                if what.startswith("one") and c.batch > 1:
                    continue
                times = np.array(c.prompt_s if what.startswith("one") else c.token_s)
                ratios.extend((times / np.median(times)).tolist())
            x = np.sort(ratios)
            beyond = 1.0 - np.arange(len(x)) / len(x)
            axes.step(x, beyond, style, where="post", color=colour, label=f"{hardware}, {what} ({len(x)})")
    axes.axvline(STRAGGLER_THRESHOLD, color="0.6", lw=1.0, label="straggler threshold")
    axes.set_yscale("log")
    axes.set_xlabel("time / median of its kind")
    axes.set_ylabel("share of repeats at or beyond")
    axes.legend(fontsize=7)
    _save(figure, path)
