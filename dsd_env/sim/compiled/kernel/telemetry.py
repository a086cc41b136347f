"""What targets and drafters report periodically, and with a result."""
# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

from __future__ import annotations

from dsd_env.laws import reports
from dsd_env.sim.compiled.codes import DRAFTS_ALONE
from dsd_env.sim.compiled.kernel.drafters import host_of
from dsd_env.sim.compiled.kernel.events import AT_TELEMETRY, push
from dsd_env.sim.compiled.kernel.jit import jit
from dsd_env.sim.compiled.kernel.rows import assign

TOLD = 1
"""Place in the rings where a world that is told its state has the servers' newest one."""


@jit
def report_target(k, w, target, report):
    """Write the state that a target would report now."""
    if k.told:
        told = w.reports[target * k.ring + TOLD]
        assign(report, told)
        if told.remaining_s > 0.0 and w.now_s > told.time_s:
            report.remaining_s = max(0.0, told.remaining_s - (w.now_s - told.time_s))
        return
    server, spec = w.targets[target], k.targets[target]
    report.time_s = w.now_s
    report.queued = server.n_ready + server.waiting
    report.running = server.n_running
    report.resident = server.resident
    report.waiting = server.waiting
    report.remaining_s = reports.remaining_s(server.idle, server.expected_end_s, w.now_s)
    report.iteration_s = server.iteration_s
    report.kv_fraction = server.kv_reserved_tokens / spec.kv_capacity_tokens
    report.token_s = reports.target_token_s(spec, server.iteration_tokens)
    report.up = server.down == 0
    report.plain, report.colocated, report.remote = server.n_plain, server.n_colocated, server.n_remote
    report.gamma_mean = reports.mean_gamma(server.gammas, server.n_colocated + server.n_remote)
    report.prefill_tokens = server.prefill_tokens


@jit
def _publish_attainments(k, w, ring):
    """Publish the shares of requests that met their SLO; what clients saw they tell a period later."""
    period_s, weight = k.telemetry_period_s, k.attainment_weight
    for n in range(k.n_classes):
        counts = w.class_counts[n]
        if w.now_s > 0.0:
            counts.completed_per_s = reports.moved(
                counts.completed_per_s, counts.completed_before / period_s, weight
            )
            counts.good_per_s = reports.moved(counts.good_per_s, counts.good_before / period_s, weight)
            counts.completed_before, counts.good_before = counts.completed, counts.good
            counts.completed, counts.good = 0, 0
        w.attainments[ring * k.n_classes + n] = reports.attainment(counts.good_per_s, counts.completed_per_s)


@jit
def _publish_acceptances(k, w, ring):
    """Publish the running acceptance of each draft model over all requests."""
    for model in range(k.n_models):
        w.acceptances[ring * k.n_models + model] = reports.pooled_acceptance(w.pools[model])


@jit
def drafter_wait_s(k, w, n):
    """Return the expected wait for a drafter."""
    if k.told:
        return drafter_report(k, w, n, TOLD).wait_s
    host, places = host_of(k, w, n), k.drafters[n].concurrency
    taken = reports.places_taken(host.active, host.queued, places, host.running == n)
    return reports.drafter_wait_s(taken, host.queued, places, host.mean_job_s)


@jit
def drafter_report(k, w, drafter, ring):
    """Return the place of a drafter's report in the rings; the drafter is not on a device."""
    rank, site = drafter // k.n_sites, drafter % k.n_sites
    away = k.n_edges + k.n_targets
    return w.drafter_reports[(rank * away + site - k.n_devices) * k.ring + ring]


@jit
def publish(k, w):
    """Let every server publish its state."""
    ring = w.ticks % k.ring
    for target in range(k.n_targets):
        report_target(k, w, target, w.reports[target * k.ring + ring])
    for rank in range(k.n_ranks):
        for site in range(k.n_devices, k.n_sites):
            n = rank * k.n_sites + site
            if k.drafters[n].mode == DRAFTS_ALONE:
                host, report = host_of(k, w, n), drafter_report(k, w, n, ring)
                report.jobs = host.active + host.queued
                report.wait_s = drafter_wait_s(k, w, n)
                report.up = host.down == 0
    if w.now_s > 0.0:
        period_s = k.telemetry_period_s
        w.arrivals_per_s = reports.moved(w.arrivals_per_s, w.arrivals_seen / period_s, k.rate_weight)
        w.tokens_per_s = reports.moved(w.tokens_per_s, w.tokens_seen / period_s, k.rate_weight)
    rates = w.rates[ring]
    rates.time_s, rates.arrivals_per_s, rates.tokens_per_s = w.now_s, w.arrivals_per_s, w.tokens_per_s
    _publish_attainments(k, w, ring)
    _publish_acceptances(k, w, ring)
    w.arrivals_seen, w.tokens_seen = 0, 0
    w.ticks += 1
    push(k, w, w.ticks * k.telemetry_period_s, AT_TELEMETRY, 0, 0)


@jit
def newest(k, w, visible_s):
    """Return the place in the rings of the newest reports made no later than `visible_s`."""
    first = max(0, w.ticks - k.ring)
    for tick in range(w.ticks - 1, first, -1):
        if w.rates[tick % k.ring].time_s <= visible_s:
            return tick % k.ring
    return first % k.ring
