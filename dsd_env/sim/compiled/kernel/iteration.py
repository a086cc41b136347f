"""What an iteration of a target costs, and what each sequence in it adds to that."""
# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

from __future__ import annotations

from dsd_env.laws import step_times
from dsd_env.sim.compiled.kernel.batching import JOB_COLOCATED
from dsd_env.sim.compiled.kernel.drafters import (
    at_target,
    context_tokens,
    drafts_shared,
    lag_tokens,
    step_s,
)
from dsd_env.sim.compiled.kernel.jit import jit


@jit
def target_step_s(k, w, target, new_tokens, kv_tokens, longest):
    """Return the time of a target's iteration."""
    return step_times.step_s(k.targets[target], 1.0, new_tokens, kv_tokens, longest)


@jit
def captured_step_s(k, w, target, new_tokens, kv_tokens, longest, prefills):
    """Return the same; without prefill it runs at the next captured number of tokens."""
    spec = k.targets[target]
    if spec.pads and not prefills and new_tokens < spec.length:
        new_tokens = spec.padded[new_tokens]
    return target_step_s(k, w, target, new_tokens, kv_tokens, longest)


@jit
def uses(k, request):
    """Return the drafter on its target's server that a job uses in an iteration; -1 for none."""
    drafter = request.drafter
    if request.job_prefill != 0:
        prefills = request.warms and drafts_shared(k, drafter) and not k.drafters[drafter].per_round
        return drafter if prefills else -1
    return drafter if request.job_task == JOB_COLOCATED else -1


@jit
def kv_read(request, tokens):
    """Return the KV tokens that a job with so many new tokens reads."""
    return (request.job_prefilled if request.job_prefill != 0 else context_tokens(request) - 1) + tokens


@jit
def _draft_share(k, w, request, tokens):
    """Return what a job brings into the passes of its drafter: (lag, KV tokens, gamma)."""
    if request.job_prefill != 0:
        return tokens, request.job_prefilled + tokens, 0
    return (
        lag_tokens(k, w, request, request.drafter),
        context_tokens(request),
        request.job_gamma + request.dropped,
    )


@jit
def two_longest(kv_tokens, longest, longest_2):
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
        if uses(k, request) != drafter:
            continue
        sequences += 1
        share_lag, share_kv, gamma = _draft_share(k, w, request, running[i].tokens)
        lag += share_lag
        lag_kv += share_kv
        if share_lag > 1:
            longest, longest_2 = two_longest(share_kv, longest, longest_2)
        most = max(most, gamma)
    return sequences, lag, lag_kv, longest, longest_2, most


@jit
def drafting_s(k, w, server, n, target_s):
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
            passes_s = sequences * step_s(k, w, drafter, 1, 0, 0)
        else:
            passes_s = step_s(k, w, drafter, lag, lag_kv, longest)
            for step in range(2, most + 1):
                together, step_kv = _drafting_at(k, w, server, n, drafter, step)
                passes_s += step_s(k, w, drafter, together, step_kv, 0)
        whole_s += passes_s + spec.verify_share * target_s
    return whole_s


@jit
def verifies(request, tokens):
    """Return 1 if a job has drafts verified: more than one new token, and no prompt's; else 0."""
    return 1 if tokens > 1 and request.job_prefill == 0 else 0


@jit
def _drafting_at(k, w, server, n, drafter, step):
    """Return how many sequences draft at least `step` tokens by a drafter, and the KV they read then."""
    sequences = kv = 0
    for i in range(n):
        request = w.requests[server.running[i].slot]
        made = request.job_gamma + request.dropped
        if request.job_prefill == 0 and uses(k, request) == drafter and made >= step:
            sequences += 1
            kv += context_tokens(request)
    return sequences, kv + sequences * (step - 1)


@jit
def _caused_s(k, w, server, n, request, tokens, whole):
    """Return the part of the iteration's time that one of its sequences has to answer for."""
    new, kv, longest, longest_2, prefills, verifying = whole
    spec = k.targets[server.number]
    target, drafter = server.number, uses(k, request)
    share_kv = kv_read(request, tokens)
    others = longest_2 if tokens > 1 and share_kv == longest else longest
    with_s = captured_step_s(k, w, target, new, kv, longest, prefills)
    caused_s = with_s + step_times.overhead_s(spec, n, new, verifying)
    if new > tokens:
        caused_s -= captured_step_s(k, w, target, new - tokens, kv - share_kv, others, prefills)
        verifying -= verifies(request, tokens)
        caused_s -= step_times.overhead_s(spec, n - 1, new - tokens, verifying)
    if drafter < 0:
        return caused_s
    return caused_s + _drafting_share_s(k, w, server, n, request, tokens, with_s)


@jit
def _drafting_share_s(k, w, server, n, request, tokens, target_s):
    """Return a sequence's share of its shared drafter's time: of each step among those that asked for it."""
    drafter = uses(k, request)
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
def charge(k, w, server, n, whole):
    """Account to each request of a batch how long it makes others wait."""
    others = n - 1 + server.n_ready + server.waiting
    for i in range(n):
        request = w.requests[server.running[i].slot]
        caused_s = _caused_s(k, w, server, n, request, server.running[i].tokens, whole)
        request.delay_caused_s += caused_s * others
