"""Counter-based randomness: every draw is a pure function of where it is used.

A draw is addressed by ``(seed, stream, entity, counter)`` and does not depend on how many
draws were made before it, by whom, or in which order. Two schedulers that see the same seed
therefore see the same arrivals, lengths, acceptance, jitter and noise (common random numbers),
whatever they do with them.

The hash is a chain of SplitMix64 finalisers (Steele, Lea & Flood, "Fast splittable
pseudorandom number generators", OOPSLA 2014), one link per address component.
"""

from __future__ import annotations

import math
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

_MASK64 = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_TO_UNIT = 2.0**-53

MAX_SEED = (1 << 63) - 1
"""The largest episode seed: what fits the 64-bit integers of the engines and of the environments' infos."""


class Stream(IntEnum):
    """Independent streams of randomness. The numbers are part of the reproducibility contract."""

    ARRIVAL = 1
    THINK = 2
    LENGTH = 3
    REQUEST_CLASS = 4
    ACCEPTANCE_PICK = 5
    ACCEPTANCE_MATCH = 6
    UPLINK_JITTER = 7
    DOWNLINK_JITTER = 8
    UPLINK_LOSS = 9
    DOWNLINK_LOSS = 10
    ITERATION_NOISE = 11
    DEVICE_SPREAD = 12
    LOAD_PHASE = 13
    SCHEDULER = 14
    ROUTING = 15
    LINK_SPREAD = 16
    FAULT = 17
    BANDWIDTH = 18
    OUTAGE = 19
    DELAY = 20
    SCENARIO = 21
    STRAGGLER = 22
    ACCEPTANCE_GUESS = 23
    ACCEPTANCE_RANK = 24
    DRAFT_NOISE = 25


def _mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * _MIX_1) & _MASK64
    z = ((z ^ (z >> 27)) * _MIX_2) & _MASK64
    return z ^ (z >> 31)


def checked_seed(seed: object, name: str = "seed", *, most: int | None = MAX_SEED) -> int:
    """Return a seed that a user gave, as a Python integer.

    Args:
        seed: A whole number, Python's or NumPy's; ``True`` and ``1.0`` are none.
        name: What the user calls it.
        most: The largest one; None: no bound, for generators that take integers of any length.

    Raises:
        ValueError: It is no whole number, or out of range; the message gives name, value and range.
    """
    whole = isinstance(seed, (int, np.integer)) and not isinstance(seed, bool)
    if not whole or seed < 0 or (most is not None and seed > most):  # type: ignore[operator]
        span = "of at least 0" if most is None else f"from 0 to {most}"
        raise ValueError(f"{name} = {seed!r} must be a whole number {span}")
    return int(seed)  # type: ignore[call-overload, no-any-return]


def as_int64(seed: int) -> int:
    """Return the seed within int64 that draws the same as any integer: equal modulo 2^64."""
    return ((seed + (1 << 63)) & _MASK64) - (1 << 63)


def key(seed: int, stream: int, entity: int) -> int:
    """Return the 64-bit key of one ``(seed, stream, entity)``; hash counters with it.

    Args:
        seed: Episode seed; any integer is taken modulo 2^64. What users give has gone through
            :func:`checked_seed`.
        stream: A :class:`Stream`.
        entity: Number of the device, link, server or request that draws.
    """
    h = _mix((seed + _GOLDEN) & _MASK64)
    h = _mix((h ^ (stream * _GOLDEN)) & _MASK64)
    return _mix((h ^ ((entity + 1) * _GOLDEN)) & _MASK64)


def uniform_from_key(stream_key: int, counter: int) -> float:
    """Return the ``counter``-th uniform draw of a key, in (0, 1]; 1 once in 2^53."""
    h = _mix((stream_key ^ ((counter + 1) * _GOLDEN)) & _MASK64)
    return ((h >> 11) + 0.5) * _TO_UNIT


def uniform(seed: int, stream: int, entity: int, counter: int) -> float:
    """Return the uniform draw at ``(seed, stream, entity, counter)``, in (0, 1]."""
    return uniform_from_key(key(seed, stream, entity), counter)


def number_below(n: int, u: float) -> int:
    """Return which of the numbers 0 to n - 1, all as likely, a uniform draw stands for."""
    return min(int(u * n), n - 1)


def uniforms(seed: int, stream: int, entity: int, counters: NDArray[np.int64]) -> NDArray[np.float64]:
    """Vectorised :func:`uniform` over an array of counters; equal to it bit for bit.

    Args:
        seed: Episode seed.
        stream: A :class:`Stream`.
        entity: Number of the entity that draws.
        counters: Counters of any shape, non-negative.

    Returns:
        float64 array of the same shape, values in (0, 1].
    """
    k = np.uint64(key(seed, stream, entity))
    with np.errstate(over="ignore"):
        z = k ^ ((counters.astype(np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN))
        z = (z ^ (z >> np.uint64(30))) * np.uint64(_MIX_1)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(_MIX_2)
        z = z ^ (z >> np.uint64(31))
    return np.asarray(((z >> np.uint64(11)).astype(np.float64) + 0.5) * _TO_UNIT)


def exponential(u: float) -> float:
    """Return the unit-mean exponential variate of a uniform draw (inverse transform)."""
    return -math.log(u)


def normal(u_radius: float, u_angle: float) -> float:
    """Return the standard normal variate of two uniform draws (Box-Muller, cosine branch)."""
    return math.sqrt(-2.0 * math.log(u_radius)) * math.cos(2.0 * math.pi * u_angle)
