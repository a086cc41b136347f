"""Entry points of the kernel for many worlds: begin episodes, take a step, and write all results in place.

The functions here are compiled into a cache of their own beside this file. Numba keys a cache by the source
file of the entry point alone, so that a change of the kernel or of the layout would leave a stale one behind;
hence :data:`SOURCES`, a digest of all that goes into the machine code, which the entry points close over and
which is thereby part of the key.
"""
# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

from __future__ import annotations

import hashlib
from pathlib import Path

from dsd_env import rng
from dsd_env.sim import events
from dsd_env.sim.compiled import kernel, layout
from dsd_env.sim.compiled.kernel import _answer, _encode, _entry, _jit, _mask, _pointer, _reset, _run, _totals
from dsd_env.sim.compiled.layout import (
    DUE,
    FAILED,
    K_FEATURES,
    K_PLACES,
    O_BATCHES,
    O_GAMMAS,
    O_REQ_F,
    O_VIEW,
    RF_DELAY_CAUSED,
    RF_STRIDE,
    V_ADMISSION,
    V_COMMITTED,
    V_COUNTER,
    V_DEVICE,
    V_REQUEST,
    WF_NOW,
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

LAST_FEATURES = 3
"""Features after the candidates."""
NO_DRAFTER = 1


def _sources_digest() -> int:
    """Return a digest of the sources of the machine code, in 56 bits."""
    digest = hashlib.sha256()
    for module in (kernel, layout, rng, events):
        digest.update(Path(str(module.__file__)).read_bytes())
    return int.from_bytes(digest.digest()[:7])


SOURCES = _sources_digest()
"""What the machine code was compiled from."""


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


@_jit
def _begin_one(kf, ki, f, s, seed, price, padding, observation, mask, totals, clock, fact, delay):
    _reset(kf, ki, f, s, seed, 0, price)
    status = _run(kf, ki, f, s)
    totals[:] = 0.0
    clock[0], clock[1] = f[WF_NOW], f[WF_NOW]
    fact[FACT_REASON], fact[FACT_INVALID], fact[FACT_COMPLETED] = 0, 0, 0
    if status == DUE:
        _look(kf, ki, f, s, padding, observation, mask, fact, delay)
    return status


@_jit
def _step_one(
    kf, ki, f, s, action, factors, weights, padding, observation, mask, totals, terms, clock, fact, delay
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
    status = _run(kf, ki, f, s)
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


def _entries(sources: int):
    """Return the entry points; `sources` only has to be mentioned to count."""

    @_entry()
    def begin(
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
        _ = sources
        for i in range(len(rows)):
            w = worlds[i]
            statuses[w] = _begin_one(
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

    @_entry()
    def step(
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
        _ = sources
        failed = 0
        for i in range(len(rows)):
            w = worlds[i]
            s = _pointer(ss[rows[i]])
            rewards[w] = _step_one(
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

    return begin, step


begin_worlds, step_worlds = _entries(SOURCES)


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
