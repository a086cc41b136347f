"""The history of an episode: load, decisions and latencies, small enough to be kept with the metrics.

A timeline shows every message of a few seconds; a history shows a whole episode in some hundred intervals of
equal length. It is made of what a scheduler sees and answers, so that it does not depend on the engine, and
of the requests that were measured.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsd_env.control import Decision, DecisionView, Site
from dsd_env.scenario import Scenario
from dsd_env.schedulers import Scheduler, make_scheduler
from dsd_env.simulate import Result, simulate

MOST_INTERVALS = 120
"""A history has at most so many intervals, and more than half as many if it is longer than half a minute."""
SHORTEST_S = 0.25
"""Length of an interval, doubled whenever there would be too many."""
QUANTILES = 101
"""Latencies are kept at so many quantiles, from the least to the greatest."""
LATENCIES = ("e2e_s", "ttft_s", "tpot_s", "stall_s")

PLAIN = "no drafts"
PLACES = {Site.COLOCATED: "at the target", Site.OWN_DEVICE: "own device", Site.EDGE_SERVER: "edge server"}
"""Where a decision has drafts made; :data:`PLAIN` where it asks for none."""

_HELD, _COUNTED = ("active_requests", "tokens_per_s"), ("decisions", "drafting", "gamma", "batch_size")


class Recorder:
    """A scheduler that decides as another one does, and notes what that saw and decided.

    Attributes:
        name: The other one's name.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        """Decide as ``scheduler`` does."""
        self.name = scheduler.name
        self._scheduler = scheduler
        self._clear()

    def _clear(self) -> None:
        self._interval_s = SHORTEST_S
        names = (*_HELD, *_COUNTED, PLAIN, *PLACES.values())
        self._sums = {name: np.zeros(MOST_INTERVALS) for name in names}
        self._now_s = 0.0
        self._holding = dict.fromkeys(_HELD, 0.0)

    def reset(self, scenario: Scenario, seed: int) -> None:
        """Prepare for one episode, and forget the last one."""
        self._scheduler.reset(scenario, seed)
        self._clear()

    def decide(self, view: DecisionView) -> Decision:
        """Return the other scheduler's decision."""
        decision = self._scheduler.decide(view)
        self._go_to(view.now_s)
        self._holding = {name: float(getattr(view.system, name)) for name in _HELD}
        if not view.request.is_admission:  # an admission chooses no window yet
            self._count(view, decision)
        return decision

    def _count(self, view: DecisionView, decision: Decision) -> None:
        at, drafting = self._at(view.now_s), decision.gamma > 0
        place = PLACES[view.candidates[decision.placement].site] if drafting else PLAIN
        self._sums["decisions"][at] += 1
        self._sums["drafting"][at] += drafting
        self._sums["gamma"][at] += decision.gamma
        self._sums["batch_size"][at] += decision.batch_size
        self._sums[place][at] += 1

    def _at(self, time_s: float) -> int:
        return int(time_s / self._interval_s)

    def _go_to(self, time_s: float) -> None:
        """Add what has been holding up to a time; make the intervals longer where there are too many."""
        while self._at(time_s) >= MOST_INTERVALS:
            self._interval_s *= 2.0
            for name, sums in self._sums.items():
                self._sums[name] = np.concatenate([sums.reshape(-1, 2).sum(1), np.zeros(MOST_INTERVALS // 2)])
        first, last = self._at(self._now_s), self._at(time_s)
        edges_s = self._interval_s * np.arange(first, last + 2)
        inside_s = np.diff(np.clip(edges_s, self._now_s, time_s))
        for name, value in self._holding.items():
            self._sums[name][first : last + 1] += value * inside_s
        self._now_s = max(self._now_s, time_s)

    def history(self, end_s: float) -> dict[str, Any]:
        """Return the history up to a time, ready for JSON; None where there was no decision.

        Args:
            end_s: End of the episode, simulated seconds.
        """
        self._go_to(end_s)
        n = max(1, math.ceil(self._now_s / self._interval_s))
        sums = {name: values[:n] for name, values in self._sums.items()}
        lengths_s = np.diff(np.minimum(self._interval_s * np.arange(n + 1), self._now_s))
        return {
            "interval_s": self._interval_s,
            "end_s": self._now_s,
            **{name: _ratios(sums[name], lengths_s) for name in _HELD},
            "decisions": sums["decisions"].astype(int).tolist(),
            "gamma_mean": _ratios(sums["gamma"], sums["drafting"]),
            "batch_size_mean": _ratios(sums["batch_size"], sums["decisions"]),
            "places": {place: sums[place].astype(int).tolist() for place in (PLAIN, *PLACES.values())},
        }


def recorded(
    scenario: Scenario,
    scheduler: str,
    seed: int,
    **options: Any,
) -> tuple[Result, dict[str, Any]]:
    """Simulate an episode and return its result and its history, which is ready for JSON.

    Args:
        scenario: The scenario.
        scheduler: Name of the scheduler.
        seed: Episode seed.
        options: Further arguments of :func:`dsd_env.simulate`.

    Raises:
        ValueError: As :func:`dsd_env.simulate` does.
    """
    recorder = Recorder(make_scheduler(scheduler))
    result = simulate(scenario, recorder, seed, **options)
    history = recorder.history(result.metrics["duration_s"])
    measured = _is_measured(result)
    quantiles = {name: _quantiles(result.requests[name][measured]) for name in LATENCIES}
    return result, {
        "seed": seed,
        **history,
        "requests_measured": int(measured.sum()),
        "quantiles": quantiles,
    }


def _is_measured(result: Result) -> NDArray[np.bool_]:
    """Return which of the completed requests the metrics are about."""
    episode = result.scenario.episode
    number = result.requests["request"].astype(np.int64)
    arrival_s = result.requests["arrival_s"].astype(np.float64)
    if episode.window_s is not None:
        in_window = (arrival_s >= episode.warmup_s) & (arrival_s < episode.warmup_s + episode.window_s)
        return np.asarray(in_window)
    assert episode.requests is not None  # as the schema has it where there is no window
    first = episode.warmup_requests
    return np.asarray((number >= first) & (number < first + episode.requests))


def _quantiles(values: NDArray[Any]) -> list[float]:
    finite = values[np.isfinite(values)]
    return np.quantile(finite, np.linspace(0.0, 1.0, QUANTILES)).tolist() if len(finite) else []


def _ratios(sums: NDArray[np.float64], counts: NDArray[np.float64]) -> list[float | None]:
    pairs = zip(sums.tolist(), counts.tolist(), strict=True)
    return [total / count if count > 0 else None for total, count in pairs]
