#!/usr/bin/env python3
"""Run the notebooks in ``notebooks/``, each in a kernel of its own.

    python scripts/notebooks.py                       # all: an error in a cell ends with status 1
    python scripts/notebooks.py quick_start --write   # keep what this one prints and draws

``--write`` stores the outputs without what differs from run to run or from machine to machine (counters,
times, paths), so that a change of a notebook is a change of what it says. Needs the extra ``docs``.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import _checkout  # noqa: F401
import _cli

from dsd_env.extras import needs
from dsd_env.files import write_text

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
TIMEOUT_S = 600
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
_MACHINE = re.compile(r"(?:/[\w.+-]+)+/(?=[\w.+-]+)|0x[0-9a-f]{6,}")
"""Absolute paths up to the last name, and addresses of objects."""


def names() -> list[str]:
    """Return the names of the notebooks."""
    return sorted(path.stem for path in FOLDER.glob("*.ipynb"))


def run(name: str) -> Any:
    """Run a notebook and return it with its outputs.

    Args:
        name: Its name, without folder and ending.

    Raises:
        nbclient.exceptions.CellExecutionError: A cell failed; the message has cell and traceback.
        ModuleNotFoundError: The extra ``docs`` is not installed.
    """
    with needs("docs", "running notebooks"):
        import nbformat
        from nbclient import NotebookClient
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    root = str(FOLDER.parent)
    client = NotebookClient(
        notebook,
        timeout=TIMEOUT_S,
        kernel_name="python3",
        coalesce_streams=True,
        resources={"metadata": {"path": str(FOLDER)}},
    )
    with tempfile.TemporaryDirectory() as home:
        environment = {
            **os.environ,
            # The kernel takes the package from this checkout, and draws without a display.
            "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH")))),
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",
            # A user's own settings of IPython are nothing to us.
            "IPYTHONDIR": home,
        }
        client.execute(env=environment)
    return notebook


def stripped(notebook: Any) -> Any:
    """Return a notebook without what differs from run to run."""
    notebook.metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    for index, cell in enumerate(notebook.cells):
        cell.id = f"cell-{index}"
        cell.metadata = {}
        if cell.cell_type != "code":
            continue
        cell.execution_count = None
        kept = []
        for output in cell.outputs:
            if output.output_type == "stream" and output.name == "stderr":
                continue  # progress, and notes of libraries
            if output.output_type == "execute_result":
                output.execution_count = None
            if "metadata" in output:
                output.metadata = {}
            if "text" in output:
                output.text = _MACHINE.sub("…/", output.text)
            for kind, value in output.get("data", {}).items():
                if kind == "text/plain":
                    output.data[kind] = _MACHINE.sub("…/", value)
            kept.append(output)
        cell.outputs = kept
    return notebook


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("name", nargs="*", help="notebooks to run (default: all)")
    parser.add_argument("--write", action="store_true", help="store their outputs")
    given = parser.parse_args(arguments)
    if unknown := sorted(set(given.name) - set(names())):
        parser.error(f"no notebook {', '.join(unknown)}; there are {', '.join(names())}")
    with needs("docs", "running notebooks"):
        import nbformat
        from nbclient.exceptions import CellExecutionError
    status = 0
    for name in given.name or names():
        try:
            notebook = run(name)
        except CellExecutionError as error:
            print(f"{name}: {error}", file=sys.stderr)
            status = 1
            continue
        print(f"{name}: ran", flush=True)
        if given.write:
            write_text(FOLDER / f"{name}.ipynb", nbformat.writes(stripped(notebook)) + "\n")
    return status


if __name__ == "__main__":
    _cli.run(main)
