"""Drafter profiles of edge devices from published tokens per second.

One decode step of a device class is ``weight_bytes / (eta * bandwidth) + overhead``: every step reads all
weights but the input embedding once. ``eta`` (the share of the peak bandwidth that is reached) and
``overhead`` are fitted per class of device; a device, or a (device, model) pair, with published figures of
its own uses the eta that these imply.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dsd_env.calibration.latency.reading import csv_table, number_field, text_of
from dsd_env.calibration.latency.shapes import MODELS, ModelShape
from dsd_env.calibration.latency.tables import TableError
from dsd_env.latency.profile import ErrorStats, StepCoefficients

__all__ = [
    "BITS",
    "CLASSES",
    "ClassFit",
    "EdgeStep",
    "Figure",
    "edge_step",
    "fit_class",
    "load_figures",
    "resident_bytes",
    "streamed_bytes",
]

ETA_LIMIT = 0.95
"""No figure may imply a larger share of the peak bandwidth: it bounds the overhead that a class can have."""

BITS: dict[str, tuple[float, float]] = {
    "BF16": (16.0, 16.0),
    "F16": (16.0, 16.0),
    "Q8_0": (8.5, 8.5),
    "Q4_0": (4.5, 6.5625),
    "Q4_K_M": (4.85, 6.5625),
    "INT4": (4.5, 4.5),
    "W4A16": (4.25, 16.0),
    "int4": (4.5, 8.0),
    "int4 SpinQuant": (4.5, 8.0),
}
"""Quantisation -> (bits per weight of the layers, of the output projection), scales included."""

_OTHER_MODELS: dict[str, tuple[float, float]] = {
    "Llama-2-7B": (6.476e9, 0.131e9),
    "TinyLlama-1.1B": (0.969e9, 0.0655e9),
    "phi-2 2.7B": (2.517e9, 0.131e9),
    "Mistral-7B": (6.980e9, 0.131e9),
    "Qwen3-4B": (3.633e9, 0.389e9),
    "Qwen3-8B": (6.946e9, 0.622e9),
    "Qwen2.5-7B": (6.526e9, 0.545e9),
    "Gemma-2-2B": (2.024e9, 0.590e9),
    "Phi-3.5-3B": (3.624e9, 0.0985e9),
    "SmolLM2-1.7B": (1.611e9, 0.101e9),
}
"""Model -> (weights in the layers, in the output projection), from the models' configurations."""

CLASSES: dict[str, tuple[str, ...]] = {
    "phone-cpu": (
        "OnePlus 12 (Snapdragon 8 Gen 3 CPU)",
        "OnePlus 13 (Snapdragon 8 Elite CPU)",
        "Galaxy S22",
        "Galaxy S24",
    ),
    "apple": (
        "Apple M1 7-core GPU 8GB",
        "Apple M1 Pro 14-core",
        "Apple M1 Max 32-core",
        "Apple M1 Max 64GB",
        "Apple M1 Max Mac Studio",
        "Apple M2 Pro (mini 12/19)",
        "Apple M2 Max 30-core",
        "Apple M3 Pro 18-core",
        "Apple M3 Max 40-core",
        "Apple M4 10-core 16GB",
        "Apple M4 Mac mini 10-core 32GB",
        "Apple M5 10-core",
    ),
    "jetson": (
        "Jetson AGX Orin 64GB",
        "Jetson Orin Nano 8GB (orig)",
        "Jetson Orin Nano Super 8GB",
        "Jetson AGX Thor",
    ),
    "rtx": (
        "NVIDIA RTX 4090 24GB",
        "NVIDIA RTX 4090 (265K PC)",
        "NVIDIA RTX 3090 24GB",
        "NVIDIA RTX 4070 Ti 12GB",
        "NVIDIA RTX 3070 8GB",
        "NVIDIA RTX 3070 mobile 8GB",
    ),
    "cpu": ("Raspberry Pi 5 16GB", "Intel N150 mini-PC", "Framework 13 Ryzen AI 5 340 CPU"),
}
"""Device class -> devices whose figures belong to it."""

