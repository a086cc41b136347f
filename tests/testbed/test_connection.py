"""What a connection knows of its round trips."""

import asyncio
import time

import pytest

pytest.importorskip("grpc", reason="needs the extra `testbed`")

from dsd_env.testbed.connection import Connection
from dsd_env.testbed.proto import testbed_pb2 as pb


class Silent:
    """A channel whose one RPC takes everything and says nothing."""

    def stream_stream(self, *_, **__):
        return lambda metadata: self

    async def read(self):
        await asyncio.Event().wait()

    async def write(self, message):
        pass

    def cancel(self):
        pass


def test_a_message_that_was_sent_twice_times_nothing():
    """Nobody knows which copy an answer echoes; that of the second would make a slow link look fast."""

    async def run():
        connection = Connection(Silent(), "r", None)
        once = await connection.send(close=pb.DraftClose(reason=""))
        twice = await connection.send(close=pb.DraftClose(reason=""))
        await asyncio.sleep(0.02)
        for _ in range(2):
            await connection.send_again(twice)
            assert connection.rtt_s(twice.sequence, 0.0) is None
        assert 0.02 <= connection.rtt_s(once.sequence, 0.0) <= time.monotonic()
        assert connection.rtt_s(once.sequence, 0.015) < connection.rtt_s(once.sequence, 0.0)
        assert connection.rtt_s(99, 0.0) is None
        await connection.close()

    asyncio.run(run())
