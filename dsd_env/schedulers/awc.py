"""Adaptive window control, as in DSD (arXiv 2511.21669): a network predicts the window."""

from __future__ import annotations

from pathlib import Path

from dsd_env.control import Decision, DecisionView, Site
from dsd_env.paths import config_dir
from dsd_env.scenario import Scenario
from dsd_env.schedulers.awc_network import WindowNetwork, features_of
from dsd_env.schedulers.lengths import remember
from dsd_env.schedulers.rules import batch_size_for, placement_of, plain_placement, stay_or_route

APART: dict[str, tuple[Site, ...]] = {
    "own": (Site.OWN_DEVICE, Site.EDGE_SERVER),
    "edge": (Site.EDGE_SERVER, Site.OWN_DEVICE),
}
"""Draft sites away from the target, in order of preference, by the word for the first."""


def shipped_network() -> Path:
    """Return the folder of the network that is shipped."""
    return config_dir() / "awc" / "core"


def awc_parts(arguments: str) -> tuple[str, Path]:
    """Return the site and the network's folder of ``[SITE][:DIR]``; own, and the shipped one."""
    site, _, folder = arguments.partition(":")
    if site not in APART:
        site, folder = "own", arguments
    return site, Path(folder) if folder else shipped_network()


class _Device:
    """What is remembered of a device: the smoothed lengths, and whether its requests draft at the target."""

    __slots__ = ("fused", "node", "votes", "window")

    def __init__(self) -> None:
        self.window = self.node = -1.0
        self.fused = False
        self.votes = 0


class AwcScheduler:
    """Drafts as far ahead as a network predicts from queue, acceptance, round trip and time per token.

    Prediction, then four steps as in the paper: the window is cut to its range, smoothed by a running mean,
    held against two bounds that decide between drafting apart from the target and *fused*, beside it (a
    change needs several decisions in a row that speak for it), and rounded to the nearest listed length. The
    state belongs to a device, whose requests follow one another. Where nothing can draft at the preferred
    sites, the request is fused; where nothing drafts beside the target, fused means plain decoding.
    Departures from the paper: the network gives the fused length as well; lengths are learned as logarithms.

    Like the bandits it depends on the views since `reset`, so it serves one simulation at a time.

    Attributes:
        name: Canonical specification.
        network: The network.
        sites: Draft sites away from the target, in order of preference.
    """

    def __init__(self, name: str, network: WindowNetwork, sites: tuple[Site, ...]) -> None:
        """Take a network."""
        self.name = name
        self.network = network
        self.sites = sites
        self._devices: dict[int, _Device] = {}
        self._last: dict[int, int] = {}

    def reset(self, scenario: Scenario, seed: int) -> None:
        """Forget the last episode."""
        self._devices.clear()
        self._last.clear()

    def decide(self, view: DecisionView) -> Decision:
        """Return the smoothed prediction, where its mode drafts."""
        decision = self._decision(view)
        remember(self._last, view.request_id, decision.gamma)
        return decision

    def _decision(self, view: DecisionView) -> Decision:
        target = stay_or_route(view)
        batch = batch_size_for(view, 1)
        remote = remote_placement(view, self.sites, target)
        node = placement_of(view, Site.COLOCATED, target)
        state = self._devices.setdefault(view.device, _Device())
        fused = True
        if remote is not None:
            self._update(state, view, remote, node)
            fused = state.fused
        if not fused and remote is not None:
            return Decision(_nearest(view.gammas[1:], state.window), batch, remote)
        if node is not None:
            gamma = _nearest(view.gammas, state.node) if state.node >= 0.0 else _nearest(view.gammas, 2.0)
            if gamma > 0:
                return Decision(gamma, batch, node)
        return Decision(0, batch, plain_placement(view, target))

    def _update(self, state: _Device, view: DecisionView, remote: int, node: int | None) -> None:
        """Take a prediction into a device's running means, and change its mode if enough speak for it."""
        control = self.network.description.control
        inputs = features_of(
            view,
            view.candidates[remote],
            None if node is None else view.candidates[node],
            self._last.get(view.request_id, 0),
        )
        window, length = self.network.predict(inputs)
        window = min(max(window, 1.0), float(control.largest))
        length = min(length, float(control.largest))
        if state.window < 0.0:
            state.window, state.node = window, length
            state.fused = window < 0.5 * (control.fused_below + control.apart_above)
            return
        state.window += control.smoothing * (window - state.window)
        state.node += control.smoothing * (length - state.node)
        changes = state.window > control.apart_above if state.fused else state.window < control.fused_below
        state.votes = state.votes + 1 if changes else 0
        if state.votes >= control.hold:
            state.fused, state.votes = not state.fused, 0


def remote_placement(view: DecisionView, sites: tuple[Site, ...], target: int) -> int | None:
    """Return the placement at the first of some sites away from the target that can draft for it, or None."""
    for site in sites:
        placement = placement_of(view, site, target)
        if placement is not None:
            return placement
    return None


def _nearest(lengths: tuple[int, ...], wanted: float) -> int:
    """Return the listed length nearest to a number of tokens, the shorter of two; 0 if none is listed."""
    return min(lengths, key=lambda length: (abs(length - wanted), length), default=0)
