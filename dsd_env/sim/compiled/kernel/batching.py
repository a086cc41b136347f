"""Which ready jobs take part in a target's next iteration."""
# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

from __future__ import annotations

import math

from dsd_env.laws import batching
from dsd_env.sim.compiled.kernel.jit import compile_laws, jit, number
from dsd_env.sim.compiled.kernel.streams import available

compile_laws(batching)

JOB_PREFILL, JOB_VERIFY, JOB_PLAIN, JOB_COLOCATED, JOB_STREAM = (number(task) for task in range(5))
"""What a request asks of its target: the members of :class:`dsd_env.sim.entities.TargetTask`."""
NOBODY = number(2**31 - 1)
"""Batch that the ready jobs want if there is none."""


@jit
def goes_before(spec, oldest, a, b):
    """Return whether one request's ready job goes before another's; `oldest`: slot of the oldest job."""
    if (a.job_prefill != 0) != (b.job_prefill != 0):
        return (a.job_prefill != 0) == spec.prefill_first
    if a.slot == oldest or b.slot == oldest:
        return a.slot == oldest
    if spec.shortest_first:
        size_a = a.job_prefill if a.job_prefill != 0 else a.job_gamma
        size_b = b.job_prefill if b.job_prefill != 0 else b.job_gamma
        if size_a != size_b:
            return size_a < size_b
    return _older(a, b)


@jit
def _older(a, b):
    if a.queued_s != b.queued_s:
        return a.queued_s < b.queued_s
    return a.job_sequence < b.job_sequence


@jit
def least_batch(request):
    """Return the smallest batch that a request's job wants to take part in."""
    return batching.least_batch(request.job_coalesces and request.job_prefill == 0, request.asked_batch)


@jit
def note_ready(server, request):
    """Note of a ready job since when it has been queued, and which batch it wants."""
    server.oldest_s = min(server.oldest_s, request.queued_s)
    server.least_batch = min(server.least_batch, least_batch(request))


@jit
def note_all_ready(w, server):
    """Note the same of all ready jobs."""
    server.oldest_s, server.least_batch = math.inf, NOBODY
    for i in range(server.n_ready):
        note_ready(server, w.requests[server.ready[i]])


@jit
def compose(k, w, server):
    """Fill the running list, leave the rest ready; return the batch's size.

    All take part whose new tokens fit into the budget: one class (prefill or decode) first, then the other,
    and within a class first come first served or shortest first, but for the oldest job, the first of its
    class.
    """
    spec = k.targets[server.number]
    ready, running, n = server.ready, server.running, server.n_ready
    for i in range(n):
        request = w.requests[ready[i]]
        if request.job_task == JOB_STREAM and request.job_prefill == 0:
            request.job_gamma = available(w.streams[request.slot], request.committed)
    oldest = 0
    for i in range(1, n):
        if _older(w.requests[ready[i]], w.requests[ready[oldest]]):
            oldest = i
    oldest = ready[oldest]
    for i in range(1, n):  # ready lists are nearly in order: insertion sort
        slot = ready[i]
        request = w.requests[slot]
        at = i
        while at > 0 and goes_before(spec, oldest, request, w.requests[ready[at - 1]]):
            ready[at] = ready[at - 1]
            at -= 1
        ready[at] = slot
    budget = spec.max_num_batched_tokens
    size = left = 0
    for i in range(n):
        slot = ready[i]
        request = w.requests[slot]
        prefill = request.job_prefill
        tokens = request.job_gamma + 1
        if prefill != 0:
            tokens = min(prefill, budget)
        if tokens == 0 or tokens > budget:
            ready[left] = slot
            left += 1
            continue
        budget -= tokens
        running[size].slot, running[size].tokens = slot, tokens
        size += 1
    server.n_ready, server.n_running = left, size
    note_all_ready(w, server)
    return size


@jit
def remove_ready(w, server, slot):
    """Take a request's job off the ready list; return whether it was there."""
    ready, left = server.ready, 0
    for i in range(server.n_ready):
        if ready[i] != slot:
            ready[left] = ready[i]
            left += 1
    there = left < server.n_ready
    server.n_ready = left
    note_all_ready(w, server)
    return there
