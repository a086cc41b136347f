"""What a result depends on besides its configuration: the time and the versions of what computed it."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from importlib import metadata

PACKAGES = (
    "dsd-env",
    "gymnasium",
    "numpy",
    "onnx",
    "onnxruntime",
    "pydantic",
    "sb3-contrib",
    "simpy",
    "stable-baselines3",
    "torch",
)


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that matter; absent ones are left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def now_utc() -> str:
    """Return the time in ISO 8601, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
