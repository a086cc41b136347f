"""How far the drafts of a round are right: the reference's acceptance sources, by another algorithm.

A recording is read in place: entries one after the other, each a stretch of output positions.
"""
# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

from __future__ import annotations

from dsd_env.rng import Stream
from dsd_env.sim.compiled.codes import IID, MATCHES, RUNS
from dsd_env.sim.compiled.kernel.draws import key, number_below, uniform, uniform_from_key
from dsd_env.sim.compiled.kernel.jit import jit, number
from dsd_env.sim.compiled.kernel.rows import tail

ACCEPTANCE_PICK, ACCEPTANCE_MATCH = number(Stream.ACCEPTANCE_PICK), number(Stream.ACCEPTANCE_MATCH)
ACCEPTANCE_GUESS, ACCEPTANCE_RANK = number(Stream.ACCEPTANCE_GUESS), number(Stream.ACCEPTANCE_RANK)


@jit
def _place_of(entries, n, entry):
    """Return where an entry stands in an ascending list."""
    low, high = 0, n
    while low < high:
        middle = (low + high) >> 1
        if entries[middle] < entry:
            low = middle + 1
        else:
            high = middle
    return low


@jit
def _locate(k, w, request, model, position, keep):
    """Return the recorded entry that holds an output position, and its first position.

    With `keep` the request remembers it; positions kept must not fall.
    """
    spec = k.models[model]
    chain = w.chains[k.n_models * request.slot + model]
    entry, start, picks = chain.entry, chain.start, chain.picks
    if picks == 0 and request.recorded >= 0 and spec.has_named:
        entry, start, picks = spec.named[request.recorded], 0, 1
    if picks == 0:
        pool = spec.pools[request.kind]
        u = uniform(w.seed, ACCEPTANCE_PICK, request.uid, 0)
        entry, start, picks = k.integers[pool.first + number_below(pool.n, u)], 0, 1
    length = spec.offsets[entry + 1] - spec.offsets[entry]
    while position >= start + length:
        same = spec.same_kind[spec.kind_of[entry]]
        n = same.n
        if n > 1:
            u = uniform(w.seed, ACCEPTANCE_PICK, request.uid, picks)
            entries = tail(k.integers, same.first)
            place = _place_of(entries, n, entry)
            entry = entries[(place + 1 + int(u * (n - 1))) % n]
        start += length
        picks += 1
        length = spec.offsets[entry + 1] - spec.offsets[entry]
    if keep:
        chain.entry, chain.start, chain.picks = entry, start, picks
    return entry, start


@jit
def _recorded_run(k, w, request, model, start, keep):
    """Return the run length recorded at a position; it ends with its entry."""
    spec = k.models[model]
    entry, first = _locate(k, w, request, model, start, keep)
    begin = spec.offsets[entry]
    rest = spec.offsets[entry + 1] - begin - (start - first)
    return min(spec.run_length[begin + start - first], rest)


@jit
def run_length(k, w, request, model, chain, start, limit):
    """Return ``min(run, limit)`` at `start`, of proposals without a break from `chain`."""
    spec = k.models[model]
    source = spec.source
    if source == RUNS:
        run = _recorded_run(k, w, request, model, chain, True)
        passed = spec.has_guess and run < start - chain  # a right guess has led beyond its end
        if run >= spec.longest or passed:
            run = _recorded_run(k, w, request, model, start, False)
        else:
            run -= start - chain
        return min(run, limit)
    match_key = key(w.seed, ACCEPTANCE_MATCH, request.uid)
    run = 0
    if source == MATCHES:
        entry, first = _locate(k, w, request, model, start, True)
        begin = spec.offsets[entry]
        rest = spec.offsets[entry + 1] - begin - (start - first)
        limit = min(limit, rest)
        accept_prob = tail(spec.accept_prob, begin + start - first)
        while run < limit and uniform_from_key(match_key, start + run) < accept_prob[run]:
            run += 1
        return run
    low, high = spec.low, spec.high
    if source == IID:
        while run < limit and uniform_from_key(match_key, start + run) < low:
            run += 1
        return run
    flips = spec.flips
    position = start
    while position > 0:  # the last position that decides for itself
        u = uniform_from_key(match_key, position)
        if u < low or u >= high:
            break
        position -= 1
    u = uniform_from_key(match_key, position)
    match = u < (low if position > 0 else spec.first)
    if flips and (start - position) % 2 == 1:
        match = not match
    while match and run < limit:
        run += 1
        u = uniform_from_key(match_key, start + run)
        if u >= high:
            match = False
        elif u >= low:
            match = not flips
    return run


@jit
def guess_right(k, w, request, model, chain, position):
    """Return whether the drafter's own token is the one that the target chose without seeing a draft.

    Any position from the chain's start on may be asked for; at the end of the output and beyond: False.
    """
    spec = k.models[model]
    if position >= request.output_tokens:
        return False
    if not spec.has_guess and spec.source == RUNS:
        # Nothing is kept of what was found: a stream asks for older chains after newer ones.
        run = _recorded_run(k, w, request, model, chain, False)
        if run >= spec.longest:
            return _recorded_run(k, w, request, model, position, False) >= 1
        return run - (position - chain) >= 1
    if not spec.has_guess and spec.source != MATCHES:
        return run_length(k, w, request, model, chain, position, 1) >= 1
    entry, first = _locate(k, w, request, model, position, False)
    at = spec.offsets[entry] + position - first
    if spec.has_guess:
        return uniform(w.seed, ACCEPTANCE_GUESS, request.uid, position) < spec.draft_prob[at]
    return uniform(w.seed, ACCEPTANCE_MATCH, request.uid, position) < spec.accept_prob[at]


@jit
def guessed_after(k, w, request, model, chain, start, drafted, run):
    """Return whether a verified window of a known run is all right, and the guess of the token after it.

    `run` may have been cut to ``drafted + 1``.
    """
    if k.models[model].has_guess:
        return run >= drafted and guess_right(k, w, request, model, chain, start + drafted)
    return run > drafted  # the same run goes on


@jit
def is_near(k, w, request, model, position, fanout):
    """Return whether the committed token is among the drafter's most likely ones beside its draft."""
    spec = k.models[model]
    if spec.has_rank:
        entry, first = _locate(k, w, request, model, position, False)
        return spec.rank[spec.offsets[entry] + position - first] <= fanout + 1
    return uniform(w.seed, ACCEPTANCE_RANK, request.uid, position) < spec.hit_prob


@jit
def top1_prob(k, w, request, model, position):
    """Return the drafter's confidence at an output position."""
    spec = k.models[model]
    if spec.source >= IID:
        return spec.confidence
    entry, first = _locate(k, w, request, model, position, False)
    return spec.top1_prob[spec.offsets[entry] + position - first]


@jit
def confidence(k, w, request, model, position):
    """Return the same, and the entropy of the drafter's distribution there."""
    spec = k.models[model]
    if spec.source >= IID:
        return spec.confidence, spec.entropy
    entry, first = _locate(k, w, request, model, position, False)
    at = spec.offsets[entry] + position - first
    return spec.top1_prob[at], spec.entropy_nats[at]


@jit
def proposed(k, w, request, model, gamma):
    """Return how many tokens a look-up proposes for the next round, at most `gamma`."""
    spec = k.models[model]
    if not spec.proposes:
        return gamma
    entry, first = _locate(k, w, request, model, request.committed, False)
    return min(gamma, spec.proposed[spec.offsets[entry] + request.committed - first])
