"""Reading an event log: what took how long and where, what happened at once, who was where."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dsd_env.network import fault_members
from dsd_env.scenario import Scenario
from dsd_env.sim.events import Event, EventKind
from dsd_env.sim.timeline.places import (
    TARGET,
    Places,
    Site,
    Track,
    faults_of,
    iterations_of,
    requests_of,
)
from dsd_env.sim.timeline.residence import Residence

NO_REQUEST = -1
WORK = ("prefill", "plain", "verify", "colocated")
"""What an iteration may do for a request: make its first token, decode, verify drafts made elsewhere, or
draft and verify. Of several the last one names the iteration."""


@dataclass(slots=True)
class Slice:
    """Something that took a while.

    Attributes:
        track: Where.
        name: What.
        start_s: When it began.
        end_s: When it ended.
        request: Number of its request; -1: of several, or of none.
        facts: Numbers and words about it.
        requests: Requests that an iteration committed tokens for.
        parts: Parts of it, each within it.
        work: What an iteration did, by what most defines its length: one of :data:`WORK`, or "" as long as
            nothing has been committed in it.
    """

    track: Track
    name: str
    start_s: float
    end_s: float = math.nan
    request: int = NO_REQUEST
    facts: dict[str, Any] = field(default_factory=dict)
    requests: list[int] = field(default_factory=list)
    parts: list[Slice] = field(default_factory=list)
    work: str = ""


@dataclass(frozen=True, slots=True)
class Instant:
    """Something that happened at once.

    Attributes:
        track: Where.
        name: What.
        time_s: When.
        request: Number of its request; -1: none.
        facts: Numbers about it.
        of_site: It concerns the whole site, not only its track.
    """

    track: Track
    name: str
    time_s: float
    request: int = NO_REQUEST
    facts: dict[str, Any] = field(default_factory=dict)
    of_site: bool = False


@dataclass(frozen=True, slots=True)
class Count:
    """Numbers of a target that hold from a time on.

    Attributes:
        site: The target.
        name: What is counted.
        time_s: From when on.
        values: The numbers, by name.
    """

    site: Site
    name: str
    time_s: float
    values: dict[str, int]


@dataclass(slots=True)
class Reading:
    """What an event log says.

    Attributes:
        slices: What took a while, in order of beginning.
        instants: What happened at once, in order.
        counts: The counters of targets.
        end_s: Time of the last event.
    """

    slices: list[Slice]
    instants: list[Instant]
    counts: list[Count]
    end_s: float


def read(scenario: Scenario, events: Sequence[Event]) -> Reading:
    """Read a whole event log, which begins at time 0."""
    reader = Reader(scenario)
    for event in events:
        reader.take(event)
    return reader.result(events[-1].time_s if events else 0.0)


_OF_DRAFTERS = {
    EventKind.ROLLBACK: ("rollback", "tokens"),
    EventKind.STREAM_ROLLBACK: ("stream rollback", "tokens"),
    EventKind.STREAM_CLOSE: ("stream closed", "generations"),
    EventKind.BRANCH_ADOPTED: ("branch adopted", "tokens"),
}
_OF_TARGETS = {
    EventKind.ADMIT: ("admitted", "kv_tokens"),
    EventKind.PREEMPT: ("preempted", "kv_tokens"),
    EventKind.STREAM_OPEN: ("stream opened", "gamma"),
    EventKind.LATE_DRAFTS: ("late drafts", "tokens"),
    EventKind.BRANCH_TAKEN: ("branch taken", "tokens"),
    EventKind.TAKEOVER: ("take-over", "patience_s"),
}
"""Instants: what they are called, and what their value says."""


class Acknowledgements:
    """Tells acknowledgements of tokens from other messages.

    A device sends one when tokens come that are timed. Which are, follows from the log: the first ones that
    are sent to a device while none are timed.
    """

    def __init__(self, n_devices: int) -> None:
        """Begin with nothing timed."""
        self._n_devices = n_devices
        self._due: dict[int, tuple[int, float]] = {}
        self._timed_until_s: dict[int, float] = {}

    def has(self, event: Event, before: Event) -> bool:
        """Take in the next message of a request; return whether it is an acknowledgement.

        Args:
            event: The message.
            before: What happened to the request before it.
        """
        device, channel = divmod(event.entity, 4)
        if device >= self._n_devices:
            return False
        if channel == 1 and before.kind == EventKind.COMMIT:
            if device not in self._due and event.time_s > self._timed_until_s.get(device, -1.0):
                self._due[device] = event.request, event.value
        elif channel == 0 and self._due.get(device) == (event.request, event.time_s):
            del self._due[device]
            self._timed_until_s[device] = event.value
            return True
        return False


class Reader:
    """Takes events one by one.

    Attributes:
        slices: What has begun so far; the end of what goes on is NaN.
    """

    def __init__(self, scenario: Scenario) -> None:
        """Begin at time 0."""
        self._places = Places(scenario)
        self._members = fault_members(scenario)
        targets = [target for target in scenario.targets.values() for _ in range(target.count)]
        self._residence = Residence([target.front_end_s for target in targets])
        self.slices: list[Slice] = []
        self._instants: list[Instant] = []
        self._sequences: list[Count] = []
        self._requests: dict[int, Slice] = {}
        self._drafts: dict[tuple[int, int], Slice] = {}
        self._lost_s: dict[tuple[int, int], float] = {}
        self._iterations: dict[int, Slice] = {}
        self._ended: dict[int, Slice] = {}
        self._down: dict[int, Slice] = {}
        self._before: dict[int, Event] = {}
        self._messages: dict[int, Slice] = {}
        self._admitted_s: dict[int, list[float]] = {}
        self._commits_s: dict[int, tuple[float, float]] = {}
        self._tokens_of: dict[int, int] = {}
        self._stream_of: dict[int, int] = {}
        self._has_drafted: set[tuple[int, int]] = set()
        self._closing: set[int] = set()
        self._gamma_of: dict[int, int] = {}
        self._decided_s: dict[int, tuple[float, float]] = {}
        self._drafted_s: dict[int, float] = {}
        self._protocol = scenario.protocol.kind
        self._acks = Acknowledgements(scenario.n_devices) if scenario.protocol.token_acks else None

    def take(self, event: Event) -> None:
        """Take in the next event."""
        kind, request = event.kind, event.request
        if (
            self._acks is not None
            and kind == EventKind.SEND
            and self._acks.has(event, self._before[event.request])
        ):
            # It is no step of the request's own, which may be over.
            self._begin(self._places.channel(event.entity), "acknowledgement", event, {}).end_s = event.value
            return
        match kind:
            case EventKind.ARRIVAL:
                track = requests_of(event.entity)
                facts = {"prompt_tokens": int(event.value)}
                self._requests[request] = self._begin(track, f"request {request}", event, facts)
                self._tokens_of[request] = 0
            case EventKind.DECISION:
                self._residence.decided(request, event.entity)
                _, before_s = self._decided_s.get(request, (-math.inf, -math.inf))
                self._decided_s[request] = before_s, event.time_s
                self._mark_request(event, "decision", {"gamma": int(event.value), "target": event.entity})
            case EventKind.DRAFT_START:
                self._draft_starts(event)
            case EventKind.DRAFT_END:
                self._draft_ends(event)
            case EventKind.SEND:
                self._send(event)
            case EventKind.ADMIT:
                self._residence.admitted(request, event.entity, event.time_s)
                self._admitted_s.setdefault(request, []).append(event.time_s)
            case EventKind.PREEMPT:
                self._residence.preempted(request, event.entity, event.time_s)
            case EventKind.ITERATION_START:
                facts = {"sequences": int(event.value)}
                track = iterations_of(event.entity)
                self._iterations[event.entity] = self._begin(track, "iteration", event, facts)
                self._sequence_count(event, int(event.value))
            case EventKind.ITERATION_END:
                running = self._iterations.pop(event.entity)
                running.end_s = event.time_s
                running.facts |= {"new_tokens": int(event.value), "committed_tokens": 0}
                self._ended[event.entity] = running
                self._sequence_count(event, 0)
            case EventKind.COMMIT:
                self._commit(event)
            case EventKind.COMPLETE:
                self._complete(event)
            case EventKind.FAULT | EventKind.RETURN:
                self._fault(event)
            case EventKind.TAKEOVER:
                self._residence.taken_over(request)
            case EventKind.LATE:
                self._mark_request(event, "late message", {})
            case EventKind.DUPLICATE:
                self._mark_request(event, "duplicate message", {})
            case EventKind.STREAM_OPEN:
                self._residence.opened(request, event.entity, event.time_s)
                self._stream_of[request] = event.entity
            case EventKind.STREAM_CLOSE:
                self._residence.closed(request)
                self._stream_of.pop(request, None)
                if self._places.site_of_drafter(event.entity).kind != TARGET:
                    self._closing.add(request)
            case EventKind.ENQUEUE:
                self._gamma_of[request] = int(event.value) - 1
            case EventKind.ROLLBACK:
                self._drafted_s.pop(request, None)
            case EventKind.DRAFT_SENT:
                self._draft_sent(event)
            case _:
                pass
        for names, track_of in ((_OF_DRAFTERS, self._places.drafter), (_OF_TARGETS, iterations_of)):
            if kind in names:
                name, fact = names[kind]
                value = event.value if fact.endswith("_s") else int(event.value)
                self._mark(track_of(event.entity), name, event, {fact: value})
        self._before[request] = event

    # ------------------------------------------------------------------ drafters

    def _draft_starts(self, event: Event) -> None:
        key = event.entity, event.request
        self._close_lost(key)
        tokens = int(event.value)
        name = "draft"
        if tokens == 0:
            # A step for branches alone needs drafts of the stream before it; else it is the prompt's.
            is_step = event.request in self._stream_of and key in self._has_drafted
            name = "branches" if is_step else "prefill"
        else:
            self._has_drafted.add(key)
        track = self._places.drafter(event.entity)
        facts = {"model": self._places.model(event.entity)} | ({"asked_tokens": tokens} if tokens else {})
        self._drafts[key] = self._begin(track, name, event, facts, event.request)

    def _draft_ends(self, event: Event) -> None:
        key = event.entity, event.request
        draft = self._drafts.pop(key)
        draft.end_s = event.time_s
        if draft.name == "draft":
            draft.facts["tokens"] = int(event.value)
            self._drafted_s[event.request] = event.time_s
        self._lost_s.pop(key, None)
        site = self._places.site_of_drafter(event.entity)
        if site.kind == TARGET and draft.name == "draft":
            self._residence.drafted(event.request, site.number, event.time_s)

    def _close_lost(self, key: tuple[int, int]) -> None:
        """End a draft that a crash has ended: it is drafted anew, or given up."""
        lost_s = self._lost_s.pop(key, None)
        if lost_s is not None:
            draft = self._drafts.pop(key)
            draft.end_s = lost_s
            draft.facts["lost"] = True

    def _draft_sent(self, event: Event) -> None:
        message = self._messages.get(event.request)
        is_sent = message is not None and message.start_s == event.time_s
        if message is not None and is_sent and message.name in ("message", "drafts"):
            # A step for branches alone adds none to the line of drafts.
            message.name = "branches" if message.facts.get("tokens") == 0 else "drafts"
            message.facts["position"] = int(event.value)
        else:  # no way lies between a target and the drafter beside it
            self._mark(
                self._places.drafter(event.entity), "drafts sent", event, {"position": int(event.value)}
            )

    # ------------------------------------------------------------------ links

    def _send(self, event: Event) -> None:
        request, before = event.request, self._before[event.request]
        track = self._places.channel(event.entity)
        same_time = before.time_s == event.time_s
        to_target = self._places.leads_to_targets(event.entity)
        name, facts = "message", {}
        if before.kind == EventKind.COMMIT:
            name, facts = "tokens", {"tokens": int(before.value)}
        elif to_target and request in self._closing:
            name = "end of stream"
            self._closing.remove(request)
        elif same_time and before.kind == EventKind.DRAFT_END and to_target:
            name, facts = "drafts", {"tokens": int(before.value)}
        elif same_time and before.kind == EventKind.SEND and not to_target:
            name = "result"
        elif to_target and self._tokens_of[request] == 0:
            name = "prompt"
        message = self._begin(track, name, event, facts, request)
        message.end_s = event.value
        self._messages[request] = message
        if to_target and name != "end of stream":
            self._residence.sent(request, event.value)

    # ------------------------------------------------------------------ targets

    def _commit(self, event: Event) -> None:
        tokens = int(event.value)
        iteration = self._ended[event.entity]
        iteration.facts["committed_tokens"] += tokens
        iteration.requests.append(event.request)
        iteration.work = max(iteration.work or WORK[0], self._work(event.request), key=WORK.index)
        self._mark(iterations_of(event.entity), "commit", event, {"tokens": tokens})
        first_s, _ = self._commits_s.get(event.request, (event.time_s, event.time_s))
        self._commits_s[event.request] = first_s, event.time_s
        self._tokens_of[event.request] += tokens
        self._residence.commits(event.request, tokens, event.time_s)

    def _work(self, request: int) -> str:
        """Return what an iteration has done for a request that it commits tokens of.

        Of a stream the log does not tell whether drafts that were still right had come: its iterations count
        as verification.
        """
        if self._tokens_of[request] == 0:
            return "prefill"
        if request in self._stream_of:
            return "verify"
        if self._gamma_of.get(request, 0) == 0:
            return "plain"
        # Drafts that no drafter has made since the decision are made by the target itself. A pipelined
        # drafter may have made them ahead, since the decision before. Where drafts are streamed, what is no
        # stream is drafted at the target.
        if self._protocol == "streaming":
            return "colocated"
        before_s, decided_s = self._decided_s[request]
        since_s = before_s if self._protocol == "pipelined" else decided_s
        return "verify" if self._drafted_s.get(request, -math.inf) >= since_s else "colocated"

    def _sequence_count(self, event: Event, sequences: int) -> None:
        site = Site(TARGET, event.entity)
        self._sequences.append(Count(site, "iteration", event.time_s, {"sequences": sequences}))

    # ------------------------------------------------------------------ requests, faults

    def _complete(self, event: Event) -> None:
        whole = self._requests[event.request]
        whole.end_s = event.time_s
        whole.facts |= {"output_tokens": self._tokens_of[event.request], "e2e_s": event.value}
        self._residence.completed(event.request)

    def _fault(self, event: Event) -> None:
        member = self._members[int(event.value)]
        site = Site(member.site, event.entity)
        if event.kind == EventKind.RETURN:
            self._down.pop(member.number).end_s = event.time_s
            self._instants.append(Instant(faults_of(site), "return", event.time_s, of_site=True))
            if member.site == TARGET:
                self._residence.returned(event.entity, event.time_s)
            return
        self._down[member.number] = self._begin(faults_of(site), "down", event, {"kind": member.fault.kind})
        self._instants.append(Instant(faults_of(site), "crash", event.time_s, of_site=True))
        for key in self._drafts:
            if self._places.site_of_drafter(key[0]) == site:
                self._lost_s.setdefault(key, event.time_s)
        if member.site != TARGET:
            return
        self._residence.crashed(event.entity, event.time_s)
        for request in [one for one, target in self._stream_of.items() if target == event.entity]:
            del self._stream_of[request]
        running = self._iterations.pop(event.entity, None)
        if running is not None:
            running.end_s = event.time_s
            running.facts["lost"] = True
            self._sequence_count(event, 0)

    # ------------------------------------------------------------------ the whole

    def result(self, end_s: float) -> Reading:
        """Return what has been read, when the log is at its end."""
        for key in list(self._lost_s):
            self._close_lost(key)
        self._residence.ends(end_s)
        for one in self.slices:
            if math.isnan(one.end_s):
                one.end_s = end_s
                one.facts["unfinished"] = True
            if one.name == "iteration" and one.facts.get("committed_tokens") == 0:
                one.name = "prefill"  # whatever else an iteration does commits a token
        for number, whole in self._requests.items():
            self._parts(number, whole)
        counts = [
            Count(Site(TARGET, target), "requests", time_s, {"resident": resident, "waiting": waiting})
            for time_s, target, resident, waiting in self._residence.counts()
        ]
        return Reading(self.slices, self._instants, [*self._sequences, *counts], end_s)

    def _parts(self, number: int, whole: Slice) -> None:
        """Divide a request's time: waiting for admission, prefill, decoding."""
        first_s, last_s = self._commits_s.get(number, (whole.end_s, whole.end_s))
        admitted_s = [time_s for time_s in self._admitted_s.get(number, ()) if time_s < first_s]

        def part(name: str, start_s: float, end_s: float, **facts: int) -> None:
            if start_s < end_s:
                whole.parts.append(Slice(whole.track, name, start_s, end_s, number, dict(facts)))

        if admitted_s:
            part("prefill", admitted_s[-1], first_s)
        part("decoding", first_s, last_s)
        for target, start_s, end_s in self._residence.waits.get(number, ()):
            part("waiting for admission", start_s, end_s, target=target)

    def _begin(
        self, track: Track, name: str, event: Event, facts: dict[str, Any], request: int | None = None
    ) -> Slice:
        number = event.request if request is None else request
        one = Slice(track, name, event.time_s, request=number, facts=facts)
        self.slices.append(one)
        return one

    def _mark(self, track: Track, name: str, event: Event, facts: dict[str, Any]) -> None:
        self._instants.append(Instant(track, name, event.time_s, event.request, facts))

    def _mark_request(self, event: Event, name: str, facts: dict[str, Any]) -> None:
        self._mark(self._requests[event.request].track, name, event, facts)
