"""Metrics. Their definitions are part of the contract; every name carries its unit.

Latencies are over the cohort: the requests numbered ``warmup_requests`` to ``warmup_requests +
requests`` by arrival, all of which have completed when an episode ends by their number, so that no
slow request is left out. Rates and costs are over the window from the arrival of the first of them to
the end of the episode, and count everything that happened in it.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dsd_env.scenario.schema import Scenario
from dsd_env.sim.entities import Request

QUANTILES = (("p50", 0.50), ("p95", 0.95), ("p99", 0.99))


@dataclass(slots=True)
class Totals:
    """Cumulative totals of an episode.

    Attributes:
        time_s: Time up to which the totals that grow with time are accrued.
        request_seconds: Integral of the number of requests in the system.
        output_tokens: Output tokens committed.
        completed: Requests completed.
        good: Requests that met their SLO.
        slo_violations: Requests that did not.
        tpot_cost: Sum over completed requests of TPOT / its bound.
        drafted: Draft tokens verified.
        accepted: Draft tokens accepted.
        verified_rounds: Draft rounds verified.
        round_tokens: Tokens committed by draft rounds.
        gpu_s: Busy GPU-seconds of targets, edge servers and dedicated drafters.
        cloud_usd: Their price, and egress.
        energy_joules: Idle and busy energy of servers, drafting energy of devices, radio energy.
        network_bytes: Bytes sent on all links.
        discarded: Draft tokens made and never verified: drafted ahead in vain, or given up.
        takeovers: Rounds that targets ended because no draft came.
        interruptions: Requests that lost their target in a crash.
        late_messages: Messages that came to a target after their round was over.
        duplicate_messages: Messages that came to a target twice.
        preemptions: Requests that lost their KV because the pool was full.
    """

    time_s: float = 0.0
    request_seconds: float = 0.0
    output_tokens: int = 0
    completed: int = 0
    good: int = 0
    slo_violations: int = 0
    tpot_cost: float = 0.0
    drafted: int = 0
    accepted: int = 0
    verified_rounds: int = 0
    round_tokens: int = 0
    gpu_s: float = 0.0
    cloud_usd: float = 0.0
    energy_joules: float = 0.0
    network_bytes: float = 0.0
    discarded: int = 0
    takeovers: int = 0
    interruptions: int = 0
    late_messages: int = 0
    duplicate_messages: int = 0
    preemptions: int = 0

    def copy(self) -> Totals:
        """Return a copy."""
        return copy.copy(self)

    def accrue(self, now_s: float, in_system: int, idle_w: float) -> None:
        """Bring the totals that grow with time up to ``now_s``.

        Args:
            now_s: Time.
            in_system: Requests in the system since the time accrued last.
            idle_w: Idle power of all servers.
        """
        elapsed_s = now_s - self.time_s
        if elapsed_s > 0.0:
            self.request_seconds += in_system * elapsed_s
            self.energy_joules += idle_w * elapsed_s
            self.time_s = now_s

    def verified(self, drafted: int, accepted: int, committed: int) -> None:
        """Count a verified draft round."""
        self.drafted += drafted
        self.accepted += accepted
        self.verified_rounds += 1
        self.round_tokens += committed

    def complete(self, request: Request) -> None:
        """Count a completed request."""
        self.completed += 1
        if meets_slo(request):
            self.good += 1
        else:
            self.slo_violations += 1
        self.tpot_cost += tpot_s(request, empty=0.0) / request.spec.slo_tpot_s


@dataclass(frozen=True, slots=True)
class Window:
    """One end of the measurement window.

    Attributes:
        time_s: When.
        totals: Totals then.
        busy_s: Busy time of each target then, the iteration under way included.
    """

    time_s: float
    totals: Totals
    busy_s: list[float]


def ttft_s(request: Request) -> float:
    """Return the time from arrival to the first token at the client."""
    return request.delivery_s[0] - request.arrival_s


def e2e_s(request: Request) -> float:
    """Return the time from arrival to the last token at the client."""
    return request.delivery_s[-1] - request.arrival_s


def tpot_s(request: Request, empty: float = math.nan) -> float:
    """Return (E2E - TTFT) / (n - 1), or ``empty`` for a single token."""
    tokens = request.spec.output_tokens
    return (request.delivery_s[-1] - request.delivery_s[0]) / (tokens - 1) if tokens > 1 else empty


def meets_slo(request: Request) -> bool:
    """Return whether a completed request met both bounds of its SLO."""
    return (
        ttft_s(request) <= request.spec.slo_ttft_s and tpot_s(request, empty=0.0) <= request.spec.slo_tpot_s
    )


def itl_s(requests: list[Request]) -> NDArray[np.float64]:
    """Return the gaps between consecutive tokens at the client; tokens that arrive together have gap 0."""
    gaps: list[float] = []
    for request in requests:
        for index, tokens in enumerate(request.delivery_tokens):
            if index > 0:
                gaps.append(request.delivery_s[index] - request.delivery_s[index - 1])
            gaps.extend([0.0] * (tokens - 1))
    return np.array(gaps)


def jain(shares: NDArray[np.float64]) -> float:
    """Return Jain's fairness index of positive shares: 1 when all are equal, 1/n when one has all."""
    if len(shares) == 0:
        return math.nan
    return float(shares.sum() ** 2 / (len(shares) * (shares**2).sum()))


