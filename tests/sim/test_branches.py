"""Branches of drafts, on both engines: when they change nothing, when they help, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from dsd_env import ReferenceSimulation
from dsd_env.acceptance import load_trace_set
from dsd_env.control import Decision, DecisionView, ObservationEncoder
from dsd_env.scenario import Scenario, ScenarioError, load_scenario
from dsd_env.schedulers import SchedulerError, make_scheduler
from dsd_env.schedulers.static import StaticMapScheduler
from dsd_env.sim import EventKind
from dsd_env.sim.compiled import CompiledSimulation
from tests.lab import lab
from tests.sim.test_degradation import OWN, Simulation, always, run


@pytest.fixture(params=[ReferenceSimulation, CompiledSimulation], ids=["reference", "compiled"])
def engine(request: pytest.FixtureRequest) -> Simulation:
    return request.param


def stream(fanout: int, hits: float = 1.0, depth: int = 4, **changes: Any) -> Scenario:
    """Return a laboratory of one stream; a draft step takes as long for one token as for many."""
    source = {} if "acceptance__draft" in changes else {"acceptance__draft__hits": [hits] * max(1, fanout)}
    return lab(
        **{
            **source,
            "requests": 20,
            "one_way_s": 0.004,
            "protocol__kind": "streaming",
            "protocol__branches__fanout": fanout,
            "protocol__branches__depth": depth,
            "protocol__header_bytes": 0.0,
            **changes,
        }
    )


def commits(simulation: Any) -> list[tuple[float, int, float]]:
    return [(e.time_s, e.request, e.value) for e in simulation.events if e.kind == EventKind.COMMIT]


def test_branches_that_never_hold_the_right_token_change_nothing(engine: Simulation) -> None:
    """Here a step with branches takes no longer, the wire no time, and the window is never full."""
    free = {"protocol__bytes_per_token": 0.0}
    plain = run(engine, stream(0, **free), always(16, OWN))
    branching = run(engine, stream(3, hits=0.0, **free), always(16, OWN))
    assert commits(plain) == commits(branching)
    assert branching.totals.branch_drafted > 0
    assert branching.totals.branch_misses > 0
    assert branching.totals.branch_hits == branching.totals.branch_used == 0


def test_steps_with_branches_take_longer(engine: Simulation) -> None:
    """A drafter that takes a millisecond more for each token beside makes fewer drafts in time."""
    slow = {"devices__client__drafter__profile": {"t0_s": 0.005, "c_s_per_token": 0.001}}
    plain = run(engine, stream(0, **slow), always(8, OWN)).metrics()
    branching = run(engine, stream(3, hits=0.0, **slow), always(8, OWN)).metrics()
    assert branching["tpot_s_mean"] > plain["tpot_s_mean"]


def test_a_branch_that_holds_the_right_token_is_taken_at_once(engine: Simulation) -> None:
    plain = run(engine, stream(0), always(8, OWN))
    sure = run(engine, stream(1, hits=1.0), always(8, OWN))
    taken = [event for event in sure.events if event.kind == EventKind.BRANCH_TAKEN]
    adopted = [event for event in sure.events if event.kind == EventKind.BRANCH_ADOPTED]
    assert taken
    assert adopted
    assert sure.totals.branch_used == sum(event.value for event in taken) + _grown(sure)
    assert sure.metrics()["tpot_s_mean"] < plain.metrics()["tpot_s_mean"]
    assert sure.metrics()["stream_idle_share"] < plain.metrics()["stream_idle_share"]


def _grown(simulation: Any) -> int:
    """Return the tokens of branches that came after these were taken: not negative, and few."""
    taken = sum(event.value for event in simulation.events if event.kind == EventKind.BRANCH_TAKEN)
    grown = simulation.totals.branch_used - taken
    assert 0 <= grown <= simulation.totals.branch_drafted
    return int(grown)


def test_hits_come_with_the_probability_of_the_fan_out(engine: Simulation) -> None:
    simulation = run(engine, stream(2, hits=0.6, requests=120), always(8, OWN))
    totals = simulation.totals
    share = totals.branch_hits / (totals.branch_hits + totals.branch_misses)
    assert share == pytest.approx(0.6, abs=0.04)


def test_every_draft_is_verified_or_discarded(engine: Simulation) -> None:
    simulation = run(
        engine,
        stream(2, hits=0.7, targets__target__colocated_drafter=None, episode__total_requests=20),
        always(8, OWN),
    )
    assert simulation.terminated
    totals = simulation.totals
    made = sum(event.value for event in simulation.events if event.kind == EventKind.DRAFT_END)
    assert made + totals.branch_used == totals.drafted + totals.discarded


def test_a_recorded_rank_decides() -> None:
    """Greedy: the right token is rank + 1 or nearer where, and only where, the draft is wrong."""
    scenario = stream(
        1,
        acceptance__draft={
            "source": "trace",
            "trace": "smollm2-135m_smollm2-4l_greedy",
            "drafter": "smollm2-4l",
        },
    )
    simulation = run(CompiledSimulation, scenario, always(8, OWN))
    totals = simulation.totals
    rank = load_trace_set("smollm2-135m_smollm2-4l_greedy").drafters["smollm2-4l"].rank
    assert rank is not None
    expected = (rank == 2).sum() / (rank > 1).sum()
    share = totals.branch_hits / (totals.branch_hits + totals.branch_misses)
    assert share == pytest.approx(expected, rel=0.3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"protocol__kind": "synchronous"}, ["branches.fanout = 2", "streaming"]),
        ({"protocol__stream_chunk_tokens": 2}, ["stream_chunk_tokens = 2", "must be 1"]),
        (
            {"protocol__branches__depth": 12, "actions__gammas": [0, 4, 8]},
            ["protocol.branches.depth = 12", "largest window, 8"],
        ),
        ({"acceptance__draft__hits": [0.7, 0.5]}, ["hits = [0.7, 0.5]", "must not fall"]),
        ({"acceptance__draft__hits": [0.7, 1.5]}, ["hits", "1"]),
    ],
)
def test_impossible_branches_are_refused(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ScenarioError) as error:
        stream(2, **changes)
    for word in words:
        assert word in str(error.value)


def test_unknown_hits_are_refused() -> None:
    with pytest.raises(ScenarioError, match=r"acceptance\.draft\.hits = \[0\.5\] must hold at least 2"):
        ReferenceSimulation(stream(2, acceptance__draft__hits=[0.5]), seed=1)


def test_a_recording_without_ranks_is_to_be_made_anew(tmp_path: Path) -> None:
    shipped = load_trace_set("smollm2-135m_smollm2-4l_greedy")
    columns = replace(shipped.drafters["smollm2-4l"], draft_prob=None, rank=None)
    replace(shipped, name="old", drafters={**shipped.drafters, "smollm2-4l": columns}).save(tmp_path)
    acceptance = {"source": "trace", "trace": str(tmp_path / "old"), "drafter": "smollm2-4l"}
    data = {
        "extends": "single_lan",
        "protocol": {"kind": "streaming", "branches": {"fanout": 2}},
        "acceptance": {"draft": acceptance},
    }
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    with pytest.raises(
        ScenarioError, match=r"mine\.yaml.*acceptance\.draft is a recording of format 1.*anew"
    ):
        ReferenceSimulation(load_scenario(path), seed=1)


def test_drafters_that_depend_on_their_start_have_no_branches() -> None:
    recording = {
        "source": "trace",
        "trace": "qwen2.5-coder-1.5b_smollm2-135m_greedy",
        "drafter": "smollm2-135m",
    }
    with pytest.raises(ScenarioError, match="depend on where it starts"):
        ReferenceSimulation(stream(1, acceptance__draft=recording), seed=1)


# ---------------------------------------------------------------------- branches that are offered

WITHOUT, WITH = OWN, OWN + 1
"""Places of the own device: the target's drafter, which cannot stream, comes before it."""


