"""A compiled loop answering requests whose choice is made; for :mod:`dsd_env.whole_runs.static`."""
# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

from __future__ import annotations

from dsd_env.sim.compiled.kernel.jit import entry, jit
from dsd_env.sim.compiled.kernel.links import EDGE_SERVER
from dsd_env.sim.compiled.kernel.loop import answer, as_scenario, as_world, call_run, pointer
from dsd_env.sim.compiled.status import DUE


@entry()
def go_on(run, constants, world, known, choices, gamma, batch_size, placement):
    """Answer the due decision, and those after it by the choices known, until another is due or all is over.

    Args:
        run: Address of the engine's loop.
        constants: The scenario's constants.
        world: The world.
        known: Number of the request whose choice is known, by the request's place in the world; else -1.
        choices: Its gamma, B and placement.
        gamma: Speculation length of the decision that is due, which becomes the choice of its request.
        batch_size: B, likewise.
        placement: Its placement, likewise.

    Returns:
        The world's status.
    """
    k, w = as_scenario(pointer(constants)), as_world(pointer(world))
    slot = w.pending
    choices[slot, 0], choices[slot, 1], choices[slot, 2] = gamma, batch_size, placement
    while True:
        answer(k, w, choices[slot, 0], choices[slot, 1], choices[slot, 2])
        status = call_run(run, (pointer(constants), pointer(world)))
        if status != DUE:
            return status
        slot = w.pending
        if slot >= len(known) or known[slot] != w.requests[slot].number:
            return status
        if not _still_holds(k, w, w.requests[slot], choices[slot, 0], choices[slot, 2]):
            return status


@jit
def _still_holds(k, w, request, gamma, placement):
    """Return whether a choice means the same now as when it was made.

    Not if the request has no target any more, or its placement cannot draft. Of several edge servers a rule
    keeps the one where a stream is open; otherwise it may choose another.
    """
    if request.target < 0:
        return False
    if gamma == 0:
        return True
    candidate = w.candidates[placement]
    if candidate.valid == 0.0:
        return False
    if candidate.site != EDGE_SERVER or k.n_edges == 1:
        return True
    open_there = candidate.is_current != 0.0 and candidate.streams != 0.0
    return open_there and w.due_view.request.window_tokens > 0.0
