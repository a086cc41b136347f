"""Simulations under schedulers that the compiled engine can follow by itself, whole episodes in its loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

from dsd_env.scenario import Scenario
from dsd_env.schedulers import Scheduler, make_scheduler
from dsd_env.schedulers.fleet import FleetPolicyScheduler
from dsd_env.schedulers.goodput import GoodputScheduler

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


def fast_runs(runs: Sequence[R], *, compiled: bool = True) -> Iterator[tuple[R, dict[str, float]]] | None:
    """Return the results of simulations of one scenario and scheduler as they come, bit for bit `simulate`'s.

    Args:
        runs: What to simulate.
        compiled: The compiled engine simulates this scenario.

    Returns:
        Each run with its metrics; None if the scheduler has to be asked for every decision.
    """
    from dsd_env.whole_runs.fleet import run_fleet
    from dsd_env.whole_runs.goodput import can_play, run_goodput
    from dsd_env.whole_runs.static import StaticPlayer, run_statics

    player = make_scheduler(runs[0].scheduler)
    if isinstance(player, FleetPolicyScheduler):
        return run_fleet(runs, player.policy)
    if compiled and isinstance(player, StaticPlayer):
        return run_statics(runs)
    if compiled and isinstance(player, GoodputScheduler) and can_play(runs[0].scenario):
        return run_goodput(runs)
    return None


def play_alone(simulation: CompiledSimulation, layout: Layout, player: Scheduler, seed: int) -> bool:
    """Play a simulation to its end inside the compiled engine, if it can follow the scheduler by itself.

    Args:
        simulation: The simulation, at its beginning, without a log of events.
        layout: Its scenario as compiled for the compiled engine.
        player: The scheduler, as it comes from the registry: what a subclass decides otherwise is not seen.
        seed: Its seed.

    Returns:
        Whether it has been played; if not, the scheduler has to be asked for every decision.
    """
    from dsd_env.whole_runs.goodput import can_play, play_goodput, rule_bytes
    from dsd_env.whole_runs.static import StaticPlayer, play_static

    if isinstance(player, StaticPlayer):
        play_static(simulation, layout, player, seed)
        return True
    if isinstance(player, GoodputScheduler) and can_play(simulation.scenario):
        play_goodput(simulation, layout, rule_bytes(player, simulation.scenario))
        return True
    return False
