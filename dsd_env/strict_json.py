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


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number that JSON allows")


def _unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"field {key!r} is given twice")
        found[key] = value
    return found


def first(text: str, start: int = 0) -> tuple[Any, int]:
    """Return the JSON value that begins at ``start``, and the index behind its end.

    Args:
        text: The text; what stands behind the value may be anything.
        start: Index of the value's first character.

    Raises:
        ValueError: As :func:`loads`, fields given twice included.
        RecursionError: Nested too deep.
    """
    return _DECODER.raw_decode(text, start)


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_unique_fields)
