"""The flat observation: a fixed, bounded, documented scaling of the typed view.

Every open-ended quantity x ≥ 0 becomes x / (x + half), where `half` is the value that maps to 0.5. This
scaling is bounded in [0, 1), monotone, never saturated, and made of two IEEE operations, so that every engine
computes the same float. Signed quantities use ``x / (|x| + half)``. Fractions and flags pass through. There
are no running statistics, so a deployed policy sees the scaling that it was trained with.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dsd_env.control.view import (
    RECENT_ROUNDS,
    CandidateView,
    DecisionView,
    DrafterKind,
    RequestView,
    Site,
)
from dsd_env.laws import slo
from dsd_env.laws import view as laws
from dsd_env.scenario.schema import Scenario

Scale = Literal["fraction", "squash", "signed"]


class Feature(NamedTuple):
    """One entry of the observation vector.

    Attributes:
        name: Unique name: the group of the view that holds the raw value, a dot, and a name in that group.
        unit: Unit of the raw value.
        scale: ``fraction`` (passes through), ``squash`` (x / (x + half)) or ``signed``.
        half: Raw value that maps to 0.5; 1 for fractions.
        meaning: Description of the feature.
        field: Field of the group that holds the raw value, if it differs from the name after the dot. Both
            engines gather raw values by these fields; :data:`DERIVED` has those that the typed view lacks.
        element: Index into the field, if the field is a list.
    """

    name: str
    unit: str
    scale: Scale
    half: float
    meaning: str
    field: str = ""
    element: int | None = None

    @property
    def source(self) -> tuple[str, str, int | None]:
        """Where the raw value is: group of the view, field, and index into the field if that is a list."""
        group, name = self.name.split(".")
        return group, self.field or name, self.element

    @property
    def low(self) -> float:
        """Lower bound of the scaled feature."""
        return -1.0 if self.scale == "signed" else 0.0


def flag(name: str, meaning: str) -> Feature:
    """Return a feature that is 0 or 1."""
    return Feature(name, "0/1", "fraction", 1.0, meaning)


def share(name: str, meaning: str) -> Feature:
    """Return a feature in [0, 1] that passes through unscaled."""
    return Feature(name, "1", "fraction", 1.0, meaning)


def squash(name: str, unit: str, half: float, meaning: str) -> Feature:
    """Return a feature of at least 0 that becomes x / (x + half)."""
    return Feature(name, unit, "squash", half, meaning)


def _recent(name: str, field: str, what: str) -> tuple[Feature, ...]:
    """Return one feature for each of the request's recent rounds in a list of the view."""
    return tuple(
        Feature(f"request.{name}_{i}", "tokens", "squash", 4.0, f"{what}, {i} rounds ago", field, i)
        for i in range(RECENT_ROUNDS)
    )


_REQUEST = (
    flag("request.is_admission", "first decision: places the prompt"),
    flag("request.control_at_target", "the decision is taken at the target"),
    flag("request.control_at_device", "the decision is taken on the client device"),
    flag("request.control_at_edge_server", "the decision is taken on an edge server"),
    squash("request.prompt_tokens", "tokens", 512.0, "prompt length"),
    squash("request.committed_tokens", "tokens", 64.0, "output tokens committed"),
    squash("request.context_tokens", "tokens", 1024.0, "prompt and committed output"),
    squash("request.age_s", "s", 4.0, "time since arrival"),
    squash("request.slo_ttft_s", "s", 1.0, "bound on TTFT"),
    squash("request.slo_tpot_s", "s", 0.05, "bound on TPOT"),
    squash("request.slo_itl_p99_s", "s", 0.1, "bound on the 99th percentile of gaps between tokens"),
    squash("request.slo_per_token_s", "s", 0.05, "time between token deadlines"),
    Feature("request.ttft_slack", "1", "signed", 0.5, "1 - (TTFT or age before it) / bound"),
    Feature("request.tpot_slack", "1", "signed", 0.5, "1 - TPOT so far / bound"),
    Feature("request.deadline_slack_s", "s", "signed", 0.5, "time until the next token is due"),
    squash("request.rounds", "rounds", 16.0, "rounds executed"),
    share("request.acceptance_rate", "acceptance rate (EMA)"),
    squash("request.tokens_per_round", "tokens", 3.0, "committed tokens per draft round (EMA)"),
    *_recent("recent_gamma", "recent_gammas", "drafted"),
    *_recent("recent_accepted", "recent_accepted", "accepted"),
    share("request.last_confidence", "top-1 draft probability at the last token drafted on the true path"),
    squash("request.head_start_tokens", "tokens", 4.0, "drafts of the next window made ahead"),
    squash("request.window_tokens", "tokens", 8.0, "gamma in force of its stream; 0: none is open"),
    squash("request.lead_tokens", "tokens", 8.0, "its drafts in flight: not yet known to be right or wrong"),
    squash("request.generations", "generations", 16.0, "generations of drafts that its stream has begun"),
    squash("request.generation_age_s", "s", 0.1, "time since the present one began"),
    share("request.idle_share", "share of its iterations for which no draft had come (EMA)"),
)

