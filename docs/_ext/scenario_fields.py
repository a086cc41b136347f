"""Fields of pydantic models, for autodoc: the keys of a scenario's file, with what each takes and means."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo

if TYPE_CHECKING:
    from sphinx.application import Sphinx

_BOUNDS = (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))


def table(model: type[BaseModel]) -> list[str]:
    """Return the fields of a model as a table in reStructuredText."""
    return list(_table(model))


def _table(model: type[BaseModel]) -> Iterator[str]:
    yield from ("", ".. list-table::", "   :header-rows: 1", "")
    yield from _row("key", "value", "default", "meaning")
    for name, field in model.model_fields.items():
        yield from _row(f"``{name}``", _value(field), _default(field), field.description or _chosen(field))
    yield ""


def _chosen(field: FieldInfo) -> str:
    """Return what a field says that has no description: the one word that selects this part of a scenario."""
    annotation = field.annotation
    is_tag = typing.get_origin(annotation) is Literal and len(typing.get_args(annotation)) == 1
    return "selects this" if is_tag else ""


def _row(*cells: str) -> Iterator[str]:
    for at, cell in enumerate(cells):
        yield f"   {'*' if at == 0 else ' '} - {' '.join(cell.split())}".rstrip()


def _value(field: FieldInfo) -> str:
    """Return what a field takes: its type, and its range."""
    bounds = [
        f"{sign} {getattr(part, name):g}"
        for part in field.metadata
        for name, sign in _BOUNDS
        if getattr(part, name, None) is not None
    ]
    return ", ".join([shown(field.annotation), *bounds])


def shown(annotation: Any) -> str:
    """Return an annotation in words."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return shown(parts[0])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(shown(part) for part in parts))
    if origin is Literal:
        return " or ".join(f"``{part}``" for part in parts)
    if origin is not None:
        named = ", ".join(shown(part) for part in parts if part is not Ellipsis)
        return f"{'list' if origin is tuple else origin.__name__} of {named}"
    if annotation is type(None):
        return "nothing"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f":class:`~{annotation.__module__}.{annotation.__name__}`"
    return getattr(annotation, "__name__", str(annotation))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "must be given"
    default = field.get_default(call_default_factory=True)
    if isinstance(default, BaseModel):
        return "its own defaults"
    if default is None:
        return "nothing"
    if isinstance(default, tuple):
        default = list(default)
    return f"``{default}``" if default != "" else "empty"


def setup(app: Sphinx) -> dict[str, Any]:
    """Put the table under the docstring of each model."""

    def process(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
        if what == "class" and isinstance(obj, type) and issubclass(obj, BaseModel):
            lines += table(obj)

    # After Napoleon.
    app.connect("autodoc-process-docstring", process, priority=900)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
