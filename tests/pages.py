"""The code on the project's pages: blocks with what stands before them, and command lines.

docs/site.md says what the comments before a block mean.
"""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
PROGRAMS = ("python", "dsd-env", "make", "pip")
"""First words of the command lines that are looked at."""

_COMMENT = re.compile(r"<!-- (not run|run slowly|run with|run after)(?:: (.*?))? -->", re.DOTALL)
_BLOCK = re.compile(
    r"^(?P<notes>(?:<!--(?:(?!-->).)*-->\s*\n)*)"
    r"(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```",
    re.DOTALL | re.MULTILINE,
)
_INDENTED = re.compile(r"(?:^ {4}.*\n)+", re.MULTILINE)
_INLINE = re.compile(r"`((?:python scripts/|dsd-env |make )[^`]+)`")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: Where it stands.
        line: Number of its first line there.
        language: Its language; empty if it has none.
        text: What is in it.
        not_run: Why no test runs it; None if one does.
        slow: Whether it takes long.
        smaller: What stands for what in the test.
        before: Code that runs before.
    """

    page: Path
    line: int
    language: str
    text: str
    not_run: str | None
    slow: bool
    smaller: tuple[tuple[str, str], ...]
    before: str

    @property
    def where(self) -> str:
        """Page and line."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def program(self) -> str:
        """Return what the test runs, its lines numbered as on the page.

        Raises:
            AssertionError: What is to be made smaller does not occur.
        """
        text = self.text
        for old, new in self.smaller:
            assert old in text, f"{self.where}: {old!r} is not in the block"
            text = text.replace(old, new)
        return text


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _BLOCK.finditer(text):
        notes = [(kind, said or "") for kind, said in _COMMENT.findall(match["notes"])]
        found.append(
            Block(
                page=page,
                line=text.count("\n", 0, match.start("text")) + 1,
                language=match["language"],
                text=match["text"],
                not_run=next((said for kind, said in notes if kind == "not run"), None),
                slow=any(kind == "run slowly" for kind, _ in notes),
                smaller=tuple(_pair(said) for kind, said in notes if kind == "run with"),
                before="\n".join(said for kind, said in notes if kind == "run after"),
            )
        )
    return found


def _pair(said: str) -> tuple[str, str]:
    old, arrow, new = said.partition(" => ")
    assert arrow, f"{said!r} is not OLD => NEW"
    return old, new


def command_lines(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield where and what: every command line in a block of a page, as words.

    Continued lines are joined; prompts, comments, settings before a command and pipes are left out.
    """
    for block in blocks(page):
        if block.language in ("", "sh") and block.not_run is None:
            yield from ((block.where, words) for words in _commands(block.text))
    rest = _BLOCK.sub("", page.read_text(encoding="utf-8"))
    for match in _INDENTED.finditer(rest):
        yield from ((str(page.relative_to(ROOT)), words) for words in _commands(match[0]))


def inline_commands(page: Path) -> Iterator[str]:
    """Yield the command lines within sentences, which may leave out what a command needs."""
    rest = _BLOCK.sub("", page.read_text(encoding="utf-8"))
    yield from (" ".join(text.split()) for text in _INLINE.findall(rest))


def _commands(text: str) -> Iterator[list[str]]:
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        bare = re.sub(r"^\s*(?:\$ )?(?:[A-Z_]+=\S+ )?", "", line)
        if bare.startswith(tuple(f"{program} " for program in PROGRAMS)):
            # What a usage line has in brackets is tried as well.
            words = shlex.split(re.sub(r"(?<= )\[(-[^\]]*)\]", r"\1", bare), comments=True)
            yield list(itertools.takewhile(lambda word: not word.startswith(("|", ">", "2>")), words))
