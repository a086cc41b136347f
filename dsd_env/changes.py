"""Overrides of a scenario's keys by dotted key, as command lines and configuration files give them.

Python keywords cannot contain dots, so there two underscores stand for a dot (``episode__requests=50``). This
module accepts both spellings, and its errors name a key as the user wrote it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dsd_env.scenario import Scenario, ScenarioError, load_scenario

LEVELS = "__"
"""What separates the levels of a key for :func:`dsd_env.scenario.load_scenario`."""


def changed_scenario(scenario: str | Path | Scenario, changes: Mapping[str, Any]) -> Scenario:
    """Return a scenario with some of its keys overridden.

    Args:
        scenario: Name or path of the scenario, or the scenario itself.
        changes: New values by dotted key, e.g. ``{"episode.requests": 200}``; None removes a key. A name that
            itself contains dots is recognised if the scenario has it: ``acceptance.llama-3.2-3b.level``.

    Raises:
        dsd_env.scenario.ScenarioError: The scenario does not exist, or is not valid with the changes; the
            message spells the keys as ``changes`` does.
    """
    if not changes:
        return load_scenario(scenario)
    try:
        data = load_scenario(scenario).model_dump()
    except ScenarioError:
        data = {}  # the changes may make it valid; if not, loading it below says why
    joined = {key: LEVELS.join(levels(key, data)) for key in changes}
    overrides = {joined[key]: value for key, value in changes.items()}
    try:
        changed = load_scenario(scenario, **overrides)
    except ScenarioError as error:
        raise ScenarioError("\n".join(_explained(str(error), joined, data))) from error
    origin, _, _ = changed.where.rpartition(": scenario ")
    return changed.from_origin(_as_written(origin, joined))


def levels(key: str, data: Mapping[str, Any]) -> list[str]:
    """Return the levels of a key.

    Args:
        key: The key, with dots or with double underscores between its levels. With double underscores, a dot
            is a part of a name.
        data: Data in which the key is looked up: a name with dots that stands there counts as one level.
    """
    if LEVELS in key:
        return key.split(LEVELS)
    found: list[str] = []
    rest: Sequence[str] = key.split(".")
    inner: Any = data
    while rest:
        known = inner if isinstance(inner, Mapping) else {}
        count = next((n for n in range(len(rest), 1, -1) if ".".join(rest[:n]) in known), 1)
        level, rest = ".".join(rest[:count]), rest[count:]
        found.append(level)
        inner = known.get(level)
    return found


def _as_written(message: str, joined: Mapping[str, str]) -> str:
    """Return a message of the loader with each key spelled as the user wrote it.

    Args:
        message: The message. Each of its lines names the overridden keys once, then the wrong keys with dots.
        joined: For each key as written, the same key with double underscores between its levels.
    """
    theirs = f" with {', '.join(dict.fromkeys(joined.values()))} overridden"
    message = message.replace(theirs, f" with {', '.join(joined)} overridden")
    for written, key in joined.items():
        if LEVELS in written:
            message = message.replace(key.replace(LEVELS, "."), written)
    return message


def _explained(message: str, joined: Mapping[str, str], data: Mapping[str, Any]) -> list[str]:
    """Return the lines of an error, those about names that the scenario lacks first.

    If only one key stands below such a name, the name is mistyped. The loader's own lines about it, such as
    keys that it lacks, then add nothing and are left out. Several keys may be meant to make a new entry.
    """
    unknown, places = list[str](), list[str]()
    for written, key in joined.items():
        if (found := _new_name(message, written, key, data)) is not None:
            places.append(found[0])
            unknown.append(found[1])
    lines = _as_written(message, joined).splitlines()
    for place in places:
        if places.count(place) == 1:
            about = re.compile(rf"(?<![\w.]){re.escape(place)}(?![\w-])")
            lines = [line for line in lines if not about.search(line.rpartition(" overridden: ")[2])]
    return [*unknown, *lines]


def _new_name(message: str, written: str, key: str, data: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the place of a name in a key that the scenario lacks, and a line about it; None: no error."""
    inner: Any = data
    before: list[str] = []
    for level in key.split(LEVELS)[:-1]:
        if not isinstance(inner, Mapping):
            return None
        if level not in inner:
            place = ".".join([*before, level])
            if not inner or f"unknown key {place!r}" in message or place not in message:
                return None
            has = ", ".join(sorted(inner))
            return place, f"{written}: {'.'.join(before)} has no {level!r}; it has {has}"
        before.append(level)
        inner = inner[level]
    return None
