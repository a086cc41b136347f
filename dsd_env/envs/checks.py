"""Checks of what users pass to environments: discount rates, reset options, seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from dsd_env.rng import MAX_SEED, checked_seed


def check_discount(discount_rate_per_s: float | None) -> None:
    """Check the rate of a discount in simulated time.

    Raises:
        ValueError: The rate is negative or not finite.
    """
    if discount_rate_per_s is not None and not 0.0 <= discount_rate_per_s < math.inf:
        raise ValueError(f"discount_rate_per_s = {discount_rate_per_s} must be at least 0 and finite")


def check_options(options: Mapping[str, Any], known: tuple[str, ...]) -> None:
    """Check the names of reset options.

    Raises:
        ValueError: An option is unknown.
    """
    if unknown := set(options) - set(known):
        raise ValueError(f"unknown reset options {sorted(unknown)}; known are {list(known)}")


def checked_episode_seed(seed: object) -> int | None:
    """Return an episode seed that a user gave, checked; None stays None.

    Raises:
        ValueError: The seed is not a whole number, or is out of range; see :func:`dsd_env.rng.checked_seed`.
    """
    return None if seed is None else checked_seed(seed, "episode_seed")


def checked_generator_seed(seed: object) -> int | None:
    """Return the argument of ``reset(seed=)``, which seeds the generator of episode seeds; None stays None.

    The seed has no upper bound: `np_random_seed`, which repeats a reset without a seed, has 128 bits.

    Raises:
        ValueError: The seed is not a whole number of at least 0.
    """
    return None if seed is None else checked_seed(seed, "seed", most=None)


def draw_episode_seed(generator: np.random.Generator) -> int:
    """Draw the seed of the next episode."""
    return int(generator.integers(MAX_SEED))
