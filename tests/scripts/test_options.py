"""Options of scripts are read as they are written."""

from __future__ import annotations

import ast
from pathlib import Path

MAKERS = ("ArgumentParser", "add_parser")
"""What makes a parser; one of a command does not take over what is said to the whole one's."""


def test_no_script_takes_the_beginning_of_an_option_for_it(checkout: Path) -> None:
    """`--seed 7` would be `--seeds 7`: many episodes where one was meant."""
    lax, count = [], 0
    for script in sorted((checkout / "scripts").glob("*.py")):
        for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            if node.func.attr not in MAKERS:
                continue
            count += 1
            said = {keyword.arg: keyword.value for keyword in node.keywords}.get("allow_abbrev")
            if not (isinstance(said, ast.Constant) and said.value is False):
                lax.append(f"{script.name}:{node.lineno}: say allow_abbrev=False")
    assert not lax, "\n".join(lax)
    assert count > 50
