"""How much simulated time a rollout sees, and how to make it see enough.

A busy scenario takes thousands of decisions per simulated second. A rollout of 1,024 steps is then less than
half a second of a load cycle of forty: what a choice does to the queues of a minute later is never seen. Few
worlds and many steps see more than many worlds and few steps, for the same number of decisions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from agents.config import TrainConfig
from agents.environments import engine_for
from agents.seeds import validation_seeds
from agents.tracking import is_compiled
from dsd_env.scenario import Scenario
from dsd_env.schedulers import make_scheduler
from dsd_env.sim import ReferenceSimulation

PILOT = "jsq_goodput"
"""Who decides while decisions are counted, if there is no warm start whose scheduler could."""

MOST_PILOT_DECISIONS = 150_000


class Shape(NamedTuple):
    """Worlds and steps of a rollout.

    Attributes:
        n_envs: Worlds.
        n_steps: Decisions of each.
        decisions_per_s: Decisions of a world per simulated second, as counted.
    """

    n_envs: int
    n_steps: int
    decisions_per_s: float


def decisions_per_s(scenario: Scenario, scheduler: str) -> float:
    """Return how many decisions a scenario takes per simulated second, over a cycle of its load.

    Counted in one episode of the given scheduler, without its first cycle (or 10 s) where it is long enough.
    """
    policy = make_scheduler(scheduler)
    seed = validation_seeds(1)[0]
    simulation: Any
    if engine_for(scenario) == "compiled":
        from dsd_env.sim.compiled import CompiledSimulation

        simulation = CompiledSimulation(scenario, seed)
    else:
        simulation = ReferenceSimulation(scenario, seed)
    policy.reset(scenario, seed)
    period_s = scenario.workload.load.period_s
    begin_s, last_s, first, n = math.inf, 0.0, 0, 0
    while n < MOST_PILOT_DECISIONS and (view := simulation.next_decision()) is not None:
        if math.isinf(begin_s) and view.now_s >= min(period_s, 10.0):
            begin_s, first = view.now_s, n
        last_s = view.now_s
        if last_s >= begin_s + period_s:
            break
        simulation.decide(policy.decide(view))
        n += 1
    if last_s > begin_s and n > first:
        return (n - first) / (last_s - begin_s)
    return n / last_s if last_s > 0.0 else float(n)


def rollout_shape(config: TrainConfig, scenario: Scenario) -> Shape | None:
    """Return the worlds and steps with which a rollout spans `rollout_s`; None without that.

    Worlds are given up before time: there are as many as `n_envs`, or as few as needed for
    `rollout_decisions` decisions altogether, in whole groups of `worlds_per_seed`. If one group's are more
    than that, the rollout is as long as it allows.
    """
    if config.rollout_s is None:
        return None
    if config.fleet is not None:
        rate = 1.0 / config.fleet.control_period_s
    else:
        rate = decisions_per_s(scenario, config.warm_start.scheduler if config.warm_start else PILOT)
    most, batch = config.rollout_decisions, config.ppo.batch_size
    n_steps = max(2, math.ceil(config.rollout_s * rate))
    group = config.worlds_per_seed
    n_envs = max(group, min(config.n_envs, most // n_steps) // group * group)
    # Whole minibatches of every rollout.
    grain = batch // math.gcd(batch, n_envs)
    whole = math.ceil(n_steps / grain) * grain
    if whole * n_envs > most:
        whole = max(grain, most // n_envs // grain * grain)
    return Shape(n_envs, whole, rate)


def with_shape(config: TrainConfig, shape: Shape | None) -> TrainConfig:
    """Return a configuration with the worlds and steps of a shape."""
    if shape is None:
        return config
    ppo = config.ppo.model_copy(update={"n_steps": shape.n_steps})
    return config.model_copy(update={"n_envs": shape.n_envs, "ppo": ppo})


def describe(spans_s: NDArray[np.float64], scenarios: Sequence[Scenario]) -> str:
    """Return a line on the simulated time that a rollout has seen in each world."""
    mean_s, scenario = float(spans_s.mean()), scenarios[0]
    if len(scenarios) > 1:
        each = [f"{s.name} {spans_s[i :: len(scenarios)].mean():.3g} s" for i, s in enumerate(scenarios)]
        return f"a rollout sees this much simulated time in each world: {', '.join(each)}"
    load = scenario.workload.load
    varies = len({value for _, value in load.points}) > 1
    cycles = f"{mean_s / load.period_s:.2g} load cycles" if varies else "at a constant load"
    return f"a rollout sees {mean_s:.3g} s of simulated time in each of {len(spans_s)} worlds, {cycles}"


class SpanCallback(BaseCallback):
    """Measures the simulated time that every rollout spans; says it once, and logs it always.

    Attributes:
        spans_s: Of the last rollout, by world.
    """

    def __init__(self, scenarios: Sequence[Scenario]) -> None:
        """Measure on a scenario, or on those of a mixture."""
        super().__init__()
        self._scenarios, self._said = scenarios, False
        self.spans_s: NDArray[np.float64] = np.zeros(0)
        self._now_s: NDArray[np.float64] | None = None

    def _on_rollout_start(self) -> None:
        # Compiled worlds may have been put into other states since the last rollout.
        now_s = None if is_compiled(self.training_env) else self._now_s
        self._begin_s = clocks_s(self.training_env, None) if now_s is None else now_s.copy()
        self.spans_s = np.zeros(self.training_env.num_envs)

    def _on_step(self) -> bool:
        for world in np.flatnonzero(self.locals["dones"]).tolist():
            self.spans_s[world] += self.locals["infos"][world]["now_s"] - self._begin_s[world]
            self._begin_s[world] = 0.0
        return True

    def _on_rollout_end(self) -> None:
        self._now_s = clocks_s(self.training_env, self.locals)
        self.spans_s += self._now_s - self._begin_s
        self.logger.record("rollout/simulated_s", float(self.spans_s.mean()))
        periods_s = [scenario.workload.load.period_s for scenario in self._scenarios]
        cycles = self.spans_s / np.resize(periods_s, len(self.spans_s))
        self.logger.record("rollout/load_cycles", float(cycles.mean()))
        if not self._said:
            self._said = True
            print(describe(self.spans_s, self._scenarios), flush=True)


def clocks_s(env: VecEnv, step: Mapping[str, Any] | None) -> NDArray[np.float64]:
    """Return the simulated time of every world: of compiled ones by array, else from the newest infos.

    Args:
        env: The worlds.
        step: ``dones`` and ``infos`` of the last step; None after a reset.
    """
    unwrapped: Any = env.unwrapped
    if is_compiled(env):
        clocks: NDArray[np.float64] = unwrapped.worlds.clocks[:, 0].copy()
        return clocks
    resets: Sequence[Mapping[str, Any]] = unwrapped.reset_infos
    if step is None:
        return np.array([float(info.get("now_s", 0.0)) for info in resets])
    dones, infos = step["dones"], step["infos"]
    return np.array(
        [
            float((resets[i] if done else info).get("now_s", 0.0))
            for i, (info, done) in enumerate(zip(infos, dones, strict=True))
        ]
    )
