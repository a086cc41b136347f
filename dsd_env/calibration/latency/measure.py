"""Timing of a transformers causal language model over a (batch, q, context) grid.

The time of an iteration does not depend on the values of the weights, so a model of a given shape with random
weights measures as well as a real one. Each cell is a whole iteration: embedding, layers, output projection
of every position whose logits are needed, greedy choice. The KV cache is preallocated and already holds
``context`` tokens, so that no cell has to be filled first.

Attention is PyTorch's scaled-dot-product attention without copies of the KV heads: grouped heads are packed
into rows on the CPU, and on CUDA the lower-right causal mask lets PyTorch take its flash kernels. On CUDA an
iteration is captured as a CUDA graph and replayed, as serving engines do, and timed by events.

A measurement is a JSON file that is rewritten atomically after every visit of a cell: interrupted, it goes on
with the same command. torch and transformers are imported by the functions that need them.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dsd_env import strict_json
from dsd_env.calibration.latency.cells import DECODE, PREFILL
from dsd_env.calibration.latency.measurements import MeasuredPoint, MeasurementError, phase_of
from dsd_env.calibration.latency.reading import text_of
from dsd_env.calibration.latency.shapes import MODELS, ModelShape
from dsd_env.files import write_text
from dsd_env.strict_model import StrictNumbers

__all__ = [
    "SHAPES",
    "CellRecord",
    "GridSpec",
    "Measurement",
    "ModelInfo",
    "Runner",
    "StopRule",
    "TorchRunner",
    "grid_cells",
    "half_width",
    "load_measurement",
    "measure",
]

_QWEN2 = ModelShape("Qwen2.5-Coder-1.5B", 28, 1536, 8960, 12, 2, 128, 151936, True, 32768)
_SMOLLM2 = ModelShape("SmolLM2-135M", 30, 576, 1536, 9, 3, 64, 49152, True, 8192)

SHAPES: dict[str, tuple[str, ModelShape]] = {
    "smollm2-135m": ("llama", _SMOLLM2),
    "qwen2.5-coder-1.5b": ("qwen2", _QWEN2),
    **{
        name.lower(): (kind, shape)
        for name, shape in MODELS.items()
        for prefix, kind in (("Llama-", "llama"), ("Qwen2.5-", "qwen2"), ("Qwen3-", "qwen3"))
        if name.startswith(prefix)
    },
}
"""Name -> (transformers model type, shape) of models that can be measured with random weights."""

_REGISTERED_ATTENTION = "dsd_packed"


# -------------------------------------------------------------------------------------------------- records

_Positive = Annotated[float, Field(gt=0.0, le=1e4, allow_inf_nan=False)]
_Count = Annotated[int, Field(strict=True, ge=0, le=2**31)]


class _Record(StrictNumbers, BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CellRecord(_Record):
    """One cell: what it is, its repeats in the order taken, and why it was skipped, if it was."""

    batch: Annotated[int, Field(strict=True, ge=1, le=2**20)]
    q: Annotated[int, Field(strict=True, ge=1, le=2**20)]
    context: _Count
    phase: Literal["decode", "verify", "prefill"]
    samples_s: tuple[_Positive, ...] = ()
    skipped: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> CellRecord:
        if (self.phase == DECODE) != (self.q == 1):
            raise ValueError(f"phase {self.phase} does not go with q = {self.q}")
        return self

    @property
    def key(self) -> tuple[int, int, int, str]:
        """Identity of the cell."""
        return self.batch, self.q, self.context, self.phase

    def __str__(self) -> str:
        """Short text for progress and messages."""
        return f"{self.phase} batch {self.batch} q {self.q} context {self.context}"


class ModelInfo(_Record):
    """What was measured: settings that must not change inside one measurement."""

    model: str
    weights: str
    device: str
    dtype: str
    attention: str
    cuda_graph: bool
    threads: int
    weight_bytes: Annotated[int, Field(strict=True, gt=0)]
    kv_bytes_per_token: Annotated[int, Field(strict=True, gt=0)]
    context_limit_tokens: int | None = None


class Measurement(_Record):
    """A measurement file."""

    format: Literal["dsd_env latency measurement 1"] = "dsd_env latency measurement 1"
    info: ModelInfo
    environment: dict[str, str] = Field(default_factory=dict)
    cells: tuple[CellRecord, ...] = ()

    @model_validator(mode="after")
    def _once_each(self) -> Measurement:
        keys = [c.key for c in self.cells]
        twice = next((k for k in keys if keys.count(k) > 1), None) if len(set(keys)) < len(keys) else None
        if twice is not None:
            raise ValueError(f"cell {twice} is given twice")
        return self

    def points(self, min_samples: int = 1) -> list[MeasuredPoint]:
        """Measured points (medians) of all cells with enough repeats."""
        out = []
        for c in self.cells:
            if len(c.samples_s) >= min_samples:
                std = float(np.std(c.samples_s, ddof=1)) if len(c.samples_s) > 1 else None
                out.append(
                    MeasuredPoint(
                        c.batch, c.q, c.context, float(np.median(c.samples_s)), c.phase, str(c),
                        c.samples_s, len(c.samples_s), std, certain_unit=True,
                    )
                )  # fmt: skip
        return out


def load_measurement(path: Path) -> Measurement:
    """Load a measurement file.

    Raises:
        MeasurementError: unreadable, truncated or impossible content; names file and field.
    """
    text = text_of(path)
    try:
        data = strict_json.loads(text, nan=True)
    except (ValueError, RecursionError) as e:
        raise MeasurementError(f"{path}: cannot be read as a measurement: {e}") from e
    try:
        return Measurement.model_validate(data)
    except ValidationError as e:
        first = e.errors()[0]
        place = ".".join(map(str, first["loc"])) or "(whole file)"
        raise MeasurementError(f"{path}: {place} = {first['input']!r:.60}: {first['msg']}") from e


def _dump(m: Measurement) -> str:
    """JSON with one cell a line, samples to a microsecond's hundredth."""
    head = json.dumps(
        {"format": m.format, "info": m.info.model_dump(), "environment": m.environment}, indent=1
    )
    rows = []
    for c in m.cells:
        row = c.model_dump(mode="json")
        row["samples_s"] = [float(f"{s:.8g}") for s in c.samples_s]
        rows.append("  " + json.dumps({k: v for k, v in row.items() if v or k == "context"}))
    return head.rstrip("}\n ") + '\n },\n "cells": [\n' + ",\n".join(rows) + "\n ]\n}\n"


