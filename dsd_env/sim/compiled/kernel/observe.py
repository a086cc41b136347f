"""The view of a due decision: what its controller knows, written where features are gathered from."""
# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

from __future__ import annotations

import math

import numpy as np

from dsd_env.control.view import RECENT_ROUNDS
from dsd_env.laws import reports, resolve, slo, view
from dsd_env.laws.constants import ACCEPTANCE_PRIOR, TOKENS_PER_ROUND_PRIOR
from dsd_env.sim.compiled.codes import DRAFTS_ALONE, DRAFTS_SHARED, HEAD, LOOKUP, MODEL, NO_DRAFTER
from dsd_env.sim.compiled.kernel.drafters import can_stream, host_of, step_s, valid_tokens
from dsd_env.sim.compiled.kernel.jit import compile_laws, jit
from dsd_env.sim.compiled.kernel.links import (
    COLOCATED,
    DOWN,
    EDGE_DOWN,
    EDGE_SERVER,
    EDGE_UP,
    OWN_DEVICE,
    UP,
    backhaul,
    bits_per_s,
    one_way_s,
    own_jobs,
    seems_up,
)
from dsd_env.sim.compiled.kernel.streams import known_tokens, stream_of
from dsd_env.sim.compiled.kernel.telemetry import drafter_report, drafter_wait_s, newest, report_target

compile_laws(resolve, slo, view)

BELIEVED_DOWN = 1e12
"""Added to the load of a target believed down: those come last."""


@jit
def observe(k, w, request):
    """Write the view of a request's decision."""
    v, site = w.due_view, request.site
    delay_s = 0.0
    if site == OWN_DEVICE:
        delay_s = one_way_s(w, 4 * request.device + DOWN)
    elif site == EDGE_SERVER:
        delay_s = one_way_s(w, backhaul(k, request.at, 0) + 1)
    else:
        delay_s = k.targets[request.at].extra_one_way_s
    w.visible_s = w.now_s - delay_s
    latest = newest(k, w, w.visible_s)
    _offer_targets(k, w, request, latest)
    for i in range(k.n_offered):
        _view_target(k, w, request, w.target_views[i], latest)
    if site == OWN_DEVICE:
        request.own_jobs = own_jobs(k, w, request.device)
    v.now_s, v.request_id, v.device, v.counter = w.now_s, request.number, request.device, request.decisions
    _view_request(k, v.request, w, request)
    _view_link(k, w, v.link, request)
    _view_drafter(k, w, v.drafter, request)
    rates, system = w.rates[latest], v.system
    system.arrivals_per_s, system.tokens_per_s = rates.arrivals_per_s, rates.tokens_per_s
    active = 0
    for target in range(k.n_targets):
        active += w.reports[target * k.ring + _newest_of(k, w, target, latest)].resident
    system.active_requests = active
    own = k.kinds[request.kind].slo_class
    system.own_attainment = w.attainments[latest * k.n_classes + own]
    others = 1.0
    for n in range(k.n_classes):
        if n != own:
            others = min(others, w.attainments[latest * k.n_classes + n])
    system.others_attainment = others if k.n_classes > 1 else system.own_attainment
    if k.edges_ordered:
        _offer_edges(k, w, request, latest)
    for i in range(k.n_offered):
        _candidates(k, w, request, i, latest)


@jit
def _newest_of(k, w, target, latest):
    """Return the place of a target's newest reports in the rings: of a far one, they take longer."""
    extra_s = k.targets[target].extra_one_way_s
    return latest if extra_s == 0.0 else newest(k, w, w.visible_s - extra_s)


