"""Target servers: admission to the KV pool, the ready queue, iterations, and what they commit."""
# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

from __future__ import annotations

import math

from dsd_env.laws import batching, drafting, reports, slo, step_times
from dsd_env.sim.compiled.kernel.acceptance import guessed_after, run_length, top1_prob
from dsd_env.sim.compiled.kernel.accounts import is_measured, occupy
from dsd_env.sim.compiled.kernel.batching import (
    JOB_COLOCATED,
    JOB_PLAIN,
    JOB_PREFILL,
    JOB_STREAM,
    JOB_VERIFY,
    compose,
    note_all_ready,
    note_ready,
    remove_ready,
)
from dsd_env.sim.compiled.kernel.drafters import (
    at_target,
    context_tokens,
    drafts_shared,
    set_valid_tokens,
)
from dsd_env.sim.compiled.kernel.events import (
    AT_ITERATION_END,
    AT_ITERATION_START,
    AT_JOB_DONE,
    AT_TIMEOUT,
    IS_WAIT,
    LOG_ADMIT,
    LOG_COMMIT,
    LOG_ENQUEUE,
    LOG_ITERATION_END,
    LOG_ITERATION_START,
    LOG_PREEMPT,
    LOG_TAKEOVER,
    SLOT_BITS,
    log,
    push,
    push_now,
    tag,
)
from dsd_env.sim.compiled.kernel.iteration import (
    captured_step_s,
    charge,
    drafting_s,
    kv_read,
    two_longest,
    uses,
    verifies,
)
from dsd_env.sim.compiled.kernel.jit import compile_laws, jit
from dsd_env.sim.compiled.kernel.learning import learn, remember
from dsd_env.sim.compiled.kernel.links import COLOCATED, send_down, time_tokens
from dsd_env.sim.compiled.kernel.streams import available, compare, keep_drafts, stop_stream, tell
from dsd_env.sim.compiled.status import DELIVERIES_FULL

compile_laws(slo)

NO_MODE = JOB_PREFILL
"""Mode of a request that has asked for nothing but its prefill: it counts in none of the numbers by mode."""

# ---------------------------------------------------------------------- queues


@jit
def _join(k, w, server, request):
    """A job becomes ready."""
    request.queued_s = w.now_s
    request.job_sequence = server.joined
    server.joined += 1
    _append_ready(server, request)
    log(k, w, LOG_ENQUEUE, server.number, request.number, request.job_gamma + 1)


@jit
def _append_ready(server, request):
    note_ready(server, request)
    server.ready[server.n_ready] = request.slot
    server.n_ready += 1


@jit
def _admit(k, w, server):
    """Admit waiting requests in order, past those that stand back, while there are seats and KV."""
    spec = k.targets[server.number]
    slot, before = server.wait_head, -1
    for _ in range(server.waiting):
        if server.resident >= spec.max_num_seqs:
            return
        request = w.requests[slot]
        latest_s = request.entered_s + spec.max_admission_wait_s
        if not batching.may_enter(server.resident, spec.max_num_seqs, request.asked_batch, w.now_s, latest_s):
            before, slot = slot, request.next
            continue
        need = request.prompt_tokens + k.max_output_tokens + k.gamma_max + 1
        if spec.preempts:
            need = context_tokens(request) + request.job_gamma
        if server.kv_reserved_tokens + need > spec.kv_capacity_tokens:
            return
        slot = request.next
        _leave_waiting(w, server, request, before)
        if request.kept_tokens > 0:
            _skip_cached(spec, server, request)
        _give_kv(server, request, need)
        server.resident += 1
        request.admission = server.admissions
        server.admissions += 1
        log(k, w, LOG_ADMIT, server.number, request.number, need)
        _join(k, w, server, request)


@jit
def _leave_waiting(w, server, request, before):
    """Take a request off the list of those who wait; `before` is the slot in front of it, -1 if none is."""
    if before < 0:
        server.wait_head = request.next
    else:
        w.requests[before].next = request.next
        if server.wait_tail == request.slot:
            server.wait_tail = before
    server.waiting -= 1
    if request.asked_batch > 1:
        server.stands_back -= 1


