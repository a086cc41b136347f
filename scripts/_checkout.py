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
from types import TracebackType

ROOT = Path(__file__).resolve().parent.parent


_EXTRAS = {
    **dict.fromkeys(("gguf", "safetensors", "sentencepiece", "tokenizers", "transformers"), "record"),
    **dict.fromkeys(("onnx", "onnxruntime"), "export"),
    **dict.fromkeys(("sb3_contrib", "stable_baselines3", "tensorboard", "torch", "tqdm", "rich"), "train"),
    **dict.fromkeys(("grpc", "google"), "testbed"),
    **dict.fromkeys(("fastapi", "uvicorn"), "serve"),
    "matplotlib": "plot",
    "ray": "cluster",
    "sklearn": "explain",
    "scipy": "calibrate",
}
"""Which extra brings a package that a script may lack."""


def _explain(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Instead of a traceback, say what to install, where it is only that."""
    package = (getattr(error, "name", None) or "").split(".")[0]
    if not isinstance(error, ModuleNotFoundError) or package not in _EXTRAS:
        sys.__excepthook__(kind, error, trace)
        return
    advice = f"; run `make demo`, or pip install -e '.[{_EXTRAS[package]}]'" * ("pip" not in str(error))
    print(f"{Path(sys.argv[0]).stem}: {error}{advice}", file=sys.stderr)


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
sys.excepthook = _explain
