"""Patience of targets with their drafters, and of clients with their results."""

from __future__ import annotations

from dsd_env.sim.entities import Request
from dsd_env.sim.events import EventKind, Order
from dsd_env.sim.reference.episode import Episode, Part
from dsd_env.sim.reference.links import Links
from dsd_env.sim.reference.requests import Interruption, Requests


class Timers(Part):
    """Waits a limited time for drafts and for results."""

    def __init__(self, episode: Episode, links: Links, requests: Requests) -> None:
        """Take part in an episode."""
        super().__init__(episode)
        self._links = links
        self._requests = requests

    def expect_drafts(self, request: Request) -> None:
        """Start the target's patience: it has sent a result and waits a limited time for the next drafts."""
        patience_s = self._protocol.patience_s
        if patience_s is not None:
            served = request.served
            self._env.call_at(
                self._now_s + patience_s,
                Order.TIMEOUT,
                2 * request.number,
                lambda: self._patience_ends(request, served),
            )

    def _patience_ends(self, request: Request, served: int) -> None:
        if request.served == served and not request.finished:
            self._totals.takeovers += 1
            self._log(EventKind.TAKEOVER, request.target, request, float(self._protocol.patience_s or 0.0))
            self._requests.interrupt(request, Interruption.TAKEOVER)

    def expect_result(self, request: Request, size_bytes: float, target: int) -> None:
        """Start the device's time-out: it has sent drafts and sends them again if no result comes in time."""
        request.exchange += 1
        if self._protocol.client_timeout_s is not None:
            wait_s = self._protocol.client_timeout_s
            self._send_again_after(request, size_bytes, target, wait_s, request.exchange)

    def _send_again_after(
        self, request: Request, payload_bytes: float, target: int, wait_s: float, exchange: int
    ) -> None:
        def send_again() -> None:
            if request.exchange != exchange or request.finished:
                return
            if request.device.down_faults == 0:
                arrives_s = self._links.send_up(request.device, payload_bytes, request, target)
                self._env.call_at(arrives_s, Order.DELIVERY, request.number, lambda: self._duplicate(request))
            self._send_again_after(request, payload_bytes, target, 2.0 * wait_s, exchange)

        self._env.call_at(self._now_s + wait_s, Order.TIMEOUT, 2 * request.number + 1, send_again)

    def _duplicate(self, request: Request) -> None:
        """Count a message whose round number the target has seen before; the target ignores it."""
        self._totals.duplicate_messages += 1
        self._log(EventKind.DUPLICATE, -1, request, 0)
