"""Laboratory scenarios: constant times, so that results can be computed by hand."""

from __future__ import annotations

from typing import Any

from dsd_env.scenario import Scenario, load_scenario

CARD = {"models": "synthetic", "regime": "laboratory", "utilisation": "computed by hand"}


def lab(
    *,
    clients: int = 1,
    targets: int = 1,
    alpha: float = 0.7,
    draft_s: float = 0.005,
    colocated_s: float = 0.002,
    verify: dict[str, float] | None = None,
    one_way_s: float = 0.0,
    arrivals: dict[str, Any] | None = None,
    prompt: dict[str, Any] | None = None,
    output: dict[str, Any] | None = None,
    requests: int = 50,
    **changes: Any,
) -> Scenario:
    """Return a scenario of identical clients and targets on a perfect network.

    Args:
        clients: Number of clients.
        targets: Number of targets.
        alpha: Acceptance probability.
        draft_s: Draft step on a client.
        colocated_s: Draft step at a target.
        verify: Coefficients of the target's iteration time.
        one_way_s: Propagation each way.
        arrivals: Arrival process.
        prompt: Law of prompt lengths.
        output: Law of output lengths.
        requests: Requests per episode.
        **changes: Overrides by dotted key, with ``__`` for the dots.
    """
    data: dict[str, Any] = {
        "name": "lab",
        "card": CARD,
        "devices": {
            "client": {
                "count": clients,
                "drafter": {"model": "draft", "profile": {"t0_s": draft_s}},
                "link": "wire",
                "power": {"idle_w": 1.0, "busy_w": 10.0},
            }
        },
        "targets": {
            "target": {
                "count": targets,
                "profile": verify or {"t0_s": 0.030},
                "gpus": 1,
                "kv_capacity_tokens": 10_000_000,
                "max_num_seqs": 64,
                "max_batch_wait_s": 0.0,
                "max_num_batched_tokens": 4096,
                "colocated_drafter": {"model": "draft", "profile": {"t0_s": colocated_s}},
                "power": {"idle_w": 100.0, "busy_w": 500.0},
                "price_usd_per_gpu_hour": 3.6,
            }
        },
        "links": {
            "wire": {"one_way_s": one_way_s, "uplink_bits_per_s": 1.0e15, "downlink_bits_per_s": 1.0e15},
        },
        "acceptance": {"draft": {"source": "iid", "alpha": alpha}},
        "slo": {"any": {"ttft_s": 10.0, "tpot_s": 1.0}},
        "workload": {
            "arrivals": arrivals
            or {"kind": "closed_loop", "think_s": {"distribution": "constant", "value": 1.0}},
            "kinds": {
                "question": {
                    "weight": 1.0,
                    "slo": "any",
                    "prompt_tokens": prompt or {"distribution": "constant", "value": 100},
                    "output_tokens": output or {"distribution": "constant", "value": 101},
                }
            },
            "max_prompt_tokens": 4096,
            "max_output_tokens": 2048,
        },
        "protocol": {"header_bytes": 0, "bytes_per_token": 0},
        "actions": {
            "gammas": list(range(17)),
            "batch_sizes": [1, 2, 4, 8, 16, 32, 64],
            "targets_offered": targets,
        },
        "episode": {"requests": requests, "horizon_s": 1.0e7},
    }
    return load_scenario(data, **changes)
