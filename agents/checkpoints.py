"""Saving and restoring a learner: a zip of tensors plus a small JSON that vouches for it.

The zip is Stable-Baselines3's own, so `MaskablePPO.load` reads it, and that unpickles. Nothing in this
project does: restoring builds the model from the run's configuration and takes tensors only
(`torch.load(weights_only=True)`).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm

from dsd_env.files import sha256_of, write_atomically, write_json

LAST = "final.zip"
BEST = "best.zip"
CHECKPOINTS = "checkpoints"


class CheckpointError(ValueError):
    """A saved learner is missing or damaged; the message says what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """A saved learner.

    Attributes:
        path: The zip.
        num_timesteps: Global step.
        n_updates: Optimisation passes so far.
        sha256: Digest of the zip.
        score: Validation score, if it was saved for one.
        lacks: By what share its validation missed the bound that it is subject to; 0 if by nothing.
    """

    path: Path
    num_timesteps: int
    n_updates: int
    sha256: str
    score: float | None = None
    lacks: float = 0.0


def save(model: BaseAlgorithm, path: Path, score: float | None = None, lacks: float = 0.0) -> Checkpoint:
    """Write zip, then JSON, each atomically; without its JSON a zip does not count."""
    described = path.with_suffix(".json")
    write_atomically(path, lambda temporary: _save_zip(model, temporary))
    checkpoint = Checkpoint(path, model.num_timesteps, model._n_updates, sha256_of(path), score, lacks)
    data = asdict(checkpoint)
    data["path"] = path.name
    write_json(described, data)
    return checkpoint


def _save_zip(model: BaseAlgorithm, path: Path) -> None:
    # Through a file object: given a path, SB3 appends ".zip" to it.
    with path.open("wb") as file:
        model.save(file)


def read(path: Path) -> Checkpoint:
    """Return a saved learner after verifying its digest.

    Raises:
        CheckpointError: Zip or JSON is missing, unreadable, or they do not belong together.
    """
    described = path.with_suffix(".json")
    try:
        data: dict[str, Any] = json.loads(described.read_text(encoding="utf-8"))
        checkpoint = Checkpoint(
            path,
            int(data["num_timesteps"]),
            int(data["n_updates"]),
            str(data["sha256"]),
            data.get("score"),
            float(data.get("lacks", 0.0)),
        )
        actual = sha256_of(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: no complete checkpoint ({error})") from error
    if actual != checkpoint.sha256:
        raise CheckpointError(f"{path}: SHA-256 differs from {described.name}; the file is damaged")
    return checkpoint


def newest(run: Path) -> Checkpoint | None:
    """Return the newest valid checkpoint of a run; damaged ones are passed over."""
    for path in sorted((run / CHECKPOINTS).glob("step_*.zip"), reverse=True):
        try:
            return read(path)
        except CheckpointError:
            continue
    return None


def checkpoint_path(run: Path, step: int) -> Path:
    """Return where the checkpoint of a global step lies; names sort by step."""
    return run / CHECKPOINTS / f"step_{step:012d}.zip"


def prune(run: Path, keep: int) -> None:
    """Delete all but the newest ``keep`` checkpoints."""
    for path in sorted((run / CHECKPOINTS).glob("step_*.zip"))[:-keep]:
        # JSON first: an interrupt leaves a zip without it, which is passed over and pruned next time.
        path.with_suffix(".json").unlink(missing_ok=True)
        path.unlink(missing_ok=True)


def restore(model: BaseAlgorithm, checkpoint: Checkpoint) -> None:
    """Load weights and optimiser state into a model of the same configuration, and set its counters."""
    try:
        model.set_parameters(str(checkpoint.path), exact_match=True, device=model.device)
    except (ValueError, RuntimeError, KeyError, UnpicklingError) as error:
        raise CheckpointError(f"{checkpoint.path}: does not fit the run's configuration ({error})") from error
    model.num_timesteps = checkpoint.num_timesteps
    model._n_updates = checkpoint.n_updates