@jit
def _skip_cached(spec, server, request):
    """Leave out of a prefill what the prefix cache still holds; a prompt's last token stays."""
    if spec.caches_prefixes:
        cached = batching.cached_tokens(
            request.kept_tokens, server.kv_given_tokens, request.overwritten_from_tokens
        )
        needed = 1 if request.job_task == JOB_PREFILL else 0
        skipped = min(cached, request.job_prefill - needed)
        _set_prefill(server, request, request.job_prefill - skipped)
        request.job_prefilled += skipped
    request.kept_tokens = 0


@jit
def _give_kv(server, request, tokens):
    server.kv_reserved_tokens += tokens
    server.kv_given_tokens += tokens
    request.kv_reserved_tokens += tokens


@jit
def release(k, w, request):
    """A request leaves its target and gives its KV back."""
    server = w.targets[request.target]
    request.kept_tokens = 0
    if request.kv_reserved_tokens > 0:
        server.kv_reserved_tokens -= request.kv_reserved_tokens
        request.kv_reserved_tokens = 0
        server.resident -= 1
    _set_mode(server, request, NO_MODE, 0)
    occupy(k, w, server)
    _admit(k, w, server)
    wake(k, w, server)


@jit
def queue_at(k, w, request, server, task, gamma, prefill, warms, waits_for):
    """Queue a job at a target that is up."""
    request.served += 1
    request.asked_batch = request.batch_size
    request.job_task, request.job_gamma, request.job_chunk = task, gamma, k.plain_chunk_tokens
    request.job_coalesces = task == JOB_VERIFY or (task == JOB_STREAM and k.stream_waits)
    request.job_closes = request.job_idle = False
    request.job_prefill, request.job_prefilled, request.warms = 0, 0, warms
    request.waits_for = waits_for
    target = server.number
    if request.target != target:
        if request.target >= 0:
            release(k, w, request)
        request.target = target
        _set_prefill(server, request, prefill)
        _enter(k, w, server, request)
    elif request.kv_reserved_tokens == 0:  # preempted while it was away
        _prefill_again(server, request)
        _enter(k, w, server, request)
    else:
        _set_prefill(server, request, prefill)
        if task == JOB_STREAM and k.stream_waits and prefill == 0:
            _idle(k, w, request)
        else:
            _join(k, w, server, request)
    request.site, request.at = COLOCATED, target
    if task != JOB_PREFILL:
        _set_mode(server, request, task, w.streams[request.slot].window if task == JOB_STREAM else gamma)
    wake(k, w, server)


@jit
def _set_prefill(server, request, tokens):
    """Note what a job still has to prefill."""
    server.prefill_tokens += tokens - request.job_prefill
    request.job_prefill = tokens


@jit
def _set_mode(server, request, mode, gamma):
    """Count a resident by what it has last asked of its target, and with how many drafts."""
    _count_mode(server, request.mode, request.mode_gamma, -1)
    _count_mode(server, mode, gamma, 1)
    request.mode, request.mode_gamma = mode, gamma


@jit
def _count_mode(server, mode, gamma, sign):
    if mode == JOB_PLAIN:
        server.n_plain += sign
    elif mode == JOB_COLOCATED:
        server.n_colocated += sign
        server.gammas += sign * gamma
    elif mode in (JOB_VERIFY, JOB_STREAM):
        server.n_remote += sign
        server.gammas += sign * gamma


@jit
def _enter(k, w, server, request):
    """Let a request wait for admission."""
    request.next, request.entered_s = -1, w.now_s
    if server.waiting == 0:
        server.wait_head = request.slot
    else:
        w.requests[server.wait_tail].next = request.slot
    server.wait_tail = request.slot
    server.waiting += 1
    if request.asked_batch > 1:
        server.stands_back += 1
    occupy(k, w, server)
    _admit(k, w, server)


