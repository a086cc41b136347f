"""Small trace sets made up for tests."""

from typing import Any

import numpy as np

from dsd_env.acceptance import DrafterTrace, TraceSet


def card(drafters=("look", "model"), **changes) -> dict[str, Any]:
    return {
        "label": "measured",
        "gamma_max": 16,
        "target": {"model": "a target"},
        "drafters": {d: {"model": d} for d in drafters},
        "sampling": "greedy",
        "prompts": [],
        "software": {},
        "date": "2026-01-01",
        "licence": "Apache-2.0",
        **changes,
    }


def make_trace(lengths=(5, 3, 4), kind=(0, 1, 0), seed=0, **changes) -> TraceSet:
    rng = np.random.default_rng(seed)
    total = sum(lengths)
    run = np.concatenate([np.minimum(rng.integers(0, 17, n), np.arange(n, 0, -1)) for n in lengths])
    confidence = [rng.random(total).astype(np.float16) for _ in range(4)]
    values: dict[str, Any] = {
        "name": "sample",
        "kinds": ("code", "chat"),
        "offsets": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        "kind": np.array(kind, np.uint8),
        "prompt_tokens": rng.integers(1, 100, len(lengths)).astype(np.int32),
        "drafters": {
            "look": DrafterTrace(run.astype(np.uint8), None, confidence[0], confidence[1]),
            "model": DrafterTrace(None, rng.random(total).astype(np.float32), confidence[2], confidence[3]),
        },
        "card": card(),
    }
    return TraceSet(**(values | changes))
