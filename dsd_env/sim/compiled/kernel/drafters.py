"""Drafters: on devices, on edge servers, on GPUs of their own beside a target. First come, first served.

A drafter's queue is a list of draft jobs, each with the number of the next. A request has three jobs: its
round's, its drafter's prefill, and what is drafted ahead of a verification. Draft models on one device or
edge server share the queue and the hardware of the first of them, their host, which serves one of them at a
time.
"""
# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

from __future__ import annotations

from dsd_env.laws import drafting, reports, step_times
from dsd_env.sim.compiled.codes import AHEAD_JOB, DRAFTS_ALONE, DRAFTS_SHARED, JOBS, LOOKUP, MODEL, ROUND_JOB
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

compile_laws(step_times, drafting)

LAST = -1
"""The turn of a job that goes to the end of its drafter's queue."""


@jit
def at_target(k, target, rank):
    """Return the number of a drafter at a target."""
    return rank * k.n_sites + k.n_devices + k.n_edges + target


@jit
def is_host(k, drafter):
    """Return whether there is a drafter with a queue of its own."""
    spec = k.drafters[drafter]
    return spec.mode == DRAFTS_ALONE and spec.host == drafter


@jit
def drafts_shared(k, drafter):
    """Return whether there is a drafter that shares its target's server."""
    return drafter >= 0 and k.drafters[drafter].mode == DRAFTS_SHARED


@jit
def can_stream(k, drafter):
    """Return whether the drafts of a drafter, of which there is one, are streamed."""
    spec = k.drafters[drafter]
    return k.streaming and spec.mode == DRAFTS_ALONE and spec.kind == MODEL


@jit
def is_lookup(k, drafter):
    """Return whether a drafter is a look-up."""
    return k.drafters[drafter].kind == LOOKUP


@jit
def host_of(k, w, drafter):
    """Return the drafter whose queue and hardware a drafter uses."""
    return w.drafters[k.drafters[drafter].host]


