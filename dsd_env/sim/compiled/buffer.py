"""A buffer of bytes under construction: blocks of rows one after the other, that point to each other."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsd_env.sim.compiled.records import Record

ALIGNMENT = 8


class Rows:
    """Rows of a record, filled through NumPy until the buffer is made.

    Attributes:
        record: The record.
        at: Where the first row will lie in the buffer, in bytes.
        array: The rows, a structured array.
    """

    def __init__(self, record: Record, at: int, n: int) -> None:
        """Make rows of zeros."""
        self.record, self.at = record, at
        self.array: NDArray[Any] = np.zeros(n, dtype=record.dtype)

    def at_row(self, i: int) -> int:
        """Return where a row will lie."""
        return self.at + i * self.record.itemsize

    def set(self, i: int, **values: Any) -> None:
        """Set fields of a row."""
        for name, value in values.items():
            self.array[name][i] = value

    def set_columns(self, **values: Any) -> None:
        """Set fields of all rows."""
        for name, value in values.items():
            self.array[name] = value

    def point(self, field: str | tuple[str, str], at: int, i: int = 0) -> None:
        """Let a field of a row, or of a record within it, say where something lies.

        Args:
            field: Name of the field, or of the record within and its field.
            at: Where that lies in the same buffer.
            i: Number of the row.
        """
        if isinstance(field, str):
            self.array[field][i] = at - self.at_row(i)
        else:
            within, name = field
            self.array[within][name][i] = at - (self.at_row(i) + self.record.offsets[within])


class Buffer:
    """Hands out places, and puts everything there in the end.

    Attributes:
        size: Bytes given away.
    """

    def __init__(self) -> None:
        """Begin an empty buffer."""
        self.size = 0
        self._parts: list[tuple[int, NDArray[Any]]] = []

    def room(self, n_bytes: int) -> int:
        """Return where so many bytes of zeros will lie."""
        at = self.size
        self.size = -(-(at + n_bytes) // ALIGNMENT) * ALIGNMENT
        return at

    def rows(self, record: Record, n: int) -> Rows:
        """Return rows to fill."""
        rows = Rows(record, self.room(n * record.itemsize), n)
        self._parts.append((rows.at, rows.array))
        return rows

    def numbers(self, values: Any, dtype: str) -> int:
        """Return where an array of numbers will lie."""
        array = np.ascontiguousarray(values, dtype=dtype).ravel()
        at = self.room(array.nbytes)
        self._parts.append((at, array))
        return at

    def array(self, n_bytes: int | None = None) -> NDArray[np.uint8]:
        """Return the buffer with everything in its place, or its first bytes."""
        whole = np.zeros(self.size if n_bytes is None else n_bytes, dtype=np.uint8)
        for at, part in self._parts:
            if at < len(whole):
                whole[at : at + part.nbytes] = part.view(np.uint8).ravel()
        return whole
