"""From a deployment to the tables of the compiled part of its controller.

They are those of a world with one request, without workload, faults, acceptance or links that change: all of
that a controller is told.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from dsd_env.scenario.schema import Scenario
from dsd_env.sim.compiled import records as rec
from dsd_env.sim.compiled.tables import Bytes, Compiler, Layout
from dsd_env.sim.entities import StepTimer

Timers = tuple[StepTimer, ...]


@dataclass(frozen=True)
class ServedTimers:
    """Step times of a deployment, in the place of a :class:`dsd_env.sim.world.WorldBuilder`.

    Attributes:
        device_timers: Of the drafters of each class of devices.
        edge_timers: Of those of each class of edge servers.
        target_timers: Of each class of targets, and of the drafters at them.
    """

    device_timers: Sequence[Timers]
    edge_timers: Sequence[Timers]
    target_timers: Sequence[tuple[StepTimer, Timers]]
    schedule: None = None
    capacity_tokens_per_s: float = math.nan


def compile_served(scenario: Scenario, timers: ServedTimers) -> tuple[Layout, Bytes, Bytes]:
    """Return the layout of a controller's world, its constants, which the caller may write to, and the world.

    Args:
        scenario: The deployment.
        timers: Its step times.
    """
    compiler = _ServedCompiler(scenario, timers)
    compiler.constants()
    layout = compiler.layout(1, 16, 0, False)
    constants, world = layout.constants.copy(), layout.new_worlds(1)[0]
    header = layout.header
    image = int(header["image"])
    n_bytes = int(header["image_bytes"])
    world[:n_bytes] = constants[image : image + n_bytes]
    # One report of each server, the one that is known, at the first place of the rings.
    world[: rec.WORLD.itemsize].view(rec.WORLD.dtype)["ticks"] = 1
    return layout, constants, world


class _ServedCompiler(Compiler):
    """Fills the tables of a controller's world."""

    def __init__(self, scenario: Scenario, timers: ServedTimers) -> None:
        super().__init__(scenario, cast(Any, timers))
        self.crashing, self.faults = [], []

    def constants(self) -> None:
        """Write all constants but those of the world's size."""
        self._header()
        self._drafters()
        self._targets()
        n_channels = 4 * self.n_devices + 2 * self.n_edges * self.n_targets
        self.set(told=True, n_channels=n_channels)
        self.k.point("channels", self.buffer.rows(rec.CHANNEL_SPEC, n_channels).at)
        # One kind of request for each class of SLO: a controller is told no more of a request.
        kinds = self.buffer.rows(rec.KIND_SPEC, len(self.scenario.slo))
        for number, slo in enumerate(self.scenario.slo.values()):
            kinds.set(number, slo_class=number, **slo.bounds())
        self.k.point("kinds", kinds.at)

    def _most_requests(self, slots: int) -> tuple[int, int]:
        return 1, 1
