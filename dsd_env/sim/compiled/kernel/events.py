"""The queue of events to come, a binary heap, and the log of those that happened."""
# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

from __future__ import annotations

from dsd_env.sim.compiled.kernel.jit import jit, number
from dsd_env.sim.compiled.status import EVENTS_FULL, HEAP_FULL
from dsd_env.sim.events import EventKind, Order

AT_FAULT = number(Order.FAULT)
AT_TELEMETRY = number(Order.TELEMETRY)
AT_ITERATION_END = number(Order.ITERATION_END)
AT_DRAFT_END = number(Order.DRAFT_END)
AT_JOB_DONE = number(Order.JOB_DONE)
AT_DELIVERY = number(Order.DELIVERY)
AT_ARRIVAL = number(Order.ARRIVAL)
AT_TIMEOUT = number(Order.TIMEOUT)
AT_DECISION = number(Order.DECISION)
AT_ITERATION_START = number(Order.ITERATION_START)
AT_KEEP_ALIVE_END = number(Order.KEEP_ALIVE_END)

LOG_ARRIVAL = number(EventKind.ARRIVAL)
LOG_DECISION = number(EventKind.DECISION)
LOG_DRAFT_START = number(EventKind.DRAFT_START)
LOG_DRAFT_END = number(EventKind.DRAFT_END)
LOG_SEND = number(EventKind.SEND)
LOG_ENQUEUE = number(EventKind.ENQUEUE)
LOG_ADMIT = number(EventKind.ADMIT)
LOG_ITERATION_START = number(EventKind.ITERATION_START)
LOG_ITERATION_END = number(EventKind.ITERATION_END)
LOG_COMMIT = number(EventKind.COMMIT)
LOG_COMPLETE = number(EventKind.COMPLETE)
LOG_FAULT = number(EventKind.FAULT)
LOG_RETURN = number(EventKind.RETURN)
LOG_TAKEOVER = number(EventKind.TAKEOVER)
LOG_LATE = number(EventKind.LATE)
LOG_DUPLICATE = number(EventKind.DUPLICATE)
LOG_ROLLBACK = number(EventKind.ROLLBACK)
LOG_PREEMPT = number(EventKind.PREEMPT)
LOG_STREAM_OPEN = number(EventKind.STREAM_OPEN)
LOG_DRAFT_SENT = number(EventKind.DRAFT_SENT)
LOG_STREAM_ROLLBACK = number(EventKind.STREAM_ROLLBACK)
LOG_STREAM_CLOSE = number(EventKind.STREAM_CLOSE)
LOG_LATE_DRAFTS = number(EventKind.LATE_DRAFTS)
LOG_BRANCH_TAKEN = number(EventKind.BRANCH_TAKEN)
LOG_BRANCH_ADOPTED = number(EventKind.BRANCH_ADOPTED)

ENTITY_BITS = 40
ENTITY_MASK = (1 << ENTITY_BITS) - 1
"""The place of an event is its order, shifted by so many bits, and its entity."""

SLOT_BITS, KIND_BITS = 20, 3
SLOT_MASK, KIND_MASK = (1 << SLOT_BITS) - 1, (1 << KIND_BITS) - 1
"""The argument of a request's event is its slot, the kind of event and the request's epoch; see ``tag``."""
IS_WAIT, IS_WARM_UP, IS_MESSAGE, IS_DUPLICATE, IS_DRAFTS, IS_RESULT = (number(kind) for kind in range(6))
IS_TIMED_TOKENS, IS_ACK = number(6), number(7)
"""The last two outlive their request: instead of its slot their argument has the number of its device."""


@jit
def push(k, w, time_s, order, entity, argument):
    """Schedule an event; events of one time, order and entity happen as scheduled."""
    position = w.heap_n
    if position >= k.heap_capacity:
        w.error = HEAP_FULL
        return
    w.heap_n = position + 1
    sequence = w.sequence
    w.sequence = sequence + 1
    place = (order << ENTITY_BITS) + entity
    heap = w.heap
    while position > 0:
        parent = (position - 1) >> 1
        above = heap[parent]
        if above.time_s < time_s or (above.time_s == time_s and above.place <= place):
            break
        _move(heap[position], above)
        position = parent
    _set(heap[position], time_s, place, sequence, argument)


@jit
def push_now(k, w, order, entity, argument):
    """Schedule an event of the present instant.

    Jobs done and decisions are most of all events, and none is of a later time: they have a list of their
    own, in order. They come nearly in order already, so inserting from the back costs next to nothing.
    """
    place = (order << ENTITY_BITS) + entity
    due, position = w.due_now, w.due_end
    if position >= k.due_capacity:
        w.error = HEAP_FULL
        return
    w.due_end = position + 1
    while position > w.due_first and due[position - 1].place > place:
        due[position].place, due[position].argument = due[position - 1].place, due[position - 1].argument
        position -= 1
    due[position].place, due[position].argument = place, argument


@jit
def is_due_now(w):
    """Return whether the first event of the present instant comes before all that are scheduled."""
    if w.due_first == w.due_end:
        return False
    first = w.heap[0]
    return w.heap_n == 0 or first.time_s > w.now_s or w.due_now[w.due_first].place < first.place


@jit
def take_due(w):
    """Take the first event of the present instant off its list; return its place and its argument."""
    event = w.due_now[w.due_first]
    w.due_first += 1
    if w.due_first == w.due_end:
        w.due_first, w.due_end = 0, 0
    return event.place, event.argument


@jit
def drop_first(w):
    """Remove the first event of the queue."""
    n = w.heap_n - 1
    w.heap_n = n
    if n == 0:
        return
    heap = w.heap
    last = heap[n]
    time_s, place, sequence, argument = last.time_s, last.place, last.sequence, last.argument
    position = 0
    while True:
        child = 2 * position + 1
        if child >= n:
            break
        first = heap[child]
        if child + 1 < n and _comes_before(heap[child + 1], first.time_s, first.place, first.sequence):
            child += 1
            first = heap[child]
        if not _comes_before(first, time_s, place, sequence):
            break
        _move(heap[position], first)
        position = child
    _set(heap[position], time_s, place, sequence, argument)


@jit
def _comes_before(event, time_s, place, sequence):
    if event.time_s != time_s:
        return event.time_s < time_s
    if event.place != place:
        return event.place < place
    return event.sequence < sequence


@jit
def _set(event, time_s, place, sequence, argument):
    event.time_s = time_s
    event.place = place
    event.sequence = sequence
    event.argument = argument


@jit
def _move(to, event):
    _set(to, event.time_s, event.place, event.sequence, event.argument)


@jit
def log(k, w, kind, entity, request, value):
    """Record an event, if events are recorded."""
    if not w.records:
        return
    n = w.events_n
    if n >= k.log_capacity:
        w.error = EVENTS_FULL
        return
    line = w.log[n]
    line.time_s, line.kind, line.entity, line.number, line.value = w.now_s, kind, entity, request, value
    w.events_n = n + 1


@jit
def tag(request, kind):
    """Return the argument of a request's event.

    A request's epoch counts how often the request cancelled what it was doing. An event that was scheduled in
    an earlier epoch is ignored; see :func:`is_live`.
    """
    return (((request.epoch << KIND_BITS) | kind) << SLOT_BITS) | request.slot


@jit
def is_live(request, place, argument):
    """Return whether the request of an event still waits for it."""
    return request.number == place & ENTITY_MASK and request.epoch == argument >> (SLOT_BITS + KIND_BITS)
