"""Reading text files of strangers: one place that knows about encodings and sizes.

Text is UTF-8, with or without a byte order mark, or UTF-16 with one (PowerShell's ``>`` writes that).
Anything else is refused with a message that says what the file seems to be.
"""

from __future__ import annotations

import codecs
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

MAX_BYTES = 500_000_000
"""Files above this are not read into memory as a whole; :func:`open_text` has no such limit."""

_UTF32 = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_BINARY = {
    b"\x1f\x8b": "a gzip archive: unpack it first (gunzip)",
    b"PK\x03\x04": "a ZIP archive: unpack it first",
    b"\x28\xb5\x2f\xfd": "a Zstandard archive: unpack it first (unzstd)",
    b"PAR1": "an Apache Parquet file: save it as CSV or JSON lines first",
}


class TextError(ValueError):
    """A file cannot be read as text; the message names the file and says what it seems to be."""


def whereabouts(path: Path) -> str:
    """Return where a relative path was looked for, to go behind an error; "" for an absolute one."""
    return "" if path.is_absolute() else f" (relative to the working directory, {Path.cwd()})"


def read_text(path: str | Path, *, max_bytes: int = MAX_BYTES) -> str:
    r"""Return a file's whole text; line ends are ``\n``, a byte order mark is left out.

    Args:
        path: The file.
        max_bytes: Larger files are refused.

    Raises:
        TextError: Not found, not a file, too large, or not text.
    """
    with open_text(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise TextError(f"{path}: has {size:,} bytes; files above {max_bytes:,} are not read into memory")
        return file.read()


@contextmanager
def open_text(path: str | Path) -> Iterator[TextIO]:
    r"""Open a text file of any size for reading, line by line or whole.

    Line ends ``\r\n`` and ``\r`` become ``\n``. Faults of encoding that come up later, inside the ``with``
    block, are :class:`TextError` too.

    Args:
        path: The file.

    Yields:
        The open file.

    Raises:
        TextError: Not found, not a file, cannot be read, or not text.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise TextError(f"{path}: is not a file")
        raw = path.open("rb")
    except FileNotFoundError:
        raise TextError(f"{path}: there is no such file{whereabouts(path)}") from None
    except TextError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte
        raise TextError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    with raw:
        encoding = _encoding(path, raw.read(4096))
        raw.seek(0)
        with io.TextIOWrapper(raw, encoding=encoding) as file:
            try:
                yield file
            except UnicodeDecodeError as error:
                raise TextError(
                    f"{path}: is not {_name(encoding)} text: {error.reason}{_hint(error)}"
                ) from None


def _encoding(path: Path, head: bytes) -> str:
    """Return the encoding that a file's beginning tells of."""
    for magic, what in _BINARY.items():
        if head.startswith(magic):
            raise TextError(f"{path}: is not text but {what}")
    if head.startswith(_UTF32):
        raise TextError(f"{path}: is UTF-32 text: save it as UTF-8")
    if head.startswith(_UTF16):
        return "utf-16"
    if b"\0" in head:
        even, odd = head[0::2].count(0), head[1::2].count(0)
        if max(even, odd) > len(head) // 4:
            raise TextError(f"{path}: seems to be UTF-16 text without a byte order mark: save it as UTF-8")
        raise TextError(f"{path}: is not text: it holds null bytes")
    return "utf-8-sig"


def _name(encoding: str) -> str:
    return "UTF-8" if encoding == "utf-8-sig" else "UTF-16"


def _hint(error: UnicodeDecodeError) -> str:
    """Return which byte does not decode, and what that may mean."""
    if error.start >= len(error.object):
        return ""
    return f" (byte 0x{error.object[error.start]:02x}); a file in Latin-1 or Windows-1252? Save it as UTF-8"
