"""YAML as people mean it: the one reader and writer of all YAML of the project.

PyYAML follows YAML 1.1, in which ``010`` is 8, ``1:30`` is 90, ``yes`` is true, and ``1e6`` is a word. Here
plain words are read by the rules of YAML 1.2, more strictly: a number is a decimal number (``7``, ``-0.5``,
``1e6``), true and false are ``true`` and ``false``, nothing is ``null``, ``~`` or left out, and all else is
text, ``010`` and ``1:30`` included (which a field that wants a number then refuses). A key given twice is an
error, as is a tag (``!!int``, ``!!python/…``). Anchors work; ``<<`` does not.

Files are parsed once and kept until they change; every caller gets a copy of its own.
"""

from __future__ import annotations

import functools
import math
import re
import time
from pathlib import Path
from typing import Any, ClassVar

import yaml

from dsd_env.text import TextError, read_text

__all__ = ["Dumper", "Stamp", "StrictYamlError", "dumps", "load", "loads", "stamp"]

MAX_BYTES = 1_000_000
"""Larger files are refused: no configuration is that long."""

MAX_VALUES = 1_000_000
"""More values than this, those that anchors repeat included, are refused."""

Stamp = tuple[int, int, int]
"""Time of the last change (ns), size and inode of a file."""

_RECENT_NS = 2_000_000_000
"""A file changed so shortly ago may change again without its time showing it."""

_DEEP = 500
"""The parser in C goes down with its stack somewhere above 10,000 levels; beyond these the slow one reads."""


class StrictYamlError(ValueError):
    """A text is no YAML as this project reads it; the message names file, line and what is wrong."""


# ------------------------------------------------------------------------------------------------- reading

_CORE = "tag:yaml.org,2002:"
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]*)$", re.ASCII)
_FLOAT = re.compile(
    r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$"
    r"|[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$",
    re.ASCII,
)
_WORDS: list[tuple[str, re.Pattern[str]]] = [
    (f"{_CORE}null", re.compile(r"(?:~|null|Null|NULL|)$")),
    (f"{_CORE}bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$")),
    (f"{_CORE}int", _INT),
    (f"{_CORE}float", _FLOAT),
]


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _fail(node: yaml.Node, problem: str) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def _check_scalar(node: yaml.Node) -> None:
    """Check that what is tagged as a scalar is one: `!!int` may stand before a mapping, too."""
    if not isinstance(node, yaml.ScalarNode):
        raise _fail(node, "expected a single value")


def _null(loader: Any, node: yaml.ScalarNode) -> None:
    _check_scalar(node)


def _bool(loader: Any, node: yaml.ScalarNode) -> bool:
    _check_scalar(node)
    return str(node.value).lower() == "true"


def _int(loader: Any, node: yaml.ScalarNode) -> int:
    _check_scalar(node)
    if len(node.value) > 30 or not _INT.match(node.value):
        raise _fail(node, f"{node.value:.40} is not a number that can be used")
    return int(node.value)


def _float(loader: Any, node: yaml.ScalarNode) -> float:
    _check_scalar(node)
    word = node.value.lower()
    if word.endswith((".inf", ".nan")):
        return float(word.replace(".", ""))
    value = float(word) if _FLOAT.match(word) else math.inf
    if math.isinf(value):
        raise _fail(node, f"{node.value:.40} is not a number that can be used")
    return value


def _str(loader: Any, node: yaml.ScalarNode) -> str:
    if not isinstance(node, yaml.ScalarNode):
        raise _fail(node, "expected text")
    return str(node.value)


def _list(loader: Any, node: yaml.SequenceNode) -> list[Any]:
    if not isinstance(node, yaml.SequenceNode):
        raise _fail(node, "expected a list")
    return [loader.construct_object(each, deep=True) for each in node.value]


def _dict(loader: Any, node: yaml.MappingNode) -> dict[str, Any]:
    if not isinstance(node, yaml.MappingNode):
        raise _fail(node, "expected a mapping")
    found: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise _fail(
                key_node,
                f"key {key!r:.40} (line {_line(key_node)}) is not a word: a key must be a plain word, a "
                "number stands in quotes",
            )
        if key in found:
            raise _fail(
                key_node,
                f"duplicate key {key!r}: {key!r} is given twice (line {_line(key_node)}); keep one of them",
            )
        found[key] = loader.construct_object(value_node, deep=True)
    return found


def _unknown(loader: Any, node: yaml.Node) -> None:
    raise _fail(node, f"the tag {node.tag.replace(_CORE, '!!')!r:.60} is not allowed")


_CONSTRUCTORS: dict[str | None, Any] = {
    f"{_CORE}null": _null,
    f"{_CORE}bool": _bool,
    f"{_CORE}int": _int,
    f"{_CORE}float": _float,
    f"{_CORE}str": _str,
    f"{_CORE}seq": _list,
    f"{_CORE}map": _dict,
    None: _unknown,
}


