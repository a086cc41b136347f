"""The notebooks run, and what is committed of them is small and of no machine."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
QUICK = {"quick_start", "write_a_scheduler"}
MOST_BYTES = 100_000
_LINK = re.compile(r"\]\(([^)#\s]+)[^)\s]*\)")


def cells(notebook: Path, kind: str) -> list[dict[str, Any]]:
    found = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in found if cell["cell_type"] == kind]


@pytest.mark.parametrize(
    "name",
    [pytest.param(path.stem, marks=() if path.stem in QUICK else pytest.mark.slow) for path in NOTEBOOKS],
)
def test_a_notebook_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nbclient")
    if importlib.util.find_spec("ipykernel") is None:
        pytest.skip("needs the extra docs")
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import notebooks

    ran = notebooks.stripped(notebooks.run(name))
    committed = cells(ROOT / "notebooks" / f"{name}.ipynb", "code")
    assert [cell["source"] for cell in ran.cells if cell["cell_type"] == "code"] == [
        "".join(cell["source"]) for cell in committed
    ]
    # One times this machine; what training comes to depends on a processor's arithmetic.
    if name not in {"calibrate_your_hardware", "train_and_export"}:
        assert said(ran.cells) == said(committed), "write its outputs anew: scripts/notebooks.py --write"


def said(cells: list[Any]) -> list[str]:
    """Return what cells print; pictures depend on fonts."""
    return [
        "".join(output["text"])
        for cell in cells
        for output in cell.get("outputs", ())
        if output["output_type"] == "stream"
    ]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_committed_is_small_and_of_no_machine(notebook: Path) -> None:
    text = notebook.read_text(encoding="utf-8")
    assert len(text) < MOST_BYTES
    assert not re.search(r"/(?:home|work|root|tmp|usr|Users)/|site-packages|\\u001b", text)
    assert '"execution_count": null' in text and not re.search(r'"execution_count": \d', text)
    code = cells(notebook, "code")
    assert code and all(cell["metadata"] == {} for cell in code)
    assert not [o for cell in code for o in cell["outputs"] if o["output_type"] == "error"]
    assert any(cell["outputs"] for cell in code), "no outputs: scripts/notebooks.py --write"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_lead_somewhere(notebook: Path) -> None:
    links = [link for cell in cells(notebook, "markdown") for link in _LINK.findall("".join(cell["source"]))]
    assert links
    assert not [link for link in links if "://" not in link and not (notebook.parent / link).exists()]
