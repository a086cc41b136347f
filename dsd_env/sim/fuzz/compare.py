"""Compares two engines step by step, with ``==`` (NaN equals NaN)."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dsd_env.control import ActionSpace, ObservationEncoder
from dsd_env.control.actions import Decision
from dsd_env.control.view import DecisionView
from dsd_env.scenario import Scenario
from dsd_env.sim.fuzz.case import Case
from dsd_env.sim.fuzz.conservation import Violation, check_conservation
from dsd_env.sim.fuzz.coverage import Watch
from dsd_env.sim.fuzz.engines import Engine, Factory, compiled_engine, reference_engine
from dsd_env.sim.world import WorldBuilder

_EVENTS_BEFORE = 8


class Difference(AssertionError):
    """Two engines differ, or one of them breaks a law of conservation or raises an error.

    Attributes:
        kind: ``difference``, ``conservation`` or ``error``.
        where: What differs: ``events[17]``, ``view.link.rtt_s``, ...
        details: What was expected and found, after how many decisions, at which time, after which events.
    """

    def __init__(self, kind: str, where: str, details: Mapping[str, Any]) -> None:
        """Say what differs."""
        super().__init__(kind, where, details)
        self.kind, self.where, self.details = kind, where, dict(details)

    def __str__(self) -> str:
        """Return it in words."""
        lines = [f"{self.kind} at {self.where}"]
        for key, value in self.details.items():
            if isinstance(value, list):
                lines.append(f"  {key}:")
                lines += [f"    {line}" for line in value]
            else:
                lines.append(f"  {key}: {value}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON data."""
        return {"kind": self.kind, "where": self.where, **self.details}


@dataclass(frozen=True)
class Outcome:
    """What an episode without a difference contained.

    Attributes:
        events: Events compared.
        decisions: Decisions compared.
        met: What happened in it, by name; see :class:`dsd_env.sim.fuzz.coverage.Watch`.
    """

    events: int
    decisions: int
    met: Counter[str]


def run_case(case: Case, other: Factory = compiled_engine, reference: Factory = reference_engine) -> Outcome:
    """Play a case on both engines and compare everything, as :func:`compare_engines` does.

    Args:
        case: The case.
        other: The engine under test.
        reference: The engine that defines what is right.

    Raises:
        Difference: They differ, or one of them fails.
        ScenarioError: The case's scenario is not valid.
    """
    with case.built() as (scenario, builder):
        space = ActionSpace.of(scenario)
        return compare_engines(
            scenario,
            case.seed,
            lambda number, _: case.decision(number, space),
            decisions=case.decisions,
            price_delays=case.price_delays,
            builder=builder,
            other=other,
            reference=reference,
        )


def compare_engines(
    scenario: Scenario,
    seed: int,
    decide: Callable[[int, DecisionView], Decision],
    *,
    decisions: int,
    price_delays: bool = False,
    builder: WorldBuilder | None = None,
    other: Factory = compiled_engine,
    reference: Factory = reference_engine,
) -> Outcome:
    """Play an episode on both engines and compare everything; check conservation at the end on each.

    Compared at every decision: the event log, the view, the request whose decision is due, observation and
    mask, totals, requests completed and active, the decision as it is resolved; at the end all metrics and
    the table of requests.

    Args:
        scenario: The scenario.
        seed: Episode seed.
        decide: Answers the decision of a number, counted from 0, given the reference engine's view.
        decisions: The episode is left after so many.
        price_delays: Compare the accounting of delays, too.
        builder: Builder of the scenario's worlds, if there is one already.
        other: The engine under test.
        reference: The one that defines.

    Raises:
        Difference: They differ, or one of them fails.
    """
    builder = builder or WorldBuilder(scenario)
    engines: dict[str, Engine] = {}
    for name, factory in (("reference", reference), ("other", other)):
        with _failing(f"{name} engine: setting up", engines):
            engines[name] = factory(scenario, seed, builder, price_delays)
    comparison = _Comparison(scenario, seed, decide, engines["reference"], engines["other"])
    return comparison.run(decisions)


