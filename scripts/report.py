"""Write results of evaluations, searches and training runs as one HTML page that needs no network.

    python scripts/evaluate.py --scenarios metro --schedulers cloud_ar,jsq_goodput --history --json out.json
    python scripts/report.py out.json runs/metro --out report.html

The same as `dsd-env report`; docs/report.md says what the page shows.
"""

from __future__ import annotations

import argparse
import sys

import _checkout  # noqa: F401
import _cli

from dsd_env.cli import report


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    report.add_arguments(parser)
    try:
        return report.run(parser.parse_args())
    except (ValueError, OSError) as error:
        print(f"report: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    _cli.run(main)
