"""Speculative decoding of llama-cpp-python with lengths from a controller.

llama-cpp-python calls its draft model with the tokens so far and takes as many drafts as the answer has. So
the length is decided here. What became of the last drafts shows in the next call. Give it to a ``Llama``:

    draft = policy_draft_model(LlamaPromptLookupDecoding(num_pred_tokens=64), controller)
    llama = Llama(model_path=..., draft_model=draft)
    llama.create_completion(...)
    draft.close()  # tells the controller that the last request has ended

Written for 0.3.36. One draft model serves one ``Llama``, which has one request at a time.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsd_env.serving.controller import Controller
from dsd_env.serving.engines.session import EngineError, EngineSession, Round

_NUMBERS = itertools.count()

Propose = Callable[[NDArray[np.intc], int], NDArray[np.intc]]
"""Proposes at most so many tokens that follow the tokens so far."""


class Drafting:
    """The draft model without llama-cpp-python: what it is called with and answers.

    Attributes:
        controller: What decides.
        rounds: Rounds of the present request, or of the last one after :meth:`close`.
    """

    def __init__(self, propose: Propose, controller: Controller) -> None:
        """Take what proposes tokens, and what says how many."""
        self.controller = controller
        self.rounds: list[Round] = []
        self._propose = propose
        self._session: EngineSession | None = None
        self._known = np.zeros(0, np.intc)
        self._drafts = np.zeros(0, np.intc)

    def __call__(self, input_ids: NDArray[np.intc], /, **named: Any) -> NDArray[np.intc]:
        """Return drafts that follow the tokens so far, as many as the controller says or fewer."""
        tokens = np.asarray(input_ids, np.intc)
        before = len(self._known)
        goes_on = len(tokens) > before and np.array_equal(tokens[:before], self._known)
        if self._session is None or not goes_on:
            self.close()
            # The newest token is the one that the prefill gave.
            self._session = EngineSession(
                self.controller, f"llama.cpp-{next(_NUMBERS)}", prompt_tokens=max(0, len(tokens) - 1)
            )
            self._session.begin()
            self.rounds = self._session.rounds
        else:
            new = tokens[before:]
            self._session.report(len(self._drafts), _right(self._drafts, new), len(new))
        asked = self._session.ask()
        self._known = tokens.copy()
        drafts = self._propose(tokens, asked) if asked else np.zeros(0, np.intc)
        self._drafts = np.asarray(drafts, np.intc)[:asked].copy()
        return self._drafts

    def close(self) -> None:
        """Tell the controller that the request has ended; what its last round gave stays unknown."""
        if self._session is not None:
            self._session.close()
        self._session = None
        self._known = self._drafts = np.zeros(0, np.intc)


def _right(drafts: NDArray[np.intc], new: NDArray[np.intc]) -> int:
    """Return how many drafts were right: they begin the new tokens, of which the last is the target's own."""
    n = min(len(drafts), len(new) - 1)
    wrong = np.nonzero(drafts[:n] != new[:n])[0]
    return int(wrong[0]) if len(wrong) else n


def model_drafter(llama: Any) -> Propose:
    """Return what lets another ``Llama`` propose, greedily; the two must share a vocabulary.

    Args:
        llama: The draft model, made with ``logits_all=False``; nobody else may use it meanwhile.
    """

    def propose(tokens: NDArray[np.intc], length: int) -> NDArray[np.intc]:
        # `generate` keeps what its context shares with these tokens.
        drafts = list(itertools.islice(llama.generate(tokens.tolist(), temp=0.0), length))
        return np.array(drafts, np.intc)

    return propose


def policy_draft_model(drafter: Propose | Any, controller: Controller) -> Any:
    """Return a ``LlamaDraftModel`` that asks a controller how much to draft.

    Args:
        drafter: A ``LlamaDraftModel``, such as ``LlamaPromptLookupDecoding``, whose answers are cut, or what
            proposes a given number of tokens, such as :func:`model_drafter`.
        controller: What decides.

    Raises:
        EngineError: llama-cpp-python is missing.
    """
    try:
        from llama_cpp.llama_speculative import LlamaDraftModel
    except ImportError as error:
        raise EngineError("needs llama-cpp-python 0.3.36 in this environment") from error

    class PolicyDraftModel(Drafting, LlamaDraftModel):  # type: ignore[misc]
        """Drafts as many tokens as the controller says."""

    if isinstance(drafter, LlamaDraftModel):
        whole = drafter

        def propose(tokens: NDArray[np.intc], length: int) -> NDArray[np.intc]:
            return np.asarray(whole(tokens), np.intc)[:length]

        return PolicyDraftModel(propose, controller)
    return PolicyDraftModel(drafter, controller)
