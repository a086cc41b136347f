"""What metrics are called in a report, and whether more of them is better."""

from __future__ import annotations

import re

_NAMES = {
    "e2e_s": "request time",
    "ttft_s": "time to first token",
    "tpot_s": "time per output token",
    "stall_s": "longest gap of a request",
    "itl_s": "gap between tokens",
}
_STATISTICS = {
    "mean": "mean",
    "p50": "median",
    "p95": "95th percentile",
    "p99": "99th percentile",
    "max": "greatest",
}
_OTHERS = {
    "return": "return of an episode",
    "throughput_tokens_per_s": "throughput (tokens/s)",
    "throughput_requests_per_s": "throughput (requests/s)",
    "goodput_requests_per_s": "goodput (requests/s)",
    "slo_attainment": "share that met its SLO",
    "acceptance_rate": "acceptance rate",
    "block_efficiency": "tokens per draft round",
    "load": "load",
    "utilisation_target": "utilisation of the targets",
    "requests_in_system_mean": "requests in the system",
    "jain_fairness": "Jain's fairness of devices",
    "gpu_occupied_s_per_1k_tokens": "occupied GPU-seconds per 1k tokens",
    "gpu_s_per_1k_tokens": "busy GPU-seconds per 1k tokens",
    "cloud_usd_per_1m_tokens": "occupied GPUs ($ per 1M tokens)",
    "cost_usd_per_1m_tokens": "whole fleet ($ per 1M tokens)",
    "client_usd_per_1m_tokens": "users' electricity ($ per 1M tokens)",
    "energy_j_per_1k_tokens": "energy (J per 1k tokens)",
    "cloud_energy_j_per_1k_tokens": "energy of servers (J per 1k tokens)",
    "client_energy_j_per_1k_tokens": "energy of devices (J per 1k tokens)",
    "bytes_per_token": "bytes per token",
}

_LESS = re.compile(r"_s_(mean|p50|p95|p99|max)$|_per_1[km]_tokens$|^bytes_per_token$|^(wasted|discarded)_")
_MORE = re.compile(r"^(throughput|goodput)_|^slo_attainment|^jain_fairness$|^return$")


def metric_words(name: str) -> str:
    """Return what a metric is called; those that are not well known keep their name."""
    base, dot, slo_class = name.partition(".")
    for latency, words in _NAMES.items():
        if base.startswith(f"{latency}_") and (statistic := _STATISTICS.get(base[len(latency) + 1 :])):
            return f"{statistic} {words} (s)"
    words = _OTHERS.get(base, base.replace("_", " "))
    return f"{words}, class {slo_class}" if dot else words


def better(name: str) -> int:
    """Return 1 if more of a metric is better, -1 if less is, 0 if neither."""
    if _LESS.search(name):
        return -1
    return 1 if _MORE.search(name) else 0
