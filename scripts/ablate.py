"""Train policies with something taken away, and compare them with the whole on the same held-out episodes.

    python scripts/ablate.py slow_cloud --runs runs/ablations
    python scripts/ablate.py --table --write docs/benchmark.md

A file of configs/ablations names an entry of the benchmark, one training and what is taken away from it.
Results are kept in benchmark/ablations/NAME.json as they come; the same command continues after an interrupt.
"""

from __future__ import annotations

import _cli
import _trainings


def tools() -> _trainings.Tools:
    """Import what ablations need."""
    from agents.ablations import BLOCK, load_ablations, page_table, read_results, run_ablations

    return _trainings.Tools(BLOCK, load_ablations, run_ablations, read_results, page_table)


def main() -> int:
    """Run the command line; return the exit status."""
    return _trainings.main("ablate", "ablations", _trainings.parser("ablations", __doc__, "runs"), tools)


if __name__ == "__main__":
    _cli.run(main)
