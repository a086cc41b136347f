"""The programs of docs/recipes.md: every one runs, where its library is installed.

The first two need nothing beside the libraries of the project itself.
"""

from __future__ import annotations

import importlib.util
import os
import re
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

LIBRARIES = {
    "A reward of your own": "stable_baselines3",
    "A loop of your own, as in CleanRL": "torch",
    "RLlib": "ray",
    "TorchRL": "torchrl",
    "tianshou": "tianshou",
    "sbx": "sbx",
    "skrl": "skrl",
    "Minari": "minari",
    "d3rlpy": "d3rlpy",
}
TIMEOUT_S = 900.0


def programs() -> list[tuple[str, str]]:
    """Return (section, program) of every program of the page."""
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    found = []
    for section in re.split(r"^## ", page, flags=re.MULTILINE)[1:]:
        title = section.splitlines()[0].strip()
        blocks = re.findall(r"^```python\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)
        found += [(title, block) for block in blocks]
    return found


def run(program: str, folder: Path) -> str:
    """Run a program in a folder of its own; return what it prints."""
    script = folder / "recipe.py"
    script.write_text(program, encoding="utf-8")
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    # Libraries keep what they write in this folder, too: Ray its token, else put into the user's home.
    token = folder / "ray_token"
    token.write_text(secrets.token_hex(32), encoding="utf-8")
    settings = {
        "PYTHONPATH": path,
        "RAY_AUTH_TOKEN_PATH": str(token),
        "MINARI_DATASETS_PATH": str(folder / "minari"),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=folder,
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return done.stdout


def test_every_section_has_a_program_and_a_library() -> None:
    found = programs()
    assert {title for title, _ in found} == set(LIBRARIES)
    for title, program in found:
        compile(program, title, "exec")
        assert "import dsd_env" in program
        assert "print(" in program


def test_a_reward_of_ones_own_is_paid(tmp_path: Path) -> None:
    pytest.importorskip("stable_baselines3")
    said = run(dict(programs())["A reward of your own"], tmp_path)
    assert said == "20 for an episode of 20 requests\n"


def test_the_loop_of_ones_own_runs(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    said = run(dict(programs())["A loop of your own, as in CleanRL"], tmp_path)
    assert said.count("mean reward -") == 3


@pytest.mark.clients
@pytest.mark.parametrize(("title", "program"), programs()[2:])
def test_recipes_run(title: str, program: str, tmp_path: Path) -> None:
    library = LIBRARIES[title]
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"needs {library}; `make test-clients` installs it")
    said = run(program, tmp_path)
    assert said.strip()
    assert "nan" not in said
