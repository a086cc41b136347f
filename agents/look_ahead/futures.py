"""What a plan leads to: a future played on a clone, and what it is worth."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from agents.benchmark.config import Objective
from agents.look_ahead.clones import Clone, PlayedWorld, draw_anew, put
from agents.look_ahead.config import LookAheadConfig
from agents.look_ahead.verdicts import cost_of
from agents.seeds import training_seed
from dsd_env.control.fleet import FleetSpace, Plan
from dsd_env.control.fleet_view import FleetEncoder, fleet_view
from dsd_env.control.rewards import reward_factors, reward_weights, running_totals
from dsd_env.policy import Policy
from dsd_env.sim.compiled.world import WorldReader

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Course:
    """What is to be done from now on.

    Attributes:
        plan: The plan to hold; None: go on by the base at once.
        until_s: Simulated time at which the base goes on.
    """

    plan: Plan | None = None
    until_s: float = 0.0

    def at(self, now_s: float) -> Course:
        """Return what is left of it: the base alone, once its plan is over."""
        return self if self.plan is not None and now_s < self.until_s else Course()


class Base(Protocol):
    """What goes on where no plan is held."""

    def plan(self, world: PlayedWorld, in_force: Plan) -> Plan:
        """Return the plan for the period that begins."""

    def is_fixed(self) -> bool:
        """Return whether the plan never changes."""


class FixedBase:
    """One plan for ever."""

    def __init__(self, plan: Plan) -> None:
        """Take the plan."""
        self._plan = plan

    def plan(self, world: PlayedWorld, in_force: Plan) -> Plan:
        """Return it."""
        return self._plan

    def is_fixed(self) -> bool:
        """It is."""
        return True


class PolicyBase:
    """A bundle of the fleet view, asked every period, with what a controller beside the targets knows."""

    def __init__(self, space: FleetSpace, policy: Policy) -> None:
        """Take a loaded bundle that fits the space."""
        self._space, self._policy, self._encoder = space, policy, FleetEncoder.of(space)

    def plan(self, world: PlayedWorld, in_force: Plan) -> Plan:
        """Return the bundle's plan."""
        told = fleet_view(self._space, world.simulation.fleet_telemetry(), in_force)
        return self._space.plan(self._policy.choose(self._encoder.encode(told), self._space.mask))

    def is_fixed(self) -> bool:
        """It is not."""
        return False


Step = tuple[float, Plan]
"""Until when a plan was followed, and the plan."""


def play(
    world: PlayedWorld, base: Base, course: Course, in_force: Plan, end_s: float
) -> tuple[bool, list[Step]]:
    """Play a world on, from a decision that is due to the first at or after a time.

    Args:
        world: The world.
        base: What goes on.
        course: What comes before it.
        in_force: The plan in force.
        end_s: Simulated time; infinity plays to the end of the episode.

    Returns:
        Whether a decision is due, and the plans that were followed.
    """
    space, steps, due = world.space, list[Step](), True
    while due and world.simulation.now_s < end_s:
        now_s = float(world.simulation.now_s)
        left = course.at(now_s)
        if left.plan is not None:
            in_force, until_s = left.plan, min(left.until_s, end_s)
        else:
            in_force = base.plan(world, in_force)
            until_s = end_s if base.is_fixed() else min(space.next_tick_s(now_s), end_s)
        due = world.follow(in_force, until_s)
        steps.append((until_s, in_force))
    return due, steps


@dataclass(frozen=True, slots=True)
class Reading:
    """What a future came to until a time.

    Attributes:
        request_s: Integral of the number of requests in the system, in s; up to that very time.
        tokens: Output tokens committed.
        completed: Requests completed.
        reward: Sum of the scenario's reward.
        left_tokens: Tokens still to be made of the requests in the system.
    """

    request_s: float
    tokens: int
    completed: int
    reward: float
    left_tokens: int

    def since(self, before: Reading) -> Reading:
        """Return the growth since another reading; of what is left to be made, the present number."""
        return Reading(
            self.request_s - before.request_s,
            self.tokens - before.tokens,
            self.completed - before.completed,
            self.reward - before.reward,
            self.left_tokens,
        )


