"""Streams of drafts: what their drafters do, and the messages between drafters and targets.

The drafter of a stream drafts on while fewer than gamma tokens lie beyond the output that it knows of, and
sends each chunk. The messages under way in each direction are a ring of the stream, of which only the first
is scheduled: they arrive in order. See :mod:`dsd_env.sim.reference.streams` for the protocol.
"""
# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

from __future__ import annotations

from dsd_env.laws import drafting, streams
from dsd_env.sim.compiled.codes import JOBS, RING, ROUND_JOB
from dsd_env.sim.compiled.kernel.acceptance import guess_right, is_near
from dsd_env.sim.compiled.kernel.drafters import (
    LAST,
    can_stream,
    queue_job,
    set_valid_tokens,
    turn_of,
    valid_tokens,
    withdraw,
)
from dsd_env.sim.compiled.kernel.events import (
    AT_DELIVERY,
    IS_DRAFTS,
    IS_RESULT,
    LOG_BRANCH_ADOPTED,
    LOG_BRANCH_TAKEN,
    LOG_DRAFT_SENT,
    LOG_LATE,
    LOG_LATE_DRAFTS,
    LOG_STREAM_CLOSE,
    LOG_STREAM_OPEN,
    LOG_STREAM_ROLLBACK,
    log,
    push,
    tag,
)
from dsd_env.sim.compiled.kernel.jit import compile_laws, jit, number
from dsd_env.sim.compiled.kernel.learning import learn
from dsd_env.sim.compiled.kernel.links import (
    EDGE_SERVER,
    OWN_DEVICE,
    measure_round_trip,
    send_backhaul,
    send_down,
    send_up,
)
from dsd_env.sim.compiled.kernel.stopping import copy_stop, pauses, tokens_until_pause

compile_laws(streams)

NOWHERE, UNDER_WAY = number(streams.NOWHERE), number(streams.UNDER_WAY)
STEPS_KEPT = number(streams.STEPS_KEPT)
NO_ECHO = -1.0


@jit
def uses_stream(k, request):
    """Return whether the drafts of a request's decision are streamed."""
    return request.gamma > 0 and can_stream(k, request.drafter)


@jit
def stream_of(w, request):
    """Return the stream of a request; it is one only while `request.streams`."""
    return w.streams[request.slot]


@jit
def known_tokens(w, request):
    """Return the committed output that a request's controller knows of."""
    return w.streams[request.slot].known if request.streams else request.committed


@jit
def available(stream, committed):
    """Return how many drafts the target takes into the next iteration."""
    if stream.lost_at < NOWHERE:
        return 0
    return streams.drafts_to_take(stream.seen_window, committed, stream.arrived)


# ---------------------------------------------------------------------- opening, closing


@jit
def open_stream(k, w, request, echo_s, told_s, lag_tokens):
    """Open the stream of a request's decision at its target, and tell the drafter.

    `told_s` is when it hears of it; negative: a message with the tokens that it lacks tells it.
    """
    stream = stream_of(w, request)
    request.streams = True
    request.drafted_at, request.drafted_branches = request.drafter, request.branches
    stream.drafter, stream.site, stream.at = request.drafter, request.draft_site, request.to_target
    if request.draft_site == OWN_DEVICE:
        stream.at = request.device
    elif request.draft_site == EDGE_SERVER:
        stream.at = request.edge_server
    stream.target = request.to_target
    stream.window, stream.batch_size = request.gamma, request.batch_size
    copy_stop(k, stream, request)
    stream.known, stream.known_commit_s = -1, 0.0
    stream.generation, stream.start, stream.drafted, stream.started_s = 0, 0, 0, 0.0
    stream.suspended = w.drafters[k.drafters[request.drafter].host].down > 0
    stream.deciding = stream.closing = False
    stream.messages, stream.first_message, stream.results, stream.first_result = 0, 0, 0, 0
    stream.seen_window, stream.seen_batch = request.gamma, request.batch_size
    stream.seen_generation, stream.seen_start = 0, 0
    stream.arrived, stream.lost_at = 0, NOWHERE
    stream.verifying, stream.verifying_start = 0, 0
    stream.branches = request.branches
    stream.branch_start, stream.seen_branch_start, stream.adopted_at = NOWHERE, NOWHERE, NOWHERE
    stream.steps, stream.seen_steps = 0, 0
    stream.echo_sent_s, stream.echo_came_s = 0.0, NO_ECHO
    log(k, w, LOG_STREAM_OPEN, request.to_target, request.number, request.gamma)
    if told_s < 0.0:
        told_s = _send_result(k, w, request, stream, lag_tokens)
    _result_leaves(k, w, request, stream, told_s, echo_s, request.last_commit_s, 0, 0, 0, 0.0)


