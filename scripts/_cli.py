"""What scripts share: checks of numbers, one process a file, and an output whose reader goes away.

A script that prints results ends with

    if __name__ == "__main__":
        _cli.run(main)

What is printed after the reader has gone, as in ``script | head``, is lost, quietly; the script does what
else it has to do, saving above all, and ends with the status that it has by itself.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn


def run(main: Callable[[], int]) -> NoReturn:
    """Run ``main`` with an output that may be closed by its reader, and exit with its status."""
    import _checkout  # noqa: F401

    from dsd_env.cli.pipes import run_to_the_end

    run_to_the_end(main)


def command(name: str, describes: str | None, module: Any) -> int:
    """Run a command of `dsd-env` as the script of that name; return its exit status.

    Args:
        name: What errors begin with.
        describes: The script's docstring.
        module: The command's module, with ``add_arguments`` and ``run``.
    """
    parser = argparse.ArgumentParser(
        description=describes, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    module.add_arguments(parser)
    try:
        return int(module.run(parser.parse_args()))
    except (ValueError, OSError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1


def at_least_one(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace, names: Iterable[str]
) -> None:
    """End with a usage error if one of these whole numbers is given and below 1."""
    for name in names:
        value = getattr(arguments, name)
        if value is not None and value < 1:
            parser.error(f"--{name} {value}: must be at least 1")


def page_with(parser: argparse.ArgumentParser, file: Path | None, block: str) -> str:
    """Return the page of ``--write``, empty without one; end with a usage error if it lacks the block."""
    if file is None:
        return ""
    page = file.read_text(encoding="utf-8")
    if f"<!-- begin: {block} -->" not in page:
        parser.error(f"--write {file}: the page has no block {block!r}")
    return page


def alone(script: str, file: Path | None, work: Callable[[], int]) -> int:
    """Do a script's work while no other process writes the same file; return its status, or 1 if one does.

    Two would take each other's unfinished results away.
    """
    from dsd_env.locks import InUseError, hold

    if file is None:
        return work()
    try:
        with hold(file.with_name(f"{file.name}.lock"), file):
            return work()
    except InUseError as error:
        print(f"{script}: {error}", file=sys.stderr)
        return 1


def each_alone(script: str, configs: Iterable[str], folder: Path, work: Callable[[str, Path], int]) -> int:
    """Do a script's work for one configuration after the other, each with its file of results; see `alone`.

    Args:
        script: Name of the script.
        configs: Paths or names of configurations.
        folder: Folder of the results, a file ``NAME.json`` each.
        work: Takes a configuration and its file; a status other than 0 ends all.
    """
    for given in configs:
        file = folder / f"{Path(given).stem}.json"
        status = alone(script, file, functools.partial(work, given, file))
        if status:
            return status
    return 0


def continuing(
    script: str,
    work: Callable[[], int],
    errors: tuple[type[Exception], ...],
    hint: str = "the same command continues",
) -> int:
    """Do work that goes on when it is asked for again; return its status.

    Args:
        script: Name of the script.
        work: Returns the status.
        errors: Told in a line, with status 1.
        hint: What to do after an interrupt.
    """
    try:
        return work()
    except KeyboardInterrupt:
        print(f"\ninterrupted; {hint}", file=sys.stderr)
        return 130
    except errors as error:
        print(f"{script}: {error}", file=sys.stderr)
        return 1


def continuing_beside(script: str, file: Path | None, work: Callable[[Path | None], int]) -> int:
    """Do work whose finished parts are kept beside its file of results, `alone`; return its status.

    Args:
        script: Name of the script.
        file: File of results; None: nothing is kept.
        work: Takes the file that keeps the parts, or None; returns the status.
    """
    partial = file.with_name(f"{file.name}.partial") if file else None
    hint = "the same command continues" if file else "give --json FILE to be able to continue"
    try:
        from agents.evaluation import EvaluationError

        errors = (EvaluationError, ValueError, OSError)
        return alone(script, file, lambda: continuing(script, lambda: work(partial), errors, hint))
    except ModuleNotFoundError as error:
        print(
            f"{script}: {error.name} is not installed; run `make demo`, or pip install -e '.[train]'",
            file=sys.stderr,
        )
        return 1


def print_or_write(text: str, file: Path | None, page: str, block: str) -> None:
    """Print a table, or replace a block of a page by it (``--write``; `page_with` has read the page)."""
    from dsd_env.calibration.pages import replace_blocks
    from dsd_env.files import write_text

    if file is None:
        print(text)
        return
    write_text(file, replace_blocks(page, {block: text}))
    print(file)
