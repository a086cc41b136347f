"""Links: serialisation, propagation, order, jitter and loss."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsd_env.network import duplex
from dsd_env.scenario.schema import Jitter, Link

QUIET = Link(one_way_s=0.02, uplink_bits_per_s=8e6, downlink_bits_per_s=80e6)


def test_a_message_takes_its_serialisation_and_propagation() -> None:
    up, down = duplex(QUIET, seed=1, number=0)
    assert up.send(1.0, 1000) == pytest.approx(1.0 + 0.001 + 0.02)
    assert down.send(1.0, 1000) == pytest.approx(1.0 + 0.0001 + 0.02)


def test_messages_queue_behind_one_another() -> None:
    up, _ = duplex(QUIET, seed=1, number=0)
    arrivals = [up.send(0.0, 1000) for _ in range(5)]
    assert arrivals == pytest.approx([0.02 + 0.001 * (i + 1) for i in range(5)])
    assert up.bytes_sent == 5000


@given(
    seed=st.integers(0, 1000),
    loss=st.floats(0, 0.5),
    sends=st.lists(st.tuples(st.floats(0, 0.1), st.integers(0, 10_000)), min_size=1, max_size=40),
)
def test_messages_arrive_in_order_and_never_early(
    seed: int, loss: float, sends: list[tuple[float, int]]
) -> None:
    link = QUIET.model_copy(update={"jitter": Jitter(median_s=0.005, sigma=1.5), "loss_probability": loss})
    up, _ = duplex(link, seed, number=3)
    now = last = 0.0
    for gap, size in sends:
        now += gap
        arrival = up.send(now, size)
        assert arrival >= now + size * 1e-6 + 0.02
        assert arrival >= last
        last = arrival


def test_jitter_has_its_median() -> None:
    link = QUIET.model_copy(update={"jitter": Jitter(median_s=0.004, sigma=1.0)})
    up, _ = duplex(link, seed=5, number=0)
    delays = np.array([up.send(10.0 * i, 0) - 10.0 * i - 0.02 for i in range(4000)])
    assert np.median(delays) == pytest.approx(0.004, rel=0.06)
    assert np.quantile(delays, 0.975) == pytest.approx(0.004 * np.exp(1.96), rel=0.12)


def test_each_loss_costs_one_time_out() -> None:
    link = QUIET.model_copy(update={"loss_probability": 0.2, "rto_s": 0.3})
    up, _ = duplex(link, seed=5, number=0)
    losses = np.array([round((up.send(10.0 * i, 0) - 10.0 * i - 0.02) / 0.3) for i in range(4000)])
    # Geometric: mean p / (1 - p), P(no loss) = 1 - p.
    assert losses.mean() == pytest.approx(0.25, abs=0.04)
    assert (losses == 0).mean() == pytest.approx(0.8, abs=0.03)


def test_devices_differ_within_the_spread() -> None:
    link = QUIET.model_copy(update={"one_way_spread": (0.5, 2.0)})
    delays = [duplex(link, seed=1, number=number)[0].one_way_s for number in range(200)]
    assert 0.01 <= min(delays) < 0.012 and 0.038 < max(delays) <= 0.04