class _CarefulLoader(yaml.SafeLoader):
    """The parser in Python: slow, and an error where it is nested too deep."""

    yaml_implicit_resolvers = {None: _WORDS}  # noqa: RUF012
    yaml_constructors = _CONSTRUCTORS
    yaml_multi_constructors: ClassVar[dict[str | None, Any]] = {}


class _FastLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """The parser in C, where PyYAML was built with it."""

    yaml_implicit_resolvers = {None: _WORDS}  # noqa: RUF012
    yaml_constructors = _CONSTRUCTORS
    yaml_multi_constructors: ClassVar[dict[str | None, Any]] = {}


_OPENING = re.compile(r"[ \t\-?:]+")
"""What block collections begin with: a line of depth n has so many of these in a row, wherever lines end."""


def _may_be_deep(text: str) -> bool:
    """Whether the text may be nested deeper than :data:`_DEEP`: a bound, not a count."""
    flow = text.count("[") + text.count("{")
    return flow + max((len(found) for found in _OPENING.findall(text)), default=0) > _DEEP


def loads(text: str, where: str) -> Any:
    """Return what a YAML text says: dicts with text as keys, lists, text, numbers, true, false and None.

    Args:
        text: One document; empty is None.
        where: What messages call it, the file's path as a rule.

    Raises:
        StrictYamlError: Not YAML, several documents, a key twice, a tag, nested too deep, or too much of it.
    """
    loader = _CarefulLoader if _may_be_deep(text) else _FastLoader
    try:
        # Both are safe loaders with fewer constructors.
        data = yaml.load(text, Loader=loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise StrictYamlError(
            f"{where}: not readable as YAML: {place}"
            + ", ".join(part for part in (error.context, error.problem) if part)
        ) from error
    except yaml.YAMLError as error:
        raise StrictYamlError(f"{where}: not readable as YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise StrictYamlError(f"{where}: not readable as YAML: nested too deep") from error
    return _copy(data, [MAX_VALUES], where)


def _copy(data: Any, left: list[int], where: str) -> Any:
    """Copy lists and dicts, those that an anchor repeats each time anew; ``left`` counts down."""
    left[0] -= 1
    if left[0] < 0:
        raise StrictYamlError(f"{where}: not readable as YAML: more than {MAX_VALUES:,} values")
    if isinstance(data, dict):
        return {key: _copy(value, left, where) for key, value in data.items()}
    if isinstance(data, list):
        return [_copy(value, left, where) for value in data]
    return data


def stamp(path: str | Path) -> Stamp | None:
    """Return what changes when a file does; None if it is not there, or changed just now.

    What was read from a file may be kept under its path and stamp.
    """
    try:
        found = Path(path).stat()
    except (OSError, ValueError):
        return None
    if not 0 <= found.st_mtime_ns < time.time_ns() - _RECENT_NS:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def load(path: str | Path) -> Any:
    """Return what a YAML file says, as :func:`loads` does; read once until the file changes.

    Args:
        path: UTF-8, or UTF-16 with a byte order mark, up to a megabyte.

    Returns:
        A copy of the caller's own.

    Raises:
        StrictYamlError: Not found, no text, too large, or as :func:`loads`.
    """
    now = stamp(path)
    if now is None:
        return _read(path)
    return _copy(_parsed(str(Path(path).absolute()), now, str(path)), [MAX_VALUES], str(path))


@functools.lru_cache(maxsize=512)
def _parsed(path: str, _stamp: Stamp, name: str) -> Any:
    return _read(name)


def _read(path: str | Path) -> Any:
    try:
        text = read_text(path, max_bytes=MAX_BYTES)
    except TextError as error:
        raise StrictYamlError(str(error).replace(f"{path}: ", f"{path}: cannot be read: ", 1)) from error
    return loads(text, str(path))


# ------------------------------------------------------------------------------------------------- writing


class Dumper(yaml.SafeDumper):
    """Safe dumper that quotes text which this module's rules or those of YAML 1.1 would not read as text."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        **yaml.SafeDumper.yaml_implicit_resolvers,
        None: [*yaml.SafeDumper.yaml_implicit_resolvers.get(None, []), *_WORDS],
    }


_BREAKS = re.compile("[\r\x85\u2028\u2029]")
"""Characters that end a line for YAML 1.1, but stand for nothing but themselves between double quotes."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Quote text with odd line ends so that they are escaped."""
    style = '"' if _BREAKS.search(text) else None
    return dumper.represent_scalar(f"{_CORE}str", text, style=style)


Dumper.add_representer(str, _represent_text)


def dumps(data: Any, *, dumper: type[yaml.SafeDumper] = Dumper, **options: Any) -> str:
    """Return data as YAML that :func:`loads` reads back as it was.

    Args:
        data: Plain data.
        dumper: :class:`Dumper` or one derived from it.
        **options: Those of :func:`yaml.dump`; keys keep their order unless ``sort_keys`` says otherwise.
    """
    return str(yaml.dump(data, Dumper=dumper, **{"sort_keys": False, "allow_unicode": True, **options}))
