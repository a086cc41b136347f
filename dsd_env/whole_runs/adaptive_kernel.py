"""The rules for the length in compiled code, decision for decision those of the Python rules.

:mod:`dsd_env.schedulers.lengths` and :mod:`dsd_env.schedulers.stops` explain them. Here are the same formulas
over the rows of the compiled engine's view, in the same order, so that they round alike.
:mod:`dsd_env.whole_runs.adaptive` writes the table of a rule.
"""
# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

from __future__ import annotations

import math

from dsd_env.control.view import RECENT_ROUNDS
from dsd_env.rng import Stream
from dsd_env.schedulers.hf import INITIAL_TOKENS
from dsd_env.schedulers.lengths import DRAWS, EXPLORATION_DRAW
from dsd_env.sim.compiled.kernel.draws import key, number_below, uniform_from_key
from dsd_env.sim.compiled.kernel.jit import entry, jit
from dsd_env.sim.compiled.kernel.loop import answer, as_scenario, as_world, call_run, pointer
from dsd_env.sim.compiled.kernel.planned import lengths, placement_at, plain_placement
from dsd_env.sim.compiled.kernel.rows import cast
from dsd_env.sim.compiled.kernel.stopping import NEVER, set_stop
from dsd_env.sim.compiled.records import STOP, Array, Block, Record
from dsd_env.sim.compiled.status import DUE

FIXED, HUGGING_FACE, TABLE, TOP_B, TIME_OUT, EMA_TIERS = range(6)
CONFIDENCE_STOP, ADAEDL, CONFIDENT_TOP_B = range(6, 9)
UCB, BANDIT, CONTEXTUAL = range(9, 12)
"""The rules; the last ones learn from arms."""
CONTEXTS = 64
"""Contexts of a bandit, at most: factors of two of a number of requests, or of a round-trip time."""

CONSTANTS = Record(
    "LengthConstants", gamma="f8", weight="f8", limit_s="f8", start="f8", interval="i8", up="f8", down="f8",
    beta="f8", contexts="i8", scale="f8", explore="f8", most="f8", threshold="f8", target="f8", step="f8",
)  # fmt: skip
"""The constants of all rules, by the names that they have there."""
STEP = Record("LengthStep", least="i8", n="i8", lengths=Array("i8", 4))
"""A step of a table by requests at the target: from how many on, and the `n` lengths that it allows."""
ARM = Record("LengthArm", pulls="i8", seconds="f8", tokens="f8")
"""See :class:`dsd_env.schedulers.lengths.Arm`."""
MEMORY = Record(
    "LengthMemory",
    decided_by="i8",
    now_s="f8",
    committed_tokens="i8",
    gamma="i8",
    length_of="i8",
    length="i8",
    threshold_of="i8",
    threshold="f8",
    rate="f8",
)
"""What is kept for the request in a slot: the begin of its last round, and its own length or threshold.

`decided_by` is the number of the request that the round belongs to, `length_of` of the one that the length
belongs to, `threshold_of` of the one that the threshold and the acceptance rate belong to; -1: none.
"""
RULE = Record(
    "LengthRule", kind="i8", constants=CONSTANTS, seed="i8", batch_size="i8", n_sites="i8",
    sites=Array("i8", 3), n_steps="i8", steps=Block(STEP), arms=Block(ARM), memory=Block(MEMORY),
    rounds="i8", seconds="f8", mean="f8", length="i8", stop=STOP,
)  # fmt: skip
"""A rule: its constants, the place where it drafts, what it has learned in the episode, and its stop rule."""

as_rule = cast(RULE)
_STREAM = int(Stream.SCHEDULER)


# ---------------------------------------------------------------------- lists


@jit
def _snapped(k, wanted):
    """Return the place of the largest listed length that is at most `wanted`; the first if there is none."""
    at = 0
    for i in range(lengths(k)):
        if k.gammas[i] <= wanted:
            at = i
    return at


