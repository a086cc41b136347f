"""Make the checkout importable for the scripts beside this file.

``agents/`` is not installed, on purpose: a top-level module of that name would clash with another package.
``python scripts/NAME.py`` puts only ``scripts/`` on the path, so every script starts with

    import _checkout  # noqa: F401

which puts the root of the checkout in front. ``dsd_env`` then comes from the same checkout as the script,
whatever else is installed.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def _prepare() -> None:
    """Put the root first on ``sys.path``; stop with advice where Python or a core dependency is missing."""
    if sys.version_info < (3, 11):  # noqa: UP036 - a script may be started with any Python  # type: ignore[unreachable]
        sys.exit(f"dsd_env needs Python 3.11 or newer; this is {sys.version.split()[0]} ({sys.executable}).")
    root = str(ROOT)
    if root in sys.path:
        sys.path.remove(root)
    sys.path.insert(0, root)
    missing = [
        name for name in ("numpy", "gymnasium", "simpy", "pydantic", "yaml") if find_spec(name) is None
    ]
    if missing:
        sys.exit(
            f"{sys.executable} lacks {', '.join(missing)}. Run `make demo` or `make test` once in {root}; "
            f"then start the script with {ROOT / '.venv' / 'bin' / 'python'}."
        )


_prepare()