@jit
def _view_request(k, v, w, request):
    committed, site, bounds = known_tokens(w, request), request.site, k.kinds[request.kind]
    v.is_admission = 1.0 if request.target < 0 else 0.0
    v.control_site = site
    v.control_at_target = 1.0 if site == COLOCATED else 0.0
    v.control_at_device = 1.0 if site == OWN_DEVICE else 0.0
    v.control_at_edge_server = 1.0 if site == EDGE_SERVER else 0.0
    v.prompt_tokens, v.committed_tokens, v.context_tokens = (
        request.prompt_tokens,
        committed,
        _known_context_tokens(w, request),
    )
    v.age_s = w.now_s - request.arrival_s
    v.slo_ttft_s, v.slo_tpot_s = request.slo_ttft_s, request.slo_tpot_s
    v.slo_itl_p99_s, v.slo_first_s = bounds.slo_itl_p99_s, bounds.slo_first_s
    v.slo_per_token_s = bounds.slo_per_token_s
    v.deadline_slack_s = slo.deadline_slack_s(v.age_s, committed, v.slo_first_s, v.slo_per_token_s)
    v.ttft_s = request.first_commit_s - request.arrival_s if committed > 0 else 0.0
    commit_s = stream_of(w, request).known_commit_s if request.streams else request.last_commit_s
    v.tpot_s = view.time_per_token_s(request.first_commit_s, commit_s, committed)
    v.ttft_slack = view.ttft_slack(v.ttft_s, v.age_s, v.slo_ttft_s)
    v.tpot_slack = view.tpot_slack(v.tpot_s, v.slo_tpot_s)
    v.rounds, v.acceptance_rate = request.rounds, request.acceptance_rate
    v.tokens_per_round, v.last_confidence = request.tokens_per_round, request.last_confidence
    for i in range(RECENT_ROUNDS):
        v.recent_gammas[i] = request.recent_gammas[i]
        v.recent_accepted[i] = request.recent_accepted[i]
    v.head_start_tokens = max(0, request.head_tokens - 1) if request.head_drafter >= 0 else 0
    _view_stream(v, w, request)


@jit
def _view_stream(v, w, request):
    v.window_tokens = v.lead_tokens = v.generations = v.generation_age_s = 0.0
    v.idle_share = request.idle_share
    if request.streams:
        stream = stream_of(w, request)
        v.window_tokens, v.lead_tokens = stream.window, stream.drafted - stream.known
        v.generations, v.generation_age_s = stream.generation, w.now_s - stream.started_s


@jit
def _known_context_tokens(w, request):
    """Return the length of a request's context, as far as its controller knows it."""
    return request.prompt_tokens + known_tokens(w, request)


@jit
def _lag_tokens(k, w, request, drafter):
    """Return how many of its tokens a drafter has not processed."""
    return _known_context_tokens(w, request) - valid_tokens(k, w, request, drafter)


@jit
def _view_link(k, w, v, request):
    device, spec = w.devices[request.device], k.devices[request.device]
    first = 4 * request.device
    # Whoever decides knows the queue of the direction that it sends to.
    v.up = 1.0 if seems_up(k, w, first + (UP if request.site == OWN_DEVICE else DOWN)) else 0.0
    v.rtt_s = device.rtt_s + 2.0 * k.targets[int(w.target_views[0].index)].extra_one_way_s
    v.rtt_deviation_s, v.loss = device.rtt_deviation_s, device.loss
    v.uplink_bits_per_s = bits_per_s(k, w, first + UP, spec.uplink_bits_per_s)
    v.downlink_bits_per_s = bits_per_s(k, w, first + DOWN, spec.downlink_bits_per_s)
    v.age_s = reports.sample_age_s(w.now_s, device.rtt_sample_s)


@jit
def _view_drafter(k, w, v, request):
    """The drafter on the request's own device."""
    n, context = request.device, _known_context_tokens(w, request)
    v.available = 1.0 if _fits(k, n, context) else 0.0
    v.step_s, v.kv_lag_tokens, v.jobs = 0.0, context, 0.0
    if k.drafters[n].mode != NO_DRAFTER:
        v.step_s = step_s(k, w, n, 1, context, 0)
        v.kv_lag_tokens = 1 if k.drafters[n].kind == LOOKUP else _lag_tokens(k, w, request, n)
        v.jobs = request.own_jobs


