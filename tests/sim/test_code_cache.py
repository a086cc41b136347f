"""Where compiled code is kept: by all that went into it, and where something can be written."""

from __future__ import annotations

import ast
import importlib
import logging
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import dsd_env
from dsd_env.sim import code_cache as cache
from dsd_env.sim import engines
from dsd_env.whole_runs import adaptive_kernel, goodput_kernel, static_kernel

PACKAGE = Path(dsd_env.__file__).parent


def sources() -> list[str]:
    """Return every file that the kernel is compiled from."""
    return [file.relative_to(PACKAGE).as_posix() for file in cache.source_files(PACKAGE)]


@pytest.mark.parametrize(
    "source",
    [
        "laws/links.py",
        "rng.py",
        "sim/compiled/records.py",
        "sim/compiled/kernel/loop.py",
        "schedulers/rounds.py",
    ],
)
def test_a_change_of_any_source_is_another_folder(tmp_path: Path, source: str) -> None:
    for name in sources():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PACKAGE / name, tmp_path / name)
    before = cache.fingerprint(tmp_path)
    assert before == cache.fingerprint(PACKAGE)
    (tmp_path / source).write_text((tmp_path / source).read_text() + "\n# a change\n")
    assert cache.fingerprint(tmp_path) != before


# These only serve the compilation of scenarios, whose results are data, or what Python does with results.
HARMLESS = (
    "tables.py",
    "table_writer.py",
    "table_links.py",
    "table_arrivals.py",
    "table_acceptance.py",
    "table_plan.py",
    "table_served.py",
    "buffer.py",
    "world.py",
    "vector.py",
    "__init__.py",
)


def test_sources_that_change_while_a_process_runs_do_not_change_its_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # What it compiles later is of the sources that it has loaded: under the name of the new ones other
    # processes would run code that reads their records wrongly.
    before = cache.cache_folder()
    monkeypatch.setattr(cache, "fingerprint", lambda package: "0123456789abcdef")
    assert cache.cache_folder() == before


