"""What a decision comes to when it is executed, so that two ways to say the same thing count as one."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dsd_env.control import ActionSpace, ObservationEncoder
from dsd_env.control.fleet import BRANCHES
from dsd_env.control.view import Site
from dsd_env.scenario import Scenario

PLAIN = "plain"
_WORDS = {Site.COLOCATED: "colocated", Site.OWN_DEVICE: "own", Site.EDGE_SERVER: "edge"}


class Difference(NamedTuple):
    """How far decisions differ, in the form of :meth:`Reading.executed`.

    Attributes:
        decision: Share of states in which the decision is another one.
        gamma: Share in which the speculation length is.
        place: Share in which the place or the target is.
        gamma_tokens: Mean absolute difference of the speculation lengths.
    """

    decision: float
    gamma: float
    place: float
    gamma_tokens: float


class Reading:
    """Reads decisions on a scenario's observations.

    Candidates that only fill the list up can never be selected; they have features, and no word.

    Attributes:
        features: The features of an observation.
        actions: The action lists.
        places: Word of every placement, whatever its target: site, and the drafter's place in the site's list
            where it has several.
        ranks: int64, shape (placements,): the place of each one's target among those on offer, 0 the current
            one.
        categories: What a round can be: ``plain``, and the words of `places`, each once.
    """

    def __init__(self, scenario: Scenario, n_placements: int | None = None) -> None:
        """Find out what the placements of a scenario are.

        Args:
            scenario: The scenario.
            n_placements: Length to which the list of candidates is filled up; None: the scenario's own.
        """
        self.features = ObservationEncoder.of(scenario, n_placements).features
        self.actions = ActionSpace.of(scenario, n_placements)
        self.places = tuple(_words(scenario)) * (scenario.n_placements // len(scenario.places))
        self._of_target = len(scenario.places)
        self.ranks = np.arange(scenario.n_placements) // self._of_target
        self.categories = (PLAIN, *dict.fromkeys(self.places))
        names = {feature.name: column for column, feature in enumerate(self.features)}
        self._valid, self._same_target, self._coalesces, self._streams = (
            np.array([names[f"candidate_{i}.{flag}"] for i in range(scenario.n_placements)])
            for flag in ("valid", "same_target", "coalesces", "streams")
        )
        # Who has lost its KV to others enters its target again, where B counts.
        self._preempts = any(target.kv_policy == "preempt" for target in scenario.targets.values())
        self._admission = names["request.is_admission"]

    def is_admission(self, observations: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return which observations are of first decisions, which place a prompt: bool, shape (n,)."""
        return observations[:, self._admission] > 0.5

    def executed(self, observations: NDArray[np.float32], actions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return actions in the form that all actions of the same effect share.

        Drafting where nobody can draft is plain decoding. Of plain decoding only the target matters; of the
        speculation length at admission only whether it is 0, unless a stream follows the prompt at once. A
        batch size without effect is the first.

        Args:
            observations: float32, shape (n, features).
            actions: int64, shape (n, 3): indices of speculation length, batch size and placement.

        Returns:
            int64, shape (n, 3): indices again, which have the same effect.
        """
        gamma, batch, placement = (column.copy() for column in actions.T)
        rows = np.arange(len(actions))
        gamma[observations[rows, self._valid[placement]] < 0.5] = 0
        streams = observations[rows, self._streams[placement]] > 0.5
        gamma[self.is_admission(observations) & ~streams & (gamma > 0)] = 1
        enters = self._preempts | (observations[rows, self._same_target[placement]] < 0.5)
        coalesces = observations[rows, self._coalesces[placement]] > 0.5
        batch[~(enters | ((gamma > 0) & coalesces))] = 0
        plain = gamma == 0
        placement[plain] = placement[plain] // self._of_target * self._of_target
        return np.stack([gamma, batch, placement], axis=1)

    def allowed(self, masks: NDArray[np.bool_], actions: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which actions, in the form of :meth:`executed`, can be executed as they are.

        Args:
            masks: bool, shape (n, sum(nvec)).
            actions: int64, shape (k, 3).

        Returns:
            bool, shape (n, k).
        """
        n_gamma, n_batch, _ = self.actions.nvec
        gamma, batch, placement = actions.T
        place_masks = masks[:, n_gamma + n_batch :][:, : len(self.ranks)]
        by_target = place_masks.reshape(len(masks), -1, self._of_target)
        targets: NDArray[np.bool_] = np.logical_or.reduce(by_target, axis=2)
        targets[:, 0] = True
        possible = masks[:, gamma] & place_masks[:, placement]
        reachable: NDArray[np.bool_] = targets[:, self.ranks[placement]]
        return np.where(gamma == 0, reachable, possible) & masks[:, n_gamma + batch]

    def gammas(self, executed: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return speculation lengths in tokens, where a stop rule may end them the longest: int64 (n,)."""
        return np.array(self.actions.windows)[executed[:, 0]]

    def category(self, executed: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the number of each decision's category: int64, shape (n,)."""
        numbers = np.array([self.categories.index(word) for word in self.places])
        return np.where(executed[:, 0] == 0, 0, numbers[executed[:, 2]])

    def difference(self, one: NDArray[np.int64], other: NDArray[np.int64]) -> Difference:
        """Return how far decisions on the same states differ."""
        tokens = np.abs(self.gammas(other) - self.gammas(one))
        places = self.category(one) != self.category(other)
        places |= self.ranks[one[:, 2]] != self.ranks[other[:, 2]]
        whole = (one != other).any(axis=1)
        return Difference(*(float(each.mean()) for each in (whole, tokens > 0, places, tokens)))

    def words(self, executed: NDArray[np.int64]) -> str:
        """Return one decision, in the form of :meth:`executed`, in words."""
        gamma, batch, placement = executed.tolist()
        decision = self.actions.decision(gamma, batch, placement)
        until = "" if decision.stop is None else f" until {decision.stop.threshold:g} in doubt"
        length = PLAIN if gamma == 0 else f"gamma {decision.gamma}{until}, {self.places[placement]}"
        rank = int(self.ranks[placement])
        target = f", target +{rank}" if rank else ""
        size = self.actions.batch_sizes[batch]
        return length + target + (f", B {size}" if size > 1 else "")


def _words(scenario: Scenario) -> list[str]:
    """Return the words of one target's placements; edge servers are not told apart."""
    drafters = Counter[int]()
    for site, _, rank, _ in scenario.places:
        drafters[site] = max(drafters[site], rank + 1)
    offered = scenario.actions.offer_branches
    return [
        _WORDS[Site(site)]
        + (f" {rank + 1}" if drafters[site] > 1 else "")
        + (BRANCHES if offered and fanout else "")
        for site, _, rank, fanout in scenario.places
    ]