def episode_metrics(
    scenario: Scenario, cohort: list[Request], start: Window, end: Window, arrived: int, completed: int
) -> dict[str, float]:
    """Return every metric of an episode.

    Args:
        scenario: The scenario.
        cohort: Completed requests that latencies are about.
        start: Start of the measurement window.
        end: Its end.
        arrived: Requests that arrived in the episode.
        completed: Requests that completed in it.
    """
    metrics: dict[str, float] = {}
    _spread(metrics, "e2e_s", np.array([e2e_s(request) for request in cohort]))
    _spread(metrics, "ttft_s", np.array([ttft_s(request) for request in cohort]))
    tpot = np.array([tpot_s(request) for request in cohort])
    _spread(metrics, "tpot_s", tpot[~np.isnan(tpot)])
    gaps = itl_s(cohort)
    _spread(metrics, "itl_s", gaps)
    metrics["itl_s_max"] = float(gaps.max()) if len(gaps) else math.nan

    elapsed_s = end.time_s - start.time_s
    a, b = start.totals, end.totals
    tokens = b.output_tokens - a.output_tokens
    metrics["throughput_tokens_per_s"] = _ratio(tokens, elapsed_s)
    metrics["throughput_requests_per_s"] = _ratio(b.completed - a.completed, elapsed_s)
    metrics["goodput_requests_per_s"] = _ratio(b.good - a.good, elapsed_s)
    metrics["slo_attainment"] = _ratio(sum(meets_slo(request) for request in cohort), len(cohort))

    drafted, accepted = b.drafted - a.drafted, b.accepted - a.accepted
    metrics["acceptance_rate"] = _ratio(accepted, drafted)
    metrics["block_efficiency"] = _ratio(
        b.round_tokens - a.round_tokens, b.verified_rounds - a.verified_rounds
    )
    metrics["speculated_token_share"] = _ratio(b.round_tokens - a.round_tokens, tokens)
    discarded = b.discarded - a.discarded
    metrics["wasted_draft_tokens_per_token"] = _ratio(drafted - accepted + discarded, tokens)
    metrics["discarded_draft_tokens_per_token"] = _ratio(discarded, tokens)

    metrics["gpu_s_per_1k_tokens"] = _ratio(1e3 * (b.gpu_s - a.gpu_s), tokens)
    provisioned_usd = _provisioned_usd_per_s(scenario) * elapsed_s
    egress_usd = _ratio(b.network_bytes - a.network_bytes, 1e9) * scenario.egress_usd_per_gigabyte
    metrics["cost_usd_per_1m_tokens"] = _ratio(1e6 * (provisioned_usd + egress_usd), tokens)
    metrics["energy_j_per_1k_tokens"] = _ratio(1e3 * (b.energy_joules - a.energy_joules), tokens)
    metrics["bytes_per_token"] = _ratio(b.network_bytes - a.network_bytes, tokens)
    busy = [last - first for first, last in zip(start.busy_s, end.busy_s, strict=True)]
    metrics["utilisation_target"] = _ratio(sum(busy), elapsed_s * len(busy))
    metrics["requests_in_system_mean"] = _ratio(b.request_seconds - a.request_seconds, elapsed_s)
    metrics["jain_fairness"] = jain(_speed_by_device(cohort))

    metrics["takeovers"] = float(b.takeovers - a.takeovers)
    metrics["interruptions"] = float(b.interruptions - a.interruptions)
    metrics["late_messages"] = float(b.late_messages - a.late_messages)
    metrics["duplicate_messages"] = float(b.duplicate_messages - a.duplicate_messages)
    metrics["preemptions"] = float(b.preemptions - a.preemptions)

    metrics["requests_arrived"] = float(arrived)
    metrics["requests_completed"] = float(completed)
    metrics["requests_active"] = float(arrived - completed)
    metrics["requests_measured"] = float(len(cohort))
    metrics["duration_s"] = end.time_s
    return metrics


