"""Train DQN, PPO and RecurrentPPO as their libraries ship them; compare them on the same held-out episodes.

    python scripts/compare_learners.py slow_cloud
    python scripts/compare_learners.py mine.yaml --out results --runs runs/mine --quiet
    python scripts/compare_learners.py --table --write docs/training.md

A file of configs/learners names an entry of the benchmark, a budget of decisions, learners of
Stable-Baselines3 and sb3-contrib with their settings, and the benchmark's schedulers to compare with. Results
are kept in benchmark/learners/NAME.json as they come; the same command continues after an interrupt. What was
trained is not trained again; a training that was interrupted begins anew.
"""

from __future__ import annotations

import _cli
import _trainings


def tools() -> _trainings.Tools:
    """Import what learners need."""
    from agents.learners.comparing import read_results, run_comparison
    from agents.learners.config import load_comparison
    from agents.learners.page import BLOCK, page_table

    return _trainings.Tools(BLOCK, load_comparison, run_comparison, read_results, page_table)


def main() -> int:
    """Run the command line; return the exit status."""
    return _trainings.main(
        "compare_learners", "learners", _trainings.parser("learners", __doc__, "trained models"), tools
    )


if __name__ == "__main__":
    _cli.run(main)
