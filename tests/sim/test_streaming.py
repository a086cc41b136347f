"""Streams of drafts: closed forms and cases worked out by hand, on both engines."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from random import Random
from typing import Any

import numpy as np
import pytest

from dsd_env import Decision, ReferenceSimulation
from dsd_env.control import DecisionView
from dsd_env.sim import EventKind
from dsd_env.sim.compiled import CompiledSimulation
from tests.sim.stream_lab import (
    EDGE,
    NODE,
    OWN,
    Model,
    commits,
    dedicated,
    matches,
    of_kind,
    stream_lab,
    token_times,
    with_edge,
)
from tests.sim.test_degradation import Simulation, always, run

CONSTANT_101 = {"distribution": "constant", "value": 101}


@pytest.fixture(params=[ReferenceSimulation, CompiledSimulation], ids=["reference", "compiled"])
def engine(request: pytest.FixtureRequest) -> Simulation:
    return request.param


# ---------------------------------------------------------------------- against a model of one stream


@pytest.mark.parametrize("number", range(24))
def test_one_stream_is_what_a_model_of_tokens_says(engine: Simulation, number: int) -> None:
    """Commits, positions of messages and rollbacks of a random stream on a device, all in order."""
    dice = Random(f"stream {number}")
    window, chunk = dice.choice([1, 2, 4, 9, 16]), dice.choice([1, 1, 2, 3])
    iteration_s, draft_s = dice.uniform(0.01, 0.04), dice.uniform(0.001, 0.03)
    lag_s, one_way_s = dice.choice([0.0, 0.0007]), dice.uniform(0.0005, 0.06)
    scenario = stream_lab(
        alpha=dice.choice([0.0, 0.5, 0.8, 0.95, 1.0]),
        draft_s=draft_s,
        one_way_s=one_way_s,
        verify={"t0_s": iteration_s},
        output={"distribution": "constant", "value": 120},
        devices__client__drafter__profile__c_s_per_token=lag_s,
        protocol__stream_chunk_tokens=chunk,
    )
    simulation = run(engine, scenario, always(window), seed=number)
    events = simulation.events
    warm = next(e for e in of_kind(events, EventKind.DRAFT_END) if e.value == 0)
    model = Model(
        matches(scenario, number, 120),
        window,
        chunk,
        iteration_s,
        draft_s,
        lag_s,
        one_way_s,
        one_way_s,
        commits(events)[0][0],
        warm.time_s,
    ).play()
    assert [n for _, n in commits(events)] == [n for _, n in model.committed]
    assert [s for s, _ in commits(events)] == pytest.approx([s for s, _ in model.committed])
    end_s = model.committed[-1][0] - 1e-9
    sent = [e for e in of_kind(events, EventKind.DRAFT_SENT) if e.time_s < end_s]
    assert [e.value for e in sent] == [position for s, position in model.sent if s < end_s]
    assert [e.time_s for e in sent] == pytest.approx([s for s, _ in model.sent if s < end_s])
    back = [e.time_s for e in of_kind(events, EventKind.STREAM_ROLLBACK) if e.time_s < end_s]
    assert back == pytest.approx([s for s in model.rollbacks if s < end_s])


# ---------------------------------------------------------------------- closed forms


NOISY: dict[str, Any] = dict(
    clients=4,
    requests=8,
    episode__total_requests=None,
    one_way_s=0.013,
    targets__target__iteration_noise_sigma=0.2,
    verify={"t0_s": 0.03, "c_s_per_token": 0.0003, "k_bw_s_per_token": 1e-6},
    arrivals={"kind": "closed_loop", "think_s": {"distribution": "exponential", "mean": 0.5}},
)


def test_a_drafter_too_slow_to_be_heard_leaves_plain_decoding(engine: Simulation) -> None:
    """Its first draft takes longer than any answer: not a bit of any commit differs."""
    changes = {**NOISY, "draft_s": 100.0}
    streams = run(engine, stream_lab(**changes), always(8))
    plain = run(engine, stream_lab(**changes), always(0))
    assert streams.totals.stream_iterations > 700
    assert streams.totals.stream_idle_iterations == streams.totals.stream_iterations
    assert plain.totals.stream_iterations == 0
    assert committed_when(streams) == committed_when(plain)


def committed_when(simulation: Any) -> list[tuple[float, int, float]]:
    """Return when whose tokens were committed; how a batch is ordered does not matter."""
    rows = of_kind(simulation.events, EventKind.COMMIT)
    return sorted((event.time_s, event.request, event.value) for event in rows)


def test_without_acceptance_an_iteration_commits_one_token(engine: Simulation) -> None:
    """What is verified costs nothing here, so that commits come when plain decoding has them."""
    changes: dict[str, Any] = {**NOISY, "alpha": 0.0, "draft_s": 0.002, "verify": {"t0_s": 0.03}}
    streams = run(engine, stream_lab(**changes), always(8))
    plain = run(engine, stream_lab(**changes), always(0))
    assert streams.totals.late_drafts > 100 and streams.totals.accepted == 0
    assert {e.value for e in of_kind(streams.events, EventKind.COMMIT)} == {1.0}
    assert committed_when(streams) == committed_when(plain)


def rate_of(simulation: Any) -> float:
    """Return tokens per second over the second half of the first answer."""
    times = token_times(simulation.events)
    half = len(times) // 2
    return float((len(times) - 1 - half) / (times[-1] - times[half]))


LONG: dict[str, Any] = dict(alpha=1.0, output={"distribution": "constant", "value": 601})


@pytest.mark.parametrize("place", [OWN, NODE])
@pytest.mark.parametrize(
    ("draft_s", "iteration_s"), [(0.004, 0.03), (0.0071, 0.03), (0.05, 0.03), (0.03, 0.011)]
)
def test_with_everything_right_the_faster_of_drafter_and_target_sets_the_pace(
    engine: Simulation, place: int, draft_s: float, iteration_s: float
) -> None:
    scenario = stream_lab(
        **LONG,
        **dedicated(),
        draft_s=draft_s,
        colocated_s=draft_s,
        one_way_s=0.02,
        verify={"t0_s": iteration_s},
        actions__gammas=[0, 64],
    )
    simulation = run(engine, scenario, always(64, place))
    assert rate_of(simulation) == pytest.approx(max(1 / draft_s, 1 / iteration_s), rel=0.01)
    if draft_s < iteration_s:
        assert not of_kind(simulation.events, EventKind.LATE_DRAFTS)


@pytest.mark.parametrize("gamma", [8, 5, 3, 2, 1])
def test_with_everything_right_the_window_bounds_the_pace(engine: Simulation, gamma: int) -> None:
    """A result and the drafts that answer it take less than two iterations on their way.

    So the drafts that answer iteration i are verified in iteration i + 3, and three iterations commit
    gamma + 1 tokens; a window too small for that leaves a token each.
    """
    scenario = stream_lab(**LONG, draft_s=0.0005, one_way_s=0.02)
    tokens = [n for _, n in commits(run(engine, scenario, always(gamma)).events)]
    steady = np.array(tokens[10:-3])
    assert set(np.convolve(steady, [1, 1, 1], "valid")) == {max(gamma + 1, 3)}


@pytest.mark.parametrize("seed", range(8))
def test_with_verification_free_of_charge_no_token_comes_later_than_by_plain_decoding(
    engine: Simulation, seed: int
) -> None:
    """Whatever the drafter, the window, the network and the drafts' luck: noise is of the iteration."""
    dice = Random(f"free {seed}")
    scenario = stream_lab(
        alpha=dice.choice([0.1, 0.6, 0.9]),
        draft_s=dice.choice([0.002, 0.02]),
        one_way_s=dice.choice([0.0, 0.004, 0.05]),
        output={"distribution": "constant", "value": 200},
        links__wire__jitter={"median_s": 0.003, "sigma": 0.8},
        links__wire__loss_probability=0.05,
        targets__target__iteration_noise_sigma=0.3,
        protocol__confidence_stop=dice.choice([0.0, 0.5]),
        protocol__header_bytes=64,
    )
    choose = always(dice.choice([1, 4, 16]))
    simulation = run(engine, scenario, choose, seed)
    streams = token_times(simulation.events)
    plain = token_times(run(engine, scenario, always(0), seed).events)
    assert len(streams) == len(plain) == 200
    assert all(one <= other for one, other in zip(streams, plain, strict=True))
    # Every accepted draft saves an iteration.
    assert len(commits(simulation.events)) in (
        200 - simulation.totals.accepted,
        201 - simulation.totals.accepted,
    )


