"""What goes wrong with recorded networks."""

from __future__ import annotations


class SeriesError(ValueError):
    """A recorded network cannot be used; the message names file, line and field."""
