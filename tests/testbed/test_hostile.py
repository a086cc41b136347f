"""Peers that lie, flood and pretend: refused with a reason, and nobody else's request is harmed."""

import asyncio
import random
import secrets
import subprocess

import pytest

pytest.importorskip("grpc", reason="needs the extra `testbed`")
pytest.importorskip("transformers", reason="needs the extra `testbed`")

import grpc

from dsd_env.testbed.client import TestbedError
from dsd_env.testbed.connection import client_credentials, open_channel
from dsd_env.testbed.control import static
from dsd_env.testbed.server import CloudServer, server_credentials
from dsd_env.testbed.wire import SERVICE, Limits, Prefix, pb
from tests.testbed.pair import STOP, VOCABULARY, client, make_pair, questions, testbed

LIMITS = Limits(
    max_prompt_tokens=40,
    max_new_tokens=48,
    max_window=8,
    max_message_bytes=4096,
    max_messages_per_s=200,
    message_burst=60,
    max_sessions=12,
    max_sessions_per_owner=8,
    handshake_s=0.3,
    session_ttl_s=0.5,
)
NAMES = [value.name for value in pb.DESCRIPTOR.enum_types_by_name["RefusalCode"].values]
OWN_ID, OTHER_ID = "a" * 32, "b" * 32
SECRET = b"0123456789abcdef"


@pytest.fixture(scope="module")
def pair():
    return make_pair(0.01)


def opening(request_id=OWN_ID, sequence=1, **changes):
    fields = {"secret": SECRET, "prompt_token_ids": [3, 4, 5], "max_new_tokens": 16} | changes
    return pb.EdgeMessage(request_id=request_id, sequence=sequence, open=pb.DraftOpen(**fields))


def drafts(sequence=2, request_id=OWN_ID, prompt=(3, 4, 5), **changes):
    fields = {
        "mode": pb.FREE_RUN,
        "window": 4,
        "base_digest": Prefix(prompt).digest(),
        "tokens": [1],
    } | changes
    return pb.EdgeMessage(request_id=request_id, sequence=sequence, drafts=pb.DraftTailStream(**fields))


class Peer:
    """An RPC that sends whatever bytes it likes."""

    def __init__(self, channel, metadata=()):
        self.call = channel.stream_stream(f"/{SERVICE}/Serve")(metadata=list(metadata))

    async def send(self, *messages):
        for message in messages:
            raw = message if isinstance(message, bytes) else message.SerializeToString()
            try:
                await self.call.write(raw)
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                return

    async def refused(self):
        """The name and the reason of the refusal that ends the RPC; "" if it ends without one."""
        told = None
        try:
            while (raw := await asyncio.wait_for(self.call.read(), 5)) is not grpc.aio.EOF:
                message = pb.CloudMessage.FromString(raw)
                if message.WhichOneof("body") == "refusal":
                    told = message.refusal
        except grpc.aio.AioRpcError:
            pass
        code = await self.call.code()
        name, colon, reason = (await self.call.details()).partition(": ")
        if not colon or name not in NAMES:
            return ""
        assert code is not grpc.StatusCode.OK
        assert reason
        # A peer that is still sending may get the status only.
        assert told is None or (pb.RefusalCode.Name(told.code), told.reason) == (name, reason)
        return name


async def refused(channel, *messages):
    peer = Peer(channel)
    await peer.send(*messages)
    return await peer.refused()


