"""Train a scheduler with PPO or MaskablePPO.

    python scripts/train.py --config metro --out runs/metro
    python scripts/train.py --config metro --out runs/metro --resume

The run's directory receives the complete configuration, the scenario, versions, checkpoints, validation
results and TensorBoard logs. Interrupt it as you like: --resume continues from the newest checkpoint.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import _checkout  # noqa: F401
import _cli

REPORT_FILE = "report.html"


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--config", help="YAML file, or the name of one in configs/train; with --resume the run's own"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="directory of the run")
    parser.add_argument(
        "--timesteps", type=int, metavar="N", help="decisions to train for, instead of the file's"
    )
    parser.add_argument("--seed", type=int, metavar="S", help="seed of the run, instead of the file's")
    parser.add_argument(
        "--resume", action="store_true", help="continue the run in DIR from its newest checkpoint"
    )
    parser.add_argument(
        "--report", action="store_true", help="write the learning curves as DIR/report.html at the end"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    arguments = parser.parse_args()

    try:
        from agents.checkpoints import BEST, CheckpointError
        from agents.config import ConfigError, load_config
        from agents.training import CONFIG_FILE, RunError, train
        from dsd_env.report import write_report
    except ModuleNotFoundError as error:
        print(
            f"train: {error.name} is not installed; run `make demo`, or pip install -e '.[train]'",
            file=sys.stderr,
        )
        return 1

    # The run's own configuration is the default when resuming, so that --out alone is enough.
    source = arguments.config or (arguments.out / CONFIG_FILE if arguments.resume else None)
    if source is None:
        parser.error("--config is required for a new run")
    if arguments.resume and not (arguments.out / CONFIG_FILE).is_file():
        print(f"train: {arguments.out}: no run to resume; leave --resume out to begin one", file=sys.stderr)
        return 1

    def work() -> int:
        config = load_config(source, timesteps=arguments.timesteps, seed=arguments.seed)
        if arguments.report and config.validation is None:
            parser.error(
                "--report: the configuration asks for no validation, of which learning curves are made"
            )
        final = train(config, arguments.out, resume=arguments.resume, progress=not arguments.quiet)
        if arguments.report:
            write_report([arguments.out], arguments.out / REPORT_FILE)
        best = arguments.out / BEST
        print(
            f"trained {final.num_timesteps} decisions; last state {final.path}"
            + (f", best {best}" * best.is_file()),
            f"export it:  python scripts/export.py --run {arguments.out} --out POLICY_DIR",
            *([f"learning curves:  {arguments.out / REPORT_FILE}"] * arguments.report),
            sep="\n",
        )
        return 0

    errors = (ConfigError, RunError, CheckpointError, ValueError, OSError)
    hint = f"continue with: scripts/train.py --out {arguments.out} --resume"
    return _cli.continuing("train", work, errors, hint)


if __name__ == "__main__":
    _cli.run(main)
