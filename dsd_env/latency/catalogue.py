"""The shipped profiles: what each is built from, and the builders.

``build(name, data_dir, command, date)`` turns measured tables into a :class:`LatencyProfile`; everything
the profile states about itself (sources, error, checks against whole iterations, notes) is put together here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from dsd_env.latency.cells import Cell
from dsd_env.latency.edge import ClassFit, Figure, edge_step, fit_class, load_figures, resident_bytes
from dsd_env.latency.fit import FitResult, fit_split
from dsd_env.latency.profile import ExternalCheck, LatencyProfile, Power, Provenance, Source, StepCoefficients
from dsd_env.latency.shapes import DEVICES, MODELS, DeviceSpec, ModelShape
from dsd_env.latency.tables import (
    AiConfiguratorTables,
    DenseLayers,
    LayerTables,
    StepModel,
    TableError,
    build_cells,
    kernel_step_model,
    layer_step_model,
    load_aiconfigurator,
    load_dense_layers,
    load_layer_tables,
    read_table,
)

__all__ = ["CATALOGUE", "Built", "EdgeEntry", "KernelEntry", "build", "framework_overhead_s"]

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


@dataclass(frozen=True)
class KernelEntry:
    """A profile fitted to sums of measured kernels or layers."""

    model: str
    device: str
    tp: int
    role: str

    def slug(self) -> str:
        """Name of the profile."""
        device = {
            "A100-SXM-80GB": "a100-sxm",
            "H100-SXM-80GB": "h100-sxm",
            "H200-SXM-141GB": "h200-sxm",
            "L40S-48GB": "l40s",
            "RTX-4090-24GB": "rtx-4090",
        }[self.device]
        return f"{self.model.lower()}_{device}_tp{self.tp}"


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

_M4_NAMES = ("Apple M4 10-core 16GB", "Apple M4 Mac mini 10-core 32GB")
_M3_PRO_NAMES = ("Apple M3 Pro 18-core",)
_M3_MAX_NAMES = ("Apple M3 Max 40-core",)
_NANO_NAMES = ("Jetson Orin Nano Super 8GB",)
_AGX_NAMES = ("Jetson AGX Orin 64GB",)
_4090_NAMES = ("NVIDIA RTX 4090 24GB", "NVIDIA RTX 4090 (265K PC)")
_4070_NAMES = ("NVIDIA RTX 4070 Ti 12GB",)
_SNAPDRAGON = ("OnePlus 12 (Snapdragon 8 Gen 3 CPU)",)

_1B, _3B, _8B, _70B = "Llama-3.2-1B", "Llama-3.2-3B", "Llama-3-8B", "Llama-3-70B"

_ENTRIES: tuple[KernelEntry | EdgeEntry, ...] = (
    KernelEntry(_70B, "H100-SXM-80GB", 4, "target"),
    KernelEntry(_70B, "A100-SXM-80GB", 4, "target"),
    KernelEntry(_8B, "H100-SXM-80GB", 1, "target"),
    KernelEntry(_8B, "H200-SXM-141GB", 1, "target"),
    KernelEntry(_8B, "A100-SXM-80GB", 1, "target"),
    KernelEntry(_8B, "RTX-4090-24GB", 1, "target"),
    KernelEntry(_8B, "L40S-48GB", 1, "drafter"),
    KernelEntry(_3B, "H100-SXM-80GB", 1, "drafter"),
    KernelEntry(_3B, "A100-SXM-80GB", 1, "drafter"),
    KernelEntry(_3B, "L40S-48GB", 1, "drafter"),
    KernelEntry(_1B, "H100-SXM-80GB", 1, "drafter"),
    KernelEntry(_1B, "A100-SXM-80GB", 1, "drafter"),
    KernelEntry(_1B, "L40S-48GB", 1, "drafter"),
    EdgeEntry(
        _1B,
        "int4 SpinQuant",
        "Snapdragon-8-Gen-3-phone",
        "snapdragon-8-gen-3",
        "phone-cpu",
        _SNAPDRAGON,
        _PHONE,
    ),
    EdgeEntry(
        _3B,
        "int4 SpinQuant",
        "Snapdragon-8-Gen-3-phone",
        "snapdragon-8-gen-3",
        "phone-cpu",
        _SNAPDRAGON,
        _PHONE,
    ),
    EdgeEntry(_1B, "Q4_K_M", "Apple-M4", "apple-m4", "apple", _M4_NAMES, _M4),
    EdgeEntry(_3B, "Q4_K_M", "Apple-M4", "apple-m4", "apple", _M4_NAMES, _M4),
    EdgeEntry(_8B, "Q4_K_M", "Apple-M4", "apple-m4", "apple", _M4_NAMES, _M4),
    EdgeEntry(_1B, "Q4_K_M", "Apple-M3-Pro", "apple-m3-pro", "apple", _M3_PRO_NAMES, _M3_PRO),
    EdgeEntry(_3B, "Q4_K_M", "Apple-M3-Pro", "apple-m3-pro", "apple", _M3_PRO_NAMES, _M3_PRO),
    EdgeEntry(_8B, "Q4_K_M", "Apple-M3-Max", "apple-m3-max", "apple", _M3_MAX_NAMES, _M3_MAX),
    EdgeEntry(
        _1B, "INT4", "Jetson-Orin-Nano-Super-8GB", "jetson-orin-nano-super", "jetson", _NANO_NAMES, _ORIN_NANO
    ),
    EdgeEntry(
        _3B, "INT4", "Jetson-Orin-Nano-Super-8GB", "jetson-orin-nano-super", "jetson", _NANO_NAMES, _ORIN_NANO
    ),
    EdgeEntry(_1B, "W4A16", "Jetson-AGX-Orin-64GB", "jetson-agx-orin", "jetson", _AGX_NAMES, _AGX_ORIN),
    EdgeEntry(_3B, "W4A16", "Jetson-AGX-Orin-64GB", "jetson-agx-orin", "jetson", _AGX_NAMES, _AGX_ORIN),
    EdgeEntry(_8B, "W4A16", "Jetson-AGX-Orin-64GB", "jetson-agx-orin", "jetson", _AGX_NAMES, _AGX_ORIN),
    EdgeEntry(_1B, "Q4_K_M", "RTX-4090-24GB", "rtx-4090", "rtx", _4090_NAMES, _RTX_4090),
    EdgeEntry(_3B, "Q4_K_M", "RTX-4090-24GB", "rtx-4090", "rtx", _4090_NAMES, _RTX_4090),
    EdgeEntry(_8B, "Q4_K_M", "RTX-4090-24GB", "rtx-4090", "rtx", _4090_NAMES, _RTX_4090),
    EdgeEntry(_1B, "Q4_K_M", "RTX-4070-Ti-12GB", "rtx-4070-ti", "rtx", _4070_NAMES, _RTX_4070_TI),
    EdgeEntry(_8B, "Q4_K_M", "RTX-4070-Ti-12GB", "rtx-4070-ti", "rtx", _4070_NAMES, _RTX_4070_TI),
    EdgeEntry(_3B, "Q4_K_M", "Raspberry-Pi-5-16GB", "raspberry-pi-5", "cpu", ("Raspberry Pi 5 16GB",), _PI_5),
)
CATALOGUE: dict[str, KernelEntry | EdgeEntry] = {e.slug(): e for e in _ENTRIES}
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
def _small_ops_tables(data_dir: Path) -> DenseLayers:
    return load_dense_layers(data_dir, "RTXPRO6000")


@cache
def _layers(data_dir: Path, table: str) -> LayerTables:
    return load_layer_tables(data_dir, table)


@cache
def _figures(data_dir: Path) -> tuple[Figure, ...]:
    return tuple(load_figures(data_dir))


def _step_model(
    shape: ModelShape, device: DeviceSpec, tp: int, data_dir: Path, overhead_s: float
) -> StepModel:
    if device.table == "RTX4090":
        return layer_step_model(shape, _layers(data_dir, device.table), overhead_s)
    return kernel_step_model(
        shape, device, tp, _kernels(data_dir, device.table), _small_ops_tables(data_dir), overhead_s
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


def splitwise_cells(data_dir: Path, hardware: str) -> tuple[dict[tuple[int, int], float], dict[int, float]]:
    """Median measured times of Llama-2-70B at tensor parallelism 4.

    Returns:
        ``{(batch, mean context): seconds a decode iteration}`` and ``{prompt tokens: seconds of prefill}``.
    """
    decode: dict[tuple[int, int], list[float]] = defaultdict(list)
    prefill: dict[int, list[float]] = defaultdict(list)
    columns = ("prompt_size", "batch_size", "token_size", "tensor_parallel", "prompt_time", "token_time")
    path = data_dir / "splitwise-sim" / "perf_model.csv"
    for v, t in read_table(path, columns, ("model", "hardware")):
        if t == {"model": "llama2-70b", "hardware": hardware} and v["tensor_parallel"] == 4:
            prompt, batch = int(v["prompt_size"]), int(v["batch_size"])
            if v["token_size"] == 128:
                decode[(batch, prompt + 64)].append(v["token_time"] * 1e-3)
            if batch == 1:
                prefill[prompt].append(v["prompt_time"] * 1e-3)
    if not decode:
        raise TableError(f"{path}: no llama2-70b rows for {hardware} with tensor_parallel = 4")
    return (
        {k: float(np.median(v)) for k, v in decode.items()},
        {k: float(np.median(v)) for k, v in prefill.items()},
    )


def _external_checks(
    entry: KernelEntry, k: StepCoefficients, data_dir: Path
) -> tuple[list[ExternalCheck], list[Source]]:
    checks: list[ExternalCheck] = []
    sources: list[Source] = []
    if entry.model == _70B and entry.tp == 4:
        hardware = {"A100-SXM-80GB": "a100-80gb", "H100-SXM-80GB": "h100-80gb"}[entry.device]
        decode, prefill = splitwise_cells(data_dir, hardware)
        stack = (
            "measured in 2023 on a serving stack without CUDA graphs, where launching some 1,000 "
            "kernels bounds an "
            "iteration: flat in batch up to 16 and far above the sum of kernels"
        )
        pairs = [(s, k.step_s(b, b * (c + 1), 0)) for (b, c), s in sorted(decode.items())]
        checks.append(_check("Splitwise Llama-2-70B decode, batch 1-64", pairs, stack))
        pairs = [(s, k.step_s(n, n, n)) for n, s in sorted(prefill.items()) if n >= 512]
        checks.append(
            _check("Splitwise Llama-2-70B prefill, 512-8192 tokens", pairs, "one prompt in one iteration")
        )
        sources.append(_SPLITWISE)
    if entry.model == _8B and entry.device == "H100-SXM-80GB":
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
    mixed = device.table == "RTX4090"
    if mixed:
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
        if device.splits_multi_token_attention:
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
    return _edge_profile(name, entry, data_dir, command, date)
