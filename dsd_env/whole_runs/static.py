"""Simulations under static choices, at the pace of the compiled engine.

A static rule decides alike as long as a request stays where it drafts. So it is asked until its choice holds,
and after that the engine repeats it by itself for as long as the placement can draft. The result is that of
:func:`dsd_env.simulate`, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from dsd_env.control import Decision, DecisionView
from dsd_env.schedulers import Scheduler, make_scheduler
from dsd_env.sim.engines import compiled_layout
from dsd_env.whole_runs.runs import R, Run

if TYPE_CHECKING:
    from dsd_env.sim.compiled import CompiledSimulation, Layout


@runtime_checkable
class StaticPlayer(Scheduler, Protocol):
    """A scheduler that says when it will go on deciding alike."""

    def holds(self, view: DecisionView, decision: Decision) -> bool:
        """Return whether it decides alike for this request as long as the placement can draft."""
        ...


def run_statics(
    tasks: Sequence[R], make: Callable[[str], Scheduler] = make_scheduler
) -> Iterator[tuple[R, dict[str, float]]]:
    """Simulate tasks whose schedulers are static, in this process; yield each with its metrics.

    Args:
        tasks: What to simulate.
        make: Makes a scheduler of its name.

    Raises:
        ValueError: A scheduler does not say when its choice holds.
    """
    players = [make(task.scheduler) for task in tasks]
    static = [player for player in players if isinstance(player, StaticPlayer)]
    for task, player in zip(tasks, players, strict=True):
        if player not in static:
            raise ValueError(f"{task.scheduler!r} may change its mind: only static choices run here")
    for task, player in zip(tasks, static, strict=True):
        yield task, played_static(task, player).metrics()


def played_static(task: Run, player: StaticPlayer, layout: Layout | None = None) -> CompiledSimulation:
    """Return a simulation that a static choice has played to its end, with its metrics and its requests.

    Args:
        task: What to simulate.
        player: Its scheduler.
        layout: The scenario as compiled for the compiled engine, to compile it only once.
    """
    from dsd_env.sim.compiled import CompiledSimulation

    layout = compiled_layout("compiled", task.scenario) if layout is None else layout
    assert layout is not None
    simulation = CompiledSimulation(task.scenario, task.seed, layout=layout)
    play_static(player, simulation, layout, task.seed)
    return simulation


def play_static(player: StaticPlayer, simulation: CompiledSimulation, layout: Layout, seed: int) -> None:
    """Play a simulation to its end under a static choice.

    Args:
        player: Its scheduler.
        simulation: The simulation, at its beginning, without a log of events.
        layout: Its scenario as compiled for the compiled engine.
        seed: Its seed.
    """
    from dsd_env.sim.compiled.kernel.loop import RUN
    from dsd_env.sim.compiled.status import DUE
    from dsd_env.sim.compiled.world import WorldReader
    from dsd_env.whole_runs.static_kernel import go_on

    reader = WorldReader(layout, simulation.world)
    player.reset(simulation.scenario, seed)
    known: NDArray[np.int64] = np.full(256, -1, dtype=np.int64)
    choices: NDArray[np.int64] = np.zeros((256, 3), dtype=np.int64)
    due = simulation.advance()
    while due:
        slot, view = int(reader.header["pending"]), reader.view()
        while slot >= len(known):
            known = np.concatenate([known, np.full_like(known, -1)])
            choices = np.concatenate([choices, np.zeros_like(choices)])
        decision = player.decide(view)
        known[slot] = view.request_id if player.holds(view, decision) else -1
        due = go_on(RUN, layout.constants, simulation.world, known, choices, *decision[:3]) == DUE
        reader.check()
