"""Simulating cells: one, or all of them in processes of this machine, each with one thread."""

from __future__ import annotations

import functools
import hashlib
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass

import dsd_env
from agents.benchmark.cells import Cell
from agents.benchmark.config import BenchmarkError
from agents.processes import as_they_end
from dsd_env.policy.manifest import canonical_json
from dsd_env.schedulers import make_scheduler
from dsd_env.sim.engines import compiled_layout, load_kernel
from dsd_env.whole_runs.runs import fast_runs

ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"
)
"""Environment of a process that computes beside others: thread pools would fight over the cores."""
ATTEMPTS = 3
"""How often a cell is tried whose process dies."""


class LostWorkerError(BenchmarkError):
    """The process that simulated a cell died, again and again."""


@dataclass(frozen=True)
class Outcome:
    """What came of a cell.

    Attributes:
        cell: The cell.
        metrics: Those that its record keeps; NaN where nothing was observed.
        digest: SHA-256 of all metrics of the episode.
        wall_s: Time that the simulation took.
        failure: Why there are no metrics; "" if there are.
    """

    cell: Cell
    metrics: Mapping[str, float]
    digest: str
    wall_s: float
    failure: str = ""


def metrics_of(cell: Cell) -> dict[str, float]:
    """Simulate a cell; return all metrics, bit for bit those of :func:`dsd_env.simulate`.

    Whoever the engine can follow by itself runs inside its loop; every other scheduler is asked for each
    decision.
    """
    compiled = compiled_layout("auto", cell.scenario) is not None
    fast = fast_runs([cell], compiled=compiled)
    if fast is not None:
        return next(iter(fast))[1]
    return dsd_env.simulate(cell.scenario, make_scheduler(cell.scheduler), cell.seed).metrics


def metrics_digest(metrics: Mapping[str, float]) -> str:
    """Return the SHA-256 of metrics, NaN as null."""
    finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
    return hashlib.sha256(canonical_json(finite).encode()).hexdigest()


@functools.cache
def _ready() -> None:
    """Load the compiled engine, where there is one: that is no part of a cell's time."""
    with suppress(ImportError):
        load_kernel()
        import dsd_env.whole_runs.static_kernel  # noqa: F401


def simulate_cell(cell: Cell) -> Outcome:
    """Simulate a cell; one that fails gives an outcome that says why."""
    _ready()
    start = time.perf_counter()
    try:
        metrics = metrics_of(cell)
    except Exception as error:
        failure = f"{type(error).__name__}: {error}"
        return Outcome(cell, {}, "", time.perf_counter() - start, failure)
    wall_s = time.perf_counter() - start
    return Outcome(cell, {name: metrics[name] for name in cell.metrics}, metrics_digest(metrics), wall_s)


def run_here(
    cells: Sequence[Cell],
    jobs: int,
    on_outcome: Callable[[Outcome], None],
    work: Callable[[Cell], Outcome] = simulate_cell,
) -> None:
    """Simulate cells in order, in this process or several, and hand over each outcome as it comes.

    A process that dies, for want of memory say, is replaced, and its cells are tried again.

    Args:
        cells: What to simulate.
        jobs: Number of processes; 1 is this one.
        on_outcome: Called in this process.
        work: What simulates a cell.

    Raises:
        LostWorkerError: Processes died :data:`ATTEMPTS` times without a result between.
    """
    if jobs <= 1:
        for cell in cells:
            on_outcome(work(cell))
        return
    left = {id(cell): cell for cell in cells}
    deaths = 0
    while left:
        before = len(left)
        try:
            with _one_thread(), closing(as_they_end(jobs, work, list(left.values()))) as ended:
                for cell, outcome in ended:
                    del left[id(cell)]
                    on_outcome(outcome)
        except BrokenProcessPool as error:
            deaths = 1 if len(left) < before else deaths + 1
            if deaths >= ATTEMPTS:
                first = next(iter(left.values()))
                raise LostWorkerError(
                    f"worker processes died {deaths} times, the last time around {first.entry!r}, "
                    f"{first.name!r}: is memory short? Try fewer --jobs; the same command continues"
                ) from error


@contextmanager
def _one_thread() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    os.environ.update(ONE_THREAD)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
