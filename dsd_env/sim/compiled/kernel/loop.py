"""The event loop: from one due decision to the next, and the entry points that Python calls."""
# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

from __future__ import annotations

import math

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from dsd_env.laws import links, step_times
from dsd_env.rng import Stream
from dsd_env.sim.compiled.codes import NO_DRAFTER
from dsd_env.sim.compiled.kernel.accounts import accrue, keep_alive_ends, pass_boundary
from dsd_env.sim.compiled.kernel.arrivals import arrival, begin_arrivals, think
from dsd_env.sim.compiled.kernel.drafters import step_s
from dsd_env.sim.compiled.kernel.draws import uniform
from dsd_env.sim.compiled.kernel.events import (
    AT_DECISION,
    AT_DELIVERY,
    AT_DRAFT_END,
    AT_FAULT,
    AT_ITERATION_END,
    AT_ITERATION_START,
    AT_JOB_DONE,
    AT_KEEP_ALIVE_END,
    AT_TELEMETRY,
    AT_TIMEOUT,
    ENTITY_BITS,
    SLOT_BITS,
    SLOT_MASK,
    drop_first,
    is_due_now,
    is_live,
    take_due,
)
from dsd_env.sim.compiled.kernel.failures import fault_event, next_crash
from dsd_env.sim.compiled.kernel.iteration import target_step_s
from dsd_env.sim.compiled.kernel.jit import entry, jit, native, number
from dsd_env.sim.compiled.kernel.links import begin_channel, one_way_s
from dsd_env.sim.compiled.kernel.observe import encode, observe, resolved, write_mask
from dsd_env.sim.compiled.kernel.protocol import decided, delivery, draft_end, job_done
from dsd_env.sim.compiled.kernel.requests import arrivals_are_over, free
from dsd_env.sim.compiled.kernel.rows import cast, copy_words
from dsd_env.sim.compiled.kernel.stopping import NEVER, set_stop
from dsd_env.sim.compiled.kernel.targets import end_iteration, look
from dsd_env.sim.compiled.kernel.telemetry import publish
from dsd_env.sim.compiled.kernel.timers import timeout
from dsd_env.sim.compiled.records import SCENARIO, WORLD
from dsd_env.sim.compiled.status import DUE, FAILED, OK, TRUNCATED

as_scenario, as_world = cast(SCENARIO), cast(WORLD)
DEVICE_SPREAD, LOAD_PHASE = number(Stream.DEVICE_SPREAD), number(Stream.LOAD_PHASE)


# ---------------------------------------------------------------------- one world