@jit
def _fits(k, n, context):
    spec = k.drafters[n]
    return spec.mode == DRAFTS_ALONE and view.fits(context, k.gamma_max, spec.kv_capacity_tokens)


# ---------------------------------------------------------------------- targets on offer


@jit
def _is_offered(w, n, target):
    for i in range(n):  # noqa: SIM110 - compiled code has no generators
        if w.target_views[i].index == target:
            return True
    return False


@jit
def _offer_targets(k, w, request, latest):
    """Choose the targets of the candidate list: the current one, then the least loaded."""
    n = 0
    if request.target >= 0:
        w.target_views[0].index = request.target
        n = 1
    while n < k.n_offered:
        best, best_load = -1, math.inf
        for target in range(k.n_targets):
            report = w.reports[target * k.ring + _newest_of(k, w, target, latest)]
            load = report.resident + (0.0 if report.up else BELIEVED_DOWN)
            if load < best_load and not _is_offered(w, n, target):
                best, best_load = target, load
        w.target_views[n].index = best
        n += 1


@jit
def _view_target(k, w, request, v, latest):
    """Write what is known of an offered target: its state here, else the newest report that has come."""
    target = int(v.index)
    report = w.reports[target * k.ring + _newest_of(k, w, target, latest)]
    if request.target == target and request.has_report and request.report.time_s > report.time_s:
        report = request.report
    if request.site == COLOCATED and request.at == target:
        report = w.scratch
        report_target(k, w, target, report)
    spec = k.targets[target]
    v.up = 1.0 if report.up else 0.0
    v.queued, v.running, v.resident = report.queued, report.running, report.resident
    v.remaining_s, v.iteration_s, v.kv_fraction = report.remaining_s, report.iteration_s, report.kv_fraction
    v.waiting, v.max_num_seqs, v.token_s = report.waiting, spec.max_num_seqs, report.token_s
    v.seat_fraction = report.resident / spec.max_num_seqs
    v.max_batch_wait_s, v.prefill_token_s = spec.max_batch_wait_s, spec.prefill_token_s
    v.age_s = w.now_s - report.time_s
    v.plain, v.colocated, v.remote = report.plain, report.colocated, report.remote
    v.gamma_mean, v.prefill_tokens = report.gamma_mean, report.prefill_tokens


# ---------------------------------------------------------------------- edge servers on offer


@jit
def _offer_edges(k, w, request, latest):
    """Order the edge servers on offer: the current one, then by when a next draft there would come."""
    n, current = 0, -1
    if request.drafted_at >= 0:
        current = request.drafted_at % k.n_sites - k.n_devices
    for edge in range(k.n_edges):
        drafter = k.n_devices + edge
        report = drafter_report(k, w, drafter, latest)
        draft_s = report.wait_s + _shared_step_s(k, w, request, drafter, report.jobs, 1)
        order = 2
        if edge == current:
            order = 0
        elif report.up:
            order = 1
        # Sorted by insertion, of which only the first places are kept; equals stay in order of number.
        at = n
        while at > 0 and _comes_before(order, draft_s, w.edges_offered[at - 1]):
            if at < k.n_edges_offered:
                earlier, later = w.edges_offered[at - 1], w.edges_offered[at]
                later.edge_server, later.order = earlier.edge_server, earlier.order
                later.draft_s = earlier.draft_s
            at -= 1
        if at < k.n_edges_offered:
            new = w.edges_offered[at]
            new.edge_server, new.order, new.draft_s = edge, order, draft_s
        n = min(n + 1, k.n_edges_offered)


@jit
def _comes_before(order, draft_s, other):
    return order < other.order or (order == other.order and draft_s < other.draft_s)


@jit
def _shared_step_s(k, w, request, n, jobs, step_tokens):
    """Return the time of a draft step at an edge server, all contexts being as long as the request's."""
    together = min(jobs + 1, k.drafters[n].concurrency)
    return step_s(k, w, n, together * step_tokens, together * _known_context_tokens(w, request), 0)


# ---------------------------------------------------------------------- candidates


