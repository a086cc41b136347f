"""The protocol of a request: prefill, then rounds of decide, draft, verify, deliver, at the place decided on.

Control is at one place at a time: on the device, at an edge server or at a target. A round begins by moving
it to where the round begins.
"""
# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

from __future__ import annotations

from dsd_env.sim.compiled.codes import AHEAD_JOB, JOBS, WARM_JOB
from dsd_env.sim.compiled.kernel.arrivals import think
from dsd_env.sim.compiled.kernel.batching import (
    JOB_COLOCATED,
    JOB_PLAIN,
    JOB_PREFILL,
    JOB_STREAM,
    JOB_VERIFY,
)
from dsd_env.sim.compiled.kernel.drafters import (
    LAST,
    context_tokens,
    discard_head_start,
    draft_ahead,
    draft_ended,
    draft_window,
    drafts_shared,
    lag_tokens,
    queue_job,
    request_of,
    set_valid_tokens,
    settle_ahead,
    valid_tokens,
)
from dsd_env.sim.compiled.kernel.events import (
    AT_DELIVERY,
    ENTITY_MASK,
    IS_ACK,
    IS_DRAFTS,
    IS_DUPLICATE,
    IS_MESSAGE,
    IS_RESULT,
    IS_TIMED_TOKENS,
    IS_WARM_UP,
    KIND_MASK,
    LOG_DECISION,
    LOG_DUPLICATE,
    LOG_LATE,
    SLOT_BITS,
    SLOT_MASK,
    is_live,
    log,
    push,
    tag,
)
from dsd_env.sim.compiled.kernel.jit import jit, number
from dsd_env.sim.compiled.kernel.links import (
    COLOCATED,
    EDGE_SERVER,
    EDGE_UP,
    OWN_DEVICE,
    acknowledge,
    count_bytes,
    measure_round_trip,
    send,
    send_backhaul,
    send_down,
    send_edge,
    send_up,
    take_ack,
)
from dsd_env.sim.compiled.kernel.requests import (
    FOR_DEDICATED_DRAFTS,
    FOR_DETECTION,
    FOR_EDGE_DRAFTS,
    FOR_EDGE_DRAFTS_UP,
    FOR_EDGE_RESULT,
    FOR_FIRST_TOKEN,
    FOR_LAST_TOKEN,
    FOR_LATENCY,
    FOR_MOVE,
    FOR_NOTICE,
    FOR_PREFILL,
    FOR_PROMPT_UP,
    FOR_RESULT,
    FOR_RESULT_AT_DEVICE,
    FOR_RESULT_AT_EDGE,
    FOR_SEAT,
    FOR_STREAM,
    FOR_WARM_DRAFTER,
    abandon,
    ask,
    complete,
    finished,
    free,
    next_round,
    prefill_elsewhere,
    reconnect,
    serve,
    travel,
    wait_until,
)
from dsd_env.sim.compiled.kernel.stopping import copy_stop, drafts_made
from dsd_env.sim.compiled.kernel.streams import (
    chunk_drafted,
    close_stream,
    go_on,
    open_stream,
    stop_stream,
    stream_of,
    take_message,
    take_result,
    uses_stream,
)
from dsd_env.sim.compiled.kernel.targets import close_seat, note_drafts
from dsd_env.sim.compiled.kernel.telemetry import report_target
from dsd_env.sim.compiled.kernel.timers import expect_drafts, expect_result

THEN_DECIDE, THEN_DRAFT, THEN_DRAFT_AT_TARGET, THEN_DECODE, THEN_STREAM = (number(then) for then in range(5))
"""What a request does once control has moved."""


# ---------------------------------------------------------------------- a decision and what it opens


@jit
def decided(k, w, request):
    """The answer to a decision has come."""
    request.decisions += 1
    log(k, w, LOG_DECISION, request.to_target, request.number, request.gamma)
    if k.decision_latency_s > 0.0:
        wait_until(k, w, request, w.now_s + k.decision_latency_s, FOR_LATENCY)
    else:
        _act(k, w, request)


@jit
def _act(k, w, request):
    if request.streams:
        _renew(k, w, request)
        return
    if request.committed == 0:
        _prefill(k, w, request)
        return
    request.rounds += 1
    _carry_out(k, w, request)


