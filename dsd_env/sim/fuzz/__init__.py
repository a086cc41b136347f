"""Compares an engine with the reference on random cases, bit for bit; see ``docs/engines.md``.

No simulation needs this package. It serves the tests, ``scripts/fuzz_engines.py``, and the authors of other
engines.
"""

from dsd_env.sim.fuzz.case import Case
from dsd_env.sim.fuzz.compare import Difference, Outcome, compare_engines, first_difference, run_case
from dsd_env.sim.fuzz.conservation import Violation, check_conservation
from dsd_env.sim.fuzz.dice import FEATURES
from dsd_env.sim.fuzz.engines import Engine, Factory, compiled_engine, reference_engine
from dsd_env.sim.fuzz.minimise import Smaller, minimise
from dsd_env.sim.fuzz.scenarios import draw_case

__all__ = [
    "FEATURES",
    "Case",
    "Difference",
    "Engine",
    "Factory",
    "Outcome",
    "Smaller",
    "Violation",
    "check_conservation",
    "compare_engines",
    "compiled_engine",
    "draw_case",
    "first_difference",
    "minimise",
    "reference_engine",
    "run_case",
]
