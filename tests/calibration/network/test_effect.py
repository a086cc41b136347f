"""What a fitted link does to requests, beside a series of the same statistics that is replayed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

pytest.importorskip("scipy")

from dsd_env.calibration.network.effect import BITS_PER_S, effect_of, replayed_link, slotted_series
from dsd_env.calibration.network.fit import PERCENTILES, statistics_of
from dsd_env.scenario.schema import Link
from tests.conftest import ROOT

STARLINK_MS = (18.9, 22.1, 27.5, 33.7, 45.6, 110.0, 169.7)
"""Percentiles of the measured round trips: the row of docs/network.md."""


def starlink() -> Link:
    fields = yaml.safe_load((ROOT / "configs" / "network" / "starlink-rtt.yaml").read_text())["link"]
    return Link.model_validate({"uplink_bits_per_s": BITS_PER_S, "downlink_bits_per_s": BITS_PER_S, **fields})


@pytest.mark.parametrize("run_pings", [1.0, 5.0])
def test_slots_have_the_percentiles_the_order_and_the_losses(run_pings: float) -> None:
    logs = [slotted_series(STARLINK_MS, PERCENTILES, seed=seed, run_pings=run_pings) for seed in range(1, 5)]
    for log in logs:
        assert len(log) == 8910
        trips_ms = 1e3 * log.rtt_s[np.isfinite(log.rtt_s)]
        assert statistics_of(trips_ms, 0.25).percentiles == pytest.approx(STARLINK_MS, rel=0.06)
    assert np.mean([log.loss for log in logs]) == pytest.approx(0.15, abs=0.01)
    found = [statistics_of(1e3 * log.rtt_s[np.isfinite(log.rtt_s)], 0.25).autocorrelations for log in logs]
    # Of one series of 60 slots they scatter; given are 0.65, 0.55 and 0.44.
    assert np.mean(found, axis=0) == pytest.approx([0.62, 0.53, 0.41], abs=0.06)
    lost = np.isnan(np.concatenate([log.rtt_s for log in logs]))
    ends = int((lost[:-1] & ~lost[1:]).sum())
    assert lost.sum() / ends == pytest.approx(run_pings, rel=0.25)


def test_a_link_without_its_losses_is_another_link(tmp_path: Path) -> None:
    link = starlink()
    kept = link.model_copy(update={"loss_probability": 0.0})
    lossy = effect_of(link, "static:4:1:own", seeds=(1,), requests=150)
    assert effect_of(kept, "static:4:1:own", seeds=(1,), requests=150).p50_s < 0.8 * lossy.p50_s


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ["static:4:1:own", "cloud_ar:1"])
def test_requests_over_the_fit_take_as_long_as_over_a_series(scheduler: str, tmp_path: Path) -> None:
    fitted = effect_of(starlink(), scheduler).named()
    log = slotted_series(STARLINK_MS, PERCENTILES, seed=1)
    replayed = effect_of(replayed_link(log, tmp_path / "series.csv"), scheduler).named()
    for name, value in replayed.items():
        assert fitted[name] == pytest.approx(value, rel=0.10), name
