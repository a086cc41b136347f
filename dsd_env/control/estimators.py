"""Running estimates that controllers keep of what they observe, by the same code in training and serving.

The simulator's telemetry (:mod:`dsd_env.sim.telemetry`) and the controller of real systems
(:mod:`dsd_env.serving`) keep their running means with these classes. The formulas are in
:mod:`dsd_env.laws.reports` and :mod:`dsd_env.laws.drafting`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, TypeVar

from dsd_env.laws import drafting, reports
from dsd_env.laws.constants import (
    ACCEPTANCE_PRIOR,
    ATTAINMENT_TIME_CONSTANT_S,
    POOL_AT_FIRST,
    RATE_TIME_CONSTANT_S,
    REPORTS_KEPT,
    TOKENS_PER_ROUND_PRIOR,
)
from dsd_env.scenario.schema import Scenario

Row = TypeVar("Row", bound=tuple[float, ...])


@dataclass(slots=True)
class Learned:
    """What a request's controller has learned of a draft model.

    Attributes:
        acceptance_rate: Running acceptance rate.
        tokens_per_round: Running number of committed tokens per round with the model.
        model_rounds: Number of rounds with the model.
    """

    acceptance_rate: float = ACCEPTANCE_PRIOR
    tokens_per_round: float = TOKENS_PER_ROUND_PRIOR
    model_rounds: int = 0


@dataclass(slots=True)
class Pool:
    """Verification results of a draft model's drafts over all requests, with recent ones weighted most.

    Attributes:
        right: Weighted number of drafts that were right.
        judged: `right`, plus the weighted number of drafts that were the first wrong one.
    """

    right: float
    judged: float


def note_round(
    request: Any, model: str, drafted: int, accepted: int, committed: int, confidence: float, weight: float
) -> None:
    """Update the estimates of a request's controller with the outcome of a draft round.

    Args:
        request: Object with `learned` (:class:`Learned` by draft model), `acceptance_rate`,
            `tokens_per_round`, `recent_gammas`, `recent_accepted` and `last_confidence`.
        model: Draft model.
        drafted: Drafts verified.
        accepted: Drafts that were right.
        committed: Tokens committed.
        confidence: Top-1 probability of the drafter at the last token that it drafted on the true path.
        weight: Weight of the newest sample.
    """
    of_model = request.learned.setdefault(model, Learned())
    drafting.learn_round(of_model, drafted, accepted, committed, weight)
    of_model.model_rounds += 1
    note_lengths(request, drafted, accepted)
    drafting.learn_round(request, drafted, accepted, committed, weight)
    request.last_confidence = confidence


def note_lengths(request: Any, drafted: int, accepted: int) -> None:
    """Put a round at the head of a request's recent rounds; plain decoding counts as (0, 0)."""
    request.recent_gammas = (drafted, *request.recent_gammas[:-1])
    request.recent_accepted = (accepted, *request.recent_accepted[:-1])


