"""The compiled engine: the simulation of :mod:`dsd_env.sim.reference` on records of memory under Numba.

Importing it compiles the event loop, unless the machine code of these sources is in the cache. Where that
cannot be done it raises :class:`dsd_env.sim.engines.EngineImportError`.
"""

from dsd_env.sim.engines import announced, is_loaded, load_kernel

with announced(is_loaded):
    load_kernel()
    from dsd_env.sim.compiled.tables import Layout, compile_scenario
    from dsd_env.sim.compiled.world import CompiledSimulation, EngineError

__all__ = ["CompiledSimulation", "EngineError", "Layout", "compile_scenario"]
