"""A program is the same code in the process that compiles it as in those that read it from the cache."""

from __future__ import annotations

import pytest

pytest.importorskip("numba")

from numba import types

from dsd_env.sim.code_cache import switched_off
from dsd_env.sim.compiled.kernel.jit import jit, native


def test_what_is_only_called_gets_no_machine_code_of_its_own() -> None:
    # It would not be optimised, and the program would call it in the place of its own.
    @jit
    def called(x):
        total = 0.0
        for i in range(10):
            total += x * i
        return total

    with switched_off():

        @native(types.float64(types.float64))
        def program(x):
            return called(x) + 1.0

    assert program.ctypes(2.0) == 91.0
    (compiled,) = called.overloads.values()
    engine = compiled.target_context.codegen()._engine
    assert not engine.is_symbol_defined(compiled.fndesc.mangled_name)
