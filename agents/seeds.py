"""Which episode seeds serve which purpose.

The ranges are disjoint, so that no result is ever measured on an episode that training has seen. The seeds
of reported results stand in :mod:`dsd_env.paired`.
"""

from __future__ import annotations

from dsd_env import rng

TRAINING_SEEDS = range(0, 1_000_000_000)
"""Episodes that the learner trains on."""

VALIDATION_SEEDS = range(1_000_000_000, 1_100_000_000)
"""Episodes that pick the best model during training."""

SEARCH_SEEDS = range(1_200_000_000, 1_300_000_000)
"""Episodes on which static choices are searched, and on which those found are confirmed."""

DEMONSTRATION_SEEDS = range(1_500_000_000, 1_600_000_000)
"""Episodes from which a warm start collects a heuristic's decisions."""


def training_seed(run_seed: int, worker: int, start_step: int, episode: int) -> int:
    """Return the seed of one training episode.

    Args:
        run_seed: Seed of the run.
        worker: Number of the environment within the run.
        start_step: Global step at which this process began; after a resume the episodes are new ones.
        episode: Number of the episode within this worker and process.
    """
    u = rng.uniform(run_seed, worker, start_step, episode)
    return TRAINING_SEEDS.start + rng.number_below(len(TRAINING_SEEDS), u)


def validation_seeds(count: int) -> list[int]:
    """Return the first ``count`` validation seeds."""
    return list(VALIDATION_SEEDS[:count])
