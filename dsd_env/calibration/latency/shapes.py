"""Shapes of models and data-sheet facts of devices that latency tables are built from."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DEVICES", "MODELS", "DeviceSpec", "DraftHeadShape", "ExpertsShape", "ModelShape"]


@dataclass(frozen=True)
class ModelShape:
    """Dimensions of a dense decoder-only transformer with grouped-query attention and a gated MLP.

    Attributes:
        name: model name.
        layers: number of layers.
        hidden: width of the residual stream.
        ffn: width of the gated MLP.
        heads: query heads.
        kv_heads: key/value heads.
        head_dim: dimension of a head.
        vocab: vocabulary size.
        tied: whether the output projection shares the embedding's weights.
        context_limit_tokens: longest context the model was made for.
        qk_norm: whether queries and keys are normalised before the rotary embedding (Qwen3).
    """

    name: str
    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool
    context_limit_tokens: int
    qk_norm: bool = False

    @property
    def params(self) -> int:
        """Number of weights."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        layer = attention + self.feed_forward_params + 2 * self.hidden
        embeddings = self.vocab * self.hidden * (1 if self.tied else 2)
        return self.layers * layer + embeddings + self.hidden

    @property
    def feed_forward_params(self) -> int:
        """Number of weights of a layer's MLP."""
        return 3 * self.hidden * self.ffn

    @property
    def ffn_per_token(self) -> int:
        """Width of what one token passes through in a layer's MLP."""
        return self.ffn

    def kv_bytes_per_token(self, bytes_per_value: int = 2) -> int:
        """Bytes of KV cache of one token over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * bytes_per_value

    @property
    def layer_inputs(self) -> int:
        """Width of what a layer's first projection reads."""
        return self.hidden

    @property
    def fused_inputs(self) -> int:
        """Width of what is projected to ``hidden`` before the first layer; 0: nothing."""
        return 0


@dataclass(frozen=True)
class ExpertsShape(ModelShape):
    """A mixture of experts: each token passes a few of a layer's narrow MLPs; ``ffn`` is the width of one.

    Attributes:
        experts: experts of a layer.
        experts_per_token: of these, those that a token passes.
    """

    experts: int = 1
    experts_per_token: int = 1

    @property
    def feed_forward_params(self) -> int:
        """Number of weights of a layer's experts and their router."""
        return self.experts * (3 * self.hidden * self.ffn + self.hidden)

    @property
    def ffn_per_token(self) -> int:
        """Width of what one token passes through: all of its experts."""
        return self.experts_per_token * self.ffn

    def touched(self, tokens: int) -> float:
        """Return how many experts of a layer ``tokens`` tokens pass together, expected.

        Each token chooses its experts evenly and independently of the others: ``E (1 - (1 - k / E)^n)``. Real
        routers are neither even nor independent, and touch fewer.
        """
        missed = (1.0 - self.experts_per_token / self.experts) ** tokens
        return self.experts * (1.0 - missed)


@dataclass(frozen=True)
class DraftHeadShape(ModelShape):
    """One decoder layer that drafts from its target's hidden states.

    EAGLE projects the token's embedding and the hidden state (twice ``hidden`` wide) to ``hidden``, and uses
    its target's embedding and output projection. EAGLE-3 lets its attention read both instead, and has an
    output projection of its own over a reduced vocabulary; what it takes from three layers of the target is
    projected once a round, in the first pass.

    Attributes:
        third: Whether it is of the third kind.
    """

    third: bool = False

    @property
    def params(self) -> int:
        """Number of weights of its own."""
        attention = self.head_dim * (
            self.layer_inputs * (self.heads + 2 * self.kv_heads) + self.hidden * self.heads
        )
        layer = attention + 3 * self.hidden * self.ffn + 2 * self.hidden
        if self.third:
            return layer + 3 * self.hidden * self.hidden + self.vocab * self.hidden + 2 * self.hidden
        return layer + self.fused_inputs * self.hidden

    @property
    def layer_inputs(self) -> int:
        """Width of what the layer's first projection reads."""
        return 2 * self.hidden if self.third else self.hidden

    @property
    def fused_inputs(self) -> int:
        """Width of what is projected to ``hidden`` in each pass."""
        return 0 if self.third else 2 * self.hidden


def _heads(target: ModelShape) -> tuple[DraftHeadShape, DraftHeadShape]:
    """Draft heads of a target, as published for the Llama family: full vocabulary, and 32,000 of it."""
    parts = (1, target.hidden, target.ffn, target.heads, target.kv_heads, target.head_dim)
    limit = target.context_limit_tokens
    return (
        DraftHeadShape(f"EAGLE-{target.name}", *parts, target.vocab, True, limit),
        DraftHeadShape(f"EAGLE3-{target.name}", *parts, 32000, True, limit, third=True),
    )


