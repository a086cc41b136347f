"""Exporting a checkpoint of a training run as a policy bundle; see :mod:`dsd_env.policy.export`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import cast

import torch
from stable_baselines3.common.save_util import load_from_zip_file

from agents import checkpoints
from agents.actors import actor_layers, normalisations_of
from agents.config import TrainConfig, load_config
from agents.training import CONFIG_FILE, RECORD_FILE, SCENARIO_FILE, RunError, scenarios_of_json
from dsd_env.policy.export import export_actor
from dsd_env.policy.graph import onnx_bytes
from dsd_env.policy.manifest import Manifest, Training
from dsd_env.policy.network import MlpActor

ALGORITHMS = {"ppo": "PPO", "maskable_ppo": "MaskablePPO"}


def export_run(
    run: str | Path, out: str | Path, checkpoint: str = "best", *, overwrite: bool = False
) -> Manifest:
    """Export a checkpoint of a run.

    Only tensors are taken from the checkpoint (`torch.load(weights_only=True)`); its pickled part is never
    opened.

    Args:
        run: Directory of the run.
        out: Directory of the bundle to write.
        checkpoint: ``best`` (by validation; the newest state if the run has not been validated), ``last``, or
            the path of a checkpoint of this run.
        overwrite: Replace an existing bundle.

    Returns:
        The bundle's manifest.

    Raises:
        RunError: Not a run, or nothing to export yet.
        agents.checkpoints.CheckpointError: The checkpoint is damaged.
        dsd_env.policy.PolicyError: ``out`` is taken.
    """
    run = Path(run)
    for name in (CONFIG_FILE, SCENARIO_FILE, RECORD_FILE):
        if not (run / name).is_file():
            raise RunError(
                f"{run}: {name} is missing; give the directory that scripts/train.py wrote (--out)"
            )
    config = load_config(run / CONFIG_FILE)
    scenarios = scenarios_of_json(json.loads((run / SCENARIO_FILE).read_text(encoding="utf-8")))
    chosen = find_checkpoint(run, checkpoint)
    actor = actor_from_zip(chosen.path, config, config.action_sizes(scenarios))
    record = json.loads((run / RECORD_FILE).read_text(encoding="utf-8"))
    start = record["starts"][-1]
    warm = record.get("warm_start")
    training = Training(
        algorithm=ALGORITHMS[config.algorithm],
        seed=config.seed,
        steps=chosen.num_timesteps,
        config_sha256=config.sha256(),
        warm_start=json.dumps(warm, sort_keys=True) if warm else None,
        checkpoint=str(chosen.path.relative_to(run)) if chosen.path.is_relative_to(run) else chosen.path.name,
        versions=start["versions"],
        git_commit=start["git_commit"],
    )
    fleet = config.fleet_space(scenarios[0])
    return export_actor(actor, scenarios, training, out, overwrite=overwrite, fleet=fleet)


def find_checkpoint(run: Path, which: str) -> checkpoints.Checkpoint:
    """Return the checkpoint of a run that ``which`` names, see :func:`export_run`."""
    if which not in ("best", "last"):
        path = Path(which) if Path(which).is_file() else run / which
        return checkpoints.read(path)
    names = [checkpoints.BEST, checkpoints.LAST] if which == "best" else [checkpoints.LAST]
    for name in names:
        if (run / name).is_file():
            return checkpoints.read(run / name)
    newest = checkpoints.newest(run)
    if newest is None:
        raise RunError(f"{run}: has no checkpoint yet; train further, then export")
    return newest


def actor_from_zip(path: Path, config: TrainConfig, nvec: Sequence[int]) -> MlpActor:
    """Return the actor of a saved learner, with action dimensions of such sizes; only tensors are read.

    Raises:
        agents.checkpoints.CheckpointError: The file holds no such actor.
    """
    try:
        _, parameters, _ = load_from_zip_file(str(path), device="cpu", load_data=False)
        layers = actor_layers(cast("dict[str, torch.Tensor]", parameters["policy"]))
        return MlpActor(layers, config.network.activation, nvec, normalisations_of(config.algorithm))
    except (ValueError, KeyError, RuntimeError, OSError, UnpicklingError) as error:
        raise checkpoints.CheckpointError(
            f"{path}: no actor of this run's configuration in it ({error})"
        ) from error


__all__ = ["actor_from_zip", "export_actor", "export_run", "find_checkpoint", "onnx_bytes"]
