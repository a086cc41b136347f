"""Decisions of a controller of real systems: what it is told is put where a world's state is, and seen alike.

The world of a controller has one request and nothing that happens. Its servers' reports are written by
:mod:`dsd_env.serving.mirror`; the request of a decision and its client are put in here.
"""
# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

from __future__ import annotations

import math

import numpy as np
from numba import types

from dsd_env.control.view import RECENT_ROUNDS
from dsd_env.laws import resolve
from dsd_env.sim.compiled.codes import NO_DRAFTER
from dsd_env.sim.compiled.kernel.jit import jit, native
from dsd_env.sim.compiled.kernel.links import DOWN, EDGE_DOWN, EDGE_SERVER, EDGE_UP, OWN_DEVICE, UP
from dsd_env.sim.compiled.kernel.observe import drafter_at, encode, flat_mask, observe, write_mask
from dsd_env.sim.compiled.kernel.planned import BATCH_INDEX, CHOICE_WORDS, GAMMA_INDEX, planned
from dsd_env.sim.compiled.kernel.rows import cast, tail
from dsd_env.sim.compiled.records import ASKED, CLIENT, SERVED_CALL

as_call, as_asked, as_client = cast(SERVED_CALL), cast(ASKED), cast(CLIENT)
ASKED_WORDS, CLIENT_WORDS = ASKED.itemsize // 8, CLIENT.itemsize // 8
MOST_TOKENS = 1 << 30
"""Longest answer that is seen here; the records hold no longer ones."""
COUNTER_BITS = 19
MOST_COUNTED = 1 << COUNTER_BITS
"""Decisions of a request up to this one have keys; those after it are too rare to be worth it."""
FINE, STALE, NOT_SEEN = range(3)
"""What looking at a decision finds: nothing unusual, an old report of its target, something to see otherwise.
"""


@jit
def _put_client(c, k, w, number):
    """Put what is known of a client where its device's state is; return the number of that."""
    client = as_client(tail(c.clients, number * c.client_words))
    mean_job_s = tail(c.clients, number * c.client_words + CLIENT_WORDS)
    n = int(client.device)
    device, spec = w.devices[n], k.devices[n]
    device.rtt_s, device.rtt_deviation_s = client.rtt_s, client.rtt_deviation_s
    device.rtt_sample_s, device.loss = client.rtt_sample_s, client.loss
    spec.uplink_bits_per_s, spec.downlink_bits_per_s = client.uplink_bits_per_s, client.downlink_bits_per_s
    up, down = w.channels[4 * n + UP], w.channels[4 * n + DOWN]
    up.one_way_s, down.one_way_s = client.up_s, client.down_s
    up.free_s = down.free_s = -math.inf if client.seems_up != 0.0 else math.inf
    w.channels[4 * n + EDGE_UP].one_way_s = client.edge_up_s
    w.channels[4 * n + EDGE_DOWN].one_way_s = client.edge_down_s
    for rank in range(k.n_ranks):
        drafter = w.drafters[rank * k.n_sites + n]
        drafter.speed, drafter.mean_job_s = client.speed, mean_job_s[rank]
    w.drafters[n].active = int(client.jobs)
    return n


@jit
def _put_request(c, k, w, asked, known, device):
    """Put what is known of a request where the world has its one request."""
    request, bounds = w.requests[0], k.kinds[int(asked.kind)]
    request.device, request.kind = device, int(asked.kind)
    request.prompt_tokens, request.committed = int(asked.prompt_tokens), int(asked.known_tokens)
    request.target, request.site, request.at = int(asked.target), int(asked.site), int(asked.at)
    request.arrival_s, request.first_commit_s = asked.arrival_s, asked.first_commit_s
    request.last_commit_s = asked.known_commit_s
    request.slo_ttft_s, request.slo_tpot_s = bounds.slo_ttft_s, bounds.slo_tpot_s
    request.decisions, request.rounds = int(asked.decisions), int(asked.rounds)
    request.acceptance_rate, request.tokens_per_round = asked.acceptance_rate, asked.tokens_per_round
    request.last_confidence, request.idle_share = asked.last_confidence, asked.idle_share
    for i in range(RECENT_ROUNDS):
        request.recent_gammas[i] = int(asked.recent_gammas[i])
        request.recent_accepted[i] = int(asked.recent_accepted[i])
    request.drafted_at, request.drafted_branches = int(asked.drafted_at), asked.drafted_branches != 0.0
    request.own_jobs, request.has_report = int(asked.own_jobs), asked.has_report != 0.0
    request.head_tokens = int(asked.head_tokens) + 1
    request.head_drafter = 0 if asked.head_tokens > 0.0 else -1
    request.streams = asked.streams != 0.0
    stream = w.streams[0]
    stream.known, stream.window = int(asked.known_tokens), int(asked.window)
    stream.drafted = stream.known + int(asked.lead)
    stream.generation, stream.started_s = int(asked.generation), asked.started_s
    stream.known_commit_s = asked.known_commit_s
    context = request.prompt_tokens + request.committed
    for i in range(k.n_valid):
        # What is told may not fit what is known.
        w.valid_tokens[i] = min(int(known[i]), context)
    for model in range(k.n_models):
        learned, at = w.learned[model], k.n_valid + 3 * model
        learned.acceptance_rate, learned.tokens_per_round = known[at], known[at + 1]
        learned.model_rounds = int(known[at + 2])
    return request


