"""Where a library of an extra is missing, the message says what to install."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from dsd_env.extras import needs

PROGRAM = """
import importlib, sys
for name in ("stable_baselines3", "torch", "scipy", "matplotlib", "onnxruntime", "fastapi"):
    sys.modules[name] = None  # makes `import` of it, and of what is in it, fail

import dsd_env

def latency_fit():
    from dsd_env.calibration.latency.own import _fit_line
    _fit_line([], [])

def image():
    import gymnasium
    env = gymnasium.make("dsd_env/EdgeCloud-v0", scenario="single_lan", render_mode="rgb_array")
    env.reset(seed=0)
    env.render()

calls = {
    "many worlds": lambda: dsd_env.make_sb3_vec_env("single_lan", 2),
    "VecEnv": lambda: importlib.import_module("dsd_env.envs.sb3"),
    "network": lambda: importlib.import_module("dsd_env.calibration.network.fit"),
    "workload": lambda: importlib.import_module("dsd_env.calibration.workload.fit"),
    "workload plot": lambda: importlib.import_module("dsd_env.calibration.workload.plot"),
    "latency": latency_fit,
    "latency plot": lambda: importlib.import_module("dsd_env.calibration.latency.plot"),
    "image": image,
    "service": lambda: importlib.import_module("dsd_env.serving.app"),
    "zip": lambda: dsd_env.policy.export_sb3("x.zip", "single_lan", "out"),
}
for name, call in calls.items():
    try:
        call()
        print(name, "=", "no error")
    except Exception as error:
        print(name, "=", type(error).__name__, error)
"""
EXPECTED = {
    "many worlds": "train",
    "VecEnv": "train",
    "network": "calibrate",
    "workload": "calibrate",
    "workload plot": "calibrate",
    "latency": "calibrate",
    "latency plot": "plot",
    "image": "plot",
    "service": "serve",
    "zip": "export",
}


def test_every_missing_library_is_named_with_its_extra(checkout: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(checkout)},
    )
    assert result.returncode == 0, result.stderr
    said = dict(line.split(" = ", 1) for line in result.stdout.splitlines())
    assert said.keys() == EXPECTED.keys()
    for name, extra in EXPECTED.items():
        assert f"dsd-env[{extra}]" in said[name], said[name]
    extras = tomllib.loads((checkout / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(EXPECTED.values()) <= set(extras)


def test_the_missing_package_keeps_its_name_and_others_pass() -> None:
    message = r"tea needs the package no_such_leaf: pip install 'dsd-env\[plot\]'"
    with pytest.raises(ModuleNotFoundError, match=message) as missing, needs("plot", "tea"):
        importlib.import_module("no_such_leaf")
    assert missing.value.name == "no_such_leaf"
    message = r"No module named .dsd_env\.no_such_part"
    with pytest.raises(ModuleNotFoundError, match=message), needs("plot", "tea"):
        importlib.import_module("dsd_env.no_such_part")
    with pytest.raises(KeyError), needs("plot", "tea"):
        raise KeyError("tea")


@pytest.mark.parametrize(
    ("script", "missing", "extra"),
    [("sweep_static", "tqdm", "train"), ("fit_network --show", "scipy", "calibrate")],
)
def test_a_script_says_it_without_a_traceback(script: str, missing: str, extra: str, checkout: Path) -> None:
    name, *arguments = script.split()
    path = f"scripts/{name}.py"
    program = (
        f"import sys, runpy; sys.modules[{missing!r}] = None; sys.path.insert(0, 'scripts'); "
        f"sys.argv = {[path, *arguments]}; runpy.run_path({path!r}, run_name='__main__')"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=checkout, capture_output=True, text=True, timeout=60
    )
    assert result.returncode in (1, 2)
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"{name}: ") and missing in line and f"[{extra}]" in line
