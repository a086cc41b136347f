"""Pictures of a running episode: a text for terminals, a timeline as an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from dsd_env.control import CandidateView, DecisionView, DrafterKind, Site
from dsd_env.laws.constants import NO_BOUND_S
from dsd_env.scenario import Scenario
from dsd_env.sim import Span

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WINDOW_S = 1.5
"""Simulated time that the timeline shows."""
MAX_DEVICES = 9
"""Devices that the timeline shows: the busiest of the window."""
_WIDTH_PX, _HEIGHT_PX, _DPI = 1280, 800, 100

# Okabe & Ito's palette, readable with every common form of colour blindness.
_COLOURS = {
    "draft": "#0072B2",
    "prefill": "#E69F00",
    "verify": "#009E73",
    "colocated": "#CC79A7",
    "plain": "#8C8C8C",
    "message": "#56B4E9",
}
_LABELS = {
    "draft": "draft",
    "prefill": "prefill",
    "verify": "verify",
    "colocated": "draft and verify at the target",
    "plain": "plain decoding",
    "message": "message",
}
_OTHER = "#D55E00"
_SITE_NAMES = {Site.COLOCATED: "co-located", Site.OWN_DEVICE: "own device", Site.EDGE_SERVER: "edge server"}


def render_text(scenario: Scenario, view: DecisionView, now_s: float) -> str:
    """Return the decision now due as text: system, request, own site, candidates.

    Args:
        scenario: The scenario.
        view: The decision.
        now_s: Simulated time.
    """
    request, link, drafter = view.request, view.link, view.drafter
    stage = "admission" if request.is_admission else f"round {request.rounds + 1}"
    where = {
        Site.COLOCATED: "at the target",
        Site.OWN_DEVICE: "on the device",
        Site.EDGE_SERVER: "on the edge server",
    }[request.control_site]
    recent = " ".join(
        f"{accepted}/{drafted}"
        for drafted, accepted in zip(request.recent_gammas, request.recent_accepted, strict=True)
        if drafted
    )
    draft = (
        f"{1e3 * drafter.step_s:.1f} ms/step, lag {drafter.kv_lag_tokens}" if drafter.available else "none"
    )
    bound = f", bound {1e3 * request.slo_tpot_s:.0f} ms" if request.slo_tpot_s < NO_BOUND_S else ""
    lines = [
        f"{scenario.name}  t = {now_s:.3f} s   {view.system.active_requests} active requests, "
        f"{view.system.tokens_per_s:.0f} tokens/s, {view.system.arrivals_per_s:.1f} arrivals/s",
        f"request {view.request_id} of device {view.device}: {stage}, decided {where}; "
        f"{request.prompt_tokens} + {request.committed_tokens} tokens, age {request.age_s:.2f} s",
        f"  acceptance {request.acceptance_rate:.2f} (accepted/drafted, newest first: {recent or 'none'}); "
        f"TPOT {1e3 * request.tpot_s:.0f} ms{bound}",
        f"  link RTT {1e3 * link.rtt_s:.1f} ms ± {1e3 * link.rtt_deviation_s:.1f}; own drafter: {draft}",
        "  #  draft site      target  queued  running  iteration     RTT  draft step",
    ]
    lines += [_candidate_line(index, candidate) for index, candidate in enumerate(view.candidates)]
    return "\n".join(lines) + "\n"


def _candidate_line(index: int, candidate: CandidateView) -> str:
    name = _SITE_NAMES[candidate.site]
    if candidate.site == Site.EDGE_SERVER:
        name = f"{name} {candidate.edge_server}"
    if candidate.drafter > 0 or candidate.kind != DrafterKind.MODEL:
        name = f"{name}, {candidate.model}"
    if candidate.fanout:
        name = f"{name} + {candidate.fanout}x{candidate.depth} branches"
    target = candidate.target
    step = f"{1e3 * candidate.draft_step_s:7.1f} ms" if candidate.valid else "  cannot draft"
    mark = "*" if candidate.is_current else " "
    return (
        f" {mark}{index:2d}  {name:<14s}  {target.index:6d}  {target.queued:6d}  {target.running:7d}  "
        f"{1e3 * target.iteration_s:6.1f} ms  {1e3 * candidate.rtt_s:4.0f} ms  {step}"
    )


def render_timeline(
    scenario: Scenario, view: DecisionView, spans: Sequence[Span], now_s: float, window_s: float = WINDOW_S
) -> NDArray[np.uint8]:
    """Return a timeline of targets, edge servers, and the busiest devices with their links.

    Args:
        scenario: The scenario.
        view: The decision now due; its request is drawn with a dark edge.
        spans: What happened so far.
        now_s: Simulated time, the right end of the axis.
        window_s: Simulated time shown.

    Returns:
        An image, uint8, shape (800, 1280, 3).

    Raises:
        gymnasium.error.DependencyNotInstalled: matplotlib is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise gym.error.DependencyNotInstalled(
            'matplotlib is not installed; run `pip install "dsd-env[plot]"`'
        ) from error
    start_s = max(0.0, now_s - window_s)
    shown = [span for span in spans if span.end_s > start_s and span.start_s < now_s]
    figure = Figure(figsize=(_WIDTH_PX / _DPI, _HEIGHT_PX / _DPI), dpi=_DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0.105, 0.075, 0.88, 0.80))
    _draw(axes, scenario, _rows(scenario, view, shown), shown, view.request_id)
    axes.set_xlim(start_s, start_s + window_s)
    axes.axvline(now_s, color="#333333", linewidth=1.0)
    axes.set_xlabel("simulated time in s")
    title = (
        f"{scenario.name}: t = {now_s:.2f} s, request {view.request_id} of device {view.device} to be decided"
    )
    figure.text(0.105, 0.955, title, fontsize=13, fontweight="bold", color="#222222")
    system = view.system
    figure.text(
        0.985,
        0.955,
        f"{system.active_requests} active requests   {system.tokens_per_s:.0f} tokens/s",
        fontsize=11,
        ha="right",
        color="#444444",
    )
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()


