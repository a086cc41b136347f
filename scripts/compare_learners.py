"""Train DQN, PPO and RecurrentPPO as their libraries ship them; compare them on the same held-out episodes.

    python scripts/compare_learners.py slow_cloud
    python scripts/compare_learners.py mine.yaml --out results --runs runs/mine --quiet
    python scripts/compare_learners.py --table --write docs/training.md

A file of configs/learners names an entry of the benchmark, a budget of decisions, learners of
Stable-Baselines3 and sb3-contrib with their settings, and the benchmark's schedulers to compare with. Results
are kept in benchmark/learners/NAME.json as they come; the same command continues after an interrupt. What was
trained is not trained again; a training that was interrupted begins anew.
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
    add("config", nargs="*", help="YAML files, or names of those in configs/learners")
    add("--runs", type=Path, metavar="DIR", help="folder of the trained models (default: runs/learners)")
    add("--out", type=Path, metavar="DIR", help="folder of the results (default: benchmark/learners)")
    add("--table", action="store_true", help="train nothing: print the tables of what there is")
    add("--write", type=Path, metavar="FILE", help="with --table: page whose tables are replaced")
    add("--quiet", action="store_true", help="no progress bars")
    return whole


def main() -> int:
    """Run the command line; return the exit status."""
    whole = parser()
    arguments = whole.parse_args()
    if not (arguments.config or arguments.table):
        whole.error("name a file of learners, or say --table")
    if arguments.write is not None and not arguments.table:
        whole.error("--write needs --table")
    from agents.learners.page import BLOCK

    text = _cli.page_with(whole, arguments.write, BLOCK)
    out = arguments.out or _checkout.ROOT / "benchmark" / "learners"
    try:
        if arguments.table:
            return _table(arguments, out, text)
        for given in arguments.config:
            file = out / f"{Path(given).stem}.json"
            status = _cli.alone("compare_learners", file, lambda: _run(arguments, given, file))  # noqa: B023
            if status:
                return status
        return 0
    except KeyboardInterrupt:
        print("\ninterrupted; the same command continues", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"compare_learners: {error}", file=sys.stderr)
        return 1


def _run(arguments: argparse.Namespace, given: str, file: Path) -> int:
    from agents.learners.comparing import Outcome, run_comparison
    from agents.learners.config import load_comparison
    from agents.learners.page import page_table

    config = load_comparison(given)

    def told(name: str, outcome: Outcome) -> None:
        values = outcome.values.values()
        mean = sum(values) / len(values)
        print(f"{config.entry}, {name}: {mean:.5g} over {len(values)} episodes", flush=True)

    runs = (arguments.runs or _checkout.ROOT / "runs" / "learners") / Path(given).stem
    print(page_table(config, run_comparison(config, file, runs, told, progress=not arguments.quiet)))
    return 0


def _table(arguments: argparse.Namespace, out: Path, text: str) -> int:
    from agents.learners.comparing import read_results
    from agents.learners.config import load_comparison
    from agents.learners.page import BLOCK, page_table
    from dsd_env.calibration.pages import replace_blocks
    from dsd_env.files import write_text
    from dsd_env.paths import config_dir

    given = arguments.config or sorted(path.stem for path in (config_dir() / "learners").glob("*.yaml"))
    files = [(load_comparison(each), out / f"{Path(each).stem}.json") for each in given]
    tables = "\n".join(page_table(config, read_results(file)) for config, file in files if file.is_file())
    if arguments.write is None:
        print(tables)
    else:
        write_text(arguments.write, replace_blocks(text, {BLOCK: tables}))
        print(arguments.write)
    return 0


if __name__ == "__main__":
    _cli.run(main)
