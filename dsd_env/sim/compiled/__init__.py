"""The compiled engine: the simulation of :mod:`dsd_env.sim.reference` on flat arrays under Numba."""

from dsd_env.sim.compiled.layout import Layout, compile_scenario
from dsd_env.sim.compiled.world import CompiledSimulation, EngineError

__all__ = ["CompiledSimulation", "EngineError", "Layout", "compile_scenario"]
