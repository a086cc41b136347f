"""Compiles what most tests use of the compiled engine, into its cache: ``python -m tests.compile_engine``.

Workers that start together would otherwise each compile it for themselves.
"""

from __future__ import annotations

import numpy as np

from dsd_env import Decision
from dsd_env.envs import EdgeCloudEnv, EdgeCloudVectorEnv, FlatActionWrapper
from dsd_env.sim.compiled import CompiledSimulation
from tests.scenarios import tiny


def main() -> None:
    """Call each entry point once: one simulation, one environment, several on one thread and on two."""
    scenario = tiny()
    simulation = CompiledSimulation(scenario, 1)
    simulation.advance()
    simulation.observe()
    simulation.decide(Decision(0, 1, 0))
    simulation.advance()
    env = FlatActionWrapper(EdgeCloudEnv(scenario=scenario))
    env.reset(seed=1)
    env.step(np.int64(env.action_masks().argmax()))
    for threads in (1, 2):
        envs = EdgeCloudVectorEnv(scenario=scenario, num_envs=2, threads=threads)
        envs.reset(seed=1)
        envs.step(np.zeros((2, 3), dtype=np.int64))
        envs.reset(seed=1, options={"reset_mask": np.array([True, False])})
        envs.close()


if __name__ == "__main__":
    main()