TARGET_FEATURES = (
    squash("target.queued", "sequences", 16.0, "waiting for admission or for an iteration"),
    squash("target.running", "sequences", 32.0, "sequences in the iteration under way"),
    squash("target.resident", "requests", 64.0, "admitted there: they hold a seat and KV"),
    squash("target.remaining_s", "s", 0.02, "expected rest of the iteration under way"),
    squash("target.iteration_s", "s", 0.04, "iteration time (EMA)"),
    share("target.kv_fraction", "share of the KV pool reserved"),
    squash("target.plain", "requests", 32.0, "its requests that decode plainly"),
    squash("target.colocated", "requests", 32.0, "its requests that draft on its GPUs"),
    squash("target.remote", "requests", 32.0, "its requests that draft elsewhere"),
    squash("target.gamma_mean", "tokens", 4.0, "mean drafts in force of those that draft"),
    squash("target.prefill_tokens", "tokens", 1024.0, "context tokens still to be prefilled"),
    squash("target.token_s", "s", 1.0e-4, "marginal time of a new token"),
    squash("target.prefill_token_s", "s", 1.0e-4, "time per prompt token"),
    squash("target.waiting", "requests", 16.0, "requests that wait for admission"),
    share("target.seat_fraction", "share of its seats (`max_num_seqs`) that are taken"),
    squash("target.age_s", "s", 0.05, "age of this report"),
)

_OWN = (
    flag("link.up", "own link believed up"),
    squash("link.rtt_s", "s", 0.03, "round-trip time (EMA)"),
    squash("link.rtt_deviation_s", "s", 0.005, "mean deviation of the round-trip time"),
    squash(
        "link.uplink_bits_per_s", "bit/s", 2.0e7, "uplink: nominal, or as measured where it changes (EMA)"
    ),
    squash(
        "link.downlink_bits_per_s", "bit/s", 1.0e8, "downlink: nominal, or as measured where it changes (EMA)"
    ),
    share("link.loss", "share of messages retransmitted"),
    squash("link.age_s", "s", 0.5, "age of the estimate"),
    flag("drafter.available", "own device can draft"),
    squash("drafter.step_s", "s", 0.01, "own draft step time"),
    squash("drafter.kv_lag_tokens", "tokens", 16.0, "own drafter's KV lag"),
    squash("drafter.jobs", "jobs", 1.0, "draft jobs on the own device"),
)

_SYSTEM = (
    squash("system.active_requests", "requests", 64.0, "requests at all targets"),
    squash("system.arrivals_per_s", "1/s", 8.0, "arrival rate (EMA)"),
    squash("system.tokens_per_s", "tokens/s", 2000.0, "rate of committed tokens (EMA)"),
    share("system.own_attainment", "share of its class of SLO that met it (EMA)"),
    share("system.others_attainment", "the least such share of other classes"),
)


def _candidate_features(index: int, has_menu: bool, offers_branches: bool) -> tuple[Feature, ...]:
    """Return the features of a candidate.

    Args:
        index: Number of the candidate.
        has_menu: Whether the scenario has a menu of drafters. If so, there are features of the candidate's
            drafter too.
        offers_branches: Whether streams are offered without and with branches. If so, there are features of
            the candidate's branches too.
    """
    group = f"candidate_{index}"
    of_drafter = (
        flag(f"{group}.is_head", "its drafter is a draft head"),
        flag(f"{group}.is_lookup", "its drafter is a look-up"),
        share(f"{group}.acceptance_rate", "acceptance rate of its draft model (EMA)"),
        squash(f"{group}.tokens_per_round", "tokens", 3.0, "tokens per round of its draft model (EMA)"),
        squash(f"{group}.model_rounds", "rounds", 4.0, "rounds with its draft model"),
    )
    of_branches = (
        squash(f"{group}.fanout", "branches", 2.0, "branches that its stream opens at each draft"),
        squash(f"{group}.depth", "tokens", 4.0, "tokens of such a branch"),
    )
    return (
        flag(f"{group}.valid", "drafting there is possible now"),
        flag(f"{group}.is_current", "same site and target as the last round"),
        flag(f"{group}.same_target", "the request's KV is at its target"),
        flag(f"{group}.colocated", "drafts on the target's server"),
        flag(f"{group}.own_device", "drafts on the own device"),
        squash(f"{group}.draft_step_s", "s", 0.01, "draft step time"),
        squash(f"{group}.catch_up_s", "s", 0.02, "first draft step, with the KV lag"),
        squash(f"{group}.draft_wait_s", "s", 0.02, "expected wait for the drafter"),
        squash(f"{group}.rtt_s", "s", 0.03, "round trip between draft site and target"),
        squash(f"{group}.handover_s", "s", 0.02, "one-way delay to move control there"),
        squash(f"{group}.move_s", "s", 0.2, "time to prefill the context at another target"),
        squash(f"{group}.target_queued", "sequences", 16.0, "`queued` of its target"),
        squash(f"{group}.target_resident", "requests", 64.0, "`resident` of its target"),
        squash(f"{group}.target_colocated", "requests", 32.0, "`colocated` of its target"),
        squash(f"{group}.target_remote", "requests", 32.0, "`remote` of its target"),
        squash(f"{group}.target_prefill_tokens", "tokens", 1024.0, "prefill queued at its target"),
        squash(f"{group}.target_iteration_s", "s", 0.04, "iteration time of its target (EMA)"),
        flag(f"{group}.streams", "its drafts are streamed to the target"),
        flag(f"{group}.coalesces", "its verifications wait for the batch size asked for"),
        share(f"{group}.pooled_acceptance", "chance that a draft by its model is right, over all requests"),
        *(of_drafter if has_menu else ()),
        *(of_branches if offers_branches else ()),
    )


