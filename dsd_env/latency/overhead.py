"""What a serving engine takes beside its kernels, in named parts.

An iteration takes ``kernels · noise + overhead``, and the overhead is::

    per_iteration + per_sequence · sequences + per_token · min(new tokens, token_limit)
        + [some sequence verifies drafts] · per_verifying_iteration

Profiles of kernel sums carry the overhead of an engine that was measured; profiles of whole measured
iterations carry none, since it is part of what was measured. A scenario may give another, by name or in
figures. The law itself is :func:`dsd_env.laws.step_times.overhead_s`.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dsd_env import strict_yaml
from dsd_env.files import write_text
from dsd_env.paths import config_dir
from dsd_env.strict_model import StrictNumbers, explain_type

__all__ = [
    "NO_OVERHEAD",
    "EngineOverhead",
    "OverheadError",
    "list_overheads",
    "load_overhead",
    "save_overhead",
]

UNLIMITED_TOKENS = 1 << 30
"""A ``token_limit`` that no iteration reaches."""


class OverheadError(ValueError):
    """An engine's overhead cannot be loaded; the message names file, key, value and what is allowed."""


class EngineOverhead(StrictNumbers, BaseModel):
    """Overhead of an engine, in seconds; the bounds refuse figures in milliseconds.

    Attributes:
        per_iteration_s: Each iteration: scheduling, launch, handling of the output.
        per_sequence_s: Each sequence in the batch.
        per_token_s: Each new token: input preparation, sampling, and what batched kernels lose against
            kernels measured alone.
        per_verifying_iteration_s: An iteration in which some sequence has more than one new token that is
            not a prompt's: rejection, and the bookkeeping of drafts.
        per_draft_pass_s: Each pass of a draft model. A profile's own, when it serves as a drafter; the
            override of a target has no say in it.
        token_limit: Largest iteration that was measured; tokens beyond it add no ``per_token_s``.
        engine: Name of the engine.
        version: Its version, as far as the source says.
        asynchronous: Whether it schedules the next iteration during the present one; ``None``: not stated.
        source: Where the figures come from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)

    per_iteration_s: Annotated[float, Field(ge=0, le=0.1)] = 0.0
    per_sequence_s: Annotated[float, Field(ge=0, le=0.01)] = 0.0
    per_token_s: Annotated[float, Field(ge=0, le=0.001)] = 0.0
    per_verifying_iteration_s: Annotated[float, Field(ge=0, le=0.1)] = 0.0
    per_draft_pass_s: Annotated[float, Field(ge=0, le=0.1)] = 0.0
    token_limit: Annotated[int, Field(ge=1, le=UNLIMITED_TOKENS)] = UNLIMITED_TOKENS
    engine: str = ""
    version: str = ""
    asynchronous: bool | None = None
    source: str = ""

    def describe(self) -> str:
        """Return one line: the parts, and the engine."""
        mode = {True: ", asynchronous", False: ", synchronous", None: ""}[self.asynchronous]
        return (
            f"{1e3 * self.per_iteration_s:.3f} ms an iteration, {1e6 * self.per_sequence_s:.2f} us a "
            f"sequence, {1e6 * self.per_token_s:.2f} us a new token, "
            f"{1e3 * self.per_verifying_iteration_s:.3f} ms if it verifies, "
            f"{1e3 * self.per_draft_pass_s:.3f} ms a draft pass"
            f" ({' '.join((self.engine, self.version)).strip() or 'no engine named'}{mode})"
        )


NO_OVERHEAD = EngineOverhead()
"""An engine that costs nothing."""


def _folder() -> Path:
    return config_dir() / "engines"


def list_overheads() -> list[str]:
    """Return the names of the shipped overheads."""
    return sorted(path.stem for path in _folder().glob("*.yaml"))


def save_overhead(overhead: EngineOverhead, path: str | os.PathLike[str]) -> None:
    """Write an overhead as YAML, atomically; its directory is created if needed."""
    data = overhead.model_dump(mode="json", exclude_none=True)
    write_text(Path(path), strict_yaml.dumps(data, width=110))


def load_overhead(name: str) -> EngineOverhead:
    """Return a shipped overhead by its name.

    Raises:
        OverheadError: There is none of that name, or its file is not valid.
    """
    path = _folder() / f"{name}.yaml"
    if name not in list_overheads():
        close = difflib.get_close_matches(name, list_overheads(), n=3) or list_overheads()
        raise OverheadError(f"{path}: no engine overhead named '{name}'; known: {', '.join(close) or 'none'}")
    try:
        return EngineOverhead.model_validate(strict_yaml.load(path))
    except strict_yaml.StrictYamlError as error:
        raise OverheadError(str(error)) from error
    except ValidationError as error:
        lines = []
        for problem in error.errors(include_url=False):
            key = ".".join(str(part) for part in problem["loc"])
            lines.append(
                f"{path}: {key} = {problem['input']!r:.60}: {explain_type(problem) or problem['msg']}"
            )
        raise OverheadError("\n".join(lines)) from error
