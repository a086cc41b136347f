"""Explain a scheduler: where it decides what, on which features that rests, and a small tree in its place.

    python scripts/explain.py slow_cloud --scheduler policy:DIR --cycles 1 --out explained/slow_cloud

Plays validation episodes and notes what is decided in which states: heat maps of speculation length and
place. Of a policy, whose observation can be changed, also what it decides when two features are changed and
the rest is as it was, how often it decides otherwise when features are permuted, and what it costs to play on
without them. Then decision trees that stand for it, as rules, with what they cost. Costs are in the
benchmark's objective of the scenario, or in --metric, paired by seed. docs/understanding.md has more.

Writes a folder: explanation.json (all numbers), README.md, figures, and the rules of each tree. When
interrupted, the same command goes on; finished episodes are not played again. Needs the extra `explain`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import _checkout
import _cli


def _parser() -> argparse.ArgumentParser:
    from agents.understanding.settings import Settings
    from dsd_env.cli.arguments import add_changes, names

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("scenario", help="name, or path of a YAML file")
    parser.add_argument("--scheduler", required=True, metavar="X", help="policy:DIR, or a rule by its name")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the results")
    add_changes(parser)
    parser.add_argument(
        "--cycles", type=int, metavar="C", help="measure so many cycles of the load after a warm-up"
    )
    parser.add_argument("--requests", type=int, metavar="M", help="measure so many requests instead")
    parser.add_argument("--metric", help="what costs are counted in (default: the benchmark's objective)")
    defaults = Settings()

    def number(option: str, key: str, told: str) -> None:
        value = getattr(defaults, key)
        parser.add_argument(
            option, dest=key, type=int, default=value, metavar="N", help=f"{told} (default {value})"
        )

    number("--seeds", "seeds", "episodes whose states are noted, in each pass")
    number("--test-seeds", "test_seeds", "episodes that are played in pairs; 0: nothing is played")
    number("--states", "states", "most states that are kept of a pass")
    parser.add_argument(
        "--axes",
        type=names,
        default=list(defaults.axes),
        metavar="A,B",
        help=f"features of the heat maps, across and upwards (default {','.join(defaults.axes)})",
    )
    parser.add_argument(
        "--alone", action="store_true", help="change these alone, not others that tell the same number, too"
    )
    number("--bins", "bins", "most cells along an axis")
    number("--sweep-states", "sweep_states", "states that are changed for each cell")
    number("--few", "few", "cells with fewer visits are marked")
    number("--repeats", "repeats", "permutations that are averaged")
    parser.add_argument(
        "--replace",
        choices=("shuffle", "mean"),
        default=defaults.replace,
        help=f"what stands for features in the simulator (default {defaults.replace})",
    )
    number("--singles", "singles", "single features that are played without")
    parser.add_argument(
        "--leaves",
        default=",".join(map(str, defaults.leaves)),
        metavar="N,M",
        help='most leaves of each tree; "" for no tree (default %(default)s)',
    )
    number("--depth", "depth", "most depth of the trees")
    number("--passes", "passes", "passes that states are noted in; from the second on the tree acts")
    parser.add_argument(
        "--tree-features",
        type=names,
        default=[],
        metavar="A,B",
        help="names, groups or patterns (default all)",
    )
    return parser


def main() -> int:
    """Run the command line; return the exit status."""
    parser = _parser()
    arguments = parser.parse_args()
    if arguments.requests is not None and arguments.cycles is not None:
        parser.error("--requests and --cycles: measure a number of requests or cycles of the load")
    _cli.at_least_one(parser, arguments, ("requests", "cycles"))
    if len(arguments.axes) != 2:
        parser.error(f"--axes {','.join(arguments.axes)}: name two features")
    try:
        leaves = tuple(int(text) for text in arguments.leaves.split(",") if text.strip())
    except ValueError:
        parser.error(f"--leaves {arguments.leaves}: give whole numbers, separated by commas")
    out: Path = arguments.out
    if out.exists() and not out.is_dir():
        parser.error(f"--out {out}: is no folder")

    def work() -> int:
        from agents.evaluation import EvaluationError

        errors = (EvaluationError, ValueError, OSError)
        return _cli.continuing("explain", lambda: _explain(arguments, leaves), errors)

    return _cli.alone("explain", out / "explanation.json", work)


def _explain(arguments: argparse.Namespace, leaves: tuple[int, ...]) -> int:
    from pydantic import ValidationError

    from agents.evaluation import PartialResults
    from agents.understanding.explain import Explanation, Question
    from agents.understanding.settings import Settings
    from dsd_env.changes import changed_scenario
    from dsd_env.scenario.loader import explain_validation_error
    from dsd_env.scenario.measuring import measuring, steady

    given = {key: getattr(arguments, key) for key in Settings.model_fields if key != "leaves"}
    given |= {"axes": tuple(given["axes"]), "tree_features": tuple(given["tree_features"]), "leaves": leaves}
    try:
        settings = Settings(**given)
        _need(settings)
        scenario = changed_scenario(arguments.scenario, dict(arguments.changes))
        if arguments.requests is not None:
            scenario = measuring(scenario, arguments.requests)
        elif arguments.cycles is not None:
            scenario = steady(scenario, arguments.cycles)
        partial = PartialResults(arguments.out / "explanation.json.partial")
        question = Question(
            arguments.scenario, scenario, arguments.scheduler, settings, metric=arguments.metric
        )
        with _Bar() as bar:
            result = Explanation(question, partial, bar).result()
    except ValidationError as error:
        print(explain_validation_error(error, "explain"), file=sys.stderr)
        return 1
    _write(arguments.out, result)
    partial.discard()
    return 0


def _need(settings: Any) -> None:
    """Make sure that the libraries are there before minutes of simulation, not after.

    Raises:
        ModuleNotFoundError: One is missing.
    """
    from dsd_env.extras import needs

    with needs("explain", "explaining a scheduler"):
        import matplotlib  # noqa: F401

        if settings.leaves:
            import sklearn  # noqa: F401


def _write(folder: Path, result: dict[str, Any]) -> None:
    """Write all files and print the summary."""
    from agents import provenance
    from agents.understanding import figures, page
    from dsd_env.files import write_json, write_text

    result = {
        "created": provenance.now_utc(),
        "versions": provenance.versions(),
        "git_commit": provenance.git_commit(_checkout.ROOT),
        "command": ["scripts/explain.py", *sys.argv[1:]],
        **result,
    }
    drawn = figures.draw(result, folder)
    for tree in result.get("trees", []):
        write_text(folder / f"tree_{tree['most_leaves']}.txt", tree["rules"])
    write_text(folder / "README.md", page.page(result, drawn))
    write_json(folder / "explanation.json", result)
    print(page.summary(result))
    print(f"wrote {folder}")


class _Bar:
    """A bar of progress for what is under way."""

    def __enter__(self) -> _Bar:
        self._bar: Any = None
        self._what = ""
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, what: str, done: int, total: int) -> None:
        from tqdm import tqdm

        if what != self._what:
            if self._bar is not None:
                self._bar.close()
            self._bar = tqdm(total=total or None, desc=what[:40], unit=" episodes", leave=False)
            self._what = what
        self._bar.n = done
        self._bar.refresh()


if __name__ == "__main__":
    _cli.run(main)
