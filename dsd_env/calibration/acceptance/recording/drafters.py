"""Drafters of the recorder: what each would propose at every start of a target run.

Both drafters' proposals depend on where the round started, so each is recorded as run lengths.
For every start ``s`` a drafter has one fixed proposal ``P_s``, a sequence of target tokens, and a
round of ``gamma`` drafts proposes its first ``gamma`` tokens. Hence the accepted count of such a
round is ``min(gamma, L_s)`` with ``L_s`` the length of the common prefix of ``P_s`` and the
target's continuation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dsd_env.calibration.acceptance.recording.models import LanguageModel
from dsd_env.calibration.acceptance.recording.prompts import Prompt

if TYPE_CHECKING:
    import torch

REPLACEMENT = "\ufffd"

#: Prompt look-up has no distribution. Its stand-in for the draft's top-1 probability is this
#: constant of the length of the matched n-gram (0: nothing matched, nothing proposed).
LOOKUP_TOP1_PROB: dict[int, float] = {0: 0.05, 1: 0.25, 2: 0.5, 3: 0.75}
#: Its stand-in for the entropy, in nats: minus the logarithm of the constant above.
LOOKUP_ENTROPY_NATS: dict[int, float] = {n: -math.log(p) for n, p in LOOKUP_TOP1_PROB.items()}


@dataclass(frozen=True)
class DraftRecord:
    """What one drafter does at each start of one request.

    Attributes:
        run_length: uint8 ``[n]``, accepted drafts of an unlimited round, at most ``gamma_max``.
        top1_prob: float32 ``[n]``, top-1 probability of the first drafted token.
        entropy_nats: float32 ``[n]``, entropy of that token's distribution, nats.
        proposed: uint8 ``[n]``, tokens that an unlimited round proposes, at most ``gamma_max``; ``None`` for
            drafters that always propose as many as they are asked for.
    """

    run_length: NDArray[np.uint8]
    top1_prob: NDArray[np.float32]
    entropy_nats: NDArray[np.float32]
    proposed: NDArray[np.uint8] | None = None


def common_prefix_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Return how many leading elements two sequences share."""
    length = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        length += 1
    return length


def lookup_proposal(context: Sequence[int], max_tokens: int, max_ngram: int = 3) -> tuple[list[int], int]:
    """Propose what followed the most recent earlier occurrence of the context's last n-gram.

    The longest n-gram wins (``max_ngram`` down to 1); among its earlier occurrences, which may
    overlap the n-gram itself, the most recent one. The proposal is what stands after it in the
    context, so it ends where the context ends.

    Args:
        context: Prompt and output so far, in target tokens.
        max_tokens: Most tokens to propose.
        max_ngram: Longest n-gram to look for.

    Returns:
        The proposal (empty without a match) and the length of the matched n-gram (0 without).
    """
    size = len(context)
    for n in range(min(max_ngram, size - 1), 0, -1):
        tail = list(context[size - n :])
        for begin in range(size - n - 1, -1, -1):
            if list(context[begin : begin + n]) == tail:
                return list(context[begin + n : begin + n + max_tokens]), n
    return [], 0


def record_lookup(
    prompt_ids: Sequence[int], output_ids: Sequence[int], n: int, gamma_max: int
) -> DraftRecord:
    """Record prompt look-up at starts ``0 .. n-1``.

    Args:
        prompt_ids: Prompt in target tokens.
        output_ids: The target's output, look-ahead beyond ``n`` included.
        n: Number of starts.
        gamma_max: Longest run recorded.
    """
    sequence = list(prompt_ids) + list(output_ids)
    run, proposed = np.zeros(n, np.uint8), np.zeros(n, np.uint8)
    matched = np.zeros(n, np.int64)
    for s in range(n):
        proposal, matched[s] = lookup_proposal(sequence[: len(prompt_ids) + s], gamma_max)
        proposed[s] = len(proposal)
        run[s] = common_prefix_length(proposal, output_ids[s : s + gamma_max])
    return DraftRecord(
        run,
        np.array([LOOKUP_TOP1_PROB[int(m)] for m in matched], np.float32),
        np.array([LOOKUP_ENTROPY_NATS[int(m)] for m in matched], np.float32),
        proposed,
    )


def settled_tokens(target: LanguageModel, text: str) -> list[int]:
    """Return the target tokens of ``text`` that no further text after it can change.

    Byte-level BPE tokenises each piece of a regular-expression split on its own. Text appended
    later can change the last piece, whitespace pieces before it (a run of blanks is split
    according to what ends it) and an apostrophe before it (contractions); what stands before
    those is settled. For tokenizers of another kind nothing is called settled, which costs time,
    never correctness.
    """
    pieces = _pieces(target.tokenizer, text)
    if pieces is None:
        return []
    end = len(pieces) - 1
    while end > 0 and (text[slice(*pieces[end - 1])].isspace() or text[pieces[end - 1][1] - 1] == "'"):
        end -= 1
    return target.encode(text[: pieces[end][0]]) if end > 0 else []


