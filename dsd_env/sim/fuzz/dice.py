"""Tools to draw random cases: the list of features, menus of values, and dice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, TypeVar

T = TypeVar("T")
Data = dict[str, Any]

FEATURES = (
    "window",
    "bandwidth",
    "branches",
    "bandwidth_collapse",
    "client_timeout",
    "correlated_lengths",
    "colocated",
    "confidence_stop",
    "decision_latency",
    "delay",
    "device_crash",
    "edge_crash",
    "edge_servers",
    "far_targets",
    "fitted",
    "generations",
    "draft_noise",
    "graph_steps",
    "heads",
    "jitter",
    "keep_alive",
    "link_outage",
    "load",
    "lookups",
    "loss",
    "menus",
    "offered_branches",
    "outages",
    "patience",
    "pipelined",
    "poisson",
    "preempt",
    "profiles",
    "renewal",
    "replay",
    "replayed_requests",
    "overhead",
    "several_targets",
    "stops",
    "stragglers",
    "streaming",
    "target_crash",
    "token_acks",
    "trace",
)
"""What a generator may draw; a subset leaves the others out."""

TICK_S = 1.0 / 1024.0


@dataclass(frozen=True)
class Menu:
    """Values to choose from; the first of each list is the simplest.

    Attributes:
        name: Name of the style.
        step_s: Iterations of a target.
        draft_s: Steps of a drafter.
        way_s: One-way delays.
        span_s: Durations of faults and the like; zero among them.
        wait_s: Patience, time-outs, detection, latency of decisions.
        rates: Bits per second.
        per_token_s: Seconds per new token.
        per_kv_s: Seconds per KV token.
        grain_s: Beginnings of faults are multiples of it.
        factors: What is left of a bandwidth.
        noisy: Members differ, and times have noise.
    """

    name: str
    step_s: tuple[float, ...]
    draft_s: tuple[float, ...]
    way_s: tuple[float, ...]
    span_s: tuple[float, ...]
    wait_s: tuple[float, ...]
    rates: tuple[float, ...]
    per_token_s: tuple[float, ...]
    per_kv_s: tuple[float, ...]
    grain_s: float
    factors: tuple[float, ...]
    noisy: bool


CLOCK = Menu(
    "clock",
    step_s=(2 / 128, 4 / 128, 1 / 128),
    draft_s=(1 / 128, 2 / 128, 4 / 128),
    way_s=(0.0, 2 / 128, 1 / 128, 4 / 128),
    span_s=(0.0, 1 / 128, 4 / 128, 8 / 128, 32 / 128),
    wait_s=(2 / 128, 4 / 128, 8 / 128, 16 / 128, 1 / 128),
    rates=(2.0**30, 2.0**20),
    per_token_s=(0.0,),
    per_kv_s=(0.0,),
    grain_s=1 / 64,
    factors=(0.5, 0.125),
    noisy=False,
)
GRID = Menu(
    "grid",
    step_s=(16 * TICK_S, 32 * TICK_S, 8 * TICK_S),
    draft_s=(4 * TICK_S, 8 * TICK_S, TICK_S, 16 * TICK_S),
    way_s=(0.0, 8 * TICK_S, TICK_S, 16 * TICK_S, 64 * TICK_S),
    span_s=(0.0, 1 / 16, 1 / 4, 1 / 2, 1.0, TICK_S),
    wait_s=(16 * TICK_S, 32 * TICK_S, 64 * TICK_S, 128 * TICK_S, 8 * TICK_S),
    rates=(2.0**30, 2.0**20, 2.0**17, 2.0**15),
    per_token_s=(0.0, 2.0**-14),
    per_kv_s=(0.0, 2.0**-20),
    grain_s=1 / 16,
    factors=(0.5, 0.125, 1 / 64),
    noisy=False,
)
TIED = Menu(
    "tied",
    step_s=(0.02, 0.03, 0.005),
    draft_s=(0.005, 0.012, 0.001),
    way_s=(0.0, 0.01, 0.002, 0.05),
    span_s=(0.0, 0.1, 0.3, 1.0, 0.02),
    wait_s=(0.02, 0.05, 0.1, 0.3),
    rates=(1e9, 5e6, 2e5, 5e4),
    per_token_s=(0.0, 1e-4, 5e-4),
    per_kv_s=(0.0, 1e-7, 1e-6),
    grain_s=0.1,
    factors=(0.5, 0.1, 0.01),
    noisy=False,
)
LOOSE = Menu(
    "loose",
    step_s=(0.02, 0.031, 0.0057),
    draft_s=(0.0052, 0.0121, 0.0013),
    way_s=(0.0101, 0.0023, 0.0507, 0.0, 0.0101, 1.51),
    span_s=(0.11, 0.31, 0.9, 0.0),
    wait_s=(0.021, 0.049, 0.1, 0.27),
    rates=(1e9, 5e6, 2e5, 5e4),
    per_token_s=(1e-4, 5e-4, 0.0),
    per_kv_s=(1e-7, 1e-6, 0.0),
    grain_s=0.07,
    factors=(0.5, 0.1, 0.01),
    noisy=True,
)


class Dice:
    """Draws for one case."""

    def __init__(
        self, random: Random, features: Sequence[str], menu: Menu = CLOCK, always: Sequence[str] = ()
    ) -> None:
        """Draw from a source, with the features allowed, and those that are drawn at every chance."""
        self.random, self.features, self.menu = random, frozenset(features), menu
        self.always = frozenset(always)

    def chance(self, probability: float) -> bool:
        """Return True with a probability."""
        return self.random.random() < probability

    def has(self, feature: str, probability: float) -> bool:
        """Return True with a probability, if the feature is allowed."""
        drawn = self.random.random() < probability
        return (drawn or feature in self.always) and feature in self.features

    def pick(self, *values: T) -> T:
        """Return one of some values."""
        return values[self.random.randrange(len(values))]

    def of(self, values: Sequence[T]) -> T:
        """Return one of a sequence."""
        return values[self.random.randrange(len(values))]

    def count(self, low: int, high: int) -> int:
        """Return a whole number between two, both included."""
        return low + self.random.randrange(high - low + 1)

    def times(self, n: int, most: int = 64) -> list[float]:
        """Return some increasing times on the menu's grain."""
        ticks = sorted({self.count(0, most) for _ in range(n)})
        return [tick * self.menu.grain_s for tick in ticks]
