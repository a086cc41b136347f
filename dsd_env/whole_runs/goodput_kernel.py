"""The goodput rule in compiled code, decision for decision that of :mod:`dsd_env.schedulers.goodput`.

There it is explained. Here are the same formulas over the rows of the compiled engine's view, in the same
order, so that they round alike. It knows no branches. :mod:`dsd_env.whole_runs.goodput` writes its tables.
"""
# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

from __future__ import annotations

import math

import numpy as np

from dsd_env.control.view import RECENT_ROUNDS
from dsd_env.scenario.episode import MAX_GAMMA
from dsd_env.schedulers import rounds
from dsd_env.schedulers.busy_node import AGREED_ROUNDS
from dsd_env.schedulers.goodput import FEW_TOKENS
from dsd_env.schedulers.goodput_parameters import EXPLORED_TOKENS, HALF_AGED_TOKENS, GoodputParameters
from dsd_env.schedulers.stream_model import (
    ACCEPTANCE_GRID,
    GRID,
    LEAST_ALIVE,
    LEAST_RATIO,
    LEAST_STEP,
    LONGEST_PATH,
    MOST_TOKENS,
    SPREAD,
)
from dsd_env.sim.compiled.codes import LOOKUP
from dsd_env.sim.compiled.kernel.jit import entry, jit
from dsd_env.sim.compiled.kernel.links import COLOCATED, EDGE_SERVER, OWN_DEVICE
from dsd_env.sim.compiled.kernel.loop import answer, as_scenario, as_world, call_run, pointer
from dsd_env.sim.compiled.kernel.planned import goes_before, lengths, plain_placement
from dsd_env.sim.compiled.kernel.rows import cast
from dsd_env.sim.compiled.records import Array, Block, Record, Ref
from dsd_env.sim.compiled.status import DUE

PARAMETERS = Record("GoodputParameters", **dict.fromkeys(GoodputParameters.names(), "f8"))
"""The constants of the rule, with the names of :mod:`dsd_env.schedulers.goodput_parameters`."""
STEP_TIMES = Record("StepTimes", n="i8", compute_s=Block("f8"), k_bw_s="f8", k_multi_s="f8", k_lat_s="f8")
"""See :class:`dsd_env.schedulers.node_times.StepTimes`; `n` times, 0 where there is no profile."""
NODE = Record(
    "GoodputNode", times=Ref(STEP_TIMES), drafters=Block(STEP_TIMES), n_drafters="i8", per_sequence_s="f8",
    per_verifying_iteration_s="f8", kv_capacity_tokens="f8", max_num_seqs="i8",
)  # fmt: skip
"""A target: its step times and its engine's, and those of the drafters beside it."""
YIELD = Record("StreamYield", key="i8", tokens="f8", drafts="f8")
"""What a stream yields, by the numbers of a point of the grid in one; 0: an empty place."""
RULE = Record(
    "GoodputRule", parameters=PARAMETERS, nodes=Block(NODE), streams="?", has_menu="?", batch_size="i8",
    plain_chunk_tokens="i8", stream_chunk_tokens="i8", n_yields="i8", yields=Block(YIELD),
    costs_s=Array("f8", MAX_GAMMA + 1),
)  # fmt: skip
"""The rule: its constants, what it has loaded for a scenario, and yields that it has worked out."""

PLACE_BITS = 18
PLACES = 1 << PLACE_BITS
"""Places for yields; they are forgotten when half of them are taken."""
_STEPS = 1 << 12
_NEVER_S = math.inf
_LOWEST, _HIGHEST = rounds.LOWEST_ACCEPTANCE, rounds.HIGHEST_ACCEPTANCE
_FIRST_HASH = np.uint64(0x9E3779B97F4A7C15)

as_rule = cast(RULE)


# ---------------------------------------------------------------------- what a stream yields


@jit
def _on_grid(ratio):
    return int(np.rint(GRID * math.log(ratio))) if ratio > LEAST_RATIO else LEAST_STEP


