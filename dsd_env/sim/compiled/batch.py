"""Entry points of the kernel for many worlds: begin episodes, take a step, and write all results in place."""
# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

from __future__ import annotations

from typing import Any

from numba import prange

from dsd_env.laws.resolve import NO_DRAFTER, TARGET_DOWN
from dsd_env.sim.compiled.codes import JOBS
from dsd_env.sim.compiled.kernel.jit import entry, jit
from dsd_env.sim.compiled.kernel.loop import (
    RESET,
    RUN,
    answer,
    as_scenario,
    as_world,
    call_reset,
    call_run,
    pointer,
)
from dsd_env.sim.compiled.kernel.observe import encode, flat_mask, write_mask
from dsd_env.sim.compiled.kernel.rows import fetch
from dsd_env.sim.compiled.kernel.stopping import stop_as_listed
from dsd_env.sim.compiled.records import (
    CANDIDATE_VIEW,
    DRAFT_JOB,
    DUE_NOW,
    REQUEST,
    SCHEDULED,
    TARGET,
    TARGET_VIEW,
    VIEW,
    WORLD,
)
from dsd_env.sim.compiled.status import DUE, FAILED

FACT_REASON, FACT_INVALID, FACT_COMPLETED, FACT_DUE = range(4)
"""Columns of `facts`: of the last decision answered, then, from `FACT_DUE` on, of the due one what
:data:`dsd_env.control.due.DUE_FIELDS` lists. Stale in a world that has ended."""

WORLD_BYTES, REQUEST_BYTES, JOB_BYTES = WORLD.itemsize, REQUEST.itemsize, DRAFT_JOB.itemsize
TARGET_BYTES, HEAP_BYTES, DUE_BYTES = TARGET.itemsize, 32 * SCHEDULED.itemsize, DUE_NOW.itemsize
VIEW_BYTES, TARGET_VIEW_BYTES, CANDIDATE_BYTES = VIEW.itemsize, TARGET_VIEW.itemsize, CANDIDATE_VIEW.itemsize


@jit
def _totals(k, w, totals):
    """Write the totals behind the reward terms, accrued until now, in the order of the terms."""
    elapsed_s = w.now_s - w.totals.time_s
    for i in range(k.n_terms):
        at = k.term_total[i]
        total = float(w.totals_as_counts[at]) if k.term_counts[i] else w.totals_as_numbers[at]
        if elapsed_s > 0.0:
            rate = w.in_system * k.term_per_request_s[i] + k.term_per_s[i]
            rate += w.occupied_gpus * k.term_per_gpu_s[i] + w.occupied_usd_per_s * k.term_per_usd[i]
            total += rate * elapsed_s
        totals[i] = total


@jit
def see(k, w, padding, observation, mask):
    """Write observation and mask of the due decision.

    A list of candidates that is shorter by `padding` than the observation has room for ends in zeros.
    """
    features = k.n_features
    encode(k, w, pointer(observation))
    write_mask(k, w, mask)
    gap = len(observation) - features
    if gap > 0:
        first = features - k.n_last_features
        for i in range(k.n_last_features - 1, -1, -1):
            observation[first + gap + i] = observation[first + i]
        for i in range(gap):
            observation[first + i] = 0.0
        for i in range(padding):
            mask[len(mask) - 1 - i] = False


@jit
def _look(k, w, padding, observation, mask, fact, delay):
    """Write what is to know of the due decision; see :func:`see`."""
    see(k, w, padding, observation, mask)
    for i in range(k.n_due_fields):
        fact[FACT_DUE + i] = int(w.due_view_numbers[k.due_source[i]])
    delay[0] = w.requests[w.pending].delay_caused_s


@jit
def _fetch_header(w):
    """Fetch what says where a world stands: it will be its turn after the next."""
    fetch(w, 0, WORLD_BYTES)


