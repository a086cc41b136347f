"""A tiny pair of models with random weights, and a testbed around it in one process."""

from __future__ import annotations

import copy
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from dsd_env.calibration.acceptance.recording.models import LanguageModel
from dsd_env.testbed.client import ClientConfig, EdgeClient
from dsd_env.testbed.connection import open_channel
from dsd_env.testbed.control import static
from dsd_env.testbed.drafters import ModelLine, Question
from dsd_env.testbed.link import LinkConfig, ShapedProxy
from dsd_env.testbed.server import CloudServer
from dsd_env.testbed.target import GREEDY, Feed, PackedTarget, Sampling

VOCABULARY = 48
STOP = frozenset({0})


def make_model(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.5,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    return LlamaForCausalLM(config).double().eval()


@dataclass(frozen=True)
class Pair:
    target: LlamaForCausalLM
    draft: LanguageModel

    def line(self, question: Question) -> ModelLine:
        return ModelLine(self.draft, question)

    def alone(self, question: Question) -> list[int]:
        """What the target says by itself: the whole sequence read anew for every token, without a cache."""
        output: list[int] = []
        for position in range(question.max_new_tokens):
            with torch.inference_mode():
                logits = self.target(torch.tensor([question.prompt_ids + output]), use_cache=False).logits[
                    0, -1:
                ]
            token = (
                int(logits.argmax())
                if not question.sampling.temperature
                else sampled(logits, question, position)
            )
            if token in STOP:
                break
            output.append(token)
        return output


def sampled(logits: torch.Tensor, question: Question, position: int) -> int:
    """A token at a draw, by definition: the first whose cumulated probability exceeds it."""
    probs = torch.softmax(logits[0] / question.sampling.temperature, -1)
    draw = question.sampling.draw(position)
    total = 0.0
    for token, p in enumerate(probs.tolist()):
        total += p
        if total > draw:
            return token
    return len(probs) - 1


def make_pair(noise: float = 0.02) -> Pair:
    """A target, and the same model with noise on its weights as its drafter: often right, not always."""
    target = make_model()
    draft = copy.deepcopy(target)
    torch.manual_seed(1)
    with torch.no_grad():
        for weights in draft.parameters():
            weights += noise * torch.randn_like(weights)
    return Pair(target, LanguageModel("draft", draft, None, {}, STOP))


def questions(count: int, max_new_tokens: int = 24, temperature: float = 0.0) -> list[Question]:
    generator = torch.Generator().manual_seed(7)
    made = []
    for number in range(count):
        size = int(torch.randint(1, 12, (1,), generator=generator))
        prompt = torch.randint(1, VOCABULARY, (size,), generator=generator).tolist()
        made.append(Question(prompt, max_new_tokens, None, Sampling(temperature, number)))
    return made


QUICK = {"retry_s": 0.15, "reconnect_s": 0.02, "silence_s": 2.0, "give_up_s": 20.0}


@asynccontextmanager
async def testbed(pair: Pair, up: LinkConfig | None = None, down: LinkConfig | None = None, **server):
    """Server, proxy if there is a link, and a channel to them."""
    async with AsyncExitStack() as stack:
        cloud = CloudServer(pair.target, STOP, **server)
        port = await stack.enter_async_context(cloud.serving())
        proxy = None
        if up is not None:
            proxy = ShapedProxy(f"127.0.0.1:{port}", up, down or up)
            port = await stack.enter_async_context(proxy.serving())
        channel = open_channel(f"127.0.0.1:{port}")
        stack.push_async_callback(channel.close)
        yield cloud, proxy, channel


testbed.__test__ = False


def client(channel, pair: Pair, protocol: str = "streaming", decide=None, **more) -> EdgeClient:
    config = ClientConfig(**{**QUICK, "protocol": protocol, **more.pop("config", {})})
    return EdgeClient(channel, pair.line, decide or static(4), config, **more)


__all__ = [
    "GREEDY",
    "STOP",
    "VOCABULARY",
    "Feed",
    "PackedTarget",
    "Pair",
    "client",
    "make_pair",
    "questions",
    "testbed",
]
