"""Simulations under a policy that decides on single requests, by the engine's own observations.

The compiled engine writes each observation and mask, so that no typed view is assembled, which takes longer
than all the rest. The network is asked as ever (:mod:`dsd_env.policy.network`). The result is that of
:func:`dsd_env.simulate`, bit for bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dsd_env.control import ActionSpace
from dsd_env.policy.other_lists import OtherLists
from dsd_env.schedulers.policy import PolicyScheduler

if TYPE_CHECKING:
    from dsd_env.sim.compiled import CompiledSimulation, Layout


def play_policy(player: PolicyScheduler, simulation: CompiledSimulation, layout: Layout, seed: int) -> None:
    """Play a simulation to its end under a policy.

    Args:
        player: The policy's scheduler; its actions are not flat.
        simulation: The simulation, at its beginning, without a log of events.
        layout: Its scenario as compiled for the compiled engine.
        seed: Its seed.
    """
    from dsd_env.sim.compiled.kernel.loop import RUN
    from dsd_env.sim.compiled.status import DUE
    from dsd_env.sim.compiled.world import WorldReader
    from dsd_env.whole_runs.policies_kernel import go_on, look

    scenario, policy = simulation.scenario, player.policy
    player.reset(scenario, seed)
    lists = ActionSpace.of(scenario, policy.actions.n_placements)
    asked = OtherLists(policy, lists)
    padding = lists.n_placements - scenario.n_placements
    observation = np.zeros(policy.manifest.network.layers[0], dtype=np.float32)
    mask, action = np.zeros(sum(lists.nvec), dtype=np.bool_), np.zeros(3, dtype=np.int64)
    constants, world = layout.constants, simulation.world
    if not simulation.advance():
        return
    look(constants, world, padding, observation, mask)
    status = DUE
    while status == DUE:
        action[:] = asked.action(observation, mask)
        status = go_on(RUN, constants, world, padding, action, observation, mask)
    WorldReader(layout, world).check()
