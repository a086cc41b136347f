"""Edge drafting: UCB-SpecStop's board and PipeSD's reproduction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

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


# ---------------------------------------------------------------- UCB-SpecStop


def run_lengths(at_least: Sequence[float], n: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return run lengths with exactly given shares, in an order that is always the same.

    Args:
        at_least: Share of rounds that accept at least 1, 2, … drafts.
        n: How many.
    """
    levels = (np.arange(n) + 0.5) / n
    runs = (levels[:, None] < np.array(at_least)).sum(axis=1).astype(np.uint8)
    np.random.default_rng(1).shuffle(runs)
    return runs


def draft_s(per_token_ms: Mapping[int, float], k: int) -> float:
    """Return the time of drafting k tokens, linear between the lengths that were measured."""
    ks = sorted(per_token_ms)
    return float(np.interp(k, ks, [1e-3 * each * per_token_ms[each] for each in ks]))


def ucb_costs(facts: Mapping[str, Any], folder: Path, delay_ms: float, ks: Sequence[int]) -> dict[int, float]:
    """Return the simulated cost in ms per token by k, at a one-way delay."""
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
            requests=15,
        )
        result = simulate(system, f"static:{k}:1:own", seed=1)
        columns = result.requests
        decode_s = (columns["e2e_s"] - columns["ttft_s"]).sum()
        costs[k] = 1e3 * float(decode_s / (columns["output_tokens"] - 1).sum())
    return costs


def ucb_specstop(facts: Mapping[str, Any], folder: Path) -> Check:
    """Hold costs by delay and k, and the regret of the best simulated k, against the board's."""
    figures = []
    for delay, measured in facts["cost_ms_per_token"].items():
        ks = sorted({1, 2, 3, 4, 5} | set(measured))
        costs = ucb_costs(facts, folder, delay, ks)
        for k, cost in measured.items():
            figures.append(
                Figure(f"cost at {delay} ms, k = {k}", "ms/token", cost, costs[k], COST_LIMIT)
            )
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
        "adds twice the one-way delay. Nothing is calibrated. Where the source has the cost of its best k "
        "alone, the regret is that of this k in the simulator.",
        tuple(figures),
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
    columns = result.requests
    decode_s = float((columns["e2e_s"] - columns["ttft_s"]).sum())
    return 1e3 * decode_s / float(columns["accepted_tokens"].sum())


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


def queue_waits_s(events: Sequence[Event], verify_tokens: int) -> list[float]:
    """Return how long each verification waited for its iteration, from the event log."""
    waiting: dict[int, float] = {}
    waits, start_s = [], 0.0
    for event in events:
        if event.kind == EventKind.ENQUEUE and event.value == verify_tokens:
            waiting[event.request] = event.time_s
        elif event.kind == EventKind.ITERATION_START:
            start_s = event.time_s
        elif event.kind == EventKind.COMMIT and event.request in waiting:
            enqueued_s = waiting.pop(event.request)
            waits.append(max(0.0, start_s - enqueued_s))
    return waits


def clients_result(
    facts: Mapping[str, Any], clients: int, step: tuple[float, float], requests: int
) -> Result:
    """Simulate clients on one host whose drafting slows the others down."""
    measured = facts["clients"]
    behaviour = measured[clients]
    window = behaviour["drafted"] / behaviour["verifies"]
    upload_s = facts["window"] * facts["megabytes_per_token"] / 2.5 + facts["uplink_startup_s"]
    # A batch of two takes what the slowest batches took with 8 clients, one alone the median with 2.
    one, two = measured[2]["decode_p50_ms"], measured[8]["decode_p95_ms"]
    per_token = 1e-3 * (two - one) / (facts["window"] + 1)
    system = scenario(
        acceptance={"source": "iid", "alpha": alpha_of(window, behaviour["acceptance"])},
        target={"t0_s": 1e-3 * one - per_token * (facts["window"] + 1), "c_s_per_token": per_token},
        edge={"t0_s": step[0], "c_s_per_token": step[1]},
        clients=clients,
        backhaul_one_way_s=0.5 * upload_s,
        prompt_tokens=1,
        output_tokens=facts["output_tokens"],
        requests=requests,
        power={"idle_w": 0.0, "busy_w": facts["verify_power_w"]},
    )
    return simulate(system, f"static:{facts['window']}:1:edge", seed=1, record_events=True)


def clients_figures(facts: Mapping[str, Any], result: Result) -> dict[str, float]:
    """Return throughput, time per token, queue, batch and energy of a simulated run."""
    columns, events = result.requests, result.events
    tokens = float(columns["output_tokens"].sum())
    duration_s = float(columns["completed_s"].max() - columns["arrival_s"].min())
    waits = queue_waits_s(events, facts["window"] + 1)
    sizes = [event.value for event in events if event.kind == EventKind.ITERATION_START]
    verifies = float(columns["verifies"].sum())
    return {
        "tok_per_s": tokens / duration_s,
        "ms_per_token": 1e3 * float(columns["e2e_s"].sum()) / tokens,
        "queue_p95_ms": 1e3 * float(np.percentile(waits, 95)),
        "batch": float(np.mean(sizes)),
        "tokens_per_verify": tokens / verifies,
        "j_per_token": 1e-3 * result.metrics["energy_j_per_1k_tokens"]
        + facts["prefill_j_per_request"] / facts["output_tokens"],
    }


STEP_S = (0.0397, 0.0102)
"""Draft step on the host: fixed, and for each client that drafts, by the figures of 2 and 4 clients."""


def pipesd_clients(facts: Mapping[str, Any], folder: Path, requests: int = 60) -> Check:
    """Hold throughput, queueing and energy of 2, 4 and 8 clients against the simulator."""
    del folder
    units = {"tok_per_s": "tok/s", "ms_per_token": "ms", "queue_p95_ms": "ms", "batch": "", "j_per_token": "J"}
    names = {
        "tok_per_s": "throughput",
        "ms_per_token": "time per token",
        "queue_p95_ms": "queue at the target, p95",
        "batch": "verification batch, mean",
        "j_per_token": "energy per token",
    }
    figures = []
    for clients, measured in facts["clients"].items():
        result = clients_result(facts, clients, STEP_S, requests * clients // 2)
        found = clients_figures(facts, result)
        for key, name in names.items():
            figures.append(
                Figure(
                    f"{clients} clients: {name}",
                    units[key],
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
        "Taken from the source: window, acceptance and upload (a window always has the same size, so its time "
        "on each client's own uplink is a delay), the decode time alone (13.0 ms) and of two together "
        "(22.8 ms, the 95th percentile with 8 clients), 96 W while computing, 1.6 J of prefill. The source "
        "does not say how long a draft token takes, nor how much clients on one host slow each other down: "
        f"{1e3 * STEP_S[0]:.1f} ms and {1e3 * STEP_S[1]:.1f} ms for each client that drafts at the same time, "
        "set by the time per token of 2 and 4 clients. What comes out for 8 is a prediction.",
        tuple(figures),
    )
