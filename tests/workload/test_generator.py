"""Arrivals and lengths."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsd_env import load_scenario
from dsd_env.scenario.schema import LoadProfile
from dsd_env.workload import LoadClock, WorkloadGenerator
from tests.lab import lab

WAVE = LoadProfile(period_s=10.0, points=((0.0, 0.5), (0.3, 2.0), (0.6, 1.0)))


@given(start=st.floats(0, 100), amount=st.floats(0, 200), phase=st.floats(0, 0.999))
def test_the_clock_advances_by_the_integral_of_the_load(start: float, amount: float, phase: float) -> None:
    clock = LoadClock(WAVE, phase)
    end = clock.advance(start, amount)
    times = np.linspace(start, end, 20_001)
    load = np.array([clock.multiplier(float(time)) for time in times])
    integral = float(((load[1:] + load[:-1]) / 2 * np.diff(times)).sum())
    assert integral == pytest.approx(amount, rel=1e-3, abs=1e-6)


def test_constant_load_is_plain_time() -> None:
    clock = LoadClock(LoadProfile())
    assert clock.advance(3.0, 7.0) == pytest.approx(10.0)


def test_poisson_arrivals_follow_the_load() -> None:
    scenario = lab(
        arrivals={"kind": "poisson", "rate_per_s": 20.0},
        workload__load=WAVE.model_dump() | {"random_phase": False},
    )
    generator = WorkloadGenerator(scenario, seed=1)
    times = [0.0]
    for ordinal in range(20_000):
        times.append(generator.open_arrival_s(ordinal, times[-1]))
    phases = np.mod(np.array(times[1:]), 10.0)
    mean_load = np.mean([generator.clock.multiplier(x) for x in np.linspace(0, 10, 10_001)])
    assert len(times) / times[-1] == pytest.approx(20.0 * mean_load, rel=0.03)
    near_peak = ((phases > 2.5) & (phases < 3.5)).mean()
    in_valley = ((phases > 9.5) | (phases < 0.5)).mean()
    assert near_peak / in_valley == pytest.approx(1.8 / 0.55, rel=0.15)


def test_requests_are_pure_functions_of_device_and_ordinal() -> None:
    scenario = load_scenario("metro")
    first, second = WorkloadGenerator(scenario, 3), WorkloadGenerator(scenario, 3)
    forwards = [first.request(device, ordinal) for device in range(5) for ordinal in range(5)]
    backwards = [
        second.request(device, ordinal) for device in range(4, -1, -1) for ordinal in range(4, -1, -1)
    ]
    assert sorted(forwards, key=lambda spec: spec.uid) == sorted(backwards, key=lambda spec: spec.uid)
    assert WorkloadGenerator(scenario, 4).request(0, 0) != first.request(0, 0)


def test_lengths_and_kinds_follow_their_laws() -> None:
    scenario = load_scenario("metro")
    generator = WorkloadGenerator(scenario, 1)
    specs = [generator.request(device, ordinal) for device in range(200) for ordinal in range(40)]
    kinds = list(scenario.workload.kinds.values())
    for number, kind in enumerate(kinds):
        mine = [spec for spec in specs if spec.kind == number]
        assert len(mine) / len(specs) == pytest.approx(kind.weight / sum(k.weight for k in kinds), abs=0.02)
        outputs = np.array([spec.output_tokens for spec in mine])
        assert np.median(outputs) == pytest.approx(kind.output_tokens.median, rel=0.1)
        assert outputs.min() >= kind.output_tokens.low and outputs.max() <= kind.output_tokens.high


def test_geometric_lengths_have_their_mean() -> None:
    scenario = lab(output={"distribution": "geometric", "mean": 40.0})
    generator = WorkloadGenerator(scenario, 1)
    lengths = np.array([generator.request(0, ordinal).output_tokens for ordinal in range(8000)])
    assert lengths.min() == 1
    assert lengths.mean() == pytest.approx(40.0, rel=0.05)
