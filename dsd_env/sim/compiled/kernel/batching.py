"""Which ready jobs take part in a target's next iteration."""
# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

from __future__ import annotations

import math

from dsd_env.sim.compiled.kernel.jit import jit


@jit
def goes_before(spec, a, b):
    """Return whether one request's ready job goes before another's (the oldest of all apart)."""
    if (a.job_prefill != 0) != (b.job_prefill != 0):
        return (a.job_prefill != 0) == spec.prefill_first
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
def find_oldest(w, server):
    """Note since when the oldest of the ready jobs has been queued."""
    oldest_s = math.inf
    for i in range(server.n_ready):
        oldest_s = min(oldest_s, w.requests[server.ready[i]].queued_s)
    server.oldest_s = oldest_s


@jit
def compose(k, w, server):
    """Fill the running list, leave the rest ready; return the batch's size.

    At most the batch size in force takes part; prefill chunks share a budget of tokens. The job that has
    waited longest always has a seat; the rest go by class, and within a class first come first served or
    shortest first.
    """
    spec = k.targets[server.number]
    ready, running, n = server.ready, server.running, server.n_ready
    oldest = 0
    for i in range(1, n):
        if _older(w.requests[ready[i]], w.requests[ready[oldest]]):
            oldest = i
    first = ready[oldest]
    ready[oldest] = ready[0]
    ready[0] = first
    for i in range(2, n):  # ready lists are nearly in order: insertion sort
        slot = ready[i]
        request = w.requests[slot]
        at = i
        while at > 1 and goes_before(spec, request, w.requests[ready[at - 1]]):
            ready[at] = ready[at - 1]
            at -= 1
        ready[at] = slot
    seats = min(server.batch_size, spec.max_batch_size)
    budget = spec.prefill_chunk_tokens
    size = left = 0
    for i in range(n):
        slot = ready[i]
        request = w.requests[slot]
        prefill = request.job_prefill
        if size == seats or (prefill != 0 and budget == 0):
            ready[left] = slot
            left += 1
            continue
        tokens = request.job_gamma + 1
        if prefill != 0:
            tokens = min(prefill, budget)
            budget -= tokens
        running[size].slot, running[size].tokens = slot, tokens
        size += 1
    server.n_ready, server.n_running = left, size
    find_oldest(w, server)
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
    find_oldest(w, server)
    return there
