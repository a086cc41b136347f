"""What a real engine takes beside its kernels, fitted to the one cost model of a real vLLM that is published.

The authors of "Speculative Decoding: Performance or Illusion?" (arXiv 2601.11580) fitted straight lines to
Llama-3.1-8B in vLLM V1 on one H100, batch 1 to 64, with EAGLE's three drafts a round (their profiling
script). Here the same iterations are summed from measured kernels, and the difference is fitted by the four
parts of :class:`dsd_env.latency.overhead.EngineOverhead`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dsd_env.calibration.latency.cells import DECODE, VERIFY, Cell
from dsd_env.calibration.latency.fit import split_cells
from dsd_env.calibration.latency.shapes import DEVICES, MODELS
from dsd_env.calibration.latency.sums import step_model
from dsd_env.calibration.latency.tables import StepModel
from dsd_env.latency.overhead import EngineOverhead

__all__ = [
    "CHECK_BATCHES",
    "CHECK_CONTEXTS",
    "EAGLE_DRAFTS",
    "LIMIT_TOKENS",
    "EngineFit",
    "eagle_pairs",
    "engine_fit",
    "vllm_8b_h100_s",
    "vllm_cells",
]

CHECK_BATCHES = (1, 2, 4, 8, 16, 32, 64)
CHECK_CONTEXTS = (512, 1024, 2048)
LIMIT_TOKENS = 576
"""Largest iteration in the cost model's range: 64 sequences of nine tokens."""
EAGLE_DRAFTS = 3
"""Drafts of a round in the measured EAGLE."""

_MODEL, _HEAD, _DEVICE = "Llama-3-8B", "EAGLE-Llama-3-8B", "H100-SXM-80GB"


def vllm_8b_h100_s(batch: int, q: int, context: int) -> float:
    """Llama-3.1-8B on one H100 in a real vLLM, as its authors fitted it, their 1.207 ms a step included."""
    return 1e-3 * (5.886 + 1.207) + 21.0e-6 * batch * q + 39.3e-9 * batch * context


def vllm_eagle_s(batch: int, context: int) -> float:
    """All drafts of one round of EAGLE there; the authors count drafts and bonus token of one sequence."""
    return 2.135e-3 + 2.4e-9 * batch * context + 0.84e-6 * (EAGLE_DRAFTS + 1)


def vllm_cells(data_dir: Path) -> tuple[list[Cell], list[float]]:
    """Iterations by the cost model, and the kernel sum of each."""
    model = step_model(MODELS[_MODEL], DEVICES[_DEVICE], 1, data_dir)
    cells, kernels = [], []
    for batch in CHECK_BATCHES:
        for context in (*CHECK_CONTEXTS, 4096):
            for q in (1, 3, 5, 7, 9):
                kernel = model.sequences_s(batch, q, context)
                if kernel is None:
                    continue
                region, longest = (DECODE, 0) if q == 1 else (VERIFY, context + q)
                seconds = vllm_8b_h100_s(batch, q, context)
                key = f"vllm_b{batch}_q{q}_s{context}"
                cells.append(Cell(key, region, batch * q, batch * (context + q), longest, seconds))
                kernels.append(kernel)
    return cells, kernels


def head_round_s(head: StepModel, batch: int, context: int) -> float | None:
    """Kernels of a round of drafts: a first pass over two accepted tokens, then passes over one."""
    first = head.sequences_s(batch, 2, context)
    single = head.sequences_s(batch, 1, context)
    return None if first is None or single is None else first + (EAGLE_DRAFTS - 1) * single


def eagle_pairs(data_dir: Path, pass_s: float) -> list[tuple[float, float]]:
    """(measured, ours) seconds of a round of EAGLE's drafts, with so much overhead a pass."""
    head = replace(step_model(MODELS[_HEAD], DEVICES[_DEVICE], 1, data_dir), drafts=True)
    pairs = []
    for batch in CHECK_BATCHES:
        for context in CHECK_CONTEXTS:
            kernels = head_round_s(head, batch, context)
            if kernels is not None:
                pairs.append((vllm_eagle_s(batch, context), kernels + EAGLE_DRAFTS * pass_s))
    return pairs


@dataclass(frozen=True)
class EngineFit:
    """The parts, and how well kernels and parts together meet the cost model.

    Attributes:
        overhead: The parts.
        cells: Held-out iterations.
        errors_pct: Their relative errors in per cent: kernel sums with the parts over the cost model.
        bare_errors_pct: The same of the kernel sums alone.
        two_part_errors_pct: The same with parts per iteration and per token only.
        constant_errors_pct: The same with a single constant.
        train: Iterations fitted to.
    """

    overhead: EngineOverhead
    cells: tuple[Cell, ...]
    errors_pct: NDArray[np.float64]
    bare_errors_pct: NDArray[np.float64]
    two_part_errors_pct: NDArray[np.float64]
    constant_errors_pct: NDArray[np.float64]
    train: int


def _batch_of(cell: Cell) -> int:
    return int(cell.key.split("_")[1][1:])


@cache
def engine_fit(data_dir: Path) -> EngineFit:
    """Fit the parts to half of the iterations, non-negative, by relative error; the other half judges."""
    from scipy.optimize import nnls

    cells, kernels = vllm_cells(data_dir)
    known = dict(zip((c.key for c in cells), kernels, strict=True))
    train, heldout = split_cells(cells, heldout_share=0.5)

    def design(some: list[Cell]) -> NDArray[np.float64]:
        rows = [(1.0, _batch_of(c), c.new_tokens, float(c.region == VERIFY)) for c in some]
        return np.array(rows, dtype=np.float64)

    def fitted(columns: list[int]) -> NDArray[np.float64]:
        seconds = np.array([c.seconds for c in train])
        missing = seconds - np.array([known[c.key] for c in train])
        parts = np.zeros(4)
        parts[columns], _ = nnls(design(train)[:, columns] / seconds[:, None], missing / seconds)
        return parts

    def errors(parts: NDArray[np.float64]) -> NDArray[np.float64]:
        seconds = np.array([c.seconds for c in heldout])
        ours = np.array([known[c.key] for c in heldout]) + design(heldout) @ parts
        result: NDArray[np.float64] = 100.0 * (ours / seconds - 1.0)
        return result

    parts = np.array([float(f"{x:.3g}") for x in fitted([0, 1, 2, 3])])
    passes = [(measured - ours) / EAGLE_DRAFTS for measured, ours in eagle_pairs(data_dir, 0.0)]
    overhead = EngineOverhead(
        per_iteration_s=float(parts[0]),
        per_sequence_s=float(parts[1]),
        per_token_s=float(parts[2]),
        per_verifying_iteration_s=float(parts[3]),
        per_draft_pass_s=max(0.0, float(f"{np.median(passes):.3g}")),
        token_limit=LIMIT_TOKENS,
        engine="vLLM",
        version="V1 engine, 2025 (the source names no release)",
        asynchronous=False,
        source=(
            "cost model of Llama-3.1-8B on one H100 (arXiv 2601.11580) less the sum of measured kernels; "
            "carried over to other models, devices and parallelisms as host work"
        ),
    )
    return EngineFit(
        overhead,
        tuple(heldout),
        errors(parts),
        errors(np.zeros(4)),
        errors(fitted([0, 2])),
        errors(fitted([0])),
        len(train),
    )
