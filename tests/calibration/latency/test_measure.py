"""Measuring a model, the stop rule, going on after an interruption, and the profile made of it."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsd_env.calibration.latency.importers import (
    MeasuredPoint,
    MeasurementError,
    import_csv,
    phase_of,
    write_csv,
)
from dsd_env.calibration.latency.measure import (
    CellRecord,
    GridSpec,
    ModelInfo,
    StopRule,
    grid_cells,
    half_width,
    load_measurement,
    measure,
)
from dsd_env.calibration.latency.own import Facts, fit_points, own_noise, own_profile
from dsd_env.latency import load_profile, save_profile
from dsd_env.latency.profile import Power, Source, StepCoefficients
from tests.conftest import ROOT

INFO = ModelInfo(
    model="Tiny",
    weights="random",
    device="cpu",
    dtype="float32",
    attention="packed",
    cuda_graph=False,
    threads=1,
    weight_bytes=1000,
    kv_bytes_per_token=8,
)
TRUE = StepCoefficients(
    t0_s=2e-3, w_s=6e-3, c_s_per_token=6e-5, p=3.0, k_bw_s_per_token=4e-8, k_lat_s_per_token=3e-7
)
GRID = GridSpec(
    batches=(1, 2, 8), queries=(1, 2, 5, 9), contexts=(128, 1024), chunks=(64, 256), prefixes=(0, 512)
)


class FakeRunner:
    """Durations from a known law with known noise; can be made to stop in the middle."""

    def __init__(self, sigma: float = 0.0, stop_after: int | None = None, too_large: int = 2**40) -> None:
        self.rng = np.random.default_rng(7)
        self.sigma, self.stop_after, self.too_large = sigma, stop_after, too_large
        self.visits: list[tuple[int, int, int, str]] = []

    def prepare(self, cells):
        return {c.key: "too large" for c in cells if c.batch * (c.context + c.q) > self.too_large}

    def time(self, cell, warmup, repeats):
        if self.stop_after is not None and len(self.visits) == self.stop_after:
            raise KeyboardInterrupt
        if cell.batch == 13:
            raise MemoryError("13 is too many")
        self.visits.append(cell.key)
        c = point(cell.batch, cell.q, cell.context).cell()
        t = TRUE.step_s(c.new_tokens, c.kv_tokens, c.max_kv_multi_tokens)
        return [t * math.exp(self.sigma * self.rng.standard_normal()) for _ in range(repeats)]


def point(batch: int, q: int, context: int, seconds: float = 1.0) -> MeasuredPoint:
    return MeasuredPoint(batch, q, context, seconds, phase_of(q), "here")


def true_points(grid: GridSpec = GRID) -> list[MeasuredPoint]:
    out = []
    for r in grid_cells(grid):
        c = point(r.batch, r.q, r.context).cell()
        out.append(
            point(r.batch, r.q, r.context, TRUE.step_s(c.new_tokens, c.kv_tokens, c.max_kv_multi_tokens))
        )
    return out


# ---------------------------------------------------------------------------------------- grid and stop rule


def test_interval_of_the_median_by_the_table():
    assert math.isinf(half_width([1.0] * 5))
    # n = 6: smallest to largest. n = 20: 6th to 15th of the ordered values.
    assert half_width([1.0, 2.0, 3.0, 3.0, 4.0, 5.0]) == pytest.approx(4.0 / 2.0 / 3.0)
    assert half_width(range(1, 21)) == pytest.approx((15 - 6) / 2.0 / 10.5)


def test_interval_holds_the_median_as_often_as_it_says():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(2000):
        x = np.sort(rng.lognormal(0.0, 1.0, 15))
        hits += bool(x[3] <= 1.0 <= x[11])
    assert half_width(range(1, 16)) == pytest.approx((12 - 4) / 2.0 / 8.0)
    assert 0.95 <= hits / 2000 <= 0.985


def test_rule_stops_on_precision_or_number():
    rule = StopRule(min_repeats=6, max_repeats=20, half_width=0.05)
    assert not rule.done([1.0] * 5)
    assert rule.done([1.0] * 6)
    assert not rule.done([1.0, 2.0] * 5)
    assert rule.done([1.0, 2.0] * 10)
    for bad in (
        {"min_repeats": 5},
        {"max_repeats": 2},
        {"half_width": 0.0},
        {"budget_s": -1.0},
        {"per_visit": 0},
    ):
        with pytest.raises(ValueError, match=r"need|must"):
            StopRule(**bad)


def test_grid_is_scattered_and_keeps_the_limits():
    cells = grid_cells(GRID)
    assert len({c.key for c in cells}) == len(cells) == 3 * 4 * 2 + 4
    assert cells == grid_cells(GRID) and cells != sorted(cells, key=lambda c: c.key)
    assert {c.phase for c in cells if c.q == 1} == {"decode"}
    assert all(c.context + c.q <= 600 for c in grid_cells(GRID, context_limit_tokens=600))
    limited = grid_cells(GridSpec(batches=(1, 8), kv_limit_tokens=2100))
    assert limited and all(c.batch * (c.context + c.q) <= 2100 for c in limited)


# ------------------------------------------------------------------------------------------------- measuring


def test_every_cell_is_visited_once_before_any_is_again(tmp_path):
    runner = FakeRunner(sigma=0.3)
    rule = StopRule(min_repeats=6, max_repeats=24, half_width=0.05)
    cells = grid_cells(GRID)
    got = measure(runner, INFO, cells, tmp_path / "m.json", rule)
    assert runner.visits[: len(cells)] == [c.key for c in cells]
    assert all(rule.done(c.samples_s) for c in got.cells)
    assert {len(c.samples_s) for c in got.cells} <= {6, 12, 18, 24} and max(
        len(c.samples_s) for c in got.cells
    ) > 6
    exact = measure(FakeRunner(), INFO, cells, tmp_path / "n.json", rule)
    assert {len(c.samples_s) for c in exact.cells} == {6}


def test_interrupted_it_goes_on_where_it_was(tmp_path):
    cells, path, rule = grid_cells(GRID), tmp_path / "m.json", StopRule(max_repeats=12, half_width=1e-6)
    first = FakeRunner(sigma=0.1, stop_after=len(cells) + 3)
    with pytest.raises(KeyboardInterrupt):
        measure(first, INFO, cells, path, rule)
    half = load_measurement(path)
    assert sum(len(c.samples_s) for c in half.cells) == 6 * len(first.visits)
    second = FakeRunner(sigma=0.1)
    whole = measure(second, INFO, cells, path, rule)
    assert len(first.visits) + len(second.visits) == 2 * len(cells)
    assert second.visits[0] == cells[3].key
    before = {c.key: c.samples_s for c in half.cells}
    assert all(c.samples_s[: len(before[c.key])] == before[c.key] for c in whole.cells)
    third = FakeRunner()
    measure(third, INFO, cells, path, rule)
    assert third.visits == []
    assert [p.name for p in tmp_path.iterdir()] == ["m.json"]


def test_a_larger_grid_keeps_what_was_measured(tmp_path):
    path, rule = tmp_path / "m.json", StopRule()
    measure(FakeRunner(), INFO, grid_cells(GridSpec(batches=(1,))), path, rule)
    kept = {c.key for c in load_measurement(path).cells}
    runner = FakeRunner()
    got = measure(runner, INFO, grid_cells(GridSpec(batches=(2,))), path, rule)
    assert kept <= {c.key for c in got.cells} and not kept & {
        k for k in runner.visits if k[0] == 1 and k[3] != "prefill"
    }


def test_budget_stops_between_visits(tmp_path):
    now = iter(range(10_000))
    runner = FakeRunner(sigma=0.3)
    rule = StopRule(budget_s=10.0, half_width=1e-6)
    got = measure(runner, INFO, grid_cells(GRID), tmp_path / "m.json", rule, clock=lambda: float(next(now)))
    # One reading at the start and one before each visit: ten are allowed before the tenth second.
    assert len(runner.visits) == 9
    assert sum(bool(c.samples_s) for c in got.cells) == 9


def test_cells_that_do_not_fit_are_named_and_left_out(tmp_path):
    cells = grid_cells(GridSpec(batches=(1, 13), queries=(1,), contexts=(128, 4096), chunks=(), prefixes=()))
    got = measure(FakeRunner(too_large=5000), INFO, cells, tmp_path / "m.json", StopRule())
    reasons = {c.key: c.skipped for c in got.cells}
    assert reasons[13, 1, 4096, "decode"] == "too large"
    assert reasons[13, 1, 128, "decode"] == "does not fit in memory: 13 is too many"
    assert reasons[1, 1, 128, "decode"] == reasons[1, 1, 4096, "decode"] == ""
    assert len(got.points()) == 2
    again = measure(FakeRunner(), INFO, [c for c in cells if c.batch == 1], tmp_path / "m.json", StopRule())
    assert len(again.cells) == 4


def test_other_settings_and_broken_files_are_refused(tmp_path):
    path = tmp_path / "m.json"
    measure(FakeRunner(), INFO, grid_cells(GRID)[:2], path, StopRule())
    with pytest.raises(MeasurementError, match=r"m\.json: measured with dtype = 'float32', now 'bfloat16'"):
        measure(FakeRunner(), INFO.model_copy(update={"dtype": "bfloat16"}), [], path, StopRule())
    text = path.read_text()
    data = json.loads(text)
    for content, message in (
        (text[: len(text) // 2], "cannot be read as a measurement"),
        (json.dumps([1]), "valid dictionary"),
        (text.replace('"samples_s": [0.', '"samples_s": [-0.', 1), r"cells\.0\.samples_s\.0 = -0"),
        (text.replace('"samples_s": [0.', '"samples_s": [NaN, 0.', 1), r"cells\.0\.samples_s\.0 = nan"),
        (text.replace('"batch": ', '"batch": -', 1), r"cells\.0\.batch = -"),
        (json.dumps(data | {"format": "x"}), "format = 'x'"),
        (json.dumps(data | {"extra": 1}), "extra = 1"),
    ):
        path.write_text(content)
        with pytest.raises(MeasurementError, match=message) as error:
            load_measurement(path)
        assert "m.json" in str(error.value)


def test_a_cell_twice_or_of_the_wrong_phase_is_refused(tmp_path):
    path = tmp_path / "m.json"
    measure(FakeRunner(), INFO, grid_cells(GRID)[:3], path, StopRule())
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data | {"cells": [data["cells"][0]] * 2}))
    with pytest.raises(MeasurementError, match="given twice"):
        load_measurement(path)
    path.write_text(json.dumps(data | {"cells": [data["cells"][0] | {"q": 3, "phase": "decode"}]}))
    with pytest.raises(MeasurementError, match="does not go with q = 3"):
        load_measurement(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32 - 1))
def test_random_damage_to_a_measurement_gives_the_documented_error(tmp_path, seed):
    path = tmp_path / "m.json"
    if not (tmp_path / "whole.json").exists():
        measure(FakeRunner(), INFO, grid_cells(GRID)[:4], tmp_path / "whole.json", StopRule())
    rng = random.Random(seed)
    data = bytearray((tmp_path / "whole.json").read_bytes())
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(data))
        data[at : at + rng.choice((0, 1, 1, 30))] = rng.choice(
            (b"", b"NaN", b"-", b"0", b'"', b"\xff", b"[", b"1e999")
        )
        data = data or bytearray(b" ")
    path.write_bytes(data)
    try:
        got = load_measurement(path)
    except MeasurementError as error:
        assert "m.json" in str(error)
    else:
        assert all(0.0 < p.seconds <= 1e4 for p in got.points())


# -------------------------------------------------------------------------------------------- fit and profile


def test_many_points_give_the_law_back():
    grid = GridSpec(
        batches=(1, 2, 4, 8, 16),
        queries=(1, 2, 3, 5, 9, 17),
        contexts=(128, 512, 1024, 2048, 4096),
        chunks=(64, 128, 256, 512, 1024),
    )
    fit, notes = fit_points(true_points(grid))
    assert fit.error.heldout_median_pct < 0.5 and fit.error.heldout_p95_pct < 2.0 and notes == [], notes
    assert {r.name for r in fit.error.regions} == {"decode", "verify", "prefill"}
    assert len(fit.train) + len(fit.heldout) == len(grid_cells(grid)) == 160
    assert "hash" in fit.error.method


def test_some_points_are_cross_validated_in_every_region():
    points = true_points()
    fit, _ = fit_points(points)
    assert {r.name: r.cells for r in fit.error.regions} == {"decode": 6, "verify": 18, "prefill": 4}
    assert fit.error.cells == len(points) == 28 and "cross-validation" in fit.error.method
    assert fit.error.heldout_median_pct < 2.0
    # An outlier is not learned by the fit that predicts it.
    worst = next(i for i, p in enumerate(points) if (p.batch, p.q, p.context) == (2, 5, 128))
    spoiled = [replace(p, seconds=3.0 * p.seconds) if i == worst else p for i, p in enumerate(points)]
    fit, _ = fit_points(spoiled)
    assert fit.error.heldout_max_pct > 50.0
    assert fit.heldout[int(np.argmax(np.abs(fit.errors())))].key == points[worst].key


def test_a_concave_machine_gets_knots():
    """Small products run badly on some CPUs: time that the closed form, convex in tokens, cannot follow."""
    grid = GridSpec(
        batches=(1, 2, 4, 8),
        queries=(1, 2, 4, 8),
        contexts=(128, 512, 2048),
        chunks=(32, 64, 128),
        prefixes=(0, 512),
    )
    points = [
        point(
            c.batch, c.q, c.context, 5e-3 + 6e-3 * (c.batch * c.q) ** 0.5 + 1e-7 * c.batch * (c.context + c.q)
        )
        for c in grid_cells(grid)
    ]
    fit, _ = fit_points(points)
    assert fit.coefficients.model_dump()["compute_knots"] and fit.error.heldout_median_pct < 5.0
    assert fit.error.other_form_median_pct > fit.error.heldout_median_pct


def test_few_points_give_a_line_with_leave_one_out_error():
    line = StepCoefficients(t0_s=0.0, w_s=9e-3, c_s_per_token=5e-5, p=1.0, k_bw_s_per_token=2e-7)
    shapes = [(1, 1, 128), (1, 1, 1024), (1, 1, 4096), (1, 128, 0), (1, 512, 0), (1, 8, 1024)]
    points = []
    for s in shapes:
        c = point(*s).cell()
        points.append(point(*s, line.step_s(c.new_tokens, c.kv_tokens, c.max_kv_multi_tokens)))
    fit, notes = fit_points(points)
    assert fit.coefficients.p == 1.0
    assert fit.coefficients.w_s == pytest.approx(9e-3, rel=1e-3)
    assert fit.coefficients.c_s_per_token == pytest.approx(5e-5, rel=1e-3)
    assert fit.coefficients.k_bw_s_per_token == pytest.approx(2e-7, rel=1e-3)
    assert fit.error.heldout_max_pct < 0.1 and fit.error.cells == 6 and "leave-one-out" in fit.error.method
    assert "p = 1" in notes[0]
    # A point off the line shows in the error: the error is not that of the fit to itself.
    points[3] = point(1, 128, 0, 2.0 * points[3].seconds)
    assert fit_points(points)[0].error.heldout_max_pct > 20.0


def test_what_is_missing_is_said():
    with pytest.raises(MeasurementError, match=r"no decode step.*and nothing with more than 8"):
        fit_points([point(1, 2, 128), point(1, 5, 128)])
    with pytest.raises(MeasurementError, match=r"2 point.s. for 2 coefficients: at least 4"):
        fit_points([point(1, 1, 128, 0.01), point(1, 512, 0, 0.1)])


def test_noise_of_known_size_is_found():
    rng = np.random.default_rng(3)
    cells = []
    for i in range(60):
        times = (1.0 + i) * 1e-3 * np.exp(0.02 * rng.standard_normal(30))
        late = rng.random(30) < 0.03
        cells.append(np.where(late, 1.5 * times, times))
    noise = own_noise(cells)
    assert noise.sigma == pytest.approx(0.02, rel=0.06)
    assert noise.straggler_share == pytest.approx(0.03, abs=0.01)
    assert noise.straggler_factor == pytest.approx(1.5, rel=0.03)
    assert (noise.repeats, noise.kinds) == (1800, 60)
    # Small cells: centring on the own median must not make the noise look smaller.
    small = [np.exp(0.02 * rng.standard_normal(6)) for _ in range(800)]
    assert own_noise(small).sigma == pytest.approx(0.02, rel=0.06)
    assert own_noise([[1.0, 1.1]]) is None
    # Wide scatter is not taken for stragglers, and a long record does not take for ever.
    wide = own_noise([np.exp(0.15 * rng.standard_normal(100_000))])
    assert wide.straggler_share < 0.01 and wide.sigma == pytest.approx(0.15, rel=0.15) and wide.repeats == 400


def _facts(**changes):
    values = dict(
        name="tiny-own", role="target", model="Tiny", device="chip", precision="fp32", weight_bytes=10**9,
        kv_bytes_per_token=1024, power=Power(idle_w=1.0, busy_w=2.0, label="spec", note="made up"),
    )  # fmt: skip
    return Facts(**(values | changes))


def test_profile_round_trip(tmp_path):
    got = measure(FakeRunner(sigma=0.01), INFO, grid_cells(GRID), tmp_path / "m.json", StopRule())
    source = Source(name="own measurement", licence="own measurement")
    profile, _, noise = own_profile(
        _facts(memory_bytes=2 * 1024**3), got.points(6), source, "python x", "2026-01-02", ["a note"]
    )
    assert load_profile(save_profile(profile, tmp_path / "tiny-own.yaml")) == profile
    assert profile.label == "measured" and profile.kv_capacity_tokens == int((0.9 * 2 * 1024**3 - 1e9) / 1024)
    assert noise.sigma == pytest.approx(0.01, rel=0.3) and "sigma" in profile.notes[-1]
    assert profile.error.heldout_median_pct < 5.0
    with pytest.raises(MeasurementError, match="do not hold the weights"):
        own_profile(_facts(memory_bytes=10**9), got.points(6), source, "python x", "2026-01-02")


# ------------------------------------------------------------------------------------------- the real thing

TINY = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256, "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}  # fmt: skip


@pytest.mark.parametrize("q", [1, 3, 12])
def test_packed_attention_is_causal_attention_of_the_last_positions(q):
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from dsd_env.calibration.latency.torch_runner import _flash_attention, packed_attention

    g = torch.Generator().manual_seed(q)
    query = torch.randn(2, 6, q, 8, generator=g)
    key, value = torch.randn(2, 2, 12, 8, generator=g), torch.randn(2, 2, 12, 8, generator=g)
    k, v = key.repeat_interleave(3, 1), value.repeat_interleave(3, 1)
    scores = query @ k.transpose(2, 3) * 0.3
    hidden = torch.arange(12)[None, :] > torch.arange(12 - q, 12)[:, None]
    expected = scores.masked_fill(hidden, -math.inf).softmax(-1) @ v
    got, _ = packed_attention(None, query, key, value, scaling=0.3)
    assert got.shape == (2, q, 6, 8)
    torch.testing.assert_close(got.transpose(1, 2), expected)
    torch.testing.assert_close(_flash_attention(query, key, value, 0.3), expected)


def test_timed_iteration_computes_what_the_model_computes(tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from dsd_env.calibration.latency.torch_runner import TorchRunner, build_model, model_info

    (tmp_path / "config.json").write_text(json.dumps(TINY))
    name, weights, model = build_model(str(tmp_path / "config.json"), "cpu", "float32")
    info = model_info(name, weights, model, "cpu", "float32", "packed", False)
    per_layer = 64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 128 + 2 * 64
    assert info.weight_bytes == 4 * (2 * per_layer + 64 + 256 * 64) and info.weights == "random"
    assert info.kv_bytes_per_token == 2 * 2 * 2 * 16 * 4 and info.context_limit_tokens == 2048
    runner = TorchRunner(model, "cpu", False)
    cell = CellRecord(batch=2, q=3, context=5, phase="verify")
    assert runner.prepare([cell]) == {}

    g = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 256, (2, 8), generator=g)
    with torch.inference_mode():
        model.set_attn_implementation("eager")
        full = model(input_ids=ids)
        cache = full.past_key_values
        shape = (2, 2, 8, 16)
        for i, layer in enumerate(cache.layers):
            for flat, states in ((runner._keys[i], layer.keys), (runner._values[i], layer.values)):
                flat.zero_()
                flat.view(shape)[:, :, :5] = states[:, :, :5]
        model.set_attn_implementation("dsd_packed")
        from dsd_env.calibration.latency.torch_runner import _filled_cache

        mine = _filled_cache(runner._keys, runner._values, cell, 2, 16)
        positions = torch.arange(5, 8).expand(2, 3)
        logits = model(
            input_ids=ids[:, 5:], position_ids=positions, past_key_values=mine, use_cache=True
        ).logits
    torch.testing.assert_close(logits, full.logits[:, 5:], rtol=1e-4, atol=1e-4)
    samples = runner.time(cell, 1, 4)
    assert len(samples) == 4 and all(0.0 < s < 60.0 for s in samples)


def test_cuda_graph_and_plain_launches_are_timed_on_the_device(tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    from dsd_env.calibration.latency.torch_runner import TorchRunner, build_model

    (tmp_path / "config.json").write_text(json.dumps(TINY))
    _, _, model = build_model(str(tmp_path / "config.json"), "cuda", "bfloat16")
    for graph in (True, False):
        runner = TorchRunner(model, "cuda", graph)
        for shape in (
            (1, 1, 64, "decode"),
            (4, 5, 64, "verify"),
            (1, 32, 0, "prefill"),
            (1, 32, 64, "prefill"),
        ):
            cell = CellRecord(batch=shape[0], q=shape[1], context=shape[2], phase=shape[3])
            assert runner.prepare([cell]) == {}
            samples = runner.time(cell, 1, 3)
            assert len(samples) == 3 and all(0.0 < s < 1.0 for s in samples)


def test_cells_beyond_memory_are_found_before_they_are_run(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from dsd_env.calibration.latency import torch_runner as module

    (tmp_path / "config.json").write_text(json.dumps(TINY))
    _, _, model = module.build_model(str(tmp_path / "config.json"), "cpu", "float32")
    monkeypatch.setattr(module, "_free_bytes", lambda device: 3_000_000)
    cells = [CellRecord(batch=b, q=1, context=1024, phase="decode") for b in (1, 64)]
    reasons = module.TorchRunner(model, "cpu", False).prepare(cells)
    assert list(reasons) == [(64, 1, 1024, "decode")] and "GiB" in reasons[64, 1, 1024, "decode"]


def test_built_in_shapes_have_the_size_of_their_model():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from dsd_env.calibration.latency.torch_runner import SHAPES, _config_of

    assert {"llama-3.2-1b", "llama-3.2-3b", "llama-3-8b", "smollm2-135m", "qwen2.5-coder-1.5b"} <= set(SHAPES)
    for key, (_, shape) in SHAPES.items():
        name, config = _config_of(key.upper())
        assert name == shape.name
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(config)
        model.tie_weights()
        # Biases and the norms of queries and keys are not in the shape.
        assert sum(p.numel() for p in model.parameters()) == pytest.approx(shape.params, rel=1e-3), key
        assert config.num_key_value_heads * config.head_dim * 4 * shape.layers == shape.kv_bytes_per_token()


def test_unknown_models_and_devices_are_refused(tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from dsd_env.calibration.latency.torch_runner import build_model

    (tmp_path / "a.json").write_text('{"hidden_size": 3}')
    with pytest.raises(MeasurementError, match=r"a\.json: model_type is missing"):
        build_model(str(tmp_path / "a.json"), "cpu", "float32")
    (tmp_path / "b.json").write_text('{"model_type": "no-such"}')
    with pytest.raises(MeasurementError, match=r"b\.json: not a usable configuration of 'no-such'"):
        build_model(str(tmp_path / "b.json"), "cpu", "float32")
    with pytest.raises(MeasurementError, match="unknown dtype 'int4'"):
        build_model("smollm2-135m", "cpu", "int4")
    with pytest.raises(MeasurementError, match="must be cpu, cuda"):
        build_model("smollm2-135m", "tpu", "bfloat16")
    if not torch.cuda.is_available():
        with pytest.raises(MeasurementError, match="sees no CUDA device"):
            build_model("smollm2-135m", "cuda", "bfloat16")


FACTS = [
    "--name",
    "tiny",
    "--role",
    "drafter",
    "--device-name",
    "chip",
    "--power",
    "1,2",
    "--power-note",
    "made up",
]


def test_command_measures_and_its_cells_can_be_read_back(tmp_path, measure_script, calibrate):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    pytest.importorskip("tqdm")
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    grid = [
        "--batches",
        "1,2",
        "--queries",
        "1,2,5",
        "--contexts",
        "64,256",
        "--chunks",
        "32,64",
        "--prefixes",
        "0,64",
    ]
    rule = ["--max-repeats", "6", "--warmup", "1", "--half-width-pct", "50"]
    model = [str(tmp_path / "config.json"), "--out", str(tmp_path / "out")]
    said = measure_script(*model, *FACTS, *grid, *rule)
    profile = load_profile(tmp_path / "out" / "tiny.yaml")
    assert profile.label == "measured" and profile.device == "chip" and "16 cells" in said
    assert str(tmp_path) not in profile.provenance.command
    measured = tmp_path / "out" / "measured"
    assert sorted(p.name for p in measured.iterdir()) == ["tiny.csv", "tiny.fit.json", "tiny.json"]
    points = import_csv(measured / "tiny.csv").points
    assert write_csv(points) == (measured / "tiny.csv").read_text()
    assert len(load_measurement(measured / "tiny.json").cells) == len(points) == 16
    more = ["--weight-bytes", "361728", "--kv-bytes-per-token", "512", "--model", "T", "--precision", "fp32"]
    facts = ["again" if a == "tiny" else a for a in FACTS]
    calibrate("--from-csv", str(measured / "tiny.csv"), "--out", str(tmp_path / "out"), *facts, *more)
    again = load_profile(tmp_path / "out" / "again.yaml")
    for name, value in profile.coefficients.model_dump(exclude_none=True).items():
        assert getattr(again.coefficients, name) == pytest.approx(value, rel=1e-3, abs=1e-12), name


def test_command_with_a_spent_budget_says_what_is_left_and_goes_on(tmp_path, measure_script):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    pytest.importorskip("tqdm")
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    grid = ["--batches", "1", "--queries", "1,2", "--contexts", "64", "--chunks", "32", "--prefixes", "0"]
    command = [
        str(tmp_path / "config.json"),
        "--out",
        str(tmp_path),
        *FACTS,
        *grid,
        "--max-repeats",
        "6",
    ]
    said = measure_script(*command, "--budget-s", "1e-9", code=1)
    assert "no cell has 6 repeats yet" in said
    said = measure_script(*command, "--cells-only")
    assert "3 cells" in said and len(import_csv(tmp_path / "measured" / "tiny.csv").points) == 3
    assert not (tmp_path / "tiny.yaml").exists()


def test_command_runs_as_a_script(tmp_path):
    (tmp_path / "c.csv").write_text("batch,q,context,seconds\n1,1,128,nan\n")
    command = [sys.executable, str(ROOT / "scripts" / "calibrate.py"), "--from-csv", "c.csv", "--name", "x"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.startswith("calibrate: c.csv: line 2: seconds = 'nan'")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.csv"]


def test_command_says_which_facts_are_missing(tmp_path, calibrate):
    (tmp_path / "c.csv").write_text("batch,q,context,seconds\n1,1,128,0.01\n1,256,0,0.1\n1,1,1024,0.02\n")
    said = calibrate("--from-csv", str(tmp_path / "c.csv"), "--name", "x", "--out", str(tmp_path), code=1)
    for flag in (
        "--role",
        "--model",
        "--weight-bytes",
        "--kv-bytes-per-token BYTES",
        "--power IDLE,BUSY",
        "--power-note",
    ):
        assert flag in said
    assert "--name NAME is required" in calibrate("--from-csv", str(tmp_path / "c.csv"), code=1)
    assert "cannot be read" in calibrate(
        "--from-csv", "no.csv", "--name", "x", "--out", str(tmp_path), code=1
    )