# Raw values of features that are not fields of the typed view. In the compiled engine they are fields of the
# view's records, written together with the view (dsd_env/sim/compiled/kernel/observe.py).

_COLOCATED, _OWN_DEVICE, _EDGE_SERVER = Site.COLOCATED, Site.OWN_DEVICE, Site.EDGE_SERVER


def _control_at_target(request: RequestView) -> bool:
    return request.control_site == _COLOCATED


def _control_at_device(request: RequestView) -> bool:
    return request.control_site == _OWN_DEVICE


def _control_at_edge_server(request: RequestView) -> bool:
    return request.control_site == _EDGE_SERVER


def _context_tokens(request: RequestView) -> int:
    return request.prompt_tokens + request.committed_tokens


def _ttft_slack(request: RequestView) -> float:
    return laws.ttft_slack(request.ttft_s, request.age_s, request.slo_ttft_s)


def _tpot_slack(request: RequestView) -> float:
    return laws.tpot_slack(request.tpot_s, request.slo_tpot_s)


def _deadline_slack_s(request: RequestView) -> float:
    return slo.deadline_slack_s(
        request.age_s, request.committed_tokens, request.slo_first_s, request.slo_per_token_s
    )


def _colocated(candidate: CandidateView) -> bool:
    return candidate.site == _COLOCATED


def _own_device(candidate: CandidateView) -> bool:
    return candidate.site == _OWN_DEVICE


def _is_head(candidate: CandidateView) -> bool:
    return candidate.kind == DrafterKind.HEAD


def _is_lookup(candidate: CandidateView) -> bool:
    return candidate.kind == DrafterKind.LOOKUP


DERIVED: Mapping[str, Callable[[Any], float] | str] = {
    "request.control_at_target": _control_at_target,
    "request.control_at_device": _control_at_device,
    "request.control_at_edge_server": _control_at_edge_server,
    "request.context_tokens": _context_tokens,
    "request.ttft_slack": _ttft_slack,
    "request.tpot_slack": _tpot_slack,
    "request.deadline_slack_s": _deadline_slack_s,
    "candidate.colocated": _colocated,
    "candidate.own_device": _own_device,
    "candidate.is_head": _is_head,
    "candidate.is_lookup": _is_lookup,
    "candidate.target_queued": "target.queued",
    "candidate.target_resident": "target.resident",
    "candidate.target_colocated": "target.colocated",
    "candidate.target_remote": "target.remote",
    "candidate.target_prefill_tokens": "target.prefill_tokens",
    "candidate.target_iteration_s": "target.iteration_s",
}
"""Raw values that the typed view has in no field, by group and field: a function of the group, or a path."""


