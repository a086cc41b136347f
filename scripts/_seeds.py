"""The argument ``--seed`` of the scripts."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable

from dsd_env.rng import MAX_SEED, checked_seed


def seed(most: int = MAX_SEED) -> Callable[[str], int]:
    """Return what turns the text of an argument into a seed, for ``argparse``.

    Args:
        most: The largest seed that stands for itself alone where it is used.
    """
    return functools.partial(_parse, most=most)


def _parse(text: str, most: int) -> int:
    try:
        return checked_seed(int(text), most=most)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from 0 to {most}") from None
