"""Stop rules: lengths and times of every round against a walk through the recording, on both engines."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba")

import dsd_env
from dsd_env.acceptance import DrafterTrace, TraceSet
from dsd_env.control import ActionSpace, Decision, DecisionView, StopKind, StopRule
from dsd_env.scenario import Scenario
from dsd_env.sim import EventKind, ReferenceSimulation
from dsd_env.sim.compiled import CompiledSimulation
from dsd_env.sim.fuzz import check_conservation
from tests.acceptance_samples import card
from tests.engines import assert_engines_agree
from tests.lab import lab
from tests.scenarios import TINY
from tests.sim.stream_lab import EDGE, NODE, OWN, dedicated, stream_lab, with_edge

Engine = Callable[..., Any]
N = 161
"""Output tokens."""
T_D, T_C, T_V, WAY = 0.007, 0.002, 0.03, 0.011
"""Seconds: a draft step on a client, one at the target, an iteration, one way."""
GAMMA = 12

PROBABILITY = 0.4 + 0.6 * np.sin(np.arange(N)) ** 2
ENTROPY = 2.0 * np.cos(np.arange(N) * 0.7) ** 2
RIGHT = np.arange(N) % 11 != 6

RULES = (
    StopRule(StopKind.TOP1, 0.5),
    StopRule(StopKind.TOP1, 0.5, least=0, keeps=False),
    StopRule(StopKind.TOP1, 0.9, least=3, keeps=False),
    StopRule(StopKind.SURVIVAL, 0.7, least=2),
    StopRule(StopKind.SURVIVAL, 0.3, least=2),
    StopRule(StopKind.SURVIVAL, 0.5, least=1, keeps=False),
    StopRule(StopKind.ENTROPY, 0.3),
    StopRule(StopKind.BOUND, 0.5, least=1, keeps=False),
    StopRule(StopKind.BOUND, 0.8, least=1, keeps=False),
)


@pytest.fixture(params=[ReferenceSimulation, CompiledSimulation])
def engine(request: pytest.FixtureRequest) -> Engine:
    """Each engine in turn; every hand-made case is asked of both."""
    engine: Engine = request.param
    return engine


@pytest.fixture
def recorded(tmp_path: Path) -> dict[str, Any]:
    """Return the acceptance of a draft model whose every position is known."""
    values = DrafterTrace(
        None, RIGHT.astype(np.float32), PROBABILITY.astype(np.float16), ENTROPY.astype(np.float16)
    )
    trace = TraceSet(
        name="made",
        kinds=("any",),
        offsets=np.array([0, N], np.int64),
        kind=np.zeros(1, np.uint8),
        prompt_tokens=np.ones(1, np.int32),
        drafters={"d": values},
        card=card(("d",), label="synthetic"),
    )
    npz, _ = trace.save(tmp_path)
    return {"acceptance": {"draft": {"source": "trace", "trace": str(npz), "drafter": "d"}}}


def room(recorded: dict[str, Any], **changes: Any) -> Scenario:
    return lab(
        draft_s=T_D,
        colocated_s=T_C,
        one_way_s=WAY,
        output={"distribution": "constant", "value": N},
        **{"requests": 1, "episode__total_requests": 1, **recorded, **changes},
    )


def play(
    engine: Engine, scenario: Scenario, stop: StopRule | None, place: int, gamma: int = GAMMA
) -> tuple[Any, list[DecisionView]]:
    """Play an episode with one decision for all rounds; return the simulation and its views."""
    simulation, views = engine(scenario, 1, record_events=True), []
    while (view := simulation.next_decision()) is not None:
        views.append(view)
        simulation.decide(Decision(gamma, 1, place, stop))
    check_conservation(simulation)
    return simulation, views


def walk(rule: StopRule, gamma: int = GAMMA) -> Iterator[tuple[int, int, int]]:
    """Yield (draft steps, drafts, accepted) of each round, from the recording and the rules of the papers."""
    chance, nats = PROBABILITY.astype(np.float16), ENTROPY.astype(np.float16)
    committed = 1
    while committed < N:
        made = 0
        while True:
            at, made = committed + made, made + 1
            drafts = made if rule.keeps else made - 1
            stops = at >= N
            if not stops and drafts >= rule.least:
                stops = {
                    StopKind.TOP1: chance[at] < rule.threshold,
                    StopKind.SURVIVAL: math.prod(map(float, chance[committed : at + 1])) < 1 - rule.threshold,
                    StopKind.ENTROPY: 0.15 * float(nats[at]) > rule.threshold**2,
                    StopKind.BOUND: 0.2 * float(nats[at]) > (1 - rule.threshold) ** 2,
                }[rule.kind]
            if stops or made == gamma:
                drafts = drafts if stops and (made < gamma or not rule.keeps) else made
                break
        accepted = 0
        while accepted < drafts and committed + accepted < N and RIGHT[committed + accepted]:
            accepted += 1
        yield made, drafts, accepted
        committed += accepted + 1


SITES = {
    "own": ({}, OWN, T_D, 2 * WAY),
    "node": ({}, NODE, T_C, 0.0),
    "dedicated": (dedicated(), NODE, T_C, 0.0),
}


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("rule", RULES)
def test_a_round_takes_the_steps_that_were_made_and_verifies_what_was_kept(
    engine: Engine, recorded: dict[str, Any], rule: StopRule, site: str
) -> None:
    changes, place, step_s, travel_s = SITES[site]
    simulation, _ = play(engine, room(recorded, **changes), rule, place)
    rounds = list(walk(rule))
    assert len({made for made, _, _ in rounds}) > 1
    table = simulation.requests_table()
    assert table["verifies"][0] == len(rounds)
    assert table["drafted_tokens"][0] == sum(drafts for _, drafts, _ in rounds)
    assert table["accepted_tokens"][0] == sum(accepted for _, _, accepted in rounds)
    spent_s = sum(made * step_s + travel_s + T_V for made, _, _ in rounds)
    assert table["e2e_s"][0] - table["ttft_s"][0] == pytest.approx(spent_s, rel=1e-9)
    assert simulation.totals.discarded == sum(made - drafts for made, drafts, _ in rounds)
    if site != "node":
        ended = sum(event.value for event in simulation.events if event.kind == EventKind.DRAFT_END)
        assert ended == simulation.totals.drafted + simulation.totals.discarded


def test_an_edge_server_drafts_no_further_either(engine: Engine, recorded: dict[str, Any]) -> None:
    rule = RULES[1]
    scenario = room(recorded, **with_edge(backhaul_s=0.004, draft_s=0.003))
    simulation, _ = play(engine, scenario, rule, EDGE)
    table, rounds = simulation.requests_table(), list(walk(rule))
    assert table["drafted_tokens"][0] == sum(drafts for _, drafts, _ in rounds)
    # Its results come back to it over the backhaul, the tokens to the client on its own link.
    between_s = sum(made * 0.003 + 0.008 + T_V for made, _, _ in rounds)
    commits = [event.time_s for event in simulation.events if event.kind == EventKind.COMMIT]
    assert commits[-1] - commits[0] == pytest.approx(between_s, rel=1e-9)


def test_only_what_is_kept_travels(engine: Engine, recorded: dict[str, Any]) -> None:
    rule = RULES[1]
    scenario = room(recorded, protocol__bytes_per_token=1.0)
    simulation, _ = play(engine, scenario, rule, OWN)
    up = sum(drafts for _, drafts, _ in walk(rule))
    assert simulation.totals.network_bytes == 100 + up + N


@pytest.mark.parametrize(("place", "step_s", "travel_s"), [(OWN, T_D, 2 * WAY), (NODE, T_C, 0.0)])
def test_a_doubted_first_draft_leaves_one_token_for_a_step_and_a_round_trip(
    engine: Engine, recorded: dict[str, Any], place: int, step_s: float, travel_s: float
) -> None:
    rule = StopRule(StopKind.TOP1, 1.0, least=0, keeps=False)
    kept = PROBABILITY.astype(np.float16) >= 1.0
    for kind in ("synchronous", "pipelined"):
        simulation, _ = play(engine, room(recorded, protocol__kind=kind), rule, place, gamma=1)
        table = simulation.requests_table()
        assert table["drafted_tokens"][0] <= kept.sum() and table["verifies"][0] > N - 8
        spent_s = table["verifies"][0] * (step_s + travel_s + T_V)
        # Where a first draft is kept (a sine of 1) it is drafted ahead, which may save the next step.
        assert table["e2e_s"][0] - table["ttft_s"][0] == pytest.approx(spent_s, rel=0.01)
        assert simulation.metrics()["tpot_s_mean"] > T_V


def test_a_drafter_that_drops_a_token_has_read_the_one_before_it(
    engine: Engine, recorded: dict[str, Any]
) -> None:
    """All right: it lacks the target's own token; if it keeps its newest, which it has not read, two."""
    everything = {"acceptance": {"draft": {"source": "iid", "alpha": 1.0}}}
    for keeps, lag in ((True, 2), (False, 1)):
        rule = StopRule(StopKind.SURVIVAL, 0.0, least=3, keeps=keeps)
        # A chance of 1 everywhere is never doubted: the draft has its longest length.
        _, views = play(engine, room(everything), rule, OWN, gamma=4)
        assert {view.candidates[OWN].kv_lag_tokens for view in views[2:]} == {2}
        doubted = StopRule(StopKind.TOP1, 1.0, least=3, keeps=keeps)
        sure = {"acceptance": {"draft": {"source": "iid", "alpha": 0.9999}}}
        _, views = play(engine, room(sure), doubted, OWN, gamma=8)
        assert {view.candidates[OWN].kv_lag_tokens for view in views[2:]} == {lag}


