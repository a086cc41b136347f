"""Entry points of the kernel for many worlds: begin episodes, take a step, and write all results in place."""
# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import prange, types
from numba.extending import intrinsic

from dsd_env.sim.compiled.kernel import (
    RESET,
    RUN,
    _answer,
    _call_reset,
    _call_run,
    _encode,
    _entry,
    _flat_mask,
    _jit,
    _mask,
    _pointer,
    _totals,
)
from dsd_env.sim.compiled.layout import (
    DUE,
    FAILED,
    JI_STRIDE,
    JOBS,
    K_FEATURES,
    K_OFFERED,
    K_PLACES,
    K_R_STRIDE,
    K_TARGETS,
    O_BATCHES,
    O_GAMMAS,
    O_HEAP_F,
    O_HEAP_I,
    O_JOB_I,
    O_REQ_F,
    O_REQ_I,
    O_TGT_F,
    O_TGT_I,
    O_VIEW,
    RF_DELAY_CAUSED,
    RF_STRIDE,
    TF_STRIDE,
    TI_STRIDE,
    V_ADMISSION,
    V_COMMITTED,
    V_COUNTER,
    V_DEVICE,
    V_REQUEST,
    V_TARGETS,
    VC_STRIDE,
    VT_STRIDE,
    WF_HEADER,
    WF_NOW,
    WI_HEADER,
    WI_INVALID,
    WI_NEWLY_N,
    WI_PENDING,
    WI_REASON,
    WI_STATUS,
)

(
    FACT_REQUEST,
    FACT_DEVICE,
    FACT_COUNTER,
    FACT_ADMISSION,
    FACT_COMMITTED,
    FACT_REASON,
    FACT_INVALID,
    FACT_COMPLETED,
    N_FACTS,
) = range(9)
"""Columns of `facts`: the due decision, then the last one answered. Stale in a world that has ended."""

LINE = 8
"""Numbers in a cache line."""
LAST_FEATURES = 3
"""Features after the candidates."""
NO_DRAFTER = 1


@_jit
def _look(kf, ki, f, s, padding, observation, mask, fact, delay):
    """Write what is to know of the due decision.

    A list of candidates that is shorter by `padding` than the observation has room for ends in zeros.
    """
    features = ki[K_FEATURES]
    _encode(kf, ki, f, _pointer(observation))
    _mask(ki, f, mask)
    gap = len(observation) - features
    if gap > 0:
        first = features - LAST_FEATURES
        for i in range(LAST_FEATURES - 1, -1, -1):
            observation[first + gap + i] = observation[first + i]
        for i in range(gap):
            observation[first + i] = 0.0
        for i in range(padding):
            mask[len(mask) - 1 - i] = False
    v = ki[O_VIEW]
    fact[FACT_REQUEST] = int(f[v + V_REQUEST])
    fact[FACT_DEVICE] = int(f[v + V_DEVICE])
    fact[FACT_COUNTER] = int(f[v + V_COUNTER])
    fact[FACT_ADMISSION] = int(f[v + V_ADMISSION])
    fact[FACT_COMMITTED] = int(f[v + V_COMMITTED])
    delay[0] = f[ki[O_REQ_F] + s[WI_PENDING] * RF_STRIDE + RF_DELAY_CAUSED]


@intrinsic
def _prefetch(typing_context, pointer, at):
    """Ask for the cache line of an element, without waiting for it."""

    def generate(context, builder, signature, arguments):
        byte = ir.IntType(8).as_pointer()
        flag = ir.IntType(32)
        address = builder.bitcast(builder.gep(arguments[0], [arguments[1]]), byte)
        function = builder.module.declare_intrinsic(
            "llvm.prefetch", [byte], ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag])
        )
        builder.call(function, [address, flag(0), flag(3), flag(1)])
        return context.get_dummy_value()

    return types.void(pointer, types.int64), generate


@_jit
def _fetch(pointer, at, length):
    for i in range(at, at + length, LINE):
        _prefetch(pointer, i)


@_jit
def _fetch_header(ki, f, s):
    """Fetch what says where a world stands: it will be its turn after the next."""
    _fetch(s, 0, WI_HEADER)
    _fetch(f, 0, WF_HEADER)


@_jit
def _fetch_rows(ki, f, s):
    """Fetch what the next world will touch first: its due request, the view of it, the events to come.

    Hundreds of worlds do not fit into the cache, and a step touches some eighty lines of one; to wait for
    each in turn takes as long as all computation.
    """
    q = s[WI_PENDING]
    if q < 0:
        return
    _fetch(s, ki[O_REQ_I] + q * ki[K_R_STRIDE], ki[K_R_STRIDE])
    _fetch(f, ki[O_REQ_F] + q * RF_STRIDE, RF_STRIDE)
    _fetch(s, ki[O_JOB_I] + JOBS * q * JI_STRIDE, JI_STRIDE)
    _fetch(f, ki[O_HEAP_F], 32)
    _fetch(s, ki[O_HEAP_I], 96)
    _fetch(s, ki[O_TGT_I], ki[K_TARGETS] * TI_STRIDE)
    _fetch(f, ki[O_TGT_F], ki[K_TARGETS] * TF_STRIDE)
    _fetch(f, ki[O_VIEW], V_TARGETS + ki[K_OFFERED] * VT_STRIDE + ki[K_PLACES] * VC_STRIDE)


