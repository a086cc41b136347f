"""Patience of targets with their drafters, and of clients with their results."""
# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

from __future__ import annotations

import math

from dsd_env.sim.compiled.kernel.batching import JOB_PLAIN
from dsd_env.sim.compiled.kernel.events import (
    AT_DELIVERY,
    AT_TIMEOUT,
    ENTITY_MASK,
    IS_DUPLICATE,
    LOG_TAKEOVER,
    SLOT_BITS,
    SLOT_MASK,
    log,
    push,
    tag,
)
from dsd_env.sim.compiled.kernel.jit import jit
from dsd_env.sim.compiled.kernel.links import COLOCATED, send_up
from dsd_env.sim.compiled.kernel.requests import FOR_RESULT, abandon, finished
from dsd_env.sim.compiled.kernel.targets import queue_at, stop_idling


@jit
def expect_drafts(k, w, request):
    """Start the target's patience: it has sent a result and waits a limited time for the next drafts."""
    if k.patience_s == 0.0:
        return
    request.patience_at_s = w.now_s + k.patience_s
    request.patience_served = request.served
    # One timer a request: when it goes off too early, it is set again.
    if not request.patience_set:
        request.patience_set = True
        push(k, w, request.patience_at_s, AT_TIMEOUT, 2 * request.number, request.slot)


@jit
def _patience_ends(k, w, request):
    """Let the target go on by plain decoding, because no draft came in time."""
    request.patience_set = False
    if request.served != request.patience_served or finished(request):
        return
    if w.now_s < request.patience_at_s:
        request.patience_set = True
        push(k, w, request.patience_at_s, AT_TIMEOUT, 2 * request.number, request.slot)
        return
    target = request.target
    w.totals.takeovers += 1
    log(k, w, LOG_TAKEOVER, target, request.number, k.patience_s)
    abandon(k, w, request)
    request.site, request.at = COLOCATED, target
    queue_at(k, w, request, w.targets[target], JOB_PLAIN, 0, 0, False, FOR_RESULT)


@jit
def expect_result(k, w, request, payload):
    """Start the device's time-out: it has sent drafts and sends them again if no result comes in time."""
    request.exchange += 1
    if k.client_timeout_s == 0.0:
        return
    request.resend_exchange = request.exchange
    request.resend_wait_s, request.resend_payload = k.client_timeout_s, payload
    request.resend_at_s = w.now_s + k.client_timeout_s
    # The timer set may be that of an earlier window, and later than this one's: it was set again and again.
    if request.resend_timer_s > request.resend_at_s:
        _set_resend(k, w, request)


@jit
def _set_resend(k, w, request):
    request.resend_timer_s = request.resend_at_s
    push(k, w, request.resend_at_s, AT_TIMEOUT, 2 * request.number + 1, request.slot)


@jit
def _send_again(k, w, request):
    """Send the drafts again, because no result came within the time-out."""
    if w.now_s != request.resend_timer_s:
        return
    request.resend_timer_s = math.inf
    if request.exchange != request.resend_exchange or finished(request):
        return
    if w.now_s >= request.resend_at_s:
        if w.devices[request.device].down_faults == 0:
            arrives_s = send_up(k, w, request, request.to_target, request.resend_payload)
            push(k, w, arrives_s, AT_DELIVERY, request.number, tag(request, IS_DUPLICATE))
        request.resend_wait_s *= 2.0
        request.resend_at_s = w.now_s + request.resend_wait_s
    _set_resend(k, w, request)


@jit
def timeout(k, w, place, argument):
    """Handle a timer that has run out; ignore it if its request has completed."""
    entity, is_idle_timer = place & ENTITY_MASK, argument >> SLOT_BITS
    request = w.requests[argument & SLOT_MASK]
    if request.number != entity >> 1:
        return
    if is_idle_timer:
        stop_idling(k, w, request)
    elif entity & 1:
        _send_again(k, w, request)
    else:
        _patience_ends(k, w, request)