def _rows(scenario: Scenario, view: DecisionView, shown: Sequence[Span]) -> list[str]:
    """Return the servers' lanes and those of the busiest devices, the deciding one always among them.

    The classes take turns, because otherwise the slowest devices, always busy, would crowd out the rest.
    """
    busy: dict[int, float] = {}
    for span in shown:
        prefix, _, number = span.lane.partition(":")
        if prefix in ("device", "up", "down", "lan"):
            busy[int(number)] = busy.get(int(number), 0.0) + span.end_s - span.start_s
    ranks: dict[str, int] = {}
    turns: list[tuple[int, int]] = []
    for device in sorted(busy, key=lambda device: (-busy[device], device)):
        name = _class_name(scenario, device)
        ranks[name] = ranks.get(name, 0) + 1
        turns.append((ranks[name], device))
    devices = [device for _, device in sorted(turns)][:MAX_DEVICES]
    if view.device not in devices:
        devices = [*devices[: MAX_DEVICES - 1], view.device]
    rows = [f"target:{number}" for number in range(scenario.n_targets)]
    rows += [f"edge:{number}" for number in range(scenario.n_edge_servers)]
    rows += [f"device:{number}" for number in sorted(devices)]
    return rows


def _class_name(scenario: Scenario, device: int) -> str:
    last = 0
    for name, device_class in scenario.devices.items():
        last += device_class.count
        if device < last:
            return name
    return "device"


def _label(scenario: Scenario, lane: str) -> str:
    prefix, _, number = lane.partition(":")
    return f"{_class_name(scenario, int(number)) if prefix == 'device' else prefix} {number}"


def _draw(
    axes: Axes, scenario: Scenario, rows: Sequence[str], shown: Sequence[Span], request_id: int
) -> None:
    from matplotlib.collections import PolyCollection
    from matplotlib.patches import Patch

    # A device's row has three parts: drafting in the middle, messages from it above, to it below.
    places: dict[str, tuple[float, float]] = {}
    for position, lane in enumerate(rows):
        prefix, _, number = lane.partition(":")
        if prefix == "device":
            places[lane] = (position - 0.14, position + 0.14)
            places[f"up:{number}"] = places[f"lan:{number}"] = (position - 0.40, position - 0.20)
            places[f"down:{number}"] = (position + 0.20, position + 0.40)
        elif prefix == "edge":
            places[lane] = (position - 0.18, position + 0.40)
            places[f"backhaul:{number}"] = (position - 0.40, position - 0.24)
        else:
            places[lane] = (position - 0.40, position + 0.40)
    boxes: dict[tuple[str, bool], list[list[tuple[float, float]]]] = {}
    for span in shown:
        place = places.get(span.lane)
        if place is None:
            continue
        low, high = place
        left, right = span.start_s, span.end_s
        corners = [(left, low), (left, high), (right, high), (right, low)]
        boxes.setdefault((span.kind, span.request == request_id), []).append(corners)
    for (kind, own), corners_of in boxes.items():
        axes.add_collection(
            PolyCollection(
                corners_of,
                facecolors=_COLOURS.get(kind, _OTHER),
                edgecolors="#111111" if own else "white",
                linewidths=1.3 if own else 0.3,
                zorder=3 if own else 2,
            )
        )
    for position in range(len(rows)):
        if position % 2 == 0:
            axes.axhspan(position - 0.5, position + 0.5, color="#F4F5F7", zorder=0)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), [_label(scenario, lane) for lane in rows], fontsize=10)
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
