"""The code on the project's pages runs, and its command lines are understood by the programs they name."""

from __future__ import annotations

import argparse
import functools
import linecache
import re
import runpy
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dsd_env.cli import main as cli
from tests.conftest import ROOT
from tests.pages import PAGES, Block, blocks, command_lines, inline_commands

# docs/recipes.md has tests of its own: each of its programs is whole, and most need a library of others.
WITH_PYTHON = [
    page for page in PAGES if page.name != "recipes.md" and any(b.language == "python" for b in blocks(page))
]
SLOW = {page for page in WITH_PYTHON if any(block.slow for block in blocks(page))}


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.slow if page in SLOW else ()) for page in WITH_PYTHON],
    ids=name_of,
)
def test_the_python_of_a_page_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Block after block in one program, as a reader would type them."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    ran = [block for block in blocks(page) if block.language == "python" and block.not_run is None]
    assert ran, "every block is said not to run"
    for block in ran:
        run(block, names)


def run(block: Block, names: dict[str, Any]) -> None:
    exec(compile(block.before, f"before {block.where}", "exec"), names)
    program = block.program()
    # So that a traceback shows the line.
    linecache.cache[block.where] = (len(program), None, program.splitlines(keepends=True), block.where)
    exec(compile(program, block.where, "exec"), names)


def test_blocks_that_do_not_run_say_why() -> None:
    silent = [
        block.where
        for page in PAGES
        for block in blocks(page)
        if block.not_run is not None and len(block.not_run.split()) < 3
    ]
    assert not silent


def test_yaml_blocks_are_yaml() -> None:
    from dsd_env import strict_yaml

    texts = [block for page in PAGES for block in blocks(page) if block.language == "yaml"]
    assert len(texts) > 4
    for block in texts:
        assert isinstance(strict_yaml.loads(block.text, block.where), dict), block.where


def test_the_scenarios_of_make_your_own_are_played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are whole files, beside the files that they name."""
    import dsd_env

    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    found = []
    for block in blocks(ROOT / "docs" / "make_your_own.md"):
        if block.language != "yaml" or not block.text.startswith("extends:"):
            continue
        exec(compile(block.before, f"before {block.where}", "exec"), names)
        file = tmp_path / f"of_line_{block.line}.yaml"
        file.write_text(block.text, encoding="utf-8")
        scenario = dsd_env.load_scenario(file)
        found.append(scenario.name)
        result = dsd_env.simulate(scenario, "cloud_ar", seed=1, requests=2, engine="reference")
        assert result.metrics["e2e_s_mean"] > 0.0, block.where
    assert found == ["my_metro", "my_node", "my_traffic", "my_pair"]


class Understood(Exception):
    """A parser has read its command line; nothing is done with it."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        super().__init__()
        self.parser = parser


@pytest.fixture
def parse_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop every program where it has read its command line."""
    whole = argparse.ArgumentParser.parse_args

    def parse_args(self: argparse.ArgumentParser, args: Any = None, namespace: Any = None) -> Any:
        if "--ask-for-the-parser" not in sys.argv:
            whole(self, args, namespace)
        raise Understood(self)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))


@functools.cache
def main_of(script: str) -> Callable[[], object]:
    """Return what a script does with ``sys.argv``."""
    path = ROOT / script
    if "def main(" not in path.read_text(encoding="utf-8"):
        return lambda: runpy.run_path(str(path), run_name="__main__")
    main: Callable[[], object] = runpy.run_path(str(path), run_name="script")["main"]
    return main


def parser_of(words: list[str], monkeypatch: pytest.MonkeyPatch) -> argparse.ArgumentParser | None:
    """Read a command line as its program would; return its parser, None if it is not one of ours."""
    if words[0] == "dsd-env" or words[:3] == ["python", "-m", "dsd_env"]:
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(Understood) as understood:
            cli.parser().parse_args(words[1:] if words[0] == "dsd-env" else words[3:])
        return understood.value.parser
    if words[0] == "python" and words[1].startswith("scripts/"):
        assert (ROOT / words[1]).is_file(), words[1]
        monkeypatch.setattr(sys, "argv", words[1:])
        with pytest.raises(Understood) as understood:
            main_of(words[1])()
        return understood.value.parser
    return None


def options(parser: argparse.ArgumentParser) -> set[str]:
    """Return every option of a parser, those of its commands too."""
    found = set(parser._option_string_actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found |= {option for command in action.choices.values() for option in options(command)}
    return found


def lines() -> Iterator[tuple[str, list[str]]]:
    for page in PAGES:
        yield from command_lines(page)


def test_command_lines_are_understood(
    parse_only: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The parsers of the programs read every command line in a block of a page."""
    wrong, count = [], 0
    for where, words in lines():
        words = [word for word in words if word != "..."]
        try:
            count += parser_of(words, monkeypatch) is not None
        except (SystemExit, AssertionError, IndexError) as error:
            said = capsys.readouterr().err.strip().splitlines()
            wrong.append(f"{where}: {' '.join(words)}: {said[-1] if said else error!r}")
    assert not wrong, "\n".join(wrong)
    assert count > 60


def test_options_named_in_sentences_exist(
    parse_only: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong, count = [], 0
    for page in PAGES:
        for text in inline_commands(page):
            words = text.split()
            if words[0] == "make":
                continue
            program = words[:1] if words[0] == "dsd-env" else words[:2]
            if program[0] == "python" and not (ROOT / program[1]).is_file():
                wrong.append(f"{name_of(page)}: {text}: no such script")
                continue
            parser = parser_of([*program, "--ask-for-the-parser"], monkeypatch)
            assert parser is not None
            known = options(parser)
            count += 1
            named = {word.split("=")[0] for word in words if re.match(r"--\w", word)}
            wrong += [f"{name_of(page)}: {text}: no {option}" for option in sorted(named - known)]
    assert not wrong, "\n".join(wrong)
    assert count > 20


def test_make_targets_and_extras_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE))
    extras = set(
        tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
            "optional-dependencies"
        ]
    )
    named, installed = set(), set()
    inline = [("", text.split()) for page in PAGES for text in inline_commands(page)]
    for _, words in [*lines(), *inline]:
        if words[0] == "make":
            named |= {word for word in words[1:] if re.fullmatch(r"[a-z][a-z-]*", word)}
        if words[0] == "pip":
            installed |= {
                extra
                for word in words
                for found in re.findall(r"\[([\w,]+)\]", word)
                for extra in found.split(",")
            }
    assert {"demo", "test", "docs"} <= named and {"serve", "testbed"} <= installed
    assert not named - targets and not installed - extras