@jit
def _prefill_again(server, request):
    """Prefill the whole lost context again, but for the newest token, which the task processes.

    A request that was in before does not stand back when it returns.
    """
    newest = 0 if request.job_task == JOB_PREFILL else 1
    _set_prefill(server, request, context_tokens(request) - newest)
    request.job_prefilled = 0
    request.asked_batch = 1


# ---------------------------------------------------------------------- preemption


@jit
def _make_room(k, w, server, n):
    """Reserve the KV that each sequence of a batch needs; return the batch's size without preempted ones."""
    running, capacity = server.running, k.targets[server.number].kv_capacity_tokens
    for i in range(n):
        request = w.requests[running[i].slot]
        gamma = 0 if request.job_prefill != 0 else request.job_gamma
        need = context_tokens(request) + gamma
        while (
            request.kv_reserved_tokens > 0
            and server.kv_reserved_tokens + max(0, need - request.kv_reserved_tokens) > capacity
        ):
            _preempt(k, w, server, n)
        if request.kv_reserved_tokens > 0:
            _give_kv(server, request, max(0, need - request.kv_reserved_tokens))
    left = 0
    for i in range(n):
        slot, tokens = running[i].slot, running[i].tokens
        if w.requests[slot].kv_reserved_tokens > 0:
            running[left].slot, running[left].tokens = slot, tokens
            left += 1
    server.n_running = left
    return left


@jit
def _preempt(k, w, server, n):
    """Preempt the request admitted last: it loses its KV, waits at the front and prefills again."""
    target = server.number
    victim, newest = -1, -1
    for slot in range(k.n_slots):
        request = w.requests[slot]
        if request.number < 0 or request.target != target or request.kv_reserved_tokens == 0:
            continue
        if victim < 0 or request.admission > newest:
            victim, newest = slot, request.admission
    request = w.requests[victim]
    w.totals.preemptions += 1
    log(k, w, LOG_PREEMPT, target, request.number, request.kv_reserved_tokens)
    free = k.targets[target].kv_capacity_tokens - server.kv_reserved_tokens
    request.kept_tokens = context_tokens(request)
    request.overwritten_from_tokens = server.kv_given_tokens + free
    server.kv_reserved_tokens -= request.kv_reserved_tokens
    request.kv_reserved_tokens = 0
    server.resident -= 1
    for rank in range(k.n_ranks):
        drafter = at_target(k, target, rank)
        if drafts_shared(k, drafter):
            set_valid_tokens(k, w, request, drafter, 0)
    here = remove_ready(w, server, victim)
    for i in range(n):
        here = here or server.running[i].slot == victim
    if here:
        if request.job_prefill != 0:
            request.kept_tokens = request.job_prefilled
        _prefill_again(server, request)
        request.entered_s = w.now_s
        request.next = server.wait_head if server.waiting > 0 else -1
        if server.waiting == 0:
            server.wait_tail = victim
        server.wait_head = victim
        server.waiting += 1


# ---------------------------------------------------------------------- when an iteration starts


@jit
def wake(k, w, server):
    """Schedule when a target next has something to do by itself.

    It starts an iteration, or admits a request that has stood back long enough.
    """
    if server.idle and server.n_ready > 0:
        due_s = _due_s(k, w, server)
        if due_s < server.check_s:
            server.check_s = due_s
            push(k, w, due_s, AT_ITERATION_START, server.number, server.number)
    if server.stands_back > 0:
        stood_back_s = _stood_back_s(k, w, server)
        if stood_back_s < server.admission_check_s:
            server.admission_check_s = stood_back_s
            push(k, w, stood_back_s, AT_ITERATION_START, server.number, server.number)


@jit
def _due_s(k, w, server):
    """Return when an iteration of the ready jobs begins, of which there are some: now, or after the wait."""
    due_s = server.oldest_s + k.targets[server.number].max_batch_wait_s
    if batching.starts(server.n_ready, server.resident, server.least_batch, w.now_s, due_s):
        return w.now_s
    return due_s


