"""Laws of variates: think times, lengths of prompts and answers, durations of faults.

A law is an object with ``code``, ``pieces``, ``a``, ``b``, ``low``, ``high``, ``scores``, ``logs`` and
``slopes``:

============= ==================================================================================
code          value of the variate
============= ==================================================================================
CONSTANT      ``a``
EXPONENTIAL   mean ``a``
GEOMETRIC     mean ``a``, on 1, 2, …; ``b`` is log(1 − 1/a)
LOG_NORMAL    median ``a``, standard deviation of the logarithm ``b``, clipped to [``low``, ``high``]
QUANTILES     its logarithm is piecewise linear in the normal score: ``pieces`` slopes between
              ``pieces + 1`` ``scores`` and ``logs``; what lies beyond the outer quantiles has their values
============= ==================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from dsd_env import rng

CONSTANT, EXPONENTIAL, GEOMETRIC, LOG_NORMAL, QUANTILES = range(5)


class VariateLaw(Protocol):
    """What the functions here ask of a law; see the module."""

    @property
    def code(self) -> int: ...
    @property
    def pieces(self) -> int: ...
    @property
    def a(self) -> float: ...
    @property
    def b(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...
    @property
    def scores(self) -> Sequence[float]: ...
    @property
    def logs(self) -> Sequence[float]: ...
    @property
    def slopes(self) -> Sequence[float]: ...


def log_quantile(
    scores: Sequence[float], logs: Sequence[float], slopes: Sequence[float], pieces: int, z: float
) -> float:
    """Return the value at normal score z of a law by quantiles, its outer pieces continued."""
    piece = 0
    while piece < pieces - 1 and z >= scores[piece + 1]:
        piece += 1
    return math.exp(logs[piece] + slopes[piece] * (z - scores[piece]))


def value_at(law: VariateLaw, z: float) -> float:
    """Return the value of a log-normal law, or of one by quantiles, at a standard normal variate."""
    if law.code == LOG_NORMAL:
        return min(max(law.a * math.exp(law.b * z), law.low), law.high)
    clipped = min(max(z, law.scores[0]), law.scores[law.pieces])
    return log_quantile(law.scores, law.logs, law.slopes, law.pieces, clipped)


def draw(law: VariateLaw, seed: int, stream: int, entity: int, counter: int) -> float:
    """Return one variate; it uses the draws ``counter`` and ``counter + 1``."""
    if law.code == CONSTANT:
        return law.a
    stream_key = rng.key(seed, stream, entity)
    u = rng.uniform_from_key(stream_key, counter)
    if law.code == EXPONENTIAL:
        return law.a * rng.exponential(u)
    if law.code == GEOMETRIC:
        return 1.0 if law.a == 1.0 else 1.0 + math.floor(math.log(u) / law.b)
    return value_at(law, rng.normal(u, rng.uniform_from_key(stream_key, counter + 1)))


def whole_tokens(value: float, most: int) -> int:
    """Return a length in tokens: rounded half to even, within 1 and ``most``."""
    below = math.floor(value)
    rest = value - below
    tokens = int(below)
    if rest > 0.5 or (rest == 0.5 and tokens % 2 == 1):
        tokens += 1
    return min(max(1, tokens), most)
