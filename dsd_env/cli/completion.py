"""``dsd-env completion``: what a shell needs to complete command lines of ``dsd-env``.

The script is complete in itself: names of scenarios, schedulers, metrics and profiles are written into it, so
that completing does not start Python.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from dsd_env.cli.arguments import Commands, add_json, command
from dsd_env.cli.output import print_json
from dsd_env.extras import needs
from dsd_env.latency import list_profiles
from dsd_env.scenario import list_scenarios
from dsd_env.schedulers.registry import scheduler_entries
from dsd_env.sim.metrics import METRICS

SHELLS = ("bash", "zsh", "fish")

_EXAMPLES = """
dsd-env completion bash > ~/.local/share/bash-completion/completions/dsd-env
dsd-env completion zsh > ~/.zfunc/_dsd-env
dsd-env completion fish > ~/.config/fish/completions/dsd-env.fish"""

_NOTES = """
Needs the package shtab: pip install 'dsd-env[completion]'. zsh looks into a
folder that `fpath` names: fpath+=~/.zfunc before compinit in ~/.zshrc. Make
it anew after an update: names of scenarios are written into it."""

_FUNCTION = "_dsd_env_names_of_{}"


def add(commands: Commands, whole: Callable[[], argparse.ArgumentParser]) -> None:
    """Add the command.

    Args:
        commands: Where to.
        whole: Returns the parser of the whole command line.
    """

    def run(arguments: argparse.Namespace) -> int:
        script = completion(whole(), arguments.shell)
        if arguments.json:
            print_json({"shell": arguments.shell, "script": script})
        else:
            print(script)
        return 0

    does = "Print a script that lets a shell complete command lines."
    parser = command(commands, "completion", does, _EXAMPLES, run, notes=_NOTES)
    parser.add_argument("shell", choices=SHELLS, help="which shell")
    add_json(parser, "print shell and script as JSON")


def completion(parser: argparse.ArgumentParser, shell: str) -> str:
    """Return the script for a shell.

    Args:
        parser: The parser of the whole command line; what completes its arguments is noted in it.
        shell: One of :data:`SHELLS`.

    Raises:
        ModuleNotFoundError: shtab is not installed; the message says what to install.
    """
    with needs("completion", "completing command lines"):
        import shtab
    named = {what: sorted(names()) for what, names in _NAMES.items()}
    for action in _actions(parser):
        if action.dest in _ARGUMENTS:
            what, files = _ARGUMENTS[action.dest]
            # shtab's way to say how an argument is completed; argparse knows no such attribute.
            setattr(action, "complete", _completes(what, named[what], files))  # noqa: B010
        elif action.dest in ("out", "results"):
            setattr(action, "complete", shtab.FILE)  # noqa: B010
    script: str = shtab.complete(parser, shell)
    return script


_NAMES: dict[str, Callable[[], Sequence[str]]] = {
    "scenarios": list_scenarios,
    "schedulers": lambda: list(scheduler_entries()),
    "metrics": lambda: list(METRICS),
    "profiles": list_profiles,
}
_ARGUMENTS = {
    "scenario": ("scenarios", True),
    "scheduler": ("schedulers", False),
    "schedulers": ("schedulers", False),
    "metrics": ("metrics", False),
    "target": ("profiles", True),
    "drafter": ("profiles", True),
    "node_drafter": ("profiles", True),
}
"""What completes an argument: the kind of its names, and whether it may be a file as well."""


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for part in action.choices.values():
                yield from _actions(part)
        else:
            yield action


def _completes(what: str, names: Sequence[str], files: bool) -> dict[str, Any]:
    """Return how shells complete one of these names, or a file."""
    function = _FUNCTION.format(what)
    words = " ".join(names)
    bash = f'{function}() {{\n  compgen -W "{words}" -- "$1"\n'
    zsh = f"{function}() {{\n  compadd -- {words}\n"
    if files:
        bash += '  compgen -f -- "$1"\n'
        zsh += "  _files\n"
    paths = " (__fish_complete_path (commandline -ct))" if files else ""
    return {
        "bash": function,
        "zsh": function,
        "fish": f"{words}{paths}",
        "preamble": {"bash": f"{bash}}}", "zsh": f"{zsh}}}"},
    }