class _Reader:
    """Reads the raw values of some features from their group of the typed view.

    Plain fields are read all at once, because reading takes most of the time of an observation; lists and
    derived values follow. The values therefore come in the order of ``places``, not of the features.

    Attributes:
        places: For each value in reading order, the index of its feature among the given features.
    """

    def __init__(self, features: Sequence[Feature]) -> None:
        plain: list[tuple[int, str]] = []
        lists: dict[str, list[tuple[int, int]]] = {}
        derived: list[tuple[int, Callable[[Any], float]]] = []
        for place, feature in enumerate(features):
            group, field, element = feature.source
            function = DERIVED.get(f"{group.partition('_')[0]}.{field}", field)
            if element is not None:
                lists.setdefault(field, []).append((place, element))
            elif isinstance(function, str):
                plain.append((place, function))
            else:
                derived.append((place, function))
        if len(plain) == 1:  # an attrgetter of one field returns no tuple
            derived, plain = [(plain[0][0], attrgetter(plain[0][1])), *derived], []
        self._plain = attrgetter(*(field for _, field in plain)) if plain else None
        self._lists = [(attrgetter(field), [each for _, each in taken]) for field, taken in lists.items()]
        self._derived = [function for _, function in derived]
        self.places = [place for place, _ in plain]
        self.places += [place for taken in lists.values() for place, _ in taken]
        self.places += [place for place, _ in derived]

    def read(self, part: object, raw: list[float]) -> None:
        """Append the raw values of a group of the view to ``raw``."""
        if self._plain is not None:
            raw += self._plain(part)
        for take, elements in self._lists:
            values = take(part)
            raw += [values[element] for element in elements]
        for function in self._derived:
            raw.append(function(part))


def _readers(features: Sequence[Feature]) -> tuple[tuple[str, _Reader], ...]:
    """Return one reader for each group of the view that the features name."""
    groups: dict[str, list[Feature]] = {}
    for feature in features:
        groups.setdefault(feature.source[0], []).append(feature)
    return tuple((group, _Reader(members)) for group, members in groups.items())


class ObservationEncoder:
    """Flattens a :class:`DecisionView` into the observation vector of a scenario.

    The layout depends only on the number of placements, on whether there is a menu of drafters (see
    :attr:`dsd_env.scenario.schema.Scenario.has_menu`) and on whether branches are offered, so policies
    transfer between scenarios with the same candidate list. If a scenario has fewer candidates than the
    layout, the features of the missing candidates are 0.

    Attributes:
        features: The features, in order.
        low: float32 lower bounds, shape (n,).
        high: float32 upper bounds, shape (n,).
    """

    def __init__(self, n_placements: int, has_menu: bool = False, offers_branches: bool = False) -> None:
        """Build the features for ``n_placements`` candidates, with or without a menu and branches."""
        self._n_placements = n_placements
        of_candidates = [
            _candidate_features(index, has_menu, offers_branches) for index in range(n_placements)
        ]
        self.features: tuple[Feature, ...] = (
            *_REQUEST,
            *TARGET_FEATURES,
            *_OWN,
            *(feature for features in of_candidates for feature in features),
            *_SYSTEM,
        )
        self.low = np.array([feature.low for feature in self.features], dtype=np.float32)
        self.high = np.ones(len(self.features), dtype=np.float32)
        self._first, self._last = _readers((*_REQUEST, *TARGET_FEATURES, *_OWN)), _readers(_SYSTEM)
        self._candidate = _Reader(of_candidates[0])
        # The index of each feature in the order in which raw values are read.
        readers = [reader for _, reader in self._first]
        readers += [self._candidate] * n_placements
        readers += [reader for _, reader in self._last]
        places: list[int] = []
        for reader in readers:
            places += [len(places) + place for place in reader.places]
        self._order = np.argsort(places)
        self._format = f"{len(places)}d"
        self._half = np.array([self.features[place].half for place in places])
        self._squashes = np.array([self.features[place].scale != "fraction" for place in places], dtype=float)

    @classmethod
    def of(cls, scenario: Scenario, n_placements: int | None = None) -> ObservationEncoder:
        """Return the encoder of a scenario, for `n_placements` candidates (default: the scenario's own)."""
        return cls(n_placements or scenario.n_placements, scenario.has_menu, scenario.actions.offer_branches)

    @property
    def n_last(self) -> int:
        """Number of features after those of the candidates."""
        return len(_SYSTEM)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the features, in order."""
        return tuple(feature.name for feature in self.features)

    def encode(self, view: DecisionView) -> NDArray[np.float32]:
        """Return the observation (float32, shape (n,), within ``[low, high]``).

        Raises:
            ValueError: The view has more candidates than the layout.
        """
        missing = self._n_placements - len(view.candidates)
        if missing < 0:
            raise ValueError(
                f"the decision has {len(view.candidates)} candidates, more than the observation has room for"
            )
        raw: list[float] = []
        for group, reader in self._first:
            reader.read(getattr(view, group), raw)
        for candidate in view.candidates:
            self._candidate.read(candidate, raw)
        raw += [0.0] * (missing * len(self._candidate.places))
        for group, reader in self._last:
            reader.read(getattr(view, group), raw)
        # `raw` mixes floats, integers and booleans; NumPy's own conversion takes three times as long.
        values: NDArray[np.float64] = np.frombuffer(struct.pack(self._format, *raw))
        scaled = np.abs(values)
        scaled *= self._squashes
        scaled += self._half
        np.divide(values, scaled, out=scaled)
        return scaled.astype(np.float32)[self._order]
