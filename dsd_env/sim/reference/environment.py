"""SimPy with absolute times and an explicit order of events at one instant."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Generator
from typing import Any

import simpy

from dsd_env.sim.events import Order

Process = Generator[simpy.Event, object, None]
"""A process of the simulation, or a part of one, that returns nothing."""


class Environment(simpy.Environment):
    """SimPy with absolute times and an explicit order of events at one instant.

    SimPy's ``schedule`` takes a delay and would compute now + (t - now), which can differ from t in floating
    point. Events are therefore pushed straight onto SimPy's queue. SimPy's own priorities (0 and 1) come
    before every :class:`Order`.
    """

    def at(self, time_s: float, order: Order, entity: int, event: simpy.Event | None = None) -> simpy.Event:
        """Schedule an event at an absolute time; order and entity give its rank among those of that time."""
        if event is None:
            event = simpy.Event(self)
        event._ok = True
        event._value = None
        queue: list[Any] = self._queue
        heapq.heappush(queue, (time_s, (order << 40) + entity, next(self._eid), event))
        return event

    def call_at(self, time_s: float, order: Order, entity: int, action: Callable[[], None]) -> simpy.Event:
        """Schedule a call, as :meth:`at` schedules an event; return its event."""
        event = self.at(time_s, order, entity)
        assert event.callbacks is not None
        event.callbacks.append(lambda _event: action())
        return event

    def jump(self, time_s: float) -> None:
        """Set the clock to a time before which nothing is due."""
        self._now = time_s
