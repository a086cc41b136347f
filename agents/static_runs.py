"""Simulations under fixed choices, at the pace of the compiled engine.

A static rule decides alike as long as a request lives. So it is asked at a request's admission and at its
first decision after that, and the rest happens inside the engine. Of several edge servers the one chosen then
is kept, where the rule itself may go to another. Everything else is as under :func:`dsd_env.simulate`, bit
for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from agents.evaluation import Task
from dsd_env.control import Decision, DecisionView, Site
from dsd_env.scenario import Scenario
from dsd_env.schedulers import Scheduler, make_scheduler
from dsd_env.sim.engines import compiled_layout

STATIC = ("static:", "static_map:", "by_load:", "cloud_ar", "colocated_sd", "edge_sd")
"""Beginnings of the names of schedulers that choose once per request."""


def run_statics(
    tasks: Sequence[Task], make: Callable[[str], Scheduler] = make_scheduler
) -> Iterator[tuple[Task, dict[str, float]]]:
    """Simulate tasks whose schedulers are static, in this process; yield each with its metrics.

    Args:
        tasks: What to simulate.
        make: Makes a scheduler of its name.

    Raises:
        ValueError: A scheduler is none of those that choose once per request.
    """
    for task in tasks:
        if not task.scheduler.startswith(STATIC):
            raise ValueError(
                f"{task.scheduler!r} may change its mind: here are only {', '.join(STATIC)} and the like"
            )
    for task in tasks:
        yield task, _simulate(task, make(task.scheduler))


def _may_move(scenario: Scenario, view: DecisionView, decision: Decision) -> bool:
    """Return whether what is chosen may stand elsewhere among the candidates at the request's next decision.

    At admission any target on offer may come first; from then on the request's own does. Likewise an edge
    server comes first once it has drafted, where they are offered in an order of the moment.
    """
    chosen = view.candidates[decision.placement]
    drafts_at_edge = decision.gamma > 0 and chosen.site == Site.EDGE_SERVER
    to_come = scenario.edge_servers_ordered and drafts_at_edge and not chosen.is_current
    return view.request.is_admission or to_come


def _simulate(task: Task, player: Scheduler) -> dict[str, float]:
    from agents.static_kernel import go_on
    from dsd_env.sim.compiled import CompiledSimulation
    from dsd_env.sim.compiled.kernel.loop import RUN
    from dsd_env.sim.compiled.status import DUE
    from dsd_env.sim.compiled.world import WorldReader

    layout = compiled_layout("compiled", task.scenario)
    assert layout is not None
    simulation = CompiledSimulation(task.scenario, task.seed, layout=layout)
    reader = WorldReader(layout, simulation.world)
    player.reset(task.scenario, task.seed)
    known: NDArray[np.int64] = np.full(256, -1, dtype=np.int64)
    choices: NDArray[np.int64] = np.zeros((256, 3), dtype=np.int64)
    due = simulation.advance()
    while due:
        slot, view = int(reader.header["pending"]), reader.view()
        while slot >= len(known):
            known = np.concatenate([known, np.full_like(known, -1)])
            choices = np.concatenate([choices, np.zeros_like(choices)])
        decision = player.decide(view)
        known[slot], choices[slot] = view.request_id, decision
        once = int(_may_move(task.scenario, view, decision))
        due = go_on(RUN, layout.constants, simulation.world, known, choices, once) == DUE
        reader.check()
    return simulation.metrics()
