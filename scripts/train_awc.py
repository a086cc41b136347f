"""Train the network of adaptive window control (DSD's AWC) on sweeps of static choices.

    python scripts/train_awc.py --config core --out runs/awc --jobs 2
    python scripts/evaluate.py --scenarios slow_cloud --schedulers awc,awc:own:runs/awc/network

Every condition of the configuration (scenario, round trips, load, number of clients, acceptance) is played on
a training episode with each static choice; the best of them are labels for states recorded there. The folder
receives a line per condition and the recorded states; the same command continues a run that was interrupted.
The shipped network is configs/awc/core, made by --config core --network configs/awc/core.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import _checkout  # noqa: F401
import _cli

from agents.awc.config import load_awc
from agents.awc.training import Training
from dsd_env.schedulers.awc_network import JSON_FILE


def main() -> int:
    """Run the script; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", default="core", help="YAML file, or the name of one in configs/awc")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the run")
    parser.add_argument(
        "--network", type=Path, metavar="DIR", help="folder of the network (default: network in the run's)"
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes that simulate")
    arguments = parser.parse_args()
    _cli.at_least_one(parser, arguments, ["jobs"])
    errors = (ValueError, OSError, ModuleNotFoundError)
    return _cli.alone(
        "train_awc",
        arguments.out / "run",
        lambda: _cli.continuing("train_awc", lambda: _train(arguments), errors),
    )


def _train(arguments: argparse.Namespace) -> int:
    network = arguments.network or arguments.out / "network"
    training = Training(load_awc(arguments.config), arguments.out, arguments.jobs, _print)
    description = training.run(network)
    print(
        f"{network / JSON_FILE}: weights {description.npz_sha256[:16]}; run it:  --schedulers awc:{network}"
    )
    return 0


def _print(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    _cli.run(main)
