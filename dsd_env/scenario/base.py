"""Building blocks of the scenario schema: names, numbers with ranges, and the frozen base model."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from dsd_env.strict_model import StrictNumbers

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._\-]*$", max_length=80)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]


class Model(StrictNumbers, BaseModel):
    """Base model of each part of a scenario: frozen, without unknown keys, and strict about numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class WithLaterKeys(Model):
    """Base model of a part with keys added later: dumps omit such a key at its default, to keep old digests.

    Attributes:
        later_keys: Names of the keys added later.
    """

    later_keys: ClassVar[tuple[str, ...]] = ()

    @model_serializer(mode="wrap")
    def _without_defaults(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data: dict[str, Any] = write(self)
        fields = type(self).model_fields
        absent = {key for key in self.later_keys if getattr(self, key) == fields[key].default}
        return {key: value for key, value in data.items() if key not in absent}
