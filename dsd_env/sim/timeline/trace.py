"""Trace events: what viewers of timelines read.

The format is the JSON of Chrome's trace events (chrome://tracing, ui.perfetto.dev), which its document
"Trace Event Format" describes by phases: ``X`` a slice, ``i`` an instant, ``C`` a counter, ``s`` ``t`` ``f``
the beginning, the steps and the end of a flow, ``M`` names. Times are microseconds, as whole numbers, so that
what ended when the next began does not overlap it.
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from dsd_env.sim.timeline.places import REQUESTS, Places, Track
from dsd_env.sim.timeline.reading import NO_REQUEST, Count, Instant, Reading, Slice

TraceEvent = dict[str, Any]
Placed = tuple[tuple[int, int, int], TraceEvent]
"""An event with its place in the file: its time, its kind, the number of its slice."""
_MARK, _SLICE, _REST = range(3)
"""Kinds in the order of one instant. Viewers keep a stack for each thread: what happens at the end of a slice
stands before the next one begins, and an arrow right behind the slice that it leads to."""
_FIRST_THREAD = 1001
"""Numbers of threads begin here: viewers take them for unique, and processes have numbers, too."""
Lane = tuple[Track, int]


def trace_events(
    places: Places,
    reading: Reading,
    from_s: float = 0.0,
    to_s: float = math.inf,
    only: Collection[int] | None = None,
) -> list[TraceEvent]:
    """Return the events of a trace, names first, then in order of time.

    Args:
        places: The scenario's sites.
        reading: What its event log says.
        from_s: What ended before is left out; what goes on is cut there.
        to_s: What begins later is left out; what goes on is cut there.
        only: Numbers of requests: what concerns others is left out, and so is what targets did before the
            first of them arrived and after the last one completed. None: all.
    """
    if only is not None:
        spans = [one for one in reading.slices if one.track.rank == REQUESTS and one.request in only]
        from_s = max(from_s, min((one.start_s for one in spans), default=math.inf))
        to_s = min(to_s, max((one.end_s for one in spans), default=-math.inf))

    def wanted(request: int) -> bool:
        return only is None or request == NO_REQUEST or request in only

    def shown(one: Slice) -> bool:
        return one.start_s <= to_s and (one.end_s > from_s or one.start_s >= from_s)

    slices = [one for one in reading.slices if wanted(one.request) and shown(one)]
    instants = [one for one in reading.instants if wanted(one.request) and from_s <= one.time_s <= to_s]
    lanes = _lanes(slices)
    threads = _Threads(places, lanes, instants)
    events: list[Placed] = []
    steps: dict[int, list[tuple[float, int]]] = defaultdict(list)
    for number, (one, lane) in enumerate(zip(slices, lanes, strict=True)):
        for part in (one, *one.parts):
            if shown(part):
                events.append(_slice(part, threads, lane, from_s, to_s, number))
        taken = one.requests if one.request == NO_REQUEST else [one.request]
        for request in filter(wanted, taken):
            steps[request].append((max(one.start_s, from_s), number))
    home = {one.request: lane for one, lane in zip(slices, lanes, strict=True) if one.track.rank == REQUESTS}
    events += [_instant(one, threads, home) for one in instants]
    events += _counters(places, reading.counts, from_s, to_s)
    for request, steps_of in sorted(steps.items()):
        events += _flow(request, steps_of, lanes, threads)
    events.sort(key=lambda entry: entry[0])
    return [*threads.names(), *(event for _, event in events)]


def _us(time_s: float) -> int:
    return round(1e6 * time_s)


def _lanes(slices: Sequence[Slice]) -> list[Lane]:
    """Return a lane for each slice: the first of its track that is free when it begins.

    The slices of a track are in order of beginning.
    """
    free: dict[Track, list[int]] = defaultdict(list)
    busy: dict[Track, list[tuple[float, int]]] = defaultdict(list)
    lanes = []
    for one in slices:
        track = one.track
        while busy[track] and busy[track][0][0] <= one.start_s:
            heapq.heappush(free[track], heapq.heappop(busy[track])[1])
        lane = heapq.heappop(free[track]) if free[track] else len(busy[track])
        heapq.heappush(busy[track], (one.end_s, lane))
        lanes.append((track, lane))
    return lanes


class _Threads:
    """Numbers and names of the processes and threads that occur."""

    def __init__(self, places: Places, lanes: Iterable[Lane], instants: Iterable[Instant]) -> None:
        self._places = places
        used = {*lanes, *((one.track, 0) for one in instants)}

        def order(lane: Lane) -> tuple[int, int, str, int]:
            track, number = lane
            return places.process(track.site)[0], track.rank, track.name, number

        self._lanes = sorted(used, key=order)
        self._numbers = {lane: _FIRST_THREAD + at for at, lane in enumerate(self._lanes)}

    def of(self, lane: Lane) -> dict[str, int]:
        """Return process and thread of a lane, as events name them."""
        return {"pid": self._places.process(lane[0].site)[0] + 1, "tid": self._numbers[lane]}

    def names(self) -> list[TraceEvent]:
        """Return the events that name processes and threads, and put them in order."""
        events: list[TraceEvent] = []
        named: set[int] = set()
        for lane in self._lanes:
            track, number = lane
            ids = self.of(lane)
            if ids["pid"] not in named:
                named.add(ids["pid"])
                name = self._places.process(track.site)[1]
                whole = {"pid": ids["pid"]}
                events.append(_meta("process_name", whole, name=name))
                events.append(_meta("process_sort_index", whole, sort_index=ids["pid"]))
            name = track.name if number == 0 else f"{track.name} {number + 1}"
            events.append(_meta("thread_name", ids, name=name))
            events.append(_meta("thread_sort_index", ids, sort_index=ids["tid"]))
        return events


def _meta(kind: str, ids: dict[str, int], **values: Any) -> TraceEvent:
    return {"ph": "M", "name": kind, "ts": 0, **ids, "args": values}


def _slice(one: Slice, threads: _Threads, lane: Lane, from_s: float, to_s: float, number: int) -> Placed:
    start, end = _us(max(one.start_s, from_s)), _us(min(one.end_s, to_s))
    facts = dict(one.facts)
    if one.request != NO_REQUEST:
        facts["request"] = one.request
    if one.start_s < from_s or one.end_s > to_s:
        facts["cut"] = True
    event = {"ph": "X", "name": one.name, "cat": "slice", "ts": start, "dur": end - start, **threads.of(lane)}
    return (start, _SLICE, 2 * number), {**event, "args": facts}


def _instant(one: Instant, threads: _Threads, home: dict[int, Lane]) -> Placed:
    of_request = one.track.rank == REQUESTS
    lane = home.get(one.request, (one.track, 0)) if of_request else (one.track, 0)
    facts = dict(one.facts)
    if one.request != NO_REQUEST:
        facts["request"] = one.request
    event = {"ph": "i", "name": one.name, "cat": "instant", "ts": _us(one.time_s), **threads.of(lane)}
    # It belongs to the request that it lies in, even where that begins with it.
    place = _us(one.time_s), _REST if of_request else _MARK, 0
    return place, {**event, "s": "p" if one.of_site else "t", "args": facts}


def _counters(places: Places, counts: Iterable[Count], from_s: float, to_s: float) -> list[Placed]:
    """Return the counters within a span of time, each with its value at the beginning."""
    events = []
    before: dict[tuple[int, str], Count] = {}
    for one in counts:
        if one.time_s > to_s:
            continue
        key = places.process(one.site)[0] + 1, one.name
        if one.time_s < from_s:
            before[key] = one
            continue
        events.append((key, _us(one.time_s), one))
    events += [(key, _us(from_s), one) for key, one in before.items()]
    return [
        ((ts, _REST, 0), {"ph": "C", "name": name, "ts": ts, "pid": pid, "args": dict(one.values)})
        for (pid, name), ts, one in events
    ]


def _flow(
    request: int, steps: Sequence[tuple[float, int]], lanes: Sequence[Lane], threads: _Threads
) -> list[Placed]:
    """Return the arrows of a request from slice to slice, each given by its time and number; none for one."""
    ordered = sorted(steps)
    last = len(ordered) - 1
    events = []
    for at, (time_s, number) in enumerate(ordered if last > 0 else ()):
        phase = "s" if at == 0 else "f" if at == last else "t"
        event = {"ph": phase, "name": "request", "cat": "request", "id": hex(request), "ts": _us(time_s)}
        event |= threads.of(lanes[number])
        if phase == "f":
            event["bp"] = "e"  # it ends at the slice that encloses it, not at the next one
        events.append(((_us(time_s), _SLICE, 2 * number + 1), event))
    return events
