"""Models whose numbers are numbers: pydantic by itself makes 1 of True and 10 of the text ``010``."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema

__all__ = ["StrictNumbers", "expected_type", "explain_type"]


class StrictNumbers:
    """Mixin, before ``BaseModel``, of models read from files and from Python mappings.

    A whole number is an int, or a float without a fraction (``1e6``); a number is an int or a float, and
    finite; NumPy's are taken too. A truth value is True or False. Nothing is made of text, nothing of truth
    values, wherever in a field's type the number stands. Lists are still taken for tuples.
    """

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler, /) -> CoreSchema:
        """Return pydantic's schema with every number and truth value in it made strict."""
        found: CoreSchema = _strict(handler(source))
        return found


def _whole(value: object) -> object:
    """An int where the value is one in another form; else the value, for pydantic to refuse."""
    if isinstance(value, bool) or type(value) is int:
        return value
    if isinstance(value, Integral):
        return int(value)
    number = float(value) if isinstance(value, Real) else 0.5
    return int(number) if number.is_integer() else value


def _real(value: object) -> object:
    """A float where the value is a number in another form; else the value, for pydantic to refuse."""
    if isinstance(value, bool | float) or not isinstance(value, Real):
        return value
    try:
        return float(value)
    except OverflowError:
        return float("inf")  # refused as not finite, with the key


_NUMBERS: dict[str, Any] = {"int": _whole, "float": _real}
_OPAQUE = frozenset({"metadata", "default", "serialization", "cls", "config"})


def _strict(schema: Any) -> Any:
    """Return a copy of a core schema with strict numbers and truth values."""
    if isinstance(schema, (list, tuple)):
        return type(schema)(_strict(each) for each in schema)
    if not isinstance(schema, dict):
        return schema
    kind = schema.get("type")
    if schema.get("strict") is True and kind in (*_NUMBERS, "bool"):
        return schema  # done already, by a model inside this one
    if kind == "bool":
        return {**schema, "strict": True}
    if kind in _NUMBERS:
        inner = {**schema, "strict": True}
        if kind == "float":
            inner.setdefault("allow_inf_nan", False)
        return {
            "type": "function-before",
            "function": {"type": "no-info", "function": _NUMBERS[kind]},
            "schema": inner,
        }
    return {key: value if key in _OPAQUE else _strict(value) for key, value in schema.items()}


def explain_type(problem: Mapping[str, Any]) -> str | None:
    """Return in words what is wrong with the type of a value, for one error of pydantic; else None."""
    kind = problem["type"]
    if kind == "int_type" and isinstance(problem["input"], float):
        return "is not a whole number"
    if kind in ("int_type", "float_type", "int_parsing", "float_parsing"):
        return "is not a number"
    if kind == "finite_number":
        return "is not a finite number"
    if kind == "bool_type":
        return "is neither true nor false"
    if kind == "string_type" and isinstance(problem["input"], (bool, int, float)):
        return "is not text: write it in quotes"
    return None


_EXPECTED = {
    "float_type": "a number",
    "int_type": "a whole number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "dict_type": "a mapping of keys",
    "model_type": "a mapping of keys",
}
_WORDS: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (bool, "a boolean"),
    ((int, float), "a number"),
    (str, "text"),
    ((list, tuple), "a list"),
    (Mapping, "a mapping of keys"),
)


def expected_type(problem: Mapping[str, Any]) -> str | None:
    """Return what was expected in place of a value and what it is, for one error of pydantic.

    None where the value has the right type.
    """
    expected, value = _EXPECTED.get(problem["type"]), problem["input"]
    if expected is None:
        return None
    if isinstance(value, float) and problem["type"] in ("int_type", "finite_number"):
        return f"expected {expected}"
    if value is None:
        return f"expected {expected}, got nothing"
    word = next((word for kinds, word in _WORDS if isinstance(value, kinds)), type(value).__name__)
    return f"expected {expected}, got {word}"
