"""Metrics. Their definitions are part of the contract; every name carries its unit.

Latencies are over the cohort: the requests that arrive in the window ``warmup_s`` to ``warmup_s + window_s``,
or those numbered ``warmup_requests`` to ``warmup_requests + requests`` by arrival. The episode goes on until
all of them have completed, so that no slow request is left out; where the horizon ends it before, those of
the window that have not completed count as having missed their SLO. Rates and costs are over the window (by
number: from the arrival of the first of the cohort to the end of the episode), and count everything that
happened in it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from dsd_env.laws import slo
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
        gpu_occupied_s: Their occupied GPU-seconds: a target is occupied while a request is resident or waits
            there, whether an iteration runs or not, and for `keep_alive_s` after that; a drafter while it has
            jobs under way.
        cloud_usd: The price of the occupied GPU-seconds, and egress.
        energy_joules: Idle and busy energy of servers, drafting energy of devices, radio energy.
        client_joules: The part of it that users pay: drafting and radio of their devices.
        network_bytes: Bytes sent on all links.
        discarded: Draft tokens made and never verified: drafted ahead in vain, or given up.
        takeovers: Rounds that targets ended because no draft came.
        interruptions: Requests that lost their target in a crash.
        late_messages: Messages that came to a target after their round was over.
        duplicate_messages: Messages that came to a target twice.
        preemptions: Requests that lost their KV because the pool was full.
        sequence_iterations: Sequences for which iterations committed tokens, counted in each iteration.
        stream_iterations: Those of them that were streams.
        stream_idle_iterations: Those of these for which no draft had come.
        generations: Generations of drafts that streams began.
        late_drafts: Drafts that came to a target when their generation was known to be wrong.
        branch_drafted: Tokens made for branches of drafts.
        branch_sent: Tokens of branches sent to targets, those that they open with included.
        branch_used: Tokens of branches that targets went on with.
        branch_hits: Wrong drafts of whose branches one began with the right token.
        branch_misses: Wrong drafts with branches none of which did.
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
    gpu_occupied_s: float = 0.0
    cloud_usd: float = 0.0
    energy_joules: float = 0.0
    client_joules: float = 0.0
    network_bytes: float = 0.0
    discarded: int = 0
    takeovers: int = 0
    interruptions: int = 0
    late_messages: int = 0
    duplicate_messages: int = 0
    preemptions: int = 0
    sequence_iterations: int = 0
    stream_iterations: int = 0
    stream_idle_iterations: int = 0
    generations: int = 0
    late_drafts: int = 0
    branch_drafted: int = 0
    branch_sent: int = 0
    branch_used: int = 0
    branch_hits: int = 0
    branch_misses: int = 0

    def copy(self) -> Totals:
        """Return a copy."""
        return copy.copy(self)

    def since(self, before: Totals) -> Totals:
        """Return the growth of every total since a copy made before."""
        names = Totals.__dataclass_fields__
        return Totals(**{name: getattr(self, name) - getattr(before, name) for name in names})

    def accrue(
        self, now_s: float, in_system: int, idle_w: float, occupied_gpus: float, occupied_usd_per_s: float
    ) -> None:
        """Bring the totals that grow with time up to ``now_s``.

        Args:
            now_s: Time.
            in_system: Requests in the system since the time accrued last.
            idle_w: Idle power of all servers.
            occupied_gpus: GPUs occupied since then.
            occupied_usd_per_s: Their price.
        """
        elapsed_s = now_s - self.time_s
        if elapsed_s > 0.0:
            growth = growth_per_s(in_system, idle_w, occupied_gpus, occupied_usd_per_s)
            for name, rate in growth.items():
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


def growth_per_s(
    in_system: float, idle_w: float, occupied_gpus: float, occupied_usd_per_s: float
) -> dict[str, float]:
    """Return how fast the totals that grow with time grow, by name.

    Args:
        in_system: Requests in the system.
        idle_w: Idle power of all servers.
        occupied_gpus: GPUs occupied.
        occupied_usd_per_s: Their price.
    """
    return {
        "request_seconds": in_system,
        "gpu_occupied_s": occupied_gpus,
        "cloud_usd": occupied_usd_per_s,
        "energy_joules": idle_w,
    }


BATCHES = 10
"""Parts of the window, about: their means tell the standard error of the window's."""


def batches_of(scenario: Scenario) -> int:
    """Return into how many parts of equal length the window is divided; every cycle into as many."""
    cycles = scenario.load_cycles
    return cycles * max(1, round(BATCHES / cycles)) if cycles else BATCHES


