"""Compiled tables in the formats of engines that take a length by batch size.

None of the three sees context, acceptance of a request or RTT, so a table is summed up by batch size first;
``Table.by_batch`` is what is left of it, as a scheduler, and ``scripts/compile_policy.py`` says what that
costs.
"""

from __future__ import annotations

import re
from typing import Any

from dsd_env.schedulers.table import Table

FLIPPED_AFTER = (1, 2)
"""Last TensorRT-LLM series (major, minor) in which a key is the smallest batch of its length."""


class TableExportError(ValueError):
    """A table cannot be said in an engine's format; the message says why."""


def steps_by_batch(table: Table, max_batch_size: int | None = None) -> list[tuple[int, int, int]]:
    """Return (smallest batch, largest batch, length), rising, equal neighbours as one.

    Args:
        table: The table.
        max_batch_size: Largest batch of the engine; default: that of the table's last edge.

    Raises:
        TableExportError: The largest batch is below 1.
    """
    rows = table.lengths_by_batch()
    most = rows[-1][0] if max_batch_size is None else max_batch_size
    if most < 1:
        raise TableExportError(f"largest batch {most} must be at least 1")
    rows = [(low, gamma) for low, gamma in rows if low <= most]
    steps: list[tuple[int, int, int]] = []
    for number, (low, gamma) in enumerate(rows):
        high = rows[number + 1][0] - 1 if number + 1 < len(rows) else most
        if steps and steps[-1][2] == gamma:
            steps[-1] = (steps[-1][0], high, gamma)
        else:
            steps.append((low, high, gamma))
    return steps


def vllm_schedule(table: Table, max_batch_size: int) -> list[list[int]]:
    """Return vLLM's ``num_speculative_tokens_per_batch_size``: [smallest, largest, K], both included.

    It belongs into ``speculative_config`` beside ``num_speculative_tokens``, which must be at least the
    largest
    K: vLLM cuts to it.

    Raises:
        TableExportError: No length is above 0; then leave speculation away.
    """
    steps = steps_by_batch(table, max_batch_size)
    _some_drafts(steps)
    return [list(step) for step in steps]


def sglang_config(table: Table) -> dict[str, dict[str, Any]]:
    """Return the JSON of SGLang's ``--speculative-adaptive-config`` (0.5.23).

    A key is the smallest batch size of its tier, as in ``_find_closest_bs``; each tier has one candidate, so
    SGLang's own adaptation has nothing to choose. Set ``--speculative-num-steps`` to a length of the table:
    SGLang starts with it.

    Raises:
        TableExportError: No length is above 0.
    """
    steps = steps_by_batch(table)
    _some_drafts(steps)
    return {str(low): {"candidate_steps": [gamma]} for low, _, gamma in steps}


def tensorrt_llm_schedule(table: Table, version: str, max_batch_size: int) -> dict[int, int]:
    """Return TensorRT-LLM's ``draft_len_schedule`` for a version.

    Up to 1.2 a key is the smallest batch of its length, key 1 is needed, and its length must be
    ``max_draft_len``. After that a key is the largest batch of its length, and batches above the last one
    draft nothing. The same table read the wrong way round drafts most where it should draft least, so the
    version has to be named.

    Args:
        table: The table.
        version: Version such as ``1.2.0``.
        max_batch_size: Largest batch of the engine.

    Raises:
        TableExportError: The version is not one, no length is above 0, or (up to 1.2) the length of the
            smallest batch is not the longest.
    """
    found = re.match(r"(\d+)\.(\d+)", version)
    if found is None:
        raise TableExportError(f"TensorRT-LLM version {version!r} must begin with two numbers, such as 1.2")
    steps = steps_by_batch(table, max_batch_size)
    _some_drafts(steps)
    if (int(found[1]), int(found[2])) > FLIPPED_AFTER:
        return {high: gamma for _, high, gamma in steps}
    if steps[0][2] < max(gamma for _, _, gamma in steps):
        raise TableExportError(
            f"up to 1.2 the length for batch 1 must be the longest; it is {steps[0][2]}: {steps}"
        )
    return {low: gamma for low, _, gamma in steps}


def _some_drafts(steps: list[tuple[int, int, int]]) -> None:
    if not any(gamma for _, _, gamma in steps):
        raise TableExportError("the table never drafts; leave speculation away")
