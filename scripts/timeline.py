"""Write a simulated episode as a trace, to be looked at in ui.perfetto.dev or chrome://tracing.

    python scripts/timeline.py single_lan --scheduler edge_sd:4 --out trace.json
    python scripts/timeline.py metro --scheduler jsq_goodput --from-s 20 --to-s 22 --out trace.json

The same as `dsd-env timeline`; docs/command_line.md says what the tracks show.
"""

from __future__ import annotations

from functools import partial

import _checkout  # noqa: F401
import _cli

from dsd_env.cli import timeline

main = partial(_cli.command, "timeline", __doc__, timeline)

if __name__ == "__main__":
    _cli.run(main)
