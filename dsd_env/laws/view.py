"""What a controller can tell of the request it decides on, and of a place to draft at."""

from __future__ import annotations

from typing import Any

COLOCATED, OWN_DEVICE, EDGE_SERVER = range(3)
"""Where drafts are made; the numbers of :class:`dsd_env.control.Site`."""

Drafter = Any


def handover_s(
    at_site: int, at: int, site: int, number: int, half_rtt_s: float, to_edge_s: float, from_edge_s: float,
    backhaul_s: float, leaving_s: float, reaching_s: float,
) -> float:  # fmt: skip
    """Return the expected one-way delay of moving control to a place.

    Args:
        at_site: Where control is.
        at: Number of that device, edge server or target.
        site: Where it is to go.
        number: Its number.
        half_rtt_s: Half the measured round trip of the device's link to the targets.
        to_edge_s: Delay from the device to its edge servers, 0 without a link to them.
        from_edge_s: Delay back.
        backhaul_s: Delay between the edge server and the target, if it is those two.
        leaving_s: How far the target where control is lies beyond the links; 0 if it is at none.
        reaching_s: The same of the target that it is to go to; 0 if it is none.
    """
    if at_site == site and at == number:
        return 0.0
    if (at_site == EDGE_SERVER and site == COLOCATED) or (at_site == COLOCATED and site == EDGE_SERVER):
        return backhaul_s + leaving_s + reaching_s
    to_device_s = 0.0
    if at_site == COLOCATED:
        to_device_s = half_rtt_s + leaving_s
    elif at_site == EDGE_SERVER:
        to_device_s = from_edge_s
    if site == OWN_DEVICE:
        return to_device_s
    if site == COLOCATED:
        return to_device_s + half_rtt_s + reaching_s
    return to_device_s + to_edge_s


def time_per_token_s(first_s: float, last_s: float, tokens: int) -> float:
    """Return the mean time per output token after the first; 0 before the second."""
    return (last_s - first_s) / (tokens - 1) if tokens > 1 else 0.0


def ttft_slack(ttft_s: float, age_s: float, slo_ttft_s: float) -> float:
    """Return 1 − (TTFT, or age before it) / bound."""
    return 1.0 - (ttft_s if ttft_s > 0.0 else age_s) / slo_ttft_s


def tpot_slack(tpot_s: float, slo_tpot_s: float) -> float:
    """Return 1 − TPOT so far / bound."""
    return 1.0 - tpot_s / slo_tpot_s


def fits(context_tokens: int, gamma_max: int, kv_capacity_tokens: int) -> bool:
    """Return whether a context and the longest draft fit into a drafter."""
    return context_tokens + gamma_max <= kv_capacity_tokens