# ---------------------------------------------------------------------- beside the scenario's own stop


@pytest.mark.parametrize("place", [NODE, OWN])
@pytest.mark.parametrize("kind", ["synchronous", "pipelined", "streaming"])
def test_the_protocols_stop_is_a_rule_of_all_decisions(
    engine: Engine, recorded: dict[str, Any], kind: str, place: int
) -> None:
    changes = {"protocol__kind": kind, "protocol__stream_chunk_tokens": 3}
    by_scenario, _ = play(engine, room(recorded, protocol__confidence_stop=0.5, **changes), None, place)
    rule = StopRule(StopKind.TOP1, 0.5)
    by_decision, _ = play(engine, room(recorded, **changes), rule, place)
    assert by_decision.events == by_scenario.events
    other = StopRule(StopKind.ENTROPY, 0.2)
    first, _ = play(engine, room(recorded, protocol__confidence_stop=0.5, **changes), other, place)
    second, _ = play(engine, room(recorded, **changes), other, place)
    assert first.events == second.events != by_decision.events


def test_a_rule_says_nothing_to_plain_decoding_and_none_holds_for_one_decision(
    engine: Engine, recorded: dict[str, Any]
) -> None:
    simulation = engine(room(recorded), 1)
    assert simulation.next_decision() is not None
    assert simulation.decide(Decision(GAMMA, 1, OWN, RULES[0])).stop == RULES[0]
    assert simulation.next_decision() is not None
    assert simulation.decide(Decision(0, 1, OWN, RULES[0])).stop is None
    assert simulation.next_decision() is not None
    assert simulation.decide(Decision(GAMMA, 1, OWN)).stop is None


