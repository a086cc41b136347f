"""The link between edge and cloud, made as slow and as bad as one likes, in user space.

A :class:`ShapedProxy` stands between client and server as a gRPC server that passes messages on, in both
directions, without reading them. Neither end knows of it. What it delays, drops, doubles and overtakes are
messages: below them TCP hides such things, and a datagram transport would not.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from dsd_env.extras import needs
from dsd_env.network.channel import Channel, duplex
from dsd_env.network.processes import SeriesCursor
from dsd_env.network.series import LinkSeries
from dsd_env.scenario.links import Link, Replay
from dsd_env.strict_model import StrictNumbers

with needs("testbed", "the testbed"):
    import grpc
    import grpc.aio


class LinkConfig(StrictNumbers, BaseModel):
    """One direction of a link.

    Attributes:
        delay_s: One-way delay.
        jitter_s: Standard deviation of it; the delay is not shortened below half of ``delay_s``.
        bandwidth_bytes_per_s: Rate at which messages leave, one after the other; 0: at once.
        header_bytes: Bytes counted for each message beside its content (TCP/IP, TLS and HTTP/2 take about
            100).
        drop: Probability that a message is lost.
        duplicate: Probability that it comes twice.
        reorder: Probability that it is held back, so that later ones overtake it. Others keep their order.
        reorder_s: How long it is held back at most.
        outages: Begin and end of times in which everything is lost, in seconds after the link began.
        series: What a recorded or made series says of bandwidth and of a further delay, from its beginning
            on, again and again; takes the place of ``bandwidth_bytes_per_s``.
        seed: Seed of the draws.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    delay_s: float = Field(0.0, ge=0)
    jitter_s: float = Field(0.0, ge=0)
    bandwidth_bytes_per_s: float = Field(0.0, ge=0)
    header_bytes: int = Field(100, ge=0)
    drop: float = Field(0.0, ge=0, lt=1)
    duplicate: float = Field(0.0, ge=0, le=1)
    reorder: float = Field(0.0, ge=0, le=1)
    reorder_s: float = Field(0.02, ge=0)
    outages: tuple[tuple[float, float], ...] = ()
    series: LinkSeries | None = None
    seed: int = 0

    @model_validator(mode="after")
    def _one_bandwidth(self) -> LinkConfig:
        if self.series is not None and self.bandwidth_bytes_per_s:
            raise ValueError("series has a bandwidth of its own: give no bandwidth_bytes_per_s beside it")
        if self.series is not None and not all(
            any(rates) for rates in (self.series.uplink_bits_per_s, self.series.downlink_bits_per_s)
        ):
            raise ValueError("series has no bandwidth at all in a direction: nothing would ever arrive")
        return self


class LinkState:
    """One direction of a link at work: when each message arrives. All RPCs of a proxy share it."""

    def __init__(self, config: LinkConfig, began_s: float, *, upwards: bool = True) -> None:
        """Begin.

        Args:
            config: The direction.
            began_s: Time from which outages and series count.
            upwards: Which of the two bandwidths of a series holds.
        """
        self.config = config
        self._upwards = upwards
        self.down = False
        self.messages = self.bytes = self.lost = 0
        self._random = random.Random(config.seed)
        self._free_s = self._last_s = began_s
        self.begin(began_s)

    def begin(self, began_s: float) -> None:
        """Count outages and series from this time on."""
        self._began_s = began_s
        self._replay: tuple[Channel, Any, LinkSeries] | None = None
        if (series := self.config.series) is not None:
            # The simulator's own channel says when a message has left, so that both replay a series alike.
            channels = duplex(_replaying(series), seed=0, number=0, series=series)
            self._replay = channels[0 if self._upwards else 1], SeriesCursor(series, 0.0), series

    def arrivals(self, now_s: float, size_bytes: int) -> list[float]:
        """Return when copies of a message arrive: none, one or two times."""
        link, draw = self.config, self._random
        self.messages += 1
        self.bytes += size_bytes
        start = max(now_s, self._free_s)
        since = now_s - self._began_s
        further_s = 0.0
        if self._replay is not None:
            channel, piece, series = self._replay
            channel.send(start - self._began_s, size_bytes + link.header_bytes)
            piece.advance(channel.free_s)
            start, further_s = self._began_s + channel.free_s, series.extra_delay_s[piece.index]
        elif link.bandwidth_bytes_per_s:
            start += (size_bytes + link.header_bytes) / link.bandwidth_bytes_per_s
        self._free_s = start
        out = self.down or any(begin <= since < end for begin, end in link.outages)
        if out or draw.random() < link.drop:
            self.lost += 1
            return []
        delay = (
            max(link.delay_s / 2, draw.gauss(link.delay_s, link.jitter_s)) if link.jitter_s else link.delay_s
        )
        arrival = max(start + delay + further_s, self._last_s)
        if draw.random() < link.reorder:
            return [arrival + draw.uniform(0, link.reorder_s)]
        self._last_s = arrival
        if draw.random() < link.duplicate:
            return [arrival, arrival + draw.uniform(0, link.reorder_s)]
        return [arrival]