@jit
def stop_stream(k, w, request):
    """End a stream: what its drafter has made and nobody has verified is of no use."""
    stream = stream_of(w, request)
    request.streams = False
    request.epoch += 1
    w.totals.discarded += _withdraw_draft(k, w, request)
    if stream.lost_at == NOWHERE:
        w.totals.discarded += max(0, stream.arrived - request.committed)
    for n in range(stream.messages):
        w.totals.discarded += _message(w, request, stream, n).tokens


@jit
def count_late(k, w, request):
    """Count the messages of a stream that is given up: they will come too late."""
    for _ in range(stream_of(w, request).messages):
        w.totals.late_messages += 1
        log(k, w, LOG_LATE, -1, request.number, 0)


@jit
def close_stream(k, w, request):
    """Stop drafting, and send word to the target; the decision that closes the stream is the request's."""
    stream = stream_of(w, request)
    stream.closing = True
    log(k, w, LOG_STREAM_CLOSE, stream.drafter, request.number, stream.generation)
    drafted = _give_up_draft(k, w, request, stream)
    if stream.generation > 0:
        _note_processed(k, w, request, stream, drafted, stream.known)
    _send_drafts(k, w, request, stream, 0, 0, True)


# ---------------------------------------------------------------------- the drafter's side


@jit
def go_on(k, w, request, turn):
    """Draft the next tokens of a request's stream, if there is one and it has reason to.

    Its job is the LAST in the queue, or takes the `turn` of one that a result has made useless before it
    began.
    """
    stream = stream_of(w, request)
    if not request.streams or stream.suspended or stream.closing:
        return
    job, drafter = w.jobs[JOBS * request.slot + ROUND_JOB], stream.drafter
    if job.state != drafting.ENDED or stream.generation == 0 or request.warming == drafter:
        return
    if stream.messages >= UNDER_WAY or pauses(k, w, request, stream, stream.drafted - 1):
        return
    context = request.prompt_tokens + stream.drafted
    left = k.drafters[drafter].kv_capacity_tokens - context
    tokens = streams.tokens_to_draft(stream.window, k.stream_chunk_tokens, stream.known, stream.drafted, left)
    tokens = tokens_until_pause(k, w, request, stream, tokens)
    branches = _open_branches(k, stream)
    if tokens == 0 and branches == 0:
        return
    lag = 1 if tokens > 0 else 0
    opens = tokens > 0 and stream.drafted == stream.start
    if opens:
        lag = max(1, context - valid_tokens(k, w, request, drafter))
    job.head_context_tokens = 0
    queue_job(k, w, job, drafter, tokens, lag, context, branches, opens, turn)


@jit
def _opened_at(stream, position):
    """Return which step made the draft of a position."""
    return stream.opened[position % STEPS_KEPT]


@jit
def _open_branches(k, stream):
    """Return how many tokens the next step makes for branches; they grow while the window is full, too."""
    position = stream.drafted
    if position <= stream.branch_start:
        return 0
    while position > stream.branch_start and stream.steps - _opened_at(stream, position - 1) < k.depth:
        position -= 1
    return k.fanout * (stream.drafted - position)


@jit
def chunk_drafted(k, w, request, tokens, branches):
    """Send the tokens that the drafter has made, those of branches and those that open them, too."""
    stream = stream_of(w, request)
    opening = k.fanout if tokens > 0 and stream.branch_start < NOWHERE else 0
    w.totals.branch_drafted += branches
    w.totals.branch_sent += branches + opening
    stream.steps += 1
    if k.fanout > 0:
        for position in range(stream.drafted, stream.drafted + tokens):
            stream.opened[position % STEPS_KEPT] = stream.steps
    _send_drafts(k, w, request, stream, tokens, branches + opening, False)
    stream.drafted += tokens
    go_on(k, w, request, LAST)