@jit
def _carry_out(k, w, request):
    if uses_stream(k, request):
        request.moves = request.to_target != request.target
        tokens = context_tokens(request) if request.moves else 0
        _move_control(k, w, request, COLOCATED, request.to_target, tokens, THEN_STREAM)
        return
    if request.head_drafter >= 0 and request.head_drafter != request.drafter:
        discard_head_start(k, w, request)
    request.moves = request.to_target != request.target
    context = context_tokens(request)
    site = request.draft_site
    if request.gamma == 0 or site == COLOCATED:
        then = THEN_DECODE if request.gamma == 0 else THEN_DRAFT_AT_TARGET
        _move_control(k, w, request, COLOCATED, request.to_target, context if request.moves else 0, then)
        return
    place = request.device if site == OWN_DEVICE else request.edge_server
    lag = lag_tokens(k, w, request, request.drafter)
    _move_control(k, w, request, site, place, min(lag, context), THEN_DRAFT)


# ---------------------------------------------------------------------- streams


@jit
def _renew(k, w, request):
    """Carry out a decision that was taken at the drafter of a stream."""
    stream = stream_of(w, request)
    stream.deciding = False
    request.rounds += 1
    request.waits_for = FOR_STREAM
    same = request.gamma > 0 and request.drafter == stream.drafter
    if same and request.to_target == stream.target:
        stream.window, stream.batch_size = request.gamma, request.batch_size
        copy_stop(k, stream, request)
        stream.branches = request.drafted_branches = request.branches
        go_on(k, w, request, LAST)
    else:
        request.waits_for = FOR_SEAT
        close_stream(k, w, request)


@jit
def _take_seat(k, w, request, prefill):
    """Queue the job of a stream at its target."""
    serve(k, w, request, request.to_target, JOB_STREAM, 0, prefill, False, FOR_STREAM)


@jit
def _drafts_arrive(k, w, request):
    """A message of a stream has come to its target."""
    closes, was_full = take_message(k, w, request)
    if closes:
        close_seat(k, w, request)
        return
    note_drafts(k, w, request)
    if was_full:
        go_on(k, w, request, LAST)


@jit
def _seat_closed(k, w, request):
    """A stream is closed: control is at the target, and the decision that closed it is carried out."""
    stop_stream(k, w, request)
    request.site, request.at = COLOCATED, request.target
    _carry_out(k, w, request)


# ---------------------------------------------------------------------- prefill


@jit
def _prefill(k, w, request):
    """Send the prompt to the target; a drafter elsewhere prefills along."""
    request.sent_s = w.now_s
    arrives_s = send_up(k, w, request, request.to_target, request.prompt_tokens * k.bytes_per_token)
    travel(k, w, request, arrives_s + k.targets[request.to_target].front_end_s, FOR_PROMPT_UP)
    elsewhere = request.gamma > 0 and request.draft_site != COLOCATED
    if elsewhere and request.warming < 0 and valid_tokens(k, w, request, request.drafter) == 0:
        _warm_up(k, w, request)


@jit
def _warm_up(k, w, request):
    request.warming = request.drafter
    if request.draft_site == EDGE_SERVER:
        size = k.header_bytes + request.prompt_tokens * k.bytes_per_token
        arrives_s = send(k, w, 4 * request.device + EDGE_UP, size)
        count_bytes(k, w, size, request.device)
        push(k, w, arrives_s, AT_DELIVERY, request.number, tag(request, IS_WARM_UP))
    else:
        _queue_warm_up(k, w, request)


@jit
def _queue_warm_up(k, w, request):
    prompt = request.prompt_tokens
    queue_job(
        k, w, w.jobs[JOBS * request.slot + WARM_JOB], request.warming, 0, prompt, prompt, 0, False, LAST
    )


@jit
def _warmed(k, w, request):
    """A drafter has prefilled a prompt."""
    set_valid_tokens(k, w, request, request.warming, request.prompt_tokens)
    request.warming = -1
    if request.waits_warm:
        request.waits_warm = False
        _edge_draft(k, w, request)
    go_on(k, w, request, LAST)
    free(w, request)


# ---------------------------------------------------------------------- drafting away from the target


@jit
def _edge_draft(k, w, request):
    """Control is at the drafter: it drafts, once it has prefilled."""
    drafter = request.drafter
    if request.warming == drafter:
        request.waits_warm = True
        request.waits_for = FOR_WARM_DRAFTER
        return
    request.waits_for = FOR_EDGE_DRAFTS
    draft_window(k, w, request, drafter, drafts_made(k, w, request, drafter))


