"""Where files lie: the shipped configurations, and measured data that are not shipped."""

from __future__ import annotations

import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def config_dir() -> Path:
    """Return the folder with ``scenarios/``, ``latency/``, ``engines/``, ``train/`` and the others.

    In a checkout it is ``configs/`` beside the package, in an installed wheel the copy inside it.
    """
    checkout = _PACKAGE.parent / "configs"
    if (_PACKAGE.parent / "pyproject.toml").is_file() and checkout.is_dir():
        return checkout
    return _PACKAGE / "_configs"


def data_dir(named: Path | None) -> Path | None:
    """Return the folder of measured data: the one named, else that of ``DSD_DATA_DIR``, or None."""
    setting = os.environ.get("DSD_DATA_DIR")
    return named or (Path(setting) if setting else None)
