"""Speculative decoding done directly, round by round: what a replay is checked against."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dsd_env.calibration.acceptance.recording.drafters import common_prefix_length, lookup_proposal
from dsd_env.calibration.acceptance.recording.models import LanguageModel
from dsd_env.calibration.acceptance.recording.target import (
    growing_cache,
    inverse_cdf_sample,
    tempered_log_probs,
)
from dsd_env.rng import uniform_from_key

if TYPE_CHECKING:
    import torch

#: Takes the committed output tokens and a speculation length, returns at most that many drafts.
Proposer = Callable[[Sequence[int], int], list[int]]


@dataclass(frozen=True)
class DirectRound:
    """One draft-and-verify round.

    Attributes:
        start: Output position of the first token it decides.
        drafted: Draft tokens verified.
        accepted: Draft tokens accepted.
        guessed: All of them were accepted, and the drafter's next token, which the target has not seen, is
            the one that the target chose.
    """

    start: int
    drafted: int
    accepted: int
    guessed: bool = False


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


@dataclass(frozen=True)
class DirectRun:
    """One request decoded by speculation.

    Attributes:
        output_ids: Output tokens; the end-of-turn token is not one of them.
        rounds: Its rounds. Drafts accepted from an end-of-turn token on are not counted.
    """

    output_ids: list[int]
    rounds: list[DirectRound]


def speculative_runs(
    target: LanguageModel,
    drafter: LanguageModel | None,
    prompts: Sequence[Sequence[int]],
    gamma: int,
    n_tokens: int,
    temperature: float,
    keys: Sequence[int],
    progress: Callable[[int], None] = lambda _: None,
    readers: tuple[_Reader, _Reader | None] | None = None,
    arrived: Callable[[int, int], int] | None = None,
) -> list[DirectRun]:
    """Decode several requests in one batch by speculative decoding, greedy or sampling.

    The lossless rule of Leviathan et al. (ICML 2023): a draft ``y ~ q`` is accepted with probability
    ``min(1, p(y)/q(y))``; the first one rejected is replaced by a draw from ``(p - q)+``, normalised; behind
    ``gamma`` accepted drafts comes a draw from ``p``. Rejected drafts stay in the KV caches, masked.

    With ``arrived`` it is a stream: the target does not wait for drafts. Of the ``gamma`` that were made
    only the first so many have arrived when it goes on, none of them perhaps; it verifies those and adds a
    token of its own, a draw from ``p`` that knows nothing of the next draft. The round tells whether the two
    are equal, so that the drafts behind it stay good. (Those are drawn again in the next round, which changes
    no law: nothing depends on a draft before it is looked at.)

    Args:
        target: The target.
        drafter: A draft model with the target's vocabulary; ``None`` for prompt look-up.
        prompts: Token ids of each prompt.
        gamma: Drafts per round.
        n_tokens: Stop a request when it has this many output tokens; its last round may go beyond.
        temperature: 0 for greedy.
        keys: Key of each request's draws.
        progress: Called after every round with the number of requests at work.
        readers: What :func:`read_prompts_once` gave for the same models and prompts, to use it again.
        arrived: Number of a request and output position -> drafts that have arrived there, fewer than
            ``gamma``; needs a drafter. ``None``: all are waited for.

    Returns:
        One run per request, in order.
    """
    import torch

    device = target.model.device
    context = [list(p) for p in prompts]
    counters = [0] * len(prompts)
    rounds: list[list[DirectRound]] = [[] for _ in prompts]
    alive = list(range(len(prompts)))
    once = readers or read_prompts_once(target, drafter, prompts)
    verifier = once[0].copy()
    speaker = None if once[1] is None else once[1].copy()
    unread = [[p[-1]] for p in prompts]  # committed tokens that the drafter has not read, by request

    def draws(count: int) -> torch.Tensor:
        """Return ``count`` uniforms for every request at work, float64 ``[alive, count]``."""
        rows = []
        for i in alive:
            rows.append([uniform_from_key(keys[i], counters[i] + k) for k in range(count)])
            counters[i] += count
        return torch.tensor(rows, dtype=torch.float64, device=device)

    def pick(probs: torch.Tensor) -> torch.Tensor:
        if temperature == 0:
            return probs.argmax(dim=-1)
        return inverse_cdf_sample(probs, draws(1)[:, 0])

    while alive:
        lines = torch.arange(len(alive), device=device)
        counts = torch.full((len(alive),), gamma, device=device)
        drafts = torch.zeros((len(alive), gamma), dtype=torch.long, device=device)
        q: torch.Tensor | None = None
        if speaker is None:
            for line, i in enumerate(alive):
                proposal, _ = lookup_proposal(context[i], gamma)
                counts[line] = len(proposal)
                drafts[line, : len(proposal)] = torch.tensor(proposal, dtype=torch.long)
        else:
            step = speaker.read([unread[i] for i in alive])[:, -1]
            columns = []
            for j in range(gamma):
                columns.append(_distribution(step, temperature))
                drafts[:, j] = pick(columns[-1])
                if j < gamma - 1:
                    step = speaker.read([[int(t)] for t in drafts[:, j]])[:, -1]
            q = torch.stack(columns, dim=1)
        fed = [[context[i][-1], *drafts[line].tolist()] for line, i in enumerate(alive)]
        p = _distribution(verifier.read(fed), temperature)  # [alive, gamma + 1, vocabulary]
        p_draft = p[:, :gamma].gather(2, drafts[:, :, None])[:, :, 0]
        q_draft = torch.ones_like(p_draft) if q is None else q.gather(2, drafts[:, :, None])[:, :, 0]
        matches = draws(gamma) * q_draft < p_draft if temperature > 0 else p_draft > 0.5
        if arrived is not None:
            for line, i in enumerate(alive):
                counts[line] = arrived(i, len(context[i]) - len(prompts[i]))
        matches &= torch.arange(gamma, device=device)[None, :] < counts[:, None]
        accepted = matches.long().cumprod(dim=1).sum(dim=1)
        final = p[lines, accepted]
        if temperature > 0:
            rejected = accepted < counts
            place = accepted.clamp(max=gamma - 1)
            if q is None:
                wrong = torch.zeros_like(final)
                wrong[lines, drafts[lines, place]] = 1.0
            else:
                wrong = q[lines, place]
            final = torch.where(rejected[:, None], (final - wrong).clamp(min=0.0), final)
        last = pick(final)

        keep = []
        for line, i in enumerate(alive):
            count = int(accepted[line])
            new = [*drafts[line, :count].tolist(), int(last[line])]
            start = len(context[i]) - len(prompts[i])
            stop = next((k for k, t in enumerate(new) if t in target.stop_ids), None)
            ended = stop is not None
            kept = count if stop is None else min(count, stop)
            heard = int(counts[line])
            unseen = arrived is not None and count == heard and int(last[line]) == int(drafts[line, heard])
            rounds[i].append(DirectRound(start, heard, kept, unseen))
            context[i] += new[:stop]
            # After gamma accepted drafts the drafter has not read the last of them either.
            unread[i] = new[-2:] if count == gamma and gamma > 0 else new[-1:]
            if not ended and len(context[i]) - len(prompts[i]) < n_tokens:
                keep.append(line)
        read_by_drafter = accepted.clamp(max=max(gamma - 1, 0))
        verifier.forget(gamma - accepted, torch.tensor(keep, dtype=torch.long))
        if speaker is not None:
            speaker.forget(gamma - 1 - read_by_drafter, torch.tensor(keep, dtype=torch.long))
        alive = [alive[k] for k in keep]
        progress(len(alive))
    return [DirectRun(context[i][len(p) :], rounds[i]) for i, p in enumerate(prompts)]


def read_prompts_once(
    target: LanguageModel, drafter: LanguageModel | None, prompts: Sequence[Sequence[int]]
) -> tuple[_Reader, _Reader | None]:
    """Let target and drafter read the prompts, for several calls of :func:`speculative_runs`."""
    return _Reader(target, prompts), None if drafter is None else _Reader(drafter, prompts)


def _distribution(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return probabilities at a temperature; greedy: all on the most likely token."""
    import torch

    if temperature > 0:
        return tempered_log_probs(logits, temperature).exp()
    return torch.zeros_like(logits).scatter_(-1, logits.argmax(dim=-1, keepdim=True), 1.0)