# ----------------------------------------------------------------------------------------------------- grid


@dataclass(frozen=True)
class GridSpec:
    """Which cells to measure.

    Attributes:
        batches: numbers of sequences.
        queries: new tokens of each sequence; 1 decodes, 2 … 17 verify.
        contexts: cached tokens of each sequence.
        chunks: prefill chunks of one sequence.
        prefixes: tokens cached before a chunk.
        kv_limit_tokens: cells with more tokens of KV are left out.
    """

    batches: tuple[int, ...] = (1, 2, 4, 8)
    queries: tuple[int, ...] = (1, 2, 3, 5, 9, 17)
    contexts: tuple[int, ...] = (128, 512, 1024, 2048)
    chunks: tuple[int, ...] = (32, 64, 128, 256)
    prefixes: tuple[int, ...] = (0, 1024)
    kv_limit_tokens: int | None = None


def grid_cells(grid: GridSpec, context_limit_tokens: int | None = None) -> list[CellRecord]:
    """Cells of a grid in the order of measuring: scattered, so that a run cut short has seen all of the grid.

    The order follows a hash of the cell; neighbours are measured at different times, so slow drift of the
    machine does not look like a slope.
    """
    cells = [
        CellRecord(batch=b, q=q, context=c, phase=phase_of(q))
        for b in grid.batches
        for q in grid.queries
        for c in grid.contexts
    ]
    cells += [CellRecord(batch=1, q=n, context=p, phase=PREFILL) for n in grid.chunks for p in grid.prefixes]
    unique = {
        c.key: c for c in cells if context_limit_tokens is None or c.context + c.q <= context_limit_tokens
    }
    limit = grid.kv_limit_tokens
    kept = [c for c in unique.values() if limit is None or c.batch * (c.context + c.q) <= limit]
    return sorted(
        kept, key=lambda c: hashlib.blake2b(repr(c.key).encode(), digest_size=8, key=b"order").digest()
    )


