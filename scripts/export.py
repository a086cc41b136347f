"""Export a trained scheduler as a policy bundle that needs neither torch nor Stable-Baselines3.

    python scripts/export.py --run runs/metro --out policies/metro
    python scripts/export.py --model model.zip --scenario metro --out policies/mine
    python scripts/export.py --model plans.zip --scenario tiers --fleet grouping=slo --out policies/plans

--run takes a run of scripts/train.py, --model the zip file of a model (PPO, A2C, MaskablePPO, or DQN with
flat actions) that was trained with Stable-Baselines3 itself and saved with model.save. That of a model of the
fleet view does not say how the view was set: --fleet does, alone if nothing was set. Of runs and models only
tensors and text are read; what such files hold in pickled form, and so could run code, is never opened.

The bundle holds the actor as ONNX and as npz, and a manifest with schema, provenance and digests. Load it
with ``dsd_env.policy.load(DIR)``, or name it ``policy:DIR`` wherever a scheduler is asked for.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

import _checkout  # noqa: F401
import _cli


def main() -> int:
    """Run the command line; return the exit status."""
    from dsd_env.cli.arguments import change

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", type=Path, metavar="DIR", help="directory that scripts/train.py wrote")
    source.add_argument("--model", type=Path, metavar="FILE", help="zip file that model.save wrote")
    parser.add_argument(
        "--out", required=True, type=Path, metavar="POLICY_DIR", help="directory of the bundle"
    )
    parser.add_argument(
        "--scenario", metavar="NAME", help="with --model: name or YAML file of what it was trained on"
    )
    parser.add_argument(
        "--fleet",
        type=change,
        nargs="*",
        metavar="KEY=VALUE",
        help="with --model: it makes plans of the fleet view, with these settings as far as they are not the "
        "defaults: control_period_s, grouping, name_targets",
    )
    parser.add_argument(
        "--checkpoint", metavar="WHICH", help="with --run: best (default), last, or a zip file of the run"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing bundle")
    arguments = parser.parse_args()
    if arguments.model and not arguments.scenario:
        parser.error("--model needs --scenario: what the model was trained on")
    with_model = arguments.scenario or arguments.fleet is not None
    if (arguments.model and arguments.checkpoint) or (arguments.run and with_model):
        parser.error("--checkpoint goes with --run, --scenario and --fleet with --model")

    try:
        if arguments.run:
            from agents.export import export_run
        from dsd_env import list_scenarios, policy
    except ModuleNotFoundError as error:
        print(
            f"export: {error.name} is not installed; run `make demo`, or pip install -e '.[train,export]'",
            file=sys.stderr,
        )
        return 1

    try:
        if arguments.run:
            manifest = export_run(
                arguments.run, arguments.out, arguments.checkpoint or "best", overwrite=arguments.overwrite
            )
        else:
            manifest = policy.export_sb3(
                arguments.model,
                arguments.scenario,
                arguments.out,
                overwrite=arguments.overwrite,
                fleet=None if arguments.fleet is None else dict(arguments.fleet),
            )
        # What has been written is what a server will read: load it the same way, every check included.
        loaded = policy.load(arguments.out)
    except (ValueError, OSError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 1

    name = manifest.scenario.name  # which of a mixture, or of a file's own, is none to evaluate on
    scenario = arguments.scenario or (name if name in list_scenarios() else "SCENARIO")
    print(
        f"wrote {arguments.out}: {loaded}",
        *(
            f"  {name:12}  {file.bytes:8d} bytes  sha256 {file.sha256}"
            for name, file in manifest.files.items()
        ),
        f"use it:  python scripts/evaluate.py --scenarios {shlex.quote(scenario)} --schedulers "
        + shlex.quote(f"jsq_goodput,policy:{arguments.out}"),
        sep="\n",
    )
    return 0


if __name__ == "__main__":
    _cli.run(main)
