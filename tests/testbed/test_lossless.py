"""Whatever the link, the schedule and the crashes: the output is the target's own, token for token."""

import asyncio
import random
import secrets
from contextlib import AsyncExitStack

import pytest

pytest.importorskip("grpc", reason="needs the extra `testbed`")
pytest.importorskip("transformers", reason="needs the extra `testbed`")

from dsd_env.sim.events import EventKind
from dsd_env.testbed.client import TestbedError
from dsd_env.testbed.connection import open_channel
from dsd_env.testbed.control import RoundDecision, static
from dsd_env.testbed.engine import EngineConfig
from dsd_env.testbed.link import LinkConfig
from dsd_env.testbed.log import EventLog
from dsd_env.testbed.server import CloudServer
from tests.testbed.pair import STOP, client, make_pair, questions, testbed

PROTOCOLS = ("synchronous", "pipelined", "streaming")
GOOD = LinkConfig(delay_s=0.002)
BAD = LinkConfig(
    delay_s=0.003, jitter_s=0.002, bandwidth_bytes_per_s=1e6, drop=0.12, duplicate=0.2, reorder=0.2, seed=3
)
SLOW_TARGET = EngineConfig(min_iteration_s=0.02)


@pytest.fixture(scope="module")
def pair():
    return make_pair(0.01)


def erratic(seen):
    """A scheduler that changes its mind all the time."""
    draw = random.Random(seen.committed_tokens * 7 + seen.request)
    return RoundDecision(draw.choice([0, 1, 3, 6]), draw.choice(["edge", "edge", "cloud"]))


async def all_outputs(one, asked, **more):
    return await asyncio.gather(*(one.generate(question, **more) for question in asked))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("decide", [static(3), erratic], ids=["static", "erratic"])
def test_greedy_output_is_the_targets_own(pair, protocol, decide):
    asked = questions(3, 14)

    async def run():
        async with testbed(pair, BAD, colocated=pair.line, engine=SLOW_TARGET) as (cloud, proxy, channel):
            outputs = await all_outputs(client(channel, pair, protocol, decide), asked)
            assert not cloud.refusals
            assert proxy.up.lost + proxy.down.lost > 0
            return outputs

    outputs = asyncio.run(run())
    assert [o.tokens for o in outputs] == [pair.alone(question) for question in asked]
    for output in outputs:
        assert len(output.times_s) == len(output.tokens)
        assert output.times_s == sorted(output.times_s)
        assert 0 <= output.accepted <= output.verified
    # Drafts took part: an output that comes out right because the target does all by itself proves little.
    # (In a stream that depends on how busy the machine is.)
    assert protocol == "streaming" or sum(o.accepted for o in outputs) > 0


@pytest.mark.parametrize("protocol", ["synchronous", "streaming"])
def test_sampled_output_is_the_targets_own_at_the_same_seed(pair, protocol):
    asked = questions(3, 16, temperature=0.9)

    async def run():
        async with testbed(pair, BAD, engine=SLOW_TARGET) as (_, _, channel):
            return await all_outputs(client(channel, pair, protocol, static(3)), asked)

    outputs = asyncio.run(run())
    assert [o.tokens for o in outputs] == [pair.alone(question) for question in asked]
    assert protocol == "streaming" or sum(o.accepted for o in outputs) > 0
    assert pair.alone(questions(1, 16)[0]) != pair.alone(asked[0])


def test_synchronous_counts_are_those_of_a_calculation_by_hand(pair):
    """Rounds, drafts and accepted drafts of a static length, from the two models' own outputs alone."""
    question = questions(1, 20)[0]
    truth = pair.alone(question)
    expected_accepted = expected_drafts = rounds = 0
    at = 1  # the end of the prompt gives the first token
    line = pair.line(question)
    while at < len(truth):
        gamma = min(4, len(truth) - at - 1)
        line.rebase(truth[:at])
        drafts = []
        while len(drafts) < gamma and (new := line.step()) is not None:
            drafts += new
        accepted = 0
        while accepted < len(drafts) and drafts[accepted] == truth[at + accepted]:
            accepted += 1
        expected_drafts += len(drafts)
        expected_accepted += accepted
        rounds += 1
        at += accepted + 1

    async def run():
        async with testbed(pair) as (_, _, channel):
            return await client(channel, pair, "synchronous", static(4)).generate(question)

    output = asyncio.run(run())
    assert len(truth) == 20
    assert (output.verified, output.accepted) == (expected_drafts, expected_accepted)
    assert (output.results, output.iterations) == (rounds + 1, rounds + 1)


def test_a_perfect_drafter_is_never_wrong():
    pair = make_pair(noise=0.0)
    question = questions(1, 13)[0]
    # So slow that the drafter keeps ahead of it on a busy machine too.
    engine = EngineConfig(min_iteration_s=0.1)

    async def run(protocol):
        async with testbed(pair, engine=engine) as (_, _, channel):
            return await client(channel, pair, protocol, static(4)).generate(question)

    truth = pair.alone(question)
    for protocol in PROTOCOLS:
        output = asyncio.run(run(protocol))
        assert output.tokens == truth
        assert output.accepted == output.verified > 0
        assert output.rollbacks == 0
        if protocol == "synchronous":
            assert output.results == 1 + 3  # the first token, then 12 tokens, 5 a round


