"""Totals that grow with time, the GPUs that are occupied, and the boundaries of the measured window."""
# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

from __future__ import annotations

import math

from dsd_env.sim.compiled.kernel.events import AT_KEEP_ALIVE_END, push
from dsd_env.sim.compiled.kernel.jit import jit
from dsd_env.sim.compiled.kernel.rows import assign
from dsd_env.sim.compiled.status import TRUNCATED


@jit
def _grow(k, w, totals, now_s):
    """Bring totals that grow with time up to a time."""
    elapsed_s = now_s - totals.time_s
    if elapsed_s > 0.0:
        totals.request_seconds += w.in_system * elapsed_s
        totals.gpu_occupied_s += w.occupied_gpus * elapsed_s
        totals.cloud_usd += w.occupied_usd_per_s * elapsed_s
        totals.energy_joules += k.idle_w * elapsed_s
        totals.time_s = now_s


@jit
def accrue(k, w, now_s):
    """Bring the totals of the episode up to a time."""
    _grow(k, w, w.totals, now_s)


# ---------------------------------------------------------------------- occupied GPUs


@jit
def occupancy_changes(k, w):
    """Accrue what the occupied GPUs have cost until now, and note which are occupied from now on."""
    accrue(k, w, w.now_s)
    gpus = usd_per_s = 0.0
    for target in range(k.n_targets):
        if w.targets[target].is_occupied:
            spec = k.targets[target]
            gpus += spec.gpus
            usd_per_s += spec.gpus * spec.price_usd_per_gpu_hour / 3600.0
    for n in range(k.n_drafters):
        drafter = k.drafters[n]
        if drafter.gpus > 0.0 and drafter.host == n and w.drafters[n].active > 0:
            gpus += drafter.gpus
            usd_per_s += drafter.gpus * drafter.price_usd_per_gpu_hour / 3600.0
    w.occupied_gpus, w.occupied_usd_per_s = gpus, usd_per_s


@jit
def occupy(k, w, server):
    """Note whether requests are at a target, after that may have changed."""
    if server.resident > 0 or server.waiting > 0:
        server.kept_until_s = math.inf
        _pay_for(k, w, server, True)
    elif server.kept_until_s == math.inf:
        keep_alive_s = k.targets[server.number].keep_alive_s
        server.kept_until_s = w.now_s + keep_alive_s
        if keep_alive_s == 0.0:
            _pay_for(k, w, server, False)
        elif not server.keep_alive_set:
            # One timer a target: when it goes off too early, it is set again.
            _set_keep_alive(k, w, server)


@jit
def keep_alive_ends(k, w, server):
    """Let a target go, unless somebody has come meanwhile."""
    server.keep_alive_set = False
    if w.now_s >= server.kept_until_s:
        _pay_for(k, w, server, False)
    elif server.kept_until_s < math.inf:
        _set_keep_alive(k, w, server)


@jit
def _set_keep_alive(k, w, server):
    server.keep_alive_set = True
    push(k, w, server.kept_until_s, AT_KEEP_ALIVE_END, server.number, server.number)


@jit
def _pay_for(k, w, server, occupied):
    if server.is_occupied != occupied:
        server.is_occupied = occupied
        occupancy_changes(k, w)


# ---------------------------------------------------------------------- the measured window


@jit
def note_window(k, w, time_s):
    """Note the totals as they are at a time that nothing has happened before."""
    row = w.windows[w.n_windows]
    w.n_windows += 1
    row.time_s = time_s
    assign(row.totals, w.totals)
    _grow(k, w, row.totals, time_s)
    for target in range(k.n_targets):
        server = w.targets[target]
        busy_s = server.busy_s
        if not server.idle:
            busy_s = busy_s + (time_s - server.iteration_start_s)
        row.busy_s[target] = busy_s


@jit
def pass_boundary(k, w):
    """Pass a boundary of the window or of its parts; what happens at this instant comes after it."""
    time_s = w.boundary_s
    note_window(k, w, time_s)
    if w.n_windows == 1:
        w.first_measured = w.arrived
    if w.n_windows < k.n_boundaries:
        w.boundary_s = k.boundaries_s[w.n_windows]
        return
    w.boundary_s = math.inf
    w.end_measured = w.arrived
    if w.cohort_left == 0:
        w.status = TRUNCATED
        accrue(k, w, time_s)
        w.now_s = time_s


@jit
def is_measured(w, number_of_request):
    """Return whether a request is one of those that latencies are about."""
    return w.first_measured <= number_of_request and number_of_request < w.end_measured
