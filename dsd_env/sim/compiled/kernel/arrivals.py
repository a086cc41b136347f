"""Who asks when, and for what."""
# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

from __future__ import annotations

import math

from dsd_env.laws import arrivals, variates
from dsd_env.laws.constants import ACCEPTANCE_PRIOR, REQUESTS_PER_DEVICE, TOKENS_PER_ROUND_PRIOR
from dsd_env.rng import Stream
from dsd_env.sim.compiled.codes import CLIENT_RENEWALS, RENEWAL, REPLAY
from dsd_env.sim.compiled.kernel.accounts import accrue, is_measured, note_window
from dsd_env.sim.compiled.kernel.draws import key, normal, uniform, uniform_from_key
from dsd_env.sim.compiled.kernel.events import AT_ARRIVAL, LOG_ARRIVAL, log, push
from dsd_env.sim.compiled.kernel.jit import ZERO, compile_laws, jit, number
from dsd_env.sim.compiled.kernel.links import OWN_DEVICE
from dsd_env.sim.compiled.kernel.requests import arrivals_are_over, ask
from dsd_env.sim.compiled.kernel.rows import clear
from dsd_env.sim.compiled.status import SLOTS_FULL

compile_laws(variates, arrivals)

THINK, LENGTH, REQUEST_CLASS = number(Stream.THINK), number(Stream.LENGTH), number(Stream.REQUEST_CLASS)
ARRIVAL = number(Stream.ARRIVAL)

NOT_REPLAYED = number(-1)


# ---------------------------------------------------------------------- when


@jit
def think(k, w, device):
    """A client begins to think: schedule its next question."""
    ordinal = w.devices[device].ordinal
    think_s = variates.draw(k.think_s, w.seed, THINK, device, 3 * ordinal)
    if ordinal == 0:
        think_s *= uniform(w.seed, THINK, device, 2)
    asks_s = arrivals.load_advance(k.load, w.load_offset_s, w.now_s, think_s)
    push(k, w, asks_s, AT_ARRIVAL, device, device)


@jit
def begin_arrivals(k, w):
    """What an open arrival process draws before the first arrival."""
    if k.has_shares:
        total = 0.0
        for device in range(k.n_devices):
            weight = arrivals.client_weight(k.renewal, w.seed, device)
            w.shares[device] = weight
            total += weight
        for device in range(k.n_devices):
            w.shares[device] = w.shares[device] / total
    if k.arrivals == CLIENT_RENEWALS:
        for device in range(k.n_devices):
            rate_per_s = k.rate_per_s * w.shares[device]
            arrivals.begin_renewal(w.renewals[device], k.renewal, w.seed, rate_per_s, device + 1)
    elif k.arrivals == RENEWAL:
        arrivals.begin_renewal(w.renewals[0], k.renewal, w.seed, k.rate_per_s, 0)
    elif k.arrivals == REPLAY and k.replay_random:
        offset_s = k.replay_period_s * uniform(w.seed, ARRIVAL, 0, 0)
        low, high = ZERO, k.n_replayed
        while low < high:
            middle = (low + high) // 2
            if k.replayed[middle].arrival_s < offset_s:
                low = middle + 1
            else:
                high = middle
        w.trace_offset_s, w.trace_first = offset_s, low
    if k.arrivals == CLIENT_RENEWALS:
        for device in range(k.n_devices):
            _next_client_arrival(k, w, device)
    else:
        _next_open_arrival(k, w)


@jit
def _next_client_arrival(k, w, device):
    process = w.renewals[device]
    gap_s = arrivals.next_gap_s(process, k.renewal)
    process.arrival_s = arrivals.load_advance(k.load, w.load_offset_s, process.arrival_s, gap_s)
    push(k, w, process.arrival_s, AT_ARRIVAL, device, device)


@jit
def _next_open_arrival(k, w):
    ordinal = w.ordinal
    if k.arrivals == REPLAY:
        place = w.trace_first + ordinal
        lap = place // k.n_replayed
        row = place - lap * k.n_replayed
        time_s = k.replayed[row].arrival_s + lap * k.replay_period_s - w.trace_offset_s
        w.open_arrival_s = max(w.open_arrival_s, time_s)
    else:
        if k.arrivals == RENEWAL:
            gap_s = arrivals.next_gap_s(w.renewals[0], k.renewal)
        else:
            gap_s = arrivals.poisson_gap_s(w.seed, ordinal, k.rate_per_s)
        w.open_arrival_s = arrivals.load_advance(k.load, w.load_offset_s, w.open_arrival_s, gap_s)
    push(k, w, w.open_arrival_s, AT_ARRIVAL, ordinal, ordinal)


# ---------------------------------------------------------------------- who and what


