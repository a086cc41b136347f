"""Assisted generation of Hugging Face transformers with a draft length per round from a controller.

transformers asks its candidate generator for drafts, verifies them, and tells it how many were right. The
generator here asks the controller before each round and reports to it afterwards; what is verified, and so
the text, is transformers' own. Run with transformers 5.23.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dsd_env.serving.controller import Controller
from dsd_env.serving.engines.session import EngineError, EngineSession, Round

_NUMBERS = itertools.count()
"""Numbers of requests, so that their names differ."""


@dataclass(frozen=True)
class SteeredOutput:
    """What a generation gave.

    Attributes:
        output: What transformers returned: token ids of shape (1, length), or its output object.
        rounds: The rounds after the prefill, oldest first.
        elsewhere: Decisions that would have drafted at another place than this process.
    """

    output: Any
    rounds: tuple[Round, ...]
    elsewhere: int

    @property
    def sequences(self) -> Any:
        """Token ids of prompt and answer, shape (1, length)."""
        return getattr(self.output, "sequences", self.output)


def generate(
    model: Any,
    assistant: Any,
    inputs: Any,
    controller: Controller,
    *,
    tokenizer: Any = None,
    assistant_tokenizer: Any = None,
    request: str | None = None,
    slo: str | None = None,
    **options: Any,
) -> SteeredOutput:
    """Generate as ``model.generate(inputs, assistant_model=assistant, ...)`` does, with steered lengths.

    The text is that of the model alone: with ``do_sample=False``, token for token what greedy decoding gives,
    as long as a position's logits do not depend on how many share a forward pass (they do a little in 16
    bits).

    Args:
        model: The target, a causal language model.
        assistant: The draft model.
        inputs: Token ids of one prompt, shape (1, length).
        controller: What decides; its first target is this model.
        tokenizer: Tokenizer of the target, if the draft model has another vocabulary.
        assistant_tokenizer: That of the draft model, likewise. The lengths decided then count tokens of the
            draft model; those that are verified, tokens of the target.
        request: Name of the request; default: a new one.
        slo: Its class of service-level objectives.
        options: Passed on to ``model.generate``.

    Raises:
        EngineError: transformers is missing, or sampling with two vocabularies is asked for.
    """
    if (tokenizer is None) != (assistant_tokenizer is None):
        raise EngineError("give both tokenizers, or none if the models share one")
    if tokenizer is not None and options.get("do_sample"):
        raise EngineError(
            "sampling with a draft model of another vocabulary is not supported; use do_sample=False"
        )
    session = EngineSession(
        controller,
        f"transformers-{next(_NUMBERS)}" if request is None else request,
        prompt_tokens=int(inputs.shape[1]),
        slo=slo,
    )
    tokenizers = (tokenizer, assistant_tokenizer)

    def decode(
        model: Any,
        input_ids: Any,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        inputs_tensor: Any = None,
        **others: Any,
    ) -> Any:
        def make(**arguments: Any) -> Any:
            return _generator(session, assistant, tokenizers, arguments)

        steered = _Steered(model, make)
        return type(model)._assisted_decoding(
            steered,
            input_ids,
            logits_processor=logits_processor,
            stopping_criteria=stopping_criteria,
            generation_config=generation_config,
            inputs_tensor=inputs_tensor,
            assistant_model=assistant,
            **others,
        )

    try:
        # The mode of generation stays `assisted`, for its checks and its cache.
        output = model.generate(
            inputs, assistant_model=assistant, custom_generate=decode, **{"do_sample": False, **options}
        )
    finally:
        session.close()
    return SteeredOutput(output, tuple(session.rounds), session.elsewhere)


class _Steered:
    """The model as assisted decoding sees it: itself, but for the candidate generator.

    So nothing of the model is changed, and it can serve other calls at the same time.
    """

    def __init__(self, model: Any, make: Callable[..., Any]) -> None:
        """Wrap a model; `make` makes the candidate generator."""
        self._model = model
        self._get_candidate_generator = make

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._model(*arguments, **named)


def _generator(
    session: EngineSession, assistant: Any, tokenizers: tuple[Any, Any], arguments: dict[str, Any]
) -> Any:
    """Return the candidate generator of one generation."""
    try:
        from transformers.generation.candidate_generator import (
            AssistedCandidateGenerator,
            AssistedCandidateGeneratorDifferentTokenizers,
            _prepare_attention_mask,
            _prepare_position_ids,
            _prepare_token_type_ids,
        )
    except ImportError as error:
        raise EngineError("needs torch and transformers: pip install 'dsd-env[record]'") from error

    same = tokenizers[0] is None
    base: Any = AssistedCandidateGenerator if same else AssistedCandidateGeneratorDifferentTokenizers

    class PolicyCandidateGenerator(base):  # type: ignore[misc]
        """Drafts as many tokens as the controller says."""

        assistant_kwargs: dict[str, Any]

        def get_candidates(self, input_ids: Any, **named: Any) -> Any:
            """Ask for the length of the round, then draft; the prefill is done without drafts."""
            self._drafted = 0
            if not session.begun:
                return input_ids, None
            room = self.main_model_max_length - int(input_ids.shape[1]) - 1
            self.num_assistant_tokens = max(0, min(session.ask(), room))
            candidates, logits = super().get_candidates(input_ids, **named)
            self._drafted = int(candidates.shape[1] - input_ids.shape[1])
            return candidates, logits

        def _update_past_and_masks(self, input_ids: Any, *others: Any, **named: Any) -> bool:
            """Bring masks and positions up to date also where the drafter begins after the prompt."""
            if super()._update_past_and_masks(input_ids, *others, **named):
                return True
            length, encoder = int(input_ids.shape[-1]), self.assistant_model.config.is_encoder_decoder
            known = _prepare_attention_mask(self.assistant_kwargs, length, encoder)
            known = _prepare_position_ids(known, length, encoder)
            self.assistant_kwargs = _prepare_token_type_ids(known, length)
            return False

        def update_candidate_strategy(self, input_ids: Any, scores: Any, num_matches: Any) -> None:
            """Report the round; the next length is asked for when it is needed."""
            # The strategy of transformers is left out on purpose: it would change the length.
            accepted = int(num_matches)
            if session.begun:
                session.report(self._drafted, accepted, accepted + 1)
            else:
                session.begin()
            if same and (cache := self.assistant_kwargs.get("past_key_values")) is not None:
                # transformers would take wrong drafts for context after rounds of plain decoding.
                surplus = cache.get_seq_length() - (int(input_ids.shape[1]) - 1)
                if surplus > 0:
                    cache.crop(-surplus)

    made: dict[str, Any] = {
        "input_ids": arguments["input_ids"],
        "assistant_model": assistant,
        "generation_config": arguments["generation_config"],
        "model_kwargs": arguments["model_kwargs"],
        "inputs_tensor": arguments["inputs_tensor"],
        "logits_processor": arguments["logits_processor"],
    }
    if not same:
        made["target_tokenizer"], made["assistant_tokenizer"] = tokenizers
    generator = PolicyCandidateGenerator(**made)
    # Otherwise drafting ends early where the draft model is unsure, whatever length was decided.
    generator.generation_config.assistant_confidence_threshold = 0.0
    generator.assistant_generation_config.assistant_confidence_threshold = 0.0
    return generator
