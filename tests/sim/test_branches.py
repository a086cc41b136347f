"""Branches of drafts, on both engines: when they change nothing, when they help, what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from dsd_env import ReferenceSimulation
from dsd_env.acceptance import load_trace_set
from dsd_env.scenario import Scenario, ScenarioError
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
    with pytest.raises(ScenarioError, match=r"acceptance\.draft has no ranks; give `hits` with at least 2"):
        ReferenceSimulation(stream(2, acceptance__draft__hits=[0.5]), seed=1)


def test_drafters_that_depend_on_their_start_have_no_branches() -> None:
    recording = {
        "source": "trace",
        "trace": "qwen2.5-coder-1.5b_smollm2-135m_greedy",
        "drafter": "smollm2-135m",
    }
    with pytest.raises(ScenarioError, match="depend on where it starts"):
        ReferenceSimulation(stream(1, acceptance__draft=recording), seed=1)
