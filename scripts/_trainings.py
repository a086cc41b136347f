"""The command line of scripts that train what a file lists, and compare it on the same held-out episodes."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import _checkout
import _cli


class Tools(NamedTuple):
    """What a script does with a file of its kind.

    Attributes:
        block: Name of the block of a page that tables are written into.
        load: Loads the file.
        measure: Trains and measures what is missing: of the file's content, the file of results, the folder
            of runs, what is told of each result, and whether to show progress. Returns the results.
        read: Reads the file of results.
        table: Makes tables of content and results.
    """

    block: str
    load: Callable[[str], Any]
    measure: Callable[[Any, Path, Path, Callable[[str, Any], None], bool], Any]
    read: Callable[[Path], Any]
    table: Callable[[Any, Any], str]


def parser(kind: str, describes: str | None, runs: str) -> argparse.ArgumentParser:
    """Return the parser of the command line.

    Args:
        kind: What the files hold; also the name of their folder, and of those of runs and results.
        describes: Help text.
        runs: What is in the folder of runs.
    """
    whole = argparse.ArgumentParser(
        description=describes, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = whole.add_argument
    add("config", nargs="*", help=f"YAML files, or names of those in configs/{kind}")
    add("--runs", type=Path, metavar="DIR", help=f"folder of the {runs} (default: runs/{kind})")
    add("--out", type=Path, metavar="DIR", help=f"folder of the results (default: benchmark/{kind})")
    add("--table", action="store_true", help="train nothing: print the tables of what there is")
    add("--write", type=Path, metavar="FILE", help="with --table: page whose tables are replaced")
    add("--quiet", action="store_true", help="no progress bars")
    return whole


def main(script: str, kind: str, whole: argparse.ArgumentParser, tools: Callable[[], Tools]) -> int:
    """Run the command line; return the exit status.

    Args:
        script: Name of the script.
        kind: See `parser`.
        whole: The parser.
        tools: Imports what the script needs, once the command line is sound.
    """
    arguments = whole.parse_args()
    if not (arguments.config or arguments.table):
        whole.error(f"name a file of {kind}, or say --table")
    if arguments.write is not None and not arguments.table:
        whole.error("--write needs --table")
    found = tools()
    page = _cli.page_with(whole, arguments.write, found.block)
    out = arguments.out or _checkout.ROOT / "benchmark" / kind
    runs = arguments.runs or _checkout.ROOT / "runs" / kind

    def measured(given: str, file: Path) -> int:
        config = found.load(given)

        def told(name: str, result: Any) -> None:
            values = result.values.values()
            mean = sum(values) / len(values)
            print(f"{config.entry}, {name}: {mean:.5g} over {len(values)} episodes", flush=True)

        results = found.measure(config, file, runs / Path(given).stem, told, not arguments.quiet)
        print(found.table(config, results))
        return 0

    def work() -> int:
        if not arguments.table:
            return _cli.each_alone(script, arguments.config, out, measured)
        from dsd_env.paths import config_dir

        given = arguments.config or sorted(path.stem for path in (config_dir() / kind).glob("*.yaml"))
        files = [(found.load(each), out / f"{Path(each).stem}.json") for each in given]
        tables = [found.table(config, found.read(file)) for config, file in files if file.is_file()]
        _cli.print_or_write("\n".join(tables), arguments.write, page, found.block)
        return 0

    return _cli.continuing(script, work, (ValueError, OSError))
