"""A client's RPC: sends messages with numbers, sends them again unchanged, and tells when it is lost."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Any

from dsd_env.extras import needs
from dsd_env.testbed.link import CHANNEL_OPTIONS
from dsd_env.testbed.wire import SERVICE, pb

with needs("testbed", "the testbed"):
    import grpc
    import grpc.aio

#: Messages of which the time of sending is remembered, for the round trip.
REMEMBERED = 512


class Lost(Exception):
    """An RPC that has ended before its request.

    Attributes:
        code: gRPC's status, None where the server ended it without one.
    """

    def __init__(self, code: grpc.StatusCode | None, details: str) -> None:
        """Say how it ended."""
        super().__init__(f"{'ended' if code is None else code.name}: {details}")
        self.code = code


class Connection:
    """One RPC. What comes is in :attr:`inbox`: messages, and at its end a :class:`Lost`."""

    def __init__(self, channel: grpc.aio.Channel, request_id: str, token: str | None) -> None:
        """Begin an RPC."""
        serve = channel.stream_stream(
            f"/{SERVICE}/Serve",
            request_serializer=pb.EdgeMessage.SerializeToString,
            response_deserializer=pb.CloudMessage.FromString,
        )
        metadata = [] if token is None else [("authorization", f"Bearer {token}")]
        self._call: Any = serve(metadata=metadata)
        self._request_id = request_id
        self._sequence = 0
        self._sent_s: OrderedDict[int, float | None] = OrderedDict()
        self.inbox: asyncio.Queue[pb.CloudMessage | Lost] = asyncio.Queue()
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        try:
            while (message := await self._call.read()) is not grpc.aio.EOF:
                self.inbox.put_nowait(message)
            code, details = await self._call.code(), await self._call.details()
            self.inbox.put_nowait(Lost(None if code is grpc.StatusCode.OK else code, details or ""))
        except grpc.aio.AioRpcError as error:
            self.inbox.put_nowait(Lost(error.code(), error.details() or ""))

    async def send(self, **body: Any) -> pb.EdgeMessage:
        """Send a new message with the body given by its name, and return it."""
        self._sequence += 1
        message = pb.EdgeMessage(request_id=self._request_id, sequence=self._sequence, **body)
        await self.send_again(message)
        return message

    async def send_again(self, message: pb.EdgeMessage) -> None:
        """Send a message as it is. That an RPC is over is told by the inbox."""
        # Nobody knows which copy an answer echoes: a message sent twice times nothing (Karn's rule).
        again = message.sequence in self._sent_s
        self._sent_s[message.sequence] = None if again else time.monotonic()
        self._sent_s.move_to_end(message.sequence)
        while len(self._sent_s) > REMEMBERED:
            self._sent_s.popitem(last=False)
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await self._call.write(message)

    def rtt_s(self, echo: int, hold_s: float) -> float | None:
        """Return the round trip of a message that an answer echoes; None if sent again, or forgotten."""
        sent_s = self._sent_s.get(echo)
        if sent_s is None:
            return None
        return max(0.0, time.monotonic() - sent_s - hold_s)

    async def close(self, reason: str | None = None) -> None:
        """End the RPC, with word to the server if a reason is given."""
        if reason is not None:
            await self.send(close=pb.DraftClose(reason=reason))
            with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError):
                await self._call.done_writing()
                await asyncio.wait_for(self._call.code(), 0.5)
        self._call.cancel()
        self._reader.cancel()
        with suppress(asyncio.CancelledError):
            await self._reader


def open_channel(address: str, credentials: grpc.ChannelCredentials | None = None) -> grpc.aio.Channel:
    """Return a channel to a server, with TLS if credentials are given."""
    if credentials is None:
        return grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
    return grpc.aio.secure_channel(address, credentials, options=CHANNEL_OPTIONS)


def client_credentials(
    authority: Path, key: Path | None = None, certificate: Path | None = None
) -> grpc.ChannelCredentials:
    """Return TLS credentials of a client.

    Args:
        authority: Certificate of the authority that signed the server's, PEM.
        key: The client's own key, for mutual TLS.
        certificate: Its certificate.
    """
    return grpc.ssl_channel_credentials(
        authority.read_bytes(),
        None if key is None else key.read_bytes(),
        None if certificate is None else certificate.read_bytes(),
    )
