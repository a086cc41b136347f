"""Safe loading of scenarios from YAML, by name or by path, with inheritance and overrides."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from dsd_env import strict_yaml
from dsd_env.paths import config_dir
from dsd_env.scenario.hardware import HardwareError, with_hardware
from dsd_env.scenario.schema import Scenario
from dsd_env.similar import hint, keys_like
from dsd_env.strict_model import explain_type
from dsd_env.strict_yaml import Stamp, StrictYamlError

_MAX_EXTENDS = 8
_MAX_KEPT = 64


class ScenarioError(ValueError):
    """A scenario could not be found, read or validated; the message names file, key, value and range."""


def scenario_dir() -> Path:
    """Return the folder of the shipped scenarios."""
    return config_dir() / "scenarios"


def list_scenarios() -> list[str]:
    """Return the names of the shipped scenarios, sorted."""
    return sorted(path.stem for path in scenario_dir().glob("*.yaml"))


def load_scenario(scenario: str | Path | Scenario | Mapping[str, Any], **overrides: Any) -> Scenario:
    """Load and validate a scenario.

    Args:
        scenario: Name of a shipped scenario (``"metro"``), path of a YAML file, a mapping with the
            same keys (``extends`` too), or a :class:`Scenario`, which is returned unchanged if there are no
            overrides.
        **overrides: New values by dotted key, with ``__`` for each dot, e.g. ``episode__requests=50``.

    Returns:
        The validated, frozen scenario.

    Raises:
        ScenarioError: The scenario is not found or not YAML, or has an unknown key, an impossible value or a
            dangling reference.
    """
    if isinstance(scenario, Scenario):
        if not overrides:
            return scenario
        return _validate(_with_overrides(scenario.model_dump(), overrides), _where(scenario.name, overrides))
    if isinstance(scenario, Mapping):
        data = _inherit(dict(scenario), "<mapping>", None, 0)
        return _validate(_with_overrides(data, overrides), _where("<mapping>", overrides))
    path = _resolve(scenario)
    if overrides:
        return _validate(_with_overrides(_read(path), overrides), _where(str(path), overrides))
    return _load_file(path)


def has_own_card(scenario: str | Path) -> bool:
    """Return whether a file's card is its own, and not that of a scenario that it extends.

    Raises:
        ScenarioError: There is no such file.
    """
    data = strict_yaml.load(_resolve(scenario))
    return isinstance(data, dict) and "card" in data


_kept: dict[tuple[Path, Path], tuple[dict[Path, Stamp], Scenario]] = {}
"""Loaded scenarios by absolute path and scenario folder, with the files read for each and their stamps."""


def _load_file(path: Path) -> Scenario:
    """Return the scenario in a file; it is validated again only after one of the files it reads changes."""
    key = path.absolute(), scenario_dir()
    if key in _kept:
        files, scenario = _kept[key]
        if all(strict_yaml.stamp(file) == stamp for file, stamp in files.items()):
            return _copy(scenario)
    read: list[Path] = []
    data = _read(path, read=read)
    stamps = {file: strict_yaml.stamp(file) for file in read}
    scenario = _validate(data, str(path))
    known = {file: stamp for file, stamp in stamps.items() if stamp is not None}
    if len(known) == len(stamps):
        if len(_kept) >= _MAX_KEPT:
            _kept.clear()
        _kept[key] = known, scenario
        return _copy(scenario)
    return scenario


def _copy(scenario: Scenario) -> Scenario:
    """Return a copy of a scenario with its own dicts: dicts can be changed, while their values are frozen."""
    tables = {name: dict(value) for name, value in scenario if isinstance(value, dict)}
    workload = scenario.workload.model_copy(update={"kinds": dict(scenario.workload.kinds)})
    return scenario.model_copy(update={**tables, "workload": workload})


def _resolve(scenario: str | Path, beside: Path | None = None) -> Path:
    text = str(scenario)
    if isinstance(scenario, Path) or text.endswith((".yaml", ".yml")) or "/" in text:
        path = Path(text)
        if beside is not None and not path.is_absolute():
            path = beside / path
        if path.is_file():
            return path
        raise ScenarioError(f"scenario file {str(path)!r} does not exist")
    for folder in (beside, scenario_dir()):
        if folder is not None and (folder / f"{text}.yaml").is_file():
            return folder / f"{text}.yaml"
    shipped = list_scenarios()
    close = difflib.get_close_matches(text, shipped, n=1)
    hint = f"; did you mean {close[0]!r}? Shipped" if close else "; shipped"
    raise ScenarioError(f"unknown scenario {text!r}{hint} are {shipped}, or give the path of a YAML file")


def _read(path: Path, depth: int = 0, read: list[Path] | None = None) -> dict[str, Any]:
    """Return a file's data merged onto those of the files that it extends; ``read`` collects the files."""
    if depth > _MAX_EXTENDS:
        raise ScenarioError(f"{path}: `extends` goes deeper than {_MAX_EXTENDS} files; is it a circle?")
    read = [] if read is None else read
    read.append(path)
    try:
        data = strict_yaml.load(path)
    except StrictYamlError as error:
        raise ScenarioError(str(error)) from error
    if not isinstance(data, dict):
        raise ScenarioError(f"{path}: a scenario is a mapping of keys, this is {type(data).__name__}")
    return _inherit(data, str(path), path.parent, depth, read)