INT8_DENSE_OPS: dict[str, float] = {
    "NVIDIA RTX 4090 24GB": 660.6e12,
    "NVIDIA RTX 3090 24GB": 284e12,
    "NVIDIA RTX 4070 Ti 12GB": 320.7e12,
    "NVIDIA RTX 3070 8GB": 162.6e12,
    "Jetson AGX Orin 64GB": 85e12,
    "Jetson Orin Nano Super 8GB": 33.5e12,
}
"""Data-sheet dense INT8 rate (half the sparse one), used where no prefill figure is published."""


@dataclass(frozen=True)
class Figure:
    """One published figure.

    Attributes:
        device: device as the source names it.
        bandwidth_bytes_per_s: vendor's peak memory bandwidth.
        model: model name.
        quant: quantisation.
        decode_s: seconds a token.
        prefill_tokens_per_s: prompt tokens a second, or ``None``.
        prompt_tokens: length of the prompt of the prefill figure (512 if not stated).
        source: who published it.
    """

    device: str
    bandwidth_bytes_per_s: float
    model: str
    quant: str
    decode_s: float
    prefill_tokens_per_s: float | None
    prompt_tokens: int
    source: str


def _layer_and_head_params(model: str) -> tuple[float, float] | None:
    name = "Llama-3-8B" if model == "Llama-3.1-8B" else model
    if name in MODELS:
        shape = MODELS[name]
        head = float(shape.vocab * shape.hidden)
        return shape.params - head * (1 if shape.tied else 2), head
    return _OTHER_MODELS.get(model)


def streamed_bytes(model: str, quant: str) -> float | None:
    """Bytes of weights that a decode step reads, or ``None`` if model or quantisation is not known."""
    params, bits = _layer_and_head_params(model), BITS.get(quant)
    if params is None or bits is None:
        return None
    return (params[0] * bits[0] + params[1] * bits[1]) / 8.0


def resident_bytes(shape: ModelShape, quant: str) -> int:
    """Bytes of all weights, the input embedding included."""
    streamed = streamed_bytes(shape.name, quant)
    if streamed is None:
        raise ValueError(f"no bit width known for model {shape.name!r} with quantisation {quant!r}")
    embedding = 0.0 if shape.tied else shape.vocab * shape.hidden * BITS[quant][0] / 8.0
    return round(streamed + embedding)


_FIGURE_COLUMNS = (
    "device",
    "mem_bw_GBps",
    "model",
    "quant",
    "decode_tok_s",
    "prefill_tok_s",
    "conditions",
    "source",
)


def _positive(row: Mapping[str, str], column: str, where: str) -> float | None:
    """A positive number, or ``None`` where nothing is given."""
    return number_field(row, column, where, text=True, bare=True, error=TableError) if row[column] else None


def load_figures(data_dir: Path) -> list[Figure]:
    """Load ``edge_bench/edge_tokens_per_s.csv``; rows without a decode figure are left out.

    Raises:
        TableError: file or column missing, or a value not a positive number; names file, line and field.
    """
    path = data_dir / "edge_bench" / "edge_tokens_per_s.csv"
    if not path.is_file():
        raise TableError(f"{path}: no such table; is the data directory right (--data-dir or DSD_DATA_DIR)?")
    table = csv_table(path, text_of(path, TableError), _FIGURE_COLUMNS, TableError)
    figures = []
    for line, row in table.rows:
        where = f"{path}: line {line}"
        bandwidth = _positive(row, "mem_bw_GBps", where)
        decode = _positive(row, "decode_tok_s", where)
        if bandwidth is None:
            raise TableError(f"{where}: mem_bw_GBps is empty")
        if decode is None:
            continue
        prompt = 512
        for word in row["conditions"].replace("prompt ", "pp").split("/"):
            if re.fullmatch(r"pp[0-9]{1,9}", word):
                prompt = int(word[2:])
        figures.append(
            Figure(
                row["device"],
                bandwidth * 1e9,
                row["model"],
                row["quant"],
                1.0 / decode,
                _positive(row, "prefill_tok_s", where),
                prompt,
                row["source"],
            )
        )
    return figures


@dataclass(frozen=True)
class ClassFit:
    """Bandwidth efficiency and overhead of a device class.

    Attributes:
        name: class.
        eta: fitted share of peak bandwidth.
        overhead_s: fitted fixed cost of a step.
        etas: share of peak bandwidth implied by each figure, given the overhead; in order of ``figures``.
        figures: figures used.
        error: leave-one-out error of the class form.
    """

    name: str
    eta: float
    overhead_s: float
    etas: tuple[float, ...]
    figures: tuple[Figure, ...]
    error: ErrorStats


