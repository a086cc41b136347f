"""What a group's choice in a plan means for a request whose view has been written.

The rule is that of :func:`dsd_env.schedulers.static.apply_static`, for one site and by the view's rows. The
compiled loop follows plans by it (:mod:`dsd_env.sim.compiled.plan`), and so does a controller of real
systems (:mod:`dsd_env.sim.compiled.kernel.serve`).
"""
# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

from __future__ import annotations

from dsd_env.sim.compiled.kernel.jit import jit
from dsd_env.sim.compiled.kernel.links import COLOCATED

GAMMA, BATCH, SITE, MODEL, BRANCHES, TARGET, GAMMA_INDEX, BATCH_INDEX = range(8)
"""Columns of a group's choice; :mod:`dsd_env.sim.compiled.table_plan` writes them."""
CHOICE_WORDS = 8
"""Number of these columns."""
ANY = -1
"""Stands for the site's first drafter, and for the least loaded target."""


@jit
def lengths(k):
    """Return how many speculation lengths are listed, without those that a stop rule may end."""
    return k.n_gammas - k.n_stops


@jit
def planned(k, w, choice):
    """Return speculation length and placement: the place that is wanted, or plain decoding without it."""
    target = _target(k, w, choice[TARGET])
    if choice[GAMMA] > 0:
        placement = _placement(k, w, choice[SITE], target, choice[MODEL], choice[BRANCHES] != 0)
        if placement >= 0:
            return choice[GAMMA], placement
    return 0, plain_placement(k, w, target)


@jit
def _target(k, w, wanted):
    """Return the number of the request's target; at its admission the one wanted, or the least loaded."""
    if w.due_view.request.is_admission == 0.0:
        return int(w.target_views[0].index)
    best = 0
    for i in range(k.n_offered):
        if int(w.target_views[i].index) == wanted:
            return wanted
        if i > 0 and goes_before(w.target_views[i], w.target_views[best]):
            best = i
    return int(w.target_views[best].index)


@jit
def goes_before(one, other):
    """Return whether a target is taken rather than another: up, fewer requests, faster, lower number."""
    if one.up != other.up:
        return one.up > other.up
    load, other_load = one.resident + one.waiting, other.resident + other.waiting
    if load != other_load:
        return load < other_load
    if one.iteration_s != other.iteration_s:
        return one.iteration_s < other.iteration_s
    return one.index < other.index


@jit
def placement_at(k, w, site, target):
    """Return the placement that drafts at a site for a target with the site's first drafter, or -1."""
    return _placement(k, w, site, target, ANY, False)


@jit
def _placement(k, w, site, target, model, branches):
    """Return the placement that drafts at a place for a target, or -1.

    Of several the open stream's comes first, then the shortest wait, then the shortest draft step.
    """
    best, best_fanout, best_open, best_wait_s, best_step_s = -1, 0.0, False, 0.0, 0.0
    in_stream = w.due_view.request.window_tokens > 0.0
    for i in range(k.n_places):
        c = w.candidates[i]
        if c.valid == 0.0 or int(c.site) != site:
            continue
        if int(w.target_views[int(c.offered)].index) != target:
            continue
        if model == ANY:
            if c.drafter != 0.0:
                continue
        elif int(c.model) != model:
            continue
        if branches and c.fanout == 0.0:
            continue
        fanout = 0.0 if branches else c.fanout
        is_open = in_stream and c.is_current != 0.0 and c.streams != 0.0
        better = best < 0 or fanout < best_fanout
        if not better and fanout == best_fanout:
            if is_open != best_open:
                better = is_open
            elif c.draft_wait_s != best_wait_s:
                better = c.draft_wait_s < best_wait_s
            else:
                better = c.draft_step_s < best_step_s
        if better:
            best, best_fanout, best_open = i, fanout, is_open
            best_wait_s, best_step_s = c.draft_wait_s, c.draft_step_s
    return best


@jit
def plain_placement(k, w, target):
    """Return a placement at a target: the first co-located one, or else the first there."""
    fallback = -1
    for i in range(k.n_places):
        c = w.candidates[i]
        if int(w.target_views[int(c.offered)].index) == target:
            if int(c.site) == COLOCATED:
                return i
            if fallback < 0:
                fallback = i
    return max(fallback, 0)
