"""Rendering of a running episode: text for terminals, and a timeline as an image."""

from __future__ import annotations

from collections.abc import Sequence

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from dsd_env.control import CandidateView, DecisionView, DrafterKind, Site
from dsd_env.laws.constants import NO_BOUND_S
from dsd_env.scenario import Scenario
from dsd_env.sim import Event
from dsd_env.sim.timeline.picture import draw_picture
from dsd_env.sim.timeline.places import Places
from dsd_env.sim.timeline.reading import Reader

_SITE_NAMES = {Site.COLOCATED: "co-located", Site.OWN_DEVICE: "own device", Site.EDGE_SERVER: "edge server"}


def render_text(scenario: Scenario, view: DecisionView, now_s: float) -> str:
    """Return the decision now due as text: system, request, own link and drafter, candidates.

    Args:
        scenario: The scenario.
        view: View of the decision.
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


class Film:
    """Draws pictures of one episode after another from their event logs, reading each event once."""

    def __init__(self, scenario: Scenario) -> None:
        """Prepare what all episodes of the scenario share."""
        self._scenario, self._places = scenario, Places(scenario)
        self._events: Sequence[Event] = ()
        self._reader, self._read = Reader(scenario), 0

    def picture(self, view: DecisionView, events: Sequence[Event], now_s: float) -> NDArray[np.uint8]:
        """Return a timeline of targets, edge servers, and the busiest devices with their links.

        Args:
            view: View of the decision now due, whose request is drawn with a dark edge.
            events: The episode's event log so far, from time 0. Within an episode, pass the same list, which
                grows; another list begins another episode.
            now_s: Simulated time at the right end of the axis.

        Returns:
            An image, uint8, shape (800, 1280, 3).

        Raises:
            gymnasium.error.DependencyNotInstalled: matplotlib is missing.
        """
        if events is not self._events:
            self._events, self._reader, self._read = events, Reader(self._scenario), 0
        for event in events[self._read :]:
            self._reader.take(event)
        self._read = len(events)
        due = f"request {view.request_id} of device {view.device} to be decided"
        try:
            return draw_picture(
                self._places,
                self._reader.slices,
                now_s,
                f"{self._scenario.name}: t = {now_s:.2f} s, {due}",
                f"{view.system.active_requests} active requests   {view.system.tokens_per_s:.0f} tokens/s",
                request=view.request_id,
                device=view.device,
            )
        except ImportError as error:
            raise gym.error.DependencyNotInstalled(
                'matplotlib is not installed; run `pip install "dsd-env[plot]"`'
            ) from error
