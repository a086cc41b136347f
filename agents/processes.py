"""Processes of this machine that work side by side."""

from __future__ import annotations

import itertools
import multiprocessing
import signal
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def _leave_interrupts_to_the_parent() -> None:
    # Ctrl-C goes to the whole process group; only the parent is to react.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def workers(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Give a pool of processes; end them at once where an error or Ctrl-C leaves the block."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_leave_interrupts_to_the_parent) as pool:
        try:
            yield pool
        except BaseException:
            processes = list((pool._processes or {}).values())  # shutdown() forgets them
            pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.terminate()
            raise


def as_they_end(
    jobs: int, work: Callable[[Item], Result], items: Iterable[Item]
) -> Generator[tuple[Item, Result], None, None]:
    """Work on items in so many processes, and yield each with its result as it ends.

    Whoever may stop before the last closes the generator (``contextlib.closing``), which ends the processes.

    Raises:
        Exception: What ``work`` raised.
        concurrent.futures.process.BrokenProcessPool: A process died.
    """
    waiting = iter(items)
    running: dict[Future[Result], Item] = {}
    with workers(jobs) as pool:
        while True:
            # Few at a time, so that an interrupt does not leave a queue to work off.
            for item in itertools.islice(waiting, jobs + 1 - len(running)):
                running[pool.submit(work, item)] = item
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                result = future.result()
                yield running.pop(future), result