@jit
def take_result(k, w, request):
    """Let a drafter take in a result; return whether a decision is to be asked for."""
    stream = stream_of(w, request)
    result = w.stream_results[RING * request.slot + stream.first_result]
    stream.results -= 1
    stream.first_result = (stream.first_result + 1) % RING
    _expect_result(k, w, request, stream)
    if stream.closing:
        return False
    _learn(k, w, request, stream, result)
    request.site, request.at = stream.site, stream.at
    before = stream.known
    stream.known, stream.known_commit_s = result.committed, result.commit_s
    if not stream.suspended:
        turn = turn_of(k, w, w.jobs[JOBS * request.slot + ROUND_JOB])
        _take_in(k, w, request, stream, before)
        go_on(k, w, request, turn)
    if stream.deciding:
        return False
    stream.deciding = True
    return True


@jit
def _take_in(k, w, request, stream, before):
    """Compare what has been committed since `before` with the drafts."""
    if stream.generation == 0:
        _begin(w, stream)
        return
    wrong = _first_wrong(k, w, request, stream, before)
    if wrong == NOWHERE and stream.drafted >= stream.known:
        _note_processed(k, w, request, stream, stream.drafted, stream.known)
        return
    drafted = _give_up_draft(k, w, request, stream)
    if wrong < NOWHERE and _is_in_branch(k, w, request, stream, wrong, stream.branch_start):
        w.totals.branch_hits += 1
        _adopt(k, w, request, stream, wrong)
        drafted = stream.drafted
        wrong = _first_wrong(k, w, request, stream, stream.start)
        if wrong == NOWHERE and drafted >= stream.known:
            _note_processed(k, w, request, stream, drafted, stream.known)
            return
    elif stream.branch_start <= wrong and wrong < NOWHERE:
        w.totals.branch_misses += 1
    right = min(wrong, stream.known)
    log(k, w, LOG_STREAM_ROLLBACK, stream.drafter, request.number, drafted - min(right, drafted))
    _note_processed(k, w, request, stream, drafted, right)
    _begin(w, stream)


@jit
def _first_wrong(k, w, request, stream, before):
    """Return the first position from `before` on at which a draft differs from what is committed."""
    end = min(stream.known, stream.drafted)
    if stream.seen_generation == stream.generation:
        return stream.lost_at if stream.lost_at < end else NOWHERE
    if stream.adopted_at < NOWHERE and stream.seen_generation == stream.generation + 1:
        return stream.adopted_at if stream.adopted_at < end else NOWHERE
    return _first_other(k, w, request, stream, before, end, stream.start)


@jit
def _first_other(k, w, request, stream, first, end, start):
    """Return the first of some positions at which the drafter's own token is another than the target's."""
    model = k.drafters[stream.drafter].model
    for position in range(first, end):
        if not guess_right(k, w, request, model, start, position):
            return position
    return NOWHERE


@jit
def _is_in_branch(k, w, request, stream, wrong, branch_start):
    """Return whether the right token for a wrong draft opens one of its branches."""
    if wrong < branch_start or wrong >= request.output_tokens:
        return False
    return is_near(k, w, request, k.drafters[stream.drafter].model, wrong, k.fanout)


@jit
def _adopt(k, w, request, stream, wrong):
    """Let a drafter go on with the branch that begins with the right token for a wrong draft."""
    tokens = streams.branch_tokens(k.depth, _opened_at(stream, wrong), stream.steps)
    stream.generation += 1
    stream.start = wrong + 1
    stream.drafted = stream.start + tokens
    stream.branch_start = stream.drafted if stream.branches else NOWHERE
    stream.started_s = w.now_s
    w.totals.generations += 1
    set_valid_tokens(k, w, request, stream.drafter, request.prompt_tokens + wrong)
    log(k, w, LOG_BRANCH_ADOPTED, stream.drafter, request.number, tokens)


