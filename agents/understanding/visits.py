"""States that decisions were asked for in whole episodes, and what a scheduler decided there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agents.understanding.settings import ExplainError

if TYPE_CHECKING:
    from agents.rollouts import Decide, Stage


@dataclass(frozen=True)
class Visits:
    """States and decisions.

    Attributes:
        observations: float32, shape (n, features).
        masks: bool, shape (n, sum(nvec)).
        actions: int64, shape (n, 3): what the explained scheduler decides.
        met: How many states there were, of which these are a random sample.
    """

    observations: NDArray[np.float32]
    masks: NDArray[np.bool_]
    actions: NDArray[np.int64]
    met: int

    def __len__(self) -> int:
        return len(self.actions)

    def where(self, chosen: NDArray[np.bool_]) -> Visits:
        """Return some of them."""
        return Visits(self.observations[chosen], self.masks[chosen], self.actions[chosen], self.met)

    def and_also(self, other: Visits) -> Visits:
        """Return both together."""
        return Visits(
            np.concatenate([self.observations, other.observations]),
            np.concatenate([self.masks, other.masks]),
            np.concatenate([self.actions, other.actions]),
            self.met + other.met,
        )


class _State(NamedTuple):
    priority: float
    observation: NDArray[np.float32]
    mask: NDArray[np.bool_]
    action: NDArray[np.int64]


class Noting:
    """Lets somebody decide, and notes a random sample of the states with what the teacher decides there.

    Every state draws a number from the generator of its episode, and those with the least are kept. So the
    sample is the same however many episodes are played side by side.
    """

    def __init__(
        self,
        teacher: Decide,
        most: int,
        *,
        driver: Decide | None = None,
        after_s: float = 0.0,
        told: Callable[[int], object] = lambda decisions: None,
    ) -> None:
        """Note states.

        Args:
            teacher: Whose decisions are noted.
            most: How many states at most.
            driver: Who decides; None: the teacher.
            after_s: Simulated time before which nothing is noted: the warm-up.
            told: Called with the number of decisions, for a bar of progress.
        """
        self._teacher, self._driver, self._most, self._after_s = teacher, driver, most, after_s
        self._told = told
        self._generators: dict[int, np.random.Generator] = {}
        self._kept: list[_State] = []
        self._least_refused = 1.0
        self._met = 0

    def __call__(self, stage: Stage, which: Sequence[int]) -> NDArray[np.int64]:
        """Return the driver's actions."""
        draws = np.array([self._draw(stage.seeds[world]) for world in which])
        late = _clocks_s(stage, which) >= self._after_s
        self._met += int(late.sum())
        noted = np.flatnonzero(late & (draws < self._least_refused)).tolist()
        worlds = [which[place] for place in noted]
        if self._driver is None:
            acted = self._teacher(stage, which)
            wanted = acted[noted]
        else:
            wanted = self._teacher(stage, worlds) if worlds else np.zeros((0, 3), dtype=np.int64)
            acted = self._driver(stage, which)
        for place, world, action in zip(noted, worlds, wanted, strict=True):
            observation, mask = stage.observations[world].copy(), stage.masks[world].copy()
            self._kept.append(_State(float(draws[place]), observation, mask, np.asarray(action)))
        if len(self._kept) > 2 * self._most:
            self._thin()
        self._told(len(which))
        return acted

    def visits(self) -> Visits:
        """Return what was noted.

        Raises:
            ExplainError: Nothing was.
        """
        self._thin()
        if not self._kept:
            raise ExplainError("no decision fell into the measured window: measure longer")
        columns: Any = zip(*self._kept, strict=True)
        _, observations, masks, actions = map(list, columns)
        return Visits(
            np.array(observations, dtype=np.float32),
            np.array(masks, dtype=np.bool_),
            np.array(actions, dtype=np.int64),
            self._met,
        )

    def _draw(self, seed: int) -> float:
        if seed not in self._generators:
            self._generators[seed] = np.random.default_rng([seed, 1])
        return float(self._generators[seed].random())

    def _thin(self) -> None:
        self._kept.sort(key=lambda state: state.priority)
        if len(self._kept) > self._most:
            self._least_refused = self._kept[self._most].priority
            del self._kept[self._most :]


def _clocks_s(stage: Stage, which: Sequence[int]) -> NDArray[np.float64]:
    """Return the simulated time of some environments."""
    worlds = getattr(stage.env.unwrapped, "worlds", None)
    if worlds is not None:
        clocks: NDArray[np.float64] = worlds.clocks[list(which), 0]
        return clocks
    return np.array([view.now_s for view in stage.env.get_attr("view", list(which))])


class Replaced:
    """A policy that sees the features of other states in the place of some of its own."""

    def __init__(
        self,
        decide: Callable[[NDArray[np.float32], NDArray[np.bool_]], NDArray[np.int64]],
        columns: NDArray[np.int64],
        pool: NDArray[np.float32],
        how: str,
    ) -> None:
        """Replace features.

        Args:
            decide: The policy.
            columns: Which features.
            pool: float32, shape (n, features): states that the others come from.
            how: ``shuffle``: for each decision all of them from one random state, the same one whichever
                features are replaced; ``mean``: their means.
        """
        self._decide, self._columns, self._how = decide, columns, how
        self._pool = pool[:, columns]
        self._mean = self._pool.mean(axis=0)
        self._generators: dict[int, np.random.Generator] = {}

    def __call__(self, stage: Stage, which: Sequence[int]) -> NDArray[np.int64]:
        """Return the policy's actions on what it is shown."""
        shown = stage.observations[list(which)]
        if self._how == "mean":
            shown[:, self._columns] = self._mean
        else:
            rows = [self._row(stage.seeds[world]) for world in which]
            shown[:, self._columns] = self._pool[rows]
        return self._decide(shown, stage.masks[list(which)])

    def _row(self, seed: int) -> int:
        if seed not in self._generators:
            self._generators[seed] = np.random.default_rng([seed, 2])
        return int(self._generators[seed].integers(len(self._pool)))
