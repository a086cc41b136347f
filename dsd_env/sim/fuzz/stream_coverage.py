"""Records what happened to streams of drafts in an episode."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from dsd_env.laws.streams import UNDER_WAY
from dsd_env.network import fault_members
from dsd_env.scenario import Scenario
from dsd_env.sim.events import Event, EventKind


@dataclass
class _Open:
    """A stream that the log says is open.

    Attributes:
        target: Its target.
        site: Site of its drafter, counted as drafters are; -1 before its first draft.
        silent: Its drafter has crashed.
        preempted: The target has taken its KV.
        up: When the messages to the target arrive that are under way.
        down: When the answer's tokens arrive at the client that are on their way.
    """

    target: int
    site: int = -1
    silent: bool = False
    preempted: bool = False
    up: deque[float] = field(default_factory=deque)
    down: deque[float] = field(default_factory=deque)


class StreamWatch:
    """Reads an event log for what streams have met."""

    def __init__(self, scenario: Scenario) -> None:
        """Number the sites of a scenario: devices first, then edge servers, then targets."""
        self._devices = sum(device.count for device in scenario.devices.values())
        self._edges = sum(edge.count for edge in scenario.edge_servers.values())
        self._sites = self._devices + self._edges + scenario.n_targets
        self._members = fault_members(scenario)
        self._open: dict[int, _Open] = {}
        self._seen: set[str] = set()

    def read(self, events: Sequence[Event]) -> set[str]:
        """Return what was met, each as ``stream:...``."""
        sends: dict[int, Event] = {}
        committed: Event | None = None
        for event in events:
            if event.kind == EventKind.SEND:
                sends[event.request] = event
                if committed is not None and committed.request == event.request:
                    self._result(event)
            committed = event if event.kind == EventKind.COMMIT else None
            if event.kind in (EventKind.FAULT, EventKind.RETURN):
                self._fault(event)
            elif event.kind == EventKind.STREAM_OPEN:
                self._open[event.request] = _Open(event.entity)
            elif (stream := self._open.get(event.request)) is not None:
                self._of_stream(event, stream, sends.get(event.request))
        return {f"stream:{name}" for name in self._seen}

    def _of_stream(self, event: Event, stream: _Open, sent: Event | None) -> None:
        match event.kind:
            case EventKind.STREAM_CLOSE:
                if stream.silent:
                    self._seen.add("closed, drafter down")
                del self._open[event.request]
            case EventKind.COMPLETE:
                del self._open[event.request]
            case EventKind.TAKEOVER:
                self._seen.add("idle take-over")
                if stream.preempted:
                    self._seen.add("idle take-over, preempted")
            case EventKind.PREEMPT:
                stream.preempted = True
                self._seen.add("preempted")
            case EventKind.ADMIT:
                stream.preempted = False
            case EventKind.DRAFT_START:
                stream.site = event.entity % self._sites
            case EventKind.DRAFT_SENT:
                if stream.preempted:
                    self._seen.add("drafts sent while preempted")
                while stream.up and stream.up[0] <= event.time_s:
                    stream.up.popleft()
                if sent is not None and sent.time_s == event.time_s:
                    stream.up.append(sent.value)
                if len(stream.up) == UNDER_WAY:
                    self._seen.add("socket full of drafts")

    def _result(self, sent: Event) -> None:
        stream = self._open.get(sent.request)
        if stream is None or not 0 <= stream.site < self._devices:
            return
        while stream.down and stream.down[0] <= sent.time_s:
            stream.down.popleft()
        stream.down.append(sent.value)
        if len(stream.down) > UNDER_WAY:
            self._seen.add("results left out")

    def _fault(self, event: Event) -> None:
        member = self._members[int(event.value)]
        if not member.crashes:
            return
        begins = event.kind == EventKind.FAULT
        site = {"device": 0, "edge": self._devices}.get(member.site, self._devices + self._edges)
        hit: dict[bool, int] = defaultdict(int)
        for number, stream in list(self._open.items()):
            if member.site == "target" and begins and stream.target == member.entity:
                self._seen.add("target crashes")
                del self._open[number]
            elif stream.site == site + member.entity and stream.silent != begins:
                stream.silent = begins
                hit[begins] += 1
        if hit[True]:
            self._seen.add("drafter crashes")
        if hit[True] > 1:
            self._seen.add("drafter of several crashes")
        if hit[False]:
            self._seen.add("drafter returns")