@jit
def _begin(w, stream):
    """Begin a generation right after what is known to be committed."""
    stream.generation += 1
    stream.start = stream.drafted = stream.known
    stream.branch_start = stream.known if stream.branches else NOWHERE
    stream.started_s = w.now_s
    w.totals.generations += 1


@jit
def _withdraw_draft(k, w, request):
    """Withdraw the draft under way, if there is one; return how many of its tokens are complete."""
    job = w.jobs[JOBS * request.slot + ROUND_JOB]
    return withdraw(k, w, job) if job.state != drafting.ENDED else 0


@jit
def _give_up_draft(k, w, request, stream):
    """Stop drafting, and note what of the committed text the drafter need not read again."""
    job, drafter = w.jobs[JOBS * request.slot + ROUND_JOB], stream.drafter
    if job.state != drafting.ENDED and job.opens:
        read = job.context_tokens - job.lag_tokens + drafting.caught_up_tokens(job, w.now_s)
        set_valid_tokens(k, w, request, drafter, max(valid_tokens(k, w, request, drafter), read))
    return _stop_drafting(k, w, request, stream)


@jit
def _stop_drafting(k, w, request, stream):
    """Withdraw the draft under way; return the position after the newest token, those in it included."""
    tokens = _withdraw_draft(k, w, request)
    w.totals.discarded += tokens
    return stream.drafted + tokens


@jit
def _note_processed(k, w, request, stream, drafted, right):
    """Note how much of the text the drafter's KV holds, of which `right` output tokens are right."""
    valid = valid_tokens(k, w, request, stream.drafter)
    tokens = streams.processed_tokens(stream.start, drafted, right, valid, request.prompt_tokens)
    set_valid_tokens(k, w, request, stream.drafter, tokens)


@jit
def _learn(k, w, request, stream, result):
    """Take what a result tells into what the request's controller knows."""
    drafted = result.drafted
    if result.tokens > 0:
        idle = 1.0 if drafted == 0 else 0.0
        request.idle_share += k.stats_weight * (idle - request.idle_share)
    if drafted > 0:
        model = k.drafters[stream.drafter].model
        learn(k, w, request, model, drafted, result.accepted, result.tokens, result.confidence)
    if result.echo_s >= 0.0 and stream.site == OWN_DEVICE:
        measure_round_trip(k, w, request, stream.target, w.now_s - result.echo_s)


# ---------------------------------------------------------------------- crashes of drafters


@jit
def _next_stream(k, w, host, number):
    """Return the slot of the first request after `number` that streams from a host; -1: there is none."""
    best, best_number = -1, -1
    for slot in range(k.n_slots):
        request = w.requests[slot]
        other = request.number
        if other <= number or not request.streams or k.drafters[w.streams[slot].drafter].host != host:
            continue
        if best < 0 or other < best_number:
            best, best_number = slot, other
    return best


@jit
def suspend_streams(k, w, host):
    """Let the drafters of a server that has crashed fall silent."""
    number = -1
    while True:
        slot = _next_stream(k, w, host, number)
        if slot < 0:
            return
        request, stream = w.requests[slot], w.streams[slot]
        number = request.number
        stream.suspended = True
        _stop_drafting(k, w, request, stream)
        stream.start = stream.drafted


@jit
def resume_streams(k, w, host):
    """Let the drafters of a server that is up again begin anew after what they know to be committed."""
    number = -1
    while True:
        slot = _next_stream(k, w, host, number)
        if slot < 0:
            return
        request, stream = w.requests[slot], w.streams[slot]
        number = request.number
        if stream.suspended:
            stream.suspended = False
            if stream.known >= 0 and not stream.closing:
                # The target may have gone on with a branch, as the generation after the last.
                stream.generation += 1
                _begin(w, stream)
                go_on(k, w, request, LAST)


# ---------------------------------------------------------------------- messages to the target


@jit
def _message(w, request, stream, n):
    """Return the n-th of the messages under way to the target."""
    return w.stream_messages[RING * request.slot + (stream.first_message + n) % RING]