@jit
def request_of(w, job):
    """Return the request of a draft job."""
    return w.requests[job.number // JOBS]


# ---------------------------------------------------------------------- what a drafter has in its KV


@jit
def _valid_at(k, request, drafter):
    """Return where a request's right tokens at a drafter are kept: first its device's, then by drafter.

    Those at the second drafters of the sites follow, and so on.
    """
    devices, first = k.n_devices, k.n_valid * request.slot
    while drafter >= k.n_sites:
        drafter -= k.n_sites
        first += 1 + k.n_edges + k.n_targets
    return first + (0 if drafter < devices else 1 + drafter - devices)


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
    return step_times.step_s(k.drafters[drafter], w.drafters[drafter].speed, new_tokens, kv_tokens, longest)


@jit
def _job_s(k, w, host, job):
    """Note when a job starts, and how long it takes."""
    spec = k.drafters[job.drafter]
    active = host.active
    drafting.start_job(
        job,
        spec,
        w.drafters[job.drafter].speed,
        active,
        host.context_tokens,
        host.branch_tokens,
        w.now_s,
        w.seed,
        request_of(w, job).number,
    )
    return job.duration_s


# ---------------------------------------------------------------------- queueing and drafting


@jit
def turn_of(k, w, job):
    """Return how many jobs are before one that waits; LAST if it does not wait."""
    if job.state != drafting.QUEUED:
        return LAST
    number, turn = host_of(k, w, job.drafter).head, 0
    while number != job.number:
        number, turn = w.jobs[number].next, turn + 1
    return turn


@jit
def queue_job(k, w, job, drafter_number, gamma, lag, context, branch_tokens, opens, turn):
    """Queue a job at a drafter, LAST or behind `turn` others.

    It `opens` a round or a stream's generation, or it does not.
    """
    job.gamma, job.lag_tokens, job.context_tokens = gamma, lag, context
    job.drafter, job.state = drafter_number, drafting.QUEUED
    job.branch_tokens, job.opens = branch_tokens, opens
    host = host_of(k, w, drafter_number)
    # Links that lead out of the queue are left as they are: how many jobs it has says where it ends.
    if host.queued == 0:
        host.head = host.tail = job.number
    elif turn < 0 or turn >= host.queued:
        w.jobs[host.tail].next = job.number
        host.tail = job.number
    elif turn == 0:
        job.next = host.head
        host.head = job.number
    else:
        before = w.jobs[host.head]
        for _ in range(turn - 1):
            before = w.jobs[before.next]
        job.next = before.next
        before.next = job.number
    host.queued += 1
    start_drafts(k, w, host)


@jit
def draft_window(k, w, request, drafter, made):
    """Make the drafts of a window, using a head start if there is one."""
    job = w.jobs[JOBS * request.slot + ROUND_JOB]
    job.head_context_tokens = 0
    if request.head_drafter < 0:
        request.chain_start = request.committed
    else:
        drafts = max(0, request.head_tokens - 1)
        w.totals.discarded += max(0, drafts - made)
        job.head_context_tokens, job.head_drafts = request.head_context_tokens, drafts
        job.head_done_s = request.head_done_s
        request.head_drafter = -1
    request.drafts = made - request.dropped
    lag, context = lag_tokens(k, w, request, drafter), context_tokens(request)
    queue_job(k, w, job, drafter, made, lag, context, 0, made > 0, LAST)


@jit
def draft_ahead(k, w, request, drafter, drafted):
    """Draft ahead while a window is verified: guess the token after it and draft another window."""
    context = context_tokens(request) + drafted
    if is_lookup(k, drafter) or drafted == 0:
        return
    if not k.pipelined or context + drafted + 1 > k.drafters[drafter].kv_capacity_tokens:
        return
    job = w.jobs[JOBS * request.slot + AHEAD_JOB]
    job.head_context_tokens = 0
    request.drafts_ahead = True
    queue_job(k, w, job, drafter, drafted + 1, 1, context, 0, False, LAST)


@jit
def start_drafts(k, w, host):
    """Let jobs start as long as there are places, those of one drafter at a time."""
    if host.down > 0:
        return
    while host.queued > 0:
        job = w.jobs[host.head]
        number = job.drafter
        if host.active > 0 and (host.running != number or host.active >= k.drafters[number].concurrency):
            return
        host.head = job.next
        host.queued -= 1
        begins = host.active == 0
        if begins:
            host.busy_since_s = w.now_s
            host.running = number
        host.active += 1
        if begins and k.drafters[host.number].gpus > 0.0:
            occupancy_changes(k, w)
        host.context_tokens += job.context_tokens
        host.branch_tokens += job.branch_tokens
        job.state, job.order = drafting.ACTIVE, host.starts
        host.starts += 1
        duration_s = _job_s(k, w, host, job)
        log(k, w, LOG_DRAFT_START, number, request_of(w, job).number, job.gamma)
        push(k, w, w.now_s + duration_s, AT_DRAFT_END, number, (job.run << SLOT_BITS) | job.number)


@jit
def draft_ended(k, w, job):
    """A job is complete."""
    host = host_of(k, w, job.drafter)
    host.mean_job_s = reports.moved(host.mean_job_s, w.now_s - job.start_s, k.stats_weight)
    _leave(k, w, job, job.gamma)


@jit
def _leave(k, w, job, tokens):
    """Let a job, complete or not, leave its drafter, and start the next."""
    host = host_of(k, w, job.drafter)
    job.state = drafting.ENDED
    host.active -= 1
    host.context_tokens -= job.context_tokens
    host.branch_tokens -= job.branch_tokens
    if host.active == 0:
        drafting_over(k, w, host)
    log(k, w, LOG_DRAFT_END, job.drafter, request_of(w, job).number, tokens)
    start_drafts(k, w, host)


@jit
def drafting_over(k, w, drafter):
    """Book the cost of a drafter's busy period, which has just ended."""
    spec = k.drafters[drafter.number]
    busy_s = w.now_s - drafter.busy_since_s
    joules = (spec.busy_w - spec.idle_w) * busy_s
    w.totals.energy_joules += joules
    if spec.gpus == 0.0:  # a user's device
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
        _unlink(k, w, job)
        job.state = drafting.ENDED
    elif job.state == drafting.ACTIVE:
        job.run += 1
        _leave(k, w, job, tokens)
    return tokens


@jit
def _unlink(k, w, job):
    """Remove a job from the queue that it is in."""
    drafter = host_of(k, w, job.drafter)
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
def host_goes_down(k, w, number_of_drafter):
    """Take their KV from a host's drafters; return whether it was up."""
    drafter = w.drafters[number_of_drafter]
    drafter.down += 1
    if drafter.down > 1:
        return False
    other = number_of_drafter
    while other < k.n_drafters:
        if k.drafters[other].mode == DRAFTS_ALONE and k.drafters[other].host == number_of_drafter:
            lose_kv(k, w, other)
        other += k.n_sites
    return True


@jit
def redo_jobs(k, w, number_of_drafter):
    """Queue the jobs of a host that has gone down again, but not those drafted ahead."""
    drafter = w.drafters[number_of_drafter]
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
def host_returns(k, w, number_of_drafter):
    """A host comes back; return whether it is up again, or another fault keeps it down."""
    drafter = w.drafters[number_of_drafter]
    drafter.down -= 1
    start_drafts(k, w, drafter)
    return drafter.down == 0


@jit
def _next_active(k, w, host, order):
    """Return the host's first active job that started after the `order`-th; -1 if there is none."""
    best, best_order = -1, -1
    for number_of_job in range(JOBS * k.n_slots):
        job = w.jobs[number_of_job]
        here = job.state == drafting.ACTIVE and k.drafters[job.drafter].host == host
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
    drafter.branch_tokens = 0
    drafting_over(k, w, drafter)


@jit
def _begin_anew(w, job):
    """Give a job all its work to do again, because the drafter has lost its KV."""
    if job.gamma > 0:
        request = request_of(w, job)
        request.chain_start = request.committed
        job.opens = True
    job.lag_tokens = job.context_tokens
    job.head_context_tokens = 0


@jit
def lose_kv(k, w, drafter):
    """A drafter has lost its KV, and the head starts in it."""
    site = drafter % k.n_sites
    number = -1
    while True:
        best, best_number = -1, -1
        for slot in range(k.n_slots):
            request = w.requests[slot]
            other = request.number
            if other < 0 or request.done:
                continue
            if site >= k.n_devices or request.device == site:
                set_valid_tokens(k, w, request, drafter, 0)
            if request.head_drafter == drafter and other > number and (best < 0 or other < best_number):
                best, best_number = slot, other
        if best < 0:
            return
        number = best_number
        discard_head_start(k, w, w.requests[best])
