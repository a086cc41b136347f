"""The event loop of the compiled engine.

The same simulation as :mod:`dsd_env.sim.reference`, which is the definition, on flat arrays. A request is a
row with a *program counter* (`PC_...`) that says where in its protocol it waits; every function here is named
after the method of the reference that it repeats, in the same order of effects, since the order of messages
on a link, of sums of floats and of events at one instant is part of the meaning.

SimPy's own events (a process that begins, an answer that arrives) come before all others of their instant and
are taken at once here: the reference creates at most one chain of them at a time, so their order is the same.

Arguments everywhere: `kf`, `ki` constants; `f`, `s` the row of one world; see
:mod:`dsd_env.sim.compiled.layout`. A request is given by its slot `q` or by the offsets `r` (integers) and
`g` (floats) of its row.
"""
# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"
# The columns of the layout are this module's vocabulary, hence the star (F405).
# ruff: noqa: F405, SIM109, SIM110

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import cfunc, njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from dsd_env.network.processes import MAX_Z
from dsd_env.rng import Stream
from dsd_env.sim.code_cache import caching
from dsd_env.sim.compiled.layout import *  # noqa: F403
from dsd_env.sim.events import EventKind, Order
from dsd_env.workload.renewal import RUN_IN_GAPS, SHORTEST

# Enumerations as NumPy integers: given Python integers, the compiler makes a version of each function for
# each value that it is called with.
COLOCATED, OWN_DEVICE, EDGE_SERVER = (np.int64(site) for site in range(3))
JOB_PREFILL, JOB_VERIFY, JOB_PLAIN, JOB_COLOCATED = (np.int64(kind) for kind in range(4))
AT_FAULT = np.int64(Order.FAULT)
AT_TELEMETRY = np.int64(Order.TELEMETRY)
AT_ITERATION_END = np.int64(Order.ITERATION_END)
AT_DRAFT_END = np.int64(Order.DRAFT_END)
AT_JOB_DONE = np.int64(Order.JOB_DONE)
AT_DELIVERY = np.int64(Order.DELIVERY)
AT_ARRIVAL = np.int64(Order.ARRIVAL)
AT_TIMEOUT = np.int64(Order.TIMEOUT)
AT_DECISION = np.int64(Order.DECISION)
AT_ITERATION_START = np.int64(Order.ITERATION_START)
LOG_ARRIVAL = np.int64(EventKind.ARRIVAL)
LOG_DECISION = np.int64(EventKind.DECISION)
LOG_DRAFT_START = np.int64(EventKind.DRAFT_START)
LOG_DRAFT_END = np.int64(EventKind.DRAFT_END)
LOG_SEND = np.int64(EventKind.SEND)
LOG_ENQUEUE = np.int64(EventKind.ENQUEUE)
LOG_ADMIT = np.int64(EventKind.ADMIT)
LOG_ITERATION_START = np.int64(EventKind.ITERATION_START)
LOG_ITERATION_END = np.int64(EventKind.ITERATION_END)
LOG_COMMIT = np.int64(EventKind.COMMIT)
LOG_COMPLETE = np.int64(EventKind.COMPLETE)
LOG_FAULT = np.int64(EventKind.FAULT)
LOG_RETURN = np.int64(EventKind.RETURN)
LOG_TAKEOVER = np.int64(EventKind.TAKEOVER)
LOG_LATE = np.int64(EventKind.LATE)
LOG_DUPLICATE = np.int64(EventKind.DUPLICATE)
LOG_ROLLBACK = np.int64(EventKind.ROLLBACK)
LOG_PREEMPT = np.int64(EventKind.PREEMPT)
ARRIVAL = np.int64(Stream.ARRIVAL)
THINK = np.int64(Stream.THINK)
LENGTH = np.int64(Stream.LENGTH)
REQUEST_CLASS = np.int64(Stream.REQUEST_CLASS)
ACCEPTANCE_PICK = np.int64(Stream.ACCEPTANCE_PICK)
ACCEPTANCE_MATCH = np.int64(Stream.ACCEPTANCE_MATCH)
UPLINK_JITTER = np.int64(Stream.UPLINK_JITTER)
DOWNLINK_JITTER = np.int64(Stream.DOWNLINK_JITTER)
UPLINK_LOSS = np.int64(Stream.UPLINK_LOSS)
DOWNLINK_LOSS = np.int64(Stream.DOWNLINK_LOSS)
ITERATION_NOISE = np.int64(Stream.ITERATION_NOISE)
STRAGGLER = np.int64(Stream.STRAGGLER)
DEVICE_SPREAD = np.int64(Stream.DEVICE_SPREAD)
LOAD_PHASE = np.int64(Stream.LOAD_PHASE)
ROUTING = np.int64(Stream.ROUTING)
LINK_SPREAD = np.int64(Stream.LINK_SPREAD)
FAULT = np.int64(Stream.FAULT)
BANDWIDTH = np.int64(Stream.BANDWIDTH)
OUTAGE = np.int64(Stream.OUTAGE)
DELAY = np.int64(Stream.DELAY)
MAX_Z_SCORE = float(MAX_Z)
RUN_IN = float(RUN_IN_GAPS)
ORDINALS = 1 << 24
SLOPE_TOKENS = 8

# Where a request waits.
(
    PC_DECISION,
    PC_LATENCY,
    PC_PROMPT_UP,
    PC_PREFILLED,
    PC_FIRST_TOKEN,
    PC_MOVE,
    PC_WARM,
    PC_EDGE_DRAFTED,
    PC_EDGE_UP,
    PC_EDGE_VERIFIED,
    PC_BACK_DEVICE,
    PC_BACK_EDGE,
    PC_DEDICATED_DRAFTED,
    PC_SERVED,
    PC_LAST_TOKEN,
    PC_PLACE_DOWN,
    PC_DETECTED,
    PC_NOTICE,
) = (np.int64(pc) for pc in range(18))
# What the event of a request is, in its argument beside the slot and the epoch. A request's epoch counts how
# often it gave up what it was at; an event of an earlier epoch is nobody's any more.
IS_WAIT, IS_WARM_UP, IS_MESSAGE, IS_DUPLICATE = (np.int64(kind) for kind in range(4))
SLOT_BITS, KIND_BITS = 20, 3
SLOT_MASK, KIND_MASK, ENTITY_MASK = (1 << 20) - 1, (1 << 3) - 1, (1 << 40) - 1
# What it does after control has moved.
AFTER_PREFILL, AFTER_EDGE, AFTER_COLOCATED, AFTER_PLAIN = (np.int64(after) for after in range(4))
ZERO, ONE = np.int64(0), np.int64(1)

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31, _S11 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(11)
_TO_UNIT = 2.0**-53

# Division as IEEE has it: nothing here divides by zero. Only compiled code calls these.
_jit = njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)


def _entry(**options):
    """Compile what Python calls, when it is called first, and keep it where a cache can be written."""

    def decorate(function):
        with caching() as cached:
            return njit(cache=cached, nogil=True, error_model="numpy", **options)(function)

    return decorate


def _native(signature):
    """Compile a function now, with the calling convention of C, to be called by address; cached likewise."""

    def decorate(function):
        with caching() as cached:
            return cfunc(signature, cache=cached, error_model="numpy")(function)

    return decorate


@intrinsic
def _pointer(typing_context, array):
    """Return the address of an array's first element.

    Inside the kernel the four arrays travel as bare pointers: an array is seven words, so that a call with
    four of them would cost more than most functions here do. The entry points hold the arrays meanwhile.
    """

    def generate(context, builder, signature, arguments):
        return cgutils.create_struct_proxy(array)(context, builder, value=arguments[0]).data

    return types.CPointer(array.dtype)(array), generate


# ---------------------------------------------------------------------- randomness: dsd_env.rng, bit for bit


@_jit
def _mix(z):
    z = (z ^ (z >> _S30)) * _MIX_1
    z = (z ^ (z >> _S27)) * _MIX_2
    return z ^ (z >> _S31)


@_jit
def _key(seed, stream, entity):
    h = _mix(np.uint64(seed) + _GOLDEN)
    h = _mix(h ^ (np.uint64(stream) * _GOLDEN))
    return _mix(h ^ (np.uint64(entity + 1) * _GOLDEN))


@_jit
def _from_key(key, counter):
    h = _mix(key ^ (np.uint64(counter + 1) * _GOLDEN))
    return (np.float64(h >> _S11) + 0.5) * _TO_UNIT


@_jit
def _uniform(seed, stream, entity, counter):
    return _from_key(_key(seed, stream, entity), counter)


@_jit
def _normal(u_radius, u_angle):
    return math.sqrt(-2.0 * math.log(u_radius)) * math.cos(2.0 * math.pi * u_angle)


# ---------------------------------------------------------------------- event queue: a binary heap


@_jit
def _push(ki, f, s, time_s, order, entity, arg):
    """Schedule an event; events of one time, order and entity happen as scheduled."""
    position = s[WI_HEAP_N]
    if position >= ki[K_HEAP_CAP]:
        s[WI_ERROR] = HEAP_FULL
        return
    s[WI_HEAP_N] = position + 1
    sequence = s[WI_SEQUENCE]
    s[WI_SEQUENCE] = sequence + 1
    place = (order << 40) + entity
    hf, hi = ki[O_HEAP_F], ki[O_HEAP_I]
    while position > 0:
        parent = (position - 1) >> 1
        parent_s = f[hf + parent]
        at = hi + 3 * parent
        if parent_s < time_s or (parent_s == time_s and s[at] <= place):
            break
        f[hf + position] = parent_s
        to = hi + 3 * position
        s[to], s[to + 1], s[to + 2] = s[at], s[at + 1], s[at + 2]
        position = parent
    f[hf + position] = time_s
    to = hi + 3 * position
    s[to], s[to + 1], s[to + 2] = place, sequence, arg


@_jit
def _drop_first(ki, f, s):
    """Remove the first event of the queue."""
    n = s[WI_HEAP_N] - 1
    s[WI_HEAP_N] = n
    if n == 0:
        return
    hf, hi = ki[O_HEAP_F], ki[O_HEAP_I]
    time_s = f[hf + n]
    last = hi + 3 * n
    place, sequence, arg = s[last], s[last + 1], s[last + 2]
    position = 0
    while True:
        child = 2 * position + 1
        if child >= n:
            break
        child_s = f[hf + child]
        at = hi + 3 * child
        if child + 1 < n:
            other_s = f[hf + child + 1]
            b = at + 3
            if other_s < child_s or (
                other_s == child_s and (s[b] < s[at] or (s[b] == s[at] and s[b + 1] < s[at + 1]))
            ):
                child, child_s, at = child + 1, other_s, b
        if time_s < child_s or (
            time_s == child_s and (place < s[at] or (place == s[at] and sequence < s[at + 1]))
        ):
            break
        f[hf + position] = child_s
        to = hi + 3 * position
        s[to], s[to + 1], s[to + 2] = s[at], s[at + 1], s[at + 2]
        position = child
    f[hf + position] = time_s
    to = hi + 3 * position
    s[to], s[to + 1], s[to + 2] = place, sequence, arg


@_jit
def _log(ki, f, s, kind, entity, number, value):
    if s[WI_RECORD] == 0:
        return
    n = s[WI_EVENTS]
    if n >= ki[K_EVENT_CAP]:
        s[WI_ERROR] = EVENTS_FULL
        return
    at = ki[O_EVENTS] + EVENT * n
    f[at], f[at + 1], f[at + 2], f[at + 3], f[at + 4] = f[WF_NOW], kind, entity, number, value
    s[WI_EVENTS] = n + 1


# ---------------------------------------------------------------------- rows


@_jit
def _r(ki, q):
    return ki[O_REQ_I] + q * ki[K_R_STRIDE]


@_jit
def _g(ki, q):
    return ki[O_REQ_F] + q * RF_STRIDE


@_jit
def _valid(ki, r, station):
    """Return where a request's valid tokens at a drafter stand."""
    devices = ki[K_DEVICES]
    return r + ki[K_R_VALID] + (0 if station < devices else 1 + station - devices)


@_jit
def _lag(ki, s, r, station):
    return s[r + RI_PROMPT] + s[r + RI_COMMITTED] - s[_valid(ki, r, station)]


@_jit
def _base(ki):
    return ki[K_DEVICES] + ki[K_EDGES]


@_jit
def _places(ki, station):
    return ki[ki[O_SKI] + station * SKI_STRIDE + SKI_PLACES]


# ---------------------------------------------------------------------- step times


@_jit
def _target_step_s(kf, ki, s, target, new, kv, longest):
    """``StepTimer.step_s`` of a target."""
    ti, tf = ki[O_TKI] + target * TKI_STRIDE, ki[O_TKF] + target * TKF_STRIDE
    if new >= ki[ti + TKI_LENGTH]:
        s[WI_ERROR] = TABLE_RANGE
        return 1.0
    compute_s = kf[ki[ti + TKI_TABLE] + new]
    if longest == 0:
        return compute_s + kf[tf + TKF_K_BW] * kv
    return compute_s + (kf[tf + TKF_K_MULTI] * kv + kf[tf + TKF_K_LAT] * longest)


@_jit
def _captured_step_s(kf, ki, s, target, new, kv, longest, prefills):
    """``IterationCost._target_s``: without prefill it runs at the next captured number of tokens."""
    ti = ki[O_TKI] + target * TKI_STRIDE
    if ki[ti + TKI_PADDED] != 0 and not prefills and new < ki[ti + TKI_LENGTH]:
        new = ki[ki[ti + TKI_PADDED] + new]
    return _target_step_s(kf, ki, s, target, new, kv, longest)


@_jit
def _iteration_noise(kf, ki, s, target):
    """``Target.noise``."""
    k = ki[O_TKF] + target * TKF_STRIDE
    iterations = s[ki[O_TGT_I] + target * TI_STRIDE + TI_ITERATIONS]
    factor = 1.0
    sigma = kf[k + TKF_SIGMA]
    if sigma != 0.0:
        key = _key(s[WI_SEED], ITERATION_NOISE, target)
        z = _normal(_from_key(key, 2 * iterations), _from_key(key, 2 * iterations + 1))
        factor = math.exp(sigma * z - 0.5 * sigma * sigma)
    share = kf[k + TKF_STRAGGLER_SHARE]
    if share != 0.0 and _from_key(_key(s[WI_SEED], STRAGGLER, target), iterations) < share:
        factor *= kf[k + TKF_STRAGGLER_FACTOR]
    return factor


@_jit
def _draft_step_s(kf, ki, f, s, station, new, kv, longest):
    """``StepTimer.step_s`` of a drafter, at the speed of its device."""
    i, x = ki[O_SKI] + station * SKI_STRIDE, ki[O_STA_F] + station * SF_STRIDE
    if new >= ki[i + SKI_LENGTH]:
        s[WI_ERROR] = TABLE_RANGE
        return 1.0
    compute_s = kf[ki[i + SKI_TABLE] + new] * f[x + SF_FACTOR]
    if longest == 0:
        return compute_s + f[x + SF_K_BW] * kv
    return compute_s + (f[x + SF_K_MULTI] * kv + f[x + SF_K_LAT] * longest)