@jit
def _send_drafts(k, w, request, stream, tokens, branches, closes):
    """Send drafts and tokens of branches to the target, or word that the stream is to be closed."""
    size = (tokens + branches) * k.bytes_per_draft_token
    arrives_s = w.now_s
    if stream.site == OWN_DEVICE:
        arrives_s = send_up(k, w, request, stream.target, size)
    elif stream.site == EDGE_SERVER:
        arrives_s = send_backhaul(k, w, request, stream.at, stream.target, 0, size)
    if not closes:
        log(k, w, LOG_DRAFT_SENT, stream.drafter, request.number, stream.drafted)
    message = _message(w, request, stream, stream.messages)
    message.arrives_s, message.sent_s = arrives_s, w.now_s
    message.generation, message.start = stream.generation, stream.start
    message.first, message.tokens, message.steps = stream.drafted, tokens, stream.steps
    message.window, message.batch_size, message.closes = stream.window, stream.batch_size, closes
    message.branches = stream.branch_start < NOWHERE
    stream.messages += 1
    if stream.messages == 1:
        _expect_message(k, w, request, stream)


@jit
def _expect_message(k, w, request, stream):
    if stream.messages > 0:
        arrives_s = _message(w, request, stream, 0).arrives_s
        push(k, w, arrives_s, AT_DELIVERY, request.number, tag(request, IS_DRAFTS))


@jit
def take_message(k, w, request):
    """Let the target take in a message; return whether that closes the stream, and whether the ring was full.

    The drafter may go on in the latter case.
    """
    stream = stream_of(w, request)
    message = _message(w, request, stream, 0)
    was_full = stream.messages == UNDER_WAY
    stream.messages -= 1
    stream.first_message = (stream.first_message + 1) % RING
    _expect_message(k, w, request, stream)
    if message.closes:
        return True, False
    stream.echo_sent_s, stream.echo_came_s = message.sent_s, w.now_s
    stream.seen_window, stream.seen_batch = message.window, message.batch_size
    _take_drafts(k, w, request, stream, message)
    return False, was_full


@jit
def _take_drafts(k, w, request, stream, message):
    """Keep drafts that may be right, and drop the others."""
    committed = request.committed
    end = message.first + message.tokens
    stream.seen_steps = message.steps
    if message.generation > stream.seen_generation:
        if stream.lost_at == NOWHERE:
            w.totals.discarded += max(0, stream.arrived - (committed + stream.verifying))
        stream.verifying = 0
        stream.seen_generation, stream.seen_start = message.generation, message.start
        stream.seen_branch_start = message.first if message.branches else NOWHERE
        stream.adopted_at = NOWHERE
        stream.arrived = message.first
        stream.lost_at = _first_other(k, w, request, stream, message.start, committed, message.start)
    elif message.generation < stream.seen_generation:
        _drop_late(k, w, request, stream, message)
        _extend_branch(k, w, request, stream)
        return
    elif message.branches and stream.seen_branch_start == NOWHERE:
        stream.seen_branch_start = message.first
    if stream.lost_at < NOWHERE:
        _drop_late(k, w, request, stream, message)
        if message.first <= stream.lost_at and stream.lost_at < end:
            _take_branch(k, w, request, stream)
        return
    w.totals.discarded += max(0, min(end, committed) - message.first)
    stream.arrived = end


@jit
def _drop_late(k, w, request, stream, message):
    """Drop drafts of a generation that is known to be wrong."""
    if message.tokens == 0:
        return
    w.totals.discarded += message.tokens
    w.totals.late_drafts += message.tokens
    log(k, w, LOG_LATE_DRAFTS, stream.target, request.number, message.tokens)


@jit
def _take_branch(k, w, request, stream):
    """Let the target go on with a branch of the wrong draft, if one begins with the right token."""
    wrong = stream.lost_at
    if not _is_in_branch(k, w, request, stream, wrong, stream.seen_branch_start):
        return
    stream.seen_generation += 1
    stream.seen_start = stream.arrived = wrong + 1
    stream.seen_branch_start, stream.adopted_at = NOWHERE, wrong
    stream.lost_at = _first_other(k, w, request, stream, wrong + 1, request.committed, wrong + 1)
    _extend_branch(k, w, request, stream)
    log(k, w, LOG_BRANCH_TAKEN, stream.target, request.number, stream.arrived - stream.seen_start)