def requests_table(requests: list[Request]) -> dict[str, NDArray[np.generic]]:
    """Return one column per property of completed requests."""
    return {
        "request": np.array([request.number for request in requests], dtype=np.int64),
        "uid": np.array([request.spec.uid for request in requests], dtype=np.int64),
        "device": np.array([request.device.number for request in requests], dtype=np.int64),
        "kind": np.array([request.spec.kind for request in requests], dtype=np.int64),
        "prompt_tokens": np.array([request.spec.prompt_tokens for request in requests], dtype=np.int64),
        "output_tokens": np.array([request.spec.output_tokens for request in requests], dtype=np.int64),
        "delivered_tokens": np.array([sum(request.delivery_tokens) for request in requests], dtype=np.int64),
        "arrival_s": np.array([request.arrival_s for request in requests]),
        "ttft_s": np.array([ttft_s(request) for request in requests]),
        "tpot_s": np.array([tpot_s(request) for request in requests]),
        "e2e_s": np.array([e2e_s(request) for request in requests]),
        "completed_s": np.array([request.completed_s for request in requests]),
        "rounds": np.array([request.rounds for request in requests], dtype=np.int64),
        "verifies": np.array([request.verifies for request in requests], dtype=np.int64),
        "drafted_tokens": np.array([request.drafted for request in requests], dtype=np.int64),
        "accepted_tokens": np.array([request.accepted for request in requests], dtype=np.int64),
        "slo_met": np.array([meets_slo(request) for request in requests], dtype=np.bool_),
    }


def _spread(metrics: dict[str, float], name: str, values: NDArray[np.float64]) -> None:
    metrics[f"{name}_mean"] = float(values.mean()) if len(values) else math.nan
    for suffix, quantile in QUANTILES:
        metrics[f"{name}_{suffix}"] = float(np.quantile(values, quantile)) if len(values) else math.nan


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator > 0 else math.nan


def _provisioned_usd_per_s(scenario: Scenario) -> float:
    """Return what the whole fleet of GPUs costs per second, busy or not."""
    hourly = 0.0
    for target in scenario.targets.values():
        gpus = target.gpus
        if target.colocated_drafter is not None and target.colocated_drafter.mode == "dedicated":
            gpus += target.colocated_drafter.gpus
        hourly += target.count * gpus * target.price_usd_per_gpu_hour
    for edge in scenario.edge_servers.values():
        hourly += edge.count * edge.gpus * edge.price_usd_per_gpu_hour
    return hourly / 3600.0


def _speed_by_device(cohort: list[Request]) -> NDArray[np.float64]:
    """Return each device's mean token rate while it waits: its tokens / its summed E2E."""
    tokens: dict[int, int] = {}
    waiting_s: dict[int, float] = {}
    for request in cohort:
        number = request.device.number
        tokens[number] = tokens.get(number, 0) + request.spec.output_tokens
        waiting_s[number] = waiting_s.get(number, 0.0) + e2e_s(request)
    return np.array([tokens[number] / waiting_s[number] for number in tokens])
