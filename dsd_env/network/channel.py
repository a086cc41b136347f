"""One direction of a link: FIFO serialisation, propagation, heavy-tailed jitter, loss with retransmission."""

from __future__ import annotations

import math

from dsd_env import rng
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
    """

    __slots__ = (
        "_jitter_key",
        "_jitter_median_s",
        "_jitter_sigma",
        "_loss_key",
        "_loss_probability",
        "_rto_s",
        "_seconds_per_byte",
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

    def send(self, now_s: float, size_bytes: float) -> float:
        """Put a message on the channel and return when it arrives.

        Args:
            now_s: Time at which the message is ready to leave.
            size_bytes: Its size.
        """
        start_s = now_s if now_s > self.free_s else self.free_s
        self.free_s = start_s + size_bytes * self._seconds_per_byte
        self.last_lost = self._losses()
        arrival_s = self.free_s + self.one_way_s + self._jitter_s() + self.last_lost * self._rto_s
        if arrival_s < self.last_arrival_s:
            arrival_s = self.last_arrival_s
        self.last_arrival_s = arrival_s
        self.messages += 1
        self.bytes_sent += size_bytes
        return arrival_s

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


def duplex(link: Link, seed: int, number: int) -> tuple[Channel, Channel]:
    """Return the (up, down) channels of link ``number``; its delay factor is drawn from the seed."""
    low, high = link.one_way_spread
    factor = low + (high - low) * rng.uniform(seed, Stream.LINK_SPREAD, number, 0)
    one_way_s = link.one_way_s * factor
    up = Channel(
        link, link.uplink_bits_per_s, one_way_s, seed, number, Stream.UPLINK_JITTER, Stream.UPLINK_LOSS
    )
    down = Channel(
        link, link.downlink_bits_per_s, one_way_s, seed, number, Stream.DOWNLINK_JITTER, Stream.DOWNLINK_LOSS
    )
    return up, down