@jit
def _open_device(k, w, ordinal, row):
    """Return the device of an open arrival; `row` is that of the request in a replayed trace."""
    if k.replays_devices and k.replayed[row].device >= 0:
        return k.replayed[row].device
    return arrivals.open_device(w.seed, ordinal, k.n_devices, k.has_shares, w.shares)


@jit
def arrival(k, w, argument):
    """A client asks."""
    if k.closed:
        if not arrivals_are_over(k, w, 0):
            _arrive(k, w, argument, NOT_REPLAYED)
        return
    if k.arrivals == CLIENT_RENEWALS:
        if not arrivals_are_over(k, w, 0):
            if not arrivals_are_over(k, w, 1):
                _next_client_arrival(k, w, argument)
            _arrive(k, w, argument, NOT_REPLAYED)
        return
    row = NOT_REPLAYED
    if k.arrivals == REPLAY:
        row = (w.trace_first + argument) % k.n_replayed
    device = _open_device(k, w, argument, row)
    w.ordinal = argument + 1
    if not arrivals_are_over(k, w, 1):
        _next_open_arrival(k, w)
    _arrive(k, w, device, row)


@jit
def _arrive(k, w, number_of_device, row):
    """A request begins; `row` is that of the request in a replayed trace, if one is replayed."""
    if w.free_n == 0:
        w.error = SLOTS_FULL
        return
    w.free_n -= 1
    slot = w.free[w.free_n]
    request, device = w.requests[slot], w.devices[number_of_device]
    _clear(k, w, request, slot)
    ordinal = device.ordinal
    device.ordinal = ordinal + 1
    uid = number_of_device * REQUESTS_PER_DEVICE + ordinal
    u = uniform(w.seed, REQUEST_CLASS, uid, 0)
    kind = 0
    while kind < k.n_kinds - 1 and u > k.kinds[kind].bound:
        kind += 1
    if row >= 0 and k.replays_kinds and k.replayed[row].kind >= 0:
        kind = k.replayed[row].kind
    spec = k.kinds[kind]
    if row >= 0:
        request.prompt_tokens, request.output_tokens = (
            k.replayed[row].prompt_tokens,
            k.replayed[row].output_tokens,
        )
        request.recorded = k.replayed[row].recorded
    else:
        _draw_lengths(k, w, request, spec, uid)
    request.number, request.uid, request.device, request.kind = w.arrived, uid, number_of_device, kind
    request.site, request.at = OWN_DEVICE, number_of_device
    request.arrival_s, request.slo_ttft_s, request.slo_tpot_s = w.now_s, spec.slo_ttft_s, spec.slo_tpot_s
    accrue(k, w, w.now_s)
    if k.by_number:
        if request.number == w.first_measured:
            note_window(k, w, w.now_s)
    elif is_measured(w, request.number):
        w.cohort_left += 1
    w.arrived += 1
    w.in_system += 1
    log(k, w, LOG_ARRIVAL, number_of_device, request.number, request.prompt_tokens)
    ask(k, w, request)


@jit
def _clear(k, w, request, slot):
    """Make a slot that of a request of which nothing is known yet."""
    clear(request)
    request.slot = slot
    request.target, request.drafted_at, request.warming, request.head_drafter = -1, -1, -1, -1
    request.drafted_branches = False
    request.recorded = -1
    request.resend_timer_s = math.inf
    request.acceptance_rate, request.tokens_per_round = ACCEPTANCE_PRIOR, TOKENS_PER_ROUND_PRIOR
    for i in range(k.n_valid):
        w.valid_tokens[k.n_valid * slot + i] = 0
    for i in range(k.n_models):
        w.chains[k.n_models * slot + i].picks = 0
        learned = w.learned[k.n_models * slot + i]
        learned.acceptance_rate, learned.tokens_per_round = ACCEPTANCE_PRIOR, TOKENS_PER_ROUND_PRIOR
        learned.model_rounds = 0


@jit
def _draw_lengths(k, w, request, spec, uid):
    if spec.length_correlation == 0.0:
        prompt = variates.draw(spec.prompt_tokens, w.seed, LENGTH, uid, 0)
        output = variates.draw(spec.output_tokens, w.seed, LENGTH, uid, 3)
    else:
        length_key = key(w.seed, LENGTH, uid)
        z = normal(uniform_from_key(length_key, 0), uniform_from_key(length_key, 1))
        own = normal(uniform_from_key(length_key, 3), uniform_from_key(length_key, 4))
        prompt = variates.value_at(spec.prompt_tokens, z)
        output = variates.value_at(spec.output_tokens, spec.length_correlation * z + spec.length_rest * own)
    request.prompt_tokens = variates.whole_tokens(prompt, k.max_prompt_tokens)
    request.output_tokens = variates.whole_tokens(output, k.max_output_tokens)
