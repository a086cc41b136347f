"""The life of a request, apart from its protocol: it asks for decisions, gives up, completes, is counted."""
# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

from __future__ import annotations

import math

from dsd_env.laws import drafting, slo, view
from dsd_env.sim.compiled.codes import JOBS, ROUND_JOB
from dsd_env.sim.compiled.kernel.accounts import accrue, is_measured
from dsd_env.sim.compiled.kernel.drafters import discard_head_start, roll_back, withdraw
from dsd_env.sim.compiled.kernel.events import (
    AT_DECISION,
    AT_DELIVERY,
    IS_MESSAGE,
    IS_WAIT,
    LOG_COMPLETE,
    log,
    push,
    push_now,
    tag,
)
from dsd_env.sim.compiled.kernel.jit import compile_laws, jit, number
from dsd_env.sim.compiled.kernel.links import EDGE_SERVER, OWN_DEVICE
from dsd_env.sim.compiled.kernel.streams import count_late, stop_stream
from dsd_env.sim.compiled.kernel.targets import queue_at
from dsd_env.sim.compiled.status import TABLE_FULL, TERMINATED, TRUNCATED

compile_laws(view)

(
    FOR_DECISION,
    FOR_LATENCY,
    FOR_PROMPT_UP,
    FOR_PREFILL,
    FOR_FIRST_TOKEN,
    FOR_MOVE,
    FOR_WARM_DRAFTER,
    FOR_EDGE_DRAFTS,
    FOR_EDGE_DRAFTS_UP,
    FOR_EDGE_RESULT,
    FOR_RESULT_AT_DEVICE,
    FOR_RESULT_AT_EDGE,
    FOR_DEDICATED_DRAFTS,
    FOR_RESULT,
    FOR_LAST_TOKEN,
    FOR_PLACE,
    FOR_DETECTION,
    FOR_NOTICE,
    FOR_STREAM,
    FOR_SEAT,
) = (number(place) for place in range(20))
"""What a request waits for: its place in its protocol."""


# ---------------------------------------------------------------------- waiting


@jit
def wait_until(k, w, request, time_s, waits_for):
    """Let a request wait for a time."""
    request.waits_for = waits_for
    push(k, w, time_s, AT_DELIVERY, request.number, tag(request, IS_WAIT))


@jit
def travel(k, w, request, time_s, waits_for):
    """Let a request wait for its message to arrive; if it stops waiting, the message counts as late."""
    request.waits_for = waits_for
    push(k, w, time_s, AT_DELIVERY, request.number, tag(request, IS_MESSAGE))


@jit
def is_down(k, w, site, at):
    """Return whether a place is down, so that no decision can be taken there."""
    if site == OWN_DEVICE:
        return w.devices[at].down_faults > 0
    return site == EDGE_SERVER and w.drafters[k.n_devices + at].down > 0


@jit
def ask(k, w, request):
    """Let a request wait for its turn among the decisions of this instant, or for its place to return."""
    if is_down(k, w, request.site, request.at):
        request.waits_for = FOR_PLACE
        return
    request.waits_for = FOR_DECISION
    push_now(k, w, AT_DECISION, request.number, tag(request, IS_WAIT))


@jit
def finished(request):
    """Return whether all tokens of a request are committed."""
    return request.committed >= request.output_tokens


@jit
def next_round(k, w, request):
    """Open the next round, or wait for the last token to arrive."""
    if finished(request):
        wait_until(k, w, request, request.last_delivery_s, FOR_LAST_TOKEN)
    else:
        ask(k, w, request)


# ---------------------------------------------------------------------- giving up


@jit
def abandon(k, w, request):
    """Cancel a request's drafts and messages under way; a message already sent will arrive too late."""
    if request.streams:
        count_late(k, w, request)
        stop_stream(k, w, request)
    request.epoch += 1
    request.served += 1
    request.exchange += 1
    request.waits_warm = False
    job = w.jobs[JOBS * request.slot + ROUND_JOB]
    if job.state != drafting.ENDED:
        w.totals.discarded += withdraw(k, w, job)
    if request.drafts_ahead:
        roll_back(k, w, request)
    if request.head_drafter >= 0:
        discard_head_start(k, w, request)