@jit
def _all_finite(numbers, n):
    """Return whether all of some numbers are finite."""
    # Counted, since a sum waits at each number for the one before.
    odd = 0
    for i in range(n):
        odd += 0 if numbers[i] - numbers[i] == 0.0 else 1
    return odd == 0


@jit
def _look(c, k, w, row):
    """Write observation and mask of one decision, and what is on offer."""
    first = c.order[row] * c.asked_words
    asked = as_asked(tail(c.asked, first))
    if asked.seen == 0.0 or asked.known_tokens > MOST_TOKENS:
        return NOT_SEEN
    device = _put_client(c, k, w, int(asked.client))
    request = _put_request(c, k, w, asked, tail(c.asked, first + ASKED_WORDS), device)
    w.now_s = c.now_s
    observe(k, w, request)
    if request.site == OWN_DEVICE:
        asked.own_jobs = request.own_jobs
        c.at_devices += 1
    if c.planned != 0:
        return _follow_plan(c, k, w, row, request)
    stale = False
    for i in range(k.n_offered):
        if w.target_views[i].age_s > c.stale_s:
            w.target_views[i].age_s = c.stale_s
            stale = stale or i == 0
    observation = tail(c.observations, row * k.n_features)
    encode(k, w, observation)
    if not _all_finite(observation, k.n_features):
        return NOT_SEEN
    mask = tail(c.masks, row * c.n_mask)
    if c.flat != 0:
        flat_mask(k, w, 0, mask)
    else:
        write_mask(k, w, mask)
    _keep_offers(c, k, w, row)
    return STALE if stale else FINE


@jit
def _follow_plan(c, k, w, row, request):
    """Write the indices that a decision has by the plan of its request's group, and what is on offer."""
    group = tail(c.groups, request.device * k.n_classes)[k.kinds[request.kind].slo_class]
    if group < 0:
        return NOT_SEEN
    choice = tail(c.choices, group * CHOICE_WORDS)
    gamma, placement = planned(k, w, choice)
    chosen = tail(c.chosen, row * c.n_heads)
    # The first length is 0.
    chosen[0] = choice[GAMMA_INDEX] if gamma > 0 else 0
    chosen[1], chosen[2] = choice[BATCH_INDEX], placement
    _keep_offers(c, k, w, row)
    return FINE


@jit
def _keep_offers(c, k, w, row):
    """Keep of the view what says how any decision would be carried out; the next one's is written over it."""
    for i in range(k.n_offered):
        offers = c.offers[row * k.n_offered + i]
        offers.target, offers.up = int(w.target_views[i].index), w.target_views[i].up != 0.0
    if k.edges_ordered:
        edges = tail(c.edges, row * k.n_edges_offered)
        for i in range(k.n_edges_offered):
            edges[i] = w.edges_offered[i].edge_server
    valid = tail(c.valid, row * k.n_places)
    for i in range(k.n_places):
        valid[i] = w.candidates[i].valid != 0.0


# ---------------------------------------------------------------------- choosing