@jit
def _snapped_up(k, wanted):
    """Return the place of the smallest listed draft length that is at least `wanted`, or the last place."""
    for i in range(1, lengths(k)):
        if k.gammas[i] >= wanted:
            return i
    return lengths(k) - 1


@jit
def _first_draft(k):
    """Return the place of the smallest draft length; the first place if plain decoding alone is listed."""
    return min(1, lengths(k) - 1)


@jit
def _step(w, rule):
    """Return the last step of a table that the target's requests reach, or the first."""
    resident, found = max(1, int(w.target_views[0].resident)), 0
    for i in range(rule.n_steps):
        if resident >= rule.steps[i].least:
            found = i
    return rule.steps[found]


@jit
def _within(step, wanted):
    """Return the place of the largest length of a step that is at most `wanted`, or the first place."""
    at = 0
    for i in range(step.n):
        if step.lengths[i] <= wanted:
            at = i
    return at


# ---------------------------------------------------------------------- what a round teaches


@jit
def _context(w, rule):
    if rule.kind == UCB:
        octave = int(math.log2(max(1.0, 1e3 * w.due_view.link.rtt_s)))
        return min(octave, rule.constants.contexts - 1)
    if rule.kind == CONTEXTUAL:
        return int(math.log2(max(1.0, w.target_views[0].resident)))
    return 0


@jit
def _arm(k, rule, context, place):
    return rule.arms[context * lengths(k) + place]


@jit
def _learn(k, w, rule, memory):
    """Take in how the last round of the due request went."""
    request = w.due_view.request
    seconds = max(w.due_view.now_s - memory.now_s, 1e-9)
    tokens = int(request.committed_tokens) - memory.committed_tokens
    if rule.kind == TIME_OUT:
        _learn_time_out(k, w, rule, memory, seconds)
    elif rule.kind == EMA_TIERS:
        _learn_tiers(w, rule, memory.gamma, tokens)
    elif rule.kind == ADAEDL:
        _learn_threshold(w, rule, memory)
    elif rule.kind >= UCB:
        arm = _arm(k, rule, _context(w, rule), _snapped(k, memory.gamma))
        arm.pulls += 1
        arm.seconds += seconds
        arm.tokens += tokens
        rule.seconds += seconds
        rule.rounds += 1


@jit
def _learn_time_out(k, w, rule, memory, seconds):
    at = _snapped(k, memory.gamma) + (-1 if seconds > rule.constants.limit_s else 1)
    at = max(_first_draft(k), min(at, lengths(k) - 1))
    memory.length_of, memory.length = int(w.due_view.request_id), k.gammas[at]


@jit
def _learn_tiers(w, rule, gamma, tokens):
    constants = rule.constants
    rule.rounds += 1
    if gamma > 0:
        rule.mean += constants.weight * (max(0, tokens - 1) - rule.mean)
    if rule.rounds % constants.interval != 0:
        return
    step = _step(w, rule)
    at = _within(step, rule.length)
    if step.lengths[at] == 0 and step.n > 1:
        rule.length = step.lengths[1]
        return
    while at > 0 and rule.mean <= step.lengths[at - 1] - 0.5 + constants.down:
        at -= 1
    while at + 1 < step.n and rule.mean > step.lengths[at] - 0.5 + constants.up:
        at += 1
    rule.length = step.lengths[at]


@jit
def _learn_threshold(w, rule, memory):
    request, constants = w.due_view.request, rule.constants
    drafted, accepted = request.recent_gammas[0], request.recent_accepted[0]
    if memory.gamma == 0 or drafted == 0.0:
        return
    number, rate = int(w.due_view.request_id), 0.0
    bound = _threshold(w, rule, memory)
    if memory.threshold_of == number:
        rate = memory.rate
    rate = 0.5 * rate + 0.5 * accepted / drafted
    wanted = bound
    if rate < constants.target:
        wanted += constants.step
    elif accepted != memory.gamma:
        wanted -= constants.step
    memory.threshold_of, memory.rate = number, rate
    memory.threshold = min(1.0, 0.9 * bound + 0.1 * wanted)


