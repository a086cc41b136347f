"""One direction of a link: FIFO serialisation at a rate that may change, propagation, jitter, loss.

A channel asks at times that never fall, so each process on it stands at one piece and goes on from there.
What it draws is addressed by the piece's number, not by who asked when.

A channel has a state and a spec (its constants). Where its bandwidth or its delay changes, or it can fail,
``channel.rate`` and ``spec.rate`` are state and constants of that.
"""

from __future__ import annotations

import math
from typing import Any

from dsd_env import rng
from dsd_env.laws.faults import Window, next_window
from dsd_env.laws.variates import log_quantile
from dsd_env.rng import Stream

MAX_Z = 4.0
"""Where a distribution given by quantiles ends; one period in 16,000 would lie beyond."""

BANDWIDTH, OUTAGE, DELAY = int(Stream.BANDWIDTH), int(Stream.OUTAGE), int(Stream.DELAY)

# The states and constants below are plain classes in one engine and rows of memory in the other.
Process = Any
Rate = Any
Channel = Any
Cursor = Any


def _process_normal(process: Process, part: int) -> float:
    counter = 4 * process.index + 2 * part
    return rng.normal(
        rng.uniform_from_key(process.key, counter), rng.uniform_from_key(process.key, counter + 1)
    )


def begin_process(process: Process, spec: Process, stream_key: int) -> None:
    """Let the exponential of a sum of first-order Gaussian processes stand at its first period."""
    process.index = 0
    process.key = stream_key
    for part in range(spec.parts):
        process.x[part] = spec.sigma[part] * _process_normal(process, part)
    _set_value(process, spec)


def advance_process(process: Process, spec: Process, time_s: float) -> None:
    """Go on to the period that holds a time; the value is constant within it."""
    if time_s < process.until_s:
        return
    while time_s >= process.until_s:
        process.index += 1
        process.until_s = (process.index + 1) * spec.period_s
        for part in range(spec.parts):
            process.x[part] = spec.rho[part] * process.x[part] + spec.step[part] * _process_normal(
                process, part
            )
    _set_value(process, spec)


def _set_value(process: Process, spec: Process) -> None:
    total = 0.0
    for part in range(spec.parts):
        total += process.x[part]
    if spec.by_quantiles:
        z = min(max(total / spec.spread, -MAX_Z), MAX_Z)
        process.value = log_quantile(spec.scores, spec.logs, spec.slopes, spec.pieces, z)
    else:
        process.value = spec.centre * math.exp(total)
    process.until_s = (process.index + 1) * spec.period_s


def next_outage(outage: Window, spec: Rate, stream_key: int) -> None:
    """Go on to the next time without service."""
    outage.index += 1
    up = rng.exponential(rng.uniform_from_key(stream_key, 2 * outage.index))
    down = rng.exponential(rng.uniform_from_key(stream_key, 2 * outage.index + 1))
    outage.start_s = outage.end_s + spec.mean_up_s * up
    outage.end_s = outage.start_s + spec.mean_down_s * down


def begin_cursor(cursor: Cursor, spec: Rate, offset_s: float) -> None:
    """Stand at the first piece of a recorded series that began ``offset_s`` before time 0."""
    cursor.index = 0
    cursor.begun_s = -offset_s
    cursor.until_s = cursor.begun_s + spec.times_s[1]


def advance_cursor(cursor: Cursor, spec: Rate, time_s: float) -> None:
    """Go on to the piece of the series that holds a time; after the last comes the first again."""
    while time_s >= cursor.until_s:
        cursor.index += 1
        if cursor.index == spec.pieces:
            cursor.index = 0
            cursor.begun_s += spec.times_s[spec.pieces]
        cursor.until_s = cursor.begun_s + spec.times_s[cursor.index + 1]


def begin_rate(rate: Rate, spec: Rate, seed: int, number: int) -> None:
    """Set up what a channel of link ``number`` does over time."""
    entity = 2 * number + spec.direction
    rate.measured_bits_per_s = spec.nominal_bits_per_s
    if spec.has_bandwidth:
        begin_process(rate.bandwidth, spec.bandwidth, rng.key(seed, BANDWIDTH, entity))
    if spec.has_delay:
        begin_process(rate.delay, spec.delay, rng.key(seed, DELAY, 2 * number + spec.delay_direction))
    if spec.has_outages:
        rate.outage.index = -1
        rate.outage.key = rng.key(seed, OUTAGE, number)
        next_outage(rate.outage, spec, rate.outage.key)
    if spec.pieces > 0:
        offset_s = 0.0
        if spec.random_start:
            offset_s = spec.times_s[spec.pieces] * rng.uniform(seed, BANDWIDTH, 2 * number, 0)
        begin_cursor(rate.cursor, spec, offset_s)
        begin_cursor(rate.delay_cursor, spec, offset_s)
    for n in range(spec.n_breaks):
        rate.breaks[n].index = -1
        next_window(rate.breaks[n], spec.breaks[n].fault, seed)


def _through(
    window: Window, factor: float, time_s: float, bits_per_s: float, until_s: float
) -> tuple[float, float]:
    """Return rate and end of the piece with one window in mind that has not ended."""
    if time_s < window.start_s:
        return bits_per_s, min(until_s, window.start_s)
    return bits_per_s * factor, min(until_s, window.end_s)