@jit
def drafter_at(k, place, device, edge, target):
    """Return the number of a place's drafter, which is on the device, the edge server or at the target."""
    drafter = k.n_devices + k.n_edges + target
    if place.site == OWN_DEVICE:
        drafter = device
    elif place.site == EDGE_SERVER:
        drafter = k.n_devices + edge
    return drafter + place.rank * k.n_sites


@jit
def _candidates(k, w, request, i, latest):
    """Write the candidates at one offered target: at it, on the own device, on each edge server."""
    at_target = w.target_views[i]
    target, context = int(at_target.index), _known_context_tokens(w, request)
    same = request.target == target
    move_s = 0.0
    if not same and request.target >= 0:
        move_s = context * k.targets[target].prefill_token_s
    places = k.n_places // k.n_offered
    for at in range(places):
        c, place = w.candidates[i * places + at], k.places[at]
        site, edge = place.site, place.edge_server
        if k.edges_ordered and site == EDGE_SERVER:
            edge = w.edges_offered[edge].edge_server
        number = target
        if site == OWN_DEVICE:
            number = request.device
        elif site == EDGE_SERVER:
            number = edge
        drafter = drafter_at(k, place, request.device, edge, target)
        lag = _lag_tokens(k, w, request, drafter)
        fanout, streams = place.fanout, can_stream(k, drafter)
        step_tokens = 1 + (fanout * k.depth if streams else 0)
        if site == COLOCATED:
            can_draft = _at_target(k, w, request, c, drafter, target, context, lag, latest, step_tokens)
        elif site == OWN_DEVICE:
            can_draft = _on_device(k, w, request, c, drafter, target, context, lag, step_tokens)
        else:
            can_draft = _at_edge(k, w, request, c, drafter, edge, target, context, lag, latest, step_tokens)
        can_draft = can_draft and (streams or fanout == 0 or not k.offers_branches)
        c.site, c.edge_server, c.offered = site, edge, i
        c.colocated = 1.0 if site == COLOCATED else 0.0
        c.own_device = 1.0 if site == OWN_DEVICE else 0.0
        c.valid = 1.0 if can_draft and at_target.up != 0.0 else 0.0
        is_current = same and request.drafted_at == drafter
        if k.offers_branches:
            is_current = is_current and request.drafted_branches == (fanout > 0)
        c.is_current = 1.0 if is_current else 0.0
        c.fanout, c.depth = fanout, k.depth if fanout > 0 else 0
        c.same_target = 1.0 if same else 0.0
        c.handover_s = _handover_s(k, w, request, site, number, edge)
        c.kv_lag_tokens, c.move_s = lag, move_s
        c.drafter, c.drafter_number = place.rank, drafter
        _tell_of_drafter(k, w, request, c, drafter, latest)
        c.target_queued, c.target_iteration_s = at_target.queued, at_target.iteration_s
        c.target_resident, c.target_prefill_tokens = at_target.resident, at_target.prefill_tokens
        c.target_colocated, c.target_remote = at_target.colocated, at_target.remote


@jit
def _tell_of_drafter(k, w, request, c, drafter, latest):
    """Write what is known of a candidate's drafter whatever its site."""
    spec = k.drafters[drafter]
    c.streams, c.coalesces = 0.0, 1.0 - c.shares_target
    if spec.mode == NO_DRAFTER:
        c.kind, c.model, c.is_head, c.is_lookup = MODEL, -1, 0.0, 0.0
        c.acceptance_rate, c.tokens_per_round, c.model_rounds = ACCEPTANCE_PRIOR, TOKENS_PER_ROUND_PRIOR, 0
        c.pooled_acceptance = ACCEPTANCE_PRIOR
        return
    c.kind, c.model = spec.kind, spec.model
    c.is_head = 1.0 if spec.kind == HEAD else 0.0
    c.is_lookup = 1.0 if spec.kind == LOOKUP else 0.0
    if spec.kind == LOOKUP:
        c.kv_lag_tokens = 1
    learned = w.learned[k.n_models * request.slot + spec.model]
    c.acceptance_rate, c.tokens_per_round = learned.acceptance_rate, learned.tokens_per_round
    c.model_rounds = learned.model_rounds
    c.pooled_acceptance = w.acceptances[latest * k.n_models + spec.model]
    if can_stream(k, drafter):
        c.streams = 1.0
        if not k.stream_waits:
            c.coalesces = 0.0


