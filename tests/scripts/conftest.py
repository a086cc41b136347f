"""Fixtures of the tests of scripts."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path

import pytest

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def calls(checkout: Path, tmp_path: Path, monkeypatch, capsys) -> Callable[[str], Call]:
    """Return a function that makes a caller of a script: it runs in this process, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(checkout / "scripts"))

    def caller(name: str) -> Call:
        script = str(checkout / "scripts" / name)

        def run_here(*arguments: object) -> tuple[int, str, str]:
            monkeypatch.setattr("sys.argv", [script, *map(str, arguments)])
            with pytest.raises(SystemExit) as stopped:
                runpy.run_path(script, run_name="__main__")
            assert isinstance(stopped.value.code, int)
            return stopped.value.code, *capsys.readouterr()

        return run_here

    return caller