@jit
def _yield_of_path(gamma, acceptance, step, first, way, chunk_tokens):
    """Return the tokens and drafts of an iteration, all times being in iterations.

    See `followed` and `yield_of` of :mod:`dsd_env.schedulers.stream_model`, which follow the path to its end.
    """
    committed = np.empty(LONGEST_PATH + 1, dtype=np.int64)
    drafted_at = np.empty(MOST_TOKENS + 4 * MAX_GAMMA, dtype=np.float64)
    committed[0] = 0
    n_drafted, knows, arrived = 0, 0, 0
    alive, iterations, tokens, drafts = 1.0, 0.0, 0.0, 0.0
    for i in range(LONGEST_PATH):
        while arrived < n_drafted and drafted_at[arrived] <= i - way:
            arrived += 1
        taken = max(0, min(gamma, arrived - committed[i]))
        survival = math.pow(acceptance, float(taken + 1))
        iterations += alive
        tokens += alive * (1.0 - survival) / (1.0 - acceptance)
        drafts += alive * taken
        alive *= survival
        if alive < LEAST_ALIVE:
            break
        while True:
            begin = max(drafted_at[n_drafted - 1], way) if n_drafted > 0 else way
            while n_drafted - committed[knows] >= gamma and knows < i:
                knows += 1
                begin = max(begin, knows + way)
            room = gamma - (n_drafted - committed[knows])
            sent = min(chunk_tokens, room)
            done = begin + (step if n_drafted > 0 else first) + (sent - 1) * step
            if done > i + 1 + way or room <= 0:
                break
            for _ in range(sent):
                drafted_at[n_drafted] = done
                n_drafted += 1
        committed[i + 1] = committed[i] + taken + 1
        if n_drafted < committed[i + 1] or committed[i + 1] > MOST_TOKENS:
            break
    return tokens / iterations, drafts / iterations


@jit
def _worked_out(gamma, rate, step, first, way, chunk_tokens):
    """Return the tokens and drafts of an iteration, for arguments given as steps of their grids."""
    step_s, first_s, way_s = math.exp(step / GRID), math.exp(first / GRID), math.exp(way / GRID)
    all_tokens, all_drafts = 0.0, 0.0
    for i in range(len(SPREAD)):
        length = SPREAD[i]
        tokens, drafts = _yield_of_path(
            gamma, rate / ACCEPTANCE_GRID, step_s / length, first_s / length, way_s / length, chunk_tokens
        )
        all_tokens += tokens
        all_drafts += drafts
    return all_tokens / len(SPREAD), all_drafts / len(SPREAD)


@jit
def _place_of(key):
    """Return where to look for a yield first."""
    return np.int64((np.uint64(key) * _FIRST_HASH) >> np.uint64(64 - PLACE_BITS))


@jit
def _yield(rule, gamma, acceptance, step_s, first_s, rtt_s, iteration_s):
    """Return the tokens and drafts of an iteration; see `stream_model.stream_yield`."""
    chunk = rule.stream_chunk_tokens
    late_s = first_s + 0.5 * (min(chunk, gamma) - 1) * step_s
    step = _on_grid(step_s / iteration_s)
    first = step if late_s == step_s else _on_grid(late_s / iteration_s)
    way = _on_grid(0.5 * rtt_s / iteration_s)
    rate = min(99, int(np.rint(ACCEPTANCE_GRID * acceptance)))
    half = _STEPS // 2
    key = (((gamma * 128 + rate) * _STEPS + step + half) * _STEPS + first + half) * _STEPS + way + half
    at = _place_of(key)
    while rule.yields[at].key != 0:
        if rule.yields[at].key == key:
            return rule.yields[at].tokens, rule.yields[at].drafts
        at = (at + 1) % PLACES
    tokens, drafts = _worked_out(gamma, rate, step, first, way, chunk)
    if 2 * rule.n_yields >= PLACES:
        for i in range(PLACES):
            rule.yields[i].key = 0
        rule.n_yields = 0
        at = _place_of(key)
    row = rule.yields[at]
    row.key, row.tokens, row.drafts = key, tokens, drafts
    rule.n_yields += 1
    return tokens, drafts


# ---------------------------------------------------------------------- step times


