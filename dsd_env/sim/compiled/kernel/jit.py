"""How the kernel's functions are compiled, and the constants that they know each other by."""
# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

from __future__ import annotations

import inspect
from contextlib import contextmanager
from unittest.mock import patch

import numpy as np
from numba import cfunc, njit, types
from numba.core.codegen import CPUCodeLibrary
from numba.core.compiler_lock import global_compiler_lock
from numba.core.cpu import CPUContext
from numba.extending import register_jitable

from dsd_env.sim.code_cache import caching


def jit(function):
    """Compile what only compiled code calls, once for each combination of argument types.

    Division is as IEEE has it: nothing here divides by zero. Numba would compile a version for each constant
    that a function is called with; the types of the constants are all that matters here.
    """
    dispatcher = njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)(function)
    template = dispatcher.get_call_template
    dispatcher.get_call_template = lambda args, kws: template(
        tuple(types.unliteral(a) for a in args), {name: types.unliteral(a) for name, a in dict(kws).items()}
    )
    return dispatcher


def entry(**options):
    """Compile what Python calls, when it is called first, and keep it where a cache can be written."""

    def decorate(function):
        with caching() as cached:
            return njit(cache=cached, nogil=True, error_model="numpy", **options)(function)

    return decorate


def native(signature):
    """Compile a function now, with the calling convention of C, to be called by address; cached likewise."""

    def decorate(function):
        with caching() as cached, _as_one_program(function.__name__):
            return cfunc(signature, cache=cached, error_model="numpy")(function)

    return decorate


@contextmanager
def _as_one_program(root: str):
    """Let Numba optimise one function with all that it calls, and make machine code of that alone.

    Left to itself it does so for each of two hundred functions, every time with all that they call, although
    nobody ever calls them but the root. That takes longer than all the rest. Machine code of a function that
    is not optimised must not come into the process, either: the root would call that where it has not taken
    the function in, and be some four times slower than when it is read from the cache. Where a version of
    Numba has other insides, it is left to itself.
    """
    inside = ("_optimize_final_module", "_finalize_final_module", "_finalize_dynamic_globals")
    if not (all(hasattr(CPUCodeLibrary, name) for name in inside) and hasattr(CPUContext, "get_executable")):
        yield
        return
    optimise, finish = CPUCodeLibrary._optimize_final_module, CPUCodeLibrary._finalize_final_module

    def optimise_root(library):
        if root in library.name:
            optimise(library)

    def finish_root(library):
        if root in library.name:
            finish(library)
            return
        # It is only linked into others.
        library._finalize_dynamic_globals()
        library._finalized = True

    def never_called(context, library, fndesc, env):
        # Numba keeps track of functions by such an object, which must be another one for each.
        return [].append

    with (
        global_compiler_lock,
        patch.object(CPUCodeLibrary, "_optimize_final_module", optimise_root),
        patch.object(CPUCodeLibrary, "_finalize_final_module", finish_root),
        patch.object(CPUContext, "get_executable", never_called),
    ):
        yield


_laws: set[str] = set()


def compile_laws(*modules):
    """Let compiled code call the functions of modules of :mod:`dsd_env.laws`, which know nothing of it.

    Several parts of the kernel may ask for the same.
    """
    for module in modules:
        if module.__name__ in _laws:
            continue
        _laws.add(module.__name__)
        for function in vars(module).values():
            if inspect.isfunction(function) and function.__module__ == module.__name__:
                register_jitable(error_model="numpy")(function)


def number(member):
    """Return a member of an enumeration as a plain number; to the compiler it has a type of its own."""
    return np.int64(int(member))


ZERO = np.int64(0)
