"""Several drafters at a site, look-ups and draft heads: cases worked out by hand, asked of both engines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dsd_env
from dsd_env import Decision, DecisionView, ReferenceSimulation, Scenario
from dsd_env.acceptance import DrafterTrace, TraceSet
from dsd_env.control import ActionSpace, DrafterKind, ObservationEncoder, Site
from dsd_env.laws.constants import ACCEPTANCE_PRIOR, TOKENS_PER_ROUND_PRIOR
from dsd_env.sim.compiled import CompiledSimulation
from dsd_env.sim.events import Event, EventKind
from tests.acceptance_samples import card
from tests.engines import assert_engines_agree
from tests.lab import lab

pytest.importorskip("numba")

T_V = 0.030
"""An iteration of the laboratory's target."""

Engine = type[ReferenceSimulation] | type[CompiledSimulation]


@pytest.fixture(params=[ReferenceSimulation, CompiledSimulation], ids=["reference", "compiled"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """Class of an engine; every case is asked of both."""
    chosen: Engine = request.param
    return chosen


def play(engine: Engine, scenario: Scenario, decide: Callable[[DecisionView], Decision]) -> list[Event]:
    """Return the event log of an episode."""
    simulation = engine(scenario, 1, record_events=True)
    while (view := simulation.next_decision()) is not None:
        simulation.decide(decide(view))
    return simulation.events


def times_s(events: list[Event], kind: EventKind, request: int = 0) -> list[float]:
    return [event.time_s for event in events if event.kind == kind and event.request == request]


def model(name: str, step_s: float, **more: Any) -> dict[str, Any]:
    return {"model": name, "profile": {"t0_s": step_s}, **more}


def lookup(name: str = "look", cost_s: float = 0.001, **more: Any) -> dict[str, Any]:
    return {"kind": "lookup", "model": name, "lookup": {"cost_per_round_s": cost_s, **more}}


def with_menu(*menu: dict[str, Any], on: str = "targets__target", **changes: Any) -> Scenario:
    """Return the laboratory with a list of drafters at its target, or on its device."""
    key = "colocated_drafter" if on.startswith("targets") else "drafter"
    names = {drafter["model"] for drafter in menu}
    sources = {name: {"source": "iid", "alpha": 0.0} for name in names}
    sources |= changes.pop("acceptance", {})
    return lab(
        **{f"{on}__{key}": None, f"{on}__{key}s": list(menu)},
        acceptance={**sources, "draft": {"source": "iid", "alpha": 0.0}},
        **{"requests": 1, **changes},
    )


def recorded(folder: Path, run: Sequence[int], proposed: Sequence[int] | None) -> dict[str, Any]:
    """Write a recording of one long answer; return the acceptance source that replays it."""
    ones = np.ones(len(run), dtype=np.float16)
    offer = None if proposed is None else np.array(proposed, dtype=np.uint8)
    trace = TraceSet(
        name="made",
        kinds=("any",),
        offsets=np.array([0, len(run)], dtype=np.int64),
        kind=np.zeros(1, dtype=np.uint8),
        prompt_tokens=np.ones(1, dtype=np.int32),
        drafters={"look": DrafterTrace(np.array(run, dtype=np.uint8), None, ones, ones, offer)},
        card=card(("look",)),
    )
    npz, _ = trace.save(folder)
    return {"source": "trace", "trace": str(npz), "drafter": "look"}


# ---------------------------------------------------------------------- look-up


def test_a_lookup_that_proposes_nothing_is_plain_decoding_of_one_token_a_round(
    engine: Engine, tmp_path: Path
) -> None:
    silent = recorded(tmp_path, [0] * 300, [0] * 300)
    scenario = with_menu(lookup(cost_s=0.0), acceptance={"look": silent}, protocol__plain_chunk_tokens=1)
    events = play(engine, scenario, lambda view: Decision(4, 1, 0))
    plain = play(engine, scenario, lambda view: Decision(0, 1, 0))
    assert times_s(events, EventKind.COMMIT) == times_s(plain, EventKind.COMMIT)
    assert len(times_s(events, EventKind.DECISION)) == 101  # of the prompt and of every later token
    # With a cost, each iteration is that much longer, and everybody's in it.
    dear = with_menu(lookup(cost_s=0.002), acceptance={"look": silent})
    commits = times_s(play(engine, dear, lambda view: Decision(4, 1, 0)), EventKind.COMMIT)
    assert np.diff(commits) == pytest.approx([T_V + 0.002] * 100)


@pytest.mark.parametrize(("gamma", "drafts"), [(1, 1), (2, 2), (8, 2)])
def test_a_lookup_has_verified_what_it_proposes(
    engine: Engine, tmp_path: Path, gamma: int, drafts: int
) -> None:
    """Two proposals, the first of them right: two tokens a round, k + 1 new tokens an iteration."""
    source = recorded(tmp_path, [1] * 400, [2] * 400)
    scenario = with_menu(
        lookup(cost_s=0.001, share_of_verify=0.1),
        acceptance={"look": source},
        targets__target__profile={"t0_s": T_V, "c_s_per_token": 0.001},
    )
    simulation = engine(scenario, 1, record_events=True)
    while simulation.next_decision() is not None:
        simulation.decide(Decision(gamma, 1, 0))
    commits = times_s(simulation.events, EventKind.COMMIT)
    iteration_s = 1.1 * (T_V + 0.001 * (drafts + 1)) + 0.001
    assert np.diff(commits) == pytest.approx([iteration_s] * 50)
    metrics = simulation.metrics()
    assert metrics["block_efficiency"] == 2.0
    # The last round, too, has its one right draft before the answer ends.
    assert metrics["acceptance_rate"] == pytest.approx(1.0 / drafts)


def test_a_lookup_on_the_device_costs_its_time_once_a_round(engine: Engine, tmp_path: Path) -> None:
    source = recorded(tmp_path, [3] * 400, [3] * 400)
    scenario = with_menu(
        lookup(cost_s=0.004), on="devices__client", acceptance={"look": source}, one_way_s=0.01
    )
    events = play(engine, scenario, lambda view: Decision(8, 1, 1))
    rounds = np.diff(times_s(events, EventKind.COMMIT)[1:])
    assert rounds == pytest.approx([0.004 + 0.01 + T_V + 0.01] * 24)


def test_a_lookup_without_a_record_of_its_proposals_makes_as_many_as_asked(
    engine: Engine, tmp_path: Path
) -> None:
    scenario = with_menu(lookup(), acceptance={"look": recorded(tmp_path, [1] * 400, None)})
    simulation = engine(scenario, 1)
    while simulation.next_decision() is not None:
        simulation.decide(Decision(8, 1, 0))
    assert simulation.metrics()["acceptance_rate"] == pytest.approx(1 / 8)


def test_a_lookup_has_no_confidence_to_stop_at_and_never_drafts_ahead(engine: Engine) -> None:
    scenario = with_menu(
        lookup(),
        on="devices__client",
        acceptance={"look": {"source": "iid", "alpha": 1.0}},
        protocol__kind="pipelined",
        protocol__confidence_stop=0.99,
    )
    events = play(engine, scenario, lambda view: Decision(4, 1, 1))
    starts = [event.value for event in events if event.kind == EventKind.DRAFT_START]
    assert starts == [0.0, *[4.0] * 20]  # the prompt, then windows of four, none ahead


def test_what_a_request_learns_of_a_lookup_that_says_nothing(engine: Engine, tmp_path: Path) -> None:
    scenario = with_menu(
        lookup(),
        model("other", 0.001),
        acceptance={"look": recorded(tmp_path, [0] * 400, [0] * 400)},
        protocol__stats_window=0.5,
    )
    seen: list[DecisionView] = []

    def decide(view: DecisionView) -> Decision:
        seen.append(view)
        return Decision(4, 1, 0)

    play(engine, scenario, decide)
    look, other = seen[3].candidates[:2]
    assert (look.kind, look.model, look.model_rounds) == (DrafterKind.LOOKUP, "look", 2)
    assert look.acceptance_rate == ACCEPTANCE_PRIOR  # nothing was proposed that could be judged
    assert look.tokens_per_round == pytest.approx(1.0 + (TOKENS_PER_ROUND_PRIOR - 1.0) / 4)
    assert (other.kind, other.model, other.model_rounds) == (DrafterKind.MODEL, "other", 0)
    assert (other.acceptance_rate, other.tokens_per_round) == (ACCEPTANCE_PRIOR, TOKENS_PER_ROUND_PRIOR)
    assert look.kv_lag_tokens == 1 and other.kv_lag_tokens == seen[3].request.committed_tokens + 100


# ---------------------------------------------------------------------- several drafters at a site


def test_the_draft_steps_of_two_colocated_drafters_add_up(engine: Engine) -> None:
    scenario = with_menu(
        model("a", 0.004),
        model("b", 0.010),
        clients=2,
        requests=2,
        arrivals={"kind": "closed_loop", "think_s": {"distribution": "constant", "value": 1e-9}},
        episode__total_requests=2,
    )

    def decide(view: DecisionView) -> Decision:
        return Decision(2, 2, 0) if view.request_id == 0 else Decision(3, 2, 1)

    events = play(engine, scenario, decide)
    iterations = [event.time_s for event in events if event.kind == EventKind.ITERATION_END]
    # The first prompt comes an instant before the other; then both are in every iteration.
    assert np.diff(iterations)[2:99] == pytest.approx([T_V + 2 * 0.004 + 3 * 0.010] * 97)


def test_changing_the_drafter_costs_a_pass_over_what_it_missed(engine: Engine) -> None:
    scenario = with_menu(
        {"model": "a", "profile": {"t0_s": 0.001, "c_s_per_token": 0.001}},
        {"model": "b", "profile": {"t0_s": 0.002, "c_s_per_token": 0.0005}},
    )
    # The prompt of 100 tokens and five rounds with a, one with b, one with a again.
    order = [0] * 6 + [1] + [0] * 200
    events = play(engine, scenario, lambda view: Decision(3, 1, order[view.counter]))
    rounds = np.diff(times_s(events, EventKind.COMMIT))[:7]
    with_a = T_V + 3 * 0.002  # one token in each pass
    after_five = 100 + 1 + 5
    with_b = T_V + (0.002 + 0.0005 * after_five) + 2 * 0.0025
    # Before b's round a's cache was right up to the newest token but one; b's round added one more.
    again = T_V + (0.001 + 0.001 * 2) + 2 * 0.002
    assert rounds == pytest.approx([with_a] * 5 + [with_b, again])


def test_a_draft_head_catches_up_after_plain_decoding_in_its_first_pass(engine: Engine) -> None:
    head = {"kind": "head", "model": "eagle", "profile": {"t0_s": 0.001, "c_s_per_token": 0.0002}}
    scenario = with_menu(head, protocol__plain_chunk_tokens=8)
    gammas = [4, 4, 0, 4] + [4] * 200
    events = play(engine, scenario, lambda view: Decision(gammas[view.counter], 1, 0))
    rounds = np.diff(times_s(events, EventKind.COMMIT))[:11]
    drafting = T_V + 4 * 0.0012
    # Eight tokens in plain iterations, then a pass over nine: those, and the newest of before.
    caught_up = T_V + (0.001 + 0.0002 * 9) + 3 * 0.0012
    assert rounds == pytest.approx([drafting] + [T_V] * 8 + [caught_up, drafting])


def edge_scenario(menu: list[dict[str, Any]]) -> Scenario:
    """Return two clients beside an edge server with some drafters, everything without distance."""
    return lab(
        clients=2,
        requests=2,
        alpha=0.0,
        arrivals={"kind": "closed_loop", "think_s": {"distribution": "constant", "value": 1e-9}},
        episode__total_requests=2,
        devices__client__edge_link="wire",
        edge_servers={"edge": {"drafters": menu, "backhaul": "wire", "power": {"idle_w": 0, "busy_w": 0}}},
        acceptance={name: {"source": "iid", "alpha": 0.0} for name in ("draft", "a", "b", "look")},
    )


def test_two_models_of_one_edge_server_draft_one_after_the_other(engine: Engine) -> None:
    scenario = edge_scenario([model("a", 0.005), model("b", 0.007, concurrency=4), lookup(cost_s=0.001)])
    assert scenario.places == ((0, -1, 0, 0), (1, -1, 0, 0), (2, 0, 0, 0), (2, 0, 1, 0), (2, 0, 2, 0))

    def prompts(first: int, second: int) -> list[tuple[float, float, int]]:
        """Return (start, end, drafter) of the two drafters' prefills; the prompts come at one instant."""
        events = play(engine, scenario, lambda view: Decision(2, 2, (first, second)[view.request_id]))
        begun = [event for event in events if event.kind == EventKind.DRAFT_START][:2]
        ends_s = [times_s(events, EventKind.DRAFT_END, request)[0] for request in range(2)]
        return [(event.time_s, ends_s[event.request], event.entity) for event in begun]

    sites = 2 + 1 + 1
    a, b = prompts(2, 3)
    assert (a[2], b[2]) == (2, sites + 2)
    # Whoever is second waits until the first has left the hardware, though b could take four jobs.
    assert b[0] == a[1] == pytest.approx(a[0] + 0.005) and b[1] == pytest.approx(b[0] + 0.007)
    one, other = prompts(3, 3)
    assert one[0] == pytest.approx(other[0], abs=1e-8) and one[2] == other[2] == sites + 2
    # A look-up waits for nobody.
    a, look = prompts(2, 4)
    assert a[0] == pytest.approx(look[0], abs=1e-8) and look[2] == 2 * sites + 2
    assert look[1] == pytest.approx(look[0] + 0.001)


def test_candidates_stand_in_the_order_of_the_lists_and_are_padded(engine: Engine) -> None:
    scenario = lab(
        targets=2,
        targets__target__colocated_drafter=None,
        targets__target__colocated_drafters=[
            model("a", 0.002),
            lookup(),
            model("b", 0.003, mode="dedicated", gpus=1),
        ],
        devices__client__count=1,
        devices__other={
            "count": 1,
            "link": "wire",
            "power": {"idle_w": 1, "busy_w": 1},
            "drafters": [model("a", 0.01), lookup()],
        },
        acceptance={name: {"source": "iid", "alpha": 0.5} for name in ("draft", "a", "b", "look")},
        requests=4,
    )
    assert scenario.n_placements == 2 * (3 + 2) and scenario.has_menu
    seen: dict[int, DecisionView] = {}
    play(engine, scenario, lambda view: (seen.setdefault(view.device, view), Decision(4, 1, 4))[1])
    ranks = [(c.site, c.drafter) for c in seen[0].candidates]
    assert ranks == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)] * 2
    targets = [c.target.index for c in seen[0].candidates]
    assert targets in ([0] * 5 + [1] * 5, [1] * 5 + [0] * 5)
    assert [c.model for c in seen[1].candidates[:5]] == ["a", "look", "b", "a", "look"]
    assert [c.model for c in seen[0].candidates[:5]] == ["a", "look", "b", "draft", ""]
    # The first class of device has one drafter: its second place is there, and never valid.
    assert [c.valid for c in seen[0].candidates[:5]] == [True, True, True, True, False]
    assert [c.valid for c in seen[1].candidates[:5]] == [True] * 5
    assert [c.shares_target for c in seen[0].candidates[:5]] == [True, True, False, False, False]
    mask = ActionSpace.of(scenario).mask(seen[0])[-10:]
    assert mask.tolist() == [True, True, True, True, False] * 2


