"""A plan executed inside the compiled loop: each group's choice answers the decisions of its requests."""
# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dsd_env.sim.compiled.kernel.jit import entry
from dsd_env.sim.compiled.kernel.loop import RUN, answer, as_scenario, as_world, call_run, pointer
from dsd_env.sim.compiled.kernel.planned import BATCH, planned
from dsd_env.sim.compiled.status import DUE


def follow_plan(
    constants: NDArray[np.uint8],
    world: NDArray[np.uint8],
    groups: NDArray[np.int64],
    choices: NDArray[np.int64],
    until_s: float,
) -> int:
    """Answer the due decision and those after it, until one is due at or after a time; return the status.

    Args:
        constants: The scenario's constants.
        world: The world.
        groups: Number of each request's group by device and class of objectives.
        choices: What each group does, in the columns of :mod:`dsd_env.sim.compiled.kernel.planned`.
        until_s: Simulated time.
    """
    return int(_follow(RUN, constants, world, groups, choices, until_s))


@entry()
def _follow(run, constants, world, groups, choices, until_s):
    k, w = as_scenario(pointer(constants)), as_world(pointer(world))
    while True:
        request = w.requests[w.pending]
        group = groups[request.device, k.kinds[request.kind].slo_class]
        gamma, placement = planned(k, w, choices[group])
        answer(k, w, gamma, choices[group, BATCH], placement)
        status = call_run(run, (pointer(constants), pointer(world)))
        if status != DUE or w.now_s >= until_s:
            return status
