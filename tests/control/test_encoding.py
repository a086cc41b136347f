"""The flat observation and the action lists."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsd_env.control import ActionSpace, Decision, DecisionView, ObservationEncoder, Site
from dsd_env.control.actions import snap, snap_up
from tests.views import make_candidate, make_request, make_target, make_view, views


@pytest.mark.parametrize("n_placements", [1, 2, 3, 6, 64])
def test_feature_names_are_unique_and_counted(n_placements: int) -> None:
    encoder = ObservationEncoder(n_placements)
    assert len(set(encoder.names)) == len(encoder.names) == len(encoder.features)
    assert encoder.low.shape == encoder.high.shape == (len(encoder.features),)
    assert encoder.low.dtype == encoder.high.dtype == np.float32
    one = len(ObservationEncoder(1).features)
    per_candidate = len(ObservationEncoder(2).features) - one
    assert len(encoder.features) == one + (n_placements - 1) * per_candidate


@given(view=views())
def test_encoding_stays_within_its_bounds(view: DecisionView) -> None:
    encoder = ObservationEncoder(len(view.candidates))
    observation = encoder.encode(view)
    assert observation.dtype == np.float32
    assert observation.shape == encoder.low.shape
    assert np.all(np.isfinite(observation))
    assert np.all(observation >= encoder.low)
    assert np.all(observation <= encoder.high)


def test_every_feature_reads_the_quantity_it_names() -> None:
    # Each raw value is set to something of its own; the scaled one must invert to it.
    target = make_target(
        queued=3,
        running=5,
        resident=9,
        remaining_s=0.01,
        kv_fraction=0.25,
        waiting=8,
        max_num_seqs=12,
        age_s=0.02,
        plain=2,
        colocated=3,
        remote=4,
        gamma_mean=2.5,
        prefill_tokens=700,
    )
    candidate = make_candidate(
        Site.OWN_DEVICE,
        target,
        is_current=True,
        draft_step_s=0.004,
        catch_up_s=0.005,
        draft_wait_s=0.006,
        rtt_s=0.007,
        handover_s=0.008,
        move_s=0.009,
        streams=True,
        coalesces=False,
        pooled_acceptance=0.72,
    )
    request = make_request(
        prompt_tokens=300,
        committed_tokens=21,
        age_s=2.5,
        ttft_s=0.25,
        tpot_s=0.02,
        recent_gammas=(1, 2, 3, 4),
        recent_accepted=(1, 0, 2, 3),
        head_start_tokens=2,
        window_tokens=6,
        lead_tokens=5,
        generations=7,
        generation_age_s=0.035,
        idle_share=0.15,
        control_site=Site.OWN_DEVICE,
    )
    view = make_view((make_candidate(Site.COLOCATED, target), candidate), request=request)
    encoder = ObservationEncoder(2)
    scaled = dict(zip(encoder.names, encoder.encode(view).astype(float), strict=True))
    feature_of = {feature.name: feature for feature in encoder.features}

    def raw(name: str) -> float:
        feature, value = feature_of[name], scaled[name]
        if feature.scale == "fraction":
            return value
        return feature.half * value / (1.0 - abs(value))

    expected = {
        "request.is_admission": 0.0,
        "request.control_at_target": 0.0,
        "request.control_at_device": 1.0,
        "request.control_at_edge_server": 0.0,
        "request.prompt_tokens": 300.0,
        "request.committed_tokens": 21.0,
        "request.context_tokens": 321.0,
        "request.age_s": 2.5,
        "request.slo_ttft_s": 1.0,
        "request.slo_tpot_s": 0.05,
        "request.slo_itl_p99_s": 0.2,
        "request.slo_per_token_s": 0.04,
        # 1.5 s for the first token, 21 more at 40 ms each, less the age of 2.5 s.
        "request.deadline_slack_s": 1.5 + 21 * 0.04 - 2.5,
        "request.ttft_slack": 0.75,
        "request.tpot_slack": 0.6,
        "request.rounds": 5.0,
        "request.acceptance_rate": 0.6,
        "request.tokens_per_round": 2.5,
        "request.recent_gamma_0": 1.0,
        "request.recent_gamma_3": 4.0,
        "request.recent_accepted_0": 1.0,
        "request.recent_accepted_2": 2.0,
        "request.last_confidence": 0.7,
        "request.head_start_tokens": 2.0,
        "request.window_tokens": 6.0,
        "request.lead_tokens": 5.0,
        "request.generations": 7.0,
        "request.generation_age_s": 0.035,
        "request.idle_share": 0.15,
        "target.queued": 3.0,
        "target.running": 5.0,
        "target.resident": 9.0,
        "target.remaining_s": 0.01,
        "target.iteration_s": 0.03,
        "target.kv_fraction": 0.25,
        "target.waiting": 8.0,
        "target.seat_fraction": 0.75,
        "target.plain": 2.0,
        "target.colocated": 3.0,
        "target.remote": 4.0,
        "target.gamma_mean": 2.5,
        "target.prefill_tokens": 700.0,
        "target.token_s": 1e-5,
        "target.prefill_token_s": 1e-4,
        "target.age_s": 0.02,
        "link.up": 1.0,
        "link.rtt_s": 0.02,
        "link.rtt_deviation_s": 0.002,
        "link.uplink_bits_per_s": 2e7,
        "link.downlink_bits_per_s": 1e8,
        "link.loss": 0.0,
        "link.age_s": 0.1,
        "drafter.available": 1.0,
        "drafter.step_s": 0.012,
        "drafter.kv_lag_tokens": 1.0,
        "drafter.jobs": 0.0,
        "candidate_0.colocated": 1.0,
        "candidate_0.own_device": 0.0,
        "candidate_0.is_current": 0.0,
        "candidate_1.valid": 1.0,
        "candidate_1.is_current": 1.0,
        "candidate_1.same_target": 1.0,
        "candidate_1.colocated": 0.0,
        "candidate_1.own_device": 1.0,
        "candidate_1.draft_step_s": 0.004,
        "candidate_1.catch_up_s": 0.005,
        "candidate_1.draft_wait_s": 0.006,
        "candidate_1.rtt_s": 0.007,
        "candidate_1.handover_s": 0.008,
        "candidate_1.move_s": 0.009,
        "candidate_1.target_queued": 3.0,
        "candidate_1.target_resident": 9.0,
        "candidate_1.target_colocated": 3.0,
        "candidate_1.target_remote": 4.0,
        "candidate_1.target_prefill_tokens": 700.0,
        "candidate_1.target_iteration_s": 0.03,
        "candidate_0.streams": 0.0,
        "candidate_0.coalesces": 1.0,
        "candidate_1.streams": 1.0,
        "candidate_1.coalesces": 0.0,
        "candidate_1.pooled_acceptance": 0.72,
        "system.active_requests": 12.0,
        "system.arrivals_per_s": 3.0,
        "system.tokens_per_s": 800.0,
        "system.own_attainment": 0.9,
        "system.others_attainment": 0.7,
    }
    for name, value in expected.items():
        assert raw(name) == pytest.approx(value, rel=1e-5, abs=1e-9), name


@given(view=views(), wait=st.floats(0.0, 1e3), more=st.floats(1e-3, 1e3))
def test_squashing_is_monotone(view: DecisionView, wait: float, more: float) -> None:
    encoder = ObservationEncoder(len(view.candidates))
    index = encoder.names.index("request.age_s")
    earlier = encoder.encode(replace(view, request=replace(view.request, age_s=wait)))[index]
    later = encoder.encode(replace(view, request=replace(view.request, age_s=wait + more)))[index]
    assert later >= earlier


@given(view=views())
def test_mask_offers_a_valid_action_in_every_dimension(view: DecisionView) -> None:
    space = ActionSpace(view.gammas, view.batch_sizes, len(view.candidates))
    mask = space.mask(view)
    n_gamma, n_batch, n_placement = space.nvec
    assert mask.dtype == np.bool_
    assert mask.shape == (n_gamma + n_batch + n_placement,)
    gammas, batches, placements = np.split(mask, (n_gamma, n_gamma + n_batch))
    assert gammas[0]
    assert batches.any()
    assert placements[0]
    assert list(placements[1:]) == [candidate.valid for candidate in view.candidates[1:]]
    if not any(candidate.valid for candidate in view.candidates):
        assert not gammas[1:].any()


@given(view=views(), data=st.data())
def test_actions_and_decisions_translate_both_ways(view: DecisionView, data: st.DataObject) -> None:
    space = ActionSpace(view.gammas, view.batch_sizes, len(view.candidates))
    action = [data.draw(st.integers(0, size - 1)) for size in space.nvec]
    decision = space.decode(action)
    assert decision == Decision(view.gammas[action[0]], view.batch_sizes[action[1]], action[2])
    assert space.encode(decision).tolist() == action


@pytest.mark.parametrize("action", [[0, 0], [17, 0, 0], [0, 8, 0], [0, 0, 3], [-1, 0, 0]])
def test_actions_outside_the_space_are_refused(action: list[int]) -> None:
    with pytest.raises(ValueError, match="action"):
        ActionSpace(tuple(range(17)), (1, 2, 4, 8, 16, 32, 64, 128), 3).decode(action)


def test_decisions_off_the_lists_are_refused() -> None:
    space = ActionSpace((0, 2, 4), (1, 8), 2)
    with pytest.raises(ValueError, match="not on the lists"):
        space.encode(Decision(3, 8, 0))
    with pytest.raises(ValueError, match="placement"):
        space.encode(Decision(2, 8, 2))


@given(values=st.sets(st.integers(0, 100), min_size=1), wanted=st.floats(-10.0, 200.0))
def test_snapping(values: set[int], wanted: float) -> None:
    listed = sorted(values)
    below = [value for value in listed if value <= wanted]
    above = [value for value in listed if value >= wanted]
    assert snap(listed, wanted) == (below[-1] if below else listed[0])
    assert snap_up(listed, wanted) == (above[0] if above else listed[-1])
