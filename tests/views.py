"""Decision views built by hand, and a strategy that draws them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from dsd_env.control import (
    CandidateView,
    DecisionView,
    DrafterView,
    LinkView,
    RequestView,
    Site,
    SystemView,
    TargetView,
)

GAMMAS = tuple(range(17))
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


def make_target(index: int = 0, **changes: Any) -> TargetView:
    target = TargetView(
        index=index,
        up=True,
        queued=0,
        running=0,
        resident=0,
        remaining_s=0.0,
        iteration_s=0.03,
        kv_fraction=0.1,
        waiting=0,
        max_num_seqs=128,
        max_batch_wait_s=0.004,
        token_s=1e-5,
        prefill_token_s=1e-4,
        age_s=0.0,
        plain=0,
        colocated=0,
        remote=0,
        gamma_mean=0.0,
        prefill_tokens=0,
    )
    return replace(target, **changes)


def make_candidate(
    site: Site = Site.COLOCATED, target: TargetView | None = None, **changes: Any
) -> CandidateView:
    colocated = site == Site.COLOCATED
    candidate = CandidateView(
        site=site,
        edge_server=0 if site == Site.EDGE_SERVER else -1,
        target=target or make_target(),
        valid=True,
        is_current=False,
        same_target=True,
        draft_step_s=0.003,
        catch_up_s=0.003,
        draft_wait_s=0.0,
        rtt_s=0.0 if colocated else 0.02,
        handover_s=0.0,
        kv_lag_tokens=1,
        move_s=0.0,
        shares_target=colocated,
    )
    return replace(candidate, **changes)


def make_request(**changes: Any) -> RequestView:
    request = RequestView(
        is_admission=False,
        control_site=Site.COLOCATED,
        prompt_tokens=200,
        committed_tokens=20,
        age_s=1.0,
        slo_ttft_s=1.0,
        slo_tpot_s=0.05,
        slo_itl_p99_s=0.2,
        slo_first_s=1.5,
        slo_per_token_s=0.04,
        ttft_s=0.3,
        tpot_s=0.03,
        rounds=5,
        acceptance_rate=0.6,
        tokens_per_round=2.5,
        recent_gammas=(4, 4, 4, 4),
        recent_accepted=(2, 3, 1, 4),
        last_confidence=0.7,
        head_start_tokens=0,
    )
    return replace(request, **changes)


def make_view(candidates: tuple[CandidateView, ...] | None = None, **changes: Any) -> DecisionView:
    """One target with the three draft sites, unless ``candidates`` says otherwise."""
    if candidates is None:
        target = make_target()
        candidates = tuple(make_candidate(site, target) for site in Site)
    view = DecisionView(
        now_s=10.0,
        request_id=7,
        device=2,
        counter=6,
        request=make_request(),
        target=candidates[0].target,
        link=LinkView(True, 0.02, 0.002, 2e7, 1e8, 0.0, 0.1),
        drafter=DrafterView(True, 0.012, 1, 0),
        candidates=candidates,
        system=SystemView(12, 3.0, 800.0, 0.9, 0.7),
        gammas=GAMMAS,
        batch_sizes=BATCH_SIZES,
    )
    return replace(view, **changes)


def _seconds(top: float = 1e4) -> st.SearchStrategy[float]:
    return st.floats(0.0, top, allow_nan=False)


def _count(top: int = 10**6) -> st.SearchStrategy[int]:
    return st.integers(0, top)


def _fraction() -> st.SearchStrategy[float]:
    return st.floats(0.0, 1.0)


def targets(index: int = 0) -> st.SearchStrategy[TargetView]:
    return st.builds(
        TargetView,
        index=st.just(index),
        up=st.booleans(),
        queued=_count(),
        running=_count(4096),
        resident=_count(4096),
        remaining_s=_seconds(),
        iteration_s=_seconds(),
        kv_fraction=_fraction(),
        waiting=_count(),
        max_num_seqs=st.just(4096),
        max_batch_wait_s=_seconds(1.0),
        token_s=_seconds(1.0),
        prefill_token_s=_seconds(1.0),
        age_s=_seconds(),
        plain=_count(),
        colocated=_count(),
        remote=_count(),
        gamma_mean=st.floats(0.0, 64.0),
        prefill_tokens=_count(),
    )


def requests() -> st.SearchStrategy[RequestView]:
    rounds = st.lists(st.tuples(st.integers(0, 64), st.integers(0, 64)), min_size=4, max_size=4)

    def build(pairs: list[tuple[int, int]], request: RequestView) -> RequestView:
        return replace(
            request,
            recent_gammas=tuple(drafted for drafted, _ in pairs),
            recent_accepted=tuple(min(pair) for pair in pairs),
        )

    base = st.builds(
        RequestView,
        is_admission=st.booleans(),
        control_site=st.sampled_from(Site),
        prompt_tokens=_count(),
        committed_tokens=_count(),
        age_s=_seconds(1e6),
        slo_ttft_s=st.floats(1e-3, 1e3),
        slo_tpot_s=st.floats(1e-3, 1e3),
        slo_itl_p99_s=st.floats(1e-3, 1e9),
        slo_first_s=st.floats(1e-3, 1e9),
        slo_per_token_s=st.floats(1e-3, 1e9),
        ttft_s=_seconds(1e6),
        tpot_s=_seconds(1e6),
        rounds=_count(),
        acceptance_rate=_fraction(),
        tokens_per_round=st.floats(0.0, 65.0),
        recent_gammas=st.just((0, 0, 0, 0)),
        recent_accepted=st.just((0, 0, 0, 0)),
        last_confidence=_fraction(),
        head_start_tokens=st.integers(0, 64),
        window_tokens=st.integers(0, 64),
        lead_tokens=st.integers(0, 64),
        generations=_count(),
        generation_age_s=_seconds(1e6),
        idle_share=_fraction(),
    )
    return st.builds(build, rounds, base)


@st.composite
def views(draw: st.DrawFn, n_targets: int = 2, n_edge_servers: int = 1) -> DecisionView:
    """Any view that the types allow, in the layout of the candidate list."""
    candidates: list[CandidateView] = []
    for index in range(n_targets):
        target = draw(targets(index))
        sites = [Site.COLOCATED, Site.OWN_DEVICE, *([Site.EDGE_SERVER] * n_edge_servers)]
        for position, site in enumerate(sites):
            candidates.append(
                CandidateView(
                    site=site,
                    edge_server=position - 2 if site == Site.EDGE_SERVER else -1,
                    target=target,
                    valid=draw(st.booleans()),
                    is_current=draw(st.booleans()),
                    same_target=index == 0,
                    draft_step_s=draw(_seconds()),
                    catch_up_s=draw(_seconds()),
                    draft_wait_s=draw(_seconds()),
                    rtt_s=draw(_seconds()),
                    handover_s=draw(_seconds()),
                    kv_lag_tokens=draw(_count()),
                    move_s=draw(_seconds()),
                    shares_target=site == Site.COLOCATED and draw(st.booleans()),
                    streams=site != Site.COLOCATED and draw(st.booleans()),
                    coalesces=site != Site.COLOCATED and draw(st.booleans()),
                    pooled_acceptance=draw(_fraction()),
                )
            )
    gammas = tuple(sorted({0} | draw(st.sets(st.integers(1, 64), max_size=8))))
    batch_sizes = tuple(sorted(draw(st.sets(st.integers(1, 4096), min_size=1, max_size=8))))
    return DecisionView(
        now_s=draw(_seconds(1e6)),
        request_id=draw(_count()),
        device=draw(_count()),
        counter=draw(_count()),
        request=draw(requests()),
        target=candidates[0].target,
        link=draw(
            st.builds(
                LinkView,
                st.booleans(),
                _seconds(),
                _seconds(),
                st.floats(1.0, 1e12),
                st.floats(1.0, 1e12),
                _fraction(),
                _seconds(1e6),
            )
        ),
        drafter=draw(st.builds(DrafterView, st.booleans(), _seconds(), _count(), _count())),
        candidates=tuple(candidates),
        system=draw(st.builds(SystemView, _count(), _seconds(1e9), _seconds(1e9), _fraction(), _fraction())),
        gammas=gammas,
        batch_sizes=batch_sizes,
    )