NONSENSE = {
    "no opening": ([drafts(sequence=1)], pb.UNEXPECTED),
    "empty": ([b""], pb.UNEXPECTED),
    "garbage": ([b"\xff\xfe\x00garbage"], pb.MALFORMED),
    "truncated": ([opening().SerializeToString()[:-3]], pb.MALFORMED),
    "name": ([opening(request_id="../../etc/passwd")], pb.MALFORMED),
    "long name": ([opening(request_id="a" * 3000)], pb.MALFORMED),
    "short secret": ([opening(secret=b"1")], pb.MALFORMED),
    "no prompt": ([opening(prompt_token_ids=[])], pb.MALFORMED),
    "long prompt": ([opening(prompt_token_ids=[1] * 41)], pb.TOO_LARGE),
    "token": ([opening(prompt_token_ids=[VOCABULARY])], pb.MALFORMED),
    "huge token": ([opening(prompt_token_ids=[2**32 - 1])], pb.MALFORMED),
    "length": ([opening(max_new_tokens=49)], pb.TOO_LARGE),
    "no length": ([opening(max_new_tokens=0)], pb.TOO_LARGE),
    "outputs": ([opening(committed_outputs=[1] * 17)], pb.MALFORMED),
    "temperature": ([opening(temperature=float("nan"))], pb.MALFORMED),
    "sequence": ([opening(sequence=0)], pb.MALFORMED),
    "opened twice": ([opening(), opening(sequence=2)], pb.UNEXPECTED),
    "same number": ([opening(), drafts(), drafts(tokens=[2])], pb.REPLAYED),
    "leap": ([opening(), drafts(sequence=10**9)], pb.MALFORMED),
    "foreign": ([opening(), drafts(request_id=OTHER_ID)], pb.FOREIGN_SESSION),
    "window": ([opening(), drafts(window=9)], pb.TOO_LARGE),
    "base": ([opening(), drafts(base_committed_len=40, start_token_pos=40)], pb.MALFORMED),
    "no drafter": ([opening(), drafts(mode=pb.COLOCATED)], pb.UNEXPECTED),
    "contradiction": (
        [opening(), *(drafts(i, start_token_pos=7, tokens=[i], generation=9) for i in (2, 3))],
        pb.CONTRADICTION,
    ),
}


def test_nonsense_is_refused_with_a_reason_while_others_go_on(pair):
    asked = questions(2, 40)

    async def run():
        async with testbed(pair, limits=LIMITS) as (cloud, _, channel):
            good = asyncio.gather(*(client(channel, pair).generate(q) for q in asked))
            for name, (messages, code) in NONSENSE.items():
                other = open_channel(channel_target(cloud))
                assert await refused(other, *messages) == pb.RefusalCode.Name(code), name
                await other.close()
                cloud._forget(OWN_ID, "")
            outputs = await good
            assert cloud.refusals.total() == len(NONSENSE)
            return outputs

    assert [o.tokens for o in asyncio.run(run())] == [pair.alone(q) for q in asked]


def channel_target(cloud):
    return f"127.0.0.1:{cloud.port}"


def test_a_stranger_cannot_take_up_read_or_end_a_request(pair):
    question = questions(1, 40)[0]
    identity = {"request_id": OTHER_ID, "secret": secrets.token_bytes(16)}

    async def run():
        async with testbed(pair, limits=LIMITS) as (cloud, _, channel):
            task = asyncio.create_task(client(channel, pair, "synchronous").generate(question, **identity))
            while OTHER_ID not in cloud._attached:
                await asyncio.sleep(0.001)
            prompt = question.prompt_ids
            wrong = opening(OTHER_ID, prompt_token_ids=prompt, max_new_tokens=40)
            assert await refused(channel, wrong) == "FOREIGN_SESSION"
            close = pb.EdgeMessage(request_id=OTHER_ID, sequence=2, close=pb.DraftClose(reason="mine now"))
            assert await refused(channel, opening(), close) == "FOREIGN_SESSION"
            return await task

    output = asyncio.run(run())
    assert output.tokens == pair.alone(question)
    assert output.reconnects == 0


def test_floods_large_messages_and_silence(pair):
    question = questions(1, 40)[0]

    async def run():
        async with testbed(pair, limits=LIMITS) as (cloud, _, channel):
            good = asyncio.create_task(client(channel, pair).generate(question))
            peer = Peer(channel)
            await peer.send(opening(), *(drafts(i, tokens=[]) for i in range(2, 400)))
            await peer.refused()  # in the middle of its own sending it may not hear why
            assert await peer.call.code() is not grpc.StatusCode.OK
            assert cloud.refusals["FLOOD"] == 1
            # Larger than a message may be: gRPC ends the RPC before it is read.
            peer = Peer(channel)
            await peer.send(opening(prompt_token_ids=[1] * 10_000))
            assert await peer.refused() == ""
            assert await peer.call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            # Nothing at all.
            assert await Peer(channel).refused() == "UNEXPECTED"
            return await good

    assert asyncio.run(run()).tokens == pair.alone(question)


def test_one_owner_cannot_take_all_the_room_and_room_comes_back(pair):
    async def run():
        async with testbed(pair, limits=LIMITS) as (cloud, _, channel):
            peers = [Peer(channel) for _ in range(8)]
            for number, peer in enumerate(peers):
                await peer.send(opening(f"{number:032x}"))
                await peer.call.read()
            assert await refused(channel, opening()) == "BUSY"
            for peer in peers:
                peer.call.cancel()
            # A client that is told to come again does so, until those who have left are forgotten.
            output = await client(channel, pair).generate(questions(1, 8)[0])
            assert len(cloud._quota_of) == len(cloud._sessions) <= 1
            return output

    output = asyncio.run(run())
    assert output.tokens == pair.alone(questions(1, 8)[0])
    assert output.reconnects > 0


