"""The interface that the comparison needs from an engine, and the two engines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dsd_env.control.actions import Decision
from dsd_env.control.view import DecisionView
from dsd_env.scenario import Scenario
from dsd_env.sim.events import Event
from dsd_env.sim.metrics import Totals
from dsd_env.sim.reference import ReferenceSimulation, Resolution
from dsd_env.sim.world import WorldBuilder


class Engine(Protocol):
    """One episode of one scenario, stepped from decision to decision; see the reference engine."""

    scenario: Scenario
    events: list[Event]

    @property
    def terminated(self) -> bool: ...  # noqa: D102

    @property
    def truncated(self) -> bool: ...  # noqa: D102

    @property
    def now_s(self) -> float: ...  # noqa: D102

    @property
    def totals(self) -> Totals: ...  # noqa: D102

    @property
    def active_requests(self) -> int: ...  # noqa: D102

    @property
    def newly_completed(self) -> Sequence[Any]: ...  # noqa: D102

    @property
    def due_request(self) -> Any: ...  # noqa: D102

    @property
    def resolved(self) -> dict[str, int]: ...  # noqa: D102

    def next_decision(self) -> DecisionView | None: ...  # noqa: D102

    def decide(self, decision: Decision) -> Resolution: ...  # noqa: D102

    def metrics(self) -> dict[str, float]: ...  # noqa: D102

    def requests_table(self) -> dict[str, NDArray[np.generic]]: ...  # noqa: D102


Factory = Callable[[Scenario, int, WorldBuilder, bool], Engine]
"""Makes an engine for (scenario, seed, builder of its worlds, accounting of delays), recording events.

An engine with a method ``observe() -> (observation, mask)`` is held against the encoder, too.
"""


def reference_engine(scenario: Scenario, seed: int, builder: WorldBuilder, price_delays: bool) -> Engine:
    """Return the reference engine, which is the definition."""
    return ReferenceSimulation(scenario, seed, record_events=True, price_delays=price_delays, builder=builder)


def compiled_engine(scenario: Scenario, seed: int, builder: WorldBuilder, price_delays: bool) -> Engine:
    """Return the compiled engine.

    Raises:
        ImportError: Numba is not installed.
    """
    from dsd_env.sim.compiled import CompiledSimulation

    return CompiledSimulation(scenario, seed, record_events=True, price_delays=price_delays, builder=builder)
