"""The event log, and the order of events that happen at the same instant."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple


class Order(IntEnum):
    """Priority of event kinds at one instant; part of the contract between engines.

    Crashes and returns come first. Then follow the ends of work, the arrivals of messages, the time-outs that
    wait for them, and the decisions. All decisions come before any server starts an iteration, so that a
    request can join the very next batch. Last of all a target that nobody has come to is let go.
    Events of one kind go by the number of their entity, then by sequence number.
    """

    FAULT = 1
    TELEMETRY = 2
    ITERATION_END = 3
    DRAFT_END = 4
    JOB_DONE = 5
    DELIVERY = 6
    ARRIVAL = 7
    TIMEOUT = 8
    DECISION = 9
    ITERATION_START = 10
    KEEP_ALIVE_END = 11


class EventKind(IntEnum):
    """What the event log records."""

    ARRIVAL = 1
    DECISION = 2
    DRAFT_START = 3
    DRAFT_END = 4
    SEND = 5
    ENQUEUE = 6
    ADMIT = 7
    ITERATION_START = 8
    ITERATION_END = 9
    COMMIT = 10
    COMPLETE = 11
    FAULT = 12
    RETURN = 13
    TAKEOVER = 14
    LATE = 15
    DUPLICATE = 16
    ROLLBACK = 17
    PREEMPT = 18
    STREAM_OPEN = 19
    DRAFT_SENT = 20
    STREAM_ROLLBACK = 21
    STREAM_CLOSE = 22
    LATE_DRAFTS = 23
    BRANCH_TAKEN = 24
    BRANCH_ADOPTED = 25


class Event(NamedTuple):
    """One line of the event log.

    Attributes:
        time_s: When it happened.
        kind: What happened.
        entity: Number of the target, drafter or channel concerned, by kind. A channel is one direction of a
            link: twice the link's number, and one more for the way down, from the target.
        request: Number of the request; -1 where it concerns several.
        value: ARRIVAL: prompt tokens; DECISION: gamma; DRAFT_START, DRAFT_END: tokens drafted;
            SEND: time of arrival; ENQUEUE: new tokens asked for; ADMIT: KV tokens reserved;
            ITERATION_START: sequences; ITERATION_END: new tokens; COMMIT: tokens committed;
            COMPLETE: end-to-end latency; FAULT, RETURN: number of the fault's member; TAKEOVER: patience;
            LATE, DUPLICATE: 0; ROLLBACK: tokens drafted ahead in vain; PREEMPT: KV tokens lost;
            STREAM_OPEN: gamma; DRAFT_SENT: output position of its first draft; STREAM_ROLLBACK: drafts that
            are given up; STREAM_CLOSE: generations; LATE_DRAFTS: drafts of a generation known to be wrong;
            BRANCH_TAKEN: tokens of the branch that have come to the target; BRANCH_ADOPTED: those that its
            drafter has made. The entity of STREAM_OPEN, LATE_DRAFTS and BRANCH_TAKEN is the target, that of
            the others the drafter.
    """

    time_s: float
    kind: EventKind
    entity: int
    request: int
    value: float


class Span(NamedTuple):
    """One bar of a timeline: something that occupied a lane for a while.

    Attributes:
        lane: ``device:3``, ``edge:0``, ``target:1``, ``up:3`` or ``down:3``.
        kind: ``draft``, ``prefill``, ``verify``, ``plain``, ``colocated`` or ``message``.
        start_s: Start.
        end_s: End.
        request: Number of the request; -1 for a batch.
    """

    lane: str
    kind: str
    start_s: float
    end_s: float
    request: int
