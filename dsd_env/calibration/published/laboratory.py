"""Scenarios in the shape of other people's experiments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsd_env.acceptance.traceset import DrafterTrace, TraceSet
from dsd_env.latency import load_profile
from dsd_env.scenario import Scenario, load_scenario

_CARD = {"models": "see docs/validation.md", "regime": "a published experiment", "utilisation": "simulated"}
FAST = 1e15
"""Bandwidth of a link on which size does not matter, bit/s."""


def run_length_trace(folder: Path, name: str, run_length: NDArray[np.uint8], *, entry_tokens: int) -> Path:
    """Write a recording with given run lengths by position, and return its path.

    Args:
        folder: Where to.
        name: Its name.
        run_length: Accepted drafts of an unlimited round from each position, shape (n,).
        entry_tokens: Positions of each recorded request; divides n.
    """
    n = len(run_length) // entry_tokens
    trace = TraceSet(
        name=name,
        kinds=("any",),
        offsets=np.arange(0, (n + 1) * entry_tokens, entry_tokens, dtype=np.int64),
        kind=np.zeros(n, dtype=np.uint8),
        prompt_tokens=np.ones(n, dtype=np.int32),
        drafters={
            "draft": DrafterTrace(
                run_length=run_length,
                accept_prob=None,
                top1_prob=np.ones(len(run_length), dtype=np.float16),
                entropy_nats=np.zeros(len(run_length), dtype=np.float16),
            )
        },
        card={
            "label": "synthetic",
            "target": "any",
            "drafters": {"draft": "run lengths drawn from a published distribution"},
            "sampling": "greedy",
            "prompts": "none",
            "software": "dsd_env",
            "date": "2026-11-28",
            "licence": "facts",
        },
    )
    return trace.save(folder)[0]


def scenario(
    *,
    acceptance: Mapping[str, Any],
    target: str | Mapping[str, Any],
    drafter: str | Mapping[str, Any] | None = None,
    edge: Mapping[str, Any] | None = None,
    head: str | Mapping[str, Any] | None = None,
    colocated: Mapping[str, Any] | None = None,
    clients: int = 1,
    one_way_s: float = 0.0,
    uplink_bits_per_s: float = FAST,
    backhaul_one_way_s: float = 0.0,
    jitter: Mapping[str, float] | None = None,
    prompt_tokens: int = 8,
    output_tokens: int = 128,
    requests: int = 20,
    think_s: float = 1e-3,
    bytes_per_token: float = 0.0,
    protocol: str = "synchronous",
    gammas: Sequence[int] = (0, 1, 2, 3, 4, 5, 6, 7, 8, 10),
    total_requests: int | None = None,
    power: Mapping[str, float] | None = None,
    server: Mapping[str, Any] | None = None,
    batch_sizes: Sequence[int] = (1,),
    horizon_s: float = 1e7,
    window_s: float | None = None,
    acceptance_kinds: Sequence[str] = (),
) -> Scenario:
    """Return a scenario of equal clients at one target.

    Args:
        acceptance: Acceptance of the drafter `draft`.
        target: Latency profile of the target: a name or coefficients.
        drafter: Latency profile of each client's own drafter: a name or coefficients.
        edge: Latency profile of a drafter that all clients share, as many sequences at a time as there are
            clients.
        head: Latency profile of a draft head at the target: a name or coefficients.
        colocated: A drafter at the target: its profile and other keys, such as its mode.
        clients: Number of clients.
        one_way_s: Propagation between clients and target, each way.
        uplink_bits_per_s: Of each client.
        backhaul_one_way_s: Propagation between the shared drafter and the target, each way.
        jitter: Of both links.
        prompt_tokens: Of each request.
        output_tokens: Of each request.
        requests: Requests that are measured.
        think_s: Time between a client's answer and its next question.
        bytes_per_token: Upload for each draft token.
        protocol: Kind of protocol.
        gammas: Speculation lengths.
        total_requests: Stop after so many arrivals.
        power: Of the target.
        server: Other keys of the target.
        batch_sizes: Batch sizes that jobs may ask for.
        horizon_s: Simulated time at which the episode ends.
        window_s: Measure so much time after a warm-up of a quarter of it, instead of a number of requests.
        acceptance_kinds: Kinds of requests of the acceptance model that are drawn from; none: all.
    """
    device: dict[str, Any] = {
        "count": clients,
        "link": "wire",
        "power": {"idle_w": 0.0, "busy_w": 0.0},
    }
    if drafter is not None:
        device["drafter"] = {"model": "draft", "profile": drafter}
    data: dict[str, Any] = {
        "name": "published",
        "card": _CARD,
        "devices": {"client": device},
        "targets": {
            "cloud": {
                "profile": target,
                "gpus": load_profile(target).parallelism if isinstance(target, str) else 1,
                # What a profile of real hardware has; unlimited where the target is made of coefficients.
                **({} if isinstance(target, str) else {"kv_capacity_tokens": 10_000_000}),
                "max_batch_wait_s": 0.0,
                "power": dict(power or {"idle_w": 0.0, "busy_w": 1.0}),
                **dict(server or {}),
            }
        },
        "links": {
            "wire": {
                "one_way_s": one_way_s,
                "jitter": dict(jitter or {}),
                "uplink_bits_per_s": uplink_bits_per_s,
                "downlink_bits_per_s": FAST,
            },
            "backhaul": {
                "one_way_s": backhaul_one_way_s,
                "jitter": dict(jitter or {}),
                "uplink_bits_per_s": FAST,
                "downlink_bits_per_s": FAST,
            },
        },
        "acceptance": {"draft": dict(acceptance)},
        "slo": {"any": {"ttft_s": 10.0, "tpot_s": 10.0}},
        "workload": {
            "arrivals": {"kind": "closed_loop", "think_s": {"distribution": "constant", "value": think_s}},
            "kinds": {
                "any": {
                    "weight": 1.0,
                    "slo": "any",
                    "acceptance_kinds": list(acceptance_kinds),
                    "prompt_tokens": {"distribution": "constant", "value": prompt_tokens},
                    "output_tokens": {"distribution": "constant", "value": output_tokens},
                }
            },
            "max_prompt_tokens": 4096,
            "max_output_tokens": 4096,
        },
        "protocol": {"kind": protocol, "header_bytes": 0.0, "bytes_per_token": bytes_per_token},
        "actions": {"gammas": list(gammas), "batch_sizes": list(batch_sizes), "targets_offered": 1},
        "episode": {"requests": requests, "horizon_s": horizon_s},
    }
    if edge is not None:
        device["edge_link"] = "wire"
        data["edge_servers"] = {
            "host": {
                "drafter": {"model": "draft", "profile": edge, "concurrency": clients},
                "backhaul": "backhaul",
                "power": {"idle_w": 0.0, "busy_w": 0.0},
            }
        }
    if head is not None:
        data["targets"]["cloud"]["colocated_drafter"] = {"model": "draft", "kind": "head", "profile": head}
    if colocated is not None:
        data["targets"]["cloud"]["colocated_drafter"] = {"model": "draft", **dict(colocated)}
    if window_s is not None:
        warmup_s = 0.25 * window_s
        data["episode"] = {"warmup_s": warmup_s, "window_s": window_s, "horizon_s": 2.0 * window_s}
    if total_requests is not None:
        data["episode"]["total_requests"] = total_requests
    return load_scenario(data)
