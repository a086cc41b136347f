"""Which engine simulates: the compiled one wherever it can, the reference everywhere."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dsd_env.scenario import Scenario
from dsd_env.sim.world import WorldBuilder

if TYPE_CHECKING:
    from dsd_env.sim.compiled import Layout

ENGINES = ("auto", "compiled", "reference")
"""``compiled`` is fast, ``reference`` (SimPy) is the definition and draws timelines; their episodes are the
same. ``auto`` is the compiled one, but where only the reference will do."""

ENGINE_OPTIONS = ("max_active_requests", "heap_events", "log_events", "keep_deliveries")
"""Bounds of the compiled engine that a user may set; see :func:`dsd_env.sim.compiled.compile_scenario`."""

_LOGGER = logging.getLogger("dsd_env")
PATIENCE_S = 4.0
"""Time after which a compilation that is under way is announced."""


def compiled_layout(
    engine: str,
    scenario: Scenario,
    builder: WorldBuilder | None = None,
    *,
    spans: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Layout | None:
    """Return the scenario as compiled for the compiled engine, or None where the reference is to run.

    Args:
        engine: One of :data:`ENGINES`.
        scenario: The scenario.
        builder: Builder of its worlds, to load profiles and traces only once.
        spans: Timelines are wanted, which only the reference records.
        options: Bounds of the compiled engine; see :func:`dsd_env.sim.compiled.compile_scenario`.

    Raises:
        ValueError: An unknown engine or option, or ``compiled`` with timelines.
        ImportError: ``compiled`` without Numba.
        NotImplementedError: ``compiled`` with a scenario that only the reference simulates.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine = {engine!r} is unknown; known are {list(ENGINES)}")
    if engine == "reference":
        return None
    if spans:
        if engine == "compiled":
            raise ValueError(
                "render_mode='rgb_array' draws timelines, which only the reference engine records; "
                "leave engine at 'auto', or say engine='reference'"
            )
        return None
    try:
        # Numba is imported only by those who use it. The event loop is compiled at this import.
        from dsd_env.sim.compiled import compile_scenario
    except ImportError as error:
        if engine == "compiled":
            raise ImportError(
                f"the compiled engine needs Numba ({error}); `pip install numba`, or say engine='reference'"
            ) from error
        return None
    if unknown := sorted(set(options or {}) - set(ENGINE_OPTIONS)):
        raise ValueError(f"unknown engine options {unknown}; known are {list(ENGINE_OPTIONS)}")
    try:
        return compile_scenario(scenario, builder, **dict(options or {}))
    except NotImplementedError:
        if engine == "compiled":
            raise
        return None


def is_loaded() -> bool:
    """Return whether the event loop is compiled, or taken from the cache."""
    return hasattr(sys.modules.get("dsd_env.sim.compiled.kernel.loop"), "RUN")


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
