"""The shipped profiles: what each is built from, and the builders.

``build(name, data_dir, command, date)`` turns measured tables into a :class:`LatencyProfile`; everything
the profile states about itself (sources, error, checks against whole iterations, notes) is put together here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dsd_env.calibration.latency.cells import DECODE, PREFILL, VERIFY, Cell
from dsd_env.calibration.latency.edge import (
    ClassFit,
    Figure,
    edge_step,
    fit_class,
    load_figures,
    resident_bytes,
)
from dsd_env.calibration.latency.fit import (
    FitResult,
    error_stats,
    fit_coefficients,
    fit_knots,
    fit_split,
    leave_one_out,
    relative_errors,
    split_cells,
    summarise,
)
from dsd_env.calibration.latency.noise import fit_noise
from dsd_env.calibration.latency.shapes import DEVICES, MODELS, DeviceSpec, ModelShape
from dsd_env.calibration.latency.splitwise import (
    HARDWARE,
    SplitwiseCell,
    iteration_cells,
    load_splitwise,
    select,
)
from dsd_env.calibration.latency.tables import (
    LLAMA_8B,
    QWEN3_32B,
    AiConfiguratorTables,
    DenseLayers,
    LayerTables,
    StepModel,
    build_cells,
    kernel_step_model,
    layer_step_model,
    load_aiconfigurator,
    load_dense_layers,
    load_layer_tables,
    with_mixed_attention,
)
from dsd_env.latency.profile import (
    ExternalCheck,
    LatencyProfile,
    Noise,
    Power,
    Provenance,
    Source,
    StepCoefficients,
)

__all__ = [
    "CATALOGUE",
    "Built",
    "EdgeEntry",
    "KernelEntry",
    "MeasuredEntry",
    "VllmEntry",
    "build",
    "framework_overhead_s",
    "kernel_and_layer_cells",
]

MEMORY_SHARE = 0.9
"""Share of device memory that weights and KV cache may fill (vLLM's default ``gpu_memory_utilization``)."""

_AICONFIGURATOR = Source(
    name="NVIDIA AIConfigurator kernel data base (vLLM kernels)",
    url="https://github.com/ai-dynamo/aiconfigurator",
    commit="095f58a51c4ca8e61b66ec108d86f223f8d559ce",
    licence="Apache-2.0",
    used_for="GEMM, decode and context attention, all-reduce",
)
_LLMSERVINGSIM = Source(
    name="LLMServingSim 2.0 vLLM layer profiles",
    url="https://github.com/casys-kaist/LLMServingSim",
    commit="5daddb21a545658d5150b535712d0494584b5278",
    licence="MIT",
    used_for=(
        "norms, rotary embedding, activation, embedding, sampler (RTX PRO 6000, scaled by bandwidth and "
        "width)"
    ),
)
_VLLM_MODEL = Source(
    name=(
        "cost model of a real vLLM (Llama-3.1-8B, one H100, batch 1-64), Speculative Decoding: "
        "Performance or Illusion?"
    ),
    url="https://arxiv.org/abs/2601.11580",
    commit="2fdccbd",
    licence="none stated: compared with, not redistributed",
    used_for="framework overhead; check",
)
_SPLITWISE = Source(
    name="Splitwise measured iteration times (Llama-2-70B)",
    url="https://github.com/Mutinifni/splitwise-sim",
    commit="8f99e7dc9b407f4ce2488d03dd44c0b8b946dab0",
    licence="MIT",
    used_for="check",
)
_SLUGS = {
    "A100-SXM-80GB": "a100-sxm",
    "H100-SXM-80GB": "h100-sxm",
    "H200-SXM-141GB": "h200-sxm",
    "L40S-48GB": "l40s",
    "RTX-PRO-6000-96GB": "rtx-pro-6000",
    "RTX-4090-24GB": "rtx-4090",
}


@dataclass(frozen=True)
class KernelEntry:
    """A profile fitted to sums of measured kernels or layers."""

    model: str
    device: str
    tp: int
    role: str

    def slug(self) -> str:
        """Name of the profile."""
        return f"{self.model.lower()}_{_SLUGS[self.device]}_tp{self.tp}"


@dataclass(frozen=True)
class VllmEntry:
    """A kernel-sum profile corrected to the cost model of a real vLLM (8B on one H100)."""

    model: str = "Llama-3-8B"
    device: str = "H100-SXM-80GB"
    tp: int = 1

    def slug(self) -> str:
        """Name of the profile."""
        return f"{self.model.lower()}_{_SLUGS[self.device]}_tp{self.tp}_vllm"


@dataclass(frozen=True)
class MeasuredEntry:
    """A profile fitted to Splitwise's whole iterations of 2023."""

    model: str
    device: str
    tp: int

    def slug(self) -> str:
        """Name of the profile."""
        return f"{self.model.lower()}_{_SLUGS[self.device]}_tp{self.tp}_splitwise2023"


@dataclass(frozen=True)
class EdgeEntry:
    """A drafter profile from published tokens per second."""

    model: str
    quant: str
    device: str
    slug_device: str
    cls: str
    figures_of: tuple[str, ...]
    power: Power

    def slug(self) -> str:
        """Name of the profile."""
        bits = "int4" if self.quant in ("INT4", "W4A16", "int4 SpinQuant", "int4") else "q4"
        return f"{self.model.lower()}-{bits}_{self.slug_device}"


def _power(idle: float, busy: float, label: str, note: str) -> Power:
    return Power.model_validate({"idle_w": idle, "busy_w": busy, "label": label, "note": note})


_PHONE = _power(
    0.6,
    7.0,
    "spec",
    "sustained package power of a flagship phone under CPU load, typical, not measured by us",
)
_M4 = _power(
    4.0,
    30.1,
    "measured",
    "busy: 30.1 W at the wall while generating (geerlingguy/ai-benchmarks, Mac mini); idle: typical",
)
_M3_PRO = _power(
    5.0,
    40.0,
    "spec",
    "busy: package power under GPU load, typical of the chip, not measured by us; idle: typical",
)
_M3_MAX = _power(
    6.0,
    60.0,
    "spec",
    "busy: package power under GPU load, typical of the chip, not measured by us; idle: typical",
)
_ORIN_NANO = _power(5.0, 25.0, "spec", "busy: the module's 25 W power mode; idle: typical")
_AGX_ORIN = _power(10.0, 60.0, "spec", "busy: the module's 60 W maximum power mode; idle: typical")
_RTX_4090 = _power(
    25.0,
    450.0,
    "spec",
    (
        "busy: board power limit, an upper bound (a whole PC drew 262 W while generating, "
        "geerlingguy/ai-benchmarks); idle: typical"
    ),
)
_RTX_4070_TI = _power(15.0, 285.0, "spec", "busy: board power limit, an upper bound; idle: typical")
_PI_5 = _power(
    3.0,
    11.9,
    "measured",
    "busy: 11.9 W at the wall while generating (geerlingguy/ai-benchmarks); idle: typical",
)

_RTX_3070_LAPTOP = _power(
    10.0, 125.0, "spec", "busy: largest graphics power of the laptop part; idle: typical"
)
_RTX_3090 = _power(25.0, 350.0, "spec", "busy: board power limit, an upper bound; idle: typical")
_M1 = _power(4.0, 20.0, "spec", _M3_PRO.note)
_M1_MAX = _power(6.0, 60.0, "spec", _M3_PRO.note)
_M2_PRO = _power(5.0, 40.0, "spec", _M3_PRO.note)
_M2_MAX = _power(6.0, 60.0, "spec", _M3_PRO.note)

_1B, _3B, _8B, _70B = "Llama-3.2-1B", "Llama-3.2-3B", "Llama-3-8B", "Llama-3-70B"
_L2_70B, _Q3_32B, _Q25_32B, _Q25_72B = "Llama-2-70B", "Qwen3-32B", "Qwen2.5-32B", "Qwen2.5-72B"
_A100, _H100, _H200, _L40S = "A100-SXM-80GB", "H100-SXM-80GB", "H200-SXM-141GB", "L40S-48GB"
_PRO, _4090 = "RTX-PRO-6000-96GB", "RTX-4090-24GB"

# Model -> device -> tensor parallelism. Left out: what leaves no room for a KV cache, what the attention
# table lacks (20 query heads with 4 KV heads on A100: Qwen2.5-32B at tp 2), eight L40S (the measured
# all-reduce moves 1.1 GB/s over PCIe there: nobody would serve so), and RTX 4090 beyond its one measured
# model.
_TARGETS: dict[str, dict[str, tuple[int, ...]]] = {
    _70B: {_H100: (4, 2, 8), _A100: (4, 2, 8), _H200: (2, 4), _L40S: (4,), _PRO: (2, 4)},
    _L2_70B: {_H100: (2, 4, 8), _A100: (2, 4, 8)},
    _Q25_72B: {_H100: (2, 4), _A100: (2, 4), _H200: (2,), _L40S: (4,), _PRO: (2, 4)},
    _Q3_32B: {_H100: (1, 2), _A100: (1, 2), _H200: (1, 2), _L40S: (2, 4), _PRO: (1, 2)},
    _Q25_32B: {_H100: (1, 2), _A100: (1,), _H200: (1,), _L40S: (2, 4), _PRO: (1, 2)},
    _8B: {_H100: (1, 2), _H200: (1,), _A100: (1, 2), _4090: (1,), _PRO: (1, 2), _L40S: (2,)},
}
_DRAFTERS: dict[str, dict[str, tuple[int, ...]]] = {
    _8B: {_L40S: (1,)},
    _3B: {_H100: (1,), _A100: (1,), _L40S: (1,), _PRO: (1,)},
    _1B: {_H100: (1,), _A100: (1,), _L40S: (1,), _PRO: (1,)},
}

# (device, slug, class, names in the figures, power, quantisation, models)
_EDGE: tuple[tuple[str, str, str, tuple[str, ...], Power, str, tuple[str, ...]], ...] = (
    (
        "Snapdragon-8-Gen-3-phone",
        "snapdragon-8-gen-3",
        "phone-cpu",
        ("OnePlus 12 (Snapdragon 8 Gen 3 CPU)",),
        _PHONE,
        "int4 SpinQuant",
        (_1B, _3B),
    ),
    (
        "Snapdragon-8-Gen-3-phone",
        "snapdragon-8-gen-3",
        "phone-cpu",
        ("OnePlus 12 (Snapdragon 8 Gen 3 CPU)",),
        _PHONE,
        "int4",
        (_8B,),
    ),
    ("Apple-M1", "apple-m1", "apple", ("Apple M1 7-core GPU 8GB",), _M1, "Q4_K_M", (_1B, _3B, _8B)),
    (
        "Apple-M1-Max",
        "apple-m1-max",
        "apple",
        ("Apple M1 Max 32-core", "Apple M1 Max 64GB", "Apple M1 Max Mac Studio"),
        _M1_MAX,
        "Q4_K_M",
        (_1B, _3B, _8B),
    ),
    (
        "Apple-M2-Pro",
        "apple-m2-pro",
        "apple",
        ("Apple M2 Pro (mini 12/19)",),
        _M2_PRO,
        "Q4_K_M",
        (_1B, _3B, _8B),
    ),
    ("Apple-M2-Max", "apple-m2-max", "apple", ("Apple M2 Max 30-core",), _M2_MAX, "Q4_K_M", (_1B, _3B, _8B)),
    (
        "Apple-M4",
        "apple-m4",
        "apple",
        ("Apple M4 10-core 16GB", "Apple M4 Mac mini 10-core 32GB"),
        _M4,
        "Q4_K_M",
        (_1B, _3B, _8B),
    ),
    ("Apple-M3-Pro", "apple-m3-pro", "apple", ("Apple M3 Pro 18-core",), _M3_PRO, "Q4_K_M", (_1B, _3B, _8B)),
    ("Apple-M3-Max", "apple-m3-max", "apple", ("Apple M3 Max 40-core",), _M3_MAX, "Q4_K_M", (_1B, _3B, _8B)),
    (
        "Jetson-Orin-Nano-Super-8GB",
        "jetson-orin-nano-super",
        "jetson",
        ("Jetson Orin Nano Super 8GB",),
        _ORIN_NANO,
        "INT4",
        (_1B, _3B, _8B),
    ),
    (
        "Jetson-AGX-Orin-64GB",
        "jetson-agx-orin",
        "jetson",
        ("Jetson AGX Orin 64GB",),
        _AGX_ORIN,
        "W4A16",
        (_1B, _3B, _8B),
    ),
    (
        "RTX-4090-24GB",
        "rtx-4090",
        "rtx",
        ("NVIDIA RTX 4090 24GB", "NVIDIA RTX 4090 (265K PC)"),
        _RTX_4090,
        "Q4_K_M",
        (_1B, _3B, _8B),
    ),
    ("RTX-3090-24GB", "rtx-3090", "rtx", ("NVIDIA RTX 3090 24GB",), _RTX_3090, "Q4_K_M", (_1B, _3B, _8B)),
    (
        "RTX-4070-Ti-12GB",
        "rtx-4070-ti",
        "rtx",
        ("NVIDIA RTX 4070 Ti 12GB",),
        _RTX_4070_TI,
        "Q4_K_M",
        (_1B, _3B, _8B),
    ),
    (
        "RTX-3070-laptop-8GB",
        "rtx-3070-laptop",
        "rtx",
        ("NVIDIA RTX 3070 mobile 8GB",),
        _RTX_3070_LAPTOP,
        "Q4_K_M",
        (_1B, _3B, _8B),
    ),
    (
        "Raspberry-Pi-5-16GB",
        "raspberry-pi-5",
        "cpu",
        ("Raspberry Pi 5 16GB",),
        _PI_5,
        "Q4_K_M",
        (_1B, _3B, _8B),
    ),
)

Entry = KernelEntry | VllmEntry | MeasuredEntry | EdgeEntry


def _entries() -> list[Entry]:
    entries: list[Entry] = []
    for role, table in (("target", _TARGETS), ("drafter", _DRAFTERS)):
        for model, devices in table.items():
            for device, degrees in devices.items():
                entries += [KernelEntry(model, device, tp, role) for tp in degrees]
    entries.append(VllmEntry())
    entries += [MeasuredEntry(_L2_70B, device, tp) for device in (_H100, _A100) for tp in (2, 4, 8)]
    for device, slug, cls, names, power, quant, models in _EDGE:
        entries += [EdgeEntry(model, quant, device, slug, cls, names, power) for model in models]
    return entries


CATALOGUE: dict[str, Entry] = {e.slug(): e for e in _entries()}
"""Profile name -> what it is built from."""


@dataclass(frozen=True)
class Built:
    """A profile, and for fitted ones the cells behind it."""

    profile: LatencyProfile
    fit: FitResult | None = None
    cells: tuple[Cell, ...] = ()
    model: StepModel | None = None


# ------------------------------------------------------------------------------------------------ loading
# Cached because ``--all`` builds several profiles from the same folder in one process.


@cache
def _kernels(data_dir: Path, table: str) -> AiConfiguratorTables:
    return load_aiconfigurator(data_dir, table)


@cache
def _small_ops_tables(data_dir: Path, model: str = LLAMA_8B) -> DenseLayers:
    return load_dense_layers(data_dir, "RTXPRO6000", model)


@cache
def _layers(data_dir: Path, table: str, model: str, tp: int) -> LayerTables:
    return load_layer_tables(data_dir, table, model, tp)


@cache
def _figures(data_dir: Path) -> tuple[Figure, ...]:
    return tuple(load_figures(data_dir))


@cache
def _splitwise(data_dir: Path) -> tuple[SplitwiseCell, ...]:
    return tuple(load_splitwise(data_dir))


def _layer_source(shape: ModelShape, device: DeviceSpec, tp: int) -> tuple[str, str] | None:
    """Folder and model of LLMServingSim's layers where it measured this model, device and parallelism."""
    if device.name == _4090 and shape.name == _8B and tp == 1:
        return "RTX4090", LLAMA_8B
    if device.name == _PRO and tp in (1, 2):
        model = {_8B: LLAMA_8B, _Q3_32B: QWEN3_32B}.get(shape.name)
        return ("RTXPRO6000", model) if model else None
    return None


def _borrows_attention(shape: ModelShape, device: DeviceSpec, tp: int) -> bool:
    """Whether Qwen3-32B's measured mixed batches have this model's heads (64, 8 of them KV, of 128)."""
    same = (shape.heads, shape.kv_heads, shape.head_dim) == (64, 8, 128)
    return device.name == _PRO and tp in (1, 2) and same


def _step_model(
    shape: ModelShape, device: DeviceSpec, tp: int, data_dir: Path, overhead_s: float
) -> StepModel:
    measured = _layer_source(shape, device, tp)
    if measured is not None:
        allreduce = _kernels(data_dir, device.table).allreduce[(tp,)] if tp > 1 else None
        return layer_step_model(shape, _layers(data_dir, *measured, tp), overhead_s, allreduce)
    qwen = _small_ops_tables(data_dir, QWEN3_32B) if shape.name.startswith("Qwen") else None
    model = kernel_step_model(
        shape, device, tp, _kernels(data_dir, device.table), _small_ops_tables(data_dir), overhead_s, qwen
    )
    if _borrows_attention(shape, device, tp):
        model = with_mixed_attention(model, _layers(data_dir, "RTXPRO6000", QWEN3_32B, tp).attention)
    return model


def kernel_and_layer_cells(model: str, tp: int, data_dir: Path) -> tuple[dict[str, Cell], dict[str, Cell]]:
    """The same iterations on RTX PRO 6000 from AIConfigurator's kernels and from LLMServingSim's layers.

    By key, no framework overhead in either; for models that both measured (Llama-3-8B and Qwen3-32B at tensor
    parallelism 1 and 2).
    """
    shape, device = MODELS[model], DEVICES[_PRO]
    tables = _kernels(data_dir, device.table)
    qwen = _small_ops_tables(data_dir, QWEN3_32B) if shape.name.startswith("Qwen") else None
    small = _small_ops_tables(data_dir)
    source = _layer_source(shape, device, tp)
    assert source is not None
    allreduce = tables.allreduce[(tp,)] if tp > 1 else None
    capacity = int((MEMORY_SHARE * device.memory_bytes * tp - 2 * shape.params) / shape.kv_bytes_per_token())
    kernels = kernel_step_model(shape, device, tp, tables, small, 0.0, qwen)
    layers = layer_step_model(shape, _layers(data_dir, *source, tp), 0.0, allreduce)
    return (
        {c.key: c for c in build_cells(kernels, capacity)},
        {c.key: c for c in build_cells(layers, capacity)},
    )


def _vllm_8b_h100_s(batch: int, q: int, context: int) -> float:
    """Llama-3.1-8B on one H100 in a real vLLM, as its authors fitted it, their 1.207 ms a step included."""
    return 1e-3 * (5.886 + 1.207) + 21.0e-6 * batch * q + 39.3e-9 * batch * context


_CHECK_BATCHES = (1, 2, 4, 8, 16, 32, 64)
_CHECK_CONTEXTS = (512, 1024, 2048)


@cache
def framework_overhead_s(data_dir: Path) -> float:
    """What a real vLLM takes a step beyond the sum of its kernels: scheduling, input preparation, output.

    Median of (cost model fitted to a real vLLM - kernel sum) for Llama-3-8B on one H100 at batch 1-64 and
    context 512-2048, plain decoding; the one place where both are at hand. Host work hardly depends on the
    GPU, so the other devices carry the same figure; it is part of ``t0``.
    """
    model = _step_model(MODELS[_8B], DEVICES["H100-SXM-80GB"], 1, data_dir, 0.0)
    missing = []
    for batch in _CHECK_BATCHES:
        for context in _CHECK_CONTEXTS:
            kernels = model.sequences_s(batch, 1, context)
            if kernels is not None:
                missing.append(_vllm_8b_h100_s(batch, 1, context) - kernels)
    return float(f"{max(float(np.median(missing)), 0.0):.3g}")


# --------------------------------------------------------------------------------------- external checks


def _check(name: str, pairs: Sequence[tuple[float, float]], note: str) -> ExternalCheck:
    ratios = np.array([measured / predicted for measured, predicted in pairs])
    return ExternalCheck(
        name=name,
        ratio_median=round(float(np.median(ratios)), 3),
        ratio_min=round(float(ratios.min()), 3),
        ratio_max=round(float(ratios.max()), 3),
        cells=len(pairs),
        note=note,
    )


def _pairs(cells: Sequence[Cell], k: StepCoefficients, region: str) -> list[tuple[float, float]]:
    """(measured, predicted) seconds of the cells of a region."""
    return [
        (c.seconds, k.step_s(c.new_tokens, c.kv_tokens, c.max_kv_multi_tokens))
        for c in cells
        if c.region == region
    ]


def _external_checks(
    entry: KernelEntry, k: StepCoefficients, data_dir: Path
) -> tuple[list[ExternalCheck], list[Source]]:
    checks: list[ExternalCheck] = []
    sources: list[Source] = []
    if entry.model in (_70B, _L2_70B) and entry.device in HARDWARE:
        measured = iteration_cells(
            select(_splitwise(data_dir), "llama2-70b", HARDWARE[entry.device], entry.tp)
        )
        stack = (
            "measured in 2023 on a serving stack without CUDA graphs, where launching some 1,000 "
            "kernels bounds an "
            "iteration: flat in batch up to 16 and far above the sum of kernels"
        )
        checks.append(_check("Splitwise Llama-2-70B decode, batch 1-64", _pairs(measured, k, DECODE), stack))
        checks.append(
            _check(
                "Splitwise Llama-2-70B prefill, 512-8192 tokens",
                _pairs([c for c in measured if c.new_tokens >= 512], k, PREFILL),
                "one prompt in one iteration",
            )
        )
        sources.append(_SPLITWISE)
    if entry.model == _8B and entry.device == _H100 and entry.tp == 1:
        for name, queries, note in (
            ("real vLLM, Llama-3.1-8B decode", (1,), "the framework overhead in t0 comes from these cells"),
            (
                "real vLLM, Llama-3.1-8B verification, q 3-9",
                (3, 5, 9),
                (
                    "the cost model is linear in tokens, 21 us each from the first on; kernel sums stay "
                    "flat up to the knee"
                ),
            ),
        ):
            pairs = [
                (_vllm_8b_h100_s(b, q, c), k.step_s(b * q, b * (c + q), c + q if q > 1 else 0))
                for b in _CHECK_BATCHES
                for c in _CHECK_CONTEXTS
                for q in queries
            ]
            checks.append(_check(name, pairs, note))
    return checks, sources


# ------------------------------------------------------------------------------------------------ builders


def _kernel_profile(name: str, entry: KernelEntry, data_dir: Path, command: str, date: str) -> Built:
    shape, device = MODELS[entry.model], DEVICES[entry.device]
    overhead = framework_overhead_s(data_dir)
    model = _step_model(shape, device, entry.tp, data_dir, overhead)
    weights = 2 * shape.params
    kv_bytes = shape.kv_bytes_per_token()
    room = MEMORY_SHARE * device.memory_bytes * entry.tp
    capacity = int((room - weights) / kv_bytes)
    cells = build_cells(model, capacity)
    fit = fit_split(cells, t0_floor_s=overhead, multi_kv=not device.splits_multi_token_attention)
    checks, sources = _external_checks(entry, fit.coefficients, data_dir)
    if _layer_source(shape, device, entry.tp) is not None:
        sources.insert(
            0,
            _LLMSERVINGSIM.model_copy(
                update={"used_for": "all layers, output projection, sampler, mixed-batch attention"}
            ),
        )
        attention = (
            "attention with q > 1 is read from the measured mixed-batch table (chunks of 16 and 32 "
            "tokens stand for "
            "q = 2 ... 17: the kernel works on tiles of 64 rows)"
        )
    else:
        sources = [_AICONFIGURATOR, _LLMSERVINGSIM, *sources]
        if _borrows_attention(shape, device, entry.tp):
            attention = (
                "attention is read from the mixed-batch table measured with Qwen3-32B on this device: the "
                "same heads and head dimension; chunks of 16 and 32 tokens stand for q = 2 ... 17"
            )
        elif device.splits_multi_token_attention:
            attention = (
                "attention with q > 1 on a cached context is not in any table: taken as the larger "
                "of decode attention and the "
                "tiles' work spread over all multiprocessors (FlashAttention-3 packs grouped heads "
                "and splits sequences)"
            )
        else:
            attention = (
                "attention with q > 1 on a cached context is not in any table: waves of one "
                "(sequence, head) per multiprocessor, "
                "each walking its context at the speed of single-head context attention "
                "(FlashAttention-2 neither packs grouped "
                "heads nor splits then); the same rule meets the RTX 4090's measured mixed batches "
                "within -11 % to +1 %"
            )
    sources.append(_VLLM_MODEL)
    notes = [
        attention,
        f"t0 includes {overhead * 1e3:.3g} ms of framework overhead: median difference between a real "
        "vLLM (8B on one H100, plain "
        "decoding) and the kernel sum; carried over to the other devices as host work",
    ]
    if entry.device == _L40S and entry.tp == 4:
        notes.append(
            "the measured all-reduce of four L40S moves 2.5 GB/s over PCIe and takes most of a verification "
            "or prefill; another topology or library would be faster"
        )
    if entry.device == "A100-SXM-80GB" and shape.head_dim != 128:
        notes.append("the A100 attention table has heads of 128 only: 16 of them stand for 32 of 64")
    profile = LatencyProfile(
        name=name,
        role="target" if entry.role == "target" else "drafter",
        model=shape.name,
        device=device.name,
        parallelism=entry.tp,
        precision="bf16",
        label="fitted",
        coefficients=fit.coefficients,
        weight_bytes=weights,
        kv_bytes_per_token=kv_bytes,
        context_limit_tokens=shape.context_limit_tokens,
        kv_capacity_tokens=capacity if entry.role == "target" else None,
        kv_capacity_note=(
            f"({MEMORY_SHARE} * {entry.tp} * {device.memory_bytes / 1024**3:.0f} GiB - "
            f"{weights / 1024**3:.1f} GiB of weights) / "
            f"{kv_bytes / 1024:.0f} KiB a token"
            if entry.role == "target"
            else ""
        ),
        power=_power(entry.tp * device.idle_w, entry.tp * device.tdp_w, "spec", device.power_source),
        provenance=Provenance(sources=tuple(sources), command=command, date=date),
        error=fit.error,
        external_checks=tuple(checks),
        notes=tuple(notes),
    )
    return Built(profile, fit, tuple(cells), model)


def _changed(profile: LatencyProfile, changes: Mapping[str, object]) -> LatencyProfile:
    """A profile with other values, validated (pydantic's ``model_copy`` validates nothing)."""
    return LatencyProfile.model_validate({**dict(profile), **changes})


_VLLM_LIMIT_TOKENS = 576
"""Largest iteration in the vLLM cost model's range: 64 sequences of nine tokens."""


def _vllm_cells(data_dir: Path) -> tuple[list[Cell], list[float]]:
    """Iterations by the vLLM cost model, and the kernel sum (without overhead) of each."""
    model = _step_model(MODELS[_8B], DEVICES[_H100], 1, data_dir, 0.0)
    cells, kernels = [], []
    for batch in _CHECK_BATCHES:
        for context in (*_CHECK_CONTEXTS, 4096):
            for q in (1, 3, 5, 7, 9):
                kernel = model.sequences_s(batch, q, context)
                if kernel is None:
                    continue
                region, longest = (DECODE, 0) if q == 1 else (VERIFY, context + q)
                seconds = _vllm_8b_h100_s(batch, q, context)
                key = f"vllm_b{batch}_q{q}_s{context}"
                cells.append(Cell(key, region, batch * q, batch * (context + q), longest, seconds))
                kernels.append(kernel)
    return cells, kernels


def _vllm_profile(name: str, entry: VllmEntry, data_dir: Path, command: str, date: str) -> Built:
    """Kernel sums with an overhead of ``a + b * tokens`` fitted to part of a real vLLM's cost model."""
    kernel_entry = KernelEntry(entry.model, entry.device, entry.tp, "target")
    base = _kernel_profile(name, kernel_entry, data_dir, command, date)
    assert base.model is not None
    vllm, kernels = _vllm_cells(data_dir)
    known = dict(zip((c.key for c in vllm), kernels, strict=True))
    train, heldout = split_cells(vllm, heldout_share=0.5)
    seconds = np.array([c.seconds for c in train])
    missing = seconds - np.array([known[c.key] for c in train])
    design = np.stack([np.ones(len(train)), [float(c.new_tokens) for c in train]], axis=1)
    (a, b), *_ = np.linalg.lstsq(design / seconds[:, None], missing / seconds, rcond=None)
    fixed, slope = max(float(f"{a:.3g}"), 0.0), max(float(f"{b:.3g}"), 0.0)
    before = framework_overhead_s(data_dir)
    cells = [
        replace(c, seconds=c.seconds - before + fixed + slope * min(c.new_tokens, _VLLM_LIMIT_TOKENS))
        for c in base.cells
    ]
    fit = fit_split(cells, multi_kv=not DEVICES[entry.device].splits_multi_token_attention)
    error = error_stats(
        fit.coefficients,
        heldout,
        len(train),
        f"{len(heldout)} of {len(vllm)} iterations of the vLLM cost model (batch 1-64, q 1-9, context "
        f"512-4096) held out by a hash of their names; overhead fitted on the other {len(train)}",
    )
    form = fit.error
    checks = [
        _check(
            f"real vLLM, Llama-3.1-8B {region}, held-out cells", _pairs(heldout, fit.coefficients, region), ""
        )
        for region in (DECODE, VERIFY)
    ]
    notes = (
        f"kernel sums plus {fixed * 1e3:.3g} ms and {slope * 1e6:.3g} us for every new token up to "
        f"{_VLLM_LIMIT_TOKENS} an iteration, fitted to the vLLM cost model; beyond, the correction stays "
        "what it is there, since that model says nothing of prefill",
        f"the form misses its own corrected kernel sums by {form.heldout_median_pct} % (median) and "
        f"{form.heldout_p95_pct} % (p95), held out",
        "the cost model is itself a straight line fitted to a real vLLM: its scatter is not known here",
        *base.profile.notes[:1],
    )
    profile = _changed(
        base.profile,
        {
            "coefficients": fit.coefficients,
            "error": error,
            "external_checks": tuple(checks),
            "notes": notes,
        },
    )
    return Built(profile, replace(fit, heldout=tuple(heldout), error=error), tuple(cells), base.model)


_SPLITWISE_KNOTS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


def _measured_profile(name: str, entry: MeasuredEntry, data_dir: Path, command: str, date: str) -> Built:
    """Knots fitted to whole iterations; attention from the kernel sums of the same model and devices."""
    kernel_entry = KernelEntry(entry.model, entry.device, entry.tp, "target")
    base = _kernel_profile(name, kernel_entry, data_dir, command, date)
    kernel = base.profile.coefficients
    repeats = select(_splitwise(data_dir), "llama2-70b", HARDWARE[entry.device], entry.tp)
    cells = iteration_cells(repeats)
    closed = fit_coefficients(cells, multi_kv=False)

    def fit(train: Sequence[Cell]) -> StepCoefficients:
        found = fit_knots(train, closed, grids=(_SPLITWISE_KNOTS,), attention=kernel)
        assert found is not None
        return found

    coefficients = fit(cells)
    left_out = leave_one_out(cells, fit)
    error = summarise(
        left_out,
        cells,
        len(cells) - 1,
        f"leave-one-out over {len(cells)} measured iterations, each the median of about five repeats",
    )
    inside = 100.0 * np.abs(relative_errors(coefficients, cells))
    scatter = fit_noise([c.prompt_s for c in repeats if c.batch == 1])
    noise = Noise(
        sigma=float(f"{scatter.sigma:.3g}"),
        straggler_share=float(f"{scatter.straggler_share:.3g}"),
        straggler_factor=float(f"{scatter.straggler_factor:.3g}"),
        source=(
            f"{scatter.repeats} repeats of {scatter.kinds} prompt phases of one prompt (one iteration each); "
            f"stragglers: {scatter.stragglers} beyond 1.1 times the median of their kind"
        ),
    )
    batched = iteration_cells(repeats, prompts="batched")
    check = _check(
        "Splitwise Llama-2-70B, 2 to 32 prompts of 512 in one prompt phase",
        _pairs(batched, coefficients, PREFILL),
        "not fitted: the same number of tokens takes longer there as several prompts than as one",
    )
    profile = _changed(
        base.profile,
        {
            "label": "measured",
            "coefficients": coefficients,
            "error": error,
            "external_checks": (check,),
            "noise": noise,
            "provenance": Provenance(
                sources=(
                    _SPLITWISE.model_copy(update={"used_for": "whole iterations, noise"}),
                    _AICONFIGURATOR.model_copy(update={"used_for": "attention coefficients"}),
                    _LLMSERVINGSIM,
                ),
                command=command,
                date=date,
            ),
            "notes": (
                "a serving stack of 2023 without CUDA graphs: not what a current engine does",
                "the knots were fitted to the measured iterations; k_bw, k_lat and k_multi are those of the "
                "kernel sums, since the measured cells do not tell attention from the rest",
                f"fitted to all cells the knots miss them by {np.median(inside):.1f} % (median), "
                f"{inside.max():.1f} % (max)",
                *(_affine_text(region, cells, kernel) for region in (DECODE, PREFILL)),
                "measured: batch 1-64 at a context of 576, contexts to 8,256 at batch 1, prompts of "
                "128-8,192. Long contexts in large batches and verification (q > 1) were not: there the "
                "knots and the kernels' attention stand in",
            ),
        },
    )
    parts = FitResult(
        coefficients, error, tuple(cells), tuple(cells), closed, tuple(float(e) for e in left_out)
    )
    return Built(profile, parts, tuple(cells), None)


def _affine_text(region: str, cells: Sequence[Cell], kernel: StepCoefficients) -> str:
    """The simplest correction, measured = a + b * kernel profile, fitted to a region; leave-one-out."""
    pairs = np.array(_pairs(cells, kernel, region))
    design = np.stack([1.0 / pairs[:, 0], pairs[:, 1] / pairs[:, 0]], axis=1)

    def solve(rows: NDArray[np.float64]) -> tuple[float, float]:
        (a, b), *_ = np.linalg.lstsq(rows, np.ones(len(rows)), rcond=None)
        return float(a), float(b)

    errors = []
    for i in range(len(pairs)):
        a, b = solve(np.delete(design, i, axis=0))
        errors.append(100.0 * abs((a + b * pairs[i, 1]) / pairs[i, 0] - 1.0))
    a, b = solve(design)
    return (
        f"for comparison: {region} = {a * 1e3:.3g} ms + {b:.3g} times the kernel-sum profile misses cells "
        f"left out by {np.median(errors):.1f} % (median), {max(errors):.1f} % (max)"
    )


@cache
def _class_fit(data_dir: Path, name: str) -> ClassFit:
    return fit_class(name, _figures(data_dir))


def _edge_profile(name: str, entry: EdgeEntry, data_dir: Path, command: str, date: str) -> Built:
    shape = MODELS[entry.model]
    cls = _class_fit(data_dir, entry.cls)
    step = edge_step(shape, entry.quant, entry.figures_of, cls, _figures(data_dir))
    sources = tuple(
        Source(name=s, licence="figures cited from the source", used_for="published tokens/s")
        for s in step.sources
    )
    profile = LatencyProfile(
        name=name,
        role="drafter",
        model=shape.name,
        device=entry.device,
        parallelism=1,
        precision=entry.quant,
        label="published",
        coefficients=step.coefficients,
        weight_bytes=resident_bytes(shape, entry.quant),
        kv_bytes_per_token=shape.kv_bytes_per_token(),
        context_limit_tokens=shape.context_limit_tokens,
        power=entry.power,
        provenance=Provenance(sources=sources, command=command, date=date),
        error=cls.error,
        notes=(
            *step.notes,
            "step time affine in new tokens (p = 1): decode and prefill rates determine no knee",
            (
                "k_bw is derived: bytes of 16-bit KV over eta * bandwidth; no published figure varies "
                "the context"
            ),
        ),
    )
    return Built(profile)


def build(name: str, data_dir: Path, command: str, date: str) -> Built:
    """Build one profile of the catalogue.

    Args:
        name: key of :data:`CATALOGUE`.
        data_dir: folder with the measured tables.
        command: command line to record as provenance.
        date: ISO date to record.

    Raises:
        KeyError: unknown name.
        TableError: a table is missing or malformed.
    """
    entry = CATALOGUE[name]
    if isinstance(entry, KernelEntry):
        return _kernel_profile(name, entry, data_dir, command, date)
    if isinstance(entry, VllmEntry):
        return _vllm_profile(name, entry, data_dir, command, date)
    if isinstance(entry, MeasuredEntry):
        return _measured_profile(name, entry, data_dir, command, date)
    return _edge_profile(name, entry, data_dir, command, date)
