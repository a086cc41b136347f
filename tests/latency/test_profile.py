"""The iteration-time form, its table, and loading and saving of profiles."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dsd_env.latency import (
    LatencyProfile,
    ProfileError,
    StepCoefficients,
    list_profiles,
    load_profile,
    save_profile,
)

BASE: dict[str, Any] = {
    "name": "tiny",
    "role": "target",
    "model": "Tiny",
    "device": "Chip",
    "parallelism": 1,
    "precision": "bf16",
    "label": "fitted",
    "coefficients": {
        "t0_s": 1e-3,
        "w_s": 4e-3,
        "c_s_per_token": 5e-5,
        "p": 2.0,
        "k_bw_s_per_token": 1e-8,
        "k_lat_s_per_token": 2e-8,
        "k_multi_s_per_token": 3e-8,
    },
    "weight_bytes": 1_000_000,
    "kv_bytes_per_token": 1024,
    "power": {"idle_w": 10.0, "busy_w": 100.0, "label": "spec", "note": "made up"},
    "provenance": {
        "sources": [{"name": "made up", "licence": "CC0"}],
        "command": "none",
        "date": "2026-01-02",
    },
    "error": {"heldout_median_pct": 2.5, "heldout_p95_pct": 7.5, "cells": 12},
}


def _changed(**changes: object) -> dict[str, object]:
    data = yaml.safe_load(yaml.safe_dump(BASE))
    for dotted, value in changes.items():
        node = data
        *parents, last = dotted.split("__")
        for key in parents:
            node = node[key]
        if value is None:
            del node[last]
        else:
            node[last] = value
    return data


def _write(path: Path, data: object) -> Path:
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    return path


seconds = st.floats(1e-6, 1.0)
slopes = st.floats(0.0, 1e-3)
rates = st.floats(0.0, 1e-6)
coefficients = st.builds(
    StepCoefficients,
    t0_s=st.floats(0.0, 1.0),
    w_s=seconds,
    c_s_per_token=slopes,
    p=st.floats(1.0, 64.0),
    k_bw_s_per_token=rates,
    k_lat_s_per_token=rates,
    k_multi_s_per_token=rates,
)


def test_the_form_by_hand():
    k = StepCoefficients(**BASE["coefficients"])
    # m = 60: c m = 3 ms and w = 4 ms make the 3-4-5 triangle of p = 2.
    assert k.compute_s(60) == pytest.approx(1e-3 + 5e-3, rel=1e-12)
    assert k.step_s(60, 1000, 0) == pytest.approx(6e-3 + 1000 * 1e-8, rel=1e-12)
    assert k.step_s(60, 1000, 700) == pytest.approx(6e-3 + 1000 * 4e-8 + 700 * 2e-8, rel=1e-12)


def test_p_one_is_the_sum_and_large_p_the_maximum():
    k = dict(t0_s=0.0, w_s=2e-3, c_s_per_token=1e-4)
    assert StepCoefficients(**k, p=1.0).compute_s(30) == pytest.approx(5e-3, rel=1e-12)
    assert StepCoefficients(**k, p=64.0).compute_s(30) == pytest.approx(3e-3, rel=1e-9)
    assert StepCoefficients(**k, p=64.0).compute_s(4) == pytest.approx(2e-3, rel=1e-9)


@given(coefficients, st.integers(0, 300), st.integers(0, 10**6), st.integers(0, 10**5))
def test_table_gives_the_very_same_floats(k, m, kv, longest):
    profile = LatencyProfile.model_validate(_changed(coefficients=k.model_dump()))
    table = profile.compute_table_s(300)
    assert table.shape == (301,) and table.dtype == np.float64
    assert float(table[m]) + profile.attention_s(kv, longest) == profile.step_s(m, kv, longest)


@given(coefficients, st.integers(1, 5000), st.integers(0, 10**6), st.integers(0, 10**5))
def test_more_work_never_takes_less_time(k, m, kv, longest):
    here = k.step_s(m, kv, longest)
    assert math.isfinite(here) and here >= k.t0_s + max(k.w_s, k.c_s_per_token * m)
    slack = 1.0 + 1e-12
    assert k.step_s(m + 1, kv, longest) * slack >= here
    assert k.step_s(m, kv + 1, longest) * slack >= here
    assert k.step_s(m, kv, longest + 1) * slack >= here


KNOTS = ((1, 0.010), (8, 0.011), (64, 0.011), (128, 0.020))


def test_knots_replace_the_closed_form():
    k = StepCoefficients(**{**BASE["coefficients"], "compute_knots": KNOTS})
    assert [k.compute_s(m) for m in (0, 1, 8, 30, 64, 128)] == [0.010, 0.010, 0.011, 0.011, 0.011, 0.020]
    assert k.compute_s(96) == pytest.approx(0.0155) and k.compute_s(192) == pytest.approx(0.029)
    assert k.closed_form_s(96) == StepCoefficients(**BASE["coefficients"]).compute_s(96)


def test_knots_may_fall_but_the_last_two():
    falling = ((1, 0.015), (2, 0.018), (4, 0.012), (8, 0.014))
    k = StepCoefficients(**{**BASE["coefficients"], "compute_knots": falling})
    assert [k.compute_s(m) for m in (1, 2, 4, 8)] == [0.015, 0.018, 0.012, 0.014]
    assert k.compute_s(3) == pytest.approx(0.015) and k.compute_s(16) == pytest.approx(0.018)


def test_a_single_token_may_take_longer_than_two():
    knots = StepCoefficients(**{**BASE["coefficients"], "compute_knots": KNOTS})
    slower = knots.model_copy(update={"single_token_s": 0.5})
    assert slower.compute_s(1) == knots.compute_s(1) + 0.5
    assert [slower.compute_s(m) for m in (0, 2, 3)] == [knots.compute_s(m) for m in (0, 2, 3)]
    closed = StepCoefficients(**{**BASE["coefficients"], "single_token_s": 0.5})
    assert closed.compute_s(1) == closed.closed_form_s(1) + 0.5
    # Without it a file is what it was.
    assert "single_token_s" not in knots.model_dump(exclude_none=True)


@given(
    st.lists(st.tuples(st.integers(1, 500), st.floats(0.0, 0.1)), min_size=2, max_size=12),
    st.integers(0, 800),
)
def test_a_table_from_knots_gives_the_same_floats_and_never_falls(steps, m):
    tokens, seconds, knots = 0, 1e-4, []
    for step, rise in steps:
        tokens, seconds = tokens + step, seconds + rise
        knots.append((tokens, seconds))
    profile = LatencyProfile.model_validate(
        _changed(coefficients={**BASE["coefficients"], "compute_knots": knots})
    )
    table = profile.compute_table_s(801)
    assert float(table[m]) + profile.attention_s(9, 4) == profile.step_s(m, 9, 4)
    assert (np.diff(table) >= -1e-12).all() and float(table[tokens] if tokens < 802 else 0) in (0.0, seconds)


def test_knots_and_noise_survive_the_file_on_one_line_each(tmp_path):
    noise = {"sigma": 0.015, "straggler_share": 0.01, "straggler_factor": 1.2, "source": "repeats"}
    profile = LatencyProfile.model_validate(
        _changed(coefficients={**BASE["coefficients"], "compute_knots": KNOTS}, noise=noise)
    )
    path = save_profile(profile, tmp_path / "tiny.yaml")
    assert load_profile(path) == profile
    assert "  - [64, 0.011]" in path.read_text().splitlines()
    assert "64: 11" in profile.describe() and "sigma 1.50 %" in profile.describe()


@given(coefficients, st.integers(1, 2000))
def test_the_knee_lies_between_maximum_and_sum(k, m):
    soft, line = k.compute_s(m) - k.t0_s, k.c_s_per_token * m
    assert soft >= max(k.w_s, line) * (1 - 1e-9) - 1e-15
    assert soft <= (k.w_s + line) * (1 + 1e-9) + 1e-15


def test_one_multi_token_sequence_slows_all_of_them():
    k = StepCoefficients(**BASE["coefficients"])
    alone, joined = k.step_s(33, 32_000, 0), k.step_s(33, 32_000, 1)
    assert joined - alone == pytest.approx(32_000 * 3e-8 + 2e-8, rel=1e-9)


@pytest.mark.parametrize("counts", [(-1, 0, 0), (1, -1, 0), (1, 0, -1)])
def test_negative_counts_are_refused(counts):
    with pytest.raises(ValueError, match="must be >= 0"):
        StepCoefficients(**BASE["coefficients"]).step_s(*counts)


@pytest.mark.parametrize("size", [-1, (1 << 22) + 1])
def test_table_size_is_bounded(size):
    with pytest.raises(ValueError, match="max_tokens"):
        LatencyProfile.model_validate(BASE).compute_table_s(size)


def test_save_and_load_round_trip(tmp_path):
    profile = LatencyProfile.model_validate(BASE)
    path = save_profile(profile, tmp_path / "deep" / "tiny.yaml")
    assert load_profile(path) == profile
    assert load_profile(str(path)) == profile
    assert [p.name for p in path.parent.iterdir()] == ["tiny.yaml"]  # no temporary file left behind


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    profile = LatencyProfile.model_validate(BASE)
    path = save_profile(profile, tmp_path / "tiny.yaml")
    before = path.read_bytes()

    def broken(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("dsd_env.latency.profile.os.replace", broken)
    with pytest.raises(OSError, match="disk full"):
        save_profile(profile.model_copy(update={"name": "other"}), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["tiny.yaml"]


def test_text_shows_the_heldout_error():
    profile = LatencyProfile.model_validate(BASE)
    assert "median 2.5 %" in str(profile) and "p95 7.5 %" in str(profile) and "12 cells" in str(profile)
    assert str(profile) in profile.describe() and "made up (CC0)" in profile.describe()


def test_profile_is_frozen():
    profile = LatencyProfile.model_validate(BASE)
    with pytest.raises(ValueError, match="frozen"):
        profile.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"coefficients__w_s": -1.0}, ["coefficients.w_s", "-1.0", ">= 0", "allowed 0 to 10"]),
        ({"coefficients__w_s": 14.1}, ["coefficients.w_s", "14.1", "<= 10"]),  # milliseconds as seconds
        ({"coefficients__p": 0.5}, ["coefficients.p", "0.5", ">= 1", "allowed 1 to 64"]),
        (
            {"coefficients__c_s_per_token": float("nan")},
            ["coefficients.c_s_per_token", "nan", "allowed 0 to 1"],
        ),
        ({"coefficients__k_bw_s_per_token": float("inf")}, ["coefficients.k_bw_s_per_token", "inf"]),
        ({"coefficients__p": True}, ["coefficients.p", "True", "boolean"]),
        ({"coefficients__p": "3"}, ["coefficients.p = '3': expected a number, got text (allowed 1 to 64)"]),
        ({"coefficients__p": [3.0]}, ["coefficients.p = [3.0]: expected a number, got a list"]),
        ({"coefficients": 3.0}, ["coefficients = 3.0: expected a mapping of keys, got a number"]),
        ({"coefficients__compute_knots": 3.0}, ["compute_knots = 3.0: expected a list, got a number"]),
        ({"model": 3}, ["model = 3: expected text, got a number"]),
        ({"coefficients__slope": 1.0}, ["coefficients.slope", "unknown key"]),
        ({"coefficients__w_s": 0.0, "coefficients__t0_s": 0.0}, ["coefficients", "has to take time"]),
        ({"coefficients__w_s": None}, ["coefficients.w_s", "required"]),
        ({"coefficients__compute_knots": [[1, 0.01]]}, ["coefficients.compute_knots", "at least 2"]),
        ({"coefficients__compute_knots": [[2, 0.01], [2, 0.02]]}, ["tokens must rise", "(2, 0.01)"]),
        ({"coefficients__compute_knots": [[1, 0.02], [2, 0.01]]}, ["must not fall between the last two"]),
        ({"coefficients__compute_knots": [[1, 0.0], [2, 0.01]]}, ["must be > 0"]),
        ({"coefficients__compute_knots": [[1, 0.01], [2, 0.0], [3, 0.01]]}, ["must be > 0", "(2, 0.0)"]),
        ({"coefficients__compute_knots": [[1, 11.0], [2, 22.0]]}, ["compute_knots.0.1", "<= 10"]),
        (
            {"coefficients__compute_knots": [[1.5, 0.1], [2, 0.2]]},
            ["compute_knots.0.0 = 1.5: expected a whole number"],
        ),
        ({"coefficients__compute_knots": [[i, 0.1] for i in range(1, 40)]}, ["39 knots", "2 to 32"]),
        ({"noise": {"sigma": -0.1, "source": "x"}}, ["noise.sigma", ">= 0"]),
        ({"noise": {"sigma": 0.1, "straggler_share": 0.9, "source": "x"}}, ["straggler_share", "<= 0.5"]),
        ({"noise": {"sigma": 0.1}}, ["noise.source", "required"]),
        ({"role": "oracle"}, ["role", "oracle", "'target' or 'drafter'"]),
        ({"label": "guessed"}, ["label", "guessed", "'published'"]),
        ({"parallelism": 0}, ["parallelism", "0", ">= 1"]),
        ({"kv_bytes_per_token": 0}, ["kv_bytes_per_token", "> 0"]),
        ({"weight_bytes": "1000"}, ["weight_bytes = '1000': expected a whole number, got text"]),
        ({"power__busy_w": 1.0}, ["power", "busy_w"]),
        ({"provenance__sources": []}, ["provenance.sources"]),
        ({"provenance__date": "yesterday"}, ["provenance.date", "yesterday"]),
        ({"error__cells": 0}, ["error.cells", "> 0"]),
        ({"error": None}, ["error", "required"]),
        ({"typo": 1}, ["typo", "unknown key"]),
    ],
)
def test_bad_profiles_name_file_key_value_and_range(tmp_path, changes, words):
    path = _write(tmp_path / "bad.yaml", _changed(**changes))
    with pytest.raises(ProfileError) as caught:
        load_profile(path)
    for word in [str(path), *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("a: [1, 2", "YAML"),
        ("- 1\n- 2\n", "mapping"),
        ("", "mapping"),
        ("name: x\nname: y\n", "'name' is given twice (line 2)"),
        ("name: !!python/object/apply:os.getcwd []\n", "YAML"),
        ("? [a, b]\n: 1\n", "is not a word"),
        ("3: x\n", "key 3 (line 1) is not a word"),
    ],
)
def test_malformed_files_are_explained(tmp_path, text, word):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ProfileError) as caught:
        load_profile(path)
    assert str(path) in str(caught.value) and word in str(caught.value)


def test_binary_and_missing_files_are_explained(tmp_path):
    (tmp_path / "bad.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ProfileError, match="cannot be read"):
        load_profile(tmp_path / "bad.yaml")
    with pytest.raises(ProfileError, match="no such latency profile file"):
        load_profile(tmp_path / "absent.yaml")


def test_unknown_name_suggests_close_ones():
    with pytest.raises(ProfileError, match=r"did you mean .*llama-3-70b_h100-sxm_tp4"):
        load_profile("llama-3-70b_h100-sxm_tp16")


def test_every_shipped_profile_loads_under_its_own_name():
    names = list_profiles()
    assert len(names) >= 20
    for name in names:
        profile = load_profile(name)
        assert profile.name == name
        assert profile.error.cells > 0 and profile.provenance.sources and profile.power.note
        assert not any("/work" in n or "/home" in n for n in (*profile.notes, profile.provenance.command))
        assert (profile.label == "published") == (profile.role == "drafter" and not profile.error.regions)


SHIPPED = {
    # name: bounds in milliseconds of a lone step at context 1,024
    "llama-3-70b_h100-sxm_tp4": (13.0, 18.0),
    "llama-3-70b_a100-sxm_tp4": (24.0, 32.0),
    "llama-3-8b_h100-sxm_tp1": (6.0, 8.5),
    "llama-3-8b_h200-sxm_tp1": (4.5, 7.0),
    "llama-3-8b_a100-sxm_tp1": (10.0, 13.5),
    "llama-3-8b_rtx-4090_tp1": (16.0, 19.0),
    "llama-3-70b_h200-sxm_tp4": (10.0, 15.0),
    "qwen3-32b_a100-sxm_tp1": (36.0, 50.0),
    "llama-2-70b_h100-sxm_tp4_splitwise2023": (27.0, 32.0),
    "llama-3.2-1b_h100-sxm_tp1": (1.0, 3.0),
    "llama-3.2-1b_a100-sxm_tp1": (1.5, 4.0),
    "llama-3.2-1b-int4_snapdragon-8-gen-3": (19.0, 23.0),
    "llama-3.2-3b-q4_raspberry-pi-5": (180.0, 240.0),
}


@pytest.mark.parametrize(("name", "bounds"), SHIPPED.items())
def test_shipped_step_times_are_plausible(name, bounds):
    low, high = bounds
    assert low <= load_profile(name).step_ms_b1 <= high


@pytest.mark.parametrize("name", [n for n in SHIPPED if n.endswith(("tp1", "tp4"))])
def test_fitted_profiles_respect_the_memory_floor(name):
    profile = load_profile(name)
    peak = {"a100": 2.039e12, "h100": 3.352e12, "h200": 4.8e12, "4090": 1.008e12}
    bandwidth = next(v for k, v in peak.items() if k in name) * profile.parallelism
    # Reading the weights (but the input embedding) and one cached token cannot beat the peak bandwidth.
    assert profile.step_s(1, 1, 0) > 0.9 * profile.weight_bytes / bandwidth
    assert profile.coefficients.k_bw_s_per_token > 0.8 * profile.kv_bytes_per_token / bandwidth


def test_shipped_orderings():
    ms = {n: load_profile(n).step_ms_b1 for n in SHIPPED}
    assert ms["llama-3-8b_h200-sxm_tp1"] < ms["llama-3-8b_h100-sxm_tp1"] < ms["llama-3-8b_a100-sxm_tp1"]
    assert ms["llama-3-70b_h100-sxm_tp4"] < ms["llama-3-70b_a100-sxm_tp4"]
    for gpu in ("h100-sxm", "a100-sxm"):
        # The light drafter has to be several times cheaper than its target to be of any use.
        assert ms[f"llama-3.2-1b_{gpu}_tp1"] < 0.2 * ms[f"llama-3-70b_{gpu}_tp4"]


def test_targets_state_their_kv_capacity():
    for name in list_profiles():
        profile = load_profile(name)
        if profile.role == "target":
            assert profile.kv_capacity_tokens and profile.kv_capacity_note
    four_h100 = load_profile("llama-3-70b_h100-sxm_tp4")
    # On each GPU: 41.2 bytes of activations for each of 256 sequences and 128,256 entries of the vocabulary,
    # and 0.52 GiB of the engine's own.
    each = 0.9 * 79.22 * 2**30 - 256 * round(41.2 * 128_256) - 0.52 * 2**30
    by_hand = (4 * each - four_h100.weight_bytes) / 327_680
    assert four_h100.kv_capacity_tokens == pytest.approx(by_hand, abs=1)


def test_profiles_need_neither_scipy_nor_matplotlib():
    code = (
        "import sys, dsd_env.latency as l; l.load_profile(l.list_profiles()[0]); "
        "print([m for m in ('scipy', 'matplotlib', 'torch', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
