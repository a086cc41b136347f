"""Sources of the acceptance of draft tokens: recorded, fitted or synthetic."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from dsd_env.scenario.base import Fraction, Model, Name


def _rising(hits: tuple[float, ...]) -> tuple[float, ...]:
    if list(hits) != sorted(hits):
        raise ValueError(f"hits = {list(hits)} must not fall: more alternatives hold what fewer do")
    return hits


Hits = Annotated[
    tuple[Fraction, ...],
    Field(
        description="If a draft is wrong: the probability that the right token is among the drafter's 1, 2, "
        "... most likely alternatives to it. Needed by `protocol.branches`; recordings have the ranks."
    ),
    AfterValidator(_rising),
]


class TraceAcceptance(Model):
    """Acceptance replayed from a recorded trace set; exact for every speculation length."""

    source: Literal["trace"]
    trace: str = Field(min_length=1, description="Name of a shipped trace set, or a path.")
    drafter: Name = Field(description="Name of the drafter in the recording.")


class FittedAcceptance(Model):
    """Acceptance replayed from requests of a fitted model, for pairs whose recordings cannot be shipped.

    A `published` model has the shape of a recording, at the acceptance level published for a larger pair.
    """

    source: Literal["fitted", "published"] = Field(description="Label of the model.")
    model: str = Field(min_length=1, description="Name of a shipped model, or a path.")
    drafter: Name = Field(description="Name of the drafter in the model.")
    hits: Hits = ()


class IidAcceptanceConfig(Model):
    """Synthetic acceptance: every draft token is accepted independently with probability alpha."""

    source: Literal["iid"]
    alpha: Fraction = Field(
        description="Probability that a draft token is accepted, given that those before it were."
    )
    hits: Hits = ()


class MarkovAcceptanceConfig(Model):
    """Synthetic acceptance with memory: the probability of a match after a match, and after a mismatch."""

    source: Literal["markov"]
    after_match: Fraction = Field(description="Probability of a match after a match.")
    after_mismatch: Fraction = Field(description="Probability of a match after a mismatch.")
    hits: Hits = ()


AcceptanceConfig = Annotated[
    TraceAcceptance | FittedAcceptance | IidAcceptanceConfig | MarkovAcceptanceConfig,
    Field(discriminator="source"),
]
