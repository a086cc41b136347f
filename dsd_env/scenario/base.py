"""What every part of the schema is made of: names, numbers in their ranges, and the frozen model."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from dsd_env.strict_model import StrictNumbers

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._\-]*$", max_length=80)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]


class Model(StrictNumbers, BaseModel):
    """A part of a scenario: frozen, unknown keys are refused, numbers are numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())