@jit
def reset(k, w, seed, records, prices):
    """Set a world up at time 0."""
    copy_words(w, k.image, k.image_bytes // 8)
    w.seed, w.records, w.prices = seed, records, prices
    if k.load.random_phase:
        w.load_offset_s = uniform(seed, LOAD_PHASE, 0, 0) * k.load.period_s
    for channel in range(k.n_channels):
        begin_channel(k, w, channel)
    for n in range(k.n_drafters):
        drafter, spec = w.drafters[n], k.drafters[n]
        drafter.speed = 1.0
        device = n % k.n_sites
        if device < k.n_devices:
            drafter.speed = links.spread_factor(spec.speed_low, spec.speed_high, seed, DEVICE_SPREAD, device)
        if spec.mode != NO_DRAFTER:
            drafter.mean_job_s = step_s(k, w, n, 1, 0, 0)
    for target in range(k.n_targets):
        overhead_s = step_times.overhead_s(k.targets[target], 1, 1, 0)
        w.targets[target].iteration_s = target_step_s(k, w, target, 1, 0, 0) + overhead_s
    for device in range(k.n_devices):
        w.devices[device].rtt_s = one_way_s(w, 4 * device) + one_way_s(w, 4 * device + 1)
    for n in range(k.n_crashes):
        next_crash(k, w, n)
    if k.closed:
        for device in range(k.n_devices):
            think(k, w, device)
    elif not arrivals_are_over(k, w, 0):
        begin_arrivals(k, w)
    publish(k, w)


@jit
def answer(k, w, gamma, batch_size, placement):
    """Note how the due decision will be executed."""
    request = w.requests[w.pending]
    candidate, target, gamma, batch_size, reason = resolved(k, w, gamma, batch_size, placement)
    site, edge = int(candidate.site), int(candidate.edge_server)
    w.resolved[reason] += 1
    drafter = int(candidate.drafter_number) if gamma > 0 else -1
    request.gamma, request.batch_size, request.draft_site = gamma, batch_size, site
    request.drafter, request.edge_server, request.to_target = drafter, edge, target
    request.branches = candidate.fanout > 0.0
    request.stop.kind = NEVER
    w.reason = reason
    w.answered, w.pending = w.pending, -1
    w.decisions += 1
    for i in range(w.newly_n):
        done = w.requests[w.newly[i]]
        done.is_new = False
        free(w, done)
    w.newly_n = 0


@jit
def run(k, w):
    """Advance to the next due decision (`DUE`) or to the end; return the status."""
    if w.status != DUE:
        return w.status
    if w.answered >= 0:
        request = w.requests[w.answered]
        w.answered = -1
        decided(k, w, request)
    while w.status == DUE:
        if w.error != OK:
            w.status = FAILED
            break
        if is_due_now(w):
            place, argument = take_due(w)
        else:
            first = w.heap[0]
            if w.boundary_s < math.inf and (w.heap_n == 0 or first.time_s >= w.boundary_s):
                pass_boundary(k, w)
                continue
            if w.heap_n == 0 or first.time_s > k.horizon_s:
                w.status = TRUNCATED
                accrue(k, w, k.horizon_s)
                w.now_s = k.horizon_s
                break
            place, argument = first.place, first.argument
            w.now_s = first.time_s
            drop_first(w)
        w.events_done += 1
        if _happens(k, w, place, argument):
            if w.error != OK:
                w.status = FAILED
            break
    return w.status


@jit
def _happens(k, w, place, argument):
    """Let an event happen; return whether a decision is due."""
    order = place >> ENTITY_BITS
    if order == AT_DELIVERY:
        delivery(k, w, place, argument)
    elif order == AT_DECISION:
        request = w.requests[argument & SLOT_MASK]
        if is_live(request, place, argument):
            w.pending = request.slot
            observe(k, w, request)
            return True
    elif order == AT_JOB_DONE:
        request = w.requests[argument & SLOT_MASK]
        if is_live(request, place, argument):
            job_done(k, w, request)
    elif order == AT_DRAFT_END:
        draft_end(k, w, argument)
    elif order == AT_ITERATION_START:
        look(k, w, w.targets[argument])
    elif order == AT_ITERATION_END:
        server = w.targets[argument & SLOT_MASK]
        # Of an iteration that a crash cut short, only the event is left.
        if not server.idle and server.iterations == argument >> SLOT_BITS:
            end_iteration(k, w, server)
    elif order == AT_TIMEOUT:
        timeout(k, w, place, argument)
    elif order == AT_TELEMETRY:
        publish(k, w)
    elif order == AT_FAULT:
        fault_event(k, w, argument)
    elif order == AT_KEEP_ALIVE_END:
        keep_alive_ends(k, w, w.targets[argument])
    else:
        arrival(k, w, argument)
    return False


# ---------------------------------------------------------------------- entry points

_Bytes = NDArray[np.uint8]
_POINTER = types.CPointer(types.uint8)


@native(types.int64(_POINTER, _POINTER))
def _native_run(constants, world):
    return run(as_scenario(constants), as_world(world))


@native(types.void(_POINTER, _POINTER, types.int64, types.int64, types.int64))
def _native_reset(constants, world, seed, records, prices):
    reset(as_scenario(constants), as_world(world), seed, records != 0, prices != 0)


RUN, RESET = int(_native_run.address), int(_native_reset.address)


@intrinsic
def pointer(typing_context, array):
    """Return the address of an array's first element; the entry points hold the array meanwhile."""

    def generate(context, builder, signature, arguments):
        return cgutils.create_struct_proxy(array)(context, builder, value=arguments[0]).data

    return types.CPointer(array.dtype)(array), generate


def _caller(result, document):
    """Return a function of compiled code that calls a native one by its address.

    The whole event loop is compiled into that one function; what is called with its address does not contain
    it again, which would cost the first use many seconds for each entry point.
    """

    def type_of(typing_context, address, arguments):
        def generate(context, builder, signature, values):
            given = cgutils.unpack_tuple(builder, values[1], len(arguments))
            words = [context.get_value_type(argument) for argument in arguments]
            back = context.get_value_type(result) if result != types.void else ir.VoidType()
            function = ir.FunctionType(back, words)
            value = builder.call(builder.inttoptr(values[0], function.as_pointer()), given)
            return context.get_dummy_value() if result == types.void else value

        return result(address, arguments), generate

    type_of.__doc__ = document
    return intrinsic(type_of)


call_run = _caller(types.int64, "Advance a world; the arguments are its two addresses.")
call_reset = _caller(types.void, "Set a world up; the arguments are its two addresses and three numbers.")


@entry()
def _reset_world(reset, constants, world, seed, records, prices):
    call_reset(reset, (pointer(constants), pointer(world), seed, records, prices))


@entry()
def _run_world(run, constants, world):
    return call_run(run, (pointer(constants), pointer(world)))


def reset_world(constants: _Bytes, world: _Bytes, seed: int, records: int, prices: int) -> None:
    """Set a world up at time 0."""
    _reset_world(RESET, constants, world, seed, records, prices)


def run_world(constants: _Bytes, world: _Bytes) -> int:
    """Advance a world to its next due decision or its end; return its status."""
    return int(_run_world(RUN, constants, world))


@entry()
def answer_world(constants, world, gamma, batch_size, placement):
    """Answer the due decision of a world; nothing happens before :func:`run_world`."""
    answer(as_scenario(pointer(constants)), as_world(pointer(world)), gamma, batch_size, placement)


@entry()
def stop_world(world, kind, threshold, least, keeps):
    """Give the decision of a world that has just been answered a stop rule, if drafts are made."""
    w = as_world(pointer(world))
    request = w.requests[w.answered]
    if request.gamma > 0:
        set_stop(request.stop, kind, threshold, least, keeps)


@entry()
def observe_world(constants, world, observation, mask):
    """Write the observation and the mask of the due decision."""
    k, w = as_scenario(pointer(constants)), as_world(pointer(world))
    encode(k, w, pointer(observation))
    write_mask(k, w, mask)