@jit
def _write_drafter(c, draft_step_s, catch_up_s, draft_wait_s, rtt_s, shares_target):
    c.draft_step_s, c.catch_up_s, c.draft_wait_s, c.rtt_s = draft_step_s, catch_up_s, draft_wait_s, rtt_s
    c.shares_target = shares_target


@jit
def _steps(k, w, n, context, lag, step_tokens):
    """Return the times of a draft step and of the first one, which catches up; 0 without a drafter."""
    if k.drafters[n].mode == NO_DRAFTER:
        return 0.0, 0.0
    return step_s(k, w, n, step_tokens, context, 0), step_s(k, w, n, lag, context, context if lag > 1 else 0)


@jit
def _at_target(k, w, request, c, n, target, context, lag, latest, step_tokens):
    mode = k.drafters[n].mode
    draft_step_s, catch_up_s = _steps(k, w, n, context, lag, step_tokens)
    wait_s = 0.0
    if mode == DRAFTS_ALONE:
        if request.site == COLOCATED and request.at == target:
            wait_s = drafter_wait_s(k, w, n)
        else:
            wait_s = drafter_report(k, w, n, _newest_of(k, w, target, latest)).wait_s
    _write_drafter(c, draft_step_s, catch_up_s, wait_s, 0.0, 1.0 if mode == DRAFTS_SHARED else 0.0)
    return mode != NO_DRAFTER


@jit
def _on_device(k, w, request, c, n, target, context, lag, step_tokens):
    draft_step_s, catch_up_s = _steps(k, w, n, context, lag, step_tokens)
    wait_s = 0.0
    if k.drafters[n].mode != NO_DRAFTER:
        mean_job_s = host_of(k, w, n).mean_job_s
        wait_s = reports.busy_drafter_wait_s(request.own_jobs, k.drafters[n].concurrency, mean_job_s)
    rtt_s = w.devices[request.device].rtt_s + 2.0 * k.targets[target].extra_one_way_s
    _write_drafter(c, draft_step_s, catch_up_s, wait_s, rtt_s, 0.0)
    return _fits(k, n, context)


@jit
def _at_edge(k, w, request, c, n, edge, target, context, lag, latest, step_tokens):
    rtt_s = 2.0 * one_way_s(w, backhaul(k, edge, target)) + 2.0 * k.targets[target].extra_one_way_s
    if k.drafters[n].mode == NO_DRAFTER:
        _write_drafter(c, 0.0, 0.0, 0.0, rtt_s, 0.0)
        return False
    report = drafter_report(k, w, n, latest)
    together = min(report.jobs + 1, k.drafters[n].concurrency)
    draft_step_s = _shared_step_s(k, w, request, n, report.jobs, step_tokens)
    catch_up_s = step_s(k, w, n, lag + together - 1, together * context, context if lag > 1 else 0)
    _write_drafter(c, draft_step_s, catch_up_s, report.wait_s, rtt_s, 0.0)
    return report.up and k.devices[request.device].has_edge_link and _fits(k, n, context)


@jit
def _handover_s(k, w, request, site, number, edge):
    """Return the expected one-way delay of moving control to a place."""
    at_site, at = request.site, request.at
    if at_site == site and at == number:
        return 0.0
    first = 4 * request.device
    half_rtt_s = 0.5 * w.devices[request.device].rtt_s
    to_edge_s, from_edge_s, backhaul_s = 0.0, 0.0, 0.0
    leaving_s = k.targets[at].extra_one_way_s if at_site == COLOCATED else 0.0
    reaching_s = k.targets[number].extra_one_way_s if site == COLOCATED else 0.0
    if k.devices[request.device].has_edge_link:
        to_edge_s, from_edge_s = one_way_s(w, first + EDGE_UP), one_way_s(w, first + EDGE_DOWN)
    if at_site == EDGE_SERVER and site == COLOCATED:
        backhaul_s = one_way_s(w, backhaul(k, at, number))
    elif at_site == COLOCATED and site == EDGE_SERVER:
        backhaul_s = one_way_s(w, backhaul(k, edge, at) + 1)
    return view.handover_s(
        at_site, at, site, number, half_rtt_s, to_edge_s, from_edge_s, backhaul_s, leaving_s, reaching_s
    )


