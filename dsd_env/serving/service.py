"""What the HTTP service does, without HTTP: decisions, reloading, limits and figures.

:mod:`dsd_env.serving.app` puts it on the network.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsd_env.policy import Policy, PolicyError
from dsd_env.policy import load as load_bundle
from dsd_env.policy.manifest import MANIFEST_FILE, MAX_MANIFEST_BYTES
from dsd_env.serving import telemetry
from dsd_env.serving.controller import Controller, NoPlanError
from dsd_env.serving.telemetry import TelemetryError

logger = logging.getLogger("dsd_env.serving")

MAX_ITEMS = 4096
"""Most observations, and most requests, in one call."""
ANSWERS_KEPT = 1024
"""Newest calls with an `id` whose answers are kept for a repetition, at most."""
DECISIONS_KEPT = 65_536
"""Most decisions in these answers together: some 30 MB."""


class ServiceError(ValueError):
    """A call cannot be answered; the message says why.

    Attributes:
        status: HTTP status that says the same.
    """

    def __init__(self, message: str, status: int = 400) -> None:
        """Take the message and the status."""
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Limits:
    """What the service takes from the network.

    Attributes:
        body_bytes: Longest body of a call.
        calls_per_s: Calls per second on average; 0: no limit.
        burst: Calls that may come at once.
    """

    body_bytes: int = 1 << 20
    calls_per_s: float = 0.0
    burst: int = 1000

    def __post_init__(self) -> None:
        if self.body_bytes < 1 or self.burst < 1 or not 0.0 <= self.calls_per_s < 1e9:
            raise ValueError(f"{self}: body_bytes and burst must be at least 1, calls_per_s at least 0")


class Bucket:
    """A token bucket: `burst` calls at once, `calls_per_s` on average."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin full."""
        self._rate, self._burst = limits.calls_per_s, float(limits.burst)
        self._level, self._clock, self._at_s = self._burst, clock, clock()
        self._lock = threading.Lock()

    def take(self) -> float:
        """Take one call; return 0, or after how many seconds the next one has room."""
        if self._rate == 0.0:
            return 0.0
        with self._lock:
            now_s = self._clock()
            self._level = min(self._burst, self._level + (now_s - self._at_s) * self._rate)
            self._at_s = now_s
            if self._level >= 1.0:
                self._level -= 1.0
                return 0.0
            return (1.0 - self._level) / self._rate


class Histogram:
    """Durations by bucket, as Prometheus counts them."""

    BOUNDS_S = (1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 1.0)

    def __init__(self) -> None:
        """Begin empty."""
        self._counts = [0] * (len(self.BOUNDS_S) + 1)
        self._total_s = 0.0

    def note(self, seconds: float) -> None:
        """Count a duration."""
        self._counts[bisect_left(self.BOUNDS_S, seconds)] += 1
        self._total_s += seconds

    def lines(self, name: str) -> list[str]:
        """Return it in Prometheus' text format."""
        found, total = [f"# TYPE {name} histogram"], 0
        for bound, count in zip((*self.BOUNDS_S, "+Inf"), self._counts, strict=True):
            total += count
            found.append(f'{name}_bucket{{le="{bound}"}} {total}')
        return [*found, f"{name}_sum {self._total_s:.9g}", f"{name}_count {total}"]


