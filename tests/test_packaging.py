"""What the wheel and an editable install put on a user's path, and what the version pins promise.

`scripts/check_wheel.sh`, which CI runs, goes further: it installs the wheel in a clean environment.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

CORE = {"numpy", "gymnasium", "simpy", "pydantic", "pyyaml", "numba"}
# What `import dsd_env` must do without: everything that is not needed, and Numba, which takes long to import.
HEAVY = (
    "numba",
    "torch",
    "stable_baselines3",
    "sb3_contrib",
    "onnx",
    "onnxruntime",
    "transformers",
    "gguf",
    "matplotlib",
    "scipy",
)


def _build(checkout: Path, out: Path, hook: str) -> zipfile.ZipFile:
    """Build a wheel by hatchling's PEP 517 hook, in a process of its own as it builds the current folder."""
    code = "import sys; from hatchling import build; print(getattr(build, sys.argv[1])(sys.argv[2]))"
    done = subprocess.run(
        [sys.executable, "-c", code, hook, str(out)],
        cwd=checkout,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(out / done.stdout.split()[-1])


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    return _build(checkout, tmp_path_factory.mktemp("wheel"), "build_wheel")


@pytest.fixture(scope="module")
def editable(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    return _build(checkout, tmp_path_factory.mktemp("editable"), "build_editable")


@pytest.fixture(scope="module")
def project(checkout: Path) -> dict:
    return tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def pins(checkout: Path) -> dict[str, str]:
    return pins_of(checkout / "constraints.txt")


def pins_of(file: Path) -> dict[str, str]:
    lines = file.read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    assert all(len(pair) == 2 for pair in pairs), "every line must be NAME==VERSION"
    return {canonicalize_name(name): version for name, version in pairs}


def test_wheel_holds_one_package_and_its_metadata(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert tops == {"dsd_env", "dsd_env-0.1.0.dist-info"}


def test_wheel_holds_every_module_and_data_file_of_the_package(
    wheel: zipfile.ZipFile, checkout: Path
) -> None:
    wanted = {
        path.relative_to(checkout).as_posix()
        for path in (checkout / "dsd_env").rglob("*")
        if path.is_file()
        and path.suffix in {".py", ".npz", ".json", ".typed"}
        and "__pycache__" not in path.parts
    }
    assert "dsd_env/py.typed" in wanted
    assert wanted <= set(wheel.namelist())


def test_wheel_holds_the_configs_as_they_are(wheel: zipfile.ZipFile, checkout: Path) -> None:
    configs = sorted(path for path in (checkout / "configs").rglob("*") if path.is_file())
    assert any(path.parent.name == "scenarios" for path in configs)
    for path in configs:
        name = "dsd_env/_configs/" + path.relative_to(checkout / "configs").as_posix()
        assert wheel.read(name) == path.read_bytes()
    assert len([name for name in wheel.namelist() if name.startswith("dsd_env/_configs/")]) == len(configs)


def test_wheel_needs_only_the_light_packages(wheel: zipfile.ZipFile) -> None:
    metadata = HeaderParser().parsestr(wheel.read("dsd_env-0.1.0.dist-info/METADATA").decode())
    requirements = [Requirement(text) for text in metadata.get_all("Requires-Dist", [])]
    assert {r.name.lower() for r in requirements if r.marker is None} == CORE
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "Apache-2.0"


def test_editable_install_reaches_dsd_env_and_nothing_else_of_the_checkout(
    editable: zipfile.ZipFile, checkout: Path, tmp_path: Path
) -> None:
    # A stray folder `dsd_env/` in site-packages would hide the checkout's package.
    assert not [name for name in editable.namelist() if name.startswith("dsd_env/")]
    editable.extractall(tmp_path / "site")
    pth = [path.read_text().strip() for path in (tmp_path / "site").glob("*.pth")]
    assert pth and not any(str(checkout) in line for line in pth), (
        "a .pth line must not name the checkout itself"
    )
    probe = (
        "import site, sys; from importlib.util import find_spec as find; sys.path.append(sys.argv[2]);"
        "site.addsitedir(sys.argv[1]);"
        "print(find('dsd_env').origin); print(find('agents'), find('scripts'), find('_checkout'))"
    )
    # -I and a neutral folder leave the test's own paths out; -S leaves out an editable install that may be
    # there, and the libraries that this one needs come back as a plain path.
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", probe, str(tmp_path / "site"), sysconfig.get_path("purelib")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    origin, others = done.stdout.splitlines()
    assert Path(origin) == checkout / "dsd_env" / "__init__.py"
    assert others == "None None None"


def test_import_touches_no_heavy_library(checkout: Path, tmp_path: Path) -> None:
    probe = (
        "import sys; sys.path.insert(0, sys.argv[1]); heavy = sys.argv[2].split(',');"
        "sys.modules.update(dict.fromkeys(heavy));"  # None in sys.modules makes `import name` fail
        "import dsd_env, dsd_env.paths; assert callable(dsd_env.simulate);"
        "from dsd_env.scenario import load_scenario; load_scenario('single_lan');"
        "import gymnasium; assert 'dsd_env/EdgeCloud-v0' in gymnasium.registry"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-W", "error", "-c", probe, str(checkout), ",".join(HEAVY)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "", "importing must print nothing"


def test_scripts_find_the_checkout_from_anywhere(checkout: Path, tmp_path: Path) -> None:
    # A rival `agents` that comes earlier on the path must not win over the checkout's own.
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "__init__.py").write_text("raise RuntimeError('the wrong agents')\n")
    code = "import _checkout, agents, dsd_env; print(agents.__file__); print(dsd_env.__file__)"
    path = os.pathsep.join([str(tmp_path), str(checkout / "scripts")])
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert [Path(line).parent.parent for line in done.stdout.splitlines()] == [checkout, checkout]


def test_scripts_say_what_is_missing(checkout: Path, tmp_path: Path) -> None:
    # -S leaves site-packages out: what a system Python without the dependencies sees.
    code = "import sys; sys.path.insert(0, sys.argv[1]); import _checkout"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(checkout / "scripts")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "make demo" in done.stderr and "gymnasium" in done.stderr
    assert "Traceback" not in done.stderr


def test_pins_are_exact_and_install_anywhere(checkout: Path, pins: dict[str, str]) -> None:
    for name, version in pins.items():
        assert Version(version).local is None, f"{name}=={version}: a local version exists in one index only"
    text = (checkout / "constraints.txt").read_text(encoding="utf-8")
    assert not re.search(r"://|--hash|--index|--find-links|@ ", text), "no hosts, hashes or paths"
    assert not [name for name in pins if name.startswith("nvidia-")]


def test_every_direct_requirement_is_pinned_within_its_range(
    project: dict, pins: dict[str, str], checkout: Path
) -> None:
    groups = {"dependencies": project["dependencies"], **project["optional-dependencies"]}
    # The cluster's tests run in the environment of the clients.
    elsewhere = {"cluster": "constraints-clients.txt"}
    for group, requirements in groups.items():
        file = elsewhere.get(group, "constraints.txt")
        known = pins if file == "constraints.txt" else pins_of(checkout / file)
        for requirement in map(Requirement, requirements):
            pin = known.get(canonicalize_name(requirement.name))
            assert pin is not None, f"{group}: {requirement.name} has no line in {file}"
            assert requirement.specifier.contains(pin), f"{group}: {requirement} excludes the pinned {pin}"


def test_version_is_the_same_everywhere(project: dict, checkout: Path) -> None:
    import dsd_env

    assert dsd_env.__version__ == project["version"]
    assert re.search(
        rf"^version: {re.escape(project['version'])}$", (checkout / "CITATION.cff").read_text(), re.M
    )
    assert project["version"] in (checkout / "CHANGELOG.md").read_text()