def _replaying(series: LinkSeries) -> Link:
    """Return the simulator's link that has nothing but the series."""
    return Link(
        one_way_s=0.0,
        uplink_bits_per_s=max(series.uplink_bits_per_s),
        downlink_bits_per_s=max(series.downlink_bits_per_s),
        replay=Replay(file="given", random_start=False),
    )


class ShapedProxy:
    """Passes messages between clients and a server, as slowly and badly as it is told."""

    def __init__(self, upstream: str, up: LinkConfig, down: LinkConfig) -> None:
        """Make a proxy.

        Args:
            upstream: Host and port of the server.
            up: The way from the clients to it.
            down: The way back.
        """
        now = time.monotonic()
        self.upstream = upstream
        self.up, self.down = LinkState(up, now), LinkState(down, now, upwards=False)
        self._channel: Any = None

    async def ready(self) -> None:
        """Wait until the way to the server is open, which otherwise the first message pays for."""
        await self._channel.channel_ready()

    def begin(self) -> None:
        """Count outages and series of both directions from now on."""
        now = time.monotonic()
        self.up.begin(now)
        self.down.begin(now)

    def outage(self, is_down: bool) -> None:
        """Begin or end an outage in both directions."""
        self.up.down = self.down.down = is_down

    @asynccontextmanager
    async def serving(self, address: str = "127.0.0.1:0") -> AsyncIterator[int]:
        """Serve at an address, and give its port."""
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((_Handler(self),))
        port = server.add_insecure_port(address)
        self._channel = grpc.aio.insecure_channel(self.upstream, options=CHANNEL_OPTIONS)
        await server.start()
        try:
            yield port
        finally:
            await server.stop(None)
            await self._channel.close()

    async def pass_on(self, method: str, context: Any) -> None:
        """Pass the messages of one RPC on, until the server or the client ends it."""
        metadata = [(k, v) for k, v in context.invocation_metadata() if k == "authorization"]
        call = self._channel.stream_stream(method)(metadata=metadata)
        upwards = asyncio.create_task(_carry(context.read, call.write, self.up, call.done_writing))
        try:
            await _carry(call.read, context.write, self.down, None)
            code, details = await call.code(), await call.details()
            if code is not grpc.StatusCode.OK:
                await context.abort(code, details)
        except grpc.aio.AioRpcError as error:
            await context.abort(error.code(), error.details())
        finally:
            upwards.cancel()
            call.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await upwards


#: A client that comes back must not wait for gRPC's own back-off, which grows to minutes.
CHANNEL_OPTIONS = [
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.use_local_subchannel_pool", 1),
]


class _Handler(grpc.GenericRpcHandler):  # type: ignore[misc]
    def __init__(self, proxy: ShapedProxy) -> None:
        self._proxy = proxy

    def service(self, details: Any) -> Any:
        method = details.method

        async def serve(_: Any, context: Any) -> None:
            await self._proxy.pass_on(method, context)

        return grpc.stream_stream_rpc_method_handler(serve)


async def _carry(read: Any, write: Any, link: LinkState, end: Any) -> None:
    """Carry messages one way; ``end`` is called behind the last."""
    loop = asyncio.get_running_loop()
    arrived: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def deliver() -> None:
        while (message := await arrived.get()) is not None:
            await write(message)

    task = asyncio.create_task(deliver())
    last_s = 0.0
    try:
        while (message := await read()) is not grpc.aio.EOF:
            now_s, clock_s = time.monotonic(), loop.time()
            for arrival_s in link.arrivals(now_s, len(message)):
                at_s = clock_s + arrival_s - now_s
                last_s = max(last_s, at_s)
                loop.call_at(at_s, arrived.put_nowait, message)
        loop.call_at(max(last_s, loop.time()), arrived.put_nowait, None)
        await task
        if end is not None:
            await end()
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await task