def test_every_module_that_the_kernel_takes_constants_from_is_a_source() -> None:
    """A constant of the kernel that comes from elsewhere would leave stale code behind."""
    known = {name.removesuffix("/__init__.py").removesuffix(".py") for name in sources()}
    for name in sources():
        if name.startswith("sim/compiled/") and name.removeprefix("sim/compiled/") in HARMLESS:
            continue
        for node in ast.walk(ast.parse((PACKAGE / name).read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dsd_env"):
                module = str(node.module).removeprefix("dsd_env").lstrip(".").replace(".", "/")
                if module == "sim/code_cache":
                    continue
                if name in (
                    "sim/metrics.py",
                    "network/processes.py",
                    "control/view.py",
                    "scenario/episode.py",
                ):
                    continue  # of these only tuples of names and numbers are taken
                if name.startswith("schedulers/"):
                    continue  # of these only numbers
                wanted = {f"{module}/{alias.name}".lstrip("/") for alias in node.names}
                assert module in known or wanted <= known, f"{name} imports {module}, which is not a source"


@pytest.mark.parametrize("kernel", [adaptive_kernel, goodput_kernel, static_kernel])
def test_everything_that_compiled_rules_take_constants_from_is_a_source(kernel: ModuleType) -> None:
    known = {name.removesuffix("/__init__.py").removesuffix(".py") for name in sources()}
    taken = {
        module
        for node in ast.walk(ast.parse(Path(str(kernel.__file__)).read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dsd_env.")
        for module in _modules(str(node.module), [alias.name for alias in node.names])
    }
    assert taken and taken <= known


def _modules(module: str, names: list[str]) -> list[str]:
    path = module.removeprefix("dsd_env.").replace(".", "/")
    return [f"{path}/{name}" for name in names] if (PACKAGE / path).is_dir() else [path]


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
    with pytest.warns(RuntimeWarning, match="NUMBA_CACHE_DIR") as warned, cache.caching() as cached:
        assert not cached
    assert [each.filename for each in warned] == [
        __file__
    ]  # the user's line, not one of ours or contextlib's


def test_numbas_own_setting_is_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from numba import config

    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    before = config.CACHE_DIR
    with warnings.catch_warnings(), cache.caching() as cached:
        warnings.simplefilter("error")
        assert cached and str(tmp_path) in config.CACHE_DIR
    assert before == config.CACHE_DIR


# ---------------------------------------------------------------------- damage


def three(x: int) -> int:
    return x + 3


def decorated() -> Any:
    """Return the function as the kernel's are, with a new dispatcher: it has to look into the folder."""
    from numba import njit

    with cache.caching() as cached:
        return njit(cache=cached)(three)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that holds the machine code of one small function, intact."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    assert decorated()(4) == 7
    again = decorated()
    assert again(4) == 7 and sum(again.stats.cache_hits.values()) == 1, "the code was not kept"
    folder = cache.cache_folder()
    assert folder is not None
    return folder


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    """Return the same with one bit changed: it may unpickle and run."""
    at = len(content) // 2
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize("ending", ["nbc", "nbi"])
@pytest.mark.parametrize(
    "damage", [cut, flipped, lambda _: b"", lambda _: b"garbage", lambda c: c + b"x", lambda c: c[:-32]]
)
def test_a_damaged_file_is_compiled_anew(damage, ending: str, kept: Path, caplog) -> None:
    (victim,) = kept.rglob(f"*.{ending}")
    victim.write_bytes(damage(victim.read_bytes()))
    with caplog.at_level(logging.WARNING, "dsd_env"):
        function = decorated()
        assert function(4) == 7
    assert not function.stats.cache_hits
    (note,) = caplog.messages
    assert str(kept) in note and victim.name in note
    again = decorated()
    assert again(4) == 7 and sum(again.stats.cache_hits.values()) == 1, "it was not written anew"


@pytest.mark.parametrize("ending", ["nbc", "nbi"])
def test_a_file_that_cannot_be_read_or_replaced_stops_nothing(ending: str, kept: Path, caplog) -> None:
    """A folder in its place: not even root reads or replaces that."""
    (victim,) = kept.rglob(f"*.{ending}")
    victim.unlink()
    (victim / "inside").mkdir(parents=True)
    assert decorated()(4) == 7
    assert str(kept) in caplog.messages[0]


def test_numba_itself_reads_what_was_written(kept: Path) -> None:
    from numba import config, njit

    before, config.CACHE_DIR = config.CACHE_DIR, str(kept)
    try:
        function = njit(cache=True)(three)
        assert function(4) == 7 and sum(function.stats.cache_hits.values()) == 1
    finally:
        config.CACHE_DIR = before


def start(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent), **environment},
    )


SIMULATE = """
import dsd_env
result = dsd_env.simulate("single_lan", "cloud_ar", seed=1, requests=3)
print(result.engine, result.metrics["e2e_s_mean"])
"""


def copied_code(tmp_path: Path) -> Path:
    own = cache.cache_folder()
    assert own is not None
    return Path(shutil.copytree(own, tmp_path / own.name))


def expected() -> str:
    result = dsd_env.simulate("single_lan", "cloud_ar", seed=1, requests=3, engine="reference")
    return f"compiled {result.metrics['e2e_s_mean']}\n"


def test_the_engine_starts_with_damaged_code(tmp_path: Path) -> None:
    """Entry points only, which compile in seconds: the event loop takes a minute (see the slow test)."""
    dsd_env.simulate("single_lan", "cloud_ar", seed=1, requests=3, engine="compiled")
    folder = copied_code(tmp_path)
    for pattern in ("*_run_world*.nbc", "*answer_world*.nbi"):
        victims = list(folder.rglob(pattern))
        assert victims
        for victim in victims:
            victim.write_bytes(victim.read_bytes()[:100])
    first = start(SIMULATE, NUMBA_CACHE_DIR=str(tmp_path))
    assert (first.returncode, first.stdout) == (0, expected()), first.stderr
    assert first.stderr.count(str(folder)) == 1, "one note that names the folder"
    second = start(SIMULATE, NUMBA_CACHE_DIR=str(tmp_path))
    # A slow machine may say that it takes its time; of damage there is nothing left to say.
    assert second.stdout == expected() and str(folder) not in second.stderr


@pytest.mark.slow
def test_the_engine_starts_with_a_damaged_event_loop(tmp_path: Path) -> None:
    folder = copied_code(tmp_path)
    (victim,) = folder.rglob("*_native_run*.nbc")
    victim.write_bytes(victim.read_bytes()[:1000])
    first = start(SIMULATE, NUMBA_CACHE_DIR=str(tmp_path))
    assert (first.returncode, first.stdout) == (0, expected()), first.stderr
    assert str(folder) in first.stderr
    assert start(SIMULATE, NUMBA_CACHE_DIR=str(tmp_path)).stderr == ""


def test_where_numba_is_switched_off_the_reference_runs(tmp_path: Path) -> None:
    program = f"""{SIMULATE}
import gymnasium
print(gymnasium.make("dsd_env/EdgeCloud-v0", scenario="single_lan").unwrapped.engine)
for call in (
    lambda: dsd_env.simulate("single_lan", "cloud_ar", engine="compiled"),
    lambda: gymnasium.make_vec("dsd_env/EdgeCloud-v0", 2, scenario="single_lan"),
):
    try:
        call()
    except ImportError as error:
        print(error)
"""
    result = start(program, NUMBA_DISABLE_JIT="1", NUMBA_CACHE_DIR=str(tmp_path))
    assert result.returncode == 0, result.stderr
    simulated, made, *errors = result.stdout.splitlines()
    assert simulated == expected().replace("compiled", "reference").strip() and made == "reference"
    assert len(errors) == 2 and all("unset that variable" in error for error in errors)
    assert result.stderr.count("NUMBA_DISABLE_JIT") == 1, "one note"


@pytest.fixture
def loading(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Let loading the event loop fail; return whether the cache was in use, try by try."""
    tries: list[bool] = []

    def fail(name: str) -> None:
        tries.append(not cache._switched_off)
        raise EOFError("Ran out of input")

    monkeypatch.setattr(engines, "_broken", None)
    monkeypatch.setattr(importlib, "import_module", fail)
    return tries


def test_what_cannot_be_loaded_is_compiled_once_more_and_then_said(
    loading: list[bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    for _ in range(2):
        with pytest.raises(ImportError, match=f"EOFError: Ran out of input.*delete the folder.*{tmp_path}"):
            engines.load_kernel()
    assert loading == [True, False], "once with the cache, once without, and not again for the second caller"
    assert len(caplog.messages) == 2


def test_auto_falls_back_where_the_engine_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process: the package is imported, and its import fails."""
    for name in [name for name in sys.modules if name.startswith("dsd_env.sim.compiled")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(engines, "_broken", "the compiled engine is broken: mend it")
    scenario = dsd_env.load_scenario("single_lan", episode__requests=2)
    assert dsd_env.simulate(scenario, "cloud_ar").engine == "reference"
    with pytest.raises(ImportError, match="is broken: mend it; or say engine='reference'"):
        dsd_env.simulate(scenario, "cloud_ar", engine="compiled")
