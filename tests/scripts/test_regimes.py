"""The map of where a remote drafter pays: its cells, its page, its bad input."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def regimes() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "scripts")
        yield importlib.import_module("regimes")


def test_a_cell_is_what_worth_it_says(regimes: ModuleType) -> None:
    setup = regimes.SETUPS[0]
    verdict = regimes.judge(regimes.Cell(setup, 5.0, 0.75, 32))
    command = [
        sys.executable,
        "scripts/worth_it.py",
        "--target",
        setup.target,
        "--node-drafter",
        setup.beside,
    ]
    command += ["--drafter", setup.remote, "--rtt-ms", "5", "--alpha", "0.75", "--active", "32", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    told = {row["way"]: (row["gamma"], row["token_s"]) for row in json.loads(done.stdout)}
    assert told == {cost.way: (cost.gamma, pytest.approx(cost.token_s)) for cost in verdict.costs}


def test_distance_and_poor_drafts_never_help(regimes: ModuleType) -> None:
    for setup in regimes.SETUPS:
        near, far = (regimes.judge(regimes.Cell(setup, rtt, 0.75, 32)).remote for rtt in (1.0, 80.0))
        assert near.token_s <= far.token_s
        poor, good = (regimes.judge(regimes.Cell(setup, 5.0, alpha, 32)).remote for alpha in (0.6, 0.85))
        # A drafter that is never heard in time leaves plain decoding behind, however good it is.
        assert good.token_s < poor.token_s or good.token_s == poor.token_s == good.iteration_s


def test_gains_are_marked_by_the_lines_they_pass(regimes: ModuleType) -> None:
    assert [regimes.marked(gain) for gain in (-0.07, 0.19, 0.2, 0.351)] == [
        "+7 %",
        "-19 %",
        "-20 %*",
        "-35 %**",
    ]


def test_the_page_holds_what_the_script_prints(tmp_path: Path) -> None:
    page, plain = tmp_path / "page.md", tmp_path / "plain.md"
    page.write_text(
        "# A page\n<!-- begin: regimes -->\nold\n<!-- end: regimes -->\nits end\n", encoding="utf-8"
    )
    plain.write_text("# A page\n", encoding="utf-8")
    command = [sys.executable, "scripts/regimes.py", "--write"]
    done = subprocess.run([*command, str(page)], cwd=ROOT, capture_output=True, text=True, check=True)
    written = page.read_text(encoding="utf-8")
    assert done.stdout.strip() in written
    assert written.startswith("# A page\n") and written.endswith("\nits end\n") and "old" not in written
    shipped = (ROOT / "docs" / "regimes.md").read_text(encoding="utf-8")
    assert done.stdout.strip() in shipped, "run scripts/regimes.py --write docs/regimes.md"
    refused = subprocess.run([*command, str(plain)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert refused.returncode == 2 and "has no block 'regimes'" in refused.stderr
