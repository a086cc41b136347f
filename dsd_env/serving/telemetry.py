"""What an engine tells the controller: one frozen record per kind of observation, in engine terms.

Every field but the name of what is meant may be left out (None): then the default in its description holds.
Times are seconds on one clock, that of ``time_s``; if an observation has no time, it counts as made now.
Requests, clients and targets are named by texts of the engine's own.

Numbers are checked on the way in (:func:`checked`): one outside :data:`RANGES` is moved to the nearest value
inside, one that is not finite is left out, and both are counted. A value of the wrong type is an error of the
caller, :class:`TelemetryError`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple, cast


class TelemetryError(ValueError):
    """An observation is of the wrong type or names what the deployment lacks; the message says what."""


@dataclass(frozen=True, slots=True)
class ClientJoined:
    """A client device, with what is known of it. Optional: a client unknown so far joins with the defaults.

    Attributes:
        client: Its name.
        device_class: Its class in the deployment; default: the first.
        number: Its number among the devices of the deployment; default: the next of its class.
        draft_time_factor: Factor on the draft times of its class; default 1.
        uplink_one_way_s: Delay to the targets; default: that of its class's link. The following likewise.
        downlink_one_way_s: Delay back.
        edge_uplink_one_way_s: Delay to its edge servers.
        edge_downlink_one_way_s: Delay back.
        time_s: When.
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
    """A new request.

    Attributes:
        request: Its name, not in use.
        prompt_tokens: Length of its prompt; default 0.
        client: The client that it comes from; default: one client of the first class for all.
        slo: Its class of service-level objectives; default: the deployment's first.
        target: The target that its prompt has come to, where clients speak to an engine directly; its
            decisions are taken there from the beginning. Default: it is still with its client, and
            :class:`RequestQueued` tells when it comes to a target.
        time_s: When it arrived.
    """

    request: str
    prompt_tokens: int | None = None
    client: str | None = None
    slo: str | None = None
    target: str | None = None
    time_s: float | None = None


@dataclass(frozen=True, slots=True)
class RequestQueued:
    """A request's prompt has come to a target and waits there.

    Attributes:
        request: The request.
        target: The target; default: that of its last decision.
        time_s: When.
    """

    request: str
    target: str | None = None
    time_s: float | None = None


@dataclass(frozen=True, slots=True)
class TokensCommitted:
    """A target has committed tokens that no drafts were verified for: after a prefill, by plain decoding.

    Attributes:
        request: The request.
        tokens: How many; default 1.
        round_over: They end a round of plain decoding, which stands among the recent rounds with no drafts.
            Default: true, but for the first token.
        target: The target; default: that of its last decision.
        heard: Whether they are known where the request's decisions are taken; default: they are. In a stream,
            whose target goes on meanwhile, they may be on their way: :class:`StreamResult` tells of their
            arrival.
        last: Whether the request's last token is among them: its target has no more to do for it, though its
            client may still wait for the answer. Default: it is not, and the request is under way until
            :class:`RequestFinished`.
        time_s: When.
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
        drafted: Drafts verified.
        accepted: Those that were right.
        committed: Tokens committed; default: the accepted ones and one more.
        confidence: Top-1 probability of the drafter at the last token that it drafted on the true path;
            default: unknown (0).
        target: The target; default: that of its last decision.
        model: Draft model; default: that of its last decision.
        heard: Whether this is known where the request's decisions are taken, as for
            :class:`TokensCommitted`.
        last: Whether the request's last token is among them, likewise.
        time_s: When.
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
    """A result of a stream has come to its drafter, where the next decision is taken.

    An engine that tells of iterations when they end, at the target (``heard=False``), tells of their results
    by this. One that hears of them at the drafter alone has no need of it: then the iteration and its result
    are one observation.

    Attributes:
        request: The request.
        known_tokens: Output tokens of which the result tells that they are committed.
        known_commit_s: When the newest of them was; default: when the target last committed any.
        committed: Tokens that the iteration behind it committed; default 0: it tells but that the stream is
            open.
        drafted: Drafts that the iteration verified; default 0: none had come.
        accepted: Those that were right; default 0.
        confidence: As for :class:`RoundVerified`. The following likewise.
        model: Draft model.
        time_s: When it came.
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
    """A target has lost a request, or refused it because it is down; it is at no target now.

    Its stream and what was drafted ahead for it are void. Its client decides next. Where a whole target was
    lost, :class:`TargetState` with ``kv_lost`` says so of all its requests.

    Attributes:
        request: The request.
        time_s: When.
    """

    request: str
    time_s: float | None = None


