"""How iterations of equal work scatter: a lognormal body and a share of stragglers, from repeats.

An iteration is the sum of hundreds of kernels. Scatter that is independent from kernel to kernel averages
out: one of 1 % in each of 80 layers is one of 0.1 % in their sum. What is left of an iteration's scatter is
common to its kernels (clocks, other work on the host), so it can only be read from repeated *iterations*, not
from repeated kernels; :func:`kernel_scatter` says how little the latter explain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dsd_env.calibration.latency.tables import TableError, read_table

__all__ = ["KernelScatter", "NoiseFit", "fit_noise", "kernel_scatter"]

STRAGGLER_THRESHOLD = 1.1
"""A repeat longer than this times the median of its kind is a straggler."""

_LAYER_OPS = (
    "input_layernorm",
    "attn_pre_proj",
    "attn_rope",
    "attn_post_proj",
    "post_attention_layernorm",
    "mlp_up_proj",
    "mlp_act",
    "mlp_down_proj",
    "add",
)


@dataclass(frozen=True)
class NoiseFit:
    """Scatter of repeats around the median of their kind.

    Attributes:
        sigma: pooled standard deviation of log time within kinds, stragglers left out (n - 1 a kind).
        sigma_robust: the same from the median absolute difference of pairs; lower where tails are heavy.
        straggler_share: share of repeats beyond the threshold.
        straggler_factor: their mean ratio to the median of their kind; 1 if there are none.
        straggler_extra_s: their median excess in seconds; 0 if there are none.
        kinds: number of kinds (equal work).
        repeats: number of repeats.
        stragglers: number of stragglers.
    """

    sigma: float
    sigma_robust: float
    straggler_share: float
    straggler_factor: float
    straggler_extra_s: float
    kinds: int
    repeats: int
    stragglers: int


def fit_noise(groups: Sequence[Sequence[float]], threshold: float = STRAGGLER_THRESHOLD) -> NoiseFit:
    """Fit scatter to groups of repeats; a group is one kind of iteration, its work the same every time.

    Args:
        groups: seconds; groups of fewer than three repeats have no usable median and are passed over.
        threshold: ratio to the group's median beyond which a repeat is a straggler, > 1.

    Raises:
        ValueError: no group of three, a time that is not finite and > 0, or a threshold <= 1.
    """
    if not (math.isfinite(threshold) and threshold > 1.0):
        raise ValueError(f"threshold = {threshold!r} must be finite and > 1")
    squares, freedom, kinds, repeats = 0.0, 0, 0, 0
    ratios: list[float] = []
    extra: list[float] = []
    differences: list[float] = []
    for i, group in enumerate(groups):
        x = np.asarray(group, dtype=np.float64)
        if not (np.isfinite(x).all() and (x > 0.0).all()):
            raise ValueError(f"group {i}: every time must be finite and > 0 seconds, got {list(group)}")
        if x.size < 3:
            continue
        kinds += 1
        repeats += x.size
        median = float(np.median(x))
        slow = x > threshold * median
        ratios.extend((x[slow] / median).tolist())
        extra.extend((x[slow] - median).tolist())
        log = np.log(x)
        body = log[~slow]
        squares += float(((body - body.mean()) ** 2).sum())
        freedom += body.size - 1
        upper = np.triu_indices(x.size, 1)
        differences.extend(np.abs(log[upper[0]] - log[upper[1]]).tolist())
    if kinds == 0 or freedom == 0:
        raise ValueError("no group holds three repeats: scatter needs repeated measurements")
    # |difference of two| of a normal variable has median 0.6745 * sqrt(2) * sigma.
    robust = float(np.median(differences)) / (0.67449 * math.sqrt(2.0))
    return NoiseFit(
        sigma=math.sqrt(squares / freedom),
        sigma_robust=robust,
        straggler_share=len(ratios) / repeats,
        straggler_factor=float(np.mean(ratios)) if ratios else 1.0,
        straggler_extra_s=float(np.median(extra)) if extra else 0.0,
        kinds=kinds,
        repeats=repeats,
        stragglers=len(ratios),
    )


@dataclass(frozen=True)
class KernelScatter:
    """Scatter of a layer's kernels, and what it amounts to over an iteration.

    Attributes:
        layer: relative standard deviation of one layer if its kernels scatter independently, median of rows.
        layer_p95: 95th percentile over rows.
        layer_common: the same if all its kernels scatter together.
        iteration: that of all layers if they scatter independently.
        rows: rows used.
    """

    layer: float
    layer_p95: float
    layer_common: float
    iteration: float
    rows: int


def kernel_scatter(path: Path, layers: int, min_tokens: int, max_tokens: int) -> KernelScatter:
    """Scatter of the kernels outside attention, from one of Vidur's ``mlp.csv``.

    Args:
        path: the table, with ``time_stats.<kernel>.median`` and ``.std`` in milliseconds.
        layers: layers of the model.
        min_tokens: smallest number of tokens to use.
        max_tokens: largest.

    Raises:
        TableError: the table is missing or malformed, or holds no row in the range.
    """
    columns = [f"time_stats.{op}.{what}" for op in _LAYER_OPS for what in ("std", "median")]
    independent, together = [], []
    for v, _ in read_table(path, ("num_tokens", *columns)):
        if not min_tokens <= v["num_tokens"] <= max_tokens:
            continue
        total = sum(v[f"time_stats.{op}.median"] for op in _LAYER_OPS)
        std = np.array([v[f"time_stats.{op}.std"] for op in _LAYER_OPS])
        independent.append(float(np.sqrt((std**2).sum())) / total)
        together.append(float(std.sum()) / total)
    if not independent:
        raise TableError(f"{path}: no row with num_tokens in [{min_tokens}, {max_tokens}]")
    layer = float(np.median(independent))
    return KernelScatter(
        layer=layer,
        layer_p95=float(np.percentile(independent, 95)),
        layer_common=float(np.median(together)),
        iteration=layer / math.sqrt(layers),
        rows=len(independent),
    )
