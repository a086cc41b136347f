"""Logits of a batch by matrix products, and when these may not decide."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from dsd_env.policy import MlpActor


def actor(widths: tuple[int, ...], activation: str, scale: float, seed: int) -> MlpActor:
    rng = np.random.default_rng(seed)
    layers = [
        (scale * rng.normal(size=(n, m)) * m**-0.5, scale * rng.normal(size=n)) for m, n in pairwise(widths)
    ]
    return MlpActor(layers, activation, (widths[-1],))  # type: ignore[arg-type]


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("widths", [(105, 64, 64, 13), (225, 64, 64, 25), (600, 256, 256, 256, 40)])
def test_logits_of_a_batch_differ_by_far_less_than_what_counts_as_doubtful(
    widths: tuple[int, ...], activation: str, scale: float
) -> None:
    network = actor(widths, activation, scale, 0)
    rng = np.random.default_rng(1)
    worst = 0.0
    for n in (1, 7, 256):
        observations = rng.uniform(-1.0, 1.0, size=(n, widths[0])).astype(np.float32)
        logits, doubt = network.logits_of_many(observations)
        alone = np.array([network.logits(observation).copy() for observation in observations])
        off = np.subtract(logits, alone, dtype=np.float64)
        # What decides is the difference of two logits of one observation.
        worst = max(worst, float((off.max(axis=1) - off.min(axis=1)).max()) / doubt)
    assert worst < 0.1


def test_inputs_beyond_one_count() -> None:
    network = actor((5, 4, 3), "relu", 1.0, 0)
    _, small = network.logits_of_many(np.ones((2, 5), dtype=np.float32))
    _, large = network.logits_of_many(np.full((2, 5), -100.0, dtype=np.float32))
    assert large > 10.0 * small > 0.0
