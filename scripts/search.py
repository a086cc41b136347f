"""Search a plan rule with CMA-ES and export it as a policy bundle.

    python scripts/search.py --config cost --out runs/cost_search --policy policies/cost

A plan rule is linear: a line per group for the speculation length, one for the batch size and a score per
place, over a few features of the fleet view (agents/plan_rule.py). The directory of the run receives the
configuration and a line per generation; the same command continues a search that was interrupted.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import _checkout  # noqa: F401
import _cli

from agents.config import ConfigError
from agents.search import Generation, export_search, load_search, search
from dsd_env.policy import PolicyError
from dsd_env.scenario import ScenarioError


def main() -> int:
    """Run the script; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", required=True, help="YAML file, or the name of one in configs/search")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="directory of the run")
    parser.add_argument("--policy", type=Path, metavar="DIR", help="export what was found as this bundle")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="episodes at a time")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing bundle")
    arguments = parser.parse_args()
    _cli.at_least_one(parser, arguments, ["threads"])
    errors = (ConfigError, ScenarioError, PolicyError, ValueError, OSError, ModuleNotFoundError)
    return _cli.alone(
        "search",
        arguments.out / "run",
        lambda: _cli.continuing("search", lambda: _search(arguments), errors),
    )


def _search(arguments: argparse.Namespace) -> int:
    config = load_search(arguments.config)
    try:
        config.checked(config.load_scenario())
    except (ConfigError, ScenarioError) as error:
        raise ConfigError(f"{arguments.config}: {error}") from error
    better = "largest" if config.direction == "max" else "smallest"
    print(f"{config.scenario}: {better} {config.objective}, {config.generations} generations")
    rule, best, kept = search(config, arguments.out, threads=arguments.threads, report=_print)
    print(
        f"on {kept['validation_episodes']} validation episodes: the start {kept['start']:.5g}, "
        f"found {kept['found']:.5g}, with {kept['episodes']} training episodes"
    )
    if arguments.policy is not None:
        export_search(config, rule, best, kept, arguments.policy, overwrite=arguments.overwrite)
        print(f"exported; run it:  --schedulers policy:{arguments.policy}")
    return 0


def _print(generation: Generation) -> None:
    validated = "" if generation.validated is None else f"   validated {generation.validated:.5g}"
    values = f"mean {generation.mean:.5g}   best {generation.best:.5g}"
    print(f"generation {generation.number:4}   {values}{validated}", flush=True)


if __name__ == "__main__":
    _cli.run(main)
