"""Rules that end a draft by what its drafter says of the tokens that it has made.

Each asks for its longest draft, or the longest on the list, and says when a draft ends before that. Their
chances and entropies are those of the drafter's distribution at each token, which simulations have of
recordings; models of acceptance have one value for all tokens, by which such a rule is a fixed length.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from dsd_env.control import DecisionView, StopKind, StopRule
from dsd_env.control.actions import snap, stop_at
from dsd_env.schedulers.lengths import LengthEntry, LengthRule, Outcome, Stateless, remember, token_price

LONGEST = 64
"""Longest length of any list."""


@runtime_checkable
class StoppingRule(LengthRule, Protocol):
    """A rule for the length that also says when a draft ends before it."""

    def stop(self, view: DecisionView) -> StopRule:
        """Return when the next draft ends."""
        ...


@dataclass
class ConfidenceStop(Stateless):
    """A fixed stop rule.

    Attributes:
        rule: It.
        most: Longest draft; the largest listed length that is at most this is used.
    """

    rule: StopRule
    most: int

    def length(self, view: DecisionView) -> int:
        """Return the longest length."""
        return snap(view.gammas, self.most)

    def stop(self, view: DecisionView) -> StopRule:
        """Return the rule."""
        return self.rule


def spec_dec_pp(threshold: float = 0.7, most: int = 20) -> ConfidenceStop:
    """Return SpecDec++: draft until some token is rejected with more than this probability; 2 to 20 tokens.

    Source: arXiv 2405.19715 and its public code (``specdec_pp/hf_generation.py``: ``--stop_threshold``,
        ``--bound 2 20``), which keeps the token at which it stops. Its chances of acceptance come from a
        trained head; here they are the drafter's top-1 probabilities. The code's head judges a token one step
        after it is made, this rule at once.
    """
    return ConfidenceStop(stop_at(threshold), most)


def svip(threshold: float = 0.3, most: int = 40) -> ConfidenceStop:
    """Return SVIP: stop behind a token with sqrt(0.15 H) above the threshold; 40 tokens at most.

    Source: arXiv 2411.18462 and its public code (``vanilla-sd/eval_specbench.py``), which keeps that token.
    """
    return ConfidenceStop(StopRule(StopKind.ENTROPY, threshold), most)


def p_min(threshold: float = 0.75, most: int = 16) -> ConfidenceStop:
    """Return llama.cpp's p-min: stop before a token with a top-1 probability below it, even before the first.

    Source: ``common/speculative.cpp`` of llama.cpp, ``--draft-p-min`` and ``--draft-max``. It drops that
        token, as it has since it drafts for several sequences; before, it kept it. Its default was 0.75 for
        long, and is 0 (no rule) now.
    """
    return ConfidenceStop(StopRule(StopKind.TOP1, threshold, least=0, keeps=False), most)


ADAEDL_STOP = StopRule(StopKind.BOUND, 0.5, least=1, keeps=False)
"""When AdaEDL ends a draft; the threshold is the request's."""