# ---------------------------------------------------------------------- windows, chunks, confidence, KV


def known_windows(gamma: list[int]) -> tuple[Any, list[tuple[float, int]]]:
    """Return a chooser that takes these windows in turn, and what it saw: time and tokens known."""
    seen: list[tuple[float, int]] = []

    def choose(view: DecisionView) -> Decision:
        seen.append((view.now_s, view.request.committed_tokens))
        return Decision(gamma[min(len(seen) - 1, len(gamma) - 1)], 1, OWN)

    return choose, seen


def test_a_new_window_is_in_force_at_once_and_recalls_nothing(engine: Simulation) -> None:
    """Eight drafts are ahead when the window becomes two: none is sent before six of them are known."""
    choose, seen = known_windows([8] * 20 + [2] * 20 + [8])
    scenario = stream_lab(alpha=1.0, draft_s=0.0021, one_way_s=0.0203, output=CONSTANT_101)
    events = run(engine, scenario, choose).events
    sent = of_kind(events, EventKind.DRAFT_SENT)
    leads: dict[int, list[float]] = {2: [], 8: []}
    for event in sent:
        latest = max(i for i, (time_s, _) in enumerate(seen) if time_s <= event.time_s)
        window = 2 if 20 <= latest < 40 else 8
        leads[window].append(event.value + 1 - seen[latest][1])
    assert max(leads[8]) == 8
    # The draft that was being made when the window shrank is made, and sent.
    assert max(leads[2][1:]) == 2 < leads[2][0] <= 8
    # At the decision that opens it again, the drafter begins at that instant.
    opened_s = seen[40][0]
    assert any(e.time_s == opened_s for e in of_kind(events, EventKind.DRAFT_START))
    assert not of_kind(events, EventKind.STREAM_CLOSE)


