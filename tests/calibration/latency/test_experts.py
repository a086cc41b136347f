"""Mixtures of experts: what is touched, how measured times are read, what the shipped profile says."""

from __future__ import annotations

import numpy as np
import pytest

from dsd_env.calibration.latency.experts import ExpertTimes
from dsd_env.calibration.latency.shapes import MODELS, ExpertsShape
from dsd_env.calibration.latency.tables import TableError, layer_step_model, load_layer_tables
from dsd_env.latency import load_profile

SHAPE = MODELS["Qwen3-30B-A3B"]


def _linear(tokens: int, touched: float) -> float:
    return 30e-6 + 6e-6 * touched + 1e-7 * tokens


def _cells() -> dict[tuple[int, int], float]:
    """Cells of a linear law, as far as so many tokens touch experts; those of 8 experts lie in the cache."""
    counts, tokens = (8, 16, 32, 64, 128), (1, 2, 4, 8, 16, 32, 64)
    cells = {(m, a): _linear(m, a) for m in tokens for a in counts if a <= 8 * m}
    return {key: 1e-6 if key[1] == 8 else seconds for key, seconds in cells.items()}


def test_a_mixture_counts_all_its_weights_and_one_token_passes_few():
    assert isinstance(SHAPE, ExpertsShape)
    assert SHAPE.params == pytest.approx(30.5e9, rel=2e-3)
    assert SHAPE.ffn_per_token == 8 * 768
    dense = MODELS["Qwen3-32B"]
    assert dense.ffn_per_token == dense.ffn and dense.feed_forward_params == 3 * dense.hidden * dense.ffn


@pytest.mark.parametrize("tokens", [1, 2, 5, 40])
def test_touched_is_what_drawing_evenly_gives(tokens):
    rng = np.random.default_rng(tokens)
    draws = [
        len(set().union(*(rng.choice(128, 8, replace=False).tolist() for _ in range(tokens))))
        for _ in range(2000)
    ]
    error = 4.0 * np.std(draws) / np.sqrt(len(draws)) + 1e-9
    assert SHAPE.touched(tokens) == pytest.approx(np.mean(draws), abs=error)


@pytest.mark.parametrize(
    ("tokens", "touched"), [(1, 8.0), (2, 15.5), (3, 22.0), (6, 40.0), (24, 101.0), (64, 8.0)]
)
def test_times_of_a_linear_law_are_read_exactly_and_without_the_cached_cells(tokens, touched):
    times = ExpertTimes.of(_cells())
    # Below the fewest tokens with two cold cells, those of that row stand in.
    assert times.seconds(tokens, touched) == pytest.approx(_linear(max(tokens, 4), touched), rel=1e-9)


def test_beyond_the_measured_tokens_time_grows_with_them():
    times = ExpertTimes.of(_cells())
    assert times.seconds(128, 128.0) == pytest.approx(2.0 * times.seconds(64, 128.0))


def test_one_cold_cell_gives_no_line():
    with pytest.raises(ValueError, match="16 experts or more"):
        ExpertTimes.of({(1, 8): 5e-5, (2, 8): 5e-5, (2, 16): 1e-4})


def _write_layers(folder, experts: bool) -> None:
    base = folder / "llmservingsim/profiler/perf/CARD/MODEL/bf16/tp1"
    base.mkdir(parents=True)
    layers = ("qkv_proj", "o_proj", "layernorm", "rotary_emb", "qk_norm", "embedding", "final_layernorm")
    (base / "dense.csv").write_text("layer,tokens,time_us\n" + "".join(f"{name},1,1\n" for name in layers))
    (base / "per_sequence.csv").write_text("layer,sequences,time_us\nlm_head,1,1\nsampler,1,1\n")
    (base / "attention.csv").write_text("prefill_chunk,kv_prefill,n_decode,kv_decode,time_us\n0,0,1,16,1\n")
    if experts:
        rows = [f"{m},{a},{1e6 * s}" for (m, a), s in _cells().items()]
        (base / "moe.csv").write_text("tokens,activated_experts,time_us\n" + "\n".join(rows) + "\n")


def test_a_layer_of_a_mixture_is_its_experts_and_the_rest(tmp_path):
    _write_layers(tmp_path, experts=True)
    model = layer_step_model(SHAPE, load_layer_tables(tmp_path, "CARD", "MODEL"))
    # Two projections, two norms, rotary embedding, the norm of queries and keys: a microsecond each.
    assert model.dense_s(16) == pytest.approx(6e-6 + _linear(16, SHAPE.touched(16)))


def test_a_mixture_without_the_table_of_its_experts_is_explained(tmp_path):
    _write_layers(tmp_path, experts=False)
    with pytest.raises(TableError, match=r"Qwen3-30B-A3B.*moe\.csv"):
        layer_step_model(SHAPE, load_layer_tables(tmp_path, "CARD", "MODEL"))


def test_the_shipped_profile_reads_more_experts_with_each_draft_until_all_are_read():
    profile = load_profile("qwen3-30b-a3b_rtx-pro-6000_tp1")
    steps = {m: profile.step_s(m, 0, 0) for m in (1, 4, 64, 256)}
    assert steps[4] > 1.8 * steps[1]
    assert steps[256] < 1.2 * steps[64]
    dense = load_profile("qwen3-32b_rtx-pro-6000_tp1")
    assert dense.step_s(4, 0, 0) < 1.1 * dense.step_s(1, 0, 0)
    assert dense.step_s(256, 0, 0) > 1.2 * dense.step_s(64, 0, 0)
