"""Where the compiled code of the engine is kept.

Numba keys its cache by the source file of each function alone, but the kernel takes constants from other
files, so each state of those sources gets a folder of its own. It lies in `NUMBA_CACHE_DIR` if that is set,
else beside the module, else, for an installation that cannot be written, in the user's cache folder.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dsd_env

_SOURCES = ("laws", "sim/compiled", "sim/events.py", "sim/metrics.py", "rng.py", "control/view.py", "network/processes.py")
"""What the kernel is compiled from, files and folders within the package."""


def source_files(package: Path) -> list[Path]:
    """Return the files that the kernel is compiled from."""
    files: list[Path] = []
    for source in _SOURCES:
        path = package / source
        files += sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return files


def fingerprint(package: Path) -> str:
    """Return a digest of the sources that the kernel is compiled from."""
    digest = hashlib.sha256()
    for file in source_files(package):
        digest.update(file.relative_to(package).as_posix().encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _candidates() -> Iterator[Path]:
    if os.environ.get("NUMBA_CACHE_DIR"):
        yield Path(os.environ["NUMBA_CACHE_DIR"])
        return
    yield Path(__file__).parent / "__pycache__"
    cache = os.environ.get("XDG_CACHE_HOME")
    try:
        yield (Path(cache) if cache else Path.home() / ".cache") / "dsd_env"
    except RuntimeError:  # a user without a home
        return


def _can_write(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def cache_folder() -> Path | None:
    """Return the folder for this state of the sources; None if none can be written."""
    name = f"dsd_env-{fingerprint(Path(dsd_env.__file__).parent)}"
    for candidate in _candidates():
        if _can_write(candidate / name):
            return candidate / name
    return None


@contextmanager
def caching() -> Iterator[bool]:
    """Let Numba keep what is decorated meanwhile in this state's folder; yield whether it can.

    Warns:
        RuntimeWarning: No folder can be written, so every process compiles the engine anew.
    """
    from numba import config

    folder = cache_folder()
    if folder is None:
        warnings.warn(
            "the compiled engine finds no folder that it can write its code to, so every process compiles it "
            "anew; set NUMBA_CACHE_DIR to a folder that can be written",
            RuntimeWarning,
            stacklevel=2,
        )
        yield False
        return
    before = config.CACHE_DIR
    config.CACHE_DIR = str(folder)
    try:
        yield True
    finally:
        config.CACHE_DIR = before
