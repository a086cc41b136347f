"""Docstrings with parts in Markdown, for autodoc, which reads reStructuredText.

Environments describe themselves in Markdown, as Gymnasium's do: headings, tables, code between fences, links.
These four are translated; what else the two languages share stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

_LINK = re.compile(r"(?<!`)\[([^\]]+)\]\((https?://[^)\s]+)\)")


def translated(lines: Sequence[str]) -> list[str]:
    """Return the lines of a docstring in reStructuredText."""
    return list(_translated(lines))


def _translated(lines: Sequence[str]) -> Iterator[str]:
    at = 0
    while at < len(lines):
        line = lines[at]
        indent = line[: len(line) - len(line.lstrip())]
        if line.lstrip().startswith("```"):
            end = next(i for i in range(at + 1, len(lines)) if lines[i].strip() == "```")
            yield from ("", f"{indent}.. code-block:: {line.strip('` ') or 'text'}", "")
            yield from (f"   {code}" for code in lines[at + 1 : end])
            yield ""
            at = end + 1
        elif _is_row(line) and at + 1 < len(lines) and set(lines[at + 1].strip()) <= set("|-: "):
            end = next((i for i in range(at, len(lines)) if not _is_row(lines[i])), len(lines))
            yield from _table([lines[at], *lines[at + 2 : end]], indent)
            at = end
        elif heading := re.match(r"#+ (.*)", line):
            yield from ("", f".. rubric:: {heading[1]}", "")
            at += 1
        else:
            yield _LINK.sub(r"`\1 <\2>`__", line)
            at += 1


def _is_row(line: str) -> bool:
    return line.lstrip().startswith("|")


def _table(rows: Sequence[str], indent: str) -> Iterator[str]:
    yield from ("", f"{indent}.. list-table::", f"{indent}   :header-rows: 1", "")
    for row in rows:
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", row.strip().strip("|"))]
        for at, cell in enumerate(cells):
            text = _LINK.sub(r"`\1 <\2>`__", cell.replace("\\|", "|"))
            yield f"{indent}   {'*' if at == 0 else ' '} - {text}".rstrip()
    yield ""


def setup(app: Sphinx) -> dict[str, Any]:
    """Translate docstrings before Napoleon sees them."""

    def process(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
        lines[:] = translated(lines)

    app.connect("autodoc-process-docstring", process, priority=100)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
