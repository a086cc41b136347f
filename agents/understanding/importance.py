"""How often a policy decides otherwise where some features of its observation are those of another state."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from agents.understanding.decisions import Difference, Reading
from agents.understanding.subject import DecideMany
from agents.understanding.visits import Visits


def changed_by(
    reading: Reading,
    decide: DecideMany,
    visits: Visits,
    columns: Mapping[str, NDArray[np.int64]],
    repeats: int,
    generator: np.random.Generator,
) -> dict[str, Difference]:
    """Permute features among states, those of a name together, and count what is decided otherwise.

    Masks stay where they are: what can be selected does not depend on what the policy is shown. Every name
    meets the same permutations.

    Args:
        reading: Reads decisions.
        decide: The policy.
        visits: States that were met.
        columns: Features by name, of a group or single.
        repeats: Permutations that are averaged.
        generator: Draws them.
    """
    orders = [generator.permutation(len(visits)) for _ in range(repeats)]
    usual = reading.executed(visits.observations, decide(visits.observations, visits.masks))
    found = {}
    # What is the same in all states, as the features of candidates that fill the list up, changes nothing.
    varies = (visits.observations != visits.observations[:1]).any(axis=0)
    for name, which in columns.items():
        totals = np.zeros(4)
        for order in orders if varies[which].any() else ():
            shown = visits.observations.copy()
            shown[:, which] = visits.observations[order][:, which]
            # What is done depends on the state as it is, not on what was shown.
            other = reading.executed(visits.observations, decide(shown, visits.masks))
            totals += np.array(reading.difference(usual, other))
        found[name] = Difference(*(totals / repeats).tolist())
    return found
