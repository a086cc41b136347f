"""Target servers: admission to the KV pool, the ready queue, iterations, and what they commit."""
# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

from __future__ import annotations

import math

from dsd_env.control.view import RECENT_ROUNDS
from dsd_env.laws import batching, drafting, slo, step_times
from dsd_env.sim.compiled.kernel.acceptance import guessed_after, run_length, top1_prob
from dsd_env.sim.compiled.kernel.accounts import is_measured, occupy
from dsd_env.sim.compiled.kernel.batching import (
    JOB_COLOCATED,
    JOB_PLAIN,
    JOB_PREFILL,
    JOB_VERIFY,
    compose,
    note_ready,
    remove_ready,
)
from dsd_env.sim.compiled.kernel.drafters import (
    at_target,
    context_tokens,
    drafts_shared,
    lag_tokens,
    set_valid_tokens,
    step_s,
)
from dsd_env.sim.compiled.kernel.events import (
    AT_ITERATION_END,
    AT_ITERATION_START,
    AT_JOB_DONE,
    IS_WAIT,
    LOG_ADMIT,
    LOG_COMMIT,
    LOG_ENQUEUE,
    LOG_ITERATION_END,
    LOG_ITERATION_START,
    LOG_PREEMPT,
    SLOT_BITS,
    log,
    push,
    push_now,
    tag,
)
from dsd_env.sim.compiled.kernel.jit import compile_laws, jit, number
from dsd_env.sim.compiled.kernel.links import send_down
from dsd_env.sim.compiled.status import DELIVERIES_FULL, TABLE_RANGE

compile_laws(slo)

NO_MODE = JOB_PREFILL
"""Mode of a request that has asked for nothing but its prefill: it counts in none of the numbers by mode."""

COLOCATED, OWN_DEVICE, EDGE_SERVER = (number(site) for site in range(3))
"""Where control is, and where drafts are made."""


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
        _join(k, w, server, request)
    request.site, request.at = COLOCATED, target
    if task != JOB_PREFILL:
        _set_mode(server, request, task, gamma)
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
    elif mode == JOB_VERIFY:
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


# ---------------------------------------------------------------------- what an iteration costs


@jit
def target_step_s(k, w, target, new_tokens, kv_tokens, longest):
    """Return the time of a target's iteration."""
    spec = k.targets[target]
    if new_tokens >= spec.length:
        w.error = TABLE_RANGE
        return 1.0
    return step_times.step_s(spec, 1.0, new_tokens, kv_tokens, longest)


@jit
def _captured_step_s(k, w, target, new_tokens, kv_tokens, longest, prefills):
    """Return the same; without prefill it runs at the next captured number of tokens."""
    spec = k.targets[target]
    if spec.pads and not prefills and new_tokens < spec.length:
        new_tokens = spec.padded[new_tokens]
    return target_step_s(k, w, target, new_tokens, kv_tokens, longest)


@jit
def _uses(k, request):
    """Return the drafter on its target's server that a job uses in an iteration; -1 for none."""
    drafter = request.drafter
    if request.job_prefill != 0:
        prefills = request.warms and drafts_shared(k, drafter) and not k.drafters[drafter].per_round
        return drafter if prefills else -1
    return drafter if request.job_task == JOB_COLOCATED else -1


@jit
def _kv_read(request, tokens):
    """Return the KV tokens that a job with so many new tokens reads."""
    return (request.job_prefilled if request.job_prefill != 0 else context_tokens(request) - 1) + tokens


@jit
def _draft_share(k, w, request, tokens):
    """Return what a job brings into the passes of its drafter: (lag, KV tokens, gamma)."""
    if request.job_prefill != 0:
        return tokens, request.job_prefilled + tokens, 0
    return lag_tokens(k, w, request, request.drafter), context_tokens(request), request.job_gamma


@jit
def _two_longest(kv_tokens, longest, longest_2):
    """Return the two longest of three numbers of KV tokens, the last two of which are in order."""
    if kv_tokens > longest:
        return kv_tokens, longest
    return longest, max(kv_tokens, longest_2)


