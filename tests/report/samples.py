"""Results to make reports of, small, in the forms that the scripts write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HOSTILE = "</script><img src=x onerror=alert(1)>\"'&<!--$data\u2028\\u003c"
"""A name that would be a mark-up, a script, a placeholder or an escape if it were not escaped."""


def value(mean: float, spread: float = 0.1) -> dict[str, Any]:
    return {
        "mean": mean,
        "ci95": [mean - spread, mean + spread],
        "se_batches": None,
        "drift": None,
        "per_seed": [mean - spread, mean + spread],
    }


def history() -> dict[str, Any]:
    return {
        "seed": 2_000_000_000,
        "interval_s": 0.5,
        "end_s": 1.75,
        "active_requests": [0.0, 1.5, 2.25, 1.0],
        "tokens_per_s": [0.0, 30.5, 41.25, 12.5],
        "arrivals_per_s": [0.0, 1.0, 1.0, 1.0],
        "decisions": [0, 3, 2, 1],
        "gamma_mean": [None, 4.0, 2.5, None],
        "batch_size_mean": [None, 1.0, 1.5, 1.0],
        "places": {
            "no drafts": [0, 0, 0, 1],
            "at the target": [0, 1, 0, 0],
            "own device": [0, 2, 1, 0],
            "edge server": [0, 0, 1, 0],
        },
        "requests_measured": 5,
        "quantiles": {"e2e_s": [1.0 + 0.01 * k for k in range(101)], "ttft_s": []},
    }


def metrics(scale: float) -> dict[str, Any]:
    names = {
        **{
            f"{name}_s_{rank}": 1.0
            for name in ("e2e", "ttft", "tpot")
            for rank in ("mean", "p50", "p95", "p99")
        },
        "throughput_tokens_per_s": 30.123456789,
        "goodput_requests_per_s": 0.4,
        "slo_attainment": 0.9,
        "cloud_usd_per_1m_tokens": 12.3456789,
        "energy_j_per_1k_tokens": 12345.6,
        "goodput_requests_per_s.interactive": 0.3,
        "goodput_requests_per_s.patient": 0.1,
        "e2e_s_mean_se": 0.1,
    }
    return {name: value(mean * scale, 0.01 * scale) for name, mean in names.items()}


def evaluation(second: str = "edge_sd:4", label: str = "single_lan") -> dict[str, Any]:
    """What ``scripts/evaluate.py --json --history`` writes, of two schedulers."""
    changes = {
        name: {"relative": -0.25, "ci95": [-0.3, -0.2]}
        for name in metrics(1.0)
        if name != "slo_attainment"  # means of 0 have no ratio
    }
    changes["slo_attainment"] = {"relative": None, "ci95": [None, None]}
    changes["goodput_requests_per_s"] = {"relative": -0.01, "ci95": [-0.02, 0.01]}
    return {
        "metadata": {
            "created": "2026-11-29T10:00:00+00:00",
            "versions": {"python": "3.11.7", "dsd-env": "0.1.0"},
            "git_commit": "0123abc",
            "command": ["scripts/evaluate.py", "--scenarios", label],
            "seeds": [2_000_000_000, 2_000_000_001],
            "ci95": "percentile bootstrap",
        },
        "scenarios": {
            label: {
                "scenario": {"name": "single_lan", "version": 1, "sha256": "ab" * 32},
                "requests": 4,
                "warmup_s": 0.0,
                "window_s": None,
                "load_cycles": 0,
                "schedulers": {
                    "cloud_ar": {"metrics": metrics(1.0)},
                    second: {
                        "metrics": metrics(0.75),
                        "versus": {"scheduler": "cloud_ar", "metrics": changes},
                        "history": history(),
                    },
                },
            }
        },
    }


def search(label: str = "single_lan") -> dict[str, Any]:
    """What ``scripts/best_static.py --json`` writes."""
    row = {"e2e_s_mean": 1.5, "e2e_s_p95": 2.0, "ttft_s_mean": 0.1, "tpot_s_mean": 0.02, "load": 0.4}
    return {
        "command": "python scripts/best_static.py",
        "scenarios": {
            label: {
                "best_for_all": "static:4:1:edge",
                "best_per_class": "static_map:a=4/1/edge",
                "uniform_e2e_s": {"static:0:1:plain": 3.0, "static:2:1:edge": 1.75, "static:4:1:edge": 1.5},
                "table": [
                    {
                        "scheduler": "static:4:1:edge",
                        **row,
                        "slo_by_class": {"interactive": 1.0},
                        "against_best_percent": 0.0,
                        "against_best_percent_se": 0.0,
                    },
                    {
                        "scheduler": "jsq_goodput",
                        **row,
                        "slo_by_class": {"interactive": 1.0},
                        "against_best_percent": 5.25,
                        "against_best_percent_se": 0.5,
                    },
                ],
            }
        },
        "simulations": {},
    }


def capacity(label: str = "single_lan", scheduler: str = "edge_sd:4") -> dict[str, Any]:
    """What ``scripts/capacity.py --json`` writes: of one that carries something, and one that does not."""

    def probe(scale: float, attainment: float) -> dict[str, Any]:
        return {
            "scale": scale,
            "offered": 100.0 * scale,
            "arrivals_per_s": 8.5 * scale if attainment > 0.0 else None,
            "attainment": attainment,
            "requests": 400,
        }

    probes = [probe(1.0, 0.99), probe(2.0, 0.25), probe(1.5, 0.96)]
    return {
        "metadata": {"created": "2026-11-29T10:00:00+00:00", "command": ["scripts/capacity.py"]},
        "scenario": label,
        "scaled": "clients",
        "share": 0.95,
        "tolerance": 0.05,
        "seeds": 2,
        "warmup_s": 40.0,
        "window_s": 60.0,
        "horizon_s": 160.0,
        "schedulers": {
            scheduler: {"best": probes[2], "above": probes[1], "probes": probes},
            "cloud_ar": {"best": None, "above": probe(0.5, 0.0), "probes": [probe(0.5, 0.0)]},
        },
    }


def write(path: Path, data: Any) -> Path:
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def write_run(folder: Path) -> Path:
    """What a report reads of a training run's folder; a resumed run may validate a step twice."""
    folder.mkdir()
    rows = [
        {"step": 0, "return": -2.0, "e2e_s_mean": 3.0, "e2e_s_mean_se": None},
        {"step": 128, "return": -1.5, "e2e_s_mean": 2.9, "e2e_s_mean_se": None},
        {"step": 128, "return": -1.5, "e2e_s_mean": 2.5, "e2e_s_mean_se": None},
        {"step": 256, "return": -1.75, "e2e_s_mean": 2.75, "e2e_s_mean_se": None},
    ]
    (folder / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write(folder / "best.json", {"num_timesteps": 128, "score": 2.5})
    start = {
        "time": "2026-11-29T10:00:00+00:00",
        "step": 0,
        "versions": {"torch": "2.13"},
        "arguments": ["--x"],
    }
    write(folder / "run.json", {"starts": [start]})
    return folder