# ------------------------------------------------------------------------------------------------ stop rule


@dataclass(frozen=True)
class StopRule:
    """When a cell, and when the whole run, is done.

    Attributes:
        min_repeats: repeats that every cell gets, at least 6 (below, no 95 % interval of the median exists).
        max_repeats: repeats after which a cell is done in any case.
        half_width: a cell is done when the half-width of its median's 95 % interval is below this share of
            the median.
        budget_s: no further visit is begun after this many seconds; ``None`` for no limit.
        per_visit: repeats taken each time that a cell is visited.
        warmup: untimed iterations at the start of each visit.
    """

    min_repeats: int = 6
    max_repeats: int = 60
    half_width: float = 0.02
    budget_s: float | None = None
    per_visit: int = 6
    warmup: int = 2

    def __post_init__(self) -> None:
        """Refuse impossible rules."""
        if not 6 <= self.min_repeats <= self.max_repeats:
            raise ValueError("need 6 <= min_repeats <= max_repeats")
        if not 0.0 < self.half_width < 1.0 or self.per_visit < 1 or self.warmup < 0:
            raise ValueError("need 0 < half_width < 1, per_visit >= 1, warmup >= 0")
        if self.budget_s is not None and not self.budget_s > 0.0:
            raise ValueError("budget_s must be > 0")

    def done(self, samples_s: Sequence[float]) -> bool:
        """Whether a cell with these repeats needs no more."""
        n = len(samples_s)
        return n >= self.max_repeats or (n >= self.min_repeats and half_width(samples_s) < self.half_width)


def half_width(samples_s: Sequence[float]) -> float:
    """Relative half-width of the distribution-free 95 % interval of the median.

    The interval runs from the k-th smallest to the k-th largest value, k the largest rank for which a
    Binomial(n, 1/2) falls below it with probability at most 2.5 %. Infinite for fewer than six values.
    """
    n = len(samples_s)
    k, tail = 0, 0.0
    while True:
        tail += math.comb(n, k) / 2.0**n
        if tail > 0.025 or k >= n // 2:
            break
        k += 1
    if k == 0:
        return math.inf
    ordered = sorted(samples_s)
    return (ordered[n - k] - ordered[k - 1]) / (2.0 * float(np.median(ordered)))


# ------------------------------------------------------------------------------------------------- measuring


class Runner(Protocol):
    """Times cells of one model on one device."""

    def prepare(self, cells: Sequence[CellRecord]) -> dict[tuple[int, int, int, str], str]:
        """Allocate for the largest cell that fits; return the reason for each cell that does not."""
        ...

    def time(self, cell: CellRecord, warmup: int, repeats: int) -> list[float]:
        """Seconds of ``repeats`` iterations after ``warmup`` untimed ones.

        Raises:
            MemoryError: the cell does not fit.
        """
        ...


def _visits(cells: Mapping[tuple[int, int, int, str], CellRecord], rule: StopRule) -> Iterator[CellRecord]:
    """Cells to visit: all that lack repeats in their order, over and over, until none does."""
    while True:
        open_cells = [key for key, c in cells.items() if not c.skipped and not rule.done(c.samples_s)]
        if not open_cells:
            return
        for key in open_cells:
            yield cells[key]


