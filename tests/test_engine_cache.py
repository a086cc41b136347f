"""Where compiled code is kept: by all that went into it, and where something can be written."""

from __future__ import annotations

import ast
import shutil
import warnings
from pathlib import Path

import pytest

import dsd_env
from dsd_env.sim.compiled import cache

PACKAGE = Path(dsd_env.__file__).parent


def sources() -> list[str]:
    """Return every file that the kernel is compiled from."""
    return [file.relative_to(PACKAGE).as_posix() for file in cache.source_files(PACKAGE)]


@pytest.mark.parametrize("source", ["laws/links.py", "rng.py", "sim/compiled/records.py", "sim/compiled/kernel/loop.py"])
def test_a_change_of_any_source_is_another_folder(tmp_path: Path, source: str) -> None:
    for name in sources():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PACKAGE / name, tmp_path / name)
    before = cache.fingerprint(tmp_path)
    assert before == cache.fingerprint(PACKAGE)
    (tmp_path / source).write_text((tmp_path / source).read_text() + "\n# a change\n")
    assert cache.fingerprint(tmp_path) != before


# These only serve the compilation of scenarios, whose results are data, or what Python does with results.
HARMLESS = ("tables.py", "buffer.py", "world.py", "vector.py", "cache.py", "__init__.py")


def test_every_module_that_the_kernel_takes_constants_from_is_a_source() -> None:
    """A constant of the kernel that comes from elsewhere would leave stale code behind."""
    known = {name.removesuffix("/__init__.py").removesuffix(".py") for name in sources()}
    for name in sources():
        if name.startswith("sim/compiled/") and name.removeprefix("sim/compiled/") in HARMLESS:
            continue
        for node in ast.walk(ast.parse((PACKAGE / name).read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dsd_env"):
                module = str(node.module).removeprefix("dsd_env").lstrip(".").replace(".", "/")
                if name in ("sim/metrics.py", "network/processes.py", "control/view.py"):
                    continue  # of these only tuples of names and numbers are taken
                wanted = {f"{module}/{alias.name}".lstrip("/") for alias in node.names}
                assert module in known or wanted <= known, f"{name} imports {module}, which is not a source"


def test_a_read_only_installation_keeps_it_in_the_users_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file stands where the folder would have to be made: not even root can write there."""
    (tmp_path / "__pycache__").write_text("")
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(cache, "__file__", str(tmp_path / "cache.py"))
    folder = cache.cache_folder()
    assert folder is not None and folder.parent == tmp_path / "home" / "dsd_env"
    assert folder.is_dir()


def test_the_environment_variable_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    folder = cache.cache_folder()
    assert folder is not None and folder.parent == tmp_path


def test_nowhere_to_write_is_a_warning_and_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file"))
    with pytest.warns(RuntimeWarning, match="NUMBA_CACHE_DIR"), cache.caching() as cached:
        assert not cached


def test_numbas_own_setting_is_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from numba import config

    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    before = config.CACHE_DIR
    with warnings.catch_warnings(), cache.caching() as cached:
        warnings.simplefilter("error")
        assert cached and str(tmp_path) in config.CACHE_DIR
    assert before == config.CACHE_DIR