# ---------------------------------------------------------------------- the next length


@jit
def _hugging_face(k, request):
    """Return the place of k."""
    if lengths(k) == 1:
        return 0
    for i in range(RECENT_ROUNDS):
        drafted = request.recent_gammas[i]
        if drafted > 0.0:
            if request.recent_accepted[i] >= drafted:
                return _snapped_up(k, drafted + 2.0)
            return max(1, _snapped(k, max(1.0, drafted - 1.0)))
    return max(1, _snapped(k, INITIAL_TOKENS))


@jit
def _price(w, weight):
    """Return how many tokens all at the target lose in the time that one more to verify takes, weighted."""
    target = w.target_views[0]
    tokens = max(1.0, target.resident) * w.due_view.request.tokens_per_round
    return weight * (tokens * target.token_s / max(target.iteration_s, 1e-9))


@jit
def _top_b(k, w, weight):
    """Return the place of the number of drafts that are worth it."""
    a = min(max(w.due_view.request.acceptance_rate, 1e-3), 0.999)
    price = _price(w, weight)
    if price >= 1.0:
        return 0
    if price <= 0.0:
        return lengths(k) - 1
    return _snapped(k, math.floor(math.log(price) / math.log(a) + 1e-9))


@jit
def _untried(k, rule, context, first):
    """Return the first place from `first` on that nobody has tried, or -1."""
    for i in range(first, lengths(k)):
        if _arm(k, rule, context, i).tokens <= 0.0:
            return i
    return -1


@jit
def _fastest(k, rule, context, first):
    """Return the place that gave the most tokens per second, and how many."""
    best, best_rate = first, -1.0
    for i in range(first, lengths(k)):
        arm = _arm(k, rule, context, i)
        rate = arm.tokens / arm.seconds
        if rate > best_rate:
            best, best_rate = i, rate
    return best, best_rate


@jit
def _ucb(k, w, rule):
    """Return the place with the least lower bound of time per token."""
    context, first = _context(w, rule), _first_draft(k)
    untried = _untried(k, rule, context, first)
    if untried >= 0:
        return untried
    scale_s, log_t = rule.seconds / rule.rounds, math.log(rule.rounds + 1)
    best, least_s = first, math.inf
    for i in range(first, lengths(k)):
        arm = _arm(k, rule, context, i)
        bound_s = (arm.seconds - rule.constants.beta * scale_s * math.sqrt(arm.pulls * log_t)) / arm.tokens
        if bound_s < least_s:
            best, least_s = i, bound_s
    return best


@jit
def _bandit(k, rule):
    """Return the place with the largest upper bound of tokens per second."""
    first = _first_draft(k)
    untried = _untried(k, rule, 0, first)
    if untried >= 0:
        return untried
    _, fastest = _fastest(k, rule, 0, first)
    log_t = math.log(rule.rounds + 1)
    best, most = first, -1.0
    for i in range(first, lengths(k)):
        arm = _arm(k, rule, 0, i)
        bonus = rule.constants.scale * fastest * math.sqrt(2.0 * log_t / arm.pulls)
        bound = arm.tokens / arm.seconds + bonus
        if bound > most:
            best, most = i, bound
    return best


@jit
def _contextual(k, w, rule):
    """Return a place to try, or the best."""
    context, n = _context(w, rule), lengths(k)
    untried = _untried(k, rule, context, 0)
    if untried >= 0:
        return untried
    rounds = 0
    for i in range(n):
        rounds += _arm(k, rule, context, i).pulls
    stream = key(rule.seed, _STREAM, int(w.due_view.request_id))
    first = DRAWS * int(w.due_view.counter) + EXPLORATION_DRAW
    if uniform_from_key(stream, first) < rule.constants.explore * n / math.sqrt(rounds):
        return number_below(n, uniform_from_key(stream, first + 1))
    return _fastest(k, rule, context, 0)[0]