@jit
def reconnect(k, w, request):
    """Let the front end notice that the target is down and tell the client, who decides again."""
    wait_until(k, w, request, w.now_s + k.crash_detection_s, FOR_DETECTION)


@jit
def serve(k, w, request, target, kind, gamma, prefill, warms, waits_for):
    """Queue a job at a target, unless that is down; its end wakes the request."""
    server = w.targets[target]
    if server.down > 0:
        request.lost_target = target
        abandon(k, w, request)
        reconnect(k, w, request)
        return
    queue_at(k, w, request, server, kind, gamma, prefill, warms, waits_for)


@jit
def prefill_elsewhere(request):
    """Return the tokens that a target without the request's KV has to prefill."""
    return request.prompt_tokens + request.committed - 1 if request.moves else 0


# ---------------------------------------------------------------------- accounts


@jit
def arrivals_are_over(k, w, before):
    """Return whether the workload is finished once `before` more requests have arrived."""
    return k.total >= 0 and w.arrived + before >= k.total


@jit
def complete(k, w, request):
    """The last token has arrived."""
    accrue(k, w, w.now_s)
    if request.drafts_ahead:
        roll_back(k, w, request)
    w.in_system -= 1
    spec, first_s = k.kinds[request.kind], request.first_delivery_s
    ttft_s = first_s - request.arrival_s
    tpot_s = view.time_per_token_s(first_s, request.last_delivery_s, request.output_tokens)
    met = slo.is_met(spec, ttft_s, tpot_s, request.output_tokens, request.late_gaps, request.late_tokens)
    totals, counts = w.totals, w.class_counts[spec.slo_class]
    totals.completed += 1
    counts.completed += 1
    if met:
        totals.good += 1
        counts.good += 1
    else:
        totals.slo_violations += 1
    totals.tpot_cost += tpot_s / request.slo_tpot_s
    request.done = True
    request.is_new = True
    w.newly[w.newly_n] = request.slot
    w.newly_n += 1
    _keep_row(k, w, request)
    log(k, w, LOG_COMPLETE, request.device, request.number, w.now_s - request.arrival_s)
    if request.number < w.end_measured and (k.by_number or is_measured(w, request.number)):
        w.cohort_left -= 1
        if w.cohort_left == 0 and w.boundary_s == math.inf:
            w.status = TRUNCATED
    if arrivals_are_over(k, w, 0) and w.in_system == 0:
        w.status = TERMINATED


@jit
def _keep_row(k, w, request):
    """Put a completed request into the table; the cohort's always have room."""
    n = w.table_n
    # What the cohort may still need is kept free.
    if request.number >= w.end_measured and n + w.cohort_left >= k.table_capacity:
        w.table_dropped += 1
        return
    if n >= k.table_capacity:
        w.error = TABLE_FULL
        return
    w.table_n = n + 1
    row = w.table[n]
    row.number, row.uid, row.device, row.kind = request.number, request.uid, request.device, request.kind
    row.prompt_tokens, row.output_tokens = request.prompt_tokens, request.output_tokens
    row.delivered, row.rounds, row.verifies = request.committed, request.rounds, request.verifies
    row.drafted, row.accepted = request.drafted, request.accepted
    row.arrival_s, row.completed_s = request.arrival_s, w.now_s
    row.first_delivery_s, row.last_delivery_s = request.first_delivery_s, request.last_delivery_s
    row.late_gaps, row.late_tokens = request.late_gaps, request.late_tokens
    row.longest_gap_s = request.longest_gap_s


@jit
def free(w, request):
    """Give a completed request's slot back, unless its drafter's prefill still runs."""
    if request.done and not request.is_new and request.warming < 0:
        w.free[w.free_n] = request.slot
        w.free_n += 1
        request.number = -1
