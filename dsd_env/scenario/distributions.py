"""Distributions of durations and lengths."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, model_validator

from dsd_env.scenario.base import Model, NonNegative, Positive


class Constant(Model):
    """A fixed number of tokens or seconds."""

    distribution: Literal["constant"]
    value: NonNegative = Field(description="The value, in seconds or tokens.")


class LogNormal(Model):
    """Log-normal distribution with the given median and shape, clipped to [low, high]."""

    distribution: Literal["lognormal"]
    median: Positive = Field(description="Median, in seconds or tokens.")
    sigma: Annotated[float, Field(ge=0, le=4)] = Field(description="Standard deviation of the logarithm.")
    low: NonNegative = Field(default=0.0, description="Smallest value; smaller ones are raised to it.")
    high: Positive = Field(default=1.0e9, description="Largest value; larger ones are cut to it.")

    @model_validator(mode="after")
    def _ordered(self) -> LogNormal:
        if self.low > self.high:
            raise ValueError(f"low ({self.low}) must not exceed high ({self.high})")
        return self


class Exponential(Model):
    """Exponential distribution with the given mean."""

    distribution: Literal["exponential"]
    mean: Positive = Field(description="Mean, in seconds.")


class Geometric(Model):
    """Geometric distribution on 1, 2, 3, ... with the given mean."""

    distribution: Literal["geometric"]
    mean: Annotated[float, Field(ge=1)] = Field(description="Mean, in tokens.")


class Quantiles(Model):
    """Any positive distribution, given by its quantiles.

    Between two levels the logarithm is linear in the standard normal quantile, as that of a log-normal is
    everywhere. Beyond the outer levels the distribution takes the outer values.
    """

    distribution: Literal["quantiles"]
    levels: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        min_length=2, max_length=64, description="Probabilities, strictly increasing."
    )
    values: tuple[Positive, ...] = Field(
        min_length=2, max_length=64, description="The quantile at each level."
    )

    @model_validator(mode="after")
    def _ordered(self) -> Quantiles:
        if len(self.levels) != len(self.values):
            raise ValueError(f"{len(self.levels)} levels and {len(self.values)} values: give one for each")
        if any(b <= a for a, b in pairwise(self.levels)):
            raise ValueError(f"levels {self.levels} must increase strictly")
        if any(b < a for a, b in pairwise(self.values)):
            raise ValueError(f"values {self.values} must not fall")
        return self


Duration = Annotated[Constant | LogNormal | Exponential, Field(discriminator="distribution")]
Length = Annotated[Constant | LogNormal | Geometric | Quantiles, Field(discriminator="distribution")]