@contextlib.contextmanager
def _failing(what: str, engines: Mapping[str, Engine]) -> Iterator[None]:
    """Turn an exception of an engine into a :class:`Difference`, except its refusal of a scenario."""
    try:
        yield
    except (Difference, NotImplementedError):
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)[-3:]
        details: dict[str, Any] = {
            "error": f"{type(error).__name__}: {error}",
            # Without folders: a saved case must not depend on the machine.
            "raised": [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames],
        }
        for name, engine in engines.items():
            details[f"last events of {name}"] = [str(event) for event in engine.events[-_EVENTS_BEFORE:]]
        raise Difference("error", what, details) from error


class _Comparison:
    def __init__(
        self,
        scenario: Scenario,
        seed: int,
        decide: Callable[[int, DecisionView], Decision],
        reference: Engine,
        other: Engine,
    ) -> None:
        self.decide, self.reference, self.other = decide, reference, other
        self.space, self.encoder = ActionSpace.of(scenario), ObservationEncoder.of(scenario)
        self.watch = Watch(scenario, seed)
        self.compared = 0
        self.decisions = 0

    def run(self, decisions: int) -> Outcome:
        while self.decisions < decisions:
            if not self._step():
                break
            self.decisions += 1
        self._end()
        self.watch.finish(self.reference)
        return Outcome(len(self.reference.events), self.decisions, self.watch.met)

    def _guard(self, what: str) -> contextlib.AbstractContextManager[None]:
        return _failing(what, {"reference": self.reference, "other": self.other})

    def _step(self) -> bool:
        with self._guard("reference engine: next_decision()"):
            view = self.reference.next_decision()
        with self._guard("other engine: next_decision()"):
            found = self.other.next_decision()
        self._events()
        self._same("view", view, found)
        with self._guard("reading the state"):
            self._same("totals", self.reference.totals, self.other.totals)
            self._same("active_requests", self.reference.active_requests, self.other.active_requests)
            self._same("newly_completed", _completed(self.reference), _completed(self.other))
        if view is None:
            return False
        with self._guard("reading what is due"):
            self._same("due_request", _due(self.reference), _due(self.other))
            if (observe := getattr(self.other, "observe", None)) is not None:
                observation, mask = observe()
                self._same("observation", self.encoder.encode(view), observation)
                self._same("mask", self.space.mask(view), mask)
        decision = self.decide(self.decisions, view)
        with self._guard(f"reference engine: decide({decision})"):
            resolution = self.reference.decide(decision)
        with self._guard(f"other engine: decide({decision})"):
            other = self.other.decide(decision)
        self._same("resolution", resolution, other)
        self.watch.decided(view, resolution)
        return True

    def _end(self) -> None:
        a, b = self.reference, self.other
        with self._guard("reading the end"):
            self._same("terminated", a.terminated, b.terminated)
            self._same("truncated", a.truncated, b.truncated)
            self._same("now_s", a.now_s, b.now_s)
            self._same("resolved", dict(sorted(a.resolved.items())), dict(sorted(b.resolved.items())))
            self._same("metrics", a.metrics(), b.metrics())
            self._same("requests_table", a.requests_table(), b.requests_table())
            for name, engine in (("reference", a), ("other", b)):
                try:
                    check_conservation(engine)
                except Violation as violation:
                    raise Difference(
                        "conservation", f"{name} engine: {violation}", self._context()
                    ) from violation

    def _events(self) -> None:
        """Compare the events logged since the last comparison."""
        expected, found = self.reference.events, self.other.events
        start, self.compared = self.compared, len(expected)
        if len(expected) == len(found) and expected[start:] == found[start:]:
            return
        for number in range(start, max(len(expected), len(found))):
            a = str(expected[number]) if number < len(expected) else "no event"
            b = str(found[number]) if number < len(found) else "no event"
            if a != b:
                before = [str(event) for event in expected[max(0, number - _EVENTS_BEFORE) : number]]
                details = {"expected": a, "found": b, **self._context(), "events before": before}
                raise Difference("difference", f"events[{number}]", details)

    def _same(self, name: str, expected: object, found: object) -> None:
        if (place := first_difference(expected, found, name)) is not None:
            where, a, b = place
            last = [str(event) for event in self.reference.events[-_EVENTS_BEFORE:]]
            details = {"expected": a, "found": b, **self._context(), "last events": last}
            raise Difference("difference", where, details)

    def _context(self) -> dict[str, Any]:
        return {"decisions before": self.decisions, "time_s": self.reference.now_s}


