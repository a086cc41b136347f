"""A small scenario with every kind of entity, from synthetic numbers, for tests of the environment."""

from __future__ import annotations

from typing import Any

from dsd_env.scenario import Scenario, load_scenario

TINY: dict[str, Any] = {
    "name": "tiny",
    "card": {"models": "synthetic", "regime": "test", "utilisation": "not measured"},
    "devices": {
        "phone": {
            "count": 2,
            "link": "mobile",
            "edge_link": "lan",
            "power": {"idle_w": 0.5, "busy_w": 4.0},
            "radio_joules_per_byte": 1e-6,
        },
        "laptop": {
            "count": 3,
            "drafter": {"model": "draft", "profile": {"t0_s": 0.012}, "kv_capacity_tokens": 600},
            "link": "mobile",
            "edge_link": "lan",
            "power": {"idle_w": 10.0, "busy_w": 40.0},
            "speed_spread": [0.8, 1.3],
        },
        "workstation": {
            "count": 3,
            "drafter": {"model": "draft", "profile": {"t0_s": 0.004}},
            "link": "fibre",
            "edge_link": "lan",
            "power": {"idle_w": 30.0, "busy_w": 200.0},
        },
    },
    "edge_servers": {
        "box": {
            "drafter": {"model": "draft", "profile": {"t0_s": 0.005}, "concurrency": 2},
            "backhaul": "fibre",
            "price_usd_per_gpu_hour": 0.5,
            "power": {"idle_w": 50.0, "busy_w": 250.0},
        }
    },
    "targets": {
        "big": {
            "profile": {"t0_s": 0.02, "c_s_per_token": 2e-4, "k_bw_s_per_token": 1e-7},
            "gpus": 4,
            "kv_capacity_tokens": 20000,
            "max_num_seqs": 16,
            "max_batch_wait_s": 0.003,
            "max_num_batched_tokens": 256,
            "colocated_drafter": {"model": "draft", "profile": {"t0_s": 0.003}},
            "iteration_noise_sigma": 0.05,
            "price_usd_per_gpu_hour": 2.0,
            "power": {"idle_w": 300.0, "busy_w": 2000.0},
        },
        "small": {
            "profile": {"t0_s": 0.03, "c_s_per_token": 3e-4},
            "gpus": 2,
            "kv_capacity_tokens": 20000,
            "max_num_seqs": 8,
            "max_num_batched_tokens": 256,
            "price_usd_per_gpu_hour": 2.0,
            "power": {"idle_w": 200.0, "busy_w": 900.0},
        },
    },
    "links": {
        "fibre": {
            "one_way_s": 0.004,
            "uplink_bits_per_s": 1e8,
            "downlink_bits_per_s": 1e8,
            "jitter": {"median_s": 0.001, "sigma": 0.6},
        },
        "mobile": {
            "one_way_s": 0.018,
            "one_way_spread": [0.8, 1.4],
            "uplink_bits_per_s": 5e6,
            "downlink_bits_per_s": 2e7,
            "jitter": {"median_s": 0.003, "sigma": 0.8},
            "loss_probability": 0.02,
            "rto_s": 0.1,
        },
        "lan": {"one_way_s": 0.002, "uplink_bits_per_s": 1e8, "downlink_bits_per_s": 1e8},
    },
    "acceptance": {"draft": {"source": "markov", "after_match": 0.8, "after_mismatch": 0.4}},
    "slo": {"chat": {"ttft_s": 0.5, "tpot_s": 0.04}},
    "workload": {
        "arrivals": {"kind": "closed_loop", "think_s": {"distribution": "exponential", "mean": 0.8}},
        "kinds": {
            "question": {
                "weight": 1.0,
                "slo": "chat",
                "prompt_tokens": {
                    "distribution": "lognormal",
                    "median": 150,
                    "sigma": 0.8,
                    "low": 8,
                    "high": 900,
                },
                "output_tokens": {"distribution": "geometric", "mean": 30},
            }
        },
        "max_prompt_tokens": 1000,
        "max_output_tokens": 200,
    },
    "actions": {"gammas": [0, 1, 2, 4, 6, 8], "batch_sizes": [1, 2, 4, 8, 16], "targets_offered": 2},
    "reward": {
        "weights": {
            "latency": 1.0,
            "tpot": 0.1,
            "goodput": 0.2,
            "slo_violation": 0.3,
            "cloud_cost": 0.05,
            "energy": 0.02,
            "bytes": 0.01,
        },
        "reference_e2e_s": 2.0,
    },
    "episode": {"requests": 12},
}


def tiny(**overrides: Any) -> Scenario:
    """Return the small scenario; overrides as in :func:`dsd_env.scenario.load_scenario`."""
    return load_scenario(TINY, **overrides)
