"""What commands print: tables for people, JSON for programs."""

from __future__ import annotations

import itertools
import json
import math
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MOST_COLUMNS = 110
"""Lines get no longer than this, however wide the terminal is."""


LEAST_COLUMNS = 16
"""A column of text that is broken keeps so many."""


def width() -> int:
    """Return the length of lines: the terminal's, 80 where there is none."""
    return max(40, min(shutil.get_terminal_size().columns, MOST_COLUMNS))


def number(value: float | None) -> str:
    """Return a number with four digits; a dash for what was not observed."""
    if value is None or math.isnan(value):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def table(rows: Sequence[Sequence[str]], right: str = "", indent: str = "") -> str:
    """Return rows as columns, two spaces apart; where they are too wide, the widest column of text is broken.

    Args:
        rows: The cells, the head's first.
        right: A letter for each column: ``r`` for those that are aligned at the right; the rest at the left.
        indent: What each line begins with.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    texts = [at for at in range(len(widths)) if right[at : at + 1] != "r"]
    excess = len(indent) + sum(widths) + 2 * (len(widths) - 1) - width()
    if excess > 0 and texts:
        widest = max(texts, key=lambda at: widths[at])
        widths[widest] = max(LEAST_COLUMNS, widths[widest] - excess)
    lines = []
    for row in rows:
        broken = [
            textwrap.wrap(cell, size, break_on_hyphens=False) or [""]
            for cell, size in zip(row, widths, strict=True)
        ]
        for parts in itertools.zip_longest(*broken, fillvalue=""):
            cells = [
                part.rjust(size) if right[at : at + 1] == "r" else part.ljust(size)
                for at, (part, size) in enumerate(zip(parts, widths, strict=True))
            ]
            lines.append(f"{indent}{'  '.join(cells)}".rstrip())
    return "\n".join(lines)


def paragraph(text: str, indent: str = "") -> str:
    """Return a text broken into lines."""
    return textwrap.fill(text, width(), initial_indent=indent, subsequent_indent=indent)


def shortened(text: str, most: int) -> str:
    """Return the beginning of a text, whole words, at most so long."""
    return textwrap.shorten(text, max(8, most), placeholder=" ...")


def check_folder(out: Path) -> None:
    """Check that the folder of a file that is to be written exists: a mistyped one is not to be made.

    Raises:
        ValueError: It does not.
    """
    if not out.parent.is_dir():
        what = "is no folder" if out.parent.exists() else "does not exist; make it first"
        raise ValueError(f"--out {out}: folder {str(out.parent)!r} {what}")


def print_json(data: Any) -> None:
    """Print JSON; NaN and the infinities, which JSON lacks, become null."""
    print(json.dumps(finite(data), indent=1, allow_nan=False))


def finite(data: Any) -> Any:
    """Return data with None for every number that is not finite."""
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, Mapping):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [finite(value) for value in data]
    return data
