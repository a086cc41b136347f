"""Observations that an engine sends to the controller: one frozen record per kind, in an engine's terms.

A field whose type allows None may be left out; then the default in its description holds. Times are seconds
on one clock, that of ``time_s``; an observation without a time counts as made now. The engine chooses the
names (strings) of requests, clients and targets.

Numbers are checked on arrival (:func:`checked`): a number outside :data:`RANGES` is moved to the nearest
value inside, a number that is not finite is left out, and both are counted. A value of the wrong type is an
error of the caller, :class:`TelemetryError`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple, cast


class TelemetryError(ValueError):
    """An observation has a wrong type or names something that the deployment lacks; the message says what."""


@dataclass(frozen=True, slots=True)
class ClientJoined:
    """A client device has joined. Optional: a client named elsewhere first joins with the defaults.

    Attributes:
        client: Name of the client.
        device_class: Class of the device in the deployment; default: the first class.
        number: Number of the device in the deployment; default: the next number of the class.
        draft_time_factor: Factor on the draft times of the class; default 1.
        uplink_one_way_s: One-way delay from the device to the targets. Default of this and the following
            delays: those of the class's links.
        downlink_one_way_s: One-way delay from the targets to the device.
        edge_uplink_one_way_s: One-way delay from the device to edge servers.
        edge_downlink_one_way_s: One-way delay from edge servers to the device.
        time_s: Time of the event.
    """

    client: str
    device_class: str | None = None
    number: int | None = None
    draft_time_factor: float | None = None
    uplink_one_way_s: float | None = None
    downlink_one_way_s: float | None = None
    edge_uplink_one_way_s: float | None = None
    edge_downlink_one_way_s: float | None = None
    time_s: float | None = None


@dataclass(frozen=True, slots=True)
class RequestArrived:
    """A new request has arrived.

    Attributes:
        request: Name of the request, not in use by another one.
        prompt_tokens: Length of the prompt; default 0.
        client: Client that sent the request; default: one client of the first class, shared by all such
            requests.
        slo: Class of service-level objectives; default: the deployment's first class.
        target: Target that has received the prompt, if clients speak to an engine directly; decisions are
            then taken there from the beginning. Default: the request is still with its client, and
            :class:`RequestQueued` reports when it reaches a target.
        time_s: Time of arrival.
    """

    request: str
    prompt_tokens: int | None = None
    client: str | None = None
    slo: str | None = None
    target: str | None = None
    time_s: float | None = None


@dataclass(frozen=True, slots=True)
class RequestQueued:
    """A request's prompt has reached a target and waits there.

    Attributes:
        request: The request.
        target: The target; default: that of the request's last decision.
        time_s: Time of the event.
    """

    request: str
    target: str | None = None
    time_s: float | None = None


@dataclass(frozen=True, slots=True)
class TokensCommitted:
    """A target has committed tokens without verifying drafts: after a prefill, or by plain decoding.

    Attributes:
        request: The request.
        tokens: Number of tokens; default 1.
        round_over: Whether the tokens end a round of plain decoding, which then counts among the recent
            rounds, with no drafts. Default: true, except for the first token.
        target: The target; default: that of the request's last decision.
        heard: Whether the tokens are known where the request's decisions are taken; default: they are. In a
            stream, whose target goes on meanwhile, the result may still be on its way:
            :class:`StreamResult` reports its arrival.
        last: Whether the request's last token is among the tokens: the target then has no more work for the
            request, though the client may still wait for the answer. Default: it is not, and the request is
            under way until :class:`RequestFinished`.
        time_s: Time of the event.
    """

    request: str
    tokens: int | None = None
    round_over: bool | None = None
    target: str | None = None
    heard: bool | None = field(default=None, kw_only=True)
    last: bool | None = field(default=None, kw_only=True)
    time_s: float | None = None


@dataclass(frozen=True, slots=True)
class RoundVerified:
    """A target has verified a request's drafts.

    Attributes:
        request: The request.
        drafted: Number of drafts verified.
        accepted: Number of drafts that were right.
        committed: Number of tokens committed; default: the accepted drafts and one more token.
        confidence: Top-1 probability of the drafter at the last token that it drafted on the true path;
            default: unknown (0).
        target: The target; default: that of the request's last decision.
        model: Draft model; default: that of the request's last decision.
        heard: Whether the result is known where the request's decisions are taken, as for
            :class:`TokensCommitted`.
        last: Whether the request's last token is among the committed tokens, as for
            :class:`TokensCommitted`.
        time_s: Time of the event.
    """

    request: str
    drafted: int
    accepted: int
    committed: int | None = None
    confidence: float | None = None
    target: str | None = None
    model: str | None = None
    heard: bool | None = field(default=None, kw_only=True)
    last: bool | None = field(default=None, kw_only=True)
    time_s: float | None = None


@dataclass(frozen=True, slots=True)
class StreamResult:
    """A result of a stream has reached the drafter, where the next decision is taken.

    An engine that reports iterations when they end at the target (``heard=False``) reports the arrival of
    their results by this observation. An engine that observes iterations only at the drafter does not need
    it: there, the iteration and its result are one observation.

    Attributes:
        request: The request.
        known_tokens: Number of output tokens that are committed according to the result.
        known_commit_s: Time at which the newest of these tokens was committed; default: when the target last
            committed a token.
        committed: Number of tokens committed by the iteration that the result reports; default 0: the result
            only says that the stream is open.
        drafted: Number of drafts that the iteration verified; default 0: no draft had arrived.
        accepted: Number of drafts that were right; default 0.
        confidence: Confidence, as for :class:`RoundVerified`.
        model: Draft model, as for :class:`RoundVerified`.
        time_s: Time at which the result arrived.
    """

    request: str
    known_tokens: int
    known_commit_s: float | None = None
    committed: int | None = None
    drafted: int | None = None
    accepted: int | None = None
    confidence: float | None = None
    model: str | None = None
    time_s: float | None = None


@dataclass(frozen=True, slots=True)
class RequestInterrupted:
    """A target has lost a request, or has refused it because the target is down.

    The request is then at no target; its stream and any drafts made ahead for it are void, and its client
    takes the next decision. If a whole target is lost, report that for all its requests with ``kv_lost`` of
    :class:`TargetState`.

    Attributes:
        request: The request.
        time_s: Time of the event.
    """

    request: str
    time_s: float | None = None


@dataclass(frozen=True, slots=True)
class DecisionDropped:
    """The last decision on a request came too late to be carried out, e.g. because the target went on alone.

    The decision does not count as a round.

    Attributes:
        request: The request.
        time_s: Time of the event.
    """

    request: str
    time_s: float | None = None


@dataclass(frozen=True, slots=True)
class ControlMoved:
    """The next decision on a request is taken at another place than where the last one was carried out.

    Without this observation, the next decision on a request is taken where the request's drafts are made.

    Attributes:
        request: The request.
        site: Place of the next decision: ``colocated`` (at the request's target), ``own_device`` or
            ``edge_server``.
        target: The target; default: the request's target.
        edge_server: Number of the edge server; default 0.
        time_s: Time of the event.
    """

    request: str
    site: str
    target: str | None = None
    edge_server: int | None = None
    time_s: float | None = None


@dataclass(frozen=True, slots=True)
class DraftState:
    """The state of a request's drafting, from an engine that knows it.

    Attributes:
        request: The request.
        head_start_tokens: Number of drafts of the next window made ahead; default 0.
        window_tokens: Gamma in force of the request's stream of drafts; default 0: no stream is open.
        lead_tokens: Number of drafts in flight, not yet known to be right or wrong; default 0.
        generations: Generations of drafts that the stream has begun; default 0.
        generation_started_s: Time at which the current generation began; default: now.
        known_tokens: Number of output tokens that the request's controller knows of, if the target is ahead
            of that; default: as results have reported (:class:`StreamResult`), and all without a stream.
        known_commit_s: Time at which the newest of the known tokens was committed; same default.
        idle_share: Running share of the stream's iterations for which no draft had arrived; default:
            unchanged.
        time_s: Time of the observation.
    """

    request: str
    head_start_tokens: int | None = None
    window_tokens: int | None = None
    lead_tokens: int | None = None
    generations: int | None = None
    generation_started_s: float | None = None
    known_tokens: int | None = None
    known_commit_s: float | None = None
    idle_share: float | None = None
    time_s: float | None = None


@dataclass(frozen=True, slots=True)
class DraftKv:
    """The part of a request's context that a drafter's KV holds; verified rounds already imply it.

    Attributes:
        request: The request.
        valid_tokens: Number of context tokens held, prompt included, counted from the beginning.
        site: Site of the drafter; default: that of the request's last decision.
        target: The target (for ``colocated``); default: the request's target.
        edge_server: Number of the edge server (for ``edge_server``); default 0.
        drafter: Index of the drafter in its site's list; default 0.
        time_s: Time of the observation.
    """

    request: str
    valid_tokens: int
    site: str | None = None
    target: str | None = None
    edge_server: int | None = None
    drafter: int | None = None
    time_s: float | None = None


@dataclass(frozen=True, slots=True)
class RequestFinished:
    """A request has ended, by its last token or otherwise; the controller forgets it.

    Attributes:
        request: The request.
        met_slo: Whether the answer met the request's objectives; default: not counted.
        time_s: Time of the event.
    """

    request: str
    met_slo: bool | None = None
    time_s: float | None = None


@dataclass(frozen=True, slots=True)
class TargetState:
    """The state of a target. Fields left out keep their last value, which at first is 0.

    For a target without this observation, the controller counts the requests under way there as resident.

    Attributes:
        target: The target; default: the deployment's first target.
        up: Whether the target runs.
        queued: Requests that wait for admission or for an iteration.
        running: Sequences in the iteration under way.
        resident: Requests with KV at the target; default: those that the controller knows to be there.
        waiting: Requests that wait for admission.
        remaining_s: Expected rest of the iteration under way.
        iteration_s: Running mean iteration time; default: the mean of :class:`IterationDone`, and before
            any, the profile's time for one token.
        kv_fraction: Share of the KV pool reserved.
        token_s: Marginal time of a new token; default: the profile's at the usual size of an iteration.
        plain: Residents that decode plainly. Default of this field, `colocated`, `remote` and `gamma_mean`:
            counted from the rounds that requests report.
        colocated: Residents that draft on the target's GPUs.
        remote: Residents that draft elsewhere.
        gamma_mean: Mean number of drafts in force of the residents that draft.
        prefill_tokens: Context tokens still to be prefilled.
        kv_lost: Whether the target's KV is gone, as after a crash: the target's requests are then at no
            target, their streams are void, and the drafters at the target hold nothing. Default: it is not.
        request: Request whose newest result brought the state. Matters only with ``by_nominal_delay`` (see
            ``reports`` of the controller).
        periodic: Whether the state is a periodic report, which other requests see too. Matters only with
            ``by_nominal_delay``.
        time_s: Time at which the state was taken.
    """

    target: str | None = None
    up: bool | None = None
    queued: int | None = None
    running: int | None = None
    resident: int | None = None
    waiting: int | None = None
    remaining_s: float | None = None
    iteration_s: float | None = None
    kv_fraction: float | None = None
    token_s: float | None = None
    plain: int | None = None
    colocated: int | None = None
    remote: int | None = None
    gamma_mean: float | None = None
    prefill_tokens: int | None = None
    kv_lost: bool | None = field(default=None, kw_only=True)
    request: str | None = None
    periodic: bool = True
    time_s: float | None = None


@dataclass(frozen=True, slots=True)
class IterationDone:
    """An iteration (engine step) of a target has ended; running means of the target are made of these.

    Attributes:
        duration_s: Duration of the iteration.
        new_tokens: New tokens in the iteration; default 1.
        target: The target; default: the deployment's first target.
        time_s: Time at which the iteration ended.
    """

    duration_s: float
    new_tokens: int | None = None
    target: str | None = None
    time_s: float | None = None


@dataclass(frozen=True, slots=True)
class DrafterState:
    """The state of the hardware of drafters: a client's device, an edge server, or GPUs beside a target.

    Name exactly one of client, edge server and target.

    Attributes:
        client: The client.
        edge_server: Number of the edge server.
        target: The target that has a drafter with its own GPUs.
        drafter: Index of the drafter in its site's list, if each drafter reports for itself; default: the
            first drafter, and all drafters on the same hardware.
        up: Whether the hardware runs; default: unchanged.
        jobs: Draft jobs running or queued; default: unchanged.
        wait_s: Expected wait; default: derived from `jobs` and the mean time of a job.
        job_s: Duration of the draft job that has just ended; a sample of the mean.
        mean_job_s: The mean time of a draft job itself, if the engine keeps it.
        kv_lost: Whether the drafters' KV is gone, as after a crash, and with it any drafts made ahead;
            default: it is not.
        request: Request whose controller sees the state (for clients); default: all requests of the client.
        periodic: Whether the state is a periodic report, which other requests see too.
        time_s: Time of the observation.
    """

    client: str | None = None
    edge_server: int | None = None
    target: str | None = None
    drafter: int | None = None
    up: bool | None = None
    jobs: int | None = None
    wait_s: float | None = None
    job_s: float | None = None
    mean_job_s: float | None = None
    kv_lost: bool | None = field(default=None, kw_only=True)
    request: str | None = None
    periodic: bool = True
    time_s: float | None = None


@dataclass(frozen=True, slots=True)
class RttSample:
    """A measured round-trip time between a client and a target, without the time spent at the target.

    Attributes:
        client: The client.
        rtt_s: The sample: the whole way there and back.
        time_s: Time at which the round trip was complete.
        target: The target, if some targets are farther away than others (`extra_one_way_s`); default: that of
            the client's newest request.
    """

    client: str
    rtt_s: float
    time_s: float | None = None
    target: str | None = field(default=None, kw_only=True)


@dataclass(frozen=True, slots=True)
class LinkState:
    """The state of a client's link, as measured from the client's own messages.

    Attributes:
        client: The client.
        up: Whether the link is believed up. Default of all fields: unchanged.
        uplink_bits_per_s: Measured bandwidth from the client.
        downlink_bits_per_s: Measured bandwidth to the client.
        uplink_sample_bits_per_s: Bandwidth from the client in one message; a sample of the running mean.
        downlink_sample_bits_per_s: Bandwidth to the client in one message; a sample of the running mean.
        lost: Whether the newest message needed a retransmission; a sample of the running share.
        time_s: Time of the observation.
    """

    client: str
    up: bool | None = None
    uplink_bits_per_s: float | None = None
    downlink_bits_per_s: float | None = None
    uplink_sample_bits_per_s: float | None = field(default=None, kw_only=True)
    downlink_sample_bits_per_s: float | None = field(default=None, kw_only=True)
    lost: bool | None = None
    time_s: float | None = None


@dataclass(frozen=True, slots=True)
class BackhaulState:
    """The delay between an edge server and a target; the deployment gives one value per class.

    Attributes:
        edge_server: Number of the edge server.
        target: The target; default: all targets.
        uplink_one_way_s: One-way delay from the edge server to the target; default: unchanged.
        downlink_one_way_s: One-way delay from the target to the edge server; default: unchanged.
        time_s: Time of the observation.
    """

    edge_server: int
    target: str | None = None
    uplink_one_way_s: float | None = None
    downlink_one_way_s: float | None = None
    time_s: float | None = None


Event = (
    ClientJoined
    | RequestArrived
    | RequestQueued
    | TokensCommitted
    | RoundVerified
    | StreamResult
    | RequestInterrupted
    | DecisionDropped
    | ControlMoved
    | DraftState
    | DraftKv
    | RequestFinished
    | TargetState
    | IterationDone
    | DrafterState
    | RttSample
    | LinkState
    | BackhaulState
)
"""Every kind of observation."""

EVENTS: dict[str, type[Any]] = {kind.__name__: kind for kind in Event.__args__}
"""The classes of observations by name."""


class Range(NamedTuple):
    """The range of a number in an observation.

    Attributes:
        low: Lowest value.
        high: Highest value.
        unit: Unit, for messages.
    """

    low: float
    high: float
    unit: str


_TOKENS = Range(0, 1 << 24, "tokens")
_DRAFTS = Range(0, 4096, "tokens")
_COUNT = Range(0, 1 << 20, "")
_SHARE = Range(0.0, 1.0, "1")
_DELAY = Range(0.0, 60.0, "s")

RANGES: dict[str, Range] = {
    "prompt_tokens": _TOKENS,
    "tokens": _TOKENS,
    "known_tokens": _TOKENS,
    "valid_tokens": _TOKENS,
    "prefill_tokens": Range(0, 1 << 30, "tokens"),
    "new_tokens": _TOKENS,
    "drafted": _DRAFTS,
    "accepted": _DRAFTS,
    "committed": _TOKENS,
    "head_start_tokens": _DRAFTS,
    "window_tokens": _DRAFTS,
    "lead_tokens": _DRAFTS,
    "gamma_mean": _DRAFTS,
    "generations": Range(0, 1 << 30, ""),
    "confidence": _SHARE,
    "idle_share": _SHARE,
    "kv_fraction": _SHARE,
    "queued": _COUNT,
    "running": _COUNT,
    "resident": _COUNT,
    "waiting": _COUNT,
    "plain": _COUNT,
    "colocated": _COUNT,
    "remote": _COUNT,
    "jobs": _COUNT,
    "remaining_s": _DELAY,
    "iteration_s": _DELAY,
    "duration_s": _DELAY,
    "token_s": Range(0.0, 1.0, "s"),
    "wait_s": _DELAY,
    "job_s": _DELAY,
    "mean_job_s": _DELAY,
    "rtt_s": _DELAY,
    "uplink_one_way_s": _DELAY,
    "downlink_one_way_s": _DELAY,
    "edge_uplink_one_way_s": _DELAY,
    "edge_downlink_one_way_s": _DELAY,
    "draft_time_factor": Range(1e-3, 1e3, "1"),
    "uplink_bits_per_s": Range(1.0, 1e13, "bit/s"),
    "downlink_bits_per_s": Range(1.0, 1e13, "bit/s"),
    "uplink_sample_bits_per_s": Range(1.0, 1e13, "bit/s"),
    "downlink_sample_bits_per_s": Range(1.0, 1e13, "bit/s"),
}
"""Range of each number that has a range; times on the clock are checked against the clock instead."""

_WHOLE = frozenset(
    each.name for kind in EVENTS.values() for each in fields(kind) if str(each.type).startswith("int")
)
_TEXTS = ("client", "device_class", "request", "slo", "target", "site", "model")
_FLAGS = ("up", "met_slo", "round_over", "periodic", "lost", "heard", "last", "kv_lost")
_TIMES = ("time_s", "known_commit_s", "generation_started_s")
_INDICES = ("number", "edge_server", "drafter")
MAX_NAME = 200
"""Largest length of a name, in characters."""

_PLAN: dict[type[Any], tuple[tuple[str, str, float, float, bool], ...]] = {}


def _plan(kind: type[Any]) -> tuple[tuple[str, str, float, float, bool], ...]:
    """Return, for each field of a class of observations: name, sort, bounds, and whether it is optional."""
    rows = []
    for each in fields(kind):
        name = each.name
        sort, low, high = "text", 0.0, 0.0
        if name in RANGES:
            sort, (low, high, _) = "number", RANGES[name]
        elif name in _FLAGS:
            sort = "flag"
        elif name in _TIMES:
            sort = "time"
        elif name in _INDICES:
            sort, high = "index", 1 << 20
        rows.append((name, sort, low, high, "None" in str(each.type)))
    return tuple(rows)


for _kind in EVENTS.values():
    _PLAN[_kind] = _plan(_kind)


def checked(event: Event) -> tuple[Event, tuple[str, ...]]:
    """Return an observation with every number in its range, and the names of the fields that were changed.

    More accepted than verified drafts are reduced to the number verified. A number that is not finite is left
    out if its field is optional; otherwise it becomes the lowest value of its range.

    Raises:
        TelemetryError: A field has a value of the wrong type, or a name is too long.
    """
    plan = _PLAN.get(type(event))
    if plan is None:
        raise TelemetryError(f"{type(event).__name__} is no observation; known are {', '.join(EVENTS)}")
    moved: dict[str, Any] | None = None
    for name, sort, low, high, optional in plan:
        value = getattr(event, name)
        if value is None:
            if optional:
                continue
            raise _wrong(event, name, value, sort)
        if sort == "text":
            if type(value) is not str or len(value) > MAX_NAME:
                raise _wrong(event, name, value, f"a text of at most {MAX_NAME} characters")
        elif sort == "flag":
            if type(value) is not bool:
                raise _wrong(event, name, value, "true or false")
        elif type(value) not in (int, float):
            # NumPy numbers are accepted; booleans and strings are not.
            plain = value.item() if hasattr(value, "item") else None
            if type(plain) not in (int, float):
                raise _wrong(event, name, value, "a number")
            return checked(_changed(event, {name: plain}))
        elif sort == "number":
            if low <= value <= high:
                if type(value) is float and name in _WHOLE:
                    raise _wrong(event, name, value, "a whole number")
                continue
            moved = moved or {}
            if value != value or value in (float("inf"), float("-inf")):
                moved[name] = None if optional else (int(low) if name in _WHOLE else low)
            else:
                bound = low if value < low else high
                moved[name] = int(bound) if name in _WHOLE else bound
        elif sort == "index":
            if type(value) is not int or not 0 <= value <= high:
                raise _wrong(event, name, value, f"a whole number in 0..{int(high)}")
        elif not -1e12 < value < 1e12:  # a time
            moved = moved or {}
            moved[name] = None
    if isinstance(event, (RoundVerified, StreamResult)) and (event.accepted or 0) > (event.drafted or 0):
        # An engine that counts the target's own token as accepted reports one too many in every round.
        moved = {**(moved or {}), "accepted": event.drafted or 0}
    if moved is None:
        return event, ()
    return _changed(event, moved), tuple(moved)


def _changed(event: Event, values: dict[str, Any]) -> Event:
    changed: Event = replace(cast(Any, event), **values)
    return changed


def _wrong(event: Event, name: str, value: object, expected: str) -> TelemetryError:
    return TelemetryError(f"{type(event).__name__}.{name} = {value!r:.80} must be {expected}")