def measure(
    runner: Runner,
    info: ModelInfo,
    wanted: Sequence[CellRecord],
    path: Path,
    rule: StopRule,
    environment: Mapping[str, str] | None = None,
    report: Callable[[str, int, int], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Measurement:
    """Measure cells, going on with what the file already holds.

    Every cell is visited once before any is visited again, so the repeats of a cell are spread over the run.
    The file is written after each visit; ``KeyboardInterrupt`` passes through and loses the visit under way.

    Args:
        runner: what times a cell.
        info: settings; a file made with others is refused.
        wanted: cells in the order of measuring.
        path: measurement file.
        rule: when to stop.
        environment: software and machine, kept in the file.
        report: called with (cell or "", cells done, cells in all) before each visit and at the end.
        clock: seconds; replaced in tests.

    Returns:
        The measurement, cells of the file that are not wanted now included.

    Raises:
        MeasurementError: the file is broken or was made with other settings.
    """
    known: dict[tuple[int, int, int, str], CellRecord] = {}
    if path.is_file():
        old = load_measurement(path)
        differ = [f for f in ModelInfo.model_fields if getattr(old.info, f) != getattr(info, f)]
        if differ:
            f = differ[0]
            raise MeasurementError(
                f"{path}: measured with {f} = {getattr(old.info, f)!r}, now {getattr(info, f)!r}: give "
                "another --name "
                "or delete the file"
            )
        known = {c.key: c for c in old.cells}
    rest = {key: c for key, c in known.items() if key not in {w.key for w in wanted}}
    cells = {w.key: known.get(w.key, w) for w in wanted}
    # What did not fit may fit now (another process gone): decided anew.
    cells = {key: replace_skipped(c, "") for key, c in cells.items()}
    for key, reason in runner.prepare(list(cells.values())).items():
        cells[key] = replace_skipped(cells[key], reason)

    def current() -> Measurement:
        kept = (*cells.values(), *rest.values())
        return Measurement(info=info, environment=dict(environment or {}), cells=kept)

    begin = clock()
    total = len(cells)
    for cell in _visits(cells, rule):
        if rule.budget_s is not None and clock() - begin >= rule.budget_s:
            break
        if report is not None:
            report(str(cell), sum(bool(c.skipped) or rule.done(c.samples_s) for c in cells.values()), total)
        try:
            more = runner.time(cell, rule.warmup, rule.per_visit)
        except MemoryError as e:
            cells[cell.key] = replace_skipped(cell, f"does not fit in memory: {e}")
        else:
            cells[cell.key] = cell.model_copy(update={"samples_s": (*cell.samples_s, *more)})
        write_text(path, _dump(current()))
    result = current()
    write_text(path, _dump(result))
    if report is not None:
        report("", sum(bool(c.skipped) or rule.done(c.samples_s) for c in cells.values()), total)
    return result


def replace_skipped(cell: CellRecord, reason: str) -> CellRecord:
    """The cell with another reason for being skipped."""
    return cell if cell.skipped == reason else cell.model_copy(update={"skipped": reason})


# ---------------------------------------------------------------------------------------------------- models


def _config_of(spec: str) -> tuple[str, Any]:
    """Name and transformers configuration of a built-in shape or a ``config.json``."""
    import transformers

    if spec.lower() in SHAPES:
        kind, s = SHAPES[spec.lower()]
        return s.name, transformers.AutoConfig.for_model(
            kind,
            hidden_size=s.hidden,
            intermediate_size=s.ffn,
            num_hidden_layers=s.layers,
            num_attention_heads=s.heads,
            num_key_value_heads=s.kv_heads,
            head_dim=s.head_dim,
            vocab_size=s.vocab,
            tie_word_embeddings=s.tied,
            max_position_embeddings=s.context_limit_tokens,
        )
    path = Path(spec)
    try:
        data = strict_json.loads(text_of(path))
    except (ValueError, RecursionError) as e:
        raise MeasurementError(f"{path}: cannot be read as a model configuration: {e}") from e
    if not isinstance(data, dict) or not isinstance(data.get("model_type"), str):
        raise MeasurementError(f"{path}: model_type is missing: not a transformers config.json")
    kind = data.pop("model_type")
    try:
        name = path.parent.name if path.name == "config.json" and path.parent.name else path.stem
        return name, transformers.AutoConfig.for_model(kind, **data)
    except (ValueError, TypeError, KeyError, AttributeError) as e:
        raise MeasurementError(f"{path}: not a usable configuration of {kind!r}: {e}") from e


def _fill(model: Any) -> None:
    """Random values of a real model's size: zeros would draw less power, and so run faster, on a GPU."""
    import torch

    generator = torch.Generator().manual_seed(0)
    block = 0.02 * torch.randn(1 << 20, generator=generator)
    with torch.no_grad():
        for parameter in model.parameters():
            flat = parameter.data.view(-1)
            tile = (block if parameter.dim() > 1 else torch.ones(1)).to(flat.device, flat.dtype)
            for start in range(0, flat.numel(), tile.numel() if parameter.dim() > 1 else flat.numel()):
                part = flat[start : start + tile.numel()] if parameter.dim() > 1 else flat
                part.copy_(tile[: part.numel()] if parameter.dim() > 1 else tile.expand(part.numel()))


def build_model(spec: str, device: str, dtype: str, attention: str = "packed") -> tuple[str, str, Any]:
    """Load or make the model to time.

    Args:
        spec: key of :data:`SHAPES` or path of a ``config.json`` (random weights); else a GGUF
            file, checkpoint directory or hub id (real weights).
        device: ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        dtype: name of a floating-point type.
        attention: ``packed`` or the name of a transformers attention implementation.

    Returns:
        Model name, kind of weights (``random`` or ``real``), and the model in evaluation mode on the device.

    Raises:
        MeasurementError: unknown shape, no such device, or the model cannot be loaded.
    """
    try:
        import torch
        import transformers
    except ImportError as e:
        raise MeasurementError(
            f"measuring needs torch and transformers ({e}): pip install 'dsd-env[record]'"
        ) from e
    from dsd_env.calibration.acceptance.recording.models import ModelError, load_language_model, torch_dtype
    from dsd_env.calibration.acceptance.recording.weights import WeightsError

    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", device):
        raise MeasurementError(f"--device {device}: must be cpu, cuda, cuda:N or mps")
    if device == "mps" and not torch.backends.mps.is_available():
        raise MeasurementError(f"--device mps: torch {torch.__version__} sees no Apple GPU")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise MeasurementError(f"--device {device}: torch {torch.__version__} sees no CUDA device")
    try:
        torch_type = torch_dtype(dtype)
        if spec.lower() in SHAPES or spec.endswith(".json"):
            name, config = _config_of(spec)
            from transformers.initialization import no_init_weights

            with no_init_weights(), torch.device(device):
                model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch_type)
            model.tie_weights()
            _fill(model)
            weights = "random"
        else:
            loaded = load_language_model(spec, dtype=dtype)
            name, weights, model = str(loaded.card["model"]), "real", loaded.model.to(device)
    except (ModelError, WeightsError) as e:
        raise MeasurementError(
            f"{e}\n  (built-in shapes with random weights: {', '.join(sorted(SHAPES))}; or give a "
            "config.json)"
        ) from e
    if attention == "packed":
        transformers.AttentionInterface.register(_REGISTERED_ATTENTION, packed_attention)
        attention = _REGISTERED_ATTENTION
    try:
        model.set_attn_implementation(attention)
    except (ValueError, ImportError) as e:
        raise MeasurementError(f"--attention {attention}: {e}") from e
    return name, weights, model.eval()


def packed_attention(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Any, None]:
    """Causal attention of the last q of ``kv`` positions, without copying KV heads for grouped queries.

    Args:
        module: the attention layer (unused).
        query: shape ``(batch, heads, q, dim)``.
        key: shape ``(batch, kv_heads, kv, dim)``, kv >= q; the queries are its last q positions.
        value: like ``key``.
        attention_mask: not used: all sequences are full.
        dropout: not used.
        scaling: factor on the scores.

    Returns:
        Output of shape ``(batch, q, heads, dim)``, and ``None`` for the weights.
    """
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    batch, heads, q, dim = query.shape
    kv_heads, kv = key.shape[1], key.shape[2]
    group = heads // kv_heads
    if query.is_cuda:
        return _flash_attention(query, key, value, scaling).transpose(1, 2).contiguous(), None
    if q == kv:
        key, value = (x.repeat_interleave(group, 1) if group > 1 else x for x in (key, value))
        out = scaled_dot_product_attention(query, key, value, is_causal=q > 1, scale=scaling)
        return out.transpose(1, 2).contiguous(), None
    packed = query.reshape(batch, kv_heads, group * q, dim)
    mask = None
    if q > 1:
        rows = torch.arange(kv - q, kv, device=query.device).repeat(group)
        mask = torch.arange(kv, device=query.device)[None, :] <= rows[:, None]
    out = scaled_dot_product_attention(packed, key, value, attn_mask=mask, scale=scaling)
    return out.reshape(batch, heads, q, dim).transpose(1, 2).contiguous(), None


def _flash_attention(query: Any, key: Any, value: Any, scaling: float | None) -> Any:
    """The same in the form that PyTorch's CUDA flash kernels take: no mask tensor, heads still grouped."""
    from torch.nn.attention.bias import causal_lower_right
    from torch.nn.functional import scaled_dot_product_attention

    q, kv = query.shape[2], key.shape[2]
    return scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=causal_lower_right(q, kv) if 1 < q < kv else None,
        is_causal=1 < q == kv,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def model_info(
    name: str, weights: str, model: Any, device: str, dtype: str, attention: str, cuda_graph: bool
) -> ModelInfo:
    """Facts of a model that :func:`build_model` made, and the settings it is measured with."""
    import torch

    config = model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    value = next(model.parameters()).element_size()
    return ModelInfo(
        model=name,
        weights=weights,
        device=device,
        dtype=dtype,
        attention=attention,
        cuda_graph=cuda_graph,
        threads=0 if device.startswith("cuda") else torch.get_num_threads(),
        weight_bytes=sum(p.numel() * p.element_size() for p in model.parameters()),
        kv_bytes_per_token=2 * config.num_hidden_layers * heads * head_dim * value,
        context_limit_tokens=getattr(config, "max_position_embeddings", None),
    )


def environment(device: str) -> dict[str, str]:
    """Software and machine, as text."""
    import torch
    import transformers

    out = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor_name(),
    }
    if device.startswith("cuda"):
        out |= {"gpu": torch.cuda.get_device_name(device), "cuda": str(torch.version.cuda)}
    return out


