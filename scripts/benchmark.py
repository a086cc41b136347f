"""Measure how fast the simulator and the environment run, as figures of one run on this machine.

    python scripts/benchmark.py --scenario metro --json benchmark.json

All rates are per second of CPU time of one core. Ratios beside absolutes: they travel better between
machines. The yardstick is SimPy's own rate of bare timeouts, measured in the same run.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import _checkout  # noqa: F401
import simpy

from agents.files import write_json


def rate(work: Callable[[], int], repeats: int) -> float:
    """Return the best of several rates: units of work per CPU-second."""
    best = 0.0
    for _ in range(repeats):
        begin = time.process_time()
        units = work()
        best = max(best, units / (time.process_time() - begin))
    return best


def bare_timeouts(count: int = 200_000) -> int:
    """Let SimPy process ``count`` timeouts and nothing else."""

    def ticker(env: simpy.Environment) -> simpy.events.ProcessGenerator:
        while True:
            yield env.timeout(1.0)

    env = simpy.Environment()
    env.process(ticker(env))
    env.run(until=count)
    return count


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenario", default="metro")
    parser.add_argument("--requests", type=int, default=100, help="measured requests per episode")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each; the best counts")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()

    import gymnasium

    import dsd_env
    from dsd_env.sim.world import WorldBuilder

    scenario = dsd_env.load_scenario(arguments.scenario, episode__requests=arguments.requests)
    builder = WorldBuilder(scenario)
    figures: dict[str, float] = {"simpy_timeouts_per_cpu_s": rate(bare_timeouts, arguments.repeats)}

    def episode(scheduler: str) -> int:
        return dsd_env.simulate(scenario, scheduler, seed=1, builder=builder).decisions

    for name in ("cloud_ar", "colocated_sd:4", "edge_sd:4", "jsq_goodput"):
        key = f"reference_decisions_per_cpu_s/{name}"
        figures[key] = rate(lambda name=name: episode(name), arguments.repeats)  # type: ignore[misc]

    env = gymnasium.make("dsd_env/EdgeCloud-v0", scenario=scenario, disable_env_checker=True)
    # Two drafts at the target, everybody in one batch.
    action = env.unwrapped.actions.encode(dsd_env.Decision(2, 64, 0))  # type: ignore[attr-defined]

    def steps() -> int:
        env.reset(seed=1)
        count, over = 0, False
        while not over:
            *_, terminated, truncated, _info = env.step(action)
            over = terminated or truncated
            count += 1
        return count

    figures["env_steps_per_cpu_s"] = rate(steps, arguments.repeats)
    decisions = figures["reference_decisions_per_cpu_s/colocated_sd:4"]
    figures["timeouts_per_decision"] = figures["simpy_timeouts_per_cpu_s"] / decisions
    for name, value in figures.items():
        print(f"{name:50} {value:12,.0f}")
    if arguments.json:
        write_json(arguments.json, {"scenario": scenario.name, "figures": figures})
    return 0


if __name__ == "__main__":
    sys.exit(main())