def _pieces(tokenizer: Any, text: str) -> list[tuple[int, int]] | None:
    """Return the offsets of the pieces a byte-level BPE tokenizer splits text into, else None."""
    pre = tokenizer.backend_tokenizer.pre_tokenizer
    if pre is None or "ByteLevel" not in repr(pre) or tokenizer.backend_tokenizer.normalizer is not None:
        return None
    return [(int(a), int(b)) for _, (a, b) in pre.pre_tokenize_str(text)] if text else None


def _byte_of_character() -> dict[str, int]:
    """Return the byte that each character of a byte-level BPE token stands for (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTE_OF_CHARACTER = _byte_of_character()


def token_bytes(target: LanguageModel, ids: Sequence[int]) -> list[bytes] | None:
    """Return the bytes of each token of a byte-level BPE tokenizer, else ``None``."""
    if _pieces(target.tokenizer, "a") is None:
        return None
    try:
        return [
            bytes(_BYTE_OF_CHARACTER[c] for c in token)
            for token in target.tokenizer.convert_ids_to_tokens(list(ids))
        ]
    except KeyError:  # a token that was added to the vocabulary as text
        return None


def longest_possible_run(target: LanguageModel, text: str, truth: Sequence[int]) -> int:
    """Return how many tokens of ``truth`` any text that begins with ``text`` can begin with.

    Tokens that agree have the same bytes, so the run ends at latest with the token in which the bytes of
    the two texts first differ. This decides most runs at the first wrong draft, without waiting for the
    pieces around it to be settled. Nothing is ruled out for tokenizers of another kind.
    """
    tokens = token_bytes(target, truth)
    if tokens is None:
        return len(truth)
    drafted, end = text.encode(), 0
    for count, token in enumerate(tokens):
        known = drafted[end : end + len(token)]
        if not token.startswith(known):
            return count
        end += len(token)
    return len(truth)


@dataclass(frozen=True)
class TextDrafter:
    """A draft model with another vocabulary than the target's, speaking through text.

    At start ``s`` the drafter reads the user's message in its own chat template and then the
    committed text (the target's tokens ``y[:s]`` as text, tokenised from scratch), and decodes
    greedily until it ends its turn or has made ``max_draft_tokens`` tokens. The new text,
    tokenised on its own by the target's tokenizer, is the proposal ``P_s``. Where the committed
    tokens end inside a UTF-8 character the drafter proposes nothing.

    Attributes:
        draft: The draft model.
        target: The target (only its tokenizer is used).
        max_draft_tokens: Most tokens of its own that the drafter makes in one proposal.
    """

    draft: LanguageModel
    target: LanguageModel
    max_draft_tokens: int = 40

    def committed_text(self, output_ids: Sequence[int]) -> tuple[str, bool]:
        """Return the committed text without an incomplete last character, and whether it had one."""
        text = self.target.decode(list(output_ids))
        stripped = text.rstrip(REPLACEMENT)
        return stripped, stripped != text

    def context_ids(self, prompt: Prompt, output_ids: Sequence[int]) -> tuple[list[int], list[int]]:
        """Return what the drafter reads: tokens of the prompt and of the committed text."""
        committed, _ = self.committed_text(output_ids)
        return self.draft.encode_chat(prompt.text, prompt.reply_prefix), self.draft.encode(committed)

    def proposal_text(self, draft_ids: Sequence[int]) -> str:
        """Return the text of drafted tokens, without an incomplete last character."""
        return self.draft.decode(list(draft_ids)).rstrip(REPLACEMENT)

    def proposal(self, draft_ids: Sequence[int]) -> list[int]:
        """Return the proposal that finished drafts make, in target tokens."""
        return self.target.encode(self.proposal_text(draft_ids))

    def decided_run(self, draft_ids: Sequence[int], truth: Sequence[int], done: bool) -> int | None:
        """Return the run length as soon as the drafts so far decide it, else ``None``.

        Args:
            draft_ids: Drafted tokens so far.
            truth: The target's continuation, at most ``gamma_max`` tokens.
            done: Whether the drafter has finished.
        """
        if done:
            return common_prefix_length(self.proposal(draft_ids), truth)
        text = self.proposal_text(draft_ids)
        settled = settled_tokens(self.target, text)
        run = common_prefix_length(settled, truth)
        if run == len(truth) or run < len(settled) or run == longest_possible_run(self.target, text, truth):
            return run
        return None

    def propose(self, prompt: Prompt, output_ids: Sequence[int], gamma: int) -> list[int]:
        """Return the first ``gamma`` tokens of the proposal, as a live drafter makes them.

        Drafts one token at a time from the committed text and stops as soon as ``gamma`` target
        tokens are settled. :meth:`record` answers for all starts at once and must agree with it.

        Args:
            prompt: The request.
            output_ids: Committed output tokens.
            gamma: Most tokens to propose.
        """
        import torch
        from transformers import DynamicCache

        if self.committed_text(output_ids)[1]:
            return []
        prompt_ids, context = self.context_ids(prompt, output_ids)
        model = self.draft.model
        cache: Any = DynamicCache(config=model.config)
        feed = prompt_ids + context
        drafts: list[int] = []
        while len(drafts) < self.max_draft_tokens:
            with torch.inference_mode():
                out = model(
                    input_ids=torch.tensor([feed], device=model.device),
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                )
            token = int(out.logits[0, -1].float().argmax())
            if token in self.draft.stop_ids:
                break
            drafts.append(token)
            feed = [token]
            settled = settled_tokens(self.target, self.proposal_text(drafts))
            if len(settled) >= gamma:
                return settled[:gamma]
        return self.proposal(drafts)[:gamma]

    def record(self, prompt: Prompt, output_ids: Sequence[int], n: int, gamma_max: int) -> DraftRecord:
        """Record this drafter at starts ``0 .. n-1``, all starts of the request in one batch.

        The starts share the KV cache of the committed text. Each has a branch of its own (the
        tokens at the end of its prefix that are tokenised otherwise than in the full text, then
        its drafts), kept apart by the attention mask: one row, many branches.

        Args:
            prompt: The request.
            output_ids: The target's output, look-ahead beyond ``n`` included.
            n: Number of starts.
            gamma_max: Longest run recorded.
        """
        import torch

        prompt_ids, base = self.context_ids(prompt, output_ids[: n - 1])
        trunk = prompt_ids + base
        tree = _Tree(self.draft, trunk)
        run = np.zeros(n, np.uint8)
        top1 = np.zeros(n, np.float32)
        entropy = np.zeros(n, np.float32)
        drafts: list[list[int]] = [[] for _ in range(n)]
        broken = [False] * n
        fork = [0] * n
        pending: list[list[int]] = []
        for s in range(n):
            text, broken[s] = self.committed_text(output_ids[:s])
            ids = self.draft.encode(text)
            # At least the last token of the prefix is fed again, so that its logits are at hand.
            shared = min(common_prefix_length(ids, base), len(ids) - 1) if ids else -1
            fork[s] = len(prompt_ids) + shared
            pending.append((prompt_ids + ids)[fork[s] :])
        active = list(range(n))
        first = True
        while active:
            logits = tree.step([(s, fork[s], pending[s]) for s in active])
            if first:
                log_p = torch.log_softmax(logits.double(), dim=-1)
                p = log_p.exp()
                top1[:] = p.max(dim=-1).values.cpu().numpy()
                entropy[:] = (-(p * log_p.clamp(min=-1e4)).sum(dim=-1)).cpu().numpy()
                first = False
            choice = logits.argmax(dim=-1).tolist()
            still = []
            for s, token in zip(active, choice, strict=True):
                done = token in self.draft.stop_ids
                if not done:
                    drafts[s].append(token)
                    done = len(drafts[s]) >= self.max_draft_tokens
                truth = [] if broken[s] else output_ids[s : s + gamma_max]
                length = self.decided_run(drafts[s], truth, done)
                if length is None:
                    pending[s] = [token]
                    still.append(s)
                else:
                    run[s] = length
            active = still
        return DraftRecord(run, top1, entropy)


class _Tree:
    """A KV cache with a trunk and branches that do not see each other."""

    def __init__(self, language_model: LanguageModel, trunk: Sequence[int]) -> None:
        import torch
        from transformers import DynamicCache

        self._model = language_model.model
        self._trunk = len(trunk)
        self._owner = np.empty(0, np.int64)  # branch of each column after the trunk
        self._cache: Any = DynamicCache(config=self._model.config)
        with torch.inference_mode():
            self._model(
                input_ids=torch.tensor([list(trunk)], device=self._model.device),
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
            )

    def step(self, branches: Sequence[tuple[int, int, list[int]]]) -> torch.Tensor:
        """Append tokens to branches and return the logits after the last of each.

        Args:
            branches: ``(branch, fork, tokens)``: branch number, length of the trunk it sees, and
                the tokens to append to it (at least one).

        Returns:
            ``[len(branches), vocabulary]``.
        """
        import torch

        tokens = [t for _, _, new in branches for t in new]
        owner = np.array([b for b, _, new in branches for _ in new])
        fork = np.array([f for _, f, new in branches for _ in new])
        columns = np.concatenate([self._owner, owner])
        first_new = len(self._owner)
        own = columns[None, :] == owner[:, None]
        own &= np.arange(len(columns))[None, :] <= first_new + np.arange(len(owner))[:, None]
        trunk = np.arange(self._trunk)[None, :] < fork[:, None]
        mask = np.concatenate([trunk, own], axis=1)
        position = fork + own.sum(axis=1) - 1
        ends = np.cumsum([len(new) for _, _, new in branches]) - 1
        device = self._model.device
        with torch.inference_mode():
            out = self._model(
                input_ids=torch.tensor([tokens], device=device),
                attention_mask=torch.from_numpy(mask).to(device)[None, None],
                position_ids=torch.from_numpy(position).to(device)[None],
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=torch.from_numpy(ends).to(device),
            )
        self._owner = columns
        logits: torch.Tensor = out.logits[0].float()
        return logits
