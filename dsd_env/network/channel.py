"""One direction of a link: FIFO serialisation, propagation, heavy-tailed jitter, loss with retransmission."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dsd_env import rng
from dsd_env.network.faults import FaultMember, FaultWindows
from dsd_env.network.processes import LogProcess, OutageWindows, RateProcess, SeriesCursor, bandwidth_process
from dsd_env.network.series import LinkSeries
from dsd_env.rng import Stream
from dsd_env.scenario.schema import Link


class Channel:
    """One direction of a link, an ordered byte stream.

    A message starts when the one before it has left, takes ``bytes * 8 / bits_per_s`` to leave,
    then propagates with jitter. Each loss costs one retransmission time-out. Messages arrive in the
    order in which they were sent, as on a TCP or HTTP/2 stream: a late one holds up those behind it.

    Attributes:
        number: Number of the link; the entity of its random draws.
        one_way_s: Propagation delay of this direction.
        free_s: When the transmitter is free.
        last_arrival_s: When the newest message arrives.
        messages: Messages sent so far; the counter of the random draws.
        bytes_sent: Bytes sent so far, retransmissions not counted.
        last_lost: How often the newest message was lost.
        busy_from_s: Since when there has been something to send without a break.
        bits_per_s: Bandwidth as measured by messages that have left; nominal where it does not change.
    """

    __slots__ = (
        "_delay",
        "_jitter_key",
        "_jitter_median_s",
        "_jitter_sigma",
        "_loss_key",
        "_loss_probability",
        "_process",
        "_rto_s",
        "_sample",
        "_seconds_per_byte",
        "_series_delay",
        "_weight",
        "bits_per_s",
        "busy_from_s",
        "bytes_sent",
        "free_s",
        "last_arrival_s",
        "last_lost",
        "messages",
        "number",
        "one_way_s",
    )

    def __init__(
        self,
        link: Link,
        bits_per_s: float,
        one_way_s: float,
        seed: int,
        number: int,
        jitter_stream: Stream,
        loss_stream: Stream,
        process: RateProcess | None = None,
        delay: LogProcess | None = None,
        series_delay: tuple[tuple[float, ...], SeriesCursor] | None = None,
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
        self._seconds_per_byte = 8.0 / bits_per_s
        self._jitter_median_s = link.jitter.median_s
        self._jitter_sigma = link.jitter.sigma
        self._loss_probability = link.loss_probability
        self._rto_s = link.rto_s
        self._jitter_key = rng.key(seed, jitter_stream, number)
        self._loss_key = rng.key(seed, loss_stream, number)
        self._process, self._delay, self._series_delay = process, delay, series_delay
        self._weight = weight
        self._sample = (0.0, 0.0)
        self.busy_from_s = 0.0
        self.bits_per_s = bits_per_s

    @property
    def changes(self) -> bool:
        """Whether its bandwidth changes, or it can fail."""
        return self._process is not None

    def seems_up(self, now_s: float) -> bool:
        """Return whether a site believes it up: what it had to send has left, or has not waited long.

        A site does not see the network's state, only that its own queue has not been empty for longer than
        a retransmission time-out.
        """
        if self._process is None or self.free_s <= now_s:
            return True
        return now_s - self.busy_from_s <= self._rto_s

    def send(self, now_s: float, size_bytes: float) -> float:
        """Put a message on the channel and return when it arrives.

        Args:
            now_s: Time at which the message is ready to leave.
            size_bytes: Its size.
        """
        start_s = now_s if now_s > self.free_s else self.free_s
        if self._process is None:
            self.free_s = start_s + size_bytes * self._seconds_per_byte
        else:
            self._depart(now_s, start_s, size_bytes, self._process)
        self.last_lost = self._losses()
        arrival_s = self.free_s + self.one_way_s + self._jitter_s() + self.last_lost * self._rto_s
        if self._delay is not None:
            self._delay.advance(self.free_s)
            arrival_s += self._delay.value
        if self._series_delay is not None:
            delays, cursor = self._series_delay
            cursor.advance(self.free_s)
            arrival_s += delays[cursor.index]
        if arrival_s < self.last_arrival_s:
            arrival_s = self.last_arrival_s
        self.last_arrival_s = arrival_s
        self.messages += 1
        self.bytes_sent += size_bytes
        return arrival_s

    def _depart(self, now_s: float, start_s: float, size_bytes: float, process: RateProcess) -> None:
        """Let a message leave at the rates to come; learn what the one before it has shown by now."""
        sample, left_s = self._sample
        if sample > 0.0 and left_s <= now_s:
            self.bits_per_s += self._weight * (sample - self.bits_per_s)
            self._sample = (0.0, 0.0)
        if self.free_s <= now_s:
            self.busy_from_s = now_s
        self.free_s = process.departure_s(start_s, size_bytes)
        if self.free_s > start_s:
            self._sample = (size_bytes * 8.0 / (self.free_s - start_s), self.free_s)

    def _losses(self) -> int:
        if self._loss_probability == 0.0:
            return 0
        u = rng.uniform_from_key(self._loss_key, self.messages)
        return int(math.log(u) / math.log(self._loss_probability))

    def _jitter_s(self) -> float:
        if self._jitter_median_s == 0.0:
            return 0.0
        if self._jitter_sigma == 0.0:
            return self._jitter_median_s
        z = rng.normal(
            rng.uniform_from_key(self._jitter_key, 2 * self.messages),
            rng.uniform_from_key(self._jitter_key, 2 * self.messages + 1),
        )
        return self._jitter_median_s * math.exp(self._jitter_sigma * z)


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
        series: The series that it replays, if it does.
        faults: Those that hit it.
        weight: Weight of the newest sample in the measured bandwidth.
    """
    low, high = link.one_way_spread
    factor = low + (high - low) * rng.uniform(seed, Stream.LINK_SPREAD, number, 0)
    one_way_s = link.one_way_s * factor
    offset_s = 0.0
    if series is not None and link.replay is not None and link.replay.random_start:
        offset_s = series.length_s * rng.uniform(seed, Stream.BANDWIDTH, 2 * number, 0)

    def channel(direction: int, bits_per_s: float, jitter: Stream, loss: Stream) -> Channel:
        entity = 2 * number + direction
        process = None
        if link.bandwidth or link.outages or series or faults:
            process = RateProcess(
                bits_per_s,
                _bandwidth(link, seed, entity),
                OutageWindows(link.outages, rng.key(seed, Stream.OUTAGE, number)) if link.outages else None,
                () if series is None else (series.uplink_bits_per_s, series.downlink_bits_per_s)[direction],
                None if series is None else SeriesCursor(series, offset_s),
                [(FaultWindows(member, seed), member.bandwidth_factor) for member in faults],
            )
        delay = None
        if link.delay is not None:
            key = rng.key(seed, Stream.DELAY, entity)
            delay = LogProcess(link.delay.median_s, link.delay.parts, link.delay.period_s, key)
        series_delay = None
        if series is not None and any(series.extra_delay_s):
            series_delay = (series.extra_delay_s, SeriesCursor(series, offset_s))
        return Channel(
            link, bits_per_s, one_way_s, seed, number, jitter, loss, process, delay, series_delay, weight
        )

    return (
        channel(0, link.uplink_bits_per_s, Stream.UPLINK_JITTER, Stream.UPLINK_LOSS),
        channel(1, link.downlink_bits_per_s, Stream.DOWNLINK_JITTER, Stream.DOWNLINK_LOSS),
    )


def _bandwidth(link: Link, seed: int, entity: int) -> LogProcess | None:
    return None if link.bandwidth is None else bandwidth_process(link.bandwidth, seed, entity)