class SystemEstimates:
    """Running estimates of the whole system, published once per period.

    Attributes:
        period_s: Time between two publications.
    """

    def __init__(self, scenario: Scenario) -> None:
        """Start without observations.

        Args:
            scenario: Scenario with the period, the classes of SLO and the draft models.
        """
        self.period_s = scenario.protocol.telemetry_period_s
        self._weight = min(1.0, self.period_s / RATE_TIME_CONSTANT_S)
        self._arrivals = 0
        self._tokens = 0
        self._arrivals_per_s = 0.0
        self._tokens_per_s = 0.0
        self._rates: deque[tuple[float, float, float]] = deque(maxlen=REPORTS_KEPT)
        classes = range(len(scenario.slo))
        self._completed = [[0, 0] for _ in classes]
        self._completed_before = [[0, 0] for _ in classes]
        self._completed_per_s = [[0.0, 0.0] for _ in classes]
        self._attainment_weight = min(1.0, self.period_s / ATTAINMENT_TIME_CONSTANT_S)
        self._attainments: deque[tuple[float, ...]] = deque(maxlen=REPORTS_KEPT)
        self.models = {name: number for number, name in enumerate(scenario.acceptance, start=1)}
        self._pools = [Pool(**POOL_AT_FIRST) for _ in self.models]
        self._acceptances: deque[tuple[float, ...]] = deque(maxlen=REPORTS_KEPT)

    def count_completed(self, slo_class: int, good: bool) -> None:
        """Note that an answer is complete at its client, and whether it met its SLO."""
        self._completed[slo_class][0] += 1
        self._completed[slo_class][1] += good

    def count_verified(self, model: str, drafted: int, accepted: int) -> None:
        """Note that a target has verified drafts by a model."""
        reports.note_verified(self._pools[self.models[model] - 1], drafted, accepted)

    def count_arrival(self) -> None:
        """Note that a prompt has reached a target."""
        self._arrivals += 1

    def count_tokens(self, tokens: int) -> None:
        """Note that a target has committed tokens."""
        self._tokens += tokens

    def publish(self, now_s: float) -> None:
        """Publish rates, SLO attainments and acceptances, and begin the next period."""
        if now_s > 0.0:
            period_s, weight = self.period_s, self._weight
            self._arrivals_per_s = reports.moved(self._arrivals_per_s, self._arrivals / period_s, weight)
            self._tokens_per_s = reports.moved(self._tokens_per_s, self._tokens / period_s, weight)
        self._rates.append((now_s, self._arrivals_per_s, self._tokens_per_s))
        self._publish_attainments(now_s)
        self._acceptances.append((now_s, *map(reports.pooled_acceptance, self._pools)))
        self._arrivals = 0
        self._tokens = 0

    def _publish_attainments(self, now_s: float) -> None:
        """Publish the share of requests that met their SLO, by class.

        Clients report during the next period what they saw in this one, so it appears in the report after
        that.
        """
        if now_s > 0.0:
            for rates, counts in zip(self._completed_per_s, self._completed_before, strict=True):
                for i, count in enumerate(counts):
                    rates[i] = reports.moved(rates[i], count / self.period_s, self._attainment_weight)
            self._completed_before = self._completed
            self._completed = [[0, 0] for _ in self._completed]
        self._attainments.append(
            (now_s, *(reports.attainment(good, done) for done, good in self._completed_per_s))
        )

    @property
    def latest_s(self) -> float:
        """Time at which the newest estimates were published."""
        return self._rates[-1][0]

    def known(
        self, visible_s: float
    ) -> tuple[tuple[float, float, float], tuple[float, ...], tuple[float, ...]]:
        """Return the newest rates, attainments by class and acceptances by model published by a given time.

        Each tuple begins with the time at which it was published.
        """
        return (
            newest(self._rates, visible_s),
            newest(self._attainments, visible_s),
            newest(self._acceptances, visible_s),
        )

    def rates(self, visible_s: float) -> tuple[float, float]:
        """Return arrivals and committed tokens per second, as last published by a given time."""
        _, arrivals_per_s, tokens_per_s = newest(self._rates, visible_s)
        return arrivals_per_s, tokens_per_s

    def attainments(self, visible_s: float, slo_class: int) -> tuple[float, float]:
        """Return a class's share of requests that met their SLO, and the least share of the other classes."""
        _, *attainments = newest(self._attainments, visible_s)
        own = attainments.pop(slo_class)
        return own, min(attainments, default=own)

    def acceptances(self, visible_s: float) -> tuple[float, ...]:
        """Return the pooled acceptance by number of the draft model, from 1; entry 0 is the report's time."""
        return newest(self._acceptances, visible_s)


def newest(reports: deque[Row], visible_s: float) -> Row:
    """Return the newest report made no later than a time; the oldest kept, if all are later."""
    for report in reversed(reports):
        if report[0] <= visible_s:
            return report
    return reports[0]