@jit
def _compute_at_s(times, tokens):
    tokens = min(max(tokens, 0.0), times.n - 2.0)
    whole = int(tokens)
    low, high = times.compute_s[whole], times.compute_s[whole + 1]
    return low + (tokens - whole) * (high - low)


@jit
def _iteration_s(node, busy, drafts):
    """Return the time of an iteration that verifies some drafts of every sequence."""
    times = node.times
    time_s = _compute_at_s(times, busy[0] * (1.0 + drafts)) + node.per_sequence_s * busy[0]
    if drafts == 0.0:
        return time_s + times.k_bw_s * busy[1]
    attention_s = times.k_multi_s * busy[1] + times.k_lat_s * busy[2]
    return time_s + attention_s + node.per_verifying_iteration_s


@jit
def _draft_step_s(node, rank, sequences, kv_tokens, otherwise_s):
    """Return the time of a draft step beside the target; another where that drafter has no profile."""
    if rank >= node.n_drafters or node.drafters[rank].n == 0:
        return otherwise_s
    times = node.drafters[rank]
    return _compute_at_s(times, float(sequences)) + times.k_bw_s * kv_tokens


# ---------------------------------------------------------------------- a busy node


@jit
def _busy(w, node, at_target, number, weight):
    """Return (sequences, KV tokens, longest KV tokens, share, plain step) of a target that never waits."""
    request = w.due_view.request
    newcomer = 1 if request.is_admission != 0.0 or w.target_views[0].index != number else 0
    sequences = max(1, min(int(at_target.resident) + newcomer, node.max_num_seqs))
    context = request.prompt_tokens + request.committed_tokens
    kv_tokens = max(context, at_target.kv_fraction * node.kv_capacity_tokens)
    longest = max(context, kv_tokens / sequences)
    others = sequences - 1
    share = (1.0 + weight * others) / (1.0 + others)
    plain_s = _iteration_s(node, (sequences, kv_tokens, longest), 0.0)
    return sequences, kv_tokens, longest, share, plain_s


@jit
def _weighed_s(busy, iteration_s):
    return busy[4] + busy[3] * (iteration_s - busy[4])


@jit
def _stream_step_s(k, w, node, busy, c):
    """Return the time from one draft of a stream to the next."""
    if int(c.site) == COLOCATED:
        step_s = _draft_step_s(node, int(c.drafter), busy[0], busy[1], c.draft_step_s)
        return (step_s if step_s != 0.0 else c.draft_step_s) + c.draft_wait_s
    wait_s = c.draft_wait_s
    if int(c.site) == OWN_DEVICE and w.due_view.request.window_tokens > 0.0:
        for i in range(k.n_places):
            current = w.candidates[i]
            if current.is_current != 0.0:
                if current.site == c.site and current.drafter == c.drafter:
                    wait_s = max(0.0, wait_s - current.draft_step_s)
                break
    return c.draft_step_s + wait_s


@jit
def _stream_token_s(k, rule, node, busy, c, step_s, acceptance):
    """Write the time per token of a stream for each window; return the least."""
    costs_s = rule.costs_s
    costs_s[0] = _NEVER_S
    if lengths(k) == 1:
        return _NEVER_S
    iteration_s = busy[4]
    for _ in range(AGREED_ROUNDS):
        drafts = _yield(rule, k.gammas[1], acceptance, step_s, step_s, c.rtt_s, iteration_s)[1]
        iteration_s = _iteration_s(node, busy, drafts)
    least_s = _NEVER_S
    for i in range(1, lengths(k)):
        tokens, drafts = _yield(rule, k.gammas[i], acceptance, step_s, step_s, c.rtt_s, iteration_s)
        iteration_s = _iteration_s(node, busy, drafts)
        costs_s[i] = _weighed_s(busy, iteration_s) / tokens
        least_s = min(least_s, costs_s[i])
    return least_s