def test_an_absent_drafter_is_plain_decoding_and_counted(engine: Engine) -> None:
    scenario = with_menu(model("a", 0.002), model("b", 0.002))
    simulation = engine(scenario, 1)
    while (view := simulation.next_decision()) is not None:
        assert view.candidates[3 - 1].site == Site.OWN_DEVICE
        simulation.decide(Decision(4, 1, 1))
    assert simulation.resolved == {}
    one = lab(requests=1, devices__client__drafter=None)
    simulation = engine(one, 1)
    while simulation.next_decision() is not None:
        simulation.decide(Decision(4, 1, 1))
    assert set(simulation.resolved) == {"no_drafter"}


def test_only_a_menu_lengthens_the_observation(engine: Engine) -> None:
    plain, menu = lab(requests=1), with_menu(model("a", 0.002), lookup())
    assert not plain.has_menu and menu.has_menu
    assert ObservationEncoder.of(plain).names == ObservationEncoder(2).names
    encoder = ObservationEncoder.of(menu)
    assert len(encoder.features) == len(ObservationEncoder(3).features) + 5 * 3
    simulation = engine(menu, 1)
    view = simulation.next_decision()
    assert view is not None
    told = dict(zip(encoder.names, encoder.encode(view).tolist(), strict=True))
    assert [told[f"candidate_{n}.is_lookup"] for n in range(3)] == [0.0, 1.0, 0.0]
    assert told["candidate_1.acceptance_rate"] == pytest.approx(ACCEPTANCE_PRIOR)


