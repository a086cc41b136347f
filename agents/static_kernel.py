"""A compiled loop answering the decisions of requests whose choice is made; for :mod:`agents.static_runs`."""
# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

from __future__ import annotations

from dsd_env.sim.compiled.kernel.jit import entry
from dsd_env.sim.compiled.kernel.loop import answer, as_scenario, as_world, call_run, pointer
from dsd_env.sim.compiled.status import DUE


@entry()
def go_on(run, constants, world, known, choices, once):
    """Answer due decisions by the choices known, until one of another request is due or the episode ends.

    Args:
        run: Address of the engine's loop.
        constants: The scenario's constants.
        world: The world.
        known: Number of the request whose choice is known, by the request's place in the world.
        choices: Its gamma, B and placement.
        once: 1 if the choice of the request that is due first holds for this decision only.

    Returns:
        The world's status.
    """
    k, w = as_scenario(pointer(constants)), as_world(pointer(world))
    status = int(w.status)
    while status == DUE:
        slot = w.pending
        if slot >= len(known) or known[slot] != w.requests[slot].number:
            break
        answer(k, w, choices[slot, 0], choices[slot, 1], choices[slot, 2])
        if once == 1:
            known[slot] = -1
            once = 0
        status = call_run(run, (pointer(constants), pointer(world)))
    return status
