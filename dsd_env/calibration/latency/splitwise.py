"""Whole iterations measured by Splitwise (Llama-2-70B and BLOOM-176B on A100 and H100, 2023).

Each cell holds about five repeats of one request shape: the time of the prompt phase (**one** iteration while
the batch is one prompt) and the time of an output token (the **mean** over all iterations of the run). The
first therefore shows how single iterations scatter, the second only how whole runs do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dsd_env.calibration.latency.cells import DECODE, PREFILL, Cell
from dsd_env.calibration.latency.tables import TableError, read_table

__all__ = ["HARDWARE", "SplitwiseCell", "iteration_cells", "load_splitwise", "select"]

HARDWARE: dict[str, str] = {"A100-SXM-80GB": "a100-80gb", "H100-SXM-80GB": "h100-80gb"}
"""Device -> its name in the table. Rows of the power-capped H100 are scaled copies and not used."""


@dataclass(frozen=True)
class SplitwiseCell:
    """Repeats of one measured request shape.

    Attributes:
        model: model as the table names it.
        hardware: hardware as the table names it.
        tp: tensor parallelism.
        prompt_tokens: length of each prompt.
        batch: number of requests.
        output_tokens: output tokens of each.
        prompt_s: seconds of the prompt phase, one entry a repeat.
        token_s: mean seconds of an output token, one entry a repeat.
    """

    model: str
    hardware: str
    tp: int
    prompt_tokens: int
    batch: int
    output_tokens: int
    prompt_s: tuple[float, ...]
    token_s: tuple[float, ...]


def load_splitwise(data_dir: Path, *, trust_units: bool = False) -> list[SplitwiseCell]:
    """Load ``splitwise-sim/perf_model.csv``; identical rows (some are listed thrice) count once.

    Args:
        data_dir: folder of measured tables.
        trust_units: do not ask whether times may be in another unit than milliseconds.

    Raises:
        TableError: file or column missing, or an impossible value; names file, line and field.
    """
    path = data_dir / "splitwise-sim" / "perf_model.csv"
    numbers = ("prompt_size", "batch_size", "token_size", "tensor_parallel", "prompt_time", "token_time")
    rows: dict[tuple[str, str, int, int, int, int], dict[tuple[float, float], None]] = {}
    for v, t in read_table(path, numbers, ("model", "hardware")):
        if not trust_units and (v["token_time"] > 1e5 or v["prompt_time"] > 1e6):
            raise TableError(
                f"{path}: prompt_time = {v['prompt_time']}, token_time = {v['token_time']}: not "
                "milliseconds? If they are: load_splitwise(..., trust_units=True)"
            )
        shape = (int(v["tensor_parallel"]), int(v["prompt_size"]), int(v["batch_size"]), int(v["token_size"]))
        rows.setdefault((t["model"], t["hardware"], *shape), {})[(v["prompt_time"], v["token_time"])] = None
    return [
        SplitwiseCell(
            *key,
            prompt_s=tuple(1e-3 * prompt for prompt, _ in repeats),
            token_s=tuple(1e-3 * token for _, token in repeats),
        )
        for key, repeats in rows.items()
    ]


def select(cells: Sequence[SplitwiseCell], model: str, hardware: str, tp: int | None) -> list[SplitwiseCell]:
    """Cells of one model and hardware, at one tensor parallelism or (``None``) at all."""
    return [c for c in cells if c.model == model and c.hardware == hardware and tp in (None, c.tp)]


def iteration_cells(cells: Sequence[SplitwiseCell], prompts: str = "alone") -> list[Cell]:
    """Medians over repeats as cells of a step table; decode and prefill weigh the same.

    A decode cell's context is the mean over its run, prompt + output / 2. Prompt phases of the same shape
    are one cell, whatever the output lengths of their runs. At tensor parallelism 2, 64 requests do not fit
    into memory (their times fall below those of 32): they are left out.

    Args:
        cells: cells of one model, hardware and tensor parallelism.
        prompts: ``alone`` for prompt phases of one prompt, ``batched`` for those of 2 to 32 prompts.
    """
    decode: dict[tuple[int, int], list[float]] = {}
    prefill: dict[tuple[int, int], list[float]] = {}
    for c in cells:
        if c.tp == 2 and c.batch == 64:
            continue
        context = c.prompt_tokens + c.output_tokens // 2
        decode.setdefault((c.batch, context), []).extend(c.token_s)
        if (c.batch == 1) == (prompts == "alone") and c.batch <= 32:
            prefill.setdefault((c.batch, c.prompt_tokens), []).extend(c.prompt_s)
    result = [
        Cell(
            f"decode_b{batch}_s{context}", DECODE, batch, batch * (context + 1), 0, float(np.median(seconds))
        )
        for (batch, context), seconds in sorted(decode.items())
    ]
    weight = len(result) / max(len(prefill), 1)
    for (batch, prompt), seconds in sorted(prefill.items()):
        n = batch * prompt
        key = f"prefill_{batch}x{prompt}"
        result.append(Cell(key, PREFILL, n, n, prompt, float(np.median(seconds)), weight))
    return result
