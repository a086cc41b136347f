"""When iterations start, who takes part, who is admitted: cases worked out by hand, on both engines."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import pytest

from dsd_env import Decision, ReferenceSimulation
from dsd_env.control import DecisionView
from dsd_env.sim import Event, EventKind
from dsd_env.sim.compiled import CompiledSimulation
from tests.lab import lab
from tests.sim.test_degradation import OWN, Simulation, always, run

OUTPUT = 101
"""Output tokens of every request of the laboratory."""


@pytest.fixture(params=[ReferenceSimulation, CompiledSimulation], ids=["reference", "compiled"])
def engine(request: pytest.FixtureRequest) -> Simulation:
    return request.param


def crowd(**changes: Any) -> dict[str, Any]:
    """Eight clients of different speed that ask again soon after each answer."""
    arrivals = {"kind": "closed_loop", "think_s": {"distribution": "exponential", "mean": 0.3}}
    return {
        "clients": 8,
        "requests": 40,
        "devices__client__speed_spread": [0.5, 2.0],
        "arrivals": arrivals,
        **changes,
    }


def residents(events: list[Event]) -> list[tuple[Event, int]]:
    """Return every event with the number of requests that held KV just before it."""
    left: dict[int, int] = defaultdict(lambda: OUTPUT)
    resident, rows = 0, []
    for event in events:
        rows.append((event, resident))
        if event.kind == EventKind.ADMIT:
            resident += 1
        elif event.kind == EventKind.PREEMPT:
            resident -= 1
        elif event.kind == EventKind.COMMIT:
            left[event.request] -= int(event.value)
            resident -= left[event.request] == 0
    return rows


# ---------------------------------------------------------------------- when an iteration starts


def test_batch_size_one_never_waits(engine: Simulation) -> None:
    patient = run(engine, lab(**crowd(targets__target__max_batch_wait_s=5.0)), always(4, OWN, 1))
    eager = run(engine, lab(**crowd(targets__target__max_batch_wait_s=0.0)), always(4, OWN, 1))
    assert patient.events == eager.events


def test_nobody_waits_for_sequences_that_cannot_come(engine: Simulation) -> None:
    """All that are resident are ready: the largest batch size waits as little as the smallest."""
    alone = dict(requests=3, targets__target__max_batch_wait_s=5.0)
    assert run(engine, lab(**alone), always(4, OWN, 64)).events == run(engine, lab(**alone), always(4)).events


@pytest.mark.parametrize(("batch", "wait_s"), [(2, 5.0), (4, 5.0), (4, 0.01), (64, 0.01)])
def test_verifications_start_with_the_company_they_asked_for(
    engine: Simulation, batch: int, wait_s: float
) -> None:
    """They start once B jobs are ready, or all residents, or the first has waited enough."""
    scenario = lab(**crowd(targets__target__max_batch_wait_s=wait_s))
    simulation = run(engine, scenario, always(4, OWN, batch))
    queued: dict[int, float] = {}
    prefilled: set[int] = set()
    reasons: Counter[str] = Counter()
    idle_s = 0.0
    for event, resident in residents(simulation.events):
        if event.kind == EventKind.ENQUEUE:
            queued[event.request] = event.time_s
        elif event.kind == EventKind.COMMIT:
            prefilled.add(event.request)
        elif event.kind == EventKind.ITERATION_END:
            idle_s = event.time_s
        elif event.kind == EventKind.ITERATION_START:
            assert event.value == len(queued), "all that are ready take part"
            if set(queued) <= prefilled:
                times = sorted(queued.values())
                moments = {"waited": times[0] + wait_s}
                if len(times) >= batch:
                    moments["company"] = times[batch - 1]
                if len(times) == resident:
                    moments["everybody"] = times[-1]
                reason = min(moments, key=lambda name: moments[name])
                reasons[reason] += 1
                # A request that leaves may be what makes the others everybody.
                assert event.time_s == max(idle_s, moments[reason]) or (
                    reason == "waited" and len(times) == resident and event.time_s < moments[reason]
                )
            queued.clear()
    assert reasons["everybody" if batch == 64 and wait_s > 1 else "company" if batch < 64 else "waited"] > 20


# ---------------------------------------------------------------------- who takes part


@pytest.mark.parametrize("order", ["decode_first", "prefill_first"])
def test_verifications_and_prefills_share_the_tokens_of_an_iteration(engine: Simulation, order: str) -> None:
    """A prompt of 1,000 tokens arrives while another request is verified, five tokens at a time."""
    scenario = lab(
        clients=2,
        requests=2,
        alpha=0.0,
        prompt={"distribution": "constant", "value": 1000},
        arrivals={"kind": "poisson", "rate_per_s": 0.4},
        episode__total_requests=2,
        targets__target__max_num_batched_tokens=100,
        targets__target__order=order,
    )
    events = run(engine, scenario, always(4, 0)).events
    admitted = [e.time_s for e in events if e.kind == EventKind.ADMIT]
    first_tokens = [
        next(e.time_s for e in events if e.kind == EventKind.COMMIT and e.request == number)
        for number in (0, 1)
    ]
    begun = [e.time_s for e in events if e.kind == EventKind.ITERATION_START and e.time_s >= admitted[1]]
    assert first_tokens[0] <= begun[0], "the first is being verified when the prompt of the second begins"
    between = [e for e in events if begun[0] < e.time_s <= first_tokens[1]]
    sizes = [e.value for e in between if e.kind == EventKind.ITERATION_END]
    verified = [e for e in between if e.kind == EventKind.COMMIT and e.request == 0]
    if order == "decode_first":
        # Every iteration verifies five tokens and prefills 95: eleven of them, the last with the rest of 50.
        assert sizes == [100.0] * 10 + [55.0]
        assert len(verified) == 11
    else:
        # The prompt has every token of ten iterations, and whoever is verified waits.
        assert sizes == [100.0] * 10
        assert not verified


# ---------------------------------------------------------------------- admission


def test_one_seat_is_a_queue_first_come_first_served(engine: Simulation) -> None:
    scenario = lab(**crowd(targets__target__max_num_seqs=1))
    events = run(engine, scenario, always(2, 0)).events
    assert all(resident == 0 for event, resident in residents(events) if event.kind == EventKind.ADMIT)
    order = [event.request for event in events if event.kind == EventKind.ADMIT]
    assert order == sorted(order)


def standing_back(limit_s: float, engine: Simulation) -> Any:
    """Let the first device's requests ask for B = 8 at a target with eight seats and twelve clients."""

    def choose(view: DecisionView) -> Decision:
        return Decision(2, 8 if view.device == 0 else 1, 0)

    changes = crowd(clients=12, requests=40, targets__target__max_num_seqs=8)
    return run(engine, lab(**changes, targets__target__max_admission_wait_s=limit_s), choose)


