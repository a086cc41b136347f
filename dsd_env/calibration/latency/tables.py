"""Whole-iteration step tables built from measured kernel tables.

Two families of tables are read:

* ``aiconfigurator`` (vLLM kernels on data-centre GPUs): GEMM over (m, n, k), decode attention over
  (batch, KV length), context attention over (batch, prompt length), custom all-reduce. It has no attention
  with more than one new token on a cached context, and no element-wise kernels.
* ``llmservingsim`` (vLLM layers on one GPU): every dense layer, the output projection, the sampler, and a
  four-dimensional table of attention in mixed batches, which holds multi-token attention on a cached context.

An iteration is the sum, over the layers, of the GEMMs (QKV, output, gate+up, down), attention, two norms,
rotary embedding and activation, two all-reduces under tensor parallelism; plus the embedding, the output
projection of every position whose logits are needed, and the sampler. The loaders are the only code here
that touches files; everything else is a pure function of what they return.

**Attention with q > 1 new tokens on a cached context** (verification):

* RTX 4090, RTX PRO 6000: read from the mixed table, at the smallest measured chunk >= q (the kernel works on
  tiles of 64 rows, so 2 … 16 tokens cost the same as 16; the table shows 16, 32 and 64 within 2 %).
* FlashAttention-2 devices (A100, L40S): grouped heads are not packed and long sequences not split when any
  q > 1, so each (sequence, query head) walks its whole context on one multiprocessor. Time = launch +
  waves * context * k, with waves = ceil(batch * heads / multiprocessors) and k, the time one
  multiprocessor needs per cached token, measured as the slope of *context* attention with a single head.
  The same rule predicts the RTX 4090's mixed table (see docs/calibration.md for by how much it misses).
* FlashAttention-3 devices (H100, H200): heads are packed and sequences split, so the larger of decode
  attention (reading the cache once) and the tiles' work spread over all multiprocessors.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from dsd_env.calibration.latency.cells import DECODE, PREFILL, VERIFY, Cell
from dsd_env.calibration.latency.curves import Curve
from dsd_env.calibration.latency.experts import ExpertTimes
from dsd_env.calibration.latency.reading import csv_table, number_field, text_of
from dsd_env.calibration.latency.shapes import DeviceSpec, ExpertsShape, ModelShape

__all__ = [
    "LLAMA_8B",
    "QWEN3_30B_A3B",
    "QWEN3_32B",
    "AiConfiguratorTables",
    "DenseLayers",
    "Grid",
    "LayerTables",
    "StepModel",
    "TableError",
    "build_cells",
    "bus_bandwidth",
    "kernel_step_model",
    "layer_step_model",
    "link_curve",
    "load_aiconfigurator",
    "load_dense_layers",
    "load_layer_tables",
    "read_table",
    "with_mixed_attention",
]

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
QUERY_LENGTHS = (1, 2, 3, 5, 9, 17)
CONTEXTS = (128, 256, 512, 1024, 2048, 4096, 8192, 16384)
PREFILL_CHUNKS = (128, 256, 512, 1024, 2048, 4096)
PREFILL_PREFIXES = (0, 512, 2048, 4096)
PREFILL_COMPANIONS = ((0, 0), (8, 1024), (32, 1024))
"""(sequences decoding beside the prefill chunk, their context)."""

_TILE_ROWS_FA2 = 64
_TILE_ROWS_FA3 = 128
_SLOPE_LENGTHS = (1024, 4096)
_ELEMENTWISE_DEVICE_BANDWIDTH = 1.597e12
"""RTX PRO 6000 (Server Edition): the device whose element-wise kernels stand in for those of other GPUs."""

LLAMA_8B = "meta-llama/Llama-3.1-8B"
QWEN3_32B = "Qwen/Qwen3-32B"
QWEN3_30B_A3B = "Qwen/Qwen3-30B-A3B-Instruct-2507"
"""Models whose layers LLMServingSim measured, as its folders spell them."""

_QWEN3_HEADS = 72
_QWEN3_VOCAB = 151936


class TableError(ValueError):
    """A measured table is missing, malformed or impossible; the message names file, line and field."""


# ---------------------------------------------------------------------------------------------- reading


def read_table(
    path: Path, numbers: Sequence[str], words: Sequence[str] = (), optional: Mapping[str, float] | None = None
) -> Iterator[tuple[dict[str, float], dict[str, str]]]:
    """Read a CSV (``.gz`` or plain) row by row and refuse what cannot be a measurement.

    Args:
        path: file.
        numbers: required columns that hold finite numbers >= 0; the last is the duration and must be > 0.
        words: required text columns.
        optional: numeric columns with the value to use where the file lacks them.

    Yields:
        ``(numbers, words)`` of each row.

    Raises:
        TableError: file or column missing, a value not a number, NaN, infinite or negative, a short row.
    """
    optional = optional or {}
    if not path.is_file():
        raise TableError(f"{path}: no such table; is the data directory right (--data-dir or DSD_DATA_DIR)?")
    table = csv_table(path, _table_text(path), (*numbers, *words), TableError)
    present = [c for c in optional if c in table.header]
    duration = numbers[-1]
    for line, row in table.rows:
        where = f"{path}: line {line}"
        values = dict(optional)
        for column in (*numbers, *present):
            strict = column == duration
            values[column] = number_field(
                row, column, where, text=True, strict=strict, bare=True, error=TableError
            )
        yield values, {w: row[w] for w in words}


def _table_text(path: Path) -> str:
    """Text of a table that may be packed."""
    if path.suffix != ".gz":
        return text_of(path, TableError)
    try:
        text = gzip.decompress(path.read_bytes()).decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as e:
        raise TableError(f"{path}: cannot be read (truncated or not a CSV?): {e}") from e
    if not text.strip():
        raise TableError(f"{path}: empty file")
    return text


def link_curve(devices: int, bytes_per_s: float, latency_s: float) -> Curve:
    """All-reduce of bf16 elements over a link: a latency, and 2 (n - 1) / n bytes over the bandwidth."""
    per_element = 2.0 * 2.0 * (devices - 1) / devices / bytes_per_s
    ends = np.array([0.0, 2.0**30])
    return Curve(ends, latency_s + per_element * ends)


def bus_bandwidth(curve: Curve, devices: int, elements: int) -> float:
    """Bytes per second of a measured all-reduce of bf16 elements, as :func:`link_curve` counts them."""
    return 2.0 * elements * 2.0 * (devices - 1) / devices / curve(elements)


def _curves(points: dict[tuple[int, ...], dict[float, float]]) -> dict[tuple[int, ...], Curve]:
    return {key: Curve.of(p) for key, p in points.items()}


@dataclass(frozen=True)
class AiConfiguratorTables:
    """Kernel tables of one data-centre GPU. Seconds throughout.

    Attributes:
        gemm: ``(n, k) ->`` curve over m (bf16).
        decode: ``(heads, kv_heads, head_dim, batch) ->`` curve over KV length.
        context: ``(heads, kv_heads, head_dim, batch) ->`` curve over prompt length.
        allreduce: ``(devices,) ->`` curve over message size in elements, CUDA-graph backend.
    """

    gemm: dict[tuple[int, ...], Curve]
    decode: dict[tuple[int, ...], Curve]
    context: dict[tuple[int, ...], Curve]
    allreduce: dict[tuple[int, ...], Curve]

    @cached_property
    def _axes(self) -> tuple[list[int], list[int], dict[int, list[int]]]:
        """Values of n, of k, and the values of k at each n."""
        by_n: dict[int, list[int]] = {}
        for n, k in sorted(self.gemm):
            by_n.setdefault(n, []).append(k)
        return sorted(by_n), sorted({k for _, k in self.gemm}), by_n

    def gemm_s(self, m: int, n: int, k: int) -> float:
        """GEMM of (m x k) by (k x n): linear in m, bilinear in (n, k), proportional in n beyond the grid.

        Raises:
            TableError: k lies outside the grid.
        """
        ns, ks, by_n = self._axes
        if not ks[0] <= k <= ks[-1]:
            raise TableError(f"GEMM table has k from {ks[0]} to {ks[-1]}, not {k}")
        if n > ns[-1]:
            return self.gemm_s(m, ns[-1], k) * n / ns[-1]

        def along_k(n_grid: int) -> float:
            known = by_n[n_grid]
            below = max((kk for kk in known if kk <= k), default=known[0])
            above = min((kk for kk in known if kk >= k), default=known[-1])
            low = self.gemm[(n_grid, below)](m)
            high = self.gemm[(n_grid, above)](m)
            return low if above == below else low + (high - low) * (k - below) / (above - below)

        below = max((nn for nn in ns if nn <= n), default=ns[0])
        above = min((nn for nn in ns if nn >= n), default=ns[-1])
        low, high = along_k(below), along_k(above)
        return low if above == below else low + (high - low) * (n - below) / (above - below)


def load_aiconfigurator(data_dir: Path, table: str) -> AiConfiguratorTables:
    """Load the kernel tables of one GPU from ``data_dir/aiconfigurator/csv/<table>``."""
    base = data_dir / "aiconfigurator" / "csv" / table

    def only(pattern: str) -> Path:
        found = sorted(base.glob(pattern))
        if not found:
            raise TableError(f"{base / pattern}: no such table; is the data directory right?")
        return found[-1]

    gemm: dict[tuple[int, ...], dict[float, float]] = {}
    path = only("gemm/vllm/*/gemm_perf.csv.gz")
    for v, text in _with_optional_word(path, ("m", "n", "k", "latency"), "gemm_dtype"):
        if text in ("", "bfloat16"):
            gemm.setdefault((int(v["n"]), int(v["k"])), {})[v["m"]] = v["latency"] * 1e-3
    decode: dict[tuple[int, ...], dict[float, float]] = {}
    path = only("attention/vllm/*/generation_attention_perf.csv.gz")
    columns = ("batch_size", "num_heads", "num_key_value_heads", "step", "latency")
    for v, _ in read_table(path, columns, optional={"head_dim": 128}):
        key = (int(v["num_heads"]), int(v["num_key_value_heads"]), int(v["head_dim"]), int(v["batch_size"]))
        decode.setdefault(key, {})[v["step"] + 1.0] = v["latency"] * 1e-3
    context: dict[tuple[int, ...], dict[float, float]] = {}
    path = only("attention/vllm/*/context_attention_perf.csv.gz")
    columns = ("batch_size", "num_heads", "num_key_value_heads", "isl", "latency")
    for v, _ in read_table(path, columns, optional={"head_dim": 128}):
        key = (int(v["num_heads"]), int(v["num_key_value_heads"]), int(v["head_dim"]), int(v["batch_size"]))
        context.setdefault(key, {})[v["isl"]] = v["latency"] * 1e-3
    allreduce: dict[tuple[int, ...], dict[float, float]] = {}
    path = only("comm/vllm/*/custom_allreduce_perf.csv.gz")
    for v, t in read_table(path, ("num_gpus", "message_size", "latency"), ("backend",)):
        if t["backend"] == "vllm_graph":
            allreduce.setdefault((int(v["num_gpus"]),), {})[v["message_size"]] = v["latency"] * 1e-3
    return AiConfiguratorTables(_curves(gemm), _curves(decode), _curves(context), _curves(allreduce))


def _with_optional_word(
    path: Path, numbers: Sequence[str], word: str
) -> Iterator[tuple[dict[str, float], str]]:
    """``read_table`` with a text column that older tables lack (then the empty string)."""
    try:
        for v, t in read_table(path, numbers, (word,)):
            yield v, t[word]
    except TableError as e:
        if f"missing column(s) {word}" not in str(e):
            raise
        for v, _ in read_table(path, numbers):
            yield v, ""


@dataclass(frozen=True)
class DenseLayers:
    """Measured vLLM layers of one model on one GPU: ``layer ->`` curve over tokens (or sequences)."""

    dense: dict[str, Curve]
    per_sequence: dict[str, Curve]


def _layer_dir(data_dir: Path, table: str, model: str, tp: int) -> Path:
    return data_dir / "llmservingsim" / "profiler" / "perf" / table / model / "bf16" / f"tp{tp}"


def load_dense_layers(data_dir: Path, table: str, model: str = LLAMA_8B, tp: int = 1) -> DenseLayers:
    """Load ``dense.csv`` and ``per_sequence.csv`` of one model on one GPU (its share at that parallelism)."""
    base = _layer_dir(data_dir, table, model, tp)

    def load(name: str, axis: str) -> dict[str, Curve]:
        points: dict[str, dict[float, float]] = {}
        for v, t in read_table(base / name, (axis, "time_us"), ("layer",)):
            points.setdefault(t["layer"], {})[v[axis]] = v["time_us"] * 1e-6
        return {layer: Curve.of(p) for layer, p in points.items()}

    return DenseLayers(load("dense.csv", "tokens"), load("per_sequence.csv", "sequences"))


@dataclass(frozen=True)
class LayerTables:
    """Layers of one model with the mixed-batch attention table of the same GPU.

    Attributes:
        layers: dense and per-sequence layers.
        attention: ``(prefill_chunk, kv_prefill, n_decode, kv_decode) -> seconds`` per layer.
        experts: router and experts of a layer, in place of an MLP; None: the model has one.
    """

    layers: DenseLayers
    attention: dict[tuple[int, int, int, int], float]
    experts: ExpertTimes | None = None


def load_layer_tables(data_dir: Path, table: str, model: str = LLAMA_8B, tp: int = 1) -> LayerTables:
    """Load dense layers, ``attention.csv`` and, of a mixture, ``moe.csv`` of one model on one GPU."""
    base = _layer_dir(data_dir, table, model, tp)
    columns = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us")
    attention = {}
    for v, _ in read_table(base / "attention.csv", columns):
        key = (int(v["prefill_chunk"]), int(v["kv_prefill"]), int(v["n_decode"]), int(v["kv_decode"]))
        attention[key] = v["time_us"] * 1e-6
    experts = _expert_times(base / "moe.csv") if (base / "moe.csv").is_file() else None
    return LayerTables(load_dense_layers(data_dir, table, model, tp), attention, experts)


def _expert_times(path: Path) -> ExpertTimes:
    cells = {}
    for v, _ in read_table(path, ("tokens", "activated_experts", "time_us")):
        cells[int(v["tokens"]), int(v["activated_experts"])] = v["time_us"] * 1e-6
    try:
        return ExpertTimes.of(cells)
    except ValueError as error:
        raise TableError(f"{path}: {error}") from error


# ------------------------------------------------------------------------------------------- composition


@dataclass(frozen=True)
class StepModel:
    """The parts of an iteration as functions; ``None`` from a part means: not covered by the tables.

    Attributes:
        layers: number of layers.
        dense_s: GEMMs, norms, rotary embedding, activation, all-reduces of one layer for m tokens.
        once_s: ``(tokens, logit rows) ->`` embedding, output projection, sampler.
        decode_s: ``(batch, context) ->`` attention of one layer, one new token a sequence.
        verify_s: ``(batch, q, context) ->`` attention of one layer, q > 1 new tokens a sequence.
        prefill_s: ``(chunk, prefix, n_decode, kv_decode) ->`` attention of one layer.
        overhead_s: framework overhead of an iteration, added to every cell.
        drafts: whether it drafts: then a sequence's last new token alone needs logits, however many it has.
    """

    layers: int
    dense_s: Callable[[int], float]
    once_s: Callable[[int, int], float]
    decode_s: Callable[[int, int], float | None]
    verify_s: Callable[[int, int, int], float | None]
    prefill_s: Callable[[int, int, int, int], float | None]
    overhead_s: float = 0.0
    drafts: bool = False

    def iteration_s(self, tokens: int, logit_rows: int, attention_s: float) -> float:
        """Duration of a whole iteration."""
        per_layer = self.dense_s(tokens) + attention_s
        return self.overhead_s + self.layers * per_layer + self.once_s(tokens, logit_rows)

    def sequences_s(self, batch: int, q: int, context: int) -> float | None:
        """Iteration of ``batch`` equal sequences with q new tokens each on ``context`` cached ones."""
        attention = self.decode_s(batch, context) if q == 1 else self.verify_s(batch, q, context)
        rows = batch if self.drafts else batch * q
        return None if attention is None else self.iteration_s(batch * q, rows, attention)


def _small_ops(
    shape: ModelShape, tp: int, layers: DenseLayers, bandwidth: float, qwen: DenseLayers | None = None
) -> tuple[Callable[[int], float], Callable[[int, int], float]]:
    """Element-wise kernels of one layer, and embedding + sampler, scaled from another GPU of the same stack.

    At few tokens these kernels are launch-bound and taken as measured; beyond, they move bytes, so a width
    or bandwidth other than that of the measured ones shifts the curve along the token axis. ``qwen`` holds
    the layers of Qwen3-32B: the norm of queries and keys, and a sampler over its larger vocabulary.
    """
    if shape.qk_norm and qwen is None:
        raise TableError(f"{shape.name} normalises queries and keys: needs the layers of Qwen3-32B")
    speed = _ELEMENTWISE_DEVICE_BANDWIDTH / bandwidth
    dense = layers.dense

    def per_layer(m: int) -> float:
        norm = dense["layernorm"](m * shape.hidden / 4096 * speed)
        rope_width = (shape.heads + shape.kv_heads) * shape.head_dim / tp / (40 * 128)
        rope = dense["rotary_emb"](m * rope_width * speed)
        act = dense["act_fn"](m * shape.ffn / tp / 14336 * speed)
        total = 2.0 * norm + rope + act
        if shape.qk_norm and qwen is not None:
            width = (shape.heads + shape.kv_heads) * shape.head_dim / tp / (_QWEN3_HEADS * 128)
            total += qwen.dense["qk_norm"](m * width * speed)
        return total

    def once(m: int, rows: int) -> float:
        embedding = dense["embedding"](m * shape.hidden / 4096 * speed)
        norm = dense["final_layernorm"](m * shape.hidden / 4096 * speed)
        if qwen is not None:
            sampler = qwen.per_sequence["sampler"](rows * shape.vocab / _QWEN3_VOCAB)
        else:
            sampler = layers.per_sequence["sampler"](rows * shape.vocab / 128256)
        return embedding + norm + sampler

    return per_layer, once


def kernel_step_model(
    shape: ModelShape,
    device: DeviceSpec,
    tp: int,
    tables: AiConfiguratorTables,
    small: DenseLayers,
    overhead_s: float = 0.0,
    qwen: DenseLayers | None = None,
    allreduce: Curve | None = None,
) -> StepModel:
    """Step model of a dense model on a data-centre GPU from aiconfigurator's kernels.

    ``small`` holds the element-wise layers of Llama-3.1-8B, ``qwen`` those of Qwen3-32B, wanted for models of
    that family. ``allreduce`` stands for the device's own table of all-reduces (see :func:`link_curve`).

    Where the attention table lacks the model's head dimension, heads of 128 with the same total width
    stand in (same bytes and same arithmetic).
    """
    heads, kv_heads, dim = shape.heads // tp, shape.kv_heads // tp, shape.head_dim
    if (heads, kv_heads, dim, 1) not in tables.decode:
        heads, kv_heads, dim = heads * dim // 128, kv_heads * dim // 128, 128
        if (heads, kv_heads, dim, 1) not in tables.decode:
            raise TableError(f"attention table has no {heads} heads with {kv_heads} KV heads of {dim}")
    group = heads // kv_heads
    small_layer, small_once = _small_ops(shape, tp, small, device.bandwidth_bytes_per_s, qwen)
    reduce_curve = (allreduce or tables.allreduce[(tp,)]) if tp > 1 else None

    qkv = (shape.heads + 2 * shape.kv_heads) * shape.head_dim // tp
    gemms = (
        (qkv, shape.layer_inputs),
        (shape.hidden, shape.heads * shape.head_dim // tp),
        (2 * shape.ffn // tp, shape.hidden),
        (shape.hidden, shape.ffn // tp),
    )

    def dense_s(m: int) -> float:
        total = sum(tables.gemm_s(m, n, k) for n, k in gemms) + small_layer(m)
        return total + (2.0 * reduce_curve(m * shape.hidden) if reduce_curve else 0.0)

    def once_s(m: int, rows: int) -> float:
        total = tables.gemm_s(rows, shape.vocab // tp, shape.hidden) + small_once(m, rows)
        if shape.fused_inputs:
            total += tables.gemm_s(m, shape.hidden, shape.fused_inputs)
        return total + (reduce_curve(m * shape.hidden) if reduce_curve else 0.0)

    launch = float(tables.decode[(heads, kv_heads, dim, 1)].y[0])
    # Cold-cache floor: small tables fit into the L2 cache of the benchmark, the KV of 16-80 layers does not.
    bytes_per_token = 2.0 * kv_heads * dim * 2.0
    rates = []
    for (h, kv, d, batch), curve in tables.decode.items():
        if (h, kv, d) == (heads, kv_heads, dim):
            rates.append(
                (batch * curve.x[-1], batch * curve.x[-1] * bytes_per_token / (curve.y[-1] - launch))
            )
    achieved = float(max(rates)[1])

    def decode_s(batch: int, context: int) -> float | None:
        curve = tables.decode.get((heads, kv_heads, dim, batch))
        if curve is None or not curve.inside(context):
            return None
        return max(curve(context), launch + batch * context * bytes_per_token / achieved)

    lone = tables.context[(1, 1, dim, 1)]
    short, long = _SLOPE_LENGTHS
    per_token = (lone(long) - lone(short)) / (long - short)
    context_curve = tables.context[(heads, kv_heads, dim, 1)]

    def multi_s(batch: int, q: int, context: int) -> float:
        """Work of the tiles of a kernel launch with q > 1 somewhere, beyond the launch."""
        if device.splits_multi_token_attention:
            tiles = batch * kv_heads * math.ceil(q * group / _TILE_ROWS_FA3)
            return per_token * (context + q) * tiles / device.sms
        tiles = batch * heads * math.ceil(q / _TILE_ROWS_FA2)
        return per_token * (context + q) * math.ceil(tiles / device.sms)

    def verify_s(batch: int, q: int, context: int) -> float | None:
        decode = decode_s(batch, context)
        return None if decode is None else max(decode, launch + multi_s(batch, q, context))

    def prefill_s(chunk: int, prefix: int, n_decode: int, kv_decode: int) -> float | None:
        if not context_curve.inside(prefix + chunk):
            return None
        before = context_curve(prefix) if prefix else launch
        rows = context_curve(prefix + chunk) - before
        if not device.splits_multi_token_attention:
            rows = max(rows, per_token * (prefix + chunk))
        beside = 0.0
        if n_decode:
            decode = decode_s(n_decode, kv_decode)
            if decode is None:
                return None
            beside = decode - launch
            if not device.splits_multi_token_attention:
                beside = max(beside, multi_s(n_decode, 1, kv_decode))
        return launch + max(rows, 0.0) + beside

    return StepModel(shape.layers, dense_s, once_s, decode_s, verify_s, prefill_s, overhead_s)


def layer_step_model(
    shape: ModelShape, tables: LayerTables, overhead_s: float = 0.0, allreduce: Curve | None = None
) -> StepModel:
    """Step model of a model on the GPU whose layers were measured, mixed-batch attention included.

    The output projection beyond the 256 rows measured grows like the gate+up projection (in a mixture of
    experts, which has none, like that of queries, keys and values). Under tensor
    parallelism the tables hold one GPU's share and ``allreduce`` (message in elements -> seconds) is added.
    """
    dense = tables.layers.dense

    mixture = shape if isinstance(shape, ExpertsShape) else None
    experts = tables.experts
    if mixture and experts is None:
        raise TableError(f"{shape.name} is a mixture of experts: needs their table (moe.csv)")
    mlp = () if mixture else ("gate_up_proj", "down_proj")

    def dense_s(m: int) -> float:
        gemms = sum(dense[name](m) for name in ("qkv_proj", "o_proj", *mlp))
        small = 2.0 * dense["layernorm"](m) + dense["rotary_emb"](m)
        if mixture and experts:
            small += experts.layer_s(mixture, m)
        else:
            small += dense["act_fn"](m)
        if shape.qk_norm:
            small += dense["qk_norm"](m)
        return gemms + small + (2.0 * allreduce(m * shape.hidden) if allreduce else 0.0)

    head = tables.layers.per_sequence["lm_head"]
    like_head = dense["qkv_proj" if mixture else "gate_up_proj"]

    def once_s(m: int, rows: int) -> float:
        last = float(head.x[-1])
        lm_head = head(rows)
        if rows > last:
            lm_head = head(last) * like_head(rows) / like_head(last)
        sampler = tables.layers.per_sequence["sampler"](rows)
        total = lm_head + sampler + dense["embedding"](m) + dense["final_layernorm"](m)
        return total + (allreduce(m * shape.hidden) if allreduce else 0.0)

    bare = StepModel(
        shape.layers, dense_s, once_s, lambda *_: None, lambda *_: None, lambda *_: None, overhead_s
    )
    return with_mixed_attention(bare, tables.attention)


def with_mixed_attention(model: StepModel, attention: Mapping[tuple[int, int, int, int], float]) -> StepModel:
    """The same model with attention read from a measured mixed-batch table.

    Args:
        model: whose other parts to keep.
        attention: ``(prefill_chunk, kv_prefill, n_decode, kv_decode) -> seconds`` per layer, measured with
            the same numbers of heads, head dimension and device.
    """
    counts = sorted({key[2] for key in attention})
    chunks = sorted({key[0] for key in attention if key[0] > 0})

    def mixed_s(chunk: int, prefix: int, n_decode: int, kv_decode: int) -> float | None:
        """Table value, linear between the measured numbers of decoding sequences."""
        if n_decode == 0:
            return attention.get((chunk, prefix, 0, 0))
        below = max((c for c in counts if c <= n_decode), default=0)
        above = min((c for c in counts if c >= n_decode), default=0)
        low = attention.get((chunk, prefix, below, kv_decode if below else 0))
        high = attention.get((chunk, prefix, above, kv_decode))
        if low is None or high is None:
            return None
        return low if above == below else low + (high - low) * (n_decode - below) / (above - below)

    def verify_s(batch: int, q: int, context: int) -> float | None:
        # Some chunks were measured on a coarser grid of contexts: then the next larger one stands in.
        known = (mixed_s(c, context, batch - 1, context) for c in chunks if q <= c <= _TILE_ROWS_FA2)
        return next((s for s in known if s is not None), None)

    return replace(
        model,
        decode_s=lambda batch, context: mixed_s(0, 0, batch, context),
        verify_s=verify_s,
        prefill_s=mixed_s,
    )


@dataclass(frozen=True)
class Grid:
    """Which iterations a step table holds."""

    batches: Sequence[int] = BATCHES
    query_lengths: Sequence[int] = QUERY_LENGTHS
    contexts: Sequence[int] = CONTEXTS
    chunks: Sequence[int] = PREFILL_CHUNKS
    prefixes: Sequence[int] = PREFILL_PREFIXES
    companions: Sequence[tuple[int, int]] = PREFILL_COMPANIONS


def build_cells(model: StepModel, kv_capacity_tokens: int, grid: Grid | None = None) -> list[Cell]:
    """All cells of the grid that the tables cover and whose KV fits into the device.

    Cells of a region share a total weight of one (times the number of cells of the largest region), so
    that decoding, verification and prefill count the same in a fit however many cells each has.

    Args:
        model: parts of an iteration.
        kv_capacity_tokens: tokens of KV cache that fit; cells beyond are no state of a real server.
        grid: the grid; default batch 1-128, q in {1, 2, 3, 5, 9, 17}, context 128-16k, chunks 128-4096.

    Returns:
        Cells in a fixed order.
    """
    grid = grid or Grid()
    raw: list[tuple[str, str, int, int, int, float]] = []
    for batch in grid.batches:
        for q in grid.query_lengths:
            for context in grid.contexts:
                if batch * (context + q) > kv_capacity_tokens:
                    continue
                seconds = model.sequences_s(batch, q, context)
                if seconds is not None:
                    region, multi = (DECODE, 0) if q == 1 else (VERIFY, context + q)
                    key = f"b{batch}_q{q}_s{context}"
                    raw.append((key, region, batch * q, batch * (context + q), multi, float(seconds)))
    for chunk in grid.chunks:
        for prefix in grid.prefixes:
            for n_decode, kv_decode in grid.companions:
                kv = prefix + chunk + n_decode * (kv_decode + 1)
                if kv > kv_capacity_tokens:
                    continue
                attention = model.prefill_s(chunk, prefix, n_decode, kv_decode)
                if attention is not None:
                    tokens = chunk + n_decode
                    seconds = model.iteration_s(tokens, 1 + n_decode, attention)
                    key = f"chunk{chunk}_prefix{prefix}_d{n_decode}x{kv_decode}"
                    raw.append((key, PREFILL, tokens, kv, prefix + chunk, float(seconds)))
    counts = {region: sum(r[1] == region for r in raw) for region in (DECODE, VERIFY, PREFILL)}
    largest = max(counts.values(), default=0)
    return [Cell(*r, weight=largest / counts[r[1]]) for r in raw]
