"""Engine overhead, draft heads and interconnects: what they are derived from, by hand and from the tables."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dsd_env.calibration.latency.catalogue import CATALOGUE, Link, build
from dsd_env.calibration.latency.engines import eagle_pairs, engine_fit
from dsd_env.calibration.latency.shapes import DEVICES, MODELS, DraftHeadShape
from dsd_env.calibration.latency.sums import allreduce, step_model
from dsd_env.calibration.latency.tables import bus_bandwidth, link_curve
from dsd_env.latency import load_overhead, load_profile

ROOT = Path(__file__).resolve().parents[3]


def test_an_all_reduce_over_a_link_is_a_latency_and_its_bytes() -> None:
    # Four devices: each sends 2 (4 - 1) / 4 = 1.5 times the 2 MiB of 2^20 elements of two bytes.
    curve = link_curve(4, 25e9, 10e-6)
    assert curve(2**20) == pytest.approx(10e-6 + 1.5 * 2 * 2**20 / 25e9, rel=1e-12)
    assert curve(0) == 10e-6
    assert bus_bandwidth(link_curve(4, 25e9, 0.0), 4, 2**20) == pytest.approx(25e9, rel=1e-12)


def test_heads_have_the_weights_of_the_published_ones() -> None:
    """EAGLE's own list has 0.25e9 weights for the 8B and 0.99e9 for the 70B."""
    eagle, third = MODELS["EAGLE-Llama-3-8B"], MODELS["EAGLE3-Llama-3-8B"]
    assert isinstance(eagle, DraftHeadShape) and isinstance(third, DraftHeadShape)
    layer = 4096 * (4096 + 2 * 1024 + 4096) + 3 * 4096 * 14336 + 2 * 4096
    assert eagle.params == layer + 2 * 4096 * 4096
    wider = 4096 * (4096 + 2 * 1024)
    assert third.params == layer + wider + 3 * 4096 * 4096 + 32_000 * 4096 + 2 * 4096
    assert eagle.kv_bytes_per_token() == MODELS["Llama-3-8B"].kv_bytes_per_token() // 32
    assert eagle.params == pytest.approx(0.25e9, rel=0.01)
    assert MODELS["EAGLE-Llama-3-70B"].params == pytest.approx(0.99e9, rel=0.01)


def test_a_drafter_computes_the_logits_of_last_tokens_only(data_dir: Path) -> None:
    target = step_model(MODELS["Llama-3.2-1B"], DEVICES["H100-SXM-80GB"], 1, data_dir)
    drafter = build("llama-3.2-1b_h100-sxm_tp1", data_dir, "test", "2026-01-01").model
    assert drafter is not None and drafter.drafts and not target.drafts
    whole, last = target.sequences_s(32, 9, 1024), drafter.sequences_s(32, 9, 1024)
    assert whole is not None and last is not None
    assert whole - last == pytest.approx(target.once_s(288, 288) - target.once_s(288, 32), rel=1e-9)
    assert drafter.sequences_s(32, 1, 1024) == target.sequences_s(32, 1, 1024)


def test_the_engines_parts_meet_half_of_the_cost_model_that_they_were_not_fitted_to(data_dir: Path) -> None:
    fit = engine_fit(data_dir)
    assert fit.overhead == load_overhead("vllm-v1-2025")
    assert np.median(np.abs(fit.errors_pct)) < 3.0 and np.abs(fit.errors_pct).max() < 10.0
    # Without a part per token large verifications come out a quarter too short.
    assert np.percentile(np.abs(fit.bare_errors_pct), 95) > 20.0
    assert np.percentile(np.abs(fit.constant_errors_pct), 95) > 15.0
    ratios = [ours / measured for measured, ours in eagle_pairs(data_dir, fit.overhead.per_draft_pass_s)]
    assert min(ratios) > 0.9 and max(ratios) < 1.2 and np.median(ratios) == pytest.approx(1.0, abs=0.03)


def test_a_slower_link_makes_iterations_longer_by_its_all_reduces(data_dir: Path) -> None:
    shape, device = MODELS["Llama-3-8B"], DEVICES["RTX-PRO-6000-96GB"]
    slow, fast = Link("pcie", 12.0), Link("pcie", 24.0)
    more = step_model(shape, device, 2, data_dir, slow).sequences_s(128, 1, 1024)
    less = step_model(shape, device, 2, data_dir, fast).sequences_s(128, 1, 1024)
    assert more is not None and less is not None
    # Two in each of 32 layers and one for the embedding, of 128 x 4096 elements of two bytes.
    assert more - less == pytest.approx(65 * 128 * 4096 * 2 * (1 / 12e9 - 1 / 24e9), rel=1e-9)
    curve = allreduce(device, 2, data_dir, slow)
    measured = allreduce(device, 2, data_dir, None)
    assert curve is not None and measured is not None
    assert curve(0) == pytest.approx(float(measured.y.min()))
    assert allreduce(device, 1, data_dir, slow) is None


def test_a_derived_interconnect_is_in_the_profile_and_its_name(data_dir: Path) -> None:
    profile = build("llama-3-8b_h100-sxm_tp2", data_dir, "test", "2026-01-01", Link("pcie", 25.0)).profile
    assert profile.name == "llama-3-8b_h100-sxm_tp2_pcie25"
    assert profile.interconnect is not None and profile.interconnect.kind == "pcie"
    assert profile.interconnect.bandwidth_bytes_per_s == 25e9
    assert profile.step_s(128, 128 * 1024, 0) > load_profile("llama-3-8b_h100-sxm_tp2").step_s(
        128, 128 * 1024, 0
    )
    for name in ("llama-3-8b_h100-sxm_tp1", "llama-3.2-1b-q4_rtx-4090"):
        with pytest.raises(ValueError, match=f"{name}: an interconnect needs a profile of several GPUs"):
            build(name, data_dir, "test", "2026-01-01", Link("pcie", 25.0))


def test_the_catalogue_has_heads_and_drafters_at_the_targets_parallelism() -> None:
    for gpu in ("a100-sxm", "h100-sxm"):
        for name in (
            *(f"{head}-llama-3-8b_{gpu}_tp{tp}" for head in ("eagle", "eagle3") for tp in (1, 2)),
            *(f"{head}-llama-3-70b_{gpu}_tp{tp}" for head in ("eagle", "eagle3") for tp in (2, 4, 8)),
            *(f"llama-3-8b_{gpu}_tp{tp}" for tp in (1, 2, 4)),
            *(f"llama-3.2-{size}_{gpu}_tp{tp}" for size in ("3b", "1b") for tp in (1, 2)),
        ):
            assert name in CATALOGUE


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--interconnect", "pcie"), "--interconnect goes with --interconnect-gb-s"),
        (
            ("--interconnect", "pcie", "--interconnect-gb-s", "0"),
            "--interconnect-gb-s 0.0 must be in [0.1, 10000]",
        ),
        (("--interconnect", "pcie", "--interconnect-gb-s", "nan"), "must be in [0.1, 10000]"),
    ],
)
def test_calibrate_refuses_an_impossible_interconnect(
    tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "calibrate.py"), "--data-dir", str(tmp_path)]
    done = subprocess.run(
        [*command, "--profile", "llama-3-8b_h100-sxm_tp2", *options],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and words in done.stderr
