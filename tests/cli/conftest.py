"""The command line as a function."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from dsd_env.cli.main import main


class Said:
    """What a command printed, and its exit status."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err

    @property
    def json(self) -> Any:
        assert self.status == 0 and self.err == "", self.err
        return json.loads(self.out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


@pytest.fixture
def dsd_env_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Said]:
    """Return the command line of an 80-column terminal as a function of its arguments."""
    monkeypatch.setenv("COLUMNS", "80")

    def command(*arguments: object) -> Said:
        capsys.readouterr()
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as end:  # argparse's own ends: help and usage
            status = int(end.code or 0)
        said = capsys.readouterr()
        return Said(status, said.out, said.err)

    return command