@jit
def _choose(c, row):
    """Write the chosen index of each dimension; return whether that is beyond doubt.

    See :func:`dsd_env.policy.network.choose`. Where rounding may decide, this leaves it to that.
    """
    logits, mask = tail(c.logits, row * c.n_mask), tail(c.masks, row * c.n_mask)
    start = 0
    for head in range(c.n_heads):
        stop = start + c.heads[head]
        best, top, earlier, other, masked = -1, -math.inf, -math.inf, -math.inf, -math.inf
        for index in range(start, stop):
            value = np.float64(logits[index])
            if mask[index]:
                if value > top:
                    earlier = other = top
                    top, best = value, index
                elif value > other:
                    other = value
            elif value > masked:
                masked = value
        if best < 0:
            return False
        reach = 4.0 + abs(top) + max(masked - top, 0.0)
        if c.normalisations > 0 and top - earlier <= 1e-6 * reach:
            return False
        if c.doubt > 0.0 and top - other <= c.doubt + 2e-6 * reach:
            return False
        c.chosen[row * c.n_heads + head] = best - start
        start = stop
    return True


@jit
def _taken(c, k, row, placement):
    """Return the candidate that is taken; see :func:`dsd_env.sim.compiled.kernel.observe.taken`."""
    places, first = k.n_places // k.n_offered, row * k.n_offered
    if not c.offers[first + placement // places].up:
        for i in range(k.n_offered):
            if c.offers[first + i].up:
                return i * places + placement % places
    return placement


@jit
def _carry(c, k, row):
    """Write how a decision is carried out, and count it."""
    chosen = tail(c.chosen, row * c.n_heads)
    if c.flat != 0:
        placement, batch = chosen[0] % k.n_places, chosen[0] // k.n_places % k.n_batches
        of_gammas = chosen[0] // (k.n_places * k.n_batches)
    else:
        of_gammas, batch, placement = chosen[0], chosen[1], chosen[2]
    asked = as_asked(tail(c.asked, c.order[row] * c.asked_words))
    taken = _taken(c, k, row, placement)
    places = k.n_places // k.n_offered
    place, target = k.places[taken % places], c.offers[row * k.n_offered + taken // places].target
    edge = place.edge_server
    if k.edges_ordered and place.site == EDGE_SERVER:
        edge = c.edges[row * k.n_edges_offered + edge]
    device = int(as_client(tail(c.clients, int(asked.client) * c.client_words)).device)
    drafter = drafter_at(k, place, device, edge, target)
    gamma, batch_size, reason = resolve.resolved(
        k.gammas[of_gammas],
        k.batch_sizes[batch],
        taken != placement,
        c.valid[row * k.n_places + taken],
        k.targets[target].max_num_seqs,
    )
    carried = c.carried[row]
    carried.gamma, carried.batch_size, carried.reason = gamma, batch_size, reason
    carried.placement, carried.target, carried.site = taken, target, place.site
    carried.edge_server, carried.drafter, carried.fanout = edge, drafter, place.fanout
    carried.model = -1 if k.drafters[drafter].mode == NO_DRAFTER else k.drafters[drafter].model
    past = of_gammas - (k.n_gammas - k.n_stops)
    carried.stop = past if past >= 0 and gamma > 0 else -1
    counter = int(asked.decisions)
    carried.counter = counter
    # What is carried out follows from the indices chosen, from what the candidate was, and from the reason.
    key = ((reason << 6 | (of_gammas if gamma > 0 else 0)) << 6 | batch) << 10 | taken
    key = (key << 10 | target) << 10 | (edge + 1)
    carried.key = key << COUNTER_BITS | counter if counter < MOST_COUNTED else -1
    asked.decisions += 1.0
    if asked.committed > 0.0:
        asked.rounds += 1.0


# ---------------------------------------------------------------------- entry points

_POINTER = types.CPointer(types.uint8)


@native(types.int64(_POINTER))
def _native_look(call):
    c = as_call(call)
    k, w, found = c.scenario, c.world, FINE
    c.at_devices = 0
    for row in range(c.n):
        found = max(found, _look(c, k, w, row))
    return found


@native(types.int64(_POINTER))
def _native_decide(call):
    c = as_call(call)
    if c.chooses != 0:
        doubtful = 0
        for row in range(c.n):
            if not _choose(c, row):
                c.chosen[row * c.n_heads] = -1
                doubtful += 1
        if doubtful > 0:
            return doubtful
    for row in range(c.n):
        _carry(c, c.scenario, row)
    return 0


LOOK, DECIDE = int(_native_look.address), int(_native_decide.address)
"""Addresses of functions of one call record (:data:`dsd_env.sim.compiled.records.SERVED_CALL`) at an address.

``LOOK`` writes observations and masks, or with a plan the choices, and what is on offer; it returns the worst
that it finds. ``DECIDE`` chooses, if the call says so, and says how many choices it leaves open (first index
-1); if none, how all are carried out.
"""
