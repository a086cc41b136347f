"""Settings and fixtures that every test file shares."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

# Above the other imports, before numpy or torch start their thread pools: under `pytest -n 2` on two cores, a
# pool in every worker is slower than one thread each. Matplotlib must never look for a display.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent

# No deadline: a shared machine may stall for a second. CI draws the same examples every time, so that a red
# run means a change of the code; at home each run looks at new ones.
settings.register_profile("dev", deadline=None, max_examples=50)
settings.register_profile(
    "ci",
    deadline=None,
    max_examples=50,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


def pytest_configure(config: pytest.Config) -> None:
    """Compile the engine once, before pytest-xdist starts workers that would each do it."""
    workers = getattr(config.option, "numprocesses", None)
    if hasattr(config, "workerinput") or not workers or config.option.collectonly:
        return
    if importlib.util.find_spec("numba") is None:
        return
    capture = config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        # In a process of its own, and whether it succeeds or not: if not, the tests say what is wrong.
        subprocess.run([sys.executable, "-m", "tests.compile_engine"], cwd=ROOT, check=False)


@pytest.fixture(scope="session")
def checkout() -> Path:
    """Return the root of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Return the folder of raw measured data; skip the test where there is none.

    It is named by ``DSD_DATA_DIR``, else looked for at ``../shared/data`` beside the checkout. A setting that
    names no folder is a mistake, not a reason to skip.
    """
    named = os.environ.get("DSD_DATA_DIR")
    if named:
        folder = Path(named)
        if not folder.is_dir():
            pytest.fail(f"DSD_DATA_DIR={named} is not a folder: correct it, or unset it to skip these tests")
        return folder
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the raw measured data: set DSD_DATA_DIR to their folder")
    return folder


@pytest.fixture
def calibrate(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Return ``scripts/calibrate.py`` as a function of its arguments that returns what it prints.

    In this process: importing torch once is enough.
    """
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import calibrate as script

    return _called(script.main, capsys)


@pytest.fixture
def measure_script(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Return ``scripts/measure.py`` as a function, likewise."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import measure as script

    return _called(script.main, capsys)


def _called(main: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def run(*args: str, code: int = 0) -> str:
        capsys.readouterr()
        assert main(list(args)) == code
        said = capsys.readouterr()
        return said.out + said.err

    return run
