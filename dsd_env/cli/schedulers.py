"""``dsd-env schedulers``: which schedulers there are, and how they are written."""

from __future__ import annotations

import argparse

from dsd_env.cli.arguments import Commands, add_json, command
from dsd_env.cli.output import paragraph, print_json
from dsd_env.schedulers.registry import scheduler_entries

_EXAMPLES = """
dsd-env schedulers
dsd-env simulate metro --scheduler static:8:1:edge"""


def add(commands: Commands) -> None:
    """Add the command."""
    add_json(command(commands, "schedulers", "List the schedulers, and how to write them.", _EXAMPLES, run))


def run(arguments: argparse.Namespace) -> int:
    """List the schedulers."""
    entries = scheduler_entries()
    if arguments.json:
        print_json(
            [{"name": name, "usage": entry.usage, "help": entry.help} for name, entry in entries.items()]
        )
        return 0
    print(listing())
    return 0


def listing() -> str:
    """Return every scheduler as it is written, and below it what it does, no wider than the terminal."""
    return "\n".join(
        f"{entry.usage}\n{paragraph(entry.help, '    ')}" for entry in scheduler_entries().values()
    )
