"""Conservation, determinism and order: what must hold in every simulation, whatever is decided."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsd_env import Decision, ReferenceSimulation, load_scenario, make_scheduler, simulate
from dsd_env.network import fault_members
from dsd_env.sim import Event, EventKind
from tests.lab import lab
from tests.scenarios import TINY


def play(simulation: ReferenceSimulation, choose) -> list[float]:
    """Play an episode with ``choose(view) -> Decision``; return the times of the decisions."""
    times = []
    while (view := simulation.next_decision()) is not None:
        times.append(view.now_s)
        simulation.decide(choose(view))
    return times


def check_log(simulation: ReferenceSimulation, events: list[Event]) -> None:
    """Check conservation of requests, tokens, batches and time on a whole event log."""
    assert all(a.time_s <= b.time_s for a, b in pairwise(events))
    committed: dict[int, float] = defaultdict(float)
    arrived: dict[int, float] = {}
    completed: dict[int, float] = {}
    iterating: dict[int, float] = {}
    members = fault_members(simulation.scenario)
    for event in events:
        match event.kind:
            case EventKind.ARRIVAL:
                assert event.request not in arrived
                arrived[event.request] = event.time_s
            case EventKind.COMMIT:
                assert event.value > 0
                committed[event.request] += event.value
            case EventKind.COMPLETE:
                assert event.request not in completed
                completed[event.request] = event.value
                assert event.value == pytest.approx(event.time_s - arrived[event.request])
            case EventKind.ITERATION_START:
                assert event.entity not in iterating, "a target runs one iteration at a time"
                iterating[event.entity] = event.value
            case EventKind.ITERATION_END:
                del iterating[event.entity]
            case EventKind.FAULT:
                if members[int(event.value)].site == "target":
                    iterating.pop(event.entity, None)
            case EventKind.SEND:
                assert event.value >= event.time_s, "nothing arrives before it is sent"
    table = simulation.requests_table()
    assert set(completed) == set(table["request"].tolist())
    for number, tokens, delivered in zip(
        table["request"], table["output_tokens"], table["delivered_tokens"], strict=True
    ):
        assert committed[int(number)] == tokens == delivered, "every token delivered once"
    metrics = simulation.metrics()
    assert metrics["requests_arrived"] == len(arrived)
    assert metrics["requests_arrived"] == metrics["requests_completed"] + metrics["requests_active"]
    assert (table["ttft_s"] > 0).all() and (table["e2e_s"] >= table["ttft_s"]).all()
    assert (table["accepted_tokens"] <= table["drafted_tokens"]).all()


@settings(max_examples=25)
@given(data=st.data(), seed=st.integers(0, 2**31))
def test_nothing_is_lost_whatever_is_decided(data: st.DataObject, seed: int) -> None:
    changes = {
        "episode__requests": 12,
        "protocol__decision_latency_s": data.draw(st.sampled_from([0.0, 0.001])),
        "protocol__confidence_stop": data.draw(st.sampled_from([0.0, 0.5])),
        "protocol__token_acks": data.draw(st.booleans()),
    }
    scenario = load_scenario(TINY, **changes)
    simulation = ReferenceSimulation(scenario, seed, record_events=True)
    chooser = np.random.default_rng(seed)
    n_placements = scenario.n_placements

    def choose(view) -> Decision:
        return Decision(
            int(chooser.choice(view.gammas)),
            int(chooser.choice(view.batch_sizes)),
            int(chooser.integers(n_placements)),
        )

    play(simulation, choose)
    check_log(simulation, simulation.events)


@pytest.mark.parametrize(
    "name", ["cloud_ar", "colocated_sd:4", "edge_sd:4", "hf_heuristic", "jsq_goodput", "random"]
)
def test_the_same_seed_gives_the_same_log(name: str) -> None:
    scenario = load_scenario(TINY)
    first = simulate(scenario, name, seed=5, record_events=True)
    # Another simulation in between must not matter.
    simulate(scenario, "random", seed=6)
    second = simulate(scenario, name, seed=5, record_events=True)
    assert first.events == second.events
    assert simulate(scenario, name, seed=7, record_events=True).events != first.events


def test_interleaved_simulations_do_not_disturb_each_other() -> None:
    scenario = load_scenario(TINY)
    scheduler = make_scheduler("edge_sd:3")
    scheduler.reset(scenario, 1)
    together = [ReferenceSimulation(scenario, seed, record_events=True) for seed in (1, 2)]
    alive = list(together)
    while alive:
        for simulation in list(alive):
            view = simulation.next_decision()
            if view is None:
                alive.remove(simulation)
            else:
                simulation.decide(scheduler.decide(view))
    for simulation in together:
        assert (
            simulate(scenario, "edge_sd:3", seed=simulation.seed, record_events=True).events
            == simulation.events
        )


def test_schedulers_on_one_seed_meet_the_same_requests() -> None:
    scenario = load_scenario(TINY)
    known: dict[int, tuple[int, ...]] = {}
    for name in ("cloud_ar", "colocated_sd:4", "edge_sd:2", "random"):
        table = simulate(scenario, name, seed=3).requests
        for uid, *properties in zip(
            table["uid"],
            table["device"],
            table["kind"],
            table["prompt_tokens"],
            table["output_tokens"],
            strict=True,
        ):
            assert known.setdefault(int(uid), tuple(properties)) == tuple(properties)


def test_decisions_of_an_instant_join_the_next_batch() -> None:
    """Two requests that finish together in one iteration are both in the next one."""
    scenario = lab(
        clients=2,
        requests=2,
        arrivals={"kind": "closed_loop", "think_s": {"distribution": "constant", "value": 1e-9}},
        episode__total_requests=2,
    )
    result = simulate(scenario, "static:2:2:colocated", seed=1, record_events=True)
    sizes = [event.value for event in result.events if event.kind == EventKind.ITERATION_START]
    decode = sizes[2:]
    assert decode.count(2.0) >= len(decode) // 2


def test_a_full_kv_pool_makes_requests_wait_and_loses_none() -> None:
    scenario = lab(
        clients=6,
        requests=12,
        workload__max_output_tokens=128,
        targets__target__kv_capacity_tokens=4096 + 128 + 17,
        episode__total_requests=12,
    )
    reserved = scenario.kv_reservation_tokens(100)
    fits = scenario.targets["target"].kv_capacity_tokens // reserved
    simulation = ReferenceSimulation(scenario, 1, record_events=True)
    most = 0
    while (view := simulation.next_decision()) is not None:
        most = max(
            most, round(view.target.kv_fraction * scenario.targets["target"].kv_capacity_tokens / reserved)
        )
        simulation.decide(Decision(4, 8, 0))
    assert most <= fits
    assert simulation.terminated
    check_log(simulation, simulation.events)


def test_moving_to_another_target_prefills_the_context_there() -> None:
    scenario = lab(
        clients=1, targets=2, requests=1, verify={"t0_s": 0.03, "c_s_per_token": 1e-3}, alpha=0.0,
        output={"distribution": "constant", "value": 3}, episode__total_requests=1,
    )  # fmt: skip
    simulation = ReferenceSimulation(scenario, 1, record_events=True)
    placements = iter([0, 0, 2])  # admission, a round at the first target, a round at the other
    play(simulation, lambda view: Decision(1, 1, next(placements)))
    new_tokens = [event.value for event in simulation.events if event.kind == EventKind.ITERATION_END]
    targets = [event.entity for event in simulation.events if event.kind == EventKind.ITERATION_END]
    assert targets == [0, 0, 1, 1]
    # Prompt; 1 draft + 1; then all context but the newest token anew; 1 draft + 1.
    assert new_tokens == [100, 2, 100 + 2 - 1, 2]


def test_stale_drafter_pays_its_lag() -> None:
    """After a plain round the drafter first processes the tokens that it has not seen."""
    scenario = lab(
        alpha=0.0,
        requests=1,
        episode__total_requests=1,
        output={"distribution": "constant", "value": 20},
        devices__client__drafter__profile={"t0_s": 0.005, "c_s_per_token": 0.001},
    )
    simulation = ReferenceSimulation(scenario, 1, record_events=True)
    gammas = iter([1, 1, 0] + [1] * 30)
    play(simulation, lambda view: Decision(next(gammas), 1, 1))
    starts = [e.time_s for e in simulation.events if e.kind == EventKind.DRAFT_START]
    ends = [e.time_s for e in simulation.events if e.kind == EventKind.DRAFT_END]
    durations = [end - start for start, end in zip(starts, ends, strict=True)]
    # Prefill of 100; lag 1; after 8 plain tokens and the round's own correction: lag 9; then 1 again.
    assert durations[:4] == pytest.approx([0.005 + 0.1, 0.006, 0.005 + 0.009, 0.006])


@pytest.mark.parametrize(
    ("decision", "reason"),
    [(Decision(4, 1, 0), "no_drafter"), (Decision(0, 4096, 0), "batch_clipped")],
)
def test_impossible_decisions_are_resolved_and_counted(decision: Decision, reason: str) -> None:
    scenario = lab(requests=1, targets__target__colocated_drafter=None)
    simulation = ReferenceSimulation(scenario, 1)
    assert simulation.next_decision() is not None
    assert simulation.decide(decision).reason == reason
    assert simulation.resolved == {reason: 1}


def test_misuse_is_refused() -> None:
    simulation = ReferenceSimulation(lab(), 1)
    with pytest.raises(RuntimeError, match="no decision is pending"):
        simulation.decide(Decision(0, 1, 0))
    simulation.next_decision()
    with pytest.raises(RuntimeError, match="answer the pending decision"):
        simulation.next_decision()
    for decision in (Decision(99, 1, 0), Decision(-1, 1, 0), Decision(0, 0, 0), Decision(0, 1, 99)):
        with pytest.raises(ValueError):
            simulation.decide(decision)


def test_the_horizon_ends_an_episode() -> None:
    simulation = ReferenceSimulation(lab(requests=10_000, episode__horizon_s=10.0), 1)
    play(simulation, lambda view: Decision(0, 1, 0))
    assert simulation.truncated and not simulation.terminated
    assert simulation.metrics()["duration_s"] == 10.0


def test_every_measured_request_is_in_the_metrics_however_slow() -> None:
    """An episode ends when the cohort has completed, not when so many have."""
    result = simulate(lab(clients=9, requests=30, episode__warmup_requests=10), "random", seed=3)
    assert result.metrics["requests_measured"] == 30
    assert set(range(40)) <= set(result.requests["request"].tolist())
