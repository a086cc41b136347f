"""Simulations under schedulers that the compiled engine can follow by itself, whole episodes in its loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeVar

from dsd_env.scenario import Scenario
from dsd_env.schedulers import Scheduler, make_scheduler
from dsd_env.schedulers.fleet import FleetPolicyScheduler
from dsd_env.schedulers.goodput import GoodputScheduler
from dsd_env.schedulers.policy import PolicyScheduler
from dsd_env.sim.engines import compiled_layout

if TYPE_CHECKING:
    from dsd_env.sim.compiled import CompiledSimulation, Layout


class Run(Protocol):
    """One simulation that is asked for."""

    @property
    def scenario(self) -> Scenario:
        """What is simulated."""
        ...

    @property
    def scheduler(self) -> str:
        """Specification of the scheduler."""
        ...

    @property
    def seed(self) -> int:
        """Episode seed."""
        ...


R = TypeVar("R", bound=Run)
Play = Callable[["CompiledSimulation", "Layout", int], None]
"""Plays a simulation of a layout and a seed to its end."""


def fast_runs(runs: Sequence[R], *, compiled: bool = True) -> Iterator[tuple[R, dict[str, float]]] | None:
    """Return the results of simulations of one scenario and scheduler as they come, bit for bit `simulate`'s.

    Args:
        runs: What to simulate.
        compiled: The compiled engine simulates this scenario.

    Returns:
        Each run with its metrics; None if the scheduler has to be asked for every decision.
    """
    from dsd_env.whole_runs.fleet import run_fleet

    player = make_scheduler(runs[0].scheduler)
    if isinstance(player, FleetPolicyScheduler):
        return run_fleet(runs, player.policy)
    play = player_of(player, runs[0].scenario) if compiled else None
    return None if play is None else _played(runs, play)


def _played(runs: Sequence[R], play: Play) -> Iterator[tuple[R, dict[str, float]]]:
    from dsd_env.sim.compiled import CompiledSimulation

    layout = compiled_layout("compiled", runs[0].scenario)
    assert layout is not None
    for run in runs:
        simulation = CompiledSimulation(run.scenario, run.seed, layout=layout)
        play(simulation, layout, run.seed)
        yield run, simulation.metrics()


def player_of(scheduler: Scheduler, scenario: Scenario) -> Play | None:
    """Return what plays a scenario under a scheduler inside the compiled engine.

    Args:
        scheduler: The scheduler, as it comes from the registry; what a subclass decides otherwise may be
            ignored.
        scenario: The scenario.

    Returns:
        A function that plays a simulation, at its beginning and without a log of events, to its end; None if
        the scheduler has to be asked for every decision.
    """
    from dsd_env.whole_runs.adaptive import can_follow, play_adaptive
    from dsd_env.whole_runs.goodput import can_play, play_goodput, rule_bytes
    from dsd_env.whole_runs.policies import play_policy
    from dsd_env.whole_runs.static import StaticPlayer, play_static

    if isinstance(scheduler, StaticPlayer):
        return partial(play_static, scheduler)
    if isinstance(scheduler, GoodputScheduler) and can_play(scenario):
        return partial(play_goodput, rule_bytes(scheduler, scenario))
    if can_follow(scheduler):
        return partial(play_adaptive, scheduler)
    if isinstance(scheduler, PolicyScheduler) and not scheduler.policy.flat:
        return partial(play_policy, scheduler)
    return None
