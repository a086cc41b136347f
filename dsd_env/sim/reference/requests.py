"""The life of a request, apart from its protocol: it asks for decisions, gives up, completes, is counted."""

from __future__ import annotations

from collections.abc import Generator
from enum import Enum, auto

import simpy

from dsd_env.control.view import DecisionView, Site
from dsd_env.sim.entities import Device, Request
from dsd_env.sim.events import EventKind, Order
from dsd_env.sim.metrics import meets_slo
from dsd_env.sim.reference.accounts import Accounts
from dsd_env.sim.reference.drafters import Drafters
from dsd_env.sim.reference.environment import Process
from dsd_env.sim.reference.episode import Episode, Part
from dsd_env.sim.reference.links import Links
from dsd_env.sim.reference.resolution import Resolution
from dsd_env.workload import RequestSpec


class Interruption(Enum):
    """Why a request stops what it is doing."""

    TAKEOVER = auto()
    TARGET_LOST = auto()


class Requests(Part):
    """Lets requests arrive, ask, give up and complete.

    Attributes:
        pending: The request whose decision is due, the event of its answer, and what its controller knows.
    """

    def __init__(self, episode: Episode, accounts: Accounts, links: Links, drafters: Drafters) -> None:
        """Take part in an episode."""
        super().__init__(episode)
        self._accounts = accounts
        self._links = links
        self._drafters = drafters
        self.pending: tuple[Request, simpy.Event, DecisionView] | None = None
        # Places that are down and where a decision is to be taken: the events of their return.
        self._back: dict[tuple[Site, int], simpy.Event] = {}

    def arrive(self, device: Device, spec: RequestSpec) -> Request:
        """Make a request that arrives now."""
        request = Request(
            number=self._accounts.count_arrival(),
            spec=spec,
            device=device,
            arrival_s=self._now_s,
            control=(Site.OWN_DEVICE, device.number),
            acceptance={},
            sources=self._world.sources,
        )
        self._episode.active[request.number] = request
        self._log(EventKind.ARRIVAL, device.number, request, spec.prompt_tokens)
        return request

    def ask(self, request: Request) -> Generator[simpy.Event, object, Resolution]:
        """Ask: wait for the request's turn among the decisions of this instant, then for the answer."""
        while self.is_down(request.control):
            yield self._back.setdefault(request.control, self._env.event())
        yield self._env.at(self._now_s, Order.DECISION, request.number)
        answer = self._env.event()
        view = self._episode.telemetry.view(request, self._now_s)
        self.pending = (request, answer, view)
        resolution = yield answer
        assert isinstance(resolution, Resolution)
        request.decisions += 1
        self._log(EventKind.DECISION, resolution.target, request, resolution.gamma)
        if self._protocol.decision_latency_s > 0.0:
            yield self._env.at(
                self._now_s + self._protocol.decision_latency_s, Order.DELIVERY, request.number
            )
        return resolution

    def is_down(self, place: tuple[Site, int]) -> bool:
        """Return whether a place is down, so that no decision can be taken there.

        A target never counts as down here: its front end takes the decisions, and that does not crash.
        """
        site, number = place
        if site == Site.OWN_DEVICE:
            return self._world.devices[number].down_faults > 0
        return site == Site.EDGE_SERVER and self._world.edges[number][0].own_server.down > 0

    def returned(self, place: tuple[Site, int]) -> None:
        """Let those go on who wait for a place to return, unless it is still down."""
        if not self.is_down(place) and place in self._back:
            self._back.pop(place).succeed()

    def complete(self, request: Request) -> None:
        """Let a request whose last token has arrived at its client leave; the episode may end with it."""
        now_s = self._now_s
        self._accounts.accrue(now_s)
        if request.ahead is not None:
            self._drafters.roll_back(request.ahead)
            request.ahead = None
        request.completed_s = now_s
        del self._episode.active[request.number]
        self._accounts.count_completion(request)
        self._episode.telemetry.count_completed(request.spec.slo_class, meets_slo(request))
        self._log(EventKind.COMPLETE, request.device.number, request, now_s - request.arrival_s)
        if self.arrivals_are_over() and self._accounts.in_system == 0:
            self._episode.terminated = True
            self._episode.truncated = False

    def arrivals_are_over(self, before: int = 0) -> bool:
        """Return whether nobody asks any more, or will not after so many more requests."""
        total = self._episode.workload.total_requests
        return total is not None and self._accounts.arrived + before >= total

    def interrupt(self, request: Request, cause: Interruption) -> None:
        """Stop what a request is doing; its process goes on with what the cause calls for."""
        self.abandon(request)
        assert request.process is not None
        request.process.interrupt(cause)

    def abandon(self, request: Request) -> None:
        """Cancel a request's drafts and messages under way; a message already sent will arrive too late."""
        request.served += 1
        request.exchange += 1
        if request.stream is not None:
            for _ in request.stream.messages:
                self._late(request)
            request.stream.stop()
        if request.in_flight is not None:
            callbacks = request.in_flight.callbacks
            assert callbacks is not None
            callbacks.append(lambda _event: self._late(request))
            request.in_flight = None
        if request.draft is not None:
            self._totals.discarded += self._drafters.withdraw(request.draft)
            request.draft = None
        if request.ahead is not None:
            self._drafters.roll_back(request.ahead)
            request.ahead = None
        if request.head_start is not None:
            self._drafters.discard_head_start(request)

    def _late(self, request: Request) -> None:
        self._totals.late_messages += 1
        self._log(EventKind.LATE, -1, request, 0)

    def reconnect(self, request: Request) -> Process:
        """Let the front end notice that the target is down and tell the client, who decides again."""
        detected_s = self._now_s + self._protocol.crash_detection_s
        yield self._env.at(detected_s, Order.DELIVERY, request.number)
        arrives_s = self._links.send_down(request.device, 0.0, request, request.lost_target)
        yield self._env.at(arrives_s, Order.DELIVERY, request.number)
        request.control = (Site.OWN_DEVICE, request.device.number)