class _Reader:
    """A model that reads several sequences side by side and can forget the last tokens of each."""

    def __init__(self, language_model: LanguageModel, prompts: Sequence[Sequence[int]]) -> None:
        import torch

        self._model = language_model.model
        self._cache = growing_cache(self._model.config)
        self._mask = torch.zeros((len(prompts), 0), dtype=torch.long, device=self._model.device)
        if any(len(p) > 1 for p in prompts):
            self.read([list(p[:-1]) for p in prompts], keep=1)

    def copy(self) -> _Reader:
        """Return a reader of the same model that stands where this one does."""
        import copy

        other = copy.copy(self)
        other._mask, other._cache = self._mask.clone(), copy.deepcopy(self._cache)
        return other

    def read(self, tokens: Sequence[Sequence[int]], keep: int = 0) -> torch.Tensor:
        """Append tokens to every sequence, padded on the left; return the last ``keep`` logits (0: all)."""
        import torch

        width, device = max(map(len, tokens)), self._model.device
        ids = torch.zeros((len(tokens), width), dtype=torch.long, device=device)
        new = torch.zeros((len(tokens), width), dtype=torch.long, device=device)
        for line, row in enumerate(tokens):
            if row:
                ids[line, width - len(row) :] = torch.tensor(list(row), device=device)
                new[line, width - len(row) :] = 1
        self._mask = torch.cat([self._mask, new], dim=1)
        position = (self._mask.cumsum(dim=1) - 1).clamp(min=0)[:, -width:]
        with torch.inference_mode():
            logits: torch.Tensor = self._model(
                input_ids=ids,
                attention_mask=self._mask,
                position_ids=position,
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=keep,
            ).logits
        return logits.float()

    def forget(self, counts: torch.Tensor, keep: torch.Tensor) -> None:
        """Forget the last ``counts`` tokens of every sequence, then keep some of the sequences only."""
        import torch

        columns = torch.arange(self._mask.shape[1], device=self._mask.device)
        self._mask[columns[None, :] >= (self._mask.shape[1] - counts)[:, None]] = 0
        if len(keep) < len(self._mask):
            self._mask = self._mask[keep]
            if len(keep):
                self._cache.batch_select_indices(keep)