def _completed(engine: Engine) -> list[tuple[int, float, float]]:
    return [
        (request.number, request.completed_s, request.delay_caused_s) for request in engine.newly_completed
    ]


def _due(engine: Engine) -> tuple[int, float] | None:
    request = engine.due_request
    return None if request is None else (request.number, request.delay_caused_s)


def first_difference(expected: object, found: object, name: str) -> tuple[str, str, str] | None:
    """Return where two values differ first, and the two values there; None if they are equal.

    NaN equals NaN. Arrays of different types differ.

    Args:
        expected: One value: numbers, words, arrays, or sequences, mappings and dataclasses of such.
        found: The other.
        name: What to call them.
    """
    if isinstance(expected, np.ndarray) or isinstance(found, np.ndarray):
        return _first_in_arrays(np.asarray(expected), np.asarray(found), name)
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        return _first_in_mappings(expected, found, name)
    if type(expected) is type(found) and expected == found:
        return None
    if isinstance(expected, float) and isinstance(found, float):
        if math.isnan(expected) and math.isnan(found):
            return None
    elif dataclasses.is_dataclass(expected) and type(expected) is type(found):
        for field in dataclasses.fields(expected):
            a, b = getattr(expected, field.name), getattr(found, field.name)
            if (place := first_difference(a, b, f"{name}.{field.name}")) is not None:
                return place
        return None
    elif isinstance(expected, list | tuple) and type(expected) is type(found):
        return _first_in_sequences(expected, found, name)
    elif expected == found:
        return None
    return name, repr(expected), repr(found)


def _first_in_mappings(
    expected: Mapping[Any, object], found: Mapping[Any, object], name: str
) -> tuple[str, str, str] | None:
    if list(expected) != list(found):
        return f"{name}.keys()", str(list(expected)), str(list(found))
    for key, value in expected.items():
        if (place := first_difference(value, found[key], f"{name}[{key!r}]")) is not None:
            return place
    return None


def _first_in_sequences(
    expected: Sequence[object], found: Sequence[object], name: str
) -> tuple[str, str, str] | None:
    for number, (a, b) in enumerate(zip(expected, found, strict=False)):
        if (place := first_difference(a, b, f"{name}[{number}]")) is not None:
            return place
    if len(expected) == len(found):
        return None
    return f"len({name})", str(len(expected)), str(len(found))


def _first_in_arrays(
    expected: np.ndarray[Any, Any], found: np.ndarray[Any, Any], name: str
) -> tuple[str, str, str] | None:
    if (expected.dtype, expected.shape) != (found.dtype, found.shape):
        return name, f"{expected.dtype}{expected.shape}", f"{found.dtype}{found.shape}"
    unequal = expected != found
    if np.issubdtype(expected.dtype, np.floating):
        unequal &= ~(np.isnan(expected) & np.isnan(found))
    if not unequal.any():
        return None
    at = tuple(int(index[0]) for index in np.nonzero(unequal))
    return f"{name}[{', '.join(map(str, at))}]", repr(expected[at].item()), repr(found[at].item())