@pytest.mark.parametrize("limit_s", [4.0, 0.5])
def test_a_request_that_stands_back_lets_others_overtake_it(engine: Simulation, limit_s: float) -> None:
    simulation = standing_back(limit_s, engine)
    arrived = {e.request: (e.time_s, e.entity) for e in simulation.events if e.kind == EventKind.ARRIVAL}
    overtaken = 0
    latest = -1
    for event, resident in residents(simulation.events):
        if event.kind != EventKind.ADMIT:
            continue
        assert resident < 8
        arrival_s, device = arrived[event.request]
        waited_s = event.time_s - arrival_s
        if device == 0:
            # It enters an empty target, or has waited as long as it must; then it takes the next seat.
            assert resident == 0 or waited_s >= limit_s
            assert waited_s <= limit_s + 1.0
            overtaken += latest > event.request
        latest = max(latest, event.request)
    assert overtaken > 0


def test_without_a_wait_nobody_stands_back(engine: Simulation) -> None:
    events = standing_back(0.0, engine).events
    order = [event.request for event in events if event.kind == EventKind.ADMIT]
    assert order == sorted(order)


# ---------------------------------------------------------------------- preemption


def tight(**changes: Any) -> dict[str, Any]:
    """Six requests in a pool for one worst case and a bit."""
    return dict(
        clients=6,
        requests=6,
        episode__total_requests=6,
        workload__max_prompt_tokens=100,
        workload__max_output_tokens=128,
        targets__target__kv_capacity_tokens=100 + 128 + 17 + 60,
        arrivals={"kind": "closed_loop", "think_s": {"distribution": "constant", "value": 0.001}},
        **changes,
    )


def test_a_prefix_cache_saves_what_nobody_has_overwritten(engine: Simulation) -> None:
    def prefilled(simulation: Any) -> float:
        tokens = sum(e.value for e in simulation.events if e.kind == EventKind.ITERATION_END)
        verified = sum(5 for e in simulation.events if e.kind == EventKind.ENQUEUE and e.value == 5)
        return tokens - verified

    cached = run(engine, lab(**tight()), always(4, OWN))
    anew = run(engine, lab(**tight(targets__target__prefix_cache=False)), always(4, OWN))
    assert cached.totals.preemptions > 0 and anew.totals.preemptions > 0
    # Six prompts at least; what is lost is prefilled again, and without a cache all of it.
    assert 600 <= prefilled(cached) < prefilled(anew)