@jit
def _passes(k, w, server, n, drafter):
    """Return (sequences, lag, lag's KV, its longest and second longest KV, longest draft) of a drafter."""
    running = server.running
    sequences = lag = lag_kv = longest = longest_2 = most = 0
    for i in range(n):
        request = w.requests[running[i].slot]
        if _uses(k, request) != drafter:
            continue
        sequences += 1
        share_lag, share_kv, gamma = _draft_share(k, w, request, running[i].tokens)
        lag += share_lag
        lag_kv += share_kv
        if share_lag > 1:
            longest, longest_2 = _two_longest(share_kv, longest, longest_2)
        most = max(most, gamma)
    return sequences, lag, lag_kv, longest, longest_2, most


@jit
def _drafting_s(k, w, server, n, target_s):
    """Return how long the drafters on a target's server take in an iteration, one after the other."""
    whole_s = 0.0
    for rank in range(k.n_ranks):
        drafter = at_target(k, server.number, rank)
        if not drafts_shared(k, drafter):
            continue
        sequences, lag, lag_kv, longest, _, most = _passes(k, w, server, n, drafter)
        if sequences == 0:
            continue
        spec = k.drafters[drafter]
        if spec.per_round:
            drafting_s = sequences * step_s(k, w, drafter, 1, 0, 0)
        else:
            drafting_s = step_s(k, w, drafter, lag, lag_kv, longest)
            for step in range(2, most + 1):
                together, step_kv = _drafting_at(k, w, server, n, drafter, step)
                drafting_s += step_s(k, w, drafter, together, step_kv, 0)
        whole_s += drafting_s + spec.verify_share * target_s
    return whole_s


@jit
def _verifies(request, tokens):
    """Return 1 if a job has drafts verified: more than one new token, and no prompt's; else 0."""
    return 1 if tokens > 1 and request.job_prefill == 0 else 0


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
        share_kv = _kv_read(request, tokens)
        prefills = prefills or request.job_prefill != 0
        drafts = drafts or _uses(k, request) >= 0
        verifying += _verifies(request, tokens)
        new += tokens
        kv += share_kv
        if tokens > 1:
            longest, longest_2 = _two_longest(share_kv, longest, longest_2)
    expected_s = _captured_step_s(k, w, target, new, kv, longest, prefills)
    if drafts:
        expected_s = expected_s + _drafting_s(k, w, server, n, expected_s)
    overhead_s = step_times.overhead_s(spec, n, new, verifying)
    duration_s = expected_s * step_times.iteration_noise(spec, w.seed, target, server.iterations) + overhead_s
    expected_s = expected_s + overhead_s
    if w.prices:
        _charge(k, w, server, n, (new, kv, longest, longest_2, prefills, verifying))
    server.idle = False
    server.iterations += 1
    server.iteration_start_s = w.now_s
    server.expected_end_s = w.now_s + expected_s
    log(k, w, LOG_ITERATION_START, target, -1, n)
    push(k, w, w.now_s + duration_s, AT_ITERATION_END, target, (server.iterations << SLOT_BITS) | target)


@jit
def _drafting_at(k, w, server, n, drafter, step):
    """Return how many sequences draft at least `step` tokens by a drafter, and the KV they read then."""
    sequences = kv = 0
    for i in range(n):
        request = w.requests[server.running[i].slot]
        if request.job_prefill == 0 and _uses(k, request) == drafter and request.job_gamma >= step:
            sequences += 1
            kv += context_tokens(request)
    return sequences, kv + sequences * (step - 1)


@jit
def _caused_s(k, w, server, n, request, tokens, whole):
    """Return the part of the iteration's time that one of its sequences has to answer for."""
    new, kv, longest, longest_2, prefills, verifying = whole
    spec = k.targets[server.number]
    target, drafter = server.number, _uses(k, request)
    share_kv = _kv_read(request, tokens)
    others = longest_2 if tokens > 1 and share_kv == longest else longest
    with_s = _captured_step_s(k, w, target, new, kv, longest, prefills)
    caused_s = with_s + step_times.overhead_s(spec, n, new, verifying)
    if new > tokens:
        caused_s -= _captured_step_s(k, w, target, new - tokens, kv - share_kv, others, prefills)
        verifying -= _verifies(request, tokens)
        caused_s -= step_times.overhead_s(spec, n - 1, new - tokens, verifying)
    if drafter < 0:
        return caused_s
    return caused_s + _drafting_share_s(k, w, server, n, request, tokens, with_s)