@jit
def _shared_token_s(k, rule, node, busy, c):
    """Write the time per token of drafting on the target's GPUs, all alike; return the least."""
    step_s = _draft_step_s(node, int(c.drafter), busy[0], busy[1], c.draft_step_s)
    acceptance = min(c.pooled_acceptance, 0.99)
    costs_s, least_s = rule.costs_s, _NEVER_S
    costs_s[0] = _NEVER_S
    for i in range(1, lengths(k)):
        gamma = k.gammas[i]
        iteration_s = _iteration_s(node, busy, float(gamma)) + gamma * step_s
        costs_s[i] = _weighed_s(busy, iteration_s) / _expected_tokens(acceptance, gamma)
        least_s = min(least_s, costs_s[i])
    return least_s


@jit
def _alone_token_s(k, rule, node, busy, c, weight):
    """Write the time per token of drafting on the target's GPUs while all others stream."""
    step_s = _draft_step_s(node, int(c.drafter), 1, busy[2], c.draft_step_s)
    acceptance = min(c.pooled_acceptance, 0.99)
    rule.costs_s[0] = _NEVER_S
    for i in range(1, lengths(k)):
        gamma = k.gammas[i]
        added_s = gamma * step_s * (1.0 + weight * (busy[0] - 1))
        rule.costs_s[i] = (busy[4] + added_s) / _expected_tokens(acceptance, gamma)


@jit
def _streams_suit_all(k, w, rule, node, busy, at_target, number, settled):
    """Return whether streams suit all at a target better than drafting on its GPUs does."""
    streams_s, shared_s = _NEVER_S, _NEVER_S
    for i in range(k.n_places):
        c = w.candidates[i]
        if c.valid == 0.0 or not _in_question(k, w, c, number, settled):
            continue
        if c.streams != 0.0:
            least_s = _stream_token_s(k, rule, node, busy, c, c.draft_step_s, c.pooled_acceptance)
            streams_s = min(streams_s, _price(rule, c) * least_s)
        elif c.shares_target != 0.0 and int(c.kind) != LOOKUP:
            shared_s = min(shared_s, _price(rule, c) * _shared_token_s(k, rule, node, busy, c))
    if at_target.remote > at_target.colocated:
        shared_s *= rule.parameters.change_margin
    elif at_target.colocated > at_target.remote:
        streams_s *= rule.parameters.change_margin
    return streams_s <= shared_s


# ---------------------------------------------------------------------- rounds


@jit
def _expected_tokens(acceptance, gamma):
    return (1.0 - math.pow(acceptance, float(gamma + 1))) / (1.0 - acceptance)


@jit
def _round_tokens(acceptance, gamma):
    """The same as a rule of rounds works it out, which rounds otherwise."""
    scale = 1.0 / (1.0 - acceptance)
    return (1.0 - math.pow(acceptance, float(gamma + 1))) * scale


@jit
def _clipped(rate):
    return min(_HIGHEST, max(_LOWEST, rate))


@jit
def _estimated(request, prior, prior_trials):
    """Return a request's acceptance; see `rounds.estimate_acceptance`."""
    successes, trials = prior * prior_trials, prior_trials
    for i in range(RECENT_ROUNDS):
        drafted, accepted = request.recent_gammas[i], request.recent_accepted[i]
        successes += accepted
        trials += accepted + (1.0 if accepted < drafted else 0.0)
    return _clipped(successes / trials if trials > 0.0 else prior)


@jit
def _of_drafter(c, parameters, trials):
    """Return the acceptance of a candidate's drafter; see `rounds.drafter_acceptance`."""
    is_lookup = int(c.kind) == LOOKUP
    prior = parameters.prior_lookup if is_lookup else parameters.prior_acceptance
    tokens = c.tokens_per_round
    accepted = max(0.0, tokens - 1.0)
    drafted = math.inf
    if not is_lookup and accepted != 0.0:
        drafted = accepted / max(c.acceptance_rate, 1e-3)
    low, high = 0.0, 1.0
    for _ in range(20):
        rate = 0.5 * (low + high)
        if (1.0 - math.pow(rate, drafted + 1.0)) / (1.0 - rate) < tokens:
            low = rate
        else:
            high = rate
    seen = c.model_rounds * tokens
    rate = (prior * trials + low * seen) / (trials + seen) if trials + seen > 0.0 else prior
    return _clipped(rate)