def _inherit(
    data: dict[str, Any], where: str, beside: Path | None, depth: int, read: list[Path] | None = None
) -> dict[str, Any]:
    """Return the data merged onto those of the scenario that they extend, if they extend one."""
    parent = data.pop("extends", None)
    if parent is None:
        return data
    if not isinstance(parent, str):
        raise ScenarioError(f"{where}: extends = {parent!r} must be the name or path of a scenario")
    try:
        path = _resolve(parent, beside)
    except ScenarioError as error:
        raise ScenarioError(f"{where}: extends: {error}") from error
    inherited = _read(path, depth + 1, read)
    merged = _merge(inherited, data)
    for keys in _removed_in_vain(inherited, data):
        merged = _with_null(merged, keys)
    return merged


def _where(origin: str, overrides: Mapping[str, Any]) -> str:
    """Return a name of the data's origin that mentions overrides, so that users look for errors there too."""
    return f"{origin} with {', '.join(overrides)} overridden" if overrides else origin


def _merge(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """Return ``base`` with ``change`` merged onto it: mappings merge key by key, ``null`` removes a key.

    If a mapping changes its own type key (``distribution``, ``kind``, ``source``), it replaces the old
    mapping as a whole, because the old keys belong to another type. (The `kind` of `protocol` is not such a
    key: all keys of `protocol` make sense with every kind.)
    """
    merged = dict(base)
    for key, value in change.items():
        old = merged.get(key)
        if isinstance(value, dict) and isinstance(old, dict):
            tags = () if key == "protocol" else ("distribution", "kind", "source")
            chooses = [tag for tag in tags if tag in value]
            if any(value[tag] != old.get(tag) for tag in chooses):
                merged[key] = value
            else:
                merged[key] = _merge(old, value)
        elif value is None:
            merged.pop(key, None)
        else:
            merged[key] = value
    return merged


def _removed_in_vain(base: Any, change: Mapping[str, Any]) -> Iterator[list[str]]:
    """Yield the path of each key that ``change`` removes but ``base`` does not have."""
    inner = base if isinstance(base, dict) else {}
    for key, value in change.items():
        if isinstance(value, dict):
            yield from ([key, *rest] for rest in _removed_in_vain(inner.get(key), value))
        elif value is None and key not in inner:
            yield [key]


def _with_overrides(data: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    for dotted, value in overrides.items():
        change: dict[str, Any] = {}
        inner = change
        *parents, last = dotted.split("__")
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = value
        changed = _merge(data, change)
        # If there is no such key to remove, keep it as null, so that validation refuses an unknown key.
        data = _with_null(data, [*parents, last]) if value is None and changed == data else changed
    return data


def _with_null(data: dict[str, Any], path: Sequence[str]) -> dict[str, Any]:
    """Return the data with null at a path, if no scenario can have such a key; else the data unchanged."""
    spoiled = copy.deepcopy(data)
    inner: Any = spoiled
    for parent in path[:-1]:
        inner = inner.setdefault(parent, {})
        if not isinstance(inner, dict):
            return data
    inner[path[-1]] = None
    try:
        Scenario.model_validate(with_hardware(spoiled))
    except ValidationError as error:
        if any(
            each["type"] == "extra_forbidden" and _key(each["loc"]) == ".".join(path)
            for each in error.errors(include_url=False)
        ):
            return spoiled
    except HardwareError:
        pass
    return data


def _validate(data: dict[str, Any], where: str) -> Scenario:
    try:
        return Scenario.model_validate(with_hardware(data)).from_origin(where)
    except HardwareError as error:
        raise ScenarioError(f"{where}: {error}") from error
    except ValidationError as error:
        raise ScenarioError(explain_validation_error(error, where, Scenario)) from error


def _key(loc: Iterable[int | str]) -> str:
    """Return the dotted key of a pydantic location, without tags of alternatives, which the file lacks."""
    return ".".join(str(part) for part in loc if not str(part).startswith(("<", "function-")))


def explain_validation_error(error: ValidationError, where: str, model: type[BaseModel] | None = None) -> str:
    """Return a message with one line per problem: file, key, value, and what is allowed.

    Args:
        error: The error that pydantic raised.
        where: The file, or another name of the data's origin.
        model: Model that was validated; its keys are suggested for unknown keys. None: no suggestions.
    """
    lines = []
    for problem in error.errors(include_url=False):
        key = _key(problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            close = keys_like(model, problem["loc"]) if model is not None else []
            lines.append(f"{where}: unknown key {key!r}" + (hint(close) if close else ""))
        elif problem["type"] == "missing":
            lines.append(f"{where}: key {key!r} is missing")
        elif (wrong := explain_type(problem)) is not None:
            lines.append(f"{where}: {key} = {problem['input']!r:.60} {wrong}")
        elif not key or isinstance(problem["input"], (dict, list, tuple)):
            lines.append(f"{where}: {key + ': ' if key else ''}{message}")
        else:
            lines.append(f"{where}: {key} = {problem['input']!r}: {message}")
    return "\n".join(lines)
