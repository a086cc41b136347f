"""Copies of worlds of the compiled engine that take no more time than what is in use needs.

A world is tens of megabytes of room, of which few are in use. `clone_state` of the environment copies all of
it; a look-ahead that goes back thousands of times an episode copies the state, and of the queue of events, of
streams' messages and of the table of requests the rows in use. What lies behind these is written before it is
read, whatever it holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dsd_env.control.fleet import FleetSpace
from dsd_env.envs.fleet_worlds import HEAP_EVENTS, CompiledFleetWorld
from dsd_env.sim.compiled import codes
from dsd_env.sim.compiled import records as rec
from dsd_env.sim.compiled.tables import Bytes, Layout
from dsd_env.sim.engines import compiled_layout


@dataclass(frozen=True, slots=True)
class Clone:
    """What is in use of a world whose decision is due.

    Attributes:
        parts: Where each part begins, in bytes, and the part.
    """

    parts: tuple[tuple[int, Bytes], ...]


class PlayedWorld(CompiledFleetWorld):
    """A world that says of which plans it is.

    It keeps no times of deliveries, which only percentiles of the gaps between tokens need.

    Attributes:
        space: The plans.
    """

    def __init__(self, space: FleetSpace, layout: Layout | None = None) -> None:
        """Compile the scenario, or share what was compiled for another world of it.

        Raises:
            dsd_env.sim.engines.EngineImportError: The compiled engine cannot be used.
        """
        if layout is None:
            room = {"heap_events": max(HEAP_EVENTS, 64 * space.scenario.n_devices)}
            layout = compiled_layout("compiled", space.scenario, options={"keep_deliveries": False, **room})
            assert layout is not None
        super().__init__(space, layout)
        self.space = space


def clone(world: PlayedWorld) -> Clone:
    """Return what is in use of a world."""
    memory: Bytes = world.simulation.world
    layout = world.layout
    return Clone(tuple((at, memory[at : at + size].copy()) for at, size in _in_use(layout, memory)))


def put(saved: Clone, world: PlayedWorld) -> None:
    """Make a world of the same scenario, of whatever episode, the one that was cloned."""
    simulation = world.simulation
    for at, part in saved.parts:
        simulation.world[at : at + len(part)] = part
    simulation.terminated = simulation.truncated = False


def draw_anew(world: PlayedWorld, seed: int) -> None:
    """Let all that a world still has to draw be that of another seed.

    What has been drawn stays: the phase of the load, devices and their links, lengths of the answers under
    way, the next arrival, messages under way. What comes after these is another future of the same present.
    """
    header: Any = world.simulation.world[: rec.WORLD.itemsize].view(rec.WORLD.dtype)[0]
    header["seed"] = seed


def _in_use(layout: Layout, memory: Bytes) -> list[tuple[int, int]]:
    """Return where the parts in use begin, and their lengths, in bytes."""
    header: Any = memory[: rec.WORLD.itemsize].view(rec.WORLD.dtype)[0]
    n_slots, free_n = int(layout.header["n_slots"]), int(header["free_n"])
    free = memory[int(header["free"]) :][: 4 * free_n].view("i4")
    taken = set(range(n_slots)).difference(free.tolist())
    streaming = bool(layout.header["streaming"])
    messages = codes.RING * (1 + max(taken, default=-1)) if streaming else 0
    rows = (
        ("heap", rec.SCHEDULED, int(header["heap_n"])),
        ("stream_messages", rec.DRAFT_MESSAGE, messages),
        ("stream_results", rec.STREAM_RESULT, messages),
        ("table", rec.COMPLETED, int(header["table_n"])),
        ("deliveries", rec.DELIVERED, int(header["deliveries_n"])),
    )
    return [(0, layout.state_bytes)] + [
        (int(header[block]), record.itemsize * n) for block, record, n in rows if n > 0
    ]
