"""n-gram look-up over known tokens: what it would propose at every start of an output."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def ngram_proposals(
    prompt: Sequence[int], output: Sequence[int], shortest: int, longest: int, limit: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Look up, at every start, what followed the *first* earlier occurrence of the last n-gram.

    The longest n-gram that occurred wins (``longest`` down to ``shortest``). The proposal is what stands
    after it in the text so far, so it ends where that ends. This is the rule of vLLM's ``ngram`` proposer;
    that of the project's own recorder goes by the *last* occurrence
    (:func:`dsd_env.calibration.acceptance.recording.drafters.lookup_proposal`).

    Args:
        prompt: Tokens of the prompt.
        output: Tokens of the output, ``[n]``.
        shortest: Shortest n-gram looked for.
        longest: Longest n-gram looked for.
        limit: Most tokens proposed.

    Returns:
        Run lengths and tokens proposed at starts ``0 .. n``, both int64 ``[n + 1]``.
    """
    text = [*prompt, *output]
    sizes = range(longest, shortest - 1, -1)
    after: dict[int, dict[tuple[int, ...], int]] = {size: {} for size in sizes}

    def remember(end: int) -> None:
        for size in sizes:
            if end >= size:
                after[size].setdefault(tuple(text[end - size : end]), end)

    for end in range(1, len(prompt)):
        remember(end)
    runs, proposed = (np.zeros(len(output) + 1, dtype=np.int64) for _ in range(2))
    for start in range(len(output) + 1):
        known = len(prompt) + start
        if start > 0:
            remember(known - 1)
        places = (after[size].get(tuple(text[known - size : known])) for size in sizes if size < known)
        place = next((found for found in places if found is not None), None)
        if place is None:
            continue
        proposal = text[place : min(place + limit, known)]
        proposed[start] = len(proposal)
        for draft, truth in zip(proposal, output[start : start + limit], strict=False):
            if draft != truth:
                break
            runs[start] += 1
    return runs, proposed
