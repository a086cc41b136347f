"""The command line as a whole: its commands, its errors, its exit status."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

import dsd_env
from dsd_env.cli import (
    completion,
    evaluate,
    picture,
    profiles,
    report,
    scenarios,
    schedulers,
    simulate,
    timeline,
    worth,
)
from dsd_env.cli.arguments import Parser
from dsd_env.cli.pipes import run_to_the_end

PROGRAM = "dsd-env"
INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""

DESCRIPTION = """\
Scheduling of edge-cloud speculative decoding, simulated: a draft model near
the user proposes tokens, a large model in the cloud verifies them."""

EPILOG = """\
examples:
  dsd-env list
  dsd-env simulate single_lan --scheduler edge_sd:4 --seed 1
  dsd-env COMMAND --help

Every command takes --json. The exit status is 0, 1 after an error, 2 after a
wrong command line, 130 after Ctrl-C."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    whole = Parser(
        prog=PROGRAM,
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    whole.add_argument("--version", action="version", version=f"%(prog)s {dsd_env.__version__}")
    commands = whole.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    scenarios.add_list(commands)
    scenarios.add_show(commands)
    schedulers.add(commands)
    profiles.add(commands)
    simulate.add(commands)
    evaluate.add(commands)
    worth.add(commands)
    timeline.add(commands)
    picture.add(commands)
    report.add(commands)
    completion.add(commands, parser)
    return whole


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status.

    Args:
        arguments: What stands behind the program's name; None: those of this process.
    """
    try:
        given = parser().parse_args(arguments)
        status: int = given.run(given)
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if not _is_explained(error):
            raise
        for line in _message(error).splitlines():
            print(f"{PROGRAM}: {line}", file=sys.stderr)
        return 1
    return status


def _message(error: Exception) -> str:
    """Return what an error says: of a file first its name; one line, or one for each key of a scenario."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


def _is_explained(error: Exception) -> bool:
    """Return whether an error's message is for the user; another one is a fault of ours."""
    if isinstance(error, (ValueError, OSError, ImportError, NotImplementedError)):
        return True
    # It lives with the compiled engine, which is imported by those alone who simulate.
    return any(kind.__name__ == "EngineError" for kind in type(error).__mro__)


def run() -> NoReturn:
    """Run the command line of this process, and exit with its status."""
    run_to_the_end(main)