@dataclass(frozen=True, slots=True)
class DecisionDropped:
    """The last decision on a request came too late to be carried out, as where a target has gone on alone.

    It counts as no round.

    Attributes:
        request: The request.
        time_s: When.
    """

    request: str
    time_s: float | None = None


@dataclass(frozen=True, slots=True)
class ControlMoved:
    """The next decision of a request is taken elsewhere than where its last one was carried out.

    Without it, a request's next decision is taken where its drafts are made.

    Attributes:
        request: The request.
        site: ``colocated`` (at its target), ``own_device`` or ``edge_server``.
        target: The target; default: the request's.
        edge_server: Number of the edge server; default 0.
        time_s: When.
    """

    request: str
    site: str
    target: str | None = None
    edge_server: int | None = None
    time_s: float | None = None


@dataclass(frozen=True, slots=True)
class DraftState:
    """The state of a request's drafting, where an engine knows it.

    Attributes:
        request: The request.
        head_start_tokens: Drafts of the next window made ahead; default 0.
        window_tokens: Gamma in force of its stream of drafts; default 0: none is open.
        lead_tokens: Its drafts in flight, not yet known to be right or wrong; default 0.
        generations: Generations of drafts that its stream has begun; default 0.
        generation_started_s: When the present one began; default: now.
        known_tokens: Output tokens that its controller knows of, where a target is ahead of that; default: as
            its results have told (:class:`StreamResult`), and without a stream all.
        known_commit_s: When the newest of those was committed; likewise.
        idle_share: Running share of its iterations for which no draft had come; default: unchanged.
        time_s: When.
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
    """How much of a request's context a drafter's KV holds. Rounds verified tell it by themselves.

    Attributes:
        request: The request.
        valid_tokens: Tokens of its context, prompt included, from the beginning.
        site: Site of the drafter; default: that of its last decision.
        target: The target (``colocated``); default: the request's.
        edge_server: Number of the edge server (``edge_server``); default 0.
        drafter: Place of the drafter in its site's list; default 0.
        time_s: When.
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
    """A request has ended, by its last token or otherwise; it is forgotten.

    Attributes:
        request: The request.
        met_slo: Whether its answer met its objectives; default: not counted.
        time_s: When.
    """

    request: str
    met_slo: bool | None = None
    time_s: float | None = None


@dataclass(frozen=True, slots=True)
class TargetState:
    """The state of a target. Fields left out keep their last value, the first time 0.

    An engine that never sends it is known by its requests alone: those under way there count as resident.

    Attributes:
        target: The target; default: the deployment's first.
        up: Whether it runs.
        queued: Requests that wait for admission or for an iteration.
        running: Sequences in the iteration under way.
        resident: Requests with KV there; default: those that the controller knows to be there.
        waiting: Requests that wait for admission.
        remaining_s: Expected rest of the iteration under way.
        iteration_s: Running mean iteration time; default: kept from :class:`IterationDone`, before that the
            profile's for one token.
        kv_fraction: Share of the KV pool reserved.
        token_s: Marginal time of a new token; default: the profile's at the usual size of an iteration.
        plain: Residents that decode plainly; default: kept from the rounds that requests report. The
            following likewise.
        colocated: Residents that draft on its GPUs.
        remote: Residents that draft elsewhere.
        gamma_mean: Mean number of drafts in force of those that draft.
        prefill_tokens: Context tokens still to be prefilled.
        kv_lost: Its KV is gone, as after a crash: its requests are at no target now, their streams are void,
            and the drafters at it hold nothing. Default: it is not.
        request: The state came with the newest result of this request. Only matters where reports travel
            (see ``reports`` of the controller).
        periodic: It is a periodic report, which others see too; likewise.
        time_s: When it was taken.
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
    """An iteration (engine step) of a target has ended: what the running means are made of.

    Attributes:
        duration_s: How long it took.
        new_tokens: New tokens in it; default 1.
        target: The target; default: the deployment's first.
        time_s: When it ended.
    """

    duration_s: float
    new_tokens: int | None = None
    target: str | None = None
    time_s: float | None = None


@dataclass(frozen=True, slots=True)
class DrafterState:
    """The state of what drafters run on: a client's device, an edge server, or GPUs beside a target.

    Name one of the three.

    Attributes:
        client: The client.
        edge_server: Number of the edge server.
        target: The target with a drafter on GPUs of its own.
        drafter: Place of the drafter in its site's list, where each reports for itself; default: the first,
            and all on the same hardware.
        up: Whether it runs; default: unchanged.
        jobs: Draft jobs running or queued; default: unchanged.
        wait_s: Expected wait; default: from jobs and their mean time.
        job_s: How long the draft job took that has just ended; goes into the mean.
        mean_job_s: That mean itself, where the engine keeps it.
        kv_lost: Its KV is gone, as after a crash, and so is what was drafted ahead there; default: it is not.
        request: The request whose controller sees it (clients); default: all of the client's.
        periodic: As for :class:`TargetState`.
        time_s: When.
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
    """A measured round trip between a client and the targets, without the time at the target.

    Attributes:
        client: The client.
        rtt_s: The sample, the whole way there and back.
        time_s: When it was complete.
        target: The target it was measured with, where some are farther away than others (`extra_one_way_s`);
            default: that of the client's newest request.
    """

    client: str
    rtt_s: float
    time_s: float | None = None
    target: str | None = field(default=None, kw_only=True)