@_jit
def _begin_one(run, reset, kf, ki, f, s, seed, price, padding, observation, mask, totals, clock, fact, delay):
    _call_reset(reset, kf, ki, f, s, seed, 0, price)
    status = _call_run(run, kf, ki, f, s)
    totals[:] = 0.0
    clock[0], clock[1] = f[WF_NOW], f[WF_NOW]
    fact[FACT_REASON], fact[FACT_INVALID], fact[FACT_COMPLETED] = 0, 0, 0
    if status == DUE:
        _look(kf, ki, f, s, padding, observation, mask, fact, delay)
    return status


@_jit
def _step_one(
    run, kf, ki, f, s, action, factors, weights, padding, observation, mask, totals, terms, clock, fact, delay
):
    gamma, placement = ki[ki[O_GAMMAS] + action[0]], action[2]
    # A candidate that only fills the list up: plain decoding at the current target.
    absent = placement >= ki[K_PLACES]
    if absent:
        gamma, placement = 0, 0
    _answer(ki, f, s, gamma, ki[ki[O_BATCHES] + action[1]], placement)
    reason = s[WI_REASON]
    if absent and reason != 3:
        reason = NO_DRAFTER
    status = _call_run(run, kf, ki, f, s)
    reward = 0.0
    for i in range(len(totals)):
        terms[i] = totals[i]
    _totals(kf, f, s, totals)
    for i in range(len(totals)):
        terms[i] = factors[i] * (totals[i] - terms[i])
        if weights[i] != 0.0:
            reward += weights[i] * terms[i]
    s[WI_INVALID] += 1 if reason != 0 else 0
    clock[1] = f[WF_NOW] - clock[0]
    clock[0] = f[WF_NOW]
    fact[FACT_REASON], fact[FACT_INVALID], fact[FACT_COMPLETED] = reason, s[WI_INVALID], s[WI_NEWLY_N]
    if status == DUE:
        _look(kf, ki, f, s, padding, observation, mask, fact, delay)
    return reward


@_entry()
def _begin_worlds(
    run,
    reset,
    kf,
    ki,
    fs,
    ss,
    rows,
    worlds,
    seeds,
    price,
    padding,
    observations,
    masks,
    totals,
    clocks,
    statuses,
    facts,
    delays,
):
    for i in range(len(rows)):
        w = worlds[i]
        statuses[w] = _begin_one(
            run,
            reset,
            _pointer(kf),
            _pointer(ki),
            _pointer(fs[rows[i]]),
            _pointer(ss[rows[i]]),
            seeds[i],
            price,
            padding,
            observations[w],
            masks[w],
            totals[w],
            clocks[w],
            facts[w],
            delays[w],
        )


def _stepper(parallel: bool):
    """Return the entry point that steps worlds, on one thread (`prange` is then `range`) or on Numba's.

    It mentions `parallel` so that the two do not share a place in the cache.
    """

    @_entry(parallel=parallel)
    def step(
        run,
        kf,
        ki,
        fs,
        ss,
        rows,
        worlds,
        actions,
        factors,
        weights,
        padding,
        observations,
        masks,
        rewards,
        totals,
        terms,
        clocks,
        statuses,
        facts,
        delays,
    ):
        _ = parallel
        failed = 0
        if len(rows) > 1:
            _fetch_rows(_pointer(ki), _pointer(fs[rows[0]]), _pointer(ss[rows[0]]))
            _fetch_header(_pointer(ki), _pointer(fs[rows[1]]), _pointer(ss[rows[1]]))
        for i in prange(len(rows)):
            w = worlds[i]
            s = _pointer(ss[rows[i]])
            if i + 1 < len(rows):
                _fetch_rows(_pointer(ki), _pointer(fs[rows[i + 1]]), _pointer(ss[rows[i + 1]]))
            if i + 2 < len(rows):
                _fetch_header(_pointer(ki), _pointer(fs[rows[i + 2]]), _pointer(ss[rows[i + 2]]))
            rewards[w] = _step_one(
                run,
                _pointer(kf),
                _pointer(ki),
                _pointer(fs[rows[i]]),
                s,
                actions[w],
                factors,
                weights,
                padding,
                observations[w],
                masks[w],
                totals[w],
                terms[w],
                clocks[w],
                facts[w],
                delays[w],
            )
            statuses[w] = s[WI_STATUS]
            failed += 1 if statuses[w] == FAILED else 0
        return failed

    return step


_step_worlds, _step_worlds_parallel = _stepper(False), _stepper(True)


def begin_worlds(*arrays: Any) -> None:
    """Set worlds up and run each to its first decision; see :class:`~dsd_env.sim.compiled.WorldVector`."""
    _begin_worlds(RUN, RESET, *arrays)


def step_worlds(*arrays: Any) -> int:
    """Answer worlds' due decisions and run each to its next; return how many failed."""
    return int(_step_worlds(RUN, *arrays))


def step_worlds_parallel(*arrays: Any) -> int:
    """:func:`step_worlds` on the threads of Numba."""
    return int(_step_worlds_parallel(RUN, *arrays))


@_entry()
def first_refused(actions, sizes, statuses):
    """Return the first world that is not at a decision or whose action is outside the space, or -1."""
    for i in range(len(actions)):
        if statuses[i] != 0:
            return i
        for j in range(len(sizes)):
            if actions[i, j] < 0 or actions[i, j] >= sizes[j]:
                return i
    return -1


@_entry()
def flat_masks(ki, fs, rows, worlds, padding, masks):
    """Write the masks of flat actions of some worlds' decisions, one after the other."""
    for i in range(len(rows)):
        _flat_mask(_pointer(ki), _pointer(fs[rows[i]]), padding, masks[worlds[i]])
