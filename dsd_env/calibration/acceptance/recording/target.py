"""The target's own runs, greedy or sampled: several requests in one left-padded batch."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dsd_env.calibration.acceptance.recording.models import LanguageModel
from dsd_env.rng import key, uniform_from_key

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class TargetRun:
    """One run of the target.

    Attributes:
        prompt_ids: Prompt tokens, chat template included.
        output_ids: Output tokens; the end-of-turn token is not one of them.
        margins: Per output token, largest logit minus the second largest.
        finished: True if the target ended its turn, False if the length limit ended the run.
        log_prob: Per output token, logarithm of its probability at the run's temperature (0 if greedy).
    """

    prompt_ids: list[int]
    output_ids: list[int]
    margins: list[float]
    finished: bool
    log_prob: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Row:
    """One run to make.

    Attributes:
        prompt: Index of its prompt.
        temperature: 0 for greedy, else the temperature sampled at.
        key: Key of its uniform draws, see :func:`sampling_key`.
    """

    prompt: int
    temperature: float = 0.0
    key: int = 0


#: Tokens of one forward pass of the prefill. Activations of a whole batch of long prompts take gigabytes.
PREFILL_TOKENS = 2048
#: Finished runs are dropped from a batch when less than this share is left; dropping copies the cache.
DROP_BELOW = 0.75
#: Number of the stream of draws of recordings, far from those of the simulator (``dsd_env.rng.Stream``).
RECORDING_STREAM = 1000


def sampling_key(seed: int, name: str, temperature: float) -> int:
    """Return the key of one run's draws: the ``i``-th draw decides output token ``i``.

    Args:
        seed: Seed of the recording.
        name: What tells requests apart, such as id and text of the prompt.
        temperature: Runs at different temperatures draw independently.
    """
    digest = hashlib.sha256(f"{name}\0{temperature!r}".encode()).digest()
    return key(seed, RECORDING_STREAM, int.from_bytes(digest[:8], "little"))


def tempered_log_probs(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return the log-probabilities of logits at a temperature above 0, float32."""
    return (logits.float() / temperature).log_softmax(dim=-1)


