"""The fields that infos hold about the decision now due, beside its observation."""

from __future__ import annotations

from operator import attrgetter
from typing import Any, NamedTuple

from dsd_env.control.view import DecisionView


class DueField(NamedTuple):
    """One whole number or flag about the decision now due.

    Attributes:
        name: Key in ``info["decision"]``; numeric infos put ``decision_`` before it.
        source: Dotted path of the value in the view of the decision.
        is_flag: Whether the value is true or false.
        meaning: Description of the value.
    """

    name: str
    source: str
    is_flag: bool
    meaning: str


DUE_FIELDS = (
    DueField("request_id", "request_id", False, "number of the request"),
    DueField("device", "device", False, "number of its device"),
    DueField("counter", "counter", False, "number of the decision within the request"),
    DueField("is_admission", "request.is_admission", True, "first decision: places the prompt"),
    DueField("committed_tokens", "request.committed_tokens", False, "output tokens committed"),
)
"""The fields about the decision now due, in the order of the compiled engine's array."""

_read = attrgetter(*(field.source for field in DUE_FIELDS))


def due_of_view(view: DecisionView) -> dict[str, Any]:
    """Return the fields about a decision by name, read from its view."""
    return dict(zip((field.name for field in DUE_FIELDS), _read(view), strict=True))


def due_of_row(row: list[int]) -> dict[str, Any]:
    """Return the fields about a decision by name, read from the compiled engine's numbers."""
    return {
        field.name: value != 0 if field.is_flag else value
        for field, value in zip(DUE_FIELDS, row, strict=True)
    }