def processor_name() -> str:
    """Model name of the processor and the number of logical processors."""
    name = platform.processor() or platform.machine()
    if sys.platform.startswith("linux"):
        try:
            lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        except OSError:
            lines = []
        name = next((x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), name)
    return f"{name}, {os.cpu_count()} logical processors"


def _free_bytes(device: str) -> int | None:
    """Memory that can still be allocated, or ``None`` if it cannot be told."""
    import torch

    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    # Apple GPUs share the memory, whose free part /proc does not tell: no check there.
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(x.split()[1]) * 1024 for x in lines if x.startswith("MemAvailable")), None)


class TorchRunner:
    """Times cells of a transformers model; see the module's docstring."""

    def __init__(self, model: Any, device: str, cuda_graph: bool) -> None:
        self._model = model
        self._device = device
        self._cuda_graph = cuda_graph
        self._keys: list[Any] = []
        self._values: list[Any] = []
        config = model.config
        self._layers = int(config.num_hidden_layers)
        self._kv_heads = int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
        self._dim = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
        self._hidden = int(config.hidden_size)
        self._ffn = int(getattr(config, "intermediate_size", 4 * config.hidden_size))
        self._vocab = int(config.vocab_size)

    def _bytes(self, cell: CellRecord) -> tuple[int, int]:
        """Bytes of (KV cache, largest intermediate tensors) of a cell, an upper estimate."""
        value = next(self._model.parameters()).element_size()
        tokens = cell.batch * cell.q
        rows = cell.batch if cell.phase == PREFILL else tokens
        kv = 2 * self._layers * self._kv_heads * self._dim * value * cell.batch * (cell.context + cell.q)
        work = tokens * (8 * self._hidden + 3 * self._ffn) * value + rows * self._vocab * (value + 4)
        return kv, work + 4 * cell.q * (cell.context + cell.q) * 16

    def prepare(self, cells: Sequence[CellRecord]) -> dict[tuple[int, int, int, str], str]:
        """See :class:`Runner`."""
        import torch

        free = _free_bytes(self._device)
        reasons: dict[tuple[int, int, int, str], str] = {}
        largest = 0
        for c in cells:
            kv, work = self._bytes(c)
            if free is not None and kv + work > 0.9 * free:
                reasons[c.key] = (
                    f"needs {(kv + work) / 1024**3:.2f} GiB, {0.9 * free / 1024**3:.2f} GiB may be used"
                )
            else:
                largest = max(largest, c.batch * (c.context + c.q))
        size = self._kv_heads * self._dim * largest
        dtype = next(self._model.parameters()).dtype
        self._keys, self._values = (
            [torch.full((size,), 0.01, dtype=dtype, device=self._device) for _ in range(self._layers)]
            for _ in range(2)
        )
        return reasons

    def _step(self, cell: CellRecord) -> Callable[[], Any]:
        """The iteration of a cell as a function of no arguments, on fixed buffers."""
        import torch

        cache = _filled_cache(self._keys, self._values, cell, self._kv_heads, self._dim)
        generator = torch.Generator().manual_seed(cell.batch * 131 + cell.q)
        shape = (cell.batch, cell.q)
        ids = torch.randint(0, self._vocab, shape, generator=generator).to(self._device)
        positions = torch.arange(cell.context, cell.context + cell.q, device=self._device).expand(shape)
        keep = 1 if cell.phase == PREFILL else 0

        def step() -> Any:
            out = self._model(
                input_ids=ids,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=keep,
            )
            return out.logits.argmax(-1)

        return step

    def time(self, cell: CellRecord, warmup: int, repeats: int) -> list[float]:
        """See :class:`Runner`."""
        import torch

        try:
            with torch.inference_mode():
                step = self._step(cell)
                if self._device.startswith("cuda"):
                    return self._time_cuda(step, warmup, repeats)
                # Other accelerators queue work as well: without waiting, only the queueing would be timed.
                wait = torch.mps.synchronize if self._device.startswith("mps") else _nothing
                for _ in range(warmup):
                    step()
                wait()
                samples = []
                for _ in range(repeats):
                    begin = time.perf_counter()
                    step()
                    wait()
                    samples.append(time.perf_counter() - begin)
                return samples
        except torch.OutOfMemoryError as e:
            torch.cuda.empty_cache()
            raise MemoryError(str(e).splitlines()[0]) from e
        except RuntimeError as e:
            if any(s in str(e) for s in ("not enough memory", "can't allocate memory", "out of memory")):
                raise MemoryError(str(e).splitlines()[0]) from e
            raise

    def _time_cuda(self, step: Callable[[], Any], warmup: int, repeats: int) -> list[float]:
        """Device time between events around each iteration, replayed from a graph unless switched off."""
        import torch

        device = torch.device(self._device)
        with torch.cuda.device(device):
            run: Callable[[], Any] = step
            if self._cuda_graph:
                # Capture wants a side stream that has run the work before (libraries initialise lazily).
                side = torch.cuda.Stream()
                side.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(side):
                    for _ in range(3):
                        step()
                torch.cuda.current_stream().wait_stream(side)
                graph = torch.cuda.CUDAGraph()
                try:
                    with torch.cuda.graph(graph):
                        # Keeps the graph's output alive for as long as it is replayed.
                        output = step()
                except torch.OutOfMemoryError:
                    raise
                except RuntimeError as e:
                    reason = str(e).splitlines()[0]
                    raise MeasurementError(
                        f"the iteration cannot be captured as a CUDA graph ({reason}); try --no-cuda-graph"
                    ) from e
                run = graph.replay
            for _ in range(max(warmup, 1)):
                run()
            torch.cuda.synchronize()
            samples = []
            for _ in range(repeats):
                begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                begin.record()
                run()
                end.record()
                end.synchronize()
                samples.append(begin.elapsed_time(end) * 1e-3)
            if self._cuda_graph:
                del output, graph
            return samples


def _nothing() -> None:
    return None


def _filled_cache(keys: list[Any], values: list[Any], cell: CellRecord, kv_heads: int, dim: int) -> Any:
    """A cache that holds ``context`` tokens for good: each iteration overwrites the same q behind them."""
    from transformers.cache_utils import Cache, CacheLayerMixin

    context, q, batch = cell.context, cell.q, cell.batch
    shape = (batch, kv_heads, context + q, dim)
    size = batch * kv_heads * (context + q) * dim

    class _Filled(CacheLayerMixin):  # type: ignore[misc]
        def __init__(self, key: Any, value: Any) -> None:
            super().__init__()
            self.keys, self.values = key[:size].view(shape), value[:size].view(shape)
            self.is_initialized = True

        def lazy_initialization(self, key_states: Any, value_states: Any) -> None:
            return None

        def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
            self.keys[:, :, context:].copy_(key_states)
            self.values[:, :, context:].copy_(value_states)
            return self.keys, self.values

        def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
            return context + query_length, 0

        def get_seq_length(self) -> int:
            return context

        def get_max_length(self) -> int:
            return context + q

    return Cache(layers=[_Filled(k, v) for k, v in zip(keys, values, strict=True)])
