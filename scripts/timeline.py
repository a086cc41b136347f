"""Write a simulated episode as a trace, to be looked at in ui.perfetto.dev or chrome://tracing.

    python scripts/timeline.py single_lan --scheduler edge_sd:4 --out trace.json
    python scripts/timeline.py metro --scheduler jsq_goodput --from-s 20 --to-s 22 --out trace.json

The same as `dsd-env timeline`; docs/command_line.md says what the tracks show.
"""

from __future__ import annotations

import argparse
import sys

import _checkout  # noqa: F401
import _cli

from dsd_env.cli import timeline


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    timeline.add_arguments(parser)
    try:
        return timeline.run(parser.parse_args())
    except (ValueError, OSError) as error:
        print(f"timeline: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    _cli.run(main)
