"""Edge servers on offer: the current one first, then the one whose next draft would come soonest."""

from __future__ import annotations

from typing import Any

import pytest

from dsd_env import Decision, DecisionView, ReferenceSimulation, Scenario, load_scenario
from dsd_env.control import Site
from dsd_env.scenario import ScenarioError
from dsd_env.sim.compiled import CompiledSimulation
from tests.engines import assert_engines_agree
from tests.scenarios import TINY

pytest.importorskip("numba")

SLOW, FAST = "slow", "fast"


def with_boxes(offered: int | None, kind: str = "synchronous", **changes: Any) -> Scenario:
    """Return the scenario with two slow edge servers, then a fast one, which draft for one at a time."""
    box = {**TINY["edge_servers"]["box"], "backhaul": "lan"}
    drafter = {**box["drafter"], "concurrency": 1}
    boxes = {
        SLOW: {**box, "count": 2, "drafter": {**drafter, "profile": {"t0_s": 0.010}}},
        FAST: {**box, "drafter": {**drafter, "profile": {"t0_s": 0.004}}},
    }
    content = {**TINY, "edge_servers": boxes}
    content["actions"] = {**TINY["actions"], "targets_offered": 1, "edge_servers_offered": offered}
    content["protocol"] = {"kind": kind}
    return load_scenario(content, **changes)


def at_edge(view: DecisionView) -> list[int]:
    """Return the numbers of the edge servers on the list, in its order."""
    return [c.edge_server for c in view.candidates if c.site == Site.EDGE_SERVER]


def draft_at(view: DecisionView, place: int) -> Decision:
    """Return a decision to draft at an edge server on offer."""
    placements = [i for i, c in enumerate(view.candidates) if c.site == Site.EDGE_SERVER]
    return Decision(4, 1, placements[place])


def test_without_a_limit_they_stand_by_number() -> None:
    simulation = ReferenceSimulation(with_boxes(None), 1)
    view = simulation.next_decision()
    while view is not None:
        assert at_edge(view) == [0, 1, 2]
        simulation.decide(draft_at(view, view.request_id % 3))
        view = simulation.next_decision()


@pytest.mark.parametrize("engine", [ReferenceSimulation, CompiledSimulation])
@pytest.mark.parametrize("kind", ["synchronous", "streaming"])
def test_the_current_one_is_first_and_the_others_come_by_wait_and_step(engine: Any, kind: str) -> None:
    simulation = engine(with_boxes(3, kind), 1)
    current: dict[int, int] = {}
    view = simulation.next_decision()
    assert at_edge(view) == [2, 0, 1], "nobody waits yet, so the fast one is first, then by number"
    moved = 0
    while view is not None:
        offered = [c for c in view.candidates if c.site == Site.EDGE_SERVER]
        others = offered
        drafted = [c for c in offered if c.is_current]
        if drafted:
            assert offered[0].is_current
            assert offered[0].edge_server == current[view.request_id]
            others = offered[1:]
        soonest_s = [c.draft_wait_s + c.draft_step_s for c in others]
        assert soonest_s == sorted(soonest_s)
        place = 1 if view.counter % 5 == 4 else 0
        moved += place
        current[view.request_id] = offered[place].edge_server
        simulation.decide(draft_at(view, place))
        view = simulation.next_decision()
    assert moved > 0


def test_only_so_many_are_offered_and_those_with_fewer_drafters_are_never_valid() -> None:
    drafters = [{"model": "draft", "profile": {"t0_s": t0_s}, "concurrency": 1} for t0_s in (0.004, 0.003)]
    scenario = with_boxes(2, edge_servers__fast__drafter=None, edge_servers__fast__drafters=drafters)
    # At the target one place, on the device one, two drafters at each of two edge servers.
    assert scenario.n_placements == 1 + 1 + 2 * 2
    view = ReferenceSimulation(scenario, 1).next_decision()
    assert view is not None
    found = [(c.edge_server, c.drafter, c.valid, c.model) for c in view.candidates[2:]]
    assert found == [(2, 0, True, "draft"), (2, 1, True, "draft"), (0, 0, True, "draft"), (0, 1, False, "")]


def test_a_server_that_is_down_comes_last() -> None:
    down = {
        "kind": "edge_crash",
        "of": FAST,
        "at_s": [0.0],
        "duration_s": {"distribution": "constant", "value": 60},
    }
    simulation = ReferenceSimulation(with_boxes(3, faults={"outage": down}), 1)
    seen: list[list[int]] = []
    while (view := simulation.next_decision()) is not None:
        if 0.1 < view.now_s < 59.0:  # the first report of it has come
            seen.append(at_edge(view))
        simulation.decide(draft_at(view, 0))
    assert seen and {order[-1] for order in seen} == {2}


@pytest.mark.parametrize("kind", ["synchronous", "streaming"])
def test_engines_agree(kind: str) -> None:
    scenario = with_boxes(2, kind)
    assert assert_engines_agree(scenario, "indices", 5) > 500


@pytest.mark.parametrize("given", [0, 65, "two"])
def test_an_impossible_number_names_key_value_and_range(given: Any) -> None:
    with pytest.raises(
        ScenarioError, match=r"actions\.edge_servers_offered = .*(equal to 1|equal to 64|not a number)"
    ):
        with_boxes(given)