def test_the_target_takes_no_more_than_the_window_that_the_newest_message_told(engine: Simulation) -> None:
    choose, _ = known_windows([16] * 10 + [3])
    scenario = stream_lab(alpha=1.0, draft_s=0.001, one_way_s=0.04, output=CONSTANT_101)
    simulation = run(engine, scenario, choose)
    told = [n for _, n in commits(simulation.events)]
    # Those sent before are still taken sixteen at a time; with three there are at most four a commit.
    assert max(told) > 4 and max(told[-8:]) <= 4


@pytest.mark.parametrize("chunk", [2, 3])
def test_a_message_carries_a_chunk_or_what_the_window_leaves(engine: Simulation, chunk: int) -> None:
    """Nothing is heard within an iteration: the window of seven is filled by 3 + 3 + 1, or 2 + 2 + 2 + 1."""
    scenario = stream_lab(
        alpha=1.0,
        draft_s=0.001,
        verify={"t0_s": 0.3},
        output=CONSTANT_101,
        protocol__stream_chunk_tokens=chunk,
    )
    events = run(engine, scenario, always(7)).events
    first = of_kind(events, EventKind.DRAFT_SENT)[: -(-7 // chunk)]
    assert [e.value for e in first] == [1.0 + chunk * n for n in range(len(first))]
    made = [e.value for e in of_kind(events, EventKind.DRAFT_END)[1 : 1 + len(first)]]
    assert made == [float(chunk)] * (7 // chunk) + [float(7 % chunk)]


def test_a_drafter_holds_no_more_than_its_memory(engine: Simulation) -> None:
    """KV for 120 tokens, 100 of which are the prompt: it drafts the first twenty of the answer, then none.

    The decision that looks at its memory, and would close the stream, takes two seconds.
    """
    scenario = stream_lab(
        alpha=1.0,
        draft_s=0.004,
        one_way_s=0.002,
        output=CONSTANT_101,
        devices__client__drafter__kv_capacity_tokens=120,
        actions__gammas=[0, 8],
        protocol__decision_latency_s=2.0,
    )
    simulation = run(engine, scenario, always(8))
    assert max(e.value for e in of_kind(simulation.events, EventKind.DRAFT_SENT)) == 19
    assert not of_kind(simulation.events, EventKind.STREAM_CLOSE)
    assert simulation.requests_table()["delivered_tokens"].tolist() == [101]


def test_a_drafter_that_is_not_sure_waits_until_that_draft_is_known(
    engine: Simulation, tmp_path: Any
) -> None:
    from dsd_env.acceptance import DrafterTrace, TraceSet
    from tests.acceptance_samples import card

    n = 101
    sure = np.where(np.arange(n) % 5 == 3, 0.2, 0.9).astype(np.float16)
    values = DrafterTrace(None, np.ones(n, np.float32), sure, np.zeros(n, np.float16))
    trace = TraceSet(
        name="made",
        kinds=("any",),
        offsets=np.array([0, n], np.int64),
        kind=np.zeros(1, np.uint8),
        prompt_tokens=np.ones(1, np.int32),
        drafters={"d": values},
        card=card(("d",), label="synthetic"),
    )
    npz, _ = trace.save(tmp_path)
    scenario = stream_lab(
        acceptance={"draft": {"source": "trace", "trace": str(npz), "drafter": "d"}},
        draft_s=0.001,
        one_way_s=0.0103,
        output={"distribution": "constant", "value": n},
        protocol__confidence_stop=0.5,
    )
    choose, seen = known_windows([16])
    events = run(engine, scenario, choose).events
    stops = 0
    for one, other in pairwise(of_kind(events, EventKind.DRAFT_SENT)):
        if one.value % 5 == 3:
            # The next draft was begun when the unsure one was known.
            known_s = min(time_s for time_s, known in seen if known > one.value)
            assert other.time_s >= known_s + 0.001 - 1e-12
            stops += 1
    assert stops > 3


# ---------------------------------------------------------------------- where streams are


def test_an_edge_server_streams_over_its_backhaul(engine: Simulation) -> None:
    """Its messages take the backhaul's ways, and nothing of the device's but the answer."""
    scenario = stream_lab(
        **LONG, **with_edge(backhaul_s=0.004, draft_s=0.0041), one_way_s=0.5, actions__gammas=[0, 64]
    )
    simulation = run(engine, scenario, always(64, EDGE))
    assert rate_of(simulation) == pytest.approx(1 / 0.0041, rel=0.01)


def test_a_drafter_that_lags_catches_up_although_results_come_faster(engine: Simulation) -> None:
    """What it has read of committed text stays read when a result breaks its step off.

    A drafter that reads a token in r seconds, while the target commits one each t, has read a lag of n tokens
    after n r / (1 - r / t) seconds. It must not begin anew with each result.
    """
    read_s, iteration_s, late = 0.0019, 0.02, 48
    scenario = stream_lab(
        draft_s=0.001,
        verify={"t0_s": iteration_s},
        output={"distribution": "constant", "value": 200},
        devices__client__drafter__profile__c_s_per_token=read_s,
        protocol__plain_chunk_tokens=8,
    )

    def choose(view: DecisionView) -> Decision:
        plain = not view.request.is_admission and view.request.committed_tokens < late
        return Decision(0 if plain else 8, 1, OWN)

    events = run(engine, scenario, choose).events
    opened = of_kind(events, EventKind.STREAM_OPEN)[-1]
    first = next(e for e in of_kind(events, EventKind.DRAFT_SENT) if e.time_s > opened.time_s)
    lag = sum(tokens for time_s, tokens in commits(events) if time_s <= opened.time_s)
    expected_s = lag * read_s / (1 - read_s / iteration_s)
    assert lag >= late
    assert expected_s - iteration_s < first.time_s - opened.time_s < 1.2 * expected_s + iteration_s


@pytest.mark.parametrize("clients", [4, 6])
def test_a_result_does_not_cost_a_request_its_turn_at_a_drafter(engine: Simulation, clients: int) -> None:
    """Streams that share a drafter draft in turns, although results make drafts useless that wait for theirs.

    Between two drafts of a request nobody else has two, but for drafts that were broken off.
    """
    scenario = stream_lab(
        **with_edge(draft_s=0.004, concurrency=1),
        clients=clients,
        targets=2,
        alpha=0.7,
        verify={"t0_s": 0.02},
        output={"distribution": "constant", "value": 130},
        requests=2 * clients,
        episode__total_requests=2 * clients,
        actions__gammas=[0, 64],
    )
    simulation = run(engine, scenario, always(64, EDGE))
    drafts = [e for e in simulation.events if e.kind in (EventKind.DRAFT_START, EventKind.DRAFT_END)]
    assert simulation.totals.generations > 100
    others: dict[int, Counter[int]] = {}
    shared = 0
    for event, end in pairwise(drafts):
        if event.kind != EventKind.DRAFT_START or event.value == 0:
            continue
        for counts in others.values():
            counts[event.request] += 1
        waited = others.pop(event.request, Counter())
        assert max(waited.values(), default=0) <= 1
        shared += len(waited) >= 2
        if end.value > 0:
            # Complete: the next draft is queued at once, as the last.
            others[event.request] = Counter()
    assert shared > 30


def test_a_drafter_on_the_targets_own_chips_keeps_to_rounds(engine: Simulation) -> None:
    rounds = run(engine, stream_lab(), always(4, NODE))
    assert not of_kind(rounds.events, EventKind.STREAM_OPEN)
    assert rounds.totals.verified_rounds > 20
