"""The constants of the goodput rule (:mod:`dsd_env.schedulers.goodput`)."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from dsd_env.control import RequestView
from dsd_env.schedulers.base import SchedulerError

HALF_AGED_TOKENS = 128.0
"""Tokens after which a request counts as half aged."""
EXPLORED_TOKENS = 64
"""Tokens for which a request tries a draft model."""

_RANGES: dict[str, tuple[float, float]] = {
    "load_weight": (0.0, 1e3),
    "horizon_tokens": (1.0, 1e6),
    "prior_acceptance": (0.0, 1.0),
    "prior_lookup": (0.0, 1.0),
    "prior_trials": (0.0, 1e6),
    "shared_trials": (0.0, 1e6),
    "busy_phase": (0.0, 1.0),
    "batch_size": (1.0, 4096.0),
    "slo_margin": (0.0, 1.0),
    "price_colocated": (0.01, 100.0),
    "price_own": (0.01, 100.0),
    "price_edge": (0.01, 100.0),
    "change_margin": (1.0, 100.0),
    "age_weight": (-10.0, 10.0),
    "pack": (0.0, 4096.0),
    "relief": (0.0, 1.0),
    "hopeless": (0.0, 100.0),
    "explore": (0.0, 1e6),
}
_WHOLE = ("batch_size", "pack", "explore")


@dataclass(frozen=True, slots=True)
class GoodputParameters:
    """Constants of the rule.

    Attributes:
        load_weight: Weight of the time by which the round's tokens delay the other sequences of the
            iteration; 0 considers the own request alone, 1 counts every delayed request like it.
        horizon_tokens: Tokens over which the one-off costs of a draft site (KV catch-up, handover of
            control) are spread: a controller cannot know how many are to come.
        prior_acceptance: Acceptance rate expected of an unknown request.
        prior_lookup: The same of a look-up, whose rounds without a proposal count as rejected.
        prior_trials: Weight of the prior in a request's own acceptance rate, in draft tokens.
        shared_trials: The same where a whole batch shares the draft steps: the length must suit every
            request in it, so a single request's luck counts little.
        busy_phase: Share of an iteration that a message from outside waits at a busy target.
        batch_size: Batch size B to choose; 1 waits nowhere.
        slo_margin: Who keeps this share of the bound on its time per token by plain decoding decodes plainly,
            and leaves drafts, which take time from all, to those who need them; 0: everybody drafts.
        price_colocated: What drafting at the target costs, in units of the estimate; plain decoding costs 1.
            This and the following prices stand for what the estimates miss; a search can find them.
        price_own: The same of drafting on the own device.
        price_edge: The same of drafting on edge servers.
        change_margin: By how much the other way of drafting must be faster before a target changes to it.
        age_weight: By how much more others' delay weighs for requests that have had many tokens (less, if it
            is negative): `load_weight` times exp(age_weight * (share - 1/2)), with the share that begins at 0
            and is 1/2 after 128 tokens. The longer an answer is already, the more is usually to come of it.
        relief: Who has had its tokens within this share of the bound on the time per token goes on without
            drafts until that is used up; 0: never.
        hopeless: Who has had its tokens so many times slower than the bound allows, or its first token too
            late, will hardly meet its objectives and gets no drafts, which take time from others; 0: never.
        explore: One request in so many drafts its first tokens away from the target with one of the draft
            models, each in turn, so that the acceptance of those that nobody would choose is known, too.
            Where drafts stream and there are several models; 0: nobody does.
        pack: Requests up to which targets are filled, one after the other by number; 0: each request goes to
            the target with the fewest.
    """

    load_weight: float = 1.0
    horizon_tokens: float = 64.0
    prior_acceptance: float = 0.65
    prior_lookup: float = 0.25
    prior_trials: float = 16.0
    shared_trials: float = 400.0
    busy_phase: float = 0.5
    batch_size: int = 1
    slo_margin: float = 0.0
    price_colocated: float = 1.0
    price_own: float = 1.0
    price_edge: float = 1.0
    change_margin: float = 1.25
    age_weight: float = 0.0
    pack: int = 0
    relief: float = 0.0
    hopeless: float = 0.0
    explore: int = 0

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            SchedulerError: A value is outside its range, or no whole number where it must be.
        """
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise SchedulerError(f"jsq_goodput: {name} = {value:g} must be in [{low:g}, {high:g}]")
        for name in _WHOLE:
            value = getattr(self, name)
            if value != int(value):
                raise SchedulerError(f"jsq_goodput: {name} = {value:g} must be a whole number")
            object.__setattr__(self, name, int(value))

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the names of the parameters."""
        return tuple(field.name for field in fields(cls))

    @property
    def prices(self) -> tuple[float, float, float]:
        """What drafting costs in units of its estimate, by :class:`~dsd_env.control.Site`."""
        return self.price_colocated, self.price_own, self.price_edge

    def load_weight_of(self, request: RequestView) -> float:
        """Return the weight of others' delay for a request."""
        share = request.committed_tokens / (request.committed_tokens + HALF_AGED_TOKENS)
        return self.load_weight * math.exp(self.age_weight * (share - 0.5))
