"""Drafters: on devices, on edge servers, on GPUs of their own beside a target. First come, first served.

A drafter's queue is a list of draft jobs, each with the number of the next. A request has three jobs: its
round's, its drafter's prefill, and what is drafted ahead of a verification.
"""
# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

from __future__ import annotations

from dsd_env.laws import drafting, reports, step_times
from dsd_env.sim.compiled.codes import AHEAD_JOB, DRAFTS_ALONE, DRAFTS_SHARED, JOBS, ROUND_JOB
from dsd_env.sim.compiled.kernel.accounts import occupancy_changes
from dsd_env.sim.compiled.kernel.events import (
    AT_DRAFT_END,
    LOG_DRAFT_END,
    LOG_DRAFT_START,
    LOG_ROLLBACK,
    SLOT_BITS,
    log,
    push,
)
from dsd_env.sim.compiled.kernel.jit import compile_laws, jit
from dsd_env.sim.compiled.status import TABLE_RANGE

compile_laws(step_times, drafting)


@jit
def colocated(k, target):
    """Return the number of the drafter at a target."""
    return k.n_devices + k.n_edges + target


@jit
def drafts_alone(k, drafter):
    """Return whether there is a drafter with hardware of its own."""
    return k.drafters[drafter].mode == DRAFTS_ALONE


@jit
def drafts_shared(k, target):
    """Return whether a target's GPUs also run a drafter."""
    return k.drafters[colocated(k, target)].mode == DRAFTS_SHARED


