"""Streams that close, wait, fail and come back, and what they cost: cases by hand, on both engines."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from dsd_env import Decision, ReferenceSimulation
from dsd_env.control import DecisionView, Site
from dsd_env.laws.streams import UNDER_WAY
from dsd_env.sim import EventKind
from dsd_env.sim.compiled import CompiledSimulation
from dsd_env.sim.fuzz.coverage import Watch
from dsd_env.sim.fuzz.stream_coverage import StreamWatch
from tests.sim.stream_lab import (
    EDGE,
    NODE,
    OWN,
    PROMPT,
    by_request,
    commits,
    dedicated,
    of_kind,
    stream_lab,
    token_times,
    with_edge,
)
from tests.sim.test_degradation import Simulation, always, kinds, outage, run


@pytest.fixture(params=[ReferenceSimulation, CompiledSimulation], ids=["reference", "compiled"])
def engine(request: pytest.FixtureRequest) -> Simulation:
    return request.param


FROM_ZERO = {"kind": "closed_loop", "think_s": {"distribution": "constant", "value": 0.0}}
"""The first request comes at time 0."""
LONG_ANSWER = {"distribution": "constant", "value": 401}


def then(first: Decision, after: int, second: Decision) -> Any:
    """Return a chooser that changes its mind at the decision of a number, counted from 0."""

    def choose(view: DecisionView) -> Decision:
        return first if view.counter < after else second

    return choose


# ---------------------------------------------------------------------- closing


def test_no_window_closes_a_stream_and_the_target_goes_on_without_a_pause(engine: Simulation) -> None:
    """Word takes 20 ms to the target, which decodes meanwhile; then control is there."""
    scenario = stream_lab(alpha=1.0, draft_s=0.0041, one_way_s=0.02, arrivals=FROM_ZERO)
    places: list[tuple[float, Site, int]] = []

    def choose(view: DecisionView) -> Decision:
        places.append((view.now_s, view.request.control_site, view.request.window_tokens))
        return Decision(8 if view.counter < 10 else 0, 1, OWN)

    simulation = run(engine, scenario, choose)
    events = simulation.events
    (closed,) = of_kind(events, EventKind.STREAM_CLOSE)
    assert closed.time_s == places[10][0]
    word = next(e for e in of_kind(events, EventKind.SEND) if e.time_s == closed.time_s)
    assert word.value == pytest.approx(closed.time_s + 0.02)
    assert not [e for e in of_kind(events, EventKind.DRAFT_START) if e.time_s > closed.time_s]
    # No further decision at the drafter, and the next at the target after a plain chunk of eight tokens.
    assert all(window == 8 and site == Site.OWN_DEVICE for _, site, window in places[1:11])
    assert {(site, window) for _, site, window in places[11:]} == {(Site.COLOCATED, 0)}
    times, tokens = zip(*commits(events), strict=True)
    np.testing.assert_allclose(np.diff(times), 0.03, rtol=1e-9)
    after = [n for time_s, n in zip(times, tokens, strict=True) if time_s > word.value + 0.03]
    assert set(after) == {1}
    # What the target held and what was on its way is of no use.
    made = sum(e.value for e in of_kind(events, EventKind.DRAFT_END))
    assert simulation.totals.drafted + simulation.totals.discarded == made


@pytest.mark.parametrize(("place", "to"), [(OWN, EDGE), (EDGE, OWN), (NODE, EDGE), (EDGE, NODE), (OWN, NODE)])
def test_another_place_closes_a_stream_and_opens_one_there(engine: Simulation, place: int, to: int) -> None:
    scenario = stream_lab(
        alpha=1.0,
        draft_s=0.0041,
        colocated_s=0.0032,
        one_way_s=0.02,
        arrivals=FROM_ZERO,
        **dedicated(),
        **with_edge(),
    )
    simulation = run(engine, scenario, then(Decision(8, 1, place), 8, Decision(8, 1, to)))
    events = simulation.events
    (closed,) = of_kind(events, EventKind.STREAM_CLOSE)
    first, second = of_kind(events, EventKind.STREAM_OPEN)
    way_s = {OWN: 0.02, EDGE: 0.01, NODE: 0.0}
    assert first.time_s < closed.time_s
    # The closing word is in force at once, or when the iteration that needs the seat ends.
    word_s = closed.time_s + way_s[place]
    assert word_s - 1e-9 <= second.time_s <= word_s + 0.03 + 1e-9
    # The new drafter hears of it one way later; its memory lacks all of the prompt or what it has not seen.
    drafter = {e.entity for e in of_kind(events, EventKind.DRAFT_SENT) if e.time_s < closed.time_s}
    later = [e for e in of_kind(events, EventKind.DRAFT_SENT) if e.time_s > closed.time_s]
    assert later and drafter.isdisjoint({e.entity for e in later})
    assert later[0].time_s >= second.time_s + way_s[to]
    # The target has never paused.
    np.testing.assert_allclose(np.diff([s for s, _ in commits(events)]), 0.03, rtol=1e-9)


def test_another_target_closes_a_stream_and_processes_the_context_there(engine: Simulation) -> None:
    scenario = stream_lab(alpha=1.0, targets=2, draft_s=0.0041, one_way_s=0.02, arrivals=FROM_ZERO)
    home: list[int] = []

    def choose(view: DecisionView) -> Decision:
        if not home:
            home.append(view.candidates[OWN].target.index)
        target = home[0] if view.counter < 8 else 1 - home[0]
        places = [(candidate.site, candidate.target.index) for candidate in view.candidates]
        return Decision(8, 1, places.index((Site.OWN_DEVICE, target)))

    simulation = run(engine, scenario, choose)
    events = simulation.events
    (closed,) = of_kind(events, EventKind.STREAM_CLOSE)
    first, second = of_kind(events, EventKind.STREAM_OPEN)
    targets = [e.entity for e in of_kind(events, EventKind.COMMIT)]
    assert {first.entity, second.entity} == {0, 1} and set(targets) == {0, 1}
    assert all(one == other or other == second.entity for one, other in pairwise(targets))
    moved = [e for e in of_kind(events, EventKind.ADMIT) if e.entity == second.entity]
    assert len(moved) == 1 and moved[0].time_s > closed.time_s
    prefills = [e.value for e in of_kind(events, EventKind.ITERATION_END) if e.entity == second.entity]
    assert prefills[0] > PROMPT and max(prefills[1:]) <= 9


def test_drafting_goes_on_while_a_decision_is_taken(engine: Simulation) -> None:
    """Decisions take 80 ms, in which old windows are in force and one decision at a time is under way."""
    scenario = stream_lab(
        alpha=1.0,
        draft_s=0.0041,
        one_way_s=0.005,
        arrivals=FROM_ZERO,
        protocol__decision_latency_s=0.08,
        output=LONG_ANSWER,
    )
    asked: list[float] = []

    def choose(view: DecisionView) -> Decision:
        asked.append(view.now_s)
        return Decision(16 if view.counter < 6 else 1, 1, OWN)

    events = run(engine, scenario, choose).events
    sent = np.array([e.time_s for e in of_kind(events, EventKind.DRAFT_SENT)])
    assert min(np.diff(asked[1:])) >= 0.08
    for asked_s in asked[2:6]:
        assert np.count_nonzero((sent > asked_s) & (sent < asked_s + 0.08)) > 10
    # The small window is in force 80 ms after it was decided on.
    assert np.count_nonzero((sent > asked[6]) & (sent < asked[6] + 0.08)) > 10
    leaving = sent[sent > asked[6] + 0.1]
    assert min(np.diff(leaving)) > 0.01


# ---------------------------------------------------------------------- waiting for drafts


def test_a_target_that_waits_decodes_when_its_patience_ends(engine: Simulation) -> None:
    """Nothing is ever heard: each token after the first takes patience and an iteration."""
    wait = dict(protocol__stream_idle="wait", protocol__patience_s=0.11)
    scenario = stream_lab(draft_s=100.0, one_way_s=0.01, arrivals=FROM_ZERO, **wait)
    simulation = run(engine, scenario, always(4))
    times = token_times(simulation.events)
    np.testing.assert_allclose(np.diff(times), 0.14, rtol=1e-9)
    assert simulation.totals.takeovers == kinds(simulation.events)[EventKind.TAKEOVER] == 100


def test_a_target_that_waits_verifies_as_soon_as_drafts_come(engine: Simulation) -> None:
    """A draft comes 2 d + t_d after each result; nothing else is verified, and patience never ends."""
    wait = dict(protocol__stream_idle="wait", protocol__patience_s=5.0)
    scenario = stream_lab(alpha=0.0, draft_s=0.004, one_way_s=0.011, arrivals=FROM_ZERO, **wait)
    simulation = run(engine, scenario, always(1))
    times = token_times(simulation.events)
    np.testing.assert_allclose(np.diff(times[3:]), 0.03 + 2 * 0.011 + 0.004, rtol=1e-9)
    assert simulation.totals.takeovers == 0
    assert simulation.totals.stream_idle_iterations == 0


def test_streams_that_wait_can_ask_for_company(engine: Simulation) -> None:
    """Two streams with B = 2 are verified together, but for those that begin, or end, alone."""
    scenario = stream_lab(
        alpha=0.0,
        clients=2,
        requests=2,
        episode__total_requests=2,
        draft_s=0.004,
        one_way_s=0.011,
        devices__client__speed_spread=[0.5, 2.0],
        arrivals=FROM_ZERO,
        protocol__stream_idle="wait",
        protocol__patience_s=5.0,
        targets__target__max_batch_wait_s=5.0,
    )
    together = run(engine, scenario, always(1, OWN, 2))
    alone = run(engine, scenario, always(1, OWN, 1))

    def sizes(simulation: Any) -> list[float]:
        both = by_request(simulation.events, EventKind.COMMIT)
        from_s = max(both[0][3].time_s, both[1][3].time_s)
        until_s = min(both[0][-1].time_s, both[1][-1].time_s) - 0.03
        starts = of_kind(simulation.events, EventKind.ITERATION_START)
        return [e.value for e in starts if from_s < e.time_s < until_s]

    assert set(sizes(together)) == {2.0}
    assert sizes(alone).count(1.0) > 20


def test_a_smaller_batch_is_in_force_when_the_message_that_tells_it_comes(engine: Simulation) -> None:
    """Two streams are resident, one of them without drafts. The other has asked for company, then no more."""
    slow = {
        "count": 1,
        "drafter": {"model": "draft", "profile": {"t0_s": 100.0}},
        "link": "wire",
        "power": {"idle_w": 1.0, "busy_w": 10.0},
    }
    scenario = stream_lab(
        alpha=1.0,
        requests=2,
        episode__total_requests=2,
        draft_s=0.004,
        one_way_s=0.011,
        arrivals=FROM_ZERO,
        devices__slow=slow,
        protocol__stream_idle="wait",
        protocol__patience_s=5.0,
        targets__target__max_batch_wait_s=5.0,
    )

    def second_iteration_s(batch_size: int) -> float:
        """Return when drafts are first verified if the fast device asks for this B after admission."""

        def choose(view: DecisionView) -> Decision:
            return Decision(4, 2 if view.device == 1 or view.counter == 0 else batch_size, OWN)

        events = run(engine, scenario, choose).events
        return of_kind(events, EventKind.ITERATION_START)[1].time_s

    # The prompts take one iteration. The device hears of its end, decides anew, and its first draft tells B.
    prompts_s = 0.011 + 0.030
    assert second_iteration_s(1) == pytest.approx(prompts_s + 0.011 + 0.004 + 0.011)
    assert second_iteration_s(2) == pytest.approx(prompts_s + 5.0), "patience with the silent one ends"


# ---------------------------------------------------------------------- links that fail


@pytest.mark.parametrize("duration_s", [0.4, 6.0])
def test_an_outage_leaves_plain_decoding_and_the_drafter_resumes(
    engine: Simulation, duration_s: float
) -> None:
    """Sizes of zero leave at once: a byte waits for the link. The target never waits."""
    scenario = stream_lab(
        alpha=1.0,
        draft_s=0.004,
        one_way_s=0.01,
        arrivals=FROM_ZERO,
        output=LONG_ANSWER,
        protocol__header_bytes=1.0,
        faults=outage("link_outage", 0.5, duration_s),
        actions__gammas=[0, 8],
    )
    simulation = run(engine, scenario, always(8))
    rows = commits(simulation.events)
    np.testing.assert_allclose(np.diff([s for s, _ in rows]), 0.03, rtol=1e-9)
    back_s = 0.5 + duration_s
    # What had come before is used up within an iteration or two.
    during = [n for s, n in rows if 0.5 + 0.01 + 2 * 0.03 < s <= back_s]
    assert len(during) > duration_s / 0.03 - 4 and set(during) == {1}
    before = [n for s, n in rows if 0.2 < s < 0.5]
    after = [n for s, n in rows if back_s + 0.15 < s][:-1]
    assert np.mean(before) > 3
    assert np.mean(after) == pytest.approx(np.mean(before), rel=0.15)
    back = [e for e in of_kind(simulation.events, EventKind.STREAM_ROLLBACK) if e.time_s > 0.5]
    assert back and back_s <= back[0].time_s <= back_s + 0.011


def drafting_s(events: list[Any], after_s: float, until_s: float) -> tuple[float, int]:
    """Return how long the steps between two times took, and how many of them were broken off."""
    begun_s, total_s, steps = 0.0, 0.0, 0
    for event in events:
        if event.kind == EventKind.DRAFT_START:
            begun_s = event.time_s
        elif event.kind == EventKind.DRAFT_END and begun_s >= after_s and event.time_s <= until_s:
            total_s, steps = total_s + event.time_s - begun_s, steps + 1
    return total_s, steps - 1


def test_after_an_outage_the_drafter_processes_what_it_has_missed(engine: Simulation) -> None:
    """Each token that a step processes takes a millisecond more, and the window is two.

    The drafter has made the drafts for positions p and p + 1 and processed that for p (and all before) when
    the link breaks. Then c tokens are known: it lacks p + 1, ..., c - 1.
    """
    scenario = stream_lab(
        alpha=1.0,
        draft_s=0.004,
        one_way_s=0.01,
        arrivals=FROM_ZERO,
        output=LONG_ANSWER,
        protocol__header_bytes=1.0,
        devices__client__drafter__profile__c_s_per_token=0.001,
        faults=outage("link_outage", 0.5, 0.6),
    )
    known: list[tuple[float, int]] = []

    def choose(view: DecisionView) -> Decision:
        known.append((view.now_s, view.request.committed_tokens))
        return Decision(2, 1, OWN)

    events = run(engine, scenario, choose).events
    sent = of_kind(events, EventKind.DRAFT_SENT)
    newest = max(int(e.value) for e in sent if e.time_s < 1.1)
    resumed = next(e for e in sent if e.time_s > 1.1)
    told_s, c = max((s, n) for s, n in known if s < resumed.time_s)
    assert told_s >= 1.1 and resumed.value == c
    lag = c - newest
    assert lag > 15
    # Results that were held up come one after the other, and each breaks off the step under way, which keeps
    # what it has read, in whole tokens.
    spent_s, breaks = drafting_s(events, 1.1, resumed.time_s)
    assert 0.0 <= spent_s - (0.004 + 0.001 * lag) <= 0.005 * breaks + 1e-9


def test_a_drafter_whose_messages_do_not_leave_waits_as_at_a_full_socket(engine: Simulation) -> None:
    """Each message takes the uplink 50 ms, each draft 2 ms, and results call for new drafts every 30 ms."""
    scenario = stream_lab(
        alpha=0.0,
        draft_s=0.002,
        one_way_s=0.01,
        arrivals=FROM_ZERO,
        output=LONG_ANSWER,
        protocol__header_bytes=100.0,
        links__wire__uplink_bits_per_s=16000.0,
    )
    simulation = run(engine, scenario, always(16))
    events = simulation.events
    ups = [e for e in of_kind(events, EventKind.SEND) if e.value > e.time_s + 0.05][1:]
    sent = {e.time_s for e in of_kind(events, EventKind.DRAFT_SENT)}
    assert sent == {e.time_s for e in ups}
    under_way = [sum(other.time_s <= e.time_s < other.value for other in ups) for e in ups]
    assert max(under_way) == UNDER_WAY
    # Once the socket is full, a draft begins when a message arrives, and is the next to leave.
    full = next(i for i, n in enumerate(under_way) if n == UNDER_WAY)
    came = [e.value for e in ups if e.value > ups[full].time_s][: len(ups) - full - 1]
    assert len(came) > 50
    assert [e.time_s for e in ups[full + 1 :]] == pytest.approx([time_s + 0.002 for time_s in came])
    # Not one of them is in time.
    np.testing.assert_allclose(np.diff(token_times(events)), 0.03, rtol=1e-9)


def test_a_target_leaves_out_results_when_too_many_are_under_way(engine: Simulation) -> None:
    """Results take 2.5 s and leave every 30 ms: that of the first token and 63 more are under way then.

    The 83rd iteration ends before the first has arrived, the 84th after that: its result, 85 tokens, is next.
    """
    scenario = stream_lab(one_way_s=2.5, draft_s=0.01, arrivals=FROM_ZERO, output=LONG_ANSWER)
    known: list[int] = []

    def choose(view: DecisionView) -> Decision:
        known.append(view.request.committed_tokens)
        return Decision(8, 1, OWN)

    run(engine, scenario, choose)
    assert known[1:65] == list(range(1, 65))
    assert known[65:68] == [85, 86, 87]


# ---------------------------------------------------------------------- crashes


def test_a_crashed_device_is_silent_and_comes_back_without_its_memory(engine: Simulation) -> None:
    """The target decodes meanwhile. After its return the drafter processes all of the context."""
    scenario = stream_lab(
        alpha=1.0,
        draft_s=0.004,
        one_way_s=0.01,
        arrivals=FROM_ZERO,
        output=LONG_ANSWER,
        devices__client__drafter__profile__c_s_per_token=0.0001,
        faults=outage("device_crash", 0.5, 0.7),
    )
    simulation = run(engine, scenario, always(8))
    events = simulation.events
    sent = of_kind(events, EventKind.DRAFT_SENT)
    assert not [e for e in sent if 0.5 < e.time_s < 1.2]
    resumed = next(e for e in sent if e.time_s > 1.2)
    # Results come every 30 ms and break off the step that reads the context; what it has read stays read.
    context = PROMPT + int(resumed.value)
    spent_s, breaks = drafting_s(events, 1.2, resumed.time_s)
    assert 0.0 <= spent_s - (0.004 + 0.0001 * context) <= 0.0041 * breaks + 1e-9
    rows = commits(events)
    np.testing.assert_allclose(np.diff([s for s, _ in rows]), 0.03, rtol=1e-9)
    assert {n for s, n in rows if 0.57 < s < 1.2} == {1}
    assert np.mean([n for s, n in rows if s > 1.5][:-1]) > 3
    # Before the crash nothing was wrong, and the decisions of the device wait for its return.
    assert not [e for e in of_kind(events, EventKind.DECISION) if 0.5 < e.time_s < 1.2]


@pytest.mark.parametrize("alpha", [1.0, 0.6])
def test_a_drafter_that_is_back_at_once_loses_its_memory_and_no_draft_counts_twice(
    engine: Simulation, alpha: float
) -> None:
    """While an iteration verifies its drafts it crashes, begins anew, and fills its window again in time.

    What it drafts again is what it had drafted, so that nothing is committed at another time.
    """
    changes: dict[str, Any] = dict(
        alpha=alpha, draft_s=0.002, one_way_s=0.001, verify={"t0_s": 0.1}, arrivals=FROM_ZERO
    )
    calm = run(engine, stream_lab(**changes), always(8), seed=3)
    taken = [time_s for time_s, tokens in commits(calm.events) if tokens > 2]
    crash = outage("device_crash", taken[1] - 0.06, 0.0)
    simulation = run(engine, stream_lab(**changes, faults=crash), always(8), seed=3)
    assert commits(simulation.events) == commits(calm.events)
    for each in (calm, simulation):
        made = sum(e.value for e in of_kind(each.events, EventKind.DRAFT_END))
        assert each.totals.drafted + each.totals.discarded == made
    assert simulation.totals.discarded > calm.totals.discarded
    assert simulation.totals.drafted == calm.totals.drafted


def test_an_edge_server_that_crashes_takes_along_all_its_streams(engine: Simulation) -> None:
    scenario = stream_lab(
        alpha=1.0,
        clients=4,
        requests=4,
        episode__total_requests=4,
        arrivals=FROM_ZERO,
        output=LONG_ANSWER,
        **with_edge(backhaul_s=0.004, draft_s=0.003, concurrency=8),
        faults=outage("edge_crash", 1.0, 0.5, of="box"),
    )
    simulation = run(engine, scenario, always(8, EDGE))
    events = simulation.events
    assert len(of_kind(events, EventKind.STREAM_OPEN)) == 4
    sent = by_request(events, EventKind.DRAFT_SENT)
    rows = by_request(events, EventKind.COMMIT)
    for request in range(4):
        assert not [e for e in sent[request] if 1.0 < e.time_s < 1.5]
        assert [e for e in sent[request] if e.time_s > 1.5]
        assert {e.value for e in rows[request] if 1.1 < e.time_s < 1.5} == {1.0}
        assert np.mean([e.value for e in rows[request] if 1.7 < e.time_s < 2.5]) > 4
    assert simulation.totals.interruptions == 0


def test_a_crashed_target_ends_its_streams_and_what_was_under_way_comes_late(engine: Simulation) -> None:
    """Ten milliseconds of drafts, one each 2 ms, are on their way to the target when it crashes."""
    scenario = stream_lab(
        alpha=1.0,
        draft_s=0.002,
        one_way_s=0.011,
        arrivals=FROM_ZERO,
        output=LONG_ANSWER,
        actions__gammas=[0, 64],
        faults=outage("target_crash", 0.5, 0.3, of="target"),
        protocol__crash_detection_s=0.05,
    )
    simulation = run(engine, scenario, always(64))
    events = simulation.events
    late = of_kind(events, EventKind.LATE)
    ups = [e for e in of_kind(events, EventKind.SEND) if e.time_s < 0.5 < e.value]
    drafts = [e for e in of_kind(events, EventKind.DRAFT_SENT) if 0.489 < e.time_s < 0.5]
    assert len(drafts) >= 5 and len(ups) >= len(drafts)
    assert simulation.totals.late_messages == len(late) == len(drafts)
    assert simulation.totals.interruptions == 1
    assert len(of_kind(events, EventKind.STREAM_OPEN)) == 2
    made = sum(e.value for e in of_kind(events, EventKind.DRAFT_END))
    assert simulation.totals.drafted + simulation.totals.discarded == made


def test_preemption_suspends_the_seat_and_drafts_stay_valid(engine: Simulation) -> None:
    """Two requests outgrow a pool for one and a bit: who came last waits, prefills again, and goes on.

    All drafts are right and no target gets ahead of a drafter, so nothing is ever rolled back.
    """
    scenario = stream_lab(
        alpha=1.0,
        clients=2,
        requests=2,
        episode__total_requests=2,
        draft_s=0.003,
        one_way_s=0.001,
        verify={"t0_s": 0.03},
        arrivals=FROM_ZERO,
        workload__max_prompt_tokens=100,
        workload__max_output_tokens=128,
        targets__target__kv_capacity_tokens=100 + 128 + 17 + 60,
    )
    simulation = run(engine, scenario, always(8))
    events = simulation.events
    assert simulation.totals.preemptions == len(of_kind(events, EventKind.PREEMPT)) > 0
    preempted = of_kind(events, EventKind.PREEMPT)[0]
    again = next(
        e
        for e in of_kind(events, EventKind.ADMIT)
        if e.time_s > preempted.time_s and e.request == preempted.request
    )
    between = [s for s, _ in commits(events, preempted.request) if preempted.time_s < s <= again.time_s]
    assert not between
    # Its first iteration after the prefill takes the drafts that had come in time: up to the whole window.
    resumed = [n for s, n in commits(events, preempted.request) if s > again.time_s]
    assert resumed[0] == 9
    assert not [e for e in of_kind(events, EventKind.LATE_DRAFTS) if e.time_s > 0.3]
    assert len(of_kind(events, EventKind.STREAM_OPEN)) == 2


# ---------------------------------------------------------------------- what it costs


def test_bytes_and_energy_of_a_small_stream_by_hand(engine: Simulation) -> None:
    """Eleven tokens with windows of two: each message has a header of 10 bytes, each token 4, a draft 6."""
    scenario = stream_lab(
        alpha=1.0,
        draft_s=0.002,
        one_way_s=0.004,
        arrivals=FROM_ZERO,
        output={"distribution": "constant", "value": 11},
        protocol__header_bytes=10.0,
        protocol__bytes_per_token=4.0,
        protocol__draft_probabilities="scalar",
        devices__client__radio_joules_per_byte=0.001,
    )
    simulation = run(engine, scenario, always(2))
    # The first token is committed at 34 and known at 38 ms. Drafts 1 and 2 come at 44 and 46, while the
    # second iteration decides 1 by itself. The third, from 64, verifies 2 and decides 3. Draft 3, for which
    # there was room at 68, has come too late at 74: the fourth has nothing to verify. So it goes on.
    rows = commits(simulation.events)
    assert [round(1e3 * s, 6) for s, _ in rows] == [34, 64, 94, 124, 154, 184, 214, 244]
    assert [n for _, n in rows] == [1, 1, 2, 1, 2, 1, 2, 1]
    sent = of_kind(simulation.events, EventKind.DRAFT_SENT)
    ends = [40, 42, 70, 100, 102, 130, 160, 162, 190, 220, 222]
    assert [round(1e3 * e.time_s, 6) for e in sent] == ends
    assert [e.value for e in sent] == list(range(1, 12))
    totals = simulation.totals
    assert (totals.drafted, totals.accepted, totals.discarded) == (3, 3, 8)
    assert (totals.stream_iterations, totals.stream_idle_iterations) == (7, 4)
    assert (totals.generations, totals.late_drafts) == (1, 0)
    down = 8 * 10 + 11 * 4
    up = (10 + 4 * PROMPT) + 11 * (10 + 6)
    assert totals.network_bytes == down + up
    # Power is 9 W above idle on the device, for the prompt, too; 400 W at the target, which idles at 100 W.
    client_j = 9.0 * 12 * 0.002 + 0.001 * (down + up)
    assert totals.client_joules == pytest.approx(client_j)
    assert totals.energy_joules == pytest.approx(client_j + 400.0 * 8 * 0.03 + 100.0 * 0.248)


# ---------------------------------------------------------------------- what the fuzzer says it has met


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        (
            {"alpha": 0.0, "protocol__header_bytes": 100.0, "links__wire__uplink_bits_per_s": 16000.0},
            {"socket full of drafts"},
        ),
        ({"one_way_s": 2.5}, {"results left out", "socket full of drafts"}),
        ({"faults": outage("device_crash", 0.5, 0.2)}, {"drafter crashes", "drafter returns"}),
        ({"faults": outage("target_crash", 0.5, 0.2, of="target")}, {"target crashes"}),
        (
            {"protocol__stream_idle": "wait", "protocol__patience_s": 0.001, "alpha": 0.0},
            {"idle take-over"},
        ),
    ],
)
def test_the_fuzzer_names_what_a_stream_has_met(changes: dict[str, Any], names: set[str]) -> None:
    arguments: dict[str, Any] = {"alpha": 1.0, "draft_s": 0.002, "one_way_s": 0.01, "output": LONG_ANSWER}
    scenario = stream_lab(**{**arguments, "arrivals": FROM_ZERO, **changes})
    simulation = run(ReferenceSimulation, scenario, always(16))
    assert StreamWatch(scenario).read(simulation.events) == {f"stream:{name}" for name in names}


@pytest.mark.parametrize(
    ("second", "name"),
    [
        (Decision(0, 1, OWN), "stream:closed, no window"),
        (Decision(8, 1, EDGE), "stream:closed, other drafter"),
    ],
)
def test_the_fuzzer_names_why_a_stream_closes(second: Decision, name: str) -> None:
    scenario = stream_lab(arrivals=FROM_ZERO, **with_edge())
    watch = Watch(scenario, 1)
    simulation = ReferenceSimulation(scenario, 1, record_events=True)
    while (view := simulation.next_decision()) is not None:
        choice = Decision(8, 1, OWN) if view.counter < 8 else second
        watch.decided(view, simulation.decide(choice))
    watch.finish(simulation)
    assert {met for met in watch.met if met.startswith("stream:")} == {name}