def _bytes_over_bandwidth(figure: Figure) -> float:
    streamed = streamed_bytes(figure.model, figure.quant)
    if streamed is None:
        raise ValueError(f"no size known for {figure.model} {figure.quant}")
    return streamed / figure.bandwidth_bytes_per_s


def _eta_and_overhead(figures: Sequence[Figure]) -> tuple[float, float]:
    """Least squares of the relative error, overhead >= 0 and no implied eta above :data:`ETA_LIMIT`."""
    ideal = np.array([_bytes_over_bandwidth(f) for f in figures])
    seconds = np.array([f.decode_s for f in figures])
    design = np.stack([ideal / seconds, 1.0 / seconds], axis=1)
    (inverse_eta, overhead), *_ = np.linalg.lstsq(design, np.ones(len(figures)), rcond=None)
    limit = max(float((seconds - ideal / ETA_LIMIT).min()), 0.0)
    if not 0.0 <= overhead <= limit or len(figures) < 3:
        overhead = 0.0 if overhead < 0.0 or len(figures) < 3 else limit
        ratio = ideal / seconds
        inverse_eta = float((ratio * (1.0 - overhead / seconds)).sum() / (ratio**2).sum())
    return float(1.0 / inverse_eta), float(overhead)


def fit_class(name: str, figures: Sequence[Figure]) -> ClassFit:
    """Fit eta and overhead of a class to all its figures of known size; leave-one-out error.

    Raises:
        ValueError: fewer than three usable figures.
    """
    members = CLASSES[name]
    usable = [f for f in figures if f.device in members and streamed_bytes(f.model, f.quant) is not None]
    if len(usable) < 3:
        raise ValueError(f"device class {name!r} has {len(usable)} usable figures, needs 3")
    eta, overhead = _eta_and_overhead(usable)
    errors = []
    for i, left_out in enumerate(usable):
        e, o = _eta_and_overhead(usable[:i] + usable[i + 1 :])
        errors.append(100.0 * abs((_bytes_over_bandwidth(left_out) / e + o) / left_out.decode_s - 1.0))
    median, p95 = np.percentile(errors, [50.0, 95.0])
    stats = ErrorStats(
        heldout_median_pct=round(float(median), 2),
        heldout_p95_pct=round(float(p95), 2),
        heldout_max_pct=round(max(errors), 2),
        cells=len(usable),
        train_cells=len(usable) - 1,
        method=f"leave-one-out over the {len(usable)} published figures of device class '{name}'",
    )
    etas = tuple(_bytes_over_bandwidth(f) / max(f.decode_s - overhead, 1e-9) for f in usable)
    return ClassFit(name, eta, overhead, etas, tuple(usable), stats)


@dataclass(frozen=True)
class EdgeStep:
    """Coefficients of an edge drafter and how they came about."""

    coefficients: StepCoefficients
    notes: tuple[str, ...]
    sources: tuple[str, ...]


def _int8_efficiency(figures: Sequence[Figure]) -> float:
    """Median share of the dense INT8 rate that prefill of 4-bit models reaches on the RTX figures."""
    shares = []
    for f in figures:
        params = _layer_and_head_params(f.model)
        if f.device in INT8_DENSE_OPS and f.prefill_tokens_per_s and f.quant == "Q4_K_M" and params:
            shares.append(2.0 * params[0] * f.prefill_tokens_per_s / INT8_DENSE_OPS[f.device])
    return float(np.median(shares))


