"""Speculative decoding done directly, round by round: what a replay is checked against."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dsd_env.acceptance.recording.drafters import common_prefix_length
from dsd_env.acceptance.recording.models import LanguageModel

#: Takes the committed output tokens and a speculation length, returns at most that many drafts.
Proposer = Callable[[Sequence[int], int], list[int]]


@dataclass(frozen=True)
class DirectRound:
    """One draft-and-verify round.

    Attributes:
        start: Output position of the first token it decides.
        drafted: Draft tokens verified.
        accepted: Draft tokens accepted.
    """

    start: int
    drafted: int
    accepted: int


def speculative_decode(
    target: LanguageModel,
    prompt_ids: Sequence[int],
    propose: Proposer,
    gamma: int,
    n_tokens: int,
    committed: Sequence[int] = (),
) -> tuple[list[int], list[DirectRound]]:
    """Decode greedily by speculation: each round verifies its drafts in one forward pass of the target.

    The target's KV cache is rolled back to the committed tokens after every round.

    Args:
        target: The target.
        prompt_ids: Prompt tokens.
        propose: The drafter.
        gamma: Drafts per round.
        n_tokens: Stop when this many output tokens are committed.
        committed: Output tokens already there when the first round begins.

    Returns:
        The output tokens (those given included; the last round may go beyond ``n_tokens``, and the
        target's end-of-turn token is left out) and the rounds.
    """
    import torch
    from transformers import DynamicCache

    model = target.model
    prompt, output = list(prompt_ids), list(committed)
    cache: Any = DynamicCache(config=model.config)
    seen = 0  # tokens in the cache
    rounds: list[DirectRound] = []
    while len(output) < n_tokens:
        drafts = propose(output, gamma)[:gamma]
        tokens = (prompt + output + drafts)[seen:]
        with torch.inference_mode():
            out = model(
                input_ids=torch.tensor([tokens], device=model.device),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=len(drafts) + 1,
            )
        choices = out.logits[0].float().argmax(dim=-1).tolist()
        accepted = common_prefix_length(drafts, choices)
        rounds.append(DirectRound(len(output), len(drafts), accepted))
        new = choices[: accepted + 1]
        keep = len(prompt) + len(output) + accepted
        excess = len(prompt) + len(output) + len(drafts) - keep
        if excess:
            cache.crop(-excess)
        seen = keep
        for token in new:
            if token in target.stop_ids:
                return output, rounds
            output.append(token)
    return output, rounds