@jit
def _drafting_share_s(k, w, server, n, request, tokens, target_s):
    """Return a sequence's share of its shared drafter's time: of each step among those that asked for it."""
    drafter = _uses(k, request)
    users, lag, lag_kv, lag_longest, _, _ = _passes(k, w, server, n, drafter)
    share_s = k.drafters[drafter].verify_share * target_s / users
    if k.drafters[drafter].per_round:
        return share_s + step_s(k, w, drafter, 1, 0, 0)
    share_lag, _, gamma = _draft_share(k, w, request, tokens)
    least_s = step_s(k, w, drafter, users, lag_kv, 0)
    share_s += least_s / users
    more = lag - users
    if more > 0:
        first_s = step_s(k, w, drafter, lag, lag_kv, lag_longest)
        share_s += (first_s - least_s) * (share_lag - 1) / more
    for step in range(2, gamma + 1):
        sequences, step_kv = _drafting_at(k, w, server, n, drafter, step)
        share_s += step_s(k, w, drafter, sequences, step_kv, 0) / sequences
    return share_s


@jit
def _charge(k, w, server, n, whole):
    """Account to each request of a batch how long it makes others wait."""
    others = n - 1 + server.n_ready + server.waiting
    for i in range(n):
        request = w.requests[server.running[i].slot]
        caused_s = _caused_s(k, w, server, n, request, server.running[i].tokens, whole)
        request.delay_caused_s += caused_s * others


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
        _remember(request, 0, 0)
    elif task == JOB_COLOCATED:
        request.chain_start = request.committed
        _verified(k, w, request, request.drafter, request.job_gamma)
    else:
        _verified(k, w, request, request.drafter, request.job_gamma)
    push_now(k, w, AT_JOB_DONE, request.number, tag(request, IS_WAIT))


@jit
def _remember(request, drafted, accepted):
    """Keep the outcome of the last rounds, newest first."""
    gammas, counts = request.recent_gammas, request.recent_accepted
    for i in range(RECENT_ROUNDS - 1, 0, -1):
        gammas[i] = gammas[i - 1]
        counts[i] = counts[i - 1]
    gammas[0] = drafted
    counts[0] = accepted


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
    valid = drafting.valid_after(request.prompt_tokens + start, drafted, accepted)
    set_valid_tokens(k, w, request, drafter, valid)
    request.drafted_at = drafter
    request.verifies += 1
    request.drafted += drafted
    request.accepted += accepted
    request.round_tokens = committed
    last = min(start + max(0, min(accepted, drafted - 1)), request.output_tokens - 1)
    request.last_confidence = top1_prob(k, w, request, model, last)
    _remember(request, drafted, accepted)
    drafting.learn_round(request, drafted, accepted, committed, k.stats_weight)
    learned = w.learned[k.n_models * request.slot + model]
    drafting.learn_round(learned, drafted, accepted, committed, k.stats_weight)
    learned.model_rounds += 1
    w.totals.drafted += drafted
    w.totals.accepted += accepted
    w.totals.verified_rounds += 1
    w.totals.round_tokens += committed
    _commit(k, w, request, committed)


@jit
def _commit(k, w, request, tokens):
    """Tokens are committed and sent to the client."""
    first = request.committed == 0
    if first:
        request.first_commit_s = w.now_s
    request.last_commit_s = w.now_s
    request.committed += tokens
    w.totals.output_tokens += tokens
    w.tokens_seen += tokens
    number_of_request = request.number
    log(k, w, LOG_COMMIT, request.target, number_of_request, tokens)
    arrives_s = send_down(k, w, request, tokens * k.bytes_per_token)
    before = request.committed - tokens
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
