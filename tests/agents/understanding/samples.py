"""Policies whose decisions can be said in a sentence, and one of which nobody can."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np

from agents.understanding.features import scaled_values
from dsd_env.control import ActionSpace, ObservationEncoder
from dsd_env.policy import MlpActor, load
from dsd_env.policy.bundle import Policy
from dsd_env.policy.export import export_actor
from dsd_env.policy.manifest import Training
from dsd_env.scenario import Scenario
from tests.lab import lab

TRAINING = Training(algorithm="test", seed=0, steps=0)
CUTS = (5.5, 3.5, 1.5)
"""Below each of these many resident requests the next longer window is taken."""


def crowd(requests: int = 40) -> Scenario:
    """Eight clients at one target, whose answers differ so that one to eight are resident."""
    return lab(
        clients=8,
        requests=requests,
        output={"distribution": "geometric", "mean": 30},
        arrivals={"kind": "closed_loop", "think_s": {"distribution": "exponential", "mean": 0.6}},
        actions__gammas=[0, 2, 4, 8],
    )


def by_residents(scenario: Scenario) -> MlpActor:
    """Return a linear actor whose window depends on `target.resident` alone: 8, 4, 2, 0 as it grows."""
    features, actions = ObservationEncoder.of(scenario).features, ActionSpace.of(scenario)
    column = [feature.name for feature in features].index("target.resident")
    weight = np.zeros((sum(actions.nvec), len(features)), dtype=np.float32)
    bias = np.zeros(len(weight), dtype=np.float32)
    cuts = scaled_values(features[column], np.array(CUTS))
    for index, cut in enumerate(cuts.tolist(), 1):
        weight[index, column] = -100.0 * index
        bias[index] = bias[index - 1] + 100.0 * cut
    return MlpActor([(weight, bias)], "tanh", actions.nvec, 2)


def window(residents: float) -> int:
    """Return the window that :func:`by_residents` takes."""
    return (0, 2, 4, 8)[sum(residents < cut for cut in CUTS)]


def anyhow(scenario: Scenario, *, flat: bool = False, seed: int = 0, gain: float = 4.0) -> MlpActor:
    """Return an untrained network whose decisions differ from state to state."""
    rng = np.random.default_rng(seed)
    actions = ActionSpace.of(scenario)
    nvec = (actions.n_flat,) if flat else actions.nvec
    widths = (len(ObservationEncoder.of(scenario).features), 16, sum(nvec))
    layers = [
        (gain * rng.normal(size=(n, m)) * m**-0.5, 0.1 * rng.normal(size=n)) for m, n in pairwise(widths)
    ]
    return MlpActor(layers, "tanh", nvec, 2)


def exported(actor: MlpActor, scenario: Scenario, folder: Path) -> Policy:
    """Export an actor and load the bundle."""
    export_actor(actor, scenario, TRAINING, folder)
    return load(folder)
