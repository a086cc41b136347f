"""Locks: one process at a time, who holds it is named, and a killed process holds nothing."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dsd_env import locks
from dsd_env.locks import InUseError, hold

ROOT = Path(__file__).resolve().parent.parent
HOLDER = """
import sys, time
from pathlib import Path
from dsd_env.locks import hold
with hold(Path(sys.argv[1]), "the house"):
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def held_elsewhere(lock: Path, program: str = HOLDER) -> Iterator[subprocess.Popen[str]]:
    """Run a process that holds a lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(lock)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_another_process_is_told_who_has_it(tmp_path: Path) -> None:
    lock = tmp_path / "deep" / "lock"
    with held_elsewhere(lock) as process:
        before = lock.read_bytes()
        with pytest.raises(InUseError) as refused, hold(lock, "the house"):
            raise AssertionError("held twice")
        assert lock.read_bytes() == before
        message = str(refused.value)
        assert message.startswith(
            f"the house is in use by process {process.pid} on {socket.gethostname()} since"
        )
        assert f"-c {lock}" in message and "nothing was written" in message


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="POSIX")
def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with held_elsewhere(lock) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert lock.exists(), "it had no time to remove it"
        with hold(lock, "the house"):
            assert json.loads(lock.read_text())["pid"] == os.getpid()
    assert not lock.exists()


FORKED = """
import os, sys, time
from pathlib import Path
from dsd_env.locks import hold
with hold(Path(sys.argv[1]), "the house"):
    child = os.fork()
    if not child:  # it speaks once it runs: until then it shares its parent's lock
        print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX")
def test_a_forked_child_does_not_go_on_holding_it(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    program = FORKED.replace(
        'print("held"', 'Path(sys.argv[1] + ".child").write_text(str(os.getpid())); print("held"'
    )
    with held_elsewhere(lock, program) as process:
        child = int((tmp_path / "lock.child").read_text())
        try:
            process.kill()
            process.wait()
            os.kill(child, 0)  # it lives
            with hold(lock, "the house"):
                pass
        finally:
            os.kill(child, signal.SIGKILL)


def test_twice_in_one_process(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with hold(lock, "the house"):
        with pytest.raises(InUseError, match="which is this one"), hold(lock, "the house"):
            raise AssertionError("held twice")
        assert lock.exists(), "the refused one removes nothing"
    with hold(lock, "the house"):
        pass
    assert not lock.exists()


def test_an_error_in_the_block_frees_it(tmp_path: Path) -> None:
    with pytest.raises(KeyError), hold(tmp_path / "lock", "it"):
        raise KeyError
    with hold(tmp_path / "lock", "it"):
        pass


def test_an_unreadable_name_is_no_obstacle(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    for text in ("", "{", "[]", "null", '{"pid": 1}', "\0" * 100, "[" * 9000):
        with hold(lock, "it"):
            lock.write_text(text)
            with pytest.raises(InUseError, match="another process"), hold(lock, "it"):
                raise AssertionError("held twice")
        lock.write_text(text)  # what a killed one leaves
        with hold(lock, "it"):
            pass


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="POSIX")
def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("text")
    (tmp_path / "lock").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="lock"), hold(tmp_path / "lock", "it"):
        pass
    assert (tmp_path / "precious").read_text() == "text"


def test_a_file_system_without_locks_is_said(tmp_path: Path, monkeypatch, caplog) -> None:
    fcntl = pytest.importorskip("fcntl")

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with hold(tmp_path / "lock", "it"):
        pass
    assert str(tmp_path) in caplog.text and "no locks" in caplog.text


def test_a_lock_that_was_just_removed_is_taken_anew(tmp_path: Path, monkeypatch) -> None:
    """As when its holder ends between this one's opening and locking it."""
    lock, attempt, tries = tmp_path / "lock", locks._try_lock, 0

    def late(descriptor: int, path: Path) -> bool:
        nonlocal tries
        tries += 1
        if tries == 1:
            path.unlink()
        return attempt(descriptor, path)

    monkeypatch.setattr(locks, "_try_lock", late)
    with hold(lock, "it"):
        assert lock.exists() and tries == 2
        monkeypatch.undo()
        with pytest.raises(InUseError), hold(lock, "it"):
            pass


def test_many_at_once_are_one_at_a_time(tmp_path: Path) -> None:
    """Whoever gets it, gets it alone: a counter that is not written atomically misses nothing."""
    program = """
import sys, time
from pathlib import Path
from dsd_env.locks import InUseError, hold
counter, done = Path(sys.argv[1]).with_name("counter"), 0
while done < 40:
    try:
        with hold(Path(sys.argv[1]), "it"):
            value = int(counter.read_text())
            time.sleep(0.0005)
            counter.write_text(str(value + 1))
            done += 1
    except InUseError:
        time.sleep(0.0002)
"""
    (tmp_path / "counter").write_text("0")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path / "lock")],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        for _ in range(3)
    ]
    assert [process.wait(timeout=60) for process in processes] == [0, 0, 0]
    assert (tmp_path / "counter").read_text() == "120"