@dataclass(frozen=True, slots=True)
class LinkState:
    """What a client's own messages have shown of its link.

    Attributes:
        client: The client.
        up: Whether the link is believed up; default: unchanged. The following likewise.
        uplink_bits_per_s: Bandwidth as measured.
        downlink_bits_per_s: Bandwidth back.
        uplink_sample_bits_per_s: Bandwidth that one message has shown; goes into the running mean.
        downlink_sample_bits_per_s: Bandwidth back that one message has shown; likewise.
        lost: Whether the newest message needed a retransmission; goes into the running share.
        time_s: When.
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
    """The delay of the link between an edge server and a target; the deployment gives that of a whole class.

    Attributes:
        edge_server: Number of the edge server.
        target: The target; default: all.
        uplink_one_way_s: Delay towards the target; default: unchanged.
        downlink_one_way_s: Delay back; likewise.
        time_s: When.
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
"""The kinds of observations by name."""


class Range(NamedTuple):
    """What a number can be.

    Attributes:
        low: Least value.
        high: Largest value.
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
"""Range of every number with one; times on the clock are checked against the clock."""

_WHOLE = frozenset(
    each.name for kind in EVENTS.values() for each in fields(kind) if str(each.type).startswith("int")
)
_TEXTS = ("client", "device_class", "request", "slo", "target", "site", "model")
_FLAGS = ("up", "met_slo", "round_over", "periodic", "lost", "heard", "last", "kv_lost")
_TIMES = ("time_s", "known_commit_s", "generation_started_s")
_INDICES = ("number", "edge_server", "drafter")
MAX_NAME = 200
"""Longest name, in characters."""

_PLAN: dict[type[Any], tuple[tuple[str, str, float, float, bool], ...]] = {}


def _plan(kind: type[Any]) -> tuple[tuple[str, str, float, float, bool], ...]:
    """Return name, sort, bounds and optionality of each field of a kind of observation."""
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
    """Return an observation with every number in its range, and the names of the fields that were moved.

    Nobody accepts more drafts than were verified. A number that is not finite is left out where the field may
    be, and otherwise 0 within its range.

    Raises:
        TelemetryError: A field of the wrong type, or a name that is too long.
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
            # NumPy's numbers are welcome; truth values and texts are not.
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
        # An engine that counts the target's own token as accepted says one too many, every time.
        moved = {**(moved or {}), "accepted": event.drafted or 0}
    if moved is None:
        return event, ()
    return _changed(event, moved), tuple(moved)


def _changed(event: Event, values: dict[str, Any]) -> Event:
    changed: Event = replace(cast(Any, event), **values)
    return changed


def _wrong(event: Event, name: str, value: object, expected: str) -> TelemetryError:
    return TelemetryError(f"{type(event).__name__}.{name} = {value!r:.80} must be {expected}")
