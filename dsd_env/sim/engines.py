"""Which engine simulates: the compiled one wherever it can, the reference everywhere."""

from __future__ import annotations

import importlib
import logging
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dsd_env.scenario import Scenario
from dsd_env.sim import code_cache
from dsd_env.sim.world import WorldBuilder

if TYPE_CHECKING:
    from dsd_env.sim.compiled import Layout

ENGINES = ("auto", "compiled", "reference")
"""``reference`` (SimPy) defines the semantics; ``compiled`` simulates the same episodes, much faster.
``auto`` takes the compiled engine if it is installed and simulates the scenario, otherwise the reference."""

ENGINE_OPTIONS = ("max_active_requests", "heap_events", "log_events", "keep_deliveries")
"""Bounds of the compiled engine that a user may set; see :func:`dsd_env.sim.compiled.compile_scenario`."""

_LOGGER = logging.getLogger("dsd_env")
_KERNEL = "dsd_env.sim.compiled.kernel.loop"
PATIENCE_S = 4.0
"""Time after which a compilation that is under way is announced."""


def compiled_layout(
    engine: str,
    scenario: Scenario,
    builder: WorldBuilder | None = None,
    *,
    options: Mapping[str, Any] | None = None,
) -> Layout | None:
    """Return the scenario as compiled for the compiled engine, or None where the reference is to run.

    Args:
        engine: One of :data:`ENGINES`.
        scenario: The scenario.
        builder: Builder of its worlds, to load profiles and traces only once.
        options: Bounds of the compiled engine; see :func:`dsd_env.sim.compiled.compile_scenario`.

    Raises:
        ValueError: An unknown engine or option.
        EngineImportError: ``compiled`` without Numba, or it can be neither loaded nor compiled.
        NotImplementedError: ``compiled`` with a scenario that only the reference simulates.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine = {engine!r} is unknown; known are {list(ENGINES)}")
    if engine == "reference":
        return None
    try:
        # Numba is imported only by those who use it. The event loop is compiled at this import.
        from dsd_env.sim.compiled import compile_scenario
    except ImportError as error:
        if engine == "compiled":
            why = error if isinstance(error, EngineImportError) else _without_numba(error)
            raise EngineImportError(f"{why}; or say engine='reference'") from error
        return None
    if unknown := sorted(set(options or {}) - set(ENGINE_OPTIONS)):
        raise ValueError(f"unknown engine options {unknown}; known are {list(ENGINE_OPTIONS)}")
    try:
        return compile_scenario(scenario, builder, **dict(options or {}))
    except NotImplementedError:
        if engine == "compiled":
            raise
        return None


class EngineImportError(ImportError):
    """The compiled engine cannot be used here; the message says why, and what to do."""


_broken: str | None = None
"""Why loading failed in this process: to fail again may take a minute, too."""


def load_kernel() -> None:
    """Import the event loop: load its machine code, or compile it.

    Where that fails it is tried once more without what is kept of the machine code. That it failed for good
    is said in the log, once; not where Numba is not installed, for whoever left it out knows.

    Raises:
        EngineImportError: There is no Numba, it is switched off, or loading and compiling both failed.
    """
    global _broken
    if _broken is None:
        try:
            import numba

            if numba.config.DISABLE_JIT:
                _broken = "the compiled engine does not run under NUMBA_DISABLE_JIT: unset that variable"
            else:
                _import_kernel()
                return
        except ImportError as error:
            raise EngineImportError(_without_numba(error)) from error
        except Exception as error:
            # Machine code is unpickled and linked, which raises many kinds.
            _broken = (
                f"the compiled engine can be neither loaded nor compiled ({type(error).__name__}: {error}): "
                f"delete the folder of its machine code, {code_cache.cache_folder()}, or set NUMBA_CACHE_DIR "
                "to another"
            )
        _LOGGER.warning("%s; until then the reference engine simulates where it can, far slower", _broken)
    raise EngineImportError(_broken)


def _without_numba(error: ImportError) -> str:
    return f"the compiled engine needs Numba ({error}): pip install numba"


def _import_kernel() -> None:
    try:
        importlib.import_module(_KERNEL)
    except ImportError:
        raise
    except Exception as error:
        _LOGGER.warning(
            "the compiled engine cannot be loaded from %s (%s: %s) and is compiled anew, which may take a "
            "minute; delete that folder if this comes again",
            code_cache.cache_folder(),
            type(error).__name__,
            error,
        )
        with code_cache.switched_off():
            importlib.import_module(_KERNEL)


def is_loaded() -> bool:
    """Return whether the event loop is compiled, or taken from the cache."""
    return hasattr(sys.modules.get(_KERNEL), "RUN")


@contextmanager
def announced(is_compiled: Callable[[], object]) -> Iterator[None]:
    """Say in the log why nothing happens, if the first use of the compiled engine has to compile it.

    Args:
        is_compiled: Tells whether the machine code is there; asked after :data:`PATIENCE_S`.
    """

    def announce() -> None:
        if not is_compiled():
            _LOGGER.warning("compiling the simulator, which may take a minute; it is kept for the next time")

    timer = threading.Timer(PATIENCE_S, announce)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
