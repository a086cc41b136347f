"""Edge drafting: UCB-SpecStop's board and PipeSD's reproduction."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsd_env.calibration.published.figures import Check, Figure
from dsd_env.calibration.published.laboratory import run_length_trace, scenario
from dsd_env.control import Decision, DecisionView
from dsd_env.scenario import Scenario
from dsd_env.schedulers import make_scheduler
from dsd_env.sim.events import Event, EventKind
from dsd_env.simulate import Result, simulate

COST_LIMIT, REGRET_LIMIT = 0.10, 0.01
CLIENTS_LIMIT = 0.05
BANDWIDTH_LIMIT = 0.02


def _column(result: Result, name: str) -> NDArray[np.float64]:
    return result.requests[name].astype(np.float64)


def _decode_s(result: Result) -> float:
    """Return the time from first to last token, summed over the requests."""
    return float((_column(result, "e2e_s") - _column(result, "ttft_s")).sum())


# ---------------------------------------------------------------- UCB-SpecStop


def run_lengths(at_least: Sequence[float], n: int) -> NDArray[np.uint8]:
    """Return run lengths with exactly given shares, in an order that is always the same.

    Args:
        at_least: Share of rounds that accept at least 1, 2, … drafts.
        n: How many.
    """
    levels = (np.arange(n) + 0.5) / n
    reached = levels[:, None] < np.array(at_least)
    runs: NDArray[np.uint8] = reached.sum(axis=1).astype(np.uint8)
    np.random.default_rng(1).shuffle(runs)
    return runs


def draft_s(per_token_ms: Mapping[int, float], k: int) -> float:
    """Return the time of drafting k tokens, linear between the lengths that were measured."""
    ks = sorted(per_token_ms)
    return float(np.interp(k, ks, [1e-3 * each * per_token_ms[each] for each in ks]))


def ucb_costs(
    facts: Mapping[str, Any], folder: Path, delay_ms: float, ks: Sequence[int], *, requests: int = 40
) -> dict[int, float]:
    """Return the simulated cost in ms per token by k, at a one-way delay.

    Args:
        facts: The source's.
        folder: Where a recording may be written.
        delay_ms: One-way delay.
        ks: Drafts of each round.
        requests: Requests of 1,000 tokens. Over seeds a cost has a standard deviation of 0.2 % with 60 of
            them, where neighbouring lengths are 1 % apart; with 15, chance picked among them.
    """
    runs = run_lengths(facts["accepted_at_least"], 80_000)
    trace = run_length_trace(folder, "ucb", runs, entry_tokens=1000)
    costs = {}
    for k in ks:
        system = scenario(
            acceptance={"source": "trace", "trace": str(trace), "drafter": "draft"},
            target={"t0_s": 1e-3 * facts["comm_round_ms"][0]},
            drafter={"t0_s": draft_s(facts["draft_ms_per_token"], k) / k},
            one_way_s=1e-3 * delay_ms,
            output_tokens=1000,
            requests=requests,
        )
        result = simulate(system, f"static:{k}:1:own", seed=1)
        after_first = _column(result, "output_tokens") - 1.0
        costs[k] = 1e3 * _decode_s(result) / float(after_first.sum())
    return costs


def ucb_specstop(facts: Mapping[str, Any], folder: Path) -> Check:
    """Hold costs by delay and k, and the regret of the best simulated k, against the board's."""
    figures = []
    for delay, measured in facts["cost_ms_per_token"].items():
        ks = sorted({1, 2, 3, 4, 5} | set(measured))
        costs = ucb_costs(facts, folder, delay, ks)
        for k, cost in measured.items():
            figures.append(Figure(f"cost at {delay} ms, k = {k}", "ms/token", cost, costs[k], COST_LIMIT))
        best = min(costs, key=lambda k: costs[k])
        if len(measured) > 1:
            known = {k: costs[k] for k in measured}
            best = min(known, key=lambda k: known[k])
            regret = measured[best] / min(measured.values()) - 1.0
            what = f"measured regret of the simulated best k = {best} at {delay} ms"
        else:
            (its_best,) = measured
            regret = costs[its_best] / costs[best] - 1.0
            what = f"simulated regret of the measured best k = {its_best} at {delay} ms (simulated: {best})"
        figures.append(Figure(what, "", 0.0, regret, REGRET_LIMIT, absolute=True, one_sided=True))
    return Check(
        "ucb",
        "UCB-SpecStop: cost by delay and k",
        facts["source"],
        "Taken from the source: the draft time by k (linear between the lengths measured), the acceptance by "
        "place, and the communication round of 51 ms at no delay, verification included, to which the link "
        "adds twice the one-way delay. Nothing is calibrated. Regret is what the simulated best k costs more "
        "than the source's best, by the source's costs; where the source has the cost of its best k alone, "
        "what that k costs more in the simulator than the best there. 40 requests of 1,000 tokens each.",
        tuple(figures),
        "At 20 ms the source's own draft times, rounds and acceptance put k = 2 before k = 1 (123.3 against "
        "125.1 ms per token by hand), while its board did best with k = 1; it gives no cost of k = 2 there. "
        "The source's times are medians and its costs ratios of sums, which slow rounds raise: that may be "
        "why costs come out low.",
    )


