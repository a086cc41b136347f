"""A linear rule for plans, small enough for direct search, and exported as a network.

For each group it has a line for the speculation length, one for the batch size, and a score per place:

    length  = the choice whose number is nearest to  a + b · x
    batch   = likewise
    place   = the one with the largest  a_j + b_j · x ; the first place stays at 0

with x the chosen features of the fleet view's observation, times four: most lie between 0 and 0.5. A rule of
two groups, three features, two places and one batch size has 16 numbers. Since the nearest of the numbers 0
to n - 1 to u is the argmax of ``2 k u - k²``, the whole rule is one linear layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dsd_env.control.fleet import FleetSpace
from dsd_env.control.fleet_view import FleetEncoder
from dsd_env.policy.network import MlpActor

NEVER = -1e4
"""Logit of what the rule may not choose; no line comes near it."""
STRETCH = 4.0
"""What features are multiplied by, so that one unit of a parameter means about as much for all."""
RELUCTANCE = 0.5
"""How far below the place that a search begins with the others begin."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Choices:
    """What a rule may choose, and what it chooses before any search.

    Attributes:
        gammas: Speculation lengths in tokens, increasing.
        batch_sizes: Batch sizes, increasing.
        places: Places as `static_map` writes them.
        start: Speculation length to begin with, by group.
        start_places: Place to begin with, by group; none: everybody at the first of ``places``.
    """

    gammas: tuple[int, ...]
    batch_sizes: tuple[int, ...]
    places: tuple[str, ...]
    start: tuple[int, ...]
    start_places: tuple[str, ...] = ()


class PlanRule:
    """The linear rule of a space of plans: turns a vector of parameters into an actor.

    Attributes:
        space: The plans.
        features: Names of the features that lines depend on.
        choices: What it may choose.
        size: Number of parameters.
    """

    def __init__(self, space: FleetSpace, features: Sequence[str], choices: Choices) -> None:
        """Look features and choices up.

        Raises:
            ValueError: A feature, a length, a batch size or a place is not of this space.
        """
        names = FleetEncoder.of(space).names
        words = [place.word for place in space.places]
        _known("features", features, names)
        _known("choices.gammas", choices.gammas, space.gammas)
        _known("choices.batch_sizes", choices.batch_sizes, space.batch_sizes)
        _known("choices.places", choices.places, words)
        _known("start", choices.start, choices.gammas)
        _known("start", choices.start_places, choices.places)
        if len(choices.start) != len(space.groups):
            raise ValueError(
                f"start: {len(choices.start)} speculation lengths for the {len(space.groups)} groups "
                f"{list(space.group_names)}"
            )
        self.space, self.features, self.choices = space, tuple(features), choices
        self._inputs = [names.index(name) for name in features]
        self._n_inputs = len(names)
        self._gammas = [space.gammas.index(gamma) for gamma in choices.gammas]
        self._batches = [space.batch_sizes.index(batch) for batch in choices.batch_sizes]
        self._places = [words.index(place) for place in choices.places]
        # A line that has nothing to choose from needs no parameters.
        self._lines = (
            int(len(self._gammas) > 1),
            int(len(self._batches) > 1),
            len(self._places) - 1,
        )
        self.size = len(space.groups) * sum(self._lines) * (1 + len(self.features))

    def start(self) -> Floats:
        """Return the parameters of the fixed plan to begin with: no line moves with any feature."""
        lines = np.zeros((len(self.space.groups), sum(self._lines), 1 + len(self.features)))
        gamma, batch, _ = self._lines
        choices = self.choices
        places = choices.start_places or choices.places[:1] * len(choices.start)
        for group, (length, place) in enumerate(zip(choices.start, places, strict=True)):
            if gamma:
                lines[group, 0, 0] = choices.gammas.index(length)
            # The first place has no line, and stays at 0.
            scores = np.where(np.array(choices.places) == place, 0.0, -RELUCTANCE)
            lines[group, gamma + batch :, 0] = scores[1:] - scores[0]
        return lines.ravel()

    def actor(self, parameters: Floats) -> MlpActor:
        """Return the actor of parameters, shape (size,).

        Raises:
            ValueError: There is another number of them.
        """
        n_groups = len(self.space.groups)
        lines = np.asarray(parameters, dtype=np.float64)
        if lines.shape != (self.size,):
            raise ValueError(f"{lines.shape} parameters for a rule of {self.size}")
        lines = lines.reshape(n_groups, sum(self._lines), 1 + len(self.features))
        weight = np.zeros((sum(self.space.nvec), self._n_inputs))
        bias = np.full(sum(self.space.nvec), NEVER)
        sizes = self.space.nvec[:3]
        first = 0
        for group in range(n_groups):
            own = iter(lines[group])
            for dimension, allowed in enumerate((self._gammas, self._batches)):
                line = next(own) if len(allowed) > 1 else None
                for number, index in enumerate(allowed):
                    row = first + index
                    bias[row] = -float(number * number)
                    if line is not None:
                        bias[row] += 2.0 * number * line[0]
                        weight[row, self._inputs] = 2.0 * number * STRETCH * line[1:]
                first += sizes[dimension]
            for number, index in enumerate(self._places):
                bias[first + index] = 0.0
                if number > 0:
                    line = next(own)
                    bias[first + index] = line[0]
                    weight[first + index, self._inputs] = STRETCH * line[1:]
            first += sizes[2]
        layer = (weight.astype(np.float32), bias.astype(np.float32))
        return MlpActor([layer], "tanh", self.space.nvec, 0)


def _known(key: str, values: Sequence[object], known: Sequence[object]) -> None:
    for value in values:
        if value not in known:
            raise ValueError(f"{key}: {value!r} is not one of {list(known)}")
    if len(set(values)) != len(values) and key != "start":
        raise ValueError(f"{key}: {list(values)} names something twice")