def test_a_client_that_does_not_read_costs_nothing(pair):
    """Its answers are made when it takes them: one, of all that is new."""

    async def run():
        async with testbed(pair, limits=LIMITS.model_copy(update={"session_ttl_s": 60.0})) as (
            cloud,
            _,
            channel,
        ):
            peer = Peer(channel)
            await peer.send(opening(max_new_tokens=40), drafts(tokens=[]))
            while OWN_ID not in cloud._sessions or not cloud._sessions[OWN_ID].finished:
                await asyncio.sleep(0.005)
            output = await client(channel, pair).generate(questions(1, 8)[0])
            # At most each token by itself, besides the answers to the opening and the end.
            assert cloud._attached[OWN_ID].sent <= 2 + 40
            peer.call.cancel()
            return output

    assert asyncio.run(run()).tokens == pair.alone(questions(1, 8)[0])


def test_a_target_has_so_many_positions_and_an_engine_that_fails_says_so(pair, monkeypatch):
    async def run():
        wide = Limits(max_new_tokens=2048)
        async with testbed(pair, limits=wide) as (cloud, _, channel):
            assert await refused(channel, opening(max_new_tokens=512)) == "TOO_LARGE"
            extreme = opening(max_new_tokens=4, temperature=5e-324, seed=2**64 - 1)
            peer = Peer(channel)
            await peer.send(extreme)
            while OWN_ID not in cloud._sessions or not cloud._sessions[OWN_ID].prefix:
                await asyncio.sleep(0.005)
            cloud._forget(OWN_ID, "")
            monkeypatch.setattr(cloud._engine, "_pass", lambda jobs: 1 / 0)
            with pytest.raises(TestbedError, match="the engine failed"):
                await client(channel, pair).generate(questions(1)[0])
            assert await refused(channel, opening()) == "UNEXPECTED"

    asyncio.run(run())


def test_a_client_that_says_nothing_does_not_keep_its_seat(pair):
    async def run():
        async with testbed(pair, limits=LIMITS) as (cloud, _, channel):
            peer = Peer(channel)
            await peer.send(opening())
            await peer.call.read()
            assert cloud._engine.resident + cloud._engine.waiting == 1
            last = None
            while (raw := await asyncio.wait_for(peer.call.read(), 5)) is not grpc.aio.EOF:
                last = pb.CloudMessage.FromString(raw)
            assert last.close.reason == "nothing was heard of the client"
            assert not cloud._sessions
            assert cloud._engine.resident + cloud._engine.waiting == 0

    asyncio.run(run())


@pytest.mark.parametrize("seed", range(2))
def test_fuzz(pair, seed):
    """Random messages, whole ones, damaged ones and mixtures, beside honest clients."""
    draw = random.Random(seed)
    asked = questions(2, 30)

    def anything():
        base = draw.choice([0, 0, 1, 2, 5, 2**31])
        message = draw.choice(
            [
                opening(draw.choice([OWN_ID, OTHER_ID, "c" * 32]), draw.randint(0, 3)),
                drafts(
                    draw.choice([1, 2, 3, 4, 2**40]),
                    draw.choice([OWN_ID, OTHER_ID]),
                    mode=draw.randint(0, 5),
                    window=draw.choice([0, 4, 8, 9, 2**31]),
                    generation=draw.choice([0, 1, 2, 2**63]),
                    base_committed_len=base,
                    start_token_pos=min(base + draw.choice([0, 0, 1, 9]), 2**32 - 1),
                    tokens=[
                        draw.choice([1, 2, 47, 48, 2**32 - 1]) for _ in range(draw.choice([0, 1, 4, 9, 200]))
                    ],
                    run_until_len=draw.choice([0, 10, 2**32 - 1]),
                ),
                pb.EdgeMessage(request_id=OWN_ID, sequence=2, close=pb.DraftClose(reason="x" * 1000)),
            ]
        ).SerializeToString()
        if draw.random() < 0.4:
            data = bytearray(message)
            for _ in range(draw.randint(1, 8)):
                data[draw.randrange(len(data))] = draw.randrange(256)
            message = bytes(data[: draw.randint(0, len(data))])
        return message

    async def attack(port):
        channel = open_channel(f"127.0.0.1:{port}")
        for _ in range(15):
            peer = Peer(channel)
            await peer.send(
                opening(draw.choice([OWN_ID, "c" * 32])), *(anything() for _ in range(draw.randint(1, 6)))
            )
            await peer.call.done_writing()
            await asyncio.sleep(0.002)
            peer.call.cancel()
        await channel.close()

    async def run():
        async with testbed(pair, limits=LIMITS) as (cloud, _, channel):
            good = asyncio.gather(*(client(channel, pair).generate(q) for q in asked))
            await attack(cloud.port)
            outputs = await good
            assert cloud.refusals.total() > 5
            # And it serves as before.
            again = await client(channel, pair, "synchronous", static(3)).generate(asked[0])
            return [o.tokens for o in [*outputs, again]]

    assert asyncio.run(run()) == [pair.alone(q) for q in [*asked, asked[0]]]