@jit
def _fetch_rows(k, w):
    """Fetch what the next world will touch first: its due request, the view of it, the events to come.

    Hundreds of worlds do not fit into the cache, and a step touches some sixty lines of one; to wait for
    each in turn takes as long as all computation.
    """
    slot = w.pending
    if slot < 0:
        return
    fetch(w.requests, slot * REQUEST_BYTES, REQUEST_BYTES)
    fetch(w.jobs, JOBS * slot * JOB_BYTES, JOB_BYTES)
    fetch(w.heap, 0, HEAP_BYTES)
    fetch(w.due_now, w.due_first * DUE_BYTES, 8 * DUE_BYTES)
    fetch(w.targets, 0, k.n_targets * TARGET_BYTES)
    fetch(w.due_view, 0, VIEW_BYTES + k.n_offered * TARGET_VIEW_BYTES + k.n_places * CANDIDATE_BYTES)


@jit
def _begin_one(
    run, reset, constants, world, seed, price, padding, observation, mask, totals, clock, fact, delay
):
    k, w = as_scenario(constants), as_world(world)
    call_reset(reset, (constants, world, seed, 0, price))
    status = call_run(run, (constants, world))
    totals[:] = 0.0
    clock[0], clock[1] = w.now_s, w.now_s
    fact[FACT_REASON], fact[FACT_INVALID], fact[FACT_COMPLETED] = 0, 0, 0
    if status == DUE:
        _look(k, w, padding, observation, mask, fact, delay)
    return status


@jit
def _step_one(
    run,
    constants,
    world,
    action,
    factors,
    weights,
    padding,
    observation,
    mask,
    totals,
    terms,
    clock,
    fact,
    delay,
):
    k, w = as_scenario(constants), as_world(world)
    gamma, placement = k.gammas[action[0]], action[2]
    # A candidate that only fills the list up: plain decoding at the current target.
    absent = placement >= k.n_places
    if absent:
        gamma, placement = 0, 0
    answer(k, w, gamma, k.batch_sizes[action[1]], placement)
    stop_as_listed(k, w, action[0])
    reason = w.reason
    if absent and reason != TARGET_DOWN:
        reason = NO_DRAFTER
    status = call_run(run, (constants, world))
    reward = 0.0
    for i in range(len(totals)):
        terms[i] = totals[i]
    _totals(k, w, totals)
    for i in range(len(totals)):
        terms[i] = factors[i] * (totals[i] - terms[i])
        if weights[i] != 0.0:
            reward += weights[i] * terms[i]
    w.invalid += 1 if reason != 0 else 0
    clock[1] = w.now_s - clock[0]
    clock[0] = w.now_s
    fact[FACT_REASON], fact[FACT_INVALID], fact[FACT_COMPLETED] = reason, w.invalid, w.newly_n
    if status == DUE:
        _look(k, w, padding, observation, mask, fact, delay)
    return reward


@entry()
def _begin_worlds(
    run,
    reset,
    constants,
    pool,
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
            pointer(constants),
            pointer(pool[rows[i]]),
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

    @entry(parallel=parallel)
    def step(
        run,
        constants,
        pool,
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
            _fetch_rows(as_scenario(pointer(constants)), as_world(pointer(pool[rows[0]])))
            _fetch_header(as_world(pointer(pool[rows[1]])))
        for i in prange(len(rows)):
            w = worlds[i]
            world = pointer(pool[rows[i]])
            if i + 1 < len(rows):
                _fetch_rows(as_scenario(pointer(constants)), as_world(pointer(pool[rows[i + 1]])))
            if i + 2 < len(rows):
                _fetch_header(as_world(pointer(pool[rows[i + 2]])))
            rewards[w] = _step_one(
                run,
                pointer(constants),
                world,
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
            statuses[w] = as_world(world).status
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


@entry()
def first_refused(actions, sizes, statuses):
    """Return the first world that is not at a decision or whose action is outside the space, or -1."""
    for i in range(len(actions)):
        if statuses[i] != 0:
            return i
        for j in range(len(sizes)):
            if actions[i, j] < 0 or actions[i, j] >= sizes[j]:
                return i
    return -1


@entry()
def flat_masks(constants, pool, rows, worlds, padding, masks):
    """Write the masks of flat actions of some worlds' decisions, one after the other."""
    k = as_scenario(pointer(constants))
    for i in range(len(rows)):
        flat_mask(k, as_world(pointer(pool[rows[i]])), padding, masks[worlds[i]])
