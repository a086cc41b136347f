"""Locks on files and folders that one process at a time may write.

A lock is the operating system's (`flock`; on Windows a locked byte) on a file that also says who holds it.
The system frees it with the process, however that ends, so a lock never has to be broken by hand: a file that
a killed process leaves behind holds nothing.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

LOCK_FILE = ".lock"
"""Name of the lock in a folder."""

_MAX_BYTES = 10_000
_BYTE_LOCKED = 1 << 30
"""On Windows, where a locked byte cannot be read: far behind the text."""

_LOGGER = logging.getLogger("dsd_env")
_held: set[int] = set()
"""Open descriptors of locks of this process."""


class InUseError(OSError):
    """Another process holds a lock; the message says what it is on, and who that is."""


@contextmanager
def hold(lock: Path, subject: str | Path) -> Iterator[None]:
    """Hold a lock while the block runs; do not wait for it.

    Where the file system has no locks, a note in the log says so and the block runs without one.

    Args:
        lock: The lock's file; it is made, with its folder, and removed at the end.
        subject: What it guards, for the message.

    Raises:
        InUseError: Somebody holds it, perhaps this very process.
        OSError: The file cannot be made.
    """
    descriptor = _locked(lock, subject)
    _held.add(descriptor)
    try:
        _write_holder(descriptor)
        yield
    finally:
        _held.discard(descriptor)
        # While it is still held, so that nobody else's is removed; Windows removes no open file.
        if sys.platform != "win32":
            lock.unlink(missing_ok=True)
        os.close(descriptor)
        if sys.platform == "win32":
            with suppress(OSError):
                lock.unlink()


def _locked(lock: Path, subject: str | Path) -> int:
    """Return the descriptor of the lock's file, locked."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        try:
            if not _try_lock(descriptor, lock):
                raise InUseError(
                    f"{subject} is in use by {_holder(descriptor)}: wait for its end, or stop it; "
                    "nothing was written"
                )
            if _is_at(descriptor, lock):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        # Removed between opening and locking by the one before: what is locked is no file any more.
        os.close(descriptor)


def _is_at(descriptor: int, lock: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), lock.stat())
    except FileNotFoundError:
        return False


def _try_lock(descriptor: int, lock: Path) -> bool:
    """Lock a file; return False if somebody else has."""
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(descriptor, _BYTE_LOCKED, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        _LOGGER.warning(
            "%s: this file system has no locks (%s); make sure yourself that no second process writes there",
            lock.parent,
            error.strerror,
        )
    return True


def _write_holder(descriptor: int) -> None:
    holder = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.executable or "python").name, *sys.argv]),
    }
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.ftruncate(descriptor, 0)
    os.write(descriptor, (json.dumps(holder)[:_MAX_BYTES] + "\n").encode())


def _holder(descriptor: int) -> str:
    """Return in words who holds a lock, by what its file says."""
    try:
        os.lseek(descriptor, 0, os.SEEK_SET)
        data = json.loads(os.read(descriptor, 2 * _MAX_BYTES))
        pid, host, since, command = (str(data[key]) for key in ("pid", "host", "since", "command"))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "another process, which has not put down its name"
    itself = ", which is this one," if (pid, host) == (str(os.getpid()), socket.gethostname()) else ""
    return f"process {pid}{itself} on {host} since {since} ({command})"


def _let_go() -> None:
    """Close the copies that a forked child has: it would hold the locks on after its parent's death."""
    for descriptor in _held:
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)

__all__ = ["LOCK_FILE", "InUseError", "hold"]
