"""Train policies with something taken away, and compare them with the whole on the same held-out episodes.

    python scripts/ablate.py slow_cloud --runs runs/ablations
    python scripts/ablate.py --table --write docs/benchmark.md

A file of configs/ablations names an entry of the benchmark, one training and what is taken away from it.
Results are kept in benchmark/ablations/NAME.json as they come; the same command continues after an interrupt.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import _checkout
import _cli


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    whole = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = whole.add_argument
    add("config", nargs="*", help="YAML files, or names of those in configs/ablations")
    add("--runs", type=Path, metavar="DIR", help="folder of the runs (default: runs/ablations)")
    add("--out", type=Path, metavar="DIR", help="folder of the results (default: benchmark/ablations)")
    add("--table", action="store_true", help="train nothing: print the tables of what there is")
    add("--write", type=Path, metavar="FILE", help="with --table: page whose tables are replaced")
    add("--quiet", action="store_true", help="no progress bars")
    return whole


def main() -> int:
    """Run the command line; return the exit status."""
    whole = parser()
    arguments = whole.parse_args()
    if not (arguments.config or arguments.table):
        whole.error("name a file of ablations, or say --table")
    if arguments.write is not None and not arguments.table:
        whole.error("--write needs --table")
    from agents.ablations import BLOCK

    text = _cli.page_with(whole, arguments.write, BLOCK)
    out = arguments.out or _checkout.ROOT / "benchmark" / "ablations"
    try:
        if arguments.table:
            return _table(arguments, out, text)
        for given in arguments.config:
            file = out / f"{Path(given).stem}.json"
            status = _cli.alone("ablate", file, lambda: _run(arguments, given, file))  # noqa: B023
            if status:
                return status
        return 0
    except KeyboardInterrupt:
        print("\ninterrupted; the same command continues", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"ablate: {error}", file=sys.stderr)
        return 1


def _run(arguments: argparse.Namespace, given: str, file: Path) -> int:
    from agents.ablations import Result, load_ablations, page_table, run_ablations

    config = load_ablations(given)

    def told(name: str, result: Result) -> None:
        values = result.values.values()
        print(f"{config.entry}, {name}: {sum(values) / len(values):.5g} over {len(values)} episodes")

    runs = (arguments.runs or _checkout.ROOT / "runs" / "ablations") / Path(given).stem
    print(page_table(config, run_ablations(config, file, runs, told, progress=not arguments.quiet)))
    return 0


def _table(arguments: argparse.Namespace, out: Path, text: str) -> int:
    from agents.ablations import BLOCK, load_ablations, page
    from dsd_env.calibration.pages import replace_blocks
    from dsd_env.files import write_text
    from dsd_env.paths import config_dir

    given = arguments.config or sorted(path.stem for path in (config_dir() / "ablations").glob("*.yaml"))
    files = [(load_ablations(each), out / f"{Path(each).stem}.json") for each in given]
    tables = page([each for each in files if each[1].is_file()])
    if arguments.write is None:
        print(tables)
    else:
        write_text(arguments.write, replace_blocks(text, {BLOCK: tables}))
        print(arguments.write)
    return 0


if __name__ == "__main__":
    _cli.run(main)