def offered(fanout: int = 2, **changes: Any) -> Scenario:
    return stream(fanout, actions__offer_branches=True, **changes)


def test_each_of_the_two_candidates_is_what_a_scenario_with_one_of_them_does(engine: Simulation) -> None:
    slow = {"devices__client__drafter__profile": {"t0_s": 0.005, "c_s_per_token": 0.0001}}
    neither, both = stream(0, **slow), stream(2, hits=0.7, **slow)
    choice = offered(hits=0.7, **slow)
    assert commits(run(engine, choice, always(8, WITHOUT))) == commits(run(engine, neither, always(8, OWN)))
    assert commits(run(engine, choice, always(8, WITH))) == commits(run(engine, both, always(8, OWN)))


def test_a_stream_that_goes_over_to_branches_is_not_closed(engine: Simulation) -> None:
    """What a decision asks for holds from the next generation on; every draft is accounted for."""

    def there_and_back(view: DecisionView) -> Decision:
        return Decision(8, 1, WITH if view.counter // 5 % 2 else WITHOUT)

    scenario = offered(
        hits=0.7, targets__target__colocated_drafter=None, episode__total_requests=20, requests=20
    )
    simulation = run(engine, scenario, there_and_back)
    assert simulation.terminated
    totals = simulation.totals
    assert totals.branch_used > 0
    made = sum(event.value for event in simulation.events if event.kind == EventKind.DRAFT_END)
    assert made + totals.branch_used == totals.drafted + totals.discarded
    assert not [event for event in simulation.events if event.kind == EventKind.STREAM_CLOSE]
    always_with = run(engine, scenario, always(8, WITH))
    assert totals.branch_drafted < always_with.totals.branch_drafted


def test_candidates_say_which_branches_they_have(engine: Simulation) -> None:
    slow = {"devices__client__drafter__profile": {"t0_s": 0.005, "c_s_per_token": 0.001}}
    scenario = offered(hits=0.7, **slow)
    views: list[DecisionView] = []

    def noted(view: DecisionView) -> Decision:
        views.append(view)
        return Decision(8, 1, WITH)

    run(engine, scenario, noted)
    shared, without, with_branches = views[-1].candidates
    assert (shared.fanout, shared.streams) == (0, False)
    assert (without.fanout, without.depth, without.valid) == (0, 0, True)
    assert (with_branches.fanout, with_branches.depth, with_branches.valid) == (2, 4, True)
    assert (without.is_current, with_branches.is_current) == (False, True)
    assert with_branches.draft_step_s == pytest.approx(without.draft_step_s + 8 * 0.001)
    names = ObservationEncoder.of(scenario).names
    assert names[-7:-5] == ("candidate_2.fanout", "candidate_2.depth")
    assert not any("fanout" in name for name in ObservationEncoder.of(stream(2)).names)


def test_a_drafter_that_cannot_stream_has_no_branches_to_choose(engine: Simulation) -> None:
    """One of two classes of devices has none: the candidate with branches is there, and not valid."""
    look = {"kind": "lookup", "model": "draft", "lookup": {"cost_per_round_s": 0.001}}
    scenario = offered(
        devices__other={
            "count": 1,
            "drafter": look,
            "link": "wire",
            "power": {"idle_w": 1.0, "busy_w": 10.0},
        },
        arrivals={"kind": "closed_loop", "think_s": {"distribution": "constant", "value": 0.01}},
    )
    valid: dict[int, tuple[bool, bool]] = {}

    def noted(view: DecisionView) -> Decision:
        valid[view.device] = (view.candidates[WITHOUT].valid, view.candidates[WITH].valid)
        return Decision(4, 1, WITH)

    simulation = run(engine, scenario, noted)
    assert valid == {0: (True, True), 1: (True, False)}
    assert simulation.resolved["no_drafter"] > 0


def test_rules_name_the_one_or_the_other() -> None:
    scenario = offered()
    simulation = ReferenceSimulation(scenario, 1)
    view = simulation.next_decision()
    assert view is not None
    for name, placement in (("static:8:1:own", WITHOUT), ("static:8:1:own+branches", WITH)):
        rule = make_scheduler(name)
        rule.reset(scenario, 1)
        assert rule.decide(view).placement == placement
    rule = make_scheduler("static_map:client=8/1/own+branches@0")
    rule.reset(scenario, 1)
    assert rule.decide(view) == Decision(8, 1, WITH)
    rule = make_scheduler("static_map:a=8/1/own:draft+branches+b=4/1/colocated")
    assert isinstance(rule, StaticMapScheduler)
    assert [choice.branches for choice in rule.choices.values()] == [True, False]
    with pytest.raises(SchedulerError, match="'lab' has no branches"):
        make_scheduler("static:8:1:own+branches").reset(stream(0), 1)
    with pytest.raises(SchedulerError, match="can stream, so there are no branches"):
        make_scheduler("static:8:1:colocated+branches").reset(scenario, 1)
    with pytest.raises(SchedulerError, match=r"placement 'edge\+twigs'"):
        make_scheduler("static:8:1:edge+twigs")


def test_nothing_to_offer_is_refused() -> None:
    with pytest.raises(ScenarioError, match=r"actions.offer_branches = true .* protocol.branches.fanout = 0"):
        offered(0)
