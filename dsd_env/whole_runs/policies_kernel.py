"""A compiled loop that shows a policy what it decides by, and carries its choices out.

For :mod:`dsd_env.whole_runs.policies`.
"""
# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

from __future__ import annotations

from dsd_env.sim.compiled.batch import see
from dsd_env.sim.compiled.kernel.jit import entry
from dsd_env.sim.compiled.kernel.loop import answer, as_scenario, as_world, call_run, pointer
from dsd_env.sim.compiled.kernel.stopping import stop_as_listed
from dsd_env.sim.compiled.status import DUE


@entry()
def look(constants, world, padding, observation, mask):
    """Write observation and mask of the due decision, for a list of candidates longer by `padding`."""
    see(as_scenario(pointer(constants)), as_world(pointer(world)), padding, observation, mask)


@entry()
def go_on(run, constants, world, padding, action, observation, mask):
    """Carry an action out, and write observation and mask of the next decision if there is one.

    Args:
        run: Address of the engine's loop.
        constants: The scenario's constants.
        world: The world, with a decision due.
        padding: By how many candidates the policy's list is longer.
        action: int64, shape (3,): indices of length, batch size and candidate on the scenario's lists.
        observation: float32, shape (n_features,); overwritten.
        mask: bool, shape (n_lengths + n_batch_sizes + n_candidates,); overwritten.

    Returns:
        The world's status.
    """
    k, w = as_scenario(pointer(constants)), as_world(pointer(world))
    answer(k, w, k.gammas[action[0]], k.batch_sizes[action[1]], action[2])
    stop_as_listed(k, w, action[0])
    status = call_run(run, (pointer(constants), pointer(world)))
    if status == DUE:
        see(k, w, padding, observation, mask)
    return status