MODELS: dict[str, ModelShape] = {
    m.name: m
    for m in (
        ModelShape("Llama-3-70B", 80, 8192, 28672, 64, 8, 128, 128256, False, 131072),
        ModelShape("Llama-2-70B", 80, 8192, 28672, 64, 8, 128, 32000, False, 4096),
        ModelShape("Qwen2.5-72B", 80, 8192, 29568, 64, 8, 128, 152064, False, 131072),
        ModelShape("Qwen2.5-32B", 64, 5120, 27648, 40, 8, 128, 152064, False, 131072),
        ModelShape("Qwen3-32B", 64, 5120, 25600, 64, 8, 128, 151936, False, 40960, qk_norm=True),
        ModelShape("Llama-3-8B", 32, 4096, 14336, 32, 8, 128, 128256, False, 131072),
        ModelShape("Llama-3.2-3B", 28, 3072, 8192, 24, 8, 128, 128256, True, 131072),
        ModelShape("Llama-3.2-1B", 16, 2048, 8192, 32, 8, 64, 128256, True, 131072),
    )
}


MODELS |= {
    m.name: m
    for m in (
        ExpertsShape(
            "Qwen3-30B-A3B",
            *(48, 2048, 768, 32, 4, 128, 151936, False, 262144),
            qk_norm=True,
            experts=128,
            experts_per_token=8,
        ),
    )
}
MODELS |= {head.name: head for name in ("Llama-3-8B", "Llama-3-70B") for head in _heads(MODELS[name])}


@dataclass(frozen=True)
class DeviceSpec:
    """Data-sheet facts of an accelerator.

    Attributes:
        name: device name as profiles spell it.
        table: folder of the device in the kernel data base.
        memory_bytes: device memory, as CUDA reports it (less than the data sheet says).
        bandwidth_bytes_per_s: peak memory bandwidth.
        sms: streaming multiprocessors.
        splits_multi_token_attention: whether the attention kernel used for q > 1 packs grouped query heads
            and splits long sequences over multiprocessors (FlashAttention-3 on Hopper) or not
            (FlashAttention-2 through a block table).
        tdp_w: board power limit.
        idle_w: typical power with a context open and no work.
        power_source: where the two powers come from.
    """

    name: str
    table: str
    memory_bytes: int
    bandwidth_bytes_per_s: float
    sms: int
    splits_multi_token_attention: bool
    tdp_w: float
    idle_w: float
    power_source: str

    @property
    def interconnect(self) -> str:
        """What joins several of them: ``nvlink`` on SXM boards, else ``pcie``."""
        return "nvlink" if "SXM" in self.name else "pcie"


_GIB = 1024**3
# H100 and 24 GB cards as start-up logs of vLLM show them ("total_gpu_memory (79.22GiB)", "(23.58GiB)"; pull
# requests 10511, 12126 and 14447); the others: what nvidia-smi shows, of which CUDA reports 99 % there.
_TDP = (
    "busy: board power limit of the data sheet ({tdp:.0f} W a device), an upper bound for decoding; "
    "idle: {idle:.0f} W a device, typical of an idle board with weights loaded, not measured by us"
)


def _device(
    name: str, table: str, gib: float, bandwidth: float, sms: int, splits: bool, tdp: float, idle: float
) -> DeviceSpec:
    memory = round(gib * _GIB)
    return DeviceSpec(name, table, memory, bandwidth, sms, splits, tdp, idle, _TDP.format(tdp=tdp, idle=idle))


DEVICES: dict[str, DeviceSpec] = {
    d.name: d
    for d in (
        _device("A100-SXM-80GB", "a100_sxm", 79.2, 2.039e12, 108, False, 400.0, 60.0),
        _device("H100-SXM-80GB", "h100_sxm", 79.22, 3.352e12, 132, True, 700.0, 75.0),
        _device("H200-SXM-141GB", "h200_sxm", 139.0, 4.8e12, 132, True, 700.0, 80.0),
        _device("L40S-48GB", "l40s", 44.5, 0.864e12, 142, False, 350.0, 35.0),
        _device("RTX-PRO-6000-96GB", "rtx_pro_6000_server", 94.6, 1.597e12, 188, False, 600.0, 35.0),
        _device("RTX-4090-24GB", "RTX4090", 23.58, 1.008e12, 128, False, 450.0, 25.0),
    )
}
