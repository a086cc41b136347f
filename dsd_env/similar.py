"""Names that may have been meant, for messages about names that do not exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

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


def hint(likes: Sequence[str]) -> str:
    """Return ``; did you mean 'a' or 'b'?``, or a full stop where nothing is like it."""
    return f"; did you mean {' or '.join(map(repr, likes))}?" if likes else "."