@jit
def _others_at(target):
    ready = max(0.0, target.queued - target.waiting)
    if target.age_s == 0.0 and target.running == 0.0:
        return int(max(ready, target.resident - 1.0, 0.0))
    return int(target.running + ready)


@jit
def _target_wait_s(target, later, busy_phase):
    if not later:
        return target.remaining_s
    return busy_phase * target.iteration_s if target.running + target.queued > target.waiting else 0.0


@jit
def _token_price_s(times, others, tokens_each, weight):
    tokens = min((others + 1) * tokens_each, times.n - 2)
    return (times.compute_s[tokens + 1] - times.compute_s[tokens]) * (1.0 + weight * others)


@jit
def _plain_token_s(rule, node, c, target, weight):
    later = c.handover_s > 0.0 or target.age_s > 0.0
    wait_s = _target_wait_s(target, later, rule.parameters.busy_phase)
    token_s = _token_price_s(node.times, _others_at(target), 1, weight)
    handover_s = c.handover_s / rule.parameters.horizon_tokens
    return target.iteration_s + token_s + wait_s / rule.plain_chunk_tokens + handover_s


@jit
def _batch_s(node, sequences, gamma, step_s):
    tokens = sequences * (gamma + 1)
    duration_s = node.times.compute_s[min(node.times.n - 1, tokens)] + gamma * step_s
    duration_s += node.per_sequence_s * sequences
    return duration_s + (node.per_verifying_iteration_s if gamma > 0 else 0.0)


@jit
def _shared_length(k, node, sequences, step_s, acceptance, iteration_s):
    """Return the speculation length that suits a batch; see `rounds.shared_length`."""
    best, best_cost_s, best_tokens = 0, _NEVER_S, 1.0
    for i in range(1, lengths(k)):
        gamma = k.gammas[i]
        expected = _round_tokens(acceptance, gamma)
        cost_s = _batch_s(node, sequences, gamma, step_s) / expected
        if cost_s < best_cost_s:
            best, best_cost_s, best_tokens = gamma, cost_s, expected
    excess_s = max(0.0, iteration_s - _batch_s(node, sequences, best, step_s))
    if _batch_s(node, sequences, 0, step_s) + excess_s <= best_cost_s + excess_s / best_tokens:
        return 0
    return best


@jit
def _round_line_s(k, rule, node, c, target, weight, shared_acceptance):
    """Return (base, slope, longest) of a round; see `rounds.round_line_s`."""
    others = _others_at(target)
    later = int(c.site) != COLOCATED or c.handover_s > 0.0 or target.age_s > 0.0
    wait_s = _target_wait_s(target, later, rule.parameters.busy_phase)
    base_s = c.draft_wait_s + c.rtt_s + wait_s + target.iteration_s
    step_s, longest = c.draft_step_s, k.gammas[lengths(k) - 1]
    if int(c.kind) == LOOKUP:
        base_s, step_s = base_s + step_s, 0.0
    if c.shares_target != 0.0:
        longest = _shared_length(k, node, others + 1, step_s, shared_acceptance, target.iteration_s)
        base_s += max(0.0, _batch_s(node, others + 1, longest, step_s) - target.iteration_s)
        step_s = 0.0
    token_s = _token_price_s(node.times, others, min(longest, 4) + 1, weight)
    return base_s + token_s, step_s + token_s, longest


@jit
def _one_off_token_s(request, c, parameters):
    if request.is_admission != 0.0:
        return 0.0
    lag_s = max(0.0, c.catch_up_s - c.draft_step_s)
    return (c.handover_s + lag_s) / parameters.horizon_tokens


# ---------------------------------------------------------------------- the decision


@jit
def _price(rule, c):
    site = int(c.site)
    if site == COLOCATED:
        return rule.parameters.price_colocated
    return rule.parameters.price_own if site == OWN_DEVICE else rule.parameters.price_edge


