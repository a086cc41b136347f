"""What the controller of a fleet knows when it makes a plan, and the observation made from that knowledge.

The controller sits with the targets. It knows the newest periodic report of each server, and what targets
know about their requests: it sees a request from the time its prompt reaches the target until its last token
is committed there. From devices it knows the round-trip times that they measured. It knows no acceptance
trace, no remaining output length and nothing else about the future. Sending a plan to the devices takes a few
bytes per class each period; neither the cost nor the time of sending is simulated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from dsd_env.control.encoding import TARGET_FEATURES, Feature, flag, share, squash
from dsd_env.control.fleet import FleetSpace, Plan
from dsd_env.laws.constants import ACCEPTANCE_PRIOR

Floats = NDArray[np.float64]
Whole = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class RequestColumns:
    """The requests that the targets know, in order of arrival; each array has one entry per request.

    Attributes:
        device: Number of the request's device.
        slo_class: Number of the request's class of objectives.
        acceptance_rate: Running acceptance rate of the request's drafts (EMA).
        verifies: Verifications so far.
        prompt_tokens: Length of the prompt.
        committed: Output tokens committed at the target.
        arrival_s: Time at which the request arrived.
        first_commit_s: Time at which the first token was committed.
        last_commit_s: Time at which the newest token was committed.
    """

    device: Whole
    slo_class: Whole
    acceptance_rate: Floats
    verifies: Whole
    prompt_tokens: Whole
    committed: Whole
    arrival_s: Floats
    first_commit_s: Floats
    last_commit_s: Floats


TARGET_FIELDS = (
    "up", "resident", "waiting", "queued", "running", "iteration_s", "token_s", "kv_fraction",
    "prefill_tokens", "plain", "colocated", "remote", "gamma_mean",
)  # fmt: skip
"""The fields of a target's periodic report that the fleet's controller reads."""


@dataclass(frozen=True, slots=True)
class FleetTelemetry:
    """The telemetry that both engines hand to the fleet's controller.

    Attributes:
        now_s: Simulated time.
        requests: The requests that the targets know.
        rtt_s: Running round-trip time of each device's link (EMA), without the extra distance of a target
            (`extra_one_way_s`).
        rtt_deviation_s: Running mean deviation of each device's round-trip time.
        targets: For each target, the values of :data:`TARGET_FIELDS` in its newest report. Reports of a
            target beyond the links (`extra_one_way_s`) arrive later by that time.
        edges: For each edge server, the number of jobs, the expected wait in s, and whether the server is
            up, as its first drafter last reported.
        arrivals_per_s: Running arrival rate.
        tokens_per_s: Running rate of committed tokens.
        attainments: Running share of requests that met their SLO, by class of objectives.
        acceptances: Running probability that a draft is right, by draft model, over all requests.
    """

    now_s: float
    requests: RequestColumns
    rtt_s: Floats
    rtt_deviation_s: Floats
    targets: tuple[tuple[float, ...], ...]
    edges: tuple[tuple[float, float, float], ...]
    arrivals_per_s: float
    tokens_per_s: float
    attainments: tuple[float, ...]
    acceptances: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class GroupView:
    """What the controller knows about a group of requests, and the group's choice in the plan in force.

    Attributes:
        active_requests: Number of the group's requests that a target knows and that are not finished.
        first_token_due: Number of active requests that have no token yet.
        context_tokens: Mean context length of the active requests; 0 without any.
        acceptance_mean: Mean running acceptance rate of the active requests whose drafts have been verified;
            0.6 (the prior) without any.
        acceptance_spread: Standard deviation of these acceptance rates.
        rtt_s: Mean round-trip time of the links of the group's devices, without the extra distance of a
            target.
        rtt_deviation_s: Mean of the mean deviations of these round-trip times.
        attainment: Running share of requests that met their SLO, the least over the group's classes of
            objectives.
        ttft_slack: Mean of 1 − age / bound over the active requests without a token; 1 without any.
        tpot_slack: Mean of 1 − time per token so far / bound over the active requests with at least two
            tokens; 1 without any.
        late_share: Share of the active requests with at least two tokens whose time per token is above its
            bound.
        gamma: Speculation length in the plan in force.
        batch_size: Batch size B in the plan in force.
        place: Index of the place in the plan in force; -1 for plain decoding.
    """

    active_requests: float
    first_token_due: float
    context_tokens: float
    acceptance_mean: float
    acceptance_spread: float
    rtt_s: float
    rtt_deviation_s: float
    attainment: float
    ttft_slack: float
    tpot_slack: float
    late_share: float
    gamma: float
    batch_size: float
    place: int


@dataclass(frozen=True, slots=True)
class TargetState:
    """A target as it last reported; the other fields are described in :class:`dsd_env.control.TargetView`.

    Attributes:
        iteration_tokens: New tokens of an iteration that contains all requests of the target, by their newest
            jobs: one token per request, plus the drafts of the requests that draft.
    """

    up: float
    resident: float
    waiting: float
    queued: float
    running: float
    iteration_s: float
    token_s: float
    kv_fraction: float
    prefill_tokens: float
    plain: float
    colocated: float
    remote: float
    gamma_mean: float
    seat_fraction: float
    iteration_tokens: float


@dataclass(frozen=True, slots=True)
class FleetSystem:
    """What the controller knows about the whole system.

    Attributes:
        active_requests: Requests resident at all targets.
        arrivals_per_s: Running arrival rate.
        tokens_per_s: Running rate of committed tokens.
        edge_up: Share of the edge servers that are up; 0 without any.
        edge_jobs: Mean number of draft jobs at an edge server.
        edge_wait_s: Mean expected wait for an edge server.
        edge_wait_most_s: Longest expected wait for an edge server.
    """

    active_requests: float
    arrivals_per_s: float
    tokens_per_s: float
    edge_up: float
    edge_jobs: float
    edge_wait_s: float
    edge_wait_most_s: float


@dataclass(frozen=True, slots=True)
class FleetView:
    """Typed view of all that the controller knows when it makes a plan.

    Attributes:
        now_s: Simulated time.
        groups: The groups, in the order of the plan space, with the plan in force.
        targets: The targets by number.
        acceptances: Running probability that a draft is right, by draft model.
        system: The whole system.
    """

    now_s: float
    groups: tuple[GroupView, ...]
    targets: tuple[TargetState, ...]
    acceptances: tuple[float, ...]
    system: FleetSystem


def fleet_view(space: FleetSpace, told: FleetTelemetry, plan: Plan) -> FleetView:
    """Return the controller's view, from an engine's telemetry and the plan in force."""
    seats = space.scenario.max_num_seqs
    targets = tuple(_target(values, seats[number]) for number, values in enumerate(told.targets))
    jobs, waits_s, up = zip(*told.edges, strict=True) if told.edges else ((), (), ())
    n = max(1, len(told.edges))
    system = FleetSystem(
        sum(target.resident for target in targets),
        told.arrivals_per_s,
        told.tokens_per_s,
        sum(up) / n,
        sum(jobs) / n,
        sum(waits_s) / n,
        max(waits_s, default=0.0),
    )
    return FleetView(told.now_s, _groups(space, told, plan), targets, told.acceptances, system)


def _target(values: tuple[float, ...], seats: int) -> TargetState:
    told = dict(zip(TARGET_FIELDS, values, strict=True))
    drafting = told["colocated"] + told["remote"]
    tokens = told["plain"] + drafting * (1.0 + told["gamma_mean"])
    return TargetState(**told, seat_fraction=told["resident"] / seats, iteration_tokens=tokens)


def _groups(space: FleetSpace, told: FleetTelemetry, plan: Plan) -> tuple[GroupView, ...]:
    """Summarise the requests by group; both engines list them in the same order, so the sums are equal."""
    requests, n = told.requests, len(space.groups)
    group = space.group_of[requests.device, requests.slo_class]
    bounds = [slo.bounds() for slo in space.scenario.slo.values()]
    ttft_bound_s = np.array([bound["slo_ttft_s"] for bound in bounds])[requests.slo_class]
    tpot_bound_s = np.array([bound["slo_tpot_s"] for bound in bounds])[requests.slo_class]

    def total(values: Floats | Whole, which: NDArray[np.bool_]) -> list[float]:
        sums: list[float] = np.bincount(group[which], values[which].astype(np.float64), minlength=n).tolist()
        return sums

    everyone = np.ones(len(group), dtype=np.bool_)
    verified, due, paced = requests.verifies > 0, requests.committed == 0, requests.committed > 1
    ones = np.ones(len(group))
    rate = requests.acceptance_rate
    tpot_s = (requests.last_commit_s - requests.first_commit_s) / np.maximum(1, requests.committed - 1)
    slack = 1.0 - tpot_s / tpot_bound_s
    waited = 1.0 - (told.now_s - requests.arrival_s) / ttft_bound_s
    columns = zip(
        total(ones, everyone),
        total(requests.prompt_tokens + requests.committed, everyone),
        total(ones, verified),
        total(rate, verified),
        total(rate * rate, verified),
        total(ones, due),
        total(waited, due),
        total(ones, paced),
        total(slack, paced),
        total((slack < 0.0).astype(np.float64), paced),
        strict=True,
    )
    views = []
    for number, (active, context, drafted, rates, squares, new, ages, at_pace, slacks, late) in enumerate(
        columns
    ):
        of = space.groups[number]
        gamma, batch, place = plan[number].tolist()
        mean = rates / drafted if drafted else ACCEPTANCE_PRIOR
        variance = max(0.0, squares / drafted - mean * mean) if drafted else 0.0
        views.append(
            GroupView(
                active,
                new,
                context / active if active else 0.0,
                mean,
                variance**0.5,
                _mean(told.rtt_s, of.devices),
                _mean(told.rtt_deviation_s, of.devices),
                min(told.attainments[slo_class] for slo_class in of.slo_classes),
                ages / new if new else 1.0,
                slacks / at_pace if at_pace else 1.0,
                late / at_pace if at_pace else 0.0,
                float(space.gammas[gamma]),
                float(space.batch_sizes[batch]),
                place if space.gammas[gamma] > 0 else -1,
            )
        )
    return tuple(views)


def _mean(values: Floats, which: Sequence[int]) -> float:
    # The devices of a group have consecutive numbers.
    first = which[0]
    return float(values[first : first + len(which)].sum()) / len(which)


_GROUP = (
    squash("group.active_requests", "requests", 16.0, "its requests that a target knows, not finished"),
    squash("group.first_token_due", "requests", 8.0, "those of them that have no token yet"),
    squash("group.context_tokens", "tokens", 1024.0, "mean length of their contexts"),
    share("group.acceptance_mean", "mean of their acceptance rates (EMA); 0.6 before any draft"),
    share("group.acceptance_spread", "standard deviation of these"),
    squash("group.rtt_s", "s", 0.03, "mean round-trip time of its devices (EMA)"),
    squash("group.rtt_deviation_s", "s", 0.005, "mean of its mean deviations"),
    share("group.attainment", "share that met its SLO (EMA), the least of its classes"),
    Feature(
        "group.ttft_slack", "1", "signed", 0.5, "mean of 1 - age / bound on TTFT, of those without a token"
    ),
    Feature("group.tpot_slack", "1", "signed", 0.5, "mean of 1 - TPOT so far / bound"),
    share("group.late_share", "share whose TPOT so far is above its bound"),
    squash("group.gamma", "tokens", 4.0, "speculation length of the plan in force"),
    squash("group.batch_size", "requests", 4.0, "B of the plan in force"),
)
_PLACE = Feature("group.place", "0/1", "fraction", 1.0, "the plan in force drafts at place j")

_OF_TARGETS = {feature.name: feature for feature in TARGET_FEATURES}
_TARGET = (
    flag("target.up", "up, by its newest report; so are the following"),
    *(
        _OF_TARGETS[f"target.{name}"]
        for name in (
            "resident",
            "waiting",
            "queued",
            "running",
            "iteration_s",
            "token_s",
            "kv_fraction",
            "prefill_tokens",
            "plain",
            "colocated",
            "remote",
            "gamma_mean",
            "seat_fraction",
        )
    ),
    squash("target.iteration_tokens", "tokens", 128.0, "new tokens of an iteration of all its requests"),
)
"""Features of a target: some of the per-request view, described and scaled alike, and two further ones."""
_MODEL = share("model.pooled_acceptance", "chance that a draft by it is right, over all requests")

_SYSTEM = (
    squash("system.active_requests", "requests", 64.0, "requests resident at all targets"),
    squash("system.arrivals_per_s", "1/s", 8.0, "arrival rate (EMA)"),
    squash("system.tokens_per_s", "tokens/s", 2000.0, "rate of committed tokens (EMA)"),
    share("system.edge_up", "share of the edge servers that are up"),
    squash("system.edge_jobs", "jobs", 4.0, "mean number of draft jobs at an edge server"),
    squash("system.edge_wait_s", "s", 0.02, "mean expected wait for an edge server"),
    squash("system.edge_wait_most_s", "s", 0.02, "longest expected wait for one"),
)

_group_values = attrgetter(*(feature.name.partition(".")[2] for feature in _GROUP))
_target_values = attrgetter(*(feature.name.partition(".")[2] for feature in _TARGET))
_system_values = attrgetter(*(feature.name.partition(".")[2] for feature in _SYSTEM))


def _numbered(features: Sequence[Feature], what: str, number: int) -> list[Feature]:
    return [
        feature._replace(name=feature.name.replace(f"{what}.", f"{what}_{number}.", 1))
        for feature in features
    ]


class FleetEncoder:
    """Flattens a :class:`FleetView` into the observation: float32, bounded, of fixed scaling.

    Attributes:
        features: The features, in order: groups, targets, draft models, the system.
        low: float32 lower bounds, shape (n,).
        high: float32 upper bounds, shape (n,).
    """

    def __init__(self, n_groups: int, n_places: int, n_targets: int, n_models: int) -> None:
        """Build the features for the given numbers of groups, places, targets and draft models."""
        places = [_PLACE._replace(name=f"group.place_{j}", meaning=_PLACE.meaning) for j in range(n_places)]
        features: list[Feature] = []
        for number in range(n_groups):
            features += _numbered([*_GROUP, *places], "group", number)
        for number in range(n_targets):
            features += _numbered(_TARGET, "target", number)
        for number in range(n_models):
            features += _numbered([_MODEL], "model", number)
        self.features: tuple[Feature, ...] = (*features, *_SYSTEM)
        self.low = np.array([feature.low for feature in self.features], dtype=np.float32)
        self.high = np.ones(len(self.features), dtype=np.float32)
        self._n_places = n_places
        self._half = np.array([feature.half for feature in self.features])
        self._squashes = np.array([feature.scale != "fraction" for feature in self.features], dtype=float)

    @classmethod
    def of(cls, space: FleetSpace) -> FleetEncoder:
        """Return the encoder for a plan space."""
        scenario = space.scenario
        return cls(len(space.groups), len(space.places), scenario.n_targets, len(scenario.acceptance))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the features, in order."""
        return tuple(feature.name for feature in self.features)

    def encode(self, view: FleetView) -> NDArray[np.float32]:
        """Return the observation (float32, shape (n,), within ``[low, high]``)."""
        raw: list[float] = []
        for group in view.groups:
            raw += _group_values(group)
            raw += [float(place == group.place) for place in range(self._n_places)]
        for target in view.targets:
            raw += _target_values(target)
        raw += view.acceptances
        raw += _system_values(view.system)
        values = np.array(raw)
        scaled: NDArray[np.float64] = values / (np.abs(values) * self._squashes + self._half)
        return scaled.astype(np.float32)
