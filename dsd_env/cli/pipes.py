"""An output whose reader may go away, as in ``command | head``: what is printed after that is lost, quietly.

The command does what else it has to do, saving above all, and ends with the status that it has by itself.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn, TextIO


def run_to_the_end(main: Callable[[], int]) -> NoReturn:
    """Run ``main`` with an output that may be closed by its reader, and exit with its status."""
    sys.stdout = _lasting(sys.stdout)
    sys.stderr = _lasting(sys.stderr)
    sys.exit(main())


class _Lasting(io.FileIO):
    """A file that takes what is written to it after its reader has gone."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            closed = error.errno == errno.EPIPE or (os.name == "nt" and error.errno == errno.EINVAL)
            if not closed:
                raise
            return memoryview(data).nbytes


def _lasting(stream: TextIO) -> TextIO:
    """Return a stream that writes where another does; that one where it is no file, or a terminal."""
    try:
        number = stream.fileno()
        if os.isatty(number):
            return stream
        stream.flush()
    except (OSError, ValueError, AttributeError):
        return stream
    return io.TextIOWrapper(
        io.BufferedWriter(_Lasting(number, "wb", closefd=False)),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream is sys.stderr,
        write_through=stream is sys.stderr,
    )
