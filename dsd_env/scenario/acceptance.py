"""Where the acceptance of draft tokens comes from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dsd_env.scenario.base import Fraction, Model, Name


class TraceAcceptance(Model):
    """Replay of a recorded trace set: exact for every speculation length."""

    source: Literal["trace"]
    trace: str = Field(min_length=1, description="Name of a shipped trace set, or a path.")
    drafter: Name = Field(description="Which drafter of the recording.")


class FittedAcceptance(Model):
    """Replay of requests drawn from a fitted model, for pairs whose recordings cannot be shipped.

    `published` is a model with the shape of a recording at the level that was published for a larger pair.
    """

    source: Literal["fitted", "published"] = Field(description="What the model is labelled.")
    model: str = Field(min_length=1, description="Name of a shipped model, or a path.")
    drafter: Name = Field(description="Which drafter of the model.")


class IidAcceptanceConfig(Model):
    """Every draft token is accepted with probability alpha, independently (synthetic)."""

    source: Literal["iid"]
    alpha: Fraction


class MarkovAcceptanceConfig(Model):
    """Acceptance with memory: the chance of a match after a match and after a mismatch (synthetic)."""

    source: Literal["markov"]
    after_match: Fraction
    after_mismatch: Fraction


AcceptanceConfig = Annotated[
    TraceAcceptance | FittedAcceptance | IidAcceptanceConfig | MarkovAcceptanceConfig,
    Field(discriminator="source"),
]
