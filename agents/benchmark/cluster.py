"""Simulating cells on a Ray cluster (extra ``cluster``): the numbers are those of one machine.

A cell whose worker or machine dies is given to another worker. Finished cells are on the driver's disk before
the next is asked for, so that nothing of them is lost.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from agents.benchmark.cells import ROOT, Cell, located
from agents.benchmark.config import BenchmarkError
from agents.benchmark.running import ONE_THREAD, LostWorkerError, Outcome, simulate_cell

RETRIES = 5
"""How often a cell is given to another worker."""
LEFT_AT_HOME = (
    "benchmark/results",
    "build",
    "docs",
    "notebooks",
    "out",
    "runs",
    "scripts",
    "tests",
    "validation",
)
"""Folders of the checkout that workers do without."""
HIDDEN = (".git", ".venv*", ".*_cache", ".hypothesis", "__pycache__", "*.pyc")
"""Files that do not go to workers: caches, virtual environments, version control."""


def on_worker(cell: Cell, spec: str) -> Outcome:
    """Simulate a cell; the outcome comes back with the cell as the driver knows it.

    Args:
        cell: The cell.
        spec: Specification of its scheduler, as this machine finds its file.
    """
    outcome = simulate_cell(replace(cell, scheduler=located(spec)))
    return replace(outcome, cell=cell)


def need_ray() -> Any:
    """Return the package ray.

    Raises:
        BenchmarkError: It is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise BenchmarkError("--ray needs the package ray: pip install -e '.[cluster]'") from error
    return ray


def run_on_ray(
    cells: Sequence[Cell],
    address: str,
    on_outcome: Callable[[Outcome], None],
    work: Callable[[Cell, str], Outcome] = on_worker,
) -> None:
    """Simulate cells in order on the CPUs of a cluster, one each, and hand over each outcome as it comes.

    The cluster's machines need Python and the package's dependencies; the checkout's code and configurations
    are sent to them. Bundles have to lie in the checkout, so that they go along.

    Args:
        cells: What to simulate.
        address: Address of the cluster's head, ``auto`` for one that runs here, or ``local`` for a cluster of
            this machine's cores that ends with this call.
        on_outcome: Called in this process.
        work: What simulates a cell on a worker.

    Raises:
        BenchmarkError: Ray is not installed, the cluster cannot be reached, or a bundle lies elsewhere.
        LostWorkerError: A cell's workers died :data:`RETRIES` times.
    """
    ray = need_ray()
    local = address == "local"
    shipped = [(cell, cell.scheduler if local else _portable(cell.scheduler)) for cell in cells]
    begun = not ray.is_initialized()
    if begun:
        try:
            ray.init(
                address=address,
                runtime_env=_environment(local),
                log_to_driver=False,
                include_dashboard=False if local else None,
                configure_logging=False,
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise BenchmarkError(f"--ray {address}: no cluster there: {error}") from error
    try:
        _run(ray, shipped, on_outcome, work)
    finally:
        if begun:
            ray.shutdown()


def _environment(local: bool) -> dict[str, Any]:
    """Return what workers run in: this very checkout, or a copy of its code, in one thread."""
    if local:
        return {"env_vars": {**ONE_THREAD, "PYTHONPATH": str(ROOT)}}
    excludes = [*(f"/{folder}" for folder in LEFT_AT_HOME), *HIDDEN]
    return {"working_dir": str(ROOT), "excludes": excludes, "env_vars": {**ONE_THREAD}}


def _portable(spec: str) -> str:
    """Return a specification whose file workers find in their copy of the checkout.

    Raises:
        BenchmarkError: It lies elsewhere.
    """
    name, colon, argument = spec.partition(":")
    if name not in ("policy", "table"):
        return spec
    path = Path(argument).resolve()
    if not path.is_relative_to(ROOT) or any(path.is_relative_to(ROOT / each) for each in LEFT_AT_HOME):
        raise BenchmarkError(
            f"{spec}: workers of a cluster get the checkout without {', '.join(LEFT_AT_HOME)}; put what the "
            "scheduler reads below configs/ or benchmark/submissions/"
        )
    return f"{name}{colon}{path.relative_to(ROOT)}"


def _run(
    ray: Any,
    cells: Sequence[tuple[Cell, str]],
    on_outcome: Callable[[Outcome], None],
    work: Callable[[Cell, str], Outcome],
) -> None:
    def simulate(cell: Cell, spec: str) -> Outcome:
        return work(cell, spec)  # Ray takes functions, and no other callables

    # Ray itself gives a task whose worker died to another one; when it gives up, it is asked again.
    task = ray.remote(num_cpus=1, max_retries=RETRIES, retry_exceptions=False)(simulate)
    waiting = iter(cells)
    deaths: Counter[int] = Counter()
    running: dict[Any, tuple[Cell, str]] = {}
    while True:
        # A few more than there are CPUs, so that none waits and an interrupt leaves no queue.
        room = int(ray.cluster_resources().get("CPU", 1)) + 2 - len(running)
        for cell, spec in itertools.islice(waiting, max(room, 0)):
            running[task.remote(cell, spec)] = (cell, spec)
        if not running:
            return
        done, _ = ray.wait(list(running), num_returns=1)
        for reference in done:
            cell, spec = running.pop(reference)
            try:
                outcome = ray.get(reference)
            except ray.exceptions.RayError as error:
                deaths[id(cell)] += 1
                if deaths[id(cell)] >= RETRIES:
                    raise LostWorkerError(
                        f"{cell.entry!r}, {cell.name!r}, seed {cell.seed}: its workers died {RETRIES} times "
                        f"({type(error).__name__}); the same command continues"
                    ) from error
                running[task.remote(cell, spec)] = (cell, spec)
            else:
                on_outcome(outcome)
