"""Metrics. Their definitions are part of the contract; every name carries its unit.

Latencies are over the cohort: the requests numbered ``warmup_requests`` to ``warmup_requests +
requests`` by arrival, all of which have completed when an episode ends by their number, so that no
slow request is left out. Rates and costs are over the window from the arrival of the first of them to
the end of the episode, and count everything that happened in it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
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

    def since(self, before: Totals) -> Totals:
        """Return the growth of every total since a copy made before."""
        names = Totals.__dataclass_fields__
        return Totals(**{name: getattr(self, name) - getattr(before, name) for name in names})

    def accrue(self, now_s: float, in_system: int, idle_w: float) -> None:
        """Bring the totals that grow with time up to ``now_s``.

        Args:
            now_s: Time.
            in_system: Requests in the system since the time accrued last.
            idle_w: Idle power of all servers.
        """
        elapsed_s = now_s - self.time_s
        if elapsed_s > 0.0:
            for name, rate in growth_per_s(in_system, idle_w).items():
                setattr(self, name, getattr(self, name) + rate * elapsed_s)
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


def growth_per_s(in_system: int, idle_w: float) -> dict[str, float]:
    """Return how fast the totals that grow with time grow, by name.

    Args:
        in_system: Requests in the system.
        idle_w: Idle power of all servers.
    """
    return {"request_seconds": in_system, "energy_joules": idle_w}


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


@dataclass(frozen=True, slots=True)
class _Measured:
    """What metrics are computed from.

    Attributes:
        scenario: The scenario.
        cohort: Completed requests that latencies are about.
        elapsed_s: Length of the measurement window.
        end_s: Its end.
        d: Growth of every total in it.
        busy_s: Time that targets were busy in it, summed.
        n_targets: How many targets.
        arrived: Requests that arrived in the episode.
        completed: Requests that completed in it.
    """

    scenario: Scenario
    cohort: list[Request]
    elapsed_s: float
    end_s: float
    d: Totals
    busy_s: float
    n_targets: int
    arrived: int
    completed: int


def _cost_usd_per_1m_tokens(m: _Measured) -> float:
    provisioned_usd = _provisioned_usd_per_s(m.scenario) * m.elapsed_s
    egress_usd = _ratio(m.d.network_bytes, 1e9) * m.scenario.egress_usd_per_gigabyte
    return _ratio(1e6 * (provisioned_usd + egress_usd), m.d.output_tokens)


_SPREADS: dict[str, Callable[[list[Request]], NDArray[np.float64]]] = {
    "e2e_s": lambda cohort: np.array([e2e_s(request) for request in cohort]),
    "ttft_s": lambda cohort: np.array([ttft_s(request) for request in cohort]),
    "tpot_s": lambda cohort: _defined(np.array([tpot_s(request) for request in cohort])),
    "itl_s": itl_s,
}
"""The latencies: of each a mean and quantiles are metrics, of the last one the greatest value, too."""

_NUMBERS: dict[str, Callable[[_Measured], float]] = {
    "throughput_tokens_per_s": lambda m: _ratio(m.d.output_tokens, m.elapsed_s),
    "throughput_requests_per_s": lambda m: _ratio(m.d.completed, m.elapsed_s),
    "goodput_requests_per_s": lambda m: _ratio(m.d.good, m.elapsed_s),
    "slo_attainment": lambda m: _ratio(sum(map(meets_slo, m.cohort)), len(m.cohort)),
    "acceptance_rate": lambda m: _ratio(m.d.accepted, m.d.drafted),
    "block_efficiency": lambda m: _ratio(m.d.round_tokens, m.d.verified_rounds),
    "speculated_token_share": lambda m: _ratio(m.d.round_tokens, m.d.output_tokens),
    "wasted_draft_tokens_per_token": lambda m: _ratio(
        m.d.drafted - m.d.accepted + m.d.discarded, m.d.output_tokens
    ),
    "discarded_draft_tokens_per_token": lambda m: _ratio(m.d.discarded, m.d.output_tokens),
    "gpu_s_per_1k_tokens": lambda m: _ratio(1e3 * m.d.gpu_s, m.d.output_tokens),
    "cost_usd_per_1m_tokens": _cost_usd_per_1m_tokens,
    "energy_j_per_1k_tokens": lambda m: _ratio(1e3 * m.d.energy_joules, m.d.output_tokens),
    "bytes_per_token": lambda m: _ratio(m.d.network_bytes, m.d.output_tokens),
    "utilisation_target": lambda m: _ratio(m.busy_s, m.elapsed_s * m.n_targets),
    "requests_in_system_mean": lambda m: _ratio(m.d.request_seconds, m.elapsed_s),
    "jain_fairness": lambda m: jain(_speed_by_device(m.cohort)),
    "takeovers": lambda m: float(m.d.takeovers),
    "interruptions": lambda m: float(m.d.interruptions),
    "late_messages": lambda m: float(m.d.late_messages),
    "duplicate_messages": lambda m: float(m.d.duplicate_messages),
    "preemptions": lambda m: float(m.d.preemptions),
    "requests_arrived": lambda m: float(m.arrived),
    "requests_completed": lambda m: float(m.completed),
    "requests_active": lambda m: float(m.arrived - m.completed),
    "requests_measured": lambda m: float(len(m.cohort)),
    "duration_s": lambda m: m.end_s,
}
"""Every other metric."""

METRICS = (
    *(f"{name}_{what}" for name in _SPREADS for what in ("mean", *dict(QUANTILES))),
    "itl_s_max",
    *_NUMBERS,
)
"""Names of the metrics, in the order of :func:`episode_metrics`."""


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
    for name, values_of in _SPREADS.items():
        values = values_of(cohort)
        _spread(metrics, name, values)
    # The values of the last spread, the gaps between tokens.
    metrics["itl_s_max"] = float(values.max()) if len(values) else math.nan
    busy = [last - first for first, last in zip(start.busy_s, end.busy_s, strict=True)]
    measured = _Measured(
        scenario,
        cohort,
        elapsed_s=end.time_s - start.time_s,
        end_s=end.time_s,
        d=end.totals.since(start.totals),
        busy_s=sum(busy),
        n_targets=len(busy),
        arrived=arrived,
        completed=completed,
    )
    return metrics | {name: compute(measured) for name, compute in _NUMBERS.items()}


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


def _defined(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values[~np.isnan(values)]


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator > 0 else math.nan


def _provisioned_usd_per_s(scenario: Scenario) -> float:
    """Return what the whole fleet of GPUs costs per second, busy or not."""
    hourly = 0.0
    for target in scenario.targets.values():
        gpus = target.gpus
        gpus += sum(drafter.gpus for drafter in target.menu if drafter.mode == "dedicated")
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