def read(world: PlayedWorld, until_s: float) -> Reading:
    """Read a world that was played until the first decision at or after a time, or to its end.

    What happened between that time and the decision is left out of the integral, so that no future seems
    longer than another because its next decision comes later.
    """
    simulation, scenario = world.simulation, world.space.scenario
    reader = WorldReader(world.layout, simulation.world)
    totals, now_s = simulation.totals, float(simulation.now_s)
    rows: Any = reader.rows("requests", int(world.layout.header["n_slots"]))
    there = (rows["number"] >= 0) & ~rows["done"]
    arrival_s = rows["arrival_s"][there]
    beyond_s = 0.0
    if now_s > until_s:
        table: Any = reader.rows("table", int(reader.header["table_n"]))[-1024:]
        late = table[table["completed_s"] > until_s]
        beyond_s = float(np.sum(now_s - np.maximum(arrival_s, until_s)))
        beyond_s += float(np.sum(late["completed_s"] - np.maximum(late["arrival_s"], until_s)))
    reward = sum(
        weight * factor * total
        for weight, factor, total in zip(
            reward_weights(scenario), reward_factors(scenario), running_totals(totals), strict=True
        )
        if weight
    )
    left = int((rows["output_tokens"][there] - rows["committed"][there]).sum())
    return Reading(totals.request_seconds - beyond_s, totals.output_tokens, totals.completed, reward, left)


class Appraiser:
    """Says what a course is worth in the episode that a clone is of; less is better.

    It is judged by the very future of the episode, or by others that are drawn anew, the same ones for all
    courses of a decision.

    Attributes:
        played: Futures played so far.
        simulated_s: Simulated time of these.
    """

    def __init__(
        self, world: PlayedWorld, base: Base, config: LookAheadConfig, objective: Objective, seed: int = 0
    ) -> None:
        """Take a world to play futures in, which has begun an episode, of whatever seed.

        Args:
            world: The world.
            base: What goes on.
            config: How to judge.
            objective: The benchmark's objective.
            seed: Seed of the episode; futures that are drawn anew follow from it.
        """
        self._world, self._base, self._config, self._objective = world, base, config, objective
        self.played, self.simulated_s = 0, 0.0
        self._seed, self._decisions = seed, 0
        self._saved: Clone
        self._in_force: Plan
        self._s_per_token = 0.0

    def begin(self, saved: Clone, in_force: Plan) -> None:
        """Judge courses from a decision on."""
        self._saved, self._in_force = saved, in_force
        self._decisions += 1
        if self._config.score == "requests_in_system" and self._config.tail:
            passed = self._play(Course())
            self._s_per_token = passed.request_s / max(1, passed.tokens)

    def costs(self, course: Course) -> Floats:
        """Return what a course costs in each of the futures, shape (1,) or (redraws,)."""
        futures: list[int | None] = [None]
        if self._config.redraws:
            numbers = range(self._config.redraws)
            futures = [training_seed(self._seed, number, self._decisions, 0) for number in numbers]
        return np.array([self._cost(course, future) for future in futures])

    def _cost(self, course: Course, future: int | None) -> float:
        if self._config.score == "metric":
            self._put(future)
            self._run(course, math.inf)
            return cost_of(self._world, self._objective)
        passed = self._play(course, future)
        if self._config.score == "requests_in_system":
            return passed.request_s + self._config.tail * self._s_per_token * passed.left_tokens
        worth = {
            "committed_tokens": float(passed.tokens),
            "completed_requests": float(passed.completed),
            "reward": passed.reward,
        }
        return -worth[self._config.score]

    def _put(self, future: int | None) -> None:
        """Begin a future: the episode's own, or that of another seed."""
        put(self._saved, self._world)
        if future is not None:
            draw_anew(self._world, future)

    def _play(self, course: Course, future: int | None = None) -> Reading:
        assert self._config.horizon_s is not None
        self._put(future)
        now_s = float(self._world.simulation.now_s)
        before = read(self._world, now_s)
        self._run(course, now_s + self._config.horizon_s)
        return read(self._world, now_s + self._config.horizon_s).since(before)

    def _run(self, course: Course, end_s: float) -> None:
        now_s = float(self._world.simulation.now_s)
        play(self._world, self._base, course, self._in_force, end_s)
        self.played += 1
        self.simulated_s += float(self._world.simulation.now_s) - now_s


def better(found: Floats, best: Floats, surely: float) -> bool:
    """Return whether a course is cheaper than the best so far.

    Args:
        found: What it costs, by future.
        best: What the best so far costs in the same futures.
        surely: By how many standard errors of the mean difference.
    """
    if not surely:
        return float(found.mean()) < float(best.mean())
    gain = best - found
    return float(gain.mean()) > surely * float(gain.std(ddof=1)) / math.sqrt(len(gain))
