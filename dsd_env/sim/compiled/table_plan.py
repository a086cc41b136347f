"""Turns a plan into the rows that compiled code follows; see :mod:`dsd_env.sim.compiled.kernel.planned`."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from dsd_env.control.fleet import GroupChoice
from dsd_env.scenario.schema import Scenario
from dsd_env.sim.compiled.kernel.planned import ANY


def plan_rows(scenario: Scenario, choices: Iterable[GroupChoice]) -> NDArray[np.int64]:
    """Return choices as compiled code reads them: int64, shape (groups, 8)."""
    models, actions = list(scenario.acceptance), scenario.actions
    rows = [
        (
            gamma,
            batch_size,
            int(place.site),
            ANY if place.drafter is None else models.index(place.drafter),
            place.branches,
            ANY if place.target is None else place.target,
            actions.gammas.index(gamma),
            actions.batch_sizes.index(batch_size),
        )
        for gamma, batch_size, place in choices
    ]
    return np.array(rows, dtype=np.int64)
