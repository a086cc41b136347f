"""Measured tables as step models, and what profiles say of where they come from."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from dsd_env.calibration.latency.cells import Cell
from dsd_env.calibration.latency.curves import Curve
from dsd_env.calibration.latency.edge import ClassFit, Figure, fit_class, load_figures
from dsd_env.calibration.latency.entries import Link
from dsd_env.calibration.latency.shapes import DEVICES, MODELS, DeviceSpec, ModelShape
from dsd_env.calibration.latency.splitwise import SplitwiseCell, load_splitwise
from dsd_env.calibration.latency.tables import (
    LLAMA_8B,
    QWEN3_30B_A3B,
    QWEN3_32B,
    AiConfiguratorTables,
    DenseLayers,
    LayerTables,
    StepModel,
    build_cells,
    kernel_step_model,
    layer_step_model,
    link_curve,
    load_aiconfigurator,
    load_dense_layers,
    load_layer_tables,
    with_mixed_attention,
)
from dsd_env.latency.memory import UTILISATION
from dsd_env.latency.profile import Source

_PRO = "RTX-PRO-6000-96GB"

AICONFIGURATOR = Source(
    name="NVIDIA AIConfigurator kernel data base (vLLM kernels)",
    url="https://github.com/ai-dynamo/aiconfigurator",
    commit="095f58a51c4ca8e61b66ec108d86f223f8d559ce",
    licence="Apache-2.0",
    used_for="GEMM, decode and context attention, all-reduce",
)
LLMSERVINGSIM = Source(
    name="LLMServingSim 2.0 vLLM layer profiles",
    url="https://github.com/casys-kaist/LLMServingSim",
    commit="5daddb21a545658d5150b535712d0494584b5278",
    licence="MIT",
    used_for=(
        "norms, rotary embedding, activation, embedding, sampler (RTX PRO 6000, scaled by bandwidth and "
        "width)"
    ),
)
VLLM_MODEL = Source(
    name=(
        "cost model of a real vLLM (Llama-3.1-8B, one H100, batch 1-64), Speculative Decoding: "
        "Performance or Illusion?"
    ),
    url="https://arxiv.org/abs/2601.11580",
    commit="2fdccbd",
    licence="none stated: compared with, not redistributed",
    used_for="framework overhead; check",
)
SPLITWISE = Source(
    name="Splitwise measured iteration times (Llama-2-70B)",
    url="https://github.com/Mutinifni/splitwise-sim",
    commit="8f99e7dc9b407f4ce2488d03dd44c0b8b946dab0",
    licence="MIT",
    used_for="check",
)
# ------------------------------------------------------------------------------------------------ loading
# Cached because ``--all`` builds several profiles from the same folder in one process.


@cache
def kernels(data_dir: Path, table: str) -> AiConfiguratorTables:
    """Kernel tables of a device."""
    return load_aiconfigurator(data_dir, table)


@cache
def _small_ops_tables(data_dir: Path, model: str = LLAMA_8B) -> DenseLayers:
    return load_dense_layers(data_dir, "RTXPRO6000", model)


@cache
def _layers(data_dir: Path, table: str, model: str, tp: int) -> LayerTables:
    return load_layer_tables(data_dir, table, model, tp)


@cache
def figures(data_dir: Path) -> tuple[Figure, ...]:
    """Published tokens/s of edge devices."""
    return tuple(load_figures(data_dir))


@cache
def class_fit(data_dir: Path, name: str) -> ClassFit:
    """Fit of a class of edge devices to its figures."""
    return fit_class(name, figures(data_dir))


@cache
def splitwise(data_dir: Path) -> tuple[SplitwiseCell, ...]:
    """Splitwise's measured iterations."""
    return tuple(load_splitwise(data_dir))


def layer_source(shape: ModelShape, device: DeviceSpec, tp: int) -> tuple[str, str] | None:
    """Folder and model of LLMServingSim's layers where it measured this model, device and parallelism."""
    if device.name == "RTX-4090-24GB" and shape.name == "Llama-3-8B" and tp == 1:
        return "RTX4090", LLAMA_8B
    if device.name == _PRO and tp in (1, 2):
        model = {"Llama-3-8B": LLAMA_8B, "Qwen3-32B": QWEN3_32B}.get(shape.name)
        if shape.name == "Qwen3-30B-A3B" and tp == 1:  # On two cards its experts were not measured.
            model = QWEN3_30B_A3B
        return ("RTXPRO6000", model) if model else None
    return None


def borrows_attention(shape: ModelShape, device: DeviceSpec, tp: int) -> bool:
    """Whether Qwen3-32B's measured mixed batches have this model's heads (64, 8 of them KV, of 128)."""
    same = (shape.heads, shape.kv_heads, shape.head_dim) == (64, 8, 128)
    return device.name == _PRO and tp in (1, 2) and same


def allreduce(device: DeviceSpec, tp: int, data_dir: Path, link: Link | None) -> Curve | None:
    """All-reduce of ``tp`` devices: measured, or over a link with the smallest measured latency."""
    if tp == 1:
        return None
    measured = kernels(data_dir, device.table).allreduce[(tp,)]
    if link is None:
        return measured
    return link_curve(tp, 1e9 * link.gigabytes_per_s, float(measured.y.min()))


def step_model(
    shape: ModelShape, device: DeviceSpec, tp: int, data_dir: Path, link: Link | None = None
) -> StepModel:
    """The parts of an iteration from the best tables that there are; kernels only."""
    reduce = allreduce(device, tp, data_dir, link)
    measured = layer_source(shape, device, tp)
    if measured is not None:
        return layer_step_model(shape, _layers(data_dir, *measured, tp), 0.0, reduce)
    qwen = _small_ops_tables(data_dir, QWEN3_32B) if shape.name.startswith("Qwen") else None
    small = _small_ops_tables(data_dir)
    model = kernel_step_model(shape, device, tp, kernels(data_dir, device.table), small, 0.0, qwen, reduce)
    if borrows_attention(shape, device, tp):
        model = with_mixed_attention(model, _layers(data_dir, "RTXPRO6000", QWEN3_32B, tp).attention)
    return model


def pool_tokens(shape: ModelShape, device: DeviceSpec, tp: int) -> int:
    """Tokens of KV up to which cells are built: what fits beside the weights, all else left out."""
    return int((UTILISATION * device.memory_bytes * tp - 2 * shape.params) / shape.kv_bytes_per_token())


def kernel_and_layer_cells(model: str, tp: int, data_dir: Path) -> tuple[dict[str, Cell], dict[str, Cell]]:
    """The same iterations on RTX PRO 6000 from AIConfigurator's kernels and from LLMServingSim's layers.

    By key, no framework overhead in either; for models that both measured (Llama-3-8B and Qwen3-32B at tensor
    parallelism 1 and 2).
    """
    shape, device = MODELS[model], DEVICES[_PRO]
    tables = kernels(data_dir, device.table)
    qwen = _small_ops_tables(data_dir, QWEN3_32B) if shape.name.startswith("Qwen") else None
    small = _small_ops_tables(data_dir)
    source = layer_source(shape, device, tp)
    assert source is not None
    reduce = tables.allreduce[(tp,)] if tp > 1 else None
    capacity = pool_tokens(shape, device, tp)
    alone = kernel_step_model(shape, device, tp, tables, small, 0.0, qwen)
    layers = layer_step_model(shape, _layers(data_dir, *source, tp), 0.0, reduce)
    return (
        {c.key: c for c in build_cells(alone, capacity)},
        {c.key: c for c in build_cells(layers, capacity)},
    )