# ---------------------------------------------------------------------- observation and mask


@jit
def encode(k, w, observation):
    """Write the observation: the features' raw values gathered from the view, then scaled."""
    # Two loops, so that the second one handles several features at a time; where things lie is read before,
    # since to the compiler the stores might change it.
    n, view, source, raw = k.n_features, w.due_view_numbers, k.feature_source, w.raw_features
    for i in range(n):
        raw[i] = view[source[i]]
    squashes, half = k.feature_squashes, k.feature_half
    for i in range(n):
        x = raw[i]
        observation[i] = np.float32(x / (abs(x) * squashes[i] + half[i]))


@jit
def batch_matters(w, candidate, drafts):
    """Return whether a batch size has an effect at a candidate."""
    up = w.target_views[int(candidate.offered)].up != 0.0
    enters = up and candidate.same_target == 0.0
    return resolve.batch_matters(enters, drafts, candidate.coalesces != 0.0)


@jit
def write_mask(k, w, mask):
    """Write which actions are valid."""
    gammas, batches = k.n_gammas, k.n_batches
    some = False
    for i in range(k.n_places):
        valid = w.candidates[i].valid != 0.0
        some = some or valid
        mask[gammas + batches + i] = valid or i == 0
    for i in range(gammas):
        mask[i] = some or i == 0
    largest = 1
    for i in range(k.n_places):
        candidate = w.candidates[i]
        if batch_matters(w, candidate, candidate.valid != 0.0):
            largest = max(largest, int(w.target_views[int(candidate.offered)].max_num_seqs))
    for i in range(batches):
        mask[gammas + i] = i == 0 or k.batch_sizes[i] <= largest


# ---------------------------------------------------------------------- what becomes of a decision


@jit
def taken(k, w, placement):
    """Return the candidate that is taken: the one asked for, or the same place at a target that is up."""
    if w.target_views[int(w.candidates[placement].offered)].up == 0.0:
        places = k.n_places // k.n_offered
        for i in range(k.n_offered):
            if w.target_views[i].up != 0.0:
                return i * places + placement % places
    return placement


@jit
def resolved(k, w, gamma, batch_size, placement):
    """Return (candidate, target, gamma, batch size, reason) of a decision as it will be executed."""
    place = taken(k, w, placement)
    candidate, moved = w.candidates[place], place != placement
    target = int(w.target_views[int(candidate.offered)].index)
    limit = k.targets[target].max_num_seqs
    gamma, batch_size, reason = resolve.resolved(gamma, batch_size, moved, candidate.valid != 0.0, limit)
    return candidate, target, gamma, batch_size, reason


@jit
def flat_mask(k, w, padding, mask):
    """Write which flat actions are executed as given, of a list of candidates filled up by `padding`."""
    row = k.n_places + padding
    size = k.n_batches * row
    # Resolving asks of gamma only whether it is 0.
    for i in range(min(k.n_gammas, 2)):
        for j in range(k.n_batches):
            for place in range(row):
                valid = False
                if place < k.n_places:
                    executed = resolved(k, w, k.gammas[i], k.batch_sizes[j], place)
                    valid = executed[4] == resolve.AS_GIVEN and (
                        j == 0 or batch_matters(w, executed[0], i > 0)
                    )
                mask[i * size + j * row + place] = valid
    for i in range(2, k.n_gammas):
        for place in range(size):
            mask[i * size + place] = mask[size + place]