@jit
def _chosen_target(k, w, pack):
    """Return the place among those on offer of the request's target, or of the one it is sent to."""
    if w.due_view.request.is_admission == 0.0:
        return 0
    best, filled = 0, -1
    for i in range(k.n_offered):
        target = w.target_views[i]
        if i > 0 and goes_before(target, w.target_views[best]):
            best = i
        has_room = target.up != 0.0 and target.resident + target.waiting < pack
        if has_room and (filled < 0 or target.index < w.target_views[filled].index):
            filled = i
    return filled if filled >= 0 else best


@jit
def _stays_open(w, c):
    return c.is_current != 0.0 and c.streams != 0.0 and w.due_view.request.window_tokens > 0.0


@jit
def _any_settled(k, w):
    for i in range(k.n_places):
        c = w.candidates[i]
        if int(c.site) == EDGE_SERVER and c.valid != 0.0 and _stays_open(w, c):
            return True
    return False


@jit
def _in_question(k, w, c, number, settled):
    """Return whether a candidate is at the target, and no edge server beside the one of the open stream."""
    if int(w.target_views[int(c.offered)].index) != number:
        return False
    if not settled or int(c.site) != EDGE_SERVER:
        return True
    for i in range(k.n_places):
        other = w.candidates[i]
        is_settled = int(other.site) == EDGE_SERVER and other.valid != 0.0 and _stays_open(w, other)
        if is_settled and other.edge_server == c.edge_server and other.drafter == c.drafter:
            return True
    return False


@jit
def _explored(k, w, rule, number, settled):
    """Return the number of the draft model that a request tries, whether it is the best or not; -1: none."""
    every, of = int(rule.parameters.explore), int(w.due_view.request_id)
    if not rule.streams or k.n_models < 2 or every == 0:
        return -1
    if of % every != 0 or w.due_view.request.committed_tokens >= EXPLORED_TOKENS:
        return -1
    model = of // every % k.n_models
    for i in range(k.n_places):
        c = w.candidates[i]
        apart = c.valid != 0.0 and c.shares_target == 0.0
        if apart and int(c.model) == model and _in_question(k, w, c, number, settled):
            return model
    return -1


@jit
def _relieved(request, parameters):
    ahead = 0.0 < request.tpot_s <= parameters.relief * request.slo_tpot_s
    return ahead and request.committed_tokens >= FEW_TOKENS


@jit
def _hopeless(request, parameters):
    if parameters.hopeless == 0.0:
        return False
    first_s = request.ttft_s if request.committed_tokens > 0.0 else request.age_s
    late = request.tpot_s > parameters.hopeless * request.slo_tpot_s
    return first_s > request.slo_ttft_s or (late and request.committed_tokens >= FEW_TOKENS)


@jit
def _can_wait(w, rule, busy):
    """Return whether a request meets its objective without drafts, and so far has met it."""
    request, share = w.due_view.request, rule.parameters.slo_margin
    if _relieved(request, rule.parameters) or _hopeless(request, rule.parameters):
        return True
    if share == 0.0:
        return False
    drafts = request.window_tokens > 0.0 or (request.rounds > 0.0 and request.recent_gammas[0] > 0.0)
    token_s = busy[4] if rule.streams else w.target_views[0].iteration_s
    bound_s = share * request.slo_tpot_s
    return not drafts and token_s <= bound_s and request.tpot_s <= bound_s


@jit
def _write_costs(k, w, rule, node, busy, c, all_stream, weight, acceptance):
    """Write the time per token of drafting at a candidate, for each speculation length."""
    parameters, request = rule.parameters, w.due_view.request
    target, costs_s = w.target_views[int(c.offered)], rule.costs_s
    if rule.streams and c.streams != 0.0:
        step_s = _stream_step_s(k, w, node, busy, c)
        _stream_token_s(k, rule, node, busy, c, step_s, c.pooled_acceptance)
    elif rule.streams and c.shares_target != 0.0 and int(c.kind) != LOOKUP:
        if all_stream:
            _alone_token_s(k, rule, node, busy, c, weight)
        else:
            _shared_token_s(k, rule, node, busy, c)
    else:
        if rule.has_menu:
            shared = _of_drafter(c, parameters, parameters.shared_trials)
        else:
            shared = _estimated(request, parameters.prior_acceptance, parameters.shared_trials)
        base_s, slope_s, longest = _round_line_s(k, rule, node, c, target, weight, shared)
        for j in range(lengths(k)):
            gamma = k.gammas[j]
            costs_s[j] = _NEVER_S
            if 0 < gamma <= longest:
                costs_s[j] = (base_s + slope_s * gamma) / _round_tokens(acceptance, gamma)