def inverse_cdf_sample(probs: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """Return per row the token at quantile ``u`` of its distribution, in the order of token ids.

    Args:
        probs: ``[rows, vocabulary]``; summed in float64.
        u: float64 ``[rows]``, inside (0, 1).

    Returns:
        int64 ``[rows]``; never a token of probability 0.
    """
    import torch

    cdf = probs.cumsum(dim=-1, dtype=torch.float64)
    # Scaled by the total, which is 1 only up to rounding. ``right``: a token of probability 0 has an
    # empty interval, and its lower end belongs to the next token.
    token = torch.searchsorted(cdf, (u * cdf[:, -1])[:, None], right=True)[:, 0]
    return token.clamp(max=probs.shape[-1] - 1)


def greedy_runs(
    target: LanguageModel,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    status: Callable[[str], None] = lambda _: None,
) -> list[TargetRun]:
    """Decode several prompts greedily in one batch; see :func:`target_runs`."""
    return target_runs(target, prompts, [Row(i) for i in range(len(prompts))], max_tokens, status)


def target_runs(
    target: LanguageModel,
    prompts: Sequence[Sequence[int]],
    rows: Sequence[Row],
    max_tokens: int,
    status: Callable[[str], None] = lambda _: None,
    hidden: list[list[torch.Tensor]] | None = None,
) -> list[TargetRun]:
    """Decode several runs in one batch; a prompt that several runs share is read once.

    Args:
        target: The target.
        prompts: Token ids of each prompt.
        rows: The runs to make.
        max_tokens: Length limit of every output.
        status: Called after every forward pass with a few words on where it stands.
        hidden: If given, gets for every run a list of what the output head read for each output
            token, float16 ``[hidden]``: enough to compute the token's distribution again.

    Returns:
        One run per row, in order.
    """
    import torch

    n, width = len(prompts), max(len(p) for p in prompts)
    device = target.model.device
    ids = torch.zeros((n, width), dtype=torch.long, device=device)
    mask = torch.zeros((n, width), dtype=torch.long, device=device)
    for line, prompt in enumerate(prompts):
        ids[line, width - len(prompt) :] = torch.tensor(prompt, device=device)
        mask[line, width - len(prompt) :] = 1
    position = (mask.cumsum(-1) - 1).clamp(min=0)
    outputs: list[list[int]] = [[] for _ in rows]
    margins: list[list[float]] = [[] for _ in rows]
    log_prob: list[list[float]] = [[] for _ in rows]
    finished = [False] * len(rows)
    cache = growing_cache(target.model.config)
    seen: list[torch.Tensor] = []
    handle = target.model.get_output_embeddings().register_forward_pre_hook(
        lambda _, arguments: seen.append(arguments[0][:, -1])
    )
    if hidden is not None:
        hidden[:] = [[] for _ in rows]
    try:
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
            alive = list(range(len(rows)))  # run of each line of the batch
            expand = [r.prompt for r in rows] != list(range(n))
            lines = torch.tensor([r.prompt for r in rows], device=device)
            while True:
                seen.clear()
                logits = target.model(
                    input_ids=ids,
                    attention_mask=mask,
                    position_ids=position,
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                ).logits[:, -1]
                if expand:  # the prompts are read; from here on every run has a line of its own
                    cache.batch_select_indices(lines)
                    mask, position, logits = mask[lines], position[lines], logits[lines]
                    seen[-1] = seen[-1][lines]
                    expand = False
                tokens, chosen_log_prob = _choose(logits, [rows[i] for i in alive], outputs, alive)
                top = logits.float().topk(2).values
                gap = (top[:, 0] - top[:, 1]).tolist()
                for line, run in enumerate(alive):
                    token = tokens[line]
                    if finished[run] or len(outputs[run]) == max_tokens:
                        continue  # over; its line is still in the batch
                    if token in target.stop_ids:
                        finished[run] = True
                        continue
                    outputs[run].append(token)
                    margins[run].append(gap[line])
                    log_prob[run].append(chosen_log_prob[line])
                    if hidden is not None:
                        hidden[run].append(seen[-1][line].half().clone())
                keep = [
                    k for k, run in enumerate(alive) if not finished[run] and len(outputs[run]) < max_tokens
                ]
                status(f"{len(keep)} of {len(rows)} runs, token {max(map(len, outputs))}/{max_tokens}")
                if not keep:
                    break
                if len(keep) < DROP_BELOW * len(alive):
                    index = torch.tensor(keep, device=device)
                    cache.batch_select_indices(index)
                    alive = [alive[k] for k in keep]
                    tokens = [tokens[k] for k in keep]
                    mask, position = mask[index], position[index]
                ids = torch.tensor(tokens, device=device)[:, None]
                position = position[:, -1:] + 1
                mask = torch.cat([mask, mask.new_ones((len(alive), 1))], dim=1)
    finally:
        handle.remove()
    return [
        TargetRun(list(prompts[r.prompt]), outputs[i], margins[i], finished[i], log_prob[i])
        for i, r in enumerate(rows)
    ]


def _choose(
    logits: torch.Tensor, rows: Sequence[Row], outputs: Sequence[Sequence[int]], alive: Sequence[int]
) -> tuple[list[int], list[float]]:
    """Return the next token of every line and the logarithm of its probability."""
    import torch

    tokens = logits.argmax(dim=-1).tolist()
    log_prob = [0.0] * len(rows)
    for temperature in sorted({r.temperature for r in rows if r.temperature > 0}):
        lines = [i for i, r in enumerate(rows) if r.temperature == temperature]
        log_p = tempered_log_probs(logits[lines], temperature)
        u = [uniform_from_key(rows[i].key, len(outputs[alive[i]])) for i in lines]
        chosen = inverse_cdf_sample(log_p.exp(), torch.tensor(u, dtype=torch.float64, device=logits.device))
        values = log_p.gather(1, chosen[:, None])[:, 0].tolist()
        for line, token, value in zip(lines, chosen.tolist(), values, strict=True):
            assert math.isfinite(value)
            tokens[line], log_prob[line] = token, value
    return tokens, log_prob


def growing_cache(config: Any) -> Any:
    """Return a KV cache that appends in place; transformers' own copies everything for every token."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    base: Any = DynamicLayer

    class GrowingLayer(base):  # type: ignore[misc]
        """A layer whose keys and values are views of buffers with room to spare."""

        room = 64
        buffers: Any = None
        keys: Any
        values: Any

        def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
            old, new = self.get_seq_length(), key_states.shape[-2]
            fits = (
                self.buffers is not None
                and self.buffers[0].shape[0] == key_states.shape[0]
                and self.buffers[0].shape[-2] >= old + new
                and self.keys.data_ptr() == self.buffers[0].data_ptr()
            )
            if not fits:
                self.buffers = []
                for held, states in ((self.keys, key_states), (self.values, value_states)):
                    size = (*states.shape[:-2], old + new + self.room, states.shape[-1])
                    buffer = states.new_empty(size)
                    if old:
                        buffer[..., :old, :] = held
                    self.buffers.append(buffer)
            for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
                buffer[..., old : old + new, :] = states
            self.keys, self.values = (b[..., : old + new, :] for b in self.buffers)
            return self.keys, self.values

    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
