"""Pipelining, failures and what is done about them: limiting cases worked out by hand, on both engines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from dsd_env import Decision, ReferenceSimulation, Scenario
from dsd_env.control import DecisionView
from dsd_env.sim import Event, EventKind
from dsd_env.sim.compiled import CompiledSimulation
from tests.lab import lab
from tests.scenarios import tiny
from tests.sim.test_invariants import check_log

Simulation = type[ReferenceSimulation] | type[CompiledSimulation]
OWN = 1
"""Place of the own device among the candidates of the laboratory."""


@pytest.fixture(params=[ReferenceSimulation, CompiledSimulation], ids=["reference", "compiled"])
def engine(request: pytest.FixtureRequest) -> Simulation:
    return request.param


def run(
    engine: Simulation, scenario: Scenario, choose: Callable[[DecisionView], Decision], seed: int = 1
) -> Any:
    """Play an episode to its end; the event log is checked for conservation."""
    simulation = engine(scenario, seed, record_events=True)
    while (view := simulation.next_decision()) is not None:
        simulation.decide(choose(view))
    check_log(simulation, simulation.events)
    return simulation


def always(gamma: int, placement: int = OWN, batch: int = 1) -> Callable[[DecisionView], Decision]:
    return lambda view: Decision(gamma, batch, placement)


def kinds(events: list[Event]) -> Counter[EventKind]:
    return Counter(event.kind for event in events)


# ---------------------------------------------------------------------- pipelined drafting


@pytest.mark.parametrize("draft_s", [0.002, 0.005, 0.02, 0.05])
def test_pipelining_hides_drafting_when_the_round_trip_and_verification_are_longer(
    engine: Simulation, draft_s: float
) -> None:
    """With everything accepted, a round takes max(RTT + t_v, (k + 1) t_d): k drafts and the guess between."""
    gamma, one_way_s, verify_s = 4, 0.02, 0.03
    scenario = lab(
        alpha=1.0,
        draft_s=draft_s,
        one_way_s=one_way_s,
        verify={"t0_s": verify_s},
        requests=1,
        protocol__kind="pipelined",
        output={"distribution": "constant", "value": 1 + 40 * (gamma + 1)},
    )
    simulation = run(engine, scenario, always(gamma))
    table = simulation.requests_table()
    first_round_s = gamma * draft_s + 2 * one_way_s + verify_s
    round_s = max(2 * one_way_s + verify_s, (gamma + 1) * draft_s)
    assert table["verifies"][0] == 40
    decode_s = table["e2e_s"][0] - table["ttft_s"][0]
    assert decode_s == pytest.approx(first_round_s + 39 * round_s, rel=1e-9)
    # Nothing was drafted in vain but what came after the last window.
    assert simulation.totals.discarded <= gamma + 1


def test_pipelining_without_acceptance_is_synchronous_and_wastes_what_it_drafts_ahead(
    engine: Simulation,
) -> None:
    arguments: dict[str, Any] = dict(alpha=0.0, draft_s=0.005, one_way_s=0.02, requests=3)
    synchronous = run(engine, lab(**arguments), always(4))
    pipelined = run(engine, lab(**arguments, protocol__kind="pipelined"), always(4))
    np.testing.assert_allclose(
        pipelined.requests_table()["e2e_s"], synchronous.requests_table()["e2e_s"], rtol=1e-12
    )
    # RTT + t_v leave time for all five tokens ahead, after each of a request's 100 windows.
    assert synchronous.totals.discarded == 0
    assert pipelined.totals.discarded == 5 * pipelined.totals.verified_rounds
    assert kinds(pipelined.events)[EventKind.ROLLBACK] == pipelined.totals.verified_rounds


def test_long_chains_of_kept_windows_are_accepted_to_the_end(engine: Simulation) -> None:
    """An unbroken chain is longer than the longest run that a source tells."""
    scenario = lab(
        alpha=1.0,
        one_way_s=0.05,
        requests=1,
        protocol__kind="pipelined",
        output={"distribution": "constant", "value": 1 + 17 * 30},
    )
    simulation = run(engine, scenario, always(16))
    assert simulation.totals.verified_rounds == 30


# ---------------------------------------------------------------------- failures


def outage(kind: str, at_s: float, duration_s: float, of: str = "client", **more: Any) -> dict[str, Any]:
    duration = {"distribution": "constant", "value": duration_s}
    return {"fault": {"kind": kind, "of": of, "at_s": [at_s], "duration_s": duration, **more}}


STEADY: dict[str, Any] = dict(
    alpha=0.0,
    draft_s=0.01,
    one_way_s=0.02,
    requests=1,
    arrivals={"kind": "closed_loop", "think_s": {"distribution": "constant", "value": 0.0}},
)
"""One request from time 0; each round of one draft takes 0.01 + 0.02 + 0.03 + 0.02 = 0.08 s."""


def decode_s(simulation: Any) -> float:
    table = simulation.requests_table()
    return float(table["e2e_s"][0] - table["ttft_s"][0])


def test_an_outage_of_the_link_delays_the_message_that_meets_it(engine: Simulation) -> None:
    # Sizes of zero leave at once; one byte waits for the link.
    calm = lab(**STEADY, protocol__header_bytes=1.0)
    broken = lab(**STEADY, protocol__header_bytes=1.0, faults=outage("link_outage", 1.0, 2.0))
    difference = decode_s(run(engine, broken, always(1))) - decode_s(run(engine, calm, always(1)))
    assert 1.9 < difference <= 2.0 + 1e-9


def test_without_patience_a_crashed_device_stops_its_request_and_comes_back(engine: Simulation) -> None:
    scenario = lab(**STEADY, faults=outage("device_crash", 1.0, 2.0))
    simulation = run(engine, scenario, always(1))
    calm = decode_s(run(engine, lab(**STEADY), always(1)))
    # What it was drafting begins anew, with its whole context to process again.
    assert 1.9 < decode_s(simulation) - calm < 2.1
    assert kinds(simulation.events)[EventKind.FAULT] == 1
    assert simulation.totals.takeovers == 0


def test_with_patience_the_target_goes_on_by_plain_decoding(engine: Simulation) -> None:
    """No draft comes for 2 s: the target waits 0.1 s, then decodes alone and decides for itself."""
    scenario = lab(**STEADY, protocol__patience_s=0.1, faults=outage("device_crash", 1.0, 2.0))

    def choose(view: DecisionView) -> Decision:
        here = int(view.request.control_site) == 0
        return Decision(0, 1, 0) if here and not view.request.is_admission else Decision(1, 1, OWN)

    simulation = run(engine, scenario, choose)
    assert simulation.totals.takeovers == 1
    # Plain decoding takes 0.03 s a token: faster here than any round, so the crash costs next to nothing.
    assert decode_s(simulation) < decode_s(run(engine, lab(**STEADY), always(1)))


def test_a_client_that_hears_nothing_sends_again_and_the_copy_is_ignored(engine: Simulation) -> None:
    """Every round trip takes 0.07 s; with a time-out of 0.05 s a window is sent twice, verified once."""
    simulation = run(engine, lab(**STEADY, protocol__client_timeout_s=0.05), always(1))
    calm = run(engine, lab(**STEADY), always(1))
    assert simulation.totals.verified_rounds == 100
    # The last window's result is committed when its time-out comes.
    assert simulation.totals.duplicate_messages == 99
    assert decode_s(simulation) == pytest.approx(decode_s(calm), rel=1e-12)


def test_a_crashed_target_loses_no_token_and_the_client_decides_anew(engine: Simulation) -> None:
    scenario = lab(
        **{**STEADY, "requests": 4, "clients": 4},
        targets=2,
        faults=outage("target_crash", 1.0, 5.0, of="target", member=0),
        protocol__crash_detection_s=0.25,
        episode__total_requests=4,
    )
    simulation = run(engine, scenario, lambda view: Decision(1, 4, OWN))
    table = simulation.requests_table()
    assert (table["delivered_tokens"] == table["output_tokens"]).all()
    assert simulation.totals.interruptions > 0
    # Those that were there go on at the other target: they are done long before the first is back.
    assert simulation.now_s < 14.0
    moved = [e for e in simulation.events if e.kind == EventKind.ADMIT and e.time_s > 1.0 and e.entity == 1]
    assert len(moved) == simulation.totals.interruptions
    assert min(e.time_s for e in moved) >= 1.0 + 0.25 + 0.02


def test_a_bandwidth_collapse_slows_serialisation_by_its_factor(engine: Simulation) -> None:
    changes: dict[str, Any] = dict(
        protocol__header_bytes=1000.0,
        links__wire__uplink_bits_per_s=8e6,
        links__wire__downlink_bits_per_s=8e6,
    )
    calm = lab(**STEADY, **changes)
    slow = lab(**STEADY, **changes, faults=outage("bandwidth_collapse", 0.0, 1e6, bandwidth_factor=0.1))
    # 1 ms up and 1 ms down become 10 and 10 in each of 100 rounds.
    difference = decode_s(run(engine, slow, always(1))) - decode_s(run(engine, calm, always(1)))
    assert difference == pytest.approx(100 * 0.018, rel=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_everything_failing_at_once_loses_nothing(engine: Simulation, seed: int) -> None:
    often = {"mean_interval_s": 1.0, "duration_s": {"distribution": "exponential", "mean": 0.3}}
    scenario = tiny(
        protocol__kind="pipelined",
        protocol__patience_s=0.08,
        protocol__client_timeout_s=0.1,
        episode__total_requests=12,
        faults={
            "a": {"kind": "target_crash", "of": "big", **often},
            "b": {"kind": "edge_crash", "of": "box", **often},
            "c": {"kind": "device_crash", "of": "workstation", **often},
            "d": {"kind": "link_outage", "of": "laptop", **often},
            "e": {"kind": "bandwidth_collapse", "of": "phone", "bandwidth_factor": 0.01, **often},
        },
    )
    chooser = np.random.default_rng(seed)
    simulation = run(
        engine,
        scenario,
        lambda view: Decision(int(chooser.choice(view.gammas)), 4, int(chooser.integers(6))),
        seed,
    )
    assert simulation.terminated
    assert simulation.metrics()["requests_completed"] == 12
    assert kinds(simulation.events)[EventKind.FAULT] > 5


# ---------------------------------------------------------------------- KV preemption, captured steps


def test_preemption_admits_more_and_loses_nothing(engine: Simulation) -> None:
    """A pool for one worst case and a bit: reserving serves one at a time, preempting several."""
    changes: dict[str, Any] = dict(
        clients=6,
        requests=6,
        episode__total_requests=6,
        workload__max_prompt_tokens=100,
        workload__max_output_tokens=128,
        targets__target__kv_capacity_tokens=100 + 128 + 17 + 60,
        arrivals={"kind": "closed_loop", "think_s": {"distribution": "constant", "value": 0.001}},
    )
    # The first to arrive grow while the last wait; who was admitted last gives way.
    reserved = run(engine, lab(**changes, targets__target__kv_policy="reserve"), always(4, 0, 8))
    preempting = run(engine, lab(**changes), always(4, 0, 8))
    assert reserved.totals.preemptions == 0
    assert preempting.totals.preemptions == kinds(preempting.events)[EventKind.PREEMPT] > 0
    assert preempting.metrics()["preemptions"] == preempting.totals.preemptions
    # What admissions brought and nobody gave back never exceeds the pool.
    held: dict[int, float] = {}
    left = Counter({number: 101 for number in range(6)})
    for event in preempting.events:
        if event.kind == EventKind.ADMIT:
            held[event.request] = event.value
        elif event.kind == EventKind.PREEMPT:
            assert event.value >= held.pop(event.request)
        elif event.kind == EventKind.COMMIT:
            left[event.request] -= int(event.value)
            if left[event.request] == 0:
                del held[event.request]
        assert sum(held.values()) <= 100 + 128 + 17 + 60
    # Who was admitted first is never in anybody's way.
    assert all(event.request != 0 for event in preempting.events if event.kind == EventKind.PREEMPT)


def test_iterations_run_at_the_next_captured_size(engine: Simulation) -> None:
    verify = {"t0_s": 0.01, "c_s_per_token": 0.001}
    scenario = lab(alpha=0.0, requests=1, verify=verify, targets__target__graph_batch_tokens=[1, 4, 8, 100])
    simulation = run(engine, scenario, always(4))
    spans = iteration_times(simulation.events)
    # The prompt is prefilled in its own time; gamma + 1 = 5 new tokens take the time of 8.
    assert spans[0] == pytest.approx(0.01 + 0.1)
    assert spans[1:] == pytest.approx([0.01 + 0.008] * (len(spans) - 1))
    beyond = lab(alpha=0.0, requests=1, verify=verify, targets__target__graph_batch_tokens=[1, 4])
    spans = iteration_times(run(engine, beyond, always(4)).events)
    assert spans[1:] == pytest.approx([0.01 + 0.005] * (len(spans) - 1))


def iteration_times(events: list[Event]) -> list[float]:
    starts = [event.time_s for event in events if event.kind == EventKind.ITERATION_START]
    ends = [event.time_s for event in events if event.kind == EventKind.ITERATION_END]
    return [end - start for start, end in zip(starts, ends, strict=True)]
