"""Other values for keys of a scenario, as command lines and configurations give them: by dotted key.

In Python, where a keyword has no dots, two underscores stand for them (``episode__requests=50``); here they
are understood, too, and an error names a key as it was written.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dsd_env.scenario import Scenario, ScenarioError, load_scenario

LEVELS = "__"
"""Stands between the levels of a key for :func:`dsd_env.scenario.load_scenario`."""


def changed_scenario(scenario: str | Path | Scenario, changes: Mapping[str, Any]) -> Scenario:
    """Return a scenario with other values for some keys.

    Args:
        scenario: Its name or path, or itself.
        changes: By dotted key, e.g. ``{"episode.requests": 200}``; None removes a key. A name that has a dot
            in it is found among the scenario's own: ``acceptance.llama-3.2-3b.level``.

    Raises:
        dsd_env.scenario.ScenarioError: It does not exist, or is not valid with the changes; the message has
            the keys as they are written in ``changes``.
    """
    if not changes:
        return load_scenario(scenario)
    try:
        data = load_scenario(scenario).model_dump()
    except ScenarioError:
        data = {}  # with the changes it may be valid, or else that is what is told
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
        key: With dots between its levels, or with double underscores: then its dots are letters.
        data: Where it is looked up: a name with dots in it that is there is one level.
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
    """Return what the loader says with each key as the user wrote it.

    Args:
        message: The loader names what was overridden once a line, and then the wrong keys with dots.
        joined: The keys with double underscores between the levels, by the keys as written.
    """
    theirs = f" with {', '.join(dict.fromkeys(joined.values()))} overridden"
    message = message.replace(theirs, f" with {', '.join(joined)} overridden")
    for written, key in joined.items():
        if LEVELS in written:
            message = message.replace(key.replace(LEVELS, "."), written)
    return message


def _explained(message: str, joined: Mapping[str, str], data: Mapping[str, Any]) -> list[str]:
    """Return the lines of an error, names that the scenario has not first.

    Where one key alone stands below such a name it is mistyped, and what the loader says of that name, such
    as keys that it lacks, says nothing more. Several may be meant to make something new.
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
    """Return a name that a key has and the scenario has not, and a line about it, if that came out wrong."""
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
