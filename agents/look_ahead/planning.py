"""Choosing plan after plan: every group's choices are tried on clones, one group at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from agents.benchmark.config import Objective
from agents.look_ahead.clones import PlayedWorld, clone
from agents.look_ahead.config import LookAheadConfig
from agents.look_ahead.futures import Appraiser, Base, Course, FixedBase, PolicyBase, Step, better, play
from agents.plans import plans_of
from dsd_env.control.fleet import FleetSpace, Plan


@dataclass(frozen=True)
class Episode:
    """An episode played by look-ahead.

    Attributes:
        seed: Its seed.
        metrics: Every metric; percentiles of gaps between tokens are NaN, whose times are not kept.
        steps: The plans that were followed, and until when.
        decisions: Decisions with a look ahead.
        changed: Those of them that left what was intended.
        futures: Futures played.
        simulated_s: Simulated time of these.
    """

    seed: int
    metrics: dict[str, float]
    steps: tuple[Step, ...]
    decisions: int
    changed: int
    futures: int
    simulated_s: float


class LookAhead:
    """Plays episodes of one scenario by look-ahead.

    Attributes:
        config: The configuration.
        objective: The benchmark's objective.
        space: The plans.
        base: What goes on where nothing is changed.
        world: The world that is played.
    """

    def __init__(self, config: LookAheadConfig) -> None:
        """Prepare the worlds: one that is played, one for futures.

        Raises:
            ConfigError: The configuration does not fit the scenario.
            dsd_env.policy.PolicyError: The base cannot be loaded, or is of other plans.
        """
        contest = config.contest()
        self.config, self.objective = config, contest.objective
        self.space = config.space(contest)
        self.base = base_of(config, self.space)
        self.world = PlayedWorld(self.space)
        self._clone = PlayedWorld(self.space, self.world.layout)
        self._choices = choices_of(config, self.space)

    @property
    def begin_s(self) -> float:
        """Simulated time at which it begins to decide."""
        return max(0.0, self.space.scenario.episode.warmup_s - self.config.lead_s)

    def play(self, seed: int, tell: Callable[[float], None] = lambda now_s: None) -> Episode:
        """Play an episode.

        Args:
            seed: Its seed.
            tell: Told of the simulated time that the episode has come to.
        """
        world, config, space = self.world, self.config, self.space
        begin_s = self.begin_s
        appraiser = _appraiser(self._clone, seed, self.base, config, self.objective)
        period_s = config.fleet.control_period_s
        steps, decisions, changed = list[Step](), 0, 0
        in_force, course, due = space.first_plan, Course(), world.begin(seed)
        if due and begin_s > 0.0:
            due, steps = play(world, self.base, course, in_force, begin_s)
        while due:
            now_s = float(world.simulation.now_s)
            in_force = steps[-1][1] if steps else in_force
            intended = course.at(now_s)
            if config.sweeps:
                appraiser.begin(clone(world), in_force)
                course = self._best(world, appraiser, intended, in_force, now_s)
                decisions, changed = decisions + 1, changed + (course is not intended)
            until_s = space.next_tick_s(now_s) + (config.every - 1) * period_s
            due, followed = play(world, self.base, course, in_force, until_s)
            steps += followed
            tell(float(world.simulation.now_s))
        return Episode(
            seed,
            world.simulation.metrics(),
            tuple(merged(steps)),
            decisions,
            changed,
            appraiser.played,
            appraiser.simulated_s,
        )

    def _best(
        self,
        world: PlayedWorld,
        appraiser: Appraiser,
        intended: Course,
        in_force: Plan,
        now_s: float,
    ) -> Course:
        """Return the cheapest course that changing one group at a time comes to."""
        config, left = self.config, self.config.budget
        best, cost = intended, appraiser.costs(intended)
        plan = self.base.plan(world, in_force) if intended.plan is None else intended.plan
        first_s = self.space.next_tick_s(now_s) - config.fleet.control_period_s
        tried: set[tuple[Any, ...]] = set()
        for _ in range(config.sweeps):
            before = best
            for changed in self._neighbours():
                for hold in config.holds:
                    candidate = Course(changed(plan), first_s + hold * config.fleet.control_period_s)
                    assert candidate.plan is not None
                    key = (candidate.plan.tobytes(), hold)
                    if key in tried or left <= 0:
                        continue
                    tried.add(key)
                    left -= 1
                    its = appraiser.costs(candidate)
                    if better(its, cost, config.surely):
                        best, cost, plan = candidate, its, candidate.plan
            if best is before:
                break
        return best

    def _neighbours(self) -> Iterator[Callable[[Plan], Plan]]:
        """Yield what changes a plan: all groups' choices, then those of one after the other."""
        groups = range(len(self._choices))
        if self.config.together and len(groups) > 1:
            shared = [row for row in self._choices[0] if all(row in rows for rows in self._choices)]
            for row in shared:
                yield _changing(tuple(groups), row)
        for group in groups:
            for row in self._choices[group]:
                yield _changing((group,), row)


def _changing(groups: tuple[int, ...], row: tuple[int, int, int]) -> Callable[[Plan], Plan]:
    def change(plan: Plan) -> Plan:
        changed = plan.copy()
        changed[list(groups)] = row
        return changed

    return change


def _appraiser(
    world: PlayedWorld, seed: int, base: Base, config: LookAheadConfig, objective: Objective
) -> Appraiser:
    world.begin(seed)
    return Appraiser(world, base, config, objective, seed)


def base_of(config: LookAheadConfig, space: FleetSpace) -> Base:
    """Return what goes on where nothing is changed.

    Raises:
        ConfigError: It is no plan of the scenario.
        dsd_env.policy.PolicyError: The bundle cannot be loaded, or is of other plans.
    """
    if not config.is_policy:
        return FixedBase(config.base_plan(space))
    assert isinstance(config.base, str)
    return PolicyBase(space, plans_of(space, config.base))


def choices_of(config: LookAheadConfig, space: FleetSpace) -> list[list[tuple[int, int, int]]]:
    """Return what each group may choose that can be executed, as rows of a plan; plain decoding once."""
    words = [place.word for place in space.places]
    found = []
    parts = np.split(space.mask, np.cumsum(space.nvec)[:-1])
    for group in range(len(space.groups)):
        of_gamma, of_batch, of_place = (part.tolist() for part in parts[3 * group : 3 * group + 3])
        rows = []
        for gamma in map(space.gammas.index, config.gammas):
            for batch in map(space.batch_sizes.index, config.batch_sizes):
                places = [words.index(word) for word in config.places]
                places = [place for place in places if of_place[place]]
                if space.gammas[gamma] == 0 and not config.fleet.name_targets:
                    places = places[:1]
                rows += [(gamma, batch, place) for place in places if of_gamma[gamma] and of_batch[batch]]
        found.append(rows)
    return found


def merged(steps: list[Step]) -> Iterator[Step]:
    """Yield steps with neighbours of the same plan as one."""
    for number, (until_s, plan) in enumerate(steps):
        following = steps[number + 1][1] if number + 1 < len(steps) else None
        if following is None or not np.array_equal(plan, following):
            yield until_s, plan


def replay(space: FleetSpace, seed: int, steps: tuple[Step, ...]) -> dict[str, float]:
    """Return the metrics of an episode whose plans are known."""
    world = PlayedWorld(space)
    due = world.begin(seed)
    for until_s, plan in steps:
        if due and world.simulation.now_s < until_s:
            due = world.follow(plan, until_s)
    if due:
        world.follow(steps[-1][1], math.inf)
    metrics: dict[str, float] = world.simulation.metrics()
    return metrics
