"""Distil what a look-ahead decides into a policy of the fleet view.

    python scripts/distill_plans.py --config cost --out runs/cost_distilled --policy policies/cost

The look-ahead (configs/look_ahead) plays training episodes, a network is fitted to pairs of what a controller
observes and what the look-ahead did (agents/look_ahead/distilling.py), and both, the network and the
look-ahead's base, meet on validation episodes. The directory keeps the episodes, which take most of the time:
the same command continues after an interrupt.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import _checkout  # noqa: F401
import _cli


def main() -> int:
    """Run the script; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", required=True, help="YAML file, or the name of one in configs/distill")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="directory of the episodes")
    parser.add_argument("--policy", type=Path, metavar="DIR", help="export what was fitted as this bundle")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing bundle")
    arguments = parser.parse_args()
    from agents.benchmark.config import BenchmarkError
    from agents.config import ConfigError
    from dsd_env.policy import PolicyError
    from dsd_env.scenario import ScenarioError

    errors = (ConfigError, BenchmarkError, ScenarioError, PolicyError, ValueError, OSError, ImportError)
    return _cli.alone(
        "distill_plans",
        arguments.out / "run",
        lambda: _cli.continuing("distill_plans", lambda: _distil(arguments), errors),
    )


def _distil(arguments: argparse.Namespace) -> int:
    from agents.config import ConfigError
    from agents.look_ahead.distilling import distil, export_distilled, load_distilling, validate
    from agents.look_ahead.labels import labels_of
    from agents.look_ahead.planning import LookAhead
    from agents.look_ahead.playing import play_missing

    config = load_distilling(arguments.config)
    try:
        player = LookAhead(config.look_ahead())
    except ConfigError as error:
        raise ConfigError(f"{arguments.config}: {error}") from error
    name = Path(config.reference).stem
    reference = play_missing(player, arguments.out / f"{name}.json", config.seeds)
    episodes = [reference.episodes[seed] for seed in config.seeds]
    labels = labels_of(player.world, player.base, episodes, player.begin_s)
    found = distil(config, player, labels)
    figures = found.figures
    print(
        f"{figures['labels']:.0f} labels, {figures['changed']:.0f} of them not the base's, and "
        f"{figures['own']:.0f} of the base in the policy's own states; of "
        f"{figures['held_out']:.0f} held out the base repeats {figures['base_repeats']:.1%}, the policy "
        f"{figures['policy_repeats']:.1%}, and {figures['policy_repeats_changed']:.1%} of those that are not "
        "the base's"
    )
    validated = validate(config, player, found.actor)
    for who in ("base", "policy"):
        told = ", ".join(f"{metric} {value:.5g}" for metric, value in validated[who].items())
        print(f"on {validated['validation_episodes']} validation episodes the {who}: {told}")
    if arguments.policy is not None:
        export_distilled(config, player, found, validated, arguments.policy, overwrite=arguments.overwrite)
        print(f"exported; run it:  --schedulers policy:{arguments.policy}")
    return 0


if __name__ == "__main__":
    _cli.run(main)