class Service:
    """A controller with a bundle that can be exchanged while it runs.

    Attributes:
        controller: Decides.
        name: Name of the model, as clients of the Open Inference Protocol know it.
        digest: SHA-256 of the manifest of the bundle that decides, which holds the digests of its weights;
            "" for a rule.
        ready: Whether it takes calls; false while it shuts down.
        calls: Answered calls by path and status.
        latency: Durations of calls.
    """

    def __init__(self, controller: Controller, *, name: str = "scheduler", path: Path | None = None) -> None:
        """Serve with a controller.

        Args:
            controller: It.
            name: Name of the model.
            path: Directory of the bundle that it was made with, to reload from; None for a rule.
        """
        self.controller = controller
        self.name = name
        self.path = path
        self.digest = "" if path is None else manifest_digest(path)
        self.ready = True
        self.latency = Histogram()
        self.calls: dict[tuple[str, int], int] = {}
        self.reloads = dict.fromkeys(("done", "refused", "rolled_back"), 0)
        # Reading a bundle takes time, for which nobody who counts a call should wait.
        self._reloading, self._counting = threading.Lock(), threading.Lock()
        self._before: tuple[Policy, str] | None = None
        self._answers: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._decisions_kept = 0
        # The controller's own copy computes in buffers that only its lock protects.
        self._tensors = None if controller.policy is None else controller.policy.copy()

    # ------------------------------------------------------------------ calls

    def decide(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Take in observations, then decide for requests: the call ``/v1/decide``.

        Args:
            body: ``events`` (each with ``type``, the name of a kind of observation, and its fields),
                ``requests`` (names, or objects with ``request`` and ``counter``), ``now_s``, and ``id``, a
                name of the call: if it is repeated, so is the answer, and nothing is taken in twice. All are
                optional. Decisions, and events that tell no time, are of one moment: ``now_s``, or now.

        Returns:
            ``decisions``, in the order of the requests.

        Raises:
            ServiceError: The body is not of that form. Then nothing of it has been taken in.
        """
        unknown = set(body) - {"events", "requests", "now_s", "id"}
        if unknown:
            raise ServiceError(
                f"unknown key {min(map(str, unknown))!r:.80}; known are events, id, now_s, requests"
            )
        events = [parsed(event) for event in _list(body, "events")]
        wanted = [_wanted(each) for each in _list(body, "requests")]
        now_s = body.get("now_s")
        if now_s is not None and (type(now_s) not in (int, float) or not -1e12 < now_s < 1e12):
            raise ServiceError(f"now_s = {now_s!r:.80} must be a time in seconds")
        call = body.get("id")
        if call is not None and (type(call) is not str or len(call) > telemetry.MAX_NAME):
            raise ServiceError(f"id = {call!r:.80} must be a text of at most {telemetry.MAX_NAME} characters")
        controller = self.controller
        with controller.lock:
            if call is not None and call in self._answers:
                return self._answers[call]
            now_s = controller.now_s() if now_s is None else now_s
            try:
                controller.observe_many(events, now_s)
            except TelemetryError as error:
                raise ServiceError(str(error)) from error
            decisions = controller.decide_many(
                [name for name, _ in wanted], now_s, counters=[counter for _, counter in wanted]
            )
            answer = {"decisions": [decision._asdict() for decision in decisions]}
            if call is not None:
                self._keep(call, answer)
            return answer

    def _keep(self, call: str, answer: dict[str, Any]) -> None:
        """Keep an answer for a repetition of its call, and give up the oldest ones that are too many."""
        self._answers[call] = answer
        self._decisions_kept += len(answer["decisions"])
        while len(self._answers) > ANSWERS_KEPT or self._decisions_kept > DECISIONS_KEPT:
            _, oldest = self._answers.popitem(last=False)
            self._decisions_kept -= len(oldest["decisions"])

    def plan(self) -> dict[str, Any]:
        """Return the plan in force, made anew if it is due: the call ``/v1/plan``.

        Raises:
            ServiceError: What decides here makes no plans.
        """
        try:
            return self.controller.plan().as_json()
        except NoPlanError as error:
            raise ServiceError(str(error), 409) from error

    # ------------------------------------------------------------------ the bundle

    @property
    def tensors(self) -> Policy:
        """The bundle, for calls with an observation of the client's own.

        Raises:
            ServiceError: A rule decides.
        """
        policy = self._tensors
        if policy is None:
            raise ServiceError("a rule decides here, which reads no tensors; call /v1/decide", 400)
        return policy.copy()

    @property
    def mask(self) -> NDArray[np.bool_] | None:
        """What a policy of the fleet view can choose among, which is always the same; None for others."""
        space = self.controller.fleet_space
        return None if space is None else space.mask

    def reload(self, sha256: str | None = None) -> str:
        """Read the bundle's directory again and let what is there decide, without losing a call.

        Args:
            sha256: Digest that its manifest must have; None: any.

        Returns:
            The digest of what decides now.

        Raises:
            ServiceError: There is no bundle, it is damaged, does not fit, or is another one than asked for.
                The one before goes on deciding.
        """
        with self._reloading:
            if self.path is None or self.controller.policy is None:
                raise ServiceError("a rule decides here; there is nothing to reload", 409)
            try:
                digest = manifest_digest(self.path)
                if sha256 is not None and sha256 != digest:
                    raise PolicyError(f"{self.path}: its manifest has SHA-256 {digest}, not {sha256:.80}")
                policy = load_bundle(self.path)
                if manifest_digest(self.path) != digest:
                    raise PolicyError(f"{self.path}: changed while it was read; try again")
                before = self.controller.policy
                _check_tensors(before, policy)
                self.controller.swap(policy)
            except PolicyError as error:
                self._count_reload("refused")
                logger.warning("reload refused", extra={"error": str(error)})
                raise ServiceError(str(error), 409) from error
            self._before = (before, self.digest)
            self._tensors, self.digest = policy, digest
            self._count_reload("done")
            logger.info("reloaded", extra={"sha256": digest})
            return digest

    def roll_back(self) -> str:
        """Let the bundle before the last reload decide again; return its digest.

        Raises:
            ServiceError: There is none.
        """
        with self._reloading:
            if self._before is None:
                raise ServiceError("nothing has been reloaded, so there is nothing to return to", 409)
            now = self._tensors
            policy, digest = self._before
            self.controller.swap(policy)
            assert now is not None
            self._before = (now, self.digest)
            self._tensors, self.digest = policy.copy(), digest
            self._count_reload("rolled_back")
            logger.info("rolled back", extra={"sha256": digest})
            return digest

    # ------------------------------------------------------------------ figures

    def count(self, path: str, status: int, seconds: float) -> None:
        """Count an answered call."""
        with self._counting:
            self.calls[path, status] = self.calls.get((path, status), 0) + 1
            self.latency.note(seconds)

    def _count_reload(self, result: str) -> None:
        with self._counting:
            self.reloads[result] += 1

    def metrics(self) -> str:
        """Return every figure in Prometheus' text format."""
        stats = self.controller.stats()
        lines = ["# TYPE dsd_http_requests_total counter"]
        with self._counting:
            lines += [
                f'dsd_http_requests_total{{path="{path}",status="{status}"}} {count}'
                for (path, status), count in sorted(self.calls.items())
            ]
            lines += self.latency.lines("dsd_http_request_seconds")
            lines.append("# TYPE dsd_reloads_total counter")
            lines += [f'dsd_reloads_total{{result="{key}"}} {n}' for key, n in self.reloads.items()]
        for key in (
            "observations",
            "decisions",
            "moved",
            "unknown_request",
            "out_of_order",
            "ahead",
            "forgotten",
            "safe",
            "plans",
            "safe_plans",
        ):
            lines += [f"# TYPE dsd_{key}_total counter", f"dsd_{key}_total {stats[key]}"]
        for key in ("requests", "clients", "trusted"):
            lines += [f"# TYPE dsd_{key} gauge", f"dsd_{key} {int(stats[key])}"]
        lines.append("# TYPE dsd_guard_trips_total counter")
        lines += [f'dsd_guard_trips_total{{reason="{key}"}} {n}' for key, n in stats["trips"].items()]
        if (plan := stats["plan"]) is not None:
            for key in ("gamma", "batch_size"):
                lines.append(f"# TYPE dsd_plan_{key} gauge")
                lines += [
                    f'dsd_plan_{key}{{group="{_label(group.group)}",place="{_label(group.place)}"}} '
                    f"{getattr(group, key)}"
                    for group in plan.groups
                ]
        return "\n".join(lines) + "\n"


def _label(text: str) -> str:
    """Return a text as the value of a label in Prometheus' format."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _check_tensors(before: Policy, policy: Policy) -> None:
    """Make sure that a bundle is the same model to clients of the Open Inference Protocol.

    Raises:
        dsd_env.policy.PolicyError: It is not.
    """
    kinds = {True: "the fleet view, with plans for groups", False: "decisions on single requests"}
    if before.fleet != policy.fleet:
        raise PolicyError(
            f"the new bundle is one of {kinds[policy.fleet]}, the one that is served of "
            f"{kinds[before.fleet]}: its tensors are others; start another service for it"
        )
    old, new = before.manifest.action.fleet, policy.manifest.action.fleet
    if old is not None and new is not None and (old.groups, old.places) != (new.groups, new.places):
        raise PolicyError(
            f"the new bundle plans for the groups {list(new.groups)} and places {list(new.places)}, the one "
            f"that is served for {list(old.groups)} and {list(old.places)}; start another service for it"
        )


def manifest_digest(path: Path) -> str:
    """Return the SHA-256 of a bundle's manifest.

    Raises:
        dsd_env.policy.PolicyError: It cannot be read.
    """
    try:
        with open(path / MANIFEST_FILE, "rb") as file:
            return hashlib.sha256(file.read(MAX_MANIFEST_BYTES + 1)).hexdigest()
    except OSError as error:
        raise PolicyError(f"{path / MANIFEST_FILE}: cannot be read ({error.strerror})") from error


_FIELDS = {name: frozenset(field.name for field in fields(kind)) for name, kind in telemetry.EVENTS.items()}


def parsed(event: object) -> telemetry.Event:
    """Return an observation from its JSON object.

    Raises:
        ServiceError: It is none; the message says what is wrong.
    """
    if not isinstance(event, dict):
        raise ServiceError(f"an event must be an object, found {type(event).__name__}")
    name = event.get("type")
    known = _FIELDS.get(name) if isinstance(name, str) else None
    if known is None:
        raise ServiceError(f"type = {name!r:.80} is no event; known are {', '.join(_FIELDS)}")
    values = {key: value for key, value in event.items() if key != "type"}
    for key in values:
        if key not in known:
            raise ServiceError(f"{name}.{key:.80} is unknown; known are {', '.join(sorted(known))}")
    kind = telemetry.EVENTS[str(name)]
    lacking = [field for field in _required(kind) if field not in values]
    if lacking:
        raise ServiceError(f"{name} lacks {', '.join(lacking)}")
    made: telemetry.Event = kind(**values)
    return made


def _required(kind: type[Any]) -> list[str]:
    """Return the fields of an event that have no default."""
    return [
        field.name for field in fields(kind) if field.default is MISSING and field.default_factory is MISSING
    ]


def loads(body: bytes) -> dict[str, Any]:
    """Return the object of a JSON text.

    Raises:
        ServiceError: It is none.
    """
    try:
        data = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ServiceError(f"the body is not JSON ({error})") from error
    if not isinstance(data, dict):
        raise ServiceError(f"the body must be an object, found {type(data).__name__}")
    return data


def _list(body: Mapping[str, Any], key: str) -> list[Any]:
    found = body.get(key, [])
    if not isinstance(found, list) or len(found) > MAX_ITEMS:
        raise ServiceError(f"{key} must be a list of at most {MAX_ITEMS}")
    return found


def _wanted(each: object) -> tuple[str, int | None]:
    name: object = each
    counter: object = None
    if isinstance(each, dict):
        name, counter = each.get("request"), each.get("counter")
        if set(each) - {"request", "counter"}:
            raise ServiceError("a request is a name, or an object with request and counter")
    if type(name) is not str or len(name) > telemetry.MAX_NAME:
        raise ServiceError(f"request {name!r:.80} must be a text of at most {telemetry.MAX_NAME} characters")
    if counter is not None and type(counter) is not int:
        raise ServiceError(f"counter = {counter!r:.80} must be a whole number")
    return name, counter
