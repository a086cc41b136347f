"""Write results of evaluations, searches and training runs as one HTML page that needs no network.

    python scripts/evaluate.py --scenarios metro --schedulers cloud_ar,jsq_goodput --history --json out.json
    python scripts/report.py out.json runs/metro --out report.html

The same as `dsd-env report`; docs/report.md says what the page shows.
"""

from __future__ import annotations

from functools import partial

import _checkout  # noqa: F401
import _cli

from dsd_env.cli import report

main = partial(_cli.command, "report", __doc__, report)

if __name__ == "__main__":
    _cli.run(main)