@jit
def decide(k, w, rule):
    """Return speculation length and placement of the due decision."""
    parameters, request = rule.parameters, w.due_view.request
    offered = _chosen_target(k, w, parameters.pack)
    at_target = w.target_views[offered]
    number = int(at_target.index)
    node = rule.nodes[number]
    share = request.committed_tokens / (request.committed_tokens + HALF_AGED_TOKENS)
    weight = parameters.load_weight * math.exp(parameters.age_weight * (share - 0.5))
    busy = (1, 0.0, 0.0, 0.0, 0.0)
    settled, all_stream = _any_settled(k, w), False
    if rule.streams:
        busy = _busy(w, node, at_target, number, weight)
        all_stream = _streams_suit_all(k, w, rule, node, busy, at_target, number, settled)
    best_cost_s, best_gamma, best_placement = _NEVER_S, 0, plain_placement(k, w, number)
    if _can_wait(w, rule, busy):
        return 0, best_placement
    acceptance = _estimated(request, parameters.prior_acceptance, parameters.prior_trials)
    tried = _explored(k, w, rule, number, settled)
    for i in range(k.n_places):
        c = w.candidates[i]
        if not _in_question(k, w, c, number, settled):
            continue
        if tried >= 0 and (int(c.model) != tried or c.shares_target != 0.0):
            continue
        at_node = int(c.site) == COLOCATED and c.drafter == 0.0
        if tried < 0 and at_node and request.is_admission == 0.0:
            if rule.streams:
                cost_s = busy[4] + c.handover_s / parameters.horizon_tokens
            else:
                cost_s = _plain_token_s(rule, node, c, at_target, weight)
            if cost_s < best_cost_s:
                best_cost_s, best_gamma, best_placement = cost_s, 0, i
        if c.valid == 0.0:
            continue
        if rule.has_menu:
            acceptance = _of_drafter(c, parameters, parameters.prior_trials)
        _write_costs(k, w, rule, node, busy, c, all_stream, weight, acceptance)
        one_off_s, price = _one_off_token_s(request, c, parameters), _price(rule, c)
        for j in range(lengths(k)):
            cost_s = one_off_s + price * rule.costs_s[j]
            if cost_s < best_cost_s:
                best_cost_s, best_gamma, best_placement = cost_s, k.gammas[j], i
    best = w.candidates[best_placement]
    if rule.streams and best_gamma > 0 and best.streams != 0.0:
        own = _estimated(request, best.pooled_acceptance, parameters.prior_trials)
        step_s = _stream_step_s(k, w, node, busy, best)
        least_s = _stream_token_s(k, rule, node, busy, best, step_s, own)
        for j in range(lengths(k)):
            if rule.costs_s[j] == least_s:
                return k.gammas[j], best_placement
    return best_gamma, best_placement


# ---------------------------------------------------------------------- entry points


@entry()
def decide_due(constants, world, rule, decision):
    """Write speculation length and placement of a world's due decision.

    Args:
        constants: The scenario's constants.
        world: The world.
        rule: The rule.
        decision: int64, shape (2,).
    """
    decision[0], decision[1] = decide(
        as_scenario(pointer(constants)), as_world(pointer(world)), as_rule(pointer(rule))
    )


@entry()
def play(run, constants, world, rule):
    """Answer a world's due decision and all after it; return its status at the end.

    Args:
        run: Address of the engine's loop.
        constants: The scenario's constants.
        world: The world.
        rule: The rule.
    """
    k, w, r = as_scenario(pointer(constants)), as_world(pointer(world)), as_rule(pointer(rule))
    while True:
        gamma, placement = decide(k, w, r)
        answer(k, w, gamma, r.batch_size, placement)
        status = call_run(run, (pointer(constants), pointer(world)))
        if status != DUE:
            return status