def test_bearer_tokens(pair):
    question = questions(1, 8)[0]

    async def run():
        async with testbed(pair, tokens={"anna": "t1", "ben": "t2"}) as (_, _, channel):
            output = await client(channel, pair, token="t1").generate(question)
            for token in (None, "", "t3", "t1 "):
                with pytest.raises(TestbedError, match="UNAUTHENTICATED"):
                    await client(channel, pair, token=token).generate(question)
            # Ben knows the name and the secret of Anna's request, and is not Anna.
            peer = Peer(channel, [("authorization", "Bearer t1")])
            await peer.send(opening())
            await peer.call.read()
            peer = Peer(channel, [("authorization", "Bearer t2")])
            await peer.send(opening())
            assert await peer.refused() == "FOREIGN_SESSION"
            return output

    assert asyncio.run(run()).tokens == pair.alone(question)


def openssl(*arguments, cwd):
    subprocess.run(["openssl", *arguments], cwd=cwd, check=True, capture_output=True)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """An authority, and what it signed: a server's certificate and a client's; and a stranger's."""
    folder = tmp_path_factory.mktemp("certificates")
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    try:
        for name in ("authority", "stranger"):
            openssl(
                "req",
                "-x509",
                *key,
                "-keyout",
                f"{name}.key",
                "-out",
                f"{name}.pem",
                "-subj",
                f"/CN={name}",
                cwd=folder,
            )
    except FileNotFoundError:
        pytest.skip("needs the program openssl")
    (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    for name in ("server", "client"):
        openssl(
            "req",
            *key[:-2],
            "-keyout",
            f"{name}.key",
            "-out",
            f"{name}.csr",
            "-subj",
            f"/CN={name}",
            cwd=folder,
        )
        sign = ("-CA", "authority.pem", "-CAkey", "authority.key", "-CAcreateserial", "-days", "2")
        openssl(
            "x509",
            "-req",
            "-in",
            f"{name}.csr",
            *sign,
            "-extfile",
            "names",
            "-out",
            f"{name}.pem",
            cwd=folder,
        )
    return folder


def test_mutual_tls(pair, certificates):
    question = questions(1, 8)[0]
    at = certificates.joinpath
    quick = {"give_up_s": 0.5, "silence_s": 0.3}

    async def ask(port, credentials):
        channel = open_channel(f"localhost:{port}", credentials)
        try:
            return await client(channel, pair, config=quick).generate(question)
        finally:
            await channel.close()

    async def run():
        server = CloudServer(pair.target, STOP)
        own = server_credentials(at("server.key"), at("server.pem"), at("authority.pem"))
        async with server.serving("localhost:0", own) as port:
            good = client_credentials(at("authority.pem"), at("client.key"), at("client.pem"))
            output = await ask(port, good)
            owners = []
            peer_channel = open_channel(f"localhost:{port}", good)
            peer = Peer(peer_channel)
            await peer.send(opening())
            await peer.call.read()
            owners += [session.owner for session in server._sessions.values()]
            await peer_channel.close()
            assert owners == ["cert:client"]
            for bad in (
                None,  # no TLS
                client_credentials(at("authority.pem")),  # no certificate
                client_credentials(at("authority.pem"), at("stranger.key"), at("stranger.pem")),
                client_credentials(at("stranger.pem"), at("client.key"), at("client.pem")),  # another server
            ):
                with pytest.raises(TestbedError, match="cannot be reached"):
                    await ask(port, bad)
            return output

    assert asyncio.run(run()).tokens == pair.alone(question)