def edge_step(
    shape: ModelShape, quant: str, devices: Sequence[str], cls: ClassFit, figures: Sequence[Figure]
) -> EdgeStep:
    """Coefficients of one drafter on one edge device.

    Args:
        shape: model.
        quant: quantisation, a key of :data:`BITS`.
        devices: names under which the device occurs in the figures.
        cls: fit of its class.
        figures: all figures (for prefill rates).

    Returns:
        Coefficients with ``p = 1`` (step time affine in the number of tokens: the published pair of decode
        and prefill rates determines no knee, and the sum is the cautious choice for short catch-ups).
    """
    streamed = streamed_bytes(shape.name, quant)
    if streamed is None:
        raise ValueError(f"no bit width known for {shape.name} {quant}")
    notes = [
        f"class '{cls.name}': eta {cls.eta:.2f} (figures from {min(cls.etas):.2f} to {max(cls.etas):.2f}), "
        f"overhead {cls.overhead_s * 1e3:.2f} ms a step"
    ]
    own = [(f, e) for f, e in zip(cls.figures, cls.etas, strict=True) if f.device in devices]
    aliases = {shape.name} | ({"Llama-3.1-8B"} if shape.name == "Llama-3-8B" else set())
    exact = [(f, e) for f, e in own if f.model in aliases and f.quant == quant]
    chosen = exact or own
    eta = float(np.median([e for _, e in chosen])) if chosen else cls.eta
    if exact:
        notes.append(f"eta {eta:.2f} is that of the published figure of this very model and device")
    elif own:
        notes.append(
            f"eta {eta:.2f} is the median of the device's own figures with other models "
            f"({', '.join(sorted({f'{f.model} {f.quant}' for f, _ in own}))}); no figure of this "
            "model is published"
        )
    else:
        notes.append("eta is that of the class: the device has no usable figure of its own")
    bandwidth = (chosen or [(cls.figures[0], 0.0)])[0][0].bandwidth_bytes_per_s
    step = streamed / (eta * bandwidth) + cls.overhead_s

    params = _layer_and_head_params(shape.name)
    assert params is not None  # streamed_bytes knows the model
    slope, how = _prefill_slope(shape, quant, devices, aliases, params, step, figures)
    notes.append(how)
    slope = min(slope, 0.9 * (step - cls.overhead_s))
    coefficients = StepCoefficients(
        t0_s=float(f"{cls.overhead_s:.6g}"),
        w_s=float(f"{step - cls.overhead_s - slope:.6g}"),
        c_s_per_token=float(f"{slope:.6g}"),
        p=1.0,
        k_bw_s_per_token=float(f"{shape.kv_bytes_per_token() / (eta * bandwidth):.6g}"),
    )
    sources = [f.source for f, _ in (chosen or list(zip(cls.figures, cls.etas, strict=True)))]
    return EdgeStep(coefficients, tuple(notes), tuple(dict.fromkeys(sources)))


def _prefill_slope(
    shape: ModelShape,
    quant: str,
    devices: Sequence[str],
    aliases: set[str],
    params: tuple[float, float],
    step_s: float,
    figures: Sequence[Figure],
) -> tuple[float, str]:
    """Seconds per prompt token, and how obtained: own figure, other model's, spec sheet or class ratio."""
    own = [f for f in figures if f.device in devices and f.prefill_tokens_per_s]
    exact = [f for f in own if f.model in aliases and f.quant == quant]
    if exact:
        f = exact[0]
        rate = f.prefill_tokens_per_s or 1.0
        return (
            (f.prompt_tokens / rate - step_s) / (f.prompt_tokens - 1),
            f"prefill: {rate:g} tokens/s published at {f.prompt_tokens} prompt tokens",
        )
    rates = []
    for f in own:
        other = _layer_and_head_params(f.model)
        if other is not None and f.quant not in ("BF16", "F16") and f.prefill_tokens_per_s:
            rates.append(other[0] * f.prefill_tokens_per_s)
    if rates:
        rate = float(np.median(rates)) / params[0]
        return (
            1.0 / rate,
            f"prefill: {rate:.0f} tokens/s, scaled by model size from the device's other models",
        )
    peak = next((INT8_DENSE_OPS[d] for d in devices if d in INT8_DENSE_OPS), None)
    if peak is not None:
        share = _int8_efficiency(figures)
        rate = share * peak / (2.0 * params[0])
        return 1.0 / rate, (
            f"prefill: {rate:.0f} tokens/s, not published: dense INT8 rate of the data sheet times "
            f"the {share:.2f} that "
            "4-bit models reach on RTX cards"
        )
    ratios = [
        f.decode_s * f.prefill_tokens_per_s
        for f in figures
        if f.prefill_tokens_per_s and ("CPU" in f.device) and f.quant not in ("BF16", "F16")
    ]
    ratio = float(np.median(ratios))
    return step_s / ratio, (
        f"prefill: {ratio / step_s:.0f} tokens/s, not published: {ratio:.1f} times the decode rate, "
        "the median of the CPU figures"
    )
