"""A controller of the serving package steers the testbed."""

import asyncio

import pytest

pytest.importorskip("grpc", reason="needs the extra `testbed`")
pytest.importorskip("transformers", reason="needs the extra `testbed`")
serving = pytest.importorskip("dsd_env.serving")

from dsd_env.testbed.serving import ControllerHook  # noqa: E402
from tests.testbed.pair import client, make_pair, questions, testbed  # noqa: E402


def test_a_rule_of_the_registry_steers_real_rounds():
    pair = make_pair(0.01)
    asked = questions(2, 20)
    deployment = serving.Deployment.of_engine(step_s=0.02, token_s=1e-4, draft_step_s=0.002, max_num_seqs=8)
    controller = serving.Controller("hf_heuristic", deployment)
    hook = ControllerHook(controller)
    windows = []

    def decide(seen):
        decision = hook(seen)
        windows.append(decision.gamma)
        return decision

    async def run():
        async with testbed(pair, colocated=pair.line) as (_, _, channel):
            return await asyncio.gather(
                *(
                    client(channel, pair, "synchronous", decide, config={"plain_chunk_tokens": 1}).generate(q)
                    for q in asked
                )
            )

    outputs = asyncio.run(run())
    assert [o.tokens for o in outputs] == [pair.alone(q) for q in asked]
    assert controller.counts["decisions"] == len(windows)
    assert len(set(windows)) > 1  # it adapts
    for number in range(2):
        hook.finished(number)
    assert not hook._committed
