"""Export a trained scheduler as a policy bundle that needs neither torch nor Stable-Baselines3.

    python scripts/export.py --run runs/metro --out policies/metro

The bundle holds the actor as ONNX and as npz, and a manifest with schema, provenance and digests. Load it
with ``dsd_env.policy.load(DIR)``, or name it ``policy:DIR`` wherever a scheduler is asked for.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import _checkout  # noqa: F401


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--run", required=True, type=Path, metavar="DIR", help="directory that scripts/train.py wrote"
    )
    parser.add_argument(
        "--out", required=True, type=Path, metavar="POLICY_DIR", help="directory of the bundle"
    )
    parser.add_argument(
        "--checkpoint", default="best", metavar="WHICH", help="best (default), last, or a zip file of the run"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing bundle")
    arguments = parser.parse_args()

    try:
        from agents.export import export_run
        from dsd_env import policy
    except ModuleNotFoundError as error:
        print(
            f"export: {error.name} is not installed; run `make demo`, or pip install -e '.[train,export]'",
            file=sys.stderr,
        )
        return 1

    try:
        manifest = export_run(
            arguments.run, arguments.out, arguments.checkpoint, overwrite=arguments.overwrite
        )
        # What has been written is what a server will read: load it the same way, every check included.
        loaded = policy.load(arguments.out)
    except (ValueError, OSError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 1

    print(f"wrote {arguments.out}: {loaded}")
    for name, entry in manifest.files.items():
        print(f"  {name:12}  {entry.bytes:8d} bytes  sha256 {entry.sha256}")
    print(f"use it:  python scripts/evaluate.py --schedulers jsq_goodput,policy:{arguments.out} ...")
    return 0


if __name__ == "__main__":
    sys.exit(main())