@jit
def _edge_drafted(k, w, request):
    """A window is ready: send it to the target."""
    target = request.to_target
    request.moves = target != request.target
    size = request.drafts * k.bytes_per_draft_token
    if request.moves:
        size += context_tokens(request) * k.bytes_per_token
    request.sent_s = w.now_s
    if request.draft_site == OWN_DEVICE:
        arrives_s = send_up(k, w, request, target, size)
        expect_result(k, w, request, size)
    else:
        arrives_s = send_backhaul(k, w, request, request.edge_server, target, 0, size)
    draft_ahead(k, w, request, request.drafter, request.drafts)
    travel(k, w, request, arrives_s, FOR_EDGE_DRAFTS_UP)


# ---------------------------------------------------------------------- at the target


@jit
def _at_target(k, w, request, then):
    """Control has reached the target: a co-located or a plain round."""
    target = request.to_target
    prefill = prefill_elsewhere(request)
    if w.targets[target].down > 0:
        request.lost_target = target
        abandon(k, w, request)
        reconnect(k, w, request)
        return
    if then == THEN_DECODE:
        serve(k, w, request, target, JOB_PLAIN, 0, prefill, False, FOR_RESULT)
        return
    if then == THEN_STREAM:
        lag = min(lag_tokens(k, w, request, request.drafter), context_tokens(request))
        open_stream(k, w, request, -1.0, -1.0, lag)
        _take_seat(k, w, request, prefill)
        return
    drafter = request.drafter
    made = drafts_made(k, w, request, drafter)
    if drafts_shared(k, drafter):
        serve(k, w, request, target, JOB_COLOCATED, made - request.dropped, prefill, False, FOR_RESULT)
        return
    request.waits_for = FOR_DEDICATED_DRAFTS
    draft_window(k, w, request, drafter, made)


# ---------------------------------------------------------------------- moving control


@jit
def _move_control(k, w, request, site, number_there, tokens, then):
    """Begin to bring control to a place; go on at once if it is there."""
    request.to_site, request.to, request.then = site, number_there, then
    request.move_bytes = tokens * k.bytes_per_token
    _move_on(k, w, request)


@jit
def _move_on(k, w, request):
    site, at = request.site, request.at
    to_site, to = request.to_site, request.to
    if site == to_site and at == to:
        then = request.then
        if then == THEN_DECIDE:
            next_round(k, w, request)
        elif then == THEN_DRAFT:
            _edge_draft(k, w, request)
        else:
            _at_target(k, w, request, then)
        return
    size = request.move_bytes
    hop_site, hop = to_site, to
    if site == COLOCATED and to_site == EDGE_SERVER:
        arrives_s = send_backhaul(k, w, request, to, at, 1, size)
    elif site == EDGE_SERVER and to_site == COLOCATED:
        arrives_s = send_backhaul(k, w, request, at, to, 0, size)
    elif site == COLOCATED:
        arrives_s = send_down(k, w, request, at, size)
        hop_site, hop = OWN_DEVICE, request.device
    elif site == EDGE_SERVER:
        arrives_s = send_edge(k, w, request, 1, size)
        hop_site, hop = OWN_DEVICE, request.device
    elif to_site == COLOCATED:
        arrives_s = send_up(k, w, request, to, size)
    else:
        arrives_s = send_edge(k, w, request, 0, size)
    request.hop_site, request.hop = hop_site, hop
    travel(k, w, request, arrives_s, FOR_MOVE)


# ---------------------------------------------------------------------- events


@jit
def delivery(k, w, place, argument):
    """Something arrives."""
    kind = (argument >> SLOT_BITS) & KIND_MASK
    if kind == IS_TIMED_TOKENS:
        acknowledge(k, w, argument & SLOT_MASK, place & ENTITY_MASK)
        return
    if kind == IS_ACK:
        take_ack(k, w, argument & SLOT_MASK)
        return
    request = w.requests[argument & SLOT_MASK]
    if kind == IS_DUPLICATE:
        w.totals.duplicate_messages += 1
        log(k, w, LOG_DUPLICATE, -1, place & ENTITY_MASK, 0)
    elif kind == IS_WARM_UP:
        _queue_warm_up(k, w, request)
    elif is_live(request, place, argument):
        if kind == IS_DRAFTS:
            _drafts_arrive(k, w, request)
        elif kind == IS_RESULT:
            if take_result(k, w, request):
                ask(k, w, request)
        else:
            _delivered(k, w, request)
    elif kind == IS_MESSAGE:
        w.totals.late_messages += 1
        log(k, w, LOG_LATE, -1, place & ENTITY_MASK, 0)


