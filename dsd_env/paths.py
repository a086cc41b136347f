"""Where the shipped configuration files lie."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def config_dir() -> Path:
    """Return the folder with ``scenarios/``, ``latency/`` and ``train/``.

    In a checkout it is ``configs/`` beside the package, in an installed wheel the copy inside it.
    """
    checkout = _PACKAGE.parent / "configs"
    if (_PACKAGE.parent / "pyproject.toml").is_file() and checkout.is_dir():
        return checkout
    return _PACKAGE / "_configs"
