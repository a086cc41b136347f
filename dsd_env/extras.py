"""What to say where a library of one of the project's extras is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needs(extra: str, purpose: str) -> Iterator[None]:
    """Name the extra to install, where an import within the block fails.

    Args:
        extra: The extra, as in ``pip install 'dsd-env[extra]'``.
        purpose: What is imported for.

    Raises:
        ModuleNotFoundError: A library is missing; its ``name`` is the library's.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package in ("", "dsd_env"):
            raise  # a mistake of ours
        raise ModuleNotFoundError(
            f"{purpose} needs the package {package}: pip install 'dsd-env[{extra}]'", name=package
        ) from error
