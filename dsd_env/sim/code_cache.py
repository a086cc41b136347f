"""Where the compiled code of the engine is kept, and how a damaged file there is survived.

Numba keys its cache by the source file of each function alone, but the kernel takes constants from other
files, so each state of those sources gets a folder of its own. It lies in `NUMBA_CACHE_DIR` if that is set,
else beside this module, else, where the installation cannot be written, in the user's cache folder.

Numba trusts what it finds there: a file that is cut off raises whatever unpickling raises, at every start,
and changed bytes may run as machine code. So every file ends with a digest of what stands before it, which
unpickling passes over; one whose digest is not right counts as missing: it is compiled and written anew.
"""

from __future__ import annotations

import functools
import hashlib
import io
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dsd_env

_SOURCES = (
    "laws",
    "sim/compiled",
    "sim/events.py",
    "sim/metrics.py",
    "rng.py",
    "control/view.py",
    "scenario/episode.py",
    "network/processes.py",
    *(f"schedulers/{name}.py" for name in ("goodput", "goodput_parameters", "rounds", "busy_node", "hf")),
    *(f"schedulers/{name}.py" for name in ("lengths", "stream_model")),
)
"""What code is compiled from, files and folders within the package. The kernel knows no schedulers; but the
compiled rules, which are kept in the same folder, take constants from the rules that they repeat and from
the limits of scenarios."""

_DIGEST_BYTES = hashlib.sha256().digest_size
_LOGGER = logging.getLogger("dsd_env")


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


@functools.cache
def _loaded() -> str:
    """Return the fingerprint of the sources that this process has loaded.

    It is taken once, when the first of them is compiled: where sources change while a process runs, what it
    compiles later is still of the old ones, and must not be kept under the name of the new.
    """
    return fingerprint(Path(dsd_env.__file__).parent)


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
    name = f"dsd_env-{_loaded()}"
    for candidate in _candidates():
        if _can_write(candidate / name):
            return candidate / name
    return None


_switched_off = False
_INSIDE = ("dsd_env", "contextlib", "functools", "importlib", "_frozen_importlib", "numba")


@contextmanager
def switched_off() -> Iterator[None]:
    """Compile anew whatever is decorated meanwhile, and keep nothing of it."""
    global _switched_off
    before, _switched_off = _switched_off, True
    try:
        yield
    finally:
        _switched_off = before


def _warn(message: str) -> None:
    """Warn of a line outside the package: the one that made it compile, however deep below that happens."""
    outside = sys._getframe(1)
    while outside.f_globals.get("__name__", "").partition(".")[0] in _INSIDE and outside.f_back is not None:
        outside = outside.f_back
    registry = outside.f_globals.setdefault("__warningregistry__", {})
    warnings.warn_explicit(
        message, RuntimeWarning, outside.f_code.co_filename, outside.f_lineno, registry=registry
    )


@contextmanager
def caching() -> Iterator[bool]:
    """Let Numba keep what is decorated meanwhile in this state's folder; yield whether it can.

    Warns:
        RuntimeWarning: No folder can be written, so every process compiles the engine anew.
    """
    from numba import config
    from numba.core import caching as numba_caching

    if _switched_off:
        yield False
        return
    folder = cache_folder()
    if folder is None:
        _warn(
            "the compiled engine finds no folder that it can write its code to, so every process compiles it "
            "anew; set NUMBA_CACHE_DIR to a folder that can be written"
        )
        yield False
        return
    before, plain = config.CACHE_DIR, numba_caching.IndexDataCacheFile
    config.CACHE_DIR = str(folder)
    numba_caching.IndexDataCacheFile = _verified_files(plain)
    try:
        yield True
    finally:
        config.CACHE_DIR = before
        numba_caching.IndexDataCacheFile = plain


@functools.cache
def _verified_files(plain: Any) -> Any:
    """Return Numba's class of cache files with digests.

    Numba has no setting for it, so this overrides four of its private methods. Where a later Numba has
    them no more, its own are used as they are, without digests.
    """

    class VerifiedFiles(plain):  # type: ignore[misc]
        """Index and data files of one function that end with a digest; damaged ones count as missing."""

        @contextmanager
        def _open_for_write(self, filepath: str) -> Iterator[io.BytesIO]:
            with super()._open_for_write(filepath) as file:
                buffer = io.BytesIO()
                yield buffer
                content = buffer.getvalue()
                file.write(content + hashlib.sha256(content).digest())

        def _load_index(self) -> Any:
            if not os.path.lexists(self._index_path) or not self._intact(self._index_path):
                return {}
            return super()._load_index()

        def _load_data(self, name: str) -> Any:
            path = self._data_path(name)
            if not self._intact(path):
                raise OSError(f"{path}: damaged")  # Numba takes this for a file that is not there
            return super()._load_data(name)

        def _intact(self, path: str) -> bool:
            try:
                content = Path(path).read_bytes()
            except OSError as error:
                _note_damage(Path(path).parent, f"{Path(path).name}: {error.strerror}")
                return False
            body, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
            if hashlib.sha256(body).digest() != digest:
                _note_damage(Path(path).parent, f"{Path(path).name} is damaged")
                return False
            return True

        def save(self, key: Any, data: Any) -> None:
            try:
                super().save(key, data)
            except OSError as error:  # a full disk; what was compiled runs all the same
                _note_damage(Path(self._index_path).parent, f"cannot be written: {error.strerror}")

    needed = ("_open_for_write", "_load_index", "_load_data", "_data_path", "save")
    return VerifiedFiles if all(hasattr(plain, name) for name in needed) else plain


_noted: set[Path] = set()


def _note_damage(folder: Path, what: str) -> None:
    """Say once what is wrong with a folder of compiled code, and that nothing needs to be done."""
    if folder not in _noted:
        _noted.add(folder)
        _LOGGER.warning("compiled code in %s: %s; it is compiled anew, which may take a minute", folder, what)


__all__ = ["cache_folder", "caching", "fingerprint", "switched_off"]