# ---------------------------------------------------------------- PipeSD


class Windows:
    """A scheduler that drafts windows of two neighbouring lengths, such that their mean is given."""

    name = "windows"

    def __init__(self, mean: float) -> None:
        """Take the mean length of a window."""
        self._mean, self._owed = mean, 0.0
        short = int(mean)
        self._rules = {gamma: make_scheduler(f"static:{gamma}:1:own") for gamma in (short, short + 1)}

    def reset(self, scenario: Scenario, seed: int) -> None:
        """Begin an episode."""
        self._owed = 0.0
        for rule in self._rules.values():
            rule.reset(scenario, seed)

    def decide(self, view: DecisionView) -> Decision:
        """Take the shorter or the longer window, whichever keeps the mean."""
        self._owed += self._mean
        gamma = int(self._owed)
        self._owed -= gamma
        return self._rules[gamma].decide(view)


def alpha_of(drafts: float, acceptance: float) -> float:
    """Return the independent acceptance at which a share of windows' drafts is accepted."""
    low, high = 0.0, 1.0
    for _ in range(60):
        alpha = 0.5 * (low + high)
        short = int(drafts)
        accepted = sum(alpha**i for i in range(1, short + 1)) + (drafts - short) * alpha ** (short + 1)
        low, high = (alpha, high) if accepted / drafts < acceptance else (low, alpha)
    return 0.5 * (low + high)


def bandwidth_cost(
    facts: Mapping[str, Any], algorithm: str, megabits_per_s: float, draft_s: float, round_s: float
) -> float:
    """Return the simulated time in ms per accepted draft token, one client."""
    behaviour = facts["bandwidth_behaviour"][algorithm]
    system = scenario(
        acceptance={"source": "iid", "alpha": alpha_of(behaviour["drafts"], behaviour["acceptance"])},
        target={"t0_s": round_s},
        drafter={"t0_s": draft_s},
        one_way_s=0.5 * facts["uplink_startup_s"],
        uplink_bits_per_s=1e6 * megabits_per_s,
        bytes_per_token=1e6 * facts["megabytes_per_token"],
        prompt_tokens=1,
        output_tokens=1000,
        requests=15,
        protocol="pipelined" if algorithm in ("edgellm", "pipesd") else "synchronous",
    )
    result = simulate(system, Windows(behaviour["drafts"]), seed=1)
    return 1e3 * _decode_s(result) / float(_column(result, "accepted_tokens").sum())


def _two_unknowns(facts: Mapping[str, Any], at: float) -> tuple[float, float]:
    """Return draft time and fixed time of a round that two of the figures imply: a straight line."""
    rounds = {}
    for algorithm in ("vanilla", "hsl"):
        behaviour = facts["bandwidth_behaviour"][algorithm]
        cost_s = 1e-3 * facts["bandwidth_ms_per_accepted_token"][algorithm][at]
        upload_s = behaviour["drafts"] * facts["megabytes_per_token"] * 8.0 / at
        whole_s = cost_s * behaviour["drafts"] * behaviour["acceptance"]
        rounds[algorithm] = (behaviour["drafts"], whole_s - upload_s - facts["uplink_startup_s"])
    (long, long_s), (short, short_s) = rounds["vanilla"], rounds["hsl"]
    draft = (long_s - short_s) / (long - short)
    return draft, long_s - long * draft