@jit
def _stood_back_s(k, w, server):
    """Return when the first of those who stand back no longer does; infinity if nobody does."""
    wait_s = k.targets[server.number].max_admission_wait_s
    slot = server.wait_head
    for _ in range(server.waiting):
        request = w.requests[slot]
        latest_s = request.entered_s + wait_s
        if request.asked_batch > 1 and latest_s > w.now_s:
            return latest_s
        slot = request.next
    return math.inf


@jit
def look(k, w, server):
    """Admit who has stood back long enough; start an iteration if the target is idle and one is due."""
    if server.check_s == w.now_s:
        server.check_s = math.inf
    if server.admission_check_s == w.now_s:
        server.admission_check_s = math.inf
        _admit(k, w, server)
    if server.idle and server.n_ready > 0 and _due_s(k, w, server) <= w.now_s:
        _start_iteration(k, w, server)
    wake(k, w, server)


@jit
def _start_iteration(k, w, server):
    target, running = server.number, server.running
    spec = k.targets[target]
    n = compose(k, w, server)
    if spec.preempts:
        n = _make_room(k, w, server, n)
        if n == 0:
            return
    prefills = drafts = False
    verifying = 0
    new = kv = longest = longest_2 = 0
    for i in range(n):
        tokens = running[i].tokens
        request = w.requests[running[i].slot]
        if request.job_task == JOB_STREAM and request.job_prefill == 0:
            stream = w.streams[request.slot]
            stream.verifying, stream.verifying_start = request.job_gamma, stream.seen_start
        share_kv = kv_read(request, tokens)
        prefills = prefills or request.job_prefill != 0
        drafts = drafts or uses(k, request) >= 0
        verifying += verifies(request, tokens)
        new += tokens
        kv += share_kv
        if tokens > 1:
            longest, longest_2 = two_longest(share_kv, longest, longest_2)
    expected_s = captured_step_s(k, w, target, new, kv, longest, prefills)
    if drafts:
        expected_s = expected_s + drafting_s(k, w, server, n, expected_s)
    overhead_s = step_times.overhead_s(spec, n, new, verifying)
    duration_s = expected_s * step_times.iteration_noise(spec, w.seed, target, server.iterations) + overhead_s
    expected_s = expected_s + overhead_s
    if w.prices:
        charge(k, w, server, n, (new, kv, longest, longest_2, prefills, verifying))
    server.idle = False
    server.iterations += 1
    server.iteration_start_s = w.now_s
    server.expected_end_s = w.now_s + expected_s
    log(k, w, LOG_ITERATION_START, target, -1, n)
    push(k, w, w.now_s + duration_s, AT_ITERATION_END, target, (server.iterations << SLOT_BITS) | target)


# ---------------------------------------------------------------------- when an iteration ends


@jit
def iteration_over(k, w, server):
    """Make a target idle and book the cost of its iteration; return how long the iteration ran."""
    spec = k.targets[server.number]
    duration_s = w.now_s - server.iteration_start_s
    server.n_running = 0
    server.idle = True
    server.busy_s += duration_s
    w.totals.gpu_s += duration_s * spec.gpus
    w.totals.energy_joules += duration_s * (spec.busy_w - spec.idle_w)
    return duration_s


@jit
def end_iteration(k, w, server):
    """Every job of the batch advances."""
    n = server.n_running
    duration_s = iteration_over(k, w, server)
    server.iteration_s += k.stats_weight * (duration_s - server.iteration_s)
    new = 0
    for i in range(n):
        new += server.running[i].tokens
    server.iteration_tokens += k.stats_weight * (new - server.iteration_tokens)
    log(k, w, LOG_ITERATION_END, server.number, -1, new)
    for i in range(n):
        _advance(k, w, server, w.requests[server.running[i].slot], server.running[i].tokens)
    wake(k, w, server)


