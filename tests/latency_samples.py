"""Small files as llama-bench, vLLM's benchmarks and users write them; durations follow known laws."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

CSV = """batch,q,context,seconds,repeats,std_s,phase
1,1,128,0.0101,20,0.0002,decode
1,1,1024,0.0109,20,0.0002,decode
4,1,1024,0.0131,,,
1,5,1024,0.0112,20,0.0003,verify
1,256,0,0.0312,20,0.0003,prefill
"""


def step_s(q: int, context: float) -> float:
    return 8e-3 + 9e-5 * q + 1e-6 * (context + q)


def llama_row(prompt: int, gen: int, depth: int, **changes: Any) -> dict[str, Any]:
    """One row as llama-bench writes it; durations follow a known law."""
    if gen:
        total = sum(step_s(1, depth + i) for i in range(gen))
    else:
        total = sum(step_s(min(512, prompt - s), depth + s) for s in range(0, prompt, 512))
    samples = [total * f for f in (0.99, 1.0, 1.01, 0.995, 1.005)]
    row: dict[str, Any] = {
        "build_commit": "abc1234",
        "build_number": 1,
        "cpu_info": "made-up CPU",
        "gpu_info": "",
        "backends": "CPU",
        "model_filename": "model.gguf",
        "model_type": "llama 1B Q4_K - Medium",
        "model_size": 800_000_000,
        "model_n_params": 1_240_000_000,
        "n_batch": 2048,
        "n_ubatch": 512,
        "n_threads": 4,
        "type_k": "f16",
        "type_v": "f16",
        "n_gpu_layers": 0,
        "flash_attn": False,
        "n_prompt": prompt,
        "n_gen": gen,
        "n_depth": depth,
        "test_time": "2026-01-02T03:04:05Z",
        "avg_ns": round(sum(samples) / 5 * 1e9),
        "stddev_ns": round(float(np.std(samples, ddof=1)) * 1e9),
        "avg_ts": (prompt + gen) / total,
        "stddev_ts": 1.0,
        "samples_ns": [round(s * 1e9) for s in samples],
        "samples_ts": [(prompt + gen) / s for s in samples],
    }
    return row | changes


TESTS = [(0, 32, 0), (0, 32, 1024), (8, 0, 1024), (512, 0, 0), (512, 0, 1024), (1024, 0, 0)]


def llama_text(kind: str, rows: list[dict[str, Any]]) -> str:
    if kind == "json":
        return json.dumps(rows, indent=2)
    if kind == "jsonl":
        return "".join(json.dumps(r) + "\n" for r in rows)
    names = [k for k in rows[0] if not k.startswith("samples")]
    lines = [",".join('"' + str(r[n]).replace('"', '""') + '"' for n in names) for r in rows]
    return "\n".join([",".join(names), *lines]) + "\n"


def latency_json(batch: int, inputs: int, outputs: int) -> dict[str, Any]:
    prefill = 5e-3 + 2e-5 * batch * inputs
    total = prefill + sum(6e-3 + 1e-5 * batch + 1e-8 * batch * (inputs + j) for j in range(1, outputs))
    samples = [total * f for f in (0.99, 1.0, 1.0, 1.01)]
    return {"avg_latency": total, "latencies": samples, "percentiles": {"50": total}}


def serve_json(requests: int = 12, inputs: int = 100, outputs: int = 41) -> dict[str, Any]:
    """Pairs of requests that start together; 6 ms an iteration alone, 7 ms for two."""
    starts, itls, ttfts = [], [], []
    for i in range(requests):
        starts.append(100.0 + 2.0 * (i // 2) if i < requests - 2 else 200.0 + 2.0 * i)
        pair = i < requests - 2
        ttfts.append(0.020 if not pair else 0.030)
        itls.append([0.007 if pair else 0.006] * (outputs - 1))
    return {
        "model_id": "made-up",
        "completed": requests,
        "request_throughput": 1.0,
        "mean_ttft_ms": 1e3 * sum(ttfts) / requests,
        "input_lens": [inputs] * requests,
        "output_lens": [outputs] * requests,
        "start_times": starts,
        "ttfts": ttfts,
        "itls": itls,
        "errors": [""] * requests,
    }


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path
