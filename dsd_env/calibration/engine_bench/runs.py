"""What is asked of an engine, and what came of it. Plain data: no engine is needed here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np


@dataclass(frozen=True)
class Question:
    """One request.

    Attributes:
        kind: Kind of text, such as ``story``.
        prompt_ids: Its tokens.
        output_tokens: Length of the answer; the end of the text is ignored.
    """

    kind: str
    prompt_ids: tuple[int, ...]
    output_tokens: int


@dataclass(frozen=True)
class Setting:
    """One way of decoding.

    Attributes:
        name: What it is called in tables.
        kind: ``plain``: vLLM without a drafter. ``table``: vLLM's own scheduler with drafted lengths by
            batch size. ``policy``: :class:`dsd_env.serving.engines.vllm.PolicyScheduler`.
        table: Rows (smallest batch, largest batch, length) of ``table``, as vLLM takes them.
        policy: What decides: the folder of a bundle, or a scheduler's name.
    """

    name: str
    kind: Literal["plain", "table", "policy"]
    table: tuple[tuple[int, int, int], ...] = ()
    policy: str = ""


class Round(NamedTuple):
    """What one step gave a request behind its prefill.

    Attributes:
        drafted: Drafts verified.
        committed: Tokens committed: the accepted drafts and one more.
    """

    drafted: int
    committed: int


@dataclass
class Answer:
    """What a request got. Times in seconds since the setting began.

    Attributes:
        question: Number of the question.
        client: Who asked.
        kind: Kind of the question.
        asked_s: When it was handed to the engine.
        first_s: When the step ended that gave its first token.
        done_s: When the step ended that gave its last.
        tokens: Its output.
        rounds: Its steps behind the prefill, the oldest first.
    """

    question: int
    client: int
    kind: str
    asked_s: float
    first_s: float = math.nan
    done_s: float = math.nan
    tokens: list[int] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)

    @property
    def ttft_s(self) -> float:
        """Time to the first token."""
        return self.first_s - self.asked_s

    @property
    def e2e_s(self) -> float:
        """Time to the last token."""
        return self.done_s - self.asked_s

    @property
    def tpot_s(self) -> float:
        """Time per token behind the first."""
        return (self.done_s - self.first_s) / max(1, len(self.tokens) - 1)


class Step(NamedTuple):
    """One step of the engine.

    Attributes:
        duration_s: How long it took.
        decoding: Requests in it that decode or verify.
        prefilling: Requests in it that prefill.
        prompt_tokens: Prompt tokens of those.
        drafted: Drafts verified.
        context_tokens: KV tokens of all requests in it, the new ones included.
        next_length: Drafts that the drafter made at its end, per request; 0: none.
    """

    duration_s: float
    decoding: int
    prefilling: int
    prompt_tokens: int
    drafted: int
    context_tokens: int
    next_length: int

    @property
    def new_tokens(self) -> int:
        """New tokens of the target: one for each decoding request, its drafts, and prompts."""
        return self.decoding + self.drafted + self.prompt_tokens


@dataclass
class Run:
    """A setting's answers and steps.

    Attributes:
        setting: Its name.
        clients: Clients side by side.
        answers: By number of the question.
        steps: In their order.
        duration_s: From the first request to the last token.
        facts: What the engine itself counted.
    """

    setting: str
    clients: int
    answers: list[Answer]
    steps: list[Step]
    duration_s: float
    facts: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return it as what JSON can hold."""
        return asdict(self) | {"steps": [list(step) for step in self.steps]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Run:
        """Return what :meth:`as_dict` made."""
        answers = [
            Answer(**{**answer, "rounds": [Round(*each) for each in answer["rounds"]]})
            for answer in data["answers"]
        ]
        steps = [Step(*each) for each in data["steps"]]
        return cls(**{**data, "answers": answers, "steps": steps})


METRICS = (
    "ttft_mean_s",
    "ttft_p95_s",
    "tpot_mean_s",
    "tpot_p95_s",
    "e2e_mean_s",
    "e2e_p95_s",
    "tokens_per_s",
    "accepted_per_round",
)
"""What a run is summarised by, in the order of tables."""


def summarise(answers: Sequence[Answer], duration_s: float) -> dict[str, float]:
    """Return :data:`METRICS` of answers; accepted drafts per round that drafted, NaN where none did.

    The mean TPOT is of all tokens behind the first, so that long answers weigh more; its p95 is of requests.
    """
    found: dict[str, float] = {}
    for name in ("ttft", "tpot", "e2e"):
        values = np.array([getattr(answer, f"{name}_s") for answer in answers])
        found[f"{name}_mean_s"] = float(values.mean())
        found[f"{name}_p95_s"] = float(np.quantile(values, 0.95))
    later = sum(len(answer.tokens) - 1 for answer in answers)
    found["tpot_mean_s"] = sum(a.done_s - a.first_s for a in answers) / max(1, later)
    found["tokens_per_s"] = sum(len(answer.tokens) for answer in answers) / duration_s
    drafting = [each for answer in answers for each in answer.rounds if each.drafted]
    accepted = sum(each.committed - 1 for each in drafting)
    found["accepted_per_round"] = accepted / len(drafting) if drafting else math.nan
    return {name: found[name] for name in METRICS}
