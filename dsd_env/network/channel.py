"""One direction of a link: FIFO serialisation, propagation, heavy-tailed jitter, loss with retransmission."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dsd_env import rng
from dsd_env.laws import links
from dsd_env.network.faults import FaultMember, FaultWindows
from dsd_env.network.processes import (
    LogProcess,
    OutageWindows,
    RateProcess,
    SeriesCursor,
    bandwidth_process,
    delay_process,
)
from dsd_env.network.series import LinkSeries
from dsd_env.rng import Stream
from dsd_env.scenario.schema import Link


class Channel:
    """One direction of a link, an ordered byte stream.

    A message starts to leave when the message before it has left, takes ``bytes * 8 / bits_per_s`` to leave,
    and then propagates with jitter. Each loss costs one retransmission time-out. Messages arrive in the order
    in which they were sent, as on a TCP or HTTP/2 stream: a late message holds up those behind it.

    The object holds the state and the constants of :func:`dsd_env.laws.links.send`.

    Attributes:
        number: Number of the link; the entity of its random draws.
        one_way_s: Propagation delay of this direction.
        free_s: When the transmitter is free.
        last_arrival_s: When the newest message arrives.
        messages: Messages sent so far; the counter of the random draws.
        bytes_sent: Bytes sent so far, retransmissions not counted.
        last_lost: How often the newest message was lost.
        changes: Whether its bandwidth changes over time, or it can fail.
        rate: What changes over time: bandwidth, delay, outages and faults; None if nothing does.
    """

    def __init__(
        self,
        link: Link,
        bits_per_s: float,
        one_way_s: float,
        seed: int,
        number: int,
        jitter_stream: Stream,
        loss_stream: Stream,
        rate: RateProcess | None = None,
        changes: bool = False,
        weight: float = 1.0,
    ) -> None:
        """Set up an idle channel; see the class for the arguments' meaning."""
        self.number = number
        self.one_way_s = one_way_s
        self.free_s = 0.0
        self.last_arrival_s = 0.0
        self.messages = 0
        self.bytes_sent = 0.0
        self.last_lost = 0
        self.seconds_per_byte = 8.0 / bits_per_s
        self.jitter_median_s = link.jitter.median_s
        self.jitter_sigma = link.jitter.sigma
        self.loss_probability = link.loss_probability
        self.log_loss_probability = math.log(link.loss_probability) if link.loss_probability > 0.0 else 0.0
        self.rto_s = link.rto_s
        self.jitter_key = rng.key(seed, jitter_stream, number)
        self.loss_key = rng.key(seed, loss_stream, number)
        self.changes, self.has_rate_row, self.rate = changes, rate is not None, rate
        self._nominal_bits_per_s, self._seed, self._weight = bits_per_s, seed, weight

    @property
    def bits_per_s(self) -> float:
        """Bandwidth as measured by messages that have left; nominal where it does not change."""
        return self._nominal_bits_per_s if self.rate is None else self.rate.measured_bits_per_s

    def seems_up(self, now_s: float) -> bool:
        """Return whether a site believes it up; see :func:`dsd_env.laws.links.seems_up`."""
        return links.seems_up(self, self, now_s)

    def send(self, now_s: float, size_bytes: float) -> float:
        """Put a message on the channel and return when it arrives.

        Args:
            now_s: Time at which the message is ready to leave.
            size_bytes: Its size.
        """
        self.bytes_sent += size_bytes
        return links.send(self, self, self._seed, self._weight, now_s, size_bytes)


def duplex(
    link: Link,
    seed: int,
    number: int,
    *,
    series: LinkSeries | None = None,
    faults: Sequence[FaultMember] = (),
    weight: float = 1.0,
) -> tuple[Channel, Channel]:
    """Return the (up, down) channels of a link; its delay factor is drawn from the seed.

    Args:
        link: Its configuration.
        seed: Episode seed.
        number: Its number.
        series: The series that it replays; None if it replays none.
        faults: The faults that hit it.
        weight: Weight of the newest sample in the measured bandwidth.
    """
    low, high = link.one_way_spread
    one_way_s = link.one_way_s * links.spread_factor(low, high, seed, Stream.LINK_SPREAD, number)
    offset_s = 0.0
    if series is not None and link.replay is not None and link.replay.random_start:
        offset_s = series.length_s * rng.uniform(seed, Stream.BANDWIDTH, 2 * number, 0)

    def channel(direction: int, bits_per_s: float, jitter: Stream, loss: Stream) -> Channel:
        entity = 2 * number + direction
        changes = bool(link.bandwidth or link.outages or series or faults)
        rate = None
        if changes or link.delay is not None:
            delay = series_delay = None
            if link.delay is not None:
                delay = delay_process(link.delay, seed, number, direction)
            if series is not None and any(series.extra_delay_s):
                series_delay = (series.extra_delay_s, SeriesCursor(series, offset_s))
            rate = RateProcess(
                bits_per_s,
                _bandwidth(link, seed, entity),
                OutageWindows(link.outages, rng.key(seed, Stream.OUTAGE, number)) if link.outages else None,
                () if series is None else (series.uplink_bits_per_s, series.downlink_bits_per_s)[direction],
                None if series is None else SeriesCursor(series, offset_s),
                [(FaultWindows(member, seed), member.bandwidth_factor) for member in faults],
                delay=delay,
                series_delay=series_delay,
            )
        return Channel(link, bits_per_s, one_way_s, seed, number, jitter, loss, rate, changes, weight)

    return (
        channel(0, link.uplink_bits_per_s, Stream.UPLINK_JITTER, Stream.UPLINK_LOSS),
        channel(1, link.downlink_bits_per_s, Stream.DOWNLINK_JITTER, Stream.DOWNLINK_LOSS),
    )


def _bandwidth(link: Link, seed: int, entity: int) -> LogProcess | None:
    return None if link.bandwidth is None else bandwidth_process(link.bandwidth, seed, entity)
