"""Names that may have been meant, for messages about names that do not exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

_OF_OTHERS = ("_se", "_drift")
"""Metrics that say something about other metrics end so."""


def metrics_like(names: Iterable[str], known: Sequence[str]) -> list[str]:
    """Return the metrics most like some that do not exist, two for each at most.

    Standard errors and drifts are suggested only for a name of their kind. What begins as the name does
    counts as like it, so that ``e2e`` leads to the metrics of request times.

    Args:
        names: The names that do not exist.
        known: Those that do, the most usual first.
    """
    found: dict[str, None] = {}
    for name in names:
        kind = [each for each in known if name.endswith(_OF_OTHERS) or not each.endswith(_OF_OTHERS)]
        close = difflib.get_close_matches(name, kind, n=2)
        beginning = [each for each in kind if name and each.startswith(name)]
        found |= dict.fromkeys((close or beginning)[:2])
    return list(found)


def keys_like(model: type[BaseModel], place: Sequence[int | str]) -> list[str]:
    """Return the keys most like one that a part of a model does not have.

    Args:
        model: The whole.
        place: Where the wrong key stands, as pydantic tells it: keys, indices and tags of alternatives, the
            wrong key last.
    """
    models = [model]
    for part in place[:-1]:
        fields = [one.model_fields[str(part)] for one in models if part in one.model_fields]
        if fields:
            models = [found for field in fields for found in _models_in(field.annotation)]
        else:  # a key of a mapping, an index, or the tag of one of several alternatives
            models = [one for one in models if part in _tags(one)] or models
    known = dict.fromkeys(name for one in models for name in one.model_fields)
    return difflib.get_close_matches(str(place[-1]), known, n=1)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) is not Literal:
        for part in get_args(annotation):
            yield from _models_in(part)


def _tags(model: type[BaseModel]) -> set[Any]:
    """Return what tells a model from its alternatives: the values of its keys that have few."""
    kinds = (field.annotation for field in model.model_fields.values())
    return {value for kind in kinds if get_origin(kind) is Literal for value in get_args(kind)}


def hint(likes: Sequence[str]) -> str:
    """Return ``; did you mean 'a' or 'b'?``, or a full stop where nothing is like it."""
    return f"; did you mean {' or '.join(map(repr, likes))}?" if likes else "."
