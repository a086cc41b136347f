"""Timelines of simulated episodes, for ui.perfetto.dev and chrome://tracing.

A timeline is made of the event log, which both engines keep, so that it does not depend on the engine.
:mod:`~dsd_env.sim.timeline.reading` turns the log into slices, instants and counts,
:mod:`~dsd_env.sim.timeline.trace` writes them as trace events, :mod:`~dsd_env.sim.timeline.picture` draws
them.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsd_env.files import write_atomically
from dsd_env.scenario import Scenario
from dsd_env.sim.events import Event
from dsd_env.sim.timeline.picture import WINDOW_S, draw_picture
from dsd_env.sim.timeline.places import Places
from dsd_env.sim.timeline.reading import Reading, read
from dsd_env.sim.timeline.trace import TraceEvent, trace_events

__all__ = ["Timeline"]


@dataclass(frozen=True)
class Timeline:
    """What happened in an episode, to be looked at.

    A process for each target, edge server and device; in them tracks for iterations, requests, drafters and
    the two directions of each link. Where a track shows several things at a time it has several threads. An
    arrow leads each request from slice to slice.

    Example:
        >>> dsd_env.simulate("single_lan", "edge_sd:4", seed=1, timeline=True).timeline.write("trace.json")

    Attributes:
        scenario: What was simulated.
        events: The whole event log, from time 0.
        scheduler: Name of the scheduler.
        seed: Episode seed.
    """

    scenario: Scenario
    events: Sequence[Event]
    scheduler: str
    seed: int

    @functools.cached_property
    def reading(self) -> Reading:
        """The log as slices, instants and counts."""
        return read(self.scenario, self.events)

    def trace(
        self, from_s: float = 0.0, to_s: float = math.inf, only: Collection[int] | None = None
    ) -> dict[str, Any]:
        """Return the content of a trace file.

        Args:
            from_s: Beginning of what is shown, in simulated seconds.
            to_s: Its end.
            only: Numbers of the requests that are shown; None: all.

        Raises:
            ValueError: Nothing can lie between the two times, or no such request has arrived.
        """
        return {
            "displayTimeUnit": "ms",
            "otherData": {
                "scenario": self.scenario.name,
                "scheduler": self.scheduler,
                "seed": self.seed,
                "simulator": "dsd_env",
            },
            "traceEvents": self._events(from_s, to_s, only),
        }

    def write(
        self,
        path: str | Path,
        from_s: float = 0.0,
        to_s: float = math.inf,
        only: Collection[int] | None = None,
    ) -> int:
        """Write a trace file, one event a line; return the number of events.

        Args:
            path: The file.
            from_s: Beginning of what is shown, in simulated seconds.
            to_s: Its end.
            only: Numbers of the requests that are shown; None: all.

        Raises:
            ValueError: As :meth:`trace`.
            OSError: The file cannot be written.
        """
        trace = self.trace(from_s, to_s, only)
        events = trace["traceEvents"]

        def pieces() -> Iterator[str]:
            head = json.dumps({key: value for key, value in trace.items() if key != "traceEvents"})
            yield f'{head[:-1]}, "traceEvents": [\n'
            for number, event in enumerate(events):
                yield json.dumps(event, separators=(",", ":"), allow_nan=False)
                yield "\n" if number == len(events) - 1 else ",\n"
            yield "]}\n"

        def write(temporary: Path) -> None:
            with temporary.open("w", encoding="ascii") as file:
                file.writelines(pieces())

        write_atomically(Path(path), write)
        return len(events)

    def pictures(self, times_s: Sequence[float], window_s: float = WINDOW_S) -> Iterator[NDArray[np.uint8]]:
        """Yield pictures of what has happened by some times, as an environment draws them.

        Args:
            times_s: Where the pictures' axes end, in simulated seconds.
            window_s: Simulated time that a picture shows.

        Yields:
            Images, uint8, shape (800, 1280, 3).

        Raises:
            ModuleNotFoundError: matplotlib is missing.
        """
        places = Places(self.scenario)
        for now_s in times_s:
            title = f"{self.scenario.name}, {self.scheduler}, seed {self.seed}: t = {now_s:.2f} s"
            yield draw_picture(places, self.reading.slices, now_s, title, window_s=window_s)

    def _events(self, from_s: float, to_s: float, only: Collection[int] | None) -> list[TraceEvent]:
        if not 0.0 <= from_s < to_s:
            raise ValueError(f"from_s = {from_s:g} must be at least 0 and below to_s = {to_s:g}")
        if only is not None:
            numbers = set(only)
            arrived = {event.request for event in self.events}
            if unknown := sorted(numbers - arrived):
                last = max(arrived, default=-1)
                raise ValueError(f"requests {unknown} did not arrive; there are 0 to {last}")
            only = numbers
        return trace_events(Places(self.scenario), self.reading, from_s, to_s, only)