@dataclass
class AdaEdl:
    """AdaEDL: stop before a token with 1 - sqrt(0.2 H) < lambda, which follows the acceptance rate.

    The rate a of the request's rounds moves as a <- a / 2 + (accepted / drafted) / 2. Then lambda' is
    lambda + 0.01 while a < 0.9, lambda - 0.01 unless a whole longest draft was accepted, else lambda; and
    lambda <- 0.9 lambda + 0.1 lambda'. The first token of a draft is always made and kept, so that there is
    something to learn from. In a stream, what is learned at each result is the newest verification with
    drafts.

    Source: arXiv 2410.18351, whose Algorithm 1 is that of Draft & Verify (arXiv 2309.08168; its public code
        gives a = 0 at first). There is no public code; where lambda begins is a parameter there. It does
        not rise above 1 here, where every token but the first is dropped.

    Attributes:
        threshold: lambda of a request's first round.
        most: Longest draft.
        target: Acceptance rate that it is to keep.
        step: By how much lambda' differs from lambda.
    """

    threshold: float = ADAEDL_STOP.threshold
    most: int = LONGEST
    target: float = 0.9
    step: float = 0.01
    _kept: dict[int, tuple[float, float]] = field(default_factory=dict, init=False, repr=False)

    def reset(self, seed: int) -> None:
        """Forget all requests."""
        self._kept.clear()

    def learn(self, view: DecisionView, outcome: Outcome) -> None:
        """Move the request's rate and lambda by its last round."""
        drafted, accepted = view.request.recent_gammas[0], view.request.recent_accepted[0]
        if outcome.gamma == 0 or drafted == 0:
            return
        rate, bound = self._kept.get(view.request_id, (0.0, self.threshold))
        rate = 0.5 * rate + 0.5 * accepted / drafted
        wanted = bound
        if rate < self.target:
            wanted += self.step
        elif accepted != outcome.gamma:
            wanted -= self.step
        remember(self._kept, view.request_id, (rate, min(1.0, 0.9 * bound + 0.1 * wanted)))

    def length(self, view: DecisionView) -> int:
        """Return the longest length."""
        return snap(view.gammas, self.most)

    def stop(self, view: DecisionView) -> StopRule:
        """Return the rule with the request's lambda."""
        _, bound = self._kept.get(view.request_id, (0.0, self.threshold))
        return ADAEDL_STOP._replace(threshold=bound)


@dataclass
class ConfidentTopB(Stateless):
    """Draft on as long as a draft is worth the time that verifying it takes from everybody at the target.

    As :class:`~dsd_env.schedulers.lengths.GlobalTopB`, with the drafter's own confidences: a draft is
    worth it while the probability that it and all before it are accepted is above the price N c / T. With
    many at the target it ends at the first doubt, with few it goes on through many.

    Source: vLLM's adaptive verification and SGLang's ``schedule_verify_lens_topk``, which choose among the
        drafts of all requests by such probabilities. Here the drafter ends its draft by the price that its
        controller knows, so that the others are not made nor sent. The token at which it ends is kept, and
        two always are.

    Attributes:
        weight: Factor of the price N c / T.
        most: Longest draft.
    """

    weight: float = 1.0
    most: int = LONGEST

    def length(self, view: DecisionView) -> int:
        """Return the longest length, or 0 where no draft could be worth it."""
        return snap(view.gammas, self.most if self.weight * token_price(view) < 1.0 else 0)

    def stop(self, view: DecisionView) -> StopRule:
        """Return the rule: a probability of survival below the price."""
        return stop_at(1.0 - min(1.0, self.weight * token_price(view)))


def ends_by_threshold(rule: StoppingRule) -> bool:
    """Return whether a rule ends drafts as entries of `actions.stop_thresholds` do, by whatever threshold."""
    if isinstance(rule, ConfidenceStop):
        return rule.rule == stop_at(rule.rule.threshold)
    return isinstance(rule, ConfidentTopB)


_MOST = {"most": (1.0, float(LONGEST))}
STOPS: dict[str, LengthEntry] = {
    "specdec_pp": LengthEntry(
        spec_dec_pp, {"threshold": (0.0, 1.0), **_MOST}, "until a rejection is likelier than the threshold"
    ),
    "svip": LengthEntry(
        svip, {"threshold": (0.0, 10.0), **_MOST}, "until sqrt(0.15 entropy) is above the threshold"
    ),
    "adaedl": LengthEntry(
        AdaEdl,
        {"threshold": (0.0, 1.0), **_MOST, "target": (0.0, 1.0), "step": (0.0, 1.0)},
        "until 1 - sqrt(0.2 entropy) is below a threshold that follows the acceptance rate",
    ),
    "confident_top_b": LengthEntry(
        ConfidentTopB, {"weight": (0.0, 100.0), **_MOST}, "while drafts are worth their time to all"
    ),
    "pmin": LengthEntry(
        p_min, {"threshold": (0.0, 1.0), **_MOST}, "until a top-1 probability is below the threshold"
    ),
}
"""Rules that stop within a draft, by name."""
