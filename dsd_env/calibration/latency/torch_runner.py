"""Timing of a transformers causal language model.

The time of an iteration does not depend on the values of the weights, so a model of a given shape with random
weights measures as well as a real one. Each cell is a whole iteration: embedding, layers, output projection
of every position whose logits are needed, greedy choice. The KV cache is preallocated and already holds
``context`` tokens, so that no cell has to be filled first.

Attention is PyTorch's scaled-dot-product attention without copies of the KV heads: grouped heads are packed
into rows on the CPU, and on CUDA the lower-right causal mask lets PyTorch take its flash kernels. On CUDA an
iteration is captured as a CUDA graph and replayed, as serving engines do, and timed by events.

torch and transformers are imported by the functions that need them.
"""

from __future__ import annotations

import os
import platform
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dsd_env import strict_json
from dsd_env.calibration.latency.cells import PREFILL
from dsd_env.calibration.latency.measure import CellRecord, ModelInfo
from dsd_env.calibration.latency.measurements import MeasurementError
from dsd_env.calibration.latency.reading import text_of
from dsd_env.calibration.latency.shapes import MODELS, ExpertsShape, ModelShape

__all__ = [
    "SHAPES",
    "TorchRunner",
    "build_model",
    "environment",
    "model_info",
    "packed_attention",
    "processor_name",
]

_QWEN2 = ModelShape("Qwen2.5-Coder-1.5B", 28, 1536, 8960, 12, 2, 128, 151936, True, 32768)
_SMOLLM2 = ModelShape("SmolLM2-135M", 30, 576, 1536, 9, 3, 64, 49152, True, 8192)

SHAPES: dict[str, tuple[str, ModelShape]] = {
    "smollm2-135m": ("llama", _SMOLLM2),
    "qwen2.5-coder-1.5b": ("qwen2", _QWEN2),
    **{
        name.lower(): (f"{kind}_moe" if isinstance(shape, ExpertsShape) else kind, shape)
        for name, shape in MODELS.items()
        for prefix, kind in (("Llama-", "llama"), ("Qwen2.5-", "qwen2"), ("Qwen3-", "qwen3"))
        if name.startswith(prefix)
    },
}
"""Name -> (transformers model type, shape) of models that can be measured with random weights."""

_REGISTERED_ATTENTION = "dsd_packed"

# ---------------------------------------------------------------------------------------------------- models


def _config_of(spec: str) -> tuple[str, Any]:
    """Name and transformers configuration of a built-in shape or a ``config.json``."""
    import transformers

    if spec.lower() in SHAPES:
        kind, s = SHAPES[spec.lower()]
        experts = {}
        if isinstance(s, ExpertsShape):
            experts = {
                "num_experts": s.experts,
                "num_experts_per_tok": s.experts_per_token,
                "moe_intermediate_size": s.ffn,
            }
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
            **experts,
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
