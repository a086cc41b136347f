"""The table of reward terms: the running total behind each term, its sign, and its reference value.

Both engines compute a term from the growth of one running total since the previous decision. Names, factors,
``info["reward_terms"]`` and the tables of the documentation come from :data:`TERMS`.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any, NamedTuple

from dsd_env.scenario.schema import Scenario


class RewardTerm(NamedTuple):
    """One term of the reward.

    Attributes:
        name: Name of the term, and of its weight in the scenario's ``reward.weights``.
        total: Running total whose growth is the term, a field of :class:`dsd_env.sim.metrics.Totals`.
        sign: 1 if growth is good, -1 if it is bad.
        reference: Field of the scenario's ``reward`` that divides the growth; None for terms without a unit
            (numbers of requests, and TPOT over its bound).
        meaning: Description of the term.
    """

    name: str
    total: str
    sign: float
    reference: str | None
    meaning: str


TERMS = (
    RewardTerm(
        "latency", "request_seconds", -1.0, "reference_e2e_s", "∫ number of requests in the system dt"
    ),
    RewardTerm("tpot", "tpot_cost", -1.0, None, "Σ TPOT / its bound, over requests completed"),
    RewardTerm("goodput", "good", 1.0, None, "requests completed that met every bound of their SLO"),
    RewardTerm("slo_violation", "slo_violations", -1.0, None, "requests completed that did not"),
    RewardTerm(
        "cloud_cost",
        "cloud_usd",
        -1.0,
        "reference_usd_per_request",
        "dollars for occupied GPUs of targets, dedicated drafters and edge servers, and for egress",
    ),
    RewardTerm(
        "energy",
        "energy_joules",
        -1.0,
        "reference_joules_per_request",
        "joules of servers (idle and busy), drafting devices and radios",
    ),
    RewardTerm("bytes", "network_bytes", -1.0, "reference_bytes_per_request", "bytes sent over all links"),
    RewardTerm("progress", "output_tokens", 1.0, "reference_output_tokens", "output tokens committed"),
)
"""The reward terms, in the order of every array of them."""

REWARD_TERMS = tuple(term.name for term in TERMS)
"""Names of the reward terms, in the order of :data:`TERMS`."""

running_totals: Callable[[Any], tuple[float, ...]] = attrgetter(*(term.total for term in TERMS))
"""Returns the running totals behind the terms, in their order, of a :class:`dsd_env.sim.metrics.Totals`."""


def reward_factors(scenario: Scenario) -> tuple[float, ...]:
    """Return, for each term, the factor that turns the growth of its running total into the term."""
    return tuple(
        term.sign if term.reference is None else term.sign / getattr(scenario.reward, term.reference)
        for term in TERMS
    )


def reward_weights(scenario: Scenario) -> tuple[float, ...]:
    """Return the weight of each term, as the scenario sets it."""
    return tuple(float(getattr(scenario.reward.weights, name)) for name in REWARD_TERMS)