def rate_at(rate: Rate, spec: Rate, seed: int, time_s: float) -> tuple[float, float]:
    """Return the rate in bit/s at a time, and until when it stays."""
    bits_per_s, until_s = spec.nominal_bits_per_s, math.inf
    if spec.pieces > 0:
        advance_cursor(rate.cursor, spec, time_s)
        bits_per_s, until_s = spec.bits_per_s[rate.cursor.index], rate.cursor.until_s
    if spec.has_bandwidth:
        advance_process(rate.bandwidth, spec.bandwidth, time_s)
        bits_per_s *= rate.bandwidth.value
        until_s = min(until_s, rate.bandwidth.until_s)
    if spec.has_outages:
        while time_s >= rate.outage.end_s:
            next_outage(rate.outage, spec, rate.outage.key)
        bits_per_s, until_s = _through(rate.outage, 0.0, time_s, bits_per_s, until_s)
    for n in range(spec.n_breaks):
        window, fault = rate.breaks[n], spec.breaks[n].fault
        while time_s >= window.end_s:
            next_window(window, fault, seed)
        bits_per_s, until_s = _through(window, fault.bandwidth_factor, time_s, bits_per_s, until_s)
    return bits_per_s, until_s


def departure_s(rate: Rate, spec: Rate, seed: int, start_s: float, size_bytes: float) -> float:
    """Return when the last byte of a message has left that begins to leave at a time."""
    bits = size_bytes * 8.0
    time_s = start_s
    while True:
        bits_per_s, until_s = rate_at(rate, spec, seed, time_s)
        if bits_per_s > 0.0:
            end_s = time_s + bits / bits_per_s
            if end_s <= until_s:
                return end_s
            bits = max(0.0, bits - bits_per_s * (until_s - time_s))
        time_s = until_s


def _depart(
    channel: Channel, spec: Channel, seed: int, weight: float, now_s: float, start_s: float, size_bytes: float
) -> None:
    """Let a message leave at the rates to come; learn what the one before it has shown by now."""
    rate = channel.rate
    if rate.sample_bits_per_s > 0.0 and rate.sample_left_s <= now_s:
        rate.measured_bits_per_s += weight * (rate.sample_bits_per_s - rate.measured_bits_per_s)
        rate.sample_bits_per_s = 0.0
        rate.sample_left_s = 0.0
    if channel.free_s <= now_s:
        rate.busy_from_s = now_s
    channel.free_s = departure_s(rate, spec.rate, seed, start_s, size_bytes)
    if channel.free_s > start_s:
        rate.sample_bits_per_s = size_bytes * 8.0 / (channel.free_s - start_s)
        rate.sample_left_s = channel.free_s


def _losses(channel: Channel, spec: Channel) -> int:
    """Return how often the next message is lost: geometric, one draw."""
    if spec.loss_probability == 0.0:
        return 0
    u = rng.uniform_from_key(channel.loss_key, channel.messages)
    return int(math.log(u) / spec.log_loss_probability)


def _jitter_s(channel: Channel, spec: Channel) -> float:
    """Return the log-normal jitter of the next message."""
    if spec.jitter_median_s == 0.0 or spec.jitter_sigma == 0.0:
        return float(spec.jitter_median_s)
    z = rng.normal(
        rng.uniform_from_key(channel.jitter_key, 2 * channel.messages),
        rng.uniform_from_key(channel.jitter_key, 2 * channel.messages + 1),
    )
    return float(spec.jitter_median_s * math.exp(spec.jitter_sigma * z))


def send(channel: Channel, spec: Channel, seed: int, weight: float, now_s: float, size_bytes: float) -> float:
    """Put a message on a channel and return when it arrives.

    A message starts when the one before it has left, takes its size over the rate to leave, then propagates
    with jitter. Each loss costs one retransmission time-out. Messages arrive in the order in which they were
    sent, as on a TCP stream: a late one holds up those behind it.

    Args:
        channel: State of the channel.
        spec: Its constants.
        seed: Episode seed.
        weight: Weight of the newest sample in the measured bandwidth.
        now_s: Time at which the message is ready to leave.
        size_bytes: Its size.
    """
    start_s = now_s if now_s > channel.free_s else channel.free_s
    if spec.changes:
        _depart(channel, spec, seed, weight, now_s, start_s, size_bytes)
    else:
        channel.free_s = start_s + size_bytes * spec.seconds_per_byte
    channel.last_lost = _losses(channel, spec)
    arrival_s = channel.free_s + channel.one_way_s + _jitter_s(channel, spec) + channel.last_lost * spec.rto_s
    if spec.has_rate_row:
        if spec.rate.has_delay:
            advance_process(channel.rate.delay, spec.rate.delay, channel.free_s)
            arrival_s += channel.rate.delay.value
        if spec.rate.has_series_delay:
            advance_cursor(channel.rate.delay_cursor, spec.rate, channel.free_s)
            arrival_s += spec.rate.extra_delay_s[channel.rate.delay_cursor.index]
    arrival_s = float(max(arrival_s, channel.last_arrival_s))
    channel.last_arrival_s = arrival_s
    channel.messages += 1
    return arrival_s


def seems_up(channel: Channel, spec: Channel, now_s: float) -> bool:
    """Return whether a site believes a channel up: what it had to send has left, or has not waited long.

    A site does not see the network's state, only that its own queue has not been empty for longer than a
    retransmission time-out.
    """
    if not spec.changes or channel.free_s <= now_s:
        return True
    return bool(now_s - channel.rate.busy_from_s <= spec.rto_s)


def spread_factor(low: float, high: float, seed: int, stream: int, entity: int) -> float:
    """Return a factor that is drawn once in an episode, evenly between two bounds."""
    return low + (high - low) * rng.uniform(seed, stream, entity, 0)
