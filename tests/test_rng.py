"""Counter-based randomness."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsd_env import rng
from dsd_env.rng import Stream

COUNTERS = np.arange(20_000)
PINNED = (0.7581141950548507, 0.5127432756019712)


@given(seed=st.integers(0, 2**63), stream=st.integers(0, 100), entity=st.integers(0, 2**40))
def test_scalar_and_vector_agree_bit_for_bit(seed: int, stream: int, entity: int) -> None:
    counters = np.array([0, 1, 2, 17, 2**31, 2**40])
    vector = rng.uniforms(seed, stream, entity, counters)
    assert vector.tolist() == [rng.uniform(seed, stream, entity, int(counter)) for counter in counters]
    assert ((vector > 0) & (vector < 1)).all()


def test_draws_are_pinned() -> None:
    """The hash is a contract: changing it changes every episode."""
    assert rng.uniform(0, Stream.ARRIVAL, 0, 0) == PINNED[0]
    assert rng.uniform(1, Stream.ACCEPTANCE_MATCH, 2, 3) == PINNED[1]


def test_draws_look_uniform_and_independent() -> None:
    u = rng.uniforms(1, Stream.ARRIVAL, 0, COUNTERS)
    assert abs(u.mean() - 0.5) < 4 / np.sqrt(12 * len(u))
    assert abs(np.corrcoef(u[1:], u[:-1])[0, 1]) < 4 / np.sqrt(len(u))
    histogram = np.histogram(u, bins=50, range=(0, 1))[0]
    assert ((histogram - 400) ** 2 / 400).sum() < 100  # chi-square, 49 degrees of freedom, p ~ 3e-5


@pytest.mark.parametrize("other", [(2, 1, 0), (1, 2, 0), (1, 1, 1)])
def test_streams_entities_and_seeds_are_unrelated(other: tuple[int, int, int]) -> None:
    a, b = rng.uniforms(1, 1, 0, COUNTERS), rng.uniforms(*other, COUNTERS)
    assert abs(np.corrcoef(a, b)[0, 1]) < 4 / np.sqrt(len(a))


def test_variates_have_their_moments() -> None:
    u, v = rng.uniforms(1, 1, 0, COUNTERS), rng.uniforms(1, 2, 0, COUNTERS)
    exponential = np.array([rng.exponential(x) for x in u])
    assert exponential.mean() == pytest.approx(1.0, abs=0.03)
    assert exponential.var() == pytest.approx(1.0, abs=0.08)
    normal = np.array([rng.normal(x, y) for x, y in zip(u, v, strict=True)])
    assert normal.mean() == pytest.approx(0.0, abs=0.03)
    assert normal.var() == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("seed", [0, 7, rng.MAX_SEED, np.int32(7), np.uint64(2**62)])
def test_a_whole_number_is_a_seed(seed: object) -> None:
    checked = rng.checked_seed(seed)
    assert checked == seed and type(checked) is int


@pytest.mark.parametrize(
    "seed",
    [
        -1,
        2**63,
        2**64,
        1.5,
        1.0,
        True,
        np.True_,
        "1",
        None,
        np.float64(1),
        np.uint64(2**63),
        [1],
        np.array([1]),
    ],
)
def test_what_is_no_seed_is_named(seed: object) -> None:
    with pytest.raises(ValueError, match=rf"^fruit = .* must be a whole number from 0 to {2**63 - 1}$"):
        rng.checked_seed(seed, "fruit")


def test_a_generator_takes_seeds_of_any_length() -> None:
    assert rng.checked_seed(2**100, most=None) == 2**100
    with pytest.raises(ValueError, match=r"seed = -1 must be a whole number of at least 0$"):
        rng.checked_seed(-1, most=None)
