"""Arguments that several commands share, and how their text is checked."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any, NoReturn

from dsd_env import strict_yaml
from dsd_env.changes import LEVELS, changed_scenario
from dsd_env.rng import MAX_SEED, checked_seed
from dsd_env.scenario import Scenario
from dsd_env.scenario.measuring import measuring, steady
from dsd_env.schedulers import SchedulerError
from dsd_env.schedulers.lists import named_schedulers
from dsd_env.sim.engines import ENGINES


class Parser(argparse.ArgumentParser):
    """A parser whose errors take one line."""

    def error(self, message: str) -> NoReturn:
        """End with status 2."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


Commands = Any
"""What ``add_subparsers`` returns; argparse gives it no public name."""


def command(
    commands: Commands,
    name: str,
    does: str,
    examples: str,
    run: Callable[[argparse.Namespace], int],
    notes: str = "",
) -> argparse.ArgumentParser:
    """Add a command and return its parser.

    Args:
        commands: Where to.
        name: What the user types.
        does: What it does, in one sentence.
        examples: Command lines, one each line.
        run: Does it; returns the exit status.
        notes: What else there is to say; lines of at most 78 letters.
    """
    epilog = "examples:\n" + "\n".join(f"  {line}" for line in examples.strip().splitlines())
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=does[0].lower() + does[1:].rstrip("."),
        description=f"{does}\n\n{notes.strip()}" if notes else does,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)
    return parser


def add_json(parser: argparse.ArgumentParser, what: str = "print JSON, NaN as null") -> None:
    """Add ``--json``."""
    parser.add_argument("--json", action="store_true", help=what)


def add_scenario(parser: argparse.ArgumentParser) -> None:
    """Add the scenario and ``--set``."""
    parser.add_argument(
        "scenario", metavar="SCENARIO", help="name of a shipped scenario, or path of a YAML file"
    )
    add_changes(parser)


def add_changes(parser: argparse.ArgumentParser) -> None:
    """Add ``--set``."""
    parser.add_argument(
        "--set",
        dest="changes",
        type=change,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="another value for a key of the scenario, with dots between its levels as in "
        "--set episode.requests=50; null removes it; may be given several times",
    )


def add_simulation(parser: argparse.ArgumentParser) -> None:
    """Add what a single simulation takes beside its scenario: scheduler, seed, engine, requests."""
    parser.add_argument("--scheduler", required=True, metavar="X", help="a rule, or policy:FOLDER")
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="episode seed (default 0)")
    add_engine(parser)
    add_requests(parser)


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Add ``--engine``."""
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        default="auto",
        help="compiled is fast but compiles for about a minute once; results are the same (default auto)",
    )


def add_requests(parser: argparse.ArgumentParser) -> None:
    """Add ``--requests``."""
    parser.add_argument(
        "--requests",
        type=at_least_one,
        metavar="M",
        help="measure so many requests, instead of the scenario's own number or window",
    )


def add_cycles(parser: argparse.ArgumentParser) -> None:
    """Add ``--cycles``."""
    parser.add_argument(
        "--cycles",
        type=at_least_one,
        metavar="C",
        help="measure the steady state: so many cycles of the load after a warm-up, in simulated time",
    )


def scenario_of(arguments: argparse.Namespace) -> Scenario:
    """Return the scenario of a command line, with its changes.

    Raises:
        ScenarioError: It is unknown or not valid.
    """
    return changed_scenario(arguments.scenario, dict(arguments.changes))


def measured_scenario_of(arguments: argparse.Namespace) -> Scenario:
    """Return the scenario of a command line, measuring what its ``--requests`` or ``--cycles`` says.

    Raises:
        ScenarioError: It is unknown or not valid.
        ValueError: Both are given.
    """
    if arguments.requests is not None and arguments.cycles is not None:
        raise ValueError("--requests and --cycles: measure a number of requests or cycles of the load")
    scenario = scenario_of(arguments)
    if arguments.requests is not None:
        return measuring(scenario, arguments.requests)
    if arguments.cycles is not None:
        return steady(scenario, arguments.cycles)
    return scenario


def change(text: str) -> tuple[str, Any]:
    """Return key and value of ``KEY=VALUE``; the value is read as in a scenario's file."""
    key, equals, value = text.partition("=")
    key = key.strip()
    between = LEVELS if LEVELS in key else "."
    if not equals or not all(key.split(between)):
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE, with dots between the key's levels")
    try:
        return key, strict_yaml.loads(value, key)
    except strict_yaml.StrictYamlError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def seed(text: str) -> int:
    """Return an episode seed."""
    try:
        return checked_seed(int(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from 0 to {MAX_SEED}") from None


def at_least_one(text: str) -> int:
    """Return a whole number of at least 1."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return number


def between(low: float, high: float) -> Callable[[str], float]:
    """Return what reads a number of a range, its ends included."""

    def read(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not low <= number <= high:
            span = f"from {low:g} to {high:g}" if math.isfinite(high) else f"of at least {low:g}"
            raise argparse.ArgumentTypeError(f"{text!r} must be a number {span}")
        return number

    return read


def schedulers(text: str) -> dict[str, str]:
    """Return the specifications of a list of schedulers by name."""
    try:
        return named_schedulers(text)
    except SchedulerError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def names(text: str) -> list[str]:
    """Return what commas separate, each once."""
    found = [name.strip() for name in text.split(",") if name.strip()]
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} names nothing")
    if twice := sorted({name for name in found if found.count(name) > 1}):
        raise argparse.ArgumentTypeError(f"{text!r} names {twice[0]!r} twice")
    return found
