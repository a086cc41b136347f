"""Blocks of a page that a command writes, between ``<!-- begin: NAME -->`` and ``<!-- end: NAME -->``."""

from __future__ import annotations

from collections.abc import Mapping


def replace_blocks(text: str, blocks: Mapping[str, str]) -> str:
    """Text with every known block replaced; unknown blocks stay as they are.

    Raises:
        ValueError: a block begins and does not end.
    """
    for name, content in blocks.items():
        begin, end = f"<!-- begin: {name} -->", f"<!-- end: {name} -->"
        if begin not in text:
            continue
        head, rest = text.split(begin, 1)
        if end not in rest:
            raise ValueError(f"block {name!r} begins and does not end: add '{end}'")
        text = f"{head}{begin}\n{content}\n{end}{rest.split(end, 1)[1]}"
    return text