# ---------------------------------------------------------------------- rules


def test_a_static_rule_takes_the_first_drafter_or_the_one_it_names() -> None:
    scenario = with_menu(model("a", 0.002), model("b", 0.009))
    first, named = (dsd_env.simulate(scenario, f"static:4:1:colocated{name}", 1) for name in ("", ":b"))
    assert first.requests["e2e_s"][0] == pytest.approx(T_V + 0.002 + 100 * (T_V + 4 * 0.002))
    assert named.requests["e2e_s"][0] == pytest.approx(T_V + 0.009 + 100 * (T_V + 4 * 0.009))
    mapped = dsd_env.simulate(scenario, "static_map:client=4/1/colocated:b", 1)
    assert mapped.requests["e2e_s"] == named.requests["e2e_s"]
    with pytest.raises(ValueError, match="no drafter 'c' there; it has a, b"):
        dsd_env.simulate(scenario, "static:4:1:colocated:c", 1)
    with pytest.raises(ValueError, match="names no drafter after the colon"):
        dsd_env.simulate(scenario, "static:4:1:colocated:", 1)


def test_the_goodput_rule_finds_the_better_of_two_drafters() -> None:
    """Equal steps, one nearly always right and one nearly never: it must end near the better one alone."""
    for good in ("a", "b"):
        alphas = {name: {"source": "iid", "alpha": 0.9 if name == good else 0.1} for name in ("a", "b")}
        scenario = with_menu(
            model("a", 0.002), model("b", 0.002), acceptance=alphas, requests=20,
            output={"distribution": "constant", "value": 401},
        )  # fmt: skip
        e2e_s = {
            rule: dsd_env.simulate(scenario, rule, 1).metrics["e2e_s_mean"]
            for rule in ("static:4:1:colocated:a", "static:4:1:colocated:b", "jsq_goodput")
        }
        best, worst = sorted((e2e_s["static:4:1:colocated:a"], e2e_s["static:4:1:colocated:b"]))
        assert worst > 2.0 * best and e2e_s["jsq_goodput"] < 1.1 * best


