"""A draft model with the target's vocabulary, recorded teacher-forced: one forward pass per request.

Its proposal depends on the true prefix alone, so per output position one number answers for every
speculation length and schedule, greedy or sampled: the probability ``a_i = min(1, q_i(x_i) / p_i(x_i))``
that the committed token ``x_i`` came by accepting the draft (see ``docs/acceptance.md``). Beside it stand
``q_i(x_i)`` itself, for positions that the target decides without seeing a draft, and the rank of ``x_i``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsd_env.acceptance.source import MAX_RANK
from dsd_env.calibration.acceptance.recording.models import LanguageModel
from dsd_env.calibration.acceptance.recording.target import TargetRun, tempered_log_probs


@dataclass(frozen=True)
class PrefixRecord:
    """What a same-vocabulary drafter does at each position of one run.

    Attributes:
        accept_prob: float32 ``[n]``, ``min(1, q(x)/p(x))`` of the committed token; greedy: 1 where the
            draft's argmax is the committed token, else 0.
        top1_prob: float32 ``[n]``, top-1 probability of the draft's distribution, at the run's
            temperature (greedy: at temperature 1).
        entropy_nats: float32 ``[n]``, its entropy at the same temperature, nats.
        draft_prob: float32 ``[n]``, ``q(x)`` of the committed token at the run's temperature; greedy: 1 where
            the draft's argmax is the committed token, else 0.
        rank: uint8 ``[n]``, place of the committed token among the draft's tokens by probability, from 1;
            255 stands for 255 and more.
    """

    accept_prob: NDArray[np.float32]
    top1_prob: NDArray[np.float32]
    entropy_nats: NDArray[np.float32]
    draft_prob: NDArray[np.float32]
    rank: NDArray[np.uint8]


def same_vocabulary(a: LanguageModel, b: LanguageModel) -> bool:
    """Return whether two models give the same tokens the same numbers and have outputs of one size."""
    return bool(
        a.tokenizer.get_vocab() == b.tokenizer.get_vocab()
        and a.model.config.vocab_size == b.model.config.vocab_size
    )


@dataclass(frozen=True)
class PrefixDrafter:
    """A draft model with the target's vocabulary. It reads what the target reads.

    Attributes:
        draft: The draft model.
    """

    draft: LanguageModel

    def record(self, runs: Sequence[TargetRun], temperatures: Sequence[float], n: int) -> list[PrefixRecord]:
        """Record several runs of one prompt, all in one forward pass.

        Args:
            runs: The target's runs, of the same prompt.
            temperatures: Temperature of each.
            n: Most positions to record of each.
        """
        import torch
        from transformers import DynamicCache

        prompt = runs[0].prompt_ids
        outputs = [run.output_ids[:n] for run in runs]
        width = max(map(len, outputs))
        model = self.draft.model
        cache: Any = DynamicCache(config=model.config)
        ids = torch.zeros((len(runs), width), dtype=torch.long, device=model.device)
        for row, output in enumerate(outputs):
            fed = [prompt[-1], *output[:-1]]
            ids[row, : len(fed)] = torch.tensor(fed, device=model.device)
        with torch.inference_mode():
            if len(prompt) > 1:  # read once, for all runs
                head = torch.tensor([prompt[:-1]], device=model.device)
                model(input_ids=head, past_key_values=cache, use_cache=True, logits_to_keep=1)
                cache.batch_repeat_interleave(len(runs))
            # Padding stands at the end, where nothing that is used can see it.
            logits = model(input_ids=ids, past_key_values=cache, use_cache=True).logits
        return [
            self._record(logits[row, : len(outputs[row])], runs[row], temperatures[row])
            for row in range(len(runs))
        ]

    def _record(self, logits: Any, run: TargetRun, temperature: float) -> PrefixRecord:
        import torch

        x = torch.tensor(run.output_ids[: len(logits)], device=logits.device)
        log_q = tempered_log_probs(logits, temperature or 1.0)
        best = logits.argmax(dim=-1) == x
        if temperature == 0:
            accept = guess = best.float()
        else:
            log_p = torch.tensor(run.log_prob[: len(logits)], device=logits.device)
            log_q_x = log_q.gather(1, x[:, None])[:, 0]
            accept, guess = (log_q_x - log_p).clamp(max=0.0).exp(), log_q_x.exp()
        q = log_q.exp()
        entropy = -(q * log_q.clamp(min=-1e4)).sum(dim=-1)
        columns = accept, q.max(dim=-1).values, entropy.clamp(min=0.0), guess
        # Of equal logits the argmax is first: no other token may have rank 1.
        above = (logits > logits.gather(1, x[:, None])).sum(dim=-1)
        rank = torch.where(best, 1, (1 + above).clamp(2, MAX_RANK))
        accept_prob, top1_prob, nats, draft_prob = (c.cpu().numpy().astype(np.float32) for c in columns)
        return PrefixRecord(accept_prob, top1_prob, nats, draft_prob, rank.cpu().numpy().astype(np.uint8))