@jit
def _advance(k, w, server, request, tokens):
    task = request.job_task
    if request.job_prefill != 0:
        _set_prefill(server, request, request.job_prefill - tokens)
        request.job_prefilled += tokens
        if request.warms and drafts_shared(k, request.drafter):
            set_valid_tokens(k, w, request, request.drafter, request.job_prefilled)
        if request.job_closes and request.job_prefill == 0:
            _done(k, w, request)
            return
        if request.job_prefill != 0 or task != JOB_PREFILL:
            _append_ready(server, request)
            return
        _commit(k, w, request, 1)
    elif task == JOB_PLAIN:
        _commit(k, w, request, 1)
        request.job_chunk -= 1
        if request.job_chunk > 0 and request.committed < request.output_tokens:
            _join(k, w, server, request)
            return
        remember(request, 0, 0)
    elif task == JOB_COLOCATED:
        request.chain_start = request.committed
        _verified(k, w, request, request.drafter, request.job_gamma)
    elif task == JOB_STREAM:
        _step_stream(k, w, server, request)
        return
    else:
        _verified(k, w, request, request.drafter, request.job_gamma)
    _done(k, w, request)


@jit
def _done(k, w, request):
    push_now(k, w, AT_JOB_DONE, request.number, tag(request, IS_WAIT))


@jit
def _verified(k, w, request, drafter, drafted):
    """A window has been verified: so many of its drafts are right, and one token more."""
    model = k.drafters[drafter].model
    start = request.committed
    left = request.output_tokens - start
    run = run_length(k, w, request, model, request.chain_start, start, min(drafted + 1, left))
    accepted = drafting.accepted_tokens(drafted, run, left)
    request.guessed = guessed_after(k, w, request, model, request.chain_start, start, drafted, run)
    committed = min(accepted + 1, left)
    made = drafted + request.dropped
    valid = drafting.valid_after(request.prompt_tokens + start, made, accepted)
    set_valid_tokens(k, w, request, drafter, valid)
    w.totals.discarded += request.dropped
    request.drafted_at, request.drafted_branches = drafter, False
    request.verifies += 1
    request.drafted += drafted
    request.accepted += accepted
    request.round_tokens = committed
    last = min(start + max(0, min(accepted, drafted - 1)), request.output_tokens - 1)
    confidence = top1_prob(k, w, request, model, last)
    learn(k, w, request, model, drafted, accepted, committed, confidence)
    _count_verified(w, model, drafted, accepted, committed)
    _commit(k, w, request, committed)


@jit
def _count_verified(w, model, drafted, accepted, committed):
    w.totals.drafted += drafted
    w.totals.accepted += accepted
    w.totals.verified_rounds += 1
    w.totals.round_tokens += committed
    if drafted > 0:
        reports.note_verified(w.pools[model], drafted, accepted)


# ---------------------------------------------------------------------- streams


@jit
def _step_stream(k, w, server, request):
    """Commit what an iteration made of a stream's drafts: the accepted ones and one more token."""
    stream, drafted = w.streams[request.slot], request.job_gamma
    model = k.drafters[stream.drafter].model
    start = request.committed
    left = request.output_tokens - start
    accepted, confidence = 0, 0.0
    if drafted > 0:
        run = run_length(k, w, request, model, stream.verifying_start, start, min(drafted, left))
        accepted = drafting.accepted_tokens(drafted, run, left)
        last = min(start + min(accepted, drafted - 1), request.output_tokens - 1)
        confidence = float(top1_prob(k, w, request, model, last))
    committed = min(accepted + 1, left)
    w.totals.stream_iterations += 1
    if drafted > 0:
        request.verifies += 1
        request.drafted += drafted
        request.accepted += accepted
        _count_verified(w, model, drafted, accepted, committed)
    else:
        w.totals.stream_idle_iterations += 1
    verified = stream.verifying == drafted
    if verified:
        keep_drafts(k, w, request, stream, drafted, accepted)
    _commit(k, w, request, committed)
    if not verified:
        compare(k, w, request, stream, start)
    stream.verifying = 0
    if request.committed >= request.output_tokens:
        stop_stream(k, w, request)
        _done(k, w, request)
        return
    tell(k, w, request, committed, drafted, accepted, confidence)
    if request.job_closes:
        _done(k, w, request)
    elif request.job_coalesces and available(stream, request.committed) == 0:
        _idle(k, w, request)
    else:
        _join(k, w, server, request)


