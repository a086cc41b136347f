"""Open arrival processes, the load that rises and falls, and what kind of request comes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from dsd_env import rng
from dsd_env.rng import Stream

ARRIVAL, LOAD_PHASE, ROUTING = int(Stream.ARRIVAL), int(Stream.LOAD_PHASE), int(Stream.ROUTING)

RUN_IN_GAPS = 32.0
"""Mean gaps for which a process has gone on when the episode starts.

A process that begins with a gap has, if its gaps vary much, more arrivals at first than later; and all
clients would begin together.
"""
SHORTEST = 1e-300
"""Instead of a unit exponential variate of 0, whose logarithm there is not; one in 2^53 is."""

# States and constants are plain classes in one engine and rows of memory in the other.
Load = Any
Renewal = Any


def load_advance(load: Load, offset_s: float, now_s: float, amount: float) -> float:
    """Return when the load clock, which runs at the speed of the load, has advanced by ``amount``.

    The load is linear between ``load.times_s``, of which there are ``load.segments + 1``, and has
    ``load.values`` there; time 0 lies at ``offset_s`` of its period.
    """
    position_s = (now_s + offset_s) % load.period_s
    segment = load.segments - 1
    while load.times_s[segment] > position_s:
        segment -= 1
    elapsed_s = 0.0
    while True:
        start_s, end_s = load.times_s[segment], load.times_s[segment + 1]
        low = load.values[segment]
        slope = (load.values[segment + 1] - low) / (end_s - start_s)
        value = low + slope * (position_s - start_s)
        rest_s = end_s - position_s
        area = rest_s * (value + 0.5 * slope * rest_s)
        if area >= amount:
            return now_s + elapsed_s + _time_to_area(value, slope, amount)
        amount -= area
        elapsed_s += rest_s
        segment += 1
        position_s = end_s
        if segment == load.segments:
            segment, position_s = 0, 0.0


def _time_to_area(value: float, slope: float, area: float) -> float:
    """Return t with value·t + slope·t²/2 = area, by the form that does not cancel."""
    if slope == 0.0:
        return area / value
    return 2.0 * area / (value + math.sqrt(max(0.0, value * value + 2.0 * slope * area)))


def client_weight(spec: Renewal, seed: int, device: int) -> float:
    """Return the weight of a device's arrival rate, log-normal; its share is that over the sum of all."""
    weight_key = rng.key(seed, ROUTING, device + 1)
    z = rng.normal(rng.uniform_from_key(weight_key, 0), rng.uniform_from_key(weight_key, 1))
    return math.exp(spec.client_spread * z)


def begin_renewal(process: Renewal, spec: Renewal, seed: int, rate_per_s: float, number: int) -> None:
    """Let a renewal process stand at the start of the episode.

    Gap number i is drawn at (``ARRIVAL``, number, i), the rate's factor of period k at (``LOAD_PHASE``,
    number + 1, 2k and 2k + 1).

    Args:
        process: The process.
        spec: The law of its gaps, and of its rate.
        seed: Episode seed.
        rate_per_s: Its mean rate.
        number: 0 of the one for the whole system, from 1 those of devices.
    """
    process.gap_key = rng.key(seed, ARRIVAL, number)
    process.rate_key = rng.key(seed, LOAD_PHASE, number + 1)
    process.rate_per_s = rate_per_s
    process.power, process.scale = spec.power, spec.scale
    if number > 0 and rng.uniform(seed, ROUTING, number, 2) < spec.bursty_fraction:
        process.power, process.scale = spec.bursty_power, spec.bursty_scale
    process.ordinal = 0
    process.period = 0
    if spec.modulated:
        process.x = _rate_normal(process)
        _begin_rate_period(process, spec)
    first = -RUN_IN_GAPS
    while first <= 0.0:
        first += _gap(process)
    process.first = first


def next_gap_s(process: Renewal, spec: Renewal) -> float:
    """Return the time until the process's next arrival, in seconds of the load clock."""
    gaps: float = process.first
    if gaps == 0.0:
        gaps = _gap(process)
    process.first = 0.0
    amount_s: float = gaps / process.rate_per_s
    if not spec.modulated:
        return float(min(amount_s, spec.limit_s))
    elapsed_s = 0.0
    while amount_s > process.left_s * process.factor and elapsed_s < spec.limit_s:
        amount_s -= process.left_s * process.factor
        elapsed_s += process.left_s
        process.period += 1
        process.x = spec.rho * process.x + spec.step * _rate_normal(process)
        _begin_rate_period(process, spec)
    rest_s = amount_s / process.factor
    process.left_s = max(0.0, process.left_s - rest_s)
    return float(min(elapsed_s + rest_s, spec.limit_s))


def _gap(process: Renewal) -> float:
    """Return the next gap, of mean one: Weibull."""
    variate = max(rng.exponential(rng.uniform_from_key(process.gap_key, process.ordinal)), SHORTEST)
    process.ordinal += 1
    return float(process.scale * math.exp(process.power * math.log(variate)))


def _rate_normal(process: Renewal) -> float:
    counter = 2 * process.period
    return rng.normal(
        rng.uniform_from_key(process.rate_key, counter), rng.uniform_from_key(process.rate_key, counter + 1)
    )


def _begin_rate_period(process: Renewal, spec: Renewal) -> None:
    process.left_s = spec.period_s
    process.factor = math.exp(spec.sigma * process.x - 0.5 * spec.sigma * spec.sigma)


def poisson_gap_s(seed: int, ordinal: int, rate_per_s: float) -> float:
    """Return the gap before the ``ordinal``-th arrival of a Poisson process, in seconds of the load clock."""
    return rng.exponential(rng.uniform(seed, ARRIVAL, 0, ordinal)) / rate_per_s


def open_device(seed: int, ordinal: int, n_devices: int, has_shares: bool, shares: Sequence[float]) -> int:
    """Return the device of the ``ordinal``-th request of an open arrival process.

    Args:
        seed: Episode seed.
        ordinal: Number of the request.
        n_devices: Number of devices.
        has_shares: Devices have rates of their own; otherwise each is as likely.
        shares: Shares of the devices, if they have.
    """
    u = rng.uniform(seed, ROUTING, 0, ordinal)
    if not has_shares:
        return rng.number_below(n_devices, u)
    below = 0.0
    for device in range(n_devices):
        below += shares[device]
        if u <= below:
            return device
    return n_devices - 1
