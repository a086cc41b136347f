"""Digests of what a simulation's result depends on besides its scenario and seed.

A change of the engine, of a profile that the scenario names, or of the scheduler's own code makes another
digest, and a record of before counts as missing. A comment, a docstring, a new rule beside the others or a
profile that the scenario does not name make none.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import io
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import dsd_env
from dsd_env.paths import config_dir
from dsd_env.policy.manifest import MANIFEST_FILE, canonical_json
from dsd_env.scenario import Scenario
from dsd_env.schedulers import make_scheduler
from dsd_env.schedulers.awc import awc_parts
from dsd_env.schedulers.awc_network import JSON_FILE

PACKAGE = Path(dsd_env.__file__).parent
ENGINE = (
    "laws",
    "latency",
    "scenario",
    "acceptance",
    "network",
    "workload",
    "control",
    "sim",
    "whole_runs",
    "envs",
    "rng.py",
)
"""What of the package simulates, files and folders; whole runs and environments ask the schedulers."""
ASIDE = ("sim/fuzz", "sim/timeline")
"""Folders among them that do not."""
NAMED = ("latency", "network", "workload")
"""Folders of configurations of which a scenario names files."""
MEASURED = (PACKAGE / "acceptance" / "data", PACKAGE / "acceptance" / "models")
"""Folders of recordings and of models fitted to them, named likewise."""
ALWAYS = ("acceptance", "engines")
"""Folders of configurations that are looked up without being named."""


def bare_source(text: str) -> str:
    """Return a module's source without comments, docstrings and blank lines.

    Raises:
        SyntaxError: It is no Python.
    """
    lines = text.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        # Strings that stand alone: docstrings, and those of constants and attributes.
        for statement in node.body:
            if (
                isinstance(statement, ast.Expr)
                and isinstance(statement.value, ast.Constant)
                and isinstance(statement.value.value, str)
            ):
                for row in range(statement.lineno, (statement.end_lineno or statement.lineno) + 1):
                    lines[row - 1] = ""
    return "\n".join(line.rstrip() for line in lines if line.strip())


@functools.cache
def _bare_file(path: Path) -> str:
    return bare_source(path.read_text(encoding="utf-8"))


def _sources(parts: Iterable[str]) -> Iterator[Path]:
    aside = [PACKAGE / each for each in ASIDE]
    for part in parts:
        path = PACKAGE / part
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            if not any(file.is_relative_to(each) for each in aside):
                yield file


def _digest_of(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(PACKAGE.parent).as_posix()}\n{_bare_file(file)}\n".encode())
    return digest.hexdigest()


@functools.cache
def engine_digest() -> str:
    """Return the digest of the code that simulates."""
    return _digest_of(_sources(ENGINE))


def _words(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _words(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _words(each)


def data_files(scenario: Scenario) -> list[Path]:
    """Return the files of profiles, links, workloads and traces that a scenario names, sorted."""
    configs, found = config_dir(), set[Path]()
    for folder in ALWAYS:
        found |= set((configs / folder).glob("*.yaml"))
    for word in set(_words(_content(scenario))):
        if any(letter.isspace() for letter in word) or len(word) > 200:
            continue
        found |= {path for folder in NAMED if (path := configs / folder / f"{word}.yaml").is_file()}
        # By name, or by path with or without its ending.
        elsewhere = [Path(word)] if "/" in word or "." in word else []
        for stem in [*(folder / word for folder in MEASURED), *elsewhere]:
            beside = [stem, *(stem.with_name(f"{stem.name}.{end}") for end in ("json", "npz"))]
            found |= {path for path in beside if path.is_file()}
    return sorted(found)


def _content(scenario: Scenario) -> Any:
    return scenario.model_dump(mode="json", exclude={"card"})


def scenario_digest(scenario: Scenario) -> str:
    """Return the digest of a scenario, without its card."""
    return hashlib.sha256(canonical_json(_content(scenario)).encode()).hexdigest()


@functools.lru_cache(maxsize=4096)
def _bytes_digest(path: Path, _stamp: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def data_digest(scenario: Scenario) -> str:
    """Return the digest of the files that a scenario names."""
    return hashlib.sha256(
        canonical_json(
            [[path.name, _bytes_digest(path, path.stat().st_mtime_ns)] for path in data_files(scenario)]
        ).encode()
    ).hexdigest()


def scheduler_digest(spec: str) -> str:
    """Return the digest of a scheduler: its specification, files and code.

    Of a bundle, a table or a network what is in it counts, not where it lies.
    """
    name, _, argument = spec.partition(":")
    if name == "policy":
        shown = _file_digest(Path(argument) / MANIFEST_FILE)  # which vouches for the other files
    elif name == "table":
        shown = _file_digest(Path(argument))
    elif name == "awc":
        site, folder = awc_parts(argument)
        shown = f"{site} {_file_digest(folder / JSON_FILE)}"  # which vouches for the weights
    else:
        shown = spec
    return hashlib.sha256(
        canonical_json([name, shown, _digest_of(scheduler_sources(spec))]).encode()
    ).hexdigest()


def digests_of(scenario: Scenario, spec: str | None = None) -> list[str]:
    """Return what an episode depends on besides its seed: code, scenario, data and, if given, scheduler."""
    found = [engine_digest(), scenario_digest(scenario), data_digest(scenario)]
    return found if spec is None else [*found, scheduler_digest(spec)]


def key_of(*parts: Any) -> str:
    """Return the digest of some parts, which must be JSON values."""
    return hashlib.sha256(canonical_json(list(parts)).encode()).hexdigest()


def _file_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@functools.cache
def _imported(path: Path) -> list[str]:
    """Return what a file imports from modules: these, and what may be modules in them."""
    return [
        name
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module
        for name in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
    ]


def scheduler_sources(spec: str) -> list[Path]:
    """Return the files of a scheduler's code: its own module, and those of the room that it imports."""
    start = type(make_scheduler(spec)).__module__
    found: dict[str, Path] = {}
    waiting = [start]
    while waiting:
        module = waiting.pop()
        path = PACKAGE.parent / f"{module.replace('.', '/')}.py"
        if module in found or not module.startswith(("dsd_env.schedulers.", "dsd_env.policy.")):
            continue
        if module == "dsd_env.schedulers.registry" or not path.is_file():
            continue
        found[module] = path
        waiting += _imported(path)
    if "policy" in spec.partition(":")[0]:
        found["dsd_env.policy.network"] = PACKAGE / "policy" / "network.py"
        found["dsd_env.policy.other_lists"] = PACKAGE / "policy" / "other_lists.py"
    return [found[module] for module in sorted(found)]
