"""Uniformly random valid decisions, which every other scheduler should beat."""

from __future__ import annotations

from dsd_env.control import ActionSpace, Decision, DecisionView
from dsd_env.rng import Stream, key, uniform_from_key
from dsd_env.scenario import Scenario
from dsd_env.schedulers.rules import pick


class RandomScheduler:
    """Draws every dimension uniformly from what the mask allows, from its own counter-based stream.

    Attributes:
        name: ``random``.
    """

    name = "random"

    def __init__(self) -> None:
        """Build the scheduler; `reset` gives it its seed and the scenario's thresholds."""
        self._seed = 0
        self._stop_thresholds: tuple[float, ...] = ()

    def reset(self, scenario: Scenario, seed: int) -> None:
        """Take the episode's seed."""
        self._seed, self._stop_thresholds = seed, scenario.actions.stop_thresholds

    def decide(self, view: DecisionView) -> Decision:
        """Return a uniform draw from the valid actions."""
        space = ActionSpace(view.gammas, view.batch_sizes, len(view.candidates), self._stop_thresholds)
        mask = space.mask(view).tolist()
        stream = key(self._seed, Stream.SCHEDULER, view.request_id)
        indices: list[int] = []
        start = 0
        for dimension, size in enumerate(space.nvec):
            allowed = [index for index in range(size) if mask[start + index]]
            indices.append(pick(allowed, uniform_from_key(stream, 3 * view.counter + dimension)))
            start += size
        return space.decision(*indices)