def test_lookups_have_no_confidence(engine: Engine) -> None:
    look = {"model": "draft", "kind": "lookup", "lookup": {"cost_per_round_s": 0.001}}
    changes = {"devices__client__drafter": look}
    source = {"acceptance": {"draft": {"source": "iid", "alpha": 0.5}}}
    logs = [play(engine, room(source, **changes), stop, OWN)[0].events for stop in (None, RULES[2])]
    assert logs[0] == logs[1]


# ---------------------------------------------------------------------- streams


def stream_room(recorded: dict[str, Any], **changes: Any) -> Scenario:
    output = {"distribution": "constant", "value": N}
    return stream_lab(**{"draft_s": 0.001, "one_way_s": 0.0103, "output": output, **recorded, **changes})


@pytest.mark.parametrize("chunk", [1, 4])
@pytest.mark.parametrize("rule", [RULES[0], RULES[1], RULES[6], RULES[8]])
def test_a_stream_pauses_behind_a_doubted_draft_until_it_hears_more(
    engine: Engine, recorded: dict[str, Any], rule: StopRule, chunk: int
) -> None:
    changes = {"protocol__stream_chunk_tokens": chunk, "devices__client__drafter__kv_capacity_tokens": 4096}
    simulation, views = play(engine, stream_room(recorded, **changes), rule, OWN, gamma=16)
    heard = [(view.now_s, view.request.committed_tokens) for view in views]
    chance, nats = PROBABILITY.astype(np.float16), ENTROPY.astype(np.float16)

    def doubted(at: int) -> bool:
        if rule.kind == StopKind.TOP1:
            return bool(chance[at] < rule.threshold)
        if rule.kind == StopKind.ENTROPY:
            return 0.15 * float(nats[at]) > rule.threshold**2
        return 0.2 * float(nats[at]) > (1 - rule.threshold) ** 2

    sent = [event for event in simulation.events if event.kind == EventKind.DRAFT_SENT]
    pauses = 0
    for one, other in pairwise(sent):
        newest = int(other.value) - 1
        if other.value <= one.value or not doubted(newest):
            continue
        # What comes behind a doubted draft was begun when that was known to be committed, or wrong.
        told_s = min(time_s for time_s, known in heard if known > one.value)
        assert other.time_s >= told_s + 0.001 - 1e-12
        pauses += 1
    assert pauses > 3