@_jit
def _draft_s(kf, ki, f, s, station, lag, context, gamma, active, active_kv):
    """``StepTimer.draft_s``."""
    duration_s = _draft_step_s(kf, ki, f, s, station, lag + active - 1, active_kv, context if lag > 1 else 0)
    if gamma > 1:
        duration_s += (gamma - 1) * _draft_step_s(kf, ki, f, s, station, active, active_kv, 0)
        duration_s += f[ki[O_STA_F] + station * SF_STRIDE + SF_K_BW] * (gamma * (gamma - 1) // 2)
    return duration_s


# ---------------------------------------------------------------------- links


@_jit
def _send(kf, ki, f, s, channel, size):
    """``Channel.send``."""
    c, x = ki[O_CHAN_I] + channel * CI_STRIDE, ki[O_CHAN_F] + channel * CF_STRIDE
    k = ki[O_CKF] + channel * CKF_STRIDE
    now_s, free_s = f[WF_NOW], f[x + CF_FREE]
    start_s = now_s if now_s > free_s else free_s
    link = ki[ki[O_CKI] + channel * CKI_STRIDE + CKI_LINK]
    if link >= 0 and ki[ki[O_LKI] + link * LKI_STRIDE + LKI_HAS_RATE] != 0:
        free_s = _depart(kf, ki, f, s, link, now_s, start_s, free_s, size)
    else:
        free_s = start_s + size * kf[k + CKF_S_PER_BYTE]
    f[x + CF_FREE] = free_s
    messages = s[c + CI_MESSAGES]
    lost = 0
    if kf[k + CKF_LOSS] != 0.0:
        u = _from_key(np.uint64(s[c + CI_LOSS_KEY]), messages)
        lost = int(math.log(u) / kf[k + CKF_LOG_LOSS])
    jitter_s = kf[k + CKF_MEDIAN]
    if jitter_s != 0.0 and kf[k + CKF_SIGMA] != 0.0:
        key = np.uint64(s[c + CI_JITTER_KEY])
        z = _normal(_from_key(key, 2 * messages), _from_key(key, 2 * messages + 1))
        jitter_s = jitter_s * math.exp(kf[k + CKF_SIGMA] * z)
    arrival_s = free_s + f[x + CF_ONE_WAY] + jitter_s + lost * kf[k + CKF_RTO]
    if link >= 0:
        arrival_s = _delayed(kf, ki, f, s, link, free_s, arrival_s)
    if arrival_s < f[x + CF_LAST]:
        arrival_s = f[x + CF_LAST]
    f[x + CF_LAST] = arrival_s
    s[c + CI_MESSAGES] = messages + 1
    s[c + CI_LOST] = lost
    return arrival_s


@_jit
def _gauss_normal(s, i, number):
    key, counter = np.uint64(s[i + GI_KEY]), 4 * s[i + GI_INDEX] + 2 * number
    return _normal(_from_key(key, counter), _from_key(key, counter + 1))


@_jit
def _gauss_begin(kf, f, s, parts, marginal, c, x, i, key):
    """``LogProcess``: stand at the first period."""
    s[i + GI_INDEX], s[i + GI_KEY] = 0, np.int64(key)
    for number in range(parts):
        sigma = kf[c + GK_PARTS + number * GK_PART + GK_SIGMA]
        f[x + GF_X + number] = sigma * _gauss_normal(s, i, number)
    _gauss_set(kf, f, s, parts, marginal, c, x, i)


@_jit
def _log_quantiles_at(kf, table, n, z):
    """``LogQuantiles.at``: scores, logarithms and slopes stand at `table`, of `n` quantiles."""
    piece = 0
    while piece < n - 2 and z >= kf[table + piece + 1]:
        piece += 1
    return math.exp(kf[table + n + piece] + kf[table + 2 * n + piece] * (z - kf[table + piece]))


@_jit
def _gauss_set(kf, f, s, parts, marginal, c, x, i):
    total = 0.0
    for number in range(parts):
        total += f[x + GF_X + number]
    if marginal == 0:
        f[x + GF_VALUE] = kf[c + GK_CENTRE] * math.exp(total)
    else:
        z = min(max(total / kf[marginal + MK_SPREAD], -MAX_Z_SCORE), MAX_Z_SCORE)
        f[x + GF_VALUE] = _log_quantiles_at(kf, marginal + MK_Z, MK_LOG - MK_Z, z)
    f[x + GF_UNTIL] = (s[i + GI_INDEX] + 1) * kf[c + GK_PERIOD]


@_jit
def _gauss_advance(kf, f, s, parts, marginal, c, x, i, time_s):
    """``LogProcess.advance``."""
    if time_s < f[x + GF_UNTIL]:
        return
    while time_s >= f[x + GF_UNTIL]:
        s[i + GI_INDEX] += 1
        f[x + GF_UNTIL] = (s[i + GI_INDEX] + 1) * kf[c + GK_PERIOD]
        for number in range(parts):
            p = c + GK_PARTS + number * GK_PART
            f[x + GF_X + number] = kf[p + GK_RHO] * f[x + GF_X + number] + kf[p + GK_STEP] * _gauss_normal(
                s, i, number
            )
    _gauss_set(kf, f, s, parts, marginal, c, x, i)


@_jit
def _next_outage(kf, ki, f, s, link):
    """``OutageWindows.advance``."""
    k, x, i = ki[O_LKF] + link * LKF_STRIDE, ki[O_LINK_F] + link * LF_STRIDE, ki[O_LINK_I] + link * LI_STRIDE
    s[i + LI_OUTAGE] += 1
    index, key = s[i + LI_OUTAGE], np.uint64(s[i + LI_OUTAGE_KEY])
    up, down = -math.log(_from_key(key, 2 * index)), -math.log(_from_key(key, 2 * index + 1))
    f[x + LF_OUTAGE_START] = f[x + LF_OUTAGE_END] + kf[k + LKF_MEAN_UP] * up
    f[x + LF_OUTAGE_END] = f[x + LF_OUTAGE_START] + kf[k + LKF_MEAN_DOWN] * down


@_jit
def _next_break(kf, ki, f, s, n):
    """``FaultWindows.advance`` of a fault that hits a channel."""
    x, i = ki[O_BREAK_F] + n * BREAK_FLOATS, ki[O_BREAK_I] + n * BREAK_STRIDE
    s[i + BREAK_INDEX] += 1
    row = ki[ki[O_BKI] + n * BKI_STRIDE + BKI_FAULT]
    start_s, end_s = _window(kf, ki, s, row, s[i + BREAK_INDEX], f[x + BREAK_END])
    f[x + BREAK_START], f[x + BREAK_END] = start_s, end_s


@_jit
def _piece(kf, ki, f, s, link, x, i, time_s):
    """``SeriesCursor.advance``, with the state at `x` and `i`; return the number of the piece."""
    k = ki[O_LKI] + link * LKI_STRIDE
    pieces, times = ki[k + LKI_PIECES], ki[k + LKI_TIMES]
    while time_s >= f[x + 1]:
        s[i] += 1
        if s[i] == pieces:
            s[i] = 0
            f[x] += kf[times + pieces]
        f[x + 1] = f[x] + kf[times + s[i] + 1]
    return s[i]


@_jit
def _begin_link(kf, ki, f, s, link):
    """Set up what a channel does over time."""
    k, c = ki[O_LKI] + link * LKI_STRIDE, ki[O_LKF] + link * LKF_STRIDE
    x, i = ki[O_LINK_F] + link * LF_STRIDE, ki[O_LINK_I] + link * LI_STRIDE
    seed, number = s[WI_SEED], ki[k + LKI_NUMBER]
    entity = 2 * number + ki[k + LKI_DIRECTION]
    f[x + LF_BITS] = kf[c + LKF_NOMINAL]
    if ki[k + LKI_PARTS] > 0:
        key = _key(seed, BANDWIDTH, entity)
        parts, marginal = ki[k + LKI_PARTS], ki[k + LKI_MARGINAL]
        _gauss_begin(kf, f, s, parts, marginal, c + LKF_BANDWIDTH, x + LF_BANDWIDTH, i + LI_BANDWIDTH, key)
    if ki[k + LKI_DELAY] != 0:
        _gauss_begin(kf, f, s, 1, 0, c + LKF_DELAY, x + LF_DELAY, i + LI_DELAY, _key(seed, DELAY, entity))
    if ki[k + LKI_OUTAGES] != 0:
        s[i + LI_OUTAGE], s[i + LI_OUTAGE_KEY] = -1, np.int64(_key(seed, OUTAGE, number))
        _next_outage(kf, ki, f, s, link)
    if ki[k + LKI_PIECES] > 0:
        times = ki[k + LKI_TIMES]
        offset_s = 0.0
        if ki[k + LKI_RANDOM_START] != 0:
            offset_s = kf[times + ki[k + LKI_PIECES]] * _uniform(seed, BANDWIDTH, 2 * number, 0)
        f[x + LF_BEGUN], f[x + LF_UNTIL] = -offset_s, -offset_s + kf[times + 1]
        f[x + LF_DELAY_BEGUN], f[x + LF_DELAY_UNTIL] = f[x + LF_BEGUN], f[x + LF_UNTIL]
    for n in range(ki[k + LKI_BREAKS], ki[k + LKI_BREAKS] + ki[k + LKI_N_BREAKS]):
        s[ki[O_BREAK_I] + n * BREAK_STRIDE + BREAK_INDEX] = -1
        _next_break(kf, ki, f, s, n)


@_jit
def _through(start_s, end_s, factor, time_s, rate, until_s):
    """Return rate and end of the piece with one window in mind that has not ended."""
    if time_s < start_s:
        return rate, min(until_s, start_s)
    return rate * factor, min(until_s, end_s)


@_jit
def _rate_at(kf, ki, f, s, link, time_s):
    """``RateProcess.at``."""
    k, c = ki[O_LKI] + link * LKI_STRIDE, ki[O_LKF] + link * LKF_STRIDE
    x, i = ki[O_LINK_F] + link * LF_STRIDE, ki[O_LINK_I] + link * LI_STRIDE
    rate, until_s = kf[c + LKF_NOMINAL], math.inf
    if ki[k + LKI_PIECES] > 0:
        piece = _piece(kf, ki, f, s, link, x + LF_BEGUN, i + LI_PIECE, time_s)
        rate, until_s = kf[ki[k + LKI_BITS] + piece], f[x + LF_UNTIL]
    parts = ki[k + LKI_PARTS]
    if parts > 0:
        marginal = ki[k + LKI_MARGINAL]
        b = x + LF_BANDWIDTH
        _gauss_advance(kf, f, s, parts, marginal, c + LKF_BANDWIDTH, b, i + LI_BANDWIDTH, time_s)
        rate *= f[b + GF_VALUE]
        until_s = min(until_s, f[b + GF_UNTIL])
    if ki[k + LKI_OUTAGES] != 0:
        while time_s >= f[x + LF_OUTAGE_END]:
            _next_outage(kf, ki, f, s, link)
        start_s, end_s = f[x + LF_OUTAGE_START], f[x + LF_OUTAGE_END]
        rate, until_s = _through(start_s, end_s, 0.0, time_s, rate, until_s)
    for n in range(ki[k + LKI_BREAKS], ki[k + LKI_BREAKS] + ki[k + LKI_N_BREAKS]):
        b = ki[O_BREAK_F] + n * BREAK_FLOATS
        while time_s >= f[b + BREAK_END]:
            _next_break(kf, ki, f, s, n)
        row = ki[ki[O_BKI] + n * BKI_STRIDE + BKI_FAULT]
        factor = kf[ki[O_XKF] + row * XKF_STRIDE + XKF_FACTOR]
        rate, until_s = _through(f[b + BREAK_START], f[b + BREAK_END], factor, time_s, rate, until_s)
    return rate, until_s


@_jit
def _departure_s(kf, ki, f, s, link, start_s, size):
    """``RateProcess.departure_s``."""
    bits = size * 8.0
    time_s = start_s
    while True:
        rate, until_s = _rate_at(kf, ki, f, s, link, time_s)
        if rate > 0.0:
            end_s = time_s + bits / rate
            if end_s <= until_s:
                return end_s
            bits = max(0.0, bits - rate * (until_s - time_s))
        time_s = until_s


@_jit
def _depart(kf, ki, f, s, link, now_s, start_s, free_s, size):
    """``Channel._depart``."""
    x = ki[O_LINK_F] + link * LF_STRIDE
    sample = f[x + LF_SAMPLE]
    if sample > 0.0 and f[x + LF_SAMPLE_LEFT] <= now_s:
        f[x + LF_BITS] += kf[KF_WEIGHT] * (sample - f[x + LF_BITS])
        f[x + LF_SAMPLE], f[x + LF_SAMPLE_LEFT] = 0.0, 0.0
    if free_s <= now_s:
        f[x + LF_BUSY_FROM] = now_s
    end_s = _departure_s(kf, ki, f, s, link, start_s, size)
    if end_s > start_s:
        f[x + LF_SAMPLE], f[x + LF_SAMPLE_LEFT] = size * 8.0 / (end_s - start_s), end_s
    return end_s


@_jit
def _delayed(kf, ki, f, s, link, free_s, arrival_s):
    """Return the arrival of a message with the delays of the time at which it leaves."""
    k, c = ki[O_LKI] + link * LKI_STRIDE, ki[O_LKF] + link * LKF_STRIDE
    x, i = ki[O_LINK_F] + link * LF_STRIDE, ki[O_LINK_I] + link * LI_STRIDE
    if ki[k + LKI_DELAY] != 0:
        _gauss_advance(kf, f, s, 1, 0, c + LKF_DELAY, x + LF_DELAY, i + LI_DELAY, free_s)
        arrival_s += f[x + LF_DELAY + GF_VALUE]
    if ki[k + LKI_SERIES_DELAY] != 0:
        piece = _piece(kf, ki, f, s, link, x + LF_DELAY_BEGUN, i + LI_DELAY_PIECE, free_s)
        arrival_s += kf[ki[k + LKI_SERIES_DELAY] + piece]
    return arrival_s


@_jit
def _seems_up(kf, ki, f, channel):
    """``Channel.seems_up``."""
    link = ki[ki[O_CKI] + channel * CKI_STRIDE + CKI_LINK]
    if link < 0 or ki[ki[O_LKI] + link * LKI_STRIDE + LKI_HAS_RATE] == 0:
        return True
    if f[ki[O_CHAN_F] + channel * CF_STRIDE + CF_FREE] <= f[WF_NOW]:
        return True
    waited_s = f[WF_NOW] - f[ki[O_LINK_F] + link * LF_STRIDE + LF_BUSY_FROM]
    return waited_s <= kf[ki[O_CKF] + channel * CKF_STRIDE + CKF_RTO]


@_jit
def _bits_per_s(ki, f, channel, nominal):
    """Return a channel's bandwidth as measured; nominal where it does not change."""
    link = ki[ki[O_CKI] + channel * CKI_STRIDE + CKI_LINK]
    return nominal if link < 0 else f[ki[O_LINK_F] + link * LF_STRIDE + LF_BITS]


@_jit
def _one_way_s(ki, f, channel):
    return f[ki[O_CHAN_F] + channel * CF_STRIDE + CF_ONE_WAY]


@_jit
def _backhaul(ki, edge, target):
    return 4 * ki[K_DEVICES] + 2 * (edge * ki[K_TARGETS] + target)


@_jit
def _count_bytes(kf, ki, f, size, device):
    f[WF_BYTES] += size
    f[WF_ENERGY] += size * kf[ki[O_DKF] + device * DKF_STRIDE + DKF_RADIO]


@_jit
def _sent(kf, ki, f, s, device, channel, size):
    lost = s[ki[O_CHAN_I] + channel * CI_STRIDE + CI_LOST]
    at = ki[O_DEV_F] + device * DF_STRIDE + DF_LOSS
    f[at] += kf[KF_WEIGHT] * ((1.0 if lost != 0 else 0.0) - f[at])
    _count_bytes(kf, ki, f, size, device)


@_jit
def _own_jobs(ki, s, device):
    """Return the jobs at a device's drafter (none, if it has none)."""
    at = ki[O_STA_I] + device * SI_STRIDE
    return s[at + SI_ACTIVE] + s[at + SI_QUEUED]


@_jit
def _send_up(kf, ki, f, s, r, payload):
    device = s[r + RI_DEVICE]
    size = kf[KF_HEADER_BYTES] + payload
    arrives_s = _send(kf, ki, f, s, 4 * device, size)
    _sent(kf, ki, f, s, device, 4 * device, size)
    s[r + RI_OWN_JOBS] = _own_jobs(ki, s, device)
    _log(ki, f, s, LOG_SEND, 2 * device, s[r + RI_NUMBER], arrives_s)
    return arrives_s


@_jit
def _send_down(kf, ki, f, s, r, payload):
    device = s[r + RI_DEVICE]
    size = kf[KF_HEADER_BYTES] + payload
    arrives_s = _send(kf, ki, f, s, 4 * device + 1, size)
    _sent(kf, ki, f, s, device, 4 * device + 1, size)
    f[WF_CLOUD_USD] += size * 1e-9 * kf[KF_EGRESS]
    _log(ki, f, s, LOG_SEND, 2 * device, s[r + RI_NUMBER], arrives_s)
    return arrives_s


@_jit
def _send_edge(kf, ki, f, s, r, down, payload):
    device = s[r + RI_DEVICE]
    size = kf[KF_HEADER_BYTES] + payload
    arrives_s = _send(kf, ki, f, s, 4 * device + 2 + down, size)
    _count_bytes(kf, ki, f, size, device)
    _log(ki, f, s, LOG_SEND, 2 * device + 1, s[r + RI_NUMBER], arrives_s)
    return arrives_s


@_jit
def _send_backhaul(kf, ki, f, s, r, edge, target, down, payload):
    channel = _backhaul(ki, edge, target) + down
    size = kf[KF_HEADER_BYTES] + payload
    arrives_s = _send(kf, ki, f, s, channel, size)
    f[WF_BYTES] += size
    number = ki[ki[O_CKI] + channel * CKI_STRIDE + CKI_NUMBER]
    _log(ki, f, s, LOG_SEND, number, s[r + RI_NUMBER], arrives_s)
    return arrives_s


@_jit
def _deliver_at(ki, f, s, q, time_s, pc):
    """Let a request wait for a time."""
    r = _r(ki, q)
    s[r + RI_PC] = pc
    _push(ki, f, s, time_s, AT_DELIVERY, s[r + RI_NUMBER], _tag(s, r, q, IS_WAIT))


@_jit
def _travel(ki, f, s, q, time_s, pc):
    """Let a request wait for its message to arrive; if it gives the message up, that comes too late."""
    r = _r(ki, q)
    s[r + RI_PC] = pc
    _push(ki, f, s, time_s, AT_DELIVERY, s[r + RI_NUMBER], _tag(s, r, q, IS_MESSAGE))


@_jit
def _tag(s, r, q, kind):
    return (((s[r + RI_EPOCH] << KIND_BITS) | kind) << SLOT_BITS) | q


@_jit
def _is_live(ki, s, place, tag):
    """Return whether the request of an event still waits for it."""
    r = _r(ki, tag & SLOT_MASK)
    return s[r + RI_NUMBER] == place & ENTITY_MASK and s[r + RI_EPOCH] == tag >> (SLOT_BITS + KIND_BITS)


# ---------------------------------------------------------------------- acceptance


@_jit
def _place_of(ki, at, n, entry):
    low, high = 0, n
    while low < high:
        middle = (low + high) >> 1
        if ki[at + middle] < entry:
            low = middle + 1
        else:
            high = middle
    return low


@_jit
def _locate(ki, s, r, model, position, keep):
    """Return the recorded entry that holds an output position, and its first position.

    With `keep` the request remembers it; positions kept must not fall.
    """
    m = ki[O_MKI] + model * MKI_STRIDE
    chain = r + RI_CHAIN + CHAIN * model
    offsets = ki[m + MKI_OFFSETS]
    entry, start, picks = s[chain], s[chain + 1], s[chain + 2]
    if picks == 0:
        pool = ki[m + MKI_POOLS] + 2 * s[r + RI_KIND]
        u = _uniform(s[WI_SEED], ACCEPTANCE_PICK, s[r + RI_UID], 0)
        entry, start, picks = ki[ki[pool] + int(u * ki[pool + 1])], 0, 1
    length = ki[offsets + entry + 1] - ki[offsets + entry]
    while position >= start + length:
        pair = ki[m + MKI_SAME] + 2 * ki[ki[m + MKI_KIND] + entry]
        same, n = ki[pair], ki[pair + 1]
        if n > 1:
            u = _uniform(s[WI_SEED], ACCEPTANCE_PICK, s[r + RI_UID], picks)
            place = _place_of(ki, same, n, entry)
            entry = ki[same + (place + 1 + int(u * (n - 1))) % n]
        start += length
        picks += 1
        length = ki[offsets + entry + 1] - ki[offsets + entry]
    if keep:
        s[chain], s[chain + 1], s[chain + 2] = entry, start, picks
    return entry, start


@_jit
def _recorded_run(ki, s, r, model, start, keep):
    """Return the run length recorded at a position; it ends with its entry."""
    m = ki[O_MKI] + model * MKI_STRIDE
    entry, first = _locate(ki, s, r, model, start, keep)
    begin = ki[ki[m + MKI_OFFSETS] + entry]
    rest = ki[ki[m + MKI_OFFSETS] + entry + 1] - begin - (start - first)
    return min(ki[ki[m + MKI_RUNS] + begin + start - first], rest)


@_jit
def _run_length(kf, ki, s, r, model, chain, start, limit):
    """Return ``min(run, limit)`` at `start`, of proposals without a break from `chain`."""
    m = ki[O_MKI] + model * MKI_STRIDE
    kind = ki[m + MKI_TYPE]
    if kind == TRACE_RUNS:
        run = _recorded_run(ki, s, r, model, chain, True)
        if run >= ki[m + MKI_LONGEST]:
            run = _recorded_run(ki, s, r, model, start, False)
        else:
            run -= start - chain
        return min(run, limit)
    key = _key(s[WI_SEED], ACCEPTANCE_MATCH, s[r + RI_UID])
    run = 0
    if kind == TRACE_MATCHES:
        entry, first = _locate(ki, s, r, model, start, True)
        begin = ki[ki[m + MKI_OFFSETS] + entry]
        rest = ki[ki[m + MKI_OFFSETS] + entry + 1] - begin - (start - first)
        limit = min(limit, rest)
        at = ki[m + MKI_ACCEPT] + begin + start - first
        while run < limit and _from_key(key, start + run) < kf[at + run]:
            run += 1
        return run
    x = ki[O_MKF] + model * MKF_STRIDE
    low, high = kf[x + MKF_LOW], kf[x + MKF_HIGH]
    if kind == IID:
        while run < limit and _from_key(key, start + run) < low:
            run += 1
        return run
    flip = kf[x + MKF_FLIP] != 0.0
    position = start
    while position > 0:  # the last position that decides for itself
        u = _from_key(key, position)
        if u < low or u >= high:
            break
        position -= 1
    u = _from_key(key, position)
    match = u < (low if position > 0 else kf[x + MKF_FIRST])
    if flip and (start - position) % 2 == 1:
        match = not match
    while match and run < limit:
        run += 1
        u = _from_key(key, start + run)
        if u >= high:
            match = False
        elif u >= low:
            match = not flip
    return run


@_jit
def _top1(kf, ki, s, r, model, position):
    m = ki[O_MKI] + model * MKI_STRIDE
    if ki[m + MKI_TYPE] >= IID:
        return kf[ki[O_MKF] + model * MKF_STRIDE + MKF_CONFIDENCE]
    entry, first = _locate(ki, s, r, model, position, False)
    return kf[ki[m + MKI_TOP1] + ki[ki[m + MKI_OFFSETS] + entry] + position - first]


@_jit
def _confident_drafts(kf, ki, s, r, station, gamma):
    threshold = kf[KF_CONFIDENCE]
    if threshold == 0.0:
        return gamma
    model = ki[ki[O_SKI] + station * SKI_STRIDE + SKI_MODEL]
    start = s[r + RI_COMMITTED]
    for drafted in range(1, gamma):
        position = start + drafted - 1
        if position >= s[r + RI_OUTPUT] or _top1(kf, ki, s, r, model, position) < threshold:
            return drafted
    return gamma


# ---------------------------------------------------------------------- drafters


@_jit
def _draft_job(kf, ki, f, s, job, station, gamma, lag, context):
    """Queue a job at a station."""
    j = ki[O_JOB_I] + job * JI_STRIDE
    s[j + JI_GAMMA], s[j + JI_LAG], s[j + JI_CONTEXT] = gamma, lag, context
    s[j + JI_STATION], s[j + JI_NEXT], s[j + JI_STATE] = station, -1, JOB_QUEUED
    x = ki[O_STA_I] + station * SI_STRIDE
    if s[x + SI_QUEUED] == 0:
        s[x + SI_HEAD] = job
    else:
        s[ki[O_JOB_I] + s[x + SI_TAIL] * JI_STRIDE + JI_NEXT] = job
    s[x + SI_TAIL] = job
    s[x + SI_QUEUED] += 1
    _start_drafts(kf, ki, f, s, station)


@_jit
def _draft(kf, ki, f, s, q, station, drafted):
    """Draft a window, from where the drafter is."""
    r = _r(ki, q)
    job = JOBS * q + ROUND_JOB
    j = ki[O_JOB_I] + job * JI_STRIDE
    s[j + JI_HEAD_CONTEXT] = 0
    if s[r + RI_HEAD_STATION] < 0:
        s[r + RI_CHAIN_START] = s[r + RI_COMMITTED]
    else:
        drafts = max(0, s[r + RI_HEAD_TOKENS] - 1)
        s[WI_DISCARDED] += max(0, drafts - drafted)
        s[j + JI_HEAD_CONTEXT], s[j + JI_HEAD_DRAFTS] = s[r + RI_HEAD_CONTEXT], drafts
        f[ki[O_JOB_F] + job * JF_STRIDE + JF_HEAD_DONE] = f[_g(ki, q) + RF_HEAD_DONE]
        s[r + RI_HEAD_STATION] = -1
    s[r + RI_DRAFTS] = drafted
    context = s[r + RI_PROMPT] + s[r + RI_COMMITTED]
    _draft_job(kf, ki, f, s, job, station, drafted, _lag(ki, s, r, station), context)


@_jit
def _draft_ahead(kf, ki, f, s, q, station, drafted):
    """Go on drafting while a window is verified: a guess of the token after it, and as many again."""
    r = _r(ki, q)
    context = s[r + RI_PROMPT] + s[r + RI_COMMITTED] + drafted
    if ki[K_PIPELINED] == 0 or context + drafted + 1 > ki[ki[O_SKI] + station * SKI_STRIDE + SKI_KV]:
        return
    job = JOBS * q + AHEAD_JOB
    s[ki[O_JOB_I] + job * JI_STRIDE + JI_HEAD_CONTEXT] = 0
    s[r + RI_AHEAD] = 1
    _draft_job(kf, ki, f, s, job, station, drafted + 1, 1, context)


@_jit
def _done_s(ki, f, s, job):
    """``DraftJob.done_s``."""
    state, y = s[ki[O_JOB_I] + job * JI_STRIDE + JI_STATE], ki[O_JOB_F] + job * JF_STRIDE
    if state == JOB_QUEUED:
        return 0.0
    return f[y + JF_DURATION] if state == JOB_ENDED else f[WF_NOW] - f[y + JF_START]


@_jit
def _tokens_after(ki, f, s, job, done_s):
    """``DraftJob.tokens_after``."""
    j, y = ki[O_JOB_I] + job * JI_STRIDE, ki[O_JOB_F] + job * JF_STRIDE
    gamma = s[j + JI_GAMMA]
    if s[j + JI_STATE] == JOB_QUEUED:
        return 0
    if s[j + JI_STATE] == JOB_ENDED or done_s >= f[y + JF_DURATION]:
        return gamma
    if s[j + JI_HEAD_CONTEXT] > 0:
        ready = min(gamma, s[j + JI_HEAD_DRAFTS])
        return ready + int((gamma - ready) * (done_s / f[y + JF_DURATION]))
    if done_s < f[y + JF_FIRST] or gamma == 0:
        return 0
    later = (gamma - 1) * (done_s - f[y + JF_FIRST]) / (f[y + JF_DURATION] - f[y + JF_FIRST])
    return min(gamma, 1 + int(later))


@_jit
def _settle_ahead(kf, ki, f, s, q):
    """The result has come to the drafter: it keeps what it drafted ahead, or rolls it back."""
    r = _r(ki, q)
    if s[r + RI_AHEAD] == 0:
        return
    s[r + RI_AHEAD] = 0
    job = JOBS * q + AHEAD_JOB
    j = ki[O_JOB_I] + job * JI_STRIDE
    done_s = _done_s(ki, f, s, job)
    tokens = _tokens_after(ki, f, s, job, done_s)
    station, context = s[j + JI_STATION], s[j + JI_CONTEXT]
    if tokens > 0 and s[r + RI_PROMPT] + s[r + RI_COMMITTED] == context + 1:
        s[_valid(ki, r, station)] = context
    if s[r + RI_GUESSED] != 0 and done_s > 0.0:
        _withdraw(kf, ki, f, s, job)
        s[r + RI_HEAD_STATION], s[r + RI_HEAD_CONTEXT], s[r + RI_HEAD_TOKENS] = station, context, tokens
        f[_g(ki, q) + RF_HEAD_DONE] = done_s
    else:
        _roll_back(kf, ki, f, s, q)


@_jit
def _roll_back(kf, ki, f, s, q):
    """What was drafted ahead is worth nothing."""
    r = _r(ki, q)
    s[r + RI_AHEAD] = 0
    job = JOBS * q + AHEAD_JOB
    tokens = _withdraw(kf, ki, f, s, job)
    s[WI_DISCARDED] += tokens
    station = s[ki[O_JOB_I] + job * JI_STRIDE + JI_STATION]
    _log(ki, f, s, LOG_ROLLBACK, station, s[r + RI_NUMBER], tokens)


@_jit
def _discard_head_start(ki, f, s, r):
    s[WI_DISCARDED] += s[r + RI_HEAD_TOKENS]
    _log(ki, f, s, LOG_ROLLBACK, s[r + RI_HEAD_STATION], s[r + RI_NUMBER], s[r + RI_HEAD_TOKENS])
    s[r + RI_HEAD_STATION] = -1


@_jit
def _withdraw(kf, ki, f, s, job):
    """Take a job off its drafter; return its tokens that are complete."""
    j = ki[O_JOB_I] + job * JI_STRIDE
    tokens = _tokens_after(ki, f, s, job, _done_s(ki, f, s, job))
    if s[j + JI_STATE] == JOB_QUEUED:
        _unlink(ki, s, job)
        s[j + JI_STATE] = JOB_ENDED
    elif s[j + JI_STATE] == JOB_ACTIVE:
        s[j + JI_RUN] += 1
        _leave(kf, ki, f, s, job, tokens)
    return tokens


@_jit
def _unlink(ki, s, job):
    """Remove a job from the queue of its drafter."""
    j = ki[O_JOB_I] + job * JI_STRIDE
    x = ki[O_STA_I] + s[j + JI_STATION] * SI_STRIDE
    s[x + SI_QUEUED] -= 1
    if s[x + SI_HEAD] == job:
        s[x + SI_HEAD] = s[j + JI_NEXT]
        return
    before = s[x + SI_HEAD]
    while s[ki[O_JOB_I] + before * JI_STRIDE + JI_NEXT] != job:
        before = s[ki[O_JOB_I] + before * JI_STRIDE + JI_NEXT]
    s[ki[O_JOB_I] + before * JI_STRIDE + JI_NEXT] = s[j + JI_NEXT]
    if s[x + SI_TAIL] == job:
        s[x + SI_TAIL] = before


@_jit
def _start_drafts(kf, ki, f, s, station):
    x, y = ki[O_STA_I] + station * SI_STRIDE, ki[O_STA_F] + station * SF_STRIDE
    if s[x + SI_DOWN] > 0:
        return
    places = _places(ki, station)
    now_s = f[WF_NOW]
    while s[x + SI_QUEUED] > 0 and s[x + SI_ACTIVE] < places:
        job = s[x + SI_HEAD]
        j = ki[O_JOB_I] + job * JI_STRIDE
        s[x + SI_HEAD] = s[j + JI_NEXT]
        s[x + SI_QUEUED] -= 1
        if s[x + SI_ACTIVE] == 0:
            f[y + SF_BUSY_SINCE] = now_s
        s[x + SI_ACTIVE] += 1
        s[x + SI_CONTEXT] += s[j + JI_CONTEXT]
        s[j + JI_STATE], s[j + JI_ORDER] = JOB_ACTIVE, s[x + SI_STARTS]
        s[x + SI_STARTS] += 1
        duration_s = _job_s(kf, ki, f, s, station, job)
        _log(ki, f, s, LOG_DRAFT_START, station, s[_r(ki, job // JOBS) + RI_NUMBER], s[j + JI_GAMMA])
        _push(ki, f, s, now_s + duration_s, AT_DRAFT_END, station, (s[j + JI_RUN] << SLOT_BITS) | job)


@_jit
def _job_s(kf, ki, f, s, station, job):
    """``DraftJob.start``: note when a job starts, and how long it takes."""
    x, j, y = ki[O_STA_I] + station * SI_STRIDE, ki[O_JOB_I] + job * JI_STRIDE, ki[O_JOB_F] + job * JF_STRIDE
    active, kv, gamma = s[x + SI_ACTIVE], s[x + SI_CONTEXT], s[j + JI_GAMMA]
    lag, context = s[j + JI_LAG], s[j + JI_CONTEXT]
    duration_s = _draft_s(kf, ki, f, s, station, lag, context, gamma, active, kv)
    if s[j + JI_HEAD_CONTEXT] > 0:
        whole_s = _draft_s(kf, ki, f, s, station, 1, s[j + JI_HEAD_CONTEXT], gamma + 1, active, kv)
        duration_s = min(duration_s, max(0.0, whole_s - f[y + JF_HEAD_DONE]))
    f[y + JF_START], f[y + JF_DURATION] = f[WF_NOW], duration_s
    if ki[K_PIPELINED] != 0 or ki[K_CRASHERS] > 0 or kf[KF_PATIENCE] > 0.0:
        first_s = _draft_s(kf, ki, f, s, station, lag, context, 1, active, kv)
        f[y + JF_FIRST] = min(duration_s, first_s)
    return duration_s


@_jit
def _draft_ended(kf, ki, f, s, job):
    y = ki[O_STA_F] + s[ki[O_JOB_I] + job * JI_STRIDE + JI_STATION] * SF_STRIDE
    duration_s = f[WF_NOW] - f[ki[O_JOB_F] + job * JF_STRIDE + JF_START]
    f[y + SF_MEAN_JOB] += kf[KF_WEIGHT] * (duration_s - f[y + SF_MEAN_JOB])
    _leave(kf, ki, f, s, job, s[ki[O_JOB_I] + job * JI_STRIDE + JI_GAMMA])


@_jit
def _leave(kf, ki, f, s, job, tokens):
    """A job leaves its drafter, complete or not, and makes room for the next."""
    j = ki[O_JOB_I] + job * JI_STRIDE
    station = s[j + JI_STATION]
    x = ki[O_STA_I] + station * SI_STRIDE
    s[j + JI_STATE] = JOB_ENDED
    s[x + SI_ACTIVE] -= 1
    s[x + SI_CONTEXT] -= s[j + JI_CONTEXT]
    if s[x + SI_ACTIVE] == 0:
        _drafting_over(kf, ki, f, station)
    _log(ki, f, s, LOG_DRAFT_END, station, s[_r(ki, job // JOBS) + RI_NUMBER], tokens)
    _start_drafts(kf, ki, f, s, station)


@_jit
def _drafting_over(kf, ki, f, station):
    """A drafter has become idle: book what it cost."""
    k = ki[O_SKF] + station * SKF_STRIDE
    busy_s = f[WF_NOW] - f[ki[O_STA_F] + station * SF_STRIDE + SF_BUSY_SINCE]
    f[WF_ENERGY] += (kf[k + SKF_BUSY_W] - kf[k + SKF_IDLE_W]) * busy_s
    f[WF_GPU_S] += busy_s * kf[k + SKF_GPUS]
    f[WF_CLOUD_USD] += busy_s * kf[k + SKF_GPUS] * kf[k + SKF_PRICE] / 3600.0


# ---------------------------------------------------------------------- targets


@_jit
def _join(ki, f, s, target, q):
    r, t = _r(ki, q), ki[O_TGT_I] + target * TI_STRIDE
    f[_g(ki, q) + RF_QUEUED] = f[WF_NOW]
    s[r + RI_JOB_SEQUENCE] = s[t + TI_JOINED]
    s[t + TI_JOINED] += 1
    _append_ready(ki, f, s, target, q)
    _log(ki, f, s, LOG_ENQUEUE, target, s[r + RI_NUMBER], s[r + RI_JOB_GAMMA] + 1)


@_jit
def _append_ready(ki, f, s, target, q):
    t, x = ki[O_TGT_I] + target * TI_STRIDE, ki[O_TGT_F] + target * TF_STRIDE
    f[x + TF_OLDEST] = min(f[x + TF_OLDEST], f[_g(ki, q) + RF_QUEUED])
    s[ki[O_READY] + target * ki[K_SLOTS] + s[t + TI_READY]] = q
    s[t + TI_READY] += 1


@_jit
def _admit(ki, f, s, target):
    t = ki[O_TGT_I] + target * TI_STRIDE
    capacity = ki[ki[O_TKI] + target * TKI_STRIDE + TKI_KV]
    preempts = ki[ki[O_TKI] + target * TKI_STRIDE + TKI_PREEMPTS] != 0
    while s[t + TI_WAITING] > 0:
        q = s[t + TI_WAIT_HEAD]
        r = _r(ki, q)
        need = s[r + RI_PROMPT] + ki[K_MAX_OUTPUT] + ki[K_GAMMA_MAX] + 1
        if preempts:
            need = s[r + RI_PROMPT] + s[r + RI_COMMITTED]
        if s[t + TI_KV] + need > capacity:
            return
        s[t + TI_WAIT_HEAD] = s[r + RI_NEXT]
        s[t + TI_WAITING] -= 1
        s[t + TI_KV] += need
        s[r + RI_KV_RESERVED] = need
        s[r + RI_ADMISSION] = s[t + TI_ADMISSIONS]
        s[t + TI_ADMISSIONS] += 1
        _log(ki, f, s, LOG_ADMIT, target, s[r + RI_NUMBER], need)
        _join(ki, f, s, target, q)


@_jit
def _release(kf, ki, f, s, r):
    target = s[r + RI_TARGET]
    t = ki[O_TGT_I] + target * TI_STRIDE
    s[t + TI_KV] -= s[r + RI_KV_RESERVED]
    s[r + RI_KV_RESERVED] = 0
    s[t + TI_RESIDENT] -= 1
    _admit(ki, f, s, target)
    _poke(kf, ki, f, s, target)


@_jit
def _serve(kf, ki, f, s, q, target, kind, gamma, prefill, warm, pc):
    """Queue a job at a target, unless that is down; its end wakes the request at `pc`."""
    r, t = _r(ki, q), ki[O_TGT_I] + target * TI_STRIDE
    if s[t + TI_DOWN] > 0:
        _abandon(kf, ki, f, s, q)
        _reconnect(kf, ki, f, s, q)
        return
    s[t + TI_BATCH] = s[r + RI_BATCH]
    s[t + TI_SETTER], s[t + TI_SETTER_NUMBER] = q, s[r + RI_NUMBER]
    _queue_at(kf, ki, f, s, q, target, kind, gamma, prefill, warm, pc)


@_jit
def _queue_at(kf, ki, f, s, q, target, kind, gamma, prefill, warm, pc):
    """Queue a job at a target that is up; the batch size in force stays."""
    r, t = _r(ki, q), ki[O_TGT_I] + target * TI_STRIDE
    s[r + RI_SERVED] += 1
    s[r + RI_JOB_KIND], s[r + RI_JOB_GAMMA], s[r + RI_JOB_CHUNK] = kind, gamma, ki[K_CHUNK]
    s[r + RI_JOB_PREFILL], s[r + RI_JOB_PREFILLED], s[r + RI_JOB_WARM] = prefill, 0, warm
    s[r + RI_PC] = pc
    if s[r + RI_TARGET] != target:
        if s[r + RI_TARGET] >= 0:
            _release(kf, ki, f, s, r)
        s[r + RI_TARGET] = target
        s[t + TI_RESIDENT] += 1
        _wait_for_kv(ki, f, s, target, q)
    elif s[r + RI_KV_RESERVED] == 0:  # preempted while it was away
        _prefill_again(s, r)
        _wait_for_kv(ki, f, s, target, q)
    else:
        _join(ki, f, s, target, q)
    s[r + RI_SITE], s[r + RI_AT] = COLOCATED, target
    _poke(kf, ki, f, s, target)


@_jit
def _wait_for_kv(ki, f, s, target, q):
    """Let a request wait for room in a target's KV pool."""
    r, t = _r(ki, q), ki[O_TGT_I] + target * TI_STRIDE
    s[r + RI_NEXT] = -1
    if s[t + TI_WAITING] == 0:
        s[t + TI_WAIT_HEAD] = q
    else:
        s[_r(ki, s[t + TI_WAIT_TAIL]) + RI_NEXT] = q
    s[t + TI_WAIT_TAIL] = q
    s[t + TI_WAITING] += 1
    _admit(ki, f, s, target)


@_jit
def _prefill_again(s, r):
    """``Job.prefill_again``."""
    newest = 0 if s[r + RI_JOB_KIND] == JOB_PREFILL else 1
    s[r + RI_JOB_PREFILL] = s[r + RI_PROMPT] + s[r + RI_COMMITTED] - newest
    s[r + RI_JOB_PREFILLED] = 0


@_jit
def _make_room(ki, f, s, target, n):
    """Give a batch the KV that it needs; return the size of what is left of it."""
    t, run = ki[O_TGT_I] + target * TI_STRIDE, ki[O_RUN] + target * 2 * ki[K_MAX_BATCH]
    capacity = ki[ki[O_TKI] + target * TKI_STRIDE + TKI_KV]
    for i in range(n):
        r = _r(ki, s[run + 2 * i])
        gamma = 0 if s[r + RI_JOB_PREFILL] != 0 else s[r + RI_JOB_GAMMA]
        need = s[r + RI_PROMPT] + s[r + RI_COMMITTED] + gamma
        while s[r + RI_KV_RESERVED] > 0 and s[t + TI_KV] + max(0, need - s[r + RI_KV_RESERVED]) > capacity:
            _preempt(ki, f, s, target, n)
        if s[r + RI_KV_RESERVED] > 0:
            grown = max(0, need - s[r + RI_KV_RESERVED])
            s[r + RI_KV_RESERVED] += grown
            s[t + TI_KV] += grown
    left = 0
    for i in range(n):
        q = s[run + 2 * i]
        if s[_r(ki, q) + RI_KV_RESERVED] > 0:
            s[run + 2 * left], s[run + 2 * left + 1] = q, s[run + 2 * i + 1]
            left += 1
    s[t + TI_RUNNING] = left
    return left


@_jit
def _preempt(ki, f, s, target, n):
    """Take its KV from the request that was admitted last; it waits in front and prefills again."""
    t, run = ki[O_TGT_I] + target * TI_STRIDE, ki[O_RUN] + target * 2 * ki[K_MAX_BATCH]
    victim = -1
    for q in range(ki[K_SLOTS]):
        r = _r(ki, q)
        if s[r + RI_NUMBER] < 0 or s[r + RI_TARGET] != target or s[r + RI_KV_RESERVED] == 0:
            continue
        if victim < 0 or s[r + RI_ADMISSION] > s[_r(ki, victim) + RI_ADMISSION]:
            victim = q
    r = _r(ki, victim)
    s[WI_PREEMPTIONS] += 1
    _log(ki, f, s, LOG_PREEMPT, target, s[r + RI_NUMBER], s[r + RI_KV_RESERVED])
    s[t + TI_KV] -= s[r + RI_KV_RESERVED]
    s[r + RI_KV_RESERVED] = 0
    station = _base(ki) + target
    if ki[ki[O_SKI] + station * SKI_STRIDE + SKI_MODE] == DRAFTS_SHARED:
        s[_valid(ki, r, station)] = 0
    here = False
    ready, left = ki[O_READY] + target * ki[K_SLOTS], 0
    for i in range(s[t + TI_READY]):
        if s[ready + i] == victim:
            here = True
        else:
            s[ready + left] = s[ready + i]
            left += 1
    s[t + TI_READY] = left
    _find_oldest(ki, f, s, target)
    for i in range(n):
        here = here or s[run + 2 * i] == victim
    if here:
        _prefill_again(s, r)
        s[r + RI_NEXT] = s[t + TI_WAIT_HEAD] if s[t + TI_WAITING] > 0 else -1
        if s[t + TI_WAITING] == 0:
            s[t + TI_WAIT_TAIL] = victim
        s[t + TI_WAIT_HEAD] = victim
        s[t + TI_WAITING] += 1


@_jit
def _find_oldest(ki, f, s, target):
    """Note since when the oldest of the ready jobs has been queued."""
    ready = ki[O_READY] + target * ki[K_SLOTS]
    oldest_s = math.inf
    for i in range(s[ki[O_TGT_I] + target * TI_STRIDE + TI_READY]):
        queued_s = f[_g(ki, s[ready + i]) + RF_QUEUED]
        oldest_s = min(oldest_s, queued_s)
    f[ki[O_TGT_F] + target * TF_STRIDE + TF_OLDEST] = oldest_s


@_jit
def _poke(kf, ki, f, s, target):
    t, x = ki[O_TGT_I] + target * TI_STRIDE, ki[O_TGT_F] + target * TF_STRIDE
    if s[t + TI_IDLE] == 0 or s[t + TI_READY] == 0:
        return
    check_s = f[WF_NOW]
    if s[t + TI_READY] < s[t + TI_BATCH]:
        wait_s = kf[ki[O_TKF] + target * TKF_STRIDE + TKF_WAIT]
        check_s = max(check_s, f[x + TF_OLDEST] + wait_s)
    if check_s < f[x + TF_CHECK]:
        f[x + TF_CHECK] = check_s
        _push(ki, f, s, check_s, AT_ITERATION_START, target, target)


@_jit
def _check(kf, ki, f, s, target):
    t, x = ki[O_TGT_I] + target * TI_STRIDE, ki[O_TGT_F] + target * TF_STRIDE
    if f[x + TF_CHECK] == f[WF_NOW]:
        f[x + TF_CHECK] = math.inf
    if s[t + TI_IDLE] == 0 or s[t + TI_READY] == 0:
        return
    if s[t + TI_READY] < s[t + TI_BATCH]:
        wait_s = kf[ki[O_TKF] + target * TKF_STRIDE + TKF_WAIT]
        if f[WF_NOW] < f[x + TF_OLDEST] + wait_s:
            _poke(kf, ki, f, s, target)
            return
    _start_iteration(kf, ki, f, s, target)


@_jit
def _goes_before(ki, f, s, prefill_first, shortest, a, b):
    """Return whether one ready job goes before another (the oldest of all apart)."""
    ra, rb = _r(ki, a), _r(ki, b)
    pa, pb = s[ra + RI_JOB_PREFILL], s[rb + RI_JOB_PREFILL]
    if (pa != 0) != (pb != 0):
        return (pa != 0) == prefill_first
    if shortest:
        size_a = pa if pa != 0 else s[ra + RI_JOB_GAMMA]
        size_b = pb if pb != 0 else s[rb + RI_JOB_GAMMA]
        if size_a != size_b:
            return size_a < size_b
    queued_a, queued_b = f[_g(ki, a) + RF_QUEUED], f[_g(ki, b) + RF_QUEUED]
    if queued_a != queued_b:
        return queued_a < queued_b
    return s[ra + RI_JOB_SEQUENCE] < s[rb + RI_JOB_SEQUENCE]


@_jit
def _compose(ki, f, s, target):
    """``TargetServer.compose``: fill the running list, leave the rest ready; return the batch's size."""
    t, k = ki[O_TGT_I] + target * TI_STRIDE, ki[O_TKI] + target * TKI_STRIDE
    ready = ki[O_READY] + target * ki[K_SLOTS]
    run = ki[O_RUN] + target * 2 * ki[K_MAX_BATCH]
    n = s[t + TI_READY]
    prefill_first, shortest = ki[k + TKI_PREFILL_FIRST] != 0, ki[k + TKI_SHORTEST] != 0
    oldest = 0
    for i in range(1, n):
        a, b = s[ready + i], s[ready + oldest]
        queued_a, queued_b = f[_g(ki, a) + RF_QUEUED], f[_g(ki, b) + RF_QUEUED]
        if queued_a < queued_b or (
            queued_a == queued_b and s[_r(ki, a) + RI_JOB_SEQUENCE] < s[_r(ki, b) + RI_JOB_SEQUENCE]
        ):
            oldest = i
    first = s[ready + oldest]
    s[ready + oldest] = s[ready]
    s[ready] = first
    for i in range(2, n):  # ready lists are nearly in order: insertion sort
        q = s[ready + i]
        at = i
        while at > 1 and _goes_before(ki, f, s, prefill_first, shortest, q, s[ready + at - 1]):
            s[ready + at] = s[ready + at - 1]
            at -= 1
        s[ready + at] = q
    seats = min(s[t + TI_BATCH], ki[k + TKI_MAX_BATCH])
    budget = ki[k + TKI_CHUNK]
    size = left = 0
    for i in range(n):
        q = s[ready + i]
        r = _r(ki, q)
        prefill = s[r + RI_JOB_PREFILL]
        if size == seats or (prefill != 0 and budget == 0):
            s[ready + left] = q
            left += 1
            continue
        tokens = s[r + RI_JOB_GAMMA] + 1
        if prefill != 0:
            tokens = min(prefill, budget)
            budget -= tokens
        s[run + 2 * size], s[run + 2 * size + 1] = q, tokens
        size += 1
    s[t + TI_READY], s[t + TI_RUNNING] = left, size
    _find_oldest(ki, f, s, target)
    return size


@_jit
def _share(ki, s, target, q, tokens):
    """``ReferenceSimulation._shares`` for one job: (kv, lag, kv of the draft, gamma)."""
    r = _r(ki, q)
    context = s[r + RI_PROMPT] + s[r + RI_COMMITTED]
    station = _base(ki) + target
    if s[r + RI_JOB_PREFILL] != 0:
        kv = s[r + RI_JOB_PREFILLED] + tokens
        shared = ki[ki[O_SKI] + station * SKI_STRIDE + SKI_MODE] == DRAFTS_SHARED
        if s[r + RI_JOB_WARM] != 0 and shared:
            return kv, tokens, kv, 0
        return kv, 0, 0, 0
    if s[r + RI_JOB_KIND] == JOB_COLOCATED:
        return context + tokens - 1, _lag(ki, s, r, station), context, s[r + RI_JOB_GAMMA]
    return context + tokens - 1, 0, 0, 0


@_jit
def _start_iteration(kf, ki, f, s, target):
    t, x = ki[O_TGT_I] + target * TI_STRIDE, ki[O_TGT_F] + target * TF_STRIDE
    run = ki[O_RUN] + target * 2 * ki[K_MAX_BATCH]
    station = _base(ki) + target
    now_s = f[WF_NOW]
    n = _compose(ki, f, s, target)
    if ki[ki[O_TKI] + target * TKI_STRIDE + TKI_PREEMPTS] != 0:
        n = _make_room(ki, f, s, target, n)
        if n == 0:
            _poke(kf, ki, f, s, target)
            return
    prefills = False
    new = kv = lag = lag_kv = 0
    longest = longest_2 = lag_longest = lag_longest_2 = 0
    most = 0
    for i in range(n):
        tokens = s[run + 2 * i + 1]
        share_kv, share_lag, share_draft_kv, gamma = _share(ki, s, target, s[run + 2 * i], tokens)
        prefills = prefills or s[_r(ki, s[run + 2 * i]) + RI_JOB_PREFILL] != 0
        new += tokens
        kv += share_kv
        if tokens > 1:
            if share_kv > longest:
                longest, longest_2 = share_kv, longest
            elif share_kv > longest_2:
                longest_2 = share_kv
        if share_lag != 0:
            lag += share_lag
            lag_kv += share_draft_kv
            if share_lag > 1:
                if share_draft_kv > lag_longest:
                    lag_longest, lag_longest_2 = share_draft_kv, lag_longest
                elif share_draft_kv > lag_longest_2:
                    lag_longest_2 = share_draft_kv
            most = max(most, gamma)
    expected_s = _captured_step_s(kf, ki, s, target, new, kv, longest, prefills)
    if lag > 0:
        drafting_s = _draft_step_s(kf, ki, f, s, station, lag, lag_kv, lag_longest)
        for step in range(2, most + 1):
            sequences, step_kv = _drafting_at(ki, s, target, n, step)
            drafting_s += _draft_step_s(kf, ki, f, s, station, sequences, step_kv, 0)
        expected_s = expected_s + drafting_s
    duration_s = expected_s * _iteration_noise(kf, ki, s, target)
    if s[WI_PRICE] != 0:
        _charge(
            kf,
            ki,
            f,
            s,
            target,
            n,
            expected_s,
            (new, kv, longest, longest_2, prefills),
            (lag, lag_kv, lag_longest, lag_longest_2),
        )
    s[t + TI_IDLE] = 0
    s[t + TI_ITERATIONS] += 1
    f[x + TF_START] = now_s
    f[x + TF_EXPECTED_END] = now_s + expected_s
    _log(ki, f, s, LOG_ITERATION_START, target, -1, n)
    run_tag = (s[t + TI_ITERATIONS] << SLOT_BITS) | target
    _push(ki, f, s, now_s + duration_s, AT_ITERATION_END, target, run_tag)


@_jit
def _drafting_at(ki, s, target, n, step):
    """Return how many sequences of the batch draft at least `step` tokens, and the KV they read then."""
    run = ki[O_RUN] + target * 2 * ki[K_MAX_BATCH]
    sequences = kv = 0
    for i in range(n):
        r = _r(ki, s[run + 2 * i])
        if s[r + RI_JOB_PREFILL] == 0 and s[r + RI_JOB_KIND] == JOB_COLOCATED and s[r + RI_JOB_GAMMA] >= step:
            sequences += 1
            kv += s[r + RI_PROMPT] + s[r + RI_COMMITTED]
    return sequences, kv + sequences * (step - 1)


@_jit
def _caused_s(kf, ki, f, s, target, n, q, tokens, whole, draft):
    """``IterationCost.caused_s``."""
    new, kv, longest, longest_2, prefills = whole
    lag, lag_kv, lag_longest, lag_longest_2 = draft
    share_kv, share_lag, share_draft_kv, gamma = _share(ki, s, target, q, tokens)
    others = longest_2 if tokens > 1 and share_kv == longest else longest
    caused_s = _captured_step_s(kf, ki, s, target, new, kv, longest, prefills)
    if new > tokens:
        caused_s -= _captured_step_s(kf, ki, s, target, new - tokens, kv - share_kv, others, prefills)
    if share_lag == 0:
        return caused_s
    station = _base(ki) + target
    caused_s += _draft_step_s(kf, ki, f, s, station, lag, lag_kv, lag_longest)
    if lag > share_lag:
        others = lag_longest_2 if share_lag > 1 and share_draft_kv == lag_longest else lag_longest
        caused_s -= _draft_step_s(kf, ki, f, s, station, lag - share_lag, lag_kv - share_draft_kv, others)
    for step in range(2, gamma + 1):
        sequences, step_kv = _drafting_at(ki, s, target, n, step)
        caused_s += _draft_step_s(kf, ki, f, s, station, sequences, step_kv, 0)
        if sequences > 1:
            others_kv = step_kv - share_draft_kv - (step - 1)
            caused_s -= _draft_step_s(kf, ki, f, s, station, sequences - 1, others_kv, 0)
    return caused_s


@_jit
def _charge(kf, ki, f, s, target, n, duration_s, whole, draft):
    t, x = ki[O_TGT_I] + target * TI_STRIDE, ki[O_TGT_F] + target * TF_STRIDE
    run = ki[O_RUN] + target * 2 * ki[K_MAX_BATCH]
    others = s[t + TI_RESIDENT] - 1
    ready_s = math.inf
    for i in range(n):
        q, tokens = s[run + 2 * i], s[run + 2 * i + 1]
        caused_s = _caused_s(kf, ki, f, s, target, n, q, tokens, whole, draft)
        f[_g(ki, q) + RF_DELAY_CAUSED] += caused_s * others
        ready_s = min(ready_s, f[_g(ki, q) + RF_QUEUED])
    setter = s[t + TI_SETTER]
    if setter >= 0 and s[_r(ki, setter) + RI_NUMBER] == s[t + TI_SETTER_NUMBER]:
        waited_s = f[WF_NOW] - max(ready_s, f[x + TF_END])
        f[_g(ki, setter) + RF_DELAY_CAUSED] += s[t + TI_READY] * duration_s + n * waited_s


@_jit
def _iteration_over(kf, ki, f, s, target):
    """A target has become idle: book what the iteration cost; return how long it ran."""
    t, x = ki[O_TGT_I] + target * TI_STRIDE, ki[O_TGT_F] + target * TF_STRIDE
    k = ki[O_TKF] + target * TKF_STRIDE
    duration_s = f[WF_NOW] - f[x + TF_START]
    s[t + TI_RUNNING] = 0
    s[t + TI_IDLE] = 1
    f[x + TF_END] = f[WF_NOW]
    f[x + TF_BUSY] += duration_s
    f[WF_GPU_S] += duration_s * kf[k + TKF_GPUS]
    f[WF_CLOUD_USD] += duration_s * kf[k + TKF_GPUS] * kf[k + TKF_PRICE] / 3600.0
    f[WF_ENERGY] += duration_s * (kf[k + TKF_BUSY_W] - kf[k + TKF_IDLE_W])
    return duration_s


@_jit
def _end_iteration(kf, ki, f, s, target):
    t, x = ki[O_TGT_I] + target * TI_STRIDE, ki[O_TGT_F] + target * TF_STRIDE
    run = ki[O_RUN] + target * 2 * ki[K_MAX_BATCH]
    n = s[t + TI_RUNNING]
    duration_s = _iteration_over(kf, ki, f, s, target)
    f[x + TF_ITERATION] += kf[KF_WEIGHT] * (duration_s - f[x + TF_ITERATION])
    new = 0
    for i in range(n):
        new += s[run + 2 * i + 1]
    f[x + TF_TOKENS] += kf[KF_WEIGHT] * (new - f[x + TF_TOKENS])
    _log(ki, f, s, LOG_ITERATION_END, target, -1, new)
    for i in range(n):
        _advance(kf, ki, f, s, target, s[run + 2 * i], s[run + 2 * i + 1])
    _poke(kf, ki, f, s, target)


@_jit
def _advance(kf, ki, f, s, target, q, tokens):
    r = _r(ki, q)
    kind = s[r + RI_JOB_KIND]
    if s[r + RI_JOB_PREFILL] != 0:
        s[r + RI_JOB_PREFILL] -= tokens
        s[r + RI_JOB_PREFILLED] += tokens
        station = _base(ki) + target
        if s[r + RI_JOB_WARM] != 0 and ki[ki[O_SKI] + station * SKI_STRIDE + SKI_MODE] == DRAFTS_SHARED:
            s[_valid(ki, r, station)] = s[r + RI_JOB_PREFILLED]
        if s[r + RI_JOB_PREFILL] != 0 or kind != JOB_PREFILL:
            _append_ready(ki, f, s, target, q)
            return
        _commit(kf, ki, f, s, q, 1)
    elif kind == JOB_PLAIN:
        _commit(kf, ki, f, s, q, 1)
        s[r + RI_JOB_CHUNK] -= 1
        if s[r + RI_JOB_CHUNK] > 0 and s[r + RI_COMMITTED] < s[r + RI_OUTPUT]:
            _join(ki, f, s, target, q)
            return
        _remember(s, r, 0, 0)
    elif kind == JOB_COLOCATED:
        s[r + RI_CHAIN_START] = s[r + RI_COMMITTED]
        _verified(kf, ki, f, s, q, _base(ki) + target, s[r + RI_JOB_GAMMA])
    else:
        _verified(kf, ki, f, s, q, s[r + RI_STATION], s[r + RI_JOB_GAMMA])
    _push(ki, f, s, f[WF_NOW], AT_JOB_DONE, s[r + RI_NUMBER], _tag(s, r, q, IS_WAIT))


# ---------------------------------------------------------------------- requests


@_jit
def _remember(s, r, drafted, accepted):
    for i in range(RI_CHAIN - RI_RECENT_ACCEPTED - 1, 0, -1):
        s[r + RI_RECENT_GAMMA + i] = s[r + RI_RECENT_GAMMA + i - 1]
        s[r + RI_RECENT_ACCEPTED + i] = s[r + RI_RECENT_ACCEPTED + i - 1]
    s[r + RI_RECENT_GAMMA] = drafted
    s[r + RI_RECENT_ACCEPTED] = accepted


@_jit
def _verified(kf, ki, f, s, q, station, drafted):
    r, g = _r(ki, q), _g(ki, q)
    model = ki[ki[O_SKI] + station * SKI_STRIDE + SKI_MODEL]
    start = s[r + RI_COMMITTED]
    left = s[r + RI_OUTPUT] - start
    run = _run_length(kf, ki, s, r, model, s[r + RI_CHAIN_START], start, min(drafted + 1, left))
    accepted = min(drafted, run, left)
    s[r + RI_GUESSED] = 1 if run > drafted else 0
    committed = min(accepted + 1, left)
    s[_valid(ki, r, station)] = s[r + RI_PROMPT] + start + min(drafted - 1, accepted)
    s[r + RI_DRAFTED_AT] = station
    s[r + RI_VERIFIES] += 1
    s[r + RI_DRAFTED] += drafted
    s[r + RI_ACCEPTED] += accepted
    s[r + RI_ROUND_TOKENS] = committed
    last = min(start + min(accepted, drafted - 1), s[r + RI_OUTPUT] - 1)
    f[g + RF_CONFIDENCE] = _top1(kf, ki, s, r, model, last)
    _remember(s, r, drafted, accepted)
    weight = kf[KF_WEIGHT]
    f[g + RF_ACCEPTANCE] += weight * (accepted / drafted - f[g + RF_ACCEPTANCE])
    f[g + RF_TOKENS_PER_ROUND] += weight * (committed - f[g + RF_TOKENS_PER_ROUND])
    s[WI_DRAFTED] += drafted
    s[WI_ACCEPTED] += accepted
    s[WI_VERIFIED] += 1
    s[WI_ROUND_TOKENS] += committed
    _commit(kf, ki, f, s, q, committed)


@_jit
def _commit(kf, ki, f, s, q, tokens):
    r, g = _r(ki, q), _g(ki, q)
    now_s = f[WF_NOW]
    first = s[r + RI_COMMITTED] == 0
    if first:
        f[g + RF_FIRST_COMMIT] = now_s
    f[g + RF_LAST_COMMIT] = now_s
    s[r + RI_COMMITTED] += tokens
    s[WI_OUTPUT_TOKENS] += tokens
    s[WI_TOKENS_SEEN] += tokens
    number = s[r + RI_NUMBER]
    _log(ki, f, s, LOG_COMMIT, s[r + RI_TARGET], number, tokens)
    arrives_s = _send_down(kf, ki, f, s, r, tokens * kf[KF_BYTES_PER_TOKEN])
    if first:
        f[g + RF_FIRST_DELIVERY] = arrives_s
    f[g + RF_LAST_DELIVERY] = arrives_s
    if ki[K_DELIVERY_CAP] > 0 and ki[K_WARMUP] <= number < ki[K_COHORT]:
        n = s[WI_DELIVERIES]
        if n >= ki[K_DELIVERY_CAP]:
            s[WI_ERROR] = DELIVERIES_FULL
        else:
            f[ki[O_DELIVERY_F] + n] = arrives_s
            at = ki[O_DELIVERY_I] + 2 * n
            s[at], s[at + 1] = number, tokens
            s[WI_DELIVERIES] = n + 1
    if s[r + RI_COMMITTED] >= s[r + RI_OUTPUT]:
        _release(kf, ki, f, s, r)


@_jit
def _measure(kf, ki, f, s, r, round_trip_s):
    device = s[r + RI_DEVICE]
    d = ki[O_DEV_F] + device * DF_STRIDE
    weight = kf[KF_WEIGHT]
    f[d + DF_DEVIATION] += weight * (abs(round_trip_s - f[d + DF_RTT]) - f[d + DF_DEVIATION])
    f[d + DF_RTT] += weight * (round_trip_s - f[d + DF_RTT])
    f[d + DF_SAMPLE] = f[WF_NOW]
    s[r + RI_OWN_JOBS] = _own_jobs(ki, s, device)


@_jit
def _accrue(kf, f, s, now_s):
    elapsed_s = now_s - f[WF_ACCRUED]
    if elapsed_s > 0.0:
        f[WF_REQUEST_SECONDS] += s[WI_IN_SYSTEM] * elapsed_s
        f[WF_ENERGY] += kf[KF_IDLE_W] * elapsed_s
        f[WF_ACCRUED] = now_s


@_jit
def _arrivals_are_over(ki, s, before):
    return ki[K_TOTAL] >= 0 and s[WI_ARRIVED] + before >= ki[K_TOTAL]


@_jit
def _keep_window(ki, f, s):
    """Note the totals at the start of the measurement window."""
    at = ki[O_WINDOW]
    f[at] = f[WF_NOW]
    f[at + 1] = f[WF_ACCRUED]
    f[at + 2] = f[WF_REQUEST_SECONDS]
    f[at + 3] = s[WI_OUTPUT_TOKENS]
    f[at + 4] = s[WI_COMPLETED]
    f[at + 5] = s[WI_GOOD]
    f[at + 6] = s[WI_VIOLATIONS]
    f[at + 7] = f[WF_TPOT_COST]
    f[at + 8] = s[WI_DRAFTED]
    f[at + 9] = s[WI_ACCEPTED]
    f[at + 10] = s[WI_VERIFIED]
    f[at + 11] = s[WI_ROUND_TOKENS]
    f[at + 12] = f[WF_GPU_S]
    f[at + 13] = f[WF_CLOUD_USD]
    f[at + 14] = f[WF_ENERGY]
    f[at + 15] = f[WF_BYTES]
    f[at + 16] = s[WI_DISCARDED]
    f[at + 17] = s[WI_TAKEOVERS]
    f[at + 18] = s[WI_INTERRUPTIONS]
    f[at + 19] = s[WI_LATE]
    f[at + 20] = s[WI_DUPLICATES]
    f[at + 21] = s[WI_PREEMPTIONS]
    for target in range(ki[K_TARGETS]):
        x = ki[O_TGT_F] + target * TF_STRIDE
        busy_s = f[x + TF_BUSY]
        if s[ki[O_TGT_I] + target * TI_STRIDE + TI_IDLE] == 0:
            busy_s = busy_s + (f[WF_NOW] - f[x + TF_START])
        f[at + 1 + N_TOTALS + target] = busy_s


@_jit
def _variate(kf, s, law, at, seed, stream, entity, counter):
    """``workload.generator._draw``."""
    if law == LAW_CONSTANT:
        return kf[at]
    key = _key(seed, stream, entity)
    u = _from_key(key, counter)
    if law == LAW_EXPONENTIAL:
        return kf[at] * -math.log(u)
    if law == LAW_GEOMETRIC:
        return 1.0 if kf[at] == 1.0 else 1.0 + math.floor(math.log(u) / kf[at + 1])
    return _value_at(kf, law, at, _normal(u, _from_key(key, counter + 1)))


@_jit
def _value_at(kf, law, at, z):
    """``variates.value_at``."""
    if law == LAW_LOGNORMAL:
        return min(max(kf[at] * math.exp(kf[at + 1] * z), kf[at + 2]), kf[at + 3])
    table, n = int(kf[at]), int(kf[at + 1])
    return _log_quantiles_at(kf, table, n, min(max(z, kf[table]), kf[table + n - 1]))


@_jit
def _tokens(value, most):
    """Round half to even, within 1 and `most`."""
    whole = math.floor(value)
    rest = value - whole
    n = int(whole)
    if rest > 0.5 or (rest == 0.5 and n % 2 == 1):
        n += 1
    return min(max(1, n), most)


@_jit
def _load_advance(kf, ki, f, now_s, amount):
    """``LoadClock.advance``."""
    load = ki[O_LOAD]
    last = ki[K_LOAD_POINTS] - 1
    position_s = np.fmod(now_s + f[WF_LOAD_OFFSET], kf[KF_LOAD_PERIOD])
    segment = last - 1
    while kf[load + 2 * segment] > position_s:
        segment -= 1
    elapsed_s = 0.0
    while True:
        at = load + 2 * segment
        start_s, low, end_s, high = kf[at], kf[at + 1], kf[at + 2], kf[at + 3]
        slope = (high - low) / (end_s - start_s)
        value = low + slope * (position_s - start_s)
        rest_s = end_s - position_s
        area = rest_s * (value + 0.5 * slope * rest_s)
        if area >= amount:
            if slope == 0.0:
                return now_s + elapsed_s + amount / value
            root = math.sqrt(max(0.0, value * value + 2.0 * slope * amount))
            return now_s + elapsed_s + 2.0 * amount / (value + root)
        amount -= area
        elapsed_s += rest_s
        segment += 1
        position_s = end_s
        if segment == last:
            segment, position_s = 0, 0.0


@_jit
def _think(kf, ki, f, s, device):
    """A client begins to think: schedule its next question."""
    d = ki[O_DEV_I] + device * DI_STRIDE
    ordinal = s[d + DI_ORDINAL]
    seed = s[WI_SEED]
    think_s = _variate(kf, s, ki[K_THINK_LAW], KF_THINK, seed, THINK, device, 3 * ordinal)
    if ordinal == 0:
        think_s *= _uniform(seed, THINK, device, 2)
    asks_s = _load_advance(kf, ki, f, f[WF_NOW], think_s)
    _push(ki, f, s, asks_s, AT_ARRIVAL, device, device)


@_jit
def _gap(f, s, p, x):
    """``RenewalProcess._gap``."""
    u = _from_key(np.uint64(s[p + PROCI_GAP_KEY]), s[p + PROCI_ORDINAL])
    s[p + PROCI_ORDINAL] += 1
    return f[x + PROCF_SCALE] * math.exp(f[x + PROCF_POWER] * math.log(max(-math.log(u), SHORTEST)))


@_jit
def _rate_normal(s, p):
    key, counter = np.uint64(s[p + PROCI_RATE_KEY]), 2 * s[p + PROCI_PERIOD]
    return _normal(_from_key(key, counter), _from_key(key, counter + 1))


@_jit
def _begin_rate_period(kf, f, x):
    sigma = kf[KF_RATE_SIGMA]
    f[x + PROCF_LEFT] = kf[KF_RATE_PERIOD]
    f[x + PROCF_FACTOR] = math.exp(sigma * f[x + PROCF_X] - 0.5 * sigma * sigma)


@_jit
def _begin_process(kf, ki, f, s, n, rate_per_s, process):
    """``RenewalProcess.__init__``."""
    p, x = ki[O_PROCESS_I] + n * PROCI_STRIDE, ki[O_PROCESS_F] + n * PROCF_STRIDE
    seed = s[WI_SEED]
    s[p + PROCI_GAP_KEY] = np.int64(_key(seed, ARRIVAL, process))
    s[p + PROCI_RATE_KEY] = np.int64(_key(seed, LOAD_PHASE, process + 1))
    f[x + PROCF_RATE] = rate_per_s
    f[x + PROCF_POWER], f[x + PROCF_SCALE] = kf[KF_GAP_POWER], kf[KF_GAP_SCALE]
    if process > 0 and _uniform(seed, ROUTING, process, 2) < kf[KF_BURSTY_FRACTION]:
        f[x + PROCF_POWER], f[x + PROCF_SCALE] = kf[KF_BURSTY_POWER], kf[KF_BURSTY_SCALE]
    if ki[K_MODULATED] != 0:
        f[x + PROCF_X] = _rate_normal(s, p)
        _begin_rate_period(kf, f, x)
    first = -RUN_IN
    while first <= 0.0:
        first += _gap(f, s, p, x)
    f[x + PROCF_FIRST] = first


@_jit
def _next_of_process(kf, ki, f, s, n):
    """``RenewalProcess.next_s``."""
    p, x = ki[O_PROCESS_I] + n * PROCI_STRIDE, ki[O_PROCESS_F] + n * PROCF_STRIDE
    gaps = f[x + PROCF_FIRST]
    if gaps == 0.0:
        gaps = _gap(f, s, p, x)
    f[x + PROCF_FIRST] = 0.0
    amount_s = gaps / f[x + PROCF_RATE]
    if ki[K_MODULATED] == 0:
        return min(amount_s, kf[KF_GAP_LIMIT])
    elapsed_s = 0.0
    while amount_s > f[x + PROCF_LEFT] * f[x + PROCF_FACTOR] and elapsed_s < kf[KF_GAP_LIMIT]:
        amount_s -= f[x + PROCF_LEFT] * f[x + PROCF_FACTOR]
        elapsed_s += f[x + PROCF_LEFT]
        s[p + PROCI_PERIOD] += 1
        f[x + PROCF_X] = kf[KF_RATE_RHO] * f[x + PROCF_X] + kf[KF_RATE_STEP] * _rate_normal(s, p)
        _begin_rate_period(kf, f, x)
    rest_s = amount_s / f[x + PROCF_FACTOR]
    f[x + PROCF_LEFT] = max(0.0, f[x + PROCF_LEFT] - rest_s)
    return min(elapsed_s + rest_s, kf[KF_GAP_LIMIT])


@_jit
def _begin_arrivals(kf, ki, f, s):
    """What an open arrival process draws before the first arrival."""
    seed, devices = s[WI_SEED], ki[K_DEVICES]
    if ki[K_SHARES] > 0:
        at = ki[O_SHARES]
        total = 0.0
        for device in range(devices):
            key = _key(seed, ROUTING, device + 1)
            z = _normal(_from_key(key, 0), _from_key(key, 1))
            f[at + device] = math.exp(kf[KF_CLIENT_SPREAD] * z)
            total += f[at + device]
        for device in range(devices):
            f[at + device] = f[at + device] / total
    if ki[K_ARRIVALS] == CLIENT_RENEWALS:
        for device in range(devices):
            rate_per_s = kf[KF_RATE_PER_S] * f[ki[O_SHARES] + device]
            _begin_process(kf, ki, f, s, device, rate_per_s, device + 1)
    elif ki[K_ARRIVALS] == RENEWAL:
        _begin_process(kf, ki, f, s, ZERO, kf[KF_RATE_PER_S], ZERO)
    elif ki[K_TRACE_RANDOM] != 0:
        # ``Schedule.start``.
        offset_s = kf[KF_TRACE_PERIOD] * _uniform(seed, ARRIVAL, 0, 0)
        low, high = ZERO, ki[K_TRACE]
        while low < high:
            middle = (low + high) // 2
            if kf[ki[O_TRACE_F] + middle] < offset_s:
                low = middle + 1
            else:
                high = middle
        f[WF_TRACE_OFFSET], s[WI_TRACE_FIRST] = offset_s, low


@_jit
def _next_client_arrival(kf, ki, f, s, device):
    x = ki[O_PROCESS_F] + device * PROCF_STRIDE
    gap_s = _next_of_process(kf, ki, f, s, device)
    f[x + PROCF_ARRIVAL] = _load_advance(kf, ki, f, f[x + PROCF_ARRIVAL], gap_s)
    _push(ki, f, s, f[x + PROCF_ARRIVAL], AT_ARRIVAL, device, device)


@_jit
def _next_open_arrival(kf, ki, f, s):
    ordinal = s[WI_ORDINAL]
    if ki[K_ARRIVALS] == REPLAY:
        place = s[WI_TRACE_FIRST] + ordinal
        lap = place // ki[K_TRACE]
        number = place - lap * ki[K_TRACE]
        time_s = kf[ki[O_TRACE_F] + number] + lap * kf[KF_TRACE_PERIOD] - f[WF_TRACE_OFFSET]
        f[WF_OPEN_ARRIVAL] = max(f[WF_OPEN_ARRIVAL], time_s)
    else:
        if ki[K_ARRIVALS] == RENEWAL:
            gap_s = _next_of_process(kf, ki, f, s, ZERO)
        else:
            gap_s = -math.log(_uniform(s[WI_SEED], ARRIVAL, 0, ordinal)) / kf[KF_RATE_PER_S]
        f[WF_OPEN_ARRIVAL] = _load_advance(kf, ki, f, f[WF_OPEN_ARRIVAL], gap_s)
    _push(ki, f, s, f[WF_OPEN_ARRIVAL], AT_ARRIVAL, ordinal, ordinal)


@_jit
def _open_device(ki, f, s, ordinal, row):
    """``WorkloadGenerator.open_device``; ``row`` is that of the request in a replayed trace."""
    if ki[K_TRACE_DEVICES] != 0 and ki[row + TRACE_DEVICE] >= 0:
        return ki[row + TRACE_DEVICE]
    u = _uniform(s[WI_SEED], ROUTING, 0, ordinal)
    devices = ki[K_DEVICES]
    if ki[K_SHARES] == 0:
        return int(u * devices)
    below = 0.0
    for device in range(devices):
        below += f[ki[O_SHARES] + device]
        if u <= below:
            return device
    return devices - 1


@_jit
def _arrival(kf, ki, f, s, arg):
    """A client asks."""
    if ki[K_CLOSED] != 0:
        if not _arrivals_are_over(ki, s, 0):
            _arrive(kf, ki, f, s, arg, ZERO)
        return
    if ki[K_ARRIVALS] == CLIENT_RENEWALS:
        if not _arrivals_are_over(ki, s, 0):
            if not _arrivals_are_over(ki, s, 1):
                _next_client_arrival(kf, ki, f, s, arg)
            _arrive(kf, ki, f, s, arg, ZERO)
        return
    row = ZERO
    if ki[K_ARRIVALS] == REPLAY:
        row = ki[O_TRACE_I] + (s[WI_TRACE_FIRST] + arg) % ki[K_TRACE] * TRACE_STRIDE
    device = _open_device(ki, f, s, arg, row)
    s[WI_ORDINAL] = arg + 1
    if not _arrivals_are_over(ki, s, 1):
        _next_open_arrival(kf, ki, f, s)
    _arrive(kf, ki, f, s, device, row)


@_jit
def _arrive(kf, ki, f, s, device, row):
    """A request begins; ``row`` is that of the request in a replayed trace, 0 if none is replayed."""
    now_s = f[WF_NOW]
    if s[WI_FREE_N] == 0:
        s[WI_ERROR] = SLOTS_FULL
        return
    s[WI_FREE_N] -= 1
    q = s[ki[O_FREE] + s[WI_FREE_N]]
    r, g = _r(ki, q), _g(ki, q)
    d = ki[O_DEV_I] + device * DI_STRIDE
    for i in range(ki[K_R_STRIDE]):
        s[r + i] = 0
    for i in range(RF_STRIDE):
        f[g + i] = 0.0
    ordinal = s[d + DI_ORDINAL]
    s[d + DI_ORDINAL] = ordinal + 1
    uid = device * ORDINALS + ordinal
    seed = s[WI_SEED]
    u = _uniform(seed, REQUEST_CLASS, uid, 0)
    kind = 0
    while kind < ki[K_KINDS] - 1 and u > kf[ki[O_KINDF] + kind * KINDF_STRIDE + KINDF_BOUND]:
        kind += 1
    if row != 0 and ki[K_TRACE_KINDS] != 0 and ki[row + TRACE_KIND] >= 0:
        kind = ki[row + TRACE_KIND]
    laws, x = ki[O_KINDI] + kind * KINDI_STRIDE, ki[O_KINDF] + kind * KINDF_STRIDE
    prompt_law, output_law = ki[laws + KINDI_PROMPT_LAW], ki[laws + KINDI_OUTPUT_LAW]
    if row != 0:
        s[r + RI_PROMPT], s[r + RI_OUTPUT] = ki[row + TRACE_PROMPT], ki[row + TRACE_OUTPUT]
    else:
        if kf[x + KINDF_CORRELATION] == 0.0:
            prompt = _variate(kf, s, prompt_law, x + KINDF_PROMPT, seed, LENGTH, uid, 0)
            output = _variate(kf, s, output_law, x + KINDF_OUTPUT, seed, LENGTH, uid, 3)
        else:
            key = _key(seed, LENGTH, uid)
            z = _normal(_from_key(key, 0), _from_key(key, 1))
            own = _normal(_from_key(key, 3), _from_key(key, 4))
            prompt = _value_at(kf, prompt_law, x + KINDF_PROMPT, z)
            z = kf[x + KINDF_CORRELATION] * z + kf[x + KINDF_REST] * own
            output = _value_at(kf, output_law, x + KINDF_OUTPUT, z)
        s[r + RI_PROMPT] = _tokens(prompt, ki[K_MAX_PROMPT])
        s[r + RI_OUTPUT] = _tokens(output, ki[K_MAX_OUTPUT])
    number = s[WI_ARRIVED]
    s[r + RI_NUMBER], s[r + RI_UID], s[r + RI_DEVICE], s[r + RI_KIND] = number, uid, device, kind
    s[r + RI_TARGET], s[r + RI_DRAFTED_AT], s[r + RI_WARMING] = -1, -1, -1
    s[r + RI_HEAD_STATION] = -1
    f[g + RF_RESEND_TIMER] = math.inf
    s[r + RI_SITE], s[r + RI_AT] = OWN_DEVICE, device
    f[g + RF_ARRIVAL], f[g + RF_ACCEPTANCE], f[g + RF_TOKENS_PER_ROUND] = now_s, 0.6, 2.0
    f[g + RF_SLO_TTFT], f[g + RF_SLO_TPOT] = kf[x + KINDF_TTFT], kf[x + KINDF_TPOT]
    _accrue(kf, f, s, now_s)
    if number == ki[K_WARMUP]:
        _keep_window(ki, f, s)
    s[WI_ARRIVED] += 1
    s[WI_IN_SYSTEM] += 1
    _log(ki, f, s, LOG_ARRIVAL, device, number, s[r + RI_PROMPT])
    _ask(ki, f, s, q)


@_jit
def _ask(ki, f, s, q):
    """A request waits for its turn among the decisions of the instant, where somebody is up to decide."""
    r = _r(ki, q)
    if _is_down(ki, s, s[r + RI_SITE], s[r + RI_AT]):
        s[r + RI_PC] = PC_PLACE_DOWN
        return
    s[r + RI_PC] = PC_DECISION
    _push(ki, f, s, f[WF_NOW], AT_DECISION, s[r + RI_NUMBER], _tag(s, r, q, IS_WAIT))


@_jit
def _next_round(ki, f, s, q):
    """Open the next round, or wait for the last token to arrive."""
    r = _r(ki, q)
    if s[r + RI_COMMITTED] >= s[r + RI_OUTPUT]:
        _deliver_at(ki, f, s, q, f[_g(ki, q) + RF_LAST_DELIVERY], PC_LAST_TOKEN)
    else:
        _ask(ki, f, s, q)


@_jit
def _complete(kf, ki, f, s, q):
    r, g = _r(ki, q), _g(ki, q)
    now_s = f[WF_NOW]
    _accrue(kf, f, s, now_s)
    if s[r + RI_AHEAD] != 0:
        _roll_back(kf, ki, f, s, q)
    s[WI_IN_SYSTEM] -= 1
    number, tokens = s[r + RI_NUMBER], s[r + RI_OUTPUT]
    arrival_s, first_s, last_s = f[g + RF_ARRIVAL], f[g + RF_FIRST_DELIVERY], f[g + RF_LAST_DELIVERY]
    tpot_s = (last_s - first_s) / (tokens - 1) if tokens > 1 else 0.0
    s[WI_COMPLETED] += 1
    if first_s - arrival_s <= f[g + RF_SLO_TTFT] and tpot_s <= f[g + RF_SLO_TPOT]:
        s[WI_GOOD] += 1
    else:
        s[WI_VIOLATIONS] += 1
    f[WF_TPOT_COST] += tpot_s / f[g + RF_SLO_TPOT]
    s[r + RI_DONE] = s[r + RI_IS_NEW] = 1
    s[ki[O_NEWLY] + s[WI_NEWLY_N]] = q
    s[WI_NEWLY_N] += 1
    _keep_row(ki, f, s, r, g)
    device = s[r + RI_DEVICE]
    _log(ki, f, s, LOG_COMPLETE, device, number, now_s - arrival_s)
    if number < ki[K_COHORT]:
        s[WI_COHORT_LEFT] -= 1
        if s[WI_COHORT_LEFT] == 0:
            s[WI_STATUS] = TRUNCATED
    if _arrivals_are_over(ki, s, 0) and s[WI_IN_SYSTEM] == 0:
        s[WI_STATUS] = TERMINATED
    if ki[K_CLOSED] != 0:
        _think(kf, ki, f, s, device)


@_jit
def _keep_row(ki, f, s, r, g):
    """Put a completed request into the table; the cohort's always have room."""
    n = s[WI_TABLE_N]
    # What the cohort may still need is kept free.
    if s[r + RI_NUMBER] >= ki[K_COHORT] and n + s[WI_COHORT_LEFT] >= ki[K_TABLE_CAP]:
        s[WI_TABLE_DROPPED] += 1
        return
    s[WI_TABLE_N] = n + 1
    a, b = ki[O_TABLE_I] + n * XI_STRIDE, ki[O_TABLE_F] + n * XF_STRIDE
    s[a + XI_NUMBER], s[a + XI_UID] = s[r + RI_NUMBER], s[r + RI_UID]
    s[a + XI_DEVICE], s[a + XI_KIND] = s[r + RI_DEVICE], s[r + RI_KIND]
    s[a + XI_PROMPT], s[a + XI_OUTPUT] = s[r + RI_PROMPT], s[r + RI_OUTPUT]
    s[a + XI_DELIVERED], s[a + XI_ROUNDS] = s[r + RI_COMMITTED], s[r + RI_ROUNDS]
    s[a + XI_VERIFIES], s[a + XI_DRAFTED] = s[r + RI_VERIFIES], s[r + RI_DRAFTED]
    s[a + XI_ACCEPTED] = s[r + RI_ACCEPTED]
    f[b + XF_ARRIVAL], f[b + XF_FIRST] = f[g + RF_ARRIVAL], f[g + RF_FIRST_DELIVERY]
    f[b + XF_LAST], f[b + XF_COMPLETED] = f[g + RF_LAST_DELIVERY], f[WF_NOW]
    f[b + XF_SLO_TTFT], f[b + XF_SLO_TPOT] = f[g + RF_SLO_TTFT], f[g + RF_SLO_TPOT]


@_jit
def _free(ki, s, q):
    """Give a completed request's slot back, unless its drafter's prefill still runs."""
    r = _r(ki, q)
    if s[r + RI_DONE] != 0 and s[r + RI_IS_NEW] == 0 and s[r + RI_WARMING] < 0:
        s[ki[O_FREE] + s[WI_FREE_N]] = q
        s[WI_FREE_N] += 1
        s[r + RI_NUMBER] = -1


# ---------------------------------------------------------------------- protocol of a request


@_jit
def _decided(kf, ki, f, s, q):
    """The answer to a decision has come."""
    r = _r(ki, q)
    s[r + RI_DECISIONS] += 1
    _log(ki, f, s, LOG_DECISION, s[r + RI_RES_TARGET], s[r + RI_NUMBER], s[r + RI_GAMMA])
    if kf[KF_LATENCY] > 0.0:
        _deliver_at(ki, f, s, q, f[WF_NOW] + kf[KF_LATENCY], PC_LATENCY)
    else:
        _act(kf, ki, f, s, q)


@_jit
def _act(kf, ki, f, s, q):
    r = _r(ki, q)
    if s[r + RI_COMMITTED] == 0:
        _prefill(kf, ki, f, s, q)
        return
    s[r + RI_ROUNDS] += 1
    if s[r + RI_HEAD_STATION] >= 0 and s[r + RI_HEAD_STATION] != s[r + RI_STATION]:
        _discard_head_start(ki, f, s, r)
    moves = s[r + RI_RES_TARGET] != s[r + RI_TARGET]
    s[r + RI_MOVES] = 1 if moves else 0
    context = s[r + RI_PROMPT] + s[r + RI_COMMITTED]
    site = s[r + RI_RES_SITE]
    if s[r + RI_GAMMA] == 0 or site == COLOCATED:
        after = AFTER_PLAIN if s[r + RI_GAMMA] == 0 else AFTER_COLOCATED
        _move_control(kf, ki, f, s, q, COLOCATED, s[r + RI_RES_TARGET], context if moves else 0, after)
        return
    place = s[r + RI_DEVICE] if site == OWN_DEVICE else s[r + RI_EDGE]
    lag = _lag(ki, s, r, s[r + RI_STATION])
    _move_control(kf, ki, f, s, q, site, place, min(lag, context), AFTER_EDGE)


@_jit
def _prefill(kf, ki, f, s, q):
    r, g = _r(ki, q), _g(ki, q)
    f[g + RF_SENT] = f[WF_NOW]
    prompt = s[r + RI_PROMPT]
    arrives_s = _send_up(kf, ki, f, s, r, prompt * kf[KF_BYTES_PER_TOKEN])
    _travel(ki, f, s, q, arrives_s, PC_PROMPT_UP)
    elsewhere = s[r + RI_GAMMA] > 0 and s[r + RI_RES_SITE] != COLOCATED
    if elsewhere and s[r + RI_WARMING] < 0 and s[_valid(ki, r, s[r + RI_STATION])] == 0:
        _warm_up(kf, ki, f, s, q)


@_jit
def _warm_up(kf, ki, f, s, q):
    r = _r(ki, q)
    station = s[r + RI_STATION]
    s[r + RI_WARMING] = station
    prompt = s[r + RI_PROMPT]
    if s[r + RI_RES_SITE] == EDGE_SERVER:
        device = s[r + RI_DEVICE]
        size = kf[KF_HEADER_BYTES] + prompt * kf[KF_BYTES_PER_TOKEN]
        arrives_s = _send(kf, ki, f, s, 4 * device + 2, size)
        _count_bytes(kf, ki, f, size, device)
        _push(ki, f, s, arrives_s, AT_DELIVERY, s[r + RI_NUMBER], _tag(s, r, q, IS_WARM_UP))
    else:
        _draft_job(kf, ki, f, s, JOBS * q + WARM_JOB, station, 0, prompt, prompt)


@_jit
def _warmed(kf, ki, f, s, q):
    r = _r(ki, q)
    s[_valid(ki, r, s[r + RI_WARMING])] = s[r + RI_PROMPT]
    s[r + RI_WARMING] = -1
    if s[r + RI_WAITS_WARM] != 0:
        s[r + RI_WAITS_WARM] = 0
        _edge_draft(kf, ki, f, s, q)
    _free(ki, s, q)


@_jit
def _edge_draft(kf, ki, f, s, q):
    r = _r(ki, q)
    station = s[r + RI_STATION]
    if s[r + RI_WARMING] == station:
        s[r + RI_WAITS_WARM] = 1
        s[r + RI_PC] = PC_WARM
        return
    drafted = _confident_drafts(kf, ki, s, r, station, s[r + RI_GAMMA])
    s[r + RI_PC] = PC_EDGE_DRAFTED
    _draft(kf, ki, f, s, q, station, drafted)


@_jit
def _edge_drafted(kf, ki, f, s, q):
    r = _r(ki, q)
    target = s[r + RI_RES_TARGET]
    s[r + RI_MOVES] = 1 if target != s[r + RI_TARGET] else 0
    size = s[r + RI_DRAFTS] * kf[KF_BYTES_PER_DRAFT]
    if s[r + RI_MOVES] != 0:
        size += (s[r + RI_PROMPT] + s[r + RI_COMMITTED]) * kf[KF_BYTES_PER_TOKEN]
    f[_g(ki, q) + RF_SENT] = f[WF_NOW]
    if s[r + RI_RES_SITE] == OWN_DEVICE:
        arrives_s = _send_up(kf, ki, f, s, r, size)
        _expect_result(kf, ki, f, s, q, size)
    else:
        arrives_s = _send_backhaul(kf, ki, f, s, r, s[r + RI_EDGE], target, 0, size)
    _draft_ahead(kf, ki, f, s, q, s[r + RI_STATION], s[r + RI_DRAFTS])
    _travel(ki, f, s, q, arrives_s, PC_EDGE_UP)


@_jit
def _at_target(kf, ki, f, s, q, after):
    """Control has reached the target: a co-located or a plain round."""
    r = _r(ki, q)
    target = s[r + RI_RES_TARGET]
    context = s[r + RI_PROMPT] + s[r + RI_COMMITTED]
    prefill = context - 1 if s[r + RI_MOVES] != 0 else 0
    if s[ki[O_TGT_I] + target * TI_STRIDE + TI_DOWN] > 0:
        _abandon(kf, ki, f, s, q)
        _reconnect(kf, ki, f, s, q)
        return
    if after == AFTER_PLAIN:
        _serve(kf, ki, f, s, q, target, JOB_PLAIN, 0, prefill, 0, PC_SERVED)
        return
    station = _base(ki) + target
    if ki[ki[O_SKI] + station * SKI_STRIDE + SKI_MODE] == DRAFTS_SHARED:
        _serve(kf, ki, f, s, q, target, JOB_COLOCATED, s[r + RI_GAMMA], prefill, 0, PC_SERVED)
        return
    s[r + RI_PC] = PC_DEDICATED_DRAFTED
    _draft(kf, ki, f, s, q, station, _confident_drafts(kf, ki, s, r, station, s[r + RI_GAMMA]))


@_jit
def _move_control(kf, ki, f, s, q, site, number, tokens, after):
    """Begin to bring control to a place; go on at once if it is there."""
    r = _r(ki, q)
    s[r + RI_TO_SITE], s[r + RI_TO], s[r + RI_AFTER] = site, number, after
    f[_g(ki, q) + RF_MOVE_SIZE] = tokens * kf[KF_BYTES_PER_TOKEN]
    _move_on(kf, ki, f, s, q)


@_jit
def _move_on(kf, ki, f, s, q):
    r = _r(ki, q)
    site, number = s[r + RI_SITE], s[r + RI_AT]
    to_site, to = s[r + RI_TO_SITE], s[r + RI_TO]
    if site == to_site and number == to:
        after = s[r + RI_AFTER]
        if after == AFTER_PREFILL:
            _next_round(ki, f, s, q)
        elif after == AFTER_EDGE:
            _edge_draft(kf, ki, f, s, q)
        else:
            _at_target(kf, ki, f, s, q, after)
        return
    size = f[_g(ki, q) + RF_MOVE_SIZE]
    hop_site, hop = to_site, to
    if site == COLOCATED and to_site == EDGE_SERVER:
        arrives_s = _send_backhaul(kf, ki, f, s, r, to, number, 1, size)
    elif site == EDGE_SERVER and to_site == COLOCATED:
        arrives_s = _send_backhaul(kf, ki, f, s, r, number, to, 0, size)
    elif site == COLOCATED:
        arrives_s = _send_down(kf, ki, f, s, r, size)
        hop_site, hop = OWN_DEVICE, s[r + RI_DEVICE]
    elif site == EDGE_SERVER:
        arrives_s = _send_edge(kf, ki, f, s, r, 1, size)
        hop_site, hop = OWN_DEVICE, s[r + RI_DEVICE]
    elif to_site == COLOCATED:
        arrives_s = _send_up(kf, ki, f, s, r, size)
    else:
        arrives_s = _send_edge(kf, ki, f, s, r, 0, size)
    s[r + RI_HOP_SITE], s[r + RI_HOP] = hop_site, hop
    _travel(ki, f, s, q, arrives_s, PC_MOVE)


@_jit
def _delivered(kf, ki, f, s, q):
    """A message that a request waited for has arrived."""
    r, g = _r(ki, q), _g(ki, q)
    pc = s[r + RI_PC]
    target = s[r + RI_RES_TARGET]
    now_s = f[WF_NOW]
    if pc == PC_MOVE:
        s[r + RI_SITE], s[r + RI_AT] = s[r + RI_HOP_SITE], s[r + RI_HOP]
        _move_on(kf, ki, f, s, q)
    elif pc == PC_EDGE_UP:
        s[r + RI_SITE], s[r + RI_AT] = COLOCATED, target
        f[g + RF_SERVED] = now_s
        context = s[r + RI_PROMPT] + s[r + RI_COMMITTED]
        prefill = context - 1 if s[r + RI_MOVES] != 0 else 0
        _serve(kf, ki, f, s, q, target, JOB_VERIFY, s[r + RI_DRAFTS], prefill, 0, PC_EDGE_VERIFIED)
    elif pc == PC_BACK_DEVICE or pc == PC_FIRST_TOKEN:
        if pc == PC_BACK_DEVICE:
            s[r + RI_EXCHANGE] += 1
        _measure(kf, ki, f, s, r, (now_s - f[g + RF_SENT]) - f[g + RF_SERVED])
        s[r + RI_SITE], s[r + RI_AT] = OWN_DEVICE, s[r + RI_DEVICE]
        _settle_ahead(kf, ki, f, s, q)
        _next_round(ki, f, s, q)
    elif pc == PC_BACK_EDGE:
        s[r + RI_SITE], s[r + RI_AT] = EDGE_SERVER, s[r + RI_EDGE]
        _settle_ahead(kf, ki, f, s, q)
        _next_round(ki, f, s, q)
    elif pc == PC_DETECTED:
        _deliver_at(ki, f, s, q, _send_down(kf, ki, f, s, r, 0.0), PC_NOTICE)
    elif pc == PC_NOTICE:
        s[r + RI_SITE], s[r + RI_AT] = OWN_DEVICE, s[r + RI_DEVICE]
        _next_round(ki, f, s, q)
    elif pc == PC_LAST_TOKEN:
        _complete(kf, ki, f, s, q)
    elif pc == PC_PROMPT_UP:
        s[WI_ARRIVALS_SEEN] += 1
        f[g + RF_SERVED] = now_s
        warm = 1 if s[r + RI_GAMMA] > 0 and s[r + RI_RES_SITE] == COLOCATED else 0
        _serve(kf, ki, f, s, q, target, JOB_PREFILL, 0, s[r + RI_PROMPT], warm, PC_PREFILLED)
    else:
        _act(kf, ki, f, s, q)


@_jit
def _job_done(kf, ki, f, s, q):
    """A target has done a request's job."""
    r, g = _r(ki, q), _g(ki, q)
    _report(kf, ki, f, s, s[r + RI_TARGET], g + RF_REPORT)
    s[r + RI_HAS_REPORT] = 1
    pc = s[r + RI_PC]
    finished = s[r + RI_COMMITTED] >= s[r + RI_OUTPUT]
    if pc == PC_SERVED and not finished:
        _settle_ahead(kf, ki, f, s, q)
    if pc == PC_SERVED or finished:
        _next_round(ki, f, s, q)
        return
    f[g + RF_SERVED] = f[WF_NOW] - f[g + RF_SERVED]
    if pc == PC_EDGE_VERIFIED:
        _expect_drafts(kf, ki, f, s, q)
        if s[r + RI_RES_SITE] == OWN_DEVICE:
            _deliver_at(ki, f, s, q, f[g + RF_LAST_DELIVERY], PC_BACK_DEVICE)
            return
        size = s[r + RI_ROUND_TOKENS] * kf[KF_BYTES_PER_TOKEN]
        back_s = _send_backhaul(kf, ki, f, s, r, s[r + RI_EDGE], s[r + RI_RES_TARGET], 1, size)
        _deliver_at(ki, f, s, q, back_s, PC_BACK_EDGE)
        return
    site = s[r + RI_RES_SITE]
    if s[r + RI_GAMMA] > 0 and site != COLOCATED:
        _expect_drafts(kf, ki, f, s, q)
    if s[r + RI_GAMMA] > 0 and site == OWN_DEVICE:
        _deliver_at(ki, f, s, q, f[g + RF_LAST_DELIVERY], PC_FIRST_TOKEN)
    elif s[r + RI_GAMMA] > 0 and site == EDGE_SERVER:
        _move_control(kf, ki, f, s, q, EDGE_SERVER, s[r + RI_EDGE], 1, AFTER_PREFILL)
    else:
        _next_round(ki, f, s, q)


@_jit
def _draft_end(kf, ki, f, s, tag):
    """A draft has ended, unless it was given up: the station first, then the request."""
    job = tag & SLOT_MASK
    if s[ki[O_JOB_I] + job * JI_STRIDE + JI_RUN] != tag >> SLOT_BITS:
        return
    _draft_ended(kf, ki, f, s, job)
    q, which = job // JOBS, job % JOBS
    if which == WARM_JOB:
        _warmed(kf, ki, f, s, q)
    elif which == AHEAD_JOB:
        return
    elif s[_r(ki, q) + RI_PC] == PC_EDGE_DRAFTED:
        _edge_drafted(kf, ki, f, s, q)
    else:
        r = _r(ki, q)
        context = s[r + RI_PROMPT] + s[r + RI_COMMITTED]
        prefill = context - 1 if s[r + RI_MOVES] != 0 else 0
        target = s[r + RI_RES_TARGET]
        _draft_ahead(kf, ki, f, s, q, s[r + RI_STATION], s[r + RI_DRAFTS])
        _serve(kf, ki, f, s, q, target, JOB_VERIFY, s[r + RI_DRAFTS], prefill, 0, PC_SERVED)


# ---------------------------------------------------------------------- what goes wrong


@_jit
def _is_down(ki, s, site, number):
    """Return whether nobody can decide at a place now."""
    if site == OWN_DEVICE:
        return s[ki[O_DEV_I] + number * DI_STRIDE + DI_DOWN] > 0
    return site == EDGE_SERVER and s[ki[O_STA_I] + (ki[K_DEVICES] + number) * SI_STRIDE + SI_DOWN] > 0


@_jit
def _window(kf, ki, s, row, index, end_s):
    """Return (start, end) of a fault's window that follows one with that end; infinite after the last."""
    i, x = ki[O_XKI] + row * XKI_STRIDE, ki[O_XKF] + row * XKF_STRIDE
    seed, number = s[WI_SEED], ki[i + XKI_NUMBER]
    if ki[i + XKI_N_TIMES] == 0:
        u = _uniform(seed, FAULT, number, 3 * index)
        start_s = end_s + kf[x + XKF_INTERVAL] * -math.log(u)
    elif index < ki[i + XKI_N_TIMES]:
        start_s = max(kf[ki[i + XKI_TIMES] + index], end_s)
    else:
        return math.inf, math.inf
    law = ki[i + XKI_LAW]
    return start_s, start_s + _variate(kf, s, law, x + XKF_DURATION, seed, FAULT, number, 3 * index + 1)


@_jit
def _next_window(kf, ki, f, s, n):
    """``FaultWindows.advance``: schedule the next crash of one that crashes."""
    c, y = ki[O_CRASH_I] + n * CRASH_STRIDE, ki[O_CRASH_F] + n * CRASH_END
    start_s, end_s = _window(kf, ki, s, n, s[c + CRASH_INDEX], f[y])
    s[c + CRASH_INDEX] += 1
    if start_s < math.inf:
        f[y] = end_s
        _push(ki, f, s, start_s, AT_FAULT, ki[ki[O_XKI] + n * XKI_STRIDE + XKI_NUMBER], n)


@_jit
def _fault(kf, ki, f, s, n):
    """One that crashes goes down, or comes back."""
    i, c = ki[O_XKI] + n * XKI_STRIDE, ki[O_CRASH_I] + n * CRASH_STRIDE
    number, site, entity = ki[i + XKI_NUMBER], ki[i + XKI_SITE], ki[i + XKI_ENTITY]
    if s[c + CRASH_DOWN] == 0:
        s[c + CRASH_DOWN] = 1
        _log(ki, f, s, LOG_FAULT, entity, -1, number)
        _crash(kf, ki, f, s, site, entity)
        _push(ki, f, s, f[ki[O_CRASH_F] + n * CRASH_END], AT_FAULT, number, n)
    else:
        s[c + CRASH_DOWN] = 0
        _log(ki, f, s, LOG_RETURN, entity, -1, number)
        _come_back(kf, ki, f, s, site, entity)
        _next_window(kf, ki, f, s, n)


@_jit
def _crash(kf, ki, f, s, site, entity):
    if site == SITE_TARGET:
        t = ki[O_TGT_I] + entity * TI_STRIDE
        s[t + TI_DOWN] += 1
        if s[t + TI_DOWN] == 1:
            _crash_target(kf, ki, f, s, entity)
    elif site == SITE_EDGE:
        _crash_station(kf, ki, f, s, ki[K_DEVICES] + entity)
    else:
        s[ki[O_DEV_I] + entity * DI_STRIDE + DI_DOWN] += 1
        if ki[ki[O_SKI] + entity * SKI_STRIDE + SKI_MODE] != NO_DRAFTER:
            _crash_station(kf, ki, f, s, entity)


@_jit
def _come_back(kf, ki, f, s, site, entity):
    if site == SITE_TARGET:
        t, station = ki[O_TGT_I] + entity * TI_STRIDE, _base(ki) + entity
        s[t + TI_DOWN] -= 1
        if s[t + TI_DOWN] == 0 and ki[ki[O_SKI] + station * SKI_STRIDE + SKI_MODE] == DRAFTS_ALONE:
            _station_returns(kf, ki, f, s, station)
        return
    if site == SITE_EDGE:
        place = EDGE_SERVER
        _station_returns(kf, ki, f, s, ki[K_DEVICES] + entity)
    else:
        place = OWN_DEVICE
        s[ki[O_DEV_I] + entity * DI_STRIDE + DI_DOWN] -= 1
        if ki[ki[O_SKI] + entity * SKI_STRIDE + SKI_MODE] != NO_DRAFTER:
            _station_returns(kf, ki, f, s, entity)
    if _is_down(ki, s, place, entity):
        return
    for q in range(ki[K_SLOTS]):
        r = _r(ki, q)
        waits = s[r + RI_NUMBER] >= 0 and s[r + RI_PC] == PC_PLACE_DOWN
        if waits and s[r + RI_SITE] == place and s[r + RI_AT] == entity:
            _ask(ki, f, s, q)


@_jit
def _station_returns(kf, ki, f, s, station):
    s[ki[O_STA_I] + station * SI_STRIDE + SI_DOWN] -= 1
    _start_drafts(kf, ki, f, s, station)


@_jit
def _crash_target(kf, ki, f, s, target):
    """A target loses its KV, its queue and the iteration under way; its clients are told."""
    t, x = ki[O_TGT_I] + target * TI_STRIDE, ki[O_TGT_F] + target * TF_STRIDE
    if s[t + TI_IDLE] == 0:
        _iteration_over(kf, ki, f, s, target)
    s[t + TI_READY] = s[t + TI_WAITING] = s[t + TI_KV] = s[t + TI_RESIDENT] = 0
    f[x + TF_CHECK] = f[x + TF_OLDEST] = math.inf
    s[t + TI_BATCH] = ki[ki[O_TKI] + target * TKI_STRIDE + TKI_INITIAL_BATCH]
    s[t + TI_SETTER] = -1
    number = -1
    while True:
        q = _next_victim(ki, s, target, number)
        if q < 0:
            break
        r = _r(ki, q)
        number = s[r + RI_NUMBER]
        s[r + RI_TARGET], s[r + RI_KV_RESERVED] = -1, 0
        s[WI_INTERRUPTIONS] += 1
        _abandon(kf, ki, f, s, q)
        _reconnect(kf, ki, f, s, q)
    station = _base(ki) + target
    _lose_drafter_kv(ki, f, s, station)
    if ki[ki[O_SKI] + station * SKI_STRIDE + SKI_MODE] == DRAFTS_ALONE:
        _crash_station(kf, ki, f, s, station)


@_jit
def _next_victim(ki, s, target, number):
    """Return the slot of the first request after `number` that is at a target; -1 if there is none."""
    best, best_number = -1, -1
    for q in range(ki[K_SLOTS]):
        r = _r(ki, q)
        other = s[r + RI_NUMBER]
        if other <= number or s[r + RI_DONE] != 0 or s[r + RI_TARGET] != target:
            continue
        if s[r + RI_COMMITTED] < s[r + RI_OUTPUT] and (best < 0 or other < best_number):
            best, best_number = q, other
    return best


@_jit
def _crash_station(kf, ki, f, s, station):
    """A drafter loses its KV. Its drafts begin anew when it is back; those drafted ahead are lost."""
    x = ki[O_STA_I] + station * SI_STRIDE
    s[x + SI_DOWN] += 1
    if s[x + SI_DOWN] > 1:
        return
    _lose_drafter_kv(ki, f, s, station)
    order = -1
    while True:
        job = _next_active(ki, s, station, order)
        if job < 0:
            break
        order = s[ki[O_JOB_I] + job * JI_STRIDE + JI_ORDER]
        if job % JOBS == AHEAD_JOB:
            _roll_back(kf, ki, f, s, job // JOBS)
    left, job = s[x + SI_QUEUED], s[x + SI_HEAD]
    while left > 0:
        after = s[ki[O_JOB_I] + job * JI_STRIDE + JI_NEXT]
        left -= 1
        if job % JOBS == AHEAD_JOB:
            _roll_back(kf, ki, f, s, job // JOBS)
        job = after
    _requeue_active(kf, ki, f, s, station)
    left, job = s[x + SI_QUEUED], s[x + SI_HEAD]
    while left > 0:
        _begin_anew(ki, s, job)
        job = s[ki[O_JOB_I] + job * JI_STRIDE + JI_NEXT]
        left -= 1


@_jit
def _next_active(ki, s, station, order):
    """Return the drafter's first active job that started after the `order`-th; -1 if there is none."""
    best, best_order = -1, -1
    for job in range(JOBS * ki[K_SLOTS]):
        j = ki[O_JOB_I] + job * JI_STRIDE
        other = s[j + JI_ORDER]
        here = s[j + JI_STATE] == JOB_ACTIVE and s[j + JI_STATION] == station
        if here and other > order and (best < 0 or other < best_order):
            best, best_order = job, other
    return best


@_jit
def _requeue_active(kf, ki, f, s, station):
    """Put the active jobs of a crashed drafter back to the front of its queue, in their order."""
    x = ki[O_STA_I] + station * SI_STRIDE
    if s[x + SI_ACTIVE] == 0:
        return
    order, last = -1, -1
    while True:
        job = _next_active(ki, s, station, order)
        if job < 0:
            break
        j = ki[O_JOB_I] + job * JI_STRIDE
        order = s[j + JI_ORDER]
        s[j + JI_STATE] = JOB_QUEUED
        s[j + JI_RUN] += 1
        # The first goes before the old head, each other after the one before it.
        if last < 0:
            s[j + JI_NEXT] = s[x + SI_HEAD]
            s[x + SI_HEAD] = job
        else:
            before = ki[O_JOB_I] + last * JI_STRIDE
            s[j + JI_NEXT] = s[before + JI_NEXT]
            s[before + JI_NEXT] = job
        if s[x + SI_QUEUED] == 0 or s[x + SI_TAIL] == last:
            s[x + SI_TAIL] = job
        s[x + SI_QUEUED] += 1
        last = job
    s[x + SI_ACTIVE] = s[x + SI_CONTEXT] = 0
    _drafting_over(kf, ki, f, station)


@_jit
def _begin_anew(ki, s, job):
    j, r = ki[O_JOB_I] + job * JI_STRIDE, _r(ki, job // JOBS)
    if s[j + JI_GAMMA] > 0:
        s[r + RI_CHAIN_START] = s[r + RI_COMMITTED]
    s[j + JI_LAG] = s[j + JI_CONTEXT]
    s[j + JI_HEAD_CONTEXT] = 0


@_jit
def _lose_drafter_kv(ki, f, s, station):
    number = -1
    while True:
        best, best_number = -1, -1
        for q in range(ki[K_SLOTS]):
            r = _r(ki, q)
            other = s[r + RI_NUMBER]
            if other < 0 or s[r + RI_DONE] != 0:
                continue
            if station >= ki[K_DEVICES] or s[r + RI_DEVICE] == station:
                s[_valid(ki, r, station)] = 0
            ahead = s[r + RI_HEAD_STATION] == station
            if ahead and other > number and (best < 0 or other < best_number):
                best, best_number = q, other
        if best < 0:
            return
        number = best_number
        _discard_head_start(ki, f, s, _r(ki, best))


@_jit
def _abandon(kf, ki, f, s, q):
    """Give up a request's drafts and messages under way. A message already sent will come too late."""
    r = _r(ki, q)
    s[r + RI_EPOCH] += 1
    s[r + RI_SERVED] += 1
    s[r + RI_EXCHANGE] += 1
    s[r + RI_WAITS_WARM] = 0
    job = JOBS * q + ROUND_JOB
    if s[ki[O_JOB_I] + job * JI_STRIDE + JI_STATE] != JOB_ENDED:
        s[WI_DISCARDED] += _withdraw(kf, ki, f, s, job)
    if s[r + RI_AHEAD] != 0:
        _roll_back(kf, ki, f, s, q)
    if s[r + RI_HEAD_STATION] >= 0:
        _discard_head_start(ki, f, s, r)


@_jit
def _reconnect(kf, ki, f, s, q):
    """The front end finds the target down and tells the client, who decides anew."""
    _deliver_at(ki, f, s, q, f[WF_NOW] + kf[KF_DETECTION], PC_DETECTED)


@_jit
def _expect_drafts(kf, ki, f, s, q):
    """The target has sent a result and waits for the next window, but not for ever."""
    if kf[KF_PATIENCE] == 0.0:
        return
    r, g = _r(ki, q), _g(ki, q)
    f[g + RF_PATIENCE_AT] = f[WF_NOW] + kf[KF_PATIENCE]
    s[r + RI_PATIENCE_SERVED] = s[r + RI_SERVED]
    # One timer a request: when it goes off too early, it is set again.
    if s[r + RI_PATIENCE_SET] == 0:
        s[r + RI_PATIENCE_SET] = 1
        _push(ki, f, s, f[g + RF_PATIENCE_AT], AT_TIMEOUT, 2 * s[r + RI_NUMBER], q)


@_jit
def _patience_ends(kf, ki, f, s, q):
    r, g = _r(ki, q), _g(ki, q)
    s[r + RI_PATIENCE_SET] = 0
    finished = s[r + RI_COMMITTED] >= s[r + RI_OUTPUT]
    if s[r + RI_SERVED] != s[r + RI_PATIENCE_SERVED] or finished:
        return
    if f[WF_NOW] < f[g + RF_PATIENCE_AT]:
        s[r + RI_PATIENCE_SET] = 1
        _push(ki, f, s, f[g + RF_PATIENCE_AT], AT_TIMEOUT, 2 * s[r + RI_NUMBER], q)
        return
    target = s[r + RI_TARGET]
    s[WI_TAKEOVERS] += 1
    _log(ki, f, s, LOG_TAKEOVER, target, s[r + RI_NUMBER], kf[KF_PATIENCE])
    _abandon(kf, ki, f, s, q)
    s[r + RI_SITE], s[r + RI_AT] = COLOCATED, target
    _queue_at(kf, ki, f, s, q, target, JOB_PLAIN, 0, 0, 0, PC_SERVED)


@_jit
def _expect_result(kf, ki, f, s, q, payload):
    """The device has sent its drafts and waits for the result; it sends them again after a time-out."""
    r, g = _r(ki, q), _g(ki, q)
    s[r + RI_EXCHANGE] += 1
    if kf[KF_CLIENT_TIMEOUT] == 0.0:
        return
    s[r + RI_RESEND_EXCHANGE] = s[r + RI_EXCHANGE]
    f[g + RF_RESEND_WAIT], f[g + RF_RESEND_PAYLOAD] = kf[KF_CLIENT_TIMEOUT], payload
    f[g + RF_RESEND_AT] = f[WF_NOW] + kf[KF_CLIENT_TIMEOUT]
    # The timer set may be that of an earlier window, and later than this one's: it was set again and again.
    if f[g + RF_RESEND_TIMER] > f[g + RF_RESEND_AT]:
        _set_resend(ki, f, s, q)


@_jit
def _set_resend(ki, f, s, q):
    g = _g(ki, q)
    f[g + RF_RESEND_TIMER] = f[g + RF_RESEND_AT]
    _push(ki, f, s, f[g + RF_RESEND_AT], AT_TIMEOUT, 2 * s[_r(ki, q) + RI_NUMBER] + 1, q)


@_jit
def _send_again(kf, ki, f, s, q):
    r, g = _r(ki, q), _g(ki, q)
    if f[WF_NOW] != f[g + RF_RESEND_TIMER]:
        return
    f[g + RF_RESEND_TIMER] = math.inf
    finished = s[r + RI_COMMITTED] >= s[r + RI_OUTPUT]
    if s[r + RI_EXCHANGE] != s[r + RI_RESEND_EXCHANGE] or finished:
        return
    if f[WF_NOW] >= f[g + RF_RESEND_AT]:
        if s[ki[O_DEV_I] + s[r + RI_DEVICE] * DI_STRIDE + DI_DOWN] == 0:
            arrives_s = _send_up(kf, ki, f, s, r, f[g + RF_RESEND_PAYLOAD])
            _push(ki, f, s, arrives_s, AT_DELIVERY, s[r + RI_NUMBER], _tag(s, r, q, IS_DUPLICATE))
        f[g + RF_RESEND_WAIT] *= 2.0
        f[g + RF_RESEND_AT] = f[WF_NOW] + f[g + RF_RESEND_WAIT]
    _set_resend(ki, f, s, q)


@_jit
def _timeout(kf, ki, f, s, place, q):
    """A timer goes off; that of a request which has left is nobody's."""
    entity = place & ENTITY_MASK
    if s[_r(ki, q) + RI_NUMBER] != entity >> 1:
        return
    if entity & 1:
        _send_again(kf, ki, f, s, q)
    else:
        _patience_ends(kf, ki, f, s, q)


@_jit
def _delivery(kf, ki, f, s, place, tag):
    """Something arrives."""
    q, kind = tag & SLOT_MASK, (tag >> SLOT_BITS) & KIND_MASK
    if kind == IS_DUPLICATE:
        s[WI_DUPLICATES] += 1
        _log(ki, f, s, LOG_DUPLICATE, -1, place & ENTITY_MASK, 0)
    elif kind == IS_WARM_UP:
        r = _r(ki, q)
        prompt = s[r + RI_PROMPT]
        _draft_job(kf, ki, f, s, JOBS * q + WARM_JOB, s[r + RI_WARMING], 0, prompt, prompt)
    elif _is_live(ki, s, place, tag):
        _delivered(kf, ki, f, s, q)
    elif kind == IS_MESSAGE:
        s[WI_LATE] += 1
        _log(ki, f, s, LOG_LATE, -1, place & ENTITY_MASK, 0)


# ---------------------------------------------------------------------- telemetry


@_jit
def _report(kf, ki, f, s, target, at):
    """``TargetServer.report``, written to `at`."""
    t, x = ki[O_TGT_I] + target * TI_STRIDE, ki[O_TGT_F] + target * TF_STRIDE
    k = ki[O_TKI] + target * TKI_STRIDE
    now_s = f[WF_NOW]
    rest_s = 0.0 if s[t + TI_IDLE] != 0 else f[x + TF_EXPECTED_END] - now_s
    f[at + P_TIME] = now_s
    f[at + P_QUEUED] = s[t + TI_READY] + s[t + TI_WAITING]
    f[at + P_RUNNING] = s[t + TI_RUNNING]
    f[at + P_RESIDENT] = s[t + TI_RESIDENT]
    f[at + P_REMAINING] = rest_s if rest_s > 0.0 else 0.0
    f[at + P_ITERATION] = f[x + TF_ITERATION]
    f[at + P_KV] = s[t + TI_KV] / ki[k + TKI_KV]
    f[at + P_BATCH] = s[t + TI_BATCH]
    tokens = min(int(f[x + TF_TOKENS]), ki[k + TKI_LENGTH] - 1 - SLOPE_TOKENS)
    table = ki[k + TKI_TABLE]
    f[at + P_TOKEN] = (kf[table + tokens + SLOPE_TOKENS] - kf[table + tokens]) / SLOPE_TOKENS
    f[at + P_UP] = 1.0 if s[t + TI_DOWN] == 0 else 0.0


@_jit
def _station_wait_s(ki, f, s, station):
    """The expected wait of ``Station.report``."""
    x = ki[O_STA_I] + station * SI_STRIDE
    places = _places(ki, station)
    if s[x + SI_ACTIVE] < places:
        return 0.0
    return f[ki[O_STA_F] + station * SF_STRIDE + SF_MEAN_JOB] * (s[x + SI_QUEUED] + 1) / places


@_jit
def _publish(kf, ki, f, s):
    now_s = f[WF_NOW]
    ring = s[WI_TICKS] % RING
    for target in range(ki[K_TARGETS]):
        _report(kf, ki, f, s, target, ki[O_REPORTS] + (target * RING + ring) * REPORT)
    devices = ki[K_DEVICES]
    for i in range(ki[K_EDGES] + ki[K_TARGETS]):
        station = devices + i
        if ki[ki[O_SKI] + station * SKI_STRIDE + SKI_MODE] == DRAFTS_ALONE:
            at = ki[O_STATION_REPORTS] + (i * RING + ring) * 3
            x = ki[O_STA_I] + station * SI_STRIDE
            f[at] = s[x + SI_ACTIVE] + s[x + SI_QUEUED]
            f[at + 1] = _station_wait_s(ki, f, s, station)
            f[at + 2] = 1.0 if s[x + SI_DOWN] == 0 else 0.0
    if now_s > 0.0:
        weight, period_s = kf[KF_RATE_WEIGHT], kf[KF_PERIOD]
        f[WF_ARRIVAL_RATE] += weight * (s[WI_ARRIVALS_SEEN] / period_s - f[WF_ARRIVAL_RATE])
        f[WF_TOKEN_RATE] += weight * (s[WI_TOKENS_SEEN] / period_s - f[WF_TOKEN_RATE])
    at = ki[O_RATES] + ring * 3
    f[at], f[at + 1], f[at + 2] = now_s, f[WF_ARRIVAL_RATE], f[WF_TOKEN_RATE]
    s[WI_ARRIVALS_SEEN] = 0
    s[WI_TOKENS_SEEN] = 0
    s[WI_TICKS] += 1
    _push(ki, f, s, s[WI_TICKS] * kf[KF_PERIOD], AT_TELEMETRY, 0, 0)


@_jit
def _newest(ki, f, s, visible_s):
    """Return the place in the rings of the newest reports made no later than `visible_s`."""
    ticks = s[WI_TICKS]
    first = max(0, ticks - RING)
    for tick in range(ticks - 1, first, -1):
        if f[ki[O_RATES] + (tick % RING) * 3] <= visible_s:
            return tick % RING
    return first % RING


# ---------------------------------------------------------------------- the view of a decision


@_jit
def _fits(ki, station, context):
    k = ki[O_SKI] + station * SKI_STRIDE
    return ki[k + SKI_MODE] == DRAFTS_ALONE and context + ki[K_GAMMA_MAX] <= ki[k + SKI_KV]


@_jit
def _handover_s(ki, f, s, r, site, number, edge):
    at_site, at = s[r + RI_SITE], s[r + RI_AT]
    if at_site == site and at == number:
        return 0.0
    device = s[r + RI_DEVICE]
    half_rtt_s = 0.5 * f[ki[O_DEV_F] + device * DF_STRIDE + DF_RTT]
    if at_site == EDGE_SERVER and site == COLOCATED:
        return _one_way_s(ki, f, _backhaul(ki, at, number))
    if at_site == COLOCATED and site == EDGE_SERVER:
        return _one_way_s(ki, f, _backhaul(ki, edge, at) + 1)
    has_edge_link = ki[ki[O_DKI] + device * DKI_STRIDE + DKI_HAS_EDGE_LINK] != 0
    to_device_s = 0.0
    if at_site == COLOCATED:
        to_device_s = half_rtt_s
    elif at_site == EDGE_SERVER and has_edge_link:
        to_device_s = _one_way_s(ki, f, 4 * device + 3)
    if site == OWN_DEVICE:
        return to_device_s
    if site == COLOCATED:
        return to_device_s + half_rtt_s
    return to_device_s + (_one_way_s(ki, f, 4 * device + 2) if has_edge_link else 0.0)


@_jit
def _is_offered(f, v, n, target):
    for i in range(n):
        if f[v + V_TARGETS + i * VT_STRIDE + VT_INDEX] == target:
            return True
    return False


@_jit
def _offer_targets(ki, f, s, r, v, newest):
    """Write the targets of the candidate list: the current one, then the least loaded."""
    offered, n_targets, current = ki[K_OFFERED], ki[K_TARGETS], s[r + RI_TARGET]
    n = 0
    if current >= 0:
        f[v + V_TARGETS + VT_INDEX] = current
        n = 1
    while n < offered:
        best, best_load = -1, math.inf
        for target in range(n_targets):
            at = ki[O_REPORTS] + (target * RING + newest) * REPORT
            # Those believed down come last.
            load = f[at + P_RESIDENT] + (0.0 if f[at + P_UP] != 0.0 else 1e12)
            if load < best_load and not _is_offered(f, v, n, target):
                best, best_load = target, load
        f[v + V_TARGETS + n * VT_STRIDE + VT_INDEX] = best
        n += 1


@_jit
def _view_target(kf, ki, f, s, r, g, at, newest):
    """Complete the view of an offered target."""
    target = int(f[at + VT_INDEX])
    now_s = f[WF_NOW]
    p = ki[O_REPORTS] + (target * RING + newest) * REPORT
    if s[r + RI_TARGET] == target and s[r + RI_HAS_REPORT] != 0 and f[g + RF_REPORT + P_TIME] > f[p + P_TIME]:
        p = g + RF_REPORT
    if s[r + RI_SITE] == COLOCATED and s[r + RI_AT] == target:
        p = ki[O_SCRATCH]
        _report(kf, ki, f, s, target, p)
    _copy_report(kf, ki, f, at, p, target, now_s)


@_jit
def _copy_report(kf, ki, f, at, p, target, now_s):
    k = ki[O_TKF] + target * TKF_STRIDE
    f[at + VT_QUEUED] = f[p + P_QUEUED]
    f[at + VT_RUNNING] = f[p + P_RUNNING]
    f[at + VT_RESIDENT] = f[p + P_RESIDENT]
    f[at + VT_REMAINING] = f[p + P_REMAINING]
    f[at + VT_ITERATION] = f[p + P_ITERATION]
    f[at + VT_KV] = f[p + P_KV]
    f[at + VT_BATCH] = f[p + P_BATCH]
    f[at + VT_WAIT] = kf[k + TKF_WAIT]
    f[at + VT_TOKEN] = f[p + P_TOKEN]
    f[at + VT_PREFILL_TOKEN] = kf[k + TKF_PREFILL_TOKEN]
    f[at + VT_AGE] = now_s - f[p + P_TIME]
    f[at + VT_UP] = f[p + P_UP]


@_jit
def _view(kf, ki, f, s, q):
    """``Telemetry.view``, written to the view block."""
    r, g, v = _r(ki, q), _g(ki, q), ki[O_VIEW]
    now_s = f[WF_NOW]
    device = s[r + RI_DEVICE]
    d, k = ki[O_DEV_F] + device * DF_STRIDE, ki[O_DKF] + device * DKF_STRIDE
    site, at = s[r + RI_SITE], s[r + RI_AT]
    delay_s = 0.0
    if site == OWN_DEVICE:
        delay_s = _one_way_s(ki, f, 4 * device + 1)
    elif site == EDGE_SERVER:
        delay_s = _one_way_s(ki, f, _backhaul(ki, at, 0) + 1)
    newest = _newest(ki, f, s, now_s - delay_s)
    _offer_targets(ki, f, s, r, v, newest)
    offered = ki[K_OFFERED]
    for i in range(offered):
        _view_target(kf, ki, f, s, r, g, v + V_TARGETS + i * VT_STRIDE, newest)
    if site == OWN_DEVICE:
        s[r + RI_OWN_JOBS] = _own_jobs(ki, s, device)
    committed = s[r + RI_COMMITTED]
    context = s[r + RI_PROMPT] + committed
    f[v + V_NOW], f[v + V_REQUEST], f[v + V_DEVICE] = now_s, s[r + RI_NUMBER], device
    f[v + V_COUNTER] = s[r + RI_DECISIONS]
    f[v + V_ADMISSION] = 1.0 if s[r + RI_TARGET] < 0 else 0.0
    f[v + V_SITE], f[v + V_PROMPT], f[v + V_COMMITTED] = site, s[r + RI_PROMPT], committed
    f[v + V_AGE] = now_s - f[g + RF_ARRIVAL]
    f[v + V_SLO_TTFT], f[v + V_SLO_TPOT] = f[g + RF_SLO_TTFT], f[g + RF_SLO_TPOT]
    f[v + V_TTFT] = f[g + RF_FIRST_COMMIT] - f[g + RF_ARRIVAL] if committed > 0 else 0.0
    f[v + V_TPOT] = 0.0
    if committed > 1:
        f[v + V_TPOT] = (f[g + RF_LAST_COMMIT] - f[g + RF_FIRST_COMMIT]) / (committed - 1)
    f[v + V_ROUNDS] = s[r + RI_ROUNDS]
    f[v + V_ACCEPTANCE] = f[g + RF_ACCEPTANCE]
    f[v + V_TOKENS_PER_ROUND] = f[g + RF_TOKENS_PER_ROUND]
    for i in range(V_CONFIDENCE - V_RECENT_ACCEPTED):
        f[v + V_RECENT_GAMMA + i] = s[r + RI_RECENT_GAMMA + i]
        f[v + V_RECENT_ACCEPTED + i] = s[r + RI_RECENT_ACCEPTED + i]
    f[v + V_CONFIDENCE] = f[g + RF_CONFIDENCE]
    f[v + V_AHEAD] = max(0, s[r + RI_HEAD_TOKENS] - 1) if s[r + RI_HEAD_STATION] >= 0 else 0.0
    f[v + V_RTT], f[v + V_DEVIATION] = f[d + DF_RTT], f[d + DF_DEVIATION]
    f[v + V_LINK_UP] = 1.0 if _seems_up(kf, ki, f, 4 * device + (0 if site == OWN_DEVICE else 1)) else 0.0
    f[v + V_UP] = _bits_per_s(ki, f, 4 * device, kf[k + DKF_UP])
    f[v + V_DOWN] = _bits_per_s(ki, f, 4 * device + 1, kf[k + DKF_DOWN])
    f[v + V_LOSS] = f[d + DF_LOSS]
    f[v + V_LINK_AGE] = now_s - f[d + DF_SAMPLE] if f[d + DF_SAMPLE] >= 0.0 else now_s
    has_drafter = ki[ki[O_SKI] + device * SKI_STRIDE + SKI_MODE] != NO_DRAFTER
    f[v + V_AVAILABLE] = 1.0 if _fits(ki, device, context) else 0.0
    f[v + V_STEP], f[v + V_LAG], f[v + V_JOBS] = 0.0, context, 0.0
    if has_drafter:
        f[v + V_STEP] = _draft_step_s(kf, ki, f, s, device, 1, context, 0)
        f[v + V_LAG] = _lag(ki, s, r, device)
        f[v + V_JOBS] = s[r + RI_OWN_JOBS]
    rates = ki[O_RATES] + newest * 3
    f[v + V_ARRIVALS], f[v + V_TOKENS] = f[rates + 1], f[rates + 2]
    active = 0.0
    for target in range(ki[K_TARGETS]):
        active += f[ki[O_REPORTS] + (target * RING + newest) * REPORT + P_RESIDENT]
    f[v + V_ACTIVE] = active
    c = v + V_TARGETS + offered * VT_STRIDE
    for i in range(offered):
        c = _candidates(kf, ki, f, s, r, context, i, c, newest)


@_jit
def _candidates(kf, ki, f, s, r, context, i, c, newest):
    """Write the candidates at one offered target; return where the next ones go."""
    v = ki[O_VIEW]
    target = int(f[v + V_TARGETS + i * VT_STRIDE + VT_INDEX])
    device = s[r + RI_DEVICE]
    same = s[r + RI_TARGET] == target
    drafted_at = s[r + RI_DRAFTED_AT]
    target_up = f[v + V_TARGETS + i * VT_STRIDE + VT_UP] != 0.0
    move_s = 0.0
    if not same and s[r + RI_TARGET] >= 0:
        move_s = context * kf[ki[O_TKF] + target * TKF_STRIDE + TKF_PREFILL_TOKEN]
    for place in range(2 + ki[K_EDGES]):
        site, edge, station = COLOCATED, -1, _base(ki) + target
        number = target
        if place == 1:
            site, station, number = OWN_DEVICE, device, device
        elif place > 1:
            site, edge = EDGE_SERVER, place - 2
            station, number = ki[K_DEVICES] + edge, edge
        mode = ki[ki[O_SKI] + station * SKI_STRIDE + SKI_MODE]
        lag = _lag(ki, s, r, station)
        longest = context if lag > 1 else 0
        step_s = catch_up_s = wait_s = rtt_s = 0.0
        valid = mode != NO_DRAFTER
        if site == EDGE_SERVER:
            at = ki[O_STATION_REPORTS] + (edge * RING + newest) * 3
            wait_s = f[at + 1]
            together = min(int(f[at]) + 1, _places(ki, station))
            step_s = _draft_step_s(kf, ki, f, s, station, together, together * context, 0)
            catch_up_s = _draft_step_s(kf, ki, f, s, station, lag + together - 1, together * context, longest)
            rtt_s = 2.0 * _one_way_s(ki, f, _backhaul(ki, edge, target))
            has_edge_link = ki[ki[O_DKI] + device * DKI_STRIDE + DKI_HAS_EDGE_LINK] != 0
            valid = f[at + 2] != 0.0 and has_edge_link and _fits(ki, station, context)
        else:
            if mode != NO_DRAFTER:
                step_s = _draft_step_s(kf, ki, f, s, station, 1, context, 0)
                catch_up_s = _draft_step_s(kf, ki, f, s, station, lag, context, longest)
            if site == OWN_DEVICE:
                rtt_s = f[ki[O_DEV_F] + device * DF_STRIDE + DF_RTT]
                valid = _fits(ki, station, context)
                jobs, places = s[r + RI_OWN_JOBS], _places(ki, station)
                if mode != NO_DRAFTER and jobs >= places:
                    mean_s = f[ki[O_STA_F] + station * SF_STRIDE + SF_MEAN_JOB]
                    wait_s = mean_s * (jobs - places + 1)
            elif mode == DRAFTS_ALONE:
                if s[r + RI_SITE] == COLOCATED and s[r + RI_AT] == target:
                    wait_s = _station_wait_s(ki, f, s, station)
                else:
                    wait_s = f[ki[O_STATION_REPORTS] + ((ki[K_EDGES] + target) * RING + newest) * 3 + 1]
        f[c + VC_SITE], f[c + VC_EDGE], f[c + VC_OFFERED] = site, edge, i
        f[c + VC_VALID] = 1.0 if valid and target_up else 0.0
        f[c + VC_CURRENT] = 1.0 if same and drafted_at == station else 0.0
        f[c + VC_SAME] = 1.0 if same else 0.0
        f[c + VC_STEP], f[c + VC_CATCH_UP], f[c + VC_WAIT] = step_s, catch_up_s, wait_s
        f[c + VC_RTT] = rtt_s
        f[c + VC_HANDOVER] = _handover_s(ki, f, s, r, site, number, edge)
        f[c + VC_LAG], f[c + VC_MOVE] = lag, move_s
        f[c + VC_SHARES] = 1.0 if site == COLOCATED and mode == DRAFTS_SHARED else 0.0
        c += VC_STRIDE
    return c


@intrinsic
def _scratch(typing_context):
    """Return room for the raw features of an observation, on the stack."""

    def generate(context, builder, signature, arguments):
        size = context.get_constant(types.intp, MOST_FEATURES)
        return cgutils.alloca_once(builder, ir.DoubleType(), size=size)

    return types.CPointer(types.float64)(), generate


@_jit
def _put(raw, n, value):
    raw[n] = value
    return n + 1


@_jit
def _encode(kf, ki, f, observation):
    """``ObservationEncoder.encode`` of the view block."""
    v, raw = ki[O_VIEW], _scratch()
    site = f[v + V_SITE]
    n = _put(raw, 0, f[v + V_ADMISSION])
    n = _put(raw, n, 1.0 if site == COLOCATED else 0.0)
    n = _put(raw, n, 1.0 if site == OWN_DEVICE else 0.0)
    n = _put(raw, n, 1.0 if site == EDGE_SERVER else 0.0)
    n = _put(raw, n, f[v + V_PROMPT])
    n = _put(raw, n, f[v + V_COMMITTED])
    n = _put(raw, n, f[v + V_PROMPT] + f[v + V_COMMITTED])
    n = _put(raw, n, f[v + V_AGE])
    n = _put(raw, n, f[v + V_SLO_TTFT])
    n = _put(raw, n, f[v + V_SLO_TPOT])
    waited_s = f[v + V_TTFT] if f[v + V_TTFT] > 0.0 else f[v + V_AGE]
    n = _put(raw, n, 1.0 - waited_s / f[v + V_SLO_TTFT])
    n = _put(raw, n, 1.0 - f[v + V_TPOT] / f[v + V_SLO_TPOT])
    for i in range(V_ROUNDS, V_AHEAD + 1):
        n = _put(raw, n, f[v + i])
    n = _encode_target(f, raw, n, v + V_TARGETS)
    for i in range(V_LINK_UP, V_JOBS + 1):
        n = _put(raw, n, f[v + i])
    c = v + V_TARGETS + ki[K_OFFERED] * VT_STRIDE
    for _ in range(ki[K_PLACES]):
        n = _put(raw, n, f[c + VC_VALID])
        n = _put(raw, n, f[c + VC_CURRENT])
        n = _put(raw, n, f[c + VC_SAME])
        n = _put(raw, n, 1.0 if f[c + VC_SITE] == COLOCATED else 0.0)
        n = _put(raw, n, 1.0 if f[c + VC_SITE] == OWN_DEVICE else 0.0)
        for i in range(VC_STEP, VC_HANDOVER + 1):
            n = _put(raw, n, f[c + i])
        n = _put(raw, n, f[c + VC_MOVE])
        at = v + V_TARGETS + int(f[c + VC_OFFERED]) * VT_STRIDE
        n = _put(raw, n, f[at + VT_QUEUED])
        n = _put(raw, n, f[at + VT_ITERATION])
        c += VC_STRIDE
    n = _put(raw, n, f[v + V_ACTIVE])
    n = _put(raw, n, f[v + V_ARRIVALS])
    n = _put(raw, n, f[v + V_TOKENS])
    squash, half = ki[O_SQUASH], ki[O_HALF]
    for i in range(n):  # apart from the rest, so that it is done several at a time
        observation[i] = np.float32(raw[i] / (abs(raw[i]) * kf[squash + i] + kf[half + i]))


@_jit
def _encode_target(f, raw, n, at):
    for i in range(VT_QUEUED, VT_BATCH + 1):
        n = _put(raw, n, f[at + i])
    return _put(raw, n, f[at + VT_AGE])


@_jit
def _mask(ki, f, mask):
    """``ActionSpace.mask`` of the view block."""
    gammas, batches, places = ki[K_GAMMAS], ki[K_BATCHES], ki[K_PLACES]
    c = ki[O_VIEW] + V_TARGETS + ki[K_OFFERED] * VT_STRIDE
    some = False
    for i in range(places):
        valid = f[c + i * VC_STRIDE + VC_VALID] != 0.0
        some = some or valid
        mask[gammas + batches + i] = valid or i == 0
    for i in range(gammas):
        mask[i] = some or i == 0
    for i in range(batches):
        mask[gammas + i] = True


# ---------------------------------------------------------------------- one world


@_jit
def _reset(kf, ki, f, s, seed, record, price):
    for i in range(ki[O_TABLE_F]):
        f[i] = 0.0
    for i in range(ki[O_TABLE_I]):
        s[i] = 0
    s[WI_SEED], s[WI_RECORD], s[WI_PRICE] = seed, record, price
    s[WI_PENDING], s[WI_ANSWERED] = -1, -1
    s[WI_COHORT_LEFT] = ki[K_COHORT]
    for q in range(ki[K_SLOTS]):
        s[ki[O_FREE] + q] = ki[K_SLOTS] - 1 - q
        s[_r(ki, q) + RI_NUMBER] = -1
    s[WI_FREE_N] = ki[K_SLOTS]
    phase = _uniform(seed, LOAD_PHASE, 0, 0) if ki[K_RANDOM_PHASE] != 0 else 0.0
    f[WF_LOAD_OFFSET] = phase * kf[KF_LOAD_PERIOD]
    devices, targets = ki[K_DEVICES], ki[K_TARGETS]
    for channel in range(4 * devices + 2 * ki[K_EDGES] * targets):
        number = ki[ki[O_CKI] + channel * CKI_STRIDE + CKI_NUMBER]
        k = ki[O_CKF] + channel * CKF_STRIDE
        low, high = kf[k + CKF_LOW], kf[k + CKF_HIGH]
        factor = low + (high - low) * _uniform(seed, LINK_SPREAD, number, 0)
        f[ki[O_CHAN_F] + channel * CF_STRIDE + CF_ONE_WAY] = kf[k + CKF_ONE_WAY] * factor
        c = ki[O_CHAN_I] + channel * CI_STRIDE
        down = channel % 2
        s[c + CI_JITTER_KEY] = np.int64(_key(seed, DOWNLINK_JITTER if down else UPLINK_JITTER, number))
        s[c + CI_LOSS_KEY] = np.int64(_key(seed, DOWNLINK_LOSS if down else UPLINK_LOSS, number))
    for station in range(devices + ki[K_EDGES] + targets):
        k, x = ki[O_SKF] + station * SKF_STRIDE, ki[O_STA_F] + station * SF_STRIDE
        speed = 1.0
        if station < devices:
            low, high = kf[k + SKF_LOW], kf[k + SKF_HIGH]
            speed = low + (high - low) * _uniform(seed, DEVICE_SPREAD, station, 0)
        f[x + SF_FACTOR] = speed
        f[x + SF_K_BW] = kf[k + SKF_K_BW] * speed
        f[x + SF_K_MULTI] = kf[k + SKF_K_MULTI] * speed
        f[x + SF_K_LAT] = kf[k + SKF_K_LAT] * speed
        if ki[ki[O_SKI] + station * SKI_STRIDE + SKI_MODE] != NO_DRAFTER:
            f[x + SF_MEAN_JOB] = _draft_step_s(kf, ki, f, s, station, 1, 0, 0)
    for target in range(targets):
        t, x = ki[O_TGT_I] + target * TI_STRIDE, ki[O_TGT_F] + target * TF_STRIDE
        s[t + TI_BATCH] = ki[ki[O_TKI] + target * TKI_STRIDE + TKI_INITIAL_BATCH]
        s[t + TI_SETTER], s[t + TI_IDLE] = -1, 1
        f[x + TF_CHECK], f[x + TF_OLDEST], f[x + TF_TOKENS] = math.inf, math.inf, 1.0
        f[x + TF_ITERATION] = _target_step_s(kf, ki, s, target, 1, 0, 0)
    for device in range(devices):
        d = ki[O_DEV_F] + device * DF_STRIDE
        f[d + DF_RTT] = _one_way_s(ki, f, 4 * device) + _one_way_s(ki, f, 4 * device + 1)
        f[d + DF_SAMPLE] = -1.0
    for link in range(ki[K_LINKS]):
        _begin_link(kf, ki, f, s, link)
    for n in range(ki[K_CRASHERS]):
        _next_window(kf, ki, f, s, n)
    if ki[K_CLOSED] != 0:
        for device in range(devices):
            _think(kf, ki, f, s, device)
    elif not _arrivals_are_over(ki, s, 0):
        _begin_arrivals(kf, ki, f, s)
        if ki[K_ARRIVALS] == CLIENT_RENEWALS:
            for device in range(devices):
                _next_client_arrival(kf, ki, f, s, device)
        else:
            _next_open_arrival(kf, ki, f, s)
    _publish(kf, ki, f, s)


@_jit
def _resolve(ki, f, gamma, batch, placement):
    """``control.actions.resolve`` of the view block.

    Return the place of the candidate in it, the number of the target, gamma, batch, and the reason.
    """
    v = ki[O_VIEW]
    first = v + V_TARGETS + ki[K_OFFERED] * VT_STRIDE
    c = first + placement * VC_STRIDE
    reason = 0
    at = v + V_TARGETS + int(f[c + VC_OFFERED]) * VT_STRIDE
    if f[at + VT_UP] == 0.0:
        places = ki[K_PLACES] // ki[K_OFFERED]
        for i in range(ki[K_OFFERED]):
            if f[v + V_TARGETS + i * VT_STRIDE + VT_UP] != 0.0:
                at = v + V_TARGETS + i * VT_STRIDE
                c = first + (i * places + placement % places) * VC_STRIDE
                reason = 3
                break
    target = int(f[at + VT_INDEX])
    if gamma > 0 and f[c + VC_VALID] == 0.0:
        gamma = 0
        if reason == 0:
            reason = 1
    limit = ki[ki[O_TKI] + target * TKI_STRIDE + TKI_MAX_BATCH]
    if batch > limit:
        batch = limit
        if reason == 0:
            reason = 2
    return c, target, gamma, batch, reason


@_jit
def _flat_mask(ki, f, padding, mask):
    """``ActionSpace.flat_mask`` of the view block, with a list of candidates filled up by `padding`."""
    gammas, batches, places = ki[K_GAMMAS], ki[K_BATCHES], ki[K_PLACES]
    row = places + padding
    size = batches * row
    some = False
    # Twice at most: where nothing is left as it is, what is only clipped remains.
    for accepted in (0, 2):
        if some:
            break
        # Resolving asks of gamma only whether it is 0.
        for i in range(min(gammas, 2)):
            for j in range(batches):
                batch = ki[ki[O_BATCHES] + j]
                for k in range(places):
                    _, _, _, _, reason = _resolve(ki, f, ki[ki[O_GAMMAS] + i], batch, k)
                    valid = reason == accepted and (accepted == 0 or j == 0)
                    mask[i * size + j * row + k] = valid
                    some = some or valid
                for k in range(places, row):
                    mask[i * size + j * row + k] = False
    for i in range(2, gammas):
        for k in range(size):
            mask[i * size + k] = mask[size + k]


@_jit
def _answer(ki, f, s, gamma, batch, placement):
    """``ReferenceSimulation.decide``: note how the due decision will be executed."""
    q = s[WI_PENDING]
    r = _r(ki, q)
    c, target, gamma, batch, reason = _resolve(ki, f, gamma, batch, placement)
    site, edge = int(f[c + VC_SITE]), int(f[c + VC_EDGE])
    if reason == 1:
        s[WI_NO_DRAFTER] += 1
    elif reason == 2:
        s[WI_CLIPPED] += 1
    elif reason == 3:
        s[WI_TARGET_DOWN] += 1
    station = -1
    if gamma > 0:
        if site == OWN_DEVICE:
            station = s[r + RI_DEVICE]
        elif site == EDGE_SERVER:
            station = ki[K_DEVICES] + edge
        else:
            station = _base(ki) + target
    s[r + RI_GAMMA], s[r + RI_BATCH], s[r + RI_RES_SITE] = gamma, batch, site
    s[r + RI_STATION], s[r + RI_EDGE], s[r + RI_RES_TARGET] = station, edge, target
    s[WI_REASON] = reason
    s[WI_PENDING], s[WI_ANSWERED] = -1, q
    s[WI_DECISIONS] += 1
    for i in range(s[WI_NEWLY_N]):
        done = s[ki[O_NEWLY] + i]
        s[_r(ki, done) + RI_IS_NEW] = 0
        _free(ki, s, done)
    s[WI_NEWLY_N] = 0


@_jit
def _run(kf, ki, f, s):
    """Advance to the next due decision (`DUE`) or to the end; return the status."""
    hf, hi = ki[O_HEAP_F], ki[O_HEAP_I]
    if s[WI_STATUS] != DUE:
        return s[WI_STATUS]
    if s[WI_ANSWERED] >= 0:
        q = s[WI_ANSWERED]
        s[WI_ANSWERED] = -1
        _decided(kf, ki, f, s, q)
    while s[WI_STATUS] == DUE:
        if s[WI_ERROR] != OK:
            s[WI_STATUS] = FAILED
            break
        if s[WI_HEAP_N] == 0 or f[hf] > kf[KF_HORIZON]:
            s[WI_STATUS] = TRUNCATED
            _accrue(kf, f, s, kf[KF_HORIZON])
            f[WF_NOW] = kf[KF_HORIZON]
            break
        place, arg = s[hi], s[hi + 2]
        order = place >> 40
        f[WF_NOW] = f[hf]
        s[WI_EVENTS_DONE] += 1
        _drop_first(ki, f, s)
        if order == AT_DELIVERY:
            _delivery(kf, ki, f, s, place, arg)
        elif order == AT_DECISION:
            if _is_live(ki, s, place, arg):
                s[WI_PENDING] = arg & SLOT_MASK
                _view(kf, ki, f, s, arg & SLOT_MASK)
                if s[WI_ERROR] != OK:
                    s[WI_STATUS] = FAILED
                break
        elif order == AT_JOB_DONE:
            if _is_live(ki, s, place, arg):
                _job_done(kf, ki, f, s, arg & SLOT_MASK)
        elif order == AT_DRAFT_END:
            _draft_end(kf, ki, f, s, arg)
        elif order == AT_ITERATION_START:
            _check(kf, ki, f, s, arg)
        elif order == AT_ITERATION_END:
            target = arg & SLOT_MASK
            t = ki[O_TGT_I] + target * TI_STRIDE
            # Of an iteration that a crash cut short, only the event is left.
            if s[t + TI_IDLE] == 0 and s[t + TI_ITERATIONS] == arg >> SLOT_BITS:
                _end_iteration(kf, ki, f, s, target)
        elif order == AT_TIMEOUT:
            _timeout(kf, ki, f, s, place, arg)
        elif order == AT_TELEMETRY:
            _publish(kf, ki, f, s)
        elif order == AT_FAULT:
            _fault(kf, ki, f, s, arg)
        else:
            _arrival(kf, ki, f, s, arg)
    return s[WI_STATUS]


# ---------------------------------------------------------------------- entry points

_A = NDArray[Any]
_FLOATS, _INTS = types.CPointer(types.float64), types.CPointer(types.int64)


@_native(types.int64(_FLOATS, _INTS, _FLOATS, _INTS))
def _native_run(kf, ki, f, s):
    return _run(kf, ki, f, s)


@_native(types.void(_FLOATS, _INTS, _FLOATS, _INTS, types.int64, types.int64, types.int64))
def _native_reset(kf, ki, f, s, seed, record, price):
    _reset(kf, ki, f, s, seed, record, price)


@intrinsic
def _call_run(typing_context, address, kf, ki, f, s):
    """Call :func:`_native_run` by its address.

    The whole event loop is compiled into that one function; what is called with its address does not contain
    it again, which would cost the first use many seconds for each entry point.
    """

    def generate(context, builder, signature, arguments):
        words = [context.get_value_type(argument) for argument in signature.args[1:]]
        function = ir.FunctionType(ir.IntType(64), words)
        return builder.call(builder.inttoptr(arguments[0], function.as_pointer()), arguments[1:])

    return types.int64(address, kf, ki, f, s), generate


@intrinsic
def _call_reset(typing_context, address, kf, ki, f, s, seed, record, price):
    """Call :func:`_native_reset` by its address."""

    def generate(context, builder, signature, arguments):
        words = [context.get_value_type(argument) for argument in signature.args[1:]]
        function = ir.FunctionType(ir.VoidType(), words)
        builder.call(builder.inttoptr(arguments[0], function.as_pointer()), arguments[1:])
        return context.get_dummy_value()

    return types.void(address, kf, ki, f, s, seed, record, price), generate


@_entry()
def _reset_world(reset, kf, ki, f, s, seed, record, price):
    _call_reset(reset, _pointer(kf), _pointer(ki), _pointer(f), _pointer(s), seed, record, price)


@_entry()
def _run_world(run, kf, ki, f, s):
    return _call_run(run, _pointer(kf), _pointer(ki), _pointer(f), _pointer(s))


RUN, RESET = int(_native_run.address), int(_native_reset.address)


def reset_world(kf: _A, ki: _A, f: _A, s: _A, seed: int, record: int, price: int) -> None:
    """Set a world up at time 0."""
    _reset_world(RESET, kf, ki, f, s, seed, record, price)


def run_world(kf: _A, ki: _A, f: _A, s: _A) -> int:
    """Advance a world to its next due decision or its end; return its status."""
    return int(_run_world(RUN, kf, ki, f, s))


@_entry()
def answer_world(ki, f, s, gamma, batch, placement):
    """Answer the due decision of a world; nothing happens before :func:`run_world`."""
    _answer(_pointer(ki), _pointer(f), _pointer(s), gamma, batch, placement)


@_entry()
def observe_world(kf, ki, f, observation, mask):
    """Write the observation and the mask of the due decision."""
    _encode(_pointer(kf), _pointer(ki), _pointer(f), _pointer(observation))
    _mask(_pointer(ki), _pointer(f), mask)


@_jit
def _totals(kf, f, s, totals):
    """Write the totals behind the reward terms, accrued until now."""
    elapsed_s = f[WF_NOW] - f[WF_ACCRUED]
    totals[0], totals[5] = f[WF_REQUEST_SECONDS], f[WF_ENERGY]
    if elapsed_s > 0.0:
        totals[0] += s[WI_IN_SYSTEM] * elapsed_s
        totals[5] += kf[KF_IDLE_W] * elapsed_s
    totals[1], totals[2], totals[3] = f[WF_TPOT_COST], s[WI_GOOD], s[WI_VIOLATIONS]
    totals[4], totals[6], totals[7] = f[WF_CLOUD_USD], f[WF_BYTES], s[WI_OUTPUT_TOKENS]
