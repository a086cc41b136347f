"""Who is at which target when, from the event log: resident there, or waiting to be admitted.

The log says when a request is admitted and when it is preempted. When it began to wait is when the message
that brought it to the target had arrived, or when the stream was opened; by then it had left its former
target. A request that has been preempted counts as waiting from then on, though it may still be drafting
elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

NOBODY = -1


@dataclass(slots=True)
class Stay:
    """Where one request stands with the targets.

    Attributes:
        resident: Target that holds its KV; -1: none.
        sent_to: Target of its newest decision; -1 before the first.
        arrives_s: When the first message of that decision reaches its target; NaN if none was sent.
        drafted_s: When a drafter beside that target had drafted for it after that; NaN if none has.
        waits_at: Target at which it is known to wait already; -1: none.
        waits_from_s: Since when.
        lost_s: When its target crashed, until it is known whether it had finished before; else NaN.
        streams: Whether it has an open stream, whose messages are no arrivals.
        committed: Output tokens committed.
        last_commit_s: When the newest of them were.
    """

    resident: int = NOBODY
    sent_to: int = NOBODY
    arrives_s: float = math.nan
    drafted_s: float = math.nan
    waits_at: int = NOBODY
    waits_from_s: float = math.nan
    lost_s: float = math.nan
    streams: bool = False
    committed: int = 0
    last_commit_s: float = math.nan


class Residence:
    """Follows requests from target to target.

    Attributes:
        waits: Of each request the (target, start, end) of each wait for admission, in seconds.
    """

    def __init__(self, front_ends_s: Sequence[float]) -> None:
        """Begin with nobody anywhere.

        Args:
            front_ends_s: What the front end of each target adds to the way of a prompt.
        """
        self._front_ends_s = front_ends_s
        self._stays: dict[int, Stay] = {}
        self._changes: list[tuple[float, int, int, int]] = []
        self._returned_s = [0.0] * len(front_ends_s)
        self._down = [0] * len(front_ends_s)
        self.waits: dict[int, list[tuple[int, float, float]]] = {}

    def of(self, request: int) -> Stay:
        """Return where a request stands, to be read and to be told what was sent."""
        return self._stays.setdefault(request, Stay())

    def decided(self, request: int, target: int) -> None:
        """Note the target of a decision."""
        stay = self.of(request)
        if not math.isnan(stay.lost_s):
            self._leave(stay, stay.lost_s)
        stay.sent_to = target
        stay.arrives_s = stay.drafted_s = math.nan

    def sent(self, request: int, arrives_s: float) -> None:
        """Note a message to a target; the first one after a decision brings the request there."""
        stay = self.of(request)
        if not stay.streams and math.isnan(stay.arrives_s):
            # Only prompts go through the front end.
            front_end_s = self._front_ends_s[stay.sent_to] if stay.committed == 0 else 0.0
            stay.arrives_s = arrives_s + front_end_s

    def drafted(self, request: int, target: int, time_s: float) -> None:
        """Note that a drafter beside a target has drafted: a round there begins with that."""
        stay = self.of(request)
        if stay.sent_to == target and math.isnan(stay.drafted_s) and stay.arrives_s <= time_s:
            stay.drafted_s = time_s

    def opened(self, request: int, target: int, time_s: float) -> None:
        """Note a stream: it is opened when the request has come to the target."""
        stay = self.of(request)
        stay.streams = True
        if stay.resident != target and stay.waits_at != target:
            self._leave(stay, time_s)
            stay.waits_at, stay.waits_from_s = target, time_s

    def closed(self, request: int) -> None:
        """Note the end of a stream; what was sent until then brought the request nowhere."""
        stay = self.of(request)
        stay.streams = False
        stay.arrives_s = math.nan

    def taken_over(self, request: int) -> None:
        """Note that its target decodes on alone: what is on the way to another one comes too late."""
        self.of(request).arrives_s = math.nan

    def admitted(self, request: int, target: int, time_s: float) -> None:
        """Note an admission."""
        stay = self.of(request)
        from_s = self._came_s(stay, time_s) if stay.waits_at != target else stay.waits_from_s
        if stay.waits_at not in (NOBODY, target):
            self._waited(request, stay.waits_at, stay.waits_from_s, from_s)
        self._waited(request, target, from_s, time_s)
        self._leave(stay, from_s)
        stay.waits_at, stay.resident = NOBODY, target
        stay.arrives_s = math.nan
        self._changes.append((time_s, target, 1, 0))

    def preempted(self, request: int, target: int, time_s: float) -> None:
        """Note a preemption."""
        stay = self.of(request)
        self._leave(stay, time_s)
        stay.waits_at, stay.waits_from_s = target, time_s

    def commits(self, request: int, tokens: int, time_s: float) -> None:
        """Note committed tokens."""
        stay = self.of(request)
        stay.committed += tokens
        stay.last_commit_s = time_s

    def completed(self, request: int) -> None:
        """Note that the last tokens have reached the client: it left when they were committed."""
        stay = self._stays.pop(request)
        self._leave(stay, stay.last_commit_s)

    def crashed(self, target: int, time_s: float) -> None:
        """Note a crash of a target: whoever is there or waits there is nowhere any more."""
        self._down[target] += 1
        if self._down[target] > 1:
            return
        for request, stay in self._stays.items():
            came_s = self._came_s(stay, math.nan)
            is_there = stay.waits_at == NOBODY and stay.sent_to == target and stay.resident != target
            if is_there and self._returned_s[target] <= came_s <= time_s:
                stay.waits_at, stay.waits_from_s = target, came_s
                self._leave(stay, came_s)
            if stay.resident == target:
                moved = stay.sent_to != target and not stay.streams and came_s <= time_s
                if moved:
                    self._leave(stay, came_s)
                    continue
                if math.isnan(stay.lost_s):
                    stay.lost_s = time_s
            elif stay.waits_at == target:
                self._waited(request, target, stay.waits_from_s, time_s)
                stay.waits_at = NOBODY
            else:
                continue
            stay.streams = False
            stay.arrives_s = math.nan

    def returned(self, target: int, time_s: float) -> None:
        """Note a target's return."""
        self._down[target] -= 1
        self._returned_s[target] = time_s

    def ends(self, time_s: float) -> None:
        """Note the end of the log: those that wait now have waited until then."""
        for request, stay in self._stays.items():
            if not math.isnan(stay.lost_s):
                self._leave(stay, stay.lost_s)
            came_s = self._came_s(stay, math.nan)
            if stay.waits_at != NOBODY:
                self._waited(request, stay.waits_at, stay.waits_from_s, time_s, is_over=False)
            elif (
                stay.sent_to not in (NOBODY, stay.resident)
                and not stay.streams
                and self._down[stay.sent_to] == 0
                and self._returned_s[stay.sent_to] <= came_s <= time_s
            ):
                self._leave(stay, came_s)
                self._waited(request, stay.sent_to, came_s, time_s, is_over=False)

    def counts(self) -> Iterator[tuple[float, int, int, int]]:
        """Yield (time, target, residents, waiting requests) at every change, in order of time."""
        now = {target: [0, 0] for target in range(len(self._front_ends_s))}
        changes = sorted(self._changes)
        for number, (time_s, target, residents, waiting) in enumerate(changes):
            now[target][0] += residents
            now[target][1] += waiting
            if changes[number + 1 : number + 2] and changes[number + 1][:2] == (time_s, target):
                continue  # one count for each instant
            yield time_s, target, now[target][0], now[target][1]

    def _came_s(self, stay: Stay, otherwise_s: float) -> float:
        """Return when a request came to the target of its decision, by its messages and drafts."""
        if math.isnan(stay.arrives_s):
            return otherwise_s
        return stay.arrives_s if math.isnan(stay.drafted_s) else stay.drafted_s

    def _leave(self, stay: Stay, time_s: float) -> None:
        """Let a request's KV be freed."""
        if stay.resident != NOBODY:
            self._changes.append((time_s, stay.resident, -1, 0))
            stay.resident, stay.lost_s = NOBODY, math.nan

    def _waited(self, request: int, target: int, start_s: float, end_s: float, is_over: bool = True) -> None:
        if end_s > start_s:
            self.waits.setdefault(request, []).append((target, start_s, end_s))
            self._changes.append((start_s, target, 0, 1))
            if is_over:
                self._changes.append((end_s, target, 0, -1))