def pipesd_bandwidth(facts: Mapping[str, Any], folder: Path) -> Check:
    """Hold the sweep of bandwidths against the simulator."""
    del folder
    at = 80
    draft, fixed = _two_unknowns(facts, at)
    figures = []
    for algorithm, costs in facts["bandwidth_ms_per_accepted_token"].items():
        for bandwidth, cost in costs.items():
            found = bandwidth_cost(facts, algorithm, bandwidth, draft, fixed)
            figures.append(
                Figure(
                    f"{algorithm}, {bandwidth} Mbit/s",
                    "ms/token",
                    cost,
                    found,
                    BANDWIDTH_LIMIT,
                    calibrated=bandwidth == at and algorithm in ("vanilla", "hsl"),
                )
            )
    return Check(
        "bandwidth",
        "PipeSD: four algorithms, 10 to 80 Mbit/s",
        facts["source"],
        "Taken from the source: 0.29 MB per draft token, 25 ms of start-up, and for each algorithm the mean "
        "window and the share accepted. The source does not say how long a draft token and the fixed part of "
        f"a round take (the target's state is saved and loaded in each): two of the 16 figures, vanilla and "
        f"hsl at {at} Mbit/s, give {1e3 * draft:.0f} ms and {fixed:.2f} s. Vanilla and HSL are synchronous; "
        "EdgeLLM and PipeSD draft on while they wait (`pipelined`), but send each window whole.",
        tuple(figures),
        "The simulator has no uploads in parts while drafting goes on, which PipeSD does; and its windows do "
        "not end where a draft is unsure.",
    )


@dataclass(frozen=True)
class Verification:
    """One verification at the target, as the event log has it.

    Attributes:
        ended_s: When its result was there.
        wait_s: How long it had waited for its iteration.
        batch: How many were in that.
    """

    ended_s: float
    wait_s: float
    batch: int


def verifications(events: Sequence[Event], window: int) -> list[Verification]:
    """Return the verifications of an event log."""
    waiting: dict[int, float] = {}
    found, start_s, batch = [], 0.0, 0
    for event in events:
        if event.kind == EventKind.ENQUEUE and event.value == window + 1:
            waiting[event.request] = event.time_s
        elif event.kind == EventKind.ITERATION_START:
            start_s, batch = event.time_s, int(event.value)
        elif event.kind == EventKind.COMMIT and event.request in waiting:
            found.append(Verification(event.time_s, start_s - waiting.pop(event.request), batch))
    return found


def clients_result(
    facts: Mapping[str, Any], clients: int, step_s: tuple[float, float] | float, *, seed: int = 1
) -> Result:
    """Simulate clients on one host.

    Args:
        facts: The source's.
        clients: How many.
        step_s: Time of a draft step: fixed, and for each client that drafts, where they share a drafter; one
            time, where each drafts on its own.
        seed: Episode seed.
    """
    measured = facts["clients"]
    behaviour, alone, crowd = measured[clients], measured[2], measured[8]
    window = behaviour["drafted"] / behaviour["verifies"]
    upload_s = window * facts["megabytes_per_token"] / 2.5 + facts["uplink_startup_s"]
    way_s = 0.5 * upload_s - JITTER["median_s"] * math.exp(0.5 * JITTER["sigma"] ** 2)
    # A batch of two takes what the slowest batches took with 8 clients, one alone the median with 2.
    verify_tokens = facts["window"] + 1
    per_token_ms = (crowd["decode_p95_ms"] - alone["decode_p50_ms"]) / verify_tokens
    span_s = facts["warmup_s"] + facts["measured_s"]
    if isinstance(step_s, float):
        place: dict[str, Any] = {"drafter": {"t0_s": step_s}, "one_way_s": way_s}
    else:
        place = {
            "edge": {"t0_s": step_s[0], "c_s_per_token": step_s[1]},
            "backhaul_one_way_s": way_s,
        }
    system = scenario(
        acceptance={"source": "iid", "alpha": alpha_of(window, behaviour["acceptance"])},
        target={
            "t0_s": 1e-3 * (alone["decode_p50_ms"] - per_token_ms * verify_tokens),
            "c_s_per_token": 1e-3 * per_token_ms,
        },
        clients=clients,
        jitter=JITTER,
        prompt_tokens=1,
        output_tokens=facts["output_tokens"],
        # Enough for every client to be at work until the window ends.
        requests=int(clients * span_s / 12.0),
        power={"idle_w": 0.0, "busy_w": facts["verify_power_w"]},
        server={
            "max_batch_wait_s": facts["batch_wait_s"],
            "iteration_noise_sigma": math.log(alone["decode_p95_ms"] / alone["decode_p50_ms"]) / 1.645,
        },
        batch_sizes=(1, facts["max_batch"]),
        horizon_s=span_s,
        **place,
    )
    site = "own" if isinstance(step_s, float) else "edge"
    rule = f"static:{facts['window']}:{facts['max_batch']}:{site}"
    return simulate(system, rule, seed=seed, record_events=True)


