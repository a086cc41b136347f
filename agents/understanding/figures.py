"""Figures of an explanation: heat maps, importance, trees. Colours can be told apart by everybody."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dsd_env.extras import needs
from dsd_env.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BAR, _SINGLE, _LINE = "#0072B2", "#9CCBE8", "#D55E00"
_LENGTHS, _SHARES = "viridis", "cividis"
_NOTHING = "0.92"
"""Grey of cells that nothing fell into."""
_MOST_FEATURES = 12
"""Single features that the figure shows."""


def draw(result: Mapping[str, Any], folder: Path) -> list[str]:
    """Write the figures of a result; return their names.

    Args:
        result: From :meth:`agents.understanding.explain.Explanation.result`.
        folder: Where to.

    Raises:
        ModuleNotFoundError: matplotlib is missing.
    """
    figures = {"heat_maps.png": _heat_maps(result)}
    if "importance" in result:
        figures["importance.png"] = _importance(result)
    if result.get("trees"):
        figures["trees.png"] = _trees(result)
    for name, figure in figures.items():
        _save(figure, folder / name)
    return list(figures)


def _new(width: float, height: float) -> Figure:
    with needs("plot", "drawing figures"):
        from matplotlib.figure import Figure
    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Figure, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    write_atomically(
        path, lambda temporary: figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})
    )


def _floats(values: Any) -> NDArray[np.float64]:
    """Return nested lists with None as an array with NaN."""
    return np.array(values, dtype=np.float64)


def _heat_maps(result: Mapping[str, Any]) -> Figure:
    maps, few = result["maps"], result["settings"]["few"]
    kinds = [kind for kind in ("visited", "changed") if kind in maps]
    chosen = [
        name
        for name in maps["categories"]
        if any(np.nanmax(_floats(maps[kind]["share"][name]), initial=0.0) > 0.0 for kind in kinds)
    ]
    panels = 1 + len(chosen)
    figure = _new(1.5 + 3.1 * panels, 0.9 + 3.1 * len(kinds))
    all_axes = figure.subplots(len(kinds), panels, squeeze=False)
    counts = np.array(maps["visited"]["states"])
    longest = max(1.0, *(float(np.nanmax(_floats(maps[kind]["gamma_mean"]))) for kind in kinds))
    titles = {"visited": "states as met", "changed": "the two features changed"}
    for row, kind in enumerate(kinds):
        content = maps[kind]
        lengths = _cells(all_axes[row][0], _floats(content["gamma_mean"]), longest, _LENGTHS, ".1f")
        for column, name in enumerate(chosen, 1):
            shares = _cells(
                all_axes[row][column], 100.0 * _floats(content["share"][name]), 100.0, _SHARES, ".0f"
            )
            all_axes[row][column].set_title(f"{name}: share (%)", fontsize=9)
        all_axes[row][0].set_title("mean speculation length (tokens)", fontsize=9)
        all_axes[row][0].set_ylabel(f"{titles[kind]}\n{_label(maps['upwards'])}", fontsize=9)
        for axes in all_axes[row]:
            _mark_few(axes, counts, few)
            _ticks(axes, maps)
        figure.colorbar(lengths, ax=all_axes[row][0], shrink=0.8)
        figure.colorbar(shares, ax=list(all_axes[row][1:]), shrink=0.8)
    for axes in all_axes[-1]:
        axes.set_xlabel(_label(maps["across"]), fontsize=9)
    figure.suptitle(f"{_title(result)}; hatched: fewer than {few} states met", fontsize=10)
    return figure


def _label(axis: Mapping[str, Any]) -> str:
    return str(axis["feature"]) if axis["unit"] in ("1", "0/1") else f"{axis['feature']} ({axis['unit']})"


def _title(result: Mapping[str, Any]) -> str:
    name = str(result["scheduler"])
    name = name if len(name) <= 50 else f"…{name[-49:]}"
    return f"{name} on {result['scenario']['label']}"


def _cells(axes: Axes, values: NDArray[np.float64], most: float, colours: str, form: str) -> Any:
    """Draw cells of equal size with their numbers; the first row is the lowest."""
    axes.set_facecolor(_NOTHING)
    image = axes.imshow(values, cmap=colours, vmin=0.0, vmax=most, aspect="auto", origin="lower")
    small = 7 if max(values.shape) <= 10 else 5
    for (up, side), value in np.ndenumerate(values):
        if np.isfinite(value):
            colour = "white" if value < 0.55 * most else "black"
            axes.text(side, up, format(value, form), ha="center", va="center", fontsize=small, color=colour)
    return image


def _mark_few(axes: Axes, counts: NDArray[np.int64], few: int) -> None:
    from matplotlib.patches import Rectangle

    for (up, side), count in np.ndenumerate(counts):
        if count < few:
            axes.add_patch(
                Rectangle(
                    (side - 0.5, up - 0.5), 1, 1, fill=False, hatch="////", edgecolor="0.6", linewidth=0.0
                )
            )


def _ticks(axes: Axes, maps: Mapping[str, Any]) -> None:
    """Write the edges of the cells between them."""
    across, upwards = (maps[name]["edges"] for name in ("across", "upwards"))
    axes.set_xticks(np.arange(len(across)) - 0.5, [f"{edge:.3g}" for edge in across], rotation=60, fontsize=7)
    axes.set_yticks(np.arange(len(upwards)) - 0.5, [f"{edge:.3g}" for edge in upwards], fontsize=7)


def _importance(result: Mapping[str, Any]) -> Figure:
    importance = result["importance"]
    features = list(importance["features"].items())
    entries = [*importance["groups"].items(), *features[:_MOST_FEATURES]]
    colours = [_BAR] * len(importance["groups"]) + [_SINGLE] * min(len(features), _MOST_FEATURES)
    simulated = any("simulated" in entry for _, entry in entries)
    figure = _new(10.0 if simulated else 6.0, 1.2 + 0.26 * len(entries))
    panels = figure.subplots(1, 2 if simulated else 1, sharey=True, squeeze=False)[0]
    names = [name for name, _ in entries]
    places = np.arange(len(entries))
    panels[0].barh(places, [100.0 * entry["changed"]["decision"] for _, entry in entries], color=colours)
    panels[0].set_yticks(places, names, fontsize=8)
    panels[0].set_xlabel("decisions that change when it is permuted (%)", fontsize=9)
    panels[0].invert_yaxis()
    if simulated:
        _costs(panels[1], places, [entry.get("simulated") for _, entry in entries])
        how = {"shuffle": "drawn at random", "mean": "at its mean"}[result["settings"]["replace"]]
        metric = result["objective"]["metric"]
        panels[1].set_xlabel(f"{metric}: how much worse with it {how} (%)", fontsize=9)
    for axes in panels:
        axes.grid(axis="x", color="0.9")
        axes.set_axisbelow(True)
        axes.axhline(len(importance["groups"]) - 0.5, color="0.6", linewidth=0.8)
    figure.suptitle(f"{_title(result)}: groups of features, and single ones", fontsize=10)
    return figure


def _costs(axes: Axes, places: NDArray[np.int64], costs: Sequence[Mapping[str, Any] | None]) -> None:
    """Draw costs with their intervals; what was not played has no mark."""
    axes.axvline(0.0, color="0.5", linewidth=0.8)
    for place, cost in zip(places.tolist(), costs, strict=True):
        if cost is None or cost["cost"] is None:
            continue
        if None not in cost["ci95"]:
            axes.plot([100.0 * each for each in cost["ci95"]], [place, place], color=_LINE, linewidth=1.5)
        axes.plot(100.0 * cost["cost"], place, "o", color=_LINE, markersize=4)


def _trees(result: Mapping[str, Any]) -> Figure:
    trees = result["trees"]
    simulated = all("simulated" in tree for tree in trees)
    figure = _new(9.0 if simulated else 5.0, 3.4)
    panels = figure.subplots(1, 2 if simulated else 1, squeeze=False)[0]
    leaves = [tree["leaves"] for tree in trees]
    for what, colour, mark, words in (
        ("decision", _BAR, "o-", "whole decision"),
        ("gamma", _LINE, "s--", "speculation length"),
        ("place", "#009E73", "^:", "place and target"),
    ):
        shares = [100.0 * tree["agreement"][what] for tree in trees]
        panels[0].plot(leaves, shares, mark, color=colour, label=words, markersize=4)
    panels[0].set_ylabel("states in which tree and scheduler agree (%)", fontsize=9)
    panels[0].legend(fontsize=8, frameon=False)
    if simulated:
        panels[1].axhline(0.0, color="0.5", linewidth=0.8)
        for tree in trees:
            cost = tree["simulated"]
            if cost["cost"] is None:
                continue
            if None not in cost["ci95"]:
                interval = [100.0 * each for each in cost["ci95"]]
                panels[1].plot([tree["leaves"]] * 2, interval, color=_LINE, linewidth=1.5)
            panels[1].plot(tree["leaves"], 100.0 * cost["cost"], "o", color=_LINE, markersize=4)
        panels[1].set_ylabel(f"{result['objective']['metric']}: how much worse (%)", fontsize=9)
    for axes in panels:
        axes.set_xlabel("leaves", fontsize=9)
        axes.grid(color="0.9")
        axes.set_axisbelow(True)
    figure.suptitle(f"{_title(result)}: trees in its place", fontsize=10)
    return figure
