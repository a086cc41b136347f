"""What crashes, what that takes along, and what comes back."""
# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

from __future__ import annotations

import math

from dsd_env.laws import faults
from dsd_env.sim.compiled.codes import AT_EDGE, AT_TARGET
from dsd_env.sim.compiled.kernel import batching
from dsd_env.sim.compiled.kernel.accounts import occupy
from dsd_env.sim.compiled.kernel.drafters import (
    at_target,
    host_goes_down,
    host_returns,
    is_host,
    lose_kv,
    redo_jobs,
)
from dsd_env.sim.compiled.kernel.events import AT_FAULT, LOG_FAULT, LOG_RETURN, log, push
from dsd_env.sim.compiled.kernel.jit import compile_laws, jit
from dsd_env.sim.compiled.kernel.links import EDGE_SERVER, OWN_DEVICE
from dsd_env.sim.compiled.kernel.requests import FOR_PLACE, abandon, ask, finished, is_down, reconnect
from dsd_env.sim.compiled.kernel.streams import resume_streams, suspend_streams
from dsd_env.sim.compiled.kernel.targets import NO_MODE, iteration_over

compile_laws(faults)


@jit
def next_crash(k, w, n):
    """Schedule the next crash of one that crashes."""
    window, fault = w.crashes[n].window, k.faults[n]
    faults.next_window(window, fault, w.seed)
    if window.start_s < math.inf:
        push(k, w, window.start_s, AT_FAULT, fault.number, n)


@jit
def fault_event(k, w, n):
    """One that crashes goes down, or comes back."""
    crash, fault = w.crashes[n], k.faults[n]
    if not crash.down:
        crash.down = True
        log(k, w, LOG_FAULT, fault.entity, -1, fault.number)
        _crash(k, w, fault.site, fault.entity)
        push(k, w, crash.window.end_s, AT_FAULT, fault.number, n)
    else:
        crash.down = False
        log(k, w, LOG_RETURN, fault.entity, -1, fault.number)
        _come_back(k, w, fault.site, fault.entity)
        next_crash(k, w, n)


@jit
def _crash_drafters(k, w, site):
    """Crash the drafters of a site that do not share its target's server."""
    for rank in range(k.n_ranks):
        host = rank * k.n_sites + site
        if is_host(k, host) and host_goes_down(k, w, host):
            suspend_streams(k, w, host)
            redo_jobs(k, w, host)


@jit
def _drafters_return(k, w, site):
    """Let the drafters of a site come back."""
    for rank in range(k.n_ranks):
        host = rank * k.n_sites + site
        if is_host(k, host) and host_returns(k, w, host):
            resume_streams(k, w, host)


@jit
def _crash(k, w, site, entity):
    if site == AT_TARGET:
        server = w.targets[entity]
        server.down += 1
        if server.down == 1:
            _crash_target(k, w, server)
    elif site == AT_EDGE:
        _crash_drafters(k, w, k.n_devices + entity)
    else:
        w.devices[entity].down_faults += 1
        _crash_drafters(k, w, entity)


@jit
def _come_back(k, w, site, entity):
    if site == AT_TARGET:
        server = w.targets[entity]
        server.down -= 1
        if server.down == 0:
            _drafters_return(k, w, at_target(k, entity, 0))
        return
    if site == AT_EDGE:
        place = EDGE_SERVER
        _drafters_return(k, w, k.n_devices + entity)
    else:
        place = OWN_DEVICE
        w.devices[entity].down_faults -= 1
        _drafters_return(k, w, entity)
    if is_down(k, w, place, entity):
        return
    for slot in range(k.n_slots):
        request = w.requests[slot]
        waits = request.number >= 0 and request.waits_for == FOR_PLACE
        if waits and request.site == place and request.at == entity:
            ask(k, w, request)


@jit
def _crash_target(k, w, server):
    """Take from a target its KV, its queue and the iteration under way, and interrupt its requests."""
    if not server.idle:
        iteration_over(k, w, server)
    server.n_ready, server.waiting, server.resident = 0, 0, 0
    server.n_plain = server.n_colocated = server.n_remote = server.gammas = server.prefill_tokens = 0
    occupy(k, w, server)
    server.kv_reserved_tokens = 0
    server.check_s, server.admission_check_s, server.oldest_s = math.inf, math.inf, math.inf
    server.stands_back, server.least_batch = 0, batching.NOBODY
    number = -1
    while True:
        slot = _next_victim(k, w, server.number, number)
        if slot < 0:
            break
        request = w.requests[slot]
        number = request.number
        request.target, request.kv_reserved_tokens, request.kept_tokens = -1, 0, 0
        request.lost_target = server.number
        request.mode = NO_MODE
        w.totals.interruptions += 1
        abandon(k, w, request)
        reconnect(k, w, request)
    for rank in range(k.n_ranks):
        lose_kv(k, w, at_target(k, server.number, rank))
    _crash_drafters(k, w, at_target(k, server.number, 0))


@jit
def _next_victim(k, w, target, number):
    """Return the slot of the first request after `number` that is at a target; -1 if there is none."""
    best, best_number = -1, -1
    for slot in range(k.n_slots):
        request = w.requests[slot]
        other = request.number
        if other <= number or request.done or request.target != target:
            continue
        if not finished(request) and (best < 0 or other < best_number):
            best, best_number = slot, other
    return best
