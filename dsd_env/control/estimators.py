"""What controllers estimate from what they have seen: the same code in training and in serving.

The simulator's telemetry (:mod:`dsd_env.sim.telemetry`) and the controller of real systems
(:mod:`dsd_env.serving`) keep their running means by these classes; the formulas behind them are the laws of
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
        tokens_per_round: Running number of committed tokens per round.
        model_rounds: Number of rounds.
    """

    acceptance_rate: float = ACCEPTANCE_PRIOR
    tokens_per_round: float = TOKENS_PER_ROUND_PRIOR
    model_rounds: int = 0


@dataclass(slots=True)
class Pool:
    """What the verifications of a draft model's tokens have shown, over all requests; recent ones count most.

    Attributes:
        right: Drafts that were right.
        judged: These, and those that were the first wrong one.
    """

    right: float
    judged: float


def note_round(
    request: Any, model: str, drafted: int, accepted: int, committed: int, confidence: float, weight: float
) -> None:
    """Take the outcome of a draft round into what a request's controller knows.

    Args:
        request: Has `learned` (:class:`Learned` by draft model), `acceptance_rate`, `tokens_per_round`,
            `recent_gammas`, `recent_accepted` and `last_confidence`.
        model: Draft model.
        drafted: Drafts verified.
        accepted: Those that were right.
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
    """Put a round at the head of a request's list of recent ones; (0, 0) for plain decoding."""
    request.recent_gammas = (drafted, *request.recent_gammas[:-1])
    request.recent_accepted = (accepted, *request.recent_accepted[:-1])


class SystemEstimates:
    """Running estimates of the whole system, published once a period.

    Attributes:
        period_s: Time between two publications.
    """

    def __init__(self, scenario: Scenario) -> None:
        """Begin with nothing seen.

        Args:
            scenario: Gives the period, the classes of SLO and the draft models.
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
        """Publish rates, attainments and acceptances, and begin the next period."""
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

        What clients saw during a period they tell in the next, so that it stands in the report after that.
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
        """When the newest of them were published."""
        return self._rates[-1][0]

    def known(
        self, visible_s: float
    ) -> tuple[tuple[float, float, float], tuple[float, ...], tuple[float, ...]]:
        """Return what was published no later than that: rates, attainments by class, acceptances by model.

        Each begins with the time at which it was published.
        """
        return (
            newest(self._rates, visible_s),
            newest(self._attainments, visible_s),
            newest(self._acceptances, visible_s),
        )

    def rates(self, visible_s: float) -> tuple[float, float]:
        """Return arrivals and committed tokens per second, as published no later than that."""
        _, arrivals_per_s, tokens_per_s = newest(self._rates, visible_s)
        return arrivals_per_s, tokens_per_s

    def attainments(self, visible_s: float, slo_class: int) -> tuple[float, float]:
        """Return the share of a class that met its SLO, and the least of the other classes'."""
        _, *attainments = newest(self._attainments, visible_s)
        own = attainments.pop(slo_class)
        return own, min(attainments, default=own)

    def acceptances(self, visible_s: float) -> tuple[float, ...]:
        """Return the time of a report and the pooled acceptance by number of the draft model, from 1."""
        return newest(self._acceptances, visible_s)


def newest(reports: deque[Row], visible_s: float) -> Row:
    """Return the newest report made no later than a time (the first kept, if none was)."""
    for report in reversed(reports):
        if report[0] <= visible_s:
            return report
    return reports[0]
