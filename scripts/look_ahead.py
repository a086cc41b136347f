"""Play episodes by look-ahead on clones of the very world: upper references, no schedulers.

    python scripts/look_ahead.py slow_cloud --seeds 3
    python scripts/look_ahead.py --table --write docs/upper_references.md

A reference knows what is to come: it clones the world, tries plans on the clones and takes the one that turns
out best (docs/upper_references.md). A configuration of configs/look_ahead says how. Every finished episode is
kept, with its plans; the same command continues after an interrupt, and --replay plays the plans again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import _checkout
import _cli


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    whole = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = whole.add_argument
    add("config", nargs="*", help="YAML files, or names of those in configs/look_ahead")
    add("--seeds", type=int, default=3, metavar="N", help="the first N evaluation seeds (default 3)")
    add("--out", type=Path, metavar="DIR", help="folder of records (default: benchmark/look_ahead)")
    add("--results", type=Path, metavar="DIR", help="the benchmark's records (default: benchmark/results)")
    add("--replay", action="store_true", help="look for nothing: play the plans of the records again")
    add("--table", action="store_true", help="look for nothing: print the table of the records")
    add("--write", type=Path, metavar="FILE", help="with --table: page whose table is replaced")
    return whole


def main() -> int:
    """Run the command line; return the exit status."""
    whole = parser()
    arguments = whole.parse_args()
    _cli.at_least_one(whole, arguments, ["seeds"])
    if not arguments.config and not (arguments.table or arguments.replay):
        whole.error("name a configuration, or say --table or --replay")
    if arguments.write is not None and not arguments.table:
        whole.error("--write needs --table")
    from agents.benchmark.config import BenchmarkError
    from agents.config import ConfigError
    from agents.look_ahead.records import BLOCK
    from dsd_env.policy import PolicyError
    from dsd_env.scenario import ScenarioError

    page = _cli.page_with(whole, arguments.write, BLOCK)
    folder = arguments.out or _checkout.ROOT / "benchmark" / "look_ahead"

    def work() -> int:
        if arguments.table:
            return _table(arguments, folder, page)
        if arguments.replay:
            return _replay(arguments, folder)
        return _cli.each_alone(
            "look_ahead", arguments.config, folder, lambda given, file: _play(given, file, arguments.seeds)
        )

    errors = (ConfigError, BenchmarkError, PolicyError, ScenarioError, OSError, ImportError)
    return _cli.continuing("look_ahead", work, errors)


def _play(given: str, file: Path, seeds: int) -> int:
    from agents.config import ConfigError
    from agents.look_ahead.config import load_look_ahead
    from agents.look_ahead.planning import LookAhead
    from agents.look_ahead.playing import play_missing
    from dsd_env.paired import evaluation_seeds

    config = load_look_ahead(given)
    try:
        player = LookAhead(config)
    except ConfigError as error:
        raise ConfigError(f"{given}: {error}") from error
    hint = "; --table compares them with the benchmark's schedulers"
    play_missing(player, file, evaluation_seeds(seeds), hint)
    return 0


def _files(arguments: argparse.Namespace, folder: Path) -> list[Path]:
    names = [Path(config).stem for config in arguments.config]
    return [folder / f"{name}.json" for name in names] or sorted(folder.glob("*.json"))


def _replay(arguments: argparse.Namespace, folder: Path) -> int:
    from agents.benchmark.running import metrics_digest
    from agents.look_ahead.planning import replay
    from agents.look_ahead.records import read

    wrong = 0
    for file in _files(arguments, folder):
        reference = read(file)
        space = reference.config.space(reference.config.contest())
        for seed, kept in sorted(reference.episodes.items())[: arguments.seeds]:
            same = metrics_digest(replay(space, seed, kept.steps)) == kept.digest
            wrong += not same
            print(f"{file.stem}, seed {seed}: {'the same' if same else 'OTHER NUMBERS'}")
    return 1 if wrong else 0


def _table(arguments: argparse.Namespace, folder: Path, page: str) -> int:
    from agents.benchmark.records import Store
    from agents.look_ahead.records import BLOCK, compare, page_table, read

    store = Store(arguments.results or _checkout.ROOT / "benchmark" / "results")
    text = page_table(compare(read(file), store) for file in _files(arguments, folder))
    _cli.print_or_write(text, arguments.write, page, BLOCK)
    return 0


if __name__ == "__main__":
    _cli.run(main)
