"""What an iteration costs, what each sequence adds to it, and who is charged for whose delay."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsd_env import Decision, ReferenceSimulation
from dsd_env.latency import EngineOverhead, StepCoefficients
from dsd_env.scenario.schema import Lookup
from dsd_env.sim.entities import StepTimer
from dsd_env.sim.iteration import IterationCost, Share
from tests.lab import lab

TARGET = StepTimer(
    StepCoefficients(
        t0_s=1e-3, w_s=0.01, c_s_per_token=1e-4, p=3.0, k_bw_s_per_token=1e-7, k_lat_s_per_token=1e-6
    ),
    2000,
    EngineOverhead(
        per_iteration_s=2e-3,
        per_sequence_s=3e-5,
        per_token_s=1e-5,
        per_verifying_iteration_s=5e-4,
        token_limit=40,
    ),
)
DRAFTER = StepTimer(
    StepCoefficients(t0_s=5e-4, w_s=2e-3, c_s_per_token=1e-5, p=2.0, k_lat_s_per_token=1e-7), 2000
)
LOOKUP = StepTimer.of_lookup(Lookup(cost_per_round_s=2e-4, share_of_verify=0.01), 2000)
DRAFTERS = {3: DRAFTER, 7: DRAFTER.scaled(0.7), 9: LOOKUP}

shares = st.lists(
    st.one_of(
        st.builds(Share, st.integers(1, 17), st.integers(20, 4000)),
        st.builds(Share, st.integers(2, 17), st.integers(20, 4000), verifies=st.just(True)),
        st.builds(
            Share,
            st.integers(2, 17),
            st.integers(20, 4000),
            lag_tokens=st.integers(1, 50),
            draft_kv_tokens=st.integers(20, 4000),
            gamma=st.integers(1, 16),
            drafter=st.sampled_from([3, 7]),
            verifies=st.just(True),
        ),
        st.builds(
            Share,
            st.integers(1, 17),
            st.integers(20, 4000),
            lag_tokens=st.integers(1, 50),
            draft_kv_tokens=st.integers(20, 4000),
            gamma=st.integers(0, 16),
            drafter=st.just(9),
        ),
    ),
    min_size=1,
    max_size=12,
)


@given(shares)
def test_the_targets_part_is_charged_by_the_difference_that_a_sequence_makes(batch: list[Share]) -> None:
    alone = [replace(share, lag_tokens=0, draft_kv_tokens=0, gamma=0, drafter=-1) for share in batch]
    cost = IterationCost(TARGET, DRAFTERS, alone)
    for index, share in enumerate(alone):
        others = alone[:index] + alone[index + 1 :]
        without_s = IterationCost(TARGET, DRAFTERS, others).duration_s if others else 0.0
        assert cost.caused_s(share) == pytest.approx(cost.duration_s - without_s, rel=1e-9, abs=1e-12)


@given(shares)
def test_the_shares_of_the_draft_steps_sum_to_their_time(batch: list[Share]) -> None:
    cost = IterationCost(TARGET, DRAFTERS, batch)
    plain = [replace(share, lag_tokens=0, draft_kv_tokens=0, gamma=0, drafter=-1) for share in batch]
    without = IterationCost(TARGET, DRAFTERS, plain)
    drafting_s = cost.duration_s - without.duration_s
    charged_s = sum(cost.caused_s(share) for share in batch) - sum(without.caused_s(share) for share in plain)
    assert charged_s == pytest.approx(drafting_s, rel=1e-9, abs=1e-12)


def test_a_joint_draft_step_is_shared_by_those_that_asked_for_it() -> None:
    """The airport game by hand: 10 ms a step, drafts of 1, 2 and 4 tokens."""
    step = StepTimer(StepCoefficients(t0_s=0.010, w_s=0.0, c_s_per_token=0.0, p=1.0), 100)
    verify = StepTimer(StepCoefficients(t0_s=1.0, w_s=0.0, c_s_per_token=0.0, p=1.0), 100)
    batch = [Share(2, 50, 1, 49, 1, 0), Share(3, 50, 1, 48, 2, 0), Share(5, 50, 1, 46, 4, 0), Share(1, 50)]
    cost = IterationCost(verify, {0: step}, batch)
    # Step 1 among three, step 2 among two, steps 3 and 4 for the longest alone.
    expected = [0.010 / 3, 0.010 / 3 + 0.010 / 2, 0.010 / 3 + 0.010 / 2 + 0.020, 0.0]
    assert [cost.caused_s(share) for share in batch] == pytest.approx(expected)
    # Each would gain its share by leaving, though the steps would hardly be shorter without one of them.
    assert all(share_s > 0.0 for share_s in expected[:3])


def test_a_long_lag_is_charged_to_whoever_has_it() -> None:
    """A pass takes 1 ms a token: two lags of one token share 2 ms, the third pays for 9 more tokens."""
    step = StepTimer(StepCoefficients(t0_s=0.0, w_s=1e-12, c_s_per_token=0.001, p=1.0), 100)
    verify = StepTimer(StepCoefficients(t0_s=1.0, w_s=0.0, c_s_per_token=0.0, p=1.0), 100)
    batch = [Share(2, 50, 1, 49, 1, 0), Share(2, 50, 1, 49, 1, 0), Share(2, 50, 10, 49, 1, 0)]
    cost = IterationCost(verify, {0: step}, batch)
    assert [cost.caused_s(share) for share in batch] == pytest.approx([0.001, 0.001, 0.010])


def test_shared_drafting_lengthens_the_iteration_step_by_step() -> None:
    """One pass for all lags, then one per draft position with the sequences that go that far."""
    step = StepTimer(StepCoefficients(t0_s=0.001, w_s=0.0, c_s_per_token=0.01, p=1.0), 100)
    verify = StepTimer(StepCoefficients(t0_s=1.0, w_s=0.0, c_s_per_token=0.0, p=1.0), 100)
    batch = [Share(4, 100, 1, 97, 3, 0), Share(2, 50, 5, 49, 1, 0), Share(1, 30)]
    # Lags 1 + 5 together; then position 2 and 3 for the first sequence alone.
    assert IterationCost(verify, {0: step}, batch).duration_s == pytest.approx(1.0 + 0.061 + 0.011 + 0.011)


def test_the_drafters_of_one_server_take_their_steps_one_after_the_other() -> None:
    step = StepTimer(StepCoefficients(t0_s=0.001, w_s=0.0, c_s_per_token=0.01, p=1.0), 100)
    other = StepTimer(StepCoefficients(t0_s=0.1, w_s=0.0, c_s_per_token=0.0, p=1.0), 100)
    lookup = StepTimer.of_lookup(Lookup(cost_per_round_s=0.002, share_of_verify=0.25), 100)
    verify = StepTimer(StepCoefficients(t0_s=1.0, w_s=0.0, c_s_per_token=0.0, p=1.0), 100)
    batch = [Share(4, 100, 1, 97, 3, 0), Share(3, 50, 5, 49, 2, 1), Share(1, 30, 1, 30, 0, 2)]
    batch.append(Share(5, 90, 1, 86, 4, 2))
    # Three steps of one token, two of the other drafter, two look-ups and a quarter of the target's part.
    expected_s = 1.0 + 3 * 0.011 + 2 * 0.1 + (2 * 0.002 + 0.25 * 1.0)
    drafters = {0: step, 1: other, 2: lookup}
    assert IterationCost(verify, drafters, batch).duration_s == pytest.approx(expected_s)


def test_a_lonely_request_delays_nobody() -> None:
    simulation = ReferenceSimulation(lab(clients=1, requests=3), 1, price_delays=True)
    while simulation.next_decision() is not None:
        simulation.decide(Decision(4, 1, 0))
        assert all(request.delay_caused_s == 0.0 for request in simulation.newly_completed)


def test_long_drafts_on_shared_gpus_are_charged_for_what_they_cost_others() -> None:
    """Two requests in lockstep: the one that drafts 8 tokens pays for the other's wait."""
    scenario = lab(
        clients=2,
        requests=2,
        alpha=0.0,
        colocated_s=0.01,
        arrivals={"kind": "closed_loop", "think_s": {"distribution": "constant", "value": 1e-9}},
        episode__total_requests=2,
    )
    simulation = ReferenceSimulation(scenario, 1, price_delays=True)
    charges: dict[int, float] = {}
    while (view := simulation.next_decision()) is not None:
        simulation.decide(Decision(8 if view.request_id == 0 else 1, 2, 0))
        for request in simulation._episode.active.values():
            charges[request.number] = request.delay_caused_s
    table = simulation.requests_table()
    assert table["verifies"].tolist() == [100, 100]
    # Each of the 100 common iterations has a step of 10 ms that both share, and 7 for the first alone.
    assert charges[0] == pytest.approx(100 * 0.075, rel=0.05)
    assert charges[1] == pytest.approx(100 * 0.005, rel=0.05)


def test_nobody_is_charged_for_requests_that_are_away() -> None:
    """One drafts on its device for a second a round; the other's iterations meanwhile delay nobody."""
    scenario = lab(
        clients=2,
        requests=2,
        alpha=0.0,
        draft_s=1.0,
        colocated_s=0.01,
        output={"distribution": "constant", "value": 12},
        arrivals={"kind": "closed_loop", "think_s": {"distribution": "constant", "value": 1e-9}},
        episode__total_requests=2,
    )
    simulation = ReferenceSimulation(scenario, 1, price_delays=True)
    charges: dict[int, float] = {}
    while (view := simulation.next_decision()) is not None:
        away = view.request_id == 0 and not view.request.is_admission
        simulation.decide(Decision(1, 1, 1) if away else Decision(4, 1, 0))
        for request in simulation._episode.active.values():
            charges[request.number] = request.delay_caused_s
    # Request 1 is done after a dozen iterations of 70 ms, before the other's first drafts are there: what
    # it is charged for is at most the prefill that the two shared.
    assert charges[1] <= 2 * 0.04