def test_a_stream_with_a_rule_of_its_whole_draft_sends_no_more_than_that_lets(
    engine: Engine, recorded: dict[str, Any]
) -> None:
    """At most the least, or as many unverified drafts as are likely enough to be right, and one more."""
    rule = StopRule(StopKind.SURVIVAL, 0.7, least=2)
    simulation, views = play(engine, stream_room(recorded), rule, OWN, gamma=16)
    chance = PROBABILITY.astype(np.float16)
    heard = [(view.now_s, view.request.committed_tokens) for view in views]
    lengths = set()
    for event in simulation.events:
        if event.kind != EventKind.DRAFT_SENT:
            continue
        known = max((tokens for time_s, tokens in heard if time_s < event.time_s), default=1)
        before = chance[known : int(event.value)].astype(float)
        if len(before) > rule.least:
            # When this draft was begun no more was known, so those before it had not ended the stream.
            begun = max((tokens for time_s, tokens in heard if time_s <= event.time_s - 0.001), default=1)
            assert 1.0 - math.prod(chance[begun : int(event.value)].astype(float)) <= rule.threshold
        lengths.add(len(before))
    assert max(lengths) < 16


# ---------------------------------------------------------------------- both engines, and errors


@pytest.mark.parametrize("spec", ["specdec_pp:0.6:edge", "svip", "adaedl:0.7:own", "pmin:0.6:edge"])
def test_engines_agree_on_a_real_recording(spec: str) -> None:
    recording = "qwen2.5-coder-1.5b_smollm2-135m_greedy"
    source = {"source": "trace", "trace": recording, "drafter": "smollm2-135m"}
    data = {key: value for key, value in TINY.items() if key != "reward"}
    for kind in ("synchronous", "pipelined", "streaming"):
        scenario = dsd_env.load_scenario(
            data, acceptance={"draft": source}, protocol__kind=kind, episode__requests=8
        )
        assert assert_engines_agree(scenario, spec, 4, price_delays=True) > 500


@pytest.mark.parametrize(
    ("stop", "words"),
    [
        (StopRule(9, 0.5), "stop.kind = 9"),  # type: ignore[arg-type]
        (StopRule(StopKind.TOP1, 1.5), r"stop.threshold = 1.5 of TOP1 is not a number in 0..1"),
        (StopRule(StopKind.SURVIVAL, -0.1), "stop.threshold = -0.1 of SURVIVAL"),
        (StopRule(StopKind.ENTROPY, math.inf), "stop.threshold = inf of ENTROPY"),
        (StopRule(StopKind.BOUND, math.nan), "stop.threshold = nan of BOUND"),
        (StopRule(StopKind.BOUND, 1.01), "in -inf..1"),
        (StopRule(StopKind.TOP1, 0.5, least=-1), "stop.least = -1"),
    ],
)
def test_a_rule_that_nobody_could_mean_is_refused(engine: Engine, stop: StopRule, words: str) -> None:
    simulation = engine(lab(), 1)
    assert simulation.next_decision() is not None
    with pytest.raises(ValueError, match=words):
        simulation.decide(Decision(4, 1, 0, stop))
    simulation.decide(Decision(4, 1, 0, StopRule(StopKind.BOUND, -3.0)))


def test_no_action_of_a_scenario_without_thresholds_stands_for_a_stop_rule() -> None:
    space = ActionSpace.of(lab())
    assert space.decode(space.encode(Decision(4, 1, 0))) == Decision(4, 1, 0)
    with pytest.raises(ValueError, match="not on the lists"):
        space.encode(Decision(4, 1, 0, RULES[0]))


def test_a_saved_world_goes_on_with_its_rules(recorded: dict[str, Any]) -> None:
    simulation = CompiledSimulation(room(recorded), 1)
    for _ in range(6):
        assert simulation.next_decision() is not None
        simulation.decide(Decision(GAMMA, 1, OWN, RULES[1]))
    saved = simulation.save()

    def rest() -> dict[str, float]:
        while simulation.next_decision() is not None:
            simulation.decide(Decision(GAMMA, 1, OWN, RULES[1]))
        return simulation.metrics()

    first = rest()
    simulation.restore(saved)
    assert rest() == first