def test_many_requests_share_few_seats_and_long_prompts_come_in_pieces(pair):
    asked = questions(7, 9)
    engine = EngineConfig(max_num_seqs=2, max_num_batched_tokens=5, max_kv_tokens=64)

    async def run():
        async with testbed(pair, engine=engine) as (cloud, _, channel):
            outputs = await all_outputs(client(channel, pair, "synchronous", static(4)), asked)
            assert cloud._engine.resident == cloud._engine.waiting == 0
            return outputs

    assert [o.tokens for o in asyncio.run(run())] == [pair.alone(question) for question in asked]


@pytest.mark.parametrize("protocol", ["pipelined", "streaming"])
def test_an_outage_delays_and_does_no_harm(pair, protocol):
    asked = questions(2, 16)

    async def run():
        async with testbed(pair, GOOD, engine=SLOW_TARGET) as (_, proxy, channel):
            task = asyncio.create_task(all_outputs(client(channel, pair, protocol), asked))
            await asyncio.sleep(0.1)
            proxy.outage(True)
            await asyncio.sleep(0.4)
            assert not task.done()
            proxy.outage(False)
            return await task

    outputs = asyncio.run(run())
    assert [o.tokens for o in outputs] == [pair.alone(question) for question in asked]
    assert sum(o.retries for o in outputs) > 0


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_client_that_crashes_goes_on_where_it_was(pair, protocol):
    question = questions(1, 24)[0]
    identity = {"request_id": secrets.token_hex(16), "secret": secrets.token_bytes(16)}
    heard = []

    async def run():
        async with testbed(pair, engine=SLOW_TARGET) as (cloud, _, channel):
            first = asyncio.create_task(
                client(channel, pair, protocol).generate(question, on_tokens=heard.extend, **identity)
            )
            while len(heard) < 6:
                await asyncio.sleep(0.002)
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            assert len(cloud._sessions) == 1
            # Another process: it knows the request's name and secret, and nothing else.
            output = await client(channel, pair, protocol).generate(question, **identity)
            assert cloud._numbers == 1
            return output

    output = asyncio.run(run())
    assert output.tokens == pair.alone(question)
    assert heard == output.tokens[: len(heard)]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_server_that_is_started_anew_loses_nothing(pair, protocol):
    asked = questions(3, 20)
    heard = []
    events = []

    async def run():
        async with AsyncExitStack() as stack:
            first = await stack.enter_async_context(AsyncExitStack())
            server = CloudServer(pair.target, STOP, engine=SLOW_TARGET)
            port = await first.enter_async_context(server.serving())
            channel = open_channel(f"127.0.0.1:{port}")
            stack.push_async_callback(channel.close)
            log = EventLog(watch=events.append)
            one = client(channel, pair, protocol, log=log)
            task = asyncio.create_task(all_outputs(one, asked, on_tokens=heard.extend))
            while len(heard) < 12:
                await asyncio.sleep(0.002)
            await first.aclose()
            await asyncio.sleep(0.05)
            again = CloudServer(pair.target, STOP, engine=SLOW_TARGET)
            await stack.enter_async_context(again.serving(f"127.0.0.1:{port}"))
            outputs = await task
            assert again.instance != server.instance
            assert again._numbers == len(asked)
            return outputs

    outputs = asyncio.run(run())
    assert [o.tokens for o in outputs] == [pair.alone(question) for question in asked]
    assert all(o.reconnects for o in outputs)
    kinds = {event["kind"] for event in events}
    assert {EventKind.FAULT.name, EventKind.RETURN.name, EventKind.COMPLETE.name} <= kinds


def test_a_target_that_ends_its_turn_is_heard(pair):
    """Requests whose output has the end-of-turn token in it, at every place of a window."""
    alone = {id(q): (q, pair.alone(q)) for q in questions(10, 24)}
    asked = [q for q, output in alone.values() if len(output) < 24]
    assert len({len(alone[id(q)][1]) for q in asked}) >= 1

    async def run(protocol):
        async with testbed(pair) as (_, _, channel):
            return await all_outputs(client(channel, pair, protocol, static(3)), asked)

    for protocol in PROTOCOLS:
        outputs = asyncio.run(run(protocol))
        assert [o.tokens for o in outputs] == [alone[id(question)][1] for question in asked]
        assert {o.finish_reason for o in outputs} == {"stop"}


def test_a_server_that_never_answers_is_given_up(pair):
    async def run():
        channel = open_channel("127.0.0.1:1")
        try:
            await client(channel, pair, config={"give_up_s": 0.3}).generate(questions(1)[0])
        finally:
            await channel.close()

    with pytest.raises(TestbedError, match="cannot be reached"):
        asyncio.run(run())