@jit
def _idle(k, w, request):
    """Let a stream's job wait for drafts, no longer than the target's patience."""
    request.job_idle = True
    request.idle_until_s = w.now_s + k.patience_s
    # One timer a request: when it goes off too early, it is set again.
    if not request.idle_timer_set:
        _set_idle_timer(k, w, request)


@jit
def _set_idle_timer(k, w, request):
    request.idle_timer_set = True
    push(k, w, request.idle_until_s, AT_TIMEOUT, 2 * request.number, (1 << SLOT_BITS) | request.slot)


@jit
def stop_idling(k, w, request):
    """Let the target decode for a stream, because no draft has come in time."""
    request.idle_timer_set = False
    if not request.streams or not request.job_idle:
        return
    if w.now_s < request.idle_until_s:
        _set_idle_timer(k, w, request)
        return
    w.totals.takeovers += 1
    log(k, w, LOG_TAKEOVER, request.target, request.number, k.patience_s)
    _end_idle(k, w, request)


@jit
def _end_idle(k, w, request):
    server = w.targets[request.target]
    request.job_idle = False
    if request.kv_reserved_tokens == 0:  # preempted meanwhile
        _prefill_again(server, request)
        _enter(k, w, server, request)
    else:
        _join(k, w, server, request)
    wake(k, w, server)


@jit
def note_drafts(k, w, request):
    """Note that a message of a stream has come.

    The B that it tells is that of verifications, at once: a request that waits to be admitted again does not
    stand back for it.
    """
    stream, server = w.streams[request.slot], w.targets[request.target]
    _set_mode(server, request, JOB_STREAM, stream.seen_window)
    if request.kv_reserved_tokens > 0 and request.asked_batch != stream.seen_batch:
        request.asked_batch = stream.seen_batch
        note_all_ready(w, server)
        wake(k, w, server)
    if request.job_idle and available(stream, request.committed) > 0:
        _end_idle(k, w, request)


@jit
def close_seat(k, w, request):
    """Close a stream as soon as its context is there and no iteration needs it."""
    request.job_closes = True
    if request.job_idle:
        request.job_idle = False
        _done(k, w, request)
    elif request.job_prefill == 0 and remove_ready(w, w.targets[request.target], request.slot):
        _done(k, w, request)


# ---------------------------------------------------------------------- tokens


@jit
def _commit(k, w, request, tokens):
    """Tokens are committed and sent to the client, which reads them in order."""
    first = request.committed == 0
    if first:
        request.first_commit_s = w.now_s
    request.last_commit_s = w.now_s
    request.committed += tokens
    w.totals.output_tokens += tokens
    w.totals.sequence_iterations += 1
    w.tokens_seen += tokens
    number_of_request = request.number
    log(k, w, LOG_COMMIT, request.target, number_of_request, tokens)
    arrives_s = send_down(k, w, request, request.target, tokens * k.bytes_per_token)
    if k.token_acks:
        time_tokens(k, w, request, arrives_s)
    before = request.committed - tokens
    if not first:
        arrives_s = max(arrives_s, request.last_delivery_s)
    slo.note_delivery(request, k.kinds[request.kind], before, tokens, request.last_delivery_s, arrives_s)
    if first:
        request.first_delivery_s = arrives_s
    request.last_delivery_s = arrives_s
    if k.delivery_capacity > 0 and is_measured(w, number_of_request):
        n = w.deliveries_n
        if n >= k.delivery_capacity:
            w.error = DELIVERIES_FULL
        else:
            line = w.deliveries[n]
            line.arrives_s, line.number, line.tokens = arrives_s, number_of_request, tokens
            w.deliveries_n = n + 1
    if request.committed >= request.output_tokens:
        release(k, w, request)