def boundaries_s(scenario: Scenario) -> tuple[float, ...]:
    """Return the times between which the parts of the window lie; none if requests are measured by number."""
    episode = scenario.episode
    if episode.window_s is None:
        return ()
    n = batches_of(scenario)
    return tuple(episode.warmup_s + episode.window_s * (i / n) for i in range(n + 1))


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
    """Return whether a completed request met every bound of its SLO."""
    spec = request.spec
    return slo.is_met(
        spec,
        ttft_s(request),
        tpot_s(request, empty=0.0),
        spec.output_tokens,
        request.late_gaps,
        request.late_tokens,
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
        unfinished: Class of SLO of each request of the window that has not completed.
        elapsed_s: Length of the measurement window.
        end_s: Its end.
        d: Growth of every total in it.
        busy_s: Time that targets were busy in it, summed.
        n_targets: How many targets.
        arrived: Requests that arrived in the episode.
        completed: Requests that completed in it.
        capacity_tokens_per_s: Saturated capacity of plain decoding.
    """

    scenario: Scenario
    cohort: list[Request]
    unfinished: list[int]
    elapsed_s: float
    end_s: float
    d: Totals
    busy_s: float
    n_targets: int
    arrived: int
    completed: int
    capacity_tokens_per_s: float


def _per_1k_tokens(m: _Measured, amount: float) -> float:
    return _ratio(1e3 * amount, m.d.output_tokens)


def _cost_usd_per_1m_tokens(m: _Measured) -> float:
    provisioned_usd = _provisioned_usd_per_s(m.scenario) * m.elapsed_s
    egress_usd = _ratio(m.d.network_bytes, 1e9) * m.scenario.egress_usd_per_gigabyte
    return _ratio(1e6 * (provisioned_usd + egress_usd), m.d.output_tokens)


_SPREADS: dict[str, Callable[[list[Request]], NDArray[np.float64]]] = {
    "e2e_s": lambda cohort: np.array([e2e_s(request) for request in cohort]),
    "ttft_s": lambda cohort: np.array([ttft_s(request) for request in cohort]),
    "tpot_s": lambda cohort: _defined(np.array([tpot_s(request) for request in cohort])),
    "stall_s": lambda cohort: np.array([request.longest_gap_s for request in cohort]),
    "itl_s": itl_s,
}
"""The latencies: of each a mean and quantiles are metrics, of the last one the greatest value, too."""

_NUMBERS: dict[str, Callable[[_Measured], float]] = {
    "throughput_tokens_per_s": lambda m: _ratio(m.d.output_tokens, m.elapsed_s),
    "throughput_requests_per_s": lambda m: _ratio(m.d.completed, m.elapsed_s),
    "goodput_requests_per_s": lambda m: _ratio(m.d.good, m.elapsed_s),
    "slo_attainment": lambda m: _ratio(sum(map(meets_slo, m.cohort)), len(m.cohort) + len(m.unfinished)),
    "acceptance_rate": lambda m: _ratio(m.d.accepted, m.d.drafted),
    "block_efficiency": lambda m: _ratio(m.d.round_tokens, m.d.verified_rounds),
    "speculated_token_share": lambda m: _ratio(m.d.round_tokens, m.d.output_tokens),
    "wasted_draft_tokens_per_token": lambda m: _ratio(
        m.d.drafted - m.d.accepted + m.d.discarded, m.d.output_tokens
    ),
    "discarded_draft_tokens_per_token": lambda m: _ratio(m.d.discarded, m.d.output_tokens),
    "gpu_s_per_1k_tokens": lambda m: _per_1k_tokens(m, m.d.gpu_s),
    "gpu_occupied_s_per_1k_tokens": lambda m: _per_1k_tokens(m, m.d.gpu_occupied_s),
    "cloud_usd_per_1m_tokens": lambda m: 1e3 * _per_1k_tokens(m, m.d.cloud_usd),
    "cost_usd_per_1m_tokens": _cost_usd_per_1m_tokens,
    "client_usd_per_1m_tokens": lambda m: (
        1e3 * _per_1k_tokens(m, m.d.client_joules / 3.6e6 * m.scenario.client_usd_per_kwh)
    ),
    "energy_j_per_1k_tokens": lambda m: _per_1k_tokens(m, m.d.energy_joules),
    "cloud_energy_j_per_1k_tokens": lambda m: _per_1k_tokens(m, m.d.energy_joules - m.d.client_joules),
    "client_energy_j_per_1k_tokens": lambda m: _per_1k_tokens(m, m.d.client_joules),
    "bytes_per_token": lambda m: _ratio(m.d.network_bytes, m.d.output_tokens),
    "load": lambda m: _ratio(_ratio(m.d.output_tokens, m.elapsed_s), m.capacity_tokens_per_s),
    "utilisation_target": lambda m: _ratio(m.busy_s, m.elapsed_s * m.n_targets),
    "requests_in_system_mean": lambda m: _ratio(m.d.request_seconds, m.elapsed_s),
    "jain_fairness": lambda m: jain(_speed_by_device(m.cohort)),
    "takeovers": lambda m: float(m.d.takeovers),
    "interruptions": lambda m: float(m.d.interruptions),
    "late_messages": lambda m: float(m.d.late_messages),
    "duplicate_messages": lambda m: float(m.d.duplicate_messages),
    "preemptions": lambda m: float(m.d.preemptions),
    "tokens_per_iteration": lambda m: _ratio(m.d.output_tokens, m.d.sequence_iterations),
    "stream_share": lambda m: _ratio(m.d.stream_iterations, m.d.sequence_iterations),
    "stream_idle_share": lambda m: _ratio(m.d.stream_idle_iterations, m.d.stream_iterations),
    "tokens_per_generation": lambda m: _ratio(m.d.output_tokens, m.d.generations),
    "late_drafts": lambda m: float(m.d.late_drafts),
    "branch_hit_share": lambda m: _ratio(m.d.branch_hits, m.d.branch_hits + m.d.branch_misses),
    "branch_tokens_per_token": lambda m: _ratio(m.d.branch_drafted, m.d.output_tokens),
    "branch_tokens_used_per_token": lambda m: _ratio(m.d.branch_used, m.d.output_tokens),
    "requests_arrived": lambda m: float(m.arrived),
    "requests_completed": lambda m: float(m.completed),
    "requests_active": lambda m: float(m.arrived - m.completed),
    "requests_measured": lambda m: float(len(m.cohort)),
    "requests_unfinished": lambda m: float(len(m.unfinished)),
    "window_s": lambda m: m.elapsed_s,
    "duration_s": lambda m: m.end_s,
}
"""Every other metric."""

_BATCHED: dict[str, Callable[[_Measured], float]] = {
    "e2e_s_mean": lambda m: _mean(_SPREADS["e2e_s"](m.cohort)),
    "ttft_s_mean": lambda m: _mean(_SPREADS["ttft_s"](m.cohort)),
    "tpot_s_mean": lambda m: _mean(_SPREADS["tpot_s"](m.cohort)),
    **{
        name: _NUMBERS[name]
        for name in (
            "throughput_tokens_per_s",
            "goodput_requests_per_s",
            "slo_attainment",
            "cloud_usd_per_1m_tokens",
        )
    },
}
"""The metrics that come with a standard error and a drift, from the means of the window's parts."""

BATCHED_METRICS = tuple(_BATCHED)
"""Their names."""

METRICS = (
    *(f"{name}_{what}" for name in _SPREADS for what in ("mean", *dict(QUANTILES))),
    "itl_s_max",
    *_NUMBERS,
    *(f"{name}_se" for name in _BATCHED),
    *(f"{name}_drift" for name in _BATCHED),
)
"""Names of the metrics that every scenario has, in the order of :func:`episode_metrics`.

After them come those by class of SLO, which :func:`class_metrics` names.
"""


def metric_names(scenario: Scenario) -> tuple[str, ...]:
    """Return the names of all metrics of a scenario, in the order of :func:`episode_metrics`."""
    return (*METRICS, *class_metrics(scenario))


def class_metrics(scenario: Scenario) -> tuple[str, ...]:
    """Return the names of a scenario's metrics by class of SLO."""
    return tuple(f"{what}.{name}" for name in scenario.slo for what in _BY_CLASS)


_BY_CLASS: dict[str, Callable[[_Measured], float]] = {
    "slo_attainment": _NUMBERS["slo_attainment"],
    # Of the measured requests of the class, since the totals do not tell classes apart.
    "goodput_requests_per_s": lambda m: _ratio(sum(map(meets_slo, m.cohort)), m.elapsed_s),
    "requests_measured": _NUMBERS["requests_measured"],
}
"""The metrics by class of SLO."""


def episode_metrics(
    scenario: Scenario,
    cohort: list[Request],
    unfinished: Sequence[tuple[float, int]],
    windows: Sequence[Window],
    now: Window,
    arrived: int,
    completed: int,
    capacity_tokens_per_s: float,
) -> dict[str, float]:
    """Return every metric of an episode.

    Args:
        scenario: The scenario.
        cohort: Completed requests that latencies are about.
        unfinished: Arrival and class of SLO of the requests of the window that have not completed.
        windows: The boundaries passed: the start of the window, those between its parts, its end.
        now: The present, at which the window ends if its end has not been passed.
        arrived: Requests that arrived in the episode.
        completed: Requests that completed in it.
        capacity_tokens_per_s: Saturated capacity of plain decoding.
    """
    start = windows[0] if windows else Window(0.0, Totals(), [0.0] * len(now.busy_s))
    times_s = boundaries_s(scenario)
    whole = len(times_s) > 0 and len(windows) == len(times_s)

    def measured(first: Window, last: Window, within: bool) -> _Measured:
        def is_in(arrival_s: float) -> bool:
            return not within or first.time_s <= arrival_s < last.time_s

        busy = [after - before for before, after in zip(first.busy_s, last.busy_s, strict=True)]
        return _Measured(
            scenario,
            [request for request in cohort if is_in(request.arrival_s)],
            [slo_class for arrival_s, slo_class in unfinished if is_in(arrival_s)],
            elapsed_s=last.time_s - first.time_s,
            end_s=now.time_s,
            d=last.totals.since(first.totals),
            busy_s=sum(busy),
            n_targets=len(busy),
            arrived=arrived,
            completed=completed,
            capacity_tokens_per_s=capacity_tokens_per_s,
        )

    metrics: dict[str, float] = {}
    for name, values_of in _SPREADS.items():
        values = values_of(cohort)
        _spread(metrics, name, values)
    # The values of the last spread, the gaps between tokens.
    metrics["itl_s_max"] = float(values.max()) if len(values) else math.nan
    whole_window = measured(start, windows[-1] if whole else now, within=False)
    metrics |= {name: compute(whole_window) for name, compute in _NUMBERS.items()}
    parts = [measured(a, b, within=True) for a, b in pairwise(windows)] if whole else []
    errors = {
        name: batch_error([compute(part) for part in parts], scenario.load_cycles)
        for name, compute in _BATCHED.items()
    }
    metrics |= {f"{name}_se": error for name, (error, _) in errors.items()}
    metrics |= {f"{name}_drift": drift for name, (_, drift) in errors.items()}
    for number, slo_class in enumerate(scenario.slo):
        of_class = replace(
            whole_window,
            cohort=[request for request in cohort if request.spec.slo_class == number],
            unfinished=[other for other in whole_window.unfinished if other == number],
        )
        metrics |= {f"{what}.{slo_class}": compute(of_class) for what, compute in _BY_CLASS.items()}
    return metrics


def batch_error(values: Sequence[float], cycles: int) -> tuple[float, float]:
    """Return the standard error of a window's mean and its drift, from the means of the window's parts.

    Where the load has whole cycles, two or more, each part is compared with those of the same phase in other
    cycles: what the load profile does is no error. A single cycle offers nothing to compare with, so that the
    error contains the profile, and there is no drift.

    Args:
        values: One per part of equal length; NaN where nothing was observed.
        cycles: Cycles of the load in the window; 0 if it is constant.

    Returns:
        The standard error, and the difference of the means of the window's second and first half in units of
        its own standard error, from what the parts of a half differ among themselves; NaN where there is too
        little to tell.
    """
    x = np.array(values)
    known = np.isfinite(x)
    per_cycle = len(x) // cycles if cycles > 1 else 1
    phase = np.arange(len(x)) % per_cycle
    phases = sorted(set(phase[known].tolist()))
    freedom = int(known.sum()) - len(phases)
    if freedom < 2:
        return math.nan, math.nan
    residual = x.copy()
    for p in phases:
        same = known & (phase == p)
        residual[same] -= x[same].mean()
    n = int(known.sum())
    error = math.sqrt(float((residual[known] ** 2).sum()) / freedom / n)
    early, late = np.arange(len(x)) < len(x) // 2, np.arange(len(x)) >= (len(x) + 1) // 2
    first, second = residual[known & early], residual[known & late]
    # What rounding makes of equal parts is no drift.
    flat = error <= 1e-9 * float(np.abs(x[known]).max())
    if cycles == 1 or flat or freedom < 3 or len(first) == 0 or len(second) == 0:
        return error, math.nan
    # Within the halves, since a trend would hide itself in what it makes of the whole.
    within = float(((first - first.mean()) ** 2).sum() + ((second - second.mean()) ** 2).sum())
    spread = math.sqrt(within / (freedom - 1) * (1.0 / len(first) + 1.0 / len(second)))
    return error, float(second.mean() - first.mean()) / spread if spread > 0.0 else math.nan


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
        "slo_class": np.array([request.spec.slo_class for request in requests], dtype=np.int64),
        "stall_s": np.array([request.longest_gap_s for request in requests]),
        "slo_met": np.array([meets_slo(request) for request in requests], dtype=np.bool_),
    }


def _spread(metrics: dict[str, float], name: str, values: NDArray[np.float64]) -> None:
    metrics[f"{name}_mean"] = float(values.mean()) if len(values) else math.nan
    for suffix, quantile in QUANTILES:
        metrics[f"{name}_{suffix}"] = float(np.quantile(values, quantile)) if len(values) else math.nan


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else math.nan


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