@jit
def _extend_branch(k, w, request, stream):
    """Take in what has come of the branch that the target goes on with."""
    opened = _opened_at(stream, stream.adopted_at)
    arrived = stream.seen_start + streams.branch_tokens(k.depth, opened, stream.seen_steps)
    more = arrived - stream.arrived
    if more <= 0:
        return
    w.totals.branch_used += more
    late = max(0, min(arrived, request.committed) - stream.arrived)
    w.totals.discarded += more if stream.lost_at < NOWHERE else late
    stream.arrived = arrived


# ---------------------------------------------------------------------- results to the drafter


@jit
def tell(k, w, request, tokens, drafted, accepted, confidence):
    """Tell the drafter what an iteration has committed, unless too much is under way to it."""
    stream = stream_of(w, request)
    if stream.results >= UNDER_WAY:
        return
    echo_s = NO_ECHO
    if stream.echo_came_s >= 0.0:
        echo_s = stream.echo_sent_s + (w.now_s - stream.echo_came_s)
        stream.echo_came_s = NO_ECHO
    arrives_s = request.last_delivery_s
    if stream.site != OWN_DEVICE:
        arrives_s = _send_result(k, w, request, stream, tokens)
    _result_leaves(k, w, request, stream, arrives_s, echo_s, w.now_s, tokens, drafted, accepted, confidence)


@jit
def _send_result(k, w, request, stream, tokens):
    """Send tokens from the target to the drafter's place; return when they arrive."""
    size = tokens * k.bytes_per_token
    if stream.site == OWN_DEVICE:
        return send_down(k, w, request, stream.target, size)
    if stream.site == EDGE_SERVER:
        return send_backhaul(k, w, request, stream.at, stream.target, 1, size)
    return w.now_s


@jit
def _result_leaves(k, w, request, stream, arrives_s, echo_s, commit_s, tokens, drafted, accepted, confidence):
    at = (stream.first_result + stream.results) % RING
    result = w.stream_results[RING * request.slot + at]
    result.arrives_s, result.echo_s, result.commit_s = arrives_s, echo_s, commit_s
    result.committed, result.tokens = request.committed, tokens
    result.drafted, result.accepted, result.confidence = drafted, accepted, confidence
    stream.results += 1
    if stream.results == 1:
        _expect_result(k, w, request, stream)


@jit
def _expect_result(k, w, request, stream):
    if stream.results > 0:
        result = w.stream_results[RING * request.slot + stream.first_result]
        push(k, w, result.arrives_s, AT_DELIVERY, request.number, tag(request, IS_RESULT))


@jit
def compare(k, w, request, stream, first):
    """Compare drafts that the target has, none of which it has verified, with what is committed.

    They are of a generation that came while it verified drafts of the one before: the drafter has crashed and
    was back at once.
    """
    if stream.lost_at < NOWHERE:
        return
    more = max(0, stream.arrived - first)
    stream.lost_at = _first_other(k, w, request, stream, first, request.committed, stream.seen_start)
    if stream.lost_at == NOWHERE:
        w.totals.discarded += min(more, request.committed - first)
        return
    w.totals.discarded += more
    if stream.lost_at < stream.arrived:
        _take_branch(k, w, request, stream)


@jit
def keep_drafts(k, w, request, stream, drafted, accepted):
    """Decide whether the drafts that an iteration has not verified are still right.

    They are if all that it verified were, and the drafter's own token for the place after them, which the
    target has decided by itself, is the same. That one is of no use any more even then.
    """
    if stream.seen_generation == 0 or stream.lost_at < NOWHERE:
        return
    place = request.committed + accepted
    more = max(0, stream.arrived - (request.committed + drafted))
    model = k.drafters[stream.drafter].model
    if accepted == drafted and guess_right(k, w, request, model, stream.seen_start, place):
        w.totals.discarded += min(more, 1)
        return
    stream.lost_at = place
    w.totals.discarded += more
    if place < stream.arrived:
        _take_branch(k, w, request, stream)