@jit
def request_of(w, job):
    """Return the request of a draft job."""
    return w.requests[job.number // JOBS]


# ---------------------------------------------------------------------- what a drafter has in its KV


@jit
def _valid_at(k, request, drafter):
    """Return where a request's right tokens at a drafter are kept: first its device's, then by drafter."""
    devices = k.n_devices
    return k.n_valid * request.slot + (0 if drafter < devices else 1 + drafter - devices)


@jit
def valid_tokens(k, w, request, drafter):
    """Return how many tokens of a request's context are right in a drafter's KV."""
    return w.valid_tokens[_valid_at(k, request, drafter)]


@jit
def set_valid_tokens(k, w, request, drafter, tokens):
    """Note how many are."""
    w.valid_tokens[_valid_at(k, request, drafter)] = tokens


@jit
def context_tokens(request):
    """Return the length of a request's context: prompt and committed output."""
    return request.prompt_tokens + request.committed


@jit
def lag_tokens(k, w, request, drafter):
    """Return the committed tokens that a drafter has not processed."""
    return context_tokens(request) - valid_tokens(k, w, request, drafter)


# ---------------------------------------------------------------------- step times


@jit
def step_s(k, w, drafter, new_tokens, kv_tokens, longest):
    """Return the time of a drafter's step."""
    spec = k.drafters[drafter]
    if new_tokens >= spec.length:
        w.error = TABLE_RANGE
        return 1.0
    return step_times.step_s(spec, w.drafters[drafter].speed, new_tokens, kv_tokens, longest)


@jit
def _job_s(k, w, drafter, job):
    """Note when a job starts, and how long it takes."""
    spec = k.drafters[drafter.number]
    active = drafter.active
    if max(job.lag_tokens, 1) + active - 1 >= spec.length:
        w.error = TABLE_RANGE
        return 1.0
    drafting.start_job(job, spec, drafter.speed, active, drafter.context_tokens, w.now_s)
    return job.duration_s


# ---------------------------------------------------------------------- queueing and drafting


@jit
def queue_job(k, w, job, drafter_number, gamma, lag, context):
    """Queue a job at a drafter."""
    job.gamma, job.lag_tokens, job.context_tokens = gamma, lag, context
    job.drafter, job.next, job.state = drafter_number, -1, drafting.QUEUED
    drafter = w.drafters[drafter_number]
    if drafter.queued == 0:
        drafter.head = job.number
    else:
        w.jobs[drafter.tail].next = job.number
    drafter.tail = job.number
    drafter.queued += 1
    start_drafts(k, w, drafter)


@jit
def draft_window(k, w, request, drafter, drafted):
    """Draft a window, using a head start if there is one."""
    job = w.jobs[JOBS * request.slot + ROUND_JOB]
    job.head_context_tokens = 0
    if request.head_drafter < 0:
        request.chain_start = request.committed
    else:
        drafts = max(0, request.head_tokens - 1)
        w.totals.discarded += max(0, drafts - drafted)
        job.head_context_tokens, job.head_drafts = request.head_context_tokens, drafts
        job.head_done_s = request.head_done_s
        request.head_drafter = -1
    request.drafts = drafted
    queue_job(k, w, job, drafter, drafted, lag_tokens(k, w, request, drafter), context_tokens(request))


@jit
def draft_ahead(k, w, request, drafter, drafted):
    """Draft ahead while a window is verified: guess the token after it and draft another window."""
    context = context_tokens(request) + drafted
    if not k.pipelined or context + drafted + 1 > k.drafters[drafter].kv_capacity_tokens:
        return
    job = w.jobs[JOBS * request.slot + AHEAD_JOB]
    job.head_context_tokens = 0
    request.drafts_ahead = True
    queue_job(k, w, job, drafter, drafted + 1, 1, context)


@jit
def start_drafts(k, w, drafter):
    """Let jobs start as long as there are places."""
    if drafter.down > 0:
        return
    places = k.drafters[drafter.number].concurrency
    while drafter.queued > 0 and drafter.active < places:
        job = w.jobs[drafter.head]
        drafter.head = job.next
        drafter.queued -= 1
        begins = drafter.active == 0
        if begins:
            drafter.busy_since_s = w.now_s
        drafter.active += 1
        if begins and drafter.number >= k.n_devices:
            occupancy_changes(k, w)
        drafter.context_tokens += job.context_tokens
        job.state, job.order = drafting.ACTIVE, drafter.starts
        drafter.starts += 1
        duration_s = _job_s(k, w, drafter, job)
        log(k, w, LOG_DRAFT_START, drafter.number, request_of(w, job).number, job.gamma)
        push(k, w, w.now_s + duration_s, AT_DRAFT_END, drafter.number, (job.run << SLOT_BITS) | job.number)


@jit
def draft_ended(k, w, job):
    """A job is complete."""
    drafter = w.drafters[job.drafter]
    drafter.mean_job_s = reports.moved(drafter.mean_job_s, w.now_s - job.start_s, k.stats_weight)
    _leave(k, w, job, job.gamma)


@jit
def _leave(k, w, job, tokens):
    """Let a job, complete or not, leave its drafter, and start the next."""
    drafter = w.drafters[job.drafter]
    job.state = drafting.ENDED
    drafter.active -= 1
    drafter.context_tokens -= job.context_tokens
    if drafter.active == 0:
        drafting_over(k, w, drafter)
    log(k, w, LOG_DRAFT_END, drafter.number, request_of(w, job).number, tokens)
    start_drafts(k, w, drafter)


@jit
def drafting_over(k, w, drafter):
    """Book the cost of a drafter's busy period, which has just ended."""
    spec = k.drafters[drafter.number]
    busy_s = w.now_s - drafter.busy_since_s
    joules = (spec.busy_w - spec.idle_w) * busy_s
    w.totals.energy_joules += joules
    if drafter.number < k.n_devices:
        w.totals.client_joules += joules
    else:
        w.totals.gpu_s += busy_s * spec.gpus
        occupancy_changes(k, w)


# ---------------------------------------------------------------------- giving up


@jit
def withdraw(k, w, job):
    """Remove a job from its drafter; return how many of its tokens are complete."""
    tokens = drafting.tokens_after(job, drafting.done_s(job, w.now_s))
    if job.state == drafting.QUEUED:
        _unlink(w, job)
        job.state = drafting.ENDED
    elif job.state == drafting.ACTIVE:
        job.run += 1
        _leave(k, w, job, tokens)
    return tokens


@jit
def _unlink(w, job):
    """Remove a job from the queue of its drafter."""
    drafter = w.drafters[job.drafter]
    drafter.queued -= 1
    if drafter.head == job.number:
        drafter.head = job.next
        return
    before = w.jobs[drafter.head]
    while before.next != job.number:
        before = w.jobs[before.next]
    before.next = job.next
    if drafter.tail == job.number:
        drafter.tail = before.number


@jit
def settle_ahead(k, w, request):
    """Keep what was drafted ahead if the result confirms it; otherwise roll it back."""
    if not request.drafts_ahead:
        return
    request.drafts_ahead = False
    job = w.jobs[JOBS * request.slot + AHEAD_JOB]
    spent_s = drafting.done_s(job, w.now_s)
    tokens = drafting.tokens_after(job, spent_s)
    drafter, context = job.drafter, job.context_tokens
    if tokens > 0 and context_tokens(request) == context + 1:
        set_valid_tokens(k, w, request, drafter, context)
    if request.guessed and spent_s > 0.0:
        withdraw(k, w, job)
        request.head_drafter, request.head_context_tokens, request.head_tokens = drafter, context, tokens
        request.head_done_s = spent_s
    else:
        roll_back(k, w, request)


@jit
def roll_back(k, w, request):
    """Discard what a job has drafted ahead."""
    request.drafts_ahead = False
    job = w.jobs[JOBS * request.slot + AHEAD_JOB]
    tokens = withdraw(k, w, job)
    w.totals.discarded += tokens
    log(k, w, LOG_ROLLBACK, job.drafter, request.number, tokens)


@jit
def discard_head_start(k, w, request):
    """Discard a head start that the next window cannot use."""
    w.totals.discarded += request.head_tokens
    log(k, w, LOG_ROLLBACK, request.head_drafter, request.number, request.head_tokens)
    request.head_drafter = -1


# ---------------------------------------------------------------------- crashes


@jit
def crash_drafter(k, w, number_of_drafter):
    """Take its KV from a drafter; it redoes its drafts after its return, but not those drafted ahead."""
    drafter = w.drafters[number_of_drafter]
    drafter.down += 1
    if drafter.down > 1:
        return
    lose_kv(k, w, number_of_drafter)
    order = -1
    while True:
        number_of_job = _next_active(k, w, number_of_drafter, order)
        if number_of_job < 0:
            break
        job = w.jobs[number_of_job]
        order = job.order
        if number_of_job % JOBS == AHEAD_JOB:
            roll_back(k, w, request_of(w, job))
    left, number_of_job = drafter.queued, drafter.head
    while left > 0:
        job = w.jobs[number_of_job]
        after = job.next
        left -= 1
        if number_of_job % JOBS == AHEAD_JOB:
            roll_back(k, w, request_of(w, job))
        number_of_job = after
    _requeue_active(k, w, drafter)
    left, number_of_job = drafter.queued, drafter.head
    while left > 0:
        job = w.jobs[number_of_job]
        _begin_anew(w, job)
        number_of_job = job.next
        left -= 1


@jit
def drafter_returns(k, w, number_of_drafter):
    """A drafter is up again, unless another fault keeps it down."""
    drafter = w.drafters[number_of_drafter]
    drafter.down -= 1
    start_drafts(k, w, drafter)


@jit
def _next_active(k, w, number_of_drafter, order):
    """Return the drafter's first active job that started after the `order`-th; -1 if there is none."""
    best, best_order = -1, -1
    for number_of_job in range(JOBS * k.n_slots):
        job = w.jobs[number_of_job]
        here = job.state == drafting.ACTIVE and job.drafter == number_of_drafter
        if here and job.order > order and (best < 0 or job.order < best_order):
            best, best_order = number_of_job, job.order
    return best


@jit
def _requeue_active(k, w, drafter):
    """Put the active jobs of a crashed drafter back to the front of its queue, in their order."""
    if drafter.active == 0:
        return
    order, last = -1, -1
    while True:
        number_of_job = _next_active(k, w, drafter.number, order)
        if number_of_job < 0:
            break
        job = w.jobs[number_of_job]
        order = job.order
        job.state = drafting.QUEUED
        job.run += 1
        # The first goes before the old head, each other after the one before it.
        if last < 0:
            job.next = drafter.head
            drafter.head = number_of_job
        else:
            before = w.jobs[last]
            job.next = before.next
            before.next = number_of_job
        if drafter.queued == 0 or drafter.tail == last:
            drafter.tail = number_of_job
        drafter.queued += 1
        last = number_of_job
    drafter.active = 0
    drafter.context_tokens = 0
    drafting_over(k, w, drafter)


@jit
def _begin_anew(w, job):
    """Give a job all its work to do again, because the drafter has lost its KV."""
    if job.gamma > 0:
        request = request_of(w, job)
        request.chain_start = request.committed
    job.lag_tokens = job.context_tokens
    job.head_context_tokens = 0


@jit
def lose_kv(k, w, drafter):
    """A drafter has lost its KV, and the head starts in it."""
    number = -1
    while True:
        best, best_number = -1, -1
        for slot in range(k.n_slots):
            request = w.requests[slot]
            other = request.number
            if other < 0 or request.done:
                continue
            if drafter >= k.n_devices or request.device == drafter:
                set_valid_tokens(k, w, request, drafter, 0)
            if request.head_drafter == drafter and other > number and (best < 0 or other < best_number):
                best, best_number = slot, other
        if best < 0:
            return
        number = best_number
        discard_head_start(k, w, w.requests[best])
