"""The clairvoyant reference: it knows what will be accepted, and nobody else does."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

import dsd_env
from dsd_env.control import CandidateView, DecisionView, LinkView, RequestView, TargetView
from dsd_env.control.view import DrafterView, SystemView
from dsd_env.scenario import Scenario
from dsd_env.schedulers import SchedulerError, make_scheduler
from dsd_env.schedulers.foresight import Foresight
from dsd_env.sim import ReferenceSimulation
from dsd_env.simulate import simulate
from tests.engines import assert_engines_agree
from tests.scenarios import tiny
from tests.test_architecture import imports

ROOT = Path(dsd_env.__file__).parent
POISSON = {"kind": "poisson", "rate_per_s": 4.0}


def rounds_of_one_token(**overrides: object) -> Scenario:
    """Rounds in which plain decoding makes one token, so that length 0 is exactly that."""
    return tiny(protocol={"kind": "synchronous", "plain_chunk_tokens": 1}, **overrides)


def drafted(scenario: Scenario, scheduler: str, seed: int = 3) -> tuple[int, int]:
    table = simulate(scenario, scheduler, seed, engine="reference").requests
    return int(table["drafted_tokens"].sum()), int(table["accepted_tokens"].sum())


@pytest.mark.parametrize("place", ["own", "edge", "colocated"])
def test_no_draft_of_a_synchronous_round_is_rejected(place: str) -> None:
    made, right = drafted(rounds_of_one_token(), f"clairvoyant:{place}")
    assert made == right > 50


def test_it_is_no_slower_than_any_static_length() -> None:
    scenario = rounds_of_one_token(episode={"requests": 40})
    for place in ("own", "colocated"):
        seeds = (1, 2)

        def mean(scheduler: str, seeds: tuple[int, ...] = seeds) -> float:
            return float(
                np.mean([simulate(scenario, scheduler, seed).metrics["e2e_s_mean"] for seed in seeds])
            )

        statics = {gamma: mean(f"static:{gamma}:1:{place}") for gamma in (1, 2, 4, 8)}
        most = min(statics, key=lambda gamma: statics[gamma])
        assert mean(f"clairvoyant:{max(most, 4)}:1:{place}") < statics[most]


def test_longer_plain_rounds_leave_the_shortest_draft_in_their_place() -> None:
    made, right = drafted(tiny(protocol={"kind": "synchronous", "plain_chunk_tokens": 8}), "clairvoyant:own")
    other, other_right = drafted(tiny(protocol={"kind": "synchronous"}), "edge_sd:4")
    assert right / made > 0.7 > other_right / other


@pytest.mark.parametrize(
    "overrides",
    [
        {"protocol": {"kind": "synchronous"}},
        {"protocol": {"kind": "pipelined"}},
        {"protocol": {"kind": "streaming"}},
        {"protocol": {"kind": "streaming"}, "workload": {"arrivals": POISSON}},
    ],
)
def test_both_engines_agree(overrides: dict[str, object]) -> None:
    assert assert_engines_agree(tiny(**overrides), "clairvoyant:own", 5) > 100


def test_a_window_of_a_stream_ends_where_the_next_draft_would_be_wrong() -> None:
    scenario = tiny(protocol={"kind": "streaming"}, actions={"gammas": list(range(17))})
    foresight = Foresight(scenario)
    foresight.begin(2)
    scheduler = make_scheduler("clairvoyant:own")
    scheduler.reset(scenario, 2)
    simulation = ReferenceSimulation(scenario, 2)
    view, seen = simulation.next_decision(), 0
    while view is not None:
        decision = scheduler.decide(view)
        candidate = view.candidates[decision.placement]
        spec = foresight.request(view)
        start = max(1, view.request.committed_tokens)
        if decision.gamma > 0 and candidate.streams and start + 1 < spec.output_tokens:
            run = int(foresight.acceptance(view, candidate.model).run_length[start])
            assert decision.gamma == min(max(1, min(run, spec.output_tokens - start - 1)), 16)
            seen += 1
        simulation.decide(decision)
        view = simulation.next_decision()
    assert seen > 100


def test_the_length_is_at_most_the_one_given() -> None:
    scenario = rounds_of_one_token()
    events = simulate(scenario, "clairvoyant:2:1:own", 3, record_events=True, engine="reference")
    assert events.scheduler == "clairvoyant:2:1:own"
    table = events.requests
    assert (table["drafted_tokens"] <= 2 * table["rounds"]).all()


# --- nobody else -----------------------------------------------------------------------------------


def test_only_the_reference_imports_foresight() -> None:
    door = "dsd_env.schedulers.foresight"
    users = {
        path.relative_to(ROOT).as_posix()
        for path in ROOT.rglob("*.py")
        if any(name == door or name.startswith(f"{door}.") for name in imports(path))
    }
    assert users == {"schedulers/clairvoyant.py"}


def test_no_other_scheduler_can_draw_requests_or_acceptance() -> None:
    ways = ("dsd_env.acceptance", "dsd_env.workload", "dsd_env.sim.world", "dsd_env.sim.reference")
    for path in (ROOT / "schedulers").glob("*.py"):
        named = {name for name in imports(path) if name.startswith(ways)}
        # The goodput rule asks how often branches of a pair hit, which is known of it before it serves.
        allowed = path.stem in ("foresight", "branch_hits")
        assert allowed or not named, f"{path.name} imports {sorted(named)}"


def test_views_hold_nothing_of_the_future() -> None:
    words = ("output_tokens", "run_length", "remaining_tokens", "seed", "realisation", "uid")
    for view in (DecisionView, RequestView, TargetView, LinkView, DrafterView, CandidateView, SystemView):
        assert not {field.name for field in fields(view)} & set(words), view


# --- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("clairvoyant", "incomplete; write clairvoyant"),
        ("clairvoyant:moon", "incomplete"),
        ("clairvoyant:4:1:moon", "placement 'moon'"),
        ("clairvoyant:0:1:own", "G = '0'"),
    ],
)
def test_errors_say_what_is_expected(spec: str, words: str) -> None:
    with pytest.raises(SchedulerError, match=words):
        make_scheduler(spec)


def test_views_of_another_episode_are_noticed() -> None:
    scenario = tiny()
    scheduler = make_scheduler("clairvoyant:own")
    scheduler.reset(scenario, 1)
    view = ReferenceSimulation(scenario, 2).next_decision()
    assert view is not None
    with pytest.raises(RuntimeError, match="from the beginning of an episode on"):
        scheduler.decide(view)
    with pytest.raises(RuntimeError, match="call reset"):
        make_scheduler("clairvoyant:own").decide(view)
