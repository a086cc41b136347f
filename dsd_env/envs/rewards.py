"""From the running totals of a simulation to the terms of the reward."""

from __future__ import annotations

from dsd_env.scenario import Scenario
from dsd_env.sim.metrics import Totals

REWARD_TERMS = ("latency", "tpot", "goodput", "slo_violation", "cloud_cost", "energy", "bytes", "progress")
"""Names of the reward terms, in the order of the scenario's weights."""


def reward_factors(scenario: Scenario) -> tuple[float, ...]:
    """Return the factor from running total to term, by term."""
    reward = scenario.reward
    factors = {
        "latency": -1.0 / reward.reference_e2e_s,
        "tpot": -1.0,
        "goodput": 1.0,
        "slo_violation": -1.0,
        "cloud_cost": -1.0 / reward.reference_usd_per_request,
        "energy": -1.0 / reward.reference_joules_per_request,
        "bytes": -1.0 / reward.reference_bytes_per_request,
        "progress": 1.0 / reward.reference_output_tokens,
    }
    return tuple(factors[name] for name in REWARD_TERMS)


def reward_weights(scenario: Scenario) -> tuple[float, ...]:
    """Return the weight of every term."""
    weights = scenario.reward.weights.model_dump()
    return tuple(float(weights[name]) for name in REWARD_TERMS)


def running_totals(totals: Totals) -> tuple[float, ...]:
    """Return the running totals behind the terms, in their order."""
    return (
        totals.request_seconds,
        totals.tpot_cost,
        totals.good,
        totals.slo_violations,
        totals.cloud_usd,
        totals.energy_joules,
        totals.network_bytes,
        totals.output_tokens,
    )