def test_both_engines_agree_on_a_menu_everywhere(tmp_path: Path) -> None:
    look = recorded(
        tmp_path, [0, 3, 2, 1, 0, 0, 5, 4, 3, 2, 1, 0] * 9, [2, 3, 4, 1, 0, 9, 5, 6, 3, 2, 1, 0] * 9
    )
    scenario = lab(
        clients=5,
        requests=30,
        alpha=0.7,
        targets__target__colocated_drafter=None,
        targets__target__colocated_drafters=[
            model("a", 0.002),
            lookup(share_of_verify=0.01),
            {"kind": "head", "model": "b", "profile": {"t0_s": 0.001, "c_s_per_token": 1e-5}},
            model("a", 0.003, mode="dedicated", gpus=1, concurrency=2),
        ],
        devices__client__drafter=None,
        devices__client__drafters=[lookup(), model("b", 0.006), model("a", 0.004, concurrency=2)],
        acceptance={
            "a": {"source": "iid", "alpha": 0.7},
            "b": {"source": "markov", "after_match": 0.9, "after_mismatch": 0.4},
            "look": look,
        },
        one_way_s=0.004,
        protocol__kind="pipelined",
    )
    for seed in range(3):
        assert_engines_agree(scenario, "indices", seed, price_delays=True)
    assert_engines_agree(scenario, "jsq_goodput", 4)
