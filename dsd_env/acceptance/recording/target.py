"""The target's greedy run: several requests in one left-padded batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dsd_env.acceptance.recording.models import LanguageModel


@dataclass(frozen=True)
class TargetRun:
    """One greedy run of the target.

    Attributes:
        prompt_ids: Prompt tokens, chat template included.
        output_ids: Output tokens; the end-of-turn token is not one of them.
        margins: Per output token, logit of the choice minus logit of the runner-up.
        finished: True if the target ended its turn, False if the length limit ended the run.
    """

    prompt_ids: list[int]
    output_ids: list[int]
    margins: list[float]
    finished: bool


#: Tokens of one forward pass of the prefill. Activations of a whole batch of long prompts take gigabytes.
PREFILL_TOKENS = 2048


def greedy_runs(
    target: LanguageModel,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    status: Callable[[str], None] = lambda _: None,
) -> list[TargetRun]:
    """Decode several prompts greedily in one batch.

    Args:
        target: The target.
        prompts: Token ids of each prompt.
        max_tokens: Length limit of every output.
        status: Called after every forward pass with a few words on where it stands.

    Returns:
        One run per prompt, in order.
    """
    import torch
    from transformers import DynamicCache

    n, width = len(prompts), max(len(p) for p in prompts)
    device = target.model.device
    ids = torch.zeros((n, width), dtype=torch.long, device=device)
    mask = torch.zeros((n, width), dtype=torch.long, device=device)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt, device=device)
        mask[row, width - len(prompt) :] = 1
    position = (mask.cumsum(-1) - 1).clamp(min=0)
    outputs: list[list[int]] = [[] for _ in prompts]
    margins: list[list[float]] = [[] for _ in prompts]
    finished = [False] * n
    rows = list(range(n))  # request of each row of the batch, as finished rows are dropped
    cache: Any = DynamicCache(config=target.model.config)
    with torch.inference_mode():
        chunk = max(1, PREFILL_TOKENS // n)
        while ids.shape[1] > chunk:
            end = mask.shape[1] - ids.shape[1] + chunk
            target.model(
                input_ids=ids[:, :chunk],
                attention_mask=mask[:, :end],
                position_ids=position[:, :chunk],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            ids, position = ids[:, chunk:], position[:, chunk:]
            status(f"{n} prompts, {end}/{width} tokens read")
        while True:
            out = target.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=position,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            top = out.logits[:, -1].float().topk(2)
            keep = []
            for row, request in enumerate(rows):
                token = int(top.indices[row, 0])
                if token in target.stop_ids:
                    finished[request] = True
                    continue
                outputs[request].append(token)
                margins[request].append(float(top.values[row, 0] - top.values[row, 1]))
                if len(outputs[request]) < max_tokens:
                    keep.append(row)
            status(f"{len(keep)} of {n} requests, token {max(map(len, outputs))}/{max_tokens}")
            if not keep:
                break
            index = torch.tensor(keep, device=device)
            if len(keep) < len(rows):
                cache.batch_select_indices(index)
                rows = [rows[k] for k in keep]
                mask = mask[index]
            ids = top.indices[index, :1]
            position = position[index, -1:] + 1
            mask = torch.cat([mask, mask.new_ones((len(rows), 1))], dim=1)
    return [TargetRun(list(p), outputs[i], margins[i], finished[i]) for i, p in enumerate(prompts)]
