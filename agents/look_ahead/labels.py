"""What a look-ahead has decided, as pairs of observation and plan: labels that a policy can be fitted to."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agents.benchmark.config import BenchmarkError
from agents.benchmark.running import metrics_digest
from agents.look_ahead.clones import PlayedWorld
from agents.look_ahead.futures import Base
from agents.look_ahead.records import Kept
from dsd_env.control.fleet_view import FleetEncoder, fleet_view
from dsd_env.whole_runs.fleet import Choose


@dataclass(frozen=True)
class Labels:
    """Labels: a row for every control period of episodes.

    Attributes:
        observations: What a controller knew, float32, shape (N, features).
        plans: What was followed, int64, shape (N, 3 · groups).
        base: What the base would have done there, int64, shape (N, 3 · groups).
        seeds: Seed of the episode, int64, shape (N,).
    """

    observations: NDArray[np.float32]
    plans: NDArray[np.int64]
    base: NDArray[np.int64]
    seeds: NDArray[np.int64]

    @property
    def changed(self) -> NDArray[np.bool_]:
        """Where the plan is not that of the base, shape (N,)."""
        return np.asarray((self.plans != self.base).any(axis=1))

    def and_those(self, others: Labels) -> Labels:
        """Return these rows and others behind them."""
        names = ("observations", "plans", "base", "seeds")
        return Labels(*(np.concatenate([getattr(self, name), getattr(others, name)]) for name in names))

    def of(self, which: NDArray[np.bool_]) -> Labels:
        """Return some of the rows."""
        return Labels(self.observations[which], self.plans[which], self.base[which], self.seeds[which])


def labels_of(world: PlayedWorld, base: Base, episodes: Iterable[Kept], begin_s: float = 0.0) -> Labels:
    """Play the plans of episodes again, period by period, and note what was known and what was done.

    Args:
        world: A world of the scenario.
        base: The look-ahead's base, which is asked beside.
        episodes: The episodes.
        begin_s: Simulated time from which on periods are taken: before the look-ahead begins to decide, the
            base plays alone.

    Raises:
        BenchmarkError: The plans lead to other numbers than those kept: the simulator has changed.
    """
    parts = [_episode(world, base, kept, begin_s) for kept in episodes]
    return Labels(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def base_labels_of(
    world: PlayedWorld, base: Base, choose: Choose, seeds: Iterable[int], begin_s: float = 0.0
) -> Labels:
    """Let a policy drive, and note what the base would have done in the states that it comes to.

    Args:
        world: A world of the scenario.
        base: The base.
        choose: The policy: makes a plan of observation and mask.
        seeds: The episodes.
        begin_s: Simulated time from which on periods are taken.
    """
    parts = []
    for seed in seeds:
        observations, _, of_base = _follow(
            world, base, seed, lambda now_s, seen: np.array(choose(seen, world.space.mask)), begin_s
        )
        parts.append((observations, of_base, of_base, np.full(len(of_base), seed, dtype=np.int64)))
    return Labels(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _episode(
    world: PlayedWorld, base: Base, kept: Kept, begin_s: float
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    steps = iter(kept.steps)
    until_s, plan = next(steps)

    def kept_plan(now_s: float, seen: NDArray[np.float32]) -> NDArray[np.int64]:
        nonlocal until_s, plan
        while now_s >= until_s:
            until_s, plan = next(steps, (math.inf, plan))
        return plan.ravel()

    observations, plans, of_base = _follow(world, base, kept.seed, kept_plan, begin_s)
    if metrics_digest(world.simulation.metrics()) != kept.digest:
        raise BenchmarkError(
            f"seed {kept.seed}: the plans lead to other numbers than those kept, so the simulator has "
            "changed: delete the file of episodes and play them anew"
        )
    return observations, plans, of_base, np.full(len(plans), kept.seed, dtype=np.int64)


def _follow(
    world: PlayedWorld,
    base: Base,
    seed: int,
    decide: Callable[[float, NDArray[np.float32]], NDArray[np.int64]],
    begin_s: float,
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """Play an episode period by period; return observations, plans and those of the base."""
    space, encoder = world.space, FleetEncoder.of(world.space)
    observations, plans, of_base = [], [], []
    in_force, due = space.first_plan, world.begin(seed)
    while due:
        now_s = float(world.simulation.now_s)
        told = fleet_view(space, world.simulation.fleet_telemetry(), in_force)
        seen = encoder.encode(told)
        action = decide(now_s, seen)
        if now_s >= begin_s:
            observations.append(seen)
            plans.append(action)
            of_base.append(base.plan(world, in_force).ravel())
        in_force = space.plan(action)
        due = world.follow(in_force, space.next_tick_s(now_s))
    return (
        np.array(observations, dtype=np.float32),
        np.array(plans, dtype=np.int64),
        np.array(of_base, dtype=np.int64),
    )
