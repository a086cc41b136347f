"""Observations hold nothing of the future.

Two simulations of one seed share their past and differ in some part of their future: acceptance beyond
a position, output lengths, network delays, iteration noise, arrivals. Both are driven by decisions that do
not look at the observation. Until the first event in which they differ, every observation must be equal
to the last bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from dsd_env.control import Decision, ObservationEncoder
from dsd_env.network import Channel
from dsd_env.rng import uniform
from dsd_env.scenario import Scenario
from dsd_env.sim import Event, EventKind, ReferenceSimulation
from dsd_env.sim.entities import Request, TargetServer
from dsd_env.sim.telemetry import Telemetry
from dsd_env.workload import WorkloadGenerator
from tests.scenarios import tiny
from tests.sim.stream_lab import OWN, stream_lab

Change = Callable[[pytest.MonkeyPatch, ReferenceSimulation], None]
Trace = list[tuple[float, bytes]]
_SEEDS = (1, 2, 3)


def blind_decision(scenario: Scenario, request: int, counter: int) -> Decision:
    """Return a decision that depends on nothing but its address; every placement takes its turn."""
    draws = [uniform(99, 0, request, 3 * counter + dimension) for dimension in range(3)]
    actions = scenario.actions
    # Co-located and plain rounds would crowd out the others if requests never stayed away from the target.
    return Decision(
        actions.gammas[int(draws[0] * len(actions.gammas))],
        actions.batch_sizes[int(draws[1] * 4)],
        int(draws[2] * scenario.n_placements),
    )


def drive(simulation: ReferenceSimulation, decisions: int = 600) -> Trace:
    encoder = ObservationEncoder.of(simulation.scenario)
    trace: Trace = []
    while len(trace) < decisions and (view := simulation.next_decision()) is not None:
        trace.append((view.now_s, encoder.encode(view).tobytes() + repr(view).encode()))
        simulation.decide(blind_decision(simulation.scenario, view.request_id, view.counter))
    return trace


def knowable(events: list[Event]) -> list[tuple[Any, ...]]:
    """What has happened by when: the log, without what it knows of the future, and with the ends of answers.

    A message's entry holds its time of arrival. The end of an answer is known at the target when its last
    tokens are committed, but logged when they reach the client.
    """
    known: list[tuple[Any, ...]] = []
    last_commit: dict[int, tuple[Any, ...]] = {}
    for event in events:
        if event.kind == EventKind.SEND:
            known.append((event.time_s, 0, event.kind, event.entity, event.request))
        else:
            known.append((event.time_s, 0, *event[1:]))
        if event.kind == EventKind.COMMIT:
            last_commit[event.request] = (event.time_s, 1, event.entity, event.request)
        elif event.kind == EventKind.COMPLETE:
            known.append(last_commit[event.request])
    return sorted(known, key=lambda entry: entry[:2])


def divergence_s(first: list[Event], second: list[Event]) -> float:
    for one, other in zip(knowable(first), knowable(second), strict=False):
        if one != other:
            return float(min(one[0], other[0]))
    raise AssertionError("the change of the future had no effect at all: the test shows nothing")


def compare(change: Change, seed: int, **overrides: Any) -> tuple[int, int]:
    """Return (observations before the futures part, those of them that differ)."""
    scenario = tiny(episode__requests=500, **overrides)
    base = ReferenceSimulation(scenario, seed, record_events=True)
    base_trace = drive(base)
    with pytest.MonkeyPatch.context() as patch:
        other = ReferenceSimulation(scenario, seed, record_events=True)
        change(patch, other)
        other_trace = drive(other)
    parted_s = divergence_s(base.events, other.events)
    before = [entry for entry in base_trace if entry[0] < parted_s]
    other_before = [entry for entry in other_trace if entry[0] < parted_s]
    assert len(before) == len(other_before)
    return len(before), sum(one != two for one, two in zip(before, other_before, strict=True))


# --- changes of the future -----------------------------------------------------------------------

POSITION = 12
LATER_S = 3.0


def change_acceptance(patch: pytest.MonkeyPatch, _simulation: ReferenceSimulation) -> None:
    """From position 12 of each request on, acceptance is the contrary of what it was."""
    original = Request.realise

    def realise(self: Request, seed: int, model: str) -> Any:
        truth = original(self, seed, model)
        run = truth.run_length.copy()
        top1 = truth.top1_prob.copy()
        run[POSITION:] = np.where(run[POSITION:] > 0, 0, 3)
        top1[POSITION:] = 1.0 - top1[POSITION:]
        # Runs that began before the change may not reach past it either.
        for start in range(min(POSITION, len(run))):
            run[start] = min(run[start], POSITION - start)
        return dataclasses.replace(truth, run_length=run, top1_prob=top1)

    patch.setattr(Request, "realise", realise)


def change_output_lengths(patch: pytest.MonkeyPatch, _simulation: ReferenceSimulation) -> None:
    """Answers of more than 12 tokens are longer by half."""
    original = WorkloadGenerator.request

    def request(self: WorkloadGenerator, *arguments: int) -> Any:
        spec = original(self, *arguments)
        if spec.output_tokens <= POSITION:
            return spec
        return dataclasses.replace(spec, output_tokens=min(200, spec.output_tokens * 3 // 2))

    patch.setattr(WorkloadGenerator, "request", request)


def change_network(patch: pytest.MonkeyPatch, _simulation: ReferenceSimulation) -> None:
    """Messages sent after three seconds take 20 ms longer."""
    original = Channel.send

    def send(self: Channel, now_s: float, size_bytes: float) -> float:
        arrives_s = original(self, now_s, size_bytes)
        return arrives_s + 0.02 if now_s >= LATER_S else arrives_s

    patch.setattr(Channel, "send", send)


def change_noise(patch: pytest.MonkeyPatch, simulation: ReferenceSimulation) -> None:
    """Iterations that start after three seconds take twice as long as expected."""
    original = TargetServer.noise

    def noise(self: TargetServer, seed: int) -> float:
        factor = original(self, seed)
        return 2.0 * factor if simulation.now_s >= LATER_S else factor

    patch.setattr(TargetServer, "noise", noise)


def change_arrivals(patch: pytest.MonkeyPatch, _simulation: ReferenceSimulation) -> None:
    """Nobody asks between three seconds and four."""
    original = WorkloadGenerator.think_end_s

    def think_end_s(self: WorkloadGenerator, *arguments: Any) -> float:
        asks_s = original(self, *arguments)
        return asks_s + 1.0 if asks_s >= LATER_S else asks_s

    patch.setattr(WorkloadGenerator, "think_end_s", think_end_s)


CHANGES: dict[str, tuple[Change, int]] = {
    "acceptance": (change_acceptance, 5),
    "output_lengths": (change_output_lengths, 5),
    "network": (change_network, 60),
    "noise": (change_noise, 60),
    "arrivals": (change_arrivals, 60),
}


@pytest.mark.parametrize("seed", _SEEDS)
@pytest.mark.parametrize("name", CHANGES)
def test_the_future_does_not_show(name: str, seed: int) -> None:
    change, at_least = CHANGES[name]
    before, different = compare(change, seed)
    assert before >= at_least, "the futures part too early to show anything"
    assert different == 0


@pytest.mark.parametrize("name", ["acceptance", "network"])
def test_the_future_does_not_show_with_a_confidence_stop(name: str) -> None:
    before, different = compare(CHANGES[name][0], 1, protocol__confidence_stop=0.3)
    assert before > 0
    assert different == 0


@pytest.mark.parametrize("name", CHANGES)
def test_the_future_does_not_show_in_streams(name: str) -> None:
    change, at_least = CHANGES[name]
    before, different = compare(change, 1, protocol__kind="streaming")
    assert before >= at_least, "the futures part too early to show anything"
    assert different == 0


UNSEEN_S = 0.9
"""Results that have left a target by then arrive after it has stopped."""


@pytest.mark.parametrize("one_way_s", [0.05, 0.4])
def test_a_drafter_does_not_see_how_far_its_target_is(one_way_s: float) -> None:
    """Two targets of one speed until 0.9 s, then one of them stalls: observations part a message later.

    All of a stream's controller is at its drafter: tokens known, drafts in flight, generations, the request's
    age. In between the two targets have committed differently.
    """

    def play(stalls: bool) -> tuple[list[Event], Trace]:
        scenario = stream_lab(
            one_way_s=one_way_s,
            draft_s=0.004,
            output={"distribution": "constant", "value": 201},
            arrivals={"kind": "closed_loop", "think_s": {"distribution": "constant", "value": 0.0}},
            # Periodic reports travel as well.
            protocol__telemetry_period_s=0.01,
        )
        simulation = ReferenceSimulation(scenario, 1, record_events=True)
        encoder = ObservationEncoder.of(scenario)
        trace: Trace = []
        with pytest.MonkeyPatch.context() as patch:
            if stalls:
                original = TargetServer.noise

                def noise(self: TargetServer, seed: int) -> float:
                    return 40.0 if simulation.now_s >= UNSEEN_S else original(self, seed)

                patch.setattr(TargetServer, "noise", noise)
            while (view := simulation.next_decision()) is not None:
                trace.append((view.now_s, encoder.encode(view).tobytes() + repr(view).encode()))
                simulation.decide(Decision(8, 1, OWN))
        return simulation.events, trace

    (events, trace), (stalled, other) = play(False), play(True)
    parted_s = divergence_s(events, stalled)
    assert UNSEEN_S < parted_s < UNSEEN_S + 0.07
    seen_s = parted_s + one_way_s
    unseen = [entry for entry in trace if parted_s < entry[0] < seen_s]
    assert len(unseen) >= (1 if one_way_s < 0.1 else 8)
    assert [entry for entry in trace if entry[0] < seen_s] == [e for e in other if e[0] < seen_s]
    assert trace != other


# --- the test can fail ---------------------------------------------------------------------------


@pytest.mark.parametrize("leak", ["acceptance", "output_lengths"])
def test_a_leak_would_be_found(leak: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A view that tells of the request's future is caught by the comparison above."""
    original = Telemetry.view

    def leaky(self: Telemetry, request: Request, now_s: float) -> Any:
        view = original(self, request, now_s)
        if leak == "output_lengths":
            return dataclasses.replace(
                view, request=dataclasses.replace(view.request, rounds=request.spec.output_tokens)
            )
        future = request.realise(1, "draft").run_length[-1]
        return dataclasses.replace(view, request=dataclasses.replace(view.request, last_confidence=future))

    monkeypatch.setattr(Telemetry, "view", leaky)
    _, different = compare(CHANGES[leak][0], 1)
    assert different > 0
