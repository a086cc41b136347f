"""Drafters of the testbed: a token at a time, and back to what is committed when the target says so.

A *line* is one request's drafter. It is told what is committed (:meth:`Line.rebase`) and asked for the next
tokens (:meth:`Line.step`); what it has drafted since stays its own business. Lines of one model share its
weights and each keep a KV cache, which goes back to the last token that was right, not to the beginning.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from dsd_env.calibration.acceptance.recording.drafters import (
    TextDrafter,
    common_prefix_length,
    lookup_proposal,
    settled_tokens,
)
from dsd_env.calibration.acceptance.recording.models import LanguageModel
from dsd_env.calibration.acceptance.recording.prompts import Prompt
from dsd_env.calibration.acceptance.recording.target import growing_cache
from dsd_env.testbed.target import GREEDY, Sampling, choose


@dataclass(frozen=True)
class Question:
    """One request as the edge knows it.

    Attributes:
        prompt_ids: Prompt in the target's tokens.
        prompt: The prompt as text, for a drafter with another vocabulary; None where there is only one
            vocabulary.
        max_new_tokens: Length of the output at most.
        sampling: How tokens are chosen.
    """

    prompt_ids: list[int]
    max_new_tokens: int
    prompt: Prompt | None = None
    sampling: Sampling = GREEDY


class Line(Protocol):
    """One request's drafter."""

    def rebase(self, committed: Sequence[int]) -> None:
        """Give up all drafts and go on behind the committed output."""

    def step(self) -> list[int] | None:
        """Return the next drafts, in the target's tokens: [] is none yet, None is none any more."""


def take_steps(line: Line, wanted: int = 0) -> list[int] | None:
    """Take a step, and further ones until there are ``wanted`` drafts; None where there are none any more."""
    drafts = line.step()
    while drafts is not None and len(drafts) < wanted:
        more = line.step()
        if more is None:
            break
        drafts = drafts + more
    return drafts


#: Makes the line of a request.
LineMaker = Callable[[Question], Line]


class _Reader:
    """A model that reads one sequence and can be told another that begins like it."""

    def __init__(self, language_model: LanguageModel) -> None:
        self._model = language_model.model
        self._cache = growing_cache(self._model.config)
        self._read: list[int] = []

    def next_logits(self, tokens: Sequence[int]) -> Any:
        """Return the logits behind ``tokens``, ``[1, vocabulary]``, reading what the cache lacks of them."""
        import torch

        shared = min(common_prefix_length(self._read, tokens), len(tokens) - 1)
        if shared < len(self._read):
            self._cache.crop(shared - len(self._read))
            del self._read[shared:]
        new = list(tokens[shared:])
        with torch.inference_mode():
            logits = self._model(
                input_ids=torch.tensor([new], device=self._model.device),
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[0]
        self._read += new
        return logits


class ModelLine:
    """A draft model with the target's vocabulary.

    It chooses with the target's draws, so that a sampled output is drafted as well as a greedy one.
    """

    def __init__(self, draft: LanguageModel, question: Question) -> None:
        """Begin with a request."""
        self._reader = _Reader(draft)
        self._stop_ids = draft.stop_ids
        self._question = question
        self._output: list[int] = []
        self._ended = False

    def rebase(self, committed: Sequence[int]) -> None:
        """Go on behind the committed output."""
        self._output = list(committed)
        self._ended = False

    def step(self) -> list[int] | None:
        """Draft a token; None when the drafter ends its turn."""
        if self._ended:
            return None
        logits = self._reader.next_logits(self._question.prompt_ids + self._output)
        token = choose(logits, [self._question.sampling], [len(self._output)])[0]
        if token in self._stop_ids:
            self._ended = True
            return None
        self._output.append(token)
        return [token]


class TextLine:
    """A draft model with another vocabulary, which speaks through text; for greedy outputs.

    It reads the user's message and the committed text in its own tokens. What it drafts becomes tokens of
    the target as soon as no further text can change them (:func:`settled_tokens`).
    """

    def __init__(self, drafter: TextDrafter, question: Question) -> None:
        """Begin with a request, whose prompt must be there as text."""
        if question.prompt is None:
            raise ValueError("a drafter with another vocabulary needs the prompt as text")
        self._drafter = drafter
        self._prompt = question.prompt
        self._reader = _Reader(drafter.draft)
        self.rebase([])

    def rebase(self, committed: Sequence[int]) -> None:
        """Go on behind the committed output, read as text."""
        prompt_ids, context = self._drafter.context_ids(self._prompt, committed)
        self._context = prompt_ids + context
        self._drafts: list[int] = []
        self._said = 0
        # Inside a character that is not complete there is nothing to say.
        self._ended = self._drafter.committed_text(committed)[1]

    def step(self) -> list[int] | None:
        """Draft a token and return the target's tokens that it settles; None when there are no more."""
        if self._ended:
            return None
        logits = self._reader.next_logits(self._context + self._drafts)
        token = int(logits[-1].argmax())
        if token in self._drafter.draft.stop_ids or len(self._drafts) >= self._drafter.max_draft_tokens:
            self._ended = True
            last = self._drafter.proposal(self._drafts)[self._said :]
            return last or None
        self._drafts.append(token)
        settled = settled_tokens(self._drafter.target, self._drafter.proposal_text(self._drafts))
        new = settled[self._said :]
        self._said = max(self._said, len(settled))
        return new


class LookupLine:
    """Prompt look-up: what followed the last words the last time they stood there."""

    def __init__(self, question: Question) -> None:
        """Begin with a request."""
        self._question = question
        self._output: list[int] = []

    def rebase(self, committed: Sequence[int]) -> None:
        """Go on behind the committed output."""
        self._output = list(committed)

    def step(self) -> list[int] | None:
        """Return the next token of the place found, or None where there is none."""
        proposal, _ = lookup_proposal(self._question.prompt_ids + self._output, 1)
        self._output += proposal
        return proposal or None


class NoLine:
    """No drafter: for clients that leave everything to the cloud."""

    def rebase(self, committed: Sequence[int]) -> None:
        """Do nothing."""

    def step(self) -> list[int] | None:
        """Return None."""
        return None


def line_maker(draft: LanguageModel | None, target: LanguageModel | None) -> LineMaker:
    """Return what makes the lines of a drafter.

    Args:
        draft: The draft model; None for prompt look-up.
        target: The target, of which only the tokenizer is used; None where the draft model has its
            vocabulary.
    """
    if draft is None:
        return LookupLine
    if target is None or draft.tokenizer.get_vocab() == target.tokenizer.get_vocab():
        return lambda question: ModelLine(draft, question)
    text = TextDrafter(draft, target)

    def make(question: Question) -> Line:
        if question.sampling.temperature > 0:
            raise ValueError("a drafter with another vocabulary can draft greedy outputs only")
        return TextLine(text, question)

    return make
