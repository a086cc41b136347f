"""When what is down: the windows of a fault, one after the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from dsd_env import rng
from dsd_env.laws.variates import VariateLaw, draw
from dsd_env.rng import Stream

FAULT = int(Stream.FAULT)


class Window(Protocol):
    """The current window; ``index`` is −1 before the first."""

    start_s: float
    end_s: float
    index: int


class FaultLaw(Protocol):
    """One entity that a fault hits: at random, or at ``n_times`` given times ``at_s``."""

    @property
    def number(self) -> int: ...
    @property
    def is_random(self) -> bool: ...
    @property
    def mean_interval_s(self) -> float: ...
    @property
    def n_times(self) -> int: ...
    @property
    def at_s(self) -> Sequence[float]: ...
    @property
    def duration_s(self) -> VariateLaw: ...


def next_window(window: Window, fault: FaultLaw, seed: int) -> None:
    """Go on to the next window; it begins no earlier than this one ends. After the last, it is infinite."""
    window.index += 1
    index = window.index
    if fault.is_random:
        u = rng.uniform(seed, FAULT, fault.number, 3 * index)
        window.start_s = window.end_s + fault.mean_interval_s * rng.exponential(u)
    elif index < fault.n_times:
        window.start_s = max(fault.at_s[index], window.end_s)
    else:
        window.start_s = math.inf
        window.end_s = math.inf
        return
    window.end_s = window.start_s + draw(fault.duration_s, seed, FAULT, fault.number, 3 * index + 1)