@jit
def _place(k, w, rule, memory):
    """Return the place on the list of the length that a rule names for the due request."""
    constants = rule.constants
    if rule.kind == FIXED:
        return _snapped(k, constants.gamma)
    if rule.kind == HUGGING_FACE:
        return _hugging_face(k, w.due_view.request)
    if rule.kind == TABLE:
        return _snapped(k, _step(w, rule).lengths[0])
    if rule.kind == TOP_B:
        return _top_b(k, w, constants.weight)
    if rule.kind == TIME_OUT:
        own = memory.length_of == int(w.due_view.request_id)
        return _snapped(k, float(memory.length) if own else constants.start)
    if rule.kind == EMA_TIERS:
        step = _step(w, rule)
        return _snapped(k, step.lengths[_within(step, rule.length)])
    if rule.kind == CONFIDENCE_STOP or rule.kind == ADAEDL:
        return _snapped(k, constants.most)
    if rule.kind == CONFIDENT_TOP_B:
        return _snapped(k, constants.most if _price(w, constants.weight) < 1.0 else 0.0)
    if rule.kind == UCB:
        return _ucb(k, w, rule)
    if rule.kind == BANDIT:
        return _bandit(k, rule)
    return _contextual(k, w, rule)


@jit
def _threshold(w, rule, memory):
    """Return the threshold of the rule's stop rule for the due request."""
    if rule.kind == CONFIDENT_TOP_B:
        return 1.0 - min(1.0, _price(w, rule.constants.weight))
    if rule.kind == ADAEDL and memory.threshold_of == int(w.due_view.request_id):
        return memory.threshold
    return rule.stop.threshold


# ---------------------------------------------------------------------- decisions


@jit
def _drafting(k, w, rule):
    """Return the placement at the first site of the rule that can draft for the request's target, or -1."""
    target = int(w.target_views[0].index)
    for i in range(rule.n_sites):
        placement = placement_at(k, w, rule.sites[i], target)
        if placement >= 0:
            return placement
    return -1


@entry()
def go_on(run, constants, world, rule, told):
    """Answer due decisions by a rule until one is an admission, or all is over; return the world's status.

    Args:
        run: Address of the engine's loop.
        constants: The scenario's constants.
        world: The world, with a decision due.
        rule: The rule.
        told: float64, shape (2,): the length that the rule names at the admission is written there, and the
            threshold of its stop rule.
    """
    k, w, r = as_scenario(pointer(constants)), as_world(pointer(world)), as_rule(pointer(rule))
    while True:
        view, memory = w.due_view, r.memory[w.pending]
        number = int(view.request_id)
        if memory.decided_by == number:
            _learn(k, w, r, memory)
        memory.decided_by = -1
        gamma = k.gammas[_place(k, w, r, memory)]
        if view.request.is_admission != 0.0:
            told[0], told[1] = gamma, _threshold(w, r, memory)
            return DUE
        placement = _drafting(k, w, r) if gamma > 0 else -1
        if placement < 0:
            gamma, placement = 0, plain_placement(k, w, int(w.target_views[0].index))
        memory.decided_by, memory.now_s, memory.gamma = number, view.now_s, gamma
        memory.committed_tokens = int(view.request.committed_tokens)
        threshold = _threshold(w, r, memory)
        answer(k, w, gamma, r.batch_size, placement)
        request = w.requests[w.answered]
        if r.stop.kind != NEVER and request.gamma > 0:
            set_stop(request.stop, r.stop.kind, threshold, r.stop.least, r.stop.keeps)
        status = call_run(run, (pointer(constants), pointer(world)))
        if status != DUE:
            return status
