"""Where a stop rule ends a draft, by the confidence that the acceptance source has of each position."""
# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

from __future__ import annotations

from dsd_env.laws import stopping
from dsd_env.sim.compiled.codes import LOOKUP
from dsd_env.sim.compiled.kernel.acceptance import confidence, proposed
from dsd_env.sim.compiled.kernel.jit import compile_laws, jit, number

compile_laws(stopping)

NEVER, LEAST = number(stopping.NEVER), number(stopping.LEAST_IN_DOUBT)


@jit
def set_stop(stop, kind, threshold, least, keeps):
    """Note a rule."""
    stop.kind, stop.threshold, stop.least, stop.keeps = kind, threshold, least, keeps


@jit
def stop_as_listed(k, w, index):
    """Give the decision that has just been answered the stop rule of an entry of the list of lengths."""
    request = w.requests[w.answered]
    past = index - (k.n_gammas - k.n_stops)
    if past >= 0 and request.gamma > 0:
        set_stop(request.stop, stopping.SURVIVAL, k.stop_thresholds[past], LEAST, True)


@jit
def copy_stop(k, stream, request):
    """Let a stream follow the rule of its request's decision, or else the protocol's."""
    rule = request.stop
    if rule.kind == NEVER:
        rule = k.stop
    set_stop(stream.stop, rule.kind, rule.threshold, rule.least, rule.keeps)


@jit
def drafts_made(k, w, request, drafter):
    """Return how many tokens a drafter makes of the window of a request's decision.

    How many of them are no part of the draft is noted with the request. A look-up, which has no
    probabilities, proposes what it has found.
    """
    model, gamma = k.drafters[drafter].model, request.gamma
    request.dropped = 0
    if k.drafters[drafter].kind == LOOKUP:
        return proposed(k, w, request, model, gamma)
    rule = request.stop
    if rule.kind == NEVER:
        rule = k.stop
    if rule.kind == NEVER:
        return gamma
    last = gamma - 1 if rule.keeps else gamma
    survival, ends = 1.0, False
    for made in range(1, last + 1):
        position = request.committed + made - 1
        left = stopping.left(rule, made)
        if position >= request.output_tokens:
            ends = True
        else:
            top1, entropy = confidence(k, w, request, model, position)
            survival *= top1
            if left >= rule.least:
                ends = stopping.doubts(rule.kind, rule.threshold, top1, survival, entropy)
        if ends:
            request.dropped = made - left
            return made
    return gamma


@jit
def pauses(k, w, request, stream, newest):
    """Return whether its stop rule ends a stream's draft at its newest token.

    It does not once that is known to be committed.
    """
    rule = stream.stop
    if rule.kind == NEVER or newest < stream.known:
        return False
    if newest >= request.output_tokens:
        return True
    if newest - stream.known + 1 < rule.least:
        return False
    model = k.drafters[stream.drafter].model
    survival = 1.0
    if rule.kind == stopping.SURVIVAL:
        for position in range(stream.known, newest):
            survival *= confidence(k, w, request, model, position)[0]
    top1, entropy = confidence(k, w, request, model, newest)
    return stopping.doubts(rule.kind, rule.threshold, top1, survival * top1, entropy)


@jit
def tokens_until_pause(k, w, request, stream, tokens):
    """Return how many of the next drafts of a stream, at least one of some, its stop rule lets be made."""
    if stream.stop.kind != NEVER:
        for more in range(1, tokens):
            if pauses(k, w, request, stream, stream.drafted + more - 1):
                return more
    return tokens
