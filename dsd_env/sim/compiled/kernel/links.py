"""Messages between devices, edge servers and targets, and what they cost."""
# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

from __future__ import annotations

from dsd_env.laws import links, reports
from dsd_env.rng import Stream
from dsd_env.sim.compiled.kernel.draws import key
from dsd_env.sim.compiled.kernel.events import (
    AT_DELIVERY,
    IS_ACK,
    IS_TIMED_TOKENS,
    LOG_SEND,
    SLOT_BITS,
    log,
    push,
)
from dsd_env.sim.compiled.kernel.jit import compile_laws, jit, number

compile_laws(links, reports)

LINK_SPREAD = number(Stream.LINK_SPREAD)
UPLINK_JITTER, DOWNLINK_JITTER = number(Stream.UPLINK_JITTER), number(Stream.DOWNLINK_JITTER)
UPLINK_LOSS, DOWNLINK_LOSS = number(Stream.UPLINK_LOSS), number(Stream.DOWNLINK_LOSS)

COLOCATED, OWN_DEVICE, EDGE_SERVER = (number(site) for site in range(3))
"""Where control is, and where drafts are made: the members of :class:`dsd_env.control.Site`."""
UP, DOWN, EDGE_UP, EDGE_DOWN = range(4)
"""A device's channels, which have numbers 4 · device and on."""


@jit
def begin_channel(k, w, n):
    """Set an idle channel up."""
    channel, spec = w.channels[n], k.channels[n]
    factor = links.spread_factor(spec.spread_low, spec.spread_high, w.seed, LINK_SPREAD, spec.number)
    channel.one_way_s = spec.one_way_s * factor
    down = n % 2
    channel.jitter_key = key(w.seed, DOWNLINK_JITTER if down else UPLINK_JITTER, spec.number)
    channel.loss_key = key(w.seed, DOWNLINK_LOSS if down else UPLINK_LOSS, spec.number)
    if spec.has_rate_row:
        links.begin_rate(channel.rate, spec.rate, w.seed, spec.number)


@jit
def backhaul(k, edge, target):
    """Return the number of the channel from an edge server to a target; the next one leads back."""
    return 4 * k.n_devices + 2 * (edge * k.n_targets + target)


@jit
def one_way_s(w, channel):
    """Return a channel's propagation delay."""
    return w.channels[channel].one_way_s


@jit
def seems_up(k, w, channel):
    """Return whether a channel is believed up."""
    if k.told:
        return w.channels[channel].free_s <= w.now_s
    return links.seems_up(w.channels[channel], k.channels[channel], w.now_s)


@jit
def bits_per_s(k, w, channel, nominal):
    """Return a channel's bandwidth as measured; nominal where it does not change."""
    return w.channels[channel].rate.measured_bits_per_s if k.channels[channel].has_rate_row else nominal


@jit
def send(k, w, channel, size_bytes):
    """Put a message on a channel; return when it arrives."""
    return links.send(w.channels[channel], k.channels[channel], w.seed, k.stats_weight, w.now_s, size_bytes)


@jit
def count_bytes(k, w, size_bytes, device):
    """Book a message that a device sends or receives."""
    joules = size_bytes * k.devices[device].radio_joules_per_byte
    w.totals.network_bytes += size_bytes
    w.totals.energy_joules += joules
    w.totals.client_joules += joules


@jit
def _sent(k, w, number_of_device, channel, size_bytes):
    """A device's controller sees whether its message had to be sent again."""
    device = w.devices[number_of_device]
    lost = 1.0 if w.channels[channel].last_lost != 0 else 0.0
    device.loss = reports.moved(device.loss, lost, k.stats_weight)
    count_bytes(k, w, size_bytes, number_of_device)


@jit
def own_jobs(k, w, device):
    """Return the jobs at a device's drafters (none, if it has none)."""
    jobs = 0
    for rank in range(k.n_ranks):
        drafter = w.drafters[rank * k.n_sites + device]
        jobs += drafter.active + drafter.queued
    return jobs


@jit
def send_up(k, w, request, target, payload):
    """Send from a request's device to a target."""
    request.own_jobs = own_jobs(k, w, request.device)
    return _send_up(k, w, request.device, target, payload, request.number)


@jit
def _send_up(k, w, device, target, payload, number_of_request):
    size = k.header_bytes + payload
    arrives_s = send(k, w, 4 * device + UP, size) + k.targets[target].extra_one_way_s
    _sent(k, w, device, 4 * device + UP, size)
    log(k, w, LOG_SEND, 4 * device + UP, number_of_request, arrives_s)
    return arrives_s


@jit
def send_down(k, w, request, target, payload):
    """Send from a target to a request's device."""
    device = request.device
    size = k.header_bytes + payload
    arrives_s = send(k, w, 4 * device + DOWN, size) + k.targets[target].extra_one_way_s
    _sent(k, w, device, 4 * device + DOWN, size)
    w.totals.cloud_usd += size * 1e-9 * k.egress_usd_per_gigabyte
    log(k, w, LOG_SEND, 4 * device + DOWN, request.number, arrives_s)
    return arrives_s


@jit
def send_edge(k, w, request, down, payload):
    """Send between a request's device and its edge servers."""
    device = request.device
    size = k.header_bytes + payload
    arrives_s = send(k, w, 4 * device + EDGE_UP + down, size)
    count_bytes(k, w, size, device)
    log(k, w, LOG_SEND, 4 * device + EDGE_UP + down, request.number, arrives_s)
    return arrives_s


@jit
def send_backhaul(k, w, request, edge, target, down, payload):
    """Send between an edge server and a target."""
    channel = backhaul(k, edge, target) + down
    size = k.header_bytes + payload
    arrives_s = send(k, w, channel, size) + k.targets[target].extra_one_way_s
    w.totals.network_bytes += size
    log(k, w, LOG_SEND, channel, request.number, arrives_s)
    return arrives_s


@jit
def measure_round_trip(k, w, request, target, round_trip_s):
    """Take a round trip to a target into the estimates of the link of a request's device."""
    access_s = reports.access_round_trip_s(round_trip_s, k.targets[target].extra_one_way_s)
    reports.measure_round_trip(w.devices[request.device], w.now_s, access_s, k.stats_weight)
    request.own_jobs = own_jobs(k, w, request.device)


@jit
def time_tokens(k, w, request, arrives_s):
    """Time tokens that have just been sent to a client until it acknowledges them; one message at a time."""
    device = w.devices[request.device]
    if device.timed_s >= 0.0:
        return
    device.timed_s, device.timed_target = w.now_s, request.target
    push(k, w, arrives_s, AT_DELIVERY, request.number, (IS_TIMED_TOKENS << SLOT_BITS) | request.device)


@jit
def acknowledge(k, w, device, number_of_request):
    """A client acknowledges the tokens that are timed."""
    arrives_s = _send_up(k, w, device, w.devices[device].timed_target, 0.0, number_of_request)
    push(k, w, arrives_s, AT_DELIVERY, number_of_request, (IS_ACK << SLOT_BITS) | device)


@jit
def take_ack(k, w, number_of_device):
    """Take the time until an acknowledgement into the estimates of its device's link."""
    device = w.devices[number_of_device]
    extra_s = k.targets[device.timed_target].extra_one_way_s
    sample_s = reports.access_round_trip_s(w.now_s - device.timed_s, extra_s)
    reports.measure_round_trip(device, w.now_s, sample_s, k.stats_weight)
    device.timed_s = -1.0
