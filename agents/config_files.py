"""What the configurations of agents share: their files, their digests."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from dsd_env import strict_yaml
from dsd_env.paths import config_dir
from dsd_env.policy.manifest import canonical_json
from dsd_env.scenario.loader import explain_validation_error
from dsd_env.strict_model import StrictNumbers
from dsd_env.strict_yaml import StrictYamlError


class ConfigModel(StrictNumbers, BaseModel):
    """A part of a configuration: frozen, without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


M = TypeVar("M", bound=ConfigModel)


def read_config(
    model: type[M],
    given: str | Path,
    folder: str,
    what: str,
    error: type[ValueError],
    changes: Mapping[str, Any] | None = None,
) -> M:
    """Read a configuration.

    Args:
        model: What it is to be.
        given: Path of a YAML file, or the name of a shipped one.
        folder: Folder of the shipped ones, within ``configs``.
        what: What it is called, e.g. ``training configuration``.
        error: What is raised.
        changes: Top-level keys that replace the file's.

    Raises:
        ValueError: As ``error``: not found, not YAML, unknown key, or impossible value.
    """
    path = config_path(given, folder)
    if not path.is_file():
        names = sorted(each.stem for each in (config_dir() / folder).glob("*.yaml"))
        close = difflib.get_close_matches(str(given), names, n=1)
        meant = f"; did you mean {close[0]!r}? Shipped" if close else "; shipped"
        raise error(f"no {what} {str(given)!r}{meant} are {names}, or give a YAML file's path")
    return read_file(model, path, what, error, changes)


def config_path(given: str | Path, folder: str) -> Path:
    """Return where a configuration lies, given by path or, in a folder of ``configs``, by name."""
    path = Path(given)
    return path if path.is_file() else config_dir() / folder / f"{given}.yaml"


def read_file(
    model: type[M],
    path: Path,
    what: str,
    error: type[ValueError],
    changes: Mapping[str, Any] | None = None,
) -> M:
    """Read a YAML file; arguments and errors are those of :func:`read_config`."""
    try:
        data = strict_yaml.load(path)
    except StrictYamlError as problem:
        raise error(str(problem)) from problem
    if not isinstance(data, dict):
        raise error(f"{path}: a {what} is a mapping of keys, this is {type(data).__name__}")
    try:
        return model.model_validate({**data, **(changes or {})})
    except ValidationError as problem:
        raise error(explain_validation_error(problem, str(path), model)) from problem


def config_sha256(config: ConfigModel) -> str:
    """Return the digest of a configuration; equal configurations have equal digests."""
    return hashlib.sha256(canonical_json(config.model_dump(mode="json")).encode()).hexdigest()