def mean_step_s(result: Result, window: int) -> float:
    """Return the mean time of a draft step, from the event log."""
    begun: dict[int, float] = {}
    steps = []
    for event in result.events:
        if event.kind == EventKind.DRAFT_START:
            begun[event.request] = event.time_s
        elif event.kind == EventKind.DRAFT_END and event.request in begun:
            steps.append((event.time_s - begun.pop(event.request)) / window)
    return float(np.mean(steps))


def clients_figures(facts: Mapping[str, Any], result: Result) -> dict[str, float]:
    """Return throughput, time per token, queue, batch and energy, counted as the source counts them.

    Samples count that lie wholly within the 600 s after the warm-up; energy is that of computing.
    """
    columns = result.requests
    begin_s, end_s = facts["warmup_s"], facts["warmup_s"] + facts["measured_s"]
    whole = (columns["arrival_s"] >= begin_s) & (columns["completed_s"] <= end_s)
    tokens = float(columns["output_tokens"][whole].sum())
    seen = [job for job in verifications(result.events, facts["window"]) if begin_s <= job.ended_s <= end_s]
    return {
        "tok_per_s": tokens / facts["measured_s"],
        "ms_per_token": 1e3 * float(columns["e2e_s"][whole].sum()) / tokens,
        "queue_p95_ms": 1e3 * float(np.percentile([job.wait_s for job in seen], 95)),
        "batch": float(np.mean([job.batch for job in seen])),
        "j_per_token": 1e-3 * result.metrics["energy_j_per_1k_tokens"]
        + facts["prefill_j_per_request"] / facts["output_tokens"],
    }


JITTER = {"median_s": 0.010, "sigma": 0.6}
"""Assumed, each way: without any, clients whose rounds all take the same time never meet at the target."""

STEP_S = (0.0389, 0.0094)
"""Draft step on the host: fixed, and for each client that drafts, by the figures of 2 and 4 clients."""

_NAMES = {
    "tok_per_s": ("throughput", "tok/s"),
    "ms_per_token": ("time per token", "ms"),
    "queue_p95_ms": ("queue at the target, p95", "ms"),
    "batch": ("batch of a verification, mean", ""),
    "j_per_token": ("energy per token", "J"),
}


def pipesd_clients(facts: Mapping[str, Any], folder: Path) -> Check:
    """Hold throughput, queueing and energy of 2, 4 and 8 clients against the simulator."""
    del folder
    figures = []
    for clients, measured in facts["clients"].items():
        shared = clients_result(facts, clients, STEP_S)
        found = clients_figures(facts, shared)
        step_s = mean_step_s(shared, facts["window"])
        alone = clients_figures(facts, clients_result(facts, clients, step_s))
        found |= {key: alone[key] for key in ("queue_p95_ms", "batch", "j_per_token")}
        for key, (name, unit) in _NAMES.items():
            figures.append(
                Figure(
                    f"{clients} clients: {name}",
                    unit,
                    measured[key],
                    found[key],
                    CLIENTS_LIMIT,
                    calibrated=clients < 8 and key == "ms_per_token",
                )
            )
    return Check(
        "clients",
        "PipeSD: 2, 4 and 8 clients on one host",
        facts["source"],
        "Taken from the source: window, acceptance and upload (a window always has the same size, "
        "so its time "
        "on each client's own uplink is a delay), the decode time alone (13.0 ms, with its spread) "
        "and of two "
        "together (22.8 ms, the 95th percentile with 8 clients), a wait of 2 ms for others to "
        "verify with, 96 W "
        "while computing, 1.6 J of prefill; samples count as there, wholly within 600 s after a warm-up. The "
        "source does not say how long a draft token takes, nor how much clients on one host slow each other "
        f"down: {1e3 * STEP_S[0]:.1f} ms and {1e3 * STEP_S[1]:.1f} ms for each client that drafts "
        "at the same "
        "time, set by the time per token of 2 and 4 clients. What comes out for 8 is a prediction. Assumed: "
        "some 12 ms of jitter each way, within the time of the upload. Throughput and time per "
        "token are those "
        "of a drafter that all clients share; it counts those present when a draft begins, which keeps "
        "clients apart that in truth slow each other down alike, so queue, batch and energy are those of a "
        "second run in which each client drafts on its own at the mean pace of the first.",
        tuple(figures),
        "Energy: the source's joules per verification grow from 1.36 to 2.01 from 2 to 8 clients, more than "
        "its decode times do; the simulator has one power while busy. Queue and batch: threads and requests "
        "over HTTP wait for one another in ways that no queue of the simulator has, so its clients meet less "
        "often at the target.",
    )