@jit
def _delivered(k, w, request):
    """A message that a request waited for has arrived."""
    waits_for = request.waits_for
    if waits_for == FOR_MOVE:
        request.site, request.at = request.hop_site, request.hop
        _move_on(k, w, request)
    elif waits_for == FOR_EDGE_DRAFTS_UP:
        target = request.to_target
        request.site, request.at = COLOCATED, target
        request.served_s = w.now_s
        prefill = prefill_elsewhere(request)
        serve(k, w, request, target, JOB_VERIFY, request.drafts, prefill, False, FOR_EDGE_RESULT)
    elif waits_for == FOR_RESULT_AT_DEVICE or waits_for == FOR_FIRST_TOKEN:  # noqa: SIM109
        if waits_for == FOR_RESULT_AT_DEVICE:
            request.exchange += 1
        measure_round_trip(k, w, request, request.to_target, (w.now_s - request.sent_s) - request.served_s)
        request.site, request.at = OWN_DEVICE, request.device
        settle_ahead(k, w, request)
        next_round(k, w, request)
    elif waits_for == FOR_RESULT_AT_EDGE:
        request.site, request.at = EDGE_SERVER, request.edge_server
        settle_ahead(k, w, request)
        next_round(k, w, request)
    elif waits_for == FOR_DETECTION:
        wait_until(k, w, request, send_down(k, w, request, request.lost_target, 0.0), FOR_NOTICE)
    elif waits_for == FOR_NOTICE:
        request.site, request.at = OWN_DEVICE, request.device
        next_round(k, w, request)
    elif waits_for == FOR_LAST_TOKEN:
        complete(k, w, request)
        if k.closed:
            think(k, w, request.device)
    elif waits_for == FOR_PROMPT_UP:
        w.arrivals_seen += 1
        request.served_s = w.now_s - k.targets[request.to_target].front_end_s
        warms = request.gamma > 0 and request.draft_site == COLOCATED
        serve(k, w, request, request.to_target, JOB_PREFILL, 0, request.prompt_tokens, warms, FOR_PREFILL)
    else:
        _act(k, w, request)


@jit
def job_done(k, w, request):
    """A target has done a request's job."""
    report_target(k, w, request.target, request.report)
    request.has_report = True
    waits_for = request.waits_for
    if waits_for == FOR_SEAT and not finished(request):
        _seat_closed(k, w, request)
        return
    if waits_for == FOR_RESULT and not finished(request):
        settle_ahead(k, w, request)
    if waits_for == FOR_RESULT or finished(request):
        next_round(k, w, request)
        return
    request.served_s = w.now_s - request.served_s
    if waits_for == FOR_EDGE_RESULT:
        expect_drafts(k, w, request)
        if request.draft_site == OWN_DEVICE:
            wait_until(k, w, request, request.last_delivery_s, FOR_RESULT_AT_DEVICE)
            return
        size = request.round_tokens * k.bytes_per_token
        back_s = send_backhaul(k, w, request, request.edge_server, request.to_target, 1, size)
        wait_until(k, w, request, back_s, FOR_RESULT_AT_EDGE)
        return
    site = request.draft_site
    if uses_stream(k, request):
        told_s = request.last_delivery_s if site == OWN_DEVICE else -1.0
        echo_s = request.sent_s + request.served_s if site == OWN_DEVICE else -1.0
        open_stream(k, w, request, echo_s, told_s, 1)
        _take_seat(k, w, request, 0)
        return
    drafts_elsewhere = request.gamma > 0 and site != COLOCATED
    if drafts_elsewhere:
        expect_drafts(k, w, request)
    if drafts_elsewhere and site == OWN_DEVICE:
        wait_until(k, w, request, request.last_delivery_s, FOR_FIRST_TOKEN)
    elif drafts_elsewhere:
        _move_control(k, w, request, EDGE_SERVER, request.edge_server, 1, THEN_DECIDE)
    else:
        next_round(k, w, request)


@jit
def draft_end(k, w, argument):
    """A draft has ended, unless it was given up: the drafter first, then the request."""
    job = w.jobs[argument & SLOT_MASK]
    if job.run != argument >> SLOT_BITS:
        return
    draft_ended(k, w, job)
    request, which = request_of(w, job), job.number % JOBS
    if which == WARM_JOB:
        _warmed(k, w, request)
    elif which == AHEAD_JOB:
        return
    elif request.streams:
        chunk_drafted(k, w, request, job.gamma, job.branch_tokens)
    elif request.waits_for == FOR_EDGE_DRAFTS:
        _edge_drafted(k, w, request)
    else:
        prefill = prefill_elsewhere(request)
        draft_ahead(k, w, request, request.drafter, request.drafts)
        serve(k, w, request, request.to_target, JOB_VERIFY, request.drafts, prefill, False, FOR_RESULT)
