"""JSON of strangers, by the standard: Python's own reader takes NaN, and the last of two equal fields."""

from __future__ import annotations

import json
from typing import Any, NoReturn


def loads(text: str, *, unique: bool = True, nan: bool = False) -> Any:
    """Return parsed JSON.

    Args:
        text: The text.
        unique: Refuse an object that has a field twice.
        nan: Let NaN and the infinities through, for a caller that refuses them with the field's name.

    Raises:
        ValueError: NaN or an infinity, or a field twice; a :class:`json.JSONDecodeError` if it is not JSON.
        RecursionError: Nested too deep.
    """
    return json.loads(
        text,
        parse_constant=None if nan else _refuse_constant,
        object_pairs_hook=_unique_fields if unique else None,
    )


def next_value(text: str, start: int = 0, *, unique: bool = True, nan: bool = False) -> tuple[Any, int]:
    """Return the JSON value that begins at a place of a text, and where it ends; the rest is not looked at.

    Args:
        text: The text.
        start: Where the value begins.
        unique: Refuse an object that has a field twice.
        nan: Let NaN and the infinities through, as :func:`loads` does.

    Raises:
        ValueError: As :func:`loads`.
        RecursionError: Nested too deep.
    """
    decoder = json.JSONDecoder(
        parse_constant=None if nan else _refuse_constant,
        object_pairs_hook=_unique_fields if unique else None,
    )
    return decoder.raw_decode(text, start)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number that JSON allows")


def _unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"field {key!r} is given twice")
        found[key] = value
    return found
