"""The simulated world behind the fleet view, with the same interface for both engines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from dsd_env.control.fleet import FleetSpace, Plan
from dsd_env.schedulers.fleet import PlanScheduler
from dsd_env.sim import ReferenceSimulation
from dsd_env.sim.engines import compiled_layout
from dsd_env.sim.world import WorldBuilder

if TYPE_CHECKING:
    from dsd_env.sim.compiled import Layout
    from dsd_env.sim.compiled.tables import Bytes


HEAP_EVENTS = 1 << 16
"""Capacity for scheduled events. Plans that move many requests leave behind the end events of many abandoned
draft jobs: a slow device that is prefilling a long context is interrupted by every result."""


@dataclass(frozen=True, slots=True)
class SavedFleet:
    """The saved state of a world between two plans.

    Attributes:
        world: Bytes of the world (compiled engine).
        followed: The plans so far, and the time until which each was followed (reference engine, which
            repeats them).
    """

    world: Bytes | None = None
    followed: tuple[tuple[Plan, float], ...] = ()


class FleetWorld(Protocol):
    """Episodes of one scenario, each run from plan to plan.

    Attributes:
        engine: Name of the engine.
        simulation: The simulation of the current episode.
    """

    engine: str
    simulation: Any

    def begin(self, seed: int) -> bool:
        """Start the episode with a seed and run to its first decision; return whether there is one."""

    def follow(self, plan: Plan, until_s: float) -> bool:
        """Answer the decision now due, and those after it, by a plan.

        Args:
            plan: The plan.
            until_s: Simulated time at which to stop; the first decision due at or after it is not answered.

        Returns:
            Whether a decision is due; False at the end of the episode.
        """

    def save(self) -> SavedFleet:
        """Return the state of the world, for :meth:`restore`."""

    def restore(self, seed: int, saved: SavedFleet) -> None:
        """Restore the saved state of a world, from the episode with the given seed."""


class ReferenceFleetWorld:
    """A world on the reference engine; see :class:`FleetWorld`."""

    engine = "reference"

    def __init__(self, space: FleetSpace) -> None:
        """Prepare the episodes of a scenario."""
        self._space, self._builder = space, WorldBuilder(space.scenario)
        self.simulation: ReferenceSimulation

    def begin(self, seed: int) -> bool:
        """Start the episode with a seed and run to its first decision; return whether there is one."""
        self.simulation = ReferenceSimulation(self._space.scenario, seed, builder=self._builder)
        self._view = self.simulation.next_decision()
        self._followed: list[tuple[Plan, float]] = []
        return self._view is not None

    def follow(self, plan: Plan, until_s: float) -> bool:
        """Answer decisions by a plan; see :meth:`FleetWorld.follow`."""
        player, view = PlanScheduler(self._space, plan), self._view
        assert view is not None
        self._followed.append((plan, until_s))
        while view is not None:
            self.simulation.decide(player.decide(view))
            view = self.simulation.next_decision()
            if view is not None and view.now_s >= until_s:
                break
        self._view = view
        return view is not None

    def save(self) -> SavedFleet:
        """Return the plans so far, which repeat the episode up to now."""
        return SavedFleet(followed=tuple(self._followed))

    def restore(self, seed: int, saved: SavedFleet) -> None:
        """Restore a saved state by repeating its episode, because SimPy's processes cannot be copied."""
        self.begin(seed)
        for plan, until_s in saved.followed:
            self.follow(plan, until_s)


class CompiledFleetWorld:
    """A world on the compiled engine, which carries out a plan without leaving compiled code."""

    engine = "compiled"

    def __init__(self, space: FleetSpace, layout: Layout) -> None:
        """Prepare the episodes of a scenario; several worlds of a scenario can share its layout."""
        from dsd_env.sim.compiled import CompiledSimulation

        self._space, self.layout = space, layout
        self.simulation: CompiledSimulation

    def begin(self, seed: int) -> bool:
        """Start the episode with a seed and run to its first decision; return whether there is one."""
        from dsd_env.sim.compiled import CompiledSimulation

        self.simulation = CompiledSimulation(self._space.scenario, seed, layout=self.layout)
        return self.simulation.advance()

    def follow(self, plan: Plan, until_s: float) -> bool:
        """Answer decisions by a plan; see :meth:`FleetWorld.follow`."""
        from dsd_env.sim.compiled.table_plan import plan_rows

        rows = plan_rows(self._space.scenario, self._space.choices(plan))
        return self.simulation.follow(self._space.group_of, rows, until_s)

    def save(self) -> SavedFleet:
        """Return a copy of the world."""
        return SavedFleet(self.simulation.save())

    def restore(self, seed: int, saved: SavedFleet) -> None:
        """Restore a copy of the world."""
        assert saved.world is not None
        self.begin(seed)
        self.simulation.restore(saved.world)


def make_fleet_world(
    engine: str,
    space: FleetSpace,
    options: Mapping[str, int] | None = None,
    layout: Layout | None = None,
) -> FleetWorld:
    """Return a world on the given engine.

    Args:
        engine: ``compiled``, ``reference``, or ``auto``: the compiled engine where it can run.
        space: Plan space of the scenario.
        options: Bounds of the compiled engine.
        layout: The compiled scenario of another world, to share it.

    Raises:
        ValueError: The engine is unknown.
        EngineImportError: ``compiled`` needs Numba, which is not installed.
    """
    if layout is None:
        room = {"heap_events": max(HEAP_EVENTS, 64 * space.scenario.n_devices)}
        layout = compiled_layout(engine, space.scenario, options=room | dict(options or {}))
    return ReferenceFleetWorld(space) if layout is None else CompiledFleetWorld(space, layout)
