"""Pictures of a timeline: targets, edge servers and the busiest devices with their links, for a second."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dsd_env.sim.timeline.places import (
    BACKHAUL,
    DEVICE,
    DOWN,
    DRAFTERS,
    EDGE,
    ITERATIONS,
    LAN_DOWN,
    LAN_UP,
    TARGET,
    UP,
    Places,
    Site,
)
from dsd_env.sim.timeline.reading import NO_REQUEST, Slice

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WINDOW_S = 1.5
"""Simulated time that a picture shows."""
MAX_DEVICES = 9
"""Devices that it shows: the busiest of the window."""
WIDTH_PX, HEIGHT_PX = 1280, 800
AXES = (0.115, 0.075, 0.87, 0.80)
"""Where its axes are: left, bottom, width and height as shares of the picture."""
_DPI = 100

# Okabe & Ito's palette, readable with every common form of colour blindness.
_COLOURS = {
    "draft": "#0072B2",
    "prefill": "#E69F00",
    "verify": "#009E73",
    "colocated": "#CC79A7",
    "plain": "#8C8C8C",
    "message": "#56B4E9",
}
BAND = "#F4F5F7"
"""Ground of every other row, from the first one on."""
_LABELS = {
    "draft": "draft",
    "prefill": "prefill",
    "verify": "verify",
    "colocated": "draft and verify at the target",
    "plain": "plain decoding",
    "message": "message",
}
_MESSAGES = (UP, DOWN, LAN_UP, LAN_DOWN, BACKHAUL)
# Where in its site's row a track is drawn, from -0.5 at the top to 0.5. Drafting is in the middle of a
# device's row, messages from it above, to it below. A target's own drafter is below its iterations.
_STRIPS = {
    DEVICE: {
        DRAFTERS: (-0.14, 0.14),
        UP: (-0.40, -0.20),
        LAN_UP: (-0.40, -0.20),
        DOWN: (0.20, 0.40),
        LAN_DOWN: (0.20, 0.40),
    },
    EDGE: {DRAFTERS: (-0.18, 0.40), BACKHAUL: (-0.40, -0.24)},
    TARGET: {ITERATIONS: (-0.40, 0.40)},
}
_BESIDE = {ITERATIONS: (-0.40, 0.12), DRAFTERS: (0.18, 0.40)}
"""The strips of a target that has a drafter with hardware of its own."""


def palette() -> list[tuple[int, int, int]]:
    """Return the colours of pictures, for formats of few: those of the marks, softer ones of edges, greys."""
    marks = [tuple(bytes.fromhex(colour[1:])) for colour in (*_COLOURS.values(), BAND)]
    soft = [
        tuple(round(255 - share * (255 - part)) for part in colour)
        for colour in marks
        for share in (0.75, 0.5, 0.25)
    ]
    greys = [(level, level, level) for level in range(0, 256, 15)]
    return [(red, green, blue) for red, green, blue in (*marks, *soft, *greys)]


def draw_picture(
    places: Places,
    slices: Iterable[Slice],
    now_s: float,
    title: str,
    note: str = "",
    *,
    request: int = NO_REQUEST,
    device: int | None = None,
    window_s: float = WINDOW_S,
) -> NDArray[np.uint8]:
    """Return a picture of what has happened by a time.

    Args:
        places: The sites.
        slices: What took a while, in order of beginning.
        now_s: The time, where the axis ends once the window is full.
        title: Its title.
        note: Stands at the right of the title.
        request: This request's drafts and messages get a dark edge.
        device: This device is shown whether it is busy or not.
        window_s: Simulated time shown.

    Returns:
        An image, uint8, shape (800, 1280, 3).

    Raises:
        ModuleNotFoundError: matplotlib is missing.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    start_s = max(0.0, now_s - window_s)
    shown = _shown(slices, start_s, now_s)
    figure = Figure(figsize=(WIDTH_PX / _DPI, HEIGHT_PX / _DPI), dpi=_DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes(AXES)
    rows = _rows(places, shown, device, start_s, now_s)
    _draw(axes, places, rows, shown, now_s, request)
    axes.set_xlim(start_s, start_s + window_s)
    axes.axvline(now_s, color="#333333", linewidth=1.0)
    axes.set_xlabel("simulated time in s")
    figure.text(AXES[0], 0.955, title, fontsize=13, fontweight="bold", color="#222222")
    figure.text(0.985, 0.955, note, fontsize=11, ha="right", color="#444444")
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()


def rows_of(
    places: Places,
    slices: Iterable[Slice],
    now_s: float,
    *,
    device: int | None = None,
    window_s: float = WINDOW_S,
) -> list[Site]:
    """Return the sites that a picture has a row of, from the top down; rows are of one height.

    Args:
        places: As of :func:`draw_picture`, like the others.
        slices: What took a while.
        now_s: The time.
        device: This device is shown whether it is busy or not.
        window_s: Simulated time shown.
    """
    start_s = max(0.0, now_s - window_s)
    return _rows(places, _shown(slices, start_s, now_s), device, start_s, now_s)


def _shown(slices: Iterable[Slice], start_s: float, now_s: float) -> list[Slice]:
    """Return what is drawn of a window."""
    return [one for one in slices if one.start_s < now_s and not one.end_s <= start_s and _kind(one)]


def _kind(one: Slice) -> str:
    """Return what a slice is coloured by; "" if it is not drawn."""
    if one.track.rank == ITERATIONS:
        return one.work or "prefill"
    if one.track.rank == DRAFTERS:
        return "prefill" if one.name == "prefill" else "draft"
    return "message" if one.track.rank in _MESSAGES else ""


def _rows(
    places: Places, shown: Sequence[Slice], device: int | None, start_s: float, now_s: float
) -> list[Site]:
    """Return the servers, and the busiest devices, a given one always among them.

    The classes take turns, because otherwise the slowest devices, always busy, would crowd out the rest.
    """
    busy_s: dict[int, float] = {}
    for one in shown:
        if one.track.site.kind == DEVICE:
            number = one.track.site.number
            busy_s[number] = busy_s.get(number, 0.0) + _end(one, now_s) - max(one.start_s, start_s)
    ranks: dict[str, int] = {}
    turns: list[tuple[int, int]] = []
    for number in sorted(busy_s, key=lambda number: (-busy_s[number], number)):
        name = places.class_of(Site(DEVICE, number))
        ranks[name] = ranks.get(name, 0) + 1
        turns.append((ranks[name], number))
    devices = [number for _, number in sorted(turns)][:MAX_DEVICES]
    if device is not None and device not in devices:
        devices = [*devices[: MAX_DEVICES - 1], device]
    return [
        *(Site(TARGET, number) for number in range(places.n_targets)),
        *(Site(EDGE, number) for number in range(places.n_edges)),
        *(Site(DEVICE, number) for number in sorted(devices)),
    ]


def _end(one: Slice, now_s: float) -> float:
    """Return where a slice ends by a time: what goes on, and messages under way, end there."""
    return now_s if math.isnan(one.end_s) else min(one.end_s, now_s)


def _draw(
    axes: Axes, places: Places, rows: Sequence[Site], shown: Sequence[Slice], now_s: float, request: int
) -> None:
    from matplotlib.collections import PolyCollection
    from matplotlib.patches import Patch

    position = {site: at for at, site in enumerate(rows)}
    beside = {one.track.site for one in shown if one.track.rank == DRAFTERS and one.track.site.kind == TARGET}
    boxes: dict[tuple[str, bool], list[list[tuple[float, float]]]] = {}
    for one in shown:
        site, rank = one.track.site, one.track.rank
        strips = _BESIDE if site in beside else _STRIPS[site.kind]
        if site not in position or rank not in strips:
            continue
        low, high = (position[site] + edge for edge in strips[rank])
        left, right = one.start_s, _end(one, now_s)
        corners = [(left, low), (left, high), (right, high), (right, low)]
        boxes.setdefault((_kind(one), one.request == request != NO_REQUEST), []).append(corners)
    for (kind, own), corners_of in boxes.items():
        axes.add_collection(
            PolyCollection(
                corners_of,
                facecolors=_COLOURS[kind],
                edgecolors="#111111" if own else "white",
                linewidths=1.3 if own else 0.3,
                zorder=3 if own else 2,
            )
        )
    for at in range(0, len(rows), 2):
        axes.axhspan(at - 0.5, at + 0.5, color=BAND, zorder=0)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), [_label(places, site) for site in rows], fontsize=10)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.6, zorder=1)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.legend(
        handles=[Patch(color=_COLOURS[kind], label=_LABELS[kind]) for kind in _COLOURS],
        loc="lower left",
        bbox_to_anchor=(0.0, 1.005),
        ncols=len(_COLOURS),
        frameon=False,
        fontsize=10,
        handlelength=1.2,
        columnspacing=1.4,
        borderaxespad=0.0,
    )


def _label(places: Places, site: Site) -> str:
    return f"{places.class_of(site) if site.kind == DEVICE else site.kind} {site.number}"
